//! Calendar periods of a vendor: which day or month a call counts in, in the vendor's own time zone.
//!
//! Pure, like [`rule`](super::rule): the time zone's own table is the only thing it reads.

use std::collections::{BTreeMap, VecDeque};

use jiff::{Timestamp, ToSpan, Zoned};

use super::Per;
use crate::clock::Nanos;

/// How far the vendor's calendar clock may be from ours, our lateness and the link's jitter included.
pub const SKEW: Nanos = 5_000_000_000;

/// One day or month: [start, end).
#[derive(Debug, Clone, Copy)]
pub(super) struct Period {
    pub(super) start: Nanos,
    pub(super) end: Nanos,
    pub(super) calls: u64,
}

/// The calendar period that holds `at`: its start, and the end that is no longer in it.
pub fn period_at(per: &Per, at: Nanos) -> (Nanos, Nanos) {
    let look_up = || -> Result<(Nanos, Nanos), jiff::Error> {
        let utc = Timestamp::from_nanosecond(i128::from(at))?;
        let edge = |z: Zoned| Nanos::try_from(z.timestamp().as_nanosecond()).unwrap_or(Nanos::MAX);
        match per {
            Per::Day(zone) => {
                let start = utc.to_zoned(zone.clone()).start_of_day()?;
                let end = start.checked_add(1.day())?.start_of_day()?;
                Ok((edge(start), edge(end)))
            }
            Per::Month(zone) => {
                let start = utc.to_zoned(zone.clone()).first_of_month()?.start_of_day()?;
                let end = start.checked_add(1.month())?.start_of_day()?;
                Ok((edge(start), edge(end)))
            }
            Per::Rolling(_) => Ok((Nanos::MIN, Nanos::MAX)),
        }
    };
    // Outside of the years that jiff knows the period never ends: what is used up stays used up.
    look_up().unwrap_or((Nanos::MIN, Nanos::MAX))
}

/// The first time at or after `t` when a call finds room in every period that it counts in.
pub(super) fn earliest(per: &Per, periods: &VecDeque<Period>, calls: u64, t: Nanos) -> Nanos {
    let mut t = t;
    // Each round leaves a full period behind, and only remembered ones can be full.
    for _ in 0..=periods.len() {
        match touched(per, periods, t).into_iter().flatten().find(|p| p.calls >= calls) {
            Some(full) => t = t.max(full.end.saturating_add(SKEW)),
            None => return t,
        }
    }
    t
}

/// The periods that a call at `at` counts in: its own, and a neighbour whose edge is within the skew.
pub(super) fn touched(per: &Per, periods: &VecDeque<Period>, at: Nanos) -> [Option<Period>; 3] {
    let own = find(per, periods, at);
    let before = at.saturating_sub(SKEW) < own.start && own.start > Nanos::MIN;
    let after = at.saturating_add(SKEW) >= own.end && own.end < Nanos::MAX;
    [before.then(|| find(per, periods, own.start - 1)), Some(own), after.then(|| find(per, periods, own.end))]
}

/// What periods count when wall time was `before` ahead of the timeline and is `ahead` from `now` on. Nobody knows which time was right, so each
/// period has its own calls and those of every period that it may have been part of.
pub(super) fn stepped(
    per: &Per,
    periods: &VecDeque<Period>,
    (before, ahead): (Nanos, Nanos),
    now: Nanos,
) -> Vec<Period> {
    let (by, wall) = (ahead.saturating_sub(before), now.saturating_add(ahead));
    let mut found: BTreeMap<Nanos, Period> = BTreeMap::new();
    for old in periods.iter().filter(|old| old.calls > 0 && by != 0) {
        // None of its calls lies ahead.
        let (from, to) = (old.start.saturating_add(by), old.end.saturating_add(by).min(wall.saturating_add(1)));
        if from >= to {
            continue;
        }
        let touched = [period_at(per, from), period_at(per, to - 1)];
        let both = if touched[0] == touched[1] { &touched[..1] } else { &touched[..] };
        for (start, end) in both.iter().copied() {
            let own = || periods.iter().find(|own| own.start == start).map_or(0, |own| own.calls);
            let period = found.entry(start).or_insert_with(|| Period { start, end, calls: own() });
            if old.start != start {
                period.calls = period.calls.saturating_add(old.calls);
            }
        }
    }
    found.into_values().collect()
}

/// The period that holds `at`, with what is known of it.
pub(super) fn find(per: &Per, periods: &VecDeque<Period>, at: Nanos) -> Period {
    periods.iter().rev().find(|p| p.start <= at && at < p.end).copied().unwrap_or_else(|| {
        let (start, end) = period_at(per, at);
        Period { start, end, calls: 0 }
    })
}

/// The same, to be changed.
pub(super) fn remember<'a>(per: &Per, periods: &'a mut VecDeque<Period>, at: Nanos) -> &'a mut Period {
    let known = periods.iter().rposition(|p| p.start <= at && at < p.end);
    let i = known.unwrap_or_else(|| {
        let period = find(per, periods, at);
        let i = periods.partition_point(|p| p.start < period.start);
        periods.insert(i, period);
        i
    });
    &mut periods[i]
}
