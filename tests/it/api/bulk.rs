//! Many jobs changed by one request: which ones, how many, and that each is met once.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp},
};

on_every_backend!(
    a_dry_run_counts_and_changes_nothing,
    jobs_are_cancelled_by_vendor_tag_and_status,
    failed_jobs_are_listed_and_replayed_by_their_error,
    a_request_for_all_jobs_says_so,
    a_tenant_changes_its_own_jobs_only,
    a_tenants_jobs_are_found_behind_those_of_others,
    a_walk_goes_on_after_a_restart_and_meets_each_job_once,
    jobs_are_accepted_while_others_are_replayed,
    a_replay_stops_where_there_is_no_room_and_goes_on_when_there_is,
);

/// A vendor that answers, one that refuses, one that is broken, and one that never calls back.
const VENDORS: &str = r#"
[vendors.good]
kind = "sync"
url = "VENDORS/sync/good"
limits = ["10000/s"]
[vendors.bad]
kind = "sync"
url = "VENDORS/sync/bad?status=400"
limits = ["10000/s"]
[vendors.broken]
kind = "sync"
url = "VENDORS/sync/broken?status=500"
limits = ["10000/s"]
retry = { attempts = 1 }
[vendors.silent]
kind = "webhook"
url = "VENDORS/async/silent?callback=never"
limits = ["10000/s"]
"#;

async fn change(app: &TestApp, action: &str, body: Value) -> Value {
    let answer = app.post(&format!("/jobs/{action}"), body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// Goes on from a cursor to the end, as a client does: a call whose store is slow ends early, or is refused for now. Gives how many were changed.
async fn walk_on(app: &TestApp, action: &str, mut cursor: Value) -> u64 {
    let mut changed = 0;
    loop {
        let answer = app.post(&format!("/jobs/{action}"), json!({"all": true, "cursor": cursor}).to_string()).await;
        if answer.status == 503 {
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.text);
        let (_, done, is_over) = outcome(&answer.json());
        changed += done;
        if is_over {
            return changed;
        }
        cursor = answer.json()["next_cursor"].clone();
    }
}

/// How many matched, how many were changed, and whether that was the end.
fn outcome(answer: &Value) -> (u64, u64, bool) {
    let number = |name: &str| answer[name].as_u64().expect("a number");
    (number("matched"), number("done"), answer["next_cursor"].is_null())
}

async fn count(app: &TestApp, filter: &str) -> usize {
    app.get(&format!("/jobs?limit=500&{filter}")).await.json()["jobs"].as_array().expect("jobs").len()
}

async fn submit(app: &TestApp, vendor: &str, tag: &str, tenant: &str) -> String {
    let body = json!({"payload": 1, "vendor": vendor, "tags": [tag], "tenant": tenant});
    app.submit_with(&body.to_string()).await
}

/// Submits so many jobs at once.
async fn submit_many(app: &TestApp, jobs: usize, job: Value) {
    let jobs = vec![job; jobs];
    let answer = app.post("/jobs/batch", json!(jobs).to_string()).await.json();
    assert_eq!(answer["accepted"], jobs.len(), "{}", answer["items"][0]);
}

async fn a_dry_run_counts_and_changes_nothing(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    for vendor in ["bad", "bad", "good", "bad"] {
        submit(&app, vendor, "x", "t").await;
    }
    app.run_until_idle().await;
    let before = app.get("/jobs").await.json();
    for filter in [json!({"status": "failed"}), json!({"code": "vendor_refused", "vendor": "bad"}), json!({"tag": "x"})]
    {
        let answer = change(&app, "replay", json!({"filter": filter, "dry_run": true})).await;
        assert_eq!(outcome(&answer), (3, 0, true), "{filter}");
    }
    let answer = change(&app, "cancel", json!({"all": true, "dry_run": true})).await;
    assert_eq!(outcome(&answer), (0, 0, true), "all have ended");
    assert_eq!(app.get("/jobs").await.json(), before);
    app.run_until_idle().await;
    assert_eq!(app.calls("bad"), 3);
    app.stop().await;
}

async fn jobs_are_cancelled_by_vendor_tag_and_status(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    let awaiting = submit(&app, "silent", "a", "t").await;
    let done = submit(&app, "good", "a", "t").await;
    app.run_until_idle().await;
    for vendor in ["good", "silent"] {
        app.post(&format!("/vendors/{vendor}/pause"), "").await;
    }
    let (one, two) = (submit(&app, "good", "a", "t").await, submit(&app, "good", "b", "u").await);
    let other = submit(&app, "silent", "b", "t").await;
    let cancel = async |filter: Value| outcome(&change(&app, "cancel", json!({"filter": filter})).await);
    assert_eq!(cancel(json!({"vendor": "good", "tag": "a"})).await, (1, 1, true));
    assert_eq!((app.status(&one).await, app.status(&done).await), ("cancelled".to_owned(), "complete".to_owned()));
    assert_eq!(cancel(json!({"status": "processing"})).await, (1, 1, true));
    assert_eq!((app.status(&awaiting).await, app.status(&other).await), ("cancelled".to_owned(), "pending".to_owned()));
    assert_eq!(cancel(json!({"tenant": "u", "vendor": "good", "tag": null})).await, (1, 1, true));
    assert_eq!(app.status(&two).await, "cancelled");
    for none in [json!({"status": "complete"}), json!({"vendor": "of nobody"}), json!({"code": "timeout"})] {
        assert_eq!(cancel(none.clone()).await, (0, 0, true), "{none}");
    }
    let since = json!({"created_after": "2026-01-15T08:00:00.000Z", "created_before": "2099-01-01T00:00:00Z"});
    assert_eq!(cancel(since).await, (1, 1, true));
    for vendor in ["good", "silent"] {
        app.post(&format!("/vendors/{vendor}/resume"), "").await;
    }
    app.run_until_idle().await;
    assert_eq!((app.calls("good"), app.calls("silent")), (1, 1), "nothing that was cancelled is called");
    app.stop().await;
}

async fn failed_jobs_are_listed_and_replayed_by_their_error(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    app.vendors.script("good", vec![mock_vendors::Answer::status(400); 2]);
    for vendor in ["bad", "good", "broken", "good", "good"] {
        submit(&app, vendor, "x", "t").await;
        app.run_until_idle().await;
    }
    let waiting = submit(&app, "silent", "x", "t").await;
    app.post(&format!("/jobs/{waiting}/cancel"), "").await;
    let counts = [count(&app, "code=vendor_refused").await, count(&app, "code=attempts_exhausted").await];
    assert_eq!((counts, count(&app, "code=timeout").await), ([3, 1], 0));
    assert_eq!(count(&app, "code=vendor_refused&vendor=good&status=failed").await, 2);
    assert_eq!(count(&app, "code=vendor_refused&tenant=t").await, 3);
    assert_eq!(count(&app, "status=failed").await, 4);
    assert_eq!(count(&app, "status=cancelled").await, 1);
    app.clock.advance(Duration::from_secs(1));
    let replay = async |filter: Value| outcome(&change(&app, "replay", json!({"filter": filter})).await);
    assert_eq!(replay(json!({"code": "vendor_refused", "vendor": "good"})).await, (2, 2, true));
    app.run_until_idle().await;
    assert_eq!(count(&app, "vendor=good&status=complete").await, 3, "all have their results now");
    app.clock.advance(Duration::from_secs(1));
    let replay = async |filter: Value| outcome(&change(&app, "replay", json!({"filter": filter})).await);
    assert_eq!(replay(json!({"code": "attempts_exhausted"})).await, (1, 1, true));
    assert_eq!(replay(json!({"status": "cancelled"})).await, (1, 1, true));
    assert_eq!(app.status(&waiting).await, "pending");
    app.run_until_idle().await;
    assert_eq!((app.calls("good"), app.calls("bad"), app.calls("broken"), app.calls("silent")), (5, 1, 2, 1));
    let again = count(&app, "code=attempts_exhausted").await;
    assert_eq!(again, 1, "it failed again, with the same error");
    app.stop().await;
}

async fn a_request_for_all_jobs_says_so(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    submit(&app, "good", "x", "t").await;
    let refused =
        |answer: &Answer| (answer.status.as_u16(), answer.code(), answer.json()["errors"][0]["pointer"].clone());
    for (body, pointer) in [
        ("{}", "/filter"),
        (r#"{"filter": {}}"#, "/filter"),
        (r#"{"filter": null, "all": false}"#, "/filter"),
        (r#"{"filter": {"vendor": null}, "dry_run": true}"#, "/filter"),
        (r#"{"filter": {"vendor": ""}}"#, "/filter/vendor"),
        (
            r#"{"filter": {"tag": "0123456789012345678901234567890123456789012345678901234567890123456789"}}"#,
            "/filter/tag",
        ),
        (r#"{"filter": {"status": "done"}}"#, "/filter/status"),
        (r#"{"filter": {"code": "bad"}}"#, "/filter/code"),
        (r#"{"filter": {"created_after": "yesterday"}}"#, "/filter/created_after"),
        (r#"{"filter": {"status": ["failed"]}}"#, ""),
        (r#"{"filter": {"state": "failed"}}"#, ""),
        (r#"{"filters": {"status": "failed"}}"#, ""),
        (r#"{"all": "yes"}"#, ""),
        ("[]", ""),
    ] {
        for action in ["cancel", "replay"] {
            let answer = app.post(&format!("/jobs/{action}"), body).await;
            assert_eq!(refused(&answer), (422, "invalid_field".to_owned(), json!(pointer)), "{action} {body}");
        }
    }
    for cursor in ["x", "AZoD6Dg4ejyfIVt-DE2KFg"] {
        let body = json!({"all": true, "cursor": cursor}).to_string();
        assert_eq!(app.post("/jobs/cancel", body).await.code(), "invalid_cursor");
    }
    let headers = [("content-type", "text/plain")];
    let answer = app.send(Method::POST, "/jobs/cancel", &headers, r#"{"all": true}"#).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (415, "unsupported_media_type"));
    assert_eq!(app.get("/jobs?code=bad").await.code(), "invalid_parameter");
    assert_eq!(count(&app, "status=pending").await, 1, "nothing was changed");
    assert_eq!(outcome(&change(&app, "cancel", json!({"all": true, "cursor": null})).await), (1, 1, true));
    app.stop().await;
}

async fn a_tenant_changes_its_own_jobs_only(backend: Backend) {
    const ADMIN: &str = "an-admin-key-of-at-least-32-characters";
    let config = format!("[auth]\nmode = \"api_key\"\nadmin_key = \"{ADMIN}\"\n{VENDORS}");
    let app = TestApp::with(backend, &config).await;
    let send = async |key: &str, path: &str, body: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        app.send(Method::POST, path, &headers, body.to_string()).await
    };
    let mut keys = Vec::new();
    for tenant in ["acme", "rival"] {
        let made = send(ADMIN, "/keys", json!({"name": tenant, "tenant": tenant, "scopes": ["submit", "read"]})).await;
        let key = made.json()["key"].as_str().expect("a key").to_owned();
        for _ in 0..2 {
            let job = json!({"vendor": "good", "payload": 1, "not_before": "1h"});
            assert_eq!(send(&key, "/jobs", job).await.status, 202);
        }
        keys.push(key);
    }
    let all = json!({"all": true});
    for (key, body, wanted) in [
        (&*keys[0], json!({"all": true, "dry_run": true}), (2, 0, true)),
        (&*keys[0], all.clone(), (2, 2, true)),
        (&*keys[0], json!({"filter": {"tenant": "acme"}}), (0, 0, true)),
        (&*keys[1], json!({"filter": {"vendor": "good"}, "dry_run": true}), (2, 0, true)),
        (ADMIN, json!({"filter": {"tenant": "rival"}}), (2, 2, true)),
    ] {
        assert_eq!(outcome(&send(key, "/jobs/cancel", body.clone()).await.json()), wanted, "{body}");
    }
    assert_eq!(outcome(&send(&keys[1], "/jobs/replay", all.clone()).await.json()), (2, 2, true));
    assert_eq!(outcome(&send(ADMIN, "/jobs/replay", all).await.json()), (2, 2, true), "those of acme are left");
    let other = send(&keys[1], "/jobs/replay", json!({"filter": {"tenant": "acme"}})).await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (403, "forbidden"));
    app.stop().await;
}

async fn a_tenants_jobs_are_found_behind_those_of_others(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    let mut own = Vec::new();
    for vendor in ["good", "bad", "good", "silent", "bad"] {
        let body = json!({"payload": 1, "vendor": vendor, "tenant": "small", "not_before": "1h"});
        own.insert(0, app.submit_with(&body.to_string()).await);
        app.clock.advance(Duration::from_millis(1));
    }
    submit_many(&app, 6_000, json!({"payload": 1, "vendor": "good", "tenant": "large", "not_before": "1h"})).await;
    let page = app.get("/jobs?tenant=small").await.json();
    let ids = |page: &Value| -> Vec<String> {
        let jobs = page["jobs"].as_array().expect("jobs").iter();
        jobs.map(|job| job["request_id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!((ids(&page), page["next_cursor"].is_null()), (own.clone(), true), "on the first page, in order");
    let page = app.get("/jobs?tenant=small&vendor=bad").await.json();
    assert_eq!(ids(&page), [own[0].clone(), own[3].clone()]);
    let (mut walked, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/jobs?tenant=small&limit=2{cursor}")).await.json();
        walked.extend(ids(&page));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(walked, own);
    let since = app.find(&own[2]).await["created_at"].as_str().expect("a time").to_owned();
    let page = app.get(&format!("/jobs?tenant=small&created_after={since}")).await.json();
    assert_eq!(ids(&page), own[..3]);
    assert_eq!(outcome(&change(&app, "cancel", json!({"filter": {"tenant": "small"}})).await), (5, 5, true));
    app.stop().await;
}

async fn a_walk_goes_on_after_a_restart_and_meets_each_job_once(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    for _ in 0..20 {
        submit(&app, "bad", "x", "t").await;
    }
    app.run_until_idle().await;
    app.post("/vendors/good/pause", "").await;
    app.clock.advance(Duration::from_secs(1));
    submit_many(&app, 10_000, json!({"payload": 1, "vendor": "good"})).await;
    let first = change(&app, "cancel", json!({"all": true})).await;
    let (_, done, is_over) = outcome(&first);
    assert!(done <= 10_000 && !is_over, "one call looks at no more: {first}");
    // What a slow store did not answer for may be done, and counts nowhere.
    assert!(done + walk_on(&app, "cancel", first["next_cursor"].clone()).await <= 10_000, "each once");
    assert_eq!(walk_on(&app, "cancel", Value::Null).await, 0, "nothing is left");

    app.clock.advance(Duration::from_secs(1));
    let first = change(&app, "replay", json!({"all": true})).await;
    let (_, done, is_over) = outcome(&first);
    assert!(done <= 10_000 && !is_over, "{first}");
    let mut app = app.crash_and_restart().await;
    let rest = json!({"all": true, "cursor": first["next_cursor"]});
    assert!(done + walk_on(&app, "replay", first["next_cursor"].clone()).await <= 10_020, "each once");
    assert_eq!(walk_on(&app, "replay", Value::Null).await, 0, "nothing is left");
    app.run_until_idle().await;
    // The index may have missed what a slow store did not answer for, until the next sweep.
    app.run_for(Duration::from_secs(11)).await;
    assert_eq!((app.calls("bad"), count(&app, "status=failed").await), (40, 20), "they have failed again");
    assert_eq!(outcome(&change(&app, "replay", rest).await), (0, 0, true), "a call again, as after a lost answer");
    app.clock.advance(Duration::from_secs(1));
    let new = change(&app, "replay", json!({"filter": {"status": "failed"}})).await;
    assert_eq!(outcome(&new), (20, 20, true), "another walk");
    app.stop().await;
}

async fn jobs_are_accepted_while_others_are_replayed(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    app.post("/vendors/good/pause", "").await;
    submit_many(&app, 900, json!({"payload": 1, "vendor": "good"})).await;
    change(&app, "cancel", json!({"all": true})).await;
    app.clock.advance(Duration::from_secs(1));
    let submits = join_all((0..100).map(|_| submit(&app, "silent", "x", "t")));
    let replays = join_all((0..3).map(|_| change(&app, "replay", json!({"filter": {"status": "cancelled"}}))));
    let (submitted, replayed) = tokio::join!(submits, replays);
    assert_eq!(replayed.iter().map(|answer| outcome(answer).1).sum::<u64>(), 900, "each once, whoever came first");
    assert_eq!(submitted.len(), 100);
    app.post("/vendors/good/resume", "").await;
    app.run_until_idle().await;
    assert_eq!((app.calls("good"), app.calls("silent")), (900, 100));
    app.stop().await;
}

async fn a_replay_stops_where_there_is_no_room_and_goes_on_when_there_is(backend: Backend) {
    let mut bounds = vec![("[tenant_defaults]\nmax_waiting = 3", 429, "tenant_over_limit")];
    // Over MongoDB all jobs together are bounded less exactly than those of a tenant.
    if backend == Backend::Sqlite {
        bounds.push(("[capacity]\nmax_waiting = 3", 503, "over_capacity"));
    }
    for (bound, status, code) in bounds {
        let app = TestApp::with(backend, &format!("{bound}\n{VENDORS}")).await;
        app.post("/vendors/good/pause", "").await;
        for _ in 0..5 {
            submit(&app, "good", "x", "t").await;
            assert_eq!(outcome(&change(&app, "cancel", json!({"all": true})).await), (1, 1, true));
        }
        app.clock.advance(Duration::from_secs(1));
        assert_eq!(outcome(&change(&app, "replay", json!({"all": true, "dry_run": true})).await), (5, 0, true));
        let first = change(&app, "replay", json!({"all": true})).await;
        assert_eq!(outcome(&first), (3, 3, false), "{bound}");
        let rest = json!({"all": true, "cursor": first["next_cursor"]});
        let full = app.post("/jobs/replay", rest.to_string()).await;
        assert_eq!((full.status.as_u16(), full.code().as_str()), (status, code));
        assert!(!full.header("retry-after").is_empty());
        assert_eq!(outcome(&change(&app, "cancel", json!({"filter": {"vendor": "good"}})).await), (3, 3, true));
        assert_eq!(outcome(&change(&app, "replay", rest).await), (2, 2, true), "those that are left, and no others");
        app.stop().await;
    }
}
