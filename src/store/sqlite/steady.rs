//! The time that the index goes by: wall time as it would be if nobody had set the clock since the store was opened.
//!
//! What has to wait for so long waits that long, whatever is done to the clock. What has to wait for a time of day is told when the clock was
//! set. Never writes anything down: what is stored is wall time as it was.

use crate::clock::{Clock, Nanos, Time};

/// A clock that is off by this much from what it should be was set. Less is noise: a thread that was put aside between two readings.
const SET_BY_MS: i64 = 100;

/// Follows the clock and what is done to it.
#[derive(Default)]
pub(super) struct Steady {
    /// How far the wall clock was set since the first look, in milliseconds; back counts as less.
    set_by: i64,
    last: Option<(Time, Nanos)>,
}

/// One moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: Time,
    /// In the steady time, in milliseconds.
    pub(super) steady: i64,
}

impl Steady {
    /// Looks at the clock; says, too, whether it was set since the last look.
    pub(super) fn look(&mut self, clock: &Clock) -> (Now, bool) {
        let (wall, timeline) = clock.both();
        let passed = |since: Nanos| timeline.saturating_sub(since).div_euclid(1_000_000);
        let by = self.last.map_or(0, |(last, at)| wall.0.saturating_sub(last.0).saturating_sub(passed(at)));
        let is_set = by.abs() >= SET_BY_MS;
        if is_set {
            self.set_by = self.set_by.saturating_add(by);
            tracing::warn!(by_ms = by, "the wall clock was set; not_before and deadlines go by it, nothing else does");
        }
        self.last = Some((wall, timeline));
        (Now { wall, steady: self.of(wall) }, is_set)
    }

    /// A time as it is meant by the wall clock of now.
    pub(super) fn of(&self, at: Time) -> i64 {
        at.0.saturating_sub(self.set_by)
    }

    /// What the wall clock shows then, if it is not set until then.
    pub(super) fn wall(&self, at: i64) -> Time {
        Time(at.saturating_add(self.set_by))
    }
}
