//! Jobs so large that they do not fit: one into MongoDB, or many into one answer of it.

use std::{collections::BTreeSet, time::Duration};

use fetchgate::{
    job::{FailureCode, Job, JobId, NewJob, Priority, Status, lifecycle, lifecycle::Next},
    store::{Amended, Sees, Settled, Which, redis_mongo::VendorWork},
};
use mongodb::bson::{Binary, Document, doc, spec::BinarySubtype};

use super::{TestStore, complete, site::Site, work};
use crate::support::servers;

const MIB: usize = 1 << 20;

async fn submit(t: &TestStore, jobs: usize, bytes: usize) -> Vec<JobId> {
    let payload = || format!("\"{}\"", "x".repeat(bytes - 2)).into();
    t.submit_all((0..jobs).map(|_| NewJob { payload: payload(), ..t.job("v", Priority::Normal, "t") }).collect()).await
}

/// As a version wrote it that took tickets of any length.
async fn give_a_large_ticket(site: &Site, id: JobId) {
    let client = mongodb::Client::with_uri_str(servers::mongo().mongo_url(&site.database())).await.unwrap();
    let jobs = client.database(&site.database()).collection::<Document>("jobs");
    let id = Binary { subtype: BinarySubtype::Generic, bytes: id.as_bytes().to_vec() };
    jobs.update_one(doc! { "_id": id }, doc! { "$set": { "ticket": "t".repeat(8 * MIB) } }).await.unwrap();
}

fn large() -> Next {
    Next::Complete { result: format!("\"{}\"", "x".repeat(7 * MIB)).into() }
}

fn assert_too_large(job: &Job) {
    assert_eq!(
        (job.status, job.failure.as_ref().map(|why| why.code)),
        (Status::Failed, Some(FailureCode::ResponseTooLarge))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_mongodb_does_not_take_ends_its_job_and_no_others() {
    let site = Site::new();
    let t = site.process().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.extend(submit(&t, 2, 2 * MIB).await);
    }
    give_a_large_ticket(&site, ids[2]).await;
    let leases = t.claim_all("v").await;
    assert_eq!(leases.len(), 6);
    let settles = leases.into_iter().map(|lease| {
        let next = if lease.job.id == ids[2] { large() } else { complete() };
        (lease, next)
    });
    t.settle_all(settles.collect()).await;
    for id in &ids {
        let job = t.find(*id).await;
        match *id == ids[2] {
            true => assert_too_large(&job),
            false => assert_eq!(job.status, Status::Complete),
        }
    }
    assert!(t.claim_all("v").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_from_outside_that_mongodb_does_not_take_ends_its_job() {
    let site = Site::new();
    let t = site.process().await;
    let id = submit(&t, 1, 2 * MIB).await[0];
    give_a_large_ticket(&site, id).await;
    let lease = t.claim_one().await;
    assert_eq!(
        t.settle(lease, Next::Await { answer_by: t.now().plus(Duration::from_secs(60)) }).await,
        Settled::Stored
    );
    let Next::Complete { result } = large() else { unreachable!() };
    let decide = Box::new(move |job: &_| lifecycle::answered(job, None, Ok(result.clone())));
    let amended =
        t.store.amend(&Sees::All, Which::Id(id), t.now(), decide).await.expect("it is answered, not tried for ever");
    assert!(matches!(amended, Amended::Changed(_)));
    assert_too_large(&t.find(id).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_takes_no_more_than_fits_and_leaves_the_rest_to_the_next() {
    let site = Site::new();
    let deep = || vec![VendorWork { depth: 64, ..work("v") }];
    let (a, b) = (site.process_for(deep(), &site.clock).await, site.process_for(deep(), &site.clock).await);
    let mut ids = BTreeSet::new();
    for _ in 0..20 {
        ids.extend(submit(&a, 2, MIB).await);
    }
    let first = a.claim("v", 256).await;
    assert!((8..=20).contains(&first.len()), "{} jobs of 1 MiB", first.len());
    let second = b.claim("v", 256).await;
    assert!(!second.is_empty(), "what was left is free at once");
    let rest = b.claim_all("v").await;
    let all: Vec<JobId> = first.iter().chain(&second).chain(&rest).map(|lease| lease.job.id).collect();
    assert_eq!((all.len(), all.into_iter().collect::<BTreeSet<_>>()), (40, ids));
}
