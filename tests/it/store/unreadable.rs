//! Documents that this version cannot read, because a newer one wrote them perhaps: none of them stops its neighbours.

use std::{collections::BTreeSet, time::Duration};

use fetchgate::{
    job::{Deadline, JobId, NewJob, Priority},
    store::{Filter, Sees, Slice},
};
use mongodb::bson::{Binary, Bson, Document, doc, spec::BinarySubtype};

use super::{TestStore, complete, site::Site};
use crate::support::servers;

const LONG: Duration = Duration::from_secs(20);

async fn make_unreadable(site: &Site, ids: &[JobId]) {
    let client = mongodb::Client::with_uri_str(servers::mongo().mongo_url(&site.database())).await.unwrap();
    let jobs = client.database(&site.database()).collection::<Document>("jobs");
    let id = |id: &JobId| Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: id.as_bytes().to_vec() });
    let these = doc! { "_id": { "$in": ids.iter().map(id).collect::<Vec<_>>() } };
    jobs.update_many(these, doc! { "$set": { "stage": "unheard-of" } }).await.unwrap();
}

async fn submit(t: &TestStore, jobs: usize) -> Vec<JobId> {
    t.submit_all((0..jobs).map(|_| t.job("v", Priority::Normal, "t")).collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_of_others_go_off() {
    let site = Site::new();
    let t = site.process().await;
    let deadline = Some(Deadline { at: t.now().plus(Duration::from_secs(1)), within: None });
    let jobs = (0..6).map(|_| NewJob { deadline, ..t.job("v", Priority::Normal, "t") });
    let ids = t.submit_all(jobs.collect()).await;
    make_unreadable(&site, &ids[..4]).await;
    t.advance(Duration::from_secs(2));
    let overdue = t.store.overdue(t.now(), 3).await.unwrap();
    assert_eq!(overdue.jobs.into_iter().collect::<BTreeSet<_>>(), ids[4..].iter().copied().collect());
    make_unreadable(&site, &ids).await;
    let overdue = t.store.overdue(t.now(), 3).await.unwrap();
    assert_eq!((overdue.jobs.len(), overdue.next_at), (0, None), "and nobody looks again and again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_others_are_reclaimed() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let ids = submit(&a, 4).await;
    assert_eq!(a.claim("v", 4).await.len(), 4);
    make_unreadable(&site, &ids[..2]).await;
    assert_eq!(b.lapse().await, 2);
    let free: BTreeSet<JobId> = b.claim_all("v").await.into_iter().map(|lease| lease.job.id).collect();
    assert_eq!(free, ids[2..].iter().copied().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_however_many_of_their_lane_are_before_them() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let ids = submit(&a, 60).await;
    make_unreadable(&site, &ids[..50]).await;
    let mut claimed = BTreeSet::new();
    for process in [&a, &b, &a, &b, &a, &b] {
        // After a while lanes are looked through again, whatever is known of them.
        site.clock.advance(Duration::from_secs(11));
        process.store.ready("v").await.unwrap();
        let leases = tokio::time::timeout(LONG, process.claim_all("v")).await.expect("it comes to an end");
        claimed.extend(leases.iter().map(|lease| lease.job.id));
        process.settle_all(leases.into_iter().map(|lease| (lease, complete())).collect()).await;
    }
    assert_eq!(claimed, ids[50..].iter().copied().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_behind_them() {
    let site = Site::new();
    let t = site.process().await;
    let wanted = t.submit_all(vec![NewJob { tags: vec!["x".into()], ..t.job("w", Priority::Normal, "t") }]).await;
    let mut others = Vec::new();
    for _ in 0..10 {
        others.extend(submit(&t, 500).await);
    }
    make_unreadable(&site, &others[..1000]).await;
    let filter = Filter { tag: Some("x".into()), ..Filter::default() };
    let first = t.store.list(&Sees::All, &filter, Slice::page(None, 10)).await.unwrap();
    assert!(first.jobs.is_empty() && first.next.is_some(), "so many are looked at for one page");
    let second = t.store.list(&Sees::All, &filter, Slice::page(first.next, 10)).await.unwrap();
    assert_eq!(second.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), wanted);
}
