//! Who holds a job, and what a stale holder may still do.

use std::{collections::HashMap, time::Duration};

use fetchgate::{
    clock::Time,
    job::{
        Deadline, Failure, FailureCode, Job, JobId, Priority, Status, lifecycle,
        lifecycle::{Change, Next},
    },
    store::{Amended, Lease, Sees, Settled, Which},
};
use tokio::task::JoinSet;

use super::{LEASE, TestStore, attempt, complete, failed};
use crate::{on_every_backend, support::Backend};

on_every_backend!(
    a_leased_job_is_not_leased_again,
    a_lapsed_lease_is_free_for_others_and_its_holder_is_shut_out,
    data_from_a_stale_lease_is_taken_while_the_job_has_not_ended,
    data_from_a_stale_lease_keeps_the_attempts_that_came_after_it,
    data_from_an_earlier_run_leaves_the_run_the_tries_and_the_deadline_of_the_one_after_it,
    a_lease_that_has_lapsed_is_good_until_somebody_reclaims_it,
    a_cancel_during_the_call_wins,
    a_released_job_keeps_its_place_and_its_attempts,
    a_lane_that_rests_is_skipped_until_then,
    a_restart_frees_what_was_leased,
    a_lapsed_lease_whose_call_is_on_record_ends_its_job,
    a_restart_during_a_call_on_record_ends_its_job,
    a_released_lease_has_no_call_on_record,
    the_call_of_a_job_that_has_ended_is_not_put_on_record,
    what_came_of_a_call_is_on_record_though_the_job_ended_during_it,
    a_ticket_finds_its_job,
    what_is_settled_together_is_each_job_s_own,
    of_answers_that_come_together_one_decides_each_job,
);

async fn a_leased_job_is_not_leased_again(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    assert_eq!((lease.job.id, lease.attempt, t.status(id).await), (id, 1, Status::Processing));
    assert!(t.claim_all("v").await.is_empty());
    assert_eq!(t.store.reclaim().await.unwrap(), 0);
    assert_eq!(t.settle(lease, complete()).await, Settled::Stored);
    assert!(t.claim_all("v").await.is_empty());
    let backlog = t.store.backlog("v").await;
    assert_eq!((backlog.waiting, backlog.leased, backlog.open), (0, 0, 0));
}

async fn a_lapsed_lease_is_free_for_others_and_its_holder_is_shut_out(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let stale = t.claim_one().await;
    assert_eq!(t.lapse().await, 1);
    let fresh = t.claim_one().await;
    assert_eq!((stale.attempt, fresh.attempt), (1, 2));
    assert_eq!(t.settle(stale, failed()).await, Settled::TooLate);
    assert_eq!(t.status(id).await, Status::Processing, "a stale failure changes nothing");
    assert_eq!(t.store.attempts(&Sees::All, id).await.unwrap().unwrap().iter().count(), 0, "nor is it on record");
    assert_eq!(t.settle(fresh, failed()).await, Settled::Stored);
    assert_eq!(t.status(id).await, Status::Failed);
}

async fn data_from_a_stale_lease_is_taken_while_the_job_has_not_ended(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let stale = t.claim_one().await;
    t.lapse().await;
    let fresh = t.claim_one().await;
    assert_eq!(t.settle(stale, complete()).await, Settled::Stored, "the vendor was paid for it");
    assert_eq!(t.find(id).await.result.as_deref(), Some(&b"1"[..]));
    assert_eq!(t.settle(fresh, Next::Complete { result: "2".into() }).await, Settled::TooLate);
    assert_eq!(t.find(id).await.result.as_deref(), Some(&b"1"[..]), "the first outcome stays");
    let backlog = t.store.backlog("v").await;
    assert_eq!((backlog.waiting, backlog.leased, backlog.open), (0, 0, 0));
    assert!(t.claim_all("v").await.is_empty());
}

async fn data_from_a_stale_lease_keeps_the_attempts_that_came_after_it(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let stale = t.claim_one().await;
    t.lapse().await;
    let fresh = t.claim_one().await;
    t.settle(fresh, Next::Call { due_at: t.now() }).await;
    t.settle(stale, complete()).await;
    let attempts: Vec<u32> =
        t.store.attempts(&Sees::All, id).await.unwrap().unwrap().iter().map(|attempt| attempt.n).collect();
    assert_eq!(attempts, [2, 1], "in the order in which they were settled");
    assert!(t.claim_all("v").await.is_empty());
}

async fn data_from_an_earlier_run_leaves_the_run_the_tries_and_the_deadline_of_the_one_after_it(backend: Backend) {
    let t = TestStore::open(backend).await;
    let mut job = t.job("v", Priority::Normal, "t");
    let within = Duration::from_secs(60);
    job.deadline = Some(Deadline { at: t.now().plus(within), within: Some(within) });
    let id = t.submit_all(vec![job]).await[0];
    let stale = t.claim_one().await;
    t.store.amend(&Sees::All, Which::Id(id), t.now(), Box::new(lifecycle::cancel)).await.unwrap();
    t.advance(Duration::from_secs(10));
    let now = t.now();
    t.store.amend(&Sees::All, Which::Id(id), now, Box::new(move |job: &_| lifecycle::replay(job, now))).await.unwrap();
    assert_eq!(t.settle(stale, complete()).await, Settled::Stored, "the vendor was paid for it");
    let job = t.find(id).await;
    assert_eq!((job.status, job.run, job.attempt), (Status::Complete, 1, 1));
    assert_eq!(job.deadline.map(|deadline| deadline.at), Some(now.plus(within)));
}

async fn a_lease_that_has_lapsed_is_good_until_somebody_reclaims_it(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    assert_eq!(t.store.reclaim().await.unwrap(), 0);
    t.advance(LEASE * 2);
    assert_eq!(t.settle(lease, complete()).await, Settled::Stored);
    assert_eq!(t.store.reclaim().await.unwrap(), 0);
    assert_eq!(t.status(id).await, Status::Complete);
}

async fn a_cancel_during_the_call_wins(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    let amended = t.store.amend(&Sees::All, Which::Id(id), t.now(), Box::new(lifecycle::cancel)).await.unwrap();
    assert!(matches!(amended, Amended::Changed(job) if job.status == Status::Cancelled));
    let now = t.now();
    let replay = Box::new(move |job: &_| lifecycle::replay(job, now));
    t.store.amend(&Sees::All, Which::Id(id), now, replay).await.unwrap();
    let again = t.claim_one().await;
    assert_eq!(again.attempt, 2, "the call that was under way is counted, so that it is shut out");
    assert_eq!(t.settle(lease, failed()).await, Settled::TooLate);
    assert_eq!(t.settle(again, complete()).await, Settled::Stored);
    assert_eq!(t.status(id).await, Status::Complete);
}

async fn a_released_job_keeps_its_place_and_its_attempts(backend: Backend) {
    let t = TestStore::open(backend).await;
    let ids = [t.submit().await, t.submit().await, t.submit().await];
    let mut leases = t.claim("v", 2).await;
    let second = leases.pop().unwrap();
    let first = leases.pop().unwrap();
    t.store.release(vec![(second, None), (first, None)]).await;
    let again = t.claim("v", 10).await;
    assert_eq!(again.iter().map(|lease| lease.job.id).collect::<Vec<_>>(), ids);
    assert!(again.iter().all(|lease| lease.attempt == 1), "a release is not an attempt");
}

async fn a_lane_that_rests_is_skipped_until_then(backend: Backend) {
    let t = TestStore::open(backend).await;
    t.submit_all(vec![t.job("v", Default::default(), "busy"), t.job("v", Default::default(), "other")]).await;
    let mut leases = t.claim("v", 1).await;
    assert_eq!(&*leases[0].job.lane.tenant, "busy");
    let until = t.now().plus(Duration::from_secs(5));
    t.store.release(vec![(leases.remove(0), Some(until))]).await;
    let leases = t.claim("v", 10).await;
    assert_eq!(leases.iter().map(|lease| &*lease.job.lane.tenant).collect::<Vec<_>>(), ["other"]);
    assert_eq!(t.store.ready("v").await.unwrap().next_due, Some(until));
    t.advance(Duration::from_secs(5));
    assert_eq!(t.claim("v", 10).await.len(), 1);
}

async fn a_restart_frees_what_was_leased(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let id = t.submit().await;
    drop(t.claim_one().await);
    t.restart().await;
    t.quiet().await;
    assert_eq!(t.status(id).await, Status::Pending);
    let lease = t.claim_one().await;
    assert_eq!(t.settle(lease, complete()).await, Settled::Stored);
    assert_eq!(t.status(id).await, Status::Complete);
}

/// Leases the one job of `v` that is due, with its call on record.
async fn claim_and_mark(t: &TestStore) -> Lease {
    let lease = t.claim_one().await;
    t.store.mark(vec![lease]).await.expect("the store works").pop().expect("it holds")
}

async fn assert_lost(t: &TestStore, id: JobId) {
    let job = t.find(id).await;
    let code = job.failure.as_ref().map(|failure| failure.code);
    assert_eq!((job.status, code, job.attempt), (Status::Failed, Some(FailureCode::UnknownOutcome), 1));
    assert_eq!(t.store.attempts(&Sees::All, id).await.unwrap().unwrap().iter().count(), 1);
    assert!(t.claim_all("v").await.is_empty());
    let backlog = t.store.backlog("v").await;
    assert_eq!((backlog.waiting, backlog.leased, backlog.open), (0, 0, 0));
}

async fn a_lapsed_lease_whose_call_is_on_record_ends_its_job(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = claim_and_mark(&t).await;
    assert_eq!((t.status(id).await, t.store.backlog("v").await.leased), (Status::Processing, 1));
    assert_eq!(t.lapse().await, 1);
    assert_lost(&t, id).await;
    assert_eq!(t.settle(lease, complete()).await, Settled::TooLate);
}

async fn a_restart_during_a_call_on_record_ends_its_job(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let id = t.submit().await;
    drop(claim_and_mark(&t).await);
    t.restart().await;
    assert!(t.claim_all("v").await.is_empty(), "it may be under way");
    assert_eq!((t.status(id).await, t.store.reclaim().await.unwrap()), (Status::Processing, 0));
    t.advance(LEASE * 2);
    assert_eq!(t.store.reclaim().await.unwrap(), 1);
    assert_lost(&t, id).await;
}

async fn a_released_lease_has_no_call_on_record(backend: Backend) {
    let mut t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = claim_and_mark(&t).await;
    t.store.release(vec![(lease, None)]).await;
    t.restart().await;
    t.quiet().await;
    let lease = t.claim_one().await;
    assert_eq!((lease.job.id, lease.attempt), (id, 1));
    assert_eq!(t.lapse().await, 1);
    assert_eq!(t.claim_one().await.attempt, 2, "it may be called");
}

async fn the_call_of_a_job_that_has_ended_is_not_put_on_record(backend: Backend) {
    let t = TestStore::open(backend).await;
    t.submit_all((0..3).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    let leases = t.claim("v", 3).await;
    let cancelled = leases[1].job.id;
    t.store.amend(&Sees::All, Which::Id(cancelled), t.now(), Box::new(lifecycle::cancel)).await.unwrap();
    let marked = t.store.mark(leases).await.unwrap();
    assert_eq!(marked.len(), 2);
    assert!(marked.iter().all(|lease| lease.job.id != cancelled && lease.called_at == Some(t.now())));
    assert_eq!(t.lapse().await, 2);
    assert_eq!(t.status(cancelled).await, Status::Cancelled);
}

async fn what_came_of_a_call_is_on_record_though_the_job_ended_during_it(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = claim_and_mark(&t).await;
    let answered = Box::new(|job: &_| lifecycle::answered(job, None, Ok("2".into())));
    t.store.amend(&Sees::All, Which::Id(id), t.now(), answered).await.unwrap();
    assert_eq!(t.settle(lease, failed()).await, Settled::TooLate);
    let job = t.find(id).await;
    assert_eq!((job.status, job.result.as_deref(), job.attempt), (Status::Complete, Some(&b"2"[..]), 1));
    let attempts: Vec<u32> =
        t.store.attempts(&Sees::All, id).await.unwrap().unwrap().iter().map(|attempt| attempt.n).collect();
    assert_eq!(attempts, [1]);
}

async fn a_ticket_finds_its_job(backend: Backend) {
    let t = TestStore::open(backend).await;
    let id = t.submit().await;
    let lease = t.claim_one().await;
    let next = Next::Await { answer_by: t.now().plus(Duration::from_secs(60)) };
    let (change, attempt) =
        (Change { ticket: Some("abc".into()), ..Change::of(&lease.job, next) }, attempt(&lease, t.now()));
    t.store.settle(lease, change, attempt).await.unwrap();
    assert_eq!(t.store.backlog("v").await.open, 1);
    let answered = async |vendor: &str| {
        let which = Which::Ticket { vendor: vendor.into(), ticket: "abc".into() };
        let decide = Box::new(|job: &_| lifecycle::answered(job, None, Ok("2".into())));
        t.store.amend(&Sees::All, which, t.now(), decide).await.unwrap()
    };
    assert!(matches!(answered("w").await, Amended::Unknown), "tickets belong to a vendor");
    assert!(matches!(answered("v").await, Amended::Changed(_)));
    assert!(matches!(answered("v").await, Amended::Left(_)), "the second callback changes nothing");
    assert_eq!((t.find(id).await.result.as_deref(), t.store.backlog("v").await.open), (Some(&b"2"[..]), 0));
}

async fn what_is_settled_together_is_each_job_s_own(backend: Backend) {
    let t = TestStore::open(backend).await;
    let ids = t.submit_all((0..100).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    let leases = t.claim_all("v").await;
    assert_eq!(leases.len(), 100);
    // Texts that would mean something in a statement.
    let why = |i: usize| Failure::new(FailureCode::VendorRefused, format!("$result {i} $$ROOT"));
    let result = |i: usize| format!(r#"{{"$status":"$lane {i}"}}"#);
    let next = |id: JobId| match ids.iter().position(|other| *other == id).expect("a job of ours") {
        i if i % 3 == 0 => Next::Failed(why(i)),
        i if i % 3 == 1 => Next::Call { due_at: Time(t.now().0 + i as i64) },
        i => Next::Complete { result: result(i).into() },
    };
    let settles = leases.into_iter().map(|lease| {
        let next = next(lease.job.id);
        (lease, next)
    });
    t.settle_all(settles.collect()).await;
    for (i, id) in ids.iter().enumerate() {
        let job = t.find(*id).await;
        let own = (job.failure, job.result, job.due_at.0 - t.now().0);
        match i % 3 {
            0 => assert_eq!((job.status, own), (Status::Failed, (Some(why(i)), None, 0))),
            1 => assert_eq!((job.status, own), (Status::Pending, (None, None, i as i64))),
            _ => assert_eq!((job.status, own), (Status::Complete, (None, Some(result(i).into()), 0))),
        }
        let attempts = t.store.attempts(&Sees::All, *id).await.unwrap().unwrap();
        assert_eq!(attempts.iter().map(|attempt| attempt.n).collect::<Vec<_>>(), [1]);
    }
}

async fn of_answers_that_come_together_one_decides_each_job(backend: Backend) {
    let t = TestStore::open(backend).await;
    let ids = t.submit_all((0..100).map(|_| t.job("v", Priority::Normal, "t")).collect()).await;
    let answer_by = t.now().plus(Duration::from_secs(60));
    let leases = t.claim_all("v").await.into_iter().map(|lease| (lease, Next::Await { answer_by }));
    t.settle_all(leases.collect()).await;
    let mut amends = JoinSet::new();
    for (id, answer) in (0..3).flat_map(|answer| ids.iter().map(move |id| (*id, answer))) {
        let (store, now) = (t.store.clone(), t.now());
        let result: bytes::Bytes = format!(r#""$lane of {id}, {answer}""#).into();
        amends.spawn(async move {
            let own = result.clone();
            let decide = Box::new(move |job: &Job| lifecycle::answered(job, None, Ok(own.clone())));
            (id, result, store.amend(&Sees::All, Which::Id(id), now, decide).await.unwrap())
        });
    }
    let mut decided = HashMap::new();
    for (id, result, amended) in amends.join_all().await {
        if matches!(amended, Amended::Changed(_)) {
            assert!(decided.insert(id, result).is_none(), "each job is decided once");
        }
    }
    for id in ids {
        let job = t.find(id).await;
        assert_eq!((job.status, job.result.as_ref()), (Status::Complete, decided.get(&id)));
    }
    let backlog = t.store.backlog("v").await;
    assert_eq!((backlog.waiting, backlog.leased, backlog.open), (0, 0, 0));
}
