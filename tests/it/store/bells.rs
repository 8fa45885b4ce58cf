//! Whoever waits for work is woken for it: what makes a job free, or room for one, rings.

use std::{
    sync::{Arc, Barrier},
    time::Duration,
};

use fetchgate::{
    job::{Priority, lifecycle::Next},
    store::{Amended, Sees, Settled, Which},
};
use tokio::{sync::Notify, task::JoinSet};

use super::{DEPTH, LEASE, TestStore, complete, site::Site, work};
use crate::{on_every_backend, support::Backend};

on_every_backend!(
    a_job_that_is_reclaimed_rings,
    what_waits_rings_after_a_restart,
    a_job_that_somebody_looked_at_and_left_is_not_missed,
    data_from_a_stale_lease_leaves_room_and_rings,
);

/// The bell of `v`, after all that was rung so far.
async fn bell(t: &TestStore) -> Arc<Notify> {
    let bell = t.store.signals().bell("v").expect("a vendor of ours");
    while tokio::time::timeout(Duration::from_millis(100), bell.notified()).await.is_ok() {}
    bell
}

async fn assert_rings(bell: &Notify) {
    tokio::time::timeout(Duration::from_secs(20), bell.notified()).await.expect("it rings");
}

async fn a_job_that_is_reclaimed_rings(backend: Backend) {
    let t = TestStore::open(backend).await;
    t.submit().await;
    drop(t.claim_one().await);
    assert_eq!(t.store.reclaim().await.unwrap(), 0);
    t.advance(LEASE);
    let bell = bell(&t).await;
    assert_eq!(t.store.reclaim().await.unwrap(), 1);
    assert_rings(&bell).await;
}

async fn what_waits_rings_after_a_restart(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    t.submit().await;
    t.restart().await;
    assert_rings(&t.store.signals().bell("v").expect("a vendor of ours")).await;
    t.claim_one().await;
}

async fn a_job_that_somebody_looked_at_and_left_is_not_missed(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let bell = bell(&t).await;
    let [looking, go_on] = [(); 2].map(|()| Arc::new(Barrier::new(2)));
    let decide = {
        let (looking, go_on) = (looking.clone(), go_on.clone());
        Box::new(move |_: &_| {
            looking.wait();
            go_on.wait();
            None
        })
    };
    let mut amending = JoinSet::new();
    let (store, now) = (t.store.clone(), t.now());
    amending.spawn(async move { store.amend(&Sees::All, Which::Id(id), now, decide).await });
    tokio::task::spawn_blocking(move || looking.wait()).await.unwrap();
    let claimed = t.claim("v", 1).await.len();
    tokio::task::spawn_blocking(move || go_on.wait()).await.unwrap();
    assert!(matches!(amending.join_next().await, Some(Ok(Ok(Amended::Left(_))))));
    if claimed == 0 {
        assert_rings(&bell).await;
        t.claim_one().await;
    }
}

async fn data_from_a_stale_lease_leaves_room_and_rings(backend: Backend) {
    let t = match backend {
        Backend::Sqlite => TestStore::open(backend).await,
        Backend::RedisMongo => {
            let site = Site::new();
            let with_open = fetchgate::store::redis_mongo::VendorWork { open: Some(1), ..work("v") };
            site.process_for(vec![with_open], &site.clock).await
        }
    };
    t.submit().await;
    let lease = t.claim_one().await;
    t.settle(lease, Next::Poll { due_at: t.now(), answer_by: t.now().plus(LEASE * 9) }).await;
    let stale = t.claim_one().await;
    assert_eq!(t.lapse().await, 1);
    let bell = bell(&t).await;
    assert_eq!(t.settle(stale, complete()).await, Settled::Stored);
    assert_rings(&bell).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_does_wakes_the_others() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    a.submit_all((0..4 * DEPTH).map(|_| a.job("v", Priority::Normal, "t")).collect()).await;
    let lease = a.claim("v", 1).await.remove(0);
    let of_b = bell(&b).await;
    a.store.release(vec![(lease, None)]).await;
    assert_rings(&of_b).await;

    let of_b = bell(&b).await;
    a.store.wake("v").await.unwrap();
    assert_rings(&of_b).await;

    // A claim that finds the stream empty fills it, also for the others.
    a.claim("v", DEPTH).await;
    let of_b = bell(&b).await;
    assert_eq!(a.claim("v", 1).await.len(), 1);
    assert_rings(&of_b).await;

    // So does a sweep after a loss.
    site.lose_the_index().await;
    let of_b = bell(&b).await;
    site.recover(&[&a, &b]).await;
    assert_rings(&of_b).await;
}
