//! What several limits allow together: the next slot, how far apart calls are, and how many fit.
//!
//! Never charges anything: it computes on copies.

use std::collections::VecDeque;

use super::{Count, Remembered, size, times};
use crate::{
    clock::{Nanos, nanos},
    limit::{
        Limit, Per, Shape,
        calendar::{self, SKEW},
    },
};

/// Calls of a burst are this far apart: a burst in one instant would queue at the vendor, and a call that the vendor counts late is counted into
/// the next window. Never so far that N calls would take more than half a window.
const LEAST_GAP: Nanos = 1_000_000;

/// The first time at or after `t` that all these limits allow, and which of them decides it.
pub fn slot(counts: &[Count], t: Nanos) -> (Nanos, Option<usize>) {
    let (mut at, mut by) = (t, None);
    loop {
        let before = at;
        for (i, count) in counts.iter().enumerate() {
            let earliest = count.earliest(at);
            if earliest > at {
                (at, by) = (earliest, Some(i));
            }
        }
        if at == before || at == Nanos::MAX {
            return (at, by);
        }
    }
}

/// How far apart any two calls under these limits are at least, and because of which limit: whole ticks, 0 where none allows a burst.
pub fn gap(limits: &[Limit], tick: Nanos) -> (Nanos, Option<usize>) {
    let bursts = limits.iter().enumerate().filter_map(|(i, limit)| match (&limit.per, limit.shape) {
        (Per::Rolling(period), Shape::Window | Shape::Bucket { .. }) => {
            let gap = LEAST_GAP.min(nanos(*period) / times(2, limit.calls).max(1));
            Some((gap / tick * tick, Some(i)))
        }
        _ => None,
    });
    bursts.min().unwrap_or((0, None))
}

/// How many calls these limits allow from `from` (a common slot) to `until`, each as early as possible and `gap` apart; at most `most`.
pub fn room(counts: &[Count], gap: Nanos, from: Nanos, until: Nanos, most: usize) -> usize {
    if from > until || most == 0 {
        return 0;
    }
    // Paced limits alone have a closed form, and the others often do not bind that far.
    let paces = counts.iter().filter_map(Count::pace).chain((gap > 0).then_some(gap));
    let fit = paces.max().map_or(u64::MAX, |every| until.abs_diff(from) / every.unsigned_abs() + 1);
    let most = most.min(usize::try_from(fit).unwrap_or(usize::MAX));
    if counts.iter().all(|count| count.pace().is_some() || count.is_free(from, until, most)) {
        return most;
    }
    slots(counts, gap, from, until, most).len()
}

/// The times of these calls.
pub fn slots(counts: &[Count], gap: Nanos, from: Nanos, until: Nanos, most: usize) -> Vec<Nanos> {
    let mut ahead: Vec<Ahead<'_>> = counts.iter().map(Ahead::new).collect();
    let mut slots = Vec::with_capacity(most.min(1_024));
    let mut at = from;
    while slots.len() < most {
        loop {
            let before = at;
            for count in &ahead {
                at = count.earliest(at, &slots);
            }
            if at == before {
                break;
            }
        }
        if at > until {
            break;
        }
        slots.push(at);
        ahead.iter_mut().for_each(|count| count.charge(at));
        at = at.saturating_add(gap);
    }
    slots
}

/// A count some calls further on, without copying the times: the calls ahead are the same for all limits of the pool.
enum Ahead<'a> {
    Exact { calls: usize, window: Nanos, times: &'a VecDeque<Nanos>, floor: Nanos },
    Own(Count),
}

impl Ahead<'_> {
    fn new(count: &Count) -> Ahead<'_> {
        match &count.state {
            Remembered::Exact { times, floor } => {
                Ahead::Exact { calls: size(count.calls), window: count.window, times, floor: *floor }
            }
            _ => Ahead::Own(count.clone()),
        }
    }

    fn earliest(&self, t: Nanos, slots: &[Nanos]) -> Nanos {
        match self {
            Ahead::Own(count) => count.earliest(t),
            Ahead::Exact { calls, window, times, floor } => {
                let nth = (times.len() + slots.len()).checked_sub(*calls);
                let nth = nth.map(|i| times.get(i).copied().unwrap_or_else(|| slots[i - times.len()]));
                t.max(*floor).max(nth.map_or(t, |at| at.saturating_add(*window)))
            }
        }
    }

    fn charge(&mut self, at: Nanos) {
        if let Ahead::Own(count) = self {
            count.charge(at);
        }
    }
}

impl Count {
    /// E, when this limit is nothing but a pace.
    fn pace(&self) -> Option<Nanos> {
        match &self.state {
            Remembered::Gcra { every, burst: 1, .. } => Some(*every),
            _ => None,
        }
    }

    /// True when `most` calls may all go at any times from `from` to `until`, as far as this limit goes. May say no too often.
    fn is_free(&self, from: Nanos, until: Nanos, most: usize) -> bool {
        let calls = size(self.calls);
        match &self.state {
            Remembered::Gcra { every, burst, debt } => {
                let after =
                    debt.at_pace(*every).tat.max(from).saturating_add(times(*every, most.saturating_sub(1) as u64));
                after.saturating_sub(times(*every, burst - 1)) <= from
            }
            Remembered::Exact { times, .. } => {
                most <= calls
                    && (times.len() + most)
                        .checked_sub(calls + 1)
                        .is_none_or(|i| times[i].saturating_add(self.window) <= from)
            }
            Remembered::Parts { .. } => self.used(from).saturating_add(most as u64) <= self.calls,
            Remembered::Calendar { per, periods, ahead } => {
                let (from, until) = (from.saturating_add(*ahead), until.saturating_add(*ahead));
                let period = calendar::find(per, periods, from);
                period.calls.saturating_add(most as u64) <= self.calls
                    && from.saturating_sub(SKEW) >= period.start
                    && until.saturating_add(SKEW) < period.end
            }
        }
    }
}
