//! Files that cannot be used, rows that cannot be read, and others who keep the file to themselves.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use fetchgate::{
    job::{Deadline, JobId, Priority, Status},
    store::{
        Filter, Sees, Slice, StoreError,
        sqlite::{OpenError, Sqlite},
    },
};
use futures_util::future::join_all;
use rusqlite::Connection;

use super::{LEASE, TestStore, complete};
use crate::{
    failure::{LONG, wait_until},
    support::{Backend, TestApp},
};

/// Another program on the same file.
fn other(t: &TestStore) -> Connection {
    Connection::open(t.path()).expect("it can be opened")
}

fn spoil(t: &TestStore, id: JobId, what: &str) {
    let spoilt = other(t).execute(&format!("UPDATE jobs SET {what} WHERE id = ?1"), [id.as_bytes()]);
    assert_eq!(spoilt, Ok(1));
}

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

#[tokio::test]
async fn a_row_that_cannot_be_read_hides_no_other() {
    let mut t = TestStore::open(Backend::Sqlite).await;
    let mut jobs: Vec<_> = (0..6).map(|_| t.job("v", Priority::Normal, "t")).collect();
    let at = t.now().plus(Duration::from_secs(5));
    jobs.iter_mut().for_each(|job| job.deadline = Some(Deadline { at, within: None }));
    let ids = t.submit_all(jobs).await;
    for (id, what) in [(ids[0], "status = 99"), (ids[2], "tags = '{'"), (ids[3], "attempt = -1")] {
        spoil(&t, id, what);
    }
    let (bad, good) = ([ids[0], ids[2], ids[3]], [ids[1], ids[4], ids[5]]);
    // As they are found by a claim that knew them before, and after a restart.
    for _ in 0..2 {
        let page = t.store.list(&Sees::All, &Filter::default(), Slice::page(None, 10)).await.expect("a page");
        assert_eq!(page.jobs.iter().rev().map(|job| job.id).collect::<Vec<_>>(), good);
        let leases = t.claim_all("v").await;
        assert_eq!(leases.iter().map(|lease| lease.job.id).collect::<Vec<_>>(), good);
        assert!(matches!(
            t.store.find(&Sees::All, bad[0], fetchgate::store::With::NEITHER).await,
            Err(StoreError::Corrupt(_))
        ));
        t.restart().await;
        t.quiet().await;
    }
    // Their deadlines come, and do not stand before those of others.
    t.advance(Duration::from_secs(10));
    for _ in 0..2 {
        let overdue = t.store.overdue(t.now(), 3).await.expect("what is overdue");
        assert_eq!(overdue.jobs, good);
    }
    for lease in t.claim_all("v").await {
        t.settle(lease, complete()).await;
    }
    assert!(t.store.overdue(t.now(), 3).await.expect("what is overdue").jobs.is_empty());
}

/// How it will end cannot be written down while what it did before cannot be read; nobody may call again for that.
#[tokio::test]
async fn a_call_on_record_is_not_made_again_though_its_job_cannot_be_ended() {
    let mut t = TestStore::open(Backend::Sqlite).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    assert_eq!(t.store.mark(vec![lease]).await.expect("the store works").len(), 1);
    spoil(&t, id, "attempts = x'7b'");
    t.advance(LEASE);
    // It ends neither now nor after the next start.
    for _ in 0..2 {
        assert_eq!(t.store.reclaim().await.expect("the store works"), 0);
        t.restart().await;
        assert!(t.claim_all("v").await.is_empty());
        t.advance(Duration::from_secs(30));
    }
    spoil(&t, id, "attempts = NULL");
    assert_eq!(t.store.reclaim().await.expect("the store works"), 1);
    assert_eq!(t.status(id).await, Status::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_program_locks_the_file_everybody_gets_the_same_answer_within_seconds() {
    let t = TestStore::open(Backend::Sqlite).await;
    let other = other(&t);
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let asked = Instant::now();
    let submits = join_all((0..20).map(|_| t.store.submit(vec![t.job("v", Priority::Normal, "t")]))).await;
    assert!(submits.iter().all(|outcome| matches!(outcome, Err(StoreError::Unavailable(_)))), "{submits:?}");
    assert!(asked.elapsed() < Duration::from_millis(3500), "{:?}", asked.elapsed());
    other.execute_batch("ROLLBACK").expect("let go");
    t.submit().await;
    assert_eq!(t.claim_all("v").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_says_that_jobs_are_refused_and_that_they_are_taken_again() {
    let app = TestApp::start(Backend::Sqlite).await;
    assert_eq!(app.get("/readyz").await.status, 200);
    let other = Connection::open(app.store_path()).expect("it can be opened");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let refused = app.post("/jobs", r#"{"payload": 1, "vendor": "sync"}"#).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (503, "store_unavailable"));
    let ready = app.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["can"]["accept_jobs"]), (503, &serde_json::json!(false)));
    let why = ready.json()["checks"]["store"].to_string();
    assert!(why.contains("jobs are refused"), "{why}");
    other.execute_batch("ROLLBACK").expect("let go");
    // Nobody need submit anything for that.
    let is_ready = async || (app.get("/readyz").await.status == 200).then_some(());
    wait_until("ready again", LONG, is_ready).await;
    app.submit("sync", "1").await;
    app.stop().await;
}
