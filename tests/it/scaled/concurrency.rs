//! A vendor's concurrency is shared by workers that come and go.

use std::time::Duration;

use super::{LONG, World, all_complete, completed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendor_never_sees_more_in_flight_than_configured_whoever_calls() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=100"
limits = []
concurrency = 6
timeout = "2s"
"#;
    let world = World::new(vendor).await;
    let api = world.api().await;
    let mut workers = vec![world.worker().await, world.worker().await];
    api.submit_many("sync", 400).await;
    world.called("sync", 80).await;
    workers.push(world.worker().await);
    world.called("sync", 160).await;
    let mut leaving = workers.remove(0);
    leaving.terminate();
    assert_eq!(leaving.exits(LONG).await.code(), Some(0), "{}", leaving.log());
    world.called("sync", 240).await;
    // Its places and its jobs are free again after a while, not at once.
    workers.remove(0).kill();
    workers.push(world.worker().await);
    world.called("sync", 320).await;
    assert_eq!(all_complete(&api, LONG).await, 400);
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    eprintln!("at most {} in flight, {} calls in {:.1} s", stats.max_in_flight, stats.count, stats.span_s);
    assert_eq!(stats.max_in_flight, 6, "{stats:?}");
    assert!(stats.repeats <= 6, "more than the killed worker had in flight: {stats:?}");
    for worker in &workers {
        assert!(completed(worker, "sync").await > 0, "one worker did it all, so nothing is shown");
    }
}
