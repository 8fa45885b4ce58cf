//! What a script is asked and what it answers, and where its times lie on our own timeline.
//!
//! Never talks to Redis itself (see the parent module).

use std::sync::Arc;

use serde::Serialize;

use super::spec::{Edges, MICRO};
use crate::clock::Nanos;

/// The second argument of every script on a pool; the first is the pool's spec.
#[derive(Debug, Default, Serialize)]
pub(super) struct Call<'a> {
    /// The time, when a test gives it; 0 asks Redis.
    pub(super) now: i64,
    /// What Redis should say the time is, going by its last answer in this epoch; 0 when that is not known.
    pub(super) expected: i64,
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
    pub(super) history: Option<Vec<Row>>,
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

/// What the book has of one sub-window.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) ledger: usize,
    pub(super) tenant: String,
    /// In milliseconds: the sub-window's name in the book.
    pub(super) ends_at: i64,
    /// When it began, of a calendar period.
    pub(super) start: i64,
    pub(super) calls: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) counts_only: bool,
}

/// An answer as it comes: state, time, epoch, gate, and two lists that depend on the script.
pub(super) type Raw = (String, i64, String, i64, Vec<i64>, Vec<i64>);

/// An answer that counts.
#[derive(Debug)]
pub(super) struct Heard {
    /// What the time was in Redis.
    pub(super) redis: i64,
    pub(super) line: Line,
    pub(super) epoch: String,
    pub(super) gate: i64,
    pub(super) numbers: Vec<i64>,
    /// What has to be paid: triples of ledger, end and calls.
    pub(super) due: Vec<i64>,
}

/// Where the times of Redis lie on our timeline: the bounds of what has to be added to them.
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

    /// The same, made narrower by an earlier one: an answer that was slow need not make its permits useless. Clocks drift apart by
    /// less than a thousandth. When the two do not agree, a clock has stepped, and only the new one counts.
    pub(super) fn narrowed(self, earlier: &Line) -> Line {
        let drift = self.heard.saturating_sub(earlier.heard).abs() / 1_000 + MICRO;
        let low = self.low.max(earlier.low.saturating_sub(drift));
        let high = self.high.min(earlier.high.saturating_add(drift));
        if low <= high { Line { low, high, ..self } } else { self }
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
