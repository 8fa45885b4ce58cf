//! What an answer means: its head and its value against the vendor's rules (see `replies`), the same for replies, polls and callbacks.
//!
//! Never waits and never calls: it says what becomes of the job, and how long the pool should be silent.

use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};
use serde_json::value::RawValue;

use super::{
    Vendor,
    error::CallError,
    http::{Reads, Reply},
    polling,
    quota::{self, Quota},
    replies::{Answer, Body, Fit, Means, On, Rule},
    value::{self, Expect, Value, ValueFault},
    waits, webhook,
};
use crate::{
    clock::Time,
    config::Kind,
    job::{AttemptOutcome, Failure, FailureCode, Job, Stage, VendorSaid, lifecycle::Step},
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
            Step::Done { .. } | Step::CheckAgain { .. } | Step::AwaitCallback { .. } => None,
        }
    }
}

/// An answer as it came: what its meaning is read from.
struct Received<'a> {
    on: On,
    status: Option<StatusCode>,
    headers: &'a HeaderMap,
    body: Result<Value, Failure>,
    retry_after: Option<Duration>,
    quota: Quota,
    may_be_done: bool,
    words: &'a dyn Fn() -> VendorSaid,
}

impl Vendor {
    /// How much of a reply's body its meaning needs, by its head.
    pub fn reads(&self, job: &Job, status: StatusCode, headers: &HeaderMap, now: Time) -> Reads {
        let nothing_left = || quota::read(headers, &self.config.rate_headers, now).nothing_left;
        let (on, body) = (self.on(job), Body::Unread);
        // Whether an earlier call may have been done changes nothing here: only the beginning is read in either case.
        let answer =
            Answer { on, status: Some(status), headers, body, nothing_left: &nothing_left, may_be_done: false };
        let first = self.rules.iter().map(|rule| (rule.fit(&answer), rule.means)).find(|(fit, _)| *fit != Fit::No);
        // A rule that may fit needs the body: a part of it is not JSON.
        let is_in_body = first.is_some_and(|(fit, means)| fit == Fit::Maybe || is_data(means));
        // A poll's 2xx says in its body whether the work is done.
        if is_in_body || (on == On::Poll && status.is_success()) { Reads::Whole } else { Reads::Beginning }
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
        let words = || self.words(Some(*status), headers, body, broken.is_none());
        let received = Received {
            on: self.on(job),
            status: Some(*status),
            headers,
            body: value,
            retry_after: waits::retry_after(headers, now),
            quota: quota::read(headers, &self.config.rate_headers, now),
            may_be_done,
            words: &words,
        };
        let (rule, quota) = (self.rule_for(&received), received.quota);
        // Data, a ticket, and whether a poll's work is done, are in the body.
        let is_in_body = match rule.means {
            Means::Accepted => self.needs_ticket(),
            means => is_data(means) || (received.on == On::Poll && status.is_success()),
        };
        let mut reading = match broken {
            Some(error) if is_in_body => error.reading(Some(words())),
            _ => self.meaning(job.stage, rule, &received),
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
        let words = || self.words(None, headers, raw, true);
        let received = Received {
            on: On::Callback,
            status: None,
            headers,
            body: Ok(value),
            retry_after: waits::retry_after(headers, now),
            quota: Quota::default(),
            may_be_done: true,
            words: &words,
        };
        self.meaning(Stage::Await, self.rule_for(&received), &received)
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

    /// Another request for the same thing is a call; a poll has a URL of its own.
    fn on(&self, job: &Job) -> On {
        let polls = matches!(self.config.kind, Kind::Polling(_));
        if polls && job.stage == Stage::Poll { On::Poll } else { On::Call }
    }

    /// The first rule that fits.
    fn rule_for(&self, received: &Received<'_>) -> &Rule {
        let body = match &received.body {
            Ok(value) => Body::Json(&value.json),
            Err(_) => Body::Unreadable,
        };
        let &Received { on, status, headers, quota, may_be_done, .. } = received;
        let answer = Answer { on, status, headers, body, nothing_left: &|| quota.nothing_left, may_be_done };
        let fits = |rule: &&Rule| rule.fit(&answer) == Fit::Yes;
        self.rules.iter().find(fits).expect("the last built-in rule fits whatever no other does")
    }

    fn meaning(&self, stage: Stage, rule: &Rule, received: &Received<'_>) -> Reading {
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
                Ok(result) => Reading::of(Step::Done { result }, AttemptOutcome::Done),
                Err(why) => self.no_data(received, why),
            },
            Means::Accepted => match self.accepted(received, asked) {
                Ok(step) => Reading::of(step, AttemptOutcome::Accepted),
                Err(why) => self.no_data(received, why),
            },
            Means::Pending => match self.pending(stage, received, asked) {
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
            Means::Unauthorized => {
                Reading::of(Step::Unauthorized { why: why(), times: 1 }, AttemptOutcome::Unauthorized)
            }
        }
    }

    /// The data in an answer that is done.
    fn done(&self, received: &Received<'_>) -> Result<Bytes, Failure> {
        let value = received.body.as_ref().map_err(Clone::clone)?;
        let data: &RawValue = match &self.config.kind {
            Kind::Sync => &value.json,
            // An answer such as "no match" has no result where data has one: it is the result.
            _ if received.status.is_some_and(|status| !status.is_success()) => &value.json,
            Kind::Polling(polling) => polling::result(polling, &value.json)?,
            Kind::Webhook(webhook) => webhook::result(webhook, &value.json)?,
        };
        // Untouched data stays in the buffer that it arrived in.
        let is_whole = data.get().len() == value.json.get().len();
        match &value.source {
            Some(source) if is_whole && self.config.clean.is_noop() => Ok(source.clone()),
            _ => self.cleaned(data),
        }
    }

    /// Whether an acceptance is of no use without its body. One that only says "accepted" counts by its head: the job is not ordered twice.
    fn needs_ticket(&self) -> bool {
        !matches!(&self.config.kind, Kind::Webhook(webhook) if webhook.ticket.is_none())
    }

    /// The vendor has taken the job: it will call back, or wants to be polled.
    fn accepted(&self, received: &Received<'_>, asked: Option<Duration>) -> Result<Step, Failure> {
        match &self.config.kind {
            Kind::Sync => Ok(Step::CheckAgain { after: asked, ticket: None }),
            Kind::Webhook(webhook) => Ok(Step::AwaitCallback { ticket: webhook::ticket(webhook, &received.body)? }),
            Kind::Polling(polling) => {
                let value = received.body.as_ref().map_err(Clone::clone)?;
                let ticket = Some(polling::ticket(polling, &value.json)?);
                Ok(Step::CheckAgain { after: Some(polling.every.max(asked.unwrap_or_default())), ticket })
            }
        }
    }

    /// The vendor is not done.
    fn pending(&self, stage: Stage, received: &Received<'_>, asked: Option<Duration>) -> Result<Step, Failure> {
        match &self.config.kind {
            Kind::Polling(polling) if stage == Stage::Poll => {
                if received.status.is_some_and(|status| status.is_success()) {
                    received.body.as_ref().map_err(Clone::clone)?;
                }
                Ok(Step::CheckAgain { after: Some(polling.every.max(asked.unwrap_or_default())), ticket: None })
            }
            Kind::Polling(_) => self.accepted(received, asked),
            _ => Ok(Step::CheckAgain { after: asked, ticket: None }),
        }
    }

    /// An answer that should have brought something and did not.
    fn no_data(&self, received: &Received<'_>, why: Failure) -> Reading {
        let why = why.with_words(Some((received.words)()));
        Reading::of(Step::GiveUp { why }, AttemptOutcome::Refused)
    }

    /// The beginning of what the vendor said, without our secrets and what must not be kept: that is found only in a body that is whole and
    /// JSON.
    fn words(&self, status: Option<StatusCode>, headers: &HeaderMap, body: &Bytes, is_whole: bool) -> VendorSaid {
        // A secret that is cut in two cannot be found, so more is read than is kept.
        let most = 2 * VendorSaid::MAX_BODY;
        let body = if self.redacted.redact.is_empty() {
            value::beginning(headers, body, most)
        } else {
            let value = if is_whole { value::read(headers, body.clone(), Expect::Json).ok() } else { None };
            let clean = value.filter(|value| !value.is_empty).map(|value| self.redacted.apply(&value.json));
            value::beginning(&HeaderMap::new(), clean.unwrap_or_default().as_bytes(), most)
        };
        let body = value::cut(&self.login.masked(body), VendorSaid::MAX_BODY).to_owned();
        VendorSaid { status: status.map(|status| status.as_u16()), body }
    }
}

/// Whether what an answer of this meaning brought is in its body.
fn is_data(means: Means) -> bool {
    matches!(means, Means::Done | Means::Accepted)
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
