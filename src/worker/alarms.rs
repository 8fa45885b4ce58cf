//! The alarm of a job: its deadline, or the end of its vendor's time to answer.
//!
//! Never decides what the job becomes (see `job::lifecycle`).

use std::{sync::Arc, time::Duration};

use super::{context::Context, login};
use crate::{
    clock::Time,
    job::{
        AttemptOutcome, Failure, Job, JobId, Status,
        lifecycle::{self, Policy},
        retry::Retry,
    },
    store::{Amended, Sees, StoreError, Which},
};

/// For jobs of a vendor that is not in the config any more: nobody can call it, so there is nothing to retry.
const NO_POLICY: Policy = Policy {
    retry: Retry { attempts: 1, first: Duration::ZERO, max: Duration::ZERO, unanswered: 0 },
    answer_within: Duration::ZERO,
    at_most_once: false,
};

/// Handles the alarm of a job, if it is still due.
pub(super) async fn handle(cx: &Context, id: JobId, now: Time) -> Result<(), StoreError> {
    let (vendors, jitter) = (cx.vendors.clone(), fastrand::f64());
    let decide = Box::new(move |job: &Job| {
        let policy = vendors.get(&job.lane.vendor).map_or(NO_POLICY, |vendor| vendor.policy());
        lifecycle::alarmed(job, &policy, jitter, now)
    });
    let Amended::Changed(job) = cx.store.amend(&Sees::All, Which::Id(id), now, decide).await? else { return Ok(()) };
    if let Some(metrics) = cx.metrics.vendor(&job.lane.vendor) {
        metrics.count_end_of(&job);
    }
    // Ordered again, or failed. An expired job says nothing about its vendor.
    if let (Status::Pending | Status::Failed, Some(why)) = (job.status, &job.failure) {
        note_unanswered(cx, &job.lane.vendor, why);
    }
    Ok(())
}

/// Shows people that a vendor accepted a job and did not answer in time: in the log, and as the vendor's last error.
pub(super) fn note_unanswered(cx: &Context, vendor: &Arc<str>, why: &Failure) {
    cx.breakers.note_error(vendor, login::written(why, AttemptOutcome::Timeout, cx.clock.now()));
    cx.failures.note(vendor, &why.message, cx.clock.nanos());
}
