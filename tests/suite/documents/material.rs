//! Creates the files that a configuration names: certificates, CAs and secrets.

use std::path::Path;

use toml::Value;

use crate::harness::secret;
use tollgate::emulator::certificates;

/// Valid as a password, an API key and an operator's token.
const SECRET: &str = "Stands-4-the-real-one";
const STORE_KEY: &str = "c3RhbmRzIGZvciBhIGtleSBvZiAzMiBieXRlcy4uLiE=";

/// Moves absolute paths below `root`.
pub(super) fn moved(text: &str, root: &Path) -> String {
    ["/run/", "/etc/", "/var/lib/"]
        .iter()
        .fold(text.to_owned(), |text, location| {
            let quoted = format!("\"{location}");
            text.replace(&quoted, &format!("\"{}{location}", root.display()))
        })
}

/// Creates every file that the configuration in `folder` names and that does not exist.
pub(super) fn provide(text: &str, folder: &Path) {
    let made = tempfile::tempdir().unwrap();
    certificates::make(made.path()).unwrap();
    let config: toml::Table = text
        .parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    walk("", &Value::Table(config), &mut |key, name| {
        let path = folder.join(name);
        if path.exists() {
            return;
        }
        let text = match key.rsplit('.').next().unwrap() {
            "certificate" => std::fs::read_to_string(made.path().join("server.pem")).unwrap(),
            "ca" => std::fs::read_to_string(made.path().join("ca.pem")).unwrap(),
            "key" => std::fs::read_to_string(made.path().join("server.key")).unwrap(),
            "file" if key.starts_with("store.key") || key.starts_with("store.old_key") => {
                STORE_KEY.to_owned()
            }
            "file" => SECRET.to_owned(),
            _ => return,
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        secret(&path, &text);
    });
    // The gate does not create the store's folder; an installation does.
    if text.contains("/var/lib/tollgate/") {
        std::fs::create_dir_all(folder.join("var/lib/tollgate")).unwrap();
    }
}

fn walk(key: &str, value: &Value, each: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                walk(&key, value, each);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| walk(key, value, each)),
        Value::String(text) => each(key, text),
        _ => {}
    }
}
