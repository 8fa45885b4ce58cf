//! The index's clock: wall time as it would be if nobody had set the clock since the store was opened.
//!
//! So a job that waits for a duration waits that long, even if the clock is set. Jobs that wait for a time of day are timed again when the
//! clock was set. Never stored: the table has wall time.

use crate::clock::{Clock, Nanos, Time};

/// A wall clock that is off by this much was set. Less is noise: a thread may be interrupted between two readings.
const SET_BY_MS: i64 = 100;

/// Follows the wall clock and its steps.
#[derive(Default)]
pub(super) struct Steady {
    /// The sum of the wall clock's steps since the first look, in milliseconds; negative if it was set back.
    set_by: i64,
    last: Option<(Time, Nanos)>,
}

/// One moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall: Time,
    /// In steady time, in milliseconds.
    pub(super) steady: i64,
}

impl Steady {
    /// Reads the clock; says whether it was set since the last reading.
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

    /// The steady time of a wall time, by the wall clock as it is now.
    pub(super) fn of(&self, at: Time) -> i64 {
        at.0.saturating_sub(self.set_by)
    }

    /// The wall time of a steady time, if the clock is not set until then.
    pub(super) fn wall(&self, at: i64) -> Time {
        Time(at.saturating_add(self.set_by))
    }
}
