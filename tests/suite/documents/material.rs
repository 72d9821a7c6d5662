//! What a configuration names: certificates, authorities and secrets, made where it wants them.

use std::path::Path;

use toml::Value;

use crate::harness::secret;
use tollgate::emulator::certificates;

/// Good as a password, an API key and an operator's token alike.
const SECRET: &str = "Stands-4-the-real-one";
const STORE_KEY: &str = "c3RhbmRzIGZvciBhIGtleSBvZiAzMiBieXRlcy4uLiE=";

/// Absolute places are moved below `root`.
pub(super) fn moved(text: &str, root: &Path) -> String {
    ["/run/", "/etc/", "/var/lib/"]
        .iter()
        .fold(text.to_owned(), |text, place| {
            let quoted = format!("\"{place}");
            text.replace(&quoted, &format!("\"{}{place}", root.display()))
        })
}

/// Makes every file that the configuration in `folder` names and that is not there.
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
    // The store's folder is made by whoever installs the gate.
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
