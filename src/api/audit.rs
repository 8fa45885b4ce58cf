//! `GET /vendors/{name}/audit`: which calls were really sent to a vendor's pool, and their worst window.
//!
//! Never reads more calls than a request can wait for: for a busy pool, the caller has to say `since` when.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;

use super::{
    App,
    body::{self, Params},
    dto,
    error::ApiError,
    list::read_time,
    path::NamedVendor,
};
use crate::{
    audit::{
        judge::Judge,
        reader::{MOST_EXAMINED, Reader, examine},
        watch::{Findings, findings},
    },
    clock::Time,
    config::{parse_duration, write_limit},
    limit::Limit,
    store::StoreError,
    vendor::Vendor,
};

/// The longest window: calls are not recorded for longer.
const LONGEST: Duration = Duration::from_secs(62 * 86_400);

/// One length of window, and the limit that it was compared with.
#[derive(Serialize)]
struct WindowView {
    calls: u64,
    max_in_any_window: u64,
    limit: Option<u64>,
    breaches: u64,
}

#[derive(Serialize)]
struct PoolView {
    calls: u64,
    breaches: u64,
    limits: Vec<LimitView>,
}

#[derive(Serialize)]
struct LimitView {
    id: Arc<str>,
    window: String,
    key: &'static str,
    max_in_any_window: u64,
    limit: Option<u64>,
    breaches: u64,
    worst_ever: u64,
    worst_ever_at: Option<Time>,
}

/// Counts of one vendor, over all processes.
pub(super) struct Counted {
    pub(super) calls: u64,
    pub(super) throttled: u64,
    pub(super) breaches: u64,
}

/// The recorded calls in [since, until).
struct Range {
    since: i64,
    until: i64,
}

/// `GET /vendors/{name}/audit`
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    NamedVendor(vendor): NamedVendor,
    request: Request,
) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let window = params.take("window")?.map(|text| read_window(&text)).transpose()?;
    let (since, until) = (read_time(&mut params, "since")?, read_time(&mut params, "until")?);
    params.finish()?;
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        return Err(body::invalid_parameter("until", "must be later than since"));
    }
    let micros = |at: Time| at.0.saturating_mul(1000);
    let range = Range { since: since.map_or(0, micros), until: until.map_or(i64::MAX, micros) };
    // The calls of this process are stored now; other processes store theirs once a second.
    app.audit.write().await?;
    match window {
        Some(window) => of_window(&app, &vendor, window, range).await,
        None => of_limits(&app, &vendor, range).await,
    }
}

/// One length of window over the whole pool.
async fn of_window(app: &App, vendor: &Vendor, window: Duration, range: Range) -> Result<Response, ApiError> {
    let Findings { history, .. } = on_record(app, vendor).await?;
    let mut judge = Judge::of_window(&history, window);
    let calls = look(app, vendor, range, &mut judge).await?;
    let (found, limit) = (judge.finding(""), judge.most_now());
    let view = WindowView { calls, max_in_any_window: found.worst, limit, breaches: found.breaches };
    Ok(dto::json(StatusCode::OK, &view))
}

/// Every limit of the pool, each with its own window.
async fn of_limits(app: &App, vendor: &Vendor, range: Range) -> Result<Response, ApiError> {
    let Findings { marks, history, .. } = on_record(app, vendor).await?;
    let limits = app.limits.get(&vendor.config.pool).map(|terms| terms.limits).unwrap_or_default();
    let mut judge = Judge::of_limits(&history);
    let calls = look(app, vendor, range, &mut judge).await?;
    let view = |limit: &Limit| {
        let found = judge.finding(&limit.count());
        let ever = marks.get(&limit.count()).map_or((0, None), |mark| (mark.worst, mark.worst_at));
        // The judge is some seconds behind.
        let (worst_ever, at) = if found.worst > ever.0 { (found.worst, found.worst_at) } else { ever };
        LimitView {
            id: limit.id.clone(),
            window: write_limit(limit).per,
            key: write_limit(limit).key,
            max_in_any_window: found.worst,
            limit: Some(limit.calls),
            breaches: found.breaches,
            worst_ever,
            worst_ever_at: at.map(|at| Time(at.div_euclid(1000))),
        }
    };
    // Breaches of limits that are no longer in force count too.
    let breaches = judge.findings().map(|(_, _, found)| found.breaches).sum();
    Ok(dto::json(StatusCode::OK, &PoolView { calls, breaches, limits: limits.iter().map(view).collect() }))
}

/// What the judge has found, and the changes of limits up to now.
async fn on_record(app: &App, vendor: &Vendor) -> Result<Findings, StoreError> {
    let pool = &vendor.config.pool;
    let (mut found, judged_to) = findings(&*app.audit.log, pool).await?;
    let stamp = |at| app.limiter.stamp(pool, at);
    found.history.follow(&app.limits.changes(pool), stamp, app.clock.nanos(), judged_to);
    Ok(found)
}

async fn look(app: &App, vendor: &Vendor, range: Range, judge: &mut Judge) -> Result<u64, ApiError> {
    let reader = Reader::new(app.audit.log.clone(), vendor.config.pool.clone(), range.since, range.until);
    examine(reader, judge).await?.ok_or_else(|| {
        let detail = format!(
            "more than {MOST_EXAMINED} calls were sent in this time; ask for a shorter time with since and until"
        );
        ApiError::unprocessable("too_many_calls", detail)
    })
}

fn read_window(text: &str) -> Result<Duration, ApiError> {
    let window = parse_duration(text).map_err(|why| body::invalid_parameter("window", &why))?;
    if window.is_zero() || window > LONGEST {
        return Err(body::invalid_parameter("window", "must be from 1ms to 62d"));
    }
    Ok(window)
}

/// Counts of one vendor since the store was made; only those of this process while the store is unavailable.
pub(super) async fn counted(app: &App, vendor: &Vendor) -> Counted {
    let counted = async {
        app.audit.write().await?;
        let tally = app.audit.log.tally(vendor.name()).await?;
        let (found, _) = findings(&*app.audit.log, &vendor.config.pool).await?;
        let breaches = found.breaches.get(&**vendor.name()).copied().unwrap_or(0);
        Ok::<_, StoreError>(Counted { calls: tally.calls, throttled: tally.throttled, breaches })
    };
    let own = |error: StoreError| {
        tracing::debug!(%error, "the counts of a vendor cannot be read");
        let metrics = app.metrics.vendor(vendor.name());
        let own = |of: fn(&crate::telemetry::VendorMetrics) -> u64| metrics.map_or(0, of);
        let (calls, throttled) = (own(|metrics| metrics.calls.get()), own(|metrics| metrics.throttled.get()));
        Counted { calls, throttled, breaches: own(|metrics| metrics.breaches.get()) }
    };
    counted.await.unwrap_or_else(own)
}
