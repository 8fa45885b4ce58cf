//! Calls that are made at most once: before such a call goes out the store has it that the vendor may be at work on the job, so that a process
//! that dies in the middle leaves a job whose outcome is unknown, and nobody calls again.
//!
//! Never calls and never decides what an outcome means (see `job::lifecycle`). Between the mark and the outcome nobody holds a lease: the job
//! waits as it would for a callback, and whatever decides it first has decided it.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{Context, attempt};
use crate::{
    clock::Time,
    job::{
        Attempt, AttemptKind, AttemptOutcome, Job, Stage,
        lifecycle::{Change, Next},
    },
    store::{Amended, Lease, Settled, StoreError, Which},
    telemetry::VendorMetrics,
    vendor::Vendor,
};

/// Jobs of one round at most: what a process that is killed leaves marked and not called ends with an unknown outcome too.
pub(super) const MOST_AT_ONCE: usize = 32;
/// What the record says until the call is over.
const BEFORE: &str = "on record before the call, which is made at most once";
/// How much longer than its call may take a marked job waits for what came of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this job is marked: its vendor is called at most once for it, and the call is under way or about to be.
pub(super) fn is_marked(vendor: &Vendor, lease: &Lease) -> bool {
    vendor.config.at_most_once && lease.job.stage == Stage::Await
}

/// Marks jobs before their submitting call; those that cannot be marked are left out. Polls need no mark.
pub(super) async fn mark(cx: &Context, vendor: &Vendor, leases: Vec<Lease>) -> Vec<Lease> {
    join_all(leases.into_iter().map(|lease| mark_one(cx, vendor, lease))).await.into_iter().flatten().collect()
}

async fn mark_one(cx: &Context, vendor: &Vendor, lease: Lease) -> Option<Lease> {
    if lease.job.stage != Stage::Call {
        return Some(lease);
    }
    let now = cx.clock.now();
    let next = Next::Await { answer_by: now.plus(vendor.config.lease() + PATIENCE) };
    let change = Change { next, ticket: lease.job.ticket.clone(), tries: lease.job.tries };
    let marked = Lease { job: change.apply(&lease.job, lease.attempt, now), attempt: lease.attempt };
    let record = record(marked.attempt, now, AttemptOutcome::AwaitCallback, BEFORE);
    match cx.metrics.timed(cx.store.settle(lease, change, record)).await {
        Ok(Settled::Stored) => Some(marked),
        Ok(Settled::TooLate) => None,
        Err(unsettled) => {
            tracing::warn!(job = %marked.job.id, error = %unsettled.why, "not called: that it is about to be could not be stored");
            cx.store.release(vec![(*unsettled.lease, None)]).await;
            None
        }
    }
}

/// The attempt, as it is on record while there is no call.
fn record(n: u32, now: Time, outcome: AttemptOutcome, detail: &str) -> Attempt {
    Attempt {
        n,
        kind: AttemptKind::Call,
        sent_at: None,
        permit_at: now.0,
        status: None,
        latency_ms: 0,
        outcome,
        detail: Some(detail.into()),
    }
}

/// Stores what came of a marked job's call, however long the store is away.
pub(super) async fn settle(cx: &Context, lease: Lease, change: Change, attempt: Attempt, metrics: &VendorMetrics) {
    let (id, n) = (lease.job.id, attempt.n);
    let change = Arc::new(change);
    let mut wait = attempt::FIRST_SETTLE_WAIT;
    loop {
        match decide(cx, &lease, change.clone(), attempt.clone()).await {
            Ok(Amended::Changed(job)) => return metrics.count_ended(job.status),
            Ok(Amended::Left(_) | Amended::Unknown) => {
                tracing::info!(job = %id, attempt = n, end = ?change.next.end(), "came too late: the job had ended");
                return;
            }
            Err(error) => {
                tracing::warn!(job = %id, %error, ?wait, "the outcome is not stored yet; trying again");
                cx.clock.sleep_until(cx.clock.nanos() + crate::clock::nanos(wait)).await;
                wait = (wait * 2).min(attempt::MAX_SETTLE_WAIT);
            }
        }
    }
}

async fn decide(cx: &Context, lease: &Lease, change: Arc<Change>, attempt: Attempt) -> Result<Amended, StoreError> {
    let (n, now) = (attempt.n, cx.clock.now());
    let decide = move |job: &Job| {
        let is_ours = !job.status.has_ended() && job.stage == Stage::Await && job.attempt == n;
        is_ours.then(|| (*change).clone())
    };
    cx.store.amend(Which::Id(lease.job.id), now, Some(attempt), Box::new(decide)).await
}

/// Gives leases back without a call. With a time, the job's tenant is over its own limit until then.
pub(super) async fn release(cx: &Context, vendor: &Vendor, leases: Vec<(Lease, Option<Time>)>) {
    let (marked, plain): (Vec<_>, Vec<_>) = leases.into_iter().partition(|(lease, _)| is_marked(vendor, lease));
    cx.store.release(plain).await;
    for (lease, rest_until) in marked {
        let now = cx.clock.now();
        let due_at = rest_until.unwrap_or(now);
        let change = Change { next: Next::Call { due_at }, ticket: None, tries: lease.job.tries };
        let not_called = record(lease.attempt, now, AttemptOutcome::TryAgain, "not called after all");
        if let Err(error) = decide(cx, &lease, Arc::new(change), not_called).await {
            tracing::warn!(job = %lease.job.id, %error, "it was not called, and will end as if nobody knew");
        }
    }
}
