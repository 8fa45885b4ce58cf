//! How many calls of a vendor are in flight, and its bell when there is one fewer.
//!
//! Never waits and never refuses: the dispatcher looks before it starts an attempt.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::{job::Stage, telemetry::VendorMetrics};

/// The counts of one vendor.
pub(super) struct InFlight {
    calls: AtomicUsize,
    /// Submitting calls that are reserved, in flight or not settled: they may add to what is open.
    submitting: AtomicUsize,
    bell: Arc<Notify>,
    metrics: VendorMetrics,
}

impl InFlight {
    pub(super) fn new(bell: Arc<Notify>, metrics: VendorMetrics) -> Arc<InFlight> {
        Arc::new(InFlight { calls: AtomicUsize::new(0), submitting: AtomicUsize::new(0), bell, metrics })
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn submitting(&self) -> usize {
        self.submitting.load(Ordering::Relaxed)
    }

    pub(super) fn metrics(&self) -> &VendorMetrics {
        &self.metrics
    }
}

/// One attempt, counted until it is dropped.
pub(super) struct InFlightCall {
    counts: Arc<InFlight>,
    submits: bool,
    calling: AtomicUsize,
}

impl InFlightCall {
    pub(super) fn new(counts: &Arc<InFlight>, stage: Stage) -> InFlightCall {
        let submits = stage == Stage::Call;
        counts.calls.fetch_add(1, Ordering::Relaxed);
        counts.submitting.fetch_add(usize::from(submits), Ordering::Relaxed);
        counts.metrics.in_flight.inc();
        InFlightCall { counts: counts.clone(), submits, calling: AtomicUsize::new(1) }
    }

    /// The HTTP call is over, so another may begin; the outcome is still to be stored.
    pub(super) fn call_is_over(&self) {
        if self.calling.swap(0, Ordering::Relaxed) == 1 {
            self.counts.calls.fetch_sub(1, Ordering::Relaxed);
            self.counts.metrics.in_flight.dec();
            self.counts.bell.notify_one();
        }
    }

    pub(super) fn metrics(&self) -> &VendorMetrics {
        &self.counts.metrics
    }
}

impl Drop for InFlightCall {
    fn drop(&mut self) {
        self.call_is_over();
        self.counts.submitting.fetch_sub(usize::from(self.submits), Ordering::Relaxed);
        // Polls too: one that missed its permit was given back after the call was over, and wants another.
        self.counts.bell.notify_one();
    }
}
