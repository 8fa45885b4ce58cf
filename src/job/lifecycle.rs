//! The whole state machine of a job, as pure functions: what a step means, and what callbacks, cancels, replays and alarms do.
//!
//! Never stores anything: the store keeps a [`Change`] only if the job is still what the function saw.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Attempt, AttemptKind, AttemptOutcome, Failure, FailureCode, Job, Stage, Status,
    retry::{self, Retry},
};
use crate::clock::Time;

/// What a vendor's reply means for the job. Sync, webhook and polling vendors differ only in the step their first call gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Done {
        result: Bytes,
    },
    /// The vendor works on it and wants to be asked again.
    CheckAgain {
        after: Duration,
        ticket: Option<String>,
    },
    /// The vendor works on it and will call back.
    AwaitCallback {
        ticket: Option<String>,
    },
    /// Not this time. `after`: no sooner than this, if the vendor said so. A vendor that is merely busy does not count against the job.
    TryAgain {
        why: Failure,
        after: Option<Duration>,
        counts: bool,
        /// The call may have arrived and been done, and nobody heard of it.
        may_be_done: bool,
    },
    /// The vendor does not take our credentials. That is not the job's fault, unless it is refused again and again while others are taken.
    Unauthorized {
        why: Failure,
        is_alone: bool,
    },
    /// Another attempt would not change the answer.
    GiveUp {
        why: Failure,
    },
}

/// What a job becomes. The store writes it whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub next: Next,
    pub ticket: Option<String>,
    pub tries: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// To be called (or called again) at or after this time.
    Call {
        due_at: Time,
    },
    /// The vendor accepted the job and did not answer in time: to be ordered once more at or after this time.
    OrderAgain {
        due_at: Time,
    },
    /// To be polled at or after this time.
    Poll {
        due_at: Time,
        answer_by: Time,
    },
    /// The vendor's turn.
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
        deadline: Option<super::Deadline>,
    },
}

impl Next {
    /// The status in which the job ends by this, if it does.
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
    /// The job after this change, made at `now` by its `attempt`-th attempt (or by nobody's, with the number it has).
    pub fn apply(&self, job: &Job, attempt: u32, now: Time) -> Job {
        let base = Job {
            attempt: attempt.max(job.attempt),
            ticket: self.ticket.clone(),
            tries: self.tries,
            due_at: now,
            answer_by: None,
            result: None,
            failure: None,
            updated_at: now,
            finished_at: None,
            ..job.clone()
        };
        let ended = |status| Job { status, finished_at: Some(now), ..base.clone() };
        let (pending, processing) = (Status::Pending, Status::Processing);
        match &self.next {
            Next::Call { due_at } => Job { status: pending, stage: Stage::Call, due_at: *due_at, ..base },
            Next::OrderAgain { due_at } => {
                let unanswered = base.unanswered + 1;
                Job { status: pending, stage: Stage::Call, due_at: *due_at, unanswered, ..base }
            }
            Next::Poll { due_at, answer_by } => {
                Job { status: processing, stage: Stage::Poll, due_at: *due_at, answer_by: Some(*answer_by), ..base }
            }
            Next::Await { answer_by } => {
                Job { status: processing, stage: Stage::Await, answer_by: Some(*answer_by), ..base }
            }
            Next::Complete { result } => Job { result: Some(result.clone()), ..ended(Status::Complete) },
            Next::Failed(failure) => Job { failure: Some(failure.clone()), ..ended(Status::Failed) },
            Next::Expired(failure) => Job { failure: Some(failure.clone()), ..ended(Status::Expired) },
            Next::Cancelled => ended(Status::Cancelled),
            Next::Rerun { due_at, deadline } => {
                let run = base.run + 1;
                let (due_at, deadline) = (*due_at, *deadline);
                Job { status: pending, stage: Stage::Call, due_at, deadline, run, unanswered: 0, ..base }
            }
        }
    }
}

/// The vendor's rules that the state machine needs.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub retry: Retry,
    pub answer_within: Duration,
    /// No call is repeated that may have been done.
    pub at_most_once: bool,
}

/// What a job becomes after a step of its attempt. `jitter` in `0.0..1.0` spreads retries.
pub fn advance(job: &Job, step: Step, policy: &Policy, jitter: f64, now: Time) -> Change {
    let keep = |next| Change { next, ticket: job.ticket.clone(), tries: job.tries };
    match step {
        Step::Done { result } => keep(Next::Complete { result }),
        Step::GiveUp { why } => keep(Next::Failed(why)),
        Step::CheckAgain { after, ticket } => {
            let answer_by = job.answer_by.unwrap_or(now.plus(policy.answer_within));
            Change { ticket: ticket.or(job.ticket.clone()), ..keep(Next::Poll { due_at: now.plus(after), answer_by }) }
        }
        Step::AwaitCallback { ticket } => {
            Change { ticket, ..keep(Next::Await { answer_by: now.plus(policy.answer_within) }) }
        }
        // The vendor was busy, not the job wrong: the same call or poll again.
        Step::TryAgain { after, counts: false, .. } => {
            // `Retry-After: 0` does not make it a busy loop.
            let due_at = now.plus(after.unwrap_or_default().max(policy.retry.first));
            keep(again(job, due_at))
        }
        Step::Unauthorized { why, is_alone: true } => keep(Next::Failed(why)),
        // Due at once: what holds it back is the vendor's state, and those that have waited longer go first.
        Step::Unauthorized { is_alone: false, .. } => keep(again(job, now)),
        // A poll that failed says nothing about the vendor's work: ask again, until its time to answer is up.
        Step::TryAgain { after, .. } if job.stage == Stage::Poll => {
            let wait = after.unwrap_or_else(|| retry::backoff(&policy.retry, 3, jitter).max(policy.retry.first));
            keep(again(job, now.plus(wait)))
        }
        Step::TryAgain { why, may_be_done: true, .. } if policy.at_most_once => keep(unknown_outcome(&why.message)),
        Step::TryAgain { why, after, counts: true, .. } => try_again(job, why, after, policy, jitter, now),
    }
}

/// What a job becomes when the vendor did not answer in time: it is ordered again, or that was the last order.
pub fn no_answer(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Change {
    if policy.at_most_once {
        let next = unknown_outcome("nobody heard in time what came of the call");
        return Change { next, ticket: job.ticket.clone(), tries: job.tries };
    }
    let why = Failure::new(FailureCode::NoAnswer, "the vendor accepted the job and did not answer in time");
    if job.unanswered >= policy.retry.unanswered {
        let orders = job.unanswered.saturating_add(1);
        let last = if orders == 1 { why.message } else { format!("{orders} orders; the last: {}", why.message) };
        let next = Next::Failed(Failure::new(why.code, last));
        return Change { next, ticket: job.ticket.clone(), tries: job.tries.saturating_add(1) };
    }
    let change = try_again(job, why, None, policy, jitter, now);
    match change.next {
        Next::Call { due_at } => Change { next: Next::OrderAgain { due_at }, ..change },
        _ => change,
    }
}

/// What a callback with data, or with a failure, makes of a job; nothing when the job has ended or the callback is for an earlier run.
pub fn answered(job: &Job, run: Option<u32>, outcome: Result<Bytes, Failure>) -> Option<Change> {
    if job.status.has_ended() || run.is_some_and(|run| run != job.run) {
        return None;
    }
    let next = match outcome {
        Ok(result) => Next::Complete { result },
        Err(failure) => Next::Failed(failure),
    };
    Some(Change { next, ticket: job.ticket.clone(), tries: job.tries })
}

/// What an alarm that is due makes of a job: past its deadline it expires, past the vendor's time to answer it is tried again.
pub fn alarmed(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Option<Change> {
    if job.status.has_ended() {
        return None;
    }
    if job.deadline.is_some_and(|deadline| deadline.at <= now) {
        let why = Failure::new(FailureCode::Deadline, "the job's deadline passed before the vendor's data came");
        return Some(Change { next: Next::Expired(why), ticket: job.ticket.clone(), tries: job.tries });
    }
    job.answer_by.filter(|by| *by <= now).map(|_| no_answer(job, policy, jitter, now))
}

/// Gives up a job that workers died of again and again.
pub fn crashed(job: &Job) -> Option<Change> {
    let why = Failure::new(FailureCode::Crashed, "workers died or hung again and again while they held the job");
    let next = Next::Failed(why);
    (!job.status.has_ended()).then(|| Change { next, ticket: job.ticket.clone(), tries: job.tries })
}

/// The end of a job whose worker died or hung in a call that is made at most once, and what is on record of that call.
pub fn lost(job: &Job, attempt: u32, called_at: Time) -> (Change, Attempt) {
    let next = unknown_outcome("the worker died or hung when it was about to call, or during the call");
    let record = Attempt {
        n: attempt,
        kind: AttemptKind::Call,
        sent_at: None,
        permit_at: called_at.0,
        status: None,
        latency_ms: 0,
        outcome: AttemptOutcome::NoConnection,
        detail: Some("its worker died or hung; nobody knows whether it was made".into()),
    };
    (Change { next, ticket: job.ticket.clone(), tries: job.tries }, record)
}

/// Cancels a job that has not ended.
pub fn cancel(job: &Job) -> Option<Change> {
    (!job.status.has_ended()).then(|| Change { next: Next::Cancelled, ticket: job.ticket.clone(), tries: job.tries })
}

/// Starts a failed, expired or cancelled job again, at once; a duration deadline starts anew, a past one is dropped.
pub fn replay(job: &Job, now: Time) -> Option<Change> {
    if !matches!(job.status, Status::Failed | Status::Expired | Status::Cancelled) {
        return None;
    }
    let deadline = job.deadline.and_then(|deadline| match deadline.within {
        Some(within) => Some(super::Deadline { at: now.plus(within), ..deadline }),
        None => (deadline.at > now).then_some(deadline),
    });
    Some(Change { next: Next::Rerun { due_at: now, deadline }, ticket: None, tries: 0 })
}

/// The end of a job whose call must not be made twice, and may have been done.
fn unknown_outcome(what: &str) -> Next {
    let message = format!(
        "{what}; the vendor may have done it, and is called at most once: ask there, then replay the job or leave it"
    );
    Next::Failed(Failure::new(FailureCode::UnknownOutcome, message))
}

/// The same kind of call once more.
fn again(job: &Job, due_at: Time) -> Next {
    match (job.stage, job.answer_by) {
        (Stage::Poll, Some(answer_by)) => Next::Poll { due_at, answer_by },
        _ => Next::Call { due_at },
    }
}

fn try_again(job: &Job, why: Failure, after: Option<Duration>, policy: &Policy, jitter: f64, now: Time) -> Change {
    let tries = job.tries.saturating_add(1);
    if tries >= policy.retry.attempts {
        let last = if tries == 1 { why.message } else { format!("{tries} attempts; the last: {}", why.message) };
        return Change { next: Next::Failed(Failure::new(why.code, last)), ticket: job.ticket.clone(), tries };
    }
    let wait = retry::backoff(&policy.retry, tries, jitter).max(after.unwrap_or_default());
    Change { next: Next::Call { due_at: now.plus(wait) }, ticket: None, tries }
}
