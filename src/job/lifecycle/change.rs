//! A change of a job, and the job after it.
//!
//! Never decides which change is made: the rest of the state machine does.

use bytes::Bytes;

use crate::{
    clock::Time,
    job::{Deadline, Failure, Fetch, Job, Stage, Status},
};

/// A change of a job. The store writes all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub next: Next,
    pub ticket: Option<String>,
    /// Where the vendor's data is, if the next poll is to fetch it.
    pub fetch: Option<Fetch>,
    pub tries: u32,
    /// How often in a row the vendor gave the answer in `last_error`, if that answer does not count as a try.
    pub slowed: u32,
    /// What was wrong with the attempt, if the job goes on.
    pub last_error: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// To be called (or called again) at or after this time.
    Call {
        due_at: Time,
    },
    /// The vendor accepted the job and did not answer in time: to be called once more at or after this time.
    OrderAgain {
        due_at: Time,
    },
    /// To be polled at or after this time.
    Poll {
        due_at: Time,
        answer_by: Time,
    },
    /// To wait for the callback until `answer_by`.
    Await {
        answer_by: Time,
    },
    Complete {
        result: Bytes,
    },
    Failed(Failure),
    Cancelled,
    Expired(Failure),
    /// An ended job starts again.
    Rerun {
        due_at: Time,
        deadline: Option<Deadline>,
    },
}

impl Next {
    /// The status in which the job ends; none if it goes on.
    pub fn end(&self) -> Option<Status> {
        match self {
            Next::Complete { .. } => Some(Status::Complete),
            Next::Failed(_) => Some(Status::Failed),
            Next::Cancelled => Some(Status::Cancelled),
            Next::Expired(_) => Some(Status::Expired),
            Next::Call { .. }
            | Next::OrderAgain { .. }
            | Next::Poll { .. }
            | Next::Await { .. }
            | Next::Rerun { .. } => None,
        }
    }
}

impl Change {
    /// The change to `next`, without an error.
    pub fn of(job: &Job, next: Next) -> Change {
        let (ticket, fetch, tries) = (job.ticket.clone(), job.fetch.clone(), job.tries);
        Change { next, ticket, fetch, tries, slowed: 0, last_error: None }
    }

    /// What was wrong, whether the job goes on or not.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.next {
            Next::Failed(why) | Next::Expired(why) => Some(why),
            _ => self.last_error.as_ref(),
        }
    }

    /// The job after this change, made at `now` by its `attempt`-th attempt. For a change without an attempt, pass the job's own number.
    pub fn apply(&self, job: &Job, attempt: u32, now: Time) -> Job {
        let base = Job {
            attempt: attempt.max(job.attempt),
            ticket: self.ticket.clone(),
            fetch: None,
            tries: self.tries,
            slowed: self.slowed,
            due_at: now,
            answer_by: None,
            result: None,
            failure: None,
            updated_at: now,
            finished_at: None,
            ..job.clone()
        };
        let ended = |status| Job { status, finished_at: Some(now), ..base.clone() };
        let goes_on = |status, stage, due_at| {
            let failure = self.last_error.clone();
            Job { status, stage, due_at, failure, ..base.clone() }
        };
        let (pending, processing) = (Status::Pending, Status::Processing);
        let mut after = match &self.next {
            Next::Call { due_at } => goes_on(pending, Stage::Call, *due_at),
            Next::OrderAgain { due_at } => {
                Job { unanswered: base.unanswered + 1, ..goes_on(pending, Stage::Call, *due_at) }
            }
            Next::Poll { due_at, answer_by } => {
                let (answer_by, fetch) = (Some(*answer_by), self.fetch.clone());
                Job { answer_by, fetch, ..goes_on(processing, Stage::Poll, *due_at) }
            }
            Next::Await { answer_by } => Job { answer_by: Some(*answer_by), ..goes_on(processing, Stage::Await, now) },
            Next::Complete { result } => Job { result: Some(result.clone()), ..ended(Status::Complete) },
            Next::Failed(failure) => Job { failure: Some(failure.clone()), ..ended(Status::Failed) },
            Next::Expired(failure) => Job { failure: Some(failure.clone()), ..ended(Status::Expired) },
            Next::Cancelled => ended(Status::Cancelled),
            Next::Rerun { due_at, deadline } => {
                let run = base.run + 1;
                let (due_at, deadline) = (*due_at, *deadline);
                Job { status: pending, stage: Stage::Call, due_at, deadline, run, unanswered: 0, ..base }
            }
        };
        if let Some(webhook) = &mut after.webhook {
            let result_bytes = after.result.as_ref().map_or(0, Bytes::len);
            *webhook = if after.status.has_ended() { webhook.owed(result_bytes, now) } else { webhook.unsent() };
        }
        after
    }
}
