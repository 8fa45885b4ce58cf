//! Clocks that are set, Redis' and those of processes, while jobs are held: nobody's call is made again for it, and nobody waits for long.

use std::time::Duration;

use fetchgate::{
    clock::Clock,
    store::{Settled, redis_mongo::VendorWork},
};

use super::{
    LEASE, complete,
    site::{SHUT, Site},
    work,
};
use crate::failure::wait_until;

const DAY: i64 = 24 * 3600;
/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_does_not_lapse_because_the_clock_of_redis_is_set() {
    let (site, clock) = (Site::with_a_clock_of_redis(), Clock::system());
    let start = async || site.process_for(vec![work("v")], &clock).await;
    let (a, b) = (start().await, start().await);
    let mut held = Vec::new();
    // Each is claimed under another time, and the clock is set again while it is held.
    for ahead in [0, 25, DAY, 3600, -DAY, 0, 25] {
        site.redis().set_clock(ahead);
        for process in [&a, &b, &start().await] {
            assert_eq!(process.store.reclaim().await.unwrap(), 0, "set to {ahead} s");
            assert!(process.claim_all("v").await.is_empty());
        }
        a.submit().await;
        held.push(a.claim_one().await);
    }
    for lease in held {
        assert_eq!(a.settle(lease, complete()).await, Settled::Stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_a_dead_worker_lapses_in_time_though_the_clock_of_redis_is_set_back() {
    let (site, clock) = (Site::with_a_clock_of_redis(), Clock::system());
    let start =
        async || site.process_for(vec![VendorWork { lease: Duration::from_secs(1), ..work("v") }], &clock).await;
    let (a, b) = (start().await, start().await);
    for ahead in [-DAY, 2 * DAY, 0] {
        a.submit().await;
        let lease = a.claim_one().await;
        site.redis().set_clock(ahead);
        let freed = async || Some(b.store.reclaim().await.unwrap()).filter(|freed| *freed == 1);
        wait_until("it is free", LONG, freed).await;
        let again = b.claim_one().await;
        assert_eq!((again.job.id, again.attempt), (lease.job.id, 2));
        assert_eq!(b.settle(again, complete()).await, Settled::Stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_clock_is_fast_claims_nothing_in_a_new_index_before_the_others_said_what_they_hold() {
    let site = Site::new();
    let fast = Clock::manual(site.now().plus(Duration::from_secs(3600)));
    let (holder, other) = (site.process().await, site.process().await);
    let fast = site.process_for(vec![work("v")], &fast).await;
    let id = holder.submit().await;
    let lease = holder.claim_one().await;
    site.lose_the_index().await;
    other.store.ready("v").await.unwrap();
    // It is open already, by its wall clock.
    fast.store.ready("v").await.unwrap();
    assert!(fast.claim_all("v").await.is_empty(), "{id} is held");
    site.recover(&[&other, &holder]).await;
    assert!(fast.claim_all("v").await.is_empty(), "{id} is held");
    assert_eq!(holder.settle(lease, complete()).await, Settled::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_index_opens_in_time_though_wall_clocks_are_set_back() {
    let site = Site::new();
    let a = site.process().await;
    let id = a.submit().await;
    site.lose_the_index().await;
    a.store.ready("v").await.unwrap();
    site.clock.step(-9_000_000_000);
    site.clock.advance(SHUT);
    a.store.ready("v").await.unwrap();
    site.clock.step(9_000_000_000);
    assert_eq!(a.claim_one().await.job.id, id);
    site.clock.advance(LEASE);
}
