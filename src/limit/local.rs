//! The limiter of one process: keeps the arithmetic of [`rule`] for every pool, and what must outlive the process in the [`Book`].
//!
//! Never fires a call and never waits for a time: it says when. Its lock is never held across an await.
//!
//! **After a restart.** The process before may have called until the moment it died. Limits that forget within ten seconds start as if
//! used up at [`Local::open`]; longer ones are charged in the `Book` before a permit is given, in blocks, and every call in an unfinished
//! block counts as made. A crash, a lost reply or a dropped future wastes capacity and never breaks a limit.
//!
//! Relies on two things: the `Book` applies charges in the order they were begun, and the wall clock was not set forward while
//! the process was down (set back is safe).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

pub use super::state::MAX_TENANTS;
use super::{
    Answer, Blocker, Limit, Limiter, Missed, Outlook, Per, Permit, PoolLimits, Usage,
    calendar::SKEW,
    change,
    rule::{self, Count},
    state::{DURABLE_FROM, State},
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    store::{
        StoreError,
        book::{Book, Spend},
    },
};

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MS;

/// Enough for a late wake-up not to cost capacity, little enough to hold few places.
const HORIZON: Duration = Duration::from_millis(10);

/// Limits of one process.
pub struct Local {
    pools: HashMap<Arc<str>, Pool>,
    clock: Clock,
    book: Arc<dyn Book>,
    /// Intervals are whole multiples of it.
    tick: Nanos,
    /// How long ago a spend may have ended and still matter to somebody.
    retention: AtomicI64,
}

/// One pool: its books behind a lock, and beside it what the last look before a call reads.
pub(super) struct Pool {
    pub(super) name: Arc<str>,
    /// Closed until then. Beside the lock, so that the last look before a call is one load.
    gate: AtomicI64,
    state: Mutex<State>,
    /// Held while the `Book` is written: its numbers are absolute and must arrive in order.
    writing: tokio::sync::Mutex<()>,
}

impl Local {
    /// Reads what the process before has spent, and starts cold where it left no trace.
    pub async fn open(pools: Vec<PoolLimits>, clock: Clock, book: Arc<dyn Book>) -> Result<Local, StoreError> {
        Local::open_on_grid(pools, clock, book, 1).await
    }

    /// The same, with all intervals rounded up to whole ticks: gives the permits that a limiter with a coarser clock gives.
    pub async fn open_on_grid(
        pools: Vec<PoolLimits>,
        clock: Clock,
        book: Arc<dyn Book>,
        tick: Nanos,
    ) -> Result<Local, StoreError> {
        let opened = clock.nanos();
        let mut states: HashMap<Arc<str>, State> = HashMap::new();
        let mut retention = 0;
        for pool in pools {
            retention = retention.max(kept_for(&pool.limits));
            states.insert(pool.pool, State::cold(pool.limits, opened, tick));
        }
        for spend in spends(&*book, &clock, retention).await? {
            if let Some(state) = states.get_mut(spend.pool.as_str()) {
                state.restore(&spend, &clock, opened);
            }
        }
        let pools = states.into_iter().map(|(name, state)| (name.clone(), Pool::new(name, state, opened))).collect();
        Ok(Local { pools, clock, book, tick, retention: AtomicI64::new(retention) })
    }

    /// Makes what is missing durable. The lock of the pool's state is not held meanwhile, the one of its writes is.
    async fn top_up(&self, pool: &Pool, wishes: &[Arc<str>], at: Nanos, until: Nanos) -> Result<(), StoreError> {
        let _in_order = pool.writing.lock().await;
        let (spends, paid) = pool.lock().missing(pool, wishes, at, until, &self.clock);
        if spends.is_empty() {
            return Ok(()); // somebody else has done it
        }
        self.book.charge(spends, self.forget()).await?;
        pool.lock().pay(&paid);
        Ok(())
    }

    /// Spends that ended before this matter to nobody.
    fn forget(&self) -> Time {
        let oldest = self.clock.nanos().saturating_sub(self.retention.load(Ordering::Relaxed));
        // A wall clock that is set forward for a while must not make us forget.
        self.clock.time_at(oldest).min(Time(oldest.div_euclid(MS)))
    }
}

#[async_trait]
impl Limiter for Local {
    fn horizon(&self) -> Duration {
        HORIZON
    }

    async fn places(&self, _vendor: &str, most: usize, _busy: usize) -> Result<usize, StoreError> {
        Ok(most)
    }

    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError> {
        let now = self.clock.nanos();
        let Some(pool) = self.pools.get(pool) else {
            return Ok(Outlook { next_at: now, by: None, room: most });
        };
        let state = pool.lock();
        let (next_at, by) = state.next(now, pool.gate());
        let room = rule::room(&state.counts, state.gap, next_at, until, most);
        Ok(Outlook { next_at, by, room })
    }

    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError> {
        let now = self.clock.nanos();
        let Some(pool) = self.pools.get(pool) else { return Ok((now, None)) };
        let mut state = pool.lock();
        let (at, by) = state.next(now, pool.gate());
        Ok(state.tenant_wait(tenant, at, now).map_or((at, by), |(until, by)| (until, Some(by))))
    }

    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        let Some(pool) = self.pools.get(pool) else {
            return Ok(Permit::without_limits(pool, tenants, self.clock.nanos()));
        };
        let mut answers = Vec::with_capacity(tenants.len());
        loop {
            let now = self.clock.nanos();
            let missing_at = pool.lock().grant(pool, tenants, &mut answers, now, until);
            let Some(at) = missing_at else { return Ok(answers) };
            if let Err(error) = self.top_up(pool, &tenants[answers.len()..], at, until).await {
                self.give_back(answers.into_iter().filter_map(Answer::permit).collect()).await;
                return Err(error);
            }
        }
    }

    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed> {
        let Some(pool) = self.pools.get(&permit.pool) else { return permit.check(Nanos::MIN, now) };
        permit.check(pool.gate(), now)
    }

    fn left(&self, permit: &Permit, now: Nanos) {
        if let (Some(late), Some(pool)) = (permit.puts_off(now), self.pools.get(&permit.pool)) {
            pool.lock().put_off(permit.at, late);
        }
    }

    fn stamp(&self, _pool: &str, now: Nanos) -> i64 {
        now.div_euclid(1_000)
    }

    async fn give_back(&self, mut permits: Vec<Permit>) {
        permits.sort_by_key(|permit| std::cmp::Reverse(permit.at));
        for permit in permits {
            if let Some(pool) = self.pools.get(&permit.pool) {
                pool.lock().undo(&permit);
            }
        }
    }

    async fn close_gate(&self, pool: &str, until: Nanos) {
        if let Some(pool) = self.pools.get(pool) {
            pool.gate.fetch_max(until, Ordering::AcqRel);
        }
    }

    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError> {
        let Some(pool) = self.pools.get(pool) else { return Ok(()) };
        // Whoever is paid for has its ledgers by their number.
        let _in_order = pool.writing.lock().await;
        let kept = kept_for(&limits);
        self.retention.fetch_max(kept, Ordering::Relaxed);
        let mut spends = spends(&*self.book, &self.clock, kept).await?;
        spends.retain(|spend| spend.pool == *pool.name);
        pool.lock().change(limits, &spends, &self.clock, self.tick);
        Ok(())
    }

    async fn usage(&self, pool: &str) -> Vec<Usage> {
        let now = self.clock.nanos();
        let Some(pool) = self.pools.get(pool) else { return Vec::new() };
        let state = pool.lock();
        let usage = |limit: &Limit, count: &Count| Usage {
            limit: limit.clone(),
            used: count.used(now),
            next_at: count.earliest(now),
        };
        let shared = state.shared.iter().zip(&state.counts).map(|(limit, count)| usage(limit, count));
        let tenants = state.tenants.iter().map(|each| {
            let busiest = each.counts.values().max_by_key(|count| count.used(now));
            usage(&each.limit, busiest.unwrap_or(&each.fresh))
        });
        shared.chain(tenants).collect()
    }

    async fn stop(&self) -> Result<(), StoreError> {
        for pool in self.pools.values() {
            let _in_order = pool.writing.lock().await;
            let spends = pool.lock().unused(pool);
            if !spends.is_empty() {
                self.book.charge(spends, self.forget()).await?;
            }
        }
        Ok(())
    }
}

impl Pool {
    fn new(name: Arc<str>, state: State, opened: Nanos) -> Pool {
        // The gate says that we start cold; the counts alone would say the same under the name of a limit.
        let cold = |count: &&Count| count.memory().is_some_and(|memory| memory <= DURABLE_FROM);
        let gate = state.counts.iter().filter(cold).map(|count| count.earliest(opened)).max().unwrap_or(Nanos::MIN);
        Pool { name, gate: AtomicI64::new(gate), state: Mutex::new(state), writing: tokio::sync::Mutex::default() }
    }

    pub(super) fn gate(&self) -> Nanos {
        self.gate.load(Ordering::Acquire)
    }

    /// A panic under the lock leaves at worst a call charged that was not given.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long ago a spend may have ended and still matter to one of these limits.
fn kept_for(limits: &[Limit]) -> Nanos {
    change::memory(limits).saturating_add(60 * SECOND)
}

/// What the book has, in the order of the ends.
async fn spends(book: &dyn Book, clock: &Clock, kept: Nanos) -> Result<Vec<Spend>, StoreError> {
    let mut spends = book.spends(clock.time_at(clock.nanos().saturating_sub(kept))).await?;
    spends.sort_by_key(|spend| spend.ends_at);
    Ok(spends)
}

/// How late a call may be: the guard, less a quarter of it (at least 1 ms) for the jitter of the link. Lateness and jitter together
/// stay within the guard. For calendars the guard is the skew, and a tenth of it is ours.
pub(super) fn lateness(limit: &Limit) -> Nanos {
    if !matches!(limit.per, Per::Rolling(_)) {
        return SKEW / 10;
    }
    let guard = nanos(limit.guard);
    (guard - (guard / 4).max(MS)).max(0)
}

/// How late a call may be without putting off those after it: half of the guard. With a quarter, a fast pool on a busy machine would put off
/// something with every round.
pub(super) fn tolerance(limit: &Limit) -> Nanos {
    (nanos(limit.guard) / 2).max(MS)
}
