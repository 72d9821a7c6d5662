//! The API keys that were made at run time. Requests find them in memory; a change takes effect as
//! soon as the store has confirmed it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Method;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, oneshot};

use super::key_replica::KeyReplica;
use super::ring_state::{RingState, api_key};
use super::{KeyRefused, KeySet, ListedKey, mint_key};
use crate::config::{ApiKey, PathPattern, Quota};
use crate::profiles::Role;
use crate::secret::Secret;
use crate::store::shared::SharedStore;
use crate::store::{KeyRecord, RecordDigest, Store, StoreBackend, StoreChange, StoreUnavailable};

/// Maximum number of keys.
const MAX_KEYS: usize = 10_000;

#[derive(Debug)]
pub struct KeyRing {
    state: Arc<ArcSwap<RingState>>,
    store: StoreBackend,
    /// Applies other gateways' changes; None: the store is not shared.
    replica: Option<Arc<KeyReplica>>,
    /// Serialises check-then-write on the key set.
    changes: Arc<Mutex<()>>,
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: Arc<str>,
    /// Seconds since 1970.
    pub expires: Option<i64>,
    pub role: Role,
    pub paths: Vec<PathPattern>,
    /// Empty: every upstream.
    pub upstreams: Vec<Arc<str>>,
    pub methods: Vec<Method>,
    /// The key's own rate limit, besides all others.
    pub limit: Option<Quota>,
}

/// Why a change of the keys was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("there is a key of this name")]
    Exists,
    #[error("there is no key of this name")]
    Unknown,
    #[error("there are too many keys")]
    Full,
    #[error("cannot be written to the store")]
    Unavailable(#[from] StoreUnavailable),
}

impl KeyRing {
    /// A ring with the stored keys, `records`.
    pub fn new(store: Arc<Store>, records: Vec<KeyRecord>) -> Arc<Self> {
        let all: Vec<ApiKey> = records.into_iter().filter_map(api_key).collect();
        let keys = KeySet::new(&all);
        Arc::new(Self {
            state: Arc::new(ArcSwap::from_pointee(RingState { all, keys })),
            store: StoreBackend::Local(store),
            replica: None,
            changes: Arc::default(),
        })
    }

    /// The keys of a store that several gateways share; empty until it is connected.
    pub fn sharing(shared: &Arc<SharedStore>) -> Arc<Self> {
        let state: Arc<ArcSwap<RingState>> = Arc::default();
        let replica = KeyReplica::new(&state, shared);
        Arc::new(Self {
            state,
            store: StoreBackend::Shared(Arc::clone(shared)),
            replica: Some(replica),
            changes: Arc::default(),
        })
    }

    /// The key whose text is `presented`.
    pub fn find(&self, presented: &str) -> Result<Arc<ApiKey>, KeyRefused> {
        self.state.load().keys.find(presented)
    }

    /// Every key, with the time of its last use in seconds since 1970.
    pub fn list(&self) -> Vec<ListedKey> {
        let state = self.state.load();
        let keys = state.all.iter();
        keys.map(|key| state.keys.listed(key)).collect()
    }

    /// Makes a key; returns its text, which is not stored.
    pub async fn create(&self, new: NewKey) -> Result<Secret, KeyError> {
        let guard = Arc::clone(&self.changes).lock_owned();
        let guard = self.store.acquire(guard).await?;
        let state = self.state.load_full();
        if state.keys.has(&new.name) {
            return Err(KeyError::Exists);
        }
        if state.all.len() >= MAX_KEYS {
            return Err(KeyError::Full);
        }
        let text = mint_key();
        let digest: [u8; 32] = Sha256::digest(text.expose()).into();
        let record = record(&new, digest);
        if let Some(replica) = &self.replica {
            return match replica.create(&record).await? {
                true => Ok(text),
                false => Err(KeyError::Exists),
            };
        }
        let mut all = state.all.clone();
        all.push(ApiKey {
            name: new.name,
            digests: vec![digest],
            expires: new.expires,
            role: new.role,
            paths: new.paths,
            upstreams: new.upstreams,
            methods: new.methods,
            limit: new.limit,
        });
        self.commit(StoreChange::PutKey(record), all, guard).await?;
        Ok(text)
    }

    /// Deletes a key: no request that begins after this returns is authenticated by it.
    pub async fn delete(&self, name: &str) -> Result<(), KeyError> {
        let guard = Arc::clone(&self.changes).lock_owned();
        let guard = self.store.acquire(guard).await?;
        let mut all = self.state.load().all.clone();
        let before = all.len();
        all.retain(|key| *key.name != *name);
        if all.len() == before {
            return Err(KeyError::Unknown);
        }
        if let Some(replica) = &self.replica {
            return Ok(replica.delete(name).await?);
        }
        let change = StoreChange::RemoveKey { name: name.into() };
        Ok(self.commit(change, all, guard).await?)
    }

    async fn commit(
        &self,
        change: StoreChange,
        all: Vec<ApiKey>,
        guard: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<(), StoreUnavailable> {
        let StoreBackend::Local(store) = &self.store else {
            return Err(StoreUnavailable::Failed("the store is shared".into()));
        };
        let (sender, receiver) = oneshot::channel();
        let state = Arc::clone(&self.state);
        store.submit(change, move |outcome| {
            if outcome.is_ok() {
                let keys = state.load().keys.reload(&all);
                state.store(Arc::new(RingState { all, keys }));
            }
            drop(guard);
            let _ = sender.send(outcome); // the client may have left
        });
        store.outcome(receiver).await
    }
}

fn record(new: &NewKey, digest: [u8; 32]) -> KeyRecord {
    KeyRecord {
        name: Arc::clone(&new.name),
        digest: RecordDigest(digest),
        expires: new.expires,
        role: new.role,
        paths: new.paths.iter().map(ToString::to_string).collect(),
        methods: new.methods.iter().map(ToString::to_string).collect(),
        limit: new.limit.as_ref().map(ToString::to_string),
        upstreams: new.upstreams.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_quota;

    fn wanted(name: &str) -> NewKey {
        NewKey {
            name: name.into(),
            expires: None,
            role: Role::User,
            paths: vec![PathPattern::parse("/v1/media/{id}").unwrap()],
            upstreams: Vec::new(),
            methods: vec![Method::GET],
            limit: parse_quota("5/s burst 10"),
        }
    }

    #[tokio::test]
    async fn a_key_is_valid_from_its_creation_to_its_deletion() {
        let ring = KeyRing::new(Arc::new(Store::Memory), Vec::new());
        let text = ring.create(wanted("bot")).await.unwrap();
        let found = ring.find(text.expose()).unwrap();
        assert_eq!(&*found.name, "bot");
        assert!(ring.list()[0].last_use.is_some(), "its use was recorded");
        let again = ring.create(wanted("bot")).await;
        assert_eq!(again.unwrap_err(), KeyError::Exists);
        ring.delete("bot").await.unwrap();
        assert_eq!(ring.find(text.expose()).unwrap_err(), KeyRefused::Unknown);
        assert_eq!(ring.delete("bot").await, Err(KeyError::Unknown));
    }

    #[test]
    fn a_record_reads_back_as_its_key_and_an_unknown_form_authenticates_nothing() {
        let digest = [7; 32];
        let key = api_key(record(&wanted("bot"), digest)).unwrap();
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
