//! API keys: minting them, and finding one by its text.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::config::ApiKey;
use crate::profiles::API_KEY_LENGTH;
use crate::secret::Secret;

/// The valid keys by digest. Key texts are not kept, so a dump of this process holds none, and
/// finding a key by digest leaks nothing of its text through timing.
#[derive(Debug, Default)]
pub struct KeySet {
    by_digest: HashMap<[u8; 32], Arc<KnownKey>>,
    names: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct KnownKey {
    key: Arc<ApiKey>,
    /// Seconds since 1970; 0: never used.
    last_use: AtomicI64,
}

/// A key as the operator sees it.
#[derive(Clone, Debug)]
pub struct ListedKey {
    pub key: ApiKey,
    /// When it was last accepted, in seconds since 1970.
    pub last_use: Option<i64>,
}

/// Why a key is refused. Clients get one response for all; the access log has the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    #[error("unknown API key")]
    Unknown,
    #[error("expired API key")]
    Expired,
}

impl KeyRefused {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown API key",
            Self::Expired => "expired API key",
        }
    }
}

impl KeySet {
    pub fn new(keys: &[ApiKey]) -> Self {
        Self::default().reload(keys)
    }

    /// The keys of a new configuration; a key that stays keeps its time of last use.
    pub fn reload(&self, keys: &[ApiKey]) -> Self {
        let mut by_digest = HashMap::new();
        for key in keys {
            let known = Arc::new(KnownKey {
                key: Arc::new(key.clone()),
                last_use: AtomicI64::new(self.last_use(&key.name).unwrap_or(0)),
            });
            for digest in &key.digests {
                by_digest.insert(*digest, Arc::clone(&known));
            }
        }
        Self {
            by_digest,
            names: keys.iter().map(|key| Arc::clone(&key.name)).collect(),
        }
    }

    /// Whether a key has this name, expired or not.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The key whose text is `presented`.
    pub fn find(&self, presented: &str) -> Result<Arc<ApiKey>, KeyRefused> {
        // Checks bytes first, so that a client cannot make the gateway count the characters of a
        // huge field.
        let longest = 4 * *API_KEY_LENGTH.end();
        if presented.len() > longest || !API_KEY_LENGTH.contains(&presented.chars().count()) {
            return Err(KeyRefused::Unknown);
        }
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let known = self.by_digest.get(&digest).ok_or(KeyRefused::Unknown)?;
        let now = clock::unix_seconds();
        if known.key.expires.is_some_and(|expires| now >= expires) {
            return Err(KeyRefused::Expired);
        }
        // Written once a second at most, so that workers do not contend for the cache line.
        if known.last_use.load(Ordering::Relaxed) != now {
            known.last_use.store(now, Ordering::Relaxed);
        }
        Ok(Arc::clone(&known.key))
    }

    /// The key with its last use. `key`: one of this set.
    pub fn listed(&self, key: &ApiKey) -> ListedKey {
        ListedKey {
            key: key.clone(),
            last_use: self.last_use(&key.name),
        }
    }

    /// When the key of this name was last used successfully, in seconds since 1970.
    fn last_use(&self, name: &str) -> Option<i64> {
        let mut known = self.by_digest.values();
        let known = known.find(|known| *known.key.name == *name)?;
        Some(known.last_use.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }
}

/// A new key, `tgk_` and 256 random bits. Shown once; the configuration gets its digest.
pub fn mint_key() -> Secret {
    super::random_text("tgk_")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::profiles::Role;

    pub(in crate::identity) fn key(name: &str, text: &str) -> ApiKey {
        ApiKey {
            name: name.into(),
            digests: vec![Sha256::digest(text).into()],
            expires: None,
            role: Role::User,
            paths: Vec::new(),
            upstreams: Vec::new(),
            methods: Vec::new(),
            limit: None,
        }
    }

    #[test]
    fn a_key_is_found_by_its_text_and_by_no_other() {
        let minted = mint_key();
        let mut sender = key("sender", minted.expose());
        sender.digests.push(Sha256::digest("the-next-key-1").into());
        let keys = KeySet::new(&[sender, key("other", "other-key-0001")]);
        assert_eq!(&*keys.find(minted.expose()).unwrap().name, "sender");
        assert_eq!(&*keys.find("the-next-key-1").unwrap().name, "sender");
        assert_eq!(&*keys.find("other-key-0001").unwrap().name, "other");
        let long = "x".repeat(100_000);
        for bad in ["", "short", "Other-key-0001", long.as_str()] {
            assert_eq!(keys.find(bad).unwrap_err(), KeyRefused::Unknown);
        }
    }

    #[test]
    fn length_is_counted_in_characters() {
        let (shortest, longest) = ("é".repeat(12), "é".repeat(128));
        let keys = KeySet::new(&[key("a", &shortest), key("b", &longest)]);
        assert!(keys.find(&shortest).is_ok());
        assert!(keys.find(&longest).is_ok());
        let (short, long) = ("x".repeat(11), "x".repeat(129));
        let keys = KeySet::new(&[key("a", &short), key("b", &long)]);
        assert!(keys.find(&short).is_err());
        assert!(keys.find(&long).is_err());
    }

    #[test]
    fn a_key_ends_at_the_second_it_expires() {
        let mut old = key("old", "old-key-000001");
        old.expires = Some(clock::unix_seconds());
        let mut fresh = key("fresh", "fresh-key-0001");
        fresh.expires = Some(clock::unix_seconds() + 600);
        let keys = KeySet::new(&[old, fresh]);
        let refused = keys.find("old-key-000001").unwrap_err();
        assert_eq!(refused, KeyRefused::Expired);
        assert_eq!(refused.reason(), refused.to_string());
        assert!(keys.find("fresh-key-0001").is_ok());
        assert_eq!(keys.last_use("old"), None);
    }

    #[test]
    fn the_time_of_last_use_survives_a_reload() {
        let settings = [key("sender", "sender-key-001")];
        let keys = KeySet::new(&settings);
        assert_eq!(keys.last_use("sender"), None);
        keys.find("sender-key-001").unwrap();
        let used = keys.last_use("sender");
        assert!(used.is_some());
        assert_eq!(keys.reload(&settings).last_use("sender"), used);
    }
}
