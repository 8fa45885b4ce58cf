//! The record of calls: what was sent when, the totals, and what the judge found.
//!
//! Never knows a limit, and never reads the body of a block (see `audit`). Times are microseconds on the limiter's clock.

use async_trait::async_trait;

use super::StoreError;

/// No block spans more than this, so that the blocks of a range can be found by their beginnings.
pub const MOST_SPAN: i64 = 10_000_000;

/// Some calls of one pool, made by one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallBlock {
    /// Random, chosen by its writer, so that a block that is written twice is stored once.
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
    /// Adds blocks, each with what it adds to the tallies. A block that is stored already adds nothing.
    async fn log(&self, blocks: &[(CallBlock, Vec<Tally>)]) -> Result<(), StoreError>;

    /// At most `most` blocks of a pool that begin after `after` and not after `until`, in the order of their beginnings.
    async fn calls(&self, pool: &str, after: After, until: i64, most: usize) -> Result<Vec<CallBlock>, StoreError>;

    /// Deletes some blocks that begin before `before`; says whether there may be more.
    async fn forget(&self, pool: &str, before: i64) -> Result<bool, StoreError>;

    /// The totals of a vendor, since the store was made.
    async fn tally(&self, vendor: &str) -> Result<Tally, StoreError>;

    async fn verdict(&self, pool: &str) -> Result<Option<Verdict>, StoreError>;

    /// Writes a verdict if the stored one still says `judged_to` (`None`: if none is stored); says whether it was written.
    async fn judge(&self, pool: &str, judged_to: Option<i64>, verdict: &Verdict) -> Result<bool, StoreError>;
}
