//! Accepted and refused files, secrets in messages, differences between files, the profile.

mod described_logins;
mod example;
mod known_services;
mod own_logins;
mod reach;
mod switched_on;

use std::path::{Path, PathBuf};

use super::*;

const CANARY: &str = "canary5ecret";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example() -> String {
    std::fs::read_to_string(top().join("config.toml")).unwrap()
}

fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = top().join("tests/suite/configs").join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    files.sort();
    assert!(
        files.len() >= 4,
        "the folder is almost empty: is the path right?"
    );
    files
}

#[test]
fn accepted_files_are_accepted() {
    for (path, _) in files("accepted") {
        let loaded = load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{path:?} {:?}", loaded.warnings);
        let same = load(&path).unwrap().config;
        assert_eq!(loaded.config.differences(&same), [], "{path:?}");
    }
}

/// Each refused file begins with its problems: `#! LINE KEY REASON (SUGGESTION)`.
#[test]
fn refused_files_are_refused_with_every_problem_at_once() {
    for (path, text) in files("refused") {
        let wanted: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#! "))
            .collect();
        assert!(
            !wanted.is_empty(),
            "{path:?} does not say what is wrong with it"
        );
        let folder = format!("{}/", path.parent().unwrap().display());
        let problems = load(&path).expect_err("refused").problems;
        let found: Vec<_> = problems
            .iter()
            .map(|problem| {
                let line = problem.line.map_or("-".to_owned(), |line| line.to_string());
                format!("{line} {problem}").replace(&folder, "")
            })
            .collect();
        assert_eq!(found, wanted, "{path:?}");
    }
}

/// Secrets at wrong keys and in wrong forms, also with missing quotes: no
/// message may repeat them.
#[test]
fn no_problem_repeats_a_secret_wherever_it_was_put() {
    let own = [
        "url = \"https://admin:canary5ecret@webapp\"",
        "login = \"canary5ecret\"",
        "login = { username = \"a\", password = \"canary5ecret\" }",
        "login = { username = \"a\", password = { text = \"canary5ecret\" } }",
        "login = { username = \"a\", password = { env = \"canary5ecret!\" } }",
        "login = { username = \"a\", password = [\"canary5ecret\"] }",
        "login = { username = \"a\", password = canary5ecret }",
        "login = { username = \"a\", password = \"canary5ecret }",
        "login = { username = \"a\", password = 'canary5ecret\" }",
        "login = { username = \"a\" password = \"canary5ecret\" }",
        "api_key = \"canary5ecret\"",
        "api_key = canary5ecret",
        "pins = [\"canary5ecret\"]",
        "server_name = \"canary5ecret !\"",
    ];
    for line in own {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:1\"\n[upstream.main]\n{line}\n");
        let problems = parse(&text, top()).expect_err(line);
        assert_silent(&problems, line);
    }
    let users = [
        "first_admin = { username = \"admin\", password = \"canary5ecret\" }",
        "first_admin = { username = \"admin\", password_hash = \"canary5ecret\" }",
        "first_admin = \"canary5ecret\"",
        "token_lifetime = \"canary5ecret\"",
        "directory = \"canary5ecret\"",
    ];
    for line in users {
        let problems = parse(&format!("[users]\n{line}\n"), top()).expect_err(line);
        assert_silent(&problems, line);
    }
    let key = format!("[[api_key]]\nname = \"x\"\nsha256 = [\"{CANARY}\"]\n");
    assert_silent(&parse(&key, top()).expect_err("no digest"), &key);
}

fn assert_silent(problems: &Problems, line: &str) {
    let text = format!("{problems}{problems:?}");
    assert!(!text.contains(CANARY), "{line}: {text}");
}

#[test]
fn a_bad_file_causes_no_panic_and_is_never_accepted() {
    let example = example();
    // Truncated, or with one byte missing: some of these are accepted, none causes a panic.
    for cut in (0..example.len())
        .filter(|&cut| example.is_char_boundary(cut))
        .step_by(41)
    {
        let _ = parse(&example[..cut], top());
        let without = format!(
            "{}{}",
            &example[..cut],
            &example[(cut + 1).min(example.len())..]
        );
        let _ = parse(&without, top());
    }
    for text in [
        "=",
        "[",
        "[[",
        "[a]]",
        "\u{0}",
        "a.b.c = [[[[",
        "listener = 3",
        "[upstream]",
    ] {
        assert!(parse(text, top()).is_err(), "{text}");
    }
}

#[test]
fn a_description_names_the_sources_of_secrets_and_never_their_values() {
    let folder = std::env::temp_dir().join(format!("tollgate-describe-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let password = folder.join("password");
    std::fs::write(&password, CANARY).unwrap();
    let for_all = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&password, for_all).unwrap();
    let text = "[[listener]]\naddress = \"127.0.0.1:1\"\n[upstream.main]\nurl = \"http://[::1]:1\"\n\
                login = { username = \"gate\", password = { file = \"password\" } }\n\
                api_key = { file = \"password\" }\n";
    let loaded = parse(text, &folder).unwrap();
    assert_eq!(loaded.warnings.len(), 2, "others may read both");
    let described = loaded.config.describe();
    assert!(!described.contains(CANARY) && described.contains("password in file"));
    assert!(described.contains("messages.send"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "the example has an [emulator]")]
fn differences_name_the_settings_that_need_a_restart() {
    let base = example();
    let changes = [
        (
            "\"127.0.0.1:8443\"",
            "\"127.0.0.1:8444\"",
            "listener addresses",
            false,
        ),
        ("# workers = \"auto\"", "workers = 77", "workers", false),
        ("# filter = \"info\"", "filter = \"debug\"", "log", true),
        (
            "# directory = \"gateway\"",
            "directory = \"webapp\"",
            "users.directory",
            false,
        ),
        ("# wait = \"5s\"", "wait = \"6s\"", "drain", true),
        (
            "# renew_at = 0.8",
            "renew_at = 0.7",
            "upstream.main.login",
            true,
        ),
        (
            "# token_lifetime = \"7d\"       #",
            "token_lifetime = \"1d\" #",
            "users",
            true,
        ),
        (
            "# close = [\"groups.*\"]",
            "close = [\"groups.icon\"]",
            "route.groups.icon",
            true,
        ),
        (
            "# max_headers = 100",
            "max_headers = 50",
            "listener[0]",
            true,
        ),
        ("# max_keys = 100000", "max_keys = 200", "limits", true),
    ];
    let old = parse(&base, top()).unwrap().config;
    for (from, to, key, reloadable) in changes {
        assert!(base.contains(from), "{from}");
        let new = parse(&base.replacen(from, to, 1), top()).unwrap().config;
        let found = old.differences(&new);
        let wanted = Difference {
            key: key.to_owned(),
            reloadable,
        };
        assert!(found.contains(&wanted), "{to}: {found:?}");
        assert_eq!(new.differences(&new), []);
    }
}

#[test]
fn roles_of_the_webapps_own_users_are_checked_by_the_webapp() {
    let relay = top().join("tests/suite/configs/accepted/relay.toml");
    let routes = load(&relay).unwrap().config.routes;
    let about = routes
        .iter()
        .find(|route| &*route.name == "settings.about")
        .unwrap();
    assert_eq!(about.access[0], Access::Token);
}

/// Protocol sheet, section 3: every node, with and without its trailing slash.
#[test]
fn the_profile_covers_every_node() {
    let sheet = include_str!("../../../tests/suite/configs/nodes.txt");
    let routes = shipped_routes(
        Profile::DEFAULT,
        &[ProfileRouting::everywhere("main".into())],
    );
    let mut nodes = 0;
    for line in sheet.lines().filter(|line| !line.starts_with('#')) {
        let (methods, path) = line.split_once(' ').unwrap();
        for method in methods.split(',') {
            nodes += 1;
            let segments = path.split('/').filter(|segment| !segment.is_empty());
            let fits = |route: &&Route| {
                route.path.matches(segments.clone())
                    && route.methods.iter().any(|own| own.as_str() == method)
            };
            assert_eq!(routes.iter().filter(fits).count(), 1, "{method} {path}");
        }
    }
    assert!(nodes > 70, "{nodes}");
    let mut names: Vec<_> = routes.iter().map(|route| &route.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), routes.len());
    let monitoring = routes.iter().filter(|route| route.monitoring).count();
    assert_eq!(monitoring, 6);
}

#[test]
#[cfg(not(feature = "emulator"))]
fn an_emulator_section_without_the_feature_is_refused_clearly() {
    let problems = load(&top().join("config.toml")).unwrap_err().to_string();
    assert!(problems.contains("emulator") && problems.contains("is not part of this build"));
}

fn fleet() -> Config {
    let file = top().join("tests/suite/configs/accepted/fleet.toml");
    load(&file).unwrap().config
}

#[test]
fn the_profiles_routes_come_once_for_each_upstream_the_more_specific_first() {
    let routes = fleet().routes;
    let health = routes
        .iter()
        .filter(|route| &*route.name == "monitoring.health");
    let order: Vec<_> = health
        .map(|route| (&*route.upstream, route.hosts.join(" ")))
        .collect();
    let expected = [
        ("north", "north.gate.internal"),
        ("south", "south.gate.internal"),
        ("south", "*.south.gate.internal"),
        ("rest", ""),
    ];
    assert_eq!(
        order,
        expected.map(|(name, hosts)| (name, hosts.to_owned()))
    );
    let largest = |name: &str, upstream: &str| {
        let mut all = routes.iter();
        let of = |route: &&Arc<Route>| *route.name == *name && *route.upstream == *upstream;
        all.find(of).unwrap().max_body
    };
    assert_eq!(largest("messages.send", "south"), 2 << 20);
    assert_eq!(largest("messages.send", "north"), 1 << 20);
    assert_eq!(largest("media.upload", "north"), 20 << 20);
    assert_eq!(largest("media.upload", "rest"), 20 << 20);
}

#[test]
fn an_upstream_that_comes_or_goes_is_one_difference() {
    let old = fleet();
    let mut new = old.clone();
    new.upstreams.retain(|upstream| &*upstream.name != "south");
    new.routes.retain(|route| &*route.upstream != "south");
    for (old, new) in [(&old, &new), (&new, &old)] {
        let keys = old.differences(new).into_iter().map(|found| found.key);
        assert_eq!(keys.collect::<Vec<_>>(), ["upstream.south"]);
    }
}
