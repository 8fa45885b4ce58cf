//! What a script is asked and what it answers, and where its times lie on our own timeline.
//!
//! Never talks to Redis itself (see the parent module).

use std::sync::Arc;

use serde::Serialize;

use super::spec::{Edges, MICRO};
use crate::clock::Nanos;

/// Clocks that move by less against each other, in microseconds, were read, and not set.
const LEAST_STEP: i64 = 1_000;
/// A clock that is set by more may have made Redis forget keys of tenants.
pub(super) const LOSING_STEP: i64 = 1_000_000;

/// The second argument of every script on a pool; the first is the pool's spec.
#[derive(Debug, Default, Serialize)]
pub(super) struct Call<'a> {
    /// The time, when a test gives it; 0 asks Redis.
    pub(super) now: i64,
    /// The latest that it can be on the pool's timeline, going by earlier answers; 0 when that is not known.
    pub(super) latest: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<Step>,
    pub(super) epoch: String,
    /// A name that nobody else uses.
    pub(super) nonce: String,
    /// The loss of state that `history` was read after.
    pub(super) token: String,
    /// Permits lie no further ahead than this.
    pub(super) ahead: i64,
    /// And no nearer than this, because the answer will be so long on its way.
    pub(super) lead: i64,
    pub(super) most: usize,
    pub(super) edges: Vec<Edges>,
    pub(super) tenants: &'a [Arc<str>],
    pub(super) paid: &'a [Paid],
    /// Permits that were not used, given in this epoch.
    pub(super) undo: &'a [Undo],
    pub(super) undo_epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) late: Option<Late>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) history: Option<History>,
    /// Close the gate for so long, and tell everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) close: Option<i64>,
    pub(super) channel: &'a str,
}

/// A sub-window's number that is durable in the book by now.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Paid {
    pub(super) ledger: usize,
    pub(super) tenant: Arc<str>,
    pub(super) ends_at: i64,
    pub(super) calls: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct Undo {
    pub(super) at: i64,
    pub(super) tenant: Arc<str>,
}

/// Calls went out late, the newest of them with the permit at `at`, and none later than `by`: those to come are put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Late {
    pub(super) at: i64,
    pub(super) by: i64,
}

/// Redis' clock was set: it is so far ahead of the pool's timeline from here on, if it was so far before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    pub(super) from: i64,
    pub(super) to: i64,
    /// By so much that Redis may have forgotten what it still needed: a new epoch begins.
    pub(super) loses: bool,
}

/// What new counts begin with.
#[derive(Debug, Default, Serialize)]
pub(super) struct History {
    pub(super) counts: Vec<CountRow>,
    /// For each limit, since when a tenant without a count counts as having used up everything; 0 for nothing.
    pub(super) opened: Vec<i64>,
    pub(super) rows: Vec<Row>,
    /// The newest permit that is in this.
    pub(super) newest: i64,
    /// Of a new epoch: all permits after this will be on record, and none is given before `gate`.
    pub(super) opened_at: i64,
    pub(super) gate: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct CountRow {
    pub(super) limit: usize,
    pub(super) tenant: Arc<str>,
    /// As the script keeps it (see shapes.lua).
    pub(super) stored: Vec<i64>,
}

/// What the book has of one sub-window.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) ledger: usize,
    pub(super) tenant: String,
    /// In milliseconds: the sub-window's name in the book.
    pub(super) ends_at: i64,
    pub(super) calls: u64,
}

/// An answer as it comes: state, time, epoch, gate, how far Redis' clock is ahead, and lists that depend on the script.
pub(super) type Raw = (String, i64, String, i64, i64, Vec<i64>, Vec<i64>, Vec<String>);

/// An answer that counts.
#[derive(Debug)]
pub(super) struct Heard {
    /// What the time was, on the pool's timeline.
    pub(super) redis: i64,
    pub(super) line: Line,
    pub(super) epoch: String,
    pub(super) gate: i64,
    pub(super) numbers: Vec<i64>,
    /// What has to be paid: ledger, wish, end and calls of each.
    pub(super) due: Vec<i64>,
}

/// Where the times of a pool lie on our own timeline: the bounds of what has to be added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    low: Nanos,
    high: Nanos,
    /// When the last reading came.
    heard: Nanos,
}

impl Line {
    /// From one reading, which was made at some time between the question and the answer.
    pub(super) fn new(before: Nanos, after: Nanos, redis: i64) -> Line {
        let redis = redis.saturating_mul(MICRO);
        Line { low: before.saturating_sub(redis), high: after.saturating_sub(redis), heard: after }
    }

    /// A new reading, with what was known before: an answer that was slow need not make its permits useless. Gives also by how much the clock
    /// that was read has moved against ours since, in microseconds (0: it has not). Then what was known before still holds.
    pub(super) fn follow(self, reading: Line) -> (Line, i64) {
        let earlier = self.at(reading.heard);
        let (low, high) = (reading.low.max(earlier.low), reading.high.min(earlier.high));
        if low <= high {
            return (Line { low, high, ..reading }, 0);
        }
        // The least that the clock was set back by, or the most that it was set forward by: the timeline is never ahead of the truth.
        let by = earlier.high.saturating_sub(reading.low);
        let by = if by > 0 { by.saturating_add(MICRO - 1) / MICRO } else { by / MICRO };
        if by.abs() >= LEAST_STEP {
            return (earlier, by);
        }
        // Not worth a step. A clock that is slow may be followed, one that is fast not.
        (if by < 0 { reading } else { earlier }, 0)
    }

    /// What is still known of it at `now`: clocks drift apart by less than a thousandth.
    fn at(self, now: Nanos) -> Line {
        let since = now.saturating_sub(self.heard).abs();
        let drift = if since == 0 { 0 } else { since / 1_000 + MICRO };
        Line { low: self.low.saturating_sub(drift), high: self.high.saturating_add(drift), heard: now.max(self.heard) }
    }

    /// The latest that it can be, by our own clock.
    pub(super) fn latest_at(self, now: Nanos) -> i64 {
        now.saturating_sub(self.at(now).low).div_euclid(MICRO)
    }

    /// Not earlier than the time meant.
    pub(super) fn never_early(&self, at: i64) -> Nanos {
        at.saturating_mul(MICRO).saturating_add(self.high)
    }

    /// Not later than the time meant.
    pub(super) fn never_late(&self, at: i64) -> Nanos {
        at.saturating_mul(MICRO).saturating_add(self.low)
    }

    /// What the time in Redis should be now, by our own clock.
    pub(super) fn redis_at(&self, now: Nanos) -> i64 {
        now.saturating_sub(self.high).div_euclid(MICRO)
    }
}
