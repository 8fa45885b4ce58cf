//! The record of calls: what was sent when, how much that is in all, and what the judge made of it.
//!
//! Never knows a limit, and never looks into a block (see `audit`). Times are microseconds on the limiter's clock.

use async_trait::async_trait;

use super::StoreError;

/// No block spans more than this, so that those that reach into a range are found by where they begin.
pub const MOST_SPAN: i64 = 10_000_000;

/// Some calls of one pool, made by one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallBlock {
    /// Drawn by its writer: a block that is written twice is there once.
    pub id: i64,
    pub pool: String,
    pub first: i64,
    pub last: i64,
    pub count: u64,
    /// The times, and who called.
    pub body: Vec<u8>,
}

/// How often a vendor was called, and asked us to slow down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub vendor: String,
    pub calls: u64,
    pub throttled: u64,
}

/// What the judge of a pool's calls has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// All calls before this have been judged.
    pub judged_to: i64,
    /// The findings, as the judge writes them.
    pub body: String,
}

/// Where a page of blocks begins: after the block that began then and has this id.
pub type After = (i64, i64);

/// The durable record. Every method returns only when what it did is durable.
#[async_trait]
pub trait CallLog: Send + Sync {
    /// Adds blocks, and with each what it adds to the tallies. A block that is there already adds nothing.
    async fn log(&self, blocks: &[(CallBlock, Vec<Tally>)]) -> Result<(), StoreError>;

    /// Blocks of a pool that begin after `after` and not after `until`, in the order in which they begin; at most `most`.
    async fn calls(&self, pool: &str, after: After, until: i64, most: usize) -> Result<Vec<CallBlock>, StoreError>;

    /// Deletes some blocks that begin before `before`; says whether there may be more.
    async fn forget(&self, pool: &str, before: i64) -> Result<bool, StoreError>;

    /// All that was ever counted for a vendor.
    async fn tally(&self, vendor: &str) -> Result<Tally, StoreError>;

    async fn verdict(&self, pool: &str) -> Result<Option<Verdict>, StoreError>;

    /// Writes a verdict if the one that is there still says `judged_to`, or if there is none; says whether it was written.
    async fn judge(&self, pool: &str, judged_to: Option<i64>, verdict: &Verdict) -> Result<bool, StoreError>;
}
