//! Which jobs a list shows and a bulk change changes, and how far one step of either goes.
//!
//! Never reads a job: each store finds them with its own indexes.

use super::Sees;
use crate::{
    clock::Time,
    job::{FailureCode, Job, JobId, Status},
};

/// Which jobs are meant. Empty fields match all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these.
    pub statuses: Vec<Status>,
    pub vendor: Option<String>,
    pub tenant: Option<String>,
    pub tag: Option<String>,
    /// Jobs that ended with this error.
    pub code: Option<FailureCode>,
    /// Accepted at this time or later.
    pub created_after: Option<Time>,
    /// Accepted before this time.
    pub created_before: Option<Time>,
    /// When a walk began that replays jobs: those that were replayed and have ended again since do not match.
    pub walk_began: Option<Time>,
}

impl Filter {
    pub fn matches(&self, job: &Job) -> bool {
        let code = job.failure.as_ref().filter(|_| job.status.has_ended()).map(|why| why.code);
        let ended_again = |began| job.run > 0 && job.finished_at.is_some_and(|at| at >= began);
        (self.statuses.is_empty() || self.statuses.contains(&job.status))
            && self.vendor.as_ref().is_none_or(|vendor| **vendor == *job.lane.vendor)
            && self.tenant.as_ref().is_none_or(|tenant| **tenant == *job.lane.tenant)
            && self.tag.as_ref().is_none_or(|tag| job.tags.contains(tag))
            && self.code.is_none_or(|wanted| code == Some(wanted))
            && self.created_after.is_none_or(|at| job.id >= JobId::first_at(at))
            && self.created_before.is_none_or(|at| job.id < JobId::first_at(at))
            && !self.walk_began.is_some_and(ended_again)
    }

    /// The ids of all jobs that can match and are less than `before`: from the first of these on, and less than the second.
    pub(super) fn ids(&self, before: Option<JobId>) -> (JobId, JobId) {
        let created_before = self.created_before.map(JobId::first_at);
        let below = [before, created_before].into_iter().flatten().min().unwrap_or(JobId::MAX);
        (self.created_after.map_or(JobId::MIN, JobId::first_at), below)
    }

    /// The only tenant of whom jobs can match, for this caller.
    pub(super) fn only_tenant<'a>(&'a self, sees: &'a Sees) -> Option<&'a str> {
        match sees {
            Sees::Tenant(own) => Some(own),
            Sees::All => self.tenant.as_deref(),
        }
    }

    /// The statuses that jobs can have that match.
    pub(super) fn possible(&self) -> Vec<Status> {
        let is_wanted = |status| self.statuses.is_empty() || self.statuses.contains(&status);
        let can_be = |status: &Status| is_wanted(*status) && (self.code.is_none() || has_no_result(*status));
        Status::ALL.into_iter().filter(can_be).collect()
    }

    /// Whether only jobs can match that ended without a result.
    pub(super) fn wants_no_result(&self) -> bool {
        self.possible().into_iter().all(has_no_result)
    }

    /// The codes that a job has to have to match; empty if it needs none.
    pub(super) fn codes(&self) -> Vec<FailureCode> {
        let needs_one = self.wants_no_result() && !self.statuses.contains(&Status::Cancelled);
        self.code.map_or_else(|| FailureCode::ALL.into_iter().filter(|_| needs_one).collect(), |code| vec![code])
    }
}

fn has_no_result(status: Status) -> bool {
    matches!(status, Status::Failed | Status::Cancelled | Status::Expired)
}

/// One step of a walk over jobs, from the newest to the oldest.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Only jobs with a smaller id.
    pub before: Option<JobId>,
    /// It ends with so many jobs that match, or when it has looked at so many. Both at least 1.
    pub most: usize,
    pub examine: usize,
}

impl Slice {
    /// Jobs that one page of a list looks at, at most.
    pub const OF_LIST: usize = 5000;

    /// A page of a list: so many jobs at most.
    pub fn page(before: Option<JobId>, most: usize) -> Slice {
        Slice { before, most, examine: Slice::OF_LIST }
    }
}

/// Some jobs, newest first, without payload and result.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// How many were looked at.
    pub examined: usize,
    /// Where the next page begins; `None` at the end. A short page may have a next one.
    pub next: Option<JobId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Failure, Lane, NewJob, Priority};

    fn failed(run: u32, finished_at: i64) -> Job {
        let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
        let new = NewJob::new(JobId::first_at(Time(500)), lane, "1", Time(0));
        let failure = Some(Failure::new(FailureCode::Timeout, "too slow"));
        Job { status: Status::Failed, failure, run, finished_at: Some(Time(finished_at)), ..Job::from(new) }
    }

    #[test]
    fn a_walk_meets_no_job_that_it_may_have_replayed() {
        let walk = Filter { walk_began: Some(Time(1000)), ..Filter::default() };
        for (run, finished_at, matches) in [(0, 900, true), (0, 1100, true), (1, 900, true), (1, 1000, false)] {
            assert_eq!(walk.matches(&failed(run, finished_at)), matches, "run {run} ended at {finished_at}");
        }
    }

    #[test]
    fn a_code_is_that_of_the_error_with_which_a_job_ended() {
        let timeout = Filter { code: Some(FailureCode::Timeout), ..Filter::default() };
        let job = failed(0, 900);
        assert!(timeout.matches(&job));
        assert!(!timeout.matches(&Job { status: Status::Pending, finished_at: None, ..job.clone() }), "it goes on");
        assert!(!Filter { code: Some(FailureCode::Crashed), ..Filter::default() }.matches(&job));
    }

    #[test]
    fn an_index_of_failures_is_used_only_if_every_match_is_in_it() {
        use Status::{Cancelled, Complete, Expired, Failed};
        let of = |statuses: &[Status], code| Filter { statuses: statuses.to_vec(), code, ..Filter::default() };
        let looks_in = |filter: &Filter| (filter.wants_no_result(), filter.codes().len());
        let timeout = Some(FailureCode::Timeout);
        assert_eq!(looks_in(&of(&[], None)), (false, 0));
        assert_eq!(looks_in(&of(&[], timeout)), (true, 1));
        assert_eq!(looks_in(&of(&[Complete, Failed], None)), (false, 0));
        assert_eq!(looks_in(&of(&[Failed, Cancelled, Expired], None)), (true, 0), "who cancels gives no code");
        assert_eq!(looks_in(&of(&[Failed, Expired], None)), (true, FailureCode::ALL.len()));
    }
}
