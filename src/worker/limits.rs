//! What a worker tells beside asking for permits: the limiter that it is there and what the vendor wants, the audit what it sends.
//!
//! Never calls a vendor.

use std::time::Duration;

use super::Context;
use crate::{
    audit::block::Call,
    clock::nanos,
    limit::{Permit, Usage},
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
    cx.audit.note_throttled(vendor.name());
    let of = |usage: Usage| format!("{} of {} used", usage.used, usage.limit.id);
    let books: Vec<String> = cx.limiter.usage(pool).await.into_iter().map(of).collect();
    tracing::warn!(vendor = %vendor.name(), status, ?silence, books = books.join(", "), "the vendor asked us to slow down; its gate is closed");
}
