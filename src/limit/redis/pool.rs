//! What one process knows of a pool in Redis: how it is asked for, its gate, and the permits it could hand back.
//!
//! Never decides when a call may go: the scripts do.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use super::{
    call::{Heard, LOSING_STEP, Late, Line, Step, Undo},
    spec::{Edges, MICRO, Spec, edges, micros_up},
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    limit::{
        Before, Blocker, Key, Limit, Per, Permit, PoolLimits,
        ledger::Ledger,
        local::{lateness, tolerance},
        past::{Former, still_matter},
        state::{MAX_RECENT, MS, SECOND},
    },
    store_error::StoreError,
};

/// Redis that is slower than this has trouble of its own.
const LONGEST_LEAD: Nanos = SECOND / 4;

pub(super) struct Pool {
    pub(super) name: Arc<str>,
    pub(super) key: String,
    terms: RwLock<Arc<Terms>>,
    /// Closed until then, on our timeline: what the last look before a call reads.
    gate: AtomicI64,
    /// The gate as this process closed it and Redis may not know yet.
    untold: AtomicI64,
    memory: Mutex<Memory>,
}

/// The limits of a pool as the scripts are told them. They may change between two questions, never within one.
pub(super) struct Terms {
    /// Those of the whole pool first. The scripts go by their place here, counted from 1.
    pub(super) limits: Vec<Limit>,
    /// What held before and may still matter, the newest first.
    pub(super) formers: Vec<Former>,
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
    /// What the last answers say of the time.
    known: Option<Known>,
    /// Redis' clock was set, and Redis does not know yet by how much.
    step: Option<Step>,
    /// The newest permits of this process, and what Redis knows them by.
    given: VecDeque<Given>,
    /// Those that were not used, and that Redis is to be told of: all of one epoch.
    unused: Vec<Undo>,
    unused_epoch: String,
    /// The late calls that Redis may not know of yet.
    late: Option<Late>,
    /// How long answers take: the longest of late, of which each one that was faster takes an eighth away.
    slow: Nanos,
}

/// The pool's timeline as Redis has told it.
struct Known {
    line: Line,
    epoch: String,
    /// How far Redis' clock is ahead of it, in microseconds.
    ahead: i64,
}

struct Given {
    at: Nanos,
    slot: i64,
    epoch: String,
}

impl Pool {
    pub(super) fn new(prefix: &str, pool: PoolLimits, longest: Nanos, clock: &Clock) -> Pool {
        let now = clock.nanos();
        let former = |before: Before| Former { until: clock.nanos_at(before.until).min(now), limits: before.limits };
        let formers = still_matter(pool.before.into_iter().map(former).collect(), &pool.limits, now);
        Pool {
            key: format!("{prefix}:{{{}}}:state", pool.pool),
            terms: RwLock::new(Arc::new(Terms::new(&pool.pool, pool.limits, formers, longest))),
            name: pool.pool,
            gate: AtomicI64::new(Nanos::MIN),
            untold: AtomicI64::new(Nanos::MIN),
            memory: Mutex::default(),
        }
    }

    /// What time it is on the pool's timeline, if Redis has told us before: no later than it is.
    pub(super) fn time_at(&self, now: Nanos) -> Option<i64> {
        self.memory().known.as_ref().map(|known| known.line.redis_at(now))
    }

    /// The latest that it can be, the epoch, and how far Redis' clock is ahead, a step that it is to be told of included.
    pub(super) fn expected(&self, now: Nanos) -> Option<(i64, String, i64)> {
        let memory = self.memory();
        let known = memory.known.as_ref()?;
        let ahead = memory.step.map_or(known.ahead, |step| step.to);
        Some((known.line.latest_at(now), known.epoch.clone(), ahead))
    }

    pub(super) fn step(&self) -> Option<Step> {
        self.memory().step
    }

    /// A process that knows nothing of the time goes by what the book has: its first reading was of another timeline.
    pub(super) fn adopt(&self, from: i64, to: i64) {
        if from != to {
            let memory = &mut *self.memory();
            (memory.known, memory.step) = (None, Some(Step { from, to, loses: false }));
        }
    }

    pub(super) fn terms(&self) -> Arc<Terms> {
        self.terms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_limits(&self, limits: Vec<Limit>, longest: Nanos, now: Nanos) {
        let mut terms = self.terms.write().unwrap_or_else(PoisonError::into_inner);
        let mut formers = vec![Former { limits: terms.limits.clone(), until: now }];
        formers.extend(terms.formers.iter().cloned());
        let formers = still_matter(formers, &limits, now);
        *terms = Arc::new(Terms::new(&self.name, limits, formers, longest));
    }

    /// An answer took so long.
    pub(super) fn note_took(&self, took: Nanos) {
        let slow = &mut self.memory().slow;
        *slow = took.max(*slow - *slow / 8);
    }

    /// How far ahead a permit has to lie to be in time when the answer has come; 0 while Redis is fast enough for that not to matter.
    pub(super) fn lead(&self, terms: &Terms) -> Nanos {
        let slow = self.memory().slow;
        if slow > terms.tolerance / 2 { slow.min(LONGEST_LEAD) } else { 0 }
    }

    /// When it is in Redis is known less exactly than a permit may be late, as answers take so long.
    pub(super) fn too_slow(&self) -> StoreError {
        let (slow, allowed) = (self.memory().slow, self.terms().lateness);
        let ms = |nanos: Nanos| nanos as f64 / MS as f64;
        StoreError::Unavailable(format!(
            "Redis takes {:.1} ms to answer, but the guards of pool {:?} leave {:.1} ms for that. Give its limits guard = \"{:.0}ms\", or bring Redis nearer",
            ms(slow),
            self.name,
            ms(allowed),
            ms(slow * 2).ceil(),
        ))
    }

    /// Takes a reading of the time, and gives the line to go by. `epoch`: of an answer that counts; nothing while the state is not open, when
    /// nobody else can have noted a step.
    pub(super) fn note_time(&self, reading: Line, ahead: i64, epoch: Option<&str>) -> Line {
        let memory = &mut *self.memory();
        let known = memory.known.as_ref();
        // Another worker has noted a step, or opened another epoch: its timeline holds.
        let is_other = |known: &&Known| epoch.is_some_and(|epoch| known.ahead != ahead || known.epoch != epoch);
        let (line, by) = match known.filter(|known| !is_other(known)) {
            Some(known) => known.line.follow(reading),
            None => (reading, 0),
        };
        memory.step = (by != 0).then(|| Step { from: ahead, to: ahead + by, loses: by.abs() > LOSING_STEP });
        if let Some(step) = memory.step {
            tracing::warn!(pool = %self.name, by_ms = by / 1_000, ahead_ms = step.to / 1_000, "Redis' clock was set; limits are kept");
        }
        let epoch = epoch.map_or_else(|| known.map_or(String::new(), |known| known.epoch.clone()), str::to_owned);
        memory.known = Some(Known { line, epoch, ahead });
        line
    }

    /// Takes what every answer carries.
    pub(super) fn note(&self, heard: &Heard, epoch_before: &str) {
        // Rather too early than too late: the permits after the gate must not look as if they were before it.
        self.gate.fetch_max(heard.line.never_late(heard.gate), Ordering::AcqRel);
        if !epoch_before.is_empty() && epoch_before != heard.epoch {
            // Redis has lost its state, and the gate with it.
            self.untold.fetch_max(self.gate(), Ordering::AcqRel);
        }
    }

    /// Somebody has closed the gate. A process that never spoke with Redis holds no permits that it could stop.
    pub(super) fn note_gate(&self, gate: i64) {
        if let Some(known) = &self.memory().known {
            self.gate.fetch_max(known.line.never_late(gate), Ordering::AcqRel);
        }
    }

    pub(super) fn gate(&self) -> Nanos {
        self.gate.load(Ordering::Acquire)
    }

    pub(super) fn close_gate(&self, until: Nanos) {
        self.gate.fetch_max(until, Ordering::AcqRel);
        self.untold.fetch_max(until, Ordering::AcqRel);
    }

    /// The gate that Redis has to be told about.
    pub(super) fn untold(&self) -> Option<Nanos> {
        Some(self.untold.load(Ordering::Acquire)).filter(|until| *until > Nanos::MIN)
    }

    pub(super) fn told(&self, until: Nanos) {
        // If it was closed for longer meanwhile, that is still to be told.
        let _ = self.untold.compare_exchange(until, Nanos::MIN, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn permit(&self, terms: &Terms, heard: &Heard, slot: i64, tenant: &Arc<str>) -> Permit {
        let at = heard.line.never_early(slot);
        let late_after = heard.line.never_late(slot).saturating_add(terms.lateness);
        let mut memory = self.memory();
        if memory.given.len() >= MAX_RECENT {
            memory.given.pop_front();
        }
        memory.given.push_back(Given { at, slot, epoch: heard.epoch.clone() });
        let on_time_until = heard.line.never_late(slot).saturating_add(terms.tolerance);
        Permit { pool: self.name.clone(), tenant: tenant.clone(), at, on_time_until, late_after }
    }

    /// The call with the permit at `at` goes out `late`; the questions from here on tell of it, until one is answered.
    pub(super) fn note_late(&self, at: Nanos, late: Nanos) {
        let memory = &mut *self.memory();
        let same = memory.given.iter().rev().find(|given| given.at == at);
        // One that is not known any more is older than all that are.
        let Some(given) = same.or(memory.given.front()) else { return };
        // Of several, as if the newest had been as late as the latest.
        let before = memory.late.unwrap_or(Late { at: given.slot, by: 0 });
        memory.late = Some(Late { at: before.at.max(given.slot), by: before.by.max(micros_up(late)) });
    }

    pub(super) fn late(&self) -> Option<Late> {
        self.memory().late
    }

    pub(super) fn told_late(&self, late: Option<Late>) {
        // If there were others meanwhile, that is still to be told; what Redis hears twice puts off once.
        self.memory().late.take_if(|untold| Some(*untold) == late);
    }

    /// Notes permits that were not used, for the next question to tell of; says whether they are many by now. Those of an epoch that is
    /// over are forgotten in Redis anyway.
    pub(super) fn note_unused(&self, permits: &[Permit]) -> bool {
        let memory = &mut *self.memory();
        let Some(Known { epoch, .. }) = &memory.known else { return false };
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

    /// The epoch of the permits to tell of, and what Redis knows them by.
    pub(super) fn take_unused(&self) -> (String, Vec<Undo>) {
        let memory = &mut *self.memory();
        (memory.unused_epoch.clone(), std::mem::take(&mut memory.unused))
    }

    /// A panic under the lock leaves at worst a permit that cannot be handed back.
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terms {
    fn new(pool: &str, limits: Vec<Limit>, formers: Vec<Former>, longest: Nanos) -> Terms {
        let (shared, tenants): (Vec<_>, Vec<_>) = limits.into_iter().partition(|limit| limit.key == Key::Vendor);
        let limits: Vec<Limit> = shared.into_iter().chain(tenants).collect();
        let (spec, ledgers, zones) = Spec::new(pool, &limits, longest);
        let lateness = limits.iter().map(lateness).min().unwrap_or(Nanos::MAX);
        let tolerance = limits.iter().map(tolerance).min().unwrap_or(Nanos::MAX);
        Terms { spec: spec.json(), lateness, tolerance, limits, formers, ledgers, zones }
    }

    /// The calendar edges around this wall time.
    pub(super) fn edges(&self, redis_now: i64) -> Vec<Edges> {
        self.zones.iter().map(|per| edges(per, redis_now.saturating_mul(MICRO))).collect()
    }

    /// Who makes wait, by its number in an answer. A number of limits of before is nobody's by now.
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

/// Spends that ended before this matter to nobody. The book counts in Redis's time.
pub(super) fn forgotten_before(redis: i64, retention: Nanos) -> Time {
    let oldest = redis.saturating_mul(MICRO).saturating_sub(retention).saturating_sub(60 * SECOND);
    Time(oldest.div_euclid(MS))
}

/// Of a duration, for the scripts.
pub(super) fn micros(duration: std::time::Duration) -> i64 {
    nanos(duration).div_euclid(MICRO)
}
