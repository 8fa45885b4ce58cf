//! Storing new jobs, and the answers where a tenant submits too fast, or too much is waiting.
//!
//! Never counts anything (see `crate::admission` and `store::room`).

use axum::http::StatusCode;

use super::{App, error::ApiError};
use crate::{
    admission::{Admission, TooFast},
    config::{SubmitRate, write_duration},
    job::NewJob,
    store::{
        Sees, StoreError, Submitted, With,
        room::{Bound, NoRoom},
    },
};

/// When to try again if too many jobs of a tenant wait: nobody knows when one ends.
const WAITING_RETRY_SECS: u64 = 5;

/// Stores new jobs; one outcome for each. A job that came before under its key is known, also where there is no room for a new one, and does
/// not count as submitted again.
pub(super) async fn store(app: &App, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
    let key = |job: &NewJob| Some((job.lane.tenant.clone(), job.idempotency.clone()?));
    let keys: Vec<_> = jobs.iter().map(key).collect();
    let mut outcomes = app.metrics.timed(app.store.submit(jobs)).await?;
    for (outcome, key) in outcomes.iter_mut().zip(keys) {
        let Some((tenant, key)) = key else { continue };
        if matches!(*outcome, Submitted::NoRoom(_)) {
            match app.store.recall(&tenant, &key).await? {
                // A key whose job was never written stands for no job: whoever wrote it died meanwhile.
                Some(Submitted::Known(id)) if app.store.find(&Sees::All, id, With::NEITHER).await?.is_none() => {}
                known => *outcome = known.unwrap_or(*outcome),
            }
        }
        if matches!(*outcome, Submitted::Known(_)) {
            app.admission.give_back(&tenant);
        }
    }
    Ok(outcomes)
}

impl From<TooFast> for ApiError {
    fn from(TooFast { rate: SubmitRate { jobs, per }, wait }: TooFast) -> ApiError {
        let secs = |time: std::time::Duration| time.as_nanos().div_ceil(1_000_000_000) as u64;
        let detail = format!(
            "this tenant may submit {jobs} jobs in {}, which is submit of the tenant in the config; try again after Retry-After",
            write_duration(per)
        );
        over_limit(detail, "submit", format!("q={jobs};w={}", secs(per)), secs(wait))
    }
}

/// For a job that cannot wait because too much is waiting.
pub(super) fn no_room(admission: &Admission, tenant: &str, why: NoRoom) -> ApiError {
    let (policy, quota, detail) = match why {
        NoRoom::InAll => return ApiError::over_capacity(),
        NoRoom::OfTenant(Bound::Jobs) => {
            let most = admission.bounds(tenant).max_waiting.unwrap_or(0);
            let detail =
                format!("{most} jobs of this tenant have not ended, which is max_waiting of the tenant in the config");
            ("waiting", format!("q={most}"), detail)
        }
        NoRoom::OfTenant(Bound::Bytes) => {
            let most = admission.bounds(tenant).max_waiting_bytes.unwrap_or(0);
            let detail = format!(
                "with this payload, those of this tenant's jobs that have not ended would have more than {most} bytes, \
                 which is max_waiting_bytes of the tenant in the config"
            );
            ("waiting-bytes", format!("q={most};qu=\"content-bytes\""), detail)
        }
    };
    over_limit(detail + "; try again when some have", policy, quota, WAITING_RETRY_SECS)
}

/// `RateLimit` and `RateLimit-Policy` as in draft-ietf-httpapi-ratelimit-headers-10.
fn over_limit(detail: String, policy: &str, quota: String, retry_secs: u64) -> ApiError {
    let secs = u32::try_from(retry_secs).unwrap_or(u32::MAX);
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "tenant_over_limit", detail)
        .retry_after(secs)
        .header("ratelimit-policy", format!("\"{policy}\";{quota}"))
        .header("ratelimit", format!("\"{policy}\";r=0;t={secs}"))
}
