//! The whole state machine of a job, as pure functions: what a step means, and what callbacks, cancels, replays and alarms do.
//!
//! Never stores anything: the store keeps a [`Change`] only if the job is still what the function saw.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Attempt, AttemptKind, AttemptOutcome, Failure, FailureCode, Job, Stage, Status, VendorSaid,
    retry::{self, Retry},
};
use crate::clock::Time;

/// What a vendor's reply means for the job. Sync, webhook and polling vendors differ only in the step their first call gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Done {
        result: Bytes,
    },
    /// Not yet: the vendor is asked again, no sooner than `after` where that is known. A vendor that gave no ticket gets the same request.
    CheckAgain {
        after: Option<Duration>,
        ticket: Option<String>,
    },
    /// The vendor works on it and will call back.
    AwaitCallback {
        ticket: Option<String>,
    },
    /// The vendor wants fewer calls, whatever job they are for. `after`: no sooner than this. Does not count against the job.
    SlowDown {
        why: Failure,
        after: Option<Duration>,
    },
    /// Not this time. `after`: no sooner than this, if the vendor said so.
    TryAgain {
        why: Failure,
        after: Option<Duration>,
        /// The call may have arrived and been done, and no reply came.
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
    /// How often in a row the vendor asked to slow down.
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
    /// A job goes on to `next`, and nothing is wrong.
    pub fn of(job: &Job, next: Next) -> Change {
        let (ticket, tries) = (job.ticket.clone(), job.tries);
        Change { next, ticket, tries, slowed: 0, last_error: None }
    }

    /// The job after this change, made at `now` by its `attempt`-th attempt (or by nobody's, with the number it has).
    pub fn apply(&self, job: &Job, attempt: u32, now: Time) -> Job {
        let base = Job {
            attempt: attempt.max(job.attempt),
            ticket: self.ticket.clone(),
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
        match &self.next {
            Next::Call { due_at } => goes_on(pending, Stage::Call, *due_at),
            Next::OrderAgain { due_at } => {
                Job { unanswered: base.unanswered + 1, ..goes_on(pending, Stage::Call, *due_at) }
            }
            Next::Poll { due_at, answer_by } => {
                Job { answer_by: Some(*answer_by), ..goes_on(processing, Stage::Poll, *due_at) }
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

/// The first and the longest wait before a vendor that said "not yet" is asked again, when nobody says how long.
const FIRST_CHECK: Duration = Duration::from_secs(2);
const LONGEST_CHECK: Duration = Duration::from_secs(30);
/// The longest that a job waits because its vendor asked to slow down.
const LONGEST_SLOW_DOWN: Duration = Duration::from_secs(3600);

/// What a job becomes after a step of its attempt. `jitter` in `0.0..1.0` spreads retries.
pub fn advance(job: &Job, step: Step, policy: &Policy, jitter: f64, now: Time) -> Change {
    match step {
        // The call that ends a job counts too.
        Step::Done { result } => Change { tries: job.tries + 1, ..Change::of(job, Next::Complete { result }) },
        Step::GiveUp { why } => Change { tries: job.tries + 1, ..Change::of(job, Next::Failed(why)) },
        Step::CheckAgain { after, ticket } => {
            let answer_by = job.answer_by.unwrap_or(now.plus(policy.answer_within));
            let asked_for = policy.answer_within.saturating_sub(answer_by.since(now));
            let after = after.unwrap_or_else(|| (asked_for + FIRST_CHECK).min(LONGEST_CHECK));
            let next = Next::Poll { due_at: now.plus(after), answer_by };
            Change { ticket: ticket.or(job.ticket.clone()), ..Change::of(job, next) }
        }
        Step::AwaitCallback { ticket } => {
            let next = Next::Await { answer_by: now.plus(policy.answer_within) };
            Change { ticket, ..Change::of(job, next) }
        }
        Step::SlowDown { why, after } => {
            let slowed = job.slowed.saturating_add(1);
            let wait = retry::backoff(&policy.retry, slowed, jitter).max(policy.retry.first);
            let wait = wait.max(after.unwrap_or_default()).min(LONGEST_SLOW_DOWN);
            Change { slowed, last_error: Some(why), ..Change::of(job, later(job, wait, now)) }
        }
        Step::Unauthorized { why, is_alone: true } => Change::of(job, Next::Failed(why)),
        // Due at once: what holds it back is the vendor's state, and those that have waited longer go first.
        Step::Unauthorized { why, is_alone: false } => {
            Change { last_error: Some(why), ..Change::of(job, again(job, now)) }
        }
        // A poll that failed says nothing about the vendor's work: ask again, until its time to answer is up.
        Step::TryAgain { why, after, .. } if job.stage == Stage::Poll => {
            let wait = after.unwrap_or_else(|| retry::backoff(&policy.retry, 3, jitter).max(policy.retry.first));
            Change { last_error: Some(why), ..Change::of(job, again(job, now.plus(wait))) }
        }
        Step::TryAgain { why, may_be_done: true, .. } if policy.at_most_once => {
            Change::of(job, unknown_outcome(&why.message, why.vendor))
        }
        Step::TryAgain { why, after, .. } => try_again(job, why, after, policy, jitter, now),
    }
}

/// What a job becomes when the vendor did not answer in time: it is ordered again, or that was the last order.
pub fn no_answer(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Change {
    if policy.at_most_once {
        return Change::of(job, unknown_outcome("nobody heard in time what came of the call", last_words(job)));
    }
    let why = Failure::new(FailureCode::NoAnswer, "the vendor accepted the job and did not answer in time");
    let why = why.with_words(last_words(job));
    if job.unanswered >= policy.retry.unanswered {
        let orders = job.unanswered.saturating_add(1);
        let message = if orders == 1 { why.message } else { format!("{orders} orders; the last: {}", why.message) };
        let next = Next::Failed(Failure { message, ..why });
        return Change { tries: job.tries.saturating_add(1), ..Change::of(job, next) };
    }
    let change = try_again(job, why, None, policy, jitter, now);
    match change.next {
        Next::Call { due_at } => Change { next: Next::OrderAgain { due_at }, ..change },
        _ => change,
    }
}

/// What a callback makes of a job; nothing when it changes nothing, the job has ended or the callback is for an earlier run.
pub fn called_back(job: &Job, run: Option<u32>, step: Step, policy: &Policy, jitter: f64, now: Time) -> Option<Change> {
    match step {
        Step::Done { result } => answered(job, run, Ok(result)),
        Step::GiveUp { why } => answered(job, run, Err(why)),
        // Progress: the vendor will call back again.
        Step::CheckAgain { .. } | Step::AwaitCallback { .. } => None,
        // The vendor is done with this call, so what is tried again is the submitting call.
        step => {
            is_open(job, run).then(|| advance(&Job { stage: Stage::Call, ..job.clone() }, step, policy, jitter, now))
        }
    }
}

/// What data from a callback, or a failure, makes of a job; nothing when the job has ended or the callback is for an earlier run.
pub fn answered(job: &Job, run: Option<u32>, outcome: Result<Bytes, Failure>) -> Option<Change> {
    let next = match outcome {
        Ok(result) => Next::Complete { result },
        Err(failure) => Next::Failed(failure),
    };
    is_open(job, run).then(|| Change { tries: job.tries + 1, ..Change::of(job, next) })
}

/// Whether a callback for this run still changes the job.
fn is_open(job: &Job, run: Option<u32>) -> bool {
    !job.status.has_ended() && run.is_none_or(|run| run == job.run)
}

/// What an alarm that is due makes of a job: past its deadline it expires, past the vendor's time to answer it is tried again.
pub fn alarmed(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Option<Change> {
    if job.status.has_ended() {
        return None;
    }
    if job.deadline.is_some_and(|deadline| deadline.at <= now) {
        let why = Failure::new(FailureCode::Deadline, "the job's deadline passed before the vendor's data came");
        return Some(Change::of(job, Next::Expired(why.with_words(last_words(job)))));
    }
    job.answer_by.filter(|by| *by <= now).map(|_| no_answer(job, policy, jitter, now))
}

/// Gives up a job that workers died of again and again.
pub fn crashed(job: &Job) -> Option<Change> {
    let why = Failure::new(FailureCode::Crashed, "workers died or hung again and again while they held the job");
    (!job.status.has_ended()).then(|| Change::of(job, Next::Failed(why)))
}

/// The end of a job whose worker died or hung in a call that is made at most once, and what is on record of that call.
pub fn lost(job: &Job, attempt: u32, called_at: Time) -> (Change, Attempt) {
    let next = unknown_outcome("the worker died or hung when it was about to call, or during the call", None);
    let record = Attempt {
        n: attempt,
        kind: AttemptKind::Call,
        sent_at: None,
        permit_at: called_at.0,
        status: None,
        latency_ms: 0,
        outcome: AttemptOutcome::NoConnection,
        detail: Some("its worker died or hung; nobody knows whether it was made".into()),
        response: None,
    };
    (Change::of(job, next), record)
}

/// Cancels a job that has not ended.
pub fn cancel(job: &Job) -> Option<Change> {
    (!job.status.has_ended()).then(|| Change::of(job, Next::Cancelled))
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
    Some(Change { ticket: None, tries: 0, ..Change::of(job, Next::Rerun { due_at: now, deadline }) })
}

/// What the vendor said when the job's last attempt went wrong.
fn last_words(job: &Job) -> Option<VendorSaid> {
    job.failure.as_ref().and_then(|failure| failure.vendor.clone())
}

/// The end of a job whose call must not be made twice, and may have been done.
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

/// The same kind of call after a wait that is not the job's fault: the vendor's time to answer stands still.
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
