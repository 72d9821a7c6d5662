//! How an upstream is reached, as the file says it.

use super::*;

/// `[upstream.main]` with these lines.
fn upstream(lines: &str) -> Result<LoadedConfig, Problems> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:1\"\n[users]\ndirectory = \"webapp\"\n\
         [upstream.main]\n{lines}\n"
    );
    parse(&text, Path::new("/etc/tollgate"))
}

fn refusal(lines: &str) -> String {
    match upstream(lines) {
        Err(problems) => problems.to_string(),
        Ok(_) => panic!("accepted: {lines}"),
    }
}

#[test]
fn a_unix_socket_is_accepted_without_tls_and_without_allow_plaintext() {
    for (url, path) in [
        ("unix:/run/webapp.sock", "/run/webapp.sock"),
        ("unix:///run/webapp.sock", "/run/webapp.sock"),
        ("unix:run/webapp.sock", "/etc/tollgate/run/webapp.sock"),
        (
            "unix:/run/a socket with spaces",
            "/run/a socket with spaces",
        ),
    ] {
        let loaded = upstream(&format!("url = \"{url}\"")).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let base = &loaded.config.upstreams[0].base;
        assert_eq!(base.socket.as_deref(), Some(Path::new(path)));
        assert!(!base.tls);
        let text = loaded.config.describe();
        assert!(text.contains(&format!("main: unix:{path}")), "{text}");
    }
}

#[test]
fn a_bad_socket_is_explained() {
    let long = format!("unix:/{}", "x".repeat(107));
    for (url, expected) in [
        ("unix:", "names no socket"),
        ("unix:/run/", "names no socket"),
        ("unix://run/webapp.sock", "write one slash"),
        ("unix:@webapp", "abstract sockets"),
        (long.as_str(), "107 bytes"),
        ("unx:/run/webapp.sock", "is no address"),
    ] {
        let text = refusal(&format!("url = \"{url}\""));
        assert!(text.contains(expected), "{url}: {text}");
    }
}

#[test]
fn plaintext_to_another_host_needs_allow_plaintext() {
    for (url, is_good) in [
        ("http://127.0.0.1:8080", true),
        ("http://127.8.8.8", true),
        ("http://[::1]:8080", true),
        ("http://localhost", true),
        ("http://webapp.internal", false),
        ("http://10.0.0.1:80", false),
        ("HTTP://WEBAPP.INTERNAL", false),
    ] {
        let outcome = upstream(&format!("url = \"{url}\""));
        assert_eq!(outcome.is_ok(), is_good, "{url}");
        if let Err(problems) = outcome {
            let text = problems.to_string();
            assert!(text.contains("in the clear"), "{text}");
            let allowed = format!("url = \"{url}\"\nallow_plaintext = true");
            assert!(upstream(&allowed).is_ok(), "{url}");
        }
    }
}

#[test]
fn host_is_a_name_with_a_port_at_most() {
    let with_host = |host: &str| format!("url = \"unix:/run/w\"\nhost = \"{host}\"");
    for host in [
        "webapp",
        "Web.App:8443",
        "10.0.0.1",
        "[fd00::1]:80",
        "web_app",
    ] {
        let config = upstream(&with_host(host)).unwrap().config;
        assert_eq!(config.upstreams[0].host.as_deref(), Some(host));
    }
    for host in [
        "web app",
        "a@b",
        "webapp:",
        "webapp:99999",
        "http://webapp",
        "webapp/x",
        "a\\r\\nb: c",
    ] {
        let text = refusal(&with_host(host));
        assert!(text.contains("upstream.main.host"), "{host}: {text}");
    }
}

#[test]
fn keys_of_tls_without_tls_are_a_warning() {
    for url in ["unix:/run/w", "http://127.0.0.1:1"] {
        let lines = format!("url = \"{url}\"\nserver_name = \"x\"");
        let loaded = upstream(&lines).unwrap();
        assert_eq!(loaded.warnings.len(), 1, "{url}");
    }
}

#[test]
fn a_client_certificate_needs_its_key_and_the_other_way_round() {
    let folder = std::env::temp_dir();
    let name = format!("tollgate-{:016x}.pem", rand::random::<u64>());
    let file = folder.join(&name);
    std::fs::write(&file, "text").unwrap();
    let file = file.display();
    let url = "url = \"https://service\"";
    for (lines, expected) in [
        (format!("client_certificate = \"{file}\""), "has no key"),
        (format!("client_key = \"{file}\""), "has no certificate"),
        (
            "client_certificate = \"/no/such\"\nclient_key = \"/no/such\"".to_owned(),
            "no such file: /no/such",
        ),
    ] {
        let text = refusal(&format!("{url}\n{lines}"));
        assert!(text.contains(expected), "{text}");
    }
    let both = format!("client_certificate = \"{file}\"\nclient_key = \"{file}\"");
    let loaded =
        upstream(&format!("{url}\n{both}")).unwrap_or_else(|problems| panic!("{problems}"));
    let text = loaded.config.describe();
    assert!(
        text.contains(&format!("shows certificate {file}, key {file}")),
        "{text}"
    );
    let bare = upstream(url).unwrap_or_else(|problems| panic!("{problems}"));
    let changed = bare.config.differences(&loaded.config);
    assert_eq!(changed[0].key, "upstream.main.client_certificate");
    std::fs::remove_file(folder.join(name)).unwrap();
}

#[test]
fn a_proxy_is_read_and_described_and_its_password_never_shown() {
    let url = "url = \"https://service\"";
    let lines = format!(
        "{url}\nproxy = \"http://Proxy.Internal:3128/\"\n\
         proxy_login = {{ username = \"gate\", password = {{ env = \"PATH\" }} }}"
    );
    let loaded = upstream(&lines).unwrap_or_else(|problems| panic!("{problems}"));
    let text = loaded.config.describe();
    let expected = "through proxy http://proxy.internal:3128, login \"gate\", password in";
    assert!(text.contains(expected), "{text}");
    let path = std::env::var("PATH").unwrap();
    assert!(!text.contains(&path), "{text}");
    let bare = upstream(url).unwrap_or_else(|problems| panic!("{problems}"));
    let changed = bare.config.differences(&loaded.config);
    assert_eq!(changed[0].key, "upstream.main.proxy");
    let [old, new] = [&bare, &loaded].map(|loaded| &loaded.config.upstreams[0]);
    assert!(!old.is_reached_like(new));
}

#[test]
fn a_bad_proxy_is_explained_without_what_could_be_a_password() {
    for (proxy, expected) in [
        ("https://proxy:3128", "TLS to the proxy is not supported"),
        ("socks5://proxy:1080", "only HTTP proxies"),
        ("proxy:3128", "only HTTP proxies"),
        ("http://proxy", "no valid port"),
        ("http://proxy:0", "no valid port"),
        ("http://proxy:99999", "no valid port"),
        (
            "http://gate:canary5ecret@proxy:3128",
            "belong in proxy_login",
        ),
        ("http://proxy:3128/path", "must end after host and port"),
    ] {
        let text = refusal(&format!("url = \"https://service\"\nproxy = \"{proxy}\""));
        assert!(
            text.contains(expected) && !text.contains(CANARY),
            "{proxy}: {text}"
        );
    }
    let alone = "url = \"https://service\"\n\
                 proxy_login = { username = \"a\", password = { env = \"PATH\" } }";
    assert!(refusal(alone).contains("has no proxy beside it"));
    let socket = "url = \"unix:/run/w\"\nproxy = \"http://proxy:3128\"";
    let loaded = upstream(socket).unwrap_or_else(|problems| panic!("{problems}"));
    let warning = loaded.warnings[0].to_string();
    assert!(
        warning.contains("a Unix socket is on this host"),
        "{warning}"
    );
    assert!(loaded.config.upstreams[0].proxy.is_none());
}

#[test]
fn loopback_behind_a_proxy_of_another_host_is_not_private() {
    let lines =
        |proxy: &str| format!("url = \"http://localhost\"\nproxy = \"http://{proxy}:3128\"");
    assert!(upstream(&lines("127.0.0.1")).is_ok());
    assert!(refusal(&lines("proxy.internal")).contains("to and behind the proxy"));
    let allowed = format!("{}\nallow_plaintext = true", lines("proxy.internal"));
    assert!(upstream(&allowed).is_ok());
}

#[test]
fn the_version_of_http_is_one_of_three_words() {
    for wrong in ["\"yes\"", "\"Auto\"", "2", "true"] {
        let text = refusal(&format!("url = \"https://a.internal\"\nhttp2 = {wrong}"));
        for word in ["upstream.main.http2", "never", "auto", "always"] {
            assert!(text.contains(word), "{wrong}: {text}");
        }
    }
    // Over a Unix socket both ends must know it; nothing there can choose.
    let always = upstream("url = \"unix:/run/webapp.sock\"\nhttp2 = \"always\"").unwrap();
    assert!(always.warnings.is_empty(), "{:?}", always.warnings);
    let auto = upstream("url = \"unix:/run/webapp.sock\"\nhttp2 = \"auto\"").unwrap();
    let warning = format!("{:?}", auto.warnings);
    assert!(warning.contains("has no effect without TLS"), "{warning}");
}
