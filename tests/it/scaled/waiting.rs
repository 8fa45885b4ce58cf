//! Callers that wait at one process for what another does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinSet;

use super::World;
use crate::failure::Process;

const VENDOR: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=100"
limits = []
"#;

/// How long after the end of each job its caller had the answer, in order.
async fn delays(api: &Arc<Process>, rounds: usize, at_once: usize) -> Vec<Duration> {
    let mut delays = Vec::new();
    for _ in 0..rounds {
        let mut waiting = JoinSet::new();
        for _ in 0..at_once {
            let api = api.clone();
            waiting.spawn(async move {
                let id = api.submit("sync", "1").await.expect("acknowledged");
                let asked = Instant::now();
                let job = api.json(&format!("/jobs/{id}?wait=10s")).await;
                assert_eq!(job["status"], "complete", "after {:?}: {job}", asked.elapsed());
                since(&job["finished_at"])
            });
        }
        while let Some(delay) = waiting.join_next().await {
            delays.push(delay.expect("no panic"));
        }
    }
    delays.sort();
    delays
}

/// All processes of a test go by one clock.
fn since(finished_at: &Value) -> Duration {
    let at: jiff::Timestamp = finished_at.as_str().expect("a time").parse().expect("RFC 3339");
    let now = fetchgate::clock::Clock::system().now();
    Duration::from_millis(u64::try_from(now.0 - at.as_millisecond()).unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_one_process_gets_the_answer_as_soon_as_another_has_ended_the_job() {
    let world = World::new(VENDOR).await;
    let (api, _worker) = (Arc::new(world.api().await), world.worker().await);
    let delays = delays(&api, 10, 5).await;
    eprintln!("told after p50 {:?}, worst {:?}", delays[delays.len() / 2], delays[delays.len() - 1]);
    assert!(delays[delays.len() - 1] < Duration::from_secs(1), "{delays:?}");
    assert!(delays[delays.len() / 2] < Duration::from_millis(250), "{delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_the_answer_a_second_later_when_the_message_is_lost() {
    let world = World::new(VENDOR).await;
    // The API's user of Redis may ring, and hear nothing.
    let deaf = ["ACL", "SETUSER", "deaf", "on", ">x", "~*", "+@all", "resetchannels", "&fetchgate:work:bells"];
    assert_eq!(world.ask_redis::<String>(&deaf).await, "OK");
    let url = world.redis.redis_url().replace("redis://", "redis://deaf:x@");
    let api = Arc::new(world.spawn("api", &[("FETCHGATE__QUEUE__URL", &url)]));
    api.ready().await;
    let _worker = world.worker().await;
    let delays = delays(&api, 3, 5).await;
    eprintln!("told after p50 {:?}, worst {:?}", delays[delays.len() / 2], delays[delays.len() - 1]);
    assert!(delays[delays.len() - 1] < Duration::from_secs(2), "{delays:?}");
    assert!(delays[delays.len() / 2] > Duration::from_millis(150), "it was told, so nothing is shown: {delays:?}");
}
