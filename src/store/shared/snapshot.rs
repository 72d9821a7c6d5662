//! The state that a gateway sends to a store that lost its data, in part or whole.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use super::client::script;
use super::shared_entry::SharedEntry;
use super::tokens::{TokenKind, grain, millis};
use super::{CommandConnection, ScriptCall, SharedStore};
use crate::store::{RecordDigest, SealedBytes, StoreUnavailable};

/// Fields in one script call: the server does nothing else while a script runs.
const MAX_FIELDS: usize = 600;

/// One item of the state that a gateway holds.
#[derive(Clone, Debug)]
pub enum StateSnapshotItem {
    UserEnded {
        user: Arc<str>,
        end: super::RevokedUpTo,
        /// How long the store must remember this end: as long as the ended tokens could have lived.
        keep: Duration,
    },
    TokenRevoked {
        digest: RecordDigest,
        keep: Duration,
    },
    /// A token that was live when all changes up to `seq` had been applied.
    Token {
        digest: RecordDigest,
        user: Arc<str>,
        kind: TokenKind,
        left: Duration,
        seq: u64,
    },
    User(Arc<str>, SharedEntry),
    Key(Arc<str>, SharedEntry),
    /// How many tokens the user has been given.
    Issued {
        user: Arc<str>,
        count: u64,
    },
    Lease {
        upstream: Arc<str>,
        generation: u64,
        refused: u64,
        left: Duration,
        sealed: SealedBytes,
    },
}

/// Items of one kind, as a script's arguments.
#[derive(Debug)]
struct SnapshotBatch {
    kind: &'static str,
    fields: Vec<Vec<u8>>,
}

impl StateSnapshotItem {
    /// Order of sending. Ends come first, so that no dead token is live again even for a moment.
    fn rank(&self) -> usize {
        match self {
            Self::UserEnded { .. } => 0,
            Self::TokenRevoked { .. } => 1,
            Self::User(..) => 2,
            Self::Key(..) => 3,
            Self::Token { .. } => 4,
            Self::Issued { .. } => 5,
            Self::Lease { .. } => 6,
        }
    }
}

impl SharedStore {
    /// Sends everything that the replicas hold to the store; returns how many items.
    pub(super) async fn resync(
        &self,
        commands: &CommandConnection,
        id: &str,
        users_too: bool,
    ) -> Result<usize, StoreUnavailable> {
        let mut items = Vec::new();
        for replica in self.replicas() {
            replica.snapshot(&mut |item| items.push(item));
        }
        self.merge_items(commands, id, items, users_too).await
    }

    /// Merges these items into the store; what the store has in a newer version stays as it
    /// is. Returns how many items were sent.
    pub(super) async fn merge_items(
        &self,
        commands: &CommandConnection,
        id: &str,
        items: Vec<StateSnapshotItem>,
        users_too: bool,
    ) -> Result<usize, StoreUnavailable> {
        let mut batches =
            ["end", "del", "user", "key", "put", "issued"].map(|kind| SnapshotBatch {
                kind,
                fields: Vec::new(),
            });
        let mut leases = Vec::new();
        let count = items.len();
        for item in items {
            match batches.get_mut(item.rank()) {
                Some(batch) => batch.push(item),
                None => leases.push(item),
            }
        }
        for batch in batches {
            if batch.kind == "user" && !users_too {
                continue;
            }
            // A token has six fields, an end four, the others two: 600 is a multiple of all.
            for fields in batch.fields.chunks(MAX_FIELDS) {
                let call = ScriptCall::default().arg(batch.kind);
                let call = fields
                    .iter()
                    .fold(call, |call, field| call.arg(field.as_slice()));
                self.merge(commands, id, &script::MERGE, call).await?;
            }
        }
        for lease in leases {
            if let Some(call) = self.merge_lease_call(lease) {
                self.merge(commands, id, &script::MERGE_LEASE, call).await?;
            }
        }
        Ok(count)
    }

    async fn merge(
        &self,
        commands: &CommandConnection,
        id: &str,
        script: &Script,
        call: ScriptCall,
    ) -> Result<(), StoreUnavailable> {
        let reply = self.run_on(commands, id, script, call).await?;
        match reply.word() {
            "ok" | "old" => Ok(()),
            _ => Err(reply.malformed()),
        }
    }

    fn merge_lease_call(&self, item: StateSnapshotItem) -> Option<ScriptCall> {
        let StateSnapshotItem::Lease {
            upstream,
            generation,
            refused,
            left,
            sealed,
        } = item
        else {
            return None;
        };
        let call = ScriptCall::default()
            .key(self.keys.lease(&upstream))
            .arg(&*upstream)
            .number(generation)
            .number(refused)
            .number(millis(left))
            .arg(sealed.0);
        Some(call)
    }
}

impl SnapshotBatch {
    fn push(&mut self, item: StateSnapshotItem) {
        let number = |number: u64| number.to_string().into_bytes();
        let text = |text: &str| text.as_bytes().to_vec();
        match item {
            StateSnapshotItem::UserEnded { user, end, keep } => self.fields.extend([
                text(&user),
                number(end.tokens),
                number(end.logins),
                number(millis(keep)),
            ]),
            StateSnapshotItem::TokenRevoked { digest, keep } => {
                self.fields
                    .extend([digest.0.to_vec(), number(millis(keep))]);
            }
            StateSnapshotItem::Token {
                digest,
                user,
                kind,
                left,
                seq,
            } => self.fields.extend([
                digest.0.to_vec(),
                text(&user),
                text(kind.letters()),
                number(millis(left)),
                number(seq),
                number(grain(left)),
            ]),
            StateSnapshotItem::User(name, entry) | StateSnapshotItem::Key(name, entry) => {
                self.fields.extend([text(&name), text(&entry.encode())]);
            }
            StateSnapshotItem::Issued { user, count } => {
                self.fields.extend([text(&user), number(count)])
            }
            StateSnapshotItem::Lease { .. } => {}
        }
    }
}
