//! What a count begins with, and how it goes on when something else changes: a restart, another N, a clock that is set.
//!
//! Pure, like the whole [`rule`](super). It errs to one side: a call may count as made later than it was, never earlier.

use super::{Count, Debt, Remembered, forget_oldest, insert_sorted, kept, size, times};
use crate::{
    clock::Nanos,
    limit::calendar::{self, SKEW, period_at},
};

impl Count {
    /// After a restart: of `calls` calls it is only known that they were made by `ends_at` (for a calendar: in the period that ends then).
    /// They count as made at that very time. To be called in the order of `ends_at`, before the first charge.
    pub fn restore(&mut self, ends_at: Nanos, calls: u64) {
        if calls == 0 {
            return;
        }
        let kept = kept(size(self.calls));
        match &mut self.state {
            Remembered::Gcra { every, burst, debt } => {
                // However many calls: what this limit allowed by then never left a debt of more than the whole bucket.
                let most = ends_at.saturating_add(times(*every, *burst)).max(debt.tat);
                *debt = debt.plus(ends_at, calls);
                debt.tat = debt.tat.min(most);
            }
            Remembered::Exact { times, floor } => {
                // Those beyond what is kept are gone at once, which moves the floor.
                for _ in 0..calls.min(kept as u64 + 1) {
                    insert_sorted(times, ends_at);
                }
                forget_oldest(times, floor, kept, self.window);
            }
            Remembered::Parts { .. } => self.add_part(ends_at, calls),
            Remembered::Calendar { per, periods, .. } => {
                let period = calendar::remember(per, periods, ends_at.saturating_sub(1));
                period.calls = period.calls.saturating_add(calls);
            }
        }
    }

    /// `calls` calls were made by `at`, under whatever limits. Unlike with [`Count::restore`] they may be more than this limit would have allowed:
    /// a paced or bucket limit pays them off one by one. To be called in the order of `at`, before the first charge.
    pub(in crate::limit) fn made(&mut self, at: Nanos, calls: u64) {
        match &mut self.state {
            Remembered::Gcra { debt, .. } => *debt = debt.plus(at, calls),
            Remembered::Calendar { ahead, .. } => {
                let ends_at = at.saturating_add(*ahead).saturating_add(1);
                self.restore(ends_at, calls);
            }
            Remembered::Exact { .. } | Remembered::Parts { .. } => self.restore(at, calls),
        }
    }

    /// The state of a process that knows nothing of the one before it: as if all calls had been made at `at`.
    pub fn fill(&mut self, at: Nanos) {
        self.restore(at, self.calls);
    }

    /// Calls before this matter to nothing from `now` on.
    pub(in crate::limit) fn matters_from(&self, now: Nanos) -> Nanos {
        match &self.state {
            Remembered::Calendar { per, ahead, .. } => {
                period_at(per, now.saturating_add(*ahead).saturating_sub(SKEW)).0.saturating_sub(*ahead)
            }
            _ => now.saturating_sub(self.window),
        }
    }

    /// Wall time is so far ahead of the timeline, and was for all calls so far. Only calendars go by it.
    pub(in crate::limit) fn believe(&mut self, to: Nanos) {
        if let Remembered::Calendar { ahead, .. } = &mut self.state {
            *ahead = to;
        }
    }

    /// The wall clock was set, and is `to` ahead of the timeline from now on: these are all the calls that matter. Only calendars go by it.
    pub(in crate::limit) fn recount(&mut self, to: Nanos, calls: impl Iterator<Item = Nanos>) {
        let Remembered::Calendar { periods, ahead, .. } = &mut self.state else { return };
        periods.clear();
        *ahead = to;
        calls.for_each(|at| self.charge(at));
    }

    /// The same where the times of the calls are not known (see [`calendar::stepped`]).
    pub(in crate::limit) fn step(&mut self, to: Nanos, now: Nanos) {
        let Remembered::Calendar { per, periods, ahead } = &mut self.state else { return };
        let before = std::mem::replace(ahead, to);
        for period in calendar::stepped(per, periods, (before, to), now) {
            calendar::remember(per, periods, period.start).calls = period.calls;
        }
    }

    /// The same history under another N. `fresh` has it, and counts the same calls in the same way.
    pub(in crate::limit) fn retuned(mut self, fresh: &Count) -> Count {
        self.calls = fresh.calls;
        if let (Remembered::Gcra { every, .. }, Remembered::Gcra { every: new, .. }) = (&mut self.state, &fresh.state) {
            *every = *new;
        }
        self
    }

    /// Has nothing charged any more.
    pub(in crate::limit) fn forget(&mut self) {
        match &mut self.state {
            Remembered::Gcra { every, debt, .. } => *debt = Debt::none(*every),
            Remembered::Exact { times, floor } => {
                times.clear();
                *floor = Nanos::MIN;
            }
            Remembered::Parts { parts, sum, floor, .. } => {
                parts.clear();
                (*sum, *floor) = (0, Nanos::MIN);
            }
            Remembered::Calendar { periods, .. } => periods.clear(),
        }
    }

    /// When a whole bucket was used up at once, if nothing was called since: of a count that was filled and never charged.
    pub(in crate::limit) fn used_up_at(&self) -> Option<Nanos> {
        match &self.state {
            Remembered::Gcra { debt, .. } => Some(debt.newest).filter(|at| *at > Nanos::MIN),
            _ => None,
        }
    }

    /// The time at which a count that begins as used up would be no sooner free than this one, in microseconds; 0 for one that is free.
    pub(in crate::limit) fn used_up_since(&self) -> i64 {
        let at = match &self.state {
            Remembered::Gcra { every, burst, debt } => debt.at_pace(*every).tat.saturating_sub(times(*every, *burst)),
            Remembered::Exact { times, floor } => {
                times.back().copied().unwrap_or(Nanos::MIN).max(floor.saturating_sub(self.window))
            }
            Remembered::Parts { parts, floor, .. } => {
                parts.back().map_or(Nanos::MIN, |part| part.end).max(floor.saturating_sub(self.window))
            }
            Remembered::Calendar { .. } => Nanos::MIN,
        };
        at.max(0).div_euclid(1_000)
    }

    /// What the scripts store of this, in microseconds (see `redis/shapes.lua`).
    pub(in crate::limit) fn stored(&self) -> Vec<i64> {
        let micros = |at: Nanos| at.max(0).div_euclid(1_000);
        match &self.state {
            Remembered::Gcra { debt, .. } => vec![micros(debt.tat), micros(debt.every), micros(debt.newest)],
            Remembered::Exact { times, floor } => {
                let forgotten = if *floor > Nanos::MIN { micros(floor.saturating_sub(self.window)) } else { 0 };
                std::iter::once(forgotten).chain(times.iter().map(|at| micros(*at))).collect()
            }
            Remembered::Parts { parts, floor, .. } => {
                let parts =
                    parts.iter().flat_map(|part| [micros(part.end), i64::try_from(part.calls).unwrap_or(i64::MAX)]);
                std::iter::once(micros(*floor)).chain(parts).collect()
            }
            Remembered::Calendar { periods, .. } => {
                let used = periods.iter().filter(|period| period.calls > 0);
                used.flat_map(|p| [micros(p.start), i64::try_from(p.calls).unwrap_or(i64::MAX)]).collect()
            }
        }
    }
}
