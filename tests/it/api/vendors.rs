//! Vendors as people see them: limits, pauses, and what a job waits for.

use std::time::Duration;

use hyper::Method;
use mock_vendors::Answer;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, START, TestApp},
};

on_every_backend!(
    every_vendor_is_listed_with_its_numbers,
    the_list_is_shared_for_a_moment_and_made_anew_after_a_change,
    limits_say_how_much_is_used_and_when_the_next_call_can_go,
    a_vendor_can_be_paused_for_a_time,
    a_pause_until_resumed_survives_a_restart,
    a_pause_that_is_not_one_is_refused,
    a_job_says_that_it_waits_for_its_time,
    a_job_says_that_it_waits_for_its_next_attempt,
    a_job_says_that_it_waits_for_its_next_poll,
    a_job_says_that_it_waits_for_a_callback,
    a_job_says_that_it_waits_for_a_limit,
    a_job_says_that_it_waits_for_a_call_to_end,
    a_job_says_that_it_waits_in_the_queue,
    an_ended_job_waits_for_nothing,
    one_tenant_over_its_limit_does_not_hold_up_others,
    vendors_of_one_pool_share_its_limits,
);

/// Waits are drawn between nothing and this, so that in a test's first moment none is over.
const SLOW_RETRY: &str = "limits = []\nretry = { first = \"1d\", max = \"1d\" }";

const MINUTE: Duration = Duration::from_secs(60);

/// One vendor with these lines in its table.
fn one(lines: &str) -> String {
    format!("[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\n{lines}\n")
}

async fn waits_for(app: &TestApp, id: &str) -> (Value, Value) {
    let job = app.find(id).await;
    (job["blocked_on"].clone(), job["eligible_at"].clone())
}

async fn every_vendor_is_listed_with_its_numbers(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.vendors.script("sync", vec![Answer::status(429).header("retry-after", "1")]);
    app.submit("sync", "1").await;
    app.run_until_idle().await;
    app.submit("sync", "2").await;
    app.clock.advance(Duration::from_millis(2500));
    let all = app.get("/vendors").await.json();
    let names: Vec<_> =
        all["vendors"].as_array().unwrap().iter().map(|vendor| vendor["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["async", "polling", "sync"]);
    let sync = app.get("/vendors/sync").await.json();
    assert_eq!(all["vendors"][2], sync);
    let wanted = json!({
        "name": "sync", "kind": "sync", "pool": "sync", "paused": false, "paused_until": null, "concurrency": 32,
        "in_flight": 0, "open": 0, "waiting": 1, "oldest_waiting_s": 2.5,
        "calls_total": 2, "throttled_total": 1, "breaches_total": 0,
    });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&sync[name], value, "{name}");
    }
    assert_eq!((&all["vendors"][0]["kind"], &all["vendors"][1]["kind"]), (&json!("webhook"), &json!("polling")));
    let unknown = app.get("/vendors/nobody").await;
    assert_eq!((unknown.status.as_u16(), &*unknown.code()), (404, "unknown_vendor"));
    app.stop().await;
}

async fn the_list_is_shared_for_a_moment_and_made_anew_after_a_change(backend: Backend) {
    let app = TestApp::start(backend).await;
    let of_sync = async |app: &TestApp, name: &str| app.get("/vendors").await.json()["vendors"][2][name].clone();
    assert_eq!(of_sync(&app, "waiting").await, 0);
    app.submit_with(r#"{"vendor": "sync", "payload": 1, "not_before": "1h"}"#).await;
    assert_eq!(of_sync(&app, "waiting").await, 0, "all who ask within a moment share the answer");
    app.clock.advance(Duration::from_millis(200));
    assert_eq!(of_sync(&app, "waiting").await, 1);
    app.post("/vendors/sync/pause", "").await;
    assert_eq!(of_sync(&app, "paused").await, true);
    app.post("/vendors/sync/resume", "").await;
    assert_eq!(of_sync(&app, "paused").await, false);
    app.stop().await;
}

async fn limits_say_how_much_is_used_and_when_the_next_call_can_go(backend: Backend) {
    let limits = r#"limits = ["100/s", { calls = 3, per = "1m", shape = "window", guard = "10ms", id = "a-minute" }]"#;
    let mut app = TestApp::with(backend, &one(limits)).await;
    let limit = async |app: &TestApp, n: usize| app.get("/vendors/one").await.json()["limits"][n].clone();
    let fresh = limit(&app, 1).await;
    assert_eq!(fresh["next_at"], "2026-01-15T08:00:00.000Z");
    let wanted = json!({"id": "a-minute", "calls": 3, "per": "1m", "shape": "window", "key": "vendor", "used": 0});
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&fresh[name], value, "{name}");
    }
    for _ in 0..2 {
        app.submit("one", "1").await;
    }
    app.run_until_idle().await;
    assert_eq!(limit(&app, 1).await["used"], 2);
    for _ in 0..2 {
        app.submit("one", "1").await;
    }
    app.run_for(Duration::from_secs(1)).await;
    let full = limit(&app, 1).await;
    assert_eq!((&full["used"], app.calls("one")), (&json!(3), 3));
    // The period and the guard after the first call, which the pace may have held up for a moment; to the millisecond.
    let next_at = full["next_at"].as_str().unwrap();
    assert!(("2026-01-15T08:01:00.009Z".."2026-01-15T08:01:00.030Z").contains(&next_at), "{next_at}");
    let per_second = limit(&app, 0).await;
    assert_eq!((&per_second["id"], &per_second["shape"]), (&json!("100/s"), &json!("paced")));
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 4);
    assert!(app.clock.now().since(START) >= MINUTE);
    app.stop().await;
}

async fn a_vendor_can_be_paused_for_a_time(backend: Backend) {
    let mut app = TestApp::with(backend, &one("limits = []")).await;
    let paused = app.post("/vendors/one/pause", r#"{"for": "10m"}"#).await.json();
    assert_eq!((&paused["paused"], &paused["paused_until"]), (&json!(true), &json!("2026-01-15T08:10:00.000Z")));
    let id = app.submit("one", "1").await;
    app.run_for(MINUTE * 10 - Duration::from_millis(1)).await;
    assert_eq!(app.calls("one"), 0);
    assert_eq!(waits_for(&app, &id).await, (json!("vendor_paused"), json!("2026-01-15T08:10:00.000Z")));
    app.run_for(Duration::from_millis(2)).await;
    assert_eq!(app.status(&id).await, "complete");
    assert_eq!(app.get("/vendors/one").await.json()["paused"], false);
    app.stop().await;
}

async fn a_pause_until_resumed_survives_a_restart(backend: Backend) {
    let config =
        format!("{}[vendors.other]\nkind = \"sync\"\nurl = \"VENDORS/sync/other\"\nlimits = []\n", one("limits = []"));
    let app = TestApp::with(backend, &config).await;
    let paused = app.post("/vendors/one/pause", "").await.json();
    assert_eq!((&paused["paused"], &paused["paused_until"]), (&json!(true), &Value::Null));
    let (id, others) = (app.submit("one", "1").await, app.submit("other", "1").await);
    let mut app = app.crash_and_restart().await;
    app.run_for(MINUTE * 60).await;
    assert_eq!((app.calls("one"), app.status(&others).await.as_str()), (0, "complete"));
    assert_eq!(waits_for(&app, &id).await, (json!("vendor_paused"), Value::Null));
    let resumed = app.post("/vendors/one/resume", "").await.json();
    assert_eq!(resumed["paused"], false);
    app.run_until_idle().await;
    assert_eq!(app.status(&id).await, "complete");
    assert_eq!(app.post("/vendors/one/resume", "").await.status, 200, "what runs can be resumed again");
    let app = app.crash_and_restart().await;
    assert_eq!(app.get("/vendors/one").await.json()["paused"], false);
    app.stop().await;
}

async fn a_pause_that_is_not_one_is_refused(backend: Backend) {
    let app = TestApp::with(backend, &one("limits = []")).await;
    let cases = [
        ("not json", 400, "malformed_json"),
        (r#"{"for": "soon"}"#, 422, "invalid_field"),
        (r#"{"for": 10}"#, 422, "invalid_field"),
        (r#"{"for": null}"#, 422, "invalid_field"),
        (r#"{"for": "-1m"}"#, 422, "invalid_field"),
        (r#"{"fro": "10m"}"#, 422, "invalid_field"),
        (r#"{"for": "10m", "for": "1m"}"#, 422, "invalid_field"),
        (r#"["10m"]"#, 422, "invalid_field"),
        (r#""10m""#, 422, "invalid_field"),
    ];
    for (body, status, code) in cases {
        let answer = app.post("/vendors/one/pause", body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{body}");
    }
    let headers = [("content-type", "text/plain")];
    let answer = app.send(Method::POST, "/vendors/one/pause", &headers, r#"{"for": "10m"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (415, "unsupported_media_type"));
    assert_eq!(app.get("/vendors/one").await.json()["paused"], false);
    for path in ["/vendors/nobody/pause", "/vendors/nobody/resume"] {
        let answer = app.post(path, "").await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (404, "unknown_vendor"));
    }
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_its_time(backend: Backend) {
    let app = TestApp::with(backend, &one("limits = []")).await;
    app.post("/vendors/one/pause", "").await;
    let id = app.submit_with(r#"{"payload": 1, "vendor": "one", "not_before": "2026-01-15T09:00:00+01:00"}"#).await;
    assert_eq!(waits_for(&app, &id).await.0, "vendor_paused", "a time that has come");
    let id = app.submit_with(r#"{"payload": 1, "vendor": "one", "not_before": "2026-01-15T10:00:00+01:00"}"#).await;
    assert_eq!(waits_for(&app, &id).await, (json!("not_before"), json!("2026-01-15T09:00:00.000Z")));
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_its_next_attempt(backend: Backend) {
    let mut app = TestApp::with(backend, &one(SLOW_RETRY)).await;
    app.vendors.script("one", vec![Answer::status(500)]);
    let id = app.submit("one", "1").await;
    app.run_for(Duration::from_millis(1)).await;
    let (why, at) = waits_for(&app, &id).await;
    assert!(why == "retry_backoff" && at.as_str() > Some("2026-01-15T08:00:00.000Z"), "{why} {at}");
    app.run_until_idle().await;
    // The vendor asked for silence: so do the jobs that were not called yet.
    app.vendors.script("one", vec![Answer::status(429).header("retry-after", "30")]);
    let first = app.submit("one", "1").await;
    app.run_for(Duration::from_millis(1)).await;
    let second = app.submit("one", "2").await;
    for id in [first, second] {
        assert_eq!(waits_for(&app, &id).await.0, "slowed_by_vendor");
    }
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_its_next_poll(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("polling", "1").await;
    app.run_for(Duration::from_secs(1)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("next_poll")));
    assert_eq!(&job["eligible_at"].as_str().unwrap()[..20], "2026-01-15T08:00:02.");
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_a_callback(backend: Backend) {
    let config = "[vendors.one]\nkind = \"webhook\"\nurl = \"VENDORS/async/one?never\"\nlimits = []\n";
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    assert_eq!(app.find(&id).await["blocked_on"], "awaiting_callback");
    assert_eq!(app.get("/vendors/one").await.json()["open"], 1);
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_a_limit(backend: Backend) {
    let limits = r#"limits = ["100/s", { calls = 1, per = "1m", shape = "window", guard = "10ms", id = "a-minute" }]"#;
    let mut app = TestApp::with(backend, &one(limits)).await;
    app.submit("one", "1").await;
    let id = app.submit("one", "2").await;
    app.run_for(Duration::from_secs(1)).await;
    let (why, at) = waits_for(&app, &id).await;
    let next_at = app.get("/vendors/one").await.json()["limits"][1]["next_at"].clone();
    assert_eq!((why, at), (json!("limit:a-minute"), next_at));
    app.stop().await;
    let mut app = TestApp::with(backend, &one(r#"limits = ["1/m"]"#)).await;
    app.submit("one", "1").await;
    let id = app.submit("one", "2").await;
    app.run_for(Duration::from_secs(1)).await;
    assert_eq!(waits_for(&app, &id).await.0, "limit:1/m", "as written in the config");
    app.stop().await;
}

async fn a_job_says_that_it_waits_for_a_call_to_end(backend: Backend) {
    let mut app = TestApp::with(backend, &one("limits = []\nconcurrency = 1\ntimeout = \"1s\"")).await;
    app.vendors.script("one", vec![Answer::hang()]);
    let first = app.submit("one", "1").await;
    let second = app.submit("one", "2").await;
    let (caller, vendors) = (app.caller(), app.vendors.clone());
    let look = async {
        while vendors.count("one") == 0 {
            tokio::task::yield_now().await;
        }
        let first = caller.get(&format!("/jobs/{first}")).await.json();
        (first, caller.get(&format!("/jobs/{second}")).await.json(), caller.get("/vendors/one").await.json())
    };
    let (_, (called, waiting, vendor)) = tokio::join!(app.run_until_idle(), look);
    assert_eq!((&called["status"], called.get("blocked_on")), (&json!("processing"), None));
    assert_eq!((&waiting["status"], &waiting["blocked_on"]), (&json!("pending"), &json!("concurrency")));
    assert_eq!((&vendor["in_flight"], &vendor["waiting"]), (&json!(1), &json!(1)));
    for id in [first, second] {
        assert_eq!(app.status(&id).await, "complete");
    }
    app.stop().await;
}

async fn a_job_says_that_it_waits_in_the_queue(backend: Backend) {
    let app = TestApp::with(backend, &one("limits = []")).await;
    let id = app.submit("one", "1").await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("pending"), &json!("queue")));
    app.stop().await;
}

async fn an_ended_job_waits_for_nothing(backend: Backend) {
    let mut app = TestApp::with(backend, &one("limits = [\"1/m\"]")).await;
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    app.post("/vendors/one/pause", "").await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], job.get("blocked_on"), job.get("eligible_at")), (&json!("complete"), None, None));
    app.stop().await;
}

async fn one_tenant_over_its_limit_does_not_hold_up_others(backend: Backend) {
    let limits = r#"limits = [{ calls = 1, per = "1m", key = "tenant", shape = "window", id = "each" }]"#;
    let mut app = TestApp::with(backend, &one(limits)).await;
    let submit = |tenant: &str| format!(r#"{{"payload": "{tenant}", "vendor": "one", "tenant": "{tenant}"}}"#);
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(app.submit_with(&submit("a")).await);
    }
    let (b, c) = (app.submit_with(&submit("b")).await, app.submit_with(&submit("c")).await);
    app.run_for(Duration::from_secs(1)).await;
    for id in [&busy[0], &b, &c] {
        assert_eq!(app.status(id).await, "complete");
    }
    assert_eq!(app.calls("one"), 3);
    // One that comes later is not held up either.
    let late = app.submit_with(&submit("d")).await;
    app.run_for(Duration::from_secs(1)).await;
    assert_eq!(app.status(&late).await, "complete");
    assert_eq!(waits_for(&app, &busy[1]).await.0, "limit:each");
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 6);
    assert!(app.clock.now().since(START) >= MINUTE * 2);
    app.stop().await;
}

async fn vendors_of_one_pool_share_its_limits(backend: Backend) {
    let mut config = String::new();
    for name in ["one", "two"] {
        config += &format!(
            "[vendors.{name}]\nkind = \"sync\"\nurl = \"VENDORS/sync/{name}\"\npool = \"account\"\nlimits = [{{ calls = 3, per = \"1m\", shape = \"window\" }}]\n"
        );
    }
    let mut app = TestApp::with(backend, &config).await;
    for _ in 0..4 {
        app.submit("one", "1").await;
        app.submit("two", "1").await;
    }
    app.run_for(Duration::from_secs(59)).await;
    assert_eq!(app.calls("one") + app.calls("two"), 3);
    for name in ["one", "two"] {
        let vendor = app.get(&format!("/vendors/{name}")).await.json();
        assert_eq!((&vendor["pool"], &vendor["limits"][0]["used"]), (&json!("account"), &json!(3)));
    }
    app.run_until_idle().await;
    assert_eq!((app.calls("one"), app.calls("two")), (4, 4));
    assert!(app.clock.now().since(START) >= MINUTE * 2);
    app.stop().await;
}
