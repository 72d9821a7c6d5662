//! Random changes, restarts and disk failures, compared with plain maps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::disk::Fault;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Login {
        number: u64,
        user: usize,
    },
    End {
        number: u64,
    },
    Logout {
        user: usize,
    },
    Create {
        user: usize,
    },
    Delete {
        user: usize,
    },
    Restart,
    /// The next sync does its work and fails.
    Break,
}

const NAMES: [&str; 3] = ["anna", "bert", "carl"];

fn step() -> impl Strategy<Value = Step> {
    let (number, user) = (0..12_u64, 0..3_usize);
    prop_oneof![
        6 => (number.clone(), user.clone()).prop_map(|(number, user)| Step::Login { number, user }),
        1 => number.prop_map(|number| Step::End { number }),
        2 => user.clone().prop_map(|user| Step::Logout { user }),
        1 => user.clone().prop_map(|user| Step::Create { user }),
        1 => user.prop_map(|user| Step::Delete { user }),
        1 => Just(Step::Restart),
        1 => Just(Step::Break),
    ]
}

#[derive(Default)]
struct Plain {
    grants: BTreeMap<RecordDigest, String>,
    users: BTreeMap<String, UserRecord>,
}

impl Plain {
    fn take(&mut self, change: &StoreChange) {
        match change {
            StoreChange::PutGrant(grant) => {
                self.grants.insert(grant.digest, grant.user.to_string());
            }
            StoreChange::RemoveGrant(digest) => drop(self.grants.remove(digest)),
            StoreChange::EndTokens { user } => self.grants.retain(|_, name| **name != **user),
            StoreChange::EndOtherTokens { kept } => {
                self.grants.retain(|_, name| **name != *kept.user);
                self.grants.insert(kept.digest, kept.user.to_string());
            }
            StoreChange::PutUser(user) => {
                let old = self.users.insert(user.name.to_string(), user.clone());
                if old.is_none() {
                    self.grants.retain(|_, name| **name != *user.name);
                }
            }
            StoreChange::RemoveUser { name } => {
                self.users.remove(&**name);
                self.grants.retain(|_, owner| **owner != **name);
            }
            _ => {}
        }
    }
}

fn change(step: &Step) -> Option<StoreChange> {
    Some(match step {
        Step::Login { number, user } => put(*number, NAMES[*user]),
        Step::End { number } => StoreChange::RemoveGrant(digest(*number)),
        Step::Logout { user } => end(NAMES[*user]),
        Step::Create { user: number } => StoreChange::PutUser(user(NAMES[*number])),
        Step::Delete { user } => StoreChange::RemoveUser {
            name: NAMES[*user].into(),
        },
        Step::Restart | Step::Break => return None,
    })
}

async fn run(steps: &[Step]) {
    let disk = Disk::laid_out();
    let mut engine = start(&disk).unwrap();
    let mut plain = Plain::default();
    let mut is_broken = false;
    for step in steps {
        match (step, change(step)) {
            (Step::Break, _) => {
                disk.state().fault = Fault::SyncLies;
                is_broken = true;
            }
            (_, Some(change)) => {
                let outcome = commit(&engine, change.clone()).await;
                assert!(outcome.is_ok() || is_broken);
                if outcome.is_ok() {
                    plain.take(&change);
                } else {
                    // An engine that was closed before it could read back the failed commit
                    // cannot undo it, so the test waits until it works again.
                    eventually("the engine works again", async || {
                        commit(&engine, StoreChange::RemoveGrant(digest(99)))
                            .await
                            .is_ok()
                    })
                    .await;
                    is_broken = false;
                }
            }
            _ => {
                disk.state().fault = Fault::None;
                is_broken = false;
                engine.close().await;
                engine = start(&disk).unwrap();
            }
        }
    }
    disk.state().fault = Fault::None;
    let wanted: Vec<(RecordDigest, String)> = plain.grants.into_iter().collect();
    assert_eq!(grants(&engine).await, wanted);
    engine.close().await;
    let contents = read::contents(&disk.open().unwrap()).unwrap();
    let wanted: Vec<UserRecord> = plain.users.into_values().collect();
    assert_eq!(contents.users, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_engine_behaves_as_plain_maps(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(run(&steps));
    }
}
