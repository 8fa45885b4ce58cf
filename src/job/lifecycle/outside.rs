//! Changes of a job that do not come from a reply: callbacks, alarms, lapsed leases, cancels and replays.
//!
//! Never stores anything, like the rest of the state machine.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Change, Next, Policy, Step, advance, last_words,
    polls::{self, no_answer},
    unknown_outcome,
};
use crate::{
    clock::Time,
    job::{Attempt, AttemptKind, AttemptOutcome, Deadline, Failure, FailureCode, Job, Stage, Status},
};

/// The change by a callback; `None` if it only reports progress, the job has ended, or the callback is for an earlier run.
pub fn called_back(job: &Job, run: Option<u32>, step: Step, policy: &Policy, jitter: f64, now: Time) -> Option<Change> {
    match step {
        Step::Done { result } => answered(job, run, Ok(result)),
        Step::GiveUp { why } => answered(job, run, Err(why)),
        Step::Fetch { from, ticket } => is_open(job, run).then(|| polls::fetch(job, from, ticket, policy, now)),
        // Progress: the vendor will call back again.
        Step::CheckAgain { .. } | Step::AwaitCallback { .. } => None,
        // A callback cannot show when the credentials are good again, so this counts as a failed attempt.
        Step::Unauthorized { why, .. } => {
            let step = Step::TryAgain { why, after: None, may_be_done: false };
            called_back(job, run, step, policy, jitter, now)
        }
        // The vendor is done with this order, so what is tried again is the submitting call.
        step => {
            is_open(job, run).then(|| advance(&Job { stage: Stage::Call, ..job.clone() }, step, policy, jitter, now))
        }
    }
}

/// The end of a job by a callback with its data or a failure; `None` if the job has ended or the callback is for an earlier run.
pub fn answered(job: &Job, run: Option<u32>, outcome: Result<Bytes, Failure>) -> Option<Change> {
    let next = match outcome {
        Ok(result) => Next::Complete { result },
        Err(failure) => Next::Failed(failure),
    };
    is_open(job, run).then(|| Change { tries: job.tries + 1, ..Change::of(job, next) })
}

/// Whether a callback for this run may still change the job. Not once the vendor is done and only its data is still to be fetched.
fn is_open(job: &Job, run: Option<u32>) -> bool {
    !job.status.has_ended() && job.fetch.is_none() && run.is_none_or(|run| run == job.run)
}

/// The change by an alarm that is due: past its deadline a job expires; past the vendor's time to answer it is ordered again, or fails.
pub fn alarmed(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Option<Change> {
    if job.status.has_ended() {
        return None;
    }
    if job.deadline.is_some_and(|deadline| deadline.at <= now) {
        let why = Failure::new(FailureCode::Deadline, "the job's deadline passed before the vendor's data came");
        return Some(Change::of(job, Next::Expired(why.with_words(last_words(job)))));
    }
    if job.gives_up_at().is_some_and(|at| at <= now) {
        return Some(no_answer(job, policy, jitter, now));
    }
    // Earlier versions set the alarm of a polled job to `answer_by`. Moving that by a millisecond stores the job with the alarm of this version.
    let by = job.answer_by.filter(|by| job.stage == Stage::Poll && *by <= now)?;
    let next = Next::Poll { due_at: job.due_at, answer_by: by.plus(Duration::from_millis(1)) };
    Some(Change { slowed: job.slowed, last_error: job.failure.clone(), ..Change::of(job, next) })
}

/// Fails a job whose leases have lapsed too often.
pub fn crashed(job: &Job) -> Option<Change> {
    let why = Failure::new(FailureCode::Crashed, "workers died or hung again and again while they worked on the job");
    (!job.status.has_ended()).then(|| Change::of(job, Next::Failed(why)))
}

/// Ends a job that is called at most once and whose worker died or hung around the call; with the record of that attempt.
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
        Some(within) => Some(Deadline { at: now.plus(within), ..deadline }),
        None => (deadline.at > now).then_some(deadline),
    });
    Some(Change { ticket: None, tries: 0, ..Change::of(job, Next::Rerun { due_at: now, deadline }) })
}
