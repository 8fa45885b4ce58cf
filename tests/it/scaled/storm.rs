//! One API, three workers, and everything that can go away goes away while they work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{World, all_complete, completed, pass, size_or};
use crate::{
    failure::{Process, wait_until},
    support::servers::Server,
};

/// The guard is wide, because the vendors share two busy cores with six processes: what is shown is the faults, not the network.
const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=20"
limits = [{ calls = 300, per = "1s", shape = "paced", guard = "200ms" }]
concurrency = 32
timeout = "2s"
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=100&callback_retries=60"
limits = [{ calls = 50, per = "1s", shape = "window", guard = "200ms" }]
concurrency = 16
open = 12
timeout = "2s"
answer_within = "60s"
webhook = { verify = "none" }
"#;

/// Jobs that have ended, as they were when that was first seen.
pub(super) type Ended = Arc<Mutex<BTreeMap<String, Value>>>;

/// Submits jobs of hundreds of tenants.
async fn submit_for_many(api: &Process, jobs: usize) {
    let job = |i: usize| json!({"vendor": "sync", "payload": i, "tenant": format!("t{}", i % 300)});
    let batch: Vec<Value> = (0..jobs).map(job).collect();
    let (status, body) = api.send("POST", "/jobs/batch", json!(batch).to_string()).await.expect("an answer");
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
}

/// Submits jobs one by one while the storm goes on; gives how many were acknowledged.
pub(super) async fn go_on_submitting(api: Arc<Process>, jobs: usize) -> Vec<String> {
    let mut accepted = Vec::new();
    while accepted.len() < jobs {
        accepted.extend(api.submit("sync", "1").await);
    }
    accepted
}

/// Looks at all jobs again and again, page by page: whatever has ended never changes.
pub(super) async fn watch(api: Arc<Process>, ended: Ended) {
    let mut cursor = String::new();
    loop {
        pass(Duration::from_millis(100)).await;
        let Some((200, body)) = api.get(&format!("/jobs?limit=500{cursor}")).await else { continue };
        let page: Value = serde_json::from_slice(&body).expect("JSON");
        cursor = page["next_cursor"].as_str().map(|next| format!("&cursor={next}")).unwrap_or_default();
        let mut ended = ended.lock().expect("no panic");
        for job in page["jobs"].as_array().expect("jobs").iter().filter(|job| job["finished_at"].is_string()) {
            let before = ended.entry(job["request_id"].as_str().expect("an id").to_owned()).or_insert(job.clone());
            assert_eq!(before, job, "an ended job has changed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_every_job_ends_once_and_no_limit_is_broken() {
    let all = size_or("FETCHGATE_TEST_STORM", 1500);
    let mut world = World::over(Server::redis_of_snapshots, VENDORS).await;
    let api = Arc::new(world.api().await);
    let mut workers = vec![world.worker().await, world.worker().await, world.worker().await];
    let begun = Instant::now();
    api.submit_many("hook", all / 10).await;
    submit_for_many(&api, all - all / 10).await;
    let (ended, mut beside) = (Ended::default(), JoinSet::new());
    beside.spawn(watch(api.clone(), Arc::clone(&ended)));
    let mut submitting = JoinSet::new();
    submitting.spawn(go_on_submitting(api.clone(), all / 10));
    let part = |tenths: u64| all as u64 * tenths / 10;

    world.called("sync", part(2)).await;
    let killed = workers.pop().expect("three");
    let counted = completed(&killed, "sync").await;
    killed.signal("STOP");
    let held = world.leased_by_the_silent_one().await;
    killed.kill();
    world.called("sync", part(3)).await;
    assert_eq!(world.redis.say("FLUSHALL"), "+OK");
    world.called("sync", part(4)).await;
    assert_eq!(world.redis.say("SAVE"), "+OK");
    world.called("sync", part(5)).await;
    // It comes back without its last writes.
    world.redis.restart();
    world.called("sync", part(7)).await;
    world.mongo.freeze();
    pass(Duration::from_secs(5)).await;
    world.mongo.thaw();

    let accepted = submitting.join_next().await.expect("one").expect("no panic");
    let jobs = all_complete(&api, super::LONG).await;
    let took = begun.elapsed();
    assert!(beside.try_join_next().is_none(), "the watch broke off: an ended job has changed");
    beside.shutdown().await;
    let found = api.all_jobs().await;
    assert!(accepted.iter().all(|id| found.contains_key(id)), "an acknowledged job is gone");
    for (id, job) in ended.lock().expect("no panic").iter() {
        assert_eq!(&found[id], job, "an ended job has changed");
    }

    let hooks = (all / 10) as u64;
    let syncs = jobs as u64 - hooks;
    let mut counts = vec![counted];
    for worker in &workers {
        counts.push(completed(worker, "sync").await);
    }
    let of_hooks = completed(&api, "hook").await;
    let (sync, hook) =
        (world.vendors.stats("sync", Duration::from_secs(1)), world.vendors.stats("hook", Duration::from_secs(1)));
    eprintln!(
        "{jobs} jobs in {took:?}: sync {} calls for {syncs} jobs ({} repeated), worst window {}; hook {} calls for {hooks} jobs ({} repeated), \
         worst window {}; the killed worker held {held}; ended, by process: {counts:?}, hooks {of_hooks}",
        sync.count, sync.repeats, sync.worst_window, hook.count, hook.repeats, hook.worst_window
    );
    assert!(sync.worst_window <= 300 && hook.worst_window <= 50, "{sync:?} {hook:?}");
    assert_eq!((sync.distinct as u64, hook.distinct as u64), (syncs, hooks));
    // Only what the killed worker had called for and not stored is called for again.
    assert!(sync.repeats + hook.repeats <= held, "{held} were held: {sync:?} {hook:?}");
    assert_eq!(of_hooks, hooks, "each webhook outcome counts once");
    let counted: u64 = counts.iter().sum();
    // What the killed worker counted last, between our look and its stop, is not known.
    assert!(counted <= syncs && counted + held + 50 >= syncs, "{counts:?} of {syncs}: each outcome counts once");
}

impl World {
    /// How many jobs a worker holds that was stopped in its tracks: what stays in the name of the one that has gone silent.
    async fn leased_by_the_silent_one(&self) -> u64 {
        let silent = wait_until("one worker is silent", super::LONG, async || {
            let workers = self.consumers("sync").await;
            let mut silent = workers.into_iter().filter(|(_, held)| held.idle_ms > 1000);
            silent.next().filter(|_| silent.next().is_none())
        });
        let (name, of_sync) = silent.await;
        let of_hook = self.consumers("hook").await.remove(&name);
        of_sync.pending + of_hook.map_or(0, |held| held.pending)
    }
}
