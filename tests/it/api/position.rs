//! Where a waiting job stands and when it will be called, and deadlines that cannot be met.

use std::{collections::HashMap, time::Duration};

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, START, TestApp},
};

on_every_backend!(
    the_500th_job_at_50_a_second_is_called_ten_seconds_later_as_it_says,
    two_tenants_take_turns_and_their_jobs_say_so,
    priorities_go_by_their_shares_and_their_jobs_say_so,
    jobs_of_the_future_stand_behind_those_that_are_due,
    a_paused_vendor_s_jobs_have_a_place_and_no_time_unless_the_pause_ends,
    a_called_job_and_an_ended_one_stand_nowhere,
    jobs_that_were_called_are_in_nobody_s_way,
    a_vendor_says_when_its_backlog_will_be_gone,
    a_deadline_behind_a_backlog_is_refused_with_the_earliest_that_can_be_met,
    a_job_that_was_taken_is_not_refused_when_it_is_sent_again,
    places_are_exact_to_a_thousand_and_at_least_so_far_beyond,
    a_place_behind_long_lanes_of_other_tenants_is_exact,
    a_place_among_many_tenants_is_right_within_a_turn_of_each,
    places_are_right_after_a_restart,
);

const FIFTY: &str = "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = [\"50/s\"]\n";
/// What a stream in Redis holds of a vendor with 50 a second: those have had their turn.
const IN_STREAM: u64 = 25;

/// Submits so many jobs, each with these members, and gives their ids.
async fn submit_many(app: &TestApp, jobs: usize, members: &Value) -> Vec<String> {
    let answer = submit_batch(app, jobs, members).await;
    let items = answer.json()["items"].as_array().expect("items").clone();
    items.iter().map(|item| item["request_id"].as_str().unwrap_or_else(|| panic!("{item}")).to_owned()).collect()
}

async fn submit_batch(app: &TestApp, jobs: usize, members: &Value) -> Answer {
    let job = |n: usize| {
        let mut job = json!({ "vendor": "one", "payload": n });
        let members = members.as_object().expect("an object").clone();
        job.as_object_mut().expect("an object").extend(members);
        job
    };
    let answer = app.post("/jobs/batch", Value::from((0..jobs).map(job).collect::<Vec<_>>()).to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer
}

async fn position(app: &TestApp, id: &str) -> u64 {
    let job = app.find(id).await;
    job["position"].as_u64().unwrap_or_else(|| panic!("{job}"))
}

/// How long after now a member says, in milliseconds.
fn ahead_ms(app: &TestApp, time: &Value) -> i64 {
    let at: jiff::Timestamp = time.as_str().unwrap_or_else(|| panic!("no time: {time}")).parse().expect("a time");
    at.as_millisecond() - app.clock.now().0
}

async fn the_500th_job_at_50_a_second_is_called_ten_seconds_later_as_it_says(backend: Backend) {
    let mut app = TestApp::with(backend, FIFTY).await;
    let ids = submit_many(&app, 600, &json!({})).await;
    let job = app.find(&ids[499]).await;
    assert_eq!(job["position"], 500, "{job}");
    let wait = ahead_ms(&app, &job["eta"]);
    assert!((9_500..10_500).contains(&wait), "{job}");
    app.run_for(Duration::from_secs(5)).await;
    let job = app.find(&ids[499]).await;
    assert!((226..=275).contains(&job["position"].as_u64().unwrap_or(0)), "half of the way: {job}");
    let left = ahead_ms(&app, &job["eta"]);
    assert!((wait - 5_000).abs_diff(left) < 500, "{wait} before, {left} now");
    let before = u64::try_from(left).expect("in the future") * 9 / 10;
    app.run_for(Duration::from_millis(before)).await;
    assert_eq!(app.status(&ids[499]).await, "pending");
    app.run_for(Duration::from_millis(before / 4)).await;
    assert_eq!(app.status(&ids[499]).await, "complete");
    app.stop().await;
}

/// The order in which the vendor was called, by what each call carried.
fn order(app: &TestApp) -> HashMap<String, u64> {
    let arrivals = app.vendors.arrivals("one");
    let place = |(place, call): (usize, _)| (body_of(call), place as u64 + 1);
    arrivals.iter().enumerate().map(place).collect()
}

fn body_of(call: &mock_vendors::Arrival) -> String {
    serde_json::from_slice::<Value>(&call.body).expect("JSON").to_string()
}

/// Says where each tenth job of these stands, works until all are called, and sees whether that was so.
async fn comes_true(mut app: TestApp, ids: &[(String, Vec<String>)], tolerance: u64) {
    let mut said = Vec::new();
    for (name, ids) in ids {
        for (n, id) in ids.iter().enumerate().step_by(10) {
            said.push((format!("\"{name}{n}\""), position(&app, id).await));
        }
    }
    app.run_until_idle().await;
    let order = order(&app);
    for (what, position) in said {
        let real = order[&what];
        assert!(position.abs_diff(real) <= tolerance, "{what} said {position} and was {real}");
    }
    app.stop().await;
}

/// Submits named jobs with these members.
async fn submit_named(app: &TestApp, name: &str, jobs: usize, members: &Value) -> (String, Vec<String>) {
    let mut ids = Vec::new();
    for n in 0..jobs {
        let mut job = json!({ "vendor": "one", "payload": format!("{name}{n}") });
        job.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        ids.push(app.submit_with(&job.to_string()).await);
    }
    (name.to_owned(), ids)
}

async fn two_tenants_take_turns_and_their_jobs_say_so(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let a = submit_named(&app, "a", 100, &json!({ "tenant": "a" })).await;
    let b = submit_named(&app, "b", 60, &json!({ "tenant": "b" })).await;
    let place = position(&app, &b.1[49]).await;
    assert!(place == 100 || backend == Backend::RedisMongo && place == 99, "{place}");
    assert_eq!(position(&app, &a.1[99]).await, 160, "the other has run out");
    let tolerance = if backend == Backend::Sqlite { 0 } else { 2 * IN_STREAM };
    comes_true(app, &[a, b], tolerance).await;
}

async fn priorities_go_by_their_shares_and_their_jobs_say_so(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let low = submit_named(&app, "low", 30, &json!({ "priority": "low" })).await;
    let normal = submit_named(&app, "normal", 60, &json!({ "priority": "normal" })).await;
    let high = submit_named(&app, "high", 90, &json!({ "priority": "high" })).await;
    let tolerance = if backend == Backend::Sqlite { 0 } else { 10 };
    comes_true(app, &[low, normal, high], tolerance).await;
}

async fn jobs_of_the_future_stand_behind_those_that_are_due(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let later = app.submit_with(r#"{"payload": 1, "vendor": "one", "not_before": "1h"}"#).await;
    let others = app.submit_with(r#"{"payload": 1, "vendor": "one", "not_before": "30m", "tenant": "other"}"#).await;
    let now = submit_many(&app, 100, &json!({})).await;
    assert_eq!(position(&app, &now[99]).await, 100, "the future is not before it");
    let job = app.find(&later).await;
    assert_eq!((&job["blocked_on"], &job["eta"]), (&json!("not_before"), &json!("2026-01-15T09:00:00.000Z")), "{job}");
    assert_eq!(job["position"], 102, "{job}");
    assert_eq!(app.find(&others).await["eta"], "2026-01-15T08:30:00.000Z");
    app.stop().await;
}

async fn a_paused_vendor_s_jobs_have_a_place_and_no_time_unless_the_pause_ends(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let ids = submit_many(&app, 100, &json!({})).await;
    app.post("/vendors/one/pause", "").await;
    let job = app.find(&ids[99]).await;
    assert_eq!((&job["position"], job.get("eta")), (&json!(100), None), "{job}");
    assert_eq!(app.get("/vendors/one").await.json()["drain_eta"], Value::Null);
    app.post("/vendors/one/pause", r#"{"for": "10m"}"#).await;
    let job = app.find(&ids[99]).await;
    assert!((601_500..602_500).contains(&ahead_ms(&app, &job["eta"])), "{job}");
    app.stop().await;
}

async fn a_called_job_and_an_ended_one_stand_nowhere(backend: Backend) {
    let mut app = TestApp::with(backend, FIFTY).await;
    let ids = submit_many(&app, 3, &json!({})).await;
    app.post(&format!("/jobs/{}/cancel", ids[0]), "").await;
    assert_eq!(position(&app, &ids[1]).await, 1, "a cancelled job is in nobody's way");
    app.run_until_idle().await;
    for id in &ids {
        let job = app.find(id).await;
        assert_eq!((job.get("position"), job.get("eta")), (None, None), "{job}");
    }
    app.stop().await;
}

async fn jobs_that_were_called_are_in_nobody_s_way(backend: Backend) {
    let mut app = TestApp::with(backend, FIFTY).await;
    submit_many(&app, 50, &json!({ "tenant": "a" })).await;
    app.run_until_idle().await;
    let ids = submit_many(&app, 20, &json!({ "tenant": "b" })).await;
    submit_many(&app, 1, &json!({ "tenant": "a" })).await;
    assert_eq!(position(&app, &ids[19]).await, 21, "of the other tenant one job is left, not 51");
    app.stop().await;
}

async fn a_vendor_says_when_its_backlog_will_be_gone(backend: Backend) {
    let mut app = TestApp::with(backend, FIFTY).await;
    assert_eq!(app.get("/vendors/one").await.json()["drain_eta"], Value::Null);
    submit_many(&app, 1000, &json!({})).await;
    let vendor = app.get("/vendors/one").await.json();
    let wait = ahead_ms(&app, &vendor["drain_eta"]);
    assert!((19_500..21_000).contains(&wait), "{vendor}");
    app.run_for(Duration::from_millis(u64::try_from(wait).expect("in the future") + 600)).await;
    let vendor = app.get("/vendors/one").await.json();
    assert_eq!((&vendor["waiting"], &vendor["drain_eta"]), (&json!(0), &Value::Null));
    app.stop().await;
}

async fn a_deadline_behind_a_backlog_is_refused_with_the_earliest_that_can_be_met(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    submit_many(&app, 500, &json!({})).await;
    let submit = async |deadline: &str| {
        let body = json!({ "vendor": "one", "payload": 1, "deadline": deadline });
        app.post("/jobs", body.to_string()).await
    };
    let refused = submit("5s").await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (422, "infeasible"));
    let problem = refused.json();
    assert!((9_500..10_500).contains(&ahead_ms(&app, &problem["earliest"])), "{problem}");
    let told = problem["detail"].as_str().expect("text").contains(problem["earliest"].as_str().expect("a time"));
    assert!(told, "{problem}");
    assert_eq!(submit("12s").await.status, 202);
    let other = json!({ "vendor": "one", "payload": 1, "deadline": "5s", "tenant": "other" });
    assert_eq!(app.post("/jobs", other.to_string()).await.status, 202, "another tenant has its turn sooner");
    let batch = submit_batch(&app, 200, &json!({ "deadline": "12s" })).await.json();
    let taken = batch["accepted"].as_u64().expect("a number");
    assert!((90..=170).contains(&taken), "those in front of a batch are before those behind: {taken}");
    let last = &batch["items"][199]["error"];
    assert_eq!((&last["code"], last["earliest"].is_string()), (&json!("infeasible"), true), "{last}");
    app.stop().await;
}

async fn a_job_that_was_taken_is_not_refused_when_it_is_sent_again(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let body = json!({ "vendor": "one", "payload": 1, "deadline": "5s" }).to_string();
    let submit = async |key: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        app.send(Method::POST, "/jobs", &headers, body.clone()).await
    };
    let first = submit("k").await;
    assert_eq!(first.status, 202);
    submit_many(&app, 500, &json!({})).await;
    assert_eq!(submit("k").await.json(), first.json());
    assert_eq!(submit("another").await.code(), "infeasible");
    app.stop().await;
}

async fn places_are_exact_to_a_thousand_and_at_least_so_far_beyond(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.extend(submit_many(&app, 1000, &json!({})).await);
        app.clock.advance(Duration::from_millis(700));
    }
    for place in [1, 999, 1_000, 1_001, 1_002, 3_000] {
        let job = app.find(&ids[place - 1]).await;
        let said = (job["position"].as_u64(), job["position_at_least"].as_u64());
        let is_exact = place <= 1_000;
        let wanted = if is_exact { (Some(place as u64), None) } else { (None, Some(1_001)) };
        assert_eq!(said, wanted, "{job}");
        let wait = if is_exact { place } else { ids.len() } as u64 * 20;
        assert!(
            ahead_ms(&app, &job["eta"]).unsigned_abs().abs_diff(wait) < 100 + wait / 20,
            "by the whole backlog: {job}"
        );
    }
    app.stop().await;
}

async fn a_place_behind_long_lanes_of_other_tenants_is_exact(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let mut ids = Vec::new();
    for tenant in ["a", "b", "c"] {
        ids.push(submit_many(&app, 700, &json!({ "tenant": tenant })).await);
    }
    for ids in ids {
        // Each of the others has as many turns before it, or one more where it comes first in the round.
        let place = position(&app, &ids[300]).await;
        let first = if backend == Backend::Sqlite { 0..=2 } else { 0..=0 };
        assert!(first.contains(&(place - 901)), "{place}");
        assert_eq!(app.find(&ids[699]).await["position_at_least"], 1_001);
    }
    app.stop().await;
}

async fn a_place_among_many_tenants_is_right_within_a_turn_of_each(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let mut ids = Vec::new();
    for tenant in 0..60 {
        ids.push(submit_many(&app, 20, &json!({ "tenant": format!("t{tenant}") })).await);
    }
    for (tenant, ids) in ids.iter().enumerate() {
        let place = position(&app, &ids[10]).await;
        assert!((601..=660).contains(&place), "{place} of tenant {tenant}");
        let last = app.find(&ids[19]).await;
        assert_eq!((last.get("position"), &last["position_at_least"]), (None, &json!(1_001)));
    }
    app.stop().await;
}

async fn places_are_right_after_a_restart(backend: Backend) {
    let app = TestApp::with(backend, FIFTY).await;
    let ids = submit_many(&app, 300, &json!({})).await;
    let app = app.crash_and_restart().await;
    assert_eq!(position(&app, &ids[299]).await, 300);
    assert!(app.clock.now() >= START);
    app.stop().await;
}
