//! A Redis that comes back without its last writes: from an old snapshot, or as a replica that was behind.

use std::collections::BTreeSet;

use fetchgate::job::{JobId, Priority, Status};

use super::{LEASE, TestStore, complete, site::Site};

async fn submit(t: &TestStore, jobs: usize) -> Vec<JobId> {
    t.submit_all((0..jobs).map(|_| t.job("v", Priority::Normal, "t")).collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_claimed_since_stays_leased_and_nobody_else_gets_it() {
    let mut site = Site::with_snapshots();
    let (a, b) = (site.process().await, site.process().await);
    let mut ids = submit(&a, 8).await;
    site.save();
    let held = a.claim("v", 5).await;
    ids.extend(submit(&b, 2).await);
    site.come_back_older(&[&a, &b]).await;
    // Whatever it is asked first: nothing that the old index gives is taken from it.
    assert!(b.claim("v", 10).await.is_empty(), "it is not known yet who holds what");
    site.recover(&[&b, &a]).await;
    let others = b.claim_all("v").await;
    let all: Vec<JobId> = held.iter().chain(&others).map(|lease| lease.job.id).collect();
    assert_eq!((all.len(), all.into_iter().collect::<BTreeSet<_>>()), (10, ids.into_iter().collect()));
    for (process, leases) in [(&a, held), (&b, others)] {
        process.settle_all(leases.into_iter().map(|lease| (lease, complete())).collect()).await;
    }
    assert!(a.claim_all("v").await.is_empty());
    assert_eq!(site.ask::<i64>(&["HLEN", ":index"]).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_since_does_not_lapse_and_what_is_leased_stays_leased() {
    let mut site = Site::with_snapshots();
    let (a, b) = (site.process().await, site.process().await);
    submit(&a, 2).await;
    let (mut held, kept) = (a.claim("v", 1).await, a.claim("v", 1).await);
    assert_eq!(b.store.reclaim().await.unwrap(), 0);
    site.save();
    let settled = held.remove(0);
    let id = settled.job.id;
    a.settle(settled, complete()).await;
    // By what Redis remembers, both leases are over.
    site.clock.advance(LEASE);
    site.come_back_older(&[&a, &b]).await;
    assert_eq!(b.store.reclaim().await.unwrap(), 0);
    site.recover(&[&a, &b]).await;
    assert!(b.claim_all("v").await.is_empty(), "the one has ended, the other is held");
    for lease in kept {
        a.settle(lease, complete()).await;
    }
    assert_eq!(a.status(id).await, Status::Complete);
}
