//! A replica of all API keys in a store that several gateways share.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::ring_state::{RingState, api_key};
use crate::config::ApiKey;
use crate::store::shared::{
    EntryChange, Replica, SharedChange, SharedEntry, SharedStore, StateSnapshotItem,
};
use crate::store::{KeyRecord, StoreUnavailable};

#[derive(Debug)]
pub(super) struct KeyReplica {
    state: Arc<ArcSwap<RingState>>,
    shared: Arc<SharedStore>,
    /// With removed ones, so that a store that lost its data gets the removals too.
    entries: Mutex<BTreeMap<Arc<str>, SharedEntry>>,
}

impl KeyReplica {
    pub(super) fn new(state: &Arc<ArcSwap<RingState>>, shared: &Arc<SharedStore>) -> Arc<Self> {
        let replica = Arc::new(Self {
            state: Arc::clone(state),
            shared: Arc::clone(shared),
            entries: Mutex::default(),
        });
        let weak: Weak<Self> = Arc::downgrade(&replica);
        shared.add_replica(weak);
        replica
    }

    /// Creates a key in the store; false: another key, made at any gateway, has this name.
    pub(super) async fn create(&self, record: &KeyRecord) -> Result<bool, StoreUnavailable> {
        // A record of text and numbers always has a JSON form.
        let text = serde_json::to_string(record).unwrap_or_default();
        match self.shared.put_key(&record.name, &text).await? {
            EntryChange::Done(entry) => {
                self.apply_entry(&record.name, &entry);
                Ok(true)
            }
            EntryChange::Conflict | EntryChange::None => Ok(false),
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreUnavailable> {
        match self.shared.remove_key(name).await? {
            EntryChange::Done(entry) => self.apply_entry(&name.into(), &entry),
            // If another gateway has deleted the key already, there is nothing to do.
            EntryChange::None | EntryChange::Conflict => self.drop_live(name),
        }
        Ok(())
    }

    fn apply_entry(&self, name: &Arc<str>, entry: &SharedEntry) {
        let mut entries = self.entries.lock();
        let is_newer = |known: &SharedEntry| known.seq >= entry.seq;
        if !entries.get(name).is_some_and(is_newer) {
            entries.insert(Arc::clone(name), entry.clone());
            self.publish(&entries);
        }
    }

    fn drop_live(&self, name: &str) {
        let mut entries = self.entries.lock();
        if entries.get(name).is_some_and(|known| !known.is_removed()) {
            entries.remove(name);
            self.publish(&entries);
        }
    }

    /// Called under the lock of the entries, so that states are published in order.
    fn publish(&self, entries: &BTreeMap<Arc<str>, SharedEntry>) {
        let read = |entry: &SharedEntry| api_key(serde_json::from_str(&entry.text).ok()?);
        let live = entries.values().filter(|entry| !entry.is_removed());
        let all: Vec<ApiKey> = live.filter_map(read).collect();
        let keys = self.state.load().keys.reload(&all);
        self.state.store(Arc::new(RingState { all, keys }));
    }
}

impl Replica for KeyReplica {
    fn apply(&self, change: &SharedChange, seq: u64) {
        match change {
            SharedChange::Key(name, entry) => self.apply_entry(name, entry),
            SharedChange::Directory { keys, .. } => {
                let mut entries = self.entries.lock();
                entries.retain(|_, entry| entry.seq > seq);
                entries.extend(keys.iter().cloned());
                self.publish(&entries);
            }
            SharedChange::TokenPut(_)
            | SharedChange::TokenRevoked(_)
            | SharedChange::UserEnded { .. }
            | SharedChange::User(..)
            | SharedChange::Lease(_) => {}
        }
    }

    fn invalidate(&self, _: u64) {
        // The link reads all keys again right after this.
    }

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        for (name, entry) in &*self.entries.lock() {
            give(StateSnapshotItem::Key(Arc::clone(name), entry.clone()));
        }
    }
}
