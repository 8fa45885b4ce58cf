//! What is owed to receivers of result webhooks while processes are killed: the real binary, and every signature verified.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mock_vendors::MockVendors;
use serde_json::{Value, json};

use crate::{
    failure::{Process, World, wait_until},
    support::sign::standard_v1,
};

/// What a killed process had claimed is sent by others a minute and a bit later.
const LONG: Duration = Duration::from_secs(180);
/// Messages that a process sends to one receiver at once.
const LANES: usize = 8;

pub(crate) const VENDOR: &str = r#"
[result_webhooks]
allow = ["VENDORS"]
[vendors.sync]
kind = "sync"
url = "VENDORS/sync/vendor"
limits = []
concurrency = 16
"#;

/// Submits jobs whose ends are announced under this name; gives their ids.
pub(crate) async fn submit(api: &Process, vendors: &MockVendors, name: &str, jobs: usize) -> BTreeSet<String> {
    let url = format!("{}/sync/{name}?latency_ms=20", vendors.url());
    let batch = vec![json!({"vendor": "sync", "payload": 1, "callback_url": url}); jobs];
    let (status, body) = api.send("POST", "/jobs/batch", json!(batch).to_string()).await.expect("an answer");
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
    let accepted: Value = serde_json::from_slice(&body).expect("JSON");
    let id = |item: &Value| item["request_id"].as_str().expect("an id").to_owned();
    accepted["items"].as_array().expect("items").iter().map(id).collect()
}

pub(crate) async fn arrived(vendors: &MockVendors, name: &str, times: u64) {
    let arrived = async || (vendors.count(name) >= times).then_some(());
    wait_until(&format!("{times} announcements at {name}"), LONG, arrived).await;
}

/// Waits until the end of each of these jobs has come, and looks at all that came; gives how many messages came more than once.
pub(crate) async fn all_come(api: &Process, vendors: &MockVendors, name: &str, jobs: &BTreeSet<String>) -> usize {
    let (mut seen, mut found) = (0, BTreeMap::new());
    wait_until("every end", LONG, async || {
        let count = vendors.count(name);
        if count == seen || count < jobs.len() as u64 {
            return None;
        }
        (seen, found) = (count, BTreeMap::new());
        for one in vendors.arrivals(name) {
            let id = one.header("webhook-id").expect("an id").to_owned();
            found.entry(id).or_insert_with(Vec::new).push(one);
        }
        (found.len() >= jobs.len()).then_some(())
    })
    .await;
    let secrets = api.json("/result-webhooks/secret").await;
    let secret = secrets["secrets"][0].as_str().expect("a secret");
    for (id, tries) in &found {
        let job = id.rsplit_once('-').expect("a job and its run").0;
        assert!(jobs.contains(job), "{id}");
        for one in tries {
            let at = one.header("webhook-timestamp").expect("a time");
            let signed = standard_v1(secret, id, at, &one.body);
            assert_eq!(one.header("webhook-signature"), Some(signed.as_str()));
            let body: Value = serde_json::from_slice(&one.body).expect("JSON");
            assert_eq!((&body["request_id"], &body["status"]), (&json!(job), &json!("complete")));
        }
    }
    assert_eq!(found.len(), jobs.len());
    found.values().filter(|tries| tries.len() > 1).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_no_end_and_repeats_only_what_it_was_sending() {
    let world = World::new(VENDOR).await;
    let process = world.start().await;
    let calm = submit(&process, &world.vendors, "calm", 500).await;
    assert_eq!(all_come(&process, &world.vendors, "calm", &calm).await, 0, "each comes once");
    let storm = submit(&process, &world.vendors, "storm", 500).await;
    arrived(&world.vendors, "storm", 100).await;
    process.kill();
    let process = world.start().await;
    let repeated = all_come(&process, &world.vendors, "storm", &storm).await;
    assert!(repeated <= LANES, "{repeated}");
}
