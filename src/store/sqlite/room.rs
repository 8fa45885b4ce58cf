//! Room for new jobs in the embedded store: those that are being written count like those that are stored, so that jobs that arrive together
//! never exceed a bound.
//!
//! Never waits: a job without room is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::index::Index;
use crate::{
    job::NewJob,
    store::room::{Fitting, MostWaiting},
};

/// Jobs that have room and are not in the index yet.
#[derive(Default)]
pub(super) struct Arriving(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    in_all: u64,
    /// Of tenants with a bound.
    by_tenant: HashMap<Arc<str>, u64>,
}

/// Jobs that count as arriving until this is dropped. That has to be while the index is locked, or a job counts twice for a moment.
pub(super) struct Place {
    of: Arc<Arriving>,
    jobs: Numbers,
}

impl Arriving {
    /// The jobs for which there is room, and their place; nothing if there is no room for so many in all.
    pub(super) fn admit(
        self: &Arc<Arriving>,
        index: &Index,
        most: &MostWaiting,
        jobs: Vec<NewJob>,
    ) -> Option<(Fitting, Place)> {
        let mut left = most.bounds(&jobs);
        let mut arriving = self.lock();
        if index.live + arriving.in_all + jobs.len() as u64 > most.in_all {
            return None;
        }
        for (tenant, left) in &mut left {
            let taken = index.tenants.live(tenant) + arriving.by_tenant.get(tenant).unwrap_or(&0);
            *left = left.saturating_sub(taken);
        }
        let mut by_tenant: HashMap<Arc<str>, u64> = left.keys().map(|tenant| (tenant.clone(), 0)).collect();
        let fitting = Fitting::of(jobs, left);
        for job in fitting.jobs() {
            if let Some(jobs) = by_tenant.get_mut(&job.lane.tenant) {
                *jobs += 1;
            }
        }
        by_tenant.retain(|_, jobs| *jobs > 0);
        let jobs = Numbers { in_all: fitting.jobs().len() as u64, by_tenant };
        arriving.in_all += jobs.in_all;
        for (tenant, more) in &jobs.by_tenant {
            *arriving.by_tenant.entry(tenant.clone()).or_default() += more;
        }
        Some((fitting, Place { of: self.clone(), jobs }))
    }

    /// A panic elsewhere leaves nothing here half done.
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut arriving = self.of.lock();
        arriving.in_all -= self.jobs.in_all;
        for (tenant, jobs) in &self.jobs.by_tenant {
            if let Some(left) = arriving.by_tenant.get_mut(tenant) {
                *left -= jobs;
            }
        }
        arriving.by_tenant.retain(|_, jobs| *jobs > 0);
    }
}
