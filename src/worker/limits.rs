//! What a worker reports: to the limiter that it runs and what vendors ask for, to the audit what it sends.
//!
//! Never calls a vendor.

use std::time::Duration;

use super::{context::Context, slow_downs::Begun};
use crate::{
    audit::block::Call,
    clock::{Nanos, nanos},
    limit::{Key, Limit, Per, Permit, Usage},
    telemetry::VendorMetrics,
    vendor::{Reading, Silence, Vendor},
};

/// Asks for the breaker's state, which other processes may have changed, and for a permit and a share of the calls in flight. So a cold start
/// of the limiter begins now and not with the first job.
pub(super) async fn begin(cx: &Context, vendor: &Vendor) {
    cx.breakers.look(vendor.name()).await;
    let asked = cx.limiter.outlook(&vendor.config.pool, cx.clock.nanos(), 1).await;
    if asked.is_ok() && cx.limiter.share_in_flight(vendor.name(), vendor.config.concurrency, 1).await.is_err() {
        tracing::debug!(vendor = %vendor.name(), "the limiter went away at the start");
    }
}

/// Notes for the audit that a call goes out now.
pub(super) fn note_sent(cx: &Context, vendor: &Vendor, permit: &Permit) {
    let at = cx.limiter.stamp(&permit.pool, cx.clock.nanos());
    cx.audit.note(&permit.pool, Call { at, vendor: vendor.name().clone(), tenant: permit.tenant.clone() });
}

/// Facts about a call that do not depend on the rules for its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// `None` if no answer came.
    pub(super) status: Option<u16>,
    /// When the call was sent.
    pub(super) sent: Nanos,
}

/// If a vendor's headers close the gate for longer than this, it is logged.
const A_LITTLE: Duration = Duration::from_secs(60);

/// Closes or slows down the pool's gate, in every process, if the answer asks for that.
pub(super) async fn apply_to_gate(
    cx: &Context,
    vendor: &Vendor,
    reading: &Reading,
    answer: Answer,
    metrics: &VendorMetrics,
) {
    let (pool, now) = (&vendor.config.pool, cx.clock.nanos());
    if let Some(Silence::Asked(time)) = reading.silence {
        let silence = cx.slow_downs.begin(pool, answer.sent, now, time, &vendor.config.slow_down);
        cx.limiter.close_gate(pool, silence.until).await;
        note_throttled(cx, vendor, answer.status, silence, metrics).await;
        return;
    }
    if answer.status.is_some() {
        cx.slow_downs.end(pool, answer.sent);
    }
    let wait = match (reading.silence, reading.apart) {
        (Some(Silence::NothingLeft(time)), _) => time,
        (_, Some(apart)) if is_slower(cx, vendor, apart) => apart,
        _ => return,
    };
    cx.limiter.close_gate(pool, now.saturating_add(nanos(wait))).await;
    if wait > A_LITTLE {
        metrics.gate_closed.inc();
        tracing::warn!(
            vendor = %vendor.name(), seconds = wait.as_secs(),
            "the vendor's rate-limit headers say that little or nothing is left; its pool is not called until then. \
             `fetchgate vendors resume` lets calls go at once, rate_headers = \"off\" in the config ignores these headers"
        );
    }
}

/// A vendor that asks to slow down is counted. The log says, at most once a minute, how much of the limits was used then.
async fn note_throttled(cx: &Context, vendor: &Vendor, status: Option<u16>, silence: Begun, metrics: &VendorMetrics) {
    let (pool, status) = (&vendor.config.pool, status.unwrap_or_default());
    metrics.throttled.inc();
    let limits = cx.limits.get(pool).map(|terms| terms.limits);
    // Limits are always kept, so the vendor has none of its reasons from the config.
    let is_unexplained = status == 429 && limits.is_some_and(|limits| !limits.is_empty());
    metrics.throttled_unexplained.inc_by(u64::from(is_unexplained));
    cx.audit.note_throttled(vendor.name());
    if !silence.is_new {
        return;
    }
    metrics.gate_closed.inc();
    let of = |usage: Usage| format!("{} of {} used", usage.used, usage.limit.id);
    let used: Vec<String> = cx.limiter.usage(pool).await.into_iter().map(of).collect();
    let although = match is_unexplained {
        true => format!(" although every limit of the config was kept ({})", used.join(", ")),
        false => String::new(),
    };
    let until = cx.clock.time_at(silence.until).rfc3339();
    let reason = format!("the vendor answered {status}{although}; its pool is not called until {until}");
    cx.throttles.note(vendor.name(), &reason, cx.clock.nanos());
}

/// Whether calls so far apart are slower than our own limits are, by half or more.
fn is_slower(cx: &Context, vendor: &Vendor, apart: Duration) -> bool {
    let limits = cx.limits.get(&vendor.config.pool);
    let pace = limits.and_then(|terms| terms.limits.iter().filter_map(pace).max()).unwrap_or(0);
    nanos(apart) >= pace.saturating_mul(2)
}

/// How far apart the calls of a limit are when all of it is used.
fn pace(limit: &Limit) -> Option<Nanos> {
    match &limit.per {
        Per::Rolling(period) if limit.key == Key::Vendor => {
            Some(nanos(*period) / Nanos::try_from(limit.calls.max(1)).unwrap_or(Nanos::MAX))
        }
        _ => None,
    }
}
