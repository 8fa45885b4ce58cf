//! Room for new jobs: how many may wait in all and of one tenant, with how many bytes, and which of several new jobs there is room for.
//!
//! Never counts jobs: each store knows how many it has.

use std::{collections::HashMap, sync::Arc};

use super::Submitted;
use crate::job::{Job, NewJob, weight};

/// Jobs that have not ended, or a bound of them: how many, and the bytes of their payloads. Small payloads do not count (see [`weight`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub jobs: u64,
    pub bytes: u64,
}

/// Which bound of a load is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Jobs,
    Bytes,
}

/// Why there is no room for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// As much waits as may in all.
    InAll,
    /// As much of its tenant waits as may.
    OfTenant(Bound),
}

impl Load {
    /// No bound.
    pub const ANY: Load = Load { jobs: u64::MAX, bytes: u64::MAX };

    pub(crate) fn of_new(job: &NewJob) -> Load {
        Load { jobs: 1, bytes: weight(job.payload.len()) }
    }

    pub(crate) fn of(job: &Job) -> Load {
        Load { jobs: 1, bytes: job.weight }
    }

    pub(crate) fn plus(self, more: Load) -> Load {
        Load { jobs: self.jobs.saturating_add(more.jobs), bytes: self.bytes.saturating_add(more.bytes) }
    }

    pub(crate) fn minus(self, less: Load) -> Load {
        Load { jobs: self.jobs.saturating_sub(less.jobs), bytes: self.bytes.saturating_sub(less.bytes) }
    }

    /// The bound that this exceeds, if it exceeds one.
    pub(crate) fn over(self, most: Load) -> Option<Bound> {
        let bytes = (self.bytes > most.bytes).then_some(Bound::Bytes);
        if self.jobs > most.jobs { Some(Bound::Jobs) } else { bytes }
    }
}

/// How much may wait in a store.
#[derive(Debug, Clone, Default)]
pub struct MostWaiting {
    pub in_all: Load,
    /// Of tenants with a bound of their own.
    pub by_tenant: HashMap<Arc<str>, Load>,
    /// Of each other tenant; `None`: no bound.
    pub of_others: Option<Load>,
}

impl From<u64> for MostWaiting {
    /// Bounds the number of all jobs together, and nothing else.
    fn from(jobs: u64) -> MostWaiting {
        MostWaiting { in_all: Load { jobs, ..Load::ANY }, ..MostWaiting::default() }
    }
}

impl MostWaiting {
    /// The bound of a tenant, if it has one.
    pub(crate) fn of(&self, tenant: &str) -> Option<Load> {
        self.by_tenant.get(tenant).copied().or(self.of_others)
    }

    /// The tenants of these jobs that have a bound, with it.
    pub(crate) fn bounds(&self, jobs: &[NewJob]) -> HashMap<Arc<str>, Load> {
        if self.by_tenant.is_empty() && self.of_others.is_none() {
            return HashMap::new();
        }
        let tenants = jobs.iter().map(|job| &job.lane.tenant);
        tenants.filter_map(|tenant| Some((tenant.clone(), self.of(tenant)?))).collect()
    }
}

/// New jobs for which there is room, and what all the others exceed.
pub(crate) struct Fitting {
    jobs: Vec<NewJob>,
    /// For each job that was offered; `None`: it fits.
    over: Vec<Option<Bound>>,
}

impl Fitting {
    /// Takes the first jobs of each tenant for which `left` has room. Tenants that are not in it have no bound.
    pub(crate) fn of(jobs: Vec<NewJob>, mut left: HashMap<Arc<str>, Load>) -> Fitting {
        let mut exceeds = |job: &NewJob| {
            let left = left.get_mut(&job.lane.tenant)?;
            let load = Load::of_new(job);
            let over = load.over(*left);
            if over.is_none() {
                *left = left.minus(load);
            }
            over
        };
        let over: Vec<Option<Bound>> = jobs.iter().map(&mut exceeds).collect();
        let jobs = jobs.into_iter().zip(&over).filter_map(|(job, over)| over.is_none().then_some(job)).collect();
        Fitting { jobs, over }
    }

    /// The outcomes of all jobs in their order, given those of the jobs that were stored.
    pub(crate) fn outcomes(over: Vec<Option<Bound>>, stored: Vec<Submitted>) -> Vec<Submitted> {
        let mut stored = stored.into_iter();
        let outcome = |over: Option<Bound>| match over {
            None => stored.next(),
            Some(bound) => Some(Submitted::NoRoom(NoRoom::OfTenant(bound))),
        };
        over.into_iter().filter_map(outcome).collect()
    }

    /// The jobs that fit.
    pub(crate) fn jobs(&self) -> &[NewJob] {
        &self.jobs
    }

    /// The jobs to store, and what [`Fitting::outcomes`] needs.
    pub(crate) fn into_parts(self) -> (Vec<NewJob>, Vec<Option<Bound>>) {
        (self.jobs, self.over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Time,
        job::{JobIds, Lane, Priority, SMALL_PAYLOAD},
    };

    fn job(tenant: &str, payload: usize) -> NewJob {
        let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: tenant.into() };
        NewJob::new(JobIds::new().next(Time(0)), lane, vec![b'1'; payload], Time(0))
    }

    fn most(jobs: u64) -> Load {
        Load { jobs, ..Load::ANY }
    }

    #[test]
    fn the_first_jobs_of_a_tenant_that_fit_are_stored_and_each_gets_its_own_outcome() {
        let by_tenant = HashMap::from([("a".into(), most(2))]);
        let bounded = MostWaiting { in_all: most(9), by_tenant, of_others: Some(most(1)) };
        let jobs: Vec<NewJob> = ["a", "b", "a", "b", "a"].into_iter().map(|tenant| job(tenant, 1)).collect();
        let all: Vec<_> = jobs.iter().map(|job| job.id).collect();
        let bounds = bounded.bounds(&jobs);
        assert_eq!(bounds, HashMap::from([("a".into(), most(2)), ("b".into(), most(1))]));
        let (stored, over) = Fitting::of(jobs, bounds).into_parts();
        assert_eq!(stored.iter().map(|job| job.id).collect::<Vec<_>>(), [all[0], all[1], all[2]]);
        let stored = stored.into_iter().map(|job| Submitted::New(job.id)).collect();
        let none = Submitted::NoRoom(NoRoom::OfTenant(Bound::Jobs));
        let expected = [Submitted::New(all[0]), Submitted::New(all[1]), Submitted::New(all[2]), none, none];
        assert_eq!(Fitting::outcomes(over, stored), expected);
        assert!(MostWaiting::from(9).bounds(&[job("a", 1)]).is_empty(), "no bound of a tenant");
    }

    #[test]
    fn bytes_are_bounded_as_jobs_are_and_small_payloads_need_none() {
        let left = HashMap::from([("a".into(), Load { jobs: 5, bytes: 10_000 })]);
        let sizes = [8000, 3000, SMALL_PAYLOAD, 2001 + SMALL_PAYLOAD, 2000, 1, 1];
        let (_, over) = Fitting::of(sizes.map(|size| job("a", size)).into(), left).into_parts();
        let (jobs, bytes) = (Some(Bound::Jobs), Some(Bound::Bytes));
        assert_eq!(over, [None, None, None, bytes, None, None, jobs]);
    }
}
