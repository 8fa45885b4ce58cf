//! One vendor's loop: find out when the next permit can come, claim jobs for it, reserve permits for exactly those jobs, fire them in time.
//!
//! Never polls: it waits for a time that it knows, or for a wake-up. Never keeps a lease without a permit.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    breaker::Breaker,
    context::Context,
    firing::Firing,
    in_flight::InFlight,
    limits,
    round::Rounds,
    tick::{Tick, pause},
};
use crate::{
    clock::{Clock, Nanos, nanos},
    limit::breaker::Standing,
    store::StoreError,
    vendor::Vendor,
};

/// The wait after the store failed.
const STORE_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

pub struct Dispatcher {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    bell: Arc<Notify>,
    breaker: Breaker,
    firing: Firing,
    rounds: Rounds,
}

impl Dispatcher {
    /// For a vendor of the config, because only those have wake-ups and metrics.
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>) -> Dispatcher {
        let bell = cx.store.signals().bell(vendor.name()).unwrap_or_default();
        let metrics =
            cx.metrics.vendor(vendor.name()).expect("metrics are made for every vendor of the config").clone();
        let in_flight = InFlight::new(bell.clone(), metrics.clone());
        let breaker = Breaker::new(cx.clone(), vendor.clone(), metrics.clone());
        let firing = Firing::new(cx.clone(), vendor.clone(), in_flight);
        let rounds = Rounds::new(cx.clone(), vendor.clone(), metrics);
        Dispatcher { cx, vendor, bell, breaker, firing, rounds }
    }

    /// Turns until `stop`, then gives back what is reserved and finishes what is in flight.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let bell = self.bell.clone();
        limits::begin(&self.cx, &self.vendor).await;
        while !stop.is_cancelled() {
            let tick = self.tick().await.unwrap_or_else(|error| {
                let reason = format!("no jobs can be claimed: {error}");
                self.cx.stalls.note(self.vendor.name(), &reason, self.cx.clock.nanos());
                self.cx.metrics.store_errors.inc();
                Tick::WaitUntil(self.cx.clock.nanos() + nanos(STORE_WAIT)).or_at(self.firing.next_at())
            });
            if tick == Tick::Again {
                // Attempts run on the same threads: a busy vendor lets others have their turn.
                tokio::task::yield_now().await;
                continue;
            }
            pause(&self.cx.clock, tick, &bell, &stop).await;
        }
        self.firing.give_back().await;
        self.firing.finish().await;
        self.rounds.finish().await;
    }

    /// One turn. Safe to drop only between turns.
    pub async fn tick(&mut self) -> Result<Tick, StoreError> {
        self.firing.reap();
        let now = self.cx.clock.nanos();
        if let Some(pause) = self.cx.pauses.get(self.vendor.name(), self.cx.clock.now()) {
            self.give_back().await;
            return Ok(pause.until.map_or(Tick::Idle, |until| Tick::WaitUntil(self.cx.clock.nanos_at(until))));
        }
        match self.breaker.standing() {
            Standing::Open { until } => {
                self.give_back().await;
                return Ok(Tick::WaitUntil(until));
            }
            // Jobs that were reserved before it opened are given back. A reserved probe stays: it is to show whether the vendor works.
            Standing::HalfOpen if !self.firing.has_probe() => self.give_back().await,
            Standing::HalfOpen | Standing::Closed => {}
        }
        let mut fired = self.firing.fire_due(now);
        let mut is_stopped = false;
        let round = {
            let mut running = std::pin::pin!(self.rounds.run(self.firing.in_hand(), now));
            // Store and limiter may be slow to answer. Jobs that are reserved are fired at their times meanwhile, unless the breaker opens.
            loop {
                tokio::select! {
                    biased;
                    round = &mut running => break round?,
                    () = reached(&self.cx.clock, self.firing.next_at()), if !is_stopped => {
                        is_stopped = self.breaker.standing() != Standing::Closed && !self.firing.has_probe();
                        fired |= !is_stopped && self.firing.fire_due(self.cx.clock.nanos());
                    }
                }
            }
        };
        let tick = self.rounds.end(round, &mut self.firing);
        Ok(if fired { Tick::Again } else { tick.or_at(self.firing.next_at()) })
    }

    async fn give_back(&mut self) {
        if self.firing.give_back().await {
            self.rounds.forget();
        }
    }

    /// Waits until no attempt is in flight; says whether there was any. For those who turn the loop themselves.
    pub async fn finish_attempts(&mut self) -> bool {
        self.rounds.finish().await;
        self.firing.finish().await
    }
}

/// Waits until a time; for ever when there is none. Cancel-safe.
async fn reached(clock: &Clock, at: Option<Nanos>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}
