//! `[store]`: where state is kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::shared_store_section::shared_store;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::secret_that;
use crate::config::file::value_readers::{span, text};
use crate::config::{StoreConfig, StorePlace};
use crate::secret::Secret;

const DEFAULT: &str = "data/tollgate.redb";
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
const RULE: &str = "must be 32 bytes in base64, such as `openssl rand -base64 32` makes";

pub(in crate::config::file) fn store(root: &ConfigTable<'_>) -> StoreConfig {
    let folder = &root.report.folder;
    let mut store = StoreConfig {
        place: StorePlace::File(folder.join(DEFAULT)),
        key: None,
        old_key: None,
        timeout: PATIENCE,
    };
    let Some(table) = root.section("store") else {
        return store;
    };
    store.place = table.or("path", place, store.place);
    let timeout = table.read("timeout", span);
    store.timeout = timeout.unwrap_or(PATIENCE);
    if store.timeout > LONGEST_PATIENCE {
        let reason = "must be 30 seconds at most: logins wait for it";
        table.complain("timeout", reason, "");
    }
    if let Some(shared) = shared_store(&table, timeout) {
        if table.has("path") {
            table.complain(
                "path",
                "is a second place, beside url",
                "keep one of the two",
            );
        }
        if !table.has("key") {
            let reason = "is missing: the upstream's token is not shared, each gate logs in by \
                          itself, at every start as well";
            table.warn(
                "key",
                reason,
                "add key = { file = \"...\" }, the same for all gates",
            );
        }
        store.place = StorePlace::Shared(Box::new(shared));
    }
    store.key = table.read("key", secret_that(is_key, RULE));
    store.old_key = table.read("old_key", secret_that(is_key, RULE));
    if store.old_key.is_some() && !table.has("key") {
        let reason = "is the key before the one in use, and there is none in use";
        table.complain("old_key", reason, "add key, or rename this one to key");
    }
    if store.place == StorePlace::Memory && table.has("key") {
        table.warn("key", "has no effect with path = \"memory\"", "");
    }
    store
}

/// A file, or "memory".
fn place(value: &ConfigValue<'_>) -> Option<StorePlace> {
    if text(value)? == "memory" {
        return Some(StorePlace::Memory);
    }
    let path = crate::config::file::value_readers::path(value)?;
    if path.is_dir() {
        value.complain(
            &format!("is a folder: {}", path.display()),
            "name a file in it",
        );
        return None;
    }
    Some(StorePlace::File(path))
}

fn is_key(secret: &Secret) -> bool {
    let bytes = STANDARD
        .decode(secret.expose().trim())
        .map(zeroize::Zeroizing::new);
    bytes.is_ok_and(|bytes| bytes.len() == 32)
}
