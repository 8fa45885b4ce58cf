//! Vendors as people see them: their limits and the use of these, their backlog, and pauses.
//!
//! Never changes a limit (see `limits`).

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{
    App,
    access::By,
    audit,
    body::{self, NoParams},
    credentials, dto,
    error::ApiError,
    overview,
    path::NamedVendor,
    standing,
};
use crate::{
    book::Pause,
    clock::Time,
    config::{parse_duration, write_limit},
    limit::Usage,
    store::{Backlog, Sees},
    vendor::Vendor,
};

#[derive(Serialize)]
struct VendorView {
    name: Arc<str>,
    kind: &'static str,
    pool: Arc<str>,
    paused: bool,
    paused_until: Option<Time>,
    paused_since: Option<Time>,
    paused_by: Option<String>,
    breaker: &'static str,
    blocked_on: Option<String>,
    since: Option<Time>,
    until: Option<Time>,
    last_error: Option<Box<RawValue>>,
    limits: Vec<LimitView>,
    concurrency: usize,
    open: u64,
    waiting: u64,
    #[serde(flatten)]
    of_all: Option<OfAllTenants>,
}

/// What is known of all tenants together only, and is not for one of them.
#[derive(Serialize)]
struct OfAllTenants {
    in_flight: i64,
    oldest_waiting_s: Option<f64>,
    drain_eta: Option<Time>,
    calls_total: u64,
    throttled_total: u64,
    breaches_total: u64,
}

#[derive(Serialize)]
struct LimitView {
    id: Arc<str>,
    calls: u64,
    per: String,
    shape: &'static str,
    key: &'static str,
    /// By all tenants together, and not for one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    next_at: Time,
}

/// What the shared answers to `GET /vendors` are called: pages read them every two seconds, and each vendor in them takes some reads of the
/// store. Whatever a caller changes of a vendor makes this process forget them.
pub(super) const LIST: &str = "vendors";
/// Short, so that scripts which submit and then look are hardly ever behind.
const LIST_GOOD_FOR: Duration = Duration::from_millis(200);

/// `GET /vendors`
pub(super) async fn list(State(app): State<Arc<App>>, by: By, _: NoParams) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct List {
        vendors: Vec<VendorView>,
    }
    let making = async {
        let mut vendors = Vec::new();
        for vendor in app.vendors.iter() {
            vendors.push(view(&app, by.sees(), vendor).await);
        }
        Ok(List { vendors })
    };
    app.overview.answers.get(&app.clock, LIST_GOOD_FOR, overview::name(LIST, by.sees()), making).await
}

/// `GET /vendors/{name}`
pub(super) async fn find(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
) -> Result<Response, ApiError> {
    Ok(dto::json(StatusCode::OK, &view(&app, by.sees(), &vendor).await))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct PauseBody {
    /// Absent, or a text: null is neither.
    #[serde(default, deserialize_with = "present")]
    r#for: Option<String>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// `POST /vendors/{name}/pause`, with `{"for": "10m"}` or nothing.
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    By(caller): By,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
    request: Request,
) -> Result<Response, ApiError> {
    let is_json = body::needs_json(request.headers());
    let raw = body::read(request, body::MAX_BODY).await?;
    let wanted: PauseBody = if raw.trim_ascii().is_empty() {
        PauseBody::default()
    } else {
        is_json?;
        body::read_object(&raw, r#"must be {"for": "10m"}, or nothing for a pause until it is resumed"#)?
    };
    let wrong = |why| ApiError::field("invalid_field", "/for", why);
    let time = wanted.r#for.map(|text| parse_duration(&text)).transpose().map_err(wrong)?;
    let (now, by) = (app.clock.now(), &caller.by);
    let until = time.map(|time| now.plus(time));
    app.pauses
        .pause(Pause { vendor: vendor.name().to_string(), until, since: Some(now), by: Some(by.to_string()) })
        .await?;
    app.store.signals().ring(vendor.name());
    app.overview.answers.forget(LIST);
    tracing::info!(%by, vendor = %vendor.name(), until = until.map(Time::rfc3339), "a vendor was paused");
    Ok(dto::json(StatusCode::OK, &view(&app, &caller.sees, &vendor).await))
}

/// `POST /vendors/{name}/resume`: ends a pause, and a silence that the vendor asked for.
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    By(caller): By,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
) -> Result<Response, ApiError> {
    app.pauses.resume(vendor.name()).await?;
    for breaker in [vendor.name(), &vendor.login.breaker] {
        app.breakers.hurry(breaker).await?;
    }
    app.limiter.open_gate(&vendor.config.pool).await?;
    // All vendors of the pool were waiting, in every process.
    for of_pool in app.vendors.iter().filter(|one| one.config.pool == vendor.config.pool) {
        app.store.wake(of_pool.name()).await?;
        app.store.signals().ring(of_pool.name());
    }
    app.overview.answers.forget(LIST);
    tracing::info!(by = %caller.by, vendor = %vendor.name(), "a vendor was resumed");
    Ok(dto::json(StatusCode::OK, &view(&app, &caller.sees, &vendor).await))
}

/// A vendor as its caller may see it: one that sees one tenant gets that tenant's counts, and not what others got wrong.
async fn view(app: &App, sees: &Sees, vendor: &Vendor) -> VendorView {
    let usage = app.limiter.usage(&vendor.config.pool).await;
    let pause = app.pauses.get(vendor.name(), app.clock.now());
    // Who cannot be asked keeps back what only it knows.
    let block = standing::of_vendor(app, vendor).await.unwrap_or_default();
    let (backlog, of_all, last_error) = match sees {
        Sees::All => {
            let backlog = app.store.backlog(vendor.name()).await;
            let of_all = of_all_tenants(app, vendor, &backlog, &usage).await;
            (backlog, Some(of_all), last_error(app, vendor).await)
        }
        Sees::Tenant(tenant) => (app.store.backlog_of(vendor.name(), tenant).await, None, None),
    };
    let limit = |usage| limit_view(app, sees, usage);
    VendorView {
        name: vendor.name().clone(),
        kind: vendor.config.kind.as_str(),
        pool: vendor.config.pool.clone(),
        paused: pause.is_some(),
        paused_until: pause.as_ref().and_then(|pause| pause.until),
        paused_since: pause.as_ref().and_then(|pause| pause.since),
        paused_by: pause.and_then(|pause| pause.by),
        breaker: app.breakers.look(vendor.name()).await.as_str(),
        since: block.as_ref().and_then(|block| block.since),
        until: block.as_ref().and_then(|block| block.until),
        blocked_on: block.map(|block| block.by),
        last_error,
        limits: usage.into_iter().map(limit).collect(),
        concurrency: vendor.config.concurrency,
        open: backlog.open,
        waiting: backlog.waiting,
        of_all,
    }
}

async fn of_all_tenants(app: &App, vendor: &Vendor, backlog: &Backlog, usage: &[Usage]) -> OfAllTenants {
    let drain_eta = standing::drain_eta(app, vendor, backlog, usage).await;
    let counted = audit::counted(app, vendor).await;
    // With a queue there may be other processes; their calls are counted by their leases.
    let in_flight = match app.metrics.vendor(vendor.name()) {
        Some(metrics) if app.queue.is_none() => metrics.in_flight.get(),
        _ => i64::try_from(backlog.leased).unwrap_or(i64::MAX),
    };
    OfAllTenants {
        in_flight,
        oldest_waiting_s: backlog.oldest_due.map(|due| app.clock.now().since(due).as_secs_f64()),
        drain_eta,
        calls_total: counted.calls,
        throttled_total: counted.throttled,
        breaches_total: counted.breaches,
    }
}

/// Why its credentials were refused, while they are; else what was wrong with the last call that failed, in any process.
async fn last_error(app: &App, vendor: &Vendor) -> Option<Box<RawValue>> {
    if let Some(refused) = credentials::refused(app, vendor).await {
        return refused.last_error;
    }
    let error = app.breakers.last_error(vendor.name()).await?;
    serde_json::from_str(&error).ok()
}

fn limit_view(app: &App, sees: &Sees, usage: Usage) -> LimitView {
    let Usage { limit, used, next_at } = usage;
    let written = write_limit(&limit);
    LimitView {
        id: limit.id,
        calls: limit.calls,
        per: written.per,
        shape: written.shape,
        key: written.key,
        used: (*sees == Sees::All).then_some(used),
        next_at: app.clock.time_at(next_at),
    }
}
