//! The audit: what was really sent, by whichever process, and the worst window of it.

use std::time::Duration;

use fetchgate::{
    audit::{
        Audit,
        block::{self, Call},
    },
    clock::Time,
    store::calls::Tally,
};
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, START, TestApp},
};

on_every_backend!(
    the_audit_agrees_with_what_the_vendor_saw,
    every_poll_is_on_record,
    what_is_on_record_survives_a_crash,
    the_calls_of_several_processes_are_put_in_one_order,
    a_broken_limit_is_seen_counted_and_never_forgotten,
    calls_that_are_written_late_are_judged_too,
    what_a_process_that_is_gone_has_sent_is_judged_too,
    while_nobody_is_called_nothing_is_written,
    each_tenant_is_judged_by_its_own_limit,
    what_a_vendor_is_asked_and_asks_is_counted_for_good,
    old_calls_are_forgotten,
    calls_that_are_written_again_count_once,
    calls_from_before_other_limits_were_set_are_no_breach,
    limits_of_other_periods_set_in_a_row_are_no_breach,
    a_window_around_a_change_is_judged_by_the_looser_limits,
    a_breach_before_looser_limits_were_set_is_counted,
    what_was_allowed_before_a_crash_is_still_known,
    a_question_that_is_none_is_refused,
    a_question_about_too_many_calls_is_refused,
);

/// One vendor with these limits.
fn one(limits: &str) -> String {
    format!("[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = {limits}\n")
}

async fn audit(app: &TestApp, query: &str) -> Value {
    let answer = app.get(&format!("/vendors/one/audit{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// A call of this vendor so many milliseconds after the test's start.
fn call(ms: i64, tenant: &str) -> Call {
    Call { at: (START.0 + ms) * 1000, vendor: "one".into(), tenant: tenant.into() }
}

/// Another process on the same store, which has made these calls without asking anybody.
async fn another_process_calls(app: &TestApp, calls: impl IntoIterator<Item = Call>) {
    let other = Audit::new(app.app.audit.log.clone(), app.clock.clone(), [("one".into(), "one".into())]);
    calls.into_iter().for_each(|call| other.note("one", call));
    other.write().await.expect("the store works");
}

async fn the_audit_agrees_with_what_the_vendor_saw(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"[{ calls = 5, per = "1s", shape = "window" }, "1000/d"]"#)).await;
    // Whatever begins cold is over.
    app.clock.advance(Duration::from_secs(10));
    for _ in 0..12 {
        app.submit("one", "1").await;
    }
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 12);
    let wanted = json!({"calls": 12, "max_in_any_window": 5, "limit": 5, "breaches": 0});
    assert_eq!(audit(&app, "?window=1s").await, wanted);
    let wanted = json!({"calls": 12, "max_in_any_window": 10, "limit": 10, "breaches": 0});
    assert_eq!(audit(&app, "?window=1500ms").await, wanted, "two windows of a second");
    let all = audit(&app, "").await;
    assert_eq!((&all["calls"], &all["breaches"]), (&json!(12), &json!(0)));
    let limit = |n: usize, name: &str| all["limits"][n][name].clone();
    assert_eq!(
        (limit(0, "id"), limit(0, "window"), limit(0, "max_in_any_window")),
        (json!("5/1s"), json!("1s"), json!(5))
    );
    assert_eq!(
        (limit(1, "id"), limit(1, "window"), limit(1, "max_in_any_window")),
        (json!("1000/d"), json!("1d"), json!(12))
    );
    assert_eq!((limit(1, "worst_ever"), limit(1, "limit")), (json!(12), json!(1000)));
    let until = Time(START.0 + 11_000).rfc3339();
    assert_eq!(audit(&app, &format!("?window=1s&until={until}")).await["calls"], 5);
    assert_eq!(audit(&app, &format!("?window=1s&since={until}")).await["calls"], 7);
    app.stop().await;
}

async fn every_poll_is_on_record(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.submit("polling", "1").await;
    app.run_until_idle().await;
    let calls = app.calls("polling");
    assert!(calls > 1, "it was polled");
    assert_eq!(app.get("/vendors/polling/audit?window=1m").await.json()["calls"], calls);
    app.stop().await;
}

async fn what_is_on_record_survives_a_crash(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["3/m"]"#)).await;
    for _ in 0..3 {
        app.submit("one", "1").await;
    }
    app.run_until_idle().await;
    app.advance(Duration::from_secs(60)).await;
    let app = app.crash_and_restart().await;
    let all = audit(&app, "").await;
    assert_eq!((&all["calls"], &all["limits"][0]["worst_ever"]), (&json!(3), &json!(3)));
    assert_eq!(app.get("/vendors/one").await.json()["calls_total"], 3);
    app.stop().await;
}

async fn the_calls_of_several_processes_are_put_in_one_order(backend: Backend) {
    let app = TestApp::with(backend, &one(r#"["4/s"]"#)).await;
    app.clock.advance(Duration::from_secs(60));
    // Every 250 ms, by two processes in turn; then one in between.
    another_process_calls(&app, (0..40).map(|n| call(n * 500, "t"))).await;
    another_process_calls(&app, (0..40).map(|n| call(n * 500 + 250, "t"))).await;
    let wanted = json!({"calls": 80, "max_in_any_window": 4, "limit": 4, "breaches": 0});
    assert_eq!(audit(&app, "?window=1s").await, wanted);
    another_process_calls(&app, [call(10_100, "t")]).await;
    let found = audit(&app, "?window=1s").await;
    assert_eq!((&found["max_in_any_window"], &found["calls"]), (&json!(5), &json!(81)));
    app.stop().await;
}

async fn breaches(app: &TestApp) -> (Value, bool) {
    let metric = "fetchgate_limit_breaches_total{vendor=\"one\"} 0\n";
    (app.get("/vendors/one").await.json()["breaches_total"].clone(), !app.get("/metrics").await.text.contains(metric))
}

async fn a_broken_limit_is_seen_counted_and_never_forgotten(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["2/s"]"#)).await;
    app.advance(Duration::from_secs(5)).await;
    // Nobody asked the limiter for these.
    for ms in [5_000, 5_400, 5_999, 6_000, 8_000] {
        app.app.audit.note("one", call(ms, "t"));
    }
    let all = audit(&app, "").await;
    assert_eq!((&all["breaches"], &all["limits"][0]["max_in_any_window"]), (&json!(2), &json!(3)));
    assert_eq!(breaches(&app).await, (json!(0), false), "not judged yet");
    app.advance(Duration::from_secs(20)).await;
    assert_eq!(breaches(&app).await, (json!(2), true));
    app.advance(Duration::from_secs(20)).await;
    assert_eq!(breaches(&app).await, (json!(2), true), "once");
    app.advance(Duration::from_secs(72 * 3600)).await;
    let mut app = app.crash_and_restart().await;
    app.advance(Duration::from_secs(60)).await;
    let (all, began) = (audit(&app, "").await, Time(START.0 + 5_000).rfc3339());
    assert_eq!((&all["calls"], &all["breaches"]), (&json!(0), &json!(0)), "the record is gone");
    assert_eq!((&all["limits"][0]["worst_ever"], &all["limits"][0]["worst_ever_at"]), (&json!(3), &json!(began)));
    assert_eq!(breaches(&app).await.0, 2);
    app.stop().await;
}

async fn calls_that_are_written_late_are_judged_too(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["2/s"]"#)).await;
    let late = Audit::new(app.app.audit.log.clone(), app.clock.clone(), [("one".into(), "one".into())]);
    for ms in [0, 500] {
        app.app.audit.note("one", call(ms, "t"));
        late.note("one", call(ms + 100, "t"));
    }
    app.advance(Duration::from_secs(30)).await;
    assert_eq!(breaches(&app).await.0, 0);
    // It was stopped all this time.
    late.write().await.expect("the store works");
    app.advance(Duration::from_secs(30)).await;
    assert_eq!(breaches(&app).await, (json!(2), true));
    assert_eq!(audit(&app, "").await["limits"][0]["worst_ever"], 4);
    app.stop().await;
}

async fn what_a_process_that_is_gone_has_sent_is_judged_too(backend: Backend) {
    let others = ["two", "three"].map(|name| one(r#"["2/s"]"#).replace("one", name)).concat();
    let mut app = TestApp::with(backend, &format!("{}{others}", one(r#"["2/s"]"#))).await;
    app.advance(Duration::from_secs(5)).await;
    another_process_calls(&app, [5_000, 5_400, 5_999].map(|ms| call(ms, "t"))).await;
    // Each pool has its turn.
    for _ in 0..3 {
        app.advance(Duration::from_secs(15)).await;
    }
    assert_eq!(breaches(&app).await, (json!(1), true));
    app.stop().await;
}

async fn while_nobody_is_called_nothing_is_written(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["2/s"]"#)).await;
    app.app.audit.note("one", call(0, "t"));
    app.advance(Duration::from_secs(30)).await;
    let verdict = async |app: &TestApp| app.app.audit.log.verdict("one").await.expect("the store works").expect("one");
    let before = verdict(&app).await;
    app.advance(Duration::from_secs(600)).await;
    app.advance(Duration::from_secs(600)).await;
    assert_eq!(verdict(&app).await, before);
    for ms in [1_230_000, 1_230_001, 1_230_002] {
        app.app.audit.note("one", call(ms, "t"));
    }
    app.advance(Duration::from_secs(30)).await;
    assert_eq!(breaches(&app).await, (json!(1), true));
    assert!(verdict(&app).await.judged_to > before.judged_to);
    app.stop().await;
}

async fn each_tenant_is_judged_by_its_own_limit(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"[{ calls = 1, per = "1m", key = "tenant" }]"#)).await;
    for tenant in ["a", "b", "a"] {
        app.submit_with(&format!(r#"{{"payload": 1, "vendor": "one", "tenant": "{tenant}"}}"#)).await;
    }
    app.run_for(Duration::from_secs(30)).await;
    assert_eq!(app.calls("one"), 2);
    let limit = audit(&app, "").await["limits"][0].clone();
    assert_eq!(
        (&limit["key"], &limit["max_in_any_window"], &limit["breaches"]),
        (&json!("tenant"), &json!(1), &json!(0))
    );
    let wanted = json!({"calls": 2, "max_in_any_window": 2, "limit": null, "breaches": 0});
    assert_eq!(audit(&app, "?window=1m").await, wanted, "no limit of the whole pool");
    app.app.audit.note("one", call(20_000, "b"));
    assert_eq!(audit(&app, "").await["breaches"], 1);
    app.stop().await;
}

async fn what_a_vendor_is_asked_and_asks_is_counted_for_good(backend: Backend) {
    let mut app = TestApp::with(backend, &one("[]")).await;
    app.vendors.script("one", vec![mock_vendors::Answer::status(429).header("retry-after", "1")]);
    app.submit("one", "1").await;
    app.run_until_idle().await;
    let counted = async |app: &TestApp| {
        let vendor = app.get("/vendors/one").await.json();
        (vendor["calls_total"].clone(), vendor["throttled_total"].clone())
    };
    assert_eq!(counted(&app).await, (json!(2), json!(1)));
    let app = app.crash_and_restart().await;
    assert_eq!(counted(&app).await, (json!(2), json!(1)));
    app.stop().await;
}

async fn old_calls_are_forgotten(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["10/s"]"#)).await;
    app.app.audit.note("one", call(0, "t"));
    app.advance(Duration::from_secs(23 * 3600)).await;
    assert_eq!(audit(&app, "").await["calls"], 1, "within a day");
    app.advance(Duration::from_secs(2 * 3600)).await;
    assert_eq!(audit(&app, "").await["calls"], 0);
    app.stop().await;
}

async fn calls_from_before_other_limits_were_set_are_no_breach(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["8/s"]"#)).await;
    app.advance(Duration::from_secs(5)).await;
    for ms in 5_000..5_008 {
        app.app.audit.note("one", call(ms, "t"));
    }
    let headers = [("if-match", "*"), ("content-type", "application/json")];
    let laid = app.send(Method::PUT, "/vendors/one/limits", &headers, r#"{"limits": ["2/s"]}"#).await;
    assert_eq!(laid.status, 200, "{}", laid.text);
    let found = |all: Value| (all["breaches"].clone(), all["limits"][0]["max_in_any_window"].clone());
    assert_eq!(found(audit(&app, "").await), (json!(0), json!(8)));
    assert_eq!(audit(&app, "?window=1s").await["breaches"], 0);
    for ms in [9_000, 9_001, 9_002] {
        app.app.audit.note("one", call(ms, "t"));
    }
    assert_eq!(found(audit(&app, "").await), (json!(1), json!(8)), "what came since is held against what is in force");
    app.stop().await;
}

async fn lay(app: &TestApp, limits: &str) {
    let headers = [("if-match", "*"), ("content-type", "application/json")];
    let body = format!(r#"{{"limits": {limits}}}"#);
    let laid = app.send(Method::PUT, "/vendors/one/limits", &headers, body).await;
    assert_eq!(laid.status, 200, "{}", laid.text);
}

/// Calls all at the same moment, which nobody asked the limiter for.
fn calls_at(app: &TestApp, ms: i64, calls: usize) {
    (0..calls).for_each(|_| app.app.audit.note("one", call(ms, "t")));
}

async fn limits_of_other_periods_set_in_a_row_are_no_breach(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["10/s"]"#)).await;
    app.advance(Duration::from_secs(60)).await;
    for _ in 0..300 {
        app.submit("one", "1").await;
    }
    app.live_for(Duration::from_secs(3)).await;
    // Some are in force for less time than the judge takes to look again.
    let sets = [
        (r#"["6/3s"]"#, 1000),
        (r#"["20/s", "30/5s"]"#, 700),
        (r#"["4/2s"]"#, 1500),
        ("[]", 20),
        (r#"["10/s"]"#, 3000),
        (r#"["9/4s", "40/m"]"#, 1000),
        (r#"["12/1500ms"]"#, 1200),
        (r#"["30/7s"]"#, 2500),
        (r#"["30/s"]"#, 400),
        (r#"["5/2500ms"]"#, 900),
    ];
    for (limits, ms) in sets {
        lay(&app, limits).await;
        app.run_for(Duration::from_millis(ms)).await;
        app.run_janitor().await;
        let found = audit(&app, "").await;
        assert_eq!(found["breaches"], 0, "{limits}: {found}");
    }
    for _ in 0..10 {
        app.advance(Duration::from_secs(5)).await;
    }
    assert!(app.calls("one") > 80, "{} calls", app.calls("one"));
    assert_eq!(breaches(&app).await, (json!(0), false));
    app.stop().await;
}

async fn a_window_around_a_change_is_judged_by_the_looser_limits(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["10/s"]"#)).await;
    app.advance(Duration::from_secs(60)).await;
    // Of three seconds that began before the change 30 calls are allowed, of those that began after it 6.
    for ms in [59_000, 60_000, 61_000] {
        calls_at(&app, ms, 10);
    }
    lay(&app, r#"["6/3s"]"#).await;
    calls_at(&app, 80_000, 6);
    app.advance(Duration::from_secs(40)).await;
    app.advance(Duration::from_secs(5)).await;
    assert_eq!((audit(&app, "").await["breaches"].clone(), breaches(&app).await.0), (json!(0), json!(0)));
    calls_at(&app, 105_000, 8);
    app.advance(Duration::from_secs(20)).await;
    assert_eq!(audit(&app, "").await["breaches"], 2, "more than the new limit allows");
    assert_eq!(breaches(&app).await, (json!(2), true));
    lay(&app, r#"["10/s"]"#).await;
    let now = (app.clock.now().0) - START.0;
    calls_at(&app, now, 13);
    app.advance(Duration::from_secs(20)).await;
    app.advance(Duration::from_secs(5)).await;
    assert_eq!(breaches(&app).await, (json!(5), true), "more than the looser of the two allows");
    app.stop().await;
}

async fn a_breach_before_looser_limits_were_set_is_counted(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["2/s"]"#)).await;
    app.advance(Duration::from_secs(60)).await;
    calls_at(&app, 52_000, 5);
    lay(&app, r#"["100/s", "500/m"]"#).await;
    app.advance(Duration::from_secs(5)).await;
    app.advance(Duration::from_secs(20)).await;
    assert_eq!(breaches(&app).await, (json!(3), true));
    assert_eq!(audit(&app, "?window=1s").await["breaches"], 3);
    app.stop().await;
}

async fn what_was_allowed_before_a_crash_is_still_known(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["100/s"]"#)).await;
    app.advance(Duration::from_secs(60)).await;
    lay(&app, r#"["6/3s"]"#).await;
    lay(&app, r#"["20/s"]"#).await;
    app.advance(Duration::from_secs(60)).await;
    calls_at(&app, 120_000, 20);
    app.app.audit.write().await.expect("the store works");
    lay(&app, r#"["4/2s"]"#).await;
    let mut app = app.crash_and_restart().await;
    for _ in 0..6 {
        app.advance(Duration::from_secs(5)).await;
    }
    assert_eq!(breaches(&app).await.0, 0, "{}", audit(&app, "").await);
    calls_at(&app, 150_000, 7);
    app.advance(Duration::from_secs(20)).await;
    assert_eq!(breaches(&app).await, (json!(3), true));
    app.stop().await;
}

async fn calls_that_are_written_again_count_once(backend: Backend) {
    let app = TestApp::with(backend, &one("[]")).await;
    let tally = |vendor: &str, calls| Tally { vendor: vendor.to_owned(), calls, throttled: 1 };
    let blocks: Vec<_> = (0..3)
        .map(|id| (block::encode("one", id, &[call(id, "t")]), vec![tally("one", 1), tally("other", 10)]))
        .collect();
    let log = &app.app.audit.log;
    log.log(&blocks[..2]).await.expect("the store works");
    log.log(&blocks).await.expect("the store works");
    let counted = async |vendor| log.tally(vendor).await.expect("the store works");
    assert_eq!(counted("one").await, Tally { throttled: 3, ..tally("one", 3) });
    assert_eq!(counted("other").await, Tally { throttled: 3, ..tally("other", 30) });
    assert_eq!(audit(&app, "?window=1s").await["calls"], 3);
    app.stop().await;
}

async fn a_question_that_is_none_is_refused(backend: Backend) {
    let app = TestApp::with(backend, &one("[]")).await;
    let wrong =
        ["window=soon", "window=0s", "window=63d", "since=yesterday", "until=", "windows=1s", "window=1s&window=2s"];
    let backwards = "since=2026-01-15T08:00:00Z&until=2026-01-15T08:00:00Z";
    for query in wrong.into_iter().chain([backwards]) {
        let answer = app.get(&format!("/vendors/one/audit?{query}")).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "invalid_parameter"), "{query}");
    }
    let unknown = app.get("/vendors/nobody/audit").await;
    assert_eq!((unknown.status.as_u16(), &*unknown.code()), (404, "unknown_vendor"));
    app.stop().await;
}

async fn a_question_about_too_many_calls_is_refused(backend: Backend) {
    let app = TestApp::with(backend, &one("[]")).await;
    let second: Vec<Call> = (0..4000).map(|n| call(n / 4, "t")).collect();
    let blocks: Vec<_> = (0..501).map(|id| (block::encode("one", id, &second), Vec::new())).collect();
    app.app.audit.log.log(&blocks[..500]).await.expect("the store works");
    let wanted = json!({"calls": 2_000_000, "max_in_any_window": 2_000_000, "limit": null, "breaches": 0});
    assert_eq!(audit(&app, "?window=1s").await, wanted);
    app.app.audit.log.log(&blocks[500..]).await.expect("the store works");
    let answer = app.get("/vendors/one/audit?window=1s").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "too_many_calls"));
    let until = Time(START.0 + 500).rfc3339();
    assert_eq!(audit(&app, &format!("?window=1s&until={until}")).await["calls"], 1_002_000);
    app.stop().await;
}
