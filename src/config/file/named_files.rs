//! Files that the config names: do they exist, can they be read, are secrets private?

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::config_table::ConfigValue;
use super::value_readers as value_of;
use crate::secret::{self, Secret, SecretSource};

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FilePrivacy {
    Public,
    OwnerOnly,
    /// The same, and its content is checked elsewhere.
    Secret,
}

/// A file that every user of the host may read, such as a certificate.
pub(super) fn public_file(value: &ConfigValue<'_>) -> Option<PathBuf> {
    let path = value_of::path(value)?;
    check(value, &path, FilePrivacy::Public);
    Some(path)
}

/// A file that holds a private key.
pub(super) fn key_file(value: &ConfigValue<'_>) -> Option<PathBuf> {
    let path = value_of::path(value)?;
    check(value, &path, FilePrivacy::OwnerOnly);
    Some(path)
}

/// A secret whose source can be read now, or will be made at the first run.
pub(super) fn secret(value: &ConfigValue<'_>) -> Option<SecretSource> {
    let source = value_of::secret(value)?;
    if let SecretSource::File(path) = &source {
        check(value, path, FilePrivacy::Secret);
    }
    match source.read() {
        // Reported already, or made at the first run.
        Ok(_) | Err(secret::Error::Unreadable { .. }) => {}
        Err(secret::Error::Unset { name }) => {
            value.complain(&format!("environment variable {name} is not set"), "");
        }
        Err(secret::Error::Unusable { place, fault }) => {
            value.complain(&format!("leads to {place}, which {fault}"), "");
        }
    }
    Some(source)
}

/// A secret whose text must keep `rule`. Messages name the rule, never the text.
pub(super) fn secret_that(
    is_valid: fn(&Secret) -> bool,
    rule: &'static str,
) -> impl Fn(&ConfigValue<'_>) -> Option<SecretSource> {
    move |value| {
        let source = secret(value)?;
        if source.read().is_ok_and(|text| !is_valid(&text)) {
            value.complain(&format!("leads to a secret that breaks a rule: {rule}"), "");
        }
        Some(source)
    }
}

fn check(value: &ConfigValue<'_>, path: &Path, privacy: FilePrivacy) {
    if let Err(error) = std::fs::File::open(path) {
        let made_at_first_run = value.report.made_at_first_run.borrow();
        let made_later = made_at_first_run
            .as_ref()
            .is_some_and(|made| is_inside(path, made));
        match error.kind() {
            ErrorKind::NotFound if made_later => {}
            ErrorKind::NotFound => {
                let suggestion = "relative paths start at the config file's folder";
                value.complain(&format!("no such file: {}", path.display()), suggestion);
            }
            kind => value.complain(&format!("cannot be read: {} ({kind})", path.display()), ""),
        }
        return;
    }
    let Ok(metadata) = std::fs::metadata(path) else {
        return;
    };
    if metadata.is_dir() {
        value.complain(&format!("is a folder: {}", path.display()), "name the file");
    } else if metadata.len() == 0 && privacy != FilePrivacy::Secret {
        value.complain(&format!("is empty: {}", path.display()), "");
    } else if privacy != FilePrivacy::Public && metadata.permissions().mode() & 0o077 != 0 {
        let reason = format!("others may read {}", path.display());
        value.warn(&reason, "chmod 600");
    }
}

/// Compares names only: neither path needs to exist yet.
fn is_inside(path: &Path, folder: &Path) -> bool {
    let no_way_out = !path.components().any(|part| part == Component::ParentDir);
    no_way_out && path.starts_with(folder)
}
