//! The alarm of a job: its deadline, or the end of its vendor's time to answer.
//!
//! Never decides what the job becomes (see `job::lifecycle`).

use std::time::Duration;

use super::Context;
use crate::{
    clock::Time,
    job::{
        Job, JobId,
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
pub(super) async fn ring(cx: &Context, id: JobId, now: Time) -> Result<(), StoreError> {
    let (vendors, jitter) = (cx.vendors.clone(), fastrand::f64());
    let decide = Box::new(move |job: &Job| {
        let policy = vendors.get(&job.lane.vendor).map_or(NO_POLICY, |vendor| vendor.policy());
        lifecycle::alarmed(job, &policy, jitter, now)
    });
    if let Amended::Changed(job) = cx.store.amend(&Sees::All, Which::Id(id), now, decide).await?
        && let Some(metrics) = cx.metrics.vendor(&job.lane.vendor)
    {
        metrics.count_end_of(&job);
    }
    Ok(())
}
