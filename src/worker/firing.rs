//! What one vendor's dispatcher has in hand: reserved jobs until their permit's time has come, and the attempts under way.
//!
//! Never asks the store or the limiter for more (see `round`).

use std::{collections::VecDeque, sync::Arc};

use tokio::task::JoinSet;

use super::{
    Context, attempt,
    breaker::{self, Leave},
    login::Verdict,
    places::{Hold, Places},
};
use crate::{clock::Nanos, job::Stage, limit::Permit, store::Lease, vendor::Vendor};

pub(super) struct Firing {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    places: Arc<Places>,
    /// Reserved and not fired, in the order of their times.
    held: VecDeque<(Lease, Permit)>,
    /// Leave for the one job that is held while the breaker is half open.
    probe: Option<Leave>,
    running: JoinSet<()>,
}

/// How much of a vendor's work a dispatcher has in hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct InHand {
    /// Calls in flight, and jobs held for their permit.
    pub(super) busy: usize,
    /// Submitting calls that are held, in flight or not settled: they may add to what is open.
    pub(super) submitting: usize,
    /// Attempts whose call is over and whose outcome is not stored yet.
    pub(super) unsettled: usize,
    pub(super) has_probe: bool,
}

impl Firing {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, places: Arc<Places>) -> Firing {
        Firing { cx, vendor, places, held: VecDeque::new(), probe: None, running: JoinSet::new() }
    }

    pub(super) fn in_hand(&self) -> InHand {
        let in_flight = self.places.in_flight();
        let held_submits = self.held.iter().filter(|(lease, _)| lease.job.stage == Stage::Call).count();
        InHand {
            busy: in_flight + self.held.len(),
            submitting: self.places.submitting() + held_submits,
            unsettled: self.running.len().saturating_sub(in_flight),
            has_probe: self.has_probe(),
        }
    }

    /// Takes jobs with their permits, whose times do not lie before those of the jobs held already. With a probe it is one job, held alone.
    pub(super) fn hold(&mut self, reserved: Vec<(Lease, Permit)>, probe: Option<Leave>) {
        self.held.extend(reserved);
        self.probe = probe;
    }

    pub(super) fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// How many jobs are held, and of which stage the next one is.
    pub(super) fn held(&self) -> (usize, Stage) {
        (self.held.len(), self.held.front().map_or(Stage::Call, |(lease, _)| lease.job.stage))
    }

    /// When the next job is to be fired.
    pub(super) fn next_at(&self) -> Option<Nanos> {
        self.held.front().map(|(_, permit)| permit.at)
    }

    /// When half of what is held will have been fired.
    pub(super) fn half_fired_at(&self) -> Option<Nanos> {
        self.held.get(self.held.len() / 2).map(|(_, permit)| permit.at)
    }

    /// Starts the attempts whose permit's time has come; says whether there was any.
    pub(super) fn fire_due(&mut self, now: Nanos) -> bool {
        let mut fired = false;
        while let Some((lease, permit)) = self.held.pop_front_if(|(_, permit)| permit.at <= now) {
            let hold = Hold::new(&self.places, lease.job.stage);
            let probe = self.probe.take();
            self.running.spawn(attempt::run(self.cx.clone(), self.vendor.clone(), lease, permit, hold, probe));
            fired = true;
        }
        fired
    }

    /// Lets go of attempts that have ended.
    pub(super) fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(vendor = %self.vendor.name(), %error, "an attempt broke off; its job is free again when its lease lapses");
            }
        }
    }

    /// Waits until no attempt is under way; says whether there was any.
    pub(super) async fn finish(&mut self) -> bool {
        let mut any = false;
        while self.running.join_next().await.is_some() {
            any = true;
        }
        any
    }

    /// Gives back all that is held; says whether there was any.
    pub(super) async fn give_back(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        breaker::tell(&self.cx, &self.vendor, self.probe.take(), None, Verdict::Unknown).await;
        let (leases, permits): (Vec<_>, Vec<_>) =
            self.held.drain(..).map(|(lease, permit)| ((lease, None), permit)).unzip();
        self.places.metrics().permits_unused.inc_by(permits.len() as u64);
        self.cx.limiter.give_back(permits).await;
        self.cx.store.release(leases).await;
        true
    }
}
