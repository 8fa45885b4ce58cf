//! Files that cannot be used, and disks that fail.

use std::{fs, sync::Arc};

use fetchgate::store::sqlite::{OpenError, Sqlite};

use super::TestStore;
use crate::support::Backend;

fn refusal(t: &TestStore) -> OpenError {
    match Sqlite::open(&t.path(), t.clock.clone(), ["v".into()], 10) {
        Err(why) => why,
        Ok(_) => panic!("the file was opened"),
    }
}

#[tokio::test]
async fn a_file_in_use_is_refused_with_what_to_do() {
    let t = TestStore::open(Backend::Sqlite).await;
    let why = refusal(&t);
    assert!(matches!(why, OpenError::InUse(_)));
    let text = why.to_string();
    assert!(text.contains("in use by another process") && text.contains("store.url"), "{text}");
    t.submit().await;
    t.store.close().await;
}

#[tokio::test]
async fn a_file_from_a_newer_version_is_refused_and_left_as_it_is() {
    let t = TestStore::open(Backend::Sqlite).await;
    t.store.close().await;
    let TestStore { store, folder, clock, .. } = t;
    drop(store);
    let path = folder.path().join("jobs.db");
    // The schema's number is the big-endian u32 at byte 60 of the file.
    let mut bytes = fs::read(&path).unwrap();
    bytes[60..64].copy_from_slice(&999_u32.to_be_bytes());
    fs::write(&path, &bytes).unwrap();
    let opened = Sqlite::open(&path, clock, [Arc::from("v")], 10);
    let Err(why) = opened else { panic!("the file was opened") };
    assert!(matches!(why, OpenError::Newer { found: 999, .. }), "{why}");
    assert!(why.to_string().contains("newer version"), "{why}");
    assert_eq!(fs::read(&path).unwrap()[60..64], 999_u32.to_be_bytes());
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    fs::write(&path, "This is not a database, but somebody's notes. ".repeat(100)).unwrap();
    let opened = Sqlite::open(&path, fetchgate::clock::Clock::system(), [Arc::from("v")], 10);
    let Err(why) = opened else { panic!("the file was opened") };
    assert!(matches!(why, OpenError::Sqlite(..)), "{why}");
    assert!(fs::read_to_string(&path).unwrap().starts_with("This is not"), "and left as it is");
}

#[test]
fn the_sqlite_inside_cannot_lose_commits_when_its_log_is_reset() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}
