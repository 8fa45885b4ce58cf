//! The worker never sleeps through work: whatever a dispatcher waits for, somebody wakes it.

use std::time::Duration;

use fetchgate::store::Claim;

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    polls_go_on_while_no_more_may_be_open,
    a_cancelled_job_does_not_hide_the_one_behind_it,
    an_expired_job_does_not_hide_the_one_behind_it,
    a_tenant_that_had_to_rest_is_served_again_and_holds_up_nobody,
    a_job_that_cannot_be_read_stops_no_other_s_deadline_and_no_reclaim,
    many_deadlines_at_once_do_not_keep_leases_from_being_reclaimed,
);

fn one_vendor(kind: &str, rest: &str) -> String {
    format!("[vendors.v]\nkind = \"{kind}\"\n{rest}\n")
}

async fn polls_go_on_while_no_more_may_be_open(backend: Backend) {
    let polling = r#"url = "VENDORS/polling"
limits = []
open = 1
polling = { ticket = "/id", url = "VENDORS/polling/polling/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] }, result = "/output" }"#;
    let mut app = TestApp::with(backend, &one_vendor("polling", polling)).await;
    let mut ids = Vec::new();
    for i in 0..3 {
        ids.push(app.submit("v", &i.to_string()).await);
    }
    app.run_until_idle().await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete", "the job that is open was not asked about any more");
    }
    app.stop().await;
}

async fn a_cancelled_job_does_not_hide_the_one_behind_it(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let first = app.submit_with(r#"{"payload": 1, "vendor": "sync", "not_before": "10s"}"#).await;
    let second = app.submit_with(r#"{"payload": 2, "vendor": "sync", "not_before": "20s"}"#).await;
    app.run_for(Duration::from_secs(1)).await;
    assert_eq!(app.post(&format!("/jobs/{first}/cancel"), "").await.status, 200);
    app.run_until_idle().await;
    assert_eq!((&*app.status(&second).await, app.calls("sync")), ("complete", 1));
    app.stop().await;
}

async fn an_expired_job_does_not_hide_the_one_behind_it(backend: Backend) {
    let slow = "url = \"VENDORS/sync\"\nlimits = [\"1/s\"]";
    let mut app = TestApp::with(backend, &one_vendor("sync", slow)).await;
    // The janitor is not there to end the first one, as when it is busy.
    app.submit_with(r#"{"payload": 1, "vendor": "v", "deadline": "5s"}"#).await;
    let second = app.submit_with(r#"{"payload": 2, "vendor": "v"}"#).await;
    app.clock.advance(Duration::from_secs(10));
    app.run_until_idle().await;
    assert_eq!((&*app.status(&second).await, app.calls("sync")), ("complete", 1));
    app.stop().await;
}

async fn a_tenant_that_had_to_rest_is_served_again_and_holds_up_nobody(backend: Backend) {
    let shared = "url = \"VENDORS/sync\"\nlimits = [\"10/s\", { calls = 1, per = \"30s\", key = \"tenant\" }]";
    let mut app = TestApp::with(backend, &one_vendor("sync", shared)).await;
    let submit = async |app: &TestApp, tenant: &str| {
        app.submit_with(&format!(r#"{{"payload": 1, "vendor": "v", "tenant": "{tenant}"}}"#)).await
    };
    let mut of_a = Vec::new();
    for _ in 0..4 {
        of_a.push(submit(&app, "a").await);
    }
    let of_b = submit(&app, "b").await;
    app.run_for(Duration::from_secs(3)).await;
    assert_eq!((&*app.status(&of_b).await, app.calls("sync")), ("complete", 2), "b does not wait for a");
    app.run_until_idle().await;
    for id in &of_a {
        assert_eq!(app.status(id).await, "complete");
    }
    app.stop().await;
}

/// A worker that dies has leased the jobs of `v` that are due.
async fn lease_all(app: &TestApp) -> usize {
    let lease = Duration::from_secs(20);
    let claim = Claim { vendor: "v".into(), most: 256, calls: 256, now: app.clock.now(), lease };
    let leased = app.app.store.claim(&claim).await.expect("the store works").len();
    // Somebody has seen that they are held.
    assert_eq!(app.app.store.reclaim().await.expect("the store works"), 0);
    leased
}

async fn a_job_that_cannot_be_read_stops_no_other_s_deadline_and_no_reclaim(backend: Backend) {
    let mut app = TestApp::with(backend, &one_vendor("sync", "url = \"VENDORS/sync\"\nlimits = []")).await;
    let lost = app.submit("v", "1").await;
    assert_eq!(lease_all(&app).await, 1);
    let later = |of: &str, deadline: u32| {
        format!(r#"{{"payload": 1, "vendor": "v", "deadline": "{deadline}s", "tenant": "{of}"}}"#)
    };
    let damaged = app.submit_with(&later("a", 5)).await;
    let (first, second) = (app.submit_with(&later("b", 6)).await, app.submit_with(&later("b", 40)).await);
    app.damage(&damaged).await;
    app.clock.advance(Duration::from_secs(30));
    app.run_janitor().await;
    assert_eq!((&*app.status(&first).await, &*app.status(&second).await), ("expired", "pending"));
    assert_eq!(app.app.store.backlog("v").await.leased, 0, "the lease of a worker that died has been reclaimed");
    for _ in 0..4 {
        app.advance(Duration::from_secs(5)).await;
    }
    assert_eq!(app.status(&second).await, "expired");
    app.run_for(Duration::from_secs(1)).await;
    assert_eq!(app.status(&lost).await, "complete");
    app.stop().await;
}

async fn many_deadlines_at_once_do_not_keep_leases_from_being_reclaimed(backend: Backend) {
    const JOBS: usize = 20_000;
    let mut app = TestApp::with(backend, &one_vendor("sync", "url = \"VENDORS/sync\"\nlimits = []")).await;
    app.submit("v", "1").await;
    assert_eq!(lease_all(&app).await, 1);
    let job = r#"{"payload": 1, "vendor": "v", "deadline": "10s"}"#;
    let (headers, batch) = ([("content-type", "application/x-ndjson")], vec![job; 1000].join("\n"));
    for _ in 0..JOBS / 1000 {
        let answer = app.send_unchecked(hyper::Method::POST, "/jobs/batch", &headers, batch.clone()).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
    app.clock.advance(Duration::from_secs(30));
    app.turn_janitor().await.expect("the store works");
    let backlog = app.app.store.backlog("v").await;
    assert_eq!(backlog.leased, 0, "the lease of a worker that died has been reclaimed");
    assert!(backlog.waiting > JOBS as u64 / 2, "there is more to do: {backlog:?}");
    let began = std::time::Instant::now();
    app.run_janitor().await;
    assert_eq!(app.app.store.backlog("v").await.waiting, 1);
    println!("{JOBS} deadlines took {:?}", began.elapsed());
    app.stop().await;
}
