//! The calls on record, of all processes, in the order of their times, page by page.
//!
//! Never keeps more than a page of blocks, and the calls that reach beyond its end.

use std::sync::Arc;

use super::{
    block::{self, Call},
    judge::Judge,
};
use crate::store::{
    StoreError,
    calls::{CallLog, MOST_SPAN},
};

/// Blocks read at once: at most a million calls, and at 50 calls a second four minutes.
const PAGE: usize = 256;

/// Calls looked at for one question.
pub const MOST_EXAMINED: u64 = 2_000_000;

/// Passes the calls of [from, until) to the judge; returns how many there were, or `None` if there are too many to read.
pub async fn examine(mut reader: Reader, judge: &mut Judge) -> Result<Option<u64>, StoreError> {
    let mut examined = 0;
    while let Some((calls, _)) = reader.next().await? {
        examined += calls.len() as u64;
        if examined > MOST_EXAMINED {
            return Ok(None);
        }
        for call in &calls {
            judge.see(call);
        }
        tokio::task::yield_now().await;
    }
    Ok(Some(examined))
}

/// Reads the calls of a pool in [from, until).
pub struct Reader {
    log: Arc<dyn CallLog>,
    pool: Arc<str>,
    from: i64,
    until: i64,
    /// The last block that was read; nothing when all have been.
    after: Option<(i64, i64)>,
    /// Calls of blocks that were read, which may come after some of a block that was not.
    rest: Vec<Call>,
}

impl Reader {
    pub fn new(log: Arc<dyn CallLog>, pool: Arc<str>, from: i64, until: i64) -> Reader {
        let after = Some((from.saturating_sub(MOST_SPAN), i64::MIN));
        Reader { log, pool, from, until, after, rest: Vec::new() }
    }

    /// The next calls, and the time before which all have come; nothing after the last.
    pub async fn next(&mut self) -> Result<Option<(Vec<Call>, i64)>, StoreError> {
        let Some(after) = self.after else { return Ok(None) };
        let blocks = self.log.calls(&self.pool, after, self.until.saturating_sub(1), PAGE).await?;
        let mut calls = std::mem::take(&mut self.rest);
        for block in &blocks {
            block::decode(block, &mut calls)?;
        }
        // What comes in order, from a few processes, is sorted by merging.
        calls.sort_by_key(|call| call.at);
        calls.drain(..calls.partition_point(|call| call.at < self.from));
        self.after = blocks.last().filter(|_| blocks.len() == PAGE).map(|last| (last.first, last.id));
        // Whatever is still to be read begins with the last of these blocks at the earliest.
        let complete_to = self.after.map_or(self.until, |(first, _)| first.clamp(self.from, self.until));
        self.rest = calls.split_off(calls.partition_point(|call| call.at < complete_to));
        Ok(Some((calls, complete_to)))
    }
}
