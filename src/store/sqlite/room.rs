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
    job::{Job, NewJob},
    store::room::{Fitting, Load, MostWaiting, NoRoom},
};

/// The bounds, and the jobs that have room and are not in the index yet.
pub(super) struct Room {
    most: MostWaiting,
    arriving: Mutex<Arriving>,
}

#[derive(Default)]
struct Arriving {
    in_all: Load,
    /// Of tenants with a bound.
    by_tenant: HashMap<Arc<str>, Load>,
}

/// Jobs that count as arriving until this is dropped. That has to be while the index is locked, or a job counts twice for a moment.
pub(super) struct Place {
    of: Arc<Room>,
    jobs: Arriving,
}

impl Room {
    pub(super) fn new(most: MostWaiting) -> Room {
        Room { most, arriving: Mutex::default() }
    }

    /// The jobs for which there is room, and their place; nothing if there is no room for so many in all.
    pub(super) fn admit(self: &Arc<Room>, index: &Index, jobs: Vec<NewJob>) -> Option<(Fitting, Place)> {
        let mut arriving = self.lock();
        let wanted = jobs.iter().map(Load::of_new).fold(Load::default(), Load::plus);
        if wanted.over(self.most.in_all.minus(index.live.plus(arriving.in_all))).is_some() {
            return None;
        }
        let mut left = self.most.bounds(&jobs);
        for (tenant, left) in &mut left {
            *left = left.minus(arriving.of(index, tenant));
        }
        let fitting = Fitting::of(jobs, left);
        let place = self.place(&mut arriving, fitting.jobs().iter().map(|job| (&job.lane.tenant, Load::of_new(job))));
        Some((fitting, place))
    }

    /// The place of a job that has ended and is to wait again.
    pub(super) fn admit_again(self: &Arc<Room>, index: &Index, job: &Job) -> Result<Place, NoRoom> {
        let (mut arriving, tenant, load) = (self.lock(), &job.lane.tenant, Load::of(job));
        if load.over(self.most.in_all.minus(index.live.plus(arriving.in_all))).is_some() {
            return Err(NoRoom::InAll);
        }
        let over = |most: Load| load.over(most.minus(arriving.of(index, tenant)));
        match self.most.of(tenant).and_then(over) {
            Some(bound) => Err(NoRoom::OfTenant(bound)),
            None => Ok(self.place(&mut arriving, std::iter::once((tenant, load)))),
        }
    }

    fn place<'a>(self: &Arc<Room>, arriving: &mut Arriving, jobs: impl Iterator<Item = (&'a Arc<str>, Load)>) -> Place {
        let mut place = Place { of: self.clone(), jobs: Arriving::default() };
        for (tenant, load) in jobs {
            place.jobs.in_all = place.jobs.in_all.plus(load);
            if self.most.of(tenant).is_some() {
                let of_tenant = place.jobs.by_tenant.entry(tenant.clone()).or_default();
                *of_tenant = of_tenant.plus(load);
            }
        }
        arriving.in_all = arriving.in_all.plus(place.jobs.in_all);
        for (tenant, more) in &place.jobs.by_tenant {
            let of_tenant = arriving.by_tenant.entry(tenant.clone()).or_default();
            *of_tenant = of_tenant.plus(*more);
        }
        place
    }

    /// A panic elsewhere leaves nothing here half done.
    fn lock(&self) -> MutexGuard<'_, Arriving> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arriving {
    /// What is stored of a tenant, and what arrives.
    fn of(&self, index: &Index, tenant: &str) -> Load {
        index.tenants.live(tenant).plus(self.by_tenant.get(tenant).copied().unwrap_or_default())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut arriving = self.of.lock();
        arriving.in_all = arriving.in_all.minus(self.jobs.in_all);
        for (tenant, less) in &self.jobs.by_tenant {
            if let Some(left) = arriving.by_tenant.get_mut(tenant) {
                *left = left.minus(*less);
            }
        }
        arriving.by_tenant.retain(|_, left| *left != Load::default());
    }
}
