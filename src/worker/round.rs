//! One round of a vendor's dispatcher: which jobs can go soon? Looks at the store and the limiter, claims jobs, and reserves a permit for each.
//!
//! Never fires a call and never waits for a time (see `firing` and `dispatch`): it says when to come back.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join, join_all};
use tokio::task::JoinSet;

use super::{
    alarms,
    breaker::{self, Probes},
    context::Context,
    firing::{Firing, InHand},
    hints::{FEW, Granted, Hints},
    login::{self, Verdict},
    tick::Tick,
    warm::Warmer,
};
use crate::{
    clock::{Nanos, Time, nanos},
    job::Stage,
    limit::{Answer, Blocker, Permit, breaker::Standing},
    store::{Claim, Lease, Ready, StoreError},
    telemetry::VendorMetrics,
    vendor::Vendor,
};

/// Jobs claimed at once at most.
const MOST_AT_ONCE: usize = 256;
/// The same for a vendor that is called at most once. If the process is killed, this many jobs at most end with an unknown outcome.
const MOST_MARKED: usize = 32;
/// With this many outcomes waiting for the store, nothing more is claimed.
const MOST_UNSETTLED: usize = 2048;
/// A connection is opened this long before the permit that will use it.
const WARM_AHEAD: Duration = Duration::from_millis(500);
/// The wait while this process's share of the calls in flight is used up.
const SHARE_WAIT: Duration = Duration::from_millis(100);
/// The wait while another call is the probe.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// The wait after an OAuth token could not be had, unless the breaker sets a longer one.
const LOGIN_WAIT: Duration = Duration::from_secs(1);

/// What a dispatcher keeps between its rounds.
pub(super) struct Rounds {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    metrics: VendorMetrics,
    warmer: Warmer,
    hints: Hints,
    /// Tasks that fetch the next OAuth token while the one in use is still valid.
    renewing: JoinSet<()>,
}

/// The outcome of one round.
pub(super) struct Round {
    reserved: Vec<(Lease, Permit)>,
    tick: Tick,
    /// As many jobs were claimed as could be, so more may be due.
    is_full: bool,
    /// Every job claimed got its permit.
    all_granted: bool,
    /// The probes for the one job that is reserved while a breaker is half open.
    probes: Option<Probes>,
}

impl Round {
    fn nothing(tick: Tick) -> Round {
        Round { reserved: Vec::new(), tick, is_full: false, all_granted: false, probes: None }
    }
}

/// Why a round ends before its last step.
enum EarlyReturn {
    ComeBack(Tick),
    Failed(StoreError),
}

impl From<StoreError> for EarlyReturn {
    fn from(error: StoreError) -> EarlyReturn {
        EarlyReturn::Failed(error)
    }
}

impl Rounds {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, metrics: VendorMetrics) -> Rounds {
        let warmer = Warmer::new(cx.client.clone());
        Rounds { cx, vendor, metrics, warmer, hints: Hints::default(), renewing: JoinSet::new() }
    }

    /// Waits for tasks that were started by rounds.
    pub(super) async fn finish(&mut self) {
        while self.renewing.join_next().await.is_some() {}
    }

    /// To be called when reserved jobs and permits were given back: hints from before are wrong now.
    pub(super) fn forget(&mut self) {
        self.hints.forget_permits();
    }

    /// Claims jobs for the permits that can be had within the horizon, and reserves the permits.
    pub(super) async fn run(&mut self, in_hand: InHand, now: Nanos) -> Result<Round, StoreError> {
        match self.steps(in_hand, now).await {
            Ok(round) => Ok(round),
            Err(EarlyReturn::ComeBack(tick)) => Ok(Round::nothing(tick)),
            Err(EarlyReturn::Failed(error)) => Err(error),
        }
    }

    /// `most` is how many jobs may be claimed; each step can only lower it, or end the round.
    async fn steps(&mut self, in_hand: InHand, now: Nanos) -> Result<Round, EarlyReturn> {
        if let Some(at) = self.hints.look_later(now) {
            return Err(EarlyReturn::ComeBack(Tick::WaitUntil(at)));
        }
        let most = self.allowed_here(in_hand)?;
        let ready = self.ready().await?;
        let most = self.allowed_in_flight(most, in_hand.busy, &ready, now).await?;
        let (wanted, most) = (most, self.permits(most, in_hand, now).await?);
        let (most, probes) = self.allowed_by_breakers(most, in_hand, now).await?;
        if let Err(verdict) = login::ready(&self.cx, &self.vendor, &mut self.renewing).await {
            breaker::report(&self.cx, &self.vendor, probes, None, verdict).await;
            return come_back(now, LOGIN_WAIT);
        }
        let round = self.claim_and_reserve(most, self.submitting_calls(most, ready.open, in_hand)).await;
        let is_full = round.as_ref().is_ok_and(|round| round.is_full);
        self.hints.claimed(is_full);
        if round.as_ref().is_ok_and(|round| !round.all_granted) {
            self.hints.refused();
        }
        if is_full && most == wanted {
            // Permits and jobs are left: other workers can help.
            self.cx.store.call_helpers(self.vendor.name()).await;
        }
        match round {
            Ok(round) if !round.reserved.is_empty() => Ok(Round { probes, ..round }),
            nothing => {
                breaker::report(&self.cx, &self.vendor, probes, None, Verdict::Unknown).await;
                nothing
            }
        }
    }

    /// The bounds that need neither the store nor the limiter.
    fn allowed_here(&self, in_hand: InHand) -> Result<usize, EarlyReturn> {
        let not_in_flight = self.vendor.config.concurrency.saturating_sub(in_hand.busy);
        let at_once = if self.vendor.config.at_most_once { MOST_MARKED } else { MOST_AT_ONCE };
        let most = not_in_flight.min(at_once).min(MOST_UNSETTLED.saturating_sub(in_hand.unsettled));
        // The next attempt that ends wakes the dispatcher.
        if most > 0 { Ok(most) } else { Err(EarlyReturn::ComeBack(Tick::Idle)) }
    }

    /// What is due. The store need not be asked if an earlier round has shown that more jobs are due.
    async fn ready(&mut self) -> Result<Ready, EarlyReturn> {
        if self.hints.jobs_are_due() && self.vendor.config.open.is_none() {
            return Ok(Ready { next_due: Some(self.cx.clock.now()), ..Ready::default() });
        }
        Ok(self.cx.store.ready(self.vendor.name()).await?)
    }

    /// Bounded by what is free of this process's share of the vendor's calls in flight. When nothing is due, the share is given up.
    async fn allowed_in_flight(
        &self,
        most: usize,
        busy: usize,
        ready: &Ready,
        now: Nanos,
    ) -> Result<usize, EarlyReturn> {
        let wall = self.cx.clock.now();
        let nothing_due = match ready.next_due {
            None => Some(Tick::Idle),
            Some(due) if due > wall => Some(Tick::WaitUntil(self.cx.clock.nanos_at(due))),
            Some(_) => None,
        };
        let wanted = busy + usize::from(nothing_due.is_none());
        let share = self.cx.limiter.share_in_flight(self.vendor.name(), self.vendor.config.concurrency, wanted).await?;
        if let Some(tick) = nothing_due {
            return Err(EarlyReturn::ComeBack(tick));
        }
        let most = most.min(share.saturating_sub(busy));
        if most > 0 { Ok(most) } else { come_back(now, SHARE_WAIT) }
    }

    /// Bounded by the permits that can be had. The limiter need not be asked if an earlier round has shown that there are some, nor for a lone job
    /// if there was no wait for the last one: a job that gets no permit after all is given back.
    async fn permits(&mut self, most: usize, in_hand: InHand, now: Nanos) -> Result<usize, EarlyReturn> {
        if let Some(permits) = self.hints.take_permits() {
            return Ok(most.min(permits));
        }
        let pool = &self.vendor.config.pool;
        let may_guess = in_hand.busy == 0 && !self.vendor.config.at_most_once && !self.cx.limiter.is_gated(pool);
        if let Some(permits) = self.hints.few_permits().filter(|_| may_guess) {
            return Ok(most.min(permits));
        }
        let outlook = self.cx.limiter.outlook(pool, self.until(), most).await?;
        if outlook.room > 0 {
            return Ok(outlook.room);
        }
        self.metrics.limit_waits.inc();
        Err(EarlyReturn::ComeBack(self.wait_for_permit(outlook.next_at, now)))
    }

    /// All calls while the breakers are closed; otherwise one call, if its probes can be had.
    async fn allowed_by_breakers(
        &self,
        most: usize,
        in_hand: InHand,
        now: Nanos,
    ) -> Result<(usize, Option<Probes>), EarlyReturn> {
        let is_closed = |name: &str| self.cx.breakers.standing(name) == Standing::Closed;
        if is_closed(self.vendor.name()) && is_closed(&self.vendor.login.breaker) {
            return Ok((most, None));
        }
        let probes = if in_hand.has_probe { None } else { breaker::take_probes(&self.cx, &self.vendor).await? };
        if probes.is_some() { Ok((1, probes)) } else { come_back(now, PROBE_WAIT) }
    }

    /// How many of the jobs may be submitting calls, if the vendor bounds its open jobs. The others can only be polls.
    fn submitting_calls(&self, most: usize, open: u64, in_hand: InHand) -> usize {
        self.vendor.config.open.map_or(most, |most_open| {
            let room = usize::try_from(most_open.saturating_sub(open)).unwrap_or(usize::MAX);
            room.saturating_sub(in_hand.submitting)
        })
    }

    async fn claim_and_reserve(&self, most: usize, calls: usize) -> Result<Round, EarlyReturn> {
        let wall = self.cx.clock.now();
        let prepare = async {
            if most <= FEW {
                self.cx.limiter.prepare(&self.vendor.config.pool).await;
            }
        };
        let (claimed, ()) = join(self.claim(most, calls, wall), prepare).await;
        let (leases, expired) = claimed?;
        if leases.is_empty() {
            // Other jobs may be due behind those that have expired.
            let tick = if expired > 0 { Tick::Again } else { self.nothing_to_claim(wall).await? };
            return Err(EarlyReturn::ComeBack(tick));
        }
        let is_full = leases.len() == most;
        let leases = if self.vendor.config.at_most_once { self.mark(leases).await? } else { leases };
        Ok(Round { is_full, ..self.reserve(leases).await? })
    }

    /// For a vendor that is called at most once: puts the submitting calls on record. If a tenant has limits of its own, the limiter is asked
    /// first, so that only jobs that can get a permit are on record: they end with an unknown outcome if the process dies.
    async fn mark(&self, mut leases: Vec<Lease>) -> Result<Vec<Lease>, EarlyReturn> {
        if self.cx.limits.any_is_per_tenant(&self.vendor.config.pool) {
            let round = self.reserve(leases).await?;
            let (can_go, permits): (Vec<_>, Vec<_>) = round.reserved.into_iter().unzip();
            if can_go.is_empty() {
                return Err(EarlyReturn::ComeBack(round.tick));
            }
            // By the time that the record is stored these permits would be late.
            self.cx.limiter.give_back(permits).await;
            leases = can_go;
        }
        let (calls, mut leases): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.stage == Stage::Call);
        if !calls.is_empty() {
            match self.cx.metrics.timed(self.cx.store.mark(calls)).await {
                Ok(marked) => leases.extend(marked),
                Err(error) => {
                    self.release(leases).await;
                    return Err(error.into());
                }
            }
        }
        if leases.is_empty() { Err(EarlyReturn::ComeBack(Tick::Again)) } else { Ok(leases) }
    }

    /// Hands the reserved jobs to `firing`; returns when to come back.
    pub(super) fn end(&mut self, round: Round, firing: &mut Firing) -> Tick {
        let permits = round.reserved.len();
        if permits == 0 {
            return round.tick;
        }
        self.metrics.permits_granted.inc_by(permits as u64);
        let soon_until = self.cx.clock.nanos() + self.half_horizon() / 2;
        let soon = round.reserved.last().is_some_and(|(_, permit)| permit.at <= soon_until);
        firing.add(round.reserved, round.probes);
        let (reserved, stage) = firing.reserved();
        self.warmer.warm(&self.vendor, stage, reserved);
        let granted = Granted { permits, is_full: round.is_full, to_all: round.all_granted, soon };
        self.hints.granted(granted, reserved, firing.half_fired_at());
        round.tick
    }

    /// When to come back after a due lane gave no job: its tenant rests, its jobs were cancelled, or only polls may be made and it has none.
    async fn nothing_to_claim(&self, wall: Time) -> Result<Tick, StoreError> {
        let ready = self.cx.store.ready(self.vendor.name()).await?;
        let at = match ready.next_due {
            Some(due) if due > wall => Some(due),
            // Too many jobs are open. When one ends, the dispatcher is woken; a poll may end one.
            Some(_) => ready.next_poll.map(|at| at.max(wall.plus(Duration::from_millis(1)))),
            None => None, // A lane that is still being read from the table wakes the dispatcher then.
        };
        Ok(at.map_or(Tick::Idle, |at| Tick::WaitUntil(self.cx.clock.nanos_at(at))))
    }

    /// When to come back for a permit that lies beyond the horizon, with a stop on the way to open a connection.
    fn wait_for_permit(&mut self, next_at: Nanos, now: Nanos) -> Tick {
        let come_back = next_at.saturating_sub(self.half_horizon());
        // After half a horizon at the latest a wake-up has an effect again: permits may have been given back.
        self.hints.nothing_before(come_back.min(now + self.half_horizon()));
        let warm_at = next_at.saturating_sub(nanos(WARM_AHEAD));
        if warm_at > now {
            return Tick::WaitUntil(warm_at);
        }
        self.warmer.warm(&self.vendor, Stage::Call, 1);
        Tick::WaitUntil(come_back)
    }

    /// Until when permits are worth asking for. Read from the clock each time: a busy store or limiter may take longer than the horizon to
    /// answer, and no permit lies before a time that has passed.
    fn until(&self) -> Nanos {
        self.cx.clock.nanos() + nanos(self.cx.limiter.horizon())
    }

    /// A dispatcher comes back when half of the horizon is used: that makes few round trips, and being a little late costs nothing.
    fn half_horizon(&self) -> Nanos {
        nanos(self.cx.limiter.horizon()) / 2
    }

    /// Claims jobs. Ends those that have expired, without a permit, and says how many those were.
    async fn claim(&self, most: usize, calls: usize, now: Time) -> Result<(Vec<Lease>, usize), StoreError> {
        let lease = self.vendor.config.lease();
        let claim = Claim { vendor: self.vendor.name().clone(), most, calls, now, lease };
        let leases = self.cx.store.claim(&claim).await?;
        let (expired, good): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.alarm_at().is_some_and(|at| at <= now));
        let count = expired.len();
        // Side by side: the store writes them together.
        let ended = join_all(expired.iter().map(|lease| alarms::handle(&self.cx, lease.job.id, now))).await;
        let (ended, failed): (Vec<_>, Vec<_>) = expired.into_iter().zip(ended).partition(|(_, ended)| ended.is_ok());
        if let Some((lease, Err(error))) = failed.first() {
            // They stay leased until the leases lapse.
            tracing::warn!(jobs = failed.len(), request_id = %lease.job.id, %error, "expired jobs could not be ended; they are tried again when their leases lapse");
        }
        if !ended.is_empty() {
            // Their jobs have changed, and nobody will settle them.
            self.release(ended.into_iter().map(|(lease, _)| lease)).await;
        }
        Ok((good, count))
    }

    /// Reserves a permit for each lease; leases without a permit are released.
    async fn reserve(&self, leases: Vec<Lease>) -> Result<Round, StoreError> {
        let tenants: Vec<Arc<str>> = leases.iter().map(|lease| lease.job.lane.tenant.clone()).collect();
        let pool = &self.vendor.config.pool;
        let answers = match self.cx.limiter.reserve(pool, &tenants, self.until()).await {
            Ok(answers) => answers,
            Err(error) => {
                self.release(leases).await;
                return Err(error);
            }
        };
        let (mut any_rests, mut again_at) = (false, Nanos::MAX);
        let (mut reserved, mut back) = (Vec::with_capacity(leases.len()), Vec::new());
        for (lease, answer) in leases.into_iter().zip(answers) {
            match answer {
                Answer::Granted(permit) => reserved.push((lease, permit)),
                Answer::NotBefore { until, by } => {
                    again_at = again_at.min(until);
                    let rests = matches!(&by, Blocker::Limit(id) if self.cx.limits.is_per_tenant(pool, id));
                    any_rests |= rests;
                    back.push((lease, rests.then(|| self.cx.clock.time_at(until).plus(Duration::from_millis(1)))));
                }
            }
        }
        let all_granted = back.is_empty();
        self.cx.store.release(back).await;
        // Lanes of tenants over their own limit rest now; the lanes behind them may have jobs for the permits.
        let tick = if any_rests || !reserved.is_empty() {
            Tick::Again
        } else {
            Tick::WaitUntil((again_at - self.half_horizon()).max(self.cx.clock.nanos() + 1))
        };
        Ok(Round { reserved, all_granted, ..Round::nothing(tick) })
    }

    async fn release(&self, leases: impl IntoIterator<Item = Lease>) {
        self.cx.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
    }
}

fn come_back<T>(now: Nanos, wait: Duration) -> Result<T, EarlyReturn> {
    Err(EarlyReturn::ComeBack(Tick::WaitUntil(now + nanos(wait))))
}
