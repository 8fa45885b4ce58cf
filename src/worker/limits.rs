//! What a worker tells beside asking for permits: the limiter that it is there and what the vendor wants, the audit what it sends.
//!
//! Never calls a vendor.

use std::time::Duration;

use super::Context;
use crate::{
    audit::block::Call,
    clock::{Nanos, nanos},
    limit::{Key, Limit, Per, Permit, Usage},
    telemetry::VendorMetrics,
    vendor::Vendor,
};

/// Asks the limiter once, so that what begins cold there begins now and not with the first job. Who cannot ask waits later.
/// And how the breaker stands, which others may have opened.
pub(super) async fn begin(cx: &Context, vendor: &Vendor) {
    cx.breakers.look(vendor.name()).await;
    let asked = cx.limiter.outlook(&vendor.config.pool, cx.clock.nanos(), 1).await;
    if asked.is_ok() && cx.limiter.places(vendor.name(), vendor.config.concurrency, 1).await.is_err() {
        tracing::debug!(vendor = %vendor.name(), "the limiter went away at the start");
    }
}

/// Notes for the audit that a call goes out now.
pub(super) fn note_sent(cx: &Context, vendor: &Vendor, permit: &Permit) {
    let at = cx.limiter.stamp(&permit.pool, cx.clock.nanos());
    cx.audit.note(&permit.pool, Call { at, vendor: vendor.name().clone(), tenant: permit.tenant.clone() });
}

/// Closes the gate of the vendor's pool, in every process. A vendor that refuses a call is told to people with what our own books say.
pub(super) async fn be_silent(cx: &Context, vendor: &Vendor, status: u16, silence: Duration, metrics: &VendorMetrics) {
    let pool = &vendor.config.pool;
    cx.limiter.close_gate(pool, cx.clock.nanos().saturating_add(nanos(silence))).await;
    if status < 300 {
        tracing::debug!(vendor = %vendor.name(), ?silence, "the vendor says that nothing is left; its gate is closed until there is");
        return;
    }
    metrics.throttled.inc();
    let limits = cx.limits.get(pool).map(|terms| terms.limits);
    // Whoever has limits keeps them: by our books it has no reason.
    let is_unexplained = status == 429 && limits.is_some_and(|limits| !limits.is_empty());
    metrics.throttled_unexplained.inc_by(u64::from(is_unexplained));
    cx.audit.note_throttled(vendor.name());
    let of = |usage: Usage| format!("{} of {} used", usage.used, usage.limit.id);
    let books: Vec<String> = cx.limiter.usage(pool).await.into_iter().map(of).collect();
    tracing::warn!(vendor = %vendor.name(), status, ?silence, is_unexplained, books = books.join(", "), "the vendor asked us to slow down; its gate is closed");
}

/// The vendor says how far apart calls must be for what is left to last. Where that is slower than our own limits are, by half or more, the
/// pool is not called for so long after this reply.
pub(super) async fn slow_down(cx: &Context, vendor: &Vendor, apart: Duration) {
    let pool = &vendor.config.pool;
    let pace = cx.limits.get(pool).and_then(|terms| terms.limits.iter().filter_map(pace).max()).unwrap_or(0);
    if nanos(apart) >= pace.saturating_mul(2) {
        tracing::debug!(vendor = %vendor.name(), ?apart, "the vendor says that little is left; it is called more slowly");
        cx.limiter.close_gate(pool, cx.clock.nanos().saturating_add(nanos(apart))).await;
    }
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
