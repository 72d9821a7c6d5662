//! One change of the directory at a time: looked at, made to last, and only then in
//! force. Its second half runs when the store says so, whether or not the client is
//! still there.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockWriteGuard};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tracing::debug;

use super::{DirectoryState, DirectoryUser, UserDirectory, UserRevision};
use crate::identity::PasswordHash;
use crate::store::shared::{EntryChange, SharedStore};
use crate::store::{self, Store, StoreUnavailable};

/// The right to change the directory; nobody else does meanwhile.
#[derive(Debug)]
pub(super) struct DirectoryChange {
    directory: Arc<RwLock<DirectoryState>>,
    store: Arc<Store>,
    turn: OwnedMutexGuard<()>,
}

impl UserDirectory {
    pub(super) async fn begin_change(&self) -> Result<DirectoryChange, StoreUnavailable> {
        let turn = Arc::clone(&self.changes).lock_owned();
        Ok(DirectoryChange {
            directory: Arc::clone(&self.directory),
            store: Arc::clone(&self.store),
            turn: self.store.turn(turn).await?,
        })
    }

    /// Keeps a better hash of the same password. A store that fails is no reason to
    /// refuse the right password.
    pub(super) async fn improve(&self, name: &str, hash: Arc<PasswordHash>, seen: UserRevision) {
        let Ok(change) = self.begin_change().await else {
            return;
        };
        let user = self.read().users.get(name).cloned();
        let Some(mut user) = user.filter(|user| user.revision == seen) else {
            return;
        };
        user.hash = hash;
        if let Err(error) = change.put(name, user).await {
            debug!(%error, "a password hash stays as it was");
        }
    }
}

impl DirectoryChange {
    pub(super) async fn put(self, name: &str, user: DirectoryUser) -> Result<(), StoreUnavailable> {
        if let Some(shared) = self.store.shared().cloned() {
            return self.put_everywhere(&shared, name, user).await;
        }
        let change = store::StoreChange::PutUser(user.record(name));
        let name = name.to_owned();
        let then = move |directory: &mut DirectoryState| drop(directory.users.insert(name, user));
        self.commit(change, then).await
    }

    pub(super) async fn remove(self, name: &str) -> Result<(), StoreUnavailable> {
        if let Some(shared) = self.store.shared().cloned() {
            // Gone already, at another gate: that is what was wanted.
            shared.remove_user(name).await?;
            self.write().users.remove(name);
            return Ok(());
        }
        let change = store::StoreChange::RemoveUser { name: name.into() };
        let name = name.to_owned();
        let then = move |directory: &mut DirectoryState| drop(directory.users.remove(&name));
        self.commit(change, then).await
    }

    /// Other gates have a say: the user must still be who this gate takes it for.
    async fn put_everywhere(
        self,
        shared: &SharedStore,
        name: &str,
        mut user: DirectoryUser,
    ) -> Result<(), StoreUnavailable> {
        // A record of text and numbers always has a JSON form.
        let text = serde_json::to_string(&user.record(name)).unwrap_or_default();
        let known = self.write().users.get(name).map(|known| known.revision);
        let is_change = known != Some(user.revision);
        let known = known.map(UserRevision::stored);
        match shared.put_user(name, known, &text, is_change).await? {
            EntryChange::Done(entry) => {
                user.revision = UserRevision::of(entry.revision);
                user.seq = entry.seq;
                let mut directory = self.write();
                let is_newer = |known: &DirectoryUser| known.seq > entry.seq;
                if !directory.users.get(name).is_some_and(is_newer) {
                    directory.users.insert(name.to_owned(), user);
                }
                Ok(())
            }
            // Somebody else's change is on its way here: then the answer will be clear.
            EntryChange::Conflict | EntryChange::None => Err(StoreUnavailable::Busy),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, DirectoryState> {
        self.directory.write()
    }

    async fn commit(
        self,
        change: store::StoreChange,
        then: impl FnOnce(&mut DirectoryState) + Send + 'static,
    ) -> Result<(), StoreUnavailable> {
        let (answer, answered) = oneshot::channel();
        let Self {
            directory,
            store,
            turn,
        } = self;
        store.submit(change, move |outcome| {
            if outcome.is_ok() {
                let mut directory = directory.write();
                then(&mut directory);
            }
            drop(turn);
            let _ = answer.send(outcome); // the client may have left
        });
        store.outcome(answered).await
    }
}
