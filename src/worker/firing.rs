//! What one vendor's dispatcher has in hand: jobs that wait for the time of their permit, and the attempts in flight.
//!
//! Never asks the store or the limiter for more (see `round`).

use std::{collections::VecDeque, sync::Arc};

use tokio::task::JoinSet;

use super::{
    attempt,
    breaker::{self, Probes},
    context::Context,
    in_flight::{InFlight, InFlightCall},
    login::Verdict,
};
use crate::{clock::Nanos, job::Stage, limit::Permit, store::Lease, vendor::Vendor};

pub(super) struct Firing {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    in_flight: Arc<InFlight>,
    /// Jobs with a permit that are not fired yet, in the order of their times.
    reserved: VecDeque<(Lease, Permit)>,
    /// The probes for the one job that is reserved while a breaker is half open.
    probes: Option<Probes>,
    running: JoinSet<()>,
}

/// How much of a vendor's work a dispatcher has in hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct InHand {
    /// Calls in flight, and reserved jobs.
    pub(super) busy: usize,
    /// Submitting calls that are reserved, in flight or not settled: they may add to what is open.
    pub(super) submitting: usize,
    /// Attempts whose call is over and whose outcome is not stored yet.
    pub(super) unsettled: usize,
    pub(super) has_probe: bool,
}

impl Firing {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, in_flight: Arc<InFlight>) -> Firing {
        Firing { cx, vendor, in_flight, reserved: VecDeque::new(), probes: None, running: JoinSet::new() }
    }

    pub(super) fn in_hand(&self) -> InHand {
        let in_flight = self.in_flight.calls();
        let reserved_submits = self.reserved.iter().filter(|(lease, _)| lease.job.stage == Stage::Call).count();
        InHand {
            busy: in_flight + self.reserved.len(),
            submitting: self.in_flight.submitting() + reserved_submits,
            unsettled: self.running.len().saturating_sub(in_flight),
            has_probe: self.has_probe(),
        }
    }

    /// Adds jobs with their permits, none earlier than those of the jobs that are there already. With probes it is one job, and no other is reserved.
    pub(super) fn add(&mut self, reserved: Vec<(Lease, Permit)>, probes: Option<Probes>) {
        self.reserved.extend(reserved);
        self.probes = probes;
    }

    pub(super) fn has_probe(&self) -> bool {
        self.probes.is_some()
    }

    /// How many jobs are reserved, and of which stage the next one is.
    pub(super) fn reserved(&self) -> (usize, Stage) {
        (self.reserved.len(), self.reserved.front().map_or(Stage::Call, |(lease, _)| lease.job.stage))
    }

    /// When the next job is to be fired.
    pub(super) fn next_at(&self) -> Option<Nanos> {
        self.reserved.front().map(|(_, permit)| permit.at)
    }

    /// When half of the reserved jobs will have been fired.
    pub(super) fn half_fired_at(&self) -> Option<Nanos> {
        self.reserved.get(self.reserved.len() / 2).map(|(_, permit)| permit.at)
    }

    /// Starts the attempts whose permit's time has come; says whether there was any.
    pub(super) fn fire_due(&mut self, now: Nanos) -> bool {
        let mut fired = false;
        while let Some((lease, permit)) = self.reserved.pop_front_if(|(_, permit)| permit.at <= now) {
            let in_flight = InFlightCall::new(&self.in_flight, lease.job.stage);
            let probes = self.probes.take();
            let attempt = attempt::run(self.cx.clone(), self.vendor.clone(), lease, permit, in_flight, probes);
            // A large future, which would be copied several times on its way into a task and out of it.
            self.running.spawn(Box::pin(attempt));
            fired = true;
        }
        fired
    }

    /// Joins attempts that have ended.
    pub(super) fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(vendor = %self.vendor.name(), %error, "an attempt panicked; its job is retried when its lease lapses");
            }
        }
    }

    /// Waits until no attempt is in flight; says whether there was any.
    pub(super) async fn finish(&mut self) -> bool {
        let mut any = false;
        while self.running.join_next().await.is_some() {
            any = true;
        }
        any
    }

    /// Gives back all reserved jobs and their permits; says whether there were any.
    pub(super) async fn give_back(&mut self) -> bool {
        if self.reserved.is_empty() {
            return false;
        }
        breaker::report(&self.cx, &self.vendor, self.probes.take(), None, Verdict::Unknown).await;
        let (leases, permits): (Vec<_>, Vec<_>) =
            self.reserved.drain(..).map(|(lease, permit)| ((lease, None), permit)).unzip();
        self.in_flight.metrics().permits_unused.inc_by(permits.len() as u64);
        self.cx.limiter.give_back(permits).await;
        self.cx.store.release(leases).await;
        true
    }
}
