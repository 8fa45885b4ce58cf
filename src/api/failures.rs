//! `GET /failures`: jobs that ended without a result, counted by what was wrong.
//!
//! Never counts jobs that the caller may not see.

use std::{str::FromStr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Serialize;

use super::{App, access::By, body::Params, error::ApiError, overview};
use crate::{
    clock::Time,
    config::parse_duration,
    job::JobId,
    store::{
        Sees,
        failures::{Failures, Group},
    },
};

/// How far back is counted if nobody says it.
const LATELY: Duration = Duration::from_secs(3600);

#[derive(Serialize)]
struct FailuresView {
    since: Time,
    more: bool,
    count: u64,
    failures: Vec<GroupView>,
    omitted: u64,
}

#[derive(Serialize)]
struct GroupView {
    vendor: Arc<str>,
    code: &'static str,
    message: Arc<str>,
    count: u64,
    first_at: Time,
    last_at: Time,
    request_id: JobId,
}

/// The earliest end that is counted.
#[derive(Debug, Clone, Copy)]
enum Since {
    Ago(Duration),
    At(Time),
}

impl FromStr for Since {
    type Err = ();

    fn from_str(text: &str) -> Result<Since, ()> {
        parse_duration(text).map(Since::Ago).or_else(|_| text.parse().map(Since::At)).map_err(drop)
    }
}

/// `GET /failures?since=&vendor=&tenant=`
pub(super) async fn failures(State(app): State<Arc<App>>, by: By, request: Request) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let since = params.parse::<Since>("since", "a time such as 2026-11-22T15:00:00Z, or a duration such as 1h")?;
    let (since, vendor) = (since.unwrap_or(Since::Ago(LATELY)), params.text("vendor")?);
    let sees = by.tenant(params.text("tenant")?.as_deref())?.map_or(Sees::All, Sees::Tenant);
    params.finish()?;
    let name = overview::name(&format!("failures {since:?} {vendor:?}"), &sees);
    let making = async {
        let _in_turn = app.overview.counting.lock().await;
        let now = app.clock.now();
        let ago = |time: Duration| Time(now.0.saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)));
        let wanted = match since {
            Since::Ago(time) => ago(time),
            Since::At(time) => time,
        };
        // Older ones are being deleted.
        let since = wanted.max(ago(app.overview.retention));
        app.store.failures(&sees, vendor.as_deref(), since).await.map(FailuresView::of)
    };
    app.overview.answers.get(&app.clock, overview::GOOD_FOR, name, making).await
}

impl FailuresView {
    fn of(found: Failures) -> FailuresView {
        let Failures { since, more, count, groups, omitted } = found;
        let view = |group: Group| {
            let Group { vendor, code, message, count, first_at, last_at, newest } = group;
            GroupView { vendor, code: code.as_str(), message, count, first_at, last_at, request_id: newest }
        };
        FailuresView { since, more, count, failures: groups.into_iter().map(view).collect(), omitted }
    }
}
