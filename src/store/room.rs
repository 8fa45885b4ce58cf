//! Room for new jobs: how many may wait in all and of one tenant, and which of several new jobs there is room for.
//!
//! Never counts jobs: each store knows how many it has.

use std::{collections::HashMap, sync::Arc};

use super::Submitted;
use crate::job::NewJob;

/// How many jobs that have not ended a store may have.
#[derive(Debug, Clone, Default)]
pub struct MostWaiting {
    pub in_all: u64,
    /// Of tenants with a bound of their own.
    pub by_tenant: HashMap<Arc<str>, u64>,
    /// Of each other tenant; `None`: no bound.
    pub of_others: Option<u64>,
}

impl From<u64> for MostWaiting {
    /// Bounds all jobs together, and no single tenant.
    fn from(in_all: u64) -> MostWaiting {
        MostWaiting { in_all, ..MostWaiting::default() }
    }
}

impl MostWaiting {
    /// The tenants of these jobs that have a bound, with it.
    pub(crate) fn bounds(&self, jobs: &[NewJob]) -> HashMap<Arc<str>, u64> {
        if self.by_tenant.is_empty() && self.of_others.is_none() {
            return HashMap::new();
        }
        let bound = |tenant: &Arc<str>| self.by_tenant.get(tenant).copied().or(self.of_others);
        let tenants = jobs.iter().map(|job| &job.lane.tenant);
        tenants.filter_map(|tenant| Some((tenant.clone(), bound(tenant)?))).collect()
    }
}

/// New jobs for which there is room, and which of all jobs these are.
pub(crate) struct Fitting {
    jobs: Vec<NewJob>,
    fits: Vec<bool>,
}

impl Fitting {
    /// Takes the first jobs of each tenant for which `left` has room. Tenants that are not in it have no bound.
    pub(crate) fn of(jobs: Vec<NewJob>, mut left: HashMap<Arc<str>, u64>) -> Fitting {
        let mut fits_one = |job: &NewJob| match left.get_mut(&job.lane.tenant) {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        };
        let fits: Vec<bool> = jobs.iter().map(&mut fits_one).collect();
        let jobs = jobs.into_iter().zip(&fits).filter_map(|(job, fits)| fits.then_some(job)).collect();
        Fitting { jobs, fits }
    }

    /// The outcomes of all jobs in their order, given those of the jobs that were stored.
    pub(crate) fn outcomes(fits: Vec<bool>, stored: Vec<Submitted>) -> Vec<Submitted> {
        let mut stored = stored.into_iter();
        let outcome = |fits| if fits { stored.next() } else { Some(Submitted::TenantOverLimit) };
        fits.into_iter().filter_map(outcome).collect()
    }

    /// The jobs that fit.
    pub(crate) fn jobs(&self) -> &[NewJob] {
        &self.jobs
    }

    /// The jobs to store, and what [`Fitting::outcomes`] needs.
    pub(crate) fn into_parts(self) -> (Vec<NewJob>, Vec<bool>) {
        (self.jobs, self.fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Time,
        job::{JobIds, Lane, Priority},
    };

    #[test]
    fn the_first_jobs_of_a_tenant_that_fit_are_stored_and_each_gets_its_own_outcome() {
        let most = MostWaiting { in_all: 9, by_tenant: HashMap::from([("a".into(), 2)]), of_others: Some(1) };
        let ids = JobIds::new();
        let job = |tenant: &str| NewJob {
            id: ids.next(Time(0)),
            lane: Lane { vendor: "v".into(), priority: Priority::Normal, tenant: tenant.into() },
            payload: "1".into(),
            due_at: Time(0),
            deadline: None,
            tags: Vec::new(),
            idempotency: None,
            webhook: None,
        };
        let jobs: Vec<NewJob> = ["a", "b", "a", "b", "a"].into_iter().map(job).collect();
        let all: Vec<_> = jobs.iter().map(|job| job.id).collect();
        let bounds = most.bounds(&jobs);
        assert_eq!(bounds, HashMap::from([("a".into(), 2), ("b".into(), 1)]));
        let (stored, fits) = Fitting::of(jobs, bounds).into_parts();
        assert_eq!(stored.iter().map(|job| job.id).collect::<Vec<_>>(), [all[0], all[1], all[2]]);
        let stored = stored.into_iter().map(|job| Submitted::New(job.id)).collect();
        let over = Submitted::TenantOverLimit;
        let expected = [Submitted::New(all[0]), Submitted::New(all[1]), Submitted::New(all[2]), over, over];
        assert_eq!(Fitting::outcomes(fits, stored), expected);
        assert!(MostWaiting::from(9).bounds(&[job("a")]).is_empty(), "no bound of a tenant");
    }
}
