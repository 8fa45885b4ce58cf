//! Redis behind Sentinels, whose master is replaced under load, and Redis as a Cluster, one node of which goes away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    LONG, World, all_complete, key,
    storm::{Ended, go_on_submitting, watch},
};
use crate::{
    failure::{Process, wait_until},
    support::servers::{Cluster, Queue, Sentinels},
};

/// The guard is wide, because the vendors share two busy cores with a dozen processes: what is shown is the failover, not the network.
const VENDORS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=100"
limits = [{ calls = 60, per = "1s", shape = "paced", guard = "200ms" }, { calls = 900, per = "15s", shape = "window", guard = "1s" }]
concurrency = 16
timeout = "5s"
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=100&callback_retries=60"
limits = [{ calls = 20, per = "1s", shape = "window", guard = "200ms" }]
concurrency = 8
timeout = "5s"
answer_within = "60s"
webhook = { verify = "none" }
"#;

/// What goes on beside the test: one submits, one looks whether what has ended changes.
struct Load {
    api: Arc<Process>,
    ended: Ended,
    submitting: JoinSet<Vec<String>>,
    watching: JoinSet<()>,
}

impl Load {
    async fn begin(api: Process, jobs: usize) -> Load {
        let api = Arc::new(api);
        api.submit_many("hook", jobs / 5).await;
        api.submit_many("sync", jobs).await;
        let ended = Ended::new(Mutex::new(BTreeMap::new()));
        let (mut submitting, mut watching) = (JoinSet::new(), JoinSet::new());
        submitting.spawn(go_on_submitting(api.clone(), 200));
        watching.spawn(watch(api.clone(), Arc::clone(&ended)));
        Load { api, ended, submitting, watching }
    }

    /// Waits until all is done: nothing is lost, nothing has ended twice, no limit was broken, nobody was called twice.
    async fn ends_well<R: Queue>(mut self, world: &World<R>) {
        let accepted = self.submitting.join_next().await.expect("one").expect("no panic");
        let jobs = all_complete(&self.api, 2 * LONG).await;
        assert!(self.watching.try_join_next().is_none(), "the watch broke off: an ended job has changed");
        self.watching.shutdown().await;
        let found = self.api.all_jobs().await;
        assert!(accepted.iter().all(|id| found.contains_key(id)), "an acknowledged job is gone");
        for (id, job) in self.ended.lock().expect("no panic").iter() {
            assert_eq!(&found[id], job, "an ended job has changed");
        }
        let stats = |name: &str, secs| world.vendors.stats(name, Duration::from_secs(secs));
        let (sync, hook) = (stats("sync", 1), stats("hook", 1));
        eprintln!("{jobs} jobs; sync {sync:?}; hook {hook:?}");
        assert_eq!(sync.distinct + hook.distinct, jobs, "each job was called for");
        assert!(sync.worst_window <= 60 && hook.worst_window <= 20, "{sync:?} {hook:?}");
        assert!(stats("sync", 15).worst_window <= 900, "{:?}", stats("sync", 15));
        assert_eq!((sync.repeats, hook.repeats), (0, 0), "each was called once");
    }
}

/// Work has gone on: the vendor was called so often more.
async fn goes_on<R: Queue>(world: &World<R>, since: Instant, why: &str) {
    let called = world.vendors.count("sync");
    world.called("sync", called + 20).await;
    eprintln!("{why}: work goes on after {:?}", since.elapsed());
    // Nine seconds on a machine that has nothing else to do.
    assert!(since.elapsed() < Duration::from_secs(40), "{why}: {:?}", since.elapsed());
}

async fn another_master(world: &World<Sentinels>, before: usize) -> usize {
    wait_until("another master", LONG, async || world.redis.master().filter(|now| *now != before)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute long: make failover runs it"]
async fn a_master_that_is_replaced_costs_some_seconds_and_no_promise() {
    let mut world = World::over(|| Sentinels::new(1), VENDORS).await;
    let (api, _workers) = (world.api().await, [world.worker().await, world.worker().await]);
    let load = Load::begin(api, 1000).await;
    world.called("sync", 150).await;
    // It stands still, is replaced, and comes to again as a master that knows nothing of that.
    let first = world.redis.master().expect("a master");
    let gone = Instant::now();
    world.redis.nodes[first].freeze();
    let second = another_master(&world, first).await;
    goes_on(&world, gone, "the master stood still").await;
    world.redis.nodes[first].thaw();
    goes_on(&world, Instant::now(), "the old master came to").await;
    let follow = async || (world.redis.replicas_of(second) == 2).then_some(());
    wait_until("the old master is a replica", LONG, follow).await;
    let gone = Instant::now();
    world.redis.nodes[second].end();
    another_master(&world, second).await;
    goes_on(&world, gone, "the master died").await;
    load.ends_well(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute long: make failover runs it"]
async fn a_node_of_a_cluster_that_dies_and_comes_back_costs_no_promise() {
    let mut world = World::over(Cluster::new, VENDORS).await;
    let (api, _workers) = (world.api().await, [world.worker().await, world.worker().await]);
    let load = Load::begin(api, 600).await;
    world.called("sync", 150).await;
    let node = world.redis.node_of("{sync}");
    world.redis.nodes[node].end();
    assert!(load.api.submit("sync", "1").await.is_some(), "jobs are accepted");
    super::pass(Duration::from_secs(4)).await;
    world.redis.nodes[node].restart();
    goes_on(&world, Instant::now(), "the node came back").await;
    load.ends_well(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute long: make failover runs it"]
async fn claims_that_the_new_master_lacks_are_not_called_again() {
    // The calls last longer than the election, and there would be room to make them again.
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=12000"
limits = []
concurrency = 24
timeout = "25s"
"#;
    let mut world = World::over(|| Sentinels::new(0), vendor).await;
    let (api, _workers) = (world.api().await, [world.worker().await, world.worker().await]);
    let master = world.redis.master().expect("a master");
    let replicas: Vec<usize> = (0..3).filter(|node| *node != master).collect();
    let is_known = format!("HEXISTS {} epoch", key("sync", "state"));
    let open = async || replicas.iter().all(|node| world.redis.nodes[*node].say(&is_known) == ":1").then_some(());
    wait_until("the replicas know the index", LONG, open).await;
    // What is claimed from here on the replicas have not heard of when the master dies.
    replicas.iter().for_each(|node| world.redis.nodes[*node].freeze());
    assert_eq!(world.redis.nodes[master].say("CLIENT KILL TYPE replica"), ":2");
    api.submit_many("sync", 12).await;
    world.called("sync", 12).await;
    world.redis.nodes[master].end();
    replicas.iter().for_each(|node| world.redis.nodes[*node].thaw());
    another_master(&world, master).await;
    assert_eq!(all_complete(&api, LONG).await, 12);
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (12, 0), "live workers register their leases: {stats:?}");
}
