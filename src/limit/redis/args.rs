//! The arguments and the reply of a script on a pool.
//!
//! Never talks to Redis itself (see [`run`](super::run)).

use std::sync::Arc;

use serde::Serialize;

use super::{offset::Offset, spec::Edges};

/// The second argument of every script on a pool; the first is the pool's spec. Times and durations are in microseconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Args<'a> {
    /// The time, when a test injects it; 0 makes the script ask Redis.
    pub(super) now: i64,
    /// The latest that it can be on the pool's timeline, going by earlier replies; 0 when that is not known.
    pub(super) latest: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<Step>,
    pub(super) epoch: String,
    /// A name that nobody else uses.
    pub(super) nonce: String,
    /// The loss of state that `history` was read after.
    pub(super) token: String,
    /// Permits lie no further ahead than this.
    pub(super) horizon: i64,
    /// And no nearer than this, because the reply takes so long.
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
    /// Close the gate for so long, and publish that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) close: Option<i64>,
    pub(super) channel: &'a str,
}

/// A sub-window's number of calls that is durable in the book by now.
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

/// Calls went out late, the newest of them with the permit at `at`, and none later than `by`: later calls are put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Late {
    pub(super) at: i64,
    pub(super) by: i64,
}

/// Redis' clock was set: it is `to` ahead of the pool's timeline from here on, if it was `from` ahead before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    pub(super) from: i64,
    pub(super) to: i64,
    /// The step is so large that Redis may have expired keys too early: a new epoch begins.
    pub(super) loses: bool,
}

/// What new counts begin with.
#[derive(Debug, Default, Serialize)]
pub(super) struct History {
    pub(super) counts: Vec<CountRow>,
    /// For each limit, since when a tenant without a count counts as having used up everything; 0 for one that has used nothing.
    pub(super) opened: Vec<i64>,
    pub(super) rows: Vec<Row>,
    /// The newest permit that is included.
    pub(super) newest: i64,
    /// For a new epoch: all permits after this will be on record, and none is given before `gate`.
    pub(super) opened_at: i64,
    pub(super) gate: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct CountRow {
    pub(super) limit: usize,
    pub(super) tenant: Arc<str>,
    /// As the script stores it (see shapes.lua).
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

/// A reply as Redis gives it: state, time, epoch, gate, how far Redis' clock is ahead, and lists that depend on the script.
pub(super) type RawReply = (String, i64, String, i64, i64, Vec<i64>, Vec<i64>, Vec<String>);

/// The reply of a script that found the pool open.
#[derive(Debug)]
pub(super) struct Reply {
    /// The time of the reply on the pool's timeline.
    pub(super) at: i64,
    pub(super) offset: Offset,
    pub(super) epoch: String,
    pub(super) gate: i64,
    pub(super) numbers: Vec<i64>,
    /// What has to be paid: ledger, wish, end and calls of each.
    pub(super) due: Vec<i64>,
}
