//! The book: what must outlive the process besides jobs: pauses of vendors, live limits, and how much of the long limits is spent.
//!
//! Never knows a limit's arithmetic (see `limit::rule`); it keeps numbers that the limiter tells it.

use async_trait::async_trait;

use crate::{clock::Time, store_error::StoreError};

/// Calls charged to one limit in one sub-window of its period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spend {
    pub pool: String,
    /// Which count of the pool this is: its period and key, so that it outlives a change of N.
    pub count: String,
    /// Whose, for a limit per tenant; empty for a limit of the whole pool.
    pub tenant: String,
    /// When the sub-window ends: all its calls count as made then.
    pub ends_at: Time,
    /// Calls charged, those charged ahead included.
    pub calls: u64,
}

/// A spend to be set to its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub spend: Spend,
    /// Spends of the same count (and tenant) that ended before this are dropped.
    pub forget: Time,
}

/// A vendor that is not to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub vendor: String,
    /// Until then, or until resumed.
    pub until: Option<Time>,
}

/// What was last laid over the limits of a pool's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveLimits {
    pub pool: String,
    /// How often they were changed: what the next change is compared with.
    pub version: u64,
    /// JSON, as the API writes it; `None` when the file's were put back in force.
    pub limits: Option<String>,
    pub since: Time,
}

/// Limits that a pool had from then on, until those of the next record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsOnRecord {
    pub pool: String,
    pub since: Time,
    /// JSON, as the API writes it.
    pub limits: String,
}

/// Records of a pool that are kept.
pub const MOST_ON_RECORD: usize = 9;

/// A process that lives, and the limits that its file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filed {
    pub process: String,
    /// Another one each time that the process says that it lives.
    pub beat: u64,
    /// JSON: each pool's limits, as the API writes them.
    pub limits: String,
}

/// Durable numbers beside the jobs.
#[async_trait]
pub trait Book: Send + Sync {
    /// All spends whose sub-window ended at or after `since`; those still open (in the future) too.
    async fn spends(&self, since: Time) -> Result<Vec<Spend>, StoreError>;

    /// Sets each spend to its number (not adds), in their order. All are durable when it returns, or none.
    async fn charge(&self, charges: Vec<Charge>) -> Result<(), StoreError>;

    /// The vendors that are paused.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Pauses a vendor, or resumes it with `None`.
    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError>;

    /// What was laid live, by pool. Pools of which nothing ever was are not there.
    async fn live_limits(&self) -> Result<Vec<LiveLimits>, StoreError>;

    /// Lays limits over those of the file, or puts those back with `None`, if the version is still the one that was seen (0: nothing was
    /// ever laid). Says whether it was.
    async fn lay_limits(&self, seen: u64, laid: LiveLimits) -> Result<bool, StoreError>;

    /// Which limits pools had, by pool and time.
    async fn limits_on_record(&self) -> Result<Vec<LimitsOnRecord>, StoreError>;

    /// Puts on record that a pool has these limits now. Of each pool the newest [`MOST_ON_RECORD`] are kept.
    async fn record_limits(&self, record: LimitsOnRecord) -> Result<(), StoreError>;

    /// Says that this process lives and what its file has.
    async fn report(&self, me: &Filed) -> Result<(), StoreError>;

    /// The processes whose file says something else than these limits, those that have died without a word too. There are none where one
    /// process owns the book.
    async fn others(&self, limits: &str) -> Result<Vec<Filed>, StoreError>;

    /// Strikes out a process that stops or has died, unless it has said meanwhile that it lives.
    async fn strike_out(&self, gone: &Filed) -> Result<(), StoreError>;

    /// The secret that signs callback tokens, made by `fresh` on first use and kept.
    async fn callback_secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError>;
}
