//! Random sequences of operations, compared with a plain map.

use std::collections::HashMap;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Login {
        user: usize,
        minutes: u64,
    },
    Begin {
        user: usize,
    },
    Finish {
        minutes: u64,
    },
    Again {
        token: usize,
        user: usize,
        minutes: u64,
    },
    Validate {
        token: usize,
    },
    Logout {
        token: usize,
    },
    LogoutUser {
        user: usize,
    },
    Delete {
        user: usize,
    },
    EndOthers {
        token: usize,
        user: usize,
    },
    Pass {
        seconds: u64,
    },
    Jump,
    Sweep {
        budget: usize,
    },
    Cap {
        per_user: usize,
        all: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (user, minutes, token) = (0..3usize, 1..5u64, 0..64usize);
    prop_oneof![
        4 => (user.clone(), minutes.clone()).prop_map(|(user, minutes)| Step::Login { user, minutes }),
        1 => user.clone().prop_map(|user| Step::Begin { user }),
        2 => minutes.clone().prop_map(|minutes| Step::Finish { minutes }),
        1 => (token.clone(), user.clone(), minutes)
            .prop_map(|(token, user, minutes)| Step::Again { token, user, minutes }),
        4 => token.clone().prop_map(|token| Step::Validate { token }),
        1 => token.clone().prop_map(|token| Step::Logout { token }),
        1 => user.clone().prop_map(|user| Step::LogoutUser { user }),
        1 => user.clone().prop_map(|user| Step::Delete { user }),
        2 => (token.clone(), user.clone()).prop_map(|(token, user)| Step::EndOthers { token, user }),
        2 => (1..200u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => Just(Step::Jump),
        2 => (1..9usize).prop_map(|budget| Step::Sweep { budget }),
        1 => (1..5usize, 1..12usize).prop_map(|(per_user, all)| Step::Cap { per_user, all }),
    ]
}

struct KnownToken {
    user: usize,
    ends: Instant,
    is_revoked: bool,
}

/// The expected content of the store.
struct Model {
    store: Arc<TokenStore>,
    tokens: HashMap<TokenDigest, KnownToken>,
    order: Vec<TokenDigest>,
    deletions: [u64; 3],
    begun: Vec<(usize, DeletionEpoch, u64)>,
    caps: (usize, usize),
}

fn name(user: usize) -> &'static str {
    ["anna", "bert", "carl"][user]
}

impl KnownToken {
    fn is_live(&self) -> bool {
        !self.is_revoked && Instant::now() < self.ends
    }

    /// The sweep counts whole seconds, so it may remove a dead token a second late.
    fn may_be_stored(&self) -> bool {
        !self.is_revoked && Instant::now() < self.ends + Duration::from_secs(1)
    }
}

impl Model {
    fn new() -> Self {
        Self {
            store: store(3, 8),
            tokens: HashMap::new(),
            order: Vec::new(),
            deletions: [0; 3],
            begun: Vec::new(),
            caps: (3, 8),
        }
    }

    fn live(&self, of: Option<usize>) -> usize {
        let tokens = self.tokens.values();
        let tokens = tokens.filter(|known| of.is_none_or(|user| known.user == user));
        tokens.filter(|known| known.is_live()).count()
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Login { user, minutes } => {
                let begun = (user, self.store.epoch(name(user)), self.deletions[user]);
                self.finish(begun, minutes).await;
            }
            Step::Begin { user } => {
                let epoch = self.store.epoch(name(user));
                self.begun.push((user, epoch, self.deletions[user]));
            }
            Step::Finish { minutes } => {
                if let Some(begun) = self.begun.pop() {
                    self.finish(begun, minutes).await;
                }
            }
            Step::Again {
                token,
                user,
                minutes,
            } => self.again(token, user, minutes).await,
            Step::Validate { token } => self.validate(token),
            Step::Logout { token } => {
                let Some(digest) = self.order.get(token).copied() else {
                    return;
                };
                let known = self.tokens.get_mut(&digest).unwrap();
                let was_live = known.is_live();
                known.is_revoked = true;
                assert_eq!(self.store.revoke(&digest).await, was_live);
            }
            Step::LogoutUser { user } => {
                self.end(user);
                self.store.revoke_user(name(user)).await.unwrap();
            }
            Step::Delete { user } => {
                self.end(user);
                self.deletions[user] += 1;
                self.store.end_user(name(user)).await;
            }
            Step::EndOthers { token, user } => self.end_others(token, user).await,
            Step::Pass { seconds } => advance(Duration::from_secs(seconds)).await,
            Step::Jump => self.jump(),
            Step::Sweep { budget } => assert!(self.store.sweep(budget).seen <= budget),
            Step::Cap { per_user, all } => {
                self.caps = (per_user, all);
                self.store.reload(&settings(per_user, all));
            }
        }
    }

    async fn end_others(&mut self, token: usize, user: usize) {
        let Some(digest) = self.order.get(token).copied() else {
            return;
        };
        let known = &self.tokens[&digest];
        let stays = known.user == user && known.is_live();
        self.end(user);
        if stays {
            self.tokens.get_mut(&digest).unwrap().is_revoked = false;
        }
        let ending = RevokeCause::AllBut(digest);
        self.store.end_tokens(name(user), ending).await.unwrap();
    }

    fn end(&mut self, user: usize) {
        let tokens = self.tokens.values_mut();
        tokens
            .filter(|known| known.user == user)
            .for_each(|known| known.is_revoked = true);
    }

    /// The wall clock is set forward, beyond every token's expiry.
    fn jump(&mut self) {
        let memory = &self.store.memory;
        memory.table.jump(memory.start);
        self.store.notice_jump(memory.clock_offset() + 86_400_000);
        for known in self.tokens.values_mut() {
            known.ends = known.ends.min(Instant::now());
        }
    }

    /// A token that is or was known is learned again, possibly for another user.
    async fn again(&mut self, token: usize, user: usize, minutes: u64) {
        let Some(digest) = self.order.get(token).copied() else {
            return;
        };
        let lifetime = Duration::from_secs(60 * minutes);
        let mine = self.live(Some(user));
        let stored = self.store.len();
        let epoch = self.store.epoch(name(user));
        let outcome = login_with(&self.store, digest, name(user), (lifetime, epoch)).await;
        let cap = self.caps.0;
        let known = self.tokens.get_mut(&digest).unwrap();
        let is_mine = known.user == user && known.is_live();
        match outcome {
            Err(InsertRefused::Unavailable(_)) => panic!("memory is always available"),
            Err(InsertRefused::Ended) => panic!("there was no deletion meanwhile"),
            Err(InsertRefused::UserFull(_)) => assert!(mine >= cap && !is_mine),
            Err(InsertRefused::Full(_)) => assert!(stored >= self.caps.1 && !known.is_live()),
            Ok(_) => {
                assert!(mine < cap || is_mine);
                *known = KnownToken {
                    user,
                    ends: Instant::now() + lifetime,
                    is_revoked: false,
                };
            }
        }
    }

    fn validate(&self, token: usize) {
        let Some(digest) = self.order.get(token) else {
            return;
        };
        let known = &self.tokens[digest];
        assert_eq!(self.store.find(digest).is_some(), known.is_live());
    }

    async fn finish(
        &mut self,
        (user, epoch, deletions): (usize, DeletionEpoch, u64),
        minutes: u64,
    ) {
        let lifetime = Duration::from_secs(60 * minutes);
        let (mine, all) = (self.live(Some(user)), self.live(None));
        let stored = self.store.len();
        // Few prefixes, so that many digests share one.
        let digest = twin(self.order.len() as u8 % 2);
        let outcome = login_with(&self.store, digest, name(user), (lifetime, epoch)).await;
        match outcome {
            Err(InsertRefused::Unavailable(_)) => panic!("memory is always available"),
            Err(InsertRefused::Ended) => assert!(deletions < self.deletions[user]),
            Err(InsertRefused::UserFull(_)) => assert!(mine >= self.caps.0),
            // Dead tokens count here until they are swept.
            Err(InsertRefused::Full(_)) => assert!(stored >= self.caps.1),
            Ok(digest) => {
                assert_eq!(deletions, self.deletions[user]);
                assert!(mine < self.caps.0 && all < self.caps.1);
                self.order.push(digest);
                let known = KnownToken {
                    user,
                    ends: Instant::now() + lifetime,
                    is_revoked: false,
                };
                self.tokens.insert(digest, known);
            }
        }
    }

    /// After a full sweep and a look-up of each token, no map contains a dead one.
    async fn check_all(&self) {
        for token in 0..self.order.len() {
            self.validate(token);
        }
        advance(Duration::from_secs(2)).await;
        sweep_all(&self.store);
        let live = self.live(None);
        let storable = self.tokens.values().filter(|known| known.may_be_stored());
        assert!((live..=storable.count()).contains(&self.store.len()));
        for token in 0..self.order.len() {
            self.validate(token);
        }
        assert_eq!(self.store.len(), live);
        assert_eq!(
            self.store.metrics.tokens.get(),
            i64::try_from(live).unwrap()
        );
        let entries = self.store.memory.counts().1;
        assert!(
            entries <= live && (entries > 0 || live == 0),
            "some digests share a prefix"
        );
        advance(HOUR + Duration::from_secs(2)).await;
        sweep_all(&self.store);
        assert_eq!((self.store.len(), self.store.memory.counts()), (0, (0, 0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_store_behaves_as_a_plain_map(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut model = Model::new();
            for step in steps {
                model.take(step).await;
            }
            model.check_all().await;
        });
    }
}
