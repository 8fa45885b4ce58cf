//! What an API process says of workers that it shares nothing with but Redis and MongoDB.

use serde_json::json;

use super::{LONG, World};
use crate::failure::wait_until;

const VENDOR: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = []
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_process_knows_what_workers_have_done_and_who_they_are() {
    let world = World::new(VENDOR).await;
    let (api, _one, _two) = (world.api().await, world.worker().await, world.worker().await);
    for _ in 0..20 {
        api.submit("sync", "1").await.expect("acknowledged");
    }
    // Counts are shared once a second.
    let stats = wait_until("all jobs counted as done", LONG, async || {
        let stats = api.json("/stats").await;
        let jobs = |what: &str| Some((stats[what].as_f64()? * stats["window_s"].as_f64()?).round());
        (jobs("done_per_s") == Some(20.0)).then_some(stats)
    })
    .await;
    assert_eq!((&stats["accepted_per_s"], &stats["failed_per_s"]), (&stats["done_per_s"], &json!(0.0)), "{stats}");
    assert!(stats["end_to_end_ms"]["p95"].as_u64().is_some(), "{stats}");
    let system = api.json("/system").await;
    let mut roles: Vec<_> = system["processes"].as_array().expect("processes").iter().collect();
    roles.sort_by_key(|process| process["roles"].to_string());
    let roles: Vec<_> = roles.iter().map(|process| (&process["roles"], &process["alive"])).collect();
    let (yes, worker) = (json!(true), json!(["worker"]));
    assert_eq!(roles, [(&json!(["api"]), &yes), (&worker, &yes), (&worker, &yes)], "{system}");
}
