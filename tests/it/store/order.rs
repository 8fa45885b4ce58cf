//! Who is next: order, fairness, lanes longer than what is kept in memory.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fetchgate::{
    clock::Time,
    job::{JobId, Priority, lifecycle, lifecycle::Next},
    store::{Sees, Store, Which},
};
use tokio::task::JoinSet;

use super::{TestStore, complete};
use crate::{on_every_backend, support::Backend};

on_every_backend!(
    a_lane_goes_first_in_first_out_by_due_time,
    tenants_share_equally_however_much_they_have,
    priorities_share_16_to_4_to_1,
    polls_go_before_calls_and_when_no_calls_may_be_made,
    a_lane_longer_than_memory_drains_once_and_in_order,
    a_lane_whose_jobs_in_memory_are_all_cancelled_goes_on,
    thousands_of_lanes_are_all_found_after_a_restart,
    jobs_larger_than_memory_together_all_come_by,
);

async fn a_lane_goes_first_in_first_out_by_due_time(backend: Backend) {
    let t = TestStore::open(backend).await;
    let mut jobs: Vec<_> = (0..10).map(|_| t.job("v", Priority::Normal, "t")).collect();
    jobs[3].due_at = Time(t.now().0 - 5);
    jobs[7].due_at = Time(t.now().0 + 1000);
    let ids = t.submit_all(jobs).await;
    let order: Vec<JobId> = t.claim("v", 20).await.into_iter().map(|lease| lease.job.id).collect();
    assert_eq!(order, [3, 0, 1, 2, 4, 5, 6, 8, 9].map(|i: usize| ids[i]));
    assert_eq!(t.store.ready("v").await.unwrap().next_due, Some(Time(t.now().0 + 1000)));
    t.advance(Duration::from_secs(1));
    assert_eq!(t.claim("v", 20).await[0].job.id, ids[7]);
}

async fn tenants_share_equally_however_much_they_have(backend: Backend) {
    let t = TestStore::open(backend).await;
    let noisy = (0..3000).map(|_| t.job("v", Priority::Normal, "noisy")).collect();
    t.submit_all(noisy).await;
    for tenant in ["a", "b"] {
        t.submit_all((0..50).map(|_| t.job("v", Priority::Normal, tenant)).collect()).await;
    }
    let mut counts: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    // By ones and by many: the turn is kept between claims.
    for most in [1, 1, 1, 1, 7, 30, 2, 50, 1, 56] {
        for lease in t.claim("v", most).await {
            *counts.entry(lease.job.lane.tenant.clone()).or_default() += 1;
        }
    }
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [50, 50, 50], "{counts:?}");
}

async fn priorities_share_16_to_4_to_1(backend: Backend) {
    let t = TestStore::open(backend).await;
    for priority in Priority::ALL {
        for tenant in ["a", "b"] {
            t.submit_all((0..200).map(|_| t.job("v", priority, tenant)).collect()).await;
        }
    }
    let mut counts = [0; 3];
    for claimed in 1..=210 {
        for lease in t.claim("v", 1).await {
            counts[lease.job.lane.priority as usize] += 1;
        }
        if claimed % 21 == 0 {
            assert_eq!(counts, [16, 4, 1].map(|share| share * claimed / 21));
        }
    }
}

async fn polls_go_before_calls_and_when_no_calls_may_be_made(backend: Backend) {
    let t = TestStore::open(backend).await;
    let accepted = t.submit().await;
    let lease = t.claim_one().await;
    let due_at = t.now().plus(Duration::from_secs(2));
    t.settle(lease, Next::Poll { due_at, answer_by: t.now().plus(Duration::from_secs(60)) }).await;
    let waiting = t.submit().await;
    assert!(t.claim_calls("v", 10, 0).await.is_empty(), "the call may not be made, the poll is not due");
    let ready = t.store.ready("v").await.unwrap();
    assert_eq!((ready.next_due, ready.next_poll), (Some(t.now()), Some(due_at)));
    assert_eq!(t.store.backlog("v").await.open, 1);
    t.advance(Duration::from_secs(2));
    let leases = t.claim_calls("v", 10, 0).await;
    assert_eq!(leases.iter().map(|lease| lease.job.id).collect::<Vec<_>>(), [accepted]);
    t.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
    let order: Vec<JobId> = t.claim("v", 10).await.into_iter().map(|lease| lease.job.id).collect();
    assert_eq!(order, [accepted, waiting]);
}

async fn a_lane_longer_than_memory_drains_once_and_in_order(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let most = 2 * t.long_lane();
    let mut rng = fastrand::Rng::with_seed(7);
    let start = t.now();
    let mut due: BTreeMap<JobId, (Time, usize)> = BTreeMap::new();
    for batch in 0..most / 400 {
        let mut jobs: Vec<_> = (0..400).map(|_| t.job("v", Priority::Normal, "t")).collect();
        for (i, job) in jobs.iter_mut().enumerate() {
            if rng.u8(..) < 100 {
                job.due_at = start.plus(Duration::from_millis(rng.u64(..20_000)));
            }
            due.insert(job.id, (job.due_at, batch * 400 + i));
        }
        t.submit_all(jobs).await;
    }
    let cancelled: HashSet<JobId> = due.keys().copied().filter(|_| rng.u8(..) < 20).collect();
    cancel_all(&t.store, t.now(), cancelled.iter().copied()).await;
    assert_eq!(t.store.backlog("v").await.waiting, (most - cancelled.len()) as u64);

    t.restart().await;
    let (mut seen, mut last, mut ended) = (HashSet::new(), (Time(0), 0), 0);
    while ended < most - cancelled.len() {
        let leases = t.claim("v", 256).await;
        if leases.is_empty() {
            t.quiet().await;
            if let Some(next) = t.store.ready("v").await.unwrap().next_due.filter(|next| *next > t.now()) {
                t.advance(next.since(t.now()).max(Duration::from_millis(250)));
            }
            assert!(t.now().since(start) < Duration::from_secs(60), "stuck with {ended} done");
            continue;
        }
        let mut settles = Vec::new();
        for lease in leases {
            let (id, run) = (lease.job.id, lease.attempt);
            assert!(!cancelled.contains(&id));
            assert!(seen.insert((id, run)), "leased twice for one attempt");
            if run == 1 {
                // First attempts come by due time, then arrival.
                let place = due[&id];
                assert!(last < place, "{last:?} went before {place:?}");
                last = place;
            }
            if run == 1 && rng.u8(..) < 40 {
                let due_at = t.now().plus(Duration::from_millis(rng.u64(1..3000)));
                settles.push((lease, Next::Call { due_at }));
            } else {
                settles.push((lease, complete()));
                ended += 1;
            }
        }
        t.settle_all(settles).await;
    }
    let backlog = t.store.backlog("v").await;
    assert_eq!((backlog.waiting, backlog.leased, backlog.open), (0, 0, 0));
    assert!(t.claim_all("v").await.is_empty());
}

async fn cancel_all(store: &Arc<dyn Store>, now: Time, ids: impl Iterator<Item = JobId>) {
    let mut cancels = JoinSet::new();
    for id in ids {
        let store = store.clone();
        cancels.spawn(async move { store.amend(&Sees::All, Which::Id(id), now, Box::new(lifecycle::cancel)).await });
    }
    while let Some(cancelled) = cancels.join_next().await {
        cancelled.expect("no panic").expect("the store works");
    }
}

async fn a_lane_whose_jobs_in_memory_are_all_cancelled_goes_on(backend: Backend) {
    let t = TestStore::open(backend).await;
    let ids = t.submit_all((0..3000).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    cancel_all(&t.store, t.now(), ids[..2500].iter().copied()).await;
    t.quiet().await;
    let left: Vec<JobId> = t.claim_all("v").await.into_iter().map(|lease| lease.job.id).collect();
    assert_eq!(left, ids[2500..]);
}

async fn thousands_of_lanes_are_all_found_after_a_restart(backend: Backend) {
    const TENANTS: usize = 5000;
    let mut t = TestStore::open(backend).await;
    t.submit_all((0..TENANTS).map(|i| t.job("v", Priority::Normal, &format!("t{i}"))).collect()).await;
    t.restart().await;
    for _ in 0..TENANTS / 64 {
        t.quiet().await;
    }
    let tenants: HashSet<Arc<str>> =
        t.claim_all("v").await.into_iter().map(|lease| lease.job.lane.tenant.clone()).collect();
    assert_eq!(tenants.len(), TENANTS);
}

async fn jobs_larger_than_memory_together_all_come_by(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let large = bytes::Bytes::from(format!("\"{}\"", "x".repeat(1 << 20)));
    let mut ids = HashSet::new();
    for tenant in 0..16 {
        let mut jobs: Vec<_> = (0..6).map(|_| t.job("v", Priority::Normal, &format!("t{tenant}"))).collect();
        jobs.iter_mut().for_each(|job| job.payload = large.clone());
        ids.extend(t.submit_all(jobs).await);
    }
    t.restart().await;
    t.quiet().await;
    let mut claimed = HashSet::new();
    for _ in 0..2 * ids.len() {
        for lease in t.claim("v", 3).await {
            assert_eq!(lease.job.payload, large);
            claimed.insert(lease.job.id);
            t.settle(lease, complete()).await;
        }
        t.quiet().await;
    }
    assert_eq!(claimed, ids);
}
