//! Users and API keys in the shared store. What their text means is the caller's business.

use super::client::script;
use super::shared_entry::{EntryRevision, SharedEntry};
use super::{ScriptCall, SharedStore};
use crate::store::StoreUnavailable;

/// The outcome of changing an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryChange {
    Done(SharedEntry),
    /// There is no such entry.
    None,
    /// The entry is not in the expected revision.
    Conflict,
}

impl SharedStore {
    pub async fn put_user(
        &self,
        name: &str,
        expected: Option<EntryRevision>,
        text: &str,
        is_change: bool,
    ) -> Result<EntryChange, StoreUnavailable> {
        let expected = expected.map(|known| known.to_string()).unwrap_or_default();
        let call = ScriptCall::default()
            .key(self.keys.users.as_str())
            .arg("user")
            .arg(name)
            .arg(expected)
            .arg(text)
            .arg(if is_change { "change" } else { "same" });
        self.entry(call, text).await
    }

    /// Creates an API key, unless one of that name exists.
    pub async fn put_key(&self, name: &str, text: &str) -> Result<EntryChange, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.keys.as_str())
            .arg("key")
            .arg(name)
            .arg("")
            .arg(text)
            .arg("change");
        self.entry(call, text).await
    }

    pub async fn remove_key(&self, name: &str) -> Result<EntryChange, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.keys.as_str())
            .arg("key")
            .arg(name)
            .arg("*")
            .arg("")
            .arg("change");
        self.entry(call, "").await
    }

    async fn entry(&self, call: ScriptCall, text: &str) -> Result<EntryChange, StoreUnavailable> {
        let reply = self.run(&script::ENTRY, call).await?;
        match reply.word() {
            "ok" => Ok(EntryChange::Done(SharedEntry {
                revision: EntryRevision {
                    made: reply.number(2)?,
                    changed: reply.number(3)?,
                },
                seq: reply.number(1)?,
                text: text.to_owned(),
            })),
            "none" => Ok(EntryChange::None),
            "conflict" => Ok(EntryChange::Conflict),
            _ => Err(reply.malformed()),
        }
    }

    /// Removes a user and ends its tokens, in one step; returns whether there was one.
    pub async fn remove_user(&self, name: &str) -> Result<bool, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.token_user(name))
            .key(self.keys.users.as_str())
            .arg(name)
            .arg("remove");
        let reply = self.run(&script::END, call).await?;
        match reply.word() {
            "ok" => reply.number(1).map(|_| true),
            "none" => Ok(false),
            _ => Err(reply.malformed()),
        }
    }
}
