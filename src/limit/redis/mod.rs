//! The limiter of many processes: scripts keep the arithmetic of [`rule`](super::rule) in Redis, for all of them.
//!
//! Never trusts Redis after it may have forgotten something, never gives a permit without it, and never compares the wall clocks of two
//! machines: the time is that of Redis, carried on by our own monotonic clock.
//!
//! **After a loss** (restart, failover, FLUSHALL, a step of its clock) the scripts begin a new epoch: limits that forget within ten
//! seconds count as used up at the last moment that an earlier permit may name; longer ones are restored from the
//! [`Book`], in which their calls were charged before the permits were given. Until then there are no permits.
//!
//! **What is charged ahead** in the book is shared by all processes and stays in Redis: a clean stop gives nothing of it back.
//! Relies on a book that keeps the greatest number written for a sub-window, as several processes may pay for the same one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::task::JoinSet;

use self::{
    pool::RedisPool,
    run::{Query, Runner, Scripts, unreadable},
    shares::Shares,
    spec::MICRO,
};
use super::{Answer, Blocker, Gate, Limit, Limiter, Missed, Outlook, Permit, PoolLimits, Usage, change};
use crate::{
    book::Book,
    clock::{Clock, Nanos, nanos},
    redis_link::{PubSubEvent, Redis},
    store_error::StoreError,
};

mod args;
mod breaker;
mod errors;
mod gate;
mod history;
mod offset;
mod pool;
mod run;
mod shares;
mod spec;

pub use breaker::RedisBreakers;

/// Enough for several processes to come back only when half of it is used. No permit lies further ahead.
const HORIZON: Duration = Duration::from_millis(500);
const HORIZON_MICROS: i64 = 500_000;

/// A missed message is made up for by the next reply: a listener need not check its connection often.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// So often permits may be of no use, because the reply took longer than their guard allows, before that is an error.
const MOST_SLOW: usize = 3;

/// Limits of many processes, kept in Redis.
pub struct RedisLimiter {
    runner: Arc<Runner>,
    shares: Arc<Shares>,
    tasks: Mutex<JoinSet<()>>,
}

impl RedisLimiter {
    /// Needs a runtime but no Redis until the first permit. `timeouts`: how long a call of each vendor may take.
    pub fn open(
        redis: Redis,
        prefix: &str,
        pools: Vec<PoolLimits>,
        timeouts: HashMap<Arc<str>, Duration>,
        clock: Clock,
        book: Arc<dyn Book>,
    ) -> RedisLimiter {
        let shares = Arc::new(Shares::new(redis.clone(), prefix, timeouts, clock.clone()));
        let retention = pools.iter().map(change::memory_of).max().unwrap_or(0).into();
        let pools: HashMap<Arc<str>, RedisPool> = pools
            .into_iter()
            .map(|pool| (pool.pool.clone(), RedisPool::new(prefix, pool, nanos(HORIZON), &clock)))
            .collect();
        let (scripts, channel) = (Scripts::new(), format!("{prefix}:gates"));
        let runner = Arc::new(Runner { redis, scripts, channel, pools, clock, book, retention });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(runner.clone()));
        let kept = shares.clone();
        tasks.spawn(async move { kept.keep().await });
        RedisLimiter { runner, shares, tasks: Mutex::new(tasks) }
    }
}

/// Receives the gates that others close. The next reply makes up for a missed message.
async fn listen(runner: Arc<Runner>) {
    let receive = |event: PubSubEvent<'_>| {
        let PubSubEvent::Message { body, .. } = event else { return };
        let message = std::str::from_utf8(body).ok().and_then(|body| body.rsplit_once(' '));
        if let Some((pool, gate)) = message
            && let (Some(pool), Ok(gate)) = (runner.pools.get(pool), gate.parse())
        {
            pool.note_gate(gate);
        }
    };
    runner.redis.listen(std::slice::from_ref(&runner.channel), &runner.clock, ASK_EVERY, receive).await;
}

#[async_trait]
impl Limiter for RedisLimiter {
    fn horizon(&self) -> Duration {
        HORIZON
    }

    async fn share_in_flight(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError> {
        self.shares.get(vendor, most, busy).await
    }

    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError> {
        let Some(pool) = self.runner.pools.get(pool) else {
            return Ok(Outlook { next_at: self.runner.clock.nanos(), by: None, room: most });
        };
        let (limits, query) = (pool.limits(self.runner.clock.nanos()), Query { until, most, ..Query::default() });
        let reply = self.runner.run(pool, &limits, &self.runner.scripts.look, &query).await?;
        let [at, by, room] = *reply.numbers else { return Err(unreadable()) };
        let room = usize::try_from(room).unwrap_or(0);
        Ok(Outlook { next_at: reply.offset.never_early(at), by: limits.blocker(by), room })
    }

    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError> {
        let Some(pool) = self.runner.pools.get(pool) else { return Ok((self.runner.clock.nanos(), None)) };
        let (limits, tenants) = (pool.limits(self.runner.clock.nanos()), std::slice::from_ref(tenant));
        let query = Query { most: 1, tenants, ..Query::default() };
        let reply = self.runner.run(pool, &limits, &self.runner.scripts.look, &query).await?;
        let [at, by, _] = *reply.numbers else { return Err(unreadable()) };
        Ok((reply.offset.never_early(at), limits.blocker(by)))
    }

    async fn prepare(&self, pool: &str) {
        if let Some(pool) = self.runner.pools.get(pool) {
            self.runner.pay_ahead(pool).await;
        }
    }

    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        let Some(pool) = self.runner.pools.get(pool) else {
            return Ok(Permit::without_limits(pool, tenants, self.runner.clock.nanos()));
        };
        for _ in 0..MOST_SLOW {
            let answers = self.runner.reserve(pool, tenants, until).await?;
            let can_be_used =
                |answer: &Answer| !matches!(answer, Answer::Granted(permit) if permit.at > permit.late_after);
            if answers.iter().all(can_be_used) {
                return Ok(answers);
            }
            self.give_back(answers.into_iter().filter_map(Answer::permit).collect()).await;
        }
        Err(pool.too_slow())
    }

    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed> {
        let Some(pool) = self.runner.pools.get(&permit.pool) else { return permit.check(Nanos::MIN, now) };
        permit.check(pool.gate(), now)
    }

    /// The next request that is answered reports it: half a horizon from now at the latest, while calls are made.
    fn call_left(&self, permit: &Permit, now: Nanos) {
        if let (Some(late), Some(pool)) = (permit.puts_off(now), self.runner.pools.get(&permit.pool)) {
            pool.note_late(permit.at, late);
        }
    }

    /// Our own time for a pool without a timeline: no call was made on a permit of it.
    fn stamp(&self, pool: &str, now: Nanos) -> i64 {
        let known = self.runner.pools.get(pool).and_then(|pool| pool.time_at(now));
        known.unwrap_or(now.div_euclid(MICRO))
    }

    async fn give_back(&self, permits: Vec<Permit>) {
        let mut by_pool: HashMap<Arc<str>, Vec<Permit>> = HashMap::new();
        for permit in permits {
            by_pool.entry(permit.pool.clone()).or_default().push(permit);
        }
        for (pool, permits) in by_pool {
            let Some(pool) = self.runner.pools.get(&pool) else { continue };
            // A missed permit is worth little by now: it is reported with the next request.
            let can_wait = permits.iter().all(|permit| permit.at <= self.runner.clock.nanos());
            let is_many = pool.note_unused(&permits);
            if (!can_wait || is_many)
                && let Err(error) = self.runner.report(pool).await
            {
                tracing::debug!(pool = %pool.name, %error, "unused permits stay charged");
            }
        }
    }

    async fn close_gate(&self, pool: &str, until: Nanos) {
        let Some(pool) = self.runner.pools.get(pool) else { return };
        self.runner.note_closed(pool).await;
        pool.close_gate(until);
        if let Err(error) = self.runner.report(pool).await {
            tracing::warn!(pool = %pool.name, %error, "the gate is closed in this process; the others learn of it with its next request to Redis");
        }
    }

    async fn gate(&self, pool: &str) -> Result<Option<Gate>, StoreError> {
        match self.runner.pools.get(pool) {
            Some(pool) => self.runner.gate(pool).await,
            None => Ok(None),
        }
    }

    fn is_gated(&self, pool: &str) -> bool {
        self.runner.pools.get(pool).is_some_and(|pool| pool.gate() > self.runner.clock.nanos())
    }

    async fn open_gate(&self, pool: &str) -> Result<(), StoreError> {
        match self.runner.pools.get(pool) {
            Some(pool) => self.runner.open_gate(pool).await,
            None => Ok(()),
        }
    }

    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError> {
        if let Some(pool) = self.runner.pools.get(pool) {
            self.runner.retention.fetch_max(change::memory(&limits), Ordering::Relaxed);
            if pool.has_unused() {
                // Under the limits that they were given by. If this fails, they stay charged.
                let _ = self.runner.report(pool).await;
            }
            pool.set_limits(limits, self.runner.clock.nanos());
        }
        Ok(())
    }

    async fn usage(&self, pool: &str) -> Vec<Usage> {
        let Some(pool) = self.runner.pools.get(pool) else { return Vec::new() };
        let limits = pool.limits(self.runner.clock.nanos());
        let Ok(reply) = self.runner.run(pool, &limits, &self.runner.scripts.usage, &Query::default()).await else {
            return Vec::new();
        };
        let usage = |(limit, numbers): (&Limit, &[i64])| Usage {
            limit: limit.clone(),
            used: numbers[0].unsigned_abs(),
            next_at: reply.offset.never_early(numbers[1]),
        };
        let in_force = |usage: &Usage| limits.enforced.own.contains(&usage.limit);
        limits.limits.iter().zip(reply.numbers.chunks_exact(2)).map(usage).filter(in_force).collect()
    }

    async fn stop(&self) -> Result<(), StoreError> {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.shares.give_back().await
    }
}
