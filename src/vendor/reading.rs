//! What an answer means: its head and its value against the vendor's rules (see `replies`), the same for replies, polls and callbacks.
//!
//! Never waits and never calls: it says what becomes of the job, and how long the pool should be silent.

use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};

use super::{
    Vendor, address,
    error::CallError,
    http::{Origin, Reads, Reply},
    quota::{self, Quota},
    replies::{Answer, Body, Fit, Means, On, Rule},
    value::{self, Expect, Value, ValueFault},
    waits,
};
use crate::{
    clock::Time,
    config::Kind,
    job::{AttemptOutcome, Failure, FailureCode, Fetch, Job, Stage, VendorSaid, lifecycle::Step},
};

/// What an answer, or its absence, means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub step: Step,
    /// The word for it on record.
    pub outcome: AttemptOutcome,
    /// The vendor's whole pool is not to be called for a while.
    pub silence: Option<Silence>,
    /// What is left of the vendor's limit lasts if its pool's calls are so far apart.
    pub apart: Option<Duration>,
}

/// Why a pool should be silent, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The vendor wants fewer calls; for so long, if it says.
    Asked(Option<Duration>),
    /// The vendor says that nothing is left of its limit for so long.
    NothingLeft(Duration),
}

impl Reading {
    pub(super) fn of(step: Step, outcome: AttemptOutcome) -> Reading {
        Reading { step, outcome, silence: None, apart: None }
    }

    /// The request could not be built: nothing was sent.
    pub fn unsendable(why: Failure) -> Reading {
        Reading::of(Step::GiveUp { why }, AttemptOutcome::Refused)
    }

    /// What is wrong, if anything is.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.step {
            Step::SlowDown { why, .. }
            | Step::Unauthorized { why, .. }
            | Step::TryAgain { why, .. }
            | Step::GiveUp { why } => Some(why),
            Step::Done { .. } | Step::Fetch { .. } | Step::CheckAgain { .. } | Step::AwaitCallback { .. } => None,
        }
    }
}

/// An answer as it came: what its meaning is read from.
pub(super) struct Received<'a> {
    pub(super) on: On,
    /// Whose call or poll was answered; nothing for a callback.
    pub(super) job: Option<&'a Job>,
    pub(super) now: Time,
    pub(super) status: Option<StatusCode>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Result<Value, Failure>,
    retry_after: Option<Duration>,
    quota: Quota,
    may_be_done: bool,
    just_accepted: bool,
    words: &'a dyn Fn() -> VendorSaid,
}

impl Vendor {
    /// How much of a reply's body its meaning needs, by its head.
    pub fn reads(&self, job: &Job, status: StatusCode, headers: &HeaderMap, now: Time) -> Reads {
        let nothing_left = || quota::read(headers, &self.config.rate_headers, now).nothing_left;
        let (on, just_accepted) = (self.on(job), self.just_accepted(job, now));
        let (status, body, nothing_left) = (Some(status), Body::Unread, &nothing_left);
        // Whether an earlier call may have been done changes nothing here: only the beginning is read in either case.
        let answer = Answer { on, status, headers, body, nothing_left, may_be_done: false, just_accepted };
        let first = self.rules.iter().map(|rule| (rule.fit(&answer), rule.means)).find(|(fit, _)| *fit != Fit::No);
        // A rule that may fit needs the body: a part of it is not JSON.
        let is_in_body = first.is_some_and(|(fit, means)| fit == Fit::Maybe || is_data(means));
        // The ticket is in the body, and so is whether a poll's work is done.
        let is_asked_again = matches!(self.config.kind, Kind::Polling(_)) && status.is_some_and(|it| it.is_success());
        if is_in_body || is_asked_again { Reads::Whole } else { Reads::Beginning }
    }

    /// What a reply, or its absence, means for the job. `may_be_done`: an earlier call of it may have been.
    pub fn read(&self, job: &Job, reply: Result<Reply, CallError>, may_be_done: bool, now: Time) -> Reading {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return error.reading(None),
        };
        let Reply { status, headers, body, broken } = &reply;
        let value = match broken {
            Some(error) => Err(Failure::new(FailureCode::BadResponse, error.to_string())),
            None => value::read(headers, body.clone(), self.expected(Some(*status))).map_err(Failure::from),
        };
        let words = || self.words(Some(*status), headers, body, broken.is_none(), job.fetch.as_ref());
        let received = Received {
            on: self.on(job),
            job: Some(job),
            now,
            status: Some(*status),
            headers,
            body: value,
            retry_after: waits::retry_after(headers, now),
            quota: quota::read(headers, &self.config.rate_headers, now),
            may_be_done,
            just_accepted: self.just_accepted(job, now),
            words: &words,
        };
        let (rule, quota) = (self.rule_for(&received), received.quota);
        // Data, a ticket, and whether a poll's work is done, are in the body.
        let is_poll = received.on == On::Poll && status.is_success();
        let is_in_body = match (rule.means, &self.config.kind) {
            (Means::Accepted, _) => self.ticket_is_in_body(&received),
            (Means::Pending, Kind::Polling(_)) if received.on == On::Call => self.ticket_is_in_body(&received),
            (means, _) => is_data(means) || is_poll,
        };
        let mut reading = match broken {
            Some(error) if is_in_body => error.reading(Some(words())),
            _ => self.meaning(rule, &received),
        };
        reading.apart = quota.apart;
        reading.silence = match (reading.silence, quota.silence) {
            (Some(Silence::Asked(time)), left) => Some(Silence::Asked(time.max(left))),
            (None, Some(left)) => Some(Silence::NothingLeft(left)),
            (silence, None) | (silence @ Some(Silence::NothingLeft(_)), _) => silence,
        };
        reading
    }

    /// What a callback means. A fault is of its bytes: they are no value.
    pub fn read_callback(&self, headers: &HeaderMap, raw: &Bytes, value: Value, now: Time) -> Reading {
        let words = || self.words(None, headers, raw, true, None);
        let received = Received {
            on: On::Callback,
            job: None,
            now,
            status: None,
            headers,
            body: Ok(value),
            retry_after: waits::retry_after(headers, now),
            quota: Quota::default(),
            may_be_done: true,
            just_accepted: false,
            words: &words,
        };
        self.meaning(self.rule_for(&received), &received)
    }

    /// The body of a callback as the value that this vendor's rules and pointers are for.
    pub fn value(&self, headers: &HeaderMap, body: Bytes) -> Result<Value, ValueFault> {
        value::read(headers, body, self.expected(None))
    }

    /// What the body of a reply, or of a callback, may be. Only the data of a reply have to be what it says that they are.
    fn expected(&self, status: Option<StatusCode>) -> Expect {
        match status {
            _ if self.config.json_only => Expect::Json,
            Some(status) if status.is_success() => Expect::AsDeclared,
            _ => Expect::Anything,
        }
    }

    /// What a job's next request is. Another request for the same thing is a call; a poll has a URL of its own.
    pub(super) fn on(&self, job: &Job) -> On {
        match (job.stage, &self.config.kind) {
            (Stage::Poll, _) if job.fetch.is_some() => On::Fetch,
            (Stage::Poll, Kind::Polling(_)) => On::Poll,
            _ => On::Call,
        }
    }

    /// The first rule that fits.
    fn rule_for(&self, received: &Received<'_>) -> &Rule {
        let body = match &received.body {
            Ok(value) => Body::Json(&value.json),
            Err(_) => Body::Unreadable,
        };
        let &Received { on, status, headers, quota, may_be_done, just_accepted, .. } = received;
        let nothing_left = &|| quota.nothing_left;
        let answer = Answer { on, status, headers, body, nothing_left, may_be_done, just_accepted };
        let fits = |rule: &&Rule| rule.fit(&answer) == Fit::Yes;
        self.rules.iter().find(fits).expect("the last built-in rule fits whatever no other does")
    }

    fn meaning(&self, rule: &Rule, received: &Received<'_>) -> Reading {
        // Both are the vendor's wish, or its operator's: the longer one is kept.
        let asked = rule.wait.max(received.retry_after.filter(|wait| !wait.is_zero()));
        let why = || {
            let message = described(rule, received.status);
            let code = match rule.means {
                Means::Refused | Means::Unauthorized => FailureCode::VendorRefused,
                _ => FailureCode::AttemptsExhausted,
            };
            Failure::new(code, message).with_words(Some((received.words)()))
        };
        match rule.means {
            Means::Done => match self.done(received) {
                Ok(step @ Step::Fetch { .. }) => Reading::of(step, AttemptOutcome::Pending),
                Ok(step) => Reading::of(step, AttemptOutcome::Done),
                Err(why) => self.no_data(received, why),
            },
            Means::Elsewhere => match self.elsewhere(received) {
                Ok(step) => Reading::of(step, AttemptOutcome::Pending),
                Err(why) => {
                    // The body of a redirect repeats its URL.
                    let said =
                        VendorSaid { status: received.status.map(|status| status.as_u16()), body: String::new() };
                    Reading::of(Step::GiveUp { why: why.with_words(Some(said)) }, AttemptOutcome::Refused)
                }
            },
            Means::Accepted => match self.accepted(received, asked) {
                Ok(step) => Reading::of(step, AttemptOutcome::Accepted),
                Err(why) => self.no_data(received, why),
            },
            Means::Pending => match self.pending(received, asked) {
                Ok(step @ Step::CheckAgain { ticket: Some(_), .. }) => Reading::of(step, AttemptOutcome::Accepted),
                Ok(step) => Reading::of(step, AttemptOutcome::Pending),
                Err(why) => self.no_data(received, why),
            },
            Means::SlowDown => {
                let silence = Some(Silence::Asked(asked));
                let step = Step::SlowDown { why: why(), after: asked };
                Reading { silence, ..Reading::of(step, AttemptOutcome::SlowDown) }
            }
            Means::TryAgain => {
                let silence = received.retry_after.map(|_| Silence::Asked(asked));
                // A gateway that got no answer from behind it knows no more than we do.
                let may_be_done =
                    matches!(received.status, Some(StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT));
                let step = Step::TryAgain { why: why(), after: asked, may_be_done };
                Reading { silence, ..Reading::of(step, AttemptOutcome::TryAgain) }
            }
            Means::Refused => Reading::of(Step::GiveUp { why: why() }, AttemptOutcome::Refused),
            Means::Unauthorized => match self.stranger(received) {
                Some(origin) => Reading::of(Step::GiveUp { why: not_for(&origin, why()) }, AttemptOutcome::Refused),
                None => Reading::of(Step::Unauthorized { why: why(), times: 1 }, AttemptOutcome::Unauthorized),
            },
        }
    }

    /// An answer that should have brought something and did not.
    fn no_data(&self, received: &Received<'_>, why: Failure) -> Reading {
        let why = why.with_words(Some((received.words)()));
        Reading::of(Step::GiveUp { why }, AttemptOutcome::Refused)
    }

    /// The beginning of what the vendor said, without secrets and what must not be kept: that is found only in a body that is whole and JSON.
    fn words(
        &self,
        status: Option<StatusCode>,
        headers: &HeaderMap,
        body: &Bytes,
        is_whole: bool,
        fetch: Option<&Fetch>,
    ) -> VendorSaid {
        // A secret that is cut in two cannot be found, so more is read than is kept.
        let most = 2 * VendorSaid::MAX_BODY;
        let is_success = status.is_none_or(|status| status.is_success());
        let redacted = if is_success { &self.redacted_with_urls } else { &self.redacted };
        let body = if redacted.redact.is_empty() {
            value::beginning(headers, body, most)
        } else {
            let value = if is_whole { value::read(headers, body.clone(), Expect::Json).ok() } else { None };
            let clean = value.filter(|value| !value.is_empty).map(|value| redacted.apply(&value.json));
            value::beginning(&HeaderMap::new(), clean.unwrap_or_default().as_bytes(), most)
        };
        let body = address::masked(self.login.masked(body), fetch);
        let body = value::cut(&body, VendorSaid::MAX_BODY).to_owned();
        VendorSaid { status: status.map(|status| status.as_u16()), body }
    }
}

/// Whether what an answer of this meaning brought is in its body.
fn is_data(means: Means) -> bool {
    matches!(means, Means::Done | Means::Accepted)
}

/// Why an answer that asks for credentials is one that refuses.
fn not_for(origin: &Origin, why: Failure) -> Failure {
    let mend = format!("if they should, write hosts = [{{ origin = \"{origin}\", auth = true }}] in the config");
    Failure { message: format!("{}; auth and headers do not go to {origin}: {mend}", why.message), ..why }
}

/// What happened, for people.
fn described(rule: &Rule, status: Option<StatusCode>) -> String {
    match (rule.looks_at(), status) {
        (Some(at), _) if rule.means == Means::Refused => format!("the vendor reported a failure at {at}"),
        (Some(at), _) if rule.means == Means::SlowDown => format!("the vendor asked us to slow down at {at}"),
        (_, Some(status)) => format!("the vendor answered {}", status.as_u16()),
        (Some(at), None) => format!("the vendor's callback says at {at} that it failed"),
        (None, None) => "the vendor's callback says that it failed".to_owned(),
    }
}
