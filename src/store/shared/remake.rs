//! What a gate tells a store that lost its data, in part or whole.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;

use super::entry::Entry;
use super::tokens::{Kind, grain, millis};
use super::{Call, Commands, SharedStore, script};
use crate::store::{Digest, SealedBytes, Unavailable};

/// Fields in one call: the server does nothing else meanwhile.
const AT_ONCE: usize = 600;

/// One thing that a gate knows.
#[derive(Clone, Debug)]
pub enum Fact {
    UserEnded {
        user: Arc<str>,
        end: super::End,
        /// How long tokens that it ended could have lived on.
        keep: Duration,
    },
    TokenRevoked {
        digest: Digest,
        keep: Duration,
    },
    /// A token that was live when all changes up to `seq` had been seen.
    Token {
        digest: Digest,
        user: Arc<str>,
        kind: Kind,
        left: Duration,
        seq: u64,
    },
    User(Arc<str>, Entry),
    Key(Arc<str>, Entry),
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
struct Pile {
    kind: &'static str,
    fields: Vec<Vec<u8>>,
}

impl Fact {
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
        commands: &Commands,
        id: &str,
        users_too: bool,
    ) -> Result<usize, Unavailable> {
        let mut facts = Vec::new();
        for follower in self.followers() {
            follower.knowledge(&mut |fact| facts.push(fact));
        }
        self.tell(commands, id, facts, users_too).await
    }

    /// Tells the store all this; what it knows better stays as it is.
    pub(super) async fn tell(
        &self,
        commands: &Commands,
        id: &str,
        facts: Vec<Fact>,
        users_too: bool,
    ) -> Result<usize, Unavailable> {
        let mut piles = ["end", "del", "user", "key", "put", "issued"].map(|kind| Pile {
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
                let call = Call::default().arg(pile.kind);
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
        commands: &Commands,
        id: &str,
        script: &Script,
        call: Call,
    ) -> Result<(), Unavailable> {
        let reply = self.run_on(commands, id, script, call).await?;
        match reply.word() {
            "ok" | "old" => Ok(()),
            _ => Err(reply.odd()),
        }
    }

    fn lease_again(&self, fact: Fact) -> Option<Call> {
        let Fact::Lease {
            upstream,
            generation,
            refused,
            left,
            sealed,
        } = fact
        else {
            return None;
        };
        let call = Call::default()
            .key(self.names.lease(&upstream))
            .arg(&*upstream)
            .number(generation)
            .number(refused)
            .number(millis(left))
            .arg(sealed.0);
        Some(call)
    }
}

impl Pile {
    fn push(&mut self, fact: Fact) {
        let number = |number: u64| number.to_string().into_bytes();
        let text = |text: &str| text.as_bytes().to_vec();
        match fact {
            Fact::UserEnded { user, end, keep } => self.fields.extend([
                text(&user),
                number(end.tokens),
                number(end.logins),
                number(millis(keep)),
            ]),
            Fact::TokenRevoked { digest, keep } => {
                self.fields
                    .extend([digest.0.to_vec(), number(millis(keep))]);
            }
            Fact::Token {
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
            Fact::User(name, entry) | Fact::Key(name, entry) => {
                self.fields.extend([text(&name), text(&entry.written())]);
            }
            Fact::Issued { user, count } => self.fields.extend([text(&user), number(count)]),
            Fact::Lease { .. } => {}
        }
    }
}
