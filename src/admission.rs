//! How fast each tenant may submit jobs. Counted by the process that accepts them, and once a second by all processes together.
//!
//! Never makes a submit wait for Redis: what other processes accept is known a second later, so together they may accept a little too much.
//! Never counts what waits (see `store::room`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use redis::Script;

use crate::{
    clock::{Clock, Nanos, nanos},
    config::{SubmitRate, Tenant, Tenants},
    redis_link::{Redis, script},
    store_error::StoreError,
};

/// How often each process adds its counts to those of all.
pub const EXCHANGE_EVERY: Duration = Duration::from_secs(1);
/// Tenants whose rates are remembered at once.
const MOST_TENANTS: usize = 100_000;
/// Tenants whose counts are added at the same time.
const SIDE_BY_SIDE: usize = 32;

/// What tenants may submit, and what they have submitted.
pub struct Admission {
    tenants: Tenants,
    clock: Clock,
    buckets: Mutex<HashMap<Arc<str>, Bucket>>,
    others: Option<Others>,
}

/// A bucket with room for one period's jobs.
#[derive(Clone, Copy)]
struct Bucket {
    /// When it is full again (GCRA's theoretical arrival time).
    full_at: Nanos,
    /// Jobs that are not in the count of all processes yet.
    unsent: u64,
}

/// The count of all processes, in Redis.
struct Others {
    redis: Redis,
    /// What our keys in Redis begin with.
    database: String,
    script: Script,
}

/// A tenant that may not submit a job now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    pub rate: SubmitRate,
    /// After this time it may submit one.
    pub wait: Duration,
}

impl Admission {
    /// `others`: the Redis in which all processes count together, and the name of the database.
    pub fn new(tenants: Tenants, clock: Clock, others: Option<(Redis, String)>) -> Admission {
        let others = others.map(|(redis, database)| Others {
            redis,
            database,
            script: script(&[include_str!("admission.lua")]),
        });
        Admission { tenants, clock, buckets: Mutex::default(), others }
    }

    /// What a tenant may do.
    pub fn bounds(&self, tenant: &str) -> &Tenant {
        self.tenants.get(tenant)
    }

    /// Whether there are counts to share with other processes.
    pub fn is_shared(&self) -> bool {
        let mut all = self.tenants.named.values().chain([&self.tenants.others]);
        self.others.is_some() && all.any(|tenant| tenant.submit.is_some())
    }

    /// Whether a tenant may submit one more job now; counts nothing. To refuse a request before its body is read.
    pub fn check(&self, tenant: &str) -> Result<(), TooFast> {
        let Some(rate) = self.tenants.get(tenant).submit else { return Ok(()) };
        let now = self.clock.nanos();
        let full_at = self.lock().get(tenant).map_or(now, |bucket| bucket.full_at);
        after_one_more(rate, full_at, now).map(drop)
    }

    /// Counts one job of a tenant, if the tenant may submit it now.
    pub fn take(&self, tenant: &Arc<str>) -> Result<(), TooFast> {
        let Some(rate) = self.tenants.get(tenant).submit else { return Ok(()) };
        let (now, mut buckets) = (self.clock.nanos(), self.lock());
        if buckets.len() >= MOST_TENANTS && !buckets.contains_key(tenant) {
            buckets.retain(|_, bucket| bucket.full_at > now);
            if buckets.len() >= MOST_TENANTS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket { full_at: now, unsent: 0 });
        bucket.full_at = after_one_more(rate, bucket.full_at, now)?;
        bucket.unsent += 1;
        Ok(())
    }

    /// Takes back the count of one job that is not new.
    pub fn give_back(&self, tenant: &str) {
        let Some(rate) = self.tenants.get(tenant).submit else { return };
        if let Some(bucket) = self.lock().get_mut(tenant) {
            bucket.full_at = bucket.full_at.saturating_sub(each(rate));
            // If all processes have it in their count by now, it stays there.
            bucket.unsent = bucket.unsent.saturating_sub(1);
        }
    }

    /// Adds what this process has counted to the count of all, and takes that over. To be called every [`EXCHANGE_EVERY`].
    pub async fn exchange(&self) -> Result<(), StoreError> {
        let Some(others) = &self.others else { return Ok(()) };
        let counted: Vec<(Arc<str>, u64)> = {
            let (now, mut buckets) = (self.clock.nanos(), self.lock());
            buckets.retain(|_, bucket| bucket.full_at > now || bucket.unsent > 0);
            buckets.iter_mut().map(|(tenant, bucket)| (tenant.clone(), std::mem::take(&mut bucket.unsent))).collect()
        };
        let add = |(tenant, jobs): (Arc<str>, u64)| async move {
            let Some(rate) = self.tenants.get(&tenant).submit else { return Ok(()) };
            let ahead = others.add(&self.clock, &tenant, jobs, rate).await;
            let (now, mut buckets) = (self.clock.nanos(), self.lock());
            let Some(bucket) = buckets.get_mut(&tenant) else { return ahead.map(drop) };
            match ahead {
                Ok(ahead) => {
                    let since = i64::try_from(bucket.unsent).unwrap_or(i64::MAX).saturating_mul(each(rate));
                    bucket.full_at = now.saturating_add(ahead).saturating_add(since);
                    Ok(())
                }
                Err(error) => {
                    bucket.unsent += jobs;
                    Err(error)
                }
            }
        };
        let outcomes = stream::iter(counted).map(add).buffer_unordered(SIDE_BY_SIDE);
        outcomes.fold(Ok(()), |all, one| async move { all.and(one) }).await
    }

    /// A panic elsewhere leaves nothing here half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Others {
    /// Adds jobs to the count of all processes; returns in how much time the tenant's bucket is full again.
    async fn add(&self, clock: &Clock, tenant: &str, jobs: u64, rate: SubmitRate) -> Result<Nanos, StoreError> {
        let micros = |time: Nanos| time.div_euclid(1000);
        let mut call = self.script.key(format!("{}:submits:{{{tenant}}}", self.database));
        call.arg(clock.injected().map_or(0, micros))
            .arg(jobs)
            .arg(micros(each(rate)).max(1))
            .arg(micros(nanos(rate.per)));
        let ahead: i64 = self.redis.run(&call).await?;
        Ok(ahead.saturating_mul(1000))
    }
}

/// The time that one job takes out of its bucket.
fn each(rate: SubmitRate) -> Nanos {
    (nanos(rate.per) / i64::try_from(rate.jobs).unwrap_or(i64::MAX)).max(1)
}

/// When the bucket is full again after one more job.
fn after_one_more(rate: SubmitRate, full_at: Nanos, now: Nanos) -> Result<Nanos, TooFast> {
    let after = full_at.max(now).saturating_add(each(rate));
    let missing = after.saturating_sub(now).saturating_sub(nanos(rate.per));
    if missing <= 0 {
        return Ok(after);
    }
    Err(TooFast { rate, wait: Duration::from_nanos(missing.unsigned_abs()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;

    #[test]
    fn a_tenant_submits_its_number_in_a_period_and_goes_on_as_the_period_passes() {
        let rate = SubmitRate { jobs: 4, per: Duration::from_secs(2) };
        let others = Tenant { submit: Some(rate), ..Tenant::default() };
        let clock = Clock::manual(Time(0));
        let admission = Admission::new(Tenants { others, ..Tenants::default() }, clock.clone(), None);
        let (tenant, other): (Arc<str>, Arc<str>) = ("t".into(), "o".into());
        let taken = |tenant: &Arc<str>| (0..9).take_while(|_| admission.take(tenant).is_ok()).count();
        assert_eq!((taken(&tenant), taken(&tenant)), (4, 0));
        assert_eq!(admission.check("t"), Err(TooFast { rate, wait: Duration::from_millis(500) }));
        assert_eq!((admission.check("o"), taken(&other)), (Ok(()), 4), "each has its own");
        clock.advance(Duration::from_millis(499));
        assert_eq!(taken(&tenant), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(taken(&tenant), 1);
        clock.advance(Duration::from_secs(1));
        assert_eq!(taken(&tenant), 2);
        clock.advance(Duration::from_secs(100));
        assert_eq!(taken(&tenant), 4, "what was not used is not added up");
    }
}
