//! Result webhooks from two workers, one of which is killed.

use super::World;
use crate::{
    owed::{VENDOR, all_come, arrived, submit},
    support::servers::Server,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_send_each_end_once_and_a_killed_one_loses_none() {
    let world = World::over(Server::redis, VENDOR).await;
    let api = world.api().await;
    let (killed, _other) = (world.worker().await, world.worker().await);
    let calm = submit(&api, &world.vendors, "calm", 500).await;
    assert_eq!(all_come(&api, &world.vendors, "calm", &calm).await, 0, "each comes once");
    let storm = submit(&api, &world.vendors, "storm", 500).await;
    arrived(&world.vendors, "storm", 100).await;
    killed.kill();
    let repeated = all_come(&api, &world.vendors, "storm", &storm).await;
    assert!(repeated <= 8, "only what it was sending: {repeated}");
}
