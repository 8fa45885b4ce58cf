//! What one process knows of a pool in Redis: its limits, the time there, its gate, and what has to be reported with the next script.
//!
//! Never decides when a call may go: the scripts do.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use super::{
    args::{Late, Paid, Reply, Step, Undo},
    offset::{LOSING_STEP, Offset},
    spec::{Edges, MICRO, Spec, edges, micros_up},
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    limit::{
        Blocker, Former, Key, Limit, Per, Permit, PoolLimits,
        ledger::Ledger,
        local::{lateness, tolerance},
        outgoing::Enforced,
        past::{formers_on_timeline, still_matter},
        state::{MAX_RECENT, MS, SECOND},
    },
    store_error::StoreError,
};

/// A Redis that is slower than this has trouble of its own.
const LONGEST_LEAD: Nanos = SECOND / 4;

pub(super) struct RedisPool {
    pub(super) name: Arc<str>,
    pub(super) key: String,
    limits: RwLock<Arc<LimitSet>>,
    /// Permits are for times so far ahead at most.
    longest: Nanos,
    /// Closed until then, on our timeline: what the last look before a call reads.
    gate: AtomicI64,
    /// The gate as this process closed it, while Redis may not know it yet.
    unsent_gate: AtomicI64,
    memory: Mutex<Memory>,
}

/// The limits of a pool, and what the scripts need to know of them. They may change between two scripts, never within one.
pub(super) struct LimitSet {
    /// Those of the whole pool first, the replaced ones that still bind included. The scripts go by their place here, counted from 1.
    pub(super) limits: Vec<Limit>,
    pub(super) enforced: Enforced,
    /// What was in force before and may still matter, the newest first.
    pub(super) formers: Vec<Former<Nanos>>,
    pub(super) ledgers: Vec<Ledger>,
    zones: Vec<Per>,
    pub(super) spec: String,
    /// How long after its time a permit may be used.
    lateness: Nanos,
    /// How long after its time it may be used without putting off others.
    tolerance: Nanos,
}

#[derive(Default)]
struct Memory {
    timeline: Option<Timeline>,
    /// Redis' clock was set, and the scripts do not know yet by how much.
    step: Option<Step>,
    /// The newest permits of this process.
    given: VecDeque<Given>,
    /// Permits that were not used, to be taken back: all of one epoch.
    unused: Vec<Undo>,
    unused_epoch: String,
    /// The late calls that Redis may not know of yet.
    late: Option<Late>,
    /// How often the gate was closed, as far as this process knows.
    raised: u64,
    /// The newest sub-window of each rolling count of the pool that this process has paid for: when it ends, and for how many calls.
    paid: HashMap<String, (i64, i64)>,
    /// How long replies take: the slowest of late; each faster one takes an eighth off.
    slow: Nanos,
}

/// The pool's timeline, from the last replies.
struct Timeline {
    offset: Offset,
    epoch: String,
    /// How far Redis' clock is ahead of it, in microseconds.
    ahead: i64,
}

/// A permit, and its time on the pool's timeline.
struct Given {
    at: Nanos,
    slot: i64,
    epoch: String,
}

impl RedisPool {
    pub(super) fn new(prefix: &str, pool: PoolLimits, longest: Nanos, clock: &Clock) -> RedisPool {
        let now = clock.nanos();
        let formers = formers_on_timeline(pool.formers, &pool.limits, clock, now);
        RedisPool {
            key: format!("{prefix}:{{{}}}:state", pool.pool),
            limits: RwLock::new(Arc::new(LimitSet::new(&pool.pool, pool.limits, formers, longest, now))),
            name: pool.pool,
            longest,
            gate: AtomicI64::new(Nanos::MIN),
            unsent_gate: AtomicI64::new(Nanos::MIN),
            memory: Mutex::default(),
        }
    }

    /// What time it is on the pool's timeline, if that is known: no later than it is.
    pub(super) fn time_at(&self, now: Nanos) -> Option<i64> {
        self.memory().timeline.as_ref().map(|timeline| timeline.offset.redis_at(now))
    }

    /// The latest time that it can be, the epoch, and how far Redis' clock is ahead, with a step that is still to be reported.
    pub(super) fn expected(&self, now: Nanos) -> Option<(i64, String, i64)> {
        let memory = self.memory();
        let timeline = memory.timeline.as_ref()?;
        let ahead = memory.step.map_or(timeline.ahead, |step| step.to);
        Some((timeline.offset.latest_at(now), timeline.epoch.clone(), ahead))
    }

    /// This process has paid for so many calls of a rolling count of the pool, in the sub-window that ends then (in milliseconds).
    pub(super) fn note_paid(&self, count: &str, ends_at: i64, calls: i64) {
        let paid = &mut self.memory().paid;
        match paid.get_mut(count) {
            Some(known) if *known < (ends_at, calls) => *known = (ends_at, calls),
            Some(_) => {}
            None => drop(paid.insert(count.to_owned(), (ends_at, calls))),
        }
    }

    /// Whether this process has paid for calls in this sub-window of a count, or in a later one.
    pub(super) fn has_paid(&self, count: &str, ends_at: i64) -> bool {
        self.memory().paid.get(count).is_some_and(|(newest, _)| *newest >= ends_at)
    }

    /// What this process has paid for in sub-windows that are not over, as far as that is known. Reporting it twice does no harm.
    pub(super) fn paid(&self, limits: &LimitSet, now: Nanos) -> Vec<Paid> {
        let memory = self.memory();
        let Some(timeline) = &memory.timeline else { return Vec::new() };
        let over_at = timeline.offset.redis_at(now).div_euclid(1_000);
        let of = |(i, ledger): (usize, &Ledger)| {
            let (ends_at, calls) = *memory.paid.get(&ledger.count).filter(|(ends_at, _)| *ends_at >= over_at)?;
            Some(Paid { ledger: i + 1, tenant: "".into(), ends_at, calls })
        };
        limits.ledgers.iter().enumerate().filter_map(of).collect()
    }

    pub(super) fn step(&self) -> Option<Step> {
        self.memory().step
    }

    /// A process that knows no timeline goes by what the book has. Its first reading was of another timeline.
    pub(super) fn adopt(&self, from: i64, to: i64) {
        if from != to {
            let memory = &mut *self.memory();
            (memory.timeline, memory.step) = (None, Some(Step { from, to, loses: false }));
        }
    }

    pub(super) fn limits(&self, now: Nanos) -> Arc<LimitSet> {
        let limits = self.limits.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !limits.enforced.is_over(now) {
            return limits;
        }
        let mut known = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        let (own, formers) = (known.enforced.own.clone(), known.formers.clone());
        *known = Arc::new(LimitSet::new(&self.name, own, formers, self.longest, now));
        known.clone()
    }

    pub(super) fn set_limits(&self, limits: Vec<Limit>, now: Nanos) {
        let mut known = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        let mut formers = vec![Former { limits: known.enforced.own.clone(), until: now }];
        formers.extend(known.formers.iter().cloned());
        let formers = still_matter(formers, &limits, now);
        *known = Arc::new(LimitSet::new(&self.name, limits, formers, self.longest, now));
    }

    /// A reply took so long.
    pub(super) fn note_took(&self, took: Nanos) {
        let slow = &mut self.memory().slow;
        *slow = took.max(*slow - *slow / 8);
    }

    /// How far ahead a permit has to lie to be in time when the reply arrives; 0 while Redis is fast enough for that not to matter.
    pub(super) fn lead(&self, limits: &LimitSet) -> Nanos {
        let slow = self.memory().slow;
        if slow > limits.tolerance / 2 { slow.min(LONGEST_LEAD) } else { 0 }
    }

    /// Replies take longer than a permit may be late: the time in Redis is not known exactly enough.
    pub(super) fn too_slow(&self) -> StoreError {
        let (slow, allowed) = (self.memory().slow, self.limits.read().unwrap_or_else(PoisonError::into_inner).lateness);
        let ms = |nanos: Nanos| nanos as f64 / MS as f64;
        StoreError::Unavailable(format!(
            "Redis takes {:.1} ms to answer, but the guards of pool {:?} leave {:.1} ms for that. Give its limits guard = \"{:.0}ms\", or bring Redis nearer",
            ms(slow),
            self.name,
            ms(allowed),
            ms(slow * 2).ceil(),
        ))
    }

    /// Takes a reading of the time, and gives the offset to go by. `epoch`: of a pool that is open; nothing of another, in whose state nobody
    /// else can have noted a step.
    pub(super) fn note_time(&self, reading: Offset, ahead: i64, epoch: Option<&str>) -> Offset {
        let memory = &mut *self.memory();
        let known = memory.timeline.as_ref();
        // Another worker has reported a step, or opened another epoch: its timeline counts.
        let is_other = |known: &&Timeline| epoch.is_some_and(|epoch| known.ahead != ahead || known.epoch != epoch);
        let (offset, by) = match known.filter(|known| !is_other(known)) {
            Some(known) => known.offset.follow(reading),
            None => (reading, 0),
        };
        memory.step = (by != 0).then(|| Step { from: ahead, to: ahead + by, loses: by.abs() > LOSING_STEP });
        if let Some(step) = memory.step {
            tracing::warn!(pool = %self.name, by_ms = by / 1_000, ahead_ms = step.to / 1_000, "Redis' clock was set; limits are kept");
        }
        let epoch = epoch.map_or_else(|| known.map_or(String::new(), |known| known.epoch.clone()), str::to_owned);
        memory.timeline = Some(Timeline { offset, epoch, ahead });
        offset
    }

    /// Notes the gate that every reply carries. `epoch_before`: the one that this process knew when it sent the request.
    /// `raised_before`: what [`RedisPool::raised`] was then.
    pub(super) fn note_reply(&self, reply: &Reply, epoch_before: &str, raised_before: u64) {
        let memory = &mut *self.memory();
        // Rather too early than too late: the permits after the gate must not look as if they were before it.
        let gate = reply.offset.never_late(reply.gate);
        let is_lost = !epoch_before.is_empty() && epoch_before != reply.epoch;
        if !is_lost && memory.raised == raised_before && self.unsent_gate().is_none() {
            // Nobody has closed it since the request was sent: Redis knows best, also when somebody has opened it.
            self.gate.store(gate, Ordering::Release);
            return;
        }
        self.raise(memory, gate);
        if is_lost {
            // Redis has lost its state, and the gate with it.
            self.unsent_gate.fetch_max(self.gate(), Ordering::AcqRel);
        }
    }

    /// How often the gate was closed, as far as this process knows.
    pub(super) fn raised(&self) -> u64 {
        self.memory().raised
    }

    fn raise(&self, memory: &mut Memory, gate: Nanos) {
        if self.gate.fetch_max(gate, Ordering::AcqRel) < gate {
            memory.raised += 1;
        }
    }

    /// Another process has closed the gate. Without a timeline this process has no permits that it could stop.
    pub(super) fn note_gate(&self, gate: i64) {
        let memory = &mut *self.memory();
        if let Some(gate) = memory.timeline.as_ref().map(|timeline| timeline.offset.never_late(gate)) {
            self.raise(memory, gate);
        }
    }

    pub(super) fn gate(&self) -> Nanos {
        self.gate.load(Ordering::Acquire)
    }

    pub(super) fn close_gate(&self, until: Nanos) {
        let memory = &mut *self.memory();
        self.raise(memory, until);
        self.unsent_gate.fetch_max(until, Ordering::AcqRel);
    }

    /// Somebody has opened the gate.
    pub(super) fn open_gate(&self) {
        let _in_order = self.memory();
        self.gate.store(Nanos::MIN, Ordering::Release);
        self.unsent_gate.store(Nanos::MIN, Ordering::Release);
    }

    /// A time on the pool's timeline as one of ours, once that is known.
    pub(super) fn ours(&self, redis: i64) -> Option<Nanos> {
        self.memory().timeline.as_ref().map(|timeline| timeline.offset.never_early(redis))
    }

    /// The gate that still has to be sent to Redis.
    pub(super) fn unsent_gate(&self) -> Option<Nanos> {
        Some(self.unsent_gate.load(Ordering::Acquire)).filter(|until| *until > Nanos::MIN)
    }

    pub(super) fn note_gate_sent(&self, until: Nanos) {
        // If it was closed for longer meanwhile, that still has to be sent.
        let _ = self.unsent_gate.compare_exchange(until, Nanos::MIN, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn permit(&self, limits: &LimitSet, reply: &Reply, slot: i64, tenant: &Arc<str>) -> Permit {
        let at = reply.offset.never_early(slot);
        let late_after = reply.offset.never_late(slot).saturating_add(limits.lateness);
        let mut memory = self.memory();
        if memory.given.len() >= MAX_RECENT {
            memory.given.pop_front();
        }
        memory.given.push_back(Given { at, slot, epoch: reply.epoch.clone() });
        let on_time_until = reply.offset.never_late(slot).saturating_add(limits.tolerance);
        Permit { pool: self.name.clone(), tenant: tenant.clone(), at, on_time_until, late_after }
    }

    /// The call with the permit at `at` went out `late`. Every request reports that from here on, until one is answered.
    pub(super) fn note_late(&self, at: Nanos, late: Nanos) {
        let memory = &mut *self.memory();
        let same = memory.given.iter().rev().find(|given| given.at == at);
        // A permit that is not known any more is older than all that are.
        let Some(given) = same.or(memory.given.front()) else { return };
        // Several are reported as if the newest had been as late as the latest.
        let before = memory.late.unwrap_or(Late { at: given.slot, by: 0 });
        memory.late = Some(Late { at: before.at.max(given.slot), by: before.by.max(micros_up(late)) });
    }

    pub(super) fn late(&self) -> Option<Late> {
        self.memory().late
    }

    pub(super) fn note_late_sent(&self, sent: Option<Late>) {
        // If there were others meanwhile, they still have to be sent. A report that arrives twice puts off once.
        self.memory().late.take_if(|late| Some(*late) == sent);
    }

    /// Notes permits that were not used, for the next request; says whether they are many by now. Those of an epoch that is over are
    /// forgotten in Redis anyway.
    pub(super) fn note_unused(&self, permits: &[Permit]) -> bool {
        let memory = &mut *self.memory();
        let Some(Timeline { epoch, .. }) = &memory.timeline else { return false };
        if memory.unused_epoch != *epoch {
            memory.unused.clear();
            memory.unused_epoch.clone_from(epoch);
        }
        let mut undo = Vec::with_capacity(permits.len());
        for permit in permits {
            if let Some(i) = memory.given.iter().rposition(|given| given.at == permit.at)
                && let Some(given) = memory.given.remove(i)
                && given.epoch == *epoch
            {
                undo.push(Undo { at: given.slot, tenant: permit.tenant.clone() });
            }
        }
        undo.sort_by_key(|undo| std::cmp::Reverse(undo.at));
        memory.unused.append(&mut undo);
        memory.unused.len() >= MAX_RECENT / 4
    }

    pub(super) fn has_unused(&self) -> bool {
        !self.memory().unused.is_empty()
    }

    /// The permits to take back, and their epoch.
    pub(super) fn take_unused(&self) -> (String, Vec<Undo>) {
        let memory = &mut *self.memory();
        (memory.unused_epoch.clone(), std::mem::take(&mut memory.unused))
    }

    /// A panic under the lock leaves at worst a permit that cannot be taken back.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LimitSet {
    fn new(pool: &str, own: Vec<Limit>, formers: Vec<Former<Nanos>>, longest: Nanos, now: Nanos) -> LimitSet {
        let enforced = Enforced::new(own, &formers, now);
        let (shared, tenants): (Vec<_>, Vec<_>) =
            enforced.all().into_iter().partition(|limit| limit.key == Key::Vendor);
        let limits: Vec<Limit> = shared.into_iter().chain(tenants).collect();
        let (spec, ledgers, zones) = Spec::new(pool, &limits, longest);
        let lateness = limits.iter().map(lateness).min().unwrap_or(Nanos::MAX);
        let tolerance = limits.iter().map(tolerance).min().unwrap_or(Nanos::MAX);
        LimitSet { spec: spec.json(), lateness, tolerance, limits, enforced, formers, ledgers, zones }
    }

    /// The calendar edges around this wall time.
    pub(super) fn edges(&self, redis_now: i64) -> Vec<Edges> {
        self.zones.iter().map(|per| edges(per, redis_now.saturating_mul(MICRO))).collect()
    }

    /// What makes a call wait, by its number in a reply. A number of earlier limits is nobody's by now.
    pub(super) fn blocker(&self, by: i64) -> Option<Blocker> {
        match usize::try_from(by) {
            Ok(0) => None,
            Ok(number) => {
                Some(self.limits.get(number - 1).map_or(Blocker::Gate, |limit| Blocker::Limit(limit.id.clone())))
            }
            Err(_) => Some(Blocker::Gate),
        }
    }
}

/// Spends that ended before this matter to nobody. The book counts in Redis' time.
pub(super) fn forgotten_before(redis: i64, retention: Nanos) -> Time {
    let oldest = redis.saturating_mul(MICRO).saturating_sub(retention).saturating_sub(60 * SECOND);
    Time(oldest.div_euclid(MS))
}

/// A duration, for the scripts.
pub(super) fn micros(duration: std::time::Duration) -> i64 {
    nanos(duration).div_euclid(MICRO)
}
