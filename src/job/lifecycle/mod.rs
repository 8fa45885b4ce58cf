//! The whole state machine of a job, as pure functions. This file has what a step does to a job, `polls` what happens after the vendor has
//! accepted it, and `outside` what callbacks, cancels, replays and alarms do.
//!
//! Never stores anything: the store keeps a [`Change`] only if the job is still what the function saw.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Failure, FailureCode, Fetch, Job, Stage, VendorSaid,
    retry::{self, Retry},
};
use crate::clock::Time;

mod change;
mod outside;
mod polls;

pub use change::{Change, Next};
pub use outside::{alarmed, answered, called_back, cancel, crashed, lost, replay};
pub use polls::{asked, worked_for};

/// What a vendor's reply means for the job. Sync, webhook and polling vendors differ only in the step their first call gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Done {
        result: Bytes,
    },
    /// Not yet: the vendor is polled, no sooner than `after` if that is known. Without a ticket the same request is sent again.
    CheckAgain {
        after: Option<Duration>,
        ticket: Option<String>,
    },
    /// The vendor is done, and its data is fetched by one more call.
    Fetch {
        from: Fetch,
        ticket: Option<String>,
    },
    /// The vendor works on it and will call back.
    AwaitCallback {
        ticket: Option<String>,
    },
    /// The vendor wants fewer calls. `after`: no sooner than this. Does not count as a try of the job.
    SlowDown {
        why: Failure,
        after: Option<Duration>,
    },
    /// The attempt failed in a way that may pass. `after`: no sooner than this, if the vendor said so.
    TryAgain {
        why: Failure,
        after: Option<Duration>,
        /// The vendor may have carried out the call, although no reply came.
        may_be_done: bool,
    },
    /// The vendor refuses our credentials, for this job `times` in a row. The job fails only if calls of other jobs are accepted meanwhile.
    Unauthorized {
        why: Failure,
        times: u32,
    },
    /// Another attempt would not change the answer.
    GiveUp {
        why: Failure,
    },
}

/// The vendor's rules that the state machine needs.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub retry: Retry,
    pub answer_within: Duration,
    /// A call that the vendor may have carried out is not repeated.
    pub at_most_once: bool,
}

/// The longest wait of a job after its vendor asked to slow down.
const LONGEST_SLOW_DOWN: Duration = Duration::from_secs(3600);

/// What a job becomes after a step of its attempt. `jitter` in `0.0..1.0` spreads retries.
pub fn advance(job: &Job, step: Step, policy: &Policy, jitter: f64, now: Time) -> Change {
    match step {
        // The call that ends a job counts as a try too.
        Step::Done { result } => Change { tries: job.tries + 1, ..Change::of(job, Next::Complete { result }) },
        Step::GiveUp { why } => Change { tries: job.tries + 1, ..Change::of(job, Next::Failed(why)) },
        Step::CheckAgain { after, ticket } => polls::check_again(job, after, ticket, policy, jitter, now),
        Step::Fetch { from, ticket } => polls::fetch(job, from, ticket, policy, now),
        Step::AwaitCallback { ticket } => {
            let next = Next::Await { answer_by: now.plus(policy.answer_within) };
            Change { ticket, ..Change::of(job, next) }
        }
        Step::SlowDown { why, after } => {
            let slowed = job.in_a_row(why.code).saturating_add(1);
            let wait = retry::backoff(&Retry { max: LONGEST_SLOW_DOWN, ..policy.retry }, slowed, jitter);
            let wait = wait.max(policy.retry.first).max(after.unwrap_or_default()).min(LONGEST_SLOW_DOWN);
            Change { slowed, last_error: Some(why), ..Change::of(job, later(job, wait, now)) }
        }
        Step::Unauthorized { why, times } if times >= Job::MOST_REFUSALS => Change::of(job, Next::Failed(why)),
        // Due at once: the vendor's breaker stops the call, and jobs that have waited longer go first.
        Step::Unauthorized { why, times } => {
            Change { slowed: times, last_error: Some(why), ..Change::of(job, again(job, now)) }
        }
        Step::TryAgain { why, after, .. } if job.stage == Stage::Poll => {
            polls::try_again(job, why, after, policy, jitter, now)
        }
        Step::TryAgain { why, may_be_done: true, .. } if policy.at_most_once => {
            Change::of(job, unknown_outcome(&why.message, why.vendor))
        }
        Step::TryAgain { why, after, .. } => try_again(job, why, after, policy, jitter, now),
    }
}

/// What the vendor said when the job's last attempt went wrong.
fn last_words(job: &Job) -> Option<VendorSaid> {
    job.failure.as_ref().and_then(|failure| failure.vendor.clone())
}

/// Ends a job that is called at most once and whose call the vendor may have carried out.
fn unknown_outcome(what: &str, words: Option<VendorSaid>) -> Next {
    let message = format!(
        "{what}; the vendor may have done it, and is called at most once: ask there, then replay the job or leave it"
    );
    Next::Failed(Failure::new(FailureCode::UnknownOutcome, message).with_words(words))
}

/// The same kind of call once more.
fn again(job: &Job, due_at: Time) -> Next {
    match (job.stage, job.answer_by) {
        (Stage::Poll, Some(answer_by)) => Next::Poll { due_at, answer_by },
        _ => Next::Call { due_at },
    }
}

/// The same kind of call after a wait that does not count: the vendor's time to answer is extended by it.
fn later(job: &Job, wait: Duration, now: Time) -> Next {
    let job = Job { answer_by: job.answer_by.map(|by| by.plus(wait)), ..job.clone() };
    again(&job, now.plus(wait))
}

fn try_again(job: &Job, why: Failure, after: Option<Duration>, policy: &Policy, jitter: f64, now: Time) -> Change {
    let tries = job.tries.saturating_add(1);
    if tries >= policy.retry.attempts {
        let message = if tries == 1 { why.message } else { format!("{tries} attempts; the last: {}", why.message) };
        return Change { tries, ..Change::of(job, Next::Failed(Failure { message, ..why })) };
    }
    let wait = retry::backoff(&policy.retry, tries, jitter).max(after.unwrap_or_default());
    let next = Next::Call { due_at: now.plus(wait) };
    Change { ticket: None, tries, last_error: Some(why), ..Change::of(job, next) }
}
