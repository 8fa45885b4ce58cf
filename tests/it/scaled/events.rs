//! A reader of events, while API processes and workers are killed.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::{LONG, World, all_complete};
use crate::{
    failure::wait_until,
    support::stream::{Seen, ended, read_for_ever},
};

const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=20"
limits = [{ calls = 200, per = "1s" }]
concurrency = 16
timeout = "2s"
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=100&callback_retries=60"
limits = [{ calls = 50, per = "1s" }]
timeout = "2s"
answer_within = "60s"
webhook = { verify = "none" }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_misses_nothing_when_its_api_restarts_and_a_worker_is_killed() {
    let world = World::new(VENDORS).await;
    let (mut api, killed, _worker) = (world.api().await, world.worker().await, world.worker().await);
    let (seen, mut reading) = (Seen::default(), JoinSet::new());
    reading.spawn(read_for_ever(world.api, seen.clone()));
    let have_ended = async |jobs: usize| {
        wait_until("jobs have ended", LONG, async || (ended(&seen).len() >= jobs).then_some(())).await;
    };
    api.submit_many("sync", 400).await;
    api.submit_many("hook", 40).await;
    have_ended(100).await;
    killed.kill();
    have_ended(150).await;
    api.kill();
    api = world.api().await;
    api.submit_many("sync", 100).await;
    assert_eq!(all_complete(&api, LONG).await, 540);
    let jobs: BTreeSet<String> = api.all_jobs().await.into_keys().collect();
    wait_until("all were seen", LONG, async || (ended(&seen) == jobs).then_some(())).await;
    assert!(reading.try_join_next().is_none(), "the reader has broken off");
    reading.shutdown().await;
}
