//! The end of a job, as those who count ends need it.
//!
//! Never decides that a job ends (see `lifecycle`).

use std::time::Duration;

use super::{
    FailureCode, Job, Status,
    lifecycle::{Change, Next},
};
use crate::clock::Time;

/// How and when a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub status: Status,
    /// Why there is no result; `None` for a job that is complete or was cancelled.
    pub code: Option<FailureCode>,
    pub at: Time,
    /// From submit to end. Unknown after a replay: the time before it says nothing.
    pub took: Option<Duration>,
}

impl End {
    /// The end of a job; `None` if it goes on.
    pub fn of(job: &Job) -> Option<End> {
        let at = job.finished_at.filter(|_| job.status.has_ended())?;
        Some(End::new(job, job.status, job.failure.as_ref().map(|why| why.code), at))
    }

    /// The end that this change of a job brings, if it is made at `at`.
    pub fn by(change: &Change, job: &Job, at: Time) -> Option<End> {
        let code = match &change.next {
            Next::Failed(why) | Next::Expired(why) => Some(why.code),
            _ => None,
        };
        Some(End::new(job, change.next.end()?, code, at))
    }

    fn new(job: &Job, status: Status, code: Option<FailureCode>, at: Time) -> End {
        End { status, code, at, took: (job.run == 0).then(|| at.since(job.id.created_at())) }
    }
}
