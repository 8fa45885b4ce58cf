//! Vendors that take work and are asked again: whether it is done, and for its data. What a ticket is, and how long to wait.

use std::time::Duration;

use hyper::{HeaderMap, Method};
use serde_json::value::RawValue;

use super::{
    Vendor, bounded,
    error::bad,
    outgoing::{Content, Outgoing},
    request::unfit,
    template::Scope,
    ticket_at,
    value::Value,
    waits,
};
use crate::{
    config::{Kind, Polling},
    job::{Failure, Job},
};

impl Vendor {
    /// Asks whether the work is done, or for its data.
    pub(super) fn ask(&self, job: &Job, scope: &Scope<'_>) -> Result<Outgoing, Failure> {
        let target = self.target(job, scope)?;
        let (method, content) = match &self.config.kind {
            Kind::Polling(polling) if job.fetch.is_none() => {
                let body = polling.body.as_ref().map(|body| body.render(scope)).transpose().map_err(unfit)?;
                (polling.method.clone(), body.unwrap_or_else(Content::none))
            }
            _ => (Method::GET, Content::none()),
        };
        self.outgoing(scope, method, target.to(), content).map_err(unfit)
    }
}

/// The wait after a poll of a vendor that has worked so long: the usual one, or the one before twice, where waits grow.
pub(super) fn next_wait(polling: &Polling, worked_for: Duration) -> Duration {
    // As long as all waits after the first together, and one more: 1, 2, 4 and 8 times `every`.
    let doubled = worked_for.saturating_sub(polling.first).saturating_add(polling.every);
    polling.max.map_or(polling.every, |max| doubled.clamp(polling.every, max))
}

/// The data in an answer that is done.
pub(super) fn result<'a>(polling: &Polling, answer: &'a RawValue) -> Result<&'a RawValue, Failure> {
    let Some(at) = &polling.result else { return Ok(answer) };
    at.find(answer).ok_or_else(|| bad(format!("the vendor's answer is done and has nothing at {at}")))
}

/// The vendor's own reference, in its acceptance.
pub(super) fn ticket(
    polling: &Polling,
    headers: &HeaderMap,
    answer: &Result<Value, Failure>,
) -> Result<String, Failure> {
    let in_header = ticket_in_header(polling, headers);
    let in_body = match (&polling.ticket, answer) {
        (None, _) => None,
        (Some(at), Ok(value)) => ticket_at(at, &value.json)?,
        (Some(_), Err(_)) if in_header.is_some() => None,
        (Some(_), Err(why)) => return Err(why.clone()),
    };
    if let Some(ticket) = in_body {
        return Ok(ticket);
    }
    if let Some(ticket) = in_header {
        return bounded(ticket);
    }
    let places = [
        polling.ticket.as_ref().map(|at| format!("at {at}")),
        polling.ticket_header.as_ref().map(|name| format!("in the header {name}")),
    ];
    let places: Vec<String> = places.into_iter().flatten().collect();
    Err(bad(format!("the vendor accepted the job and gave no ticket {}", places.join(" or "))))
}

/// The ticket that a header has, so that the body does not matter.
pub(super) fn ticket_in_header(polling: &Polling, headers: &HeaderMap) -> Option<String> {
    let name = polling.ticket_header.as_ref()?;
    waits::texts(headers, name.as_str()).find(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Address, json::Pointer};

    #[test]
    fn waits_double_up_to_the_longest() {
        let secs = Duration::from_secs;
        let polling = Polling {
            ticket: Some(Pointer::from_keys(["id"])),
            ticket_header: None,
            url: Address::Ticket,
            hosts: Vec::new(),
            method: Method::GET,
            body: None,
            first: secs(5),
            every: secs(2),
            max: Some(secs(30)),
            missing: secs(30),
            done: None,
            result: None,
            result_url: None,
        };
        let (mut worked_for, mut waits) = (polling.first, Vec::new());
        for _ in 0..6 {
            waits.push(next_wait(&polling, worked_for));
            worked_for += *waits.last().unwrap();
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30].map(secs));
        assert_eq!(next_wait(&Polling { max: None, ..polling }, secs(1000)), secs(2));
    }
}
