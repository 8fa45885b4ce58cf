//! For how long a job is tried, and how often it is ordered: what the defaults are good for.

use std::time::Duration;

use mock_vendors::{Answer, MockVendors};
use serde_json::json;

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    a_vendor_that_refuses_connections_for_five_minutes_fails_no_job,
    a_vendor_that_is_down_for_good_ends_each_job_within_its_attempts,
    a_vendor_that_always_asks_for_a_pause_with_503_ends_each_job_within_its_attempts,
    each_wait_is_between_half_and_all_of_the_doubled_one,
    accepted_work_that_is_not_answered_is_ordered_once_more,
    unanswered_orders_are_counted_over_a_restart,
    a_vendor_may_be_ordered_from_only_once_or_more_often,
    a_replay_may_order_again,
    the_code_of_a_job_that_goes_on_is_that_of_its_last_attempt,
);

const SECOND: Duration = Duration::from_secs(1);

async fn a_vendor_that_refuses_connections_for_five_minutes_fails_no_job(backend: Backend) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let config = format!("[vendors.one]\nkind = \"sync\"\nurl = \"http://{address}/sync/one\"\nlimits = [\"50/s\"]\n");
    let mut app = TestApp::with(backend, &config).await;
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(app.submit("one", "1").await);
        app.run_for(5 * SECOND).await;
    }
    let down = app.get("/jobs?status=pending&limit=500").await.json();
    assert_eq!(down["jobs"].as_array().expect("a list").len(), 60, "{down}");
    assert_eq!(app.get("/vendors/one").await.json()["breaker"], "open");

    let vendor = MockVendors::start(&address).await.expect("the port is still free");
    app.run_for(660 * SECOND).await;
    for id in &ids {
        let job = app.find(id).await;
        assert_eq!(job["status"], "complete", "{job}");
        assert!(job["attempts"].as_u64() <= Some(16), "{job}");
    }
    assert_eq!(vendor.count("one"), 60, "each was done once");
    app.stop().await;
}

async fn a_vendor_that_is_down_for_good_ends_each_job_within_its_attempts(backend: Backend) {
    let config = "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one?status=500\"\nlimits = []\n";
    let mut app = TestApp::with(backend, config).await;
    let before = app.clock.now();
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    let (job, took) = (app.find(&id).await, app.clock.now().since(before));
    assert_eq!((&job["error"]["code"], &job["attempts"]), (&json!("attempts_exhausted"), &json!(16)), "{job}");
    // The breaker may be open when an attempt is due.
    assert!((33 * 60..68 * 60).contains(&took.as_secs()), "{took:?}");
    app.stop().await;
}

async fn a_vendor_that_always_asks_for_a_pause_with_503_ends_each_job_within_its_attempts(backend: Backend) {
    let config = "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = []\n\
                  retry = { attempts = 4, first = \"1s\", max = \"10s\" }\n";
    let mut app = TestApp::with(backend, config).await;
    app.vendors.script("one", vec![Answer::status(503).header("retry-after", "30"); 200]);
    let began = app.clock.now();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(app.submit("one", &n.to_string()).await);
    }
    app.run_until_idle().await;
    for id in &ids {
        let job = app.find(id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")), "{job}");
        assert_eq!((&job["attempts"], &job["tries"]), (&json!(4), &json!(4)), "{job}");
        assert_eq!(job["error"]["vendor"]["status"], 503, "{job}");
    }
    let took = app.clock.now().since(began);
    assert!(took >= 90 * SECOND, "the pool was silent for 30 s after each answer: {took:?}");
    assert!(took < 3600 * SECOND, "{took:?}");
    app.stop().await;
}

async fn each_wait_is_between_half_and_all_of_the_doubled_one(backend: Backend) {
    let config = "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one?status=500\"\nlimits = []\nbreaker = false\n\
                  retry = { attempts = 7, first = \"1s\", max = \"10s\" }\n";
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"].clone();
    let at = |n: usize| attempts[n]["sent_at"].as_str().expect("a time").parse::<jiff::Timestamp>().expect("a time");
    for (n, longest) in [1000, 2000, 4000, 8000, 10_000, 10_000].into_iter().enumerate() {
        let wait = at(n + 1).as_millisecond() - at(n).as_millisecond();
        // Over Redis a permit may lie up to half a second ahead.
        assert!((longest / 2..=longest + 500).contains(&wait), "after attempt {}: {wait} ms: {attempts}", n + 1);
    }
    app.stop().await;
}

/// A vendor that accepts and says nothing.
fn silent(retry: &str) -> String {
    format!(
        "[vendors.one]\nkind = \"webhook\"\nurl = \"VENDORS/async/one?never\"\nlimits = []\nanswer_within = \"10m\"\n{retry}"
    )
}

async fn accepted_work_that_is_not_answered_is_ordered_once_more(backend: Backend) {
    let mut app = TestApp::with(backend, &silent("")).await;
    let id = app.submit("one", "1").await;
    app.live_for(Duration::from_secs(3 * 3600)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("no_answer")), "{job}");
    assert_eq!((&job["attempts"], app.calls("one")), (&json!(2), 2), "each order is paid for");
    let message = job["error"]["message"].as_str().expect("words");
    assert_eq!(message, "2 orders; the last: the vendor accepted the job and did not answer in time");
    app.stop().await;
}

async fn unanswered_orders_are_counted_over_a_restart(backend: Backend) {
    let mut app = TestApp::with(backend, &silent("")).await;
    let id = app.submit("one", "1").await;
    // Failures in between are another count.
    app.vendors.script("one", vec![Answer::json(202, "{}"), Answer::status(500), Answer::status(500)]);
    app.live_for(Duration::from_secs(660)).await;
    assert_eq!(app.calls("one"), 4, "the second order is out");
    let mut app = app.crash_and_restart().await;
    app.live_for(Duration::from_secs(3600)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["error"]["code"], app.calls("one")), (&json!("no_answer"), 4), "{job}");
    app.stop().await;
}

async fn a_vendor_may_be_ordered_from_only_once_or_more_often(backend: Backend) {
    for (retry, orders) in [("unanswered = 0", 1), ("unanswered = 3", 4), ("unanswered = 3, attempts = 2", 2)] {
        let mut app = TestApp::with(backend, &silent(&format!("retry = {{ {retry} }}\n"))).await;
        let id = app.submit("one", "1").await;
        app.live_for(Duration::from_secs(3 * 3600)).await;
        let job = app.find(&id).await;
        assert_eq!((&job["error"]["code"], app.calls("one")), (&json!("no_answer"), orders), "{retry}: {job}");
        app.stop().await;
    }
}

async fn a_replay_may_order_again(backend: Backend) {
    let mut app = TestApp::with(backend, &silent("")).await;
    let id = app.submit("one", "1").await;
    for orders in [2, 4] {
        app.live_for(Duration::from_secs(3 * 3600)).await;
        assert_eq!((app.find(&id).await["error"]["code"].clone(), app.calls("one")), (json!("no_answer"), orders));
        app.post(&format!("/jobs/{id}/replay"), "").await;
    }
    app.stop().await;
}

async fn the_code_of_a_job_that_goes_on_is_that_of_its_last_attempt(backend: Backend) {
    let cases = [
        ("busy", Answer::status(503), "try_again"),
        ("hung", Answer::hang(), "timeout"),
        ("slow", Answer::status(429), "slow_down"),
        ("locked", Answer::status(401), "unauthorized"),
        ("gone", Answer::status(200), "no_connection"),
    ];
    let vendor = |name: &str| {
        let host = if name == "gone" { "http://127.0.0.1:1" } else { "VENDORS" };
        format!(
            "[vendors.{name}]\nkind = \"sync\"\nurl = \"{host}/sync/{name}\"\nlimits = []\nbreaker = false\n\
             timeout = \"500ms\"\nretry = {{ attempts = 2, first = \"30s\" }}\n"
        )
    };
    let config: String = cases.iter().map(|(name, ..)| vendor(name)).collect();
    let mut app = TestApp::with(backend, &config).await;
    let mut ids = Vec::new();
    for (name, answer, _) in cases.clone() {
        app.vendors.script(name, vec![answer; 2]);
        ids.push(app.submit(name, "1").await);
    }
    app.run_for(SECOND / 10).await;
    for (id, (name, _, code)) in ids.iter().zip(&cases) {
        let (job, vendor) = (app.find(id).await, app.get(&format!("/vendors/{name}")).await.json());
        let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
        assert_eq!((&job["status"], &job["last_error"]["code"]), (&json!("pending"), &json!(code)), "{job}");
        assert_eq!((&vendor["last_error"]["code"], &attempts["attempts"][0]["outcome"]), (&json!(code), &json!(code)));
    }
    app.run_until_idle().await;
    for (id, name) in ids.iter().zip(["busy", "hung"]) {
        let (job, code) = (app.find(id).await, if name == "hung" { "timeout" } else { "attempts_exhausted" });
        assert_eq!((&job["error"]["code"], job.get("last_error")), (&json!(code), None), "{job}");
    }
    assert_eq!(app.find(&ids[4]).await["error"]["code"], "attempts_exhausted", "no attempt reached it");
    app.stop().await;
}
