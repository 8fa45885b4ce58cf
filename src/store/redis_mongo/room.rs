//! Room for new jobs: how many have not ended, with how many bytes, in all and of each tenant with a bound.
//!
//! Never counts at every submit: counts are kept for a while, and what this process accepts meanwhile is added. What other processes accept
//! meanwhile is not, so several of them together may accept a little too much.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use mongodb::bson::{Document, doc};

use super::{
    Core, RedisMongo,
    index::words::{StreamNo, VendorWork},
    lock,
    truth::{
        docs::lane_name,
        mongo::{PATIENCE, within},
    },
};
use crate::{
    clock::{Nanos, nanos},
    job::Job,
    store::{
        Backlog, StoreError,
        room::{Load, NoRoom},
    },
};

/// How old a count may be.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The same for a count of all jobs that is no more than a tenth of the bound: ten processes cannot exceed it meanwhile.
const COUNT_SELDOM: Duration = Duration::from_secs(10);
/// Counting takes no more than one part in so many of the time.
const SHARE: i64 = 20;
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
    counted: Load,
    accepted_since: Load,
    /// Jobs that were accepted and are not stored yet, so that a count may miss them.
    in_flight: Arc<Mutex<Load>>,
    /// When it was counted, and what that took.
    at: Option<(Nanos, Nanos)>,
}

/// Jobs of tenants with a bound that are to wait, until they are stored.
#[derive(Default)]
pub(super) struct InFlight(Vec<(Arc<Mutex<Load>>, Load)>);

impl Drop for InFlight {
    fn drop(&mut self) {
        for (in_flight, jobs) in &self.0 {
            let mut in_flight = lock(in_flight);
            *in_flight = in_flight.minus(*jobs);
        }
    }
}

impl Count {
    fn live(&self) -> Load {
        self.counted.plus(self.accepted_since)
    }

    /// Whether it is so small that it need not be new.
    fn is_far_below(&self, most: Load, now: Nanos) -> bool {
        let live = self.live();
        let is_small = live.jobs <= most.jobs / 10 && live.bytes <= most.bytes / 10;
        is_small && self.at.is_some_and(|(at, _)| now - at < nanos(COUNT_SELDOM))
    }

    /// Whether it is good enough for a job that fits by it, or for one that does not.
    fn is_fresh(&self, fits: bool, now: Nanos) -> bool {
        self.at.is_some_and(|(at, took)| {
            let rest = if took <= nanos(QUICK) { 0 } else { took.saturating_mul(SHARE) };
            now - at < if fits { rest.max(nanos(COUNT_EVERY)) } else { rest }
        })
    }
}

impl Core {
    /// Whether so much more may be accepted, by a count that is at most a second old, or ten if it is small.
    pub(super) async fn has_room(&self, more: Load, most: Load) -> bool {
        let fits = |count: &Count| more.over(most.minus(count.live())).is_none();
        {
            let (count, now) = (lock(&self.live.in_all), self.clock.nanos());
            if fits(&count) && (count.is_fresh(true, now) || count.is_far_below(most, now)) {
                return true;
            }
        }
        let mut counted = Load::default();
        for vendor in self.vendors.values() {
            // While Redis is unavailable the count is unknown, and no job is refused.
            let Ok(stats) = self.briefly(self.index.stats(vendor)).await else { return true };
            let of_vendor = |count: i64| count.max(0).unsigned_abs();
            counted = counted.plus(Load { jobs: of_vendor(stats.live), bytes: of_vendor(stats.bytes) });
        }
        let mut count = lock(&self.live.in_all);
        *count = Count { counted, at: Some((self.clock.nanos(), 0)), ..Count::default() };
        fits(&count)
    }

    pub(super) fn note_accepted(&self, more: Load) {
        let mut count = lock(&self.live.in_all);
        count.accepted_since = count.accepted_since.plus(more);
    }

    /// How much more of each of these tenants may be accepted, given their bounds. What fits of `jobs` counts from now on, and is in flight
    /// until it is stored.
    pub(super) async fn left_of(
        &self,
        bounds: HashMap<Arc<str>, Load>,
        jobs: &[(&Arc<str>, Load)],
    ) -> Result<(HashMap<Arc<str>, Load>, InFlight), StoreError> {
        let mut left = HashMap::with_capacity(bounds.len());
        let mut in_flight = InFlight::default();
        for (tenant, bound) in bounds {
            let own = jobs.iter().filter(|(of, _)| **of == tenant);
            let more = own.fold(Load::default(), |all, (_, load)| all.plus(*load));
            let count = self.count_of(&tenant);
            // One of those who ask for the same tenant counts, the others wait for that.
            let mut count = count.lock().await;
            let started = self.clock.nanos();
            if !count.is_fresh(more.over(bound.minus(count.live())).is_none(), started) {
                // They may be counted or not: until the next count both is assumed.
                let missed = *lock(&count.in_flight);
                let counting: BoxFuture<'_, _> = Box::pin(self.count_live(&tenant, bound));
                let counted = counting.await?;
                (count.counted, count.accepted_since) = (counted, missed);
                let now = self.clock.nanos();
                count.at = Some((now, now - started));
            }
            let room = bound.minus(count.live());
            let fits = Load { jobs: more.jobs.min(room.jobs), bytes: more.bytes.min(room.bytes) };
            count.accepted_since = count.accepted_since.plus(fits);
            {
                let mut going = lock(&count.in_flight);
                *going = going.plus(fits);
            }
            in_flight.0.push((count.in_flight.clone(), fits));
            left.insert(tenant, room);
        }
        Ok((left, in_flight))
    }

    fn count_of(&self, tenant: &Arc<str>) -> Arc<tokio::sync::Mutex<Count>> {
        let mut tenants = lock(&self.live.by_tenant);
        if tenants.len() >= MOST_TENANTS && !tenants.contains_key(tenant) {
            tenants.clear();
        }
        tenants.entry(tenant.clone()).or_default().clone()
    }

    /// The jobs of a tenant that have not ended, counted up to `most`; what has no bound is not counted.
    async fn count_live(&self, tenant: &str, most: Load) -> Result<Load, StoreError> {
        let vendors = self.vendors.values();
        let lanes: Vec<String> = vendors.flat_map(|vendor| lanes_of(vendor, tenant, 0, StreamNo::AWAITS.0)).collect();
        let mut live = Load::default();
        if most.bytes < u64::MAX {
            live.bytes = self.mongo.bytes_in(in_lanes(&lanes), PATIENCE).await?;
        }
        if most.jobs < u64::MAX {
            live.jobs = self.count_lanes(lanes, most.jobs).await?;
        }
        Ok(live)
    }

    async fn count_lanes(&self, lanes: Vec<String>, most: u64) -> Result<u64, StoreError> {
        // A server may read a limit of nothing as no limit.
        let count = self.mongo.jobs.count_documents(in_lanes(&lanes)).limit(most.max(1));
        within(count.max_time(PATIENCE)).await
    }

    pub(super) async fn backlog_of(&self, vendor: &str, tenant: &str) -> Result<Backlog, StoreError> {
        let Some(vendor) = self.vendors.get(vendor) else { return Ok(Backlog::default()) };
        let waiting = self.count_lanes(lanes_of(vendor, tenant, 0, 5).collect(), MOST_SHOWN).await?;
        let open = self.count_lanes(lanes_of(vendor, tenant, 3, StreamNo::AWAITS.0).collect(), MOST_SHOWN).await?;
        Ok(Backlog { waiting, open, ..Backlog::default() })
    }
}

impl RedisMongo {
    /// Room for a job that has ended and is to wait again, until it is stored.
    pub(super) async fn admit_again(&self, job: &Job) -> Result<Result<InFlight, NoRoom>, StoreError> {
        let (tenant, load) = (&job.lane.tenant, Load::of(job));
        if !self.core.has_room(load, self.most_waiting.in_all).await {
            return Ok(Err(NoRoom::InAll));
        }
        self.core.note_accepted(load);
        let Some(most) = self.most_waiting.of(tenant) else { return Ok(Ok(InFlight::default())) };
        let bounds = HashMap::from([(tenant.clone(), most)]);
        let (left, in_flight) = self.core.left_of(bounds, &[(tenant, load)]).await?;
        let over = left.get(tenant).and_then(|left| load.over(*left));
        Ok(over.map_or(Ok(in_flight), |bound| Err(NoRoom::OfTenant(bound))))
    }
}

fn in_lanes(lanes: &[String]) -> Document {
    doc! { "lane": { "$in": lanes.to_vec() } }
}

/// The names of a tenant's lanes of a vendor, from one stream to another, both included.
fn lanes_of(vendor: &VendorWork, tenant: &str, from: usize, to: usize) -> impl Iterator<Item = String> {
    let streams = (from..=to).filter(|stream| *stream < vendor.streams() || *stream == StreamNo::AWAITS.0);
    streams.map(move |stream| lane_name(&vendor.name, StreamNo(stream), tenant))
}
