//! What the store gives back at the start, handed to the parts it belongs to.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::Error;
use crate::config::{self, Config, Directory};
use crate::identity::{FirstAdmin, Hasher, KeyRing, Users};
use crate::metrics::Metrics;
use crate::store::{Contents, Origin, Seal, SealKey, Store};
use crate::token::TokenStore;
use crate::upstream::LeaseKeeper;

/// The open store, and what was in it.
#[derive(Debug)]
pub(super) struct Kept {
    store: Arc<Store>,
    contents: Mutex<Contents>,
    seal: Option<Arc<Seal>>,
}

pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Kept, Error> {
    let seal = seal(&config.store)?;
    let (settings, metrics) = (config.store.clone(), Arc::clone(metrics));
    // After a kill the whole file is checked.
    let opened = tokio::task::spawn_blocking(move || Store::open(&settings, &metrics));
    let opened = opened.await.expect("opening catches what panics");
    let (store, contents) = opened.map_err(Error::Store)?;
    Ok(Kept {
        store: Arc::new(store),
        contents: Mutex::new(contents),
        seal,
    })
}

fn seal(settings: &config::Store) -> Result<Option<Arc<Seal>>, Error> {
    let Some(key) = &settings.key else {
        return Ok(None);
    };
    let wrong = |key| move |source| Error::SealKey { key, source };
    let key = SealKey::read(key).map_err(wrong("key"))?;
    let old = settings.old_key.as_ref().map(SealKey::read).transpose();
    let old = old.map_err(wrong("old_key"))?;
    Ok(Some(Arc::new(Seal::new(key, old))))
}

impl Kept {
    fn take<T>(&self, part: impl FnOnce(&mut Contents) -> T) -> T {
        part(&mut self.contents.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The directory; none when the Webapp owns the users.
    pub(super) async fn users(
        &self,
        settings: &config::Users,
    ) -> Result<(Option<Users>, Option<FirstAdmin>), Error> {
        if settings.directory == Directory::Webapp {
            return Ok((None, None));
        }
        let hasher = Hasher::new(settings.hashing_slots, Handle::current());
        let records = self.take(|contents| std::mem::take(&mut contents.users));
        let users = Users::open(settings, hasher, Arc::clone(&self.store), records);
        let (users, admin) = users.await.map_err(Error::Users)?;
        Ok((Some(users), Some(admin)))
    }

    /// The tokens, loaded. One directory's tokens say nothing in the other.
    pub(super) async fn tokens(
        &self,
        settings: &config::Users,
        users: Option<&Users>,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<TokenStore>, Error> {
        let store = Arc::clone(&self.store);
        let tokens = TokenStore::over(store, settings, Arc::clone(metrics));
        let known: Option<HashSet<String>> = users.map(Users::names);
        let is_wanted = move |grant: &crate::store::GrantRecord| match &known {
            Some(known) => grant.origin == Origin::Minted && known.contains(&*grant.user),
            None => grant.origin == Origin::Learned,
        };
        let loaded = tokens.load(is_wanted).await;
        loaded.map_err(Error::Load)?;
        Ok(tokens)
    }

    /// The keys that were made at run time.
    pub(super) fn ring(&self) -> Arc<KeyRing> {
        let records = self.take(|contents| std::mem::take(&mut contents.keys));
        KeyRing::new(Arc::clone(&self.store), records)
    }

    /// Keeps the upstream's token, where the operator has given a key to seal it with.
    pub(super) fn lease_keeper(&self) -> Option<LeaseKeeper> {
        let seal = self.seal.as_ref()?;
        let kept = self.take(|contents| contents.leases.clone());
        Some(LeaseKeeper::new(
            Arc::clone(&self.store),
            Arc::clone(seal),
            kept,
        ))
    }

    pub(super) async fn close(&self) {
        self.store.close().await;
    }
}
