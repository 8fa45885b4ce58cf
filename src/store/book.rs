//! The book: what must outlive the process besides jobs: pauses of vendors, and how much of the long limits is spent.
//!
//! Never knows a limit's arithmetic (see `limit::rule`); it keeps numbers that the limiter tells it.

use async_trait::async_trait;

use super::StoreError;
use crate::clock::Time;

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

/// A vendor that is not to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub vendor: String,
    /// Until then, or until resumed.
    pub until: Option<Time>,
}

/// Durable numbers beside the jobs.
#[async_trait]
pub trait Book: Send + Sync {
    /// All spends whose sub-window ended at or after `since`; those still open (in the future) too.
    async fn spends(&self, since: Time) -> Result<Vec<Spend>, StoreError>;

    /// Sets each spend to its number (not adds). Durable when it returns; spends that ended before `forget` are dropped.
    async fn charge(&self, spends: Vec<Spend>, forget: Time) -> Result<(), StoreError>;

    /// The vendors that are paused.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Pauses a vendor, or resumes it with `None`.
    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError>;

    /// The secret that signs callback tokens, made by `fresh` on first use and kept.
    async fn callback_secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError>;
}
