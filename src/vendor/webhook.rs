//! Vendors that take work and call back when it is done.

use std::{sync::atomic::Ordering, time::Duration};

use hyper::{HeaderMap, Method};
use serde_json::value::RawValue;

use super::{
    Vendor,
    error::bad,
    template::Scope,
    ticket_at,
    value::Value,
    verify::{NotBelieved, Verify},
};
use crate::{
    clock::{Nanos, Time, nanos},
    config::{Challenge, Kind, LiveSecret, Reread, Webhook},
    job::{Failure, JobId},
    json::{self, Pointer},
};

/// Callbacks in one body at most.
pub const MAX_EVENTS: usize = 1_000;
/// The time between two looks at the files of secrets.
const SECRETS_EVERY: Duration = Duration::from_secs(2);

/// What we send when no body is configured.
pub(super) fn default_body(scope: &Scope<'_>) -> String {
    format!(
        r#"{{"request_id":"{}","payload":{},"callback_url":"{}"}}"#,
        scope.request_id,
        scope.payload.get(),
        scope.callback_url.unwrap_or_default()
    )
}

/// The vendor's own reference in its acceptance, if it gives one. Without that nothing of the acceptance is needed.
pub(super) fn ticket(webhook: &Webhook, answer: &Result<Value, Failure>) -> Result<Option<String>, Failure> {
    let Some(at) = &webhook.ticket else { return Ok(None) };
    let answer = answer.as_ref().map_err(Clone::clone)?;
    ticket_at(at, &answer.json)
}

/// The vendor's own reference in its callback, if it repeats it.
pub(super) fn ticket_in_callback(webhook: &Webhook, body: &RawValue) -> Option<Result<String, Failure>> {
    let at = webhook.ticket_in_callback.as_ref().or(webhook.ticket.as_ref())?;
    ticket_at(at, body).transpose()
}

/// The data in a callback, or in an answer that is done.
pub(super) fn result<'a>(webhook: &Webhook, answer: &'a RawValue) -> Result<&'a RawValue, Failure> {
    match &webhook.result {
        Some(at) => at.find(answer).ok_or_else(|| bad(format!("the vendor's callback has nothing at {at}"))),
        None => Ok(DEFAULT_RESULTS.iter().find_map(|key| Pointer::from_keys([*key]).find(answer)).unwrap_or(answer)),
    }
}

/// What a callback on the shared URL says about which job it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callback {
    /// It names the job by our id.
    Job(JobId),
    /// It names an id that is none of ours.
    UnknownJob,
    /// It repeats the vendor's own reference.
    Ticket(String),
}

/// There are more callbacks in one body than are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyEvents;

impl Vendor {
    /// How callbacks on the shared URL prove where they come from; off for a vendor that has none.
    pub fn verify(&self) -> &Verify {
        self.webhook().map_or(&Verify::Off, |webhook| &webhook.verify)
    }

    /// Whether a callback on the shared URL may come from this vendor, by all that its head shows.
    pub fn may_believe(&self, method: &Method, headers: &HeaderMap, now: Time) -> Result<(), NotBelieved> {
        if method == Method::GET && self.verify().is_of_bodies() {
            return Err(NotBelieved::Unsigned);
        }
        self.verify().head(headers, now)
    }

    /// Whether the files of the secrets that vendors send us are to be read again: every two seconds, while there are callbacks.
    pub fn wants_reread(&self, now: Nanos) -> bool {
        let next_at = self.reread_at.load(Ordering::Relaxed);
        if now < next_at || !self.callback_secrets().any(LiveSecret::is_in_files) {
            return false;
        }
        let next = now.saturating_add(nanos(SECRETS_EVERY));
        self.reread_at.compare_exchange(next_at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The secrets that vendors send us.
    fn callback_secrets(&self) -> impl Iterator<Item = &LiveSecret> {
        let of_challenge = match self.webhook().and_then(|webhook| webhook.challenge.as_ref()) {
            Some(Challenge::Hub(secrets)) => &**secrets,
            _ => &[],
        };
        self.verify().secrets().chain(of_challenge)
    }

    /// Reads those files again.
    pub fn reread_callback_secrets(&self) {
        for secret in self.callback_secrets() {
            let vendor = self.name();
            match secret.reread() {
                Reread::Changed => tracing::info!(%vendor, "a secret of callbacks has changed and is used from now on"),
                Reread::Failed { why, is_new: true } => {
                    tracing::warn!(%vendor, why, "a secret of callbacks cannot be read again; the last one is used");
                }
                Reread::Failed { .. } | Reread::Same => {}
            }
        }
    }

    /// Whether a callback may come as a GET.
    pub fn takes_get(&self) -> bool {
        self.webhook().is_some_and(|webhook| webhook.get)
    }

    /// Whether a callback for no job of ours is answered as one for a job.
    pub fn accepts_unknown(&self) -> bool {
        self.webhook().is_some_and(|webhook| webhook.accepts_unknown)
    }

    /// Whether a body without anything in it says nothing of any job. It does where `webhook.done` fits it.
    pub fn is_ping(&self, value: &Value) -> bool {
        let done = self.webhook().and_then(|webhook| webhook.done.as_ref());
        value.is_empty && !done.is_some_and(|done| done.test.fits_value(done.at.find(&value.json)))
    }

    /// The callbacks in a body: the elements of the array where `webhook.events` points, else the body itself.
    pub fn events(&self, body: Value) -> Result<Vec<Value>, TooManyEvents> {
        let Some(at) = self.webhook().and_then(|webhook| webhook.events.as_ref()) else { return Ok(vec![body]) };
        let Some(items) = at.find(&body.json).and_then(|array| json::first_elements(array, MAX_EVENTS + 1)) else {
            return Ok(vec![body]);
        };
        if items.len() > MAX_EVENTS {
            return Err(TooManyEvents);
        }
        Ok(items.into_iter().map(|item| Value::of(item.to_owned())).collect())
    }

    /// The job that a callback on the shared URL names; nothing if it names none. Our own id at the configured place goes first, then the
    /// vendor's reference, then our id where it is by default.
    pub fn job_in_callback(&self, body: &RawValue) -> Option<Callback> {
        let webhook = self.webhook()?;
        let by_id = |at: &Pointer| {
            let id = at.find(body).map(json::text).filter(|id| id != "null")?;
            Some(JobId::parse(&id).map_or(Callback::UnknownJob, Callback::Job))
        };
        // A longer ticket than is kept is no job's.
        let by_ticket = || Some(ticket_in_callback(webhook, body)?.map_or(Callback::UnknownJob, Callback::Ticket));
        let by_default = || by_id(&Pointer::from_keys(["request_id"]));
        match &webhook.request_id {
            Some(at) => by_id(at).or_else(by_ticket).or_else(by_default),
            None => by_ticket().or_else(by_default),
        }
    }

    pub(super) fn webhook(&self) -> Option<&Webhook> {
        match &self.config.kind {
            Kind::Webhook(webhook) => Some(webhook),
            _ => None,
        }
    }
}

/// Where the data is, when the config does not say: the first of these members, else the whole body.
pub(super) const DEFAULT_RESULTS: [&str; 3] = ["final_result", "result", "data"];
