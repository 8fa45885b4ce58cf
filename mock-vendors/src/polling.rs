//! `/polling/{name}`: accepts at once, and says what came of it only when asked.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::behave::Behave;
use crate::reply::{Reply, error, json, quote};
use crate::vendor::{Ticket, Visit};
use crate::{sync, text};

/// So many asks find the work unfinished, unless `polls=` or `ready_ms=` say otherwise.
const POLLS: u64 = 2;

/// Takes the work and answers 202 with its id.
pub(crate) fn accept(visit: &Visit, behave: &Behave, body: &Bytes) -> Reply {
    let id = visit.vendor.open_ticket(Ticket {
        call: visit.call,
        echo: text::echo(body),
        since: Instant::now(),
        asked: 0,
        polls: behave.polls,
        ready: behave.ready,
        failed: behave.failed,
    });
    json(202, format!(r#"{{"id":{},"state":"working"}}"#, quote(&id)))
}

/// Answers one ask.
pub(crate) fn ask(visit: &Visit, behave: &Behave, id: &str) -> Reply {
    let Some(ticket) = visit.vendor.ask(id) else { return error(404, "there is no such id") };
    let id = quote(id);
    if !ready(&ticket, behave) {
        return json(200, format!(r#"{{"id":{id},"state":"working"}}"#));
    }
    if ticket.failed || behave.failed {
        return json(200, format!(r#"{{"id":{id},"state":"error","error":"no record found"}}"#));
    }
    let mut answer = format!(r#"{{"id":{id},"state":"done","output":"#).into_bytes();
    sync::write_data(&mut answer, &visit.vendor.name, ticket.call, &ticket.echo);
    answer.push(b'}');
    json(200, answer)
}

fn ready(ticket: &Ticket, behave: &Behave) -> bool {
    let (polls, wait) = (behave.polls.or(ticket.polls), behave.ready.or(ticket.ready));
    // Work that is ready by time needs no number of asks as well.
    let polls = polls.unwrap_or(if wait.is_some() { 0 } else { POLLS });
    ticket.asked >= polls && ticket.since.elapsed() >= wait.unwrap_or(Duration::ZERO)
}
