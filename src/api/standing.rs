//! Why a job waits, its position and when it is expected to be called; and when the backlog of a vendor will be gone.
//!
//! Never fails a request: what is not known is left out. The times assume that no other vendor of the pool takes permits.

use serde::Serialize;

use super::{App, credentials, error::ApiError};
use crate::{
    clock::{Nanos, Time, nanos},
    config::Kind,
    job::{Job, Stage, Status},
    limit::{Blocker, Key, Usage, breaker::Standing, forecast},
    store::{Ahead, Backlog, EXACT_PLACES},
    vendor::Vendor,
};

/// Why a job waits, and until when, as far as that is known: members of the job, in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct WhyWaiting {
    pub(super) blocked_on: String,
    /// How long it has been so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<Time>,
    /// Until when at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eligible_at: Option<Time>,
    /// Its place among the vendor's waiting jobs, from 1, or else the least that it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position_at_least: Option<u64>,
    /// When it is expected to be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eta: Option<Time>,
}

/// Something that keeps jobs from going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) by: String,
    pub(super) since: Option<Time>,
    pub(super) until: Option<Time>,
}

impl Block {
    fn new(by: impl Into<String>, since: Option<Time>, until: Option<Time>) -> Block {
        Block { by: by.into(), since, until }
    }

    /// For a job that waits for its own time too.
    fn of_job(self, job: &Job) -> WhyWaiting {
        let eligible_at = self.until.map(|until| until.max(job.due_at));
        let Block { by: blocked_on, since, until } = self;
        WhyWaiting { blocked_on, since, until, eligible_at, position: None, position_at_least: None, eta: None }
    }
}

/// What keeps a job from going on, where it stands, and when it is expected to be called.
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
    let now = app.clock.now();
    // A job without not_before does not wait for a time, even if the clock was set back since it was submitted.
    let is_due = job.due_at <= now || (job.attempt == 0 && job.due_at <= job.updated_at);
    if job.stage == Stage::Await {
        // Others are in that stage only while they are called at most once.
        let is_webhook = matches!(vendor.config.kind, Kind::Webhook(_));
        let block = Block::new("awaiting_callback", Some(job.due_at), job.answer_by);
        return Ok(is_webhook.then(|| WhyWaiting { eligible_at: None, ..block.of_job(job) }));
    }
    if !is_due && job.stage == Stage::Call && job.attempt == 0 {
        return Ok(Some(Block::new("not_before", Some(job.id.created_at()), Some(job.due_at)).of_job(job)));
    }
    if let Some(block) = of_vendor(app, vendor).await? {
        return Ok(Some(block.of_job(job)));
    }
    if !is_due {
        let what = if job.stage == Stage::Poll { "next_poll" } else { "retry_backoff" };
        return Ok(Some(Block::new(what, Some(job.updated_at), Some(job.due_at)).of_job(job)));
    }
    by_others(app, vendor, job, now).await.map(Some)
}

/// What keeps all calls to a vendor back: the first that holds.
pub(super) async fn of_vendor(app: &App, vendor: &Vendor) -> Result<Option<Block>, ApiError> {
    if let Some(pause) = app.pauses.get(vendor.name(), app.clock.now()) {
        return Ok(Some(Block::new("vendor_paused", pause.since, pause.until)));
    }
    if let Some(refused) = credentials::refused(app, vendor).await {
        return Ok(Some(Block::new("credentials", refused.since, refused.until)));
    }
    let until = match app.breakers.look(vendor.name()).await {
        Standing::Closed => None,
        Standing::Open { until } => Some(Some(app.clock.time_at(until))),
        // Until the probe is back, which nobody knows.
        Standing::HalfOpen => Some(None),
    };
    if let Some(until) = until {
        let since = app.breakers.opened(vendor.name()).map(|opened| app.clock.time_at(opened.since));
        return Ok(Some(Block::new("breaker", since, until)));
    }
    let gate = app.limiter.gate(&vendor.config.pool).await?;
    Ok(gate.map(|gate| Block::new("slowed_by_vendor", gate.since, Some(app.clock.time_at(gate.until)))))
}

/// A job that is due waits for limits, or for other jobs.
async fn by_others(app: &App, vendor: &Vendor, job: &Job, now: Time) -> Result<WhyWaiting, ApiError> {
    let (next_at, by) = app.limiter.next_for(&vendor.config.pool, &job.lane.tenant).await?;
    let eligible_at = Some(app.clock.time_at(next_at).max(now));
    let block = match by {
        Some(Blocker::Limit(id)) => Block::new(format!("limit:{id}"), None, eligible_at),
        // Limits that start cold: none of them can be called used up.
        Some(Blocker::Gate) => Block::new("retry_backoff", None, eligible_at),
        None => {
            // The leases of all processes, which only the store knows.
            let leased = app.store.backlog(vendor.name()).await.leased;
            let full = leased >= vendor.config.concurrency as u64;
            Block::new(if full { "concurrency" } else { "queue" }, None, None)
        }
    };
    Ok(WhyWaiting { eligible_at: block.until, ..block.of_job(job) })
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

/// When calls to a vendor may begin, apart from its limits: now, or when its pause ends, or with the next probe; nothing if the pause has no end.
fn begin(app: &App, vendor: &Vendor) -> Option<Nanos> {
    let mut from = app.clock.nanos();
    if let Some(pause) = app.pauses.get(vendor.name(), app.clock.now()) {
        from = from.max(app.clock.nanos_at(pause.until?));
    }
    for breaker in [vendor.name(), &vendor.login.breaker] {
        if let Standing::Open { until } = app.breakers.standing(breaker) {
            from = from.max(until);
        }
    }
    Some(from)
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
