//! One round of a vendor's dispatcher: which jobs can go soon? Looks at the store and the limiter, claims, and reserves.
//!
//! Never fires a call and never waits for a time (see `firing` and `dispatch`): it says when to come back.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::task::JoinSet;

use super::{
    Context, Tick,
    breaker::{self, Leave},
    firing::{Firing, InHand},
    login::{self, Verdict},
    warm::Warmer,
};
use crate::{
    clock::{Nanos, Time, nanos},
    job::{Stage, lifecycle},
    limit::{Answer, Blocker, Permit, breaker::Standing},
    store::{Amended, Claim, Lease, Ready, StoreError, Which},
    telemetry::VendorMetrics,
    vendor::Vendor,
};

/// Jobs claimed at once at most.
const MOST_AT_ONCE: usize = 256;
/// The same, of calls that are made at most once: what a process that is killed leaves on record and not called ends with an unknown outcome.
const MOST_MARKED: usize = 32;
/// Attempts whose outcome waits for the store at most; beyond it nothing is claimed.
const MOST_UNSETTLED: usize = 2048;
/// A connection is opened this long before the permit that will use it.
const WARM_AHEAD: Duration = Duration::from_millis(500);
/// The wait for places that other workers have.
const PLACES_WAIT: Duration = Duration::from_millis(100);
/// The wait for a probe that another call is.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// The wait after there was no token to be had, if the breaker does not say how long.
const LOGIN_WAIT: Duration = Duration::from_secs(1);
/// A round of at least this many permits is waited out by half before the limiter is asked again.
const A_ROUND: usize = 8;
/// Rounds in a row that rely on the one before, without a look at the limiter or the store first.
const ROUNDS_UNSEEN: u32 = 3;

/// What a dispatcher knows between its rounds.
pub(super) struct Rounds {
    cx: Arc<Context>,
    vendor: Arc<Vendor>,
    metrics: VendorMetrics,
    warmer: Warmer,
    /// The limiter has said all that there is to know until then.
    ask_at: Nanos,
    /// What can be had again at `ask_at`, if the last round got all that it asked for.
    again: Option<Again>,
    /// Rounds in a row that got as many jobs as they wanted.
    full: u32,
    /// Asks for the next token while the one in use is still good.
    renewing: JoinSet<()>,
}

/// As many permits as will have been used by then can be had without looking first.
#[derive(Debug, Clone, Copy)]
struct Again {
    permits: usize,
    /// Rounds since the limiter was last looked at.
    unseen: u32,
}

/// What one round came to.
pub(super) struct Round {
    reserved: Vec<(Lease, Permit)>,
    tick: Tick,
    /// As many jobs were claimed as permits were thought to be there.
    is_full: bool,
    /// Every job claimed got its permit.
    all_granted: bool,
    /// Rounds since the limiter was last looked at.
    unseen: u32,
    /// Leave for the one job reserved while the breaker is half open.
    probe: Option<Leave>,
}

impl Round {
    fn nothing(tick: Tick) -> Round {
        Round { reserved: Vec::new(), tick, is_full: false, all_granted: false, unseen: 0, probe: None }
    }
}

impl Rounds {
    pub(super) fn new(cx: Arc<Context>, vendor: Arc<Vendor>, metrics: VendorMetrics) -> Rounds {
        let warmer = Warmer::new(cx.client.clone());
        Rounds { cx, vendor, metrics, warmer, ask_at: Nanos::MIN, again: None, full: 0, renewing: JoinSet::new() }
    }

    /// Waits until nothing runs beside the rounds.
    pub(super) async fn finish(&mut self) {
        while self.renewing.join_next().await.is_some() {}
    }

    /// What was reserved has been given back: all that was known of it is void.
    pub(super) fn forget(&mut self) {
        (self.ask_at, self.again) = (Nanos::MIN, None);
    }

    /// Claims jobs for the permits that can be had within the horizon, and reserves them.
    pub(super) async fn ask(&mut self, in_hand: InHand, now: Nanos) -> Result<Round, StoreError> {
        if now < self.ask_at {
            return Ok(Round::nothing(Tick::WaitUntil(self.ask_at)));
        }
        let (busy, all) = (in_hand.busy, self.vendor.config.concurrency);
        let unsettled_room = MOST_UNSETTLED.saturating_sub(in_hand.unsettled);
        let at_once = if self.vendor.config.at_most_once { MOST_MARKED } else { MOST_AT_ONCE };
        let most = all.saturating_sub(busy).min(at_once).min(unsettled_room);
        if most == 0 {
            return Ok(Round::nothing(Tick::Idle)); // An attempt that ends rings the bell.
        }
        let ready = self.ready().await?;
        let wall = self.cx.clock.now();
        let nothing_due = match ready.next_due {
            None => Some(Tick::Idle),
            Some(due) if due > wall => Some(Tick::WaitUntil(self.cx.clock.nanos_at(due))),
            Some(_) => None,
        };
        let wanted = busy + usize::from(nothing_due.is_none());
        let ours = self.cx.limiter.places(self.vendor.name(), all, wanted).await?;
        if let Some(tick) = nothing_due {
            return Ok(Round::nothing(tick));
        }
        let most = most.min(ours.saturating_sub(busy));
        if most == 0 {
            return Ok(Round::nothing(Tick::WaitUntil(now + nanos(PLACES_WAIT)))); // Other workers have them.
        }
        let (room, unseen) = match self.room(most, now).await? {
            Ok(room) => room,
            Err(tick) => return Ok(Round::nothing(tick)),
        };
        let (room, probe) = match self.may_call(room, in_hand).await? {
            (0, _) => return Ok(Round::nothing(Tick::WaitUntil(now + nanos(PROBE_WAIT)))),
            room => room,
        };
        if let Err(verdict) = login::ready(&self.cx, &self.vendor, &mut self.renewing).await {
            breaker::tell(&self.cx, &self.vendor, probe, None, verdict).await;
            return Ok(Round::nothing(Tick::WaitUntil(now + nanos(LOGIN_WAIT))));
        }
        let round = self.claim_and_reserve(room, ready.open, in_hand.submitting).await;
        self.full = if matches!(&round, Ok(round) if round.is_full) { self.full + 1 } else { 0 };
        if matches!(&round, Ok(round) if !round.reserved.is_empty()) {
            return round.map(|round| Round { unseen, probe, ..round });
        }
        breaker::tell(&self.cx, &self.vendor, probe, None, Verdict::Unknown).await;
        round
    }

    /// Whether there is something to do. Where the last round got as many jobs as it wanted there is more, as a rule.
    async fn ready(&mut self) -> Result<Ready, StoreError> {
        if (1..=ROUNDS_UNSEEN).contains(&self.full) && self.vendor.config.open.is_none() {
            return Ok(Ready { next_due: Some(self.cx.clock.now()), ..Ready::default() });
        }
        self.full = 0;
        self.cx.store.ready(self.vendor.name()).await
    }

    /// How many permits there are to be had, and how many rounds ago the limiter was looked at; or when to come back.
    async fn room(&mut self, most: usize, now: Nanos) -> Result<Result<(usize, u32), Tick>, StoreError> {
        if let Some(again) = self.again.take().filter(|again| again.unseen < ROUNDS_UNSEEN) {
            return Ok(Ok((most.min(again.permits), again.unseen + 1)));
        }
        let outlook = self.cx.limiter.outlook(&self.vendor.config.pool, self.until(), most).await?;
        if outlook.room == 0 {
            self.metrics.limit_waits.inc();
            return Ok(Err(self.wait_for(outlook.next_at, now)));
        }
        Ok(Ok((outlook.room, 0)))
    }

    /// How many of so many calls the breaker lets go: all, or the one that is the probe.
    async fn may_call(&self, room: usize, in_hand: InHand) -> Result<(usize, Option<Leave>), StoreError> {
        let (failing, credentials) = (self.vendor.name(), &self.vendor.login.breaker);
        let is_closed = |name: &str| self.cx.breakers.standing(name) == Standing::Closed;
        if is_closed(failing) && is_closed(credentials) {
            return Ok((room, None));
        }
        let leave = if in_hand.has_probe { None } else { breaker::take_leave(&self.cx, &self.vendor).await? };
        Ok((usize::from(leave.is_some()), leave))
    }

    async fn claim_and_reserve(&self, room: usize, open: u64, submitting: usize) -> Result<Round, StoreError> {
        let calls = self.vendor.config.open.map_or(room, |most_open| {
            usize::try_from(most_open.saturating_sub(open)).unwrap_or(usize::MAX).saturating_sub(submitting)
        });
        let wall = self.cx.clock.now();
        let (leases, expired) = self.claim(room, calls, wall).await?;
        if leases.is_empty() {
            // Behind those that have expired others may be due.
            return Ok(Round::nothing(if expired > 0 { Tick::Ran } else { self.nothing_to_claim(wall).await? }));
        }
        let is_full = leases.len() == room;
        let leases = match self.mark(leases).await? {
            Ok(leases) => leases,
            Err(tick) => return Ok(Round::nothing(tick)),
        };
        Ok(Round { is_full, ..self.reserve(leases).await? })
    }

    /// Puts the submitting calls of a vendor that is called at most once on record; or says when to come back if none of these can go. The
    /// limiter is asked first: a tenant may have many jobs, and those that have to wait for its limit would be on record in vain, and end as
    /// unknown if the process died.
    async fn mark(&self, mut leases: Vec<Lease>) -> Result<Result<Vec<Lease>, Tick>, StoreError> {
        if !self.vendor.config.at_most_once {
            return Ok(Ok(leases));
        }
        if self.cx.limits.any_is_per_tenant(&self.vendor.config.pool) {
            let round = self.reserve(leases).await?;
            let (can_go, permits): (Vec<_>, Vec<_>) = round.reserved.into_iter().unzip();
            if can_go.is_empty() {
                return Ok(Err(round.tick));
            }
            // They would be late when the marks are stored.
            self.cx.limiter.give_back(permits).await;
            leases = can_go;
        }
        let (calls, mut leases): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.stage == Stage::Call);
        if !calls.is_empty() {
            match self.cx.metrics.timed(self.cx.store.mark(calls)).await {
                Ok(marked) => leases.extend(marked),
                Err(error) => {
                    self.cx.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
                    return Err(error);
                }
            }
        }
        Ok(if leases.is_empty() { Err(Tick::Ran) } else { Ok(leases) })
    }

    /// Hands over what was reserved, and says when to come back.
    pub(super) fn end(&mut self, round: Round, firing: &mut Firing) -> Tick {
        let granted = round.reserved.len();
        if granted == 0 {
            return round.tick;
        }
        self.metrics.permits_granted.inc_by(granted as u64);
        firing.hold(round.reserved, round.probe);
        let (held, stage) = firing.held();
        self.warmer.warm(&self.vendor, stage, held);
        if round.is_full || granted >= A_ROUND {
            // No more can be had, or is worth a question, before half of it is used.
            self.ask_at = firing.half_fired_at().unwrap_or(Nanos::MIN);
        }
        let permits = (held / 2).saturating_sub(1); // used by then; one fewer, so that none is asked for in vain
        if round.all_granted && permits >= A_ROUND {
            self.again = Some(Again { permits, unseen: round.unseen });
        }
        round.tick
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

    /// Until when permits are worth asking for, as of now: where a store or a limiter that has much to do took longer than the horizon to
    /// answer, what was reckoned before lies in the past, and no permit with it.
    fn until(&self) -> Nanos {
        self.cx.clock.nanos() + nanos(self.cx.limiter.horizon())
    }

    /// Coming back when half of the horizon is used makes few round trips, and a late one costs nothing.
    fn half_horizon(&self) -> Nanos {
        nanos(self.cx.limiter.horizon()) / 2
    }

    /// Claims jobs, and ends those that have expired; says how many those were.
    async fn claim(&self, most: usize, calls: usize, now: Time) -> Result<(Vec<Lease>, usize), StoreError> {
        let lease = self.vendor.config.lease();
        let claim = Claim { vendor: self.vendor.name().clone(), most, calls, now, lease };
        let leases = self.cx.store.claim(&claim).await?;
        let (expired, good): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.job.alarm_at().is_some_and(|at| at <= now));
        let count = expired.len();
        // Side by side: the store writes them together.
        let ended = join_all(expired.iter().map(|lease| self.expire(lease, now))).await;
        let (ended, failed): (Vec<_>, Vec<_>) = expired.into_iter().zip(ended).partition(|(_, ended)| ended.is_ok());
        if let Some((lease, Err(error))) = failed.first() {
            // They stay leased, and stop nobody until that lapses.
            tracing::warn!(jobs = failed.len(), job = %lease.job.id, %error, "jobs that have expired could not be ended");
        }
        if !ended.is_empty() {
            // Their jobs have changed, and nobody will settle them.
            self.cx.store.release(ended.into_iter().map(|(lease, _)| (lease, None)).collect()).await;
        }
        Ok((good, count))
    }

    /// A job past its deadline, or past the vendor's time to answer, spends no permit.
    async fn expire(&self, lease: &Lease, now: Time) -> Result<(), StoreError> {
        let (id, policy, jitter) = (lease.job.id, self.vendor.policy(), fastrand::f64());
        let decide = Box::new(move |job: &crate::job::Job| lifecycle::alarmed(job, &policy, jitter, now));
        if let Amended::Changed(job) = self.cx.store.amend(Which::Id(id), now, decide).await? {
            self.metrics.count_ended(job.status);
        }
        Ok(())
    }

    /// Reserves a permit for each lease; those without are given back.
    async fn reserve(&self, leases: Vec<Lease>) -> Result<Round, StoreError> {
        let tenants: Vec<Arc<str>> = leases.iter().map(|lease| lease.job.lane.tenant.clone()).collect();
        let pool = &self.vendor.config.pool;
        let answers = match self.cx.limiter.reserve(pool, &tenants, self.until()).await {
            Ok(answers) => answers,
            Err(error) => {
                self.cx.store.release(leases.into_iter().map(|lease| (lease, None)).collect()).await;
                return Err(error);
            }
        };
        let (mut rested, mut again_at) = (false, Nanos::MAX);
        let (mut reserved, mut back) = (Vec::with_capacity(leases.len()), Vec::new());
        for (lease, answer) in leases.into_iter().zip(answers) {
            match answer {
                Answer::Granted(permit) => reserved.push((lease, permit)),
                Answer::NotBefore { until, by } => {
                    again_at = again_at.min(until);
                    let rests = matches!(&by, Blocker::Limit(id) if self.cx.limits.is_per_tenant(pool, id));
                    rested |= rests;
                    back.push((lease, rests.then(|| self.cx.clock.time_at(until).plus(Duration::from_millis(1)))));
                }
            }
        }
        let all_granted = back.is_empty();
        self.cx.store.release(back).await;
        // The lanes of a tenant that is over its own limit rest now; those behind them may be ready.
        let tick = if rested || !reserved.is_empty() {
            Tick::Ran
        } else {
            Tick::WaitUntil((again_at - self.half_horizon()).max(self.cx.clock.nanos() + 1))
        };
        Ok(Round { reserved, all_granted, ..Round::nothing(tick) })
    }
}
