//! What a gate tells a store that lost its data, in part or whole.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use super::client::script;
use super::entry::SharedEntry;
use super::tokens::{TokenKind, grain, millis};
use super::{CommandConnection, ScriptCall, SharedStore};
use crate::store::{RecordDigest, SealedBytes, StoreUnavailable};

/// Fields in one call: the server does nothing else meanwhile.
const AT_ONCE: usize = 600;

/// One thing that a gate knows.
#[derive(Clone, Debug)]
pub enum StateSnapshotItem {
    UserEnded {
        user: Arc<str>,
        end: super::RevokedUpTo,
        /// How long tokens that it ended could have lived on.
        keep: Duration,
    },
    TokenRevoked {
        digest: RecordDigest,
        keep: Duration,
    },
    /// A token that was live when all changes up to `seq` had been seen.
    Token {
        digest: RecordDigest,
        user: Arc<str>,
        kind: TokenKind,
        left: Duration,
        seq: u64,
    },
    User(Arc<str>, SharedEntry),
    Key(Arc<str>, SharedEntry),
    /// How many tokens a user was given.
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

/// Facts of one kind, as a script's arguments.
#[derive(Debug)]
struct SnapshotBatch {
    kind: &'static str,
    fields: Vec<Vec<u8>>,
}

impl StateSnapshotItem {
    /// Ends come first, so that nothing dead is put back even for a moment.
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
    /// Tells the store everything that the copies know.
    pub(super) async fn remake(
        &self,
        commands: &CommandConnection,
        id: &str,
        users_too: bool,
    ) -> Result<usize, StoreUnavailable> {
        let mut facts = Vec::new();
        for follower in self.followers() {
            follower.knowledge(&mut |fact| facts.push(fact));
        }
        self.tell(commands, id, facts, users_too).await
    }

    /// Tells the store all this; what it knows better stays as it is.
    pub(super) async fn tell(
        &self,
        commands: &CommandConnection,
        id: &str,
        facts: Vec<StateSnapshotItem>,
        users_too: bool,
    ) -> Result<usize, StoreUnavailable> {
        let mut piles = ["end", "del", "user", "key", "put", "issued"].map(|kind| SnapshotBatch {
            kind,
            fields: Vec::new(),
        });
        let mut leases = Vec::new();
        let count = facts.len();
        for fact in facts {
            match piles.get_mut(fact.rank()) {
                Some(pile) => pile.push(fact),
                None => leases.push(fact),
            }
        }
        for pile in piles {
            if pile.kind == "user" && !users_too {
                continue;
            }
            // Six fields a token, four an end, two the others: 600 splits none.
            for some in pile.fields.chunks(AT_ONCE) {
                let call = ScriptCall::default().arg(pile.kind);
                let call = some
                    .iter()
                    .fold(call, |call, field| call.arg(field.as_slice()));
                self.merge(commands, id, &script::MERGE, call).await?;
            }
        }
        for lease in leases {
            if let Some(call) = self.lease_again(lease) {
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
            _ => Err(reply.odd()),
        }
    }

    fn lease_again(&self, fact: StateSnapshotItem) -> Option<ScriptCall> {
        let StateSnapshotItem::Lease {
            upstream,
            generation,
            refused,
            left,
            sealed,
        } = fact
        else {
            return None;
        };
        let call = ScriptCall::default()
            .key(self.names.lease(&upstream))
            .arg(&*upstream)
            .number(generation)
            .number(refused)
            .number(millis(left))
            .arg(sealed.0);
        Some(call)
    }
}

impl SnapshotBatch {
    fn push(&mut self, fact: StateSnapshotItem) {
        let number = |number: u64| number.to_string().into_bytes();
        let text = |text: &str| text.as_bytes().to_vec();
        match fact {
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
                self.fields.extend([text(&name), text(&entry.written())]);
            }
            StateSnapshotItem::Issued { user, count } => {
                self.fields.extend([text(&user), number(count)])
            }
            StateSnapshotItem::Lease { .. } => {}
        }
    }
}
