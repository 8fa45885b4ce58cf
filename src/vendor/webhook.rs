//! Vendors that take work and call back when it is done.

use serde_json::value::RawValue;

use super::{Vendor, bounded_ticket, signature::StandardWebhooks, template::Scope, value::Value};
use crate::{
    clock::Time,
    config::{Verify, Webhook},
    job::{Failure, FailureCode, JobId},
    json::{self, Pointer},
};

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
    at.find(&answer.json).map(bounded_ticket).transpose()
}

/// The vendor's own reference in its callback, if it repeats it.
pub(super) fn ticket_in_callback(webhook: &Webhook, body: &RawValue) -> Option<Result<String, Failure>> {
    let at = webhook.ticket_in_callback.as_ref().or(webhook.ticket.as_ref())?;
    at.find(body).map(bounded_ticket)
}

/// The data in a callback, or in an answer that is done.
pub(super) fn result<'a>(webhook: &Webhook, answer: &'a RawValue) -> Result<&'a RawValue, Failure> {
    match &webhook.result {
        Some(at) => at.find(answer).ok_or_else(|| {
            Failure::new(FailureCode::BadResponse, format!("the vendor's callback has nothing at {at}"))
        }),
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

/// Why a callback on the shared URL is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBelieved {
    /// The vendor has no signature scheme configured, nor `verify = "none"`; or it is no webhook vendor.
    SharedUrlOff,
    BadSignature,
}

impl Vendor {
    /// Whether a callback on the shared URL comes from this vendor.
    pub fn verify_shared(&self, headers: &hyper::HeaderMap, body: &[u8], now: Time) -> Result<(), NotBelieved> {
        match self.webhook().map(|webhook| &webhook.verify) {
            None | Some(Verify::Off) => Err(NotBelieved::SharedUrlOff),
            Some(Verify::None) => Ok(()),
            Some(Verify::StandardWebhooks(secret)) => StandardWebhooks::new(secret.reveal())
                .map_err(|_| NotBelieved::BadSignature)?
                .verify(headers, body, now)
                .map_err(|_| NotBelieved::BadSignature),
        }
    }

    /// The job that a callback on the shared URL names; nothing if it names none.
    pub fn job_in_callback(&self, body: &RawValue) -> Option<Callback> {
        let webhook = self.webhook()?;
        if let Some(id) = webhook.request_id.find(body).map(json::text).filter(|id| id != "null") {
            return Some(JobId::parse(&id).map_or(Callback::UnknownJob, Callback::Job));
        }
        // A longer ticket than is kept is no job's.
        ticket_in_callback(webhook, body).map(|found| found.map_or(Callback::UnknownJob, Callback::Ticket))
    }

    fn webhook(&self) -> Option<&Webhook> {
        match &self.config.kind {
            crate::config::Kind::Webhook(webhook) => Some(webhook),
            _ => None,
        }
    }
}

/// Where the data is, when the config does not say: the first of these members, else the whole body.
pub(super) const DEFAULT_RESULTS: [&str; 3] = ["final_result", "result", "data"];
