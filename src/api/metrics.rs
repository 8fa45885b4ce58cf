//! `GET /metrics`, in the form that is asked for. Some gauges are read off here, so that they cost nothing while nobody scrapes.
//!
//! Never waits long for a number: what cannot be had soon is left out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};

use super::App;
use crate::{
    exposition::{OPENMETRICS, PLAIN, plain, prefers_plain},
    limit::{Usage, breaker::Standing},
    outcomes::Blocked,
};

/// With many processes, reading the use of a pool's limits is a request to Redis: with more pools than this they are left out.
const MOST_POOLS: usize = 100;
/// Pools that are read at once.
const SIDE_BY_SIDE: usize = 8;
const MAX_WAIT: Duration = Duration::from_secs(1);

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    read_blocks(&app);
    read_limits(&app).await;
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let text = app.metrics.render();
    let (media_type, text) = if prefers_plain(&accept.join(",")) { (PLAIN, plain(&text)) } else { (OPENMETRICS, text) };
    ([(header::CONTENT_TYPE, media_type), (header::VARY, "accept")], text).into_response()
}

/// What this process knows of it without asking.
fn read_blocks(app: &App) {
    let now = app.clock.now();
    for vendor in app.vendors.iter() {
        let Some(metrics) = app.metrics.vendor(vendor.name()) else { continue };
        let is_open = |breaker: &str| app.breakers.standing(breaker) != Standing::Closed;
        metrics.blocks.set(Blocked {
            is_paused: app.pauses.get(vendor.name(), now).is_some(),
            by_credentials: is_open(&vendor.login.breaker),
            by_breaker: is_open(vendor.name()),
            is_slowed: app.limiter.is_gated(&vendor.config.pool),
        });
    }
}

async fn read_limits(app: &App) {
    let pools: BTreeSet<Arc<str>> = app.vendors.iter().map(|vendor| vendor.config.pool.clone()).collect();
    if app.queue.is_some() && pools.len() > MOST_POOLS {
        return;
    }
    let read = |pool: Arc<str>| async move {
        let usage = app.limiter.usage(&pool).await;
        (pool, usage)
    };
    let reading = stream::iter(pools).map(read).buffered(SIDE_BY_SIDE).collect::<Vec<_>>();
    let usages: Vec<(Arc<str>, Vec<Usage>)> = tokio::time::timeout(MAX_WAIT, reading).await.unwrap_or_default();
    let limits = usages.iter().flat_map(|(pool, usages)| {
        usages.iter().map(move |usage| (&**pool, &*usage.limit.id, usage.used, usage.limit.calls))
    });
    app.metrics.note_limits(limits);
}
