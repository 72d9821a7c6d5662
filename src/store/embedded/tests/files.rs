//! Unusable files: each kind gets its own error, and none is treated as empty.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::super::tables::{META, SCHEMA, SCHEMA_KEY};
use super::*;

fn open(path: &Path) -> Result<(EmbeddedStore, StoreContents), OpenError> {
    EmbeddedStore::open(path, &Metrics::new())
}

/// A closed file with records.
async fn written(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("store.redb");
    let (engine, _) = open(&path).unwrap();
    commit(&engine, StoreChange::PutUser(user("anna")))
        .await
        .unwrap();
    for number in 0..200 {
        commit(&engine, put(number, "anna")).await.unwrap();
    }
    engine.close().await;
    path
}

fn refusal(path: &Path) -> OpenError {
    let before = std::fs::read(path).ok();
    let error = open(path).map(drop).expect_err("must be refused");
    assert_eq!(std::fs::read(path).ok(), before, "{error}: it was changed");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    error
}

#[tokio::test]
async fn a_new_store_is_readable_by_its_owner_only_and_leaves_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/store.redb");
    let (engine, _) = open(&path).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let file_count = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(file_count, 1);
    engine.close().await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (engine, _) = open(&path).unwrap();
    assert_eq!(mode(&path), 0o600, "the mode is corrected");
    engine.close().await;
}

#[tokio::test]
async fn a_store_is_created_after_a_kill_during_its_creation() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.new-0"), b"redb\x1A half").unwrap();
    let (engine, _) = open(&folder.path().join("store.redb")).unwrap();
    engine.close().await;
}

#[tokio::test]
async fn a_second_process_cannot_open_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder).await;
    let (engine, _) = open(&path).unwrap();
    let second = open(&path).map(drop).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    commit(&engine, put(1, "anna")).await.unwrap();
    engine.close().await;
    open(&path).unwrap().0.close().await;
}

#[tokio::test]
async fn a_file_of_a_newer_layout_is_refused_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder).await;
    let database = Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(META)
        .unwrap()
        .insert(SCHEMA_KEY, SCHEMA + 1)
        .unwrap();
    txn.commit().unwrap();
    database.close().unwrap();
    let error = open(&path).map(drop).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 2, .. }),
        "{error}"
    );
}

#[test]
fn foreign_empty_and_missing_files_are_distinguished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, "").unwrap();
    assert!(matches!(refusal(&path), OpenError::Empty { .. }));
    std::fs::write(&path, "SQLite format 3\0 and so on and on").unwrap();
    assert!(matches!(refusal(&path), OpenError::Foreign { .. }));
    std::fs::remove_file(&path).unwrap();
    // The engine's own format, but without the store's tables.
    Database::create(&path).unwrap().close().unwrap();
    let error = open(&path).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert!(matches!(refusal(folder.path()), OpenError::Io { .. }));
    let nowhere = folder.path().join("no/such/folder/store.redb");
    let error = refusal(&nowhere);
    assert!(error.to_string().contains("make its folder"), "{error}");
    assert!(!nowhere.parent().unwrap().exists());
}

#[tokio::test]
async fn a_truncated_file_is_damaged_and_never_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder).await;
    let whole = std::fs::read(&path).unwrap();
    let cuts = (1..40).map(|part| whole.len() * part / 40);
    for length in cuts.chain([1, 8, 9, 64, 511, 4095, 4096, whole.len() - 1]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let opened = open(&path);
        match opened {
            Err(OpenError::Damaged { .. } | OpenError::Foreign { .. }) => {}
            Err(error) => panic!("cut to {length}: {error}"),
            // Only free space at the end was cut off.
            Ok((engine, _)) => {
                assert_eq!(grants(&engine).await.len(), 200, "cut to {length}");
                engine.close().await;
            }
        }
    }
}

#[tokio::test]
async fn a_zeroed_page_is_damage_and_not_an_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder).await;
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = 0;
    for page in 0..whole.len() / 4096 {
        let mut bytes = whole.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        match open(&path) {
            Err(OpenError::Damaged { .. } | OpenError::Foreign { .. }) => damaged += 1,
            Err(error) => panic!("page {page}: {error}"),
            Ok((engine, contents)) => {
                assert_eq!(contents.users.len(), 1, "page {page}");
                assert_eq!(grants(&engine).await.len(), 200, "page {page}");
                engine.close().await;
            }
        }
    }
    assert!(damaged > 0);
}

#[tokio::test]
async fn a_file_removed_while_open_is_noticed_and_not_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder).await;
    let (engine, _) = open(&path).unwrap();
    let aside = folder.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    let refused = commit(&engine, put(1000, "anna")).await.unwrap_err();
    assert!(
        refused.to_string().contains("moved or removed"),
        "{refused}"
    );
    assert!(!path.exists());
    std::fs::rename(&aside, &path).unwrap();
    eventually("the store works again once the file is back", async || {
        commit(&engine, put(1001, "anna")).await.is_ok()
    })
    .await;
    assert!(has(&engine, 1001).await && !has(&engine, 1000).await);
    engine.close().await;
}
