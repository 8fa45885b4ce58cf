//! What has to happen to jobs without a call: deadlines, vendors that do not answer, lapsed leases, deletion of old jobs.
//!
//! Never calls a vendor.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use tokio_util::sync::CancellationToken;

use super::{
    alarms,
    context::Context,
    login,
    tick::{Tick, pause},
};
use crate::{
    audit::watch::Watch,
    clock::{Nanos, Time, nanos},
    job::JobId,
    store::{Backlog, StoreError},
    telemetry::VendorMetrics,
};

/// Alarms handled in one turn, side by side, so that the store writes them together.
const MOST_ALARMS: usize = 256;
/// Jobs whose alarms could not be handled are skipped for some seconds; with so many of them, all alarms are.
const MOST_SKIPPED: usize = 1024;
/// Lapsed leases are looked for this often.
const RECLAIM_EVERY: Duration = Duration::from_secs(5);
/// How often a worker says that it is there.
const ROLL_CALL_EVERY: Duration = Duration::from_secs(1);
/// Vendors whose backlogs are read at once.
const SIDE_BY_SIDE: usize = 4;
/// Calls are judged this often.
const JUDGE_EVERY: Duration = Duration::from_secs(5);
/// Secrets in files are looked at this often.
const SECRETS_EVERY: Duration = Duration::from_secs(2);
/// Old jobs are looked for this often; while there are more, a slice each [`PRUNE_PAUSE`].
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNE_PAUSE: Duration = Duration::from_millis(50);

pub struct Janitor {
    cx: Arc<Context>,
    roll_call_at: Nanos,
    reclaim_at: Nanos,
    prune_at: Nanos,
    watch: Watch,
    judge_at: Nanos,
    secrets_at: Nanos,
    /// Jobs whose alarms could not be handled, and when they are tried again.
    skipped: HashSet<JobId>,
    skip_until: Nanos,
    /// Whether the last turn failed: only the first of a row is logged.
    is_failing: bool,
}

impl Janitor {
    pub(super) fn new(cx: Arc<Context>) -> Janitor {
        let now = cx.clock.nanos();
        let watch = Watch::new(cx.audit.clone(), cx.limiter.clone(), cx.limits.clone(), cx.metrics.clone());
        let is_in_files = cx.vendors.iter().any(|vendor| vendor.is_in_files());
        let secrets_at = if is_in_files { now } else { Nanos::MAX };
        let skipped = HashSet::new();
        Janitor {
            cx,
            roll_call_at: now,
            reclaim_at: now,
            prune_at: now,
            watch,
            judge_at: now,
            secrets_at,
            skipped,
            skip_until: now,
            is_failing: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let turned = self.tick().await;
            let was_failing = std::mem::replace(&mut self.is_failing, turned.is_err());
            let tick = turned.unwrap_or_else(|error| {
                if !was_failing {
                    tracing::warn!(%error, "the janitor could not do all of its work; trying again each second");
                }
                self.cx.metrics.store_errors.inc();
                Tick::WaitUntil(self.cx.clock.nanos() + nanos(Duration::from_secs(1)))
            });
            let alarm = self.cx.store.signals().alarm();
            pause(&self.cx.clock, tick, alarm, &stop).await;
        }
    }

    /// One turn. Whatever fails, the other parts are done.
    pub async fn tick(&mut self) -> Result<Tick, StoreError> {
        let (wall, now) = (self.cx.clock.now(), self.cx.clock.nanos());
        self.cx.failures.log_due(now);
        self.cx.throttles.log_due(now);
        self.cx.stalls.log_due(now);
        // Alarms come last, because there may be many.
        if self.secrets_at <= now {
            self.secrets_at = self.cx.clock.next_beat(SECRETS_EVERY);
            login::reread_secrets(&self.cx).await;
        }
        let called = self.roll_call(now).await;
        let reclaimed = self.reclaim(wall, now).await;
        let pruned = self.prune(wall, now).await;
        let judged = self.judge(now).await;
        let alarms = self.handle_alarms(wall, now).await;
        called.and(reclaimed).and(pruned).and(judged)?;
        match alarms? {
            Tick::WaitUntil(at) => {
                let others = [self.roll_call_at, self.reclaim_at, self.prune_at, self.judge_at, self.secrets_at];
                Ok(Tick::WaitUntil(others.into_iter().fold(at, Nanos::min)))
            }
            tick => Ok(tick),
        }
    }

    async fn roll_call(&mut self, now: Nanos) -> Result<(), StoreError> {
        if self.roll_call_at > now {
            return Ok(());
        }
        self.roll_call_at = self.cx.clock.next_beat(ROLL_CALL_EVERY);
        if !self.cx.store.roll_call().await? {
            self.roll_call_at = Nanos::MAX;
        }
        Ok(())
    }

    async fn reclaim(&mut self, wall: Time, now: Nanos) -> Result<(), StoreError> {
        if self.reclaim_at > now {
            return Ok(());
        }
        self.reclaim_at = self.cx.clock.next_beat(RECLAIM_EVERY);
        let reclaimed = self.cx.store.reclaim().await;
        self.update_gauges(wall).await;
        reclaimed.map(drop)
    }

    async fn prune(&mut self, wall: Time, now: Nanos) -> Result<(), StoreError> {
        if self.prune_at > now {
            return Ok(());
        }
        self.prune_at = self.cx.clock.next_beat(PRUNE_EVERY);
        // By the earlier of two clocks: a wall clock that is far ahead for a moment must not delete jobs too early.
        let earlier = wall.min(self.cx.clock.unset());
        let before = Time(earlier.0.saturating_sub(i64::try_from(self.cx.retention.as_millis()).unwrap_or(i64::MAX)));
        if self.cx.store.prune(before).await? {
            self.prune_at = now + nanos(PRUNE_PAUSE);
        }
        Ok(())
    }

    async fn judge(&mut self, now: Nanos) -> Result<(), StoreError> {
        if self.judge_at > now {
            return Ok(());
        }
        self.judge_at = self.cx.clock.next_beat(JUDGE_EVERY);
        self.watch.turn(now).await
    }

    /// Handles some of the alarms that are due. A job whose alarm fails (it cannot be read, say) does not stop the others.
    async fn handle_alarms(&mut self, wall: Time, now: Nanos) -> Result<Tick, StoreError> {
        if self.skip_until <= now {
            self.skipped.clear();
            self.skip_until = self.cx.clock.next_beat(RECLAIM_EVERY);
        }
        if self.skipped.len() >= MOST_SKIPPED {
            return Ok(Tick::WaitUntil(self.skip_until));
        }
        let overdue = self.cx.store.overdue(wall, MOST_ALARMS + self.skipped.len()).await?;
        let jobs: Vec<JobId> =
            overdue.jobs.into_iter().filter(|id| !self.skipped.contains(id)).take(MOST_ALARMS).collect();
        if jobs.is_empty() {
            let next = overdue.next_at.map_or(Nanos::MAX, |at| self.cx.clock.nanos_at(at));
            return Ok(Tick::WaitUntil(if self.skipped.is_empty() { next } else { next.min(self.skip_until) }));
        }
        let handled = join_all(jobs.iter().map(|id| alarms::handle(&self.cx, *id, wall))).await;
        let failed: Vec<_> =
            jobs.into_iter().zip(handled).filter_map(|(id, handled)| Some((id, handled.err()?))).collect();
        if let Some((id, error)) = failed.first() {
            tracing::warn!(jobs = failed.len(), request_id = %id, %error, "alarms could not be handled; they are tried again within five seconds");
            self.cx.metrics.store_errors.inc();
        }
        self.skipped.extend(failed.into_iter().map(|(id, _)| id));
        Ok(Tick::Again)
    }

    async fn update_gauges(&self, now: Time) {
        let update = async |(name, metrics): (&Arc<str>, &VendorMetrics)| {
            let is_ours = self.cx.store.looks_after(name);
            let backlog = if is_ours { self.cx.store.backlog(name).await } else { Backlog::default() };
            metrics.waiting.set(i64::try_from(backlog.waiting).unwrap_or(i64::MAX));
            metrics.open.set(i64::try_from(backlog.open).unwrap_or(i64::MAX));
            metrics.oldest_waiting_seconds.set(backlog.oldest_due.map_or(0.0, |due| now.since(due).as_secs_f64()));
        };
        // Some at once, so that those to the same server share round trips.
        stream::iter(self.cx.metrics.vendors()).for_each_concurrent(SIDE_BY_SIDE, update).await;
    }
}
