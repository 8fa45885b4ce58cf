//! Changes of a job whose vendor has accepted it and is polled: for whether it is done, then for its data.
//!
//! Never stores anything, like the rest of the state machine.

use std::{borrow::Cow, time::Duration};

use super::{Change, Next, Policy, again, last_words, unknown_outcome};
use crate::{
    clock::Time,
    job::{Failure, FailureCode, Fetch, Job, Stage, retry},
};

/// The first and the longest wait between polls, if neither the config nor the vendor says how long to wait.
const FIRST_CHECK: Duration = Duration::from_secs(2);
const LONGEST_CHECK: Duration = Duration::from_secs(30);

/// The job as it is when its poll is made at this time. If the poll was due earlier and could not be made (the vendor was paused, a limit was
/// used up), `answer_by` is moved by that delay.
pub fn asked(job: &Job, at: Time) -> Cow<'_, Job> {
    match job.answer_by {
        Some(by) if job.stage == Stage::Poll && at > job.due_at => {
            Cow::Owned(Job { answer_by: Some(by.plus(at.since(job.due_at))), ..job.clone() })
        }
        _ => Cow::Borrowed(job),
    }
}

/// How much of the vendor's time to answer has passed.
pub fn worked_for(job: &Job, answer_within: Duration, now: Time) -> Duration {
    job.answer_by.map_or(Duration::ZERO, |by| answer_within.saturating_sub(by.since(now)))
}

/// The change by "not yet".
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

/// The vendor is done, and its data is at another URL. For the fetch the time to answer starts anew.
pub(super) fn fetch(job: &Job, from: Fetch, ticket: Option<String>, policy: &Policy, now: Time) -> Change {
    let next = Next::Poll { due_at: now, answer_by: now.plus(policy.answer_within) };
    Change { ticket: ticket.or(job.ticket.clone()), fetch: Some(from), ..Change::of(job, next) }
}

/// A poll that failed says nothing about the vendor's work: the vendor is polled again, until its time to answer is over.
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
    // At least `retry.first`, also if the vendor names a shorter time.
    let wait = after.unwrap_or_else(|| retry::backoff(&policy.retry, 3, jitter)).max(policy.retry.first);
    Change { last_error: Some(why), ..Change::of(job, again(job, now.plus(wait))) }
}

fn is_over(job: &Job, now: Time) -> bool {
    job.stage == Stage::Poll && job.answer_by.is_some_and(|by| by <= now)
}

/// The change when the vendor did not answer in time: the job is ordered again, or fails if that was the last order.
pub(super) fn no_answer(job: &Job, policy: &Policy, jitter: f64, now: Time) -> Change {
    let failed = |message: String| {
        let why = Failure::new(FailureCode::NoAnswer, message).with_words(last_words(job));
        Change { tries: job.tries.saturating_add(1), ..Change::of(job, Next::Failed(why)) }
    };
    if job.fetch.is_some() {
        // Ordering again would cost money, although the vendor has done its work.
        return failed("the vendor was done, and its data could not be fetched in time".to_owned());
    }
    if policy.at_most_once {
        return Change::of(
            job,
            unknown_outcome("the vendor accepted the call and did not answer in time", last_words(job)),
        );
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::job::{JobId, Lane, NewJob, Priority, Status, lifecycle::alarmed, retry::Retry};

    const DAY: Duration = Duration::from_secs(86_400);

    fn polled(due_at: i64, answer_by: i64) -> Job {
        let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
        let new = NewJob::new(JobId::first_at(Time(0)), lane, "1", Time(0));
        let (status, stage) = (Status::Processing, Stage::Poll);
        Job { status, stage, due_at: Time(due_at), answer_by: Some(Time(answer_by)), ..new.into() }
    }

    fn policy() -> Policy {
        let (first, max) = (Duration::from_secs(1), Duration::from_secs(60));
        let retry = Retry { attempts: 16, first, max, unanswered: 0 };
        Policy { retry, answer_within: Duration::from_secs(50), at_most_once: false }
    }

    #[test]
    fn the_time_to_answer_stands_still_while_a_due_poll_cannot_be_made() {
        let job = polled(10_000, 60_000);
        for (at, by) in [(0, 60_000), (10_000, 60_000), (10_001, 60_001), (3_610_000, 3_660_000)] {
            assert_eq!(asked(&job, Time(at)).answer_by, Some(Time(by)), "{at}");
        }
        let call = Job { stage: Stage::Call, ..job };
        assert_eq!(asked(&call, Time(3_610_000)).answer_by, Some(Time(60_000)));
    }

    #[test]
    fn only_a_poll_ends_a_job_whose_time_is_over() {
        let (job, now) = (polled(10_000, 60_000), Time(60_000));
        let change = check_again(&job, None, None, &policy(), 0.5, now);
        assert!(matches!(&change.next, Next::Failed(why) if why.code == FailureCode::NoAnswer), "{change:?}");
        // The alarm of an earlier version at that time: the job is stored with the alarm of this version.
        let change = alarmed(&job, &policy(), 0.5, now).expect("it is stored again");
        let job = change.apply(&job, 0, now);
        assert_eq!((job.stage, job.due_at), (Stage::Poll, Time(10_000)));
        assert_eq!(job.alarm_at(), Some(Time(60_001).plus(DAY * 30)));
        assert!(alarmed(&job, &policy(), 0.5, now).is_none());
        let change = alarmed(&job, &policy(), 0.5, now.plus(DAY * 31)).expect("it ends");
        assert!(matches!(&change.next, Next::Failed(why) if why.code == FailureCode::NoAnswer), "{change:?}");
    }
}
