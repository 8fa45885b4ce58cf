//! Where the times of a pool lie on our own timeline.
//!
//! Pure: reads no clock and never compares the wall clocks of two machines.

use super::spec::MICRO;
use crate::clock::Nanos;

/// Clocks that move by less against each other, in microseconds, were not set: the readings were inexact.
const LEAST_STEP: i64 = 1_000;
/// A clock that is set by more may have made Redis expire keys of tenants too early.
pub(super) const LOSING_STEP: i64 = 1_000_000;

/// What has to be added to a time of the pool: at least `low` and at most `high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offset {
    low: Nanos,
    high: Nanos,
    /// When the last reading arrived.
    read_at: Nanos,
}

impl Offset {
    /// From one reading of the pool's time, which was taken at some moment between the request and the reply.
    pub(super) fn new(requested: Nanos, replied: Nanos, reading: i64) -> Offset {
        let reading = reading.saturating_mul(MICRO);
        Offset { low: requested.saturating_sub(reading), high: replied.saturating_sub(reading), read_at: replied }
    }

    /// Combines a new reading with what was known before, so that a slow reply does not make its permits useless. Also gives by how much the
    /// clock that was read has moved against ours since, in microseconds; 0 if it has not. If it has, what was known before still holds.
    pub(super) fn follow(self, reading: Offset) -> (Offset, i64) {
        let earlier = self.at(reading.read_at);
        let (low, high) = (reading.low.max(earlier.low), reading.high.min(earlier.high));
        if low <= high {
            return (Offset { low, high, ..reading }, 0);
        }
        // The least that the clock was set back by, or the most that it was set forward by: the timeline is never ahead of the truth.
        let by = earlier.high.saturating_sub(reading.low);
        let by = if by > 0 { by.saturating_add(MICRO - 1) / MICRO } else { by / MICRO };
        if by.abs() >= LEAST_STEP {
            return (earlier, by);
        }
        // Too small for a step. It is safe to follow a clock that is slow, but not one that is fast.
        (if by < 0 { reading } else { earlier }, 0)
    }

    /// What is still known at `now`: clocks drift apart by less than a thousandth.
    fn at(self, now: Nanos) -> Offset {
        let since = now.saturating_sub(self.read_at).abs();
        let drift = if since == 0 { 0 } else { since / 1_000 + MICRO };
        Offset {
            low: self.low.saturating_sub(drift),
            high: self.high.saturating_add(drift),
            read_at: now.max(self.read_at),
        }
    }

    /// The latest time of the pool that it can be, by our own clock.
    pub(super) fn latest_at(self, now: Nanos) -> i64 {
        now.saturating_sub(self.at(now).low).div_euclid(MICRO)
    }

    /// The pool's time `at` on our timeline, or later.
    pub(super) fn never_early(&self, at: i64) -> Nanos {
        at.saturating_mul(MICRO).saturating_add(self.high)
    }

    /// The pool's time `at` on our timeline, or earlier.
    pub(super) fn never_late(&self, at: i64) -> Nanos {
        at.saturating_mul(MICRO).saturating_add(self.low)
    }

    /// The pool's time now, by our own clock, or earlier.
    pub(super) fn redis_at(&self, now: Nanos) -> i64 {
        now.saturating_sub(self.high).div_euclid(MICRO)
    }
}
