//! What one tenant may submit, and how much of it may wait.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp},
};

on_every_backend!(
    a_tenant_submits_no_faster_than_it_may,
    a_tenant_has_no_more_jobs_waiting_than_it_may,
    jobs_that_arrive_together_find_no_more_room_than_one_after_the_other,
    a_job_that_came_before_is_known_where_there_is_no_room_for_a_new_one,
    a_batch_stores_what_fits_and_says_so_of_the_rest,
    a_tenant_has_no_more_bytes_waiting_than_it_may,
    all_tenants_together_have_no_more_bytes_waiting_than_they_may,
    a_replay_takes_room_as_a_submit_does,
    a_job_that_came_before_does_not_count_against_the_rate,
);

fn config(tenants: &str) -> String {
    format!("{tenants}\n[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = [\"1000/s\"]\n")
}

fn job(tenant: &str) -> String {
    format!(r#"{{"vendor": "one", "payload": 1, "tenant": "{tenant}", "not_before": "1h"}}"#)
}

async fn submit(app: &TestApp, tenant: &str) -> Answer {
    app.post("/jobs", job(tenant)).await
}

async fn statuses(app: &TestApp, tenant: &str, n: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..n {
        statuses.push(submit(app, tenant).await.status.as_u16());
    }
    statuses
}

async fn a_tenant_submits_no_faster_than_it_may(backend: Backend) {
    let tenants =
        "[tenants.acme]\nsubmit = \"3/m\"\n[tenants.free]\nsubmit = \"1000/s\"\n[tenant_defaults]\nsubmit = \"1/s\"";
    let app = TestApp::with(backend, &config(tenants)).await;
    assert_eq!(statuses(&app, "acme", 4).await, [202, 202, 202, 429]);
    let over = submit(&app, "acme").await;
    assert_eq!((over.code().as_str(), over.header("retry-after")), ("tenant_over_limit", "20"));
    assert_eq!(over.header("ratelimit-policy"), r#""submit";q=3;w=60"#);
    assert_eq!(over.header("ratelimit"), r#""submit";r=0;t=20"#);
    assert_eq!(statuses(&app, "free", 5).await, [202; 5], "others are not touched by it");
    assert_eq!(statuses(&app, "other", 2).await, [202, 429]);
    assert_eq!(statuses(&app, "another", 1).await, [202], "each has its own");
    app.clock.advance(Duration::from_secs(20));
    assert_eq!(statuses(&app, "acme", 2).await, [202, 429]);
    app.stop().await;
}

async fn a_tenant_has_no_more_jobs_waiting_than_it_may(backend: Backend) {
    let app =
        TestApp::with(backend, &config("[tenants.acme]\nmax_waiting = 2\n[tenant_defaults]\nmax_waiting = 3")).await;
    let first = submit(&app, "acme").await.json()["request_id"].as_str().expect("an id").to_owned();
    assert_eq!(statuses(&app, "acme", 2).await, [202, 429]);
    let over = submit(&app, "acme").await;
    assert_eq!((over.code().as_str(), over.header("ratelimit-policy")), ("tenant_over_limit", r#""waiting";q=2"#));
    assert!(!over.header("retry-after").is_empty());
    assert_eq!(statuses(&app, "other", 4).await, [202, 202, 202, 429]);
    // What has ended waits no more, also after a restart.
    app.post(&format!("/jobs/{first}/cancel"), "").await;
    assert_eq!(statuses(&app, "acme", 2).await, [202, 429]);
    let app = app.crash_and_restart().await;
    assert_eq!(statuses(&app, "acme", 1).await, [429]);
    app.stop().await;
}

async fn jobs_that_arrive_together_find_no_more_room_than_one_after_the_other(backend: Backend) {
    let app = TestApp::with(backend, &config("[tenants.acme]\nmax_waiting = 5")).await;
    for (n, wanted) in [(40, 5), (40, 0)] {
        let answers = join_all((0..n).map(|_| submit(&app, "acme"))).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), wanted);
    }
    let first = app.get("/jobs").await.json()["jobs"][0]["request_id"].as_str().expect("an id").to_owned();
    app.post(&format!("/jobs/{first}/cancel"), "").await;
    assert_eq!(statuses(&app, "acme", 2).await, [202, 429], "who was refused takes no room");
    app.stop().await;
}

async fn a_job_that_came_before_is_known_where_there_is_no_room_for_a_new_one(backend: Backend) {
    for (bound, over) in [("[tenants.acme]\nmax_waiting = 1", 429), ("[capacity]\nmax_waiting = 1", 503)] {
        let app = TestApp::with(backend, &config(bound)).await;
        let send = async |path: &str, key: &str, body: String| {
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            app.send(Method::POST, path, &headers, body).await
        };
        let first = send("/jobs", "k#0", job("acme")).await;
        assert_eq!(first.status, 202, "{}", first.text);
        let again = send("/jobs", "k#0", job("acme")).await;
        assert_eq!((&*again.text, again.header("idempotency-replayed")), (&*first.text, "true"), "{bound}");
        assert_eq!(send("/jobs", "new", job("acme")).await.status, over);
        assert_eq!(send("/jobs", "k#0", job("acme").replace('1', "2")).await.code(), "idempotency_key_reused");
        let batch = send("/jobs/batch", "k", format!("[{},{}]", job("acme"), job("acme"))).await.json();
        assert_eq!((&batch["items"][0], &batch["accepted"]), (&first.json(), &json!(1)), "{bound}");
        assert_eq!(batch["items"][1]["error"]["status"], over);
        app.stop().await;
    }
}

async fn a_batch_stores_what_fits_and_says_so_of_the_rest(backend: Backend) {
    let tenants = "[tenants.slow]\nsubmit = \"2/m\"\n[tenants.small]\nmax_waiting = 1";
    let app = TestApp::with(backend, &config(tenants)).await;
    let jobs: Vec<String> = ["slow", "small", "slow", "free", "small", "slow", "free"].map(job).to_vec();
    let answer = app.post("/jobs/batch", format!("[{}]", jobs.join(","))).await.json();
    let code = |item: &Value| item["error"]["code"].as_str().unwrap_or("accepted").to_owned();
    let codes: Vec<String> = answer["items"].as_array().expect("items").iter().map(code).collect();
    let (ok, over) = ("accepted", "tenant_over_limit");
    assert_eq!(codes, [ok, ok, ok, ok, over, over, ok]);
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(5), &json!(2)));
    let tenants = app.get("/jobs").await.json();
    assert_eq!(tenants["jobs"].as_array().expect("jobs").len(), 5);
    app.stop().await;
}

/// A job of this tenant with a payload of so many bytes.
async fn submit_bytes(app: &TestApp, tenant: &str, bytes: usize) -> Answer {
    app.post("/jobs", job(tenant).replace("\"payload\": 1", &format!("\"payload\": \"{}\"", "x".repeat(bytes - 2))))
        .await
}

fn id(answer: &Answer) -> String {
    answer.json()["request_id"].as_str().unwrap_or_else(|| panic!("no id: {}", answer.text)).to_owned()
}

async fn a_tenant_has_no_more_bytes_waiting_than_it_may(backend: Backend) {
    let app = TestApp::with(backend, &config("[tenants.acme]\nmax_waiting_bytes = 30000")).await;
    let first = id(&submit_bytes(&app, "acme", 20_000).await);
    let over = submit_bytes(&app, "acme", 10_001).await;
    let policy = (over.header("ratelimit-policy"), over.header("retry-after"));
    assert_eq!((&*over.code(), policy), ("tenant_over_limit", (r#""waiting-bytes";q=30000;qu="content-bytes""#, "5")));
    assert!(over.text.contains("max_waiting_bytes"), "{}", over.text);
    assert_eq!(submit_bytes(&app, "acme", 10_000).await.status, 202, "it is full to the last byte");
    assert_eq!(submit_bytes(&app, "acme", 5000).await.status, 429);
    assert_eq!(statuses(&app, "acme", 3).await, [202; 3], "small payloads do not count");
    assert_eq!(submit_bytes(&app, "other", 50_000).await.status, 202, "others are not touched by it");
    // What has ended waits no more, also after a restart.
    app.post(&format!("/jobs/{first}/cancel"), "").await;
    let app = app.crash_and_restart().await;
    assert_eq!(submit_bytes(&app, "acme", 20_001).await.status, 429);
    assert_eq!(submit_bytes(&app, "acme", 20_000).await.status, 202);
    app.stop().await;
}

async fn all_tenants_together_have_no_more_bytes_waiting_than_they_may(backend: Backend) {
    let app = TestApp::with(backend, &config("[capacity]\nmax_waiting_bytes = 30000")).await;
    let first = id(&submit_bytes(&app, "a", 20_000).await);
    let over = submit_bytes(&app, "b", 10_001).await;
    assert_eq!((over.status.as_u16(), &*over.code()), (503, "over_capacity"));
    assert_eq!(submit_bytes(&app, "b", 10_000).await.status, 202);
    assert_eq!(statuses(&app, "c", 2).await, [202; 2], "small payloads do not count");
    app.post(&format!("/jobs/{first}/cancel"), "").await;
    let app = app.crash_and_restart().await;
    assert_eq!(submit_bytes(&app, "c", 20_001).await.status, 503);
    assert_eq!(submit_bytes(&app, "c", 20_000).await.status, 202);
    app.stop().await;
}

async fn a_replay_takes_room_as_a_submit_does(backend: Backend) {
    let bounds = [
        ("[tenants.acme]\nmax_waiting = 1", 429, "tenant_over_limit"),
        ("[tenants.acme]\nmax_waiting_bytes = 9000", 429, "tenant_over_limit"),
        ("[capacity]\nmax_waiting = 1", 503, "over_capacity"),
        ("[capacity]\nmax_waiting_bytes = 9000", 503, "over_capacity"),
    ];
    for (bound, status, code) in bounds {
        let app = TestApp::with(backend, &config(bound)).await;
        let post = async |id: &str, what: &str| app.post(&format!("/jobs/{id}/{what}"), "").await;
        let first = id(&submit_bytes(&app, "acme", 5000).await);
        assert_eq!(post(&first, "cancel").await.status, 200);
        let second = id(&submit_bytes(&app, "acme", 5000).await);
        let refused = post(&first, "replay").await;
        assert_eq!((refused.status.as_u16(), &*refused.code()), (status, code), "{bound}");
        assert!(!refused.header("retry-after").is_empty());
        assert_eq!(app.status(&first).await, "cancelled", "{bound}: nothing has changed");
        assert_eq!(post(&second, "cancel").await.status, 200);
        assert_eq!(post(&first, "replay").await.status, 202, "{bound}");
        assert_eq!(submit_bytes(&app, "acme", 5000).await.status, status, "{bound}: it has taken the room");
        app.stop().await;
    }
}

async fn a_job_that_came_before_does_not_count_against_the_rate(backend: Backend) {
    let app = TestApp::with(backend, &config("[tenants.acme]\nsubmit = \"3/m\"")).await;
    for _ in 0..5 {
        let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
        let answer = app.send(Method::POST, "/jobs", &headers, job("acme")).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }
    assert_eq!(statuses(&app, "acme", 3).await, [202, 202, 429], "it counts once");
    app.stop().await;
}
