//! Jobs out: one dispatcher for each vendor, the attempts they start, and the janitor.
//!
//! Never sees HTTP requests from outside and never decides what a step means (see `job::lifecycle`).

use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::{context::Context, failures::Failures, login::reread_secrets, tick::Tick};
use self::{dispatch::Dispatcher, janitor::Janitor};
use crate::audit::Audit;

mod alarms;
pub mod attempt;
mod breaker;
mod context;
pub mod dispatch;
mod failures;
mod firing;
mod hints;
mod in_flight;
pub mod janitor;
mod limits;
mod login;
mod round;
pub mod slow_downs;
mod tick;
mod warm;

/// The worker's tasks.
pub struct Pool {
    dispatchers: Vec<Dispatcher>,
    janitor: Janitor,
    audit: Arc<Audit>,
}

impl Pool {
    pub fn new(cx: &Arc<Context>) -> Pool {
        let dispatchers = cx.vendors.iter().map(|vendor| Dispatcher::new(cx.clone(), vendor.clone())).collect();
        Pool { dispatchers, janitor: Janitor::new(cx.clone()), audit: cx.audit.clone() }
    }

    /// Runs until `stop`, then finishes what is in flight. What is not finished by `abort` is dropped; its jobs are retried after the next start.
    /// An error is a loop that panicked: its vendor would never be called again, so the process has to end.
    pub async fn run(self, stop: CancellationToken, abort: CancellationToken) -> Result<(), JoinError> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.janitor.run(stop.clone()));
        let (audit, writing) = (self.audit.clone(), stop.clone());
        tasks.spawn(async move { audit.run(writing).await });
        for dispatcher in self.dispatchers {
            tasks.spawn(dispatcher.run(stop.clone()));
        }
        let finished = async {
            while let Some(ended) = tasks.join_next().await {
                ended?;
            }
            Ok(())
        };
        let outcome = tokio::select! {
            outcome = finished => outcome,
            () = abort.cancelled() => {
                tracing::warn!("the grace period is over: calls in flight are dropped, and their jobs are retried after the next start");
                Ok(())
            }
        };
        tasks.shutdown().await;
        // After the last attempt, so that a clean stop leaves every call on record.
        if let Err(error) = self.audit.write().await {
            tracing::warn!(%error, "the record of the last calls could not be written; the audit will miss them");
        }
        outcome
    }

    /// The parts, for those who turn the loops themselves: tests, on a clock of their own.
    pub fn into_parts(self) -> (Vec<Dispatcher>, Janitor) {
        (self.dispatchers, self.janitor)
    }
}
