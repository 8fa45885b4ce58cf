//! Probes and the API's documentation.
//!
//! Never about single jobs: none of it needs a key.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{Html, Response},
};
use serde::Serialize;
use swagger_ui_dist::{ApiDefinition, OpenApiSource};
use tokio::time::error::Elapsed;

use super::{App, OPENAPI, dto};
use crate::store::StoreError;

pub(super) const DOCS: &str = include_str!("docs.html");
/// What does not answer within this time counts as unavailable.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// `GET /livez`
pub(super) async fn live() -> Response {
    dto::json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))
}

/// `GET /readyz`, `GET /health`: `503` if this process can do none of its work.
///
/// Without Redis jobs are still accepted (the truth is in the store), so a process with role api stays ready: if a load balancer took it
/// out, a delay would become an outage.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let (store, queue) = tokio::join!(store(&app), queue(&app));
    let is_well = |check: &Option<String>| check.is_none();
    let accept_jobs = app.roles.has_api().then(|| is_well(&store));
    let call_vendors = app.roles.has_worker().then(|| is_well(&store) && queue.as_ref().is_none_or(is_well));
    let is_ready = accept_jobs.unwrap_or(false) || call_vendors.unwrap_or(false);
    let (code, status) =
        if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not_ready") };
    let sentence = |check: Option<String>| check.unwrap_or_else(|| "ok".to_owned());
    let body = Readiness {
        status,
        role: app.roles.names(),
        can: Can { accept_jobs, call_vendors },
        checks: Checks { store: sentence(store), queue: queue.map(sentence) },
    };
    dto::json(code, &body)
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    role: &'static [&'static str],
    can: Can,
    checks: Checks,
}

/// What this process can do now. The work of other roles is left out.
#[derive(Serialize)]
struct Can {
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_jobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_vendors: Option<bool>,
}

#[derive(Serialize)]
struct Checks {
    store: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
}

/// What is wrong with the store, if anything is.
pub(super) async fn store(app: &App) -> Option<String> {
    wrong(tokio::time::timeout(MAX_WAIT, app.store.check()).await)
}

/// What is wrong with Redis, if this process needs one.
pub(super) async fn queue(app: &App) -> Option<Option<String>> {
    let queue = app.queue.as_ref()?;
    Some(wrong(tokio::time::timeout(MAX_WAIT, queue.ping()).await))
}

fn wrong<T>(outcome: Result<Result<T, StoreError>, Elapsed>) -> Option<String> {
    match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(StoreError::Unavailable(why) | StoreError::Corrupt(why))) => Some(why),
        Err(_) => Some("does not answer".to_owned()),
    }
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    dto::json_response(StatusCode::OK, OPENAPI.into())
}

/// `GET /docs`: try the API.
pub(super) async fn docs() -> Html<&'static str> {
    Html(DOCS)
}

/// The files of that page. All are inside the binary, so it works offline.
pub(super) fn docs_files() -> Router<Arc<App>> {
    let files = swagger_ui_dist::generate_routes(ApiDefinition {
        uri_prefix: "/docs/files",
        api_definition: OpenApiSource::Uri("/openapi.json"),
        title: Some("Fetchgate API"),
    });
    files.with_state(())
}
