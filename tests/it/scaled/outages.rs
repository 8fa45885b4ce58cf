//! MongoDB or Redis is frozen, or killed and started again: who answers what, who calls whom, and nobody runs hot.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{LONG, World, all_complete, cpu_time, pass, wait_until};
use crate::{failure::Process, support::servers::Server};

/// How a server goes away.
#[derive(Clone, Copy, Debug)]
enum Away {
    Frozen,
    Killed,
}

/// Processor time of both processes, and lines they wrote, over five seconds in which there is nothing they could do.
async fn is_calm(processes: &[&Process], most_lines: usize) {
    let so_far = || -> Vec<(Duration, usize)> {
        processes.iter().map(|process| (cpu_time(process), process.log().lines().count())).collect()
    };
    let before = so_far();
    pass(Duration::from_secs(5)).await;
    for ((process, before), after) in processes.iter().zip(before).zip(so_far()) {
        let (time, lines) = (after.0 - before.0, after.1 - before.1);
        eprintln!("in five seconds: {time:?} of processor time, {lines} lines");
        assert!(time < Duration::from_millis(1000), "it runs hot: {time:?}\n{}", process.log());
        assert!(lines <= most_lines, "{lines} lines in five seconds:\n{}", process.log());
    }
}

/// The readiness of a process: its status and what it can do.
async fn readiness(process: &Process) -> (u16, serde_json::Value) {
    let (status, body) = process.get("/readyz").await.expect("it answers");
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    (status, body["can"].clone())
}

async fn without_mongodb(away: Away) {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=1500"
limits = ["200/s"]
concurrency = 8
timeout = "20s"
"#;
    let mut world = World::new(vendor).await;
    let (api, worker) = (world.api().await, world.worker().await);
    api.submit_many("sync", 20).await;
    world.called("sync", 8).await;
    match away {
        Away::Frozen => world.mongo.freeze(),
        Away::Killed => world.mongo.end(),
    }
    let asked = Instant::now();
    let answer = world.caller().post("/jobs", r#"{"vendor": "sync", "payload": 1}"#).await;
    let took = asked.elapsed();
    eprintln!("{away:?}: {} after {took:?}", answer.status);
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.headers["retry-after"].to_str().is_ok_and(|secs| secs.parse::<u32>().is_ok()), "{answer:?}");
    assert_eq!(answer.json()["code"], "store_unavailable");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    assert_eq!(readiness(&api).await, (503, json!({"accept_jobs": false})));
    assert_eq!(readiness(&worker).await, (503, json!({"call_vendors": false})));
    let ended = async || (world.vendors.stats("sync", LONG).count == 8).then_some(());
    wait_until("eight calls and no more", LONG, ended).await;
    is_calm(&[&api, &worker], 100).await;
    assert_eq!(world.vendors.count("sync"), 8, "nothing new is called while the outcomes cannot be stored");

    match away {
        Away::Frozen => world.mongo.thaw(),
        Away::Killed => world.mongo.restart(),
    }
    let back = Instant::now();
    all_complete(&api, LONG).await;
    eprintln!("{away:?}: all complete {:?} after it was back", back.elapsed());
    let stats = world.vendors.stats("sync", LONG);
    assert_eq!(stats.repeats, 0, "what was in hand was kept: {stats:?}");
    for process in [&api, &worker] {
        assert_eq!(readiness(process).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_mongodb_is_frozen_jobs_are_refused_and_work_in_hand_is_kept() {
    without_mongodb(Away::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_mongodb_is_dead_jobs_are_refused_and_work_in_hand_is_kept() {
    without_mongodb(Away::Killed).await;
}

async fn without_redis(away: Away) {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=20"
limits = [{ calls = 50, per = "1s", shape = "paced", guard = "200ms" }]
timeout = "2s"
"#;
    let mut world = World::new(vendor).await;
    let (api, worker) = (world.api().await, world.worker().await);
    api.submit_many("sync", 150).await;
    world.called("sync", 40).await;
    match away {
        Away::Frozen => world.redis.freeze(),
        Away::Killed => world.redis.end(),
    }
    let gone = Instant::now();
    for _ in 0..5 {
        let asked = Instant::now();
        assert!(api.submit("sync", "1").await.is_some(), "jobs are accepted");
        eprintln!("{away:?}: accepted after {:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    assert_eq!(readiness(&api).await, (200, json!({"accept_jobs": true})));
    assert_eq!(readiness(&worker).await, (503, json!({"call_vendors": false})));
    // Permits lie half a second ahead at most.
    pass(Duration::from_millis(1500).saturating_sub(gone.elapsed())).await;
    let called = world.vendors.count("sync");
    is_calm(&[&api, &worker], 100).await;
    assert_eq!(world.vendors.count("sync"), called, "no vendor is called without the limiter");
    assert!(called < 150, "everything was done before, so nothing is shown");

    match away {
        Away::Frozen => world.redis.thaw(),
        Away::Killed => world.redis.restart(),
    }
    let back = Instant::now();
    assert_eq!(all_complete(&api, LONG).await, 155);
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    eprintln!("{away:?}: all complete {:?} after it was back; {stats:?}", back.elapsed());
    assert_eq!(stats.repeats, 0, "{stats:?}");
    assert!(stats.worst_window <= 50, "{stats:?}");
    for process in [&api, &worker] {
        assert_eq!(readiness(process).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_frozen_jobs_are_accepted_and_no_vendor_is_called() {
    without_redis(Away::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_dead_jobs_are_accepted_and_no_vendor_is_called() {
    without_redis(Away::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_are_not_made_again_when_redis_is_emptied() {
    // The calls last longer than an emptied index stays shut.
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=4500"
limits = []
concurrency = 8
timeout = "20s"
"#;
    let world = World::new(vendor).await;
    let (api, _workers) = (world.api().await, [world.worker().await, world.worker().await]);
    api.submit_many("sync", 12).await;
    world.called("sync", 8).await;
    assert_eq!(world.redis.say("FLUSHALL"), "+OK");
    assert_eq!(all_complete(&api, LONG).await, 12);
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (12, 0), "live workers register their leases: {stats:?}");
    assert!(stats.max_in_flight <= 8, "places are kept too: {stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_are_not_made_again_when_redis_comes_back_older() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=6000"
limits = []
concurrency = 32
timeout = "20s"
"#;
    let mut world = World::over(Server::redis_of_snapshots, vendor).await;
    let api = world.api().await;
    api.submit_many("sync", 12).await;
    assert_eq!(world.redis.say("SAVE"), "+OK");
    let _workers = [world.worker().await, world.worker().await];
    world.called("sync", 12).await;
    world.redis.restart();
    assert_eq!(all_complete(&api, LONG).await, 12);
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (12, 0), "what was claimed since is held: {stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendor_with_a_bound_on_what_is_open_goes_on_after_callbacks_that_redis_did_not_hear_of() {
    let vendor = r#"
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=400&callback_retries=60"
limits = ["50/s"]
open = 2
webhook = { verify = "none" }
"#;
    let world = World::new(vendor).await;
    let (api, _worker) = (world.api().await, world.worker().await);
    api.submit_many("hook", 60).await;
    world.called("hook", 2).await;
    // Accepted; the answers come while nobody can tell Redis of them.
    pass(Duration::from_millis(200)).await;
    world.redis.freeze();
    pass(Duration::from_millis(1000)).await;
    world.redis.thaw();
    assert_eq!(all_complete(&api, LONG).await, 60);
    assert_eq!(world.vendors.stats("hook", LONG).repeats, 0);
}
