//! `GET /stats`: how many jobs come, are done and fail, how long that takes, and what waits.
//!
//! Never shows a tenant's key more than its own counts: what is known of all tenants together only is left out.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::{App, access::By, body::NoParams, error::ApiError, overview};
use crate::{
    clock::Time,
    recent::Counts,
    stats::Window,
    store::{Backlog, Sees},
};

/// Vendors whose backlogs are read at once.
const SIDE_BY_SIDE: usize = 8;

#[derive(Serialize)]
struct StatsView {
    at: Time,
    /// Outer `None`: not for one tenant; inner `None`: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_s: Option<Option<f64>>,
    #[serde(flatten)]
    in_all: Numbers,
    vendors: Vec<VendorView>,
}

#[derive(Serialize)]
struct VendorView {
    name: Arc<str>,
    #[serde(flatten)]
    numbers: Numbers,
}

#[derive(Serialize)]
struct Numbers {
    #[serde(flatten)]
    of_all: Option<OfAllTenants>,
    waiting: u64,
    open: u64,
}

/// What is known of all tenants together only. Rates and times are null if it is unknown what other processes have counted.
#[derive(Serialize)]
struct OfAllTenants {
    accepted_per_s: Option<f64>,
    done_per_s: Option<f64>,
    failed_per_s: Option<f64>,
    end_to_end_ms: Option<Percentiles>,
    oldest_waiting_s: Option<f64>,
}

#[derive(Serialize)]
struct Percentiles {
    p50: u64,
    p95: u64,
}

/// `GET /stats`
pub(super) async fn stats(State(app): State<Arc<App>>, by: By, _: NoParams) -> Result<Response, ApiError> {
    let making = async {
        Ok(match by.sees() {
            Sees::All => of_all(&app).await,
            Sees::Tenant(tenant) => of_tenant(&app, tenant).await,
        })
    };
    app.overview.answers.get(&app.clock, overview::GOOD_FOR, overview::name("stats", by.sees()), making).await
}

async fn of_all(app: &App) -> StatsView {
    let window = app.overview.stats.window().await;
    let window = window.inspect_err(|error| tracing::debug!(%error, "the counts of other processes cannot be read"));
    let window = window.ok();
    let (now, mut counts, mut backlog) = (app.clock.now(), Counts::default(), Backlog::default());
    let mut vendors = Vec::new();
    for (name, of_vendor) in backlogs(app, None).await {
        let counted = window.as_ref().and_then(|window| window.vendors.get(&*name).cloned()).unwrap_or_default();
        counts.add(&counted);
        add(&mut backlog, &of_vendor);
        vendors.push(VendorView { name, numbers: Numbers::of_all(window.as_ref(), &counted, &of_vendor, now) });
    }
    let window_s = window.as_ref().map(|window| rounded(window.length.as_secs_f64()));
    let in_all = Numbers::of_all(window.as_ref(), &counts, &backlog, now);
    StatsView { at: now, window_s: Some(window_s), in_all, vendors }
}

async fn of_tenant(app: &App, tenant: &Arc<str>) -> StatsView {
    let (mut backlog, mut vendors) = (Backlog::default(), Vec::new());
    for (name, of_vendor) in backlogs(app, Some(tenant)).await {
        add(&mut backlog, &of_vendor);
        vendors.push(VendorView { name, numbers: Numbers::of_tenant(&of_vendor) });
    }
    StatsView { at: app.clock.now(), window_s: None, in_all: Numbers::of_tenant(&backlog), vendors }
}

/// What waits for each vendor, by name.
async fn backlogs(app: &App, tenant: Option<&Arc<str>>) -> Vec<(Arc<str>, Backlog)> {
    let names: Vec<Arc<str>> = app.vendors.iter().map(|vendor| vendor.name().clone()).collect();
    let read = |name: Arc<str>| async move {
        let backlog = match tenant {
            None => app.store.backlog(&name).await,
            Some(tenant) => app.store.backlog_of(&name, tenant).await,
        };
        (name, backlog)
    };
    stream::iter(names).map(read).buffered(SIDE_BY_SIDE).collect().await
}

fn add(to: &mut Backlog, one: &Backlog) {
    to.waiting += one.waiting;
    to.open += one.open;
    to.oldest_due = to.oldest_due.into_iter().chain(one.oldest_due).min();
}

impl Numbers {
    fn of_all(window: Option<&Window>, counts: &Counts, backlog: &Backlog, now: Time) -> Numbers {
        let a_second = |jobs: u64| Some(rounded(jobs as f64 / window?.length.as_secs_f64()));
        let percentiles = || Some(Percentiles { p50: counts.percentile_ms(50)?, p95: counts.percentile_ms(95)? });
        let of_all = OfAllTenants {
            accepted_per_s: a_second(counts.accepted),
            done_per_s: a_second(counts.done),
            failed_per_s: a_second(counts.failed),
            end_to_end_ms: percentiles(),
            oldest_waiting_s: backlog.oldest_due.map(|due| now.since(due).as_secs_f64()),
        };
        Numbers { of_all: Some(of_all), waiting: backlog.waiting, open: backlog.open }
    }

    fn of_tenant(backlog: &Backlog) -> Numbers {
        Numbers { of_all: None, waiting: backlog.waiting, open: backlog.open }
    }
}

/// To a thousandth.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
