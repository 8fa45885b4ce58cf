//! A vendor's calls in flight, counted: how many there are, and the bell when there is a place again.
//!
//! Never waits and never refuses: the dispatcher looks before it starts an attempt.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::{job::Stage, telemetry::VendorMetrics};

/// The vendor's calls in flight, counted.
pub(super) struct Places {
    in_flight: AtomicUsize,
    /// Submitting calls that are reserved, in flight or not settled: they may add to what is open.
    submitting: AtomicUsize,
    bell: Arc<Notify>,
    metrics: VendorMetrics,
}

impl Places {
    pub(super) fn new(bell: Arc<Notify>, metrics: VendorMetrics) -> Arc<Places> {
        Arc::new(Places { in_flight: AtomicUsize::new(0), submitting: AtomicUsize::new(0), bell, metrics })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn submitting(&self) -> usize {
        self.submitting.load(Ordering::Relaxed)
    }

    pub(super) fn metrics(&self) -> &VendorMetrics {
        &self.metrics
    }
}

/// One attempt's share of the counts, given back when it is dropped.
pub(super) struct Hold {
    places: Arc<Places>,
    submits: bool,
    calling: AtomicUsize,
}

impl Hold {
    pub(super) fn new(places: &Arc<Places>, stage: Stage) -> Hold {
        let submits = stage == Stage::Call;
        places.in_flight.fetch_add(1, Ordering::Relaxed);
        places.submitting.fetch_add(usize::from(submits), Ordering::Relaxed);
        places.metrics.in_flight.inc();
        Hold { places: places.clone(), submits, calling: AtomicUsize::new(1) }
    }

    /// The HTTP call is over: its place is free, while the outcome is still to be stored.
    pub(super) fn call_is_over(&self) {
        if self.calling.swap(0, Ordering::Relaxed) == 1 {
            self.places.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.places.metrics.in_flight.dec();
            self.places.bell.notify_one();
        }
    }

    pub(super) fn metrics(&self) -> &VendorMetrics {
        &self.places.metrics
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.call_is_over();
        self.places.submitting.fetch_sub(usize::from(self.submits), Ordering::Relaxed);
        // Polls too: one that missed its permit was given back after the call was over, and wants another.
        self.places.bell.notify_one();
    }
}
