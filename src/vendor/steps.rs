//! The step of an answer, once a rule has said what the answer means: its data or where that is, a ticket, how long to wait.
//!
//! Never waits and never calls.

use std::time::Duration;

use hyper::header::LOCATION;
use serde_json::value::RawValue;

use super::{Vendor, error::bad, polling, reading::Received, replies::On, webhook};
use crate::{
    config::{Address, Kind, Polling},
    job::{
        Failure, Fetch, Job,
        lifecycle::{self, Step},
    },
    json,
};

impl Vendor {
    /// The step of an answer that means "done": it has the data, or says where that is.
    pub(super) fn done(&self, received: &Received<'_>) -> Result<Step, Failure> {
        let value = received.body.as_ref().map_err(Clone::clone)?;
        // An error status that means "done" (a 404 for "no match", say) has no result inside: the whole body is the result.
        let is_data = received.status.is_none_or(|status| status.is_success());
        if let Some(from) = self.config.kind.result_url().filter(|_| is_data && received.on != On::Fetch) {
            return self.fetch(from, received, &value.json);
        }
        let data: &RawValue = match &self.config.kind {
            _ if !is_data => &value.json,
            Kind::Sync => &value.json,
            Kind::Polling(polling) => polling::result(polling, &value.json)?,
            Kind::Webhook(webhook) => webhook::result(webhook, &value.json)?,
        };
        // Data that need not be changed is not copied.
        let is_whole = data.get().len() == value.json.get().len();
        let result = match &value.source {
            Some(source) if is_whole && self.config.clean.is_noop() => source.clone(),
            _ => self.cleaned(data)?,
        };
        Ok(Step::Done { result })
    }

    /// The vendor is done, and its data is at `result_url`.
    fn fetch(&self, from: &Address, received: &Received<'_>, answer: &RawValue) -> Result<Step, Failure> {
        let from = match from {
            Address::Url(_) | Address::Ticket => Fetch::ByConfig,
            Address::At(at) => {
                let found = at.find(answer).map(json::text).filter(|url| !url.is_empty() && url != "null");
                let found = found.ok_or_else(|| bad(format!("the vendor is done and gave no URL at {at}")))?;
                self.fetch_at(received.job, &found)?
            }
        };
        let ticket = match (&self.config.kind, received.on) {
            // A missing ticket is no error here: if the fetch needs it, the fetch says so.
            (Kind::Polling(polling), On::Call) => polling::ticket(polling, received.headers, &received.body).ok(),
            (Kind::Webhook(webhook), On::Call) => webhook::ticket(webhook, &received.body)?,
            (Kind::Webhook(webhook), On::Callback) => webhook::ticket_in_callback(webhook, answer).transpose()?,
            _ => None,
        };
        Ok(Step::Fetch { from, ticket })
    }

    /// The vendor is done, and its data is where a header says (RFC 9110, 15.4.4).
    pub(super) fn elsewhere(&self, received: &Received<'_>) -> Result<Step, Failure> {
        let found = received.headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Step::Fetch { from: self.fetch_at(received.job, found.trim())?, ticket: None })
    }

    /// The URL in an answer. That of a callback is checked only when it is used: it is relative to the submitting call.
    fn fetch_at(&self, job: Option<&Job>, found: &str) -> Result<Fetch, Failure> {
        match job {
            Some(job) => self.url_in_answer(job, found).map(Fetch::At),
            None => super::bounded(found.to_owned()).map(Fetch::At),
        }
    }

    /// Whether an acceptance needs its body. If not, its head is enough, so a body that is cut off causes no second order.
    pub(super) fn ticket_is_in_body(&self, received: &Received<'_>) -> bool {
        match &self.config.kind {
            Kind::Sync => true,
            Kind::Webhook(webhook) => webhook.ticket.is_some(),
            Kind::Polling(polling) => polling::ticket_in_header(polling, received.headers).is_none(),
        }
    }

    /// The step of an acceptance: the vendor will call back, or has to be polled.
    pub(super) fn accepted(&self, received: &Received<'_>, asked: Option<Duration>) -> Result<Step, Failure> {
        match &self.config.kind {
            Kind::Sync => Ok(Step::CheckAgain { after: asked, ticket: None }),
            Kind::Webhook(webhook) => Ok(Step::AwaitCallback { ticket: webhook::ticket(webhook, &received.body)? }),
            Kind::Polling(polling) => {
                let ticket = polling::ticket(polling, received.headers, &received.body)?;
                if let (Address::Ticket, Some(job)) = (&polling.url, received.job) {
                    self.url_in_answer(job, &ticket)?; // A URL that must not be called is refused now, not at the first poll.
                }
                Ok(Step::CheckAgain { after: Some(polling.first.max(asked.unwrap_or_default())), ticket: Some(ticket) })
            }
        }
    }

    /// The step of an answer that means "not yet".
    pub(super) fn pending(&self, received: &Received<'_>, asked: Option<Duration>) -> Result<Step, Failure> {
        match (&self.config.kind, received.on) {
            (Kind::Polling(_), On::Call) => self.accepted(received, asked),
            (Kind::Polling(polling), _) => {
                if received.status.is_some_and(|status| status.is_success()) {
                    received.body.as_ref().map_err(Clone::clone)?;
                }
                let wait = polling::next_wait(polling, self.worked_for(received));
                Ok(Step::CheckAgain { after: Some(wait.max(asked.unwrap_or_default())), ticket: None })
            }
            _ => Ok(Step::CheckAgain { after: asked, ticket: None }),
        }
    }

    fn worked_for(&self, received: &Received<'_>) -> Duration {
        let job = received.job.map(|job| lifecycle::worked_for(job, self.config.answer_within, received.now));
        job.unwrap_or_default()
    }

    /// Whether the vendor accepted the job, or was done with it, so recently that a 404 may only mean "not yet".
    pub(super) fn just_accepted(&self, job: &Job, now: crate::clock::Time) -> bool {
        let missing = match &self.config.kind {
            Kind::Polling(polling) => polling.missing,
            Kind::Sync | Kind::Webhook(_) => Polling::MISSING,
        };
        lifecycle::worked_for(job, self.config.answer_within, now) < missing
    }
}
