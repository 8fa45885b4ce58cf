//! Processes that are told to stop finish their calls and give back the rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{LONG, World, all_complete, completed, key, pass};

/// A lease of this vendor is 35.5 s. The guard is wide, because the vendor shares two busy cores with all others.
const VENDOR: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=200"
limits = [{ calls = 40, per = "1s", shape = "paced", guard = "200ms" }]
concurrency = 16
timeout = "30s"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopping_worker_holds_another_calls_at_once() {
    let world = World::new(VENDOR).await;
    let (api, other) = (world.api().await, world.worker().await);
    let mut leaving = world.worker().await;
    api.submit_many("sync", 160).await;
    world.called("sync", 60).await;
    let asked = Instant::now();
    leaving.terminate();
    assert_eq!(leaving.exits(LONG).await.code(), Some(0), "{}", leaving.log());
    let stopped = asked.elapsed();
    let held = world.consumers("sync").await.into_values().filter(|held| held.pending > 0).count();
    assert!(held <= 1, "only the other one holds anything");
    all_complete(&api, LONG).await;
    let took = asked.elapsed();
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    eprintln!("stopped after {stopped:?}; all complete after {took:?}; {stats:?}");
    assert!(took < Duration::from_secs(12), "it waited for leases: {took:?}");
    assert_eq!((stats.count, stats.repeats), (160, 0), "each was called once");
    assert!(completed(&other, "sync").await >= 100);
    assert!(stats.worst_window <= 40, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_alone_leaves_everything_free() {
    let world = World::new(VENDOR).await;
    let (api, mut worker) = (world.api().await, world.worker().await);
    api.submit_many("sync", 60).await;
    world.called("sync", 20).await;
    worker.terminate();
    assert_eq!(worker.exits(LONG).await.code(), Some(0), "{}", worker.log());
    let entries: Vec<String> = world.ask_redis(&["HVALS", &key("sync", "index")]).await;
    assert!(!entries.is_empty() && entries.iter().all(|entry| entry.starts_with('-')), "{entries:?}");
    let jobs = api.json("/jobs?limit=500").await;
    let jobs = jobs["jobs"].as_array().expect("jobs");
    assert!(jobs.iter().all(|job| job["status"] == "pending" || job["status"] == "complete"), "{jobs:#?}");

    let begun = Instant::now();
    let _worker = world.worker().await;
    all_complete(&api, LONG).await;
    eprintln!("the rest took {:?}", begun.elapsed());
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (60, 0), "each was called once: {stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_gives_back_what_it_holds_although_redis_is_slow_to_answer() {
    let world = World::new(VENDOR).await;
    let (api, mut worker) = (world.api().await, world.worker().await);
    api.submit_many("sync", 60).await;
    world.called("sync", 20).await;
    world.redis.freeze();
    worker.terminate();
    pass(Duration::from_millis(1000)).await;
    world.redis.thaw();
    worker.exits(LONG).await;
    let _worker = world.worker().await;
    all_complete(&api, Duration::from_secs(20)).await;
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (60, 0), "each was called once: {stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_everything_under_load_loses_nothing() {
    let world = World::new(VENDOR).await;
    let api = Arc::new(world.api().await);
    let mut workers = [world.worker().await, world.worker().await];
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let api = api.clone();
        submitting.spawn(async move {
            let mut accepted = Vec::new();
            while let Some(id) = api.submit("sync", "1").await {
                accepted.push(id);
                pass(Duration::from_millis(50)).await;
            }
            accepted
        });
    }
    world.called("sync", 40).await;
    api.terminate();
    workers.iter().for_each(|worker| worker.terminate());
    let accepted: Vec<String> = submitting.join_all().await.into_iter().flatten().collect();
    let mut api = Arc::into_inner(api).expect("nobody else has it");
    assert_eq!(api.exits(LONG).await.code(), Some(0), "{}", api.log());
    for worker in &mut workers {
        assert_eq!(worker.exits(LONG).await.code(), Some(0), "{}", worker.log());
    }
    let called = world.vendors.count("sync");
    assert!((called as usize) < accepted.len(), "everything was done before, so nothing is shown");

    let begun = Instant::now();
    let (api, _worker) = (world.api().await, world.worker().await);
    let jobs = all_complete(&api, LONG).await;
    assert!(begun.elapsed() < Duration::from_secs(25), "it waited for leases: {:?}", begun.elapsed());
    let found = api.all_jobs().await;
    assert!(accepted.iter().all(|id| found.contains_key(id)), "an acknowledged job is gone");
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    eprintln!("{} acknowledged, {jobs} done, {called} of them before the stop; {stats:?}", accepted.len());
    assert_eq!((stats.count as usize, stats.repeats), (jobs, 0), "each was called once");
    assert!(stats.worst_window <= 40, "{stats:?}");
}
