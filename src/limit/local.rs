//! The limiter of one process: keeps the arithmetic of [`rule`] for every pool, and what must outlive the process in the [`Book`].
//!
//! Never makes a call and never waits for a time: it says when. Its lock is never kept across an await.
//!
//! **After a restart.** The previous process may have called until the moment it died. Limits that forget within ten seconds start as if
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

pub use super::tenants::MAX_TENANTS;
use super::{
    Answer, Blocker, Gate, Limit, Limiter, Missed, Outlook, Per, Permit, PoolLimits, Usage,
    calendar::SKEW,
    change,
    outgoing::Enforced,
    past::formers_on_timeline,
    rule::{self, Count},
    state::{State, is_short},
};
use crate::{
    book::{Book, Charge, Spend},
    clock::{Clock, Nanos, Time, nanos},
    store_error::StoreError,
};

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MS;

/// Enough for a late wake-up not to cost capacity, little enough to occupy few places.
const HORIZON: Duration = Duration::from_millis(10);

/// The count under which the book keeps until when a vendor asked a pool to be silent.
const GATE: &str = "gate";
/// A vendor that asks for more is taken to be mistaken.
const LONGEST_SILENCE: Nanos = 3_600 * SECOND;

/// So often the time may reach another sub-window while the book is written, before that is an error.
const MOST_PAYMENTS: usize = 16;

/// Limits of one process.
pub struct Local {
    pools: HashMap<Arc<str>, LocalPool>,
    clock: Clock,
    book: Arc<dyn Book>,
    /// Intervals are whole multiples of it.
    tick: Nanos,
    /// How long ago a spend may have ended and still matter to somebody.
    retention: AtomicI64,
}

/// One pool: its state behind a lock, and beside it what the last look before a call reads.
pub(super) struct LocalPool {
    pub(super) name: Arc<str>,
    /// Closed until then. Beside the lock, so that the last look before a call is one load.
    gate: AtomicI64,
    /// How long the gate is closed because we started cold.
    cold: Nanos,
    /// Since when a vendor keeps it closed, in milliseconds; `i64::MIN` if that is not known.
    closed_at: AtomicI64,
    state: Mutex<State>,
    /// Locked while the `Book` is written: its numbers are absolute and must arrive in order.
    writing: tokio::sync::Mutex<()>,
}

impl Local {
    /// Reads what the previous process has spent, and starts cold where it left no trace.
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
        let retention = pools.iter().map(|pool| kept_for(change::memory_of(pool))).max().unwrap_or(0);
        let spends = spends(&*book, None, &clock, retention).await?;
        let mut states: HashMap<Arc<str>, State> = HashMap::new();
        for PoolLimits { pool, limits, formers } in pools {
            let of_pool: Vec<Spend> = spends.iter().filter(|spend| spend.pool == *pool).cloned().collect();
            let formers = formers_on_timeline(formers, &limits, &clock, opened);
            let enforced = Enforced::new(limits, &formers, opened);
            states.insert(pool, State::open(enforced, formers, &of_pool, opened, &|at| clock.nanos_at(at), tick));
        }
        // A gate that a vendor has closed stays closed, for an hour at most.
        let gate_of = |pool: &str| {
            let gates = spends.iter().filter(|spend| spend.pool == pool && spend.count == GATE);
            gates.map(|gate| clock.nanos_at(gate.ends_at).min(opened + LONGEST_SILENCE)).max().unwrap_or(Nanos::MIN)
        };
        let pool = |(name, state): (Arc<str>, State)| {
            let gate = gate_of(&name);
            (name.clone(), LocalPool::new(name, state, gate, opened))
        };
        let pools = states.into_iter().map(pool).collect();
        Ok(Local { pools, clock, book, tick, retention: AtomicI64::new(retention) })
    }

    /// Puts limits in force, or with `None` lets go of the replaced ones that do not bind any more.
    async fn put_in_force(&self, pool: &LocalPool, limits: Option<Vec<Limit>>) -> Result<(), StoreError> {
        // Payments under way go by the numbers of the ledgers.
        let _in_order = pool.writing.lock().await;
        self.retention.fetch_max(kept_for(limits.as_deref().map_or(0, change::memory)), Ordering::Relaxed);
        let kept = self.retention.load(Ordering::Relaxed);
        let spends = spends(&*self.book, Some(&pool.name), &self.clock, kept).await?;
        pool.lock().change(limits, &spends, &self.clock, self.tick);
        Ok(())
    }

    /// Replaced limits end with the last window that began under them. Where that cannot be, they bind a little longer.
    async fn end_outgoing(&self, pool: &LocalPool) {
        if pool.lock().enforced.is_over(self.clock.nanos())
            && let Err(error) = self.put_in_force(pool, None).await
        {
            tracing::debug!(pool = %pool.name, %error, "limits that were replaced bind until the book can be read");
        }
    }

    /// Makes durable what these wishes need. Meanwhile the pool's state is not locked, but its writes are.
    async fn top_up(&self, pool: &LocalPool, wishes: &[Arc<str>], until: Nanos) -> Result<(), StoreError> {
        let look = || {
            let mut state = pool.lock();
            state.note_clock(pool, &self.clock);
            state.due(pool, wishes, until, &self.clock)
        };
        let mut in_order = pool.writing.try_lock().ok();
        let mut due = look();
        if in_order.is_none() && !due.is_empty() {
            // Another task is writing, perhaps what these wishes need.
            in_order = Some(pool.writing.lock().await);
            due = look();
        }
        if !due.is_empty() {
            self.book.charge(due.charges.clone()).await?;
            pool.lock().paid(due);
        }
        drop(in_order);
        Ok(())
    }
}

#[async_trait]
impl Limiter for Local {
    fn horizon(&self) -> Duration {
        HORIZON
    }

    async fn share_in_flight(&self, _vendor: &str, most: usize, _busy: usize) -> Result<usize, StoreError> {
        Ok(most)
    }

    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError> {
        let now = self.clock.nanos();
        let Some(pool) = self.pools.get(pool) else {
            return Ok(Outlook { next_at: now, by: None, room: most });
        };
        self.end_outgoing(pool).await;
        if pool.has_unwritten(&self.clock)
            && let Err(error) = self.top_up(pool, &[], until).await
        {
            tracing::debug!(pool = %pool.name, %error, "the clock was set, and that is not in the book yet: no calls until it is");
        }
        let state = pool.lock();
        let (next_at, by) = state.next(now, pool.gate());
        let room = rule::room(&state.counts, state.gap, next_at, until, most);
        Ok(Outlook { next_at, by, room })
    }

    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError> {
        let now = self.clock.nanos();
        let Some(pool) = self.pools.get(pool) else { return Ok((now, None)) };
        self.end_outgoing(pool).await;
        let mut state = pool.lock();
        let (at, by) = state.next(now, pool.gate());
        Ok(state.tenant_wait(tenant, at, now).map_or((at, by), |(until, by)| (until, Some(by))))
    }

    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        let Some(pool) = self.pools.get(pool) else {
            return Ok(Permit::without_limits(pool, tenants, self.clock.nanos()));
        };
        self.end_outgoing(pool).await;
        let mut answers = Vec::with_capacity(tenants.len());
        for _ in 0..MOST_PAYMENTS {
            // Paid before the permits are dated: a disk takes as long as a permit may be late.
            if let Err(error) = self.top_up(pool, &tenants[answers.len()..], until).await {
                self.give_back(answers.into_iter().filter_map(Answer::permit).collect()).await;
                return Err(error);
            }
            let now = self.clock.nanos();
            if pool.lock().grant(pool, tenants, &mut answers, now, until).is_none() {
                return Ok(answers);
            }
        }
        self.give_back(answers.into_iter().filter_map(Answer::permit).collect()).await;
        Err(StoreError::Unavailable("the disk is too slow to charge these limits ahead of their calls".into()))
    }

    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed> {
        let Some(pool) = self.pools.get(&permit.pool) else { return permit.check(Nanos::MIN, now) };
        permit.check(pool.gate(), now)
    }

    fn call_left(&self, permit: &Permit, now: Nanos) {
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
        let Some(pool) = self.pools.get(pool) else { return };
        let before = pool.gate.fetch_max(until, Ordering::AcqRel);
        let now = self.clock.nanos();
        if before <= now.max(pool.cold) {
            pool.closed_at.store(self.clock.now().0, Ordering::Release);
        }
        if until <= now.saturating_add(SECOND) || until <= before.saturating_add(SECOND) {
            return; // not worth a write
        }
        let (name, count, ends_at) = (pool.name.to_string(), GATE.to_owned(), self.clock.time_at(until));
        let spend = Spend { pool: name, count, tenant: String::new(), ends_at, calls: 1 };
        if let Err(error) = self.book.charge(vec![Charge { spend, forget: self.clock.now() }]).await {
            tracing::warn!(pool = %pool.name, %error, "the vendor asked us to be silent: this process is, but after a restart it would not be");
        }
    }

    fn is_gated(&self, pool: &str) -> bool {
        self.pools.get(pool).is_some_and(|pool| pool.gate() > self.clock.nanos().max(pool.cold))
    }

    async fn gate(&self, name: &str) -> Result<Option<Gate>, StoreError> {
        let Some(pool) = self.pools.get(name) else { return Ok(None) };
        let (until, since) = (pool.gate(), pool.closed_at.load(Ordering::Acquire));
        Ok(self.is_gated(name).then_some(Gate { since: (since != i64::MIN).then_some(Time(since)), until }))
    }

    async fn open_gate(&self, pool: &str) -> Result<(), StoreError> {
        let Some(pool) = self.pools.get(pool) else { return Ok(()) };
        let (name, count, ends_at) = (pool.name.to_string(), GATE.to_owned(), self.clock.now());
        let spend = Spend { pool: name, count, tenant: String::new(), ends_at, calls: 0 };
        // What the book has of it is all forgotten.
        self.book.charge(vec![Charge { spend, forget: Time(i64::MAX) }]).await?;
        pool.gate.store(pool.cold, Ordering::Release);
        Ok(())
    }

    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError> {
        let Some(pool) = self.pools.get(pool) else { return Ok(()) };
        self.put_in_force(pool, Some(limits)).await
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
        shared.chain(tenants).filter(|usage| state.enforced.own.contains(&usage.limit)).collect()
    }

    async fn stop(&self) -> Result<(), StoreError> {
        for pool in self.pools.values() {
            let _in_order = pool.writing.lock().await;
            let spends = pool.lock().unused(pool, &self.clock);
            if !spends.is_empty() {
                self.book.charge(spends).await?;
            }
        }
        Ok(())
    }
}

impl LocalPool {
    fn new(name: Arc<str>, state: State, gate: Nanos, opened: Nanos) -> LocalPool {
        // The gate says that we start cold; the counts alone would say the same under the name of a limit.
        let short = state.counts.iter().filter(|count| is_short(count));
        let cold = short.map(|count| count.earliest(opened)).fold(Nanos::MIN, Nanos::max);
        let (gate, closed_at) = (AtomicI64::new(gate.max(cold)), AtomicI64::new(i64::MIN));
        LocalPool { name, gate, cold, closed_at, state: Mutex::new(state), writing: tokio::sync::Mutex::default() }
    }

    pub(super) fn gate(&self) -> Nanos {
        self.gate.load(Ordering::Acquire)
    }

    /// Whether a step of the wall clock still has to be written to the book.
    fn has_unwritten(&self, clock: &Clock) -> bool {
        let mut state = self.lock();
        state.note_clock(self, clock);
        !state.unwritten.is_empty()
    }

    /// A panic under the lock leaves at worst a call charged that was not given.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long ago a spend may have ended and still be read, if it matters for so long.
fn kept_for(memory: Nanos) -> Nanos {
    memory.saturating_add(60 * SECOND)
}

/// What the book has of a pool, or of all, in the order of the ends.
async fn spends(book: &dyn Book, pool: Option<&str>, clock: &Clock, kept: Nanos) -> Result<Vec<Spend>, StoreError> {
    let mut spends = book.spends(pool, clock.time_at(clock.nanos().saturating_sub(kept))).await?;
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

/// How late a call may be without putting off later ones: half of the guard. With a quarter, a fast pool on a busy machine would put off
/// something in every round.
pub(super) fn tolerance(limit: &Limit) -> Nanos {
    (nanos(limit.guard) / 2).max(MS)
}
