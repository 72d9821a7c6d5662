//! The shipped profile `whatsapp`: every node of the Webapp (protocol sheet, section 3).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::{
    Access, AllowedFields, DirectoryKind, Limit, LimitKey, PathPattern, Quota, Route, Target,
    UsersCall,
};
use crate::webapp::Role;

/// Who is let in; the columns of the table below.
#[derive(Clone, Copy)]
enum AccessColumn {
    Open,
    /// A token alone: the users node is no place for services with keys.
    Token,
    /// A token, or a key whose paths cover it.
    Service,
    Admin,
    /// A user itself, or an admin; the node decides, it knows both names.
    Own,
}

/// What a node needs beyond the ordinary.
#[derive(Clone, Copy)]
enum NodeNeeds {
    Nothing,
    /// Long before the first byte: the Webapp talks to Meta, or waits for a phone.
    Minutes(u64),
    /// Big bodies, up or down: 100 MB and what frames them (protocol sheet, section 3).
    Media,
    /// Reads and writes a picture or certificates.
    Files,
    /// Carries the API key upstream.
    Monitoring,
    Users(UsersCall),
}

struct ProfileRow {
    name: &'static str,
    methods: &'static [Method],
    path: &'static str,
    who: AccessColumn,
    needs: NodeNeeds,
}

use NodeNeeds::{Files, Media, Minutes, Monitoring, Nothing, Users};
use UsersCall::{Change, Create, Delete, Login, Logout, Show};

/// Rows of: name, methods, path, who, needs. The class is the name's first part.
macro_rules! nodes {
    ($($name:literal [$($method:ident)+] $path:literal $who:ident $needs:expr;)+) => {
        &[$(ProfileRow {
            name: $name,
            methods: &[$(Method::$method),+],
            path: $path,
            who: AccessColumn::$who,
            needs: $needs,
        }),+]
    };
}

const TABLE: &[ProfileRow] = nodes! {
    "users.login"                    [POST]                  "/v1/users/login"                                       Open    Users(Login);
    "users.logout"                   [POST]                  "/v1/users/logout"                                      Token   Users(Logout);
    "users.create"                   [POST]                  "/v1/users"                                             Admin   Users(Create);
    "users.show"                     [GET]                   "/v1/users/{name}"                                      Own     Users(Show);
    "users.change"                   [PUT]                   "/v1/users/{name}"                                      Own     Users(Change);
    "users.delete"                   [DELETE]                "/v1/users/{name}"                                      Admin   Users(Delete);
    "account.register"               [POST DELETE]           "/v1/account"                                           Service Minutes(2);
    "account.verify"                 [POST]                  "/v1/account/verify"                                    Service Minutes(2);
    "account.shards"                 [GET POST]              "/v1/account/shards"                                    Service Minutes(5);
    "settings.application"           [GET PATCH DELETE]      "/v1/settings/application"                              Service Nothing;
    "settings.media_providers"       [GET POST]              "/v1/settings/application/media/providers"              Service Nothing;
    "settings.media_provider"        [DELETE]                "/v1/settings/application/media/providers/{name}"       Service Nothing;
    "settings.backup"                [POST]                  "/v1/settings/backup"                                   Service Minutes(10);
    "settings.restore"               [POST]                  "/v1/settings/restore"                                  Service Minutes(10);
    "settings.business_profile"      [GET POST]              "/v1/settings/business/profile"                         Admin   Nothing;
    "settings.compliance"            [GET POST]              "/v1/settings/business/compliance_info"                 Admin   Nothing;
    "settings.about"                 [GET PATCH]             "/v1/settings/profile/about"                            Admin   Nothing;
    "settings.photo"                 [GET POST DELETE]       "/v1/settings/profile/photo"                            Admin   Files;
    "settings.two_step"              [POST DELETE]           "/v1/settings/account/two-step"                         Service Nothing;
    "contacts.check"                 [POST]                  "/v1/contacts"                                          Service Minutes(2);
    "contacts.identity"              [GET PUT]               "/v1/contacts/{wa_id}/identity"                         Service Nothing;
    "messages.send"                  [POST]                  "/v1/messages"                                          Service Nothing;
    "messages.mark"                  [PUT]                   "/v1/messages/{id}"                                     Service Nothing;
    "media.upload"                   [POST]                  "/v1/media"                                             Service Media;
    "media.download"                 [GET]                   "/v1/media/{id}"                                        Service Media;
    "media.delete"                   [DELETE]                "/v1/media/{id}"                                        Service Nothing;
    "stickers.packs"                 [GET POST]              "/v1/stickerpacks"                                      Service Nothing;
    "stickers.pack"                  [GET PATCH DELETE]      "/v1/stickerpacks/{pack}"                               Service Nothing;
    "stickers.list"                  [GET POST]              "/v1/stickerpacks/{pack}/stickers"                      Service Nothing;
    "stickers.one"                   [GET PATCH DELETE]      "/v1/stickerpacks/{pack}/stickers/{index}"              Service Nothing;
    "groups.list"                    [GET POST]              "/v1/groups"                                            Service Nothing;
    "groups.one"                     [GET PUT DELETE]        "/v1/groups/{id}"                                       Service Nothing;
    "groups.admins"                  [PATCH DELETE]          "/v1/groups/{id}/admins"                                Service Nothing;
    "groups.icon"                    [GET POST DELETE]       "/v1/groups/{id}/icon"                                  Service Files;
    "groups.invite"                  [GET DELETE]            "/v1/groups/{id}/invite"                                Service Nothing;
    "groups.leave"                   [POST]                  "/v1/groups/{id}/leave"                                 Service Nothing;
    "groups.participants"            [DELETE]                "/v1/groups/{id}/participants"                          Service Nothing;
    "certificates.external"          [POST]                  "/v1/certificates/external"                             Admin   Files;
    "certificates.external_ca"       [GET]                   "/v1/certificates/external/ca"                          Admin   Nothing;
    "certificates.webhooks_ca"       [GET POST DELETE]       "/v1/certificates/webhooks/ca"                          Admin   Files;
    "monitoring.health"              [GET]                   "/v1/health"                                            Service Monitoring;
    "monitoring.metrics"             [GET]                   "/metrics"                                              Service Monitoring;
    "monitoring.stats_app"           [GET]                   "/v1/stats/app"                                         Service Monitoring;
    "monitoring.stats_app_internal"  [GET]                   "/v1/stats/app/internal"                                Service Monitoring;
    "monitoring.stats_db"            [GET]                   "/v1/stats/db"                                          Service Monitoring;
    "monitoring.stats_db_internal"   [GET]                   "/v1/stats/db/internal"                                 Service Monitoring;
    "support.show"                   [GET]                   "/v1/support"                                           Service Minutes(2);
    "services.gc"                    [PUT]                   "/v1/services/message/gc"                               Service Minutes(10);
};

/// The route table of the profile, in match order.
pub fn whatsapp_routes() -> Vec<Route> {
    TABLE.iter().map(route).collect()
}

fn route(row: &ProfileRow) -> Route {
    let name = row.name;
    let class = match name.split_once('.') {
        Some((class @ ("messages" | "contacts" | "media" | "users" | "settings"), _)) => class,
        Some((class @ ("monitoring" | "account" | "certificates"), _)) => class,
        Some((class @ ("groups" | "stickers"), _)) => class,
        _ => "other",
    };
    let plain = Route {
        name: Arc::from(name),
        hosts: Vec::new(),
        path: PathPattern::parse(row.path).expect("written above"),
        methods: row.methods.to_vec(),
        access: match row.who {
            AccessColumn::Open => vec![Access::Open],
            AccessColumn::Token => vec![Access::Token],
            AccessColumn::Service => vec![Access::Token, Access::ApiKey],
            AccessColumn::Admin => vec![Access::Role(Role::Admin)],
            AccessColumn::Own => vec![Access::Token, Access::Role(Role::Admin)],
        },
        target: Target::Upstream,
        class: Arc::from(class),
        monitoring: false,
        max_body: 1 << 20,
        first_byte_timeout: None,
        timeout: Duration::from_secs(60),
        max_wait: Duration::ZERO,
        allow_fields: AllowedFields::default(),
    };
    fitted(plain, row.needs)
}

fn fitted(plain: Route, needs: NodeNeeds) -> Route {
    let minutes = |number: u64| Duration::from_secs(number * 60);
    match needs {
        Nothing => plain,
        Minutes(number) => Route {
            first_byte_timeout: Some(minutes(number)),
            timeout: minutes(number + 1),
            ..plain
        },
        Media => Route {
            max_body: 110_000_000,
            first_byte_timeout: Some(minutes(2)),
            timeout: minutes(10),
            ..plain
        },
        Files => Route {
            max_body: 16 << 20,
            timeout: minutes(2),
            ..plain
        },
        Monitoring => Route {
            monitoring: true,
            timeout: minutes(1),
            ..plain
        },
        Users(call) => Route {
            target: Target::UsersNode(call),
            max_body: 64 << 10,
            ..plain
        },
    }
}

/// Just below the Webapp's own limits (protocol sheet, section 5.2): 50 a second
/// with bursts to 150 for messages, 20 a second with bursts to 60 for each other
/// node. Bursts are 140 and 54 here, so that requests which bunch up on the way,
/// or are sent a second time after a refused lease, never make the Webapp refuse.
pub(super) fn whatsapp_limits(routes: &[Route], directory: DirectoryKind) -> Vec<Limit> {
    let limit = |name: &str, classes: Vec<Arc<str>>, requests, burst| Limit {
        name: Arc::from(name),
        key: LimitKey::Class,
        classes,
        quota: Quota {
            requests,
            per: Duration::from_secs(1),
            burst,
        },
        dry_run: false,
    };
    // With its own users the gate answers the users node itself. One bucket for all
    // clients would let anybody use up everybody's logins, for nothing.
    let goes_up = |route: &&Route| match route.target {
        Target::Upstream => true,
        Target::UsersNode(_) => directory == DirectoryKind::Webapp,
        Target::Closed => false,
    };
    let mut classes: BTreeSet<Arc<str>> = routes
        .iter()
        .filter(goes_up)
        .map(|route| Arc::clone(&route.class))
        .collect();
    let messages = classes.take("messages");
    let mut limits = Vec::new();
    if let Some(messages) = messages {
        limits.push(limit("messages", vec![messages], 50, 140));
    }
    if !classes.is_empty() {
        limits.push(limit("nodes", classes.into_iter().collect(), 20, 54));
    }
    limits
}
