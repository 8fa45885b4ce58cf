//! The book: what must be durable besides jobs. Pauses of vendors, live limits, the limits of each process's file, and the use of long limits.
//!
//! Never knows a limit's arithmetic (see `limit::rule`): it stores the numbers that the limiter gives it.

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
    /// When the sub-window ends: all its calls count as made at that time.
    pub ends_at: Time,
    /// Calls charged, including those charged ahead.
    pub calls: u64,
}

/// Sets a spend to its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub spend: Spend,
    /// Spends of the same count (and tenant) that ended before this time are deleted, now or a little later.
    pub forget: Time,
}

/// A vendor that must not be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub vendor: String,
    /// Until then, or until resumed.
    pub until: Option<Time>,
    /// Since when. This and `by` are unknown if an older version wrote it.
    pub since: Option<Time>,
    /// The name of the key that paused it.
    pub by: Option<String>,
}

/// The last live limits of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveLimits {
    pub pool: String,
    /// How often they were changed. A change says which version it has seen.
    pub version: u64,
    /// JSON, as the API writes it; `None` if the live limits were removed.
    pub limits: Option<String>,
    pub since: Time,
    /// The name of the key that changed them; unknown if an older version wrote it.
    pub by: Option<String>,
}

/// Limits of a pool from `since` until the next record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsOnRecord {
    pub pool: String,
    pub since: Time,
    /// JSON, as the API writes it.
    pub limits: String,
}

/// How many records of a pool are kept.
pub const MOST_ON_RECORD: usize = 9;

/// A running process, and the limits of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filed {
    pub process: String,
    /// A new value in each report of the process.
    pub beat: u64,
    /// JSON: each pool's limits, as the API writes them.
    pub limits: String,
    /// What the process says of itself (see `processes`); empty if an older version wrote it.
    pub about: String,
    /// When it reported, by its own clock; unknown if an older version wrote it.
    pub seen_at: Option<Time>,
}

/// The reports of processes that have crashed are kept, and shown, for so many milliseconds.
pub const REPORTS_KEPT_MS: i64 = 3_600_000;

/// What is durable besides jobs.
#[async_trait]
pub trait Book: Send + Sync {
    /// The spends of a pool, or of all pools, whose sub-window ends at or after `since`, including those that are still open.
    async fn spends(&self, pool: Option<&str>, since: Time) -> Result<Vec<Spend>, StoreError>;

    /// Sets each spend to its number (it does not add), in this order. When it returns all are durable, or none.
    async fn charge(&self, charges: Vec<Charge>) -> Result<(), StoreError>;

    /// The vendors that are paused.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Pauses a vendor, or resumes it with `None`.
    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError>;

    /// The live limits of all pools that ever had some.
    async fn live_limits(&self) -> Result<Vec<LiveLimits>, StoreError>;

    /// Sets the live limits of a pool, or removes them with `None`, if the version is still `seen` (0: the pool never had live limits).
    /// Says whether it was.
    async fn set_live_limits(&self, seen: u64, new: LiveLimits) -> Result<bool, StoreError>;

    /// The records of limits, by pool and time.
    async fn limits_on_record(&self) -> Result<Vec<LimitsOnRecord>, StoreError>;

    /// Records that a pool has these limits now. Of each pool the newest [`MOST_ON_RECORD`] records are kept.
    async fn record_limits(&self, record: LimitsOnRecord) -> Result<(), StoreError>;

    /// Reports that this process runs, and the limits of its file. With its first report go those, older than [`REPORTS_KEPT_MS`], of processes
    /// that had the same limits; those of other limits are deleted by whoever sees that they have crashed.
    async fn report(&self, me: &Filed) -> Result<(), StoreError>;

    /// The processes that reported other limits than these, including those that have crashed. If one process owns the book there are none.
    async fn others(&self, limits: &str) -> Result<Vec<Filed>, StoreError>;

    /// All processes that reported at or after this time, by their own clocks. If one process owns the book there are none.
    async fn processes(&self, since: Time) -> Result<Vec<Filed>, StoreError>;

    /// Deletes the report of a process that stops or has crashed, unless it has reported again since.
    async fn delete_report(&self, gone: &Filed) -> Result<(), StoreError>;

    /// A secret that we make ourselves. On first use `fresh` is stored under its name.
    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError>;
}
