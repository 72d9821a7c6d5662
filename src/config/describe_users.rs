//! The users and their tokens in words, for `check`.

use super::display::{DurationText, listed};
use super::{AtTokenCap, Config, DirectoryKind, FirstPassword, OnPasswordChange, UnknownTokens};

pub(super) fn user_lines(config: &Config) -> Vec<String> {
    let users = &config.users;
    let mut lines = vec![
        whose(config),
        match users.at_token_cap {
            AtTokenCap::EndOldest => "one login more ends that user's oldest unused token",
            AtTokenCap::Refuse => "one login more is refused",
        }
        .to_owned(),
        match users.on_password_change {
            OnPasswordChange::EndOthers => {
                "a new password ends the user's tokens, but the one it was changed with"
            }
            OnPasswordChange::EndAll => "a new password ends all of the user's tokens",
        }
        .to_owned(),
    ];
    if let Some(admin) = &users.first_admin {
        let place = match &admin.password {
            FirstPassword::Plain(source) => format!("password in {source}"),
            FirstPassword::Hash(_) => "password by its hash".to_owned(),
        };
        lines.push(format!("first admin \"{}\", {place}", admin.username));
    }
    if !users.upstreams.is_empty() {
        lines.push(format!("users may call {}", listed(&users.upstreams)));
    }
    let rule = |rule: &super::UserRule| {
        format!(
            "user \"{}\" may call {}",
            rule.name,
            listed(&rule.upstreams)
        )
    };
    lines.extend(users.rules.iter().map(rule));
    lines
}

fn whose(config: &Config) -> String {
    let users = &config.users;
    let unknown = match users.unknown_tokens {
        UnknownTokens::Reject => "unknown tokens are rejected",
        UnknownTokens::Ask => "unknown tokens are asked about",
    };
    let (lifetime, each, all) = (
        DurationText(users.token_lifetime),
        users.max_tokens_per_user,
        users.max_tokens,
    );
    match users.directory {
        DirectoryKind::Gateway => {
            format!("own; tokens live {lifetime}, {each} each, {all} in all")
        }
        DirectoryKind::Upstream => {
            let upstream = match config.upstreams.len() {
                1 => "the upstream",
                _ => &config.users_upstream().name,
            };
            format!("{upstream}'s; {unknown}; {each} tokens each, {all} in all")
        }
    }
}
