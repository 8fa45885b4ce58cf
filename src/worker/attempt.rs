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

use super::{
    Context,
    breaker::{self, Leave},
    limits,
    login::{self, Verdict},
    places::Hold,
};
use crate::{
    clock::{Time, nanos},
    job::{
        Attempt, AttemptOutcome, Stage, Status,
        lifecycle::{self, Change, Step},
    },
    limit::Permit,
    store::{Lease, Settled},
    telemetry::VendorMetrics,
    vendor::{
        Reading, Vendor, attempt_kind,
        auth::Proof,
        error::CallError,
        http::{Connection, Reply},
    },
};

/// The first wait before a settle is tried again while the store is away; doubles up to `MAX_SETTLE_WAIT`.
const FIRST_SETTLE_WAIT: Duration = Duration::from_millis(200);
const MAX_SETTLE_WAIT: Duration = Duration::from_secs(5);

/// Makes the call and stores what came of it. `hold` is the place among the vendor's calls in flight; with `probe` the call shows whether
/// the vendor is well again.
pub(super) async fn run(
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    lease: Lease,
    permit: Permit,
    hold: Hold,
    probe: Option<Leave>,
) {
    let permit_at = cx.clock.time_at(permit.at);
    let call = call(&cx, &vendor, &lease, &permit, hold.metrics()).await;
    hold.call_is_over();
    if let Err(why @ (CallError::Missed(_) | CallError::LeaseTooOld | CallError::NoToken)) = &call.reply {
        tracing::debug!(vendor = %vendor.name(), request_id = %lease.job.id, %why, "not called; the job waits for another permit");
        breaker::tell(&cx, &vendor, probe, None, Verdict::Unknown).await;
        cx.limiter.give_back(vec![permit]).await;
        cx.store.release(vec![(lease, None)]).await;
        return;
    }
    let failed_to_call = failed_to_call(&call);
    let status = call.reply.as_ref().ok().map(|reply| reply.status.as_u16());
    let was_tried = call.unsendable.is_none();
    let Reading { mut step, close_gate, apart } = match call.unsendable {
        Some(why) => Reading { step: Step::GiveUp { why }, close_gate: None, apart: None },
        None => vendor.read(&lease.job, call.reply),
    };
    if let Some(silence) = close_gate {
        limits::be_silent(&cx, &vendor, status.unwrap_or_default(), silence, hold.metrics()).await;
    } else if let Some(apart) = apart {
        limits::slow_down(&cx, &vendor, apart).await;
    }
    let failed = was_tried.then(|| breaker::is_failure(&step, status));
    let verdict = match (call.sent_at, call.proof) {
        (Some(sent_at), Some(proof)) => {
            login::verdict(&vendor, &mut step, lease.job.id, status, proof, (sent_at, cx.clock.now()))
        }
        _ => Verdict::Unknown,
    };
    breaker::tell(&cx, &vendor, probe, failed, verdict).await;
    let (outcome, detail) = describe(&step, lease.job.stage);
    let attempt = Attempt {
        n: lease.attempt,
        kind: attempt_kind(lease.job.stage),
        sent_at: call.sent_at.map(|at| at.0),
        permit_at: permit_at.0,
        status,
        latency_ms: u64::try_from(call.took.as_millis()).unwrap_or(u64::MAX),
        outcome: failed_to_call.unwrap_or(outcome),
        detail,
    };
    report(&cx, &lease, &attempt, hold.metrics());
    let change = lifecycle::advance(&lease.job, step, &vendor.policy(), fastrand::f64(), cx.clock.now());
    settle(&cx, lease, change, attempt, &hold).await;
}

/// What came of trying to call.
struct Call {
    reply: Result<Reply, CallError>,
    /// The request could not even be built.
    unsendable: Option<crate::job::Failure>,
    sent_at: Option<Time>,
    /// The credentials that went with it.
    proof: Option<Proof>,
    took: Duration,
}

async fn call(cx: &Context, vendor: &Vendor, lease: &Lease, permit: &Permit, metrics: &VendorMetrics) -> Call {
    let not_sent = |reply, unsendable| Call { reply, unsendable, sent_at: None, proof: None, took: Duration::ZERO };
    let mut request = match vendor.request(&lease.job) {
        Ok(request) => request,
        Err(why) => return not_sent(Err(CallError::Unreachable(why.message.clone())), Some(why)),
    };
    let within = Instant::now() + vendor.config.timeout;
    let origin = vendor.origin(lease.job.stage);
    let mut connection: Connection = match tokio::time::timeout_at(within.into(), cx.client.connection(&origin)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return not_sent(Err(error), None),
        Err(_) => return not_sent(Err(CallError::Unreachable("connecting took too long".into())), None),
    };
    let Ok(proof) = vendor.login.prove(&mut request, cx.clock.nanos(), cx.clock.now()) else {
        cx.client.keep(connection);
        return not_sent(Err(CallError::NoToken), None);
    };
    // The last look: from here on the bytes go out.
    if let Err(error) = may_go(cx, vendor, lease, permit) {
        cx.client.keep(connection);
        metrics.permits_late.inc();
        return not_sent(Err(error), None);
    }
    limits::note_sent(cx, vendor, permit);
    let (sent_at, sent) = (cx.clock.now(), Instant::now());
    metrics.calls.inc();
    let reply = {
        let mut sending = pin!(tokio::time::timeout_at(within.into(), connection.send(request)));
        // The first step writes the request.
        let first = poll_fn(|task| Poll::Ready(sending.as_mut().poll(task))).await;
        cx.limiter.left(permit, cx.clock.nanos());
        match first {
            Poll::Ready(reply) => reply,
            Poll::Pending => sending.await,
        }
    };
    let reply = reply.unwrap_or(Err(CallError::TimedOut));
    let took = sent.elapsed();
    metrics.observe_latency(took);
    if reply.is_ok() {
        cx.client.keep(connection);
    }
    Call { reply, unsendable: None, sent_at: Some(sent_at), proof: Some(proof), took }
}

/// Whether the permit is still good, and the lease as long as the call may take: else another worker might call too.
fn may_go(cx: &Context, vendor: &Vendor, lease: &Lease, permit: &Permit) -> Result<(), CallError> {
    let now = cx.clock.nanos();
    cx.limiter.check(permit, now).map_err(CallError::Missed)?;
    if now.saturating_add(nanos(vendor.config.timeout)) > lease.until { Err(CallError::LeaseTooOld) } else { Ok(()) }
}

/// The word for a call that brought no reply at all.
fn failed_to_call(call: &Call) -> Option<AttemptOutcome> {
    match &call.reply {
        Err(CallError::TimedOut) => Some(AttemptOutcome::Timeout),
        Err(CallError::Unreachable(_) | CallError::Interrupted(_)) if call.unsendable.is_none() => {
            Some(AttemptOutcome::NoConnection)
        }
        _ => None,
    }
}

/// A step, for the record.
fn describe(step: &Step, stage: Stage) -> (AttemptOutcome, Option<String>) {
    match step {
        Step::Done { .. } => (AttemptOutcome::Done, None),
        Step::CheckAgain { .. } if stage == Stage::Call => (AttemptOutcome::Accepted, None),
        Step::CheckAgain { .. } => (AttemptOutcome::Pending, None),
        Step::AwaitCallback { .. } => (AttemptOutcome::Accepted, None),
        Step::TryAgain { why, counts: false, .. } => (AttemptOutcome::SlowDown, Some(why.message.clone())),
        Step::TryAgain { why, .. } => (AttemptOutcome::TryAgain, Some(why.message.clone())),
        Step::Unauthorized { why, .. } => (AttemptOutcome::Unauthorized, Some(why.message.clone())),
        Step::GiveUp { why } => (AttemptOutcome::Refused, Some(why.message.clone())),
    }
}

/// Says what came of a call: to the metrics, and to the log.
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

/// Stores a change, however long the store is away: the vendor has done its work. The dispatcher bounds how many wait here.
async fn settle(cx: &Context, lease: Lease, change: Change, attempt: Attempt, hold: &Hold) {
    let (id, end) = (lease.job.id, change.next.end());
    let mut settling = cx.metrics.timed(cx.store.settle(lease, change, attempt)).await;
    let mut wait = FIRST_SETTLE_WAIT;
    loop {
        match settling {
            Ok(Settled::Stored) => return end.map_or((), |status| hold.metrics().count_ended(status)),
            Ok(Settled::TooLate) => {
                let end = end.map(Status::as_str);
                tracing::info!(request_id = %id, end, "came too late: the job had ended or gone to another worker");
                return;
            }
            Err(unsettled) => {
                let wait_ms = wait.as_millis() as u64;
                tracing::warn!(request_id = %id, error = %unsettled.why, wait_ms, "the outcome is not stored yet; trying again");
                cx.clock.sleep_until(cx.clock.nanos() + nanos(wait)).await;
                wait = (wait * 2).min(MAX_SETTLE_WAIT);
                settling =
                    cx.metrics.timed(cx.store.settle(*unsettled.lease, unsettled.change, unsettled.attempt)).await;
            }
        }
    }
}
