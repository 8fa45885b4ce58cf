//! What keeps the index true to MongoDB beside the calls: refills, sweeps, messages between processes, and what Redis still has to be told.
//!
//! Never decides what a job becomes.

mod feed;
mod refill;
pub(super) mod sweep;
pub(super) mod untold;
