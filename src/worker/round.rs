//! One round of a vendor's dispatcher: which jobs can go soon? Looks at the store and the limiter, claims jobs, and reserves a permit for each.
//!
//! Never fires a call and never waits for a time (see `firing` and `dispatch`): it says when to come back.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::task::JoinSet;

use super::{
    Context, Tick, alarms,
    breaker::{self, Leave},
    firing::{Firing, InHand},
    hints::{Granted, Hints},
    login::{self, Verdict},
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
/// The same for calls that are made at most once: those on record when a process is killed end with an unknown outcome, called or not.
const MOST_MARKED: usize = 32;
/// Attempts whose outcome waits for the store at most; beyond it nothing is claimed.
const MOST_UNSETTLED: usize = 2048;
/// A connection is opened this long before the permit that will use it.
const WARM_AHEAD: Duration = Duration::from_millis(500);
/// The wait while other workers have all places for calls in flight.
const PLACES_WAIT: Duration = Duration::from_millis(100);
/// The wait while another call is the probe.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// The wait after no token could be had, if the breaker does not say how long.
const LOGIN_WAIT: Duration = Duration::from_secs(1);

/// What a dispatcher keeps between its rounds.
pub(super) struct Rounds {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    metrics: VendorMetrics,
    warmer: Warmer,
    hints: Hints,
    /// Fetches the next token while the one in use is still good.
    renewing: JoinSet<()>,
}

/// What one round came to.
pub(super) struct Round {
    reserved: Vec<(Lease, Permit)>,
    tick: Tick,
    /// As many jobs were claimed as permits were thought to be there.
    is_full: bool,
    /// Every job claimed got its permit.
    all_granted: bool,
    /// Leave for the one job reserved while the breaker is half open.
    probe: Option<Leave>,
}

impl Round {
    fn nothing(tick: Tick) -> Round {
        Round { reserved: Vec::new(), tick, is_full: false, all_granted: false, probe: None }
    }
}

/// Why a round ends before its last step.
enum Early {
    ComeBack(Tick),
    Failed(StoreError),
}

impl From<StoreError> for Early {
    fn from(error: StoreError) -> Early {
        Early::Failed(error)
    }
}

/// A step gives what the next one needs, or ends the round.
type Step<T> = Result<T, Early>;

impl Rounds {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, metrics: VendorMetrics) -> Rounds {
        let warmer = Warmer::new(cx.client.clone());
        Rounds { cx, vendor, metrics, warmer, hints: Hints::default(), renewing: JoinSet::new() }
    }

    /// Waits until nothing runs beside the rounds.
    pub(super) async fn finish(&mut self) {
        while self.renewing.join_next().await.is_some() {}
    }

    /// What was reserved has been given back.
    pub(super) fn forget(&mut self) {
        self.hints.forget_permits();
    }

    /// Claims jobs for the permits that can be had within the horizon, and reserves the permits.
    pub(super) async fn run(&mut self, in_hand: InHand, now: Nanos) -> Result<Round, StoreError> {
        match self.steps(in_hand, now).await {
            Ok(round) => Ok(round),
            Err(Early::ComeBack(tick)) => Ok(Round::nothing(tick)),
            Err(Early::Failed(error)) => Err(error),
        }
    }

    /// Each step makes `most` smaller: how many jobs may be claimed.
    async fn steps(&mut self, in_hand: InHand, now: Nanos) -> Step<Round> {
        if let Some(at) = self.hints.look_later(now) {
            return Err(Early::ComeBack(Tick::WaitUntil(at)));
        }
        let most = self.allowed_here(in_hand)?;
        let ready = self.ready().await?;
        let most = self.allowed_in_flight(most, in_hand.busy, &ready, now).await?;
        let most = self.permits(most, now).await?;
        let (most, probe) = self.allowed_by_breakers(most, in_hand, now).await?;
        if let Err(verdict) = login::ready(&self.cx, &self.vendor, &mut self.renewing).await {
            breaker::tell(&self.cx, &self.vendor, probe, None, verdict).await;
            return come_back(now, LOGIN_WAIT);
        }
        let round = self.claim_and_reserve(most, self.submitting_calls(most, ready.open, in_hand)).await;
        self.hints.claimed(round.as_ref().is_ok_and(|round| round.is_full));
        match round {
            Ok(round) if !round.reserved.is_empty() => Ok(Round { probe, ..round }),
            nothing => {
                breaker::tell(&self.cx, &self.vendor, probe, None, Verdict::Unknown).await;
                nothing
            }
        }
    }

    /// What this process bounds by itself.
    fn allowed_here(&self, in_hand: InHand) -> Step<usize> {
        let not_in_flight = self.vendor.config.concurrency.saturating_sub(in_hand.busy);
        let at_once = if self.vendor.config.at_most_once { MOST_MARKED } else { MOST_AT_ONCE };
        let most = not_in_flight.min(at_once).min(MOST_UNSETTLED.saturating_sub(in_hand.unsettled));
        // An attempt that ends rings the bell.
        if most > 0 { Ok(most) } else { Err(Early::ComeBack(Tick::Idle)) }
    }

    /// What is there to do. The store is not asked while the rounds before show that there is more.
    async fn ready(&mut self) -> Step<Ready> {
        if self.hints.jobs_are_due() && self.vendor.config.open.is_none() {
            return Ok(Ready { next_due: Some(self.cx.clock.now()), ..Ready::default() });
        }
        Ok(self.cx.store.ready(self.vendor.name()).await?)
    }

    /// This process's share of the vendor's calls in flight, less those that are. When nothing is due, the share is given up.
    async fn allowed_in_flight(&self, most: usize, busy: usize, ready: &Ready, now: Nanos) -> Step<usize> {
        let wall = self.cx.clock.now();
        let nothing_due = match ready.next_due {
            None => Some(Tick::Idle),
            Some(due) if due > wall => Some(Tick::WaitUntil(self.cx.clock.nanos_at(due))),
            Some(_) => None,
        };
        let wanted = busy + usize::from(nothing_due.is_none());
        let ours = self.cx.limiter.places(self.vendor.name(), self.vendor.config.concurrency, wanted).await?;
        if let Some(tick) = nothing_due {
            return Err(Early::ComeBack(tick));
        }
        let most = most.min(ours.saturating_sub(busy));
        if most > 0 { Ok(most) } else { come_back(now, PLACES_WAIT) }
    }

    /// How many permits can be had. The limiter is not asked while the rounds before show that there are some.
    async fn permits(&mut self, most: usize, now: Nanos) -> Step<usize> {
        if let Some(permits) = self.hints.take_permits() {
            return Ok(most.min(permits));
        }
        let outlook = self.cx.limiter.outlook(&self.vendor.config.pool, self.until(), most).await?;
        if outlook.room > 0 {
            return Ok(outlook.room);
        }
        self.metrics.limit_waits.inc();
        Err(Early::ComeBack(self.wait_for_permit(outlook.next_at, now)))
    }

    /// All calls while the breakers are closed; otherwise the one that is the probe, if it may go.
    async fn allowed_by_breakers(&self, most: usize, in_hand: InHand, now: Nanos) -> Step<(usize, Option<Leave>)> {
        let is_closed = |name: &str| self.cx.breakers.standing(name) == Standing::Closed;
        if is_closed(self.vendor.name()) && is_closed(&self.vendor.login.breaker) {
            return Ok((most, None));
        }
        let leave = if in_hand.has_probe { None } else { breaker::take_leave(&self.cx, &self.vendor).await? };
        if leave.is_some() { Ok((1, leave)) } else { come_back(now, PROBE_WAIT) }
    }

    /// How many of the jobs may be submitting calls, where the vendor bounds what is open; the rest can only be polls.
    fn submitting_calls(&self, most: usize, open: u64, in_hand: InHand) -> usize {
        self.vendor.config.open.map_or(most, |most_open| {
            let room = usize::try_from(most_open.saturating_sub(open)).unwrap_or(usize::MAX);
            room.saturating_sub(in_hand.submitting)
        })
    }

    async fn claim_and_reserve(&self, most: usize, calls: usize) -> Step<Round> {
        let wall = self.cx.clock.now();
        let (leases, expired) = self.claim(most, calls, wall).await?;
        if leases.is_empty() {
            // Other jobs may be due behind those that have expired.
            let tick = if expired > 0 { Tick::Ran } else { self.nothing_to_claim(wall).await? };
            return Err(Early::ComeBack(tick));
        }
        let is_full = leases.len() == most;
        let leases = if self.vendor.config.at_most_once { self.mark(leases).await? } else { leases };
        Ok(Round { is_full, ..self.reserve(leases).await? })
    }

    /// For a vendor that is called at most once: puts the submitting calls on record. The limiter is asked before that: a tenant may have many
    /// jobs, and those that wait for its limit would be on record in vain, and end as unknown if the process died.
    async fn mark(&self, mut leases: Vec<Lease>) -> Step<Vec<Lease>> {
        if self.cx.limits.any_is_per_tenant(&self.vendor.config.pool) {
            let round = self.reserve(leases).await?;
            let (can_go, permits): (Vec<_>, Vec<_>) = round.reserved.into_iter().unzip();
            if can_go.is_empty() {
                return Err(Early::ComeBack(round.tick));
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
        if leases.is_empty() { Err(Early::ComeBack(Tick::Ran)) } else { Ok(leases) }
    }

    /// Hands over what was reserved, and says when to come back.
    pub(super) fn end(&mut self, round: Round, firing: &mut Firing) -> Tick {
        let permits = round.reserved.len();
        if permits == 0 {
            return round.tick;
        }
        self.metrics.permits_granted.inc_by(permits as u64);
        firing.add(round.reserved, round.probe);
        let (reserved, stage) = firing.reserved();
        self.warmer.warm(&self.vendor, stage, reserved);
        let granted = Granted { permits, is_full: round.is_full, to_all: round.all_granted };
        self.hints.granted(granted, reserved, firing.half_fired_at());
        round.tick
    }

    /// When to come back after a lane was due and gave nothing: its tenant rests, its jobs were cancelled, or it has calls where only polls
    /// may be made.
    async fn nothing_to_claim(&self, wall: Time) -> Result<Tick, StoreError> {
        let ready = self.cx.store.ready(self.vendor.name()).await?;
        let at = match ready.next_due {
            Some(due) if due > wall => Some(due),
            // What is due has to wait until fewer jobs are open, which rings the bell. Polls make them fewer.
            Some(_) => ready.next_poll.map(|at| at.max(wall.plus(Duration::from_millis(1)))),
            None => None, // A lane that is still being read from the table rings the bell.
        };
        Ok(at.map_or(Tick::Idle, |at| Tick::WaitUntil(self.cx.clock.nanos_at(at))))
    }

    /// When to come back for a permit that lies beyond the horizon, with a stop on the way to open a connection.
    fn wait_for_permit(&mut self, next_at: Nanos, now: Nanos) -> Tick {
        let come_back = next_at.saturating_sub(self.half_horizon());
        // A bell has an effect after half a horizon at the latest: permits may have been given back.
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

    /// Coming back when half of the horizon is used makes few round trips, and being late costs nothing.
    fn half_horizon(&self) -> Nanos {
        nanos(self.cx.limiter.horizon()) / 2
    }

    /// Claims jobs, and ends those that have expired, which spend no permit; says how many those were.
    async fn claim(&self, most: usize, calls: usize, now: Time) -> Result<(Vec<Lease>, usize), StoreError> {
        let lease = self.vendor.config.lease();
        let claim = Claim { vendor: self.vendor.name().clone(), most, calls, now, lease };
        let leases = self.cx.store.claim(&claim).await?;
        let (expired, good): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.alarm_at().is_some_and(|at| at <= now));
        let count = expired.len();
        // Side by side: the store writes them together.
        let ended = join_all(expired.iter().map(|lease| alarms::ring(&self.cx, lease.job.id, now))).await;
        let (ended, failed): (Vec<_>, Vec<_>) = expired.into_iter().zip(ended).partition(|(_, ended)| ended.is_ok());
        if let Some((lease, Err(error))) = failed.first() {
            // They stay leased, and are in nobody's way until that lapses.
            tracing::warn!(jobs = failed.len(), job = %lease.job.id, %error, "expired jobs could not be ended; they are tried again when their leases lapse");
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
        // The lanes of a tenant that is over its own limit rest now; those behind them may be ready.
        let tick = if any_rests || !reserved.is_empty() {
            Tick::Ran
        } else {
            Tick::WaitUntil((again_at - self.half_horizon()).max(self.cx.clock.nanos() + 1))
        };
        Ok(Round { reserved, all_granted, ..Round::nothing(tick) })
    }

    async fn release(&self, leases: impl IntoIterator<Item = Lease>) {
        self.cx.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
    }
}

fn come_back<T>(now: Nanos, wait: Duration) -> Step<T> {
    Err(Early::ComeBack(Tick::WaitUntil(now + nanos(wait))))
}
