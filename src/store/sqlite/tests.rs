//! What only a test inside the module can show: a writer that panics, and a full disk.

use super::*;
use crate::job::{AttemptKind, AttemptOutcome, Lane, Priority, Stage, lifecycle::Next};

/// A store on a clock that does not move, and its folder.
fn store(clock: Clock) -> (Sqlite, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Sqlite::open(&folder.path().join("jobs.db"), clock, ["v".into()], 100).unwrap(), folder)
}

/// A bound on the file's pages acts like a full disk. It has to be set on the writer's own connection.
async fn most_pages(store: &Sqlite, pages: u32) {
    let set = move |conn: &Connection| conn.execute_batch(&format!("PRAGMA max_page_count = {pages}"));
    request(&store.requests().unwrap(), |reply| Do::boxed(set, reply)).await.unwrap().unwrap();
}

fn job(payload: Vec<u8>) -> NewJob {
    let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
    NewJob::new(crate::job::JobIds::new().next(Time(0)), lane, payload, Time(0))
}

/// A call that the vendor has answered.
pub(super) fn done() -> Attempt {
    Attempt {
        n: 1,
        kind: AttemptKind::Call,
        sent_at: Some(0),
        permit_at: 0,
        status: Some(200),
        latency_ms: 1,
        outcome: AttemptOutcome::Done,
        detail: None,
        response: None,
    }
}

fn claim(most: usize, lease: Duration) -> Claim {
    Claim { vendor: "v".into(), most, calls: most, now: Time(0), lease }
}

#[tokio::test]
async fn a_writer_that_panics_is_noticed() {
    let (store, _folder) = store(Clock::system());
    let panics = |_: &Connection| -> rusqlite::Result<()> { panic!("on purpose") };
    let asked = request(&store.requests().unwrap(), |reply| Do::boxed(panics, reply)).await;
    assert!(matches!(asked, Err(StoreError::Unavailable(_))));
    assert!(store.failed().await.contains("panicked"));
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_jobs_and_takes_them_again_when_there_is_room() {
    let (store, _folder) = store(Clock::manual(Time(0)));
    let submit = async || store.submit(vec![job(vec![b'1'; 100_000])]).await;
    submit().await.unwrap();
    most_pages(&store, 100).await;
    let mut taken = 1;
    let refused = loop {
        match submit().await {
            Ok(_) => taken += 1,
            Err(why) => break why,
        }
    };
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    assert!(taken < 10);
    assert_eq!(store.backlog("v").await.waiting, taken, "what was refused is not counted");
    most_pages(&store, 100_000).await;
    submit().await.unwrap();
    let leases = store.claim(&claim(100, Duration::from_secs(1))).await.unwrap();
    assert_eq!(leases.len() as u64, taken + 1);
    assert!(leases.iter().all(|lease| lease.job.stage == Stage::Call));
    store.close().await;
}

#[tokio::test]
async fn an_outcome_that_waits_for_the_disk_keeps_its_lease() {
    outcome_waits_for_the_disk(false).await;
}

#[tokio::test]
async fn the_outcome_of_a_call_on_record_that_waits_for_the_disk_is_not_unknown() {
    outcome_waits_for_the_disk(true).await;
}

async fn outcome_waits_for_the_disk(is_on_record: bool) {
    let (clock, lasts) = (Clock::manual(Time(0)), Duration::from_secs(15));
    let (store, _folder) = store(clock.clone());
    store.submit(vec![job(b"1".to_vec())]).await.unwrap();
    let mut lease = store.claim(&claim(1, lasts)).await.unwrap().remove(0);
    if is_on_record {
        lease = store.mark(vec![lease]).await.unwrap().remove(0);
    }
    most_pages(&store, 1).await;
    let next = Next::Complete { result: vec![b'1'; 100_000].into() };
    let change = Change::of(&lease.job, next);
    let settled = store.settle(lease, change, done()).await;
    let Err(Unsettled { lease, change, attempt, .. }) = settled else { panic!("it fits: {settled:?}") };
    clock.advance(lasts);
    assert_eq!(store.reclaim().await.unwrap(), 0, "the vendor would be called again");
    most_pages(&store, 100_000).await;
    assert_eq!(store.settle(*lease, change, attempt).await.unwrap(), Settled::Stored);
    clock.advance(lasts);
    assert_eq!(store.reclaim().await.unwrap(), 0);
    assert!(store.core.index().leases.is_empty());
    store.close().await;
}
