//! Redis holds a short piece of what waits, and nothing of what is done.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{DATABASE, LONG, World, all_complete, key, size_or, wait_until};

impl World {
    /// Bytes that this Redis uses for all it holds, scripts too; nobody's buffers.
    async fn memory(&self) -> u64 {
        // What it remembers of slow commands is theirs, word for word, and bounded.
        let _: String = self.ask_redis(&["SLOWLOG", "RESET"]).await;
        let info: String = self.ask_redis(&["INFO", "memory"]).await;
        let bytes = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).expect("a field");
        bytes.trim().parse().expect("bytes")
    }

    /// Bytes in our keys.
    async fn memory_of_keys(&self) -> u64 {
        let keys: Vec<String> = self.ask_redis(&["KEYS", &format!("{DATABASE}:*")]).await;
        let mut bytes = 0;
        for key in keys {
            bytes += self.ask_redis::<Option<u64>>(&["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await.unwrap_or(0);
        }
        bytes
    }

    /// How much is in each key of the store, by the part of its name after the vendor.
    async fn sizes(&self) -> BTreeMap<String, u64> {
        let keys: Vec<String> = self.ask_redis(&["KEYS", &format!("{DATABASE}:*")]).await;
        let mut sizes = BTreeMap::new();
        for key in keys {
            let kind: String = self.ask_redis(&["TYPE", &key]).await;
            let ask = match &*kind {
                "stream" => "XLEN",
                "hash" => "HLEN",
                "zset" => "ZCARD",
                "list" => "LLEN",
                "set" => "SCARD",
                _ => continue,
            };
            sizes.insert(key.clone(), self.ask_redis(&[ask, &key]).await);
            if kind == "stream" {
                let pending: redis::Value = self.ask_redis(&["XPENDING", &key, "workers"]).await;
                let (held, ..): (u64, redis::Value, redis::Value, redis::Value) =
                    redis::from_redis_value(pending).expect("a summary");
                sizes.insert(format!("{key} pending"), held);
            }
        }
        sizes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_holds_no_more_with_many_jobs_waiting_than_with_some() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = ["1/s"]
"#;
    let most = size_or("FETCHGATE_TEST_WAITING", 30_000);
    let world = World::new(vendor).await;
    let (api, _worker) = (world.api().await, world.worker().await);
    let mut waiting = 0;
    let mut first = (0, 0);
    while waiting < most {
        api.submit_many("sync", 5_000).await;
        waiting += 5_000;
        if waiting == 10_000 {
            first = (world.memory().await, world.memory_of_keys().await);
        }
    }
    let last = (world.memory().await, world.memory_of_keys().await);
    let sizes = world.sizes().await;
    eprintln!("{first:?} bytes (all, keys) with 10000 waiting, {last:?} with {waiting}: {sizes:?}");
    // Even an id for each job would be more. What is not in our keys is scripts, most of them not run before.
    assert!(last.0 < first.0 + (512 << 10), "{first:?} bytes with 10,000 waiting, {last:?} with {waiting}");
    assert!(last.1 < first.1 + (32 << 10), "{first:?} bytes with 10,000 waiting, {last:?} with {waiting}");
    assert!(sizes.values().all(|size| *size <= 64), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_holds_nothing_of_jobs_that_are_done() {
    let vendors = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?fail_every=7"
limits = [{ calls = 200, per = "1s", key = "tenant" }]
retry = { attempts = 30, first = "50ms", max = "200ms" }
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=20&callback_retries=60"
limits = []
open = 50
webhook = { verify = "none" }
[vendors.poll]
kind = "polling"
url = "VENDORS/polling/poll?polls=1"
limits = ["300/s"]
polling = { ticket = "/id", url = "VENDORS/polling/poll/{{ ticket | path }}", every = "100ms", done = { at = "/state", is = ["done"] }, result = "/output" }
"#;
    let jobs = size_or("FETCHGATE_TEST_DONE", 900);
    let world = World::new(vendors).await;
    let (api, _workers) = (world.api().await, [world.worker().await, world.worker().await]);
    let job = |i: usize| {
        let (vendor, tenant) = (["sync", "hook", "poll"][i % 3], format!("t{}", i % 5));
        let (priority, later) = (["high", "normal", "low"][i / 3 % 3], format!("{}ms", 1 + i % 500));
        json!({"vendor": vendor, "tenant": tenant, "priority": priority, "not_before": later, "payload": i})
    };
    let batch: Vec<_> = (0..jobs).map(job).collect();
    for slice in batch.chunks(5_000) {
        let (status, body) = api.send("POST", "/jobs/batch", json!(slice).to_string()).await.expect("an answer");
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
    }
    assert_eq!(all_complete(&api, LONG * 10).await, jobs);
    let parts = ["jobs", "pending", "index", "due", "asleep", "reading", "resting"];
    let empty = async || {
        let mut sizes = world.sizes().await;
        sizes.retain(|key, size| *size > 0 && parts.iter().any(|part| key.ends_with(part)));
        if sizes.is_empty() { Some(()) } else { None }
    };
    // The last settle is stored before Redis is told.
    wait_until("nothing is left of the jobs", LONG, empty).await;
    let sizes = world.sizes().await;
    eprintln!("{jobs} jobs done; left: {sizes:?}; {} bytes", world.memory().await);
    // What the limiter remembers is bounded, and not of jobs.
    assert!(sizes.values().all(|size| *size < 5_000), "{sizes:?}");
    for vendor in ["sync", "hook", "poll"] {
        let counts = async || {
            let counts = ["HMGET", &key(vendor, "counts"), "waiting", "open", "live"];
            // What never changed is not there.
            let counts: [Option<i64>; 3] = world.ask_redis(&counts).await;
            (counts.map(Option::unwrap_or_default) == [0, 0, 0]).then_some(())
        };
        wait_until("nothing is counted", LONG, counts).await;
    }
    assert!(world.vendors.stats("sync", Duration::from_secs(1)).repeats > 0, "no retry was among them");
}
