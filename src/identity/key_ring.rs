//! The API keys that were made while the gate ran. Looked up in memory; a change
//! counts once the store has it, and at once from then on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Method;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, oneshot};
use tracing::warn;

use super::key_replica::KeyMirror;
use super::{KeyRefused, KeySet, mint_key};
use crate::config::{ApiKey, PathPattern, Quota, parse_quota};
use crate::profiles::Role;
use crate::secret::Secret;
use crate::store::shared::SharedStore;
use crate::store::{KeyRecord, RecordDigest, Store, StoreChange, StoreUnavailable};

/// More than anybody tells apart.
const MOST_KEYS: usize = 10_000;

#[derive(Debug)]
pub struct KeyRing {
    held: Arc<ArcSwap<RingState>>,
    store: Arc<Store>,
    /// Keeps the keys in step with a shared store.
    mirror: Option<Arc<KeyMirror>>,
    /// Held from the look at the keys to the end of a change of them.
    changes: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) all: Vec<ApiKey>,
    pub(super) keys: KeySet,
}

/// A key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: Arc<str>,
    /// Seconds since 1970.
    pub expires: Option<i64>,
    pub role: Role,
    pub paths: Vec<PathPattern>,
    pub methods: Vec<Method>,
    /// Its own, besides all others.
    pub limit: Option<Quota>,
}

/// Why the keys stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("there is a key of this name")]
    Exists,
    #[error("there is no key of this name")]
    Unknown,
    #[error("there are too many keys")]
    Full,
    #[error("cannot be made to last")]
    Unavailable(#[from] StoreUnavailable),
}

impl KeyRing {
    /// The keys as `kept`.
    pub fn new(store: Arc<Store>, kept: Vec<KeyRecord>) -> Arc<Self> {
        let all: Vec<ApiKey> = kept.into_iter().filter_map(key).collect();
        let keys = KeySet::new(&all);
        Arc::new(Self {
            held: Arc::new(ArcSwap::from_pointee(RingState { all, keys })),
            store,
            mirror: None,
            changes: Arc::default(),
        })
    }

    /// The keys of a store that other gates share; empty until it is there.
    pub fn sharing(shared: &Arc<SharedStore>) -> Arc<Self> {
        let held: Arc<ArcSwap<RingState>> = Arc::default();
        let mirror = KeyMirror::of(&held, shared);
        Arc::new(Self {
            held,
            store: Arc::new(Store::Shared(Arc::clone(shared))),
            mirror: Some(mirror),
            changes: Arc::default(),
        })
    }

    /// Whose key `presented` is.
    pub fn find(&self, presented: &str) -> Result<Arc<ApiKey>, KeyRefused> {
        self.held.load().keys.find(presented)
    }

    /// Every key, with the time of its last use in seconds since 1970.
    pub fn list(&self) -> Vec<(ApiKey, Option<i64>)> {
        let held = self.held.load();
        let keys = held.all.iter();
        keys.map(|key| (key.clone(), held.keys.last_use(&key.name)))
            .collect()
    }

    /// Makes a key; gives its text, which is kept nowhere.
    pub async fn create(&self, wanted: NewKey) -> Result<Secret, KeyError> {
        let turn = Arc::clone(&self.changes).lock_owned();
        let turn = self.store.turn(turn).await?;
        let held = self.held.load_full();
        if held.keys.has(&wanted.name) {
            return Err(KeyError::Exists);
        }
        if held.all.len() >= MOST_KEYS {
            return Err(KeyError::Full);
        }
        let text = mint_key();
        let digest: [u8; 32] = Sha256::digest(text.expose()).into();
        let record = record(&wanted, digest);
        if let Some(mirror) = &self.mirror {
            return match mirror.create(&record).await? {
                true => Ok(text),
                false => Err(KeyError::Exists),
            };
        }
        let mut all = held.all.clone();
        all.push(ApiKey {
            name: wanted.name,
            digests: vec![digest],
            expires: wanted.expires,
            role: wanted.role,
            paths: wanted.paths,
            methods: wanted.methods,
            limit: wanted.limit,
        });
        self.commit(StoreChange::PutKey(record), all, turn).await?;
        Ok(text)
    }

    /// Ends a key: no request that begins after the answer gets in with it.
    pub async fn delete(&self, name: &str) -> Result<(), KeyError> {
        let turn = Arc::clone(&self.changes).lock_owned();
        let turn = self.store.turn(turn).await?;
        let mut all = self.held.load().all.clone();
        let before = all.len();
        all.retain(|key| *key.name != *name);
        if all.len() == before {
            return Err(KeyError::Unknown);
        }
        if let Some(mirror) = &self.mirror {
            return Ok(mirror.delete(name).await?);
        }
        let change = StoreChange::RemoveKey { name: name.into() };
        Ok(self.commit(change, all, turn).await?)
    }

    async fn commit(
        &self,
        change: StoreChange,
        all: Vec<ApiKey>,
        turn: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<(), StoreUnavailable> {
        let (answer, answered) = oneshot::channel();
        let held = Arc::clone(&self.held);
        self.store.submit(change, move |outcome| {
            if outcome.is_ok() {
                let keys = held.load().keys.reload(&all);
                held.store(Arc::new(RingState { all, keys }));
            }
            drop(turn);
            let _ = answer.send(outcome); // whoever asked may have left
        });
        self.store.outcome(answered).await
    }
}

fn record(wanted: &NewKey, digest: [u8; 32]) -> KeyRecord {
    KeyRecord {
        name: Arc::clone(&wanted.name),
        digest: RecordDigest(digest),
        expires: wanted.expires,
        role: wanted.role,
        paths: wanted.paths.iter().map(ToString::to_string).collect(),
        methods: wanted.methods.iter().map(ToString::to_string).collect(),
        limit: wanted.limit.as_ref().map(ToString::to_string),
    }
}

/// None: another version of this program may know what the record means. It opens
/// nothing here, rather than more than was meant.
pub(super) fn key(record: KeyRecord) -> Option<ApiKey> {
    let paths = record
        .paths
        .iter()
        .map(|text| PathPattern::parse(text).ok());
    let methods = record.methods.iter();
    let methods = methods.map(|text| Method::from_bytes(text.as_bytes()).ok());
    // A limit that is not understood is not the same as none.
    let limit = match &record.limit {
        Some(text) => parse_quota(text).map(Some),
        None => Some(None),
    };
    let (Some(paths), Some(methods), Some(limit)) = (paths.collect(), methods.collect(), limit)
    else {
        warn!(key = %record.name, "an API key of the store cannot be understood; it opens nothing");
        return None;
    };
    Some(ApiKey {
        name: record.name,
        digests: vec![record.digest.0],
        expires: record.expires,
        role: record.role,
        paths,
        methods,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str) -> NewKey {
        NewKey {
            name: name.into(),
            expires: None,
            role: Role::User,
            paths: vec![PathPattern::parse("/v1/media/{id}").unwrap()],
            methods: vec![Method::GET],
            limit: parse_quota("5/s burst 10"),
        }
    }

    #[tokio::test]
    async fn a_key_is_good_from_its_making_to_its_deletion() {
        let ring = KeyRing::new(Arc::new(Store::Memory), Vec::new());
        let text = ring.create(wanted("bot")).await.unwrap();
        let found = ring.find(text.expose()).unwrap();
        assert_eq!(&*found.name, "bot");
        assert!(ring.list()[0].1.is_some(), "its use was noticed");
        let again = ring.create(wanted("bot")).await;
        assert_eq!(again.unwrap_err(), KeyError::Exists);
        ring.delete("bot").await.unwrap();
        assert_eq!(ring.find(text.expose()).unwrap_err(), KeyRefused::Unknown);
        assert_eq!(ring.delete("bot").await, Err(KeyError::Unknown));
    }

    #[test]
    fn a_record_is_the_key_it_was_made_of_and_one_not_understood_opens_nothing() {
        let digest = [7; 32];
        let key = key(record(&wanted("bot"), digest)).unwrap();
        assert_eq!(key.paths, wanted("bot").paths);
        assert_eq!(key.methods, [Method::GET]);
        assert!(key.limit.is_some() && key.limit == wanted("bot").limit);
        assert_eq!(key.digests, [digest]);
        let odd = KeyRecord {
            paths: vec!["v2:/anything".to_owned()],
            ..record(&wanted("odd"), digest)
        };
        let unlimited = KeyRecord {
            limit: Some("a few".to_owned()),
            ..record(&wanted("unlimited"), digest)
        };
        let ring = KeyRing::new(Arc::new(Store::Memory), vec![odd, unlimited]);
        assert!(ring.list().is_empty());
    }
}
