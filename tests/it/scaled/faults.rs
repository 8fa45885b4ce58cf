//! Processes that die between MongoDB and Redis: at points that a debug build can be told to die at.

use std::time::Duration;

use serde_json::json;

use super::{LONG, World, all_complete, key, wait_until};

const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = []
timeout = "1s"
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=300&callback_retries=60"
limits = []
timeout = "1s"
webhook = { verify = "none" }
[vendors.poll]
kind = "polling"
url = "VENDORS/polling/poll?polls=2"
limits = []
timeout = "1s"
polling = { ticket = "/id", url = "VENDORS/polling/poll/{{ ticket | path }}", every = "200ms", done = { at = "/state", is = ["done"] }, result = "/output" }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_done_although_the_api_died_before_it_could_tell_anybody_of_it() {
    let world = World::new(VENDORS).await;
    let worker = world.worker().await;
    let mut dying = world.spawn("api", &[("FETCHGATE_FAULT", "inserted")]);
    dying.ready().await;
    assert_eq!(dying.submit("sync", "1").await, None, "it died before it could answer");
    assert_eq!(dying.exits(LONG).await.code(), None, "it ended by a signal");

    let api = world.api().await;
    assert_eq!(all_complete(&api, LONG).await, 1, "what was stored is done");
    assert_eq!(world.vendors.count("sync"), 1);
    drop(worker);
}

/// Jobs in the streams of all vendors.
async fn in_the_index(world: &World) -> u64 {
    let mut all = 0;
    for vendor in ["sync", "hook", "poll"] {
        all += world.ask_redis::<u64>(&["HLEN", &key(vendor, "index")]).await;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_once_although_the_worker_died_before_it_could_tell_anybody_of_the_outcome() {
    let world = World::new(VENDORS).await;
    let api = world.api().await;
    for vendor in ["sync", "hook", "poll"] {
        let mut dying = world.spawn("worker", &[("FETCHGATE_FAULT", "settled")]);
        dying.ready().await;
        let id = api.submit(vendor, "1").await.expect("acknowledged");
        assert_eq!(dying.exits(LONG).await.code(), None, "{vendor}: it ended by a signal");
        // Stored is stored: what was got from the vendor is neither lost nor asked for again.
        let job = api.json(&format!("/jobs/{id}")).await;
        let stored = if vendor == "sync" { "complete" } else { "processing" };
        assert_eq!((&job["status"], &job["attempts"]), (&json!(stored), &json!(1)), "{vendor}: {job}");
    }
    assert!(in_the_index(&world).await > 0, "somebody else was told, so nothing is shown");
    let worker = world.worker().await;
    assert_eq!(all_complete(&api, LONG).await, 3);
    let jobs = api.all_jobs().await;
    for vendor in ["sync", "hook", "poll"] {
        let stats = world.vendors.stats(vendor, Duration::from_secs(1));
        assert_eq!((stats.distinct, stats.repeats), (1, 0), "{vendor}: {stats:?}");
    }
    // Entries of the dead are taken over when their leases are over, and lead to nothing.
    let empty = async || (in_the_index(&world).await == 0).then_some(());
    wait_until("nothing is left in the index", LONG, empty).await;
    assert_eq!(api.all_jobs().await, jobs, "an ended job has changed");
    assert_eq!(world.vendors.count("sync"), 1);
    drop(worker);
}
