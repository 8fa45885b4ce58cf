//! Room for new jobs: how many have not ended, in all and of each tenant with a bound.
//!
//! Never counts at every submit: counts are kept for a while, and what this process accepts meanwhile is added. What other processes accept
//! meanwhile is not, so several of them together may accept a little too much.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use mongodb::bson::doc;

use super::{
    Core,
    index::words::{StreamNo, VendorWork},
    lock,
    truth::{
        docs::lane_name,
        mongo::{PATIENCE, within},
    },
};
use crate::{
    job::NewJob,
    store::{Backlog, StoreError},
};

/// How old a count may be.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Counting takes no more than one part in so many of the time.
const SHARE: u32 = 20;
/// A count that takes no longer than this is made again whenever a job does not fit.
const QUICK: Duration = Duration::from_millis(100);
/// Tenants whose counts are kept at once.
const MOST_TENANTS: usize = 10_000;
/// Jobs that are counted to be shown, at most.
const MOST_SHOWN: u64 = 1_000_000;

/// About how many jobs have not ended.
#[derive(Default)]
pub(super) struct Live {
    in_all: Mutex<Count>,
    by_tenant: Mutex<HashMap<Arc<str>, Arc<tokio::sync::Mutex<Count>>>>,
}

#[derive(Default)]
struct Count {
    counted: u64,
    accepted_since: u64,
    /// When it was counted, and what that took.
    at: Option<(Instant, Duration)>,
}

impl Count {
    fn live(&self) -> u64 {
        self.counted + self.accepted_since
    }

    /// Whether it is good enough for a job that fits by it, or for one that does not.
    fn is_fresh(&self, fits: bool) -> bool {
        self.at.is_some_and(|(at, took)| {
            let rest = if took <= QUICK { Duration::ZERO } else { took * SHARE };
            at.elapsed() < if fits { rest.max(COUNT_EVERY) } else { rest }
        })
    }
}

impl Core {
    /// Whether so many more jobs may be accepted, by a count that is at most a second old.
    pub(super) async fn has_room(&self, more: u64, most: u64) -> bool {
        let fits = |count: &Count| count.live() + more <= most;
        {
            let count = lock(&self.live.in_all);
            if fits(&count) && count.is_fresh(true) {
                return true;
            }
        }
        let mut counted = 0;
        for vendor in self.vendors.values() {
            // While Redis is unavailable the count is unknown, and no job is refused.
            let Ok(stats) = self.briefly(self.index.stats(vendor)).await else { return true };
            counted += stats.live.max(0).unsigned_abs();
        }
        let mut count = lock(&self.live.in_all);
        *count = Count { counted, accepted_since: 0, at: Some((Instant::now(), Duration::ZERO)) };
        fits(&count)
    }

    pub(super) fn note_accepted(&self, jobs: u64) {
        lock(&self.live.in_all).accepted_since += jobs;
    }

    /// How many more jobs of each of these tenants may be accepted, given their bounds. Those of `jobs` that fit count from now on.
    pub(super) async fn left_of(
        &self,
        bounds: HashMap<Arc<str>, u64>,
        jobs: &[NewJob],
    ) -> Result<HashMap<Arc<str>, u64>, StoreError> {
        let mut left = HashMap::with_capacity(bounds.len());
        for (tenant, bound) in bounds {
            let more = jobs.iter().filter(|job| job.lane.tenant == tenant).count() as u64;
            let count = self.count_of(&tenant);
            // One of those who ask for the same tenant counts, the others wait for that.
            let mut count = count.lock().await;
            if !count.is_fresh(count.live() + more <= bound) {
                let started = Instant::now();
                let counting: BoxFuture<'_, _> = Box::pin(self.count_live(&tenant, bound));
                let counted = counting.await?;
                *count = Count { counted, accepted_since: 0, at: Some((Instant::now(), started.elapsed())) };
            }
            let room = bound.saturating_sub(count.live());
            count.accepted_since += more.min(room);
            left.insert(tenant, room);
        }
        Ok(left)
    }

    fn count_of(&self, tenant: &Arc<str>) -> Arc<tokio::sync::Mutex<Count>> {
        let mut tenants = lock(&self.live.by_tenant);
        if tenants.len() >= MOST_TENANTS && !tenants.contains_key(tenant) {
            tenants.clear();
        }
        tenants.entry(tenant.clone()).or_default().clone()
    }

    /// How many jobs of a tenant have not ended, counted up to `most`.
    async fn count_live(&self, tenant: &str, most: u64) -> Result<u64, StoreError> {
        let vendors = self.vendors.values();
        let lanes: Vec<String> = vendors.flat_map(|vendor| lanes_of(vendor, tenant, 0, StreamNo::AWAITS.0)).collect();
        self.count_lanes(lanes, most).await
    }

    async fn count_lanes(&self, lanes: Vec<String>, most: u64) -> Result<u64, StoreError> {
        // A server may read a limit of nothing as no limit.
        let count = self.mongo.jobs.count_documents(doc! { "lane": { "$in": lanes } }).limit(most.max(1));
        within(count.max_time(PATIENCE)).await
    }

    pub(super) async fn backlog_of(&self, vendor: &str, tenant: &str) -> Result<Backlog, StoreError> {
        let Some(vendor) = self.vendors.get(vendor) else { return Ok(Backlog::default()) };
        let waiting = self.count_lanes(lanes_of(vendor, tenant, 0, 5).collect(), MOST_SHOWN).await?;
        let open = self.count_lanes(lanes_of(vendor, tenant, 3, StreamNo::AWAITS.0).collect(), MOST_SHOWN).await?;
        Ok(Backlog { waiting, open, ..Backlog::default() })
    }
}

/// The names of a tenant's lanes of a vendor, from one stream to another, both included.
fn lanes_of(vendor: &VendorWork, tenant: &str, from: usize, to: usize) -> impl Iterator<Item = String> {
    let streams = (from..=to).filter(|stream| *stream < vendor.streams() || *stream == StreamNo::AWAITS.0);
    streams.map(move |stream| lane_name(&vendor.name, StreamNo(stream), tenant))
}
