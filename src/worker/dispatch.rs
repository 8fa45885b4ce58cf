//! One vendor's loop: look when the next permit can come, claim what it can serve, reserve for exactly those jobs, fire at their times.
//!
//! Never polls: it waits for a time that it knows, or for the bell. Never holds a lease that it has no permit for.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Tick, attempt,
    breaker::Breaker,
    limits, pause,
    places::{Hold, Places},
    warm::Warmer,
};
use crate::{
    clock::{Nanos, Time, nanos},
    job::{Stage, lifecycle},
    limit::{Answer, Blocker, Key, Permit, breaker::Standing},
    store::{Amended, Claim, Lease, Ready, StoreError, Which},
    vendor::Vendor,
};

/// Jobs claimed at once at most.
const MOST_AT_ONCE: usize = 256;
/// Attempts whose outcome waits for the store at most; beyond it nothing is claimed.
const MOST_UNSETTLED: usize = 2048;
/// A connection is opened this long before the permit that will use it.
const WARM_AHEAD: Duration = Duration::from_millis(500);
/// The wait for places that other workers have.
const PLACES_WAIT: Duration = Duration::from_millis(100);
/// The wait for a probe that another call is.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// The wait after the store failed.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// A round of at least this many permits is waited out by half before the limiter is asked again.
const A_ROUND: usize = 8;
/// Rounds in a row that rely on the one before, without a look at the limiter first.
const ROUNDS_UNSEEN: u32 = 3;

/// What can be had again without looking first: as many permits as will have been used by then.
#[derive(Debug, Clone, Copy)]
struct Again {
    permits: usize,
    /// Rounds since the limiter was last looked at.
    unseen: u32,
}

pub struct Dispatcher {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    places: Arc<Places>,
    bell: Arc<Notify>,
    /// Reserved and not fired, in the order of their times.
    held: VecDeque<(Lease, Permit)>,
    running: JoinSet<()>,
    warmer: Warmer,
    breaker: Breaker,
    /// The limiter has said all that there is to know until then.
    ask_at: Nanos,
    /// How many permits can be had again at `ask_at`, if the last round got all that it asked for.
    again: Option<Again>,
    /// The ids of limits that count each tenant by itself.
    tenant_limits: HashSet<Arc<str>>,
}

impl Dispatcher {
    /// For a vendor of the config: the store has its bell and the metrics have its handles.
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>) -> Dispatcher {
        let bell = cx.store.signals().bell(vendor.name()).unwrap_or_default();
        let metrics =
            cx.metrics.vendor(vendor.name()).expect("metrics are made for every vendor of the config").clone();
        let per_tenant = vendor.limits.iter().filter(|limit| limit.key == Key::Tenant);
        let tenant_limits = per_tenant.map(|limit| limit.id.clone()).collect();
        let warmer = Warmer::new(cx.client.clone());
        let breaker = Breaker::new(cx.clone(), vendor.name().clone(), metrics.clone());
        Dispatcher {
            cx,
            vendor,
            breaker,
            places: Places::new(bell.clone(), metrics),
            bell,
            held: VecDeque::new(),
            running: JoinSet::new(),
            warmer,
            ask_at: Nanos::MIN,
            again: None,
            tenant_limits,
        }
    }

    /// Turns until `stop`, then gives back what is held and finishes what is in flight.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let bell = self.bell.clone();
        limits::begin(&self.cx, &self.vendor).await;
        while !stop.is_cancelled() {
            let tick = self.tick().await.unwrap_or_else(|error| {
                tracing::warn!(vendor = %self.vendor.name(), %error, "no jobs can be taken; looking again in a second");
                self.cx.metrics.store_errors.inc();
                Tick::WaitUntil(self.cx.clock.nanos() + nanos(STORE_WAIT))
            });
            if tick == Tick::Ran {
                // Attempts run on the same threads: a busy vendor lets others have their turn.
                tokio::task::yield_now().await;
                continue;
            }
            pause(&self.cx.clock, tick, &bell, &stop).await;
        }
        self.give_back_held().await;
        while self.running.join_next().await.is_some() {}
    }

    /// One turn. Safe to drop only between turns.
    pub async fn tick(&mut self) -> Result<Tick, StoreError> {
        while let Some(ended) = self.running.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(vendor = %self.vendor.name(), %error, "an attempt broke off; its job is free again when its lease lapses");
            }
        }
        let now = self.cx.clock.nanos();
        if let Some(pause) = self.cx.pauses.get(self.vendor.name(), self.cx.clock.now()) {
            self.give_back_held().await;
            return Ok(pause.until.map_or(Tick::Idle, |until| Tick::WaitUntil(self.cx.clock.nanos_at(until))));
        }
        match self.breaker.standing() {
            Standing::Open { until } => {
                self.give_back_held().await;
                return Ok(Tick::WaitUntil(until));
            }
            // What is held from before it opened; the probe is held alone.
            Standing::HalfOpen if !self.breaker.has_probe() => self.give_back_held().await,
            Standing::HalfOpen | Standing::Closed => {}
        }
        let fired = self.fire_due(now);
        let tick = self.claim_and_reserve(now).await?;
        let next = self.held.front().map(|(_, permit)| permit.at);
        Ok(match (fired, tick, next) {
            (true, _, _) | (_, Tick::Ran, _) => Tick::Ran,
            (_, Tick::WaitUntil(at), Some(next)) => Tick::WaitUntil(at.min(next)),
            (_, Tick::Idle, Some(next)) => Tick::WaitUntil(next),
            (_, tick, None) => tick,
        })
    }

    /// Waits until no attempt is under way; says whether there was any. For those who turn the loop themselves.
    pub async fn finish_attempts(&mut self) -> bool {
        let mut any = false;
        while self.running.join_next().await.is_some() {
            any = true;
        }
        any
    }

    /// Starts the attempts whose permit's time has come.
    fn fire_due(&mut self, now: Nanos) -> bool {
        let mut fired = false;
        while let Some((lease, permit)) = self.held.pop_front_if(|(_, permit)| permit.at <= now) {
            let hold = Hold::new(&self.places, lease.job.stage);
            let probe = self.breaker.hand_over();
            self.running.spawn(attempt::run(self.cx.clone(), self.vendor.clone(), lease, permit, hold, probe));
            fired = true;
        }
        fired
    }

    /// Claims jobs for the permits that can be had within the horizon, and reserves them.
    async fn claim_and_reserve(&mut self, now: Nanos) -> Result<Tick, StoreError> {
        if now < self.ask_at {
            return Ok(Tick::WaitUntil(self.ask_at));
        }
        let in_flight = self.places.in_flight();
        let (busy, all) = (in_flight + self.held.len(), self.vendor.config.concurrency);
        let unsettled = self.running.len().saturating_sub(in_flight);
        let most = all.saturating_sub(busy).min(MOST_AT_ONCE).min(MOST_UNSETTLED.saturating_sub(unsettled));
        if most == 0 {
            return Ok(Tick::Idle); // An attempt that ends rings the bell.
        }
        let ready = self.cx.store.ready(self.vendor.name()).await?;
        let wall = self.cx.clock.now();
        let nothing_due = match ready.next_due {
            None => Some(Tick::Idle),
            Some(due) if due > wall => Some(Tick::WaitUntil(self.cx.clock.nanos_at(due))),
            Some(_) => None,
        };
        let wanted = busy + usize::from(nothing_due.is_none());
        let ours = self.cx.limiter.places(self.vendor.name(), all, wanted).await?;
        if let Some(tick) = nothing_due {
            return Ok(tick);
        }
        let most = most.min(ours.saturating_sub(busy));
        if most == 0 {
            return Ok(Tick::WaitUntil(now + nanos(PLACES_WAIT))); // Other workers have them.
        }
        let horizon = now + nanos(self.cx.limiter.horizon());
        let again = self.again.take().filter(|again| again.unseen < ROUNDS_UNSEEN);
        let room = match again {
            Some(again) => most.min(again.permits),
            None => {
                let outlook = self.cx.limiter.outlook(&self.vendor.config.pool, horizon, most).await?;
                if outlook.room == 0 {
                    self.places.metrics().limit_waits.inc();
                    return Ok(self.wait_for(outlook.next_at, now));
                }
                outlook.room
            }
        };
        let room = match self.may_call(room).await? {
            0 => return Ok(Tick::WaitUntil(now + nanos(PROBE_WAIT))),
            room => room,
        };
        let claimed = self.claim_and_reserve_up_to(room, &ready, wall, horizon, again).await;
        if self.held.is_empty() {
            self.breaker.drop_probe().await;
        }
        claimed
    }

    /// How many of so many calls the breaker lets go: all, or the one that is the probe.
    async fn may_call(&mut self, room: usize) -> Result<usize, StoreError> {
        if self.breaker.standing() == Standing::Closed {
            return Ok(room);
        }
        Ok(usize::from(!self.breaker.has_probe() && self.breaker.take_probe().await?))
    }

    async fn claim_and_reserve_up_to(
        &mut self,
        room: usize,
        ready: &Ready,
        wall: Time,
        horizon: Nanos,
        again: Option<Again>,
    ) -> Result<Tick, StoreError> {
        let (leases, expired) = self.claim(room, ready.open, wall).await?;
        if leases.is_empty() {
            // Behind those that have expired others may be due.
            return if expired > 0 { Ok(Tick::Ran) } else { self.nothing_to_claim(wall).await };
        }
        let (wished, held) = (leases.len(), self.held.len());
        let tick = self.reserve(leases, horizon).await?;
        let granted = self.held.len() - held;
        if tick == Tick::Ran && (wished == room || granted >= A_ROUND) {
            // No more can be had, or is worth a question, before half of it is used.
            self.ask_at = self.held.get(self.held.len() / 2).map_or(Nanos::MIN, |(_, permit)| permit.at);
        }
        let permits = (self.held.len() / 2).saturating_sub(1); // used by then; one fewer, so that none is asked for in vain
        if granted == wished && permits >= A_ROUND {
            self.again = Some(Again { permits, unseen: again.map_or(0, |again| again.unseen + 1) });
        }
        Ok(tick)
    }

    /// A lane was due and gave nothing: its tenant rests, its jobs were cancelled, or it wants calls where only polls may be made.
    async fn nothing_to_claim(&self, wall: Time) -> Result<Tick, StoreError> {
        let ready = self.cx.store.ready(self.vendor.name()).await?;
        let at = match ready.next_due {
            Some(due) if due > wall => Some(due),
            // What is due has to wait for fewer to be open, which rings the bell. Polls are what makes them fewer.
            Some(_) => ready.next_poll.map(|at| at.max(wall.plus(Duration::from_millis(1)))),
            None => None, // A lane that is still being read from the table rings the bell.
        };
        Ok(at.map_or(Tick::Idle, |at| Tick::WaitUntil(self.cx.clock.nanos_at(at))))
    }

    /// Sleeps towards a permit that lies beyond the horizon, with a stop on the way to open a connection.
    fn wait_for(&mut self, next_at: Nanos, now: Nanos) -> Tick {
        let come_back = next_at.saturating_sub(self.half_horizon());
        // Whoever rings meanwhile is heard after half a horizon at most: permits may have been handed back.
        self.ask_at = come_back.min(now + self.half_horizon());
        let warm_at = next_at.saturating_sub(nanos(WARM_AHEAD));
        if warm_at > now {
            return Tick::WaitUntil(warm_at);
        }
        self.warmer.warm(&self.vendor, Stage::Call, 1);
        Tick::WaitUntil(come_back)
    }

    /// Coming back when half of the horizon is used makes few round trips, and a late one costs nothing.
    fn half_horizon(&self) -> Nanos {
        nanos(self.cx.limiter.horizon()) / 2
    }

    /// Claims jobs, and ends those that have expired; says how many those were.
    async fn claim(&self, most: usize, open: u64, now: Time) -> Result<(Vec<Lease>, usize), StoreError> {
        let submitting = self.places.submitting() + self.held.iter().filter(is_submit).count();
        let calls = match self.vendor.config.open {
            Some(limit) => usize::try_from(limit.saturating_sub(open)).unwrap_or(usize::MAX).saturating_sub(submitting),
            None => most,
        };
        let lease = self.vendor.config.lease();
        let claim = Claim { vendor: self.vendor.name().clone(), most, calls, now, lease };
        let leases = self.cx.store.claim(&claim).await?;
        let (expired, good): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.alarm_at().is_some_and(|at| at <= now));
        let count = expired.len();
        for lease in &expired {
            if let Err(error) = self.expire(lease, now).await {
                let back = expired.into_iter().chain(good);
                self.cx.store.release(back.map(|lease| (lease, None)).collect()).await;
                return Err(error);
            }
        }
        if count > 0 {
            // Their jobs have changed, and nobody will settle them.
            self.cx.store.release(expired.into_iter().map(|lease| (lease, None)).collect()).await;
        }
        Ok((good, count))
    }

    /// A job past its deadline, or past the vendor's time to answer, spends no permit.
    async fn expire(&self, lease: &Lease, now: Time) -> Result<(), StoreError> {
        let (id, policy, jitter) = (lease.job.id, self.vendor.policy(), fastrand::f64());
        let decide = Box::new(move |job: &crate::job::Job| lifecycle::alarmed(job, &policy, jitter, now));
        if let Amended::Changed(job) = self.cx.store.amend(Which::Id(id), now, decide).await? {
            self.places.metrics().count_ended(job.status);
        }
        Ok(())
    }

    /// Reserves a permit for each lease; those without are given back.
    async fn reserve(&mut self, leases: Vec<Lease>, horizon: Nanos) -> Result<Tick, StoreError> {
        let tenants: Vec<Arc<str>> = leases.iter().map(|lease| lease.job.lane.tenant.clone()).collect();
        let answers = match self.cx.limiter.reserve(&self.vendor.config.pool, &tenants, horizon).await {
            Ok(answers) => answers,
            Err(error) => {
                self.cx.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
                return Err(error);
            }
        };
        let (mut granted, mut rested, mut again_at) = (0, false, Nanos::MAX);
        let mut back = Vec::new();
        for (lease, answer) in leases.into_iter().zip(answers) {
            match answer {
                Answer::Granted(permit) => {
                    granted += 1;
                    self.held.push_back((lease, permit));
                }
                Answer::NotBefore { until, by } => {
                    again_at = again_at.min(until);
                    let rests = matches!(&by, Blocker::Limit(id) if self.tenant_limits.contains(id));
                    rested |= rests;
                    back.push((lease, rests.then(|| self.cx.clock.time_at(until).plus(Duration::from_millis(1)))));
                }
            }
        }
        self.cx.store.release(back).await;
        self.places.metrics().permits_granted.inc_by(granted);
        if granted == 0 {
            // The lanes of a tenant that is over its own limit rest now; those behind them may be ready.
            let wait = Tick::WaitUntil((again_at - self.half_horizon()).max(self.cx.clock.nanos() + 1));
            return Ok(if rested { Tick::Ran } else { wait });
        }
        let stage = self.held.front().map_or(Stage::Call, |(lease, _)| lease.job.stage);
        self.warmer.warm(&self.vendor, stage, self.held.len());
        Ok(Tick::Ran)
    }

    async fn give_back_held(&mut self) {
        self.breaker.drop_probe().await;
        if self.held.is_empty() {
            return;
        }
        (self.ask_at, self.again) = (Nanos::MIN, None);
        let (leases, permits): (Vec<_>, Vec<_>) =
            self.held.drain(..).map(|(lease, permit)| ((lease, None), permit)).unzip();
        self.places.metrics().permits_unused.inc_by(permits.len() as u64);
        self.cx.limiter.give_back(permits).await;
        self.cx.store.release(leases).await;
    }
}

fn is_submit((lease, _): &&(Lease, Permit)) -> bool {
    lease.job.stage == Stage::Call
}
