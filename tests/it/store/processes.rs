//! What several processes do to each other, and servers to them.

use std::{collections::BTreeSet, time::Duration};

use fetchgate::{
    clock::Clock,
    job::{FailureCode, Idempotency, JobId, NewJob, Priority, Status, lifecycle, lifecycle::Next},
    store::{Ahead, Claim, Filter, Sees, Settled, Slice, Submitted, Which, redis_mongo::VendorWork},
};
use tokio::task::JoinSet;

use super::{
    LEASE, TestStore, complete,
    site::{SHUT, Site},
    work,
};
use crate::failure::wait_until;

const LONG: Duration = Duration::from_secs(20);

fn with_open(open: u64) -> Vec<VendorWork> {
    vec![VendorWork { open: Some(open), ..work("v") }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_ends_in_one_process_wakes_the_others_that_wait_for_room() {
    let site = Site::new();
    let (a, b) = (site.process_for(with_open(1), &site.clock).await, site.process_for(with_open(1), &site.clock).await);
    let bell = b.store.signals().bell("v").unwrap();
    for next in [complete(), Next::Call { due_at: site.now().plus(LEASE) }] {
        a.submit_all((0..2).map(|_| a.job("v", Priority::Normal, "t")).collect()).await;
        let lease = a.claim_one().await;
        assert!(b.claim("v", 1).await.is_empty(), "one may be open, and is being called");
        // What was rung so far is heard before the end of the call.
        while tokio::time::timeout(Duration::from_millis(100), bell.notified()).await.is_ok() {}
        a.settle(lease, next).await;
        tokio::time::timeout(LONG, bell.notified()).await.expect("the other process is woken");
        let lease = b.claim_one().await;
        b.settle(lease, complete()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_on_record_is_made_by_nobody_else_though_the_index_forgot_its_holder() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let id = a.submit().await;
    let lease = a.claim_one().await;
    assert_eq!(a.store.mark(vec![lease]).await.unwrap().len(), 1);
    a.store.close().await;
    site.lose_the_index().await;
    site.recover(&[&b]).await;
    assert!(b.claim_all("v").await.is_empty(), "it may have been called");
    assert_eq!(b.lapse().await, 1);
    let job = b.find(id).await;
    assert_eq!((job.status, job.failure.map(|why| why.code)), (Status::Failed, Some(FailureCode::UnknownOutcome)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_faster_than_the_word_that_the_call_is_over_counts_no_attempt_more() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let id = a.submit().await;
    let lease = a.claim_one().await;
    a.settle(lease, Next::Await { answer_by: site.now().plus(LONG) }).await;
    site.note_as_leased(id).await;
    let decide = Box::new(|job: &_| lifecycle::answered(job, None, Ok("2".into())));
    b.store.amend(&Sees::All, Which::Id(id), site.now(), decide).await.unwrap();
    let job = a.find(id).await;
    assert_eq!((job.status, job.attempt), (Status::Complete, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_calls_are_open_than_may_be_however_many_processes_claim() {
    let site = Site::new();
    let processes = [
        site.process_for(with_open(5), &site.clock).await,
        site.process_for(with_open(5), &site.clock).await,
        site.process_for(with_open(5), &site.clock).await,
    ];
    processes[0].submit_all((0..60).map(|_| processes[0].job("v", Priority::Normal, "t")).collect()).await;
    let answer_by = site.now().plus(Duration::from_secs(3600));
    let mut open: Vec<JobId> = Vec::new();
    let mut ended = 0;
    while ended < 60 {
        let mut claims = JoinSet::new();
        for (which, process) in processes.iter().enumerate() {
            let claim = Claim { vendor: "v".into(), most: 4, calls: 4, now: site.now(), lease: LEASE };
            let store = process.store.clone();
            claims.spawn(async move { (which, store.claim(&claim).await.expect("the store works")) });
        }
        let leases = claims.join_all().await;
        let claimed: usize = leases.iter().map(|(_, leases)| leases.len()).sum();
        assert!(open.len() + claimed <= 5, "{} are open and {claimed} being called", open.len());
        for (which, lease) in leases.into_iter().flat_map(|(which, leases)| leases.into_iter().map(move |l| (which, l)))
        {
            open.push(lease.job.id);
            processes[which].settle(lease, Next::Await { answer_by }).await;
        }
        assert!(!open.is_empty(), "stuck at {ended}");
        for id in open.drain(..).take(3).collect::<Vec<_>>() {
            let decide = Box::new(|job: &_| lifecycle::answered(job, None, Ok("2".into())));
            processes[2].store.amend(&Sees::All, Which::Id(id), site.now(), decide).await.unwrap();
            ended += 1;
        }
        let processing = Filter { statuses: vec![Status::Processing], ..Filter::default() };
        let page = processes[1].store.list(&Sees::All, &processing, Slice::page(None, 99)).await.unwrap();
        open = page.jobs.into_iter().map(|job| job.id).collect();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendor_at_its_open_bound_goes_on_although_redis_missed_an_answer() {
    let site = Site::with_own_redis();
    let (a, b) = (site.process_for(with_open(1), &site.clock).await, site.process_for(with_open(1), &site.clock).await);
    a.submit_all((0..40).map(|_| a.job("v", Priority::Normal, "t")).collect()).await;
    let lease = a.claim_one().await;
    let (id, lane) = (lease.job.id, lease.job.lane.clone());
    a.settle(lease, Next::Await { answer_by: site.now().plus(LEASE * 100) }).await;
    assert!(b.claim("v", 1).await.is_empty(), "one may be open, and is");
    let bells = [a.store.signals().bell("v").unwrap(), b.store.signals().bell("v").unwrap()];
    site.redis().freeze();
    let decide = Box::new(|job: &_| lifecycle::answered(job, None, Ok("2".into())));
    a.store.amend(&Sees::All, Which::Id(id), site.now(), decide).await.unwrap();
    site.redis().thaw();
    wait_until("Redis is told again", LONG, async || a.store.due_in_lane(&lane, 1).await.ok()).await;
    for (process, bell) in [&a, &b].into_iter().zip(bells) {
        // What was rung for other reasons has been heard, and there was no room.
        while tokio::time::timeout(Duration::from_millis(100), bell.notified()).await.is_ok() {}
        process.store.reclaim().await.unwrap();
        tokio::time::timeout(LONG, bell.notified()).await.expect("it is woken");
    }
    assert_eq!(b.store.ready("v").await.unwrap().open, 0, "the store bounds what is open by itself");
    assert_eq!(b.claim("v", 10).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settle_that_redis_missed_reaches_it_when_it_is_back() {
    let site = Site::with_own_redis();
    let (a, b) = (site.process().await, site.process().await);
    let again = a.submit().await;
    let lease = a.claim_one().await;
    site.redis().freeze();
    let due_at = site.now().plus(Duration::from_millis(1));
    assert_eq!(a.settle(lease, Next::Call { due_at }).await, Settled::Stored);
    site.redis().thaw();
    site.clock.advance(Duration::from_secs(1));
    let lease = wait_until("it goes again", LONG, async || b.claim("v", 1).await.pop()).await;
    assert_eq!((lease.job.id, lease.attempt), (again, 2), "long before the lease of the first attempt lapses");
    assert_eq!(b.settle(lease, complete()).await, Settled::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_keeps_jobs_waiting_and_loses_none() {
    let site = Site::with_own_redis();
    let (a, b) = (site.process().await, site.process().await);
    let mut ids: BTreeSet<JobId> =
        a.submit_all((0..6).map(|_| a.job("v", Priority::Normal, "t")).collect()).await.into_iter().collect();
    let held = a.claim("v", 2).await;
    site.redis().say("CONFIG SET maxmemory 1");
    ids.insert(b.submit().await);
    for lease in held {
        assert_eq!(a.settle(lease, complete()).await, Settled::Stored);
    }
    wait_until("what was in the stream goes", LONG, async || {
        for lease in b.claim("v", 2).await {
            b.settle(lease, complete()).await;
        }
        (site.ask::<i64>(&["HLEN", ":index"]).await == 0).then_some(())
    })
    .await;
    site.redis().say("CONFIG SET maxmemory 0");
    wait_until("the others follow", LONG, async || {
        site.clock.advance(Duration::from_secs(1));
        b.store.ready("v").await.ok()?;
        for lease in b.claim("v", 2).await {
            b.settle(lease, complete()).await;
        }
        (b.store.backlog("v").await.waiting == 0).then_some(())
    })
    .await;
    for id in ids {
        assert_eq!(a.status(id).await, Status::Complete);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_is_a_lost_index() {
    for key in [":1:jobs", ":1:due", ":1:asleep", ":1:reading", ":index", ":state", ":counts"] {
        let site = Site::new();
        let (a, b) = (site.process().await, site.process().await);
        let ids = a.submit_all((0..40).map(|_| a.job("v", Priority::Normal, "t")).collect()).await;
        site.ask::<i64>(&["DEL", key]).await;
        site.ask::<String>(&["SET", key, "what is this"]).await;
        let (mut claimed, mut times) = (BTreeSet::new(), 0);
        // Some of them are only seen when it comes to them, or by a sweep.
        for _ in 0..4 {
            site.recover(&[&b, &a]).await;
            let leases = b.claim_all("v").await;
            times += leases.len();
            claimed.extend(leases.into_iter().map(|lease| lease.job.id));
        }
        assert_eq!((claimed.len(), times), (ids.len(), ids.len()), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_does_not_put_off_the_next_sweep() {
    let site = Site::new();
    let a = site.process().await;
    a.submit().await;
    let tomorrow = site.now().plus(Duration::from_secs(86_400)).0.to_string();
    site.ask::<i64>(&["HSET", ":state", "sweep_at", &tomorrow]).await;
    a.store.ready("v").await.unwrap();
    assert_eq!(site.ask::<i64>(&["HGET", ":state", "sweep_at"]).await - site.now().0, 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_sweep_that_mongodb_does_not_answer() {
    let site = Site::with_own_mongo();
    let a = site.process_for(vec![work("v")], &Clock::system()).await;
    a.submit().await;
    site.mongo().freeze();
    wait_until("it is frozen", LONG, async || {
        tokio::time::timeout(Duration::from_millis(200), a.store.attempts(&Sees::All, JobId::MIN))
            .await
            .is_err()
            .then_some(())
    })
    .await;
    site.ask::<i64>(&["HSET", ":state", "sweep_at", "0"]).await;
    let ready = a.store.ready("v").await.expect("what Redis knows is enough");
    assert!(ready.next_due.is_some(), "there is a job");
    assert_ne!(site.ask::<String>(&["HGET", ":state", "sweep_at"]).await, "0", "no sweep was asked for");
    site.mongo().thaw();
    assert_eq!(wait_until("MongoDB is back", LONG, async || a.claim("v", 1).await.pop()).await.attempt, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_with_nothing_to_do_are_not_read() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    a.submit_all((0..500).map(|i| a.job("v", Priority::Normal, &format!("t{i}"))).collect()).await;
    let leases = a.claim_all("v").await;
    assert_eq!(leases.len(), 500);
    a.settle_all(leases.into_iter().map(|lease| (lease, complete())).collect()).await;
    site.clock.advance(Duration::from_secs(11));
    let ready = b.store.ready("v").await.unwrap();
    assert_eq!((ready.next_due, site.ask::<i64>(&["ZCARD", ":1:due"]).await), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_tenants_there_are_all_are_found_again_when_the_index_was_lost() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    let mut ids = BTreeSet::new();
    for from in [0, 400, 800] {
        let jobs = (from..from + 400).map(|i| a.job("v", Priority::Normal, &format!("t{i}")));
        ids.extend(a.submit_all(jobs.collect()).await);
    }
    site.lose_the_index().await;
    site.recover(&[&a, &b]).await;
    let claimed: BTreeSet<JobId> = b.claim_all("v").await.into_iter().map(|lease| lease.job.id).collect();
    assert!(claimed == ids, "{} of {}", claimed.len(), ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_wrong_neither_stop_a_vendor_nor_mix_up_leases() {
    let site = Site::new();
    let fast = Clock::manual(site.now().plus(Duration::from_secs(3600)));
    let (a, b) = (site.process().await, site.process_for(vec![work("v")], &fast).await);
    a.submit_all((0..6).map(|_| a.job("v", Priority::Normal, "t")).collect()).await;
    let held: BTreeSet<JobId> = a.claim("v", 2).await.iter().map(|lease| lease.job.id).collect();
    site.lose_the_index().await;
    // Opened for a time that is an hour away for the others.
    b.store.ready("v").await.unwrap();
    a.store.ready("v").await.unwrap();
    site.clock.advance(SHUT);
    a.store.ready("v").await.unwrap();
    let others: BTreeSet<JobId> = a.claim_all("v").await.iter().map(|lease| lease.job.id).collect();
    assert!(!others.is_empty(), "the vendor is not called for an hour");
    site.lose_the_index().await;
    a.store.ready("v").await.unwrap();
    // For the fast one it is open already.
    b.submit().await;
    wait_until("what is held is entered", LONG, async || {
        a.store.ready("v").await.unwrap();
        (a.store.backlog("v").await.leased == 6).then_some(())
    })
    .await;
    assert_eq!(held.len() + others.len(), 6);
    site.clock.advance(SHUT);
    a.store.ready("v").await.unwrap();
    let last: Vec<JobId> = b.claim_all("v").await.into_iter().map(|lease| lease.job.id).collect();
    assert!(last.iter().all(|id| !held.contains(id) && !others.contains(id)), "leased twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_ask_for_a_waiting_job_writes_nothing_to_redis() {
    let site = Site::with_own_redis();
    let a = site.process().await;
    let id = a.submit_all((0..3).map(|_| a.job("v", Priority::Normal, "t")).collect()).await[2];
    let written = async || {
        let info: String = site.ask(&["INFO", "persistence"]).await;
        info.lines().find(|line| line.starts_with("rdb_changes_since_last_save:")).expect("it counts").to_owned()
    };
    let before = written().await;
    let job = a.find(id).await;
    assert_eq!(a.store.ahead(&job).await.unwrap(), Some(Ahead { jobs: 2, in_lane: 2, is_exact: true }));
    assert_eq!(a.store.due_in_lane(&job.lane, 10).await.unwrap(), 3);
    assert_eq!(a.store.backlog("v").await.waiting, 3);
    assert_eq!(written().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_used_in_two_processes_at_once_makes_one_job() {
    let site = Site::new();
    let (a, b) = (site.process().await, site.process().await);
    for round in 0..20 {
        let key = |t: &TestStore| {
            let idempotency = Some(Idempotency { key: round.to_string(), body_hash: [1; 32] });
            NewJob { idempotency, ..t.job("v", Priority::Normal, "t") }
        };
        let outcomes = tokio::join!(a.store.submit(vec![key(&a)]), b.store.submit(vec![key(&b)]));
        let id = |outcome: &Submitted| match outcome {
            Submitted::New(id) | Submitted::Known(id) => *id,
            other => panic!("{other:?}"),
        };
        let (first, second) = (outcomes.0.unwrap()[0], outcomes.1.unwrap()[0]);
        assert_eq!(id(&first), id(&second));
        assert!(!matches!((first, second), (Submitted::New(_), Submitted::New(_))));
    }
    site.clock.advance(Duration::from_secs(11));
    a.store.ready("v").await.unwrap();
    assert_eq!(a.store.backlog("v").await.waiting, 20);
    assert_eq!(b.claim_all("v").await.len(), 20);
}
