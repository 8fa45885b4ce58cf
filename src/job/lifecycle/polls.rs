//! What becomes of a job whose vendor has accepted it and is asked again: whether it is done, or for its data.
//!
//! Never stores anything, like the rest of the state machine.

use std::{borrow::Cow, time::Duration};

use super::{Change, Next, Policy, again, last_words, unknown_outcome};
use crate::{
    clock::Time,
    job::{Failure, FailureCode, Fetch, Job, Stage, retry},
};

/// The first and the longest wait before a vendor that said "not yet" is asked again, when nobody says how long.
const FIRST_CHECK: Duration = Duration::from_secs(2);
const LONGEST_CHECK: Duration = Duration::from_secs(30);

/// The job as it is when it is asked at this time. From its due time until then it could not be asked (its vendor was paused, a limit was
/// used up), and so long the vendor's time to answer stood still.
pub fn asked(job: &Job, at: Time) -> Cow<'_, Job> {
    match job.answer_by {
        Some(by) if job.stage == Stage::Poll && at > job.due_at => {
            Cow::Owned(Job { answer_by: Some(by.plus(at.since(job.due_at))), ..job.clone() })
        }
        _ => Cow::Borrowed(job),
    }
}

/// How long the vendor has worked on a job that it accepted, as far as that counts.
pub fn worked_for(job: &Job, answer_within: Duration, now: Time) -> Duration {
    job.answer_by.map_or(Duration::ZERO, |by| answer_within.saturating_sub(by.since(now)))
}

/// The vendor is not done.
pub(super) fn check_again(
    job: &Job,
    after: Option<Duration>,
    ticket: Option<String>,
    policy: &Policy,
    jitter: f64,
    now: Time,
) -> Change {
    if is_over(job, now) {
        return no_answer(job, policy, jitter, now);
    }
    let answer_by = job.answer_by.unwrap_or(now.plus(policy.answer_within));
    let doubled = (worked_for(job, policy.answer_within, now) + FIRST_CHECK).min(LONGEST_CHECK);
    let next = Next::Poll { due_at: now.plus(after.unwrap_or(doubled)), answer_by };
    Change { ticket: ticket.or(job.ticket.clone()), ..Change::of(job, next) }
}

/// The vendor is done, and its data is elsewhere: to bring it, the vendor has its time anew.
pub(super) fn fetch(job: &Job, from: Fetch, ticket: Option<String>, policy: &Policy, now: Time) -> Change {
    let next = Next::Poll { due_at: now, answer_by: now.plus(policy.answer_within) };
    Change { ticket: ticket.or(job.ticket.clone()), fetch: Some(from), ..Change::of(job, next) }
}

/// A poll that failed says nothing about the vendor's work: it is asked again, until its time to answer is over.
pub(super) fn try_again(
    job: &Job,
    why: Failure,
    after: Option<Duration>,
    policy: &Policy,
    jitter: f64,
    now: Time,
) -> Change {
    if is_over(job, now) {
        return no_answer(&Job { failure: Some(why), ..job.clone() }, policy, jitter, now);
    }
    // A vendor that names next to no time is not asked at full speed.
    let wait = after.unwrap_or_else(|| retry::backoff(&policy.retry, 3, jitter)).max(policy.retry.first);
    Change { last_error: Some(why), ..Change::of(job, again(job, now.plus(wait))) }
}

fn is_over(job: &Job, now: Time) -> bool {
    job.stage == Stage::Poll && job.answer_by.is_some_and(|by| by <= now)
}

/// What a job becomes when the vendor did not answer in time: it is ordered again, or that was the last order.
pub(super) fn no_answer(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Change {
    let failed = |message: String| {
        let why = Failure::new(FailureCode::NoAnswer, message).with_words(last_words(job));
        Change { tries: job.tries.saturating_add(1), ..Change::of(job, Next::Failed(why)) }
    };
    if job.fetch.is_some() {
        // Another order would be paid for although this one was done.
        return failed("the vendor was done, and its data could not be fetched in time".to_owned());
    }
    if policy.at_most_once {
        return Change::of(job, unknown_outcome("nobody heard in time what came of the call", last_words(job)));
    }
    let message = "the vendor accepted the job and did not answer in time";
    if job.unanswered >= policy.retry.unanswered {
        let orders = job.unanswered.saturating_add(1);
        return failed(if orders == 1 { message.to_owned() } else { format!("{orders} orders; the last: {message}") });
    }
    let why = Failure::new(FailureCode::NoAnswer, message).with_words(last_words(job));
    let change = super::try_again(job, why, None, policy, jitter, now);
    match change.next {
        Next::Call { due_at } => Change { next: Next::OrderAgain { due_at }, ..change },
        _ => change,
    }
}
