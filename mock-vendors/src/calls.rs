//! One call of a pretend vendor, from its head to its answer: journal, refusals, the work itself, latency, faults.
//!
//! Never looks at paths (see `routes`) and never knows what a callback or a ticket says.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, RETRY_AFTER};
use tokio::time::sleep;

use crate::behave::Behave;
use crate::faults::Strike;
use crate::reply::{Reply, error};
use crate::vendor::Visit;
use crate::{World, oauth, polling, sync, webhook};

/// A submit of Fetchgate's is at most 2 MiB, so this is never what a test runs into by accident.
const BODY: usize = 64 << 20;

/// What a call wants.
pub(crate) enum Ask {
    Sync,
    Async,
    Submit,
    Poll {
        id: String,
    },
    Token,
    /// What a test has scripted for a real vendor's own path, whose parameters are not ours.
    Scripted,
}

/// Answers a call that arrived `at` for the vendor `name`.
pub(crate) async fn call(world: &World, at: Instant, name: &str, ask: Ask, request: Request<Incoming>) -> Strike {
    let query = request.uri().query().filter(|_| !matches!(ask, Ask::Scripted));
    let behave = match Behave::parse(query) {
        Ok(behave) => behave,
        Err(why) => return Strike::Answer(error(400, &why)),
    };
    let Some(vendor) = world.vendor(name) else { return Strike::Answer(error(503, "there are too many names")) };
    let (head, body) = request.into_parts();
    let submits = !matches!(ask, Ask::Poll { .. });
    let token = head.headers.get(AUTHORIZATION).cloned();
    let authorization = token.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut visit = vendor.arrive(at, head, submits, behave.limit);
    let behave = behave.for_call(visit.call);
    let is_expired = behave.token.is_some_and(|life| vendor.token_age(token, at) >= life);
    let body = match Limited::new(body, BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(why) => return Strike::Answer(error(413, &format!("the body could not be read: {why}"))),
    };
    vendor.keep_body(visit.call, &body);
    if let Some(refusal) = oauth::refuse(world, &visit.vendor, &behave, authorization.as_deref()) {
        return Strike::Answer(refusal);
    }
    let strike = match visit.scripted.take() {
        Some(answer) => {
            sleep_unless_zero(answer.latency).await;
            answer.strike()
        }
        None if is_expired => Strike::Answer(expired()),
        None => treat(world, &visit, &behave, &ask, &body).await,
    };
    if let Strike::Hang = strike {
        std::future::pending::<()>().await; // here, because a visit that hangs is in flight until the client leaves
    }
    strike
}

async fn treat(world: &World, visit: &Visit, behave: &Behave, ask: &Ask, body: &Bytes) -> Strike {
    let strike = match refuse(visit, behave) {
        None => Strike::Answer(work(world, visit, behave, ask, body).await),
        Some(refusal) => {
            if behave.accepted {
                drop(work(world, visit, behave, ask, body).await); // done, and its answer lost
            }
            refusal
        }
    };
    sleep_unless_zero(behave.latency).await;
    match strike {
        Strike::Answer(reply) => Strike::Answer(dressed(behave, reply)),
        other => other,
    }
}

/// What a token that has been used for too long gets.
fn expired() -> Reply {
    error(401, "the token has expired").header("www-authenticate", "Bearer error=\"invalid_token\"")
}

async fn sleep_unless_zero(latency: Duration) {
    // Even an empty sleep takes a lock of the timer, and benchmarks run against us.
    if !latency.is_zero() {
        sleep(latency).await;
    }
}

/// What the call gets instead of the answer that it wants, if its query says so.
fn refuse(visit: &Visit, behave: &Behave) -> Option<Strike> {
    let call = visit.call;
    if visit.over_limit || call <= behave.throttle_first {
        visit.vendor.note_rejected();
        return Some(Strike::Answer(error(429, "too many calls")));
    }
    if call <= behave.fail_first || behave.fail_every.is_some_and(|every| call.is_multiple_of(every)) {
        return Some(Strike::Answer(error(500, "the vendor broke down")));
    }
    if let Some(status) = behave.status
        && !(200..300).contains(&status)
    {
        let reply = error(status, "as the query asked");
        return Some(Strike::Answer(literal(behave, reply)));
    }
    let strikes = call.is_multiple_of(behave.fault_every);
    behave.fault.filter(|_| strikes).map(|fault| fault.strike())
}

async fn work(world: &World, visit: &Visit, behave: &Behave, ask: &Ask, body: &Bytes) -> Reply {
    let reply = match ask {
        Ask::Sync => sync::answer(visit, behave, body),
        Ask::Async => webhook::accept(&world.callbacks, visit, behave, body).await,
        Ask::Submit => polling::accept(visit, behave, body),
        Ask::Poll { id } => polling::ask(visit, behave, id),
        Ask::Token => oauth::token(&visit.vendor, behave, body),
        Ask::Scripted => error(404, "nothing is scripted for this call"),
    };
    if !reply.is_success() {
        return reply;
    }
    let reply = literal(behave, reply);
    match behave.status {
        Some(status) => reply.status(status),
        None => reply,
    }
}

fn literal(behave: &Behave, reply: Reply) -> Reply {
    match &behave.body {
        Some(body) => reply.body(body.clone()),
        None => reply,
    }
}

/// The answer with the headers and the kind of body that its query wants.
fn dressed(behave: &Behave, reply: Reply) -> Reply {
    let mut reply = if behave.gzip { reply.gzip() } else { reply };
    if let Some(wait) = behave.retry_after.clone().filter(|_| reply.is_not_yet()) {
        reply = reply.with(RETRY_AFTER, wait);
    }
    for (name, value) in behave.headers.clone() {
        reply = reply.with(name, value);
    }
    reply.slow(behave.body_after).cut(behave.cut)
}
