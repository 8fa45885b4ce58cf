//! What every task of the worker needs.
//!
//! Never starts a task, and knows none of them.

use std::{sync::Arc, time::Duration};

use super::{failures::Failures, slow_downs::SlowDowns};
use crate::{
    audit::Audit,
    clock::Clock,
    in_force::InForce,
    job::Job,
    limit::{Limiter, breakers::Breakers},
    pauses::Pauses,
    store::{Sees, Store},
    telemetry::Metrics,
    vendor::{Registry, http::Client, replies::IN_USE},
};

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
    /// Answers that ask us to slow down.
    pub throttles: Failures,
    /// For the store: jobs that cannot be claimed, outcomes that cannot be stored.
    pub stalls: Failures,
    pub client: Client,
    pub clock: Clock,
    /// How long ended jobs are kept.
    pub retention: Duration,
}

impl Context {
    /// Whether an earlier call of the job may have been done. Its record is read only if that decides what an answer of this status means.
    pub(super) async fn may_be_done(&self, job: &Job, status: Option<u16>) -> bool {
        if job.attempt == 0 || status != Some(IN_USE) {
            return false;
        }
        // While the store is unavailable nobody knows: one more attempt costs less than a result that was paid for.
        self.store.attempts(&Sees::All, job.id).await.ok().flatten().is_none_or(|record| job.may_be_done(&record))
    }
}
