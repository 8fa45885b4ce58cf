//! What one tenant may submit, and how much of it may wait.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp},
};

on_every_backend!(
    a_tenant_submits_no_faster_than_it_may,
    a_tenant_has_no_more_jobs_waiting_than_it_may,
    a_batch_stores_what_fits_and_says_so_of_the_rest,
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
