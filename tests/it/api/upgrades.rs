//! A store that an older build left, with a job in every state, opens under this one: everything is as it was, and what had not ended ends.

use std::{collections::BTreeMap, time::Duration};

use hyper::Method;
use mongodb::bson::Document;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, TestApp, database, servers},
};

on_every_backend!(what_an_older_build_left_is_as_it_was_and_its_jobs_finish);

/// The names of that build's vendors; here each of them answers well.
const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync/sync"
limits = ["1000/s"]
[vendors.refuses]
kind = "sync"
url = "VENDORS/sync/refuses"
limits = ["1000/s"]
[vendors.flaky]
kind = "sync"
url = "VENDORS/sync/flaky"
limits = ["1000/s"]
[vendors.stopped]
kind = "sync"
url = "VENDORS/sync/stopped"
limits = ["1000/s"]
[vendors.limited]
kind = "sync"
url = "VENDORS/sync/limited"
limits = ["50/s"]
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback=never"
limits = ["1000/s"]
answer_within = "2h"
webhook = { verify = "none", ticket = "/id", result = "/report" }
[vendors.polled]
kind = "polling"
url = "VENDORS/polling/polled"
limits = ["1000/s"]
answer_within = "2h"
polling = { ticket = "/id", url = "VENDORS/sync/{{ ticket | path }}", every = "1s", done = { at = "/vendor", is = ["polled-1"] }, result = "/data" }
"#;

/// What neither time nor a newer version may change in a job that nobody touches.
const KEPT: [&str; 16] = [
    "request_id",
    "vendor",
    "tenant",
    "priority",
    "tags",
    "status",
    "attempts",
    "tries",
    "created_at",
    "updated_at",
    "finished_at",
    "payload",
    "result",
    "error",
    "ticket",
    "last_error",
];

/// What that build left, and what it showed.
#[derive(Deserialize)]
struct Left {
    ids: BTreeMap<String, String>,
    callback: String,
    shown: BTreeMap<String, Value>,
    /// Of each collection of the database.
    #[serde(default)]
    documents: BTreeMap<String, Vec<Document>>,
}

fn left_behind(backend: Backend) -> Left {
    let text = match backend {
        Backend::Sqlite => include_str!("../../fixtures/embedded.json"),
        Backend::RedisMongo => include_str!("../../fixtures/scaled.json"),
    };
    serde_json::from_str(text).expect("JSON")
}

/// The service of today on the store of then.
async fn opened(backend: Backend, left: &Left) -> TestApp {
    TestApp::on_filled(backend, VENDORS, async |folder| match backend {
        Backend::Sqlite => {
            std::fs::write(folder.path().join("jobs.db"), include_bytes!("../../fixtures/embedded.db"))
                .expect("written");
        }
        Backend::RedisMongo => {
            let database = database(folder);
            let client = mongodb::Client::with_uri_str(servers::mongo().mongo_url(&database)).await.expect("MongoDB");
            for (name, documents) in left.documents.iter().filter(|(_, documents)| !documents.is_empty()) {
                let collection = client.database(&database).collection::<Document>(name);
                collection.insert_many(documents).await.expect("written");
            }
        }
    })
    .await
}

async fn what_an_older_build_left_is_as_it_was_and_its_jobs_finish(backend: Backend) {
    let left = left_behind(backend);
    let mut app = opened(backend, &left).await;
    let id = |name: &str| &*left.ids[name];
    for (name, before) in &left.shown {
        let now = app.get(&format!("/jobs/{}?include=payload", id(name))).await.json();
        // That build did not show all of them.
        for field in KEPT.into_iter().filter(|field| !before[field].is_null()) {
            assert_eq!(now[field], before[field], "{field} of the job {name}");
        }
    }
    assert_eq!(app.get("/vendors/stopped").await.json()["paused"], true);
    let limits = app.get("/vendors/limited/limits").await.json();
    assert_eq!((&limits["source"], limits["limits"].as_array().map(Vec::len)), (&json!("live"), Some(2)), "{limits}");
    let body = r#"{"payload": {"n": 1, "vendor": "stopped"}, "vendor": "stopped"}"#;
    let headers = [("content-type", "application/json"), ("idempotency-key", "key-1")];
    let again = app.send(Method::POST, "/jobs", &headers, body).await;
    assert_eq!((&again.json()["request_id"], again.header("idempotency-replayed")), (&json!(id("known")), "true"));

    // The URL that the vendor was given then.
    let callback = app.post(&left.callback, r#"{"report": {"a": 1.10}}"#).await;
    assert_eq!(callback.status, 200, "{}", callback.text);
    for vendor in ["stopped", "refuses", "polled"] {
        assert_eq!(app.post(&format!("/vendors/{vendor}/resume"), "").await.status, 200);
    }
    // Nothing of it is in Redis: sweeps find it.
    for _ in 0..12 {
        app.run_for(Duration::from_secs(5)).await;
    }
    app.run_for(Duration::from_secs(7200)).await;
    for name in ["pending", "later", "known", "tried", "awaits", "polled", "large", "replayed"] {
        let job = app.find(id(name)).await;
        assert_eq!(job["status"], "complete", "{name}: {job}");
    }
    assert_eq!(app.letters(id("awaits"), "result").await, r#"{"a": 1.10}"#);
    let attempts = app.get(&format!("/jobs/{}/attempts", id("tried"))).await.json();
    let outcomes: Vec<_> = attempts["attempts"].as_array().expect("a list").iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes, ["try_again", "done"]);
    for (name, status) in [("failed", "failed"), ("cancelled", "cancelled"), ("expired", "expired")] {
        assert_eq!(app.status(id(name)).await, status, "what had ended stays as it is");
        assert_eq!(app.post(&format!("/jobs/{}/replay", id(name)), "").await.status, 202);
    }
    app.run_for(Duration::from_secs(60)).await;
    for name in ["failed", "cancelled", "expired"] {
        assert_eq!(app.status(id(name)).await, "complete", "{name}, replayed");
    }
    app.stop().await;
}
