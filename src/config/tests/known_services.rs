//! `login.profile`: the logins of known services.

use super::*;
use crate::profiles::{SERVICE_LOGINS, ServiceLogin};

const HEAD: &str = "profile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:1\"\n";

fn parsed(text: &str) -> UpstreamConfig {
    let loaded = parse(&format!("{HEAD}{text}"), Path::new(""));
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    loaded.config.upstreams[0].clone()
}

/// The values that a service needs, with the keys of OAuth2 where it has them.
fn values(service: &ServiceLogin) -> String {
    let summary = service.summary();
    let [user, password] = match summary.contains("client_id") {
        true => ["client_id", "client_secret"],
        false => ["username", "password"],
    };
    let mut values = format!("{user} = \"gate\"\n{password} = {{ env = \"HOME\" }}\n");
    for name in ["project", "realm"] {
        if summary.contains(name) {
            values.push_str(&format!("{name} = \"of the test\"\n"));
        }
    }
    values
}

#[test]
fn each_service_is_read_and_written_out_as_the_same_login() {
    assert!(SERVICE_LOGINS.len() >= 20);
    for service in SERVICE_LOGINS {
        let values = values(service);
        let short = format!(
            "[upstream.main]\nurl = \"https://service.internal\"\n[upstream.main.login]\n\
             profile = \"{}\"\n{values}",
            service.name
        );
        let whole = service.as_config("main");
        let section = "[upstream.main.login]\n";
        let whole = whole.replace(section, &format!("{section}{values}"));
        let (short, whole) = (parsed(&short), parsed(&whole));
        assert_eq!(short, whole, "{}", service.name);
        assert!(!service.summary().is_empty());
        assert!(
            short.login.is_some() && whole.login.is_some(),
            "{}",
            service.name
        );
    }
}

#[test]
fn a_missing_value_and_a_wrong_name_are_told() {
    let upstream = "[upstream.main]\nurl = \"https://service.internal\"\n[upstream.main.login]\n\
                    username = \"gate\"\npassword = { env = \"HOME\" }\n";
    for (lines, expected) in [
        ("profile = \"keystone\"", "\"keystone\" needs project"),
        ("profile = \"keystnoe\"", "did you mean \"keystone\"?"),
        (
            "profile = \"keystone\"\nproject = \"p\"\nrealm = \"r\"",
            "is in no template of this login",
        ),
    ] {
        let refusal = parse(&format!("{HEAD}{upstream}{lines}"), Path::new(""));
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
        assert!(refusal.contains("upstream.main.login"), "{refusal}");
    }
}

#[test]
fn the_file_changes_what_it_says_otherwise() {
    let upstream = parsed(
        "[upstream.main]\nurl = \"https://service.internal\"\nlogins_per_hour = 7\n\
         [upstream.main.login]\nprofile = \"oauth2\"\nclient_id = \"gate\"\n\
         client_secret = { env = \"HOME\" }\nrequest.path = \"/token\"\nexpires = \"5m\"\n",
    );
    let login = &upstream.login_description;
    assert_eq!(login.target.to_string(), "/token");
    assert_eq!(login.expiry.len(), 1);
    assert_eq!(upstream.login.as_ref().unwrap().logins_per_hour, 7);
    // Without a scope there is no such field.
    let crate::profiles::LoginContent::Form(fields) = &login.body else {
        panic!("{:?}", login.body);
    };
    assert_eq!(fields.len(), 1);
    let strapi = parsed(
        "[upstream.main]\nurl = \"https://service.internal\"\n[upstream.main.login]\n\
         profile = \"strapi\"\nusername = \"gate\"\npassword = { env = \"HOME\" }\n",
    );
    assert_eq!(strapi.probe.unwrap(), "/api/users/me");
    assert_eq!(strapi.login.unwrap().logins_per_hour, 30);
}
