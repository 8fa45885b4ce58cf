//! The machine's wall clock is set, back or forward, while jobs wait: nothing that need not wait for it does.

use std::time::Duration;

use fetchgate::{
    clock::{Nanos, nanos},
    job::{JobId, NewJob, Priority, lifecycle::Next},
};

use super::{LEASE, TestStore, complete};
use crate::support::{Backend, TestApp};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn back(by: Duration) -> Nanos {
    -nanos(by)
}

impl TestStore {
    /// A job that may not go before so long from now.
    fn job_after(&self, wait: Duration) -> NewJob {
        NewJob { due_at: self.now().plus(wait), ..self.job("v", Priority::Normal, "t") }
    }

    async fn claimed(&self) -> Vec<JobId> {
        self.claim_all("v").await.into_iter().map(|lease| lease.job.id).collect()
    }
}

#[tokio::test]
async fn jobs_without_not_before_do_not_wait_for_a_clock_that_was_set_back() {
    // More than is kept in memory.
    let mut t = TestStore::open(Backend::Sqlite).await;
    let ids = t.submit_all((0..3000).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    t.advance(SECOND);
    t.clock.step(back(HOUR));
    assert!(t.store.ready("v").await.unwrap().next_due.is_some_and(|due| due <= t.now()));
    let first: Vec<_> = t.claim("v", 100).await;
    assert_eq!(first.iter().map(|lease| lease.job.id).collect::<Vec<_>>(), ids[..100]);
    let oldest = t.store.backlog("v").await.oldest_due.expect("jobs wait");
    assert_eq!(t.now().since(oldest), SECOND, "as long as they have waited, whatever the clock says");
    for lease in first {
        t.settle(lease, complete()).await;
    }
    t.restart().await;
    t.quiet().await;
    assert_eq!(t.claimed().await, ids[100..], "a new process knows no other time");
}

#[tokio::test]
async fn jobs_stored_while_the_clock_was_ahead_go_on_when_it_is_right_again() {
    let mut t = TestStore::open(Backend::Sqlite).await;
    t.clock.step(nanos(DAY));
    let ids = [t.submit().await, t.submit().await];
    let lease = t.claim("v", 1).await.remove(0);
    let due_at = t.now().plus(10 * SECOND);
    t.settle(lease, Next::Call { due_at }).await;
    t.clock.step(back(DAY));
    for restart in [false, true] {
        if restart {
            t.restart().await;
            t.quiet().await;
        }
        let leases = t.claim_all("v").await;
        assert_eq!(leases.iter().map(|lease| lease.job.id).collect::<Vec<_>>(), [ids[1]], "{restart}");
        t.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
    }
    t.advance(10 * SECOND);
    let mut all = t.claimed().await;
    all.sort();
    assert_eq!(all, ids);
}

#[tokio::test]
async fn retries_and_polls_wait_as_long_as_they_should_whatever_is_done_to_the_clock() {
    for step in [back(HOUR), nanos(HOUR), back(DAY), nanos(DAY)] {
        let t = TestStore::open(Backend::Sqlite).await;
        let mut ids = t.submit_all((0..2).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
        let mut leases = t.claim("v", 2).await;
        let (due_at, answer_by) = (t.now().plus(10 * SECOND), t.now().plus(HOUR));
        t.settle(leases.remove(0), Next::Call { due_at }).await;
        t.settle(leases.remove(0), Next::Poll { due_at, answer_by }).await;
        t.clock.step(step);
        t.advance(9 * SECOND);
        assert!(t.claimed().await.is_empty(), "{step}");
        t.advance(SECOND);
        let mut claimed = t.claimed().await;
        claimed.sort();
        ids.sort();
        assert_eq!(claimed, ids, "{step}");
        t.store.close().await;
    }
}

#[tokio::test]
async fn not_before_is_kept_by_the_clock_as_it_is() {
    let t = TestStore::open(Backend::Sqlite).await;
    let later = t.submit_all(vec![t.job_after(HOUR)]).await;
    t.clock.step(nanos(DAY));
    t.clock.step(back(DAY));
    assert!(t.claimed().await.is_empty(), "a clock that was ahead for a moment makes it no earlier");
    t.clock.step(back(HOUR));
    t.advance(HOUR);
    assert!(t.claimed().await.is_empty(), "nor one that was ahead all the time");
    assert_eq!(t.store.ready("v").await.unwrap().next_due, Some(t.now().plus(HOUR)));
    t.clock.step(nanos(HOUR));
    assert_eq!(t.claimed().await, later);
}

#[tokio::test]
async fn a_tenant_that_rests_rests_as_long_as_it_should() {
    let t = TestStore::open(Backend::Sqlite).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    t.store.release(vec![(lease, Some(t.now().plus(10 * SECOND)))]).await;
    t.clock.step(back(HOUR));
    t.advance(9 * SECOND);
    assert!(t.claimed().await.is_empty());
    t.advance(SECOND);
    assert_eq!(t.claimed().await, [id]);
}

#[tokio::test]
async fn leases_last_as_long_as_they_should() {
    let t = TestStore::open(Backend::Sqlite).await;
    t.submit().await;
    drop(t.claim_one().await);
    t.clock.step(nanos(DAY));
    assert_eq!(t.store.reclaim().await.unwrap(), 0);
    t.clock.step(back(2 * DAY));
    t.advance(LEASE);
    assert_eq!(t.store.reclaim().await.unwrap(), 1);
    drop(t.claim_one().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_the_clock_is_an_hour_behind_and_after_it() {
    let mut app = TestApp::with(
        Backend::Sqlite,
        "[vendors.v]\nkind = \"sync\"\nurl = \"VENDORS/sync?fail_every=5\"\nlimits = [\"50/s\"]\n",
    )
    .await;
    let mut ids = Vec::new();
    for i in 0..300 {
        ids.push(app.submit("v", &i.to_string()).await);
    }
    app.run_for(SECOND).await;
    app.clock.step(back(HOUR));
    let waiting = app.find(&ids[299]).await;
    assert_ne!(waiting["blocked_on"], "not_before", "{waiting}");
    let before = app.calls("sync");
    app.run_for(2 * SECOND).await;
    assert!(app.calls("sync") >= before + 90, "{before}, {}", app.calls("sync"));
    app.clock.step(nanos(HOUR));
    app.run_for(10 * SECOND).await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_kept_although_the_clock_was_a_year_ahead_for_a_moment() {
    let mut app = TestApp::start(Backend::Sqlite).await;
    let id = app.submit("sync", "1").await;
    app.run_until_idle().await;
    app.advance(Duration::from_secs(61)).await;
    app.clock.step(nanos(365 * DAY));
    app.advance(Duration::from_secs(61)).await;
    app.clock.step(back(365 * DAY));
    assert_eq!(app.status(&id).await, "complete");
    app.stop().await;
}
