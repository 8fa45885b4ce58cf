//! Limits that are changed while the service runs: who may, what is refused, and what the vendor sees of it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    limit::most_in_any_window,
    on_every_backend,
    support::{Answer, Backend, TestApp},
};

on_every_backend!(
    the_limits_of_the_file_are_shown_until_others_are_set,
    live_limits_are_kept_over_a_crash_until_they_are_taken_away,
    limits_that_somebody_else_has_changed_are_not_changed_unseen,
    limits_that_are_none_are_refused_with_their_place,
    what_is_shown_can_be_set_again,
    a_halved_limit_is_kept_and_a_doubled_one_is_used,
    a_raised_limit_is_used_at_once_by_jobs_that_wait,
    a_lowered_window_counts_what_was_called_before,
    a_raised_limit_of_a_tenant_is_used_by_jobs_that_wait,
    all_vendors_of_a_pool_have_its_live_limits,
    a_burst_of_before_counts_under_a_limit_of_another_shape_or_period,
);

const SECOND: Duration = Duration::from_secs(1);

/// One vendor with these limits.
fn one(limits: &str) -> String {
    format!("[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = {limits}\n")
}

async fn put(app: &TestApp, if_match: Option<&str>, body: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("if-match", if_match.unwrap_or_default())];
    let headers = if if_match.is_some() { &headers[..] } else { &headers[..1] };
    app.send(Method::PUT, "/vendors/one/limits", headers, body.to_owned()).await
}

/// Lays these limits over whatever is in force.
async fn lay(app: &TestApp, limits: &str) -> Value {
    let answer = put(app, Some("*"), &format!(r#"{{"limits": {limits}}}"#)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn delete(app: &TestApp, headers: &[(&str, &str)]) -> Answer {
    app.send(Method::DELETE, "/vendors/one/limits", headers, "").await
}

/// When calls were made, by the permits' times: the mock vendor stands beside the test's clock.
async fn calls(app: &TestApp) -> Vec<i64> {
    let mut times = Vec::new();
    let mut path = "/jobs?status=complete&limit=500".to_owned();
    loop {
        let page = app.get(&path).await.json();
        for job in page["jobs"].as_array().expect("jobs") {
            let attempts = app.get(&format!("/jobs/{}/attempts", job["request_id"].as_str().expect("an id"))).await;
            let sent: jiff::Timestamp = attempts.json()["attempts"][0]["sent_at"].as_str().unwrap().parse().unwrap();
            times.push(sent.as_millisecond());
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/jobs?status=complete&limit=500&cursor={cursor}"),
            None => break,
        }
    }
    times.sort_unstable();
    times
}

fn since(times: &[i64], from: i64) -> Vec<i64> {
    times.iter().copied().filter(|at| *at >= from).collect()
}

async fn the_limits_of_the_file_are_shown_until_others_are_set(backend: Backend) {
    let app = TestApp::with(backend, &one(r#"["50/s", { calls = 9, per = "month", tz = "Europe/Berlin" }]"#)).await;
    let shown = app.get("/vendors/one/limits").await;
    assert_eq!(shown.header("etag"), "\"0\"");
    let file = json!({"version": 0, "source": "file", "limits": [
        {"id": "50/s", "calls": 50, "per": "1s", "shape": "paced", "guard": "8ms", "key": "vendor"},
        {"id": "9/month", "calls": 9, "per": "month", "shape": "calendar", "guard": "500ms", "key": "vendor", "tz": "Europe/Berlin"},
    ]});
    assert_eq!(shown.json(), file);

    let body = r#"{"limits": ["2/s", {"calls": 600, "per": "1m", "shape": "bucket", "burst": 5, "key": "tenant"}]}"#;
    let laid = put(&app, Some("\"0\""), body).await;
    assert_eq!((laid.status.as_u16(), laid.header("etag")), (200, "\"1\""), "{}", laid.text);
    let live = json!({"version": 1, "source": "live", "since": "2026-01-15T08:00:00.000Z", "by": "anonymous", "limits": [
        {"id": "2/s", "calls": 2, "per": "1s", "shape": "paced", "guard": "8ms", "key": "vendor"},
        {"id": "600/1m", "calls": 600, "per": "1m", "shape": "bucket", "burst": 5, "guard": "300ms", "key": "tenant"},
    ]});
    assert_eq!((&laid.json(), &app.get("/vendors/one/limits").await.json()), (&live, &live));
    let ids = app.get("/vendors/one").await.json();
    assert_eq!((&ids["limits"][0]["id"], &ids["limits"][1]["id"]), (&json!("2/s"), &json!("600/1m")));

    let back = delete(&app, &[]).await;
    assert_eq!((back.header("etag"), &back.json()["source"]), ("\"2\"", &json!("file")));
    assert_eq!(back.json()["limits"], file["limits"]);
    assert_eq!(delete(&app, &[]).await.header("etag"), "\"2\"", "there was nothing to take away");
    let unknown = app.get("/vendors/nobody/limits").await;
    assert_eq!((unknown.status.as_u16(), &*unknown.code()), (404, "unknown_vendor"));
    app.stop().await;
}

async fn live_limits_are_kept_over_a_crash_until_they_are_taken_away(backend: Backend) {
    let app = TestApp::with(backend, &one(r#"["50/s"]"#)).await;
    // Beside the file's: what that allowed before the service began counts under a limit that takes its place.
    let live = lay(&app, r#"[{"calls": 50, "per": "1s"}, {"calls": 3, "per": "1m", "shape": "window"}]"#).await;
    let mut app = app.crash_and_restart().await;
    assert_eq!(app.get("/vendors/one/limits").await.json(), live);
    for _ in 0..5 {
        app.submit("one", "1").await;
    }
    app.run_for(SECOND * 30).await;
    assert_eq!(app.calls("one"), 3);
    // What was called under live limits counts in the next process too.
    let mut app = app.crash_and_restart().await;
    app.run_for(SECOND * 25).await;
    assert_eq!(app.calls("one"), 3);
    delete(&app, &[]).await;
    let app = app.crash_and_restart().await;
    let shown = app.get("/vendors/one/limits").await.json();
    assert_eq!((&shown["source"], &shown["version"]), (&json!("file"), &json!(2)));
    app.stop().await;
}

async fn limits_that_somebody_else_has_changed_are_not_changed_unseen(backend: Backend) {
    let app = TestApp::with(backend, &one(r#"["50/s"]"#)).await;
    let body = r#"{"limits": ["1/s"]}"#;
    let answer = put(&app, None, body).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (428, "precondition_required"));
    assert_eq!(put(&app, Some("\"0\""), body).await.status, 200);
    for stale in ["\"0\"", "\"7\"", "W/\"1\"", "1", "\"one\""] {
        let answer = put(&app, Some(stale), body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (412, "version_mismatch"), "{stale}");
        let answer = delete(&app, &[("if-match", stale)]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (412, "version_mismatch"), "{stale}");
    }
    assert_eq!(put(&app, Some("\"9\", \"1\""), body).await.header("etag"), "\"2\"", "one of several");
    assert_eq!(put(&app, Some("*"), body).await.header("etag"), "\"3\"");
    assert_eq!(delete(&app, &[("if-match", "\"3\"")]).await.header("etag"), "\"4\"");
    app.stop().await;
}

async fn limits_that_are_none_are_refused_with_their_place(backend: Backend) {
    let app = TestApp::with(backend, &one(r#"["50/s"]"#)).await;
    let cases = [
        (r#"{"limits": ["50/s", {"calls": 0, "per": "1m"}]}"#, "/limits/1/calls"),
        (r#"{"limits": ["fast"]}"#, "/limits/0"),
        (r#"{"limits": ["0/s"]}"#, "/limits/0"),
        (r#"{"limits": [{"calls": 5}]}"#, "/limits/0/per"),
        (r#"{"limits": [{"calls": "5", "per": "1s"}]}"#, "/limits/0/calls"),
        (r#"{"limits": [{"calls": 5, "per": "1s", "shape": "round"}]}"#, "/limits/0/shape"),
        (r#"{"limits": [{"calls": 5, "per": "1s", "gaurd": "5ms"}]}"#, "/limits/0/gaurd"),
        (r#"{"limits": [{"calls": 5, "per": "day", "tz": "${HOME}"}]}"#, "/limits/0/tz"),
        (r#"{"limits": ["${file:/etc/hostname}"]}"#, "/limits/0"),
        (r#"{"limits": ["50/s", "50/s"]}"#, "/limits/1"),
        (r#"{"limits": [7]}"#, "/limits/0"),
        (r#"{"limits": [null]}"#, "/limits"),
        (r#"{"limits": "50/s"}"#, "/limits"),
        (r#"{"limits": {}}"#, "/limits"),
        (r#"{}"#, ""),
        (r#"{"limits": [], "limits": []}"#, ""),
        (r#"{"limits": [], "since": "now"}"#, ""),
        (r#"["50/s"]"#, ""),
    ];
    for (body, pointer) in cases {
        let answer = put(&app, Some("*"), body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "invalid_field"), "{body}: {}", answer.text);
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}: {}", answer.text);
        assert!(!answer.text.contains("vendors.v"), "{}", answer.text);
    }
    let answer = put(&app, Some("*"), "no json").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "malformed_json"));
    let headers = [("content-type", "text/plain"), ("if-match", "*")];
    let answer = app.send(Method::PUT, "/vendors/one/limits", &headers, r#"{"limits": []}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (415, "unsupported_media_type"));
    assert_eq!(app.get("/vendors/one/limits").await.json()["version"], 0);
    app.stop().await;
}

async fn what_is_shown_can_be_set_again(backend: Backend) {
    let limits = r#"["7/90s", { calls = 100000, per = "day", tz = "America/New_York", id = "a-day" },
        { calls = 20, per = "1s", shape = "bucket", burst = 3, guard = "7ms", key = "tenant" }]"#;
    let app = TestApp::with(backend, &one(&limits.replace('\n', " "))).await;
    let shown = app.get("/vendors/one/limits").await.json()["limits"].clone();
    assert_eq!(lay(&app, &shown.to_string()).await["limits"], shown);
    app.stop().await;
}

async fn a_halved_limit_is_kept_and_a_doubled_one_is_used(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"["40/s"]"#)).await;
    for n in 0..400 {
        app.submit("one", &n.to_string()).await;
    }
    app.run_for(SECOND * 2).await;
    let halved = app.clock.now().0;
    lay(&app, r#"["20/s"]"#).await;
    app.run_for(SECOND * 4).await;
    let doubled = app.clock.now().0;
    lay(&app, r#"["80/s"]"#).await;
    app.run_for(SECOND * 2).await;
    let all = calls(&app).await;
    // Permits of before lie within the limiter's horizon.
    let horizon = if backend == Backend::Sqlite { 10 } else { 500 };
    let slow: Vec<i64> = since(&all, halved + horizon).into_iter().filter(|at| *at < doubled).collect();
    let fast = since(&all, doubled + horizon);
    assert!(most_in_any_window(slow.clone(), 1_000) <= 20, "{}", most_in_any_window(slow, 1_000));
    assert!(most_in_any_window(fast.clone(), 1_000) <= 80, "{}", most_in_any_window(fast, 1_000));
    // 0.8 % goes to the guard.
    let least = [20 * (4_000 - horizon), 80 * (2_000 - horizon)].map(|calls| calls / 1_000 * 98 / 100 - 1);
    let used = [slow.len() as i64, fast.len() as i64];
    assert!(used[0] >= least[0] && used[1] >= least[1], "{used:?} of {least:?}");
    app.stop().await;
}

async fn a_raised_limit_is_used_at_once_by_jobs_that_wait(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"[{ calls = 1, per = "1h", shape = "window" }]"#)).await;
    for _ in 0..3 {
        app.submit("one", "1").await;
    }
    app.run_for(SECOND * 10).await;
    assert_eq!(app.calls("one"), 1);
    lay(&app, r#"[{"calls": 3, "per": "1h", "shape": "window"}]"#).await;
    app.run_for(SECOND).await;
    assert_eq!(app.calls("one"), 3, "within a second, not in an hour");
    app.stop().await;
}

async fn a_lowered_window_counts_what_was_called_before(backend: Backend) {
    let mut app = TestApp::with(backend, &one(r#"[{ calls = 10, per = "1m", shape = "window" }]"#)).await;
    for _ in 0..12 {
        app.submit("one", "1").await;
    }
    app.run_for(SECOND).await;
    assert_eq!(app.calls("one"), 10);
    lay(&app, r#"[{"calls": 5, "per": "1m", "shape": "window"}]"#).await;
    app.run_for(SECOND * 58).await;
    assert_eq!(app.calls("one"), 10);
    app.run_for(SECOND * 4).await;
    assert_eq!(app.calls("one"), 12);
    // Calls that a lower limit would not look at are not forgotten by a higher one.
    for _ in 0..9 {
        app.submit("one", "1").await;
    }
    lay(&app, r#"[{"calls": 2, "per": "1m", "shape": "window"}]"#).await;
    app.run_for(SECOND).await;
    lay(&app, r#"[{"calls": 4, "per": "1m", "shape": "window"}]"#).await;
    app.run_for(SECOND).await;
    assert_eq!(app.calls("one"), 14);
    app.stop().await;
}

async fn a_raised_limit_of_a_tenant_is_used_by_jobs_that_wait(backend: Backend) {
    let limit = r#"[{ calls = 1, per = "1h", shape = "window", key = "tenant", id = "each" }]"#;
    let mut app = TestApp::with(backend, &one(limit)).await;
    for tenant in ["a", "a", "a", "b"] {
        app.submit_with(&format!(r#"{{"payload": 1, "vendor": "one", "tenant": "{tenant}"}}"#)).await;
    }
    app.run_for(SECOND * 10).await;
    assert_eq!(app.calls("one"), 2);
    lay(&app, r#"[{"calls": 2, "per": "1h", "shape": "window", "key": "tenant"}]"#).await;
    app.run_for(SECOND * 2).await;
    assert_eq!(app.calls("one"), 3, "tenants that rest are looked at again");
    app.stop().await;
}

async fn all_vendors_of_a_pool_have_its_live_limits(backend: Backend) {
    let of = |name: &str| {
        format!("[vendors.{name}]\nkind = \"sync\"\nurl = \"VENDORS/sync/{name}\"\npool = \"account\"\nlimits = []\n")
    };
    let mut app = TestApp::with(backend, &format!("{}{}", of("one"), of("two"))).await;
    lay(&app, r#"[{"calls": 3, "per": "1m", "shape": "window"}]"#).await;
    assert_eq!(app.get("/vendors/two/limits").await.json(), app.get("/vendors/one/limits").await.json());
    for _ in 0..4 {
        app.submit("one", "1").await;
        app.submit("two", "1").await;
    }
    app.run_for(SECOND * 30).await;
    assert_eq!(app.calls("one") + app.calls("two"), 3);
    app.stop().await;
}

async fn a_burst_of_before_counts_under_a_limit_of_another_shape_or_period(backend: Backend) {
    let window = |per: &str| format!(r#"[{{"calls": 40, "per": "{per}", "shape": "window"}}]"#);
    let paced = r#"[{"calls": 40, "per": "12s", "shape": "paced"}]"#.to_owned();
    for (to, by_restart) in [(window("15s"), false), (window("15s"), true), (paced.clone(), false), (paced, true)] {
        let toml = |limits: &str| {
            one(&limits
                .replace(": ", " = ")
                .replace(['"'], "'")
                .replace("'calls'", "calls")
                .replace("'per'", "per")
                .replace("'shape'", "shape"))
        };
        let mut app = TestApp::with(backend, &toml(&window("12s"))).await;
        for n in 0..90 {
            app.submit("one", &n.to_string()).await;
        }
        app.run_for(3 * SECOND).await;
        assert_eq!(calls(&app).await.len(), 40);
        if by_restart {
            app = app.crash_and_restart_with_limits_of(&toml(&to)).await;
        } else {
            lay(&app, &to).await;
        }
        app.run_for(45 * SECOND).await;
        let times: Vec<i64> = calls(&app).await.into_iter().map(|ms| ms * 1_000_000).collect();
        assert!(times.len() >= 80, "{backend:?} to {to}, restart {by_restart}: {} calls", times.len());
        let worst = most_in_any_window(times, 12_000_000_000);
        assert!(worst <= 40, "{backend:?} to {to}, restart {by_restart}: {worst} of 40 in 12 s");
    }
}
