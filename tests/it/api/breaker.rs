//! A vendor whose calls fail is left alone, and found again when it is well.

use std::time::Duration;

use mock_vendors::Answer;

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    a_vendor_that_fails_is_left_alone_until_a_probe_succeeds,
    a_probe_that_fails_opens_the_breaker_again,
    calls_that_the_vendor_answers_do_not_open_the_breaker,
    failures_further_apart_than_within_do_not_open_the_breaker,
    a_probe_whose_permit_was_missed_does_not_keep_others_from_probing,
    polls_wait_for_the_breaker_too,
    one_call_at_a_time_goes_while_the_breaker_is_half_open,
);

const SECOND: Duration = Duration::from_secs(1);

/// One vendor whose breaker opens at five failures. A failed job ends, so that each call is another job's.
const FIVE: &str = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = ["100/s"]
concurrency = 1
retry = { attempts = 1, first = "1d", max = "1d" }
breaker = { failed = 0.9, calls = 5, within = "30s", open = "10s" }
"#;

fn failing(n: usize) -> Vec<Answer> {
    vec![Answer::status(500); n]
}

async fn submit(app: &TestApp, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..n {
        ids.push(app.submit("one", &i.to_string()).await);
    }
    ids
}

async fn breaker(app: &TestApp) -> String {
    app.get("/vendors/one").await.json()["breaker"].as_str().expect("a state").to_owned()
}

async fn metric(app: &TestApp) -> String {
    let metrics = app.get("/metrics").await.text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("fetchgate_breaker_state{vendor=\"one\"} "));
    line.expect("the metric").to_owned()
}

async fn a_vendor_that_fails_is_left_alone_until_a_probe_succeeds(backend: Backend) {
    let mut app = TestApp::with(backend, FIVE).await;
    app.vendors.script("one", failing(5));
    let ids = submit(&app, 8).await;
    assert_eq!((breaker(&app).await, metric(&app).await), ("closed".into(), "0".into()));
    app.run_for(SECOND).await;
    assert_eq!(app.calls("one"), 5, "the fifth failure opened it");
    assert_eq!((breaker(&app).await, metric(&app).await), ("open".into(), "2".into()));
    let waiting = app.find(&ids[7]).await;
    assert_eq!(
        (&waiting["status"], &waiting["blocked_on"], &waiting["attempts"]),
        (&"pending".into(), &"breaker".into(), &0.into())
    );
    let opens = waiting["eligible_at"].as_str().expect("a time").to_owned();
    assert!(waiting["eta"].as_str() >= Some(&*opens), "no call is expected before the probe: {waiting}");
    let vendor = app.get("/vendors/one").await.json();
    assert!(vendor["drain_eta"].as_str() >= vendor["until"].as_str() && vendor["until"].is_string(), "{vendor}");
    app.run_for(8 * SECOND).await;
    assert_eq!(app.calls("one"), 5, "it is left alone for ten seconds");
    app.run_for(2 * SECOND).await;
    assert_eq!(app.calls("one"), 8, "the probe succeeded, and the others followed");
    assert_eq!((breaker(&app).await, metric(&app).await), ("closed".into(), "0".into()));
    let probed = app.get(&format!("/jobs/{}/attempts", ids[5])).await.json();
    assert!(probed["attempts"][0]["sent_at"].as_str() >= Some(&*opens), "{probed} before {opens}");
    for id in &ids[5..] {
        assert_eq!(app.status(id).await, "complete");
    }
    app.vendors.script("one", failing(4));
    submit(&app, 4).await;
    app.run_for(SECOND).await;
    assert_eq!(breaker(&app).await, "closed", "what was before the probe is forgotten");
}

async fn a_probe_that_fails_opens_the_breaker_again(backend: Backend) {
    let mut app = TestApp::with(backend, FIVE).await;
    app.vendors.script("one", failing(7));
    submit(&app, 9).await;
    app.run_for(SECOND).await;
    for calls in [6, 7] {
        app.run_for(10 * SECOND).await;
        assert_eq!((app.calls("one"), breaker(&app).await), (calls, "open".into()), "one probe in ten seconds");
    }
    app.run_for(10 * SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (9, "closed".into()));
}

async fn calls_that_the_vendor_answers_do_not_open_the_breaker(backend: Backend) {
    let mut app = TestApp::with(backend, FIVE).await;
    let refuses = vec![Answer::status(404); 6];
    let busy = (0..12).map(|_| Answer::status(429).header("retry-after", "1"));
    app.vendors.script("one", refuses.into_iter().chain(busy).collect());
    submit(&app, 18).await;
    app.run_for(20 * SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (18, "closed".into()));
}

async fn failures_further_apart_than_within_do_not_open_the_breaker(backend: Backend) {
    let mut app = TestApp::with(backend, FIVE).await;
    app.vendors.script("one", failing(8));
    for _ in 0..2 {
        submit(&app, 4).await;
        app.run_for(31 * SECOND).await;
    }
    assert_eq!((app.calls("one"), breaker(&app).await), (8, "closed".into()));
}

/// The gate closes over the probe's permit after it was given.
async fn a_probe_whose_permit_was_missed_does_not_keep_others_from_probing(backend: Backend) {
    let mut app = TestApp::with(backend, FIVE).await;
    app.vendors.script("one", failing(5));
    submit(&app, 6).await;
    app.run_for(SECOND).await;
    app.clock.advance(9 * SECOND);
    for _ in 0..2 {
        app.turn().await;
    }
    let until = app.clock.nanos() + fetchgate::clock::nanos(SECOND);
    app.app.limiter.close_gate("one", until).await;
    app.run_for(3 * SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (6, "closed".into()));
}

async fn polls_wait_for_the_breaker_too(backend: Backend) {
    let text = FIVE
        .replace("[vendors.one]\nkind = \"sync\"", "[vendors.one]\nkind = \"polling\"")
        .replace("sync/one", "polling/one")
        .replace("failed = 0.9", "failed = 0.8")
        + r#"polling = { ticket = "/id", url = "VENDORS/polling/one/{{ ticket | path }}", every = "1s", done = { at = "/state", is = ["done"] } }"#;
    let mut app = TestApp::with(backend, &text).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"id": "t1"}"#)]);
    let id = submit(&app, 1).await.remove(0);
    app.run_for(SECOND / 2).await;
    app.vendors.script("one", failing(9));
    submit(&app, 9).await;
    app.run_for(SECOND / 4).await;
    assert_eq!(breaker(&app).await, "open");
    let calls = app.calls("one");
    app.run_for(5 * SECOND).await;
    assert_eq!((app.calls("one"), app.find(&id).await["blocked_on"].clone()), (calls, "breaker".into()));
}

/// Nothing else holds these calls back: all are due, and there are neither limits nor a lack of places.
async fn one_call_at_a_time_goes_while_the_breaker_is_half_open(backend: Backend) {
    let text = FIVE.replace("[\"100/s\"]", "[]").replace("concurrency = 1", "concurrency = 32");
    let mut app = TestApp::with(backend, &text).await;
    app.vendors.script("one", failing(21));
    submit(&app, 20).await;
    app.run_for(SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (20, "open".into()));
    submit(&app, 20).await;
    app.run_for(10 * SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (21, "open".into()));
    app.run_for(10 * SECOND).await;
    assert_eq!((app.calls("one"), breaker(&app).await), (40, "closed".into()));
}
