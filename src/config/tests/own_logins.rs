//! `login_per_endpoint`: where it makes sense.

use super::*;

const LOGIN: &str = "login = { username = \"gate\", password = { env = \"HOME\" } }";

/// `[upstream.main]` with these lines and `login_per_endpoint`.
fn upstream(users: &str, lines: &str) -> Result<LoadedConfig, Problems> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:1\"\n[users]\n{users}\n\
         [upstream.main]\nlogin_per_endpoint = true\n{lines}\n"
    );
    parse(&text, Path::new(""))
}

#[test]
fn it_is_for_endpoints_that_the_file_names() {
    let gateway = "directory = \"gateway\"";
    let two = format!("endpoints = [\"http://127.0.0.1:2\", \"http://127.0.0.1:3\"]\n{LOGIN}");
    let loaded = upstream(gateway, &two).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let text = loaded.config.describe();
    assert!(
        text.contains("each endpoint has a login and a token of its own"),
        "{text}"
    );

    let one = upstream(gateway, &format!("url = \"http://127.0.0.1:2\"\n{LOGIN}")).unwrap();
    let warnings = format!("{:?}", one.warnings);
    assert!(warnings.contains("login_per_endpoint"), "{warnings}");
    assert!(!one.config.upstreams[0].login.as_ref().unwrap().per_endpoint);

    let name = format!("url = \"https://servers.internal\"\nresolve = \"all\"\n{LOGIN}");
    let refusal = upstream(gateway, &name).unwrap_err().to_string();
    assert!(refusal.contains("its addresses come and go"), "{refusal}");
}

#[test]
fn the_upstream_of_the_users_and_one_without_a_login_cannot_have_it() {
    let two = "endpoints = [\"http://127.0.0.1:2\", \"http://127.0.0.1:3\"]";
    let with_login = format!("{two}\n{LOGIN}");
    for (users, lines, expected) in [
        (
            "directory = \"webapp\"",
            with_login.as_str(),
            "the upstream that has the users",
        ),
        ("directory = \"webapp\"", two, "needs a login"),
    ] {
        let refusal = upstream(users, lines).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
        assert!(
            refusal.contains("upstream.main.login_per_endpoint"),
            "{refusal}"
        );
        assert!(refusal.contains('6'), "the line: {refusal}");
    }
}
