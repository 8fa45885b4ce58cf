//! How fast a tenant may submit jobs: so many in a time, counted in this process.
//!
//! Never counts what waits: the stores bound that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::StatusCode;

use super::error::ApiError;
use crate::{
    clock::{Nanos, nanos},
    config::{SubmitRate, Tenants},
};

/// Tenants whose rates are remembered at once.
const MOST_TENANTS: usize = 100_000;
/// When to try again if too many jobs of a tenant wait: nobody knows when one ends.
const WAITING_RETRY_SECS: u32 = 5;

/// What tenants may submit, and what they have submitted.
pub struct Admission {
    tenants: Tenants,
    /// When a tenant's bucket is full again (GCRA's theoretical arrival time). A bucket has room for one period's jobs.
    full_at: Mutex<HashMap<Arc<str>, Nanos>>,
}

impl Admission {
    pub fn new(tenants: Tenants) -> Admission {
        Admission { tenants, full_at: Mutex::default() }
    }

    /// Whether a tenant may submit one more job now; counts nothing. To refuse a request before its body is read.
    pub(super) fn check(&self, tenant: &str, now: Nanos) -> Result<(), ApiError> {
        let Some(rate) = self.tenants.get(tenant).submit else { return Ok(()) };
        let full_at = self.lock().get(tenant).copied().unwrap_or(now);
        after_one_more(rate, full_at, now).map(drop)
    }

    /// Counts one job of a tenant, if the tenant may submit it now.
    pub(super) fn take(&self, tenant: &Arc<str>, now: Nanos) -> Result<(), ApiError> {
        let Some(rate) = self.tenants.get(tenant).submit else { return Ok(()) };
        let mut buckets = self.lock();
        if buckets.len() >= MOST_TENANTS && !buckets.contains_key(tenant) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MOST_TENANTS {
                buckets.clear();
            }
        }
        let full_at = buckets.entry(tenant.clone()).or_insert(now);
        *full_at = after_one_more(rate, *full_at, now)?;
        Ok(())
    }

    /// For a job that does not fit because too many of its tenant wait.
    pub(super) fn too_many_waiting(&self, tenant: &str) -> ApiError {
        let most = self.tenants.get(tenant).max_waiting.unwrap_or(0);
        let detail = format!(
            "{most} jobs of this tenant have not ended, which is max_waiting of the tenant in the config; try again when some have"
        );
        over_limit(detail, "waiting", format!("q={most}"), WAITING_RETRY_SECS)
    }

    /// A panic elsewhere leaves nothing here half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Nanos>> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the bucket is full again after one more job.
fn after_one_more(rate: SubmitRate, full_at: Nanos, now: Nanos) -> Result<Nanos, ApiError> {
    let (per, jobs) = (nanos(rate.per), i64::try_from(rate.jobs).unwrap_or(i64::MAX));
    let each = (per / jobs).max(1);
    let after = full_at.max(now).saturating_add(each);
    let missing = after.saturating_sub(now).saturating_sub(per);
    if missing <= 0 {
        return Ok(after);
    }
    let secs = u32::try_from(missing.saturating_add(999_999_999) / 1_000_000_000).unwrap_or(u32::MAX);
    let per_secs = per.saturating_add(999_999_999) / 1_000_000_000;
    let detail = format!(
        "this tenant may submit {jobs} jobs in {}, which is submit of the tenant in the config; try again after Retry-After",
        crate::config::write_duration(rate.per)
    );
    Err(over_limit(detail, "submit", format!("q={jobs};w={per_secs}"), secs))
}

/// `RateLimit` and `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-10.
fn over_limit(detail: String, policy: &str, quota: String, retry_secs: u32) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "tenant_over_limit", detail)
        .retry_after(retry_secs)
        .header("ratelimit-policy", format!("\"{policy}\";{quota}"))
        .header("ratelimit", format!("\"{policy}\";r=0;t={retry_secs}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Tenant;

    #[test]
    fn a_tenant_submits_its_number_in_a_period_and_goes_on_as_the_period_passes() {
        let rate = SubmitRate { jobs: 4, per: Duration::from_secs(2) };
        let others = Tenant { submit: Some(rate), max_waiting: None };
        let admission = Admission::new(Tenants { others, ..Tenants::default() });
        let (tenant, other): (Arc<str>, Arc<str>) = ("t".into(), "o".into());
        let taken = |tenant: &Arc<str>, now| (0..9).take_while(|_| admission.take(tenant, now).is_ok()).count();
        assert_eq!((taken(&tenant, 0), taken(&tenant, 0)), (4, 0));
        assert!(admission.check("t", 0).is_err() && admission.check("o", 0).is_ok());
        assert_eq!(taken(&other, 0), 4, "each has its own");
        assert_eq!(taken(&tenant, 499_999_999), 0);
        assert_eq!((taken(&tenant, 500_000_000), taken(&tenant, 1_500_000_000)), (1, 2));
        assert_eq!(taken(&tenant, 100_000_000_000), 4, "what was not used is not added up");
    }
}
