//! What is deleted and when; who may wait.

use std::time::Duration;

use fetchgate::{
    clock::Time,
    job::{Idempotency, JobId, NewJob, Priority, lifecycle::Next},
    store::{Sees, Submitted, With, room::NoRoom, signals::Signals},
};

use super::{TestStore, complete, open_for};
use crate::{on_every_backend, support::Backend};

on_every_backend!(
    the_same_key_and_body_give_the_same_job_also_within_a_batch_and_after_a_restart,
    keys_are_kept_for_a_day_and_then_forgotten,
    a_key_whose_job_was_deleted_never_has_it_run_again,
    only_jobs_that_ended_long_enough_ago_are_deleted_a_slice_at_a_time,
    waiters_are_woken_counted_and_bounded,
    more_than_the_most_that_may_wait_is_refused,
    overdue_tells_what_is_due_and_when_the_next_is,
);

const DAY: Duration = Duration::from_secs(24 * 3600);

impl TestStore {
    fn keyed(&self, key: &str, body: u8) -> NewJob {
        let idempotency = Some(Idempotency { key: key.into(), body_hash: [body; 32] });
        NewJob { idempotency, ..self.job("v", Priority::Normal, "t") }
    }

    async fn prune_all(&self, before: Time) -> usize {
        let mut slices = 1;
        while self.store.prune(before).await.expect("the store works") {
            slices += 1;
        }
        slices
    }

    async fn exists(&self, id: JobId) -> bool {
        self.store
            .find(&Sees::All, id, With { payload: false, result: false })
            .await
            .expect("the store works")
            .is_some()
    }
}

async fn the_same_key_and_body_give_the_same_job_also_within_a_batch_and_after_a_restart(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let other_tenant = NewJob { lane: t.job("v", Priority::Normal, "other").lane, ..t.keyed("k", 1) };
    let jobs = vec![t.keyed("k", 1), t.keyed("k", 1), t.keyed("k", 2), other_tenant];
    let (first, other) = (jobs[0].id, jobs[3].id);
    let outcomes = t.store.submit(jobs).await.unwrap();
    let expected = [Submitted::New(first), Submitted::Known(first), Submitted::KeyReused, Submitted::New(other)];
    assert_eq!(outcomes, expected);
    t.restart().await;
    assert_eq!(t.store.submit(vec![t.keyed("k", 1)]).await.unwrap(), [Submitted::Known(first)]);
    assert_eq!(t.store.backlog("v").await.waiting, 2);
}

async fn keys_are_kept_for_a_day_and_then_forgotten(backend: Backend) {
    let t = TestStore::open(backend).await;
    let keys = || (0..2500).map(|i| format!("k{i}"));
    t.submit_all(keys().map(|key| t.keyed(&key, 1)).collect()).await;
    t.advance(DAY - Duration::from_secs(1));
    t.prune_all(Time(0)).await;
    for key in ["k0", "k2499"] {
        assert!(matches!(t.store.submit(vec![t.keyed(key, 1)]).await.unwrap()[..], [Submitted::Known(_)]));
    }
    t.advance(Duration::from_secs(2));
    t.prune_all(Time(0)).await;
    let again = t.store.submit(keys().map(|key| t.keyed(&key, 2)).collect()).await.unwrap();
    assert!(again.iter().all(|outcome| matches!(outcome, Submitted::New(_))), "all are forgotten in one go");
}

async fn a_key_whose_job_was_deleted_never_has_it_run_again(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let job = t.keyed("k", 1);
    let id = t.submit_all(vec![job]).await[0];
    let lease = t.claim_one().await;
    t.settle(lease, complete()).await;
    t.advance(Duration::from_secs(3600));
    t.prune_all(t.now()).await;
    assert!(!t.exists(id).await);
    for _ in 0..2 {
        assert_eq!(t.store.submit(vec![t.keyed("k", 1)]).await.unwrap(), [Submitted::Known(id)]);
        assert_eq!(t.store.submit(vec![t.keyed("k", 2)]).await.unwrap(), [Submitted::KeyReused]);
        assert!(!t.exists(id).await && t.claim_all("v").await.is_empty(), "its vendor was called already");
        t.restart().await;
    }
}

async fn only_jobs_that_ended_long_enough_ago_are_deleted_a_slice_at_a_time(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let old = t.submit_all((0..2500).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    let mut leases = t.claim_all("v").await;
    assert_eq!(leases.len(), old.len());
    let held = leases.pop().unwrap();
    let late = leases.pop().unwrap();
    for lease in leases {
        t.settle(lease, complete()).await;
    }
    t.advance(Duration::from_secs(100));
    let late_id = late.job.id;
    t.settle(late, complete()).await;
    let waiting = t.submit().await;
    t.advance(DAY);
    let before = Time(t.now().0 - DAY.as_millis() as i64);
    // The first ended 100 s before the day began, the late one exactly when it did, which is not before.
    assert!(t.prune_all(before).await >= 3);
    let kept = [held.job.id, late_id, waiting];
    for id in kept {
        assert!(t.exists(id).await);
    }
    for id in [old[0], old[1000], old[2497]] {
        assert!(!t.exists(id).await);
    }
    t.settle(held, complete()).await;
    t.restart().await;
    t.advance(Duration::from_millis(1));
    t.prune_all(t.now()).await;
    assert_eq!([t.exists(kept[0]).await, t.exists(late_id).await, t.exists(waiting).await], [false, false, true]);
    t.quiet().await;
    assert_eq!(t.claim_all("v").await.len(), 1, "the one that waits goes on");
}

async fn waiters_are_woken_counted_and_bounded(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let signals = t.store.signals();
    let mut waiters: Vec<_> = (0..Signals::MAX_WAITERS).map(|_| signals.wait_for(id).expect("a place")).collect();
    assert!(signals.wait_for(id).is_none(), "one too many");
    drop(waiters.pop());
    let mut last = signals.wait_for(id).expect("a place again");
    let lease = t.claim_one().await;
    t.settle(lease, complete()).await;
    last.ended().await;
    for waiter in &mut waiters {
        waiter.ended().await;
    }
    drop((waiters, last));
    let id = t.submit().await;
    let waiters: Vec<_> = (0..Signals::MAX_WAITERS).map(|_| signals.wait_for(id).expect("all places again")).collect();
    assert!(signals.wait_for(id).is_none());
    drop(waiters);
}

async fn more_than_the_most_that_may_wait_is_refused(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let t = TestStore::open(backend).await;
    let small = open_for(backend, &folder, &t.clock, 3).await;
    let jobs = |n: usize| (0..n).map(|_| t.job("v", Priority::Normal, "t")).collect::<Vec<_>>();
    assert!(matches!(small.submit(jobs(2)).await.unwrap()[..], [Submitted::New(_), Submitted::New(_)]));
    assert_eq!(small.submit(jobs(2)).await.unwrap(), [Submitted::NoRoom(NoRoom::InAll); 2]);
    assert!(matches!(small.submit(jobs(1)).await.unwrap()[..], [Submitted::New(_)]));
    assert_eq!(small.submit(jobs(1)).await.unwrap(), [Submitted::NoRoom(NoRoom::InAll)]);
    small.close().await;
}

async fn overdue_tells_what_is_due_and_when_the_next_is(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    assert_eq!(t.store.overdue(t.now(), 10).await.unwrap().next_at, None);
    let at = |secs| fetchgate::job::Deadline { at: t.now().plus(Duration::from_secs(secs)), within: None };
    let mut jobs: Vec<_> = (0..4).map(|_| t.job("v", Priority::Normal, "t")).collect();
    for (job, secs) in jobs.iter_mut().zip([30, 10, 20, 10]) {
        job.deadline = Some(at(secs));
    }
    let (ten, twenty) = (at(10).at, at(20).at);
    let ids = t.submit_all(jobs).await;
    let early = t.store.overdue(t.now(), 10).await.unwrap();
    assert_eq!((early.jobs.len(), early.next_at), (0, Some(ten)));
    t.advance(Duration::from_secs(10));
    let due = t.store.overdue(t.now(), 10).await.unwrap();
    assert_eq!(due.jobs.into_iter().collect::<std::collections::BTreeSet<_>>(), [ids[1], ids[3]].into());
    assert_eq!(t.store.overdue(t.now(), 1).await.unwrap().jobs.len(), 1, "at most as many as asked for");
    for id in [ids[1], ids[3]] {
        let decide = Box::new(fetchgate::job::lifecycle::cancel);
        t.store.amend(&Sees::All, fetchgate::store::Which::Id(id), t.now(), decide).await.unwrap();
    }
    t.restart().await;
    let later = t.store.overdue(t.now(), 10).await.unwrap();
    assert_eq!((later.jobs.len(), later.next_at), (0, Some(twenty)));
}

#[tokio::test]
async fn tenants_without_jobs_leave_nothing_behind() {
    let mut t = TestStore::open(Backend::Sqlite).await;
    let lanes = |t: &TestStore| {
        let conn = rusqlite::Connection::open(t.path()).expect("it can be opened");
        conn.query_row("SELECT count(*) FROM lanes", [], |row| row.get::<_, usize>(0)).expect("a number")
    };
    // One job stays from long ago, one waits for a callback, and one ended a moment ago.
    let old = t.submit().await;
    let awaited = t.submit_all(vec![t.job("v", Priority::Normal, "awaits")]).await[0];
    let of_many = t.submit_all((0..3000).map(|i| t.job("w", Priority::Normal, &format!("t{i}"))).collect()).await;
    for lease in t.claim_all("w").await {
        t.settle(lease, complete()).await;
    }
    for lease in t.claim_all("v").await.into_iter().filter(|lease| lease.job.id == awaited) {
        let answer_by = t.now().plus(DAY * 30);
        t.settle(lease, Next::Await { answer_by }).await;
    }
    assert_eq!(lanes(&t), 3002);
    t.advance(DAY);
    let late = t.submit_all(vec![t.job("w", Priority::Normal, "late")]).await[0];
    for lease in t.claim_all("w").await {
        t.settle(lease, complete()).await;
    }
    let before = t.now();
    for _ in 0..10 {
        t.prune_all(before).await;
    }
    assert!(!t.exists(of_many[0]).await && t.exists(late).await);
    assert_eq!(lanes(&t), 3, "those that have a job");
    // Tenants that come back are as new ones, also where a lane's number is used again.
    t.submit_all((0..50).map(|i| t.job("w", Priority::Low, &format!("new{i}"))).collect()).await;
    t.submit_all((0..50).map(|i| t.job("w", Priority::Normal, &format!("t{i}"))).collect()).await;
    t.restart().await;
    t.quiet().await;
    assert_eq!(t.claim_all("w").await.len(), 100);
    assert_eq!((t.claim_all("v").await.len(), t.find(old).await.id), (1, old));
}
