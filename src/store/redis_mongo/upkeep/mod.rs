//! What keeps the index true to MongoDB beside the calls: refills, sweeps, messages between processes, and updates that Redis has missed.
//!
//! Never decides what a job becomes.

mod feed;
mod refill;
pub(super) mod sweep;
pub(super) mod unsent;
