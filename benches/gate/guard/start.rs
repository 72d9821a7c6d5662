//! The cost of a token of the store's file at a start: everything until the gate listens, and
//! its share of the end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::Digest as _;
use tollgate::profiles::Role;
use tollgate::store::{
    ExportRecord, GrantRecord, OfflineStore, PhcText, RecordDigest, TokenOrigin, UserRecord,
};

use super::Counter;
use crate::support::gate::Setup;

pub(super) const NAME: &str = "start";
/// Small enough that one thread loads even twice as many, on any machine, and that the file is
/// checked page by page both times.
const TOKENS: usize = 65_000;
/// The same users both times.
const USERS: usize = 1000;
const WEEK: Duration = Duration::from_secs(604_800);

pub(super) fn per_token(counter: &Counter) -> u64 {
    counter.per_one(NAME, TOKENS, |run, tokens| {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        fill(&store, tokens);
        let setup = Setup {
            store: Some(store),
            ..Setup::default()
        };
        counter.count(run, 1, setup, |gate| {
            assert_eq!(gate.counted("tollgate_tokens "), tokens as u64);
        })
    })
}

fn fill(path: &Path, tokens: usize) {
    let offline = OfflineStore::open_or_create(path).unwrap();
    let mut import = offline.import().unwrap();
    let names: Vec<Arc<str>> = (0..USERS)
        .map(|user| format!("user-{user}").into())
        .collect();
    for name in &names {
        let user = UserRecord {
            name: Arc::clone(name),
            role: Role::User,
            hash: PhcText("$argon2id$v=19$m=8,t=1,p=1$c2FsdCBmb3Igbm9ib2R5IQ$bm8gcGFzc3dvcmQgaGFzIHRoaXMgdmVyeSBoYXNoIDEy".to_owned()),
            must_change: false,
            is_first_admin: false,
            configured: None,
        };
        import.put(ExportRecord::User(user)).unwrap();
    }
    let end = SystemTime::now() + WEEK;
    let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    for number in 0..tokens {
        let grant = GrantRecord {
            digest: RecordDigest(sha2::Sha256::digest(number.to_le_bytes()).into()),
            user: Arc::clone(&names[number % USERS]),
            role: Some(Role::User),
            ends_millis: end.as_millis() as u64,
            epoch: 0,
            origin: TokenOrigin::Minted,
        };
        import.put(ExportRecord::Grant(grant)).unwrap();
    }
    import.commit().unwrap();
}
