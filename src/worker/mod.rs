//! Jobs out: one dispatcher for each vendor, the attempts they start, and the janitor.
//!
//! Never sees HTTP requests from outside and never decides what a step means (see `job::lifecycle`).

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub use self::failures::Failures;
use self::{dispatch::Dispatcher, janitor::Janitor, slow_downs::SlowDowns};
use crate::{
    audit::Audit,
    clock::{Clock, Nanos},
    in_force::InForce,
    job::Job,
    limit::{Limiter, breakers::Breakers},
    pauses::Pauses,
    store::{Sees, Store},
    telemetry::Metrics,
    vendor::{Registry, http::Client, replies::IN_USE},
};

mod alarms;
pub mod attempt;
mod breaker;
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
mod warm;

/// What every attempt needs. Built once.
pub struct Context {
    pub store: Arc<dyn Store>,
    pub limiter: Arc<dyn Limiter>,
    pub breakers: Arc<dyn Breakers>,
    pub vendors: Arc<Registry>,
    pub pauses: Arc<Pauses>,
    pub limits: Arc<InForce>,
    pub audit: Arc<Audit>,
    pub slow_downs: SlowDowns,
    pub metrics: Arc<Metrics>,
    pub failures: Failures,
    /// For the store: jobs that cannot be claimed, outcomes that cannot be stored.
    pub stalls: Failures,
    pub client: Client,
    pub clock: Clock,
    /// How long ended jobs are kept.
    pub retention: Duration,
}

impl Context {
    /// Reads secrets in files again, and uses those that have changed from now on.
    pub async fn reread_secrets(&self) {
        login::reread(self).await;
    }

    /// Whether an earlier call of the job may have been done. Its record is read only if that decides what an answer of this status means.
    async fn may_be_done(&self, job: &Job, status: Option<u16>) -> bool {
        if job.attempt == 0 || status != Some(IN_USE) {
            return false;
        }
        // While the store is unavailable nobody knows: one more attempt costs less than a result that was paid for.
        self.store.attempts(&Sees::All, job.id).await.ok().flatten().is_none_or(|record| job.may_be_done(&record))
    }
}

/// The outcome of one turn of a loop: it says what the loop waits for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Something was done: turn again at once.
    Ran,
    /// Nothing to do before this, unless woken.
    WaitUntil(Nanos),
    /// Nothing to do until woken.
    Idle,
}

impl Tick {
    /// The same, but no later than `at`.
    fn or_at(self, at: Option<Nanos>) -> Tick {
        match (self, at) {
            (Tick::WaitUntil(until), Some(at)) => Tick::WaitUntil(until.min(at)),
            (Tick::Idle, Some(at)) => Tick::WaitUntil(at),
            (tick, _) => tick,
        }
    }
}

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

/// Waits for the tick's time, the bell or the stop, whichever comes first. Cancel-safe.
async fn pause(clock: &Clock, tick: Tick, bell: &Notify, stop: &CancellationToken) {
    let due = async {
        match tick {
            Tick::Ran => {}
            // Many of these times are wall time, so a loop looks again when the clock was set.
            Tick::WaitUntil(at) => clock.sleep_until_or_set(at).await,
            Tick::Idle => std::future::pending().await,
        }
    };
    tokio::select! {
        () = due => {}
        () = bell.notified() => {}
        () = stop.cancelled() => {}
    }
}
