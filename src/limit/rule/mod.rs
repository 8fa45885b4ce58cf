//! The arithmetic of limits: when may the next call go, so that no window of length T ever holds more than N?
//!
//! Pure: no clock, no I/O, no locks, no floats. Time is whole nanoseconds on the limiter's timeline, and everything rounds against us.
//! A limiter whose clock is coarser has its intervals rounded up to whole ticks of it.
//!
//! **The guard.** The vendor counts arrivals, not departures. Calls spaced for windows of length T + J at the sender are at most N
//! in any T after a link of jitter J: a flow (σ, ρ) leaves a jitter-J element as (σ + ρJ, ρ) (Cruz 1991; Le Boudec & Thiran 2001).
//! So every rolling limit is kept against T' = T + g, and being late plus the link's jitter must together stay within g.
//!
//! **The shapes.** A token bucket (GCRA) with interval E and burst b admits at most `ceil(T/E) + b − 1` calls in a half-open window
//! of length T. Turned around, N calls per T' need:
//!
//! - paced: b = 1, so `E = ceil(T'/N)`. Uses `T/T'` of the limit.
//! - bucket: `E = ceil(T'/(N − b + 1))`. The burst is paid for in sustained rate: `(N − b + 1)/N · T/T'`.
//! - window: the N-th previous call + T', exactly, while N times fit into memory; beyond that calls are counted in [`PARTS`]
//!   sub-windows and each counts as made at its sub-window's end. Uses `T/T'`, and `PARTS/(PARTS + 1) · T/T'`.
//! - calendar: N in each day or month of the vendor's zone. A call within [`SKEW`] of an edge counts on both sides of it.

use std::{borrow::Cow, collections::VecDeque};

pub use self::together::{gap, room, slot, slots};
use super::{
    Key, Limit, Per, Shape,
    calendar::{self, Period, SKEW, period_at},
};
use crate::clock::{Nanos, nanos};

mod together;

/// Sub-windows of a window too large to keep every call's time. A call is held up to one sub-window longer than needed, so the share
/// used is `PARTS/(PARTS + 1)`. With a guard of 0.5 %: 128 parts would use 98.7 %; 256 use 99.1 %, for 4 KiB.
pub const PARTS: usize = 256;

/// Calls whose exact times are kept: for a limit of the whole pool, and for one of a tenant, of whom there are many.
const EXACT: u64 = 10_000;
const EXACT_PER_TENANT: u64 = 1_000;

/// Times kept beyond N, so that this many of the newest calls can be undone without loss.
const UNDOABLE: usize = 1_024;

/// Sub-windows kept. One more than [`PARTS`] can matter; the others are for undoing, and for the crooked ends of a restart.
const KEPT_PARTS: usize = PARTS + 16;

/// Calendar periods remembered around the newest call.
const PERIODS: usize = 8;

/// What one limit remembers of the calls charged to it.
#[derive(Debug, Clone)]
pub struct Count {
    /// N.
    calls: u64,
    /// T', unused by calendars.
    window: Nanos,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Paced and bucket: the theoretical arrival time, and when the newest call goes: what a new pace counts from. `before` is what both
    /// were, and at which pace, before it changed; nothing since another call.
    Even { every: Nanos, burst: u64, tat: Nanos, newest: Nanos, before: Option<Before> },
    /// Window, exact: the times of the newest calls, in order. Nothing goes before `floor`: what was forgotten counts until then.
    Ring { times: VecDeque<Nanos>, floor: Nanos },
    /// Window, in sub-windows of `len`: those with calls, in order, and their sum.
    Parts { len: Nanos, parts: VecDeque<Part>, sum: u64, floor: Nanos },
    /// Calendar: periods with calls, and the neighbours of the newest so that their edges are looked up once. Periods are of wall time, which
    /// is `ahead` of the timeline.
    Calendar { per: Per, periods: VecDeque<Period>, ahead: Nanos },
}

/// A theoretical arrival time, the newest call, and the pace that they were made with.
#[derive(Debug, Clone, Copy)]
struct Before {
    tat: Nanos,
    newest: Nanos,
    every: Nanos,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    end: Nanos,
    calls: u64,
}

/// What a count derives from its limit: all that a script needs to keep the same count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    Even { every: Nanos, burst: u64 },
    Ring { window: Nanos, kept: usize },
    Parts { window: Nanos, len: Nanos, kept: usize },
    Calendar,
}

impl Count {
    /// No calls yet, times to the nanosecond.
    pub fn new(limit: &Limit) -> Count {
        Count::on_grid(limit, 1)
    }

    /// No calls yet, for times that are whole multiples of `tick`.
    pub fn on_grid(limit: &Limit, tick: Nanos) -> Count {
        let calls = limit.calls.max(1);
        let Per::Rolling(period) = &limit.per else {
            let state = State::Calendar { per: limit.per.clone(), periods: VecDeque::new(), ahead: 0 };
            return Count { calls, window: 0, state };
        };
        let window = round_up(nanos(*period).saturating_add(nanos(limit.guard)).max(1), tick);
        let exact = if limit.key == Key::Tenant { EXACT_PER_TENANT } else { EXACT };
        let state = match limit.shape {
            Shape::Paced => even(calls, window, 1, tick),
            Shape::Bucket { burst } => even(calls, window, burst, tick),
            Shape::Window | Shape::Calendar if calls <= exact => {
                State::Ring { times: VecDeque::new(), floor: Nanos::MIN }
            }
            Shape::Window | Shape::Calendar => {
                let len = round_up(div_ceil(window, PARTS as u64), tick);
                State::Parts { len, parts: VecDeque::new(), sum: 0, floor: Nanos::MIN }
            }
        };
        Count { calls, window, state }
    }

    /// The first time at or after `t` when one more call may go.
    pub fn earliest(&self, t: Nanos) -> Nanos {
        match &self.state {
            State::Even { every, burst, tat, .. } => t.max(tat.saturating_sub(times(*every, burst - 1))),
            State::Ring { times, floor } => {
                let nth = times.len().checked_sub(size(self.calls)).map(|i| times[i].saturating_add(self.window));
                t.max(*floor).max(nth.unwrap_or(t))
            }
            State::Parts { parts, sum, floor, .. } => {
                let (mut left, mut free_at) = (*sum, t.max(*floor));
                for part in parts {
                    if left < self.calls {
                        break;
                    }
                    left -= part.calls;
                    free_at = free_at.max(part.end.saturating_add(self.window));
                }
                free_at
            }
            State::Calendar { per, periods, ahead } => {
                calendar::earliest(per, periods, self.calls, t.saturating_add(*ahead)).saturating_sub(*ahead)
            }
        }
    }

    /// One call at `at`, which [`Count::earliest`] allowed.
    pub fn charge(&mut self, at: Nanos) {
        let calls = size(self.calls);
        match &mut self.state {
            State::Even { every, tat, newest, before, .. } => {
                *tat = (*tat).max(at).saturating_add(*every);
                *newest = (*newest).max(at);
                *before = None;
            }
            State::Ring { times, floor } => {
                insert_sorted(times, at);
                forget_oldest(times, floor, kept(calls), self.window);
            }
            State::Parts { len, .. } => {
                let end = part_end(at, *len);
                self.add_part(end, 1);
            }
            State::Calendar { per, periods, ahead } => {
                let at = at.saturating_add(*ahead);
                for start in calendar::touched(per, periods, at).into_iter().flatten().map(|p| p.start) {
                    calendar::remember(per, periods, start).calls += 1;
                }
                let end = calendar::remember(per, periods, at).end;
                calendar::remember(per, periods, end);
                while periods.len() > PERIODS && periods[0].end.saturating_add(SKEW) <= at {
                    periods.pop_front();
                }
            }
        }
    }

    /// Takes back a call that was charged at `at` and never made. What cannot be taken back exactly stays charged: of an even limit
    /// only the newest call can be, because those after it were spaced from it.
    pub fn undo(&mut self, at: Nanos, is_newest: bool) {
        match &mut self.state {
            // The time before was at most this: earlier calls may look later than they were, never earlier.
            State::Even { every, tat, before, .. } => {
                if is_newest {
                    *tat = tat.saturating_sub(*every);
                }
                *before = None;
            }
            State::Ring { times, .. } => {
                let next = times.partition_point(|t| *t <= at);
                if let Some(i) = next.checked_sub(1).filter(|i| times[*i] == at) {
                    times.remove(i);
                }
            }
            State::Parts { len, parts, sum, .. } => {
                let end = part_end(at, *len);
                if let Some(part) = parts.iter_mut().rev().find(|p| p.end == end && p.calls > 0) {
                    part.calls -= 1;
                    *sum -= 1;
                }
            }
            State::Calendar { per, periods, ahead } => {
                let at = at.saturating_add(*ahead);
                for start in calendar::touched(per, periods, at).into_iter().flatten().map(|p| p.start) {
                    let period = calendar::remember(per, periods, start);
                    period.calls = period.calls.saturating_sub(1);
                }
            }
        }
    }

    /// The newest calls went out late: those to come are to be later by this. Only an even limit can tell; the others have to do with the guard.
    pub fn put_off(&mut self, by: Nanos) {
        if let State::Even { tat, before, .. } = &mut self.state {
            (*tat, *before) = (tat.saturating_add(by), None);
        }
    }

    /// After a restart: `calls` calls are known only to have been made by `ends_at` (for a calendar: in the period that ends then).
    /// They count as made at that very time. Call in the order of `ends_at`, before the first charge.
    pub fn restore(&mut self, ends_at: Nanos, calls: u64) {
        if calls == 0 {
            return;
        }
        let kept = kept(size(self.calls));
        match &mut self.state {
            State::Even { every, burst, tat, newest, before } => {
                *before = None;
                // However many calls: what was allowed to go by then never left a debt of more than the whole bucket.
                let spent = (*tat).max(ends_at).saturating_add(times(*every, calls));
                *tat = spent.min(ends_at.saturating_add(times(*every, *burst))).max(*tat);
                *newest = (*newest).max(ends_at);
            }
            State::Ring { times, floor } => {
                // Those beyond what is kept are gone at once, which moves the floor.
                for _ in 0..calls.min(kept as u64 + 1) {
                    insert_sorted(times, ends_at);
                }
                forget_oldest(times, floor, kept, self.window);
            }
            State::Parts { .. } => self.add_part(ends_at, calls),
            State::Calendar { per, periods, .. } => {
                let period = calendar::remember(per, periods, ends_at.saturating_sub(1));
                period.calls = period.calls.saturating_add(calls);
            }
        }
    }

    /// `calls` calls were made by `at`, under whatever limits: unlike with [`Count::restore`], more than this limit would have allowed may be
    /// among them, and an even limit pays them off one by one. Call in the order of `at`, before the first charge.
    pub(super) fn made(&mut self, at: Nanos, calls: u64) {
        match &mut self.state {
            State::Even { every, tat, newest, .. } => {
                *tat = (*tat).max(at).saturating_add(times(*every, calls));
                *newest = (*newest).max(at);
            }
            State::Calendar { ahead, .. } => {
                let ends_at = at.saturating_add(*ahead).saturating_add(1);
                self.restore(ends_at, calls);
            }
            State::Ring { .. } | State::Parts { .. } => self.restore(at, calls),
        }
    }

    /// Calls before this matter to nothing from `now` on.
    pub(super) fn matters_from(&self, now: Nanos) -> Nanos {
        match &self.state {
            State::Calendar { per, ahead, .. } => {
                period_at(per, now.saturating_add(*ahead).saturating_sub(SKEW)).0.saturating_sub(*ahead)
            }
            _ => now.saturating_sub(self.window),
        }
    }

    /// Wall time is so far ahead of the timeline, and was for all calls so far. Only calendars go by it.
    pub(super) fn believe(&mut self, to: Nanos) {
        if let State::Calendar { ahead, .. } = &mut self.state {
            *ahead = to;
        }
    }

    /// The wall clock was set, and is `to` ahead of the timeline from now on: these are all the calls that matter. Only calendars go by it.
    pub(super) fn recount(&mut self, to: Nanos, calls: impl Iterator<Item = Nanos>) {
        let State::Calendar { periods, ahead, .. } = &mut self.state else { return };
        periods.clear();
        *ahead = to;
        calls.for_each(|at| self.charge(at));
    }

    /// The same where the times of the calls are not known (see [`calendar::moved`]).
    pub(super) fn step(&mut self, to: Nanos, now: Nanos) {
        let State::Calendar { per, periods, ahead } = &mut self.state else { return };
        let by = to.saturating_sub(*ahead);
        *ahead = to;
        for moved in calendar::moved(per, periods, by, now.saturating_add(to)) {
            calendar::remember(per, periods, moved.start).calls = moved.calls;
        }
    }

    /// The state of a process that knows nothing of the one before it: as if all calls had been made at `at`.
    pub fn fill(&mut self, at: Nanos) {
        self.restore(at, self.calls);
    }

    /// When a whole bucket was used up at once and nothing was called since; of counts that were filled and never charged.
    pub(super) fn used_up_at(&self) -> Option<Nanos> {
        match &self.state {
            State::Even { newest, .. } => Some(*newest).filter(|at| *at > Nanos::MIN),
            _ => None,
        }
    }

    /// Calls that count now.
    pub fn used(&self, now: Nanos) -> u64 {
        match &self.state {
            State::Even { every, burst, tat, .. } => {
                let debt = u64::try_from(tat.saturating_sub(now)).unwrap_or(0);
                debt.div_ceil(every.unsigned_abs()).min(*burst)
            }
            State::Ring { times, .. } => {
                let old = times.partition_point(|at| at.saturating_add(self.window) <= now);
                (times.len() - old) as u64
            }
            State::Parts { parts, .. } => {
                parts.iter().filter(|p| p.end.saturating_add(self.window) > now).map(|p| p.calls).sum()
            }
            State::Calendar { per, periods, ahead } => calendar::find(per, periods, now.saturating_add(*ahead)).calls,
        }
    }

    /// True when nothing charged so far can matter at or after `now`: the same as a new count.
    pub fn is_idle(&self, now: Nanos) -> bool {
        match &self.state {
            State::Even { tat, .. } => *tat <= now,
            State::Ring { times, floor } => {
                *floor <= now && times.back().is_none_or(|at| at.saturating_add(self.window) <= now)
            }
            State::Parts { floor, .. } => *floor <= now && self.used(now) == 0,
            State::Calendar { periods, ahead, .. } => {
                periods.iter().all(|p| p.calls == 0 || p.end.saturating_add(SKEW) <= now.saturating_add(*ahead))
            }
        }
    }

    /// What a script keeps of this, in microseconds (see `redis/shapes.lua`).
    pub(super) fn stored(&self) -> Vec<i64> {
        let micros = |at: Nanos| at.max(0).div_euclid(1_000);
        match &self.state {
            State::Even { every, tat, newest, .. } => vec![micros(*tat), micros(*every), micros(*newest)],
            State::Ring { times, floor } => {
                let forgotten = if *floor > Nanos::MIN { micros(floor.saturating_sub(self.window)) } else { 0 };
                std::iter::once(forgotten).chain(times.iter().map(|at| micros(*at))).collect()
            }
            State::Parts { parts, floor, .. } => {
                let parts =
                    parts.iter().flat_map(|part| [micros(part.end), i64::try_from(part.calls).unwrap_or(i64::MAX)]);
                std::iter::once(micros(*floor)).chain(parts).collect()
            }
            State::Calendar { periods, .. } => {
                let used = periods.iter().filter(|period| period.calls > 0);
                used.flat_map(|p| [micros(p.start), i64::try_from(p.calls).unwrap_or(i64::MAX)]).collect()
            }
        }
    }

    /// The time at which a count that begins as used up would be no sooner free than this one, in microseconds; 0 for one that is free.
    pub(super) fn used_up_since(&self) -> i64 {
        let at = match &self.state {
            State::Even { every, burst, tat, .. } => tat.saturating_sub(times(*every, *burst)),
            State::Ring { times, floor } => {
                times.back().copied().unwrap_or(Nanos::MIN).max(floor.saturating_sub(self.window))
            }
            State::Parts { parts, floor, .. } => {
                parts.back().map_or(Nanos::MIN, |part| part.end).max(floor.saturating_sub(self.window))
            }
            State::Calendar { .. } => Nanos::MIN,
        };
        at.max(0).div_euclid(1_000)
    }

    /// Has nothing charged any more.
    pub(super) fn forget(&mut self) {
        match &mut self.state {
            State::Even { tat, newest, before, .. } => (*tat, *newest, *before) = (Nanos::MIN, Nanos::MIN, None),
            State::Ring { times, floor } => {
                times.clear();
                *floor = Nanos::MIN;
            }
            State::Parts { parts, sum, floor, .. } => {
                parts.clear();
                (*sum, *floor) = (0, Nanos::MIN);
            }
            State::Calendar { periods, .. } => periods.clear(),
        }
    }

    /// How long a call can matter to this limit; `None` for calendars, where the period decides.
    pub fn memory(&self) -> Option<Nanos> {
        match &self.state {
            State::Even { every, burst: 1, .. } => Some(*every),
            State::Calendar { .. } => None,
            _ => Some(self.window),
        }
    }

    /// The same history under another N (or burst). `fresh` has it, and counts the same calls in the same way.
    /// What an even limit still had in its bucket at its newest call stays in it, and leaves it at the new pace.
    pub(super) fn retuned(mut self, fresh: &Count) -> Count {
        self.calls = fresh.calls;
        if let (State::Even { every, burst, tat, newest, before }, State::Even { every: new, burst: new_burst, .. }) =
            (&mut self.state, &fresh.state)
        {
            if *tat > Nanos::MIN && every != new {
                // From what it was at the last call, so that of several changes in a row only the last counts.
                let was = before.unwrap_or(Before { tat: *tat, newest: *newest, every: *every });
                (*tat, *newest, *before) = was.at_pace(*new);
            }
            (*every, *burst) = (*new, *new_burst);
        }
        self
    }

    /// In which way calls are remembered: counts of different kinds cannot take over from each other. Nor can those of another burst: what
    /// one bucket had used up another may have left.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        match &self.state {
            State::Even { burst: 1, .. } => "paced".into(),
            State::Even { burst, .. } => format!("bucket of {burst}").into(),
            State::Ring { .. } => "ring".into(),
            State::Parts { .. } => "parts".into(),
            State::Calendar { .. } => "calendar".into(),
        }
    }

    pub(super) fn terms(&self) -> Terms {
        match &self.state {
            State::Even { every, burst, .. } => Terms::Even { every: *every, burst: *burst },
            State::Ring { .. } => Terms::Ring { window: self.window, kept: kept(size(self.calls)) },
            State::Parts { len, .. } => Terms::Parts { window: self.window, len: *len, kept: KEPT_PARTS },
            State::Calendar { .. } => Terms::Calendar,
        }
    }

    fn add_part(&mut self, end: Nanos, calls: u64) {
        let State::Parts { parts, sum, floor, .. } = &mut self.state else { return };
        *sum = sum.saturating_add(calls);
        let i = parts.partition_point(|p| p.end < end);
        match parts.get_mut(i) {
            Some(part) if part.end == end => part.calls = part.calls.saturating_add(calls),
            _ => parts.insert(i, Part { end, calls }),
        }
        while parts.len() > KEPT_PARTS {
            let gone = parts.pop_front().unwrap_or(Part { end: Nanos::MIN, calls: 0 });
            *sum = sum.saturating_sub(gone.calls);
            *floor = (*floor).max(gone.end.saturating_add(self.window));
        }
    }
}

impl Before {
    /// The theoretical arrival time and the newest call at another pace, and this.
    fn at_pace(self, every: Nanos) -> (Nanos, Nanos, Option<Before>) {
        if every == self.every {
            return (self.tat, self.newest, None);
        }
        let from = self.newest.min(self.tat.saturating_sub(self.every)); // a call that was undone is not the newest
        let left = self.tat.abs_diff(from).div_ceil(self.every.unsigned_abs());
        (from.saturating_add(times(every, left)), from, Some(self))
    }
}

fn even(calls: u64, window: Nanos, burst: u64, tick: Nanos) -> State {
    let burst = burst.clamp(1, calls);
    let every = round_up(div_ceil(window, calls - burst + 1), tick);
    State::Even { every, burst, tat: Nanos::MIN, newest: Nanos::MIN, before: None }
}

/// Times kept of a ring of N.
fn kept(calls: usize) -> usize {
    calls + calls.min(UNDOABLE)
}

/// Drops the oldest beyond those kept. Nothing goes before the newest of them has left the window: N may be larger tomorrow.
fn forget_oldest(times: &mut VecDeque<Nanos>, floor: &mut Nanos, kept: usize, window: Nanos) {
    while times.len() > kept {
        let gone = times.pop_front().unwrap_or(Nanos::MIN);
        *floor = (*floor).max(gone.saturating_add(window));
    }
}

fn round_up(interval: Nanos, tick: Nanos) -> Nanos {
    div_ceil(interval, tick.unsigned_abs()).saturating_mul(tick)
}

/// At least 1: two calls are never at the same time for a paced limit.
fn div_ceil(a: Nanos, b: u64) -> Nanos {
    Nanos::try_from(a.unsigned_abs().div_ceil(b)).unwrap_or(Nanos::MAX).max(1)
}

fn times(every: Nanos, n: u64) -> Nanos {
    every.saturating_mul(Nanos::try_from(n).unwrap_or(Nanos::MAX))
}

fn size(calls: u64) -> usize {
    usize::try_from(calls).unwrap_or(usize::MAX)
}

fn part_end(at: Nanos, len: Nanos) -> Nanos {
    at.div_euclid(len).saturating_add(1).saturating_mul(len)
}

fn insert_sorted(times: &mut VecDeque<Nanos>, at: Nanos) {
    if times.back().is_none_or(|newest| *newest <= at) {
        times.push_back(at);
    } else {
        times.insert(times.partition_point(|t| *t <= at), at);
    }
}
