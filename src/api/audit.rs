//! `GET /vendors/{name}/audit`: what was really sent to a vendor's pool, and the worst window of it.
//!
//! Never looks at more calls than a request can wait for: who asks about a busy pool says since when.

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
    server::Segments,
};
use crate::{
    audit::{
        judge::{Judge, Rule, most_in},
        reader::{MOST_EXAMINED, Reader, examine},
        watch::{Findings, findings},
    },
    clock::Time,
    config::{parse_duration, write_limit},
    in_force::REACHES_ALL,
    limit::{Key, Limit, Per},
    store::StoreError,
    vendor::Vendor,
};

/// The longest window: what is on record reaches no further back.
const LONGEST: Duration = Duration::from_secs(62 * 86_400);

/// One window length, and what it was held against.
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

/// What was counted for a vendor, by all processes.
pub(super) struct Counted {
    pub(super) calls: u64,
    pub(super) throttled: u64,
    pub(super) breaches: u64,
}

/// The calls of [since, until) on record.
struct Range {
    since: i64,
    until: i64,
}

/// `GET /vendors/{name}/audit`
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    Segments(name): Segments<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let vendor = app.vendors.get(&name).ok_or_else(|| ApiError::unknown_vendor(&name))?;
    let mut params = Params::of(request.uri());
    let window = params.take("window")?.map(|text| read_window(&text)).transpose()?;
    let (since, until) = (read_time(&mut params, "since")?, read_time(&mut params, "until")?);
    params.finish()?;
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        return Err(body::invalid_parameter("until", "must be later than since"));
    }
    let micros = |at: Time| at.0.saturating_mul(1000);
    let range = Range { since: since.map_or(0, micros), until: until.map_or(i64::MAX, micros) };
    // What this process has sent is known to the millisecond; other processes write theirs once a second.
    app.audit.write().await?;
    match window {
        Some(window) => of_window(&app, vendor, window, range).await,
        None => of_limits(&app, vendor, range).await,
    }
}

/// One length of window over the whole pool.
async fn of_window(app: &App, vendor: &Vendor, window: Duration, range: Range) -> Result<Response, ApiError> {
    let calls = most_in(window, &in_force(app, vendor));
    let rule = Rule { id: "".into(), calls, per: Per::Rolling(window), key: Key::Vendor };
    let mut judges = [judge(app, vendor, rule)];
    let examined = look(app, vendor, range, &mut judges).await?;
    let found = judges[0].finding();
    let view = WindowView { calls: examined, max_in_any_window: found.worst, limit: calls, breaches: found.breaches };
    Ok(dto::json(StatusCode::OK, &view))
}

/// Every limit of the pool, each with its own window.
async fn of_limits(app: &App, vendor: &Vendor, range: Range) -> Result<Response, ApiError> {
    let Findings { marks, .. } = findings(&*app.audit.log, &vendor.config.pool).await?;
    let limits = in_force(app, vendor);
    let mut judges: Vec<Judge> = limits.iter().map(|limit| judge(app, vendor, Rule::of(limit))).collect();
    let calls = look(app, vendor, range, &mut judges).await?;
    let view = |(limit, judge): (&Limit, &Judge)| {
        let found = judge.finding();
        let ever = marks.get(&limit.count()).map_or((0, None), |mark| (mark.worst, mark.worst_at));
        // The running judge is some seconds behind.
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
    let limits: Vec<LimitView> = limits.iter().zip(&judges).map(view).collect();
    let breaches = limits.iter().map(|limit| limit.breaches).sum();
    Ok(dto::json(StatusCode::OK, &PoolView { calls, breaches, limits }))
}

/// Holds nothing against what is in force that was sent before it was, or in a window that began before.
fn judge(app: &App, vendor: &Vendor, rule: Rule) -> Judge {
    let mut judge = Judge::new(rule);
    if let Some(at) = app.limits.get(&vendor.config.pool).and_then(|terms| terms.changed_at) {
        let in_force = at.plus(REACHES_ALL).0.saturating_mul(1000);
        judge.allow_before(u64::MAX, in_force.saturating_add(judge.rule().memory()));
    }
    judge
}

fn in_force(app: &App, vendor: &Vendor) -> Vec<Limit> {
    app.limits.get(&vendor.config.pool).map(|terms| terms.limits.to_vec()).unwrap_or_default()
}

async fn look(app: &App, vendor: &Vendor, range: Range, judges: &mut [Judge]) -> Result<u64, ApiError> {
    let reader = Reader::new(app.audit.log.clone(), vendor.config.pool.clone(), range.since, range.until);
    examine(reader, judges).await?.ok_or_else(|| {
        let detail =
            format!("more than {MOST_EXAMINED} calls were sent in this time; ask about less with since and until");
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

/// What was counted for a vendor since the store was made; by this process alone, while the store is away.
pub(super) async fn counted(app: &App, vendor: &Vendor) -> Counted {
    let counted = async {
        app.audit.write().await?;
        let tally = app.audit.log.tally(vendor.name()).await?;
        let found = findings(&*app.audit.log, &vendor.config.pool).await?;
        let breaches = found.breaches.get(&**vendor.name()).copied().unwrap_or(0);
        Ok::<_, StoreError>(Counted { calls: tally.calls, throttled: tally.throttled, breaches })
    };
    let own = |error: StoreError| {
        tracing::debug!(%error, "what was counted for a vendor cannot be read");
        let metrics = app.metrics.vendor(vendor.name());
        let own = |of: fn(&crate::telemetry::VendorMetrics) -> u64| metrics.map_or(0, of);
        let (calls, throttled) = (own(|metrics| metrics.calls.get()), own(|metrics| metrics.throttled.get()));
        Counted { calls, throttled, breaches: own(|metrics| metrics.breaches.get()) }
    };
    counted.await.unwrap_or_else(own)
}
