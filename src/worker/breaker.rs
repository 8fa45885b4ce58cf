//! What a dispatcher and its attempts have to do with their vendor's breaker: look, and tell what calls came to.
//!
//! Never decides when it opens (see `limit::breaker`).

use std::sync::Arc;

use super::Context;
use crate::{
    job::lifecycle::Step,
    limit::{breaker::Standing, breakers::Probe},
    telemetry::VendorMetrics,
};

/// One vendor's breaker, as its dispatcher sees it.
pub(super) struct Breaker {
    cx: Arc<Context>,
    vendor: Arc<str>,
    metrics: VendorMetrics,
    /// How it stood when people were last told.
    told: &'static str,
}

impl Breaker {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<str>, metrics: VendorMetrics) -> Breaker {
        Breaker { cx, vendor, metrics, told: Standing::Closed.as_str() }
    }

    /// How it stands; people are told when that has changed.
    pub(super) fn standing(&mut self) -> Standing {
        let standing = self.cx.breakers.standing(&self.vendor);
        if standing.as_str() != self.told {
            self.told = standing.as_str();
            self.metrics.breaker_state.set(number(standing));
            let vendor = &self.vendor;
            match standing {
                Standing::Closed => tracing::info!(%vendor, "the breaker is closed: the vendor is called again"),
                Standing::HalfOpen => tracing::info!(%vendor, "the breaker is half open: one call goes out to see"),
                Standing::Open { .. } => {
                    tracing::warn!(%vendor, "the breaker is open: too many calls failed, and nobody calls for a while")
                }
            }
        }
        standing
    }
}

/// Tells what came of an attempt: whether its call failed, or `None` when none was made.
pub(super) async fn tell(cx: &Context, vendor: &str, probe: Option<Probe>, failed: Option<bool>) {
    match (probe, failed) {
        (Some(probe), failed) => cx.breakers.probed(vendor, probe, failed).await,
        (None, Some(failed)) => cx.breakers.ended(vendor, failed).await,
        (None, None) => {}
    }
}

/// Whether a call says that its vendor is broken. One that is merely busy has a gate for that, and a refusal is an answer like any other.
pub(super) fn is_failure(step: &Step, status: Option<u16>) -> bool {
    matches!(step, Step::TryAgain { counts: true, .. }) && status != Some(429)
}

fn number(standing: Standing) -> i64 {
    match standing {
        Standing::Closed => 0,
        Standing::HalfOpen => 1,
        Standing::Open { .. } => 2,
    }
}
