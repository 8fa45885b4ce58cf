//! Vendors that take work, give a ticket, and answer when asked again.

use hyper::Method;
use serde_json::value::RawValue;

use super::{
    Vendor, bounded_ticket,
    http::Origin,
    outgoing::{Content, Credentials, Outgoing, To},
    template::{RenderError, Scope},
};
use crate::{
    config::Polling,
    job::{Failure, FailureCode},
};

/// Asks whether the work is done.
pub(super) fn poll_request(vendor: &Vendor, polling: &Polling, scope: &Scope<'_>) -> Result<Outgoing, RenderError> {
    let path = polling.url.render(scope)?;
    let to = To { origin: &Origin::of_template(&polling.url), path: &path, credentials: Credentials::Sent };
    vendor.outgoing(scope, Method::GET, to, Content::none())
}

/// The data in an answer that is done.
pub(super) fn result<'a>(polling: &Polling, answer: &'a RawValue) -> Result<&'a RawValue, Failure> {
    let Some(at) = &polling.result else { return Ok(answer) };
    at.find(answer).ok_or_else(|| {
        Failure::new(FailureCode::BadResponse, format!("the vendor's answer is done and has nothing at {at}"))
    })
}

/// The vendor's own reference, in its acceptance.
pub(super) fn ticket(polling: &Polling, answer: &RawValue) -> Result<String, Failure> {
    let ticket = polling.ticket.find(answer).map(bounded_ticket).transpose()?;
    ticket.filter(|ticket| !ticket.is_empty() && ticket != "null").ok_or_else(|| {
        let message = format!("the vendor accepted the job and gave no ticket at {}", polling.ticket);
        Failure::new(FailureCode::BadResponse, message)
    })
}
