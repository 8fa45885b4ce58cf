//! One attempt at one job: from a lease and a permit to a settled change.
//!
//! Never speaks HTTP itself (see `vendor`) and never decides what a step means (see `job::lifecycle`).

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::HeaderMap;

use super::{
    alarms,
    breaker::{self, Probes},
    context::Context,
    in_flight::InFlightCall,
    limits::{self, Answer},
    login::{self, Verdict},
};
use crate::{
    clock::{Nanos, Time, nanos},
    job::{
        Attempt, End, Trace,
        lifecycle::{self, Change},
    },
    limit::Permit,
    store::{Lease, Settled},
    telemetry::VendorMetrics,
    vendor::{
        Reading, Vendor, attempt_kind,
        auth::Proof,
        error::CallError,
        http::{Connection, Reply},
        outgoing::Outgoing,
        span_of,
    },
};

/// The first wait before a settle is tried again while the store is unavailable; doubles up to `MAX_SETTLE_WAIT`.
const FIRST_SETTLE_WAIT: Duration = Duration::from_millis(200);
const MAX_SETTLE_WAIT: Duration = Duration::from_secs(5);

/// Makes the call and stores its outcome. `in_flight` counts it among the vendor's calls in flight; with `probes` the outcome decides
/// whether the vendor's breakers close.
pub(super) async fn run(
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    lease: Lease,
    permit: Permit,
    in_flight: InFlightCall,
    probes: Option<Probes>,
) {
    let permit_at = cx.clock.time_at(permit.at);
    let call = call(&cx, &vendor, &lease, &permit, in_flight.metrics()).await;
    in_flight.call_is_over();
    if let Err(why @ (CallError::Missed(_) | CallError::LeaseTooOld | CallError::NoToken)) = &call.reply {
        tracing::debug!(vendor = %vendor.name(), request_id = %lease.job.id, %why, "not called; the job waits for another permit");
        breaker::report(&cx, &vendor, probes, None, Verdict::Unknown).await;
        cx.limiter.give_back(vec![permit]).await;
        cx.store.release(vec![(lease, None)]).await;
        return;
    }
    let job = lifecycle::asked(&lease.job, permit_at);
    let answer = Answer { status: call.reply.as_ref().ok().map(|reply| reply.status.as_u16()), sent: call.sent };
    let was_tried = call.unsendable.is_none();
    let may_be_done = cx.may_be_done(&lease.job, answer.status).await;
    let mut reading = match call.unsendable {
        Some(why) => Reading::unsendable(why),
        None => vendor.read(&job, call.reply, may_be_done, cx.clock.now()),
    };
    if let Some(why) = reading.failure() {
        cx.breakers.note_error(vendor.name(), login::written(why, reading.outcome, cx.clock.now()));
    }
    limits::apply_to_gate(&cx, &vendor, &reading, answer, in_flight.metrics()).await;
    let failed = was_tried.then(|| breaker::is_failure(&reading.step));
    let verdict = match (call.sent_at, call.proof) {
        (Some(sent_at), Some(proof)) => {
            let times = (sent_at, cx.clock.now());
            login::verdict(&vendor, &mut reading.step, &lease.job, answer.status, proof, times)
        }
        _ => Verdict::Unknown,
    };
    breaker::report(&cx, &vendor, probes, failed, verdict).await;
    let why = reading.failure();
    let response = why.and_then(|why| why.vendor.as_ref()).map(|said| said.body.clone());
    let attempt = Attempt {
        n: lease.attempt,
        kind: attempt_kind(lease.job.stage),
        sent_at: call.sent_at.map(|at| at.0),
        permit_at: permit_at.0,
        status: answer.status,
        latency_ms: u64::try_from(call.took.as_millis()).unwrap_or(u64::MAX),
        outcome: reading.outcome,
        detail: why.map(|why| why.message.clone()),
        response: response.filter(|body| !body.is_empty()),
    };
    report(&cx, &lease, &attempt, in_flight.metrics());
    in_flight.metrics().spans.called(&lease.job, &attempt, call.span, call.took);
    let change = lifecycle::advance(&job, reading.step, &vendor.policy(), fastrand::f64(), cx.clock.now());
    if let (None, Some(why)) = (&attempt.detail, change.failure()) {
        alarms::note_unanswered(&cx, vendor.name(), why); // the poll itself went well
    }
    settle(&cx, lease, change, attempt, &in_flight).await;
}

/// What happened when the call was tried.
struct Call {
    reply: Result<Reply, CallError>,
    /// The request could not even be built.
    unsendable: Option<crate::job::Failure>,
    sent_at: Option<Time>,
    /// The credentials that went with it.
    proof: Option<Proof>,
    /// When it was sent, or when it was clear that it would not be, on the limiter's timeline.
    sent: Nanos,
    took: Duration,
    /// What it carried.
    span: Option<Trace>,
}

async fn call(cx: &Context, vendor: &Vendor, lease: &Lease, permit: &Permit, metrics: &VendorMetrics) -> Call {
    let not_sent = |reply, unsendable| {
        let sent = cx.clock.nanos();
        Call { reply, unsendable, sent_at: None, proof: None, sent, took: Duration::ZERO, span: None }
    };
    let Outgoing { origin, mut request, credentials } = match vendor.request(&lease.job) {
        Ok(outgoing) => outgoing,
        Err(why) => return not_sent(Err(CallError::Unreachable(why.message.clone())), Some(why)),
    };
    let (within, client) = (Instant::now() + vendor.config.timeout, vendor.client(&cx.client, &origin));
    let mut connection: Connection = match tokio::time::timeout_at(within.into(), client.connection(&origin)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return not_sent(Err(error), None),
        Err(_) => return not_sent(Err(CallError::Unreachable("connecting took too long".into())), None),
    };
    let Ok(proof) = vendor.login.prove(&mut request, credentials, cx.clock.nanos(), cx.clock.now()) else {
        client.keep(connection);
        return not_sent(Err(CallError::NoToken), None);
    };
    // The last check: from here on the bytes go out.
    if let Err(error) = may_go(cx, vendor, lease, permit) {
        client.keep(connection);
        metrics.permits_late.inc();
        return not_sent(Err(error), None);
    }
    limits::note_sent(cx, vendor, permit);
    let (sent_at, sent, started) = (cx.clock.now(), cx.clock.nanos(), Instant::now());
    let span = span_of(&request);
    metrics.calls.inc();
    let reply = {
        let reads = |status, headers: &HeaderMap| vendor.reads(&lease.job, status, headers, cx.clock.now());
        let mut sending = pin!(connection.call(request, within, reads));
        // The first step writes the request.
        let first = poll_fn(|task| Poll::Ready(sending.as_mut().poll(task))).await;
        cx.limiter.call_left(permit, cx.clock.nanos());
        match first {
            Poll::Ready(reply) => reply,
            Poll::Pending => sending.await,
        }
    };
    let took = started.elapsed();
    metrics.observe_latency(took);
    client.keep(connection);
    Call { reply, unsendable: None, sent_at: Some(sent_at), proof, sent, took, span }
}

/// Whether the permit is still valid and the lease lasts as long as the call may: otherwise another worker might call too.
fn may_go(cx: &Context, vendor: &Vendor, lease: &Lease, permit: &Permit) -> Result<(), CallError> {
    let now = cx.clock.nanos();
    cx.limiter.check(permit, now).map_err(CallError::Missed)?;
    if now.saturating_add(nanos(vendor.config.timeout)) > lease.until { Err(CallError::LeaseTooOld) } else { Ok(()) }
}

/// Counts and logs an attempt.
fn report(cx: &Context, lease: &Lease, attempt: &Attempt, metrics: &VendorMetrics) {
    let (vendor, outcome) = (&lease.job.lane.vendor, attempt.outcome);
    metrics.count_call(outcome);
    let detail = attempt.detail.as_deref();
    tracing::debug!(
        request_id = %lease.job.id,
        %vendor,
        attempt = attempt.n,
        status = attempt.status,
        outcome = outcome.as_str(),
        latency_ms = attempt.latency_ms,
        detail,
        "an attempt has ended"
    );
    if outcome.is_failure() {
        cx.failures.note(vendor, detail.unwrap_or_else(|| outcome.as_str()), cx.clock.nanos());
    }
}

/// Stores a change and retries for as long as the store is unavailable: an outcome is never dropped. The dispatcher bounds how many wait here.
async fn settle(cx: &Context, lease: Lease, change: Change, attempt: Attempt, in_flight: &InFlightCall) {
    let (id, end) = (lease.job.id, End::by(&change, &lease.job, cx.clock.now()));
    let (vendor, attempt_no) = (lease.job.lane.vendor.clone(), attempt.n);
    let (metrics, mut span) = (in_flight.metrics(), in_flight.metrics().spans.of_end(&lease.job, end));
    let mut settling = cx.metrics.timed(cx.store.settle(lease, change, attempt)).await;
    let mut wait = FIRST_SETTLE_WAIT;
    loop {
        match settling {
            Ok(Settled::Stored) => {
                metrics.spans.add(span.take());
                return metrics.count_ended(end);
            }
            Ok(Settled::TooLate) => {
                let end = end.map(|end| end.status.as_str());
                tracing::info!(request_id = %id, %vendor, attempt = attempt_no, end, "the outcome came too late: the job had ended, or another worker has it");
                return;
            }
            Err(unsettled) => {
                let wait_ms = wait.as_millis() as u64;
                tracing::debug!(request_id = %id, %vendor, attempt = attempt_no, error = %unsettled.why, wait_ms, "the outcome is not stored yet; trying again");
                let reason = format!("an outcome is not stored yet: {}", unsettled.why);
                cx.stalls.note(&vendor, &reason, cx.clock.nanos());
                cx.clock.sleep_until(cx.clock.nanos() + nanos(wait)).await;
                wait = (wait * 2).min(MAX_SETTLE_WAIT);
                settling =
                    cx.metrics.timed(cx.store.settle(*unsettled.lease, unsettled.change, unsettled.attempt)).await;
            }
        }
    }
}
