//! Why a job waits, its position and when it is expected to be called; and when the backlog of a vendor will be gone.
//!
//! Never fails a request: what is not known is left out. The times assume that no other vendor of the pool takes permits.

use super::{App, credentials, error::ApiError};
use crate::{
    clock::{Nanos, Time, nanos},
    config::Kind,
    job::{Job, Stage, Status},
    limit::{Blocker, Key, Usage, breaker::Standing, forecast},
    store::{Ahead, Backlog, EXACT_PLACES},
    vendor::Vendor,
};

/// Why a job waits, and until when, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WhyWaiting {
    pub(super) blocked_on: String,
    pub(super) eligible_at: Option<Time>,
    /// Its place among the vendor's waiting jobs, from 1, or else the least that it can be.
    pub(super) position: Option<u64>,
    pub(super) position_at_least: Option<u64>,
    /// When it is expected to be called.
    pub(super) eta: Option<Time>,
}

/// Why a job waits, its position, and when it is expected to be called.
pub(super) async fn why_waiting(app: &App, job: &Job) -> Result<Option<WhyWaiting>, ApiError> {
    let Some(mut why) = blocked_on(app, job).await? else { return Ok(None) };
    if let (Stage::Call, Status::Pending, Some(vendor)) = (job.stage, job.status, app.vendors.get(&job.lane.vendor))
        && let Ok(Some(ahead)) = app.store.ahead(job).await
    {
        let at_least = ahead.jobs.min(EXACT_PLACES) + 1;
        why.position = ahead.is_exact.then_some(at_least);
        why.position_at_least = (!ahead.is_exact).then_some(at_least);
        why.eta = eta(app, vendor, job, ahead).await;
    }
    Ok(Some(why))
}

/// The first reason that applies.
async fn blocked_on(app: &App, job: &Job) -> Result<Option<WhyWaiting>, ApiError> {
    if job.status.has_ended() || (job.status == Status::Processing && job.stage == Stage::Call) {
        return Ok(None);
    }
    let Some(vendor) = app.vendors.get(&job.lane.vendor) else { return Ok(None) };
    let because = |blocked_on: &str, eligible_at| {
        let blocked_on = blocked_on.into();
        Ok(Some(WhyWaiting { blocked_on, eligible_at, position: None, position_at_least: None, eta: None }))
    };
    let now = app.clock.now();
    // A job without not_before does not wait for a time, even if the clock was set back since it was submitted.
    let is_due = job.due_at <= now || (job.attempt == 0 && job.due_at <= job.updated_at);
    if job.stage == Stage::Await {
        // Jobs of other vendors are in this stage only during a call that is made at most once.
        return if matches!(vendor.config.kind, Kind::Webhook(_)) {
            because("awaiting_callback", None)
        } else {
            Ok(None)
        };
    }
    if !is_due && job.stage == Stage::Call && job.attempt == 0 {
        return because("not_before", Some(job.due_at));
    }
    if let Some(pause) = app.pauses.get(vendor.name(), now) {
        return because("vendor_paused", pause.until.map(|until| until.max(job.due_at)));
    }
    if let Some(refused) = credentials::refused(app, vendor).await {
        return because("credentials", refused.until.map(|until| until.max(job.due_at)));
    }
    match app.breakers.look(vendor.name()).await {
        Standing::Closed => {}
        Standing::Open { until } => return because("breaker", Some(app.clock.time_at(until).max(job.due_at))),
        // It depends on the probe, so there is no time.
        Standing::HalfOpen => return because("breaker", None),
    }
    if !is_due {
        let what = if job.stage == Stage::Poll { "next_poll" } else { "retry_backoff" };
        return because(what, Some(job.due_at));
    }
    let (next_at, by) = app.limiter.next_for(&vendor.config.pool, &job.lane.tenant).await?;
    let eligible_at = Some(app.clock.time_at(next_at).max(now));
    match by {
        Some(Blocker::Limit(id)) => because(&format!("limit:{id}"), eligible_at),
        // The vendor sent Retry-After.
        Some(Blocker::Gate) => because("retry_backoff", eligible_at),
        None => {
            // The leases of all processes, which only the store knows.
            let leased = app.store.backlog(vendor.name()).await.leased;
            let full = leased >= vendor.config.concurrency as u64;
            because(if full { "concurrency" } else { "queue" }, None)
        }
    }
}

/// When a job is expected to be called. If it is not known how many are ahead of it, all that wait for the vendor are.
async fn eta(app: &App, vendor: &Vendor, job: &Job, ahead: Ahead) -> Option<Time> {
    let from = begin(app, vendor)?;
    let limits = Limits::of(app, vendor, &job.lane.tenant).await?;
    let at_least = ahead.jobs + 1;
    let n = if ahead.is_exact { at_least } else { app.store.backlog(vendor.name()).await.waiting.max(at_least) };
    let by_limits = limits.when(from, n, ahead.in_lane + 1, forecast::expected);
    let at = by_limits.max(by_concurrency(app, vendor, from, n));
    Some(app.clock.time_at(at).max(job.due_at))
}

/// When all jobs that wait for a vendor now could have been called, those whose time has not come taken for due; nothing if none waits, or
/// if it is not known.
pub(super) async fn drain_eta(app: &App, vendor: &Vendor, backlog: &Backlog, usage: &[Usage]) -> Option<Time> {
    if backlog.waiting == 0 {
        return None;
    }
    let from = begin(app, vendor)?;
    let outlook = app.limiter.outlook(&vendor.config.pool, app.clock.nanos(), 1).await.ok()?;
    let shared: Vec<Usage> = usage.iter().filter(|usage| usage.limit.key == Key::Vendor).cloned().collect();
    let by_limits = forecast::expected(&shared, from.max(outlook.next_at), backlog.waiting);
    Some(app.clock.time_at(by_limits.max(by_concurrency(app, vendor, from, backlog.waiting))))
}

/// When calls to a vendor may begin, apart from its limits: now, or when its pause ends; nothing if the pause has no end.
fn begin(app: &App, vendor: &Vendor) -> Option<Nanos> {
    let now = app.clock.nanos();
    match app.pauses.get(vendor.name(), app.clock.now()) {
        None => Some(now),
        Some(pause) => Some(app.clock.nanos_at(pause.until?).max(now)),
    }
}

/// When the n-th call is expected if calls last as long as recent ones, with no more than the vendor's concurrency in flight.
fn by_concurrency(app: &App, vendor: &Vendor, from: Nanos, n: u64) -> Nanos {
    let latency = app.metrics.vendor(vendor.name()).and_then(|metrics| metrics.recent_latency()).unwrap_or_default();
    let before = n.saturating_sub(1) / vendor.config.concurrency as u64;
    from.saturating_add(nanos(latency).saturating_mul(i64::try_from(before).unwrap_or(i64::MAX)))
}

/// The limits of a pool as they are now for one tenant.
pub(super) struct Limits {
    shared: Vec<Usage>,
    /// The tenant's own, each as if unused at the time of the tenant's next call.
    own: Vec<Usage>,
    next_at: Nanos,
}

impl Limits {
    /// Nothing if the limiter does not know.
    pub(super) async fn of(app: &App, vendor: &Vendor, tenant: &std::sync::Arc<str>) -> Option<Limits> {
        let pool = &vendor.config.pool;
        let outlook = app.limiter.outlook(pool, app.clock.nanos(), 1).await.ok()?;
        let (shared, mut own): (Vec<_>, Vec<_>) =
            app.limiter.usage(pool).await.into_iter().partition(|usage| usage.limit.key == Key::Vendor);
        if !own.is_empty() {
            let (next_at, _) = app.limiter.next_for(pool, tenant).await.ok()?;
            own.iter_mut().for_each(|usage| (usage.used, usage.next_at) = (0, next_at));
        }
        Some(Limits { shared, own, next_at: outlook.next_at })
    }

    /// When the n-th call of the pool could go, which is call number `of_tenant` of the tenant, if none goes before `from`.
    pub(super) fn when(
        &self,
        from: Nanos,
        n: u64,
        of_tenant: u64,
        forecast: fn(&[Usage], Nanos, u64) -> Nanos,
    ) -> Nanos {
        let from = from.max(self.next_at);
        forecast(&self.shared, from, n).max(forecast(&self.own, from, of_tenant))
    }
}
