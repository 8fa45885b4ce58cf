//! How many jobs that have not ended are where: of a vendor, and of each tenant.
//!
//! Never keeps an entry for a tenant without jobs, so tenants that come and go do not pile up.

use std::{collections::HashMap, sync::Arc};

use crate::{job::Stage, store::room::Load};

/// Numbers of jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// For a call or a poll; leased ones count too.
    pub(super) waiting: u64,
    /// Accepted by the vendor and not answered.
    pub(super) open: u64,
    /// Not ended.
    pub(super) live: Load,
}

impl Counts {
    /// Moves jobs from one stage to another; `None` is before the submit and after the end.
    pub(super) fn recount(&mut self, from: Option<Stage>, to: Option<Stage>, load: Load) {
        let jobs = load.jobs;
        let waits = |stage: Option<Stage>| jobs * u64::from(matches!(stage, Some(Stage::Call | Stage::Poll)));
        let is_open = |stage: Option<Stage>| jobs * u64::from(matches!(stage, Some(Stage::Await | Stage::Poll)));
        let lives = |stage: Option<Stage>| if stage.is_some() { load } else { Load::default() };
        self.waiting = (self.waiting + waits(to)).saturating_sub(waits(from));
        self.open = (self.open + is_open(to)).saturating_sub(is_open(from));
        self.live = self.live.plus(lives(to)).minus(lives(from));
    }
}

/// The counts of each tenant, in all and of each vendor.
#[derive(Default)]
pub(super) struct TenantCounts {
    in_all: HashMap<Arc<str>, Counts>,
    by_vendor: HashMap<(usize, Arc<str>), Counts>,
}

impl TenantCounts {
    pub(super) fn recount(
        &mut self,
        vendor: usize,
        tenant: &Arc<str>,
        from: Option<Stage>,
        to: Option<Stage>,
        load: Load,
    ) {
        if from == to {
            return;
        }
        let of_vendor = (vendor, tenant.clone());
        let counts = self.by_vendor.entry(of_vendor.clone()).or_default();
        counts.recount(from, to, load);
        if counts.live == Load::default() {
            self.by_vendor.remove(&of_vendor);
        }
        let counts = self.in_all.entry(tenant.clone()).or_default();
        counts.recount(from, to, load);
        if counts.live == Load::default() {
            self.in_all.remove(tenant);
        }
    }

    /// The jobs of a tenant that have not ended.
    pub(super) fn live(&self, tenant: &str) -> Load {
        self.in_all.get(tenant).map(|counts| counts.live).unwrap_or_default()
    }

    pub(super) fn of_vendor(&self, vendor: usize, tenant: &Arc<str>) -> Counts {
        self.by_vendor.get(&(vendor, tenant.clone())).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_counted_while_it_has_jobs_and_forgotten_after_that() {
        let (mut counts, tenant) = (TenantCounts::default(), Arc::from("t"));
        let load = |jobs| Load { jobs, bytes: 10 * jobs };
        counts.recount(0, &tenant, None, Some(Stage::Call), load(3));
        counts.recount(1, &tenant, None, Some(Stage::Call), load(1));
        counts.recount(0, &tenant, Some(Stage::Call), Some(Stage::Poll), load(1));
        assert_eq!(counts.of_vendor(0, &tenant), Counts { waiting: 3, open: 1, live: load(3) });
        assert_eq!((counts.live("t"), counts.live("other")), (load(4), load(0)));
        counts.recount(0, &tenant, Some(Stage::Call), None, load(2));
        counts.recount(0, &tenant, Some(Stage::Poll), None, load(1));
        assert_eq!((counts.live("t"), counts.of_vendor(0, &tenant)), (load(1), Counts::default()));
        counts.recount(1, &tenant, Some(Stage::Call), None, load(1));
        assert!(counts.in_all.is_empty() && counts.by_vendor.is_empty());
    }
}
