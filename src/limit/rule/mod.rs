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
    calendar::{self, Period, SKEW},
};
use crate::clock::{Nanos, nanos};

mod begin;
mod together;

/// Sub-windows of a window too large to keep every call's time. A call counts for up to one sub-window too long, so the share used
/// is `PARTS/(PARTS + 1)`. With a guard of 0.5 %: 128 parts would use 98.7 %; 256 use 99.1 %, for 4 KiB.
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
    state: Remembered,
}

#[derive(Debug, Clone)]
enum Remembered {
    /// Paced and bucket: one call each `every`, after a burst.
    Gcra { every: Nanos, burst: u64, debt: Debt },
    /// Window, exact: the times of the newest calls, in order. Nothing goes before `floor`: what was forgotten counts until then.
    Exact { times: VecDeque<Nanos>, floor: Nanos },
    /// Window, in sub-windows of `len`: those with calls, in order, and their sum.
    Parts { len: Nanos, parts: VecDeque<Part>, sum: u64, floor: Nanos },
    /// Calendar: periods with calls, and the neighbours of the newest so that their edges are looked up once. Periods are of wall time, which
    /// is `ahead` of the timeline.
    Calendar { per: Per, periods: VecDeque<Period>, ahead: Nanos },
}

/// What was charged to a paced or bucket limit: its theoretical arrival time, the newest call, and the pace that both were charged at. The pace
/// of the limit may have changed since.
#[derive(Debug, Clone, Copy)]
struct Debt {
    tat: Nanos,
    newest: Nanos,
    every: Nanos,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    end: Nanos,
    calls: u64,
}

/// How a count remembers calls, with the numbers that it derives from its limit: all that a script needs to keep the same count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Gcra { every: Nanos, burst: u64 },
    Exact { window: Nanos, kept: usize },
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
            let state = Remembered::Calendar { per: limit.per.clone(), periods: VecDeque::new(), ahead: 0 };
            return Count { calls, window: 0, state };
        };
        let window = round_up(nanos(*period).saturating_add(nanos(limit.guard)).max(1), tick);
        let exact = if limit.key == Key::Tenant { EXACT_PER_TENANT } else { EXACT };
        let state = match limit.shape {
            Shape::Paced => gcra(calls, window, 1, tick),
            Shape::Bucket { burst } => gcra(calls, window, burst, tick),
            Shape::Window | Shape::Calendar if calls <= exact => {
                Remembered::Exact { times: VecDeque::new(), floor: Nanos::MIN }
            }
            Shape::Window | Shape::Calendar => {
                let len = round_up(div_ceil(window, PARTS as u64), tick);
                Remembered::Parts { len, parts: VecDeque::new(), sum: 0, floor: Nanos::MIN }
            }
        };
        Count { calls, window, state }
    }

    /// The first time at or after `t` when one more call may go.
    pub fn earliest(&self, t: Nanos) -> Nanos {
        match &self.state {
            Remembered::Gcra { every, burst, debt } => {
                t.max(debt.at_pace(*every).tat.saturating_sub(times(*every, burst - 1)))
            }
            Remembered::Exact { times, floor } => {
                let nth = times.len().checked_sub(size(self.calls)).map(|i| times[i].saturating_add(self.window));
                t.max(*floor).max(nth.unwrap_or(t))
            }
            Remembered::Parts { parts, sum, floor, .. } => {
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
            Remembered::Calendar { per, periods, ahead } => {
                calendar::earliest(per, periods, self.calls, t.saturating_add(*ahead)).saturating_sub(*ahead)
            }
        }
    }

    /// One call at `at`, which [`Count::earliest`] allowed.
    pub fn charge(&mut self, at: Nanos) {
        let calls = size(self.calls);
        match &mut self.state {
            Remembered::Gcra { every, debt, .. } => *debt = debt.at_pace(*every).plus(at, 1),
            Remembered::Exact { times, floor } => {
                insert_sorted(times, at);
                forget_oldest(times, floor, kept(calls), self.window);
            }
            Remembered::Parts { len, .. } => {
                let end = part_end(at, *len);
                self.add_part(end, 1);
            }
            Remembered::Calendar { per, periods, ahead } => {
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

    /// Takes back a call that was charged at `at` and never made. What cannot be taken back exactly stays charged: of a paced or bucket limit
    /// only the newest call can be, because later ones were spaced from it.
    pub fn undo(&mut self, at: Nanos, is_newest: bool) {
        match &mut self.state {
            // The time before was at most this: earlier calls may look later than they were, never earlier.
            Remembered::Gcra { every, debt, .. } => {
                *debt = debt.at_pace(*every);
                if is_newest {
                    debt.tat = debt.tat.saturating_sub(*every);
                }
            }
            Remembered::Exact { times, .. } => {
                let next = times.partition_point(|t| *t <= at);
                if let Some(i) = next.checked_sub(1).filter(|i| times[*i] == at) {
                    times.remove(i);
                }
            }
            Remembered::Parts { len, parts, sum, .. } => {
                let end = part_end(at, *len);
                if let Some(part) = parts.iter_mut().rev().find(|p| p.end == end && p.calls > 0) {
                    part.calls -= 1;
                    *sum -= 1;
                }
            }
            Remembered::Calendar { per, periods, ahead } => {
                let at = at.saturating_add(*ahead);
                for start in calendar::touched(per, periods, at).into_iter().flatten().map(|p| p.start) {
                    let period = calendar::remember(per, periods, start);
                    period.calls = period.calls.saturating_sub(1);
                }
            }
        }
    }

    /// The newest calls went out late: later ones are put off by this. Only paced and bucket limits can do that; for others the guard has to do.
    pub fn put_off(&mut self, by: Nanos) {
        if let Remembered::Gcra { every, debt, .. } = &mut self.state {
            *debt = debt.at_pace(*every);
            debt.tat = debt.tat.saturating_add(by);
        }
    }

    /// Calls that count now.
    pub fn used(&self, now: Nanos) -> u64 {
        match &self.state {
            Remembered::Gcra { every, burst, debt } => {
                let left = u64::try_from(debt.at_pace(*every).tat.saturating_sub(now)).unwrap_or(0);
                left.div_ceil(every.unsigned_abs()).min(*burst)
            }
            Remembered::Exact { times, .. } => {
                let old = times.partition_point(|at| at.saturating_add(self.window) <= now);
                (times.len() - old) as u64
            }
            Remembered::Parts { parts, .. } => {
                parts.iter().filter(|p| p.end.saturating_add(self.window) > now).map(|p| p.calls).sum()
            }
            Remembered::Calendar { per, periods, ahead } => {
                calendar::find(per, periods, now.saturating_add(*ahead)).calls
            }
        }
    }

    /// True when nothing charged so far can matter at or after `now`: the same as a new count.
    pub fn is_idle(&self, now: Nanos) -> bool {
        match &self.state {
            Remembered::Gcra { every, debt, .. } => debt.at_pace(*every).tat <= now,
            Remembered::Exact { times, floor } => {
                *floor <= now && times.back().is_none_or(|at| at.saturating_add(self.window) <= now)
            }
            Remembered::Parts { floor, .. } => *floor <= now && self.used(now) == 0,
            Remembered::Calendar { periods, ahead, .. } => {
                periods.iter().all(|p| p.calls == 0 || p.end.saturating_add(SKEW) <= now.saturating_add(*ahead))
            }
        }
    }

    /// How long a call can matter to this limit; `None` for calendars, where the period decides.
    pub fn memory(&self) -> Option<Nanos> {
        match &self.state {
            Remembered::Gcra { every, burst: 1, .. } => Some(*every),
            Remembered::Calendar { .. } => None,
            _ => Some(self.window),
        }
    }

    /// How calls are remembered: a count of another kind cannot go on with this one. Nor can a bucket of another burst: what this one has used up
    /// the other may have left.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        match &self.state {
            Remembered::Gcra { burst: 1, .. } => "paced".into(),
            Remembered::Gcra { burst, .. } => format!("bucket of {burst}").into(),
            Remembered::Exact { .. } => "exact".into(),
            Remembered::Parts { .. } => "parts".into(),
            Remembered::Calendar { .. } => "calendar".into(),
        }
    }

    pub(super) fn method(&self) -> Method {
        match &self.state {
            Remembered::Gcra { every, burst, .. } => Method::Gcra { every: *every, burst: *burst },
            Remembered::Exact { .. } => Method::Exact { window: self.window, kept: kept(size(self.calls)) },
            Remembered::Parts { len, .. } => Method::Parts { window: self.window, len: *len, kept: KEPT_PARTS },
            Remembered::Calendar { .. } => Method::Calendar,
        }
    }

    fn add_part(&mut self, end: Nanos, calls: u64) {
        let Remembered::Parts { parts, sum, floor, .. } = &mut self.state else { return };
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

impl Debt {
    fn none(every: Nanos) -> Debt {
        Debt { tat: Nanos::MIN, newest: Nanos::MIN, every }
    }

    /// The same at another pace: what the newest call left in the bucket stays in it, and leaves it at that pace.
    fn at_pace(self, every: Nanos) -> Debt {
        if every == self.every || self.tat == Nanos::MIN {
            return Debt { every, ..self };
        }
        let from = self.newest.min(self.tat.saturating_sub(self.every)); // a call that was undone is not the newest
        let left = self.tat.abs_diff(from).div_ceil(self.every.unsigned_abs());
        Debt { tat: from.saturating_add(times(every, left)), newest: from, every }
    }

    /// With this many more calls, made by `at`.
    fn plus(self, at: Nanos, calls: u64) -> Debt {
        let tat = self.tat.max(at).saturating_add(times(self.every, calls));
        Debt { tat, newest: self.newest.max(at), ..self }
    }
}

fn gcra(calls: u64, window: Nanos, burst: u64, tick: Nanos) -> Remembered {
    let burst = burst.clamp(1, calls);
    let every = round_up(div_ceil(window, calls - burst + 1), tick);
    Remembered::Gcra { every, burst, debt: Debt::none(every) }
}

/// How many times an exact window of N keeps.
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
