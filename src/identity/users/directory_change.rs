//! One change of the directory at a time: checked, written to the store, and only then
//! applied in memory. The change is applied when the store confirms it, whether or not the
//! client is still connected.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tracing::debug;

use super::{DirectoryState, DirectoryUser, UserDirectory, UserRevision};
use crate::identity::PasswordHash;
use crate::store::shared::{EntryChange, SharedStore};
use crate::store::{Store, StoreBackend, StoreChange, StoreUnavailable};

/// The exclusive right to change the directory.
#[derive(Debug)]
pub(super) struct DirectoryChange {
    directory: Arc<RwLock<DirectoryState>>,
    store: StoreBackend,
    guard: OwnedMutexGuard<()>,
}

impl UserDirectory {
    pub(super) async fn begin_change(&self) -> Result<DirectoryChange, StoreUnavailable> {
        let guard = Arc::clone(&self.changes).lock_owned();
        Ok(DirectoryChange {
            directory: Arc::clone(&self.directory),
            store: self.store.clone(),
            guard: self.store.acquire(guard).await?,
        })
    }

    /// Replaces an outdated hash of the same password. A failure is only logged: it must not
    /// refuse a login with the right password.
    pub(super) async fn replace_hash(
        &self,
        name: &str,
        hash: Arc<PasswordHash>,
        seen: UserRevision,
    ) {
        let Ok(change) = self.begin_change().await else {
            return;
        };
        let user = self.read().users.get(name).cloned();
        let Some(mut user) = user.filter(|user| user.revision == seen) else {
            return;
        };
        user.hash = hash;
        if let Err(error) = change.put(name, user).await {
            debug!(%error, "an outdated password hash could not be replaced");
        }
    }
}

impl DirectoryChange {
    pub(super) async fn put(self, name: &str, user: DirectoryUser) -> Result<(), StoreUnavailable> {
        let store = match &self.store {
            StoreBackend::Shared(shared) => return self.put_shared(shared, name, user).await,
            StoreBackend::Local(store) => Arc::clone(store),
        };
        let change = StoreChange::PutUser(user.record(name));
        let name = name.to_owned();
        let apply = move |directory: &mut DirectoryState| drop(directory.users.insert(name, user));
        self.commit(&store, change, apply).await
    }

    pub(super) async fn remove(self, name: &str) -> Result<(), StoreUnavailable> {
        let store = match &self.store {
            StoreBackend::Shared(shared) => {
                // If another gateway has removed the user already, there is nothing to do.
                shared.remove_user(name).await?;
                self.directory.write().users.remove(name);
                return Ok(());
            }
            StoreBackend::Local(store) => Arc::clone(store),
        };
        let change = StoreChange::RemoveUser { name: name.into() };
        let name = name.to_owned();
        let apply = move |directory: &mut DirectoryState| drop(directory.users.remove(&name));
        self.commit(&store, change, apply).await
    }

    /// The shared store accepts the change only if no other gateway has changed the user since
    /// this one read it.
    async fn put_shared(
        &self,
        shared: &SharedStore,
        name: &str,
        mut user: DirectoryUser,
    ) -> Result<(), StoreUnavailable> {
        // A record of text and numbers always has a JSON form.
        let text = serde_json::to_string(&user.record(name)).unwrap_or_default();
        let known = self
            .directory
            .write()
            .users
            .get(name)
            .map(|known| known.revision);
        let is_change = known != Some(user.revision);
        let known = known.map(UserRevision::stored);
        match shared.put_user(name, known, &text, is_change).await? {
            EntryChange::Done(entry) => {
                user.revision = UserRevision::of(entry.revision);
                user.seq = entry.seq;
                let mut directory = self.directory.write();
                let is_newer = |known: &DirectoryUser| known.seq > entry.seq;
                if !directory.users.get(name).is_some_and(is_newer) {
                    directory.users.insert(name.to_owned(), user);
                }
                Ok(())
            }
            // Another gateway's change has not arrived here yet; a retry finds it.
            EntryChange::Conflict | EntryChange::None => Err(StoreUnavailable::Busy),
        }
    }

    async fn commit(
        self,
        store: &Store,
        change: StoreChange,
        apply: impl FnOnce(&mut DirectoryState) + Send + 'static,
    ) -> Result<(), StoreUnavailable> {
        let (sender, receiver) = oneshot::channel();
        let Self {
            directory, guard, ..
        } = self;
        store.submit(change, move |outcome| {
            if outcome.is_ok() {
                let mut directory = directory.write();
                apply(&mut directory);
            }
            drop(guard);
            let _ = sender.send(outcome); // the client may have left
        });
        store.outcome(receiver).await
    }
}
