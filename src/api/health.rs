//! Is the process alive, can it work, what does it count, and how is it used.
//!
//! Never needs a key: what is here says nothing about jobs.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use swagger_ui_dist::{ApiDefinition, OpenApiSource};

use super::{App, OPENAPI, dto};
use crate::{
    job::JobId,
    store::{StoreError, With},
};

/// The store has to answer within this time for the process to be ready.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// `GET /livez`
pub(super) async fn live() -> Response {
    dto::json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))
}

/// `GET /readyz`, `GET /health`
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let nobody = JobId::from_bytes([0; 16]);
    let look = app.store.find(nobody, With { payload: false, result: false });
    let store = match tokio::time::timeout(MAX_WAIT, look).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(StoreError::Unavailable(why) | StoreError::Corrupt(why))) => Err(why),
        Err(_) => Err("does not answer".into()),
    };
    let (code, status) = match &store {
        Ok(()) => (StatusCode::OK, "ready"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    let store = store.err().unwrap_or_else(|| "ok".into());
    dto::json(code, &serde_json::json!({ "status": status, "role": app.roles, "checks": { "store": store } }))
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media_type)], app.metrics.render()).into_response()
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    dto::json_response(StatusCode::OK, OPENAPI.into())
}

/// `GET /docs`: try the API. All files are inside the binary, so it works offline.
pub(super) fn docs() -> Router<Arc<App>> {
    let page = || async { Html(include_str!("docs.html")) };
    let files = swagger_ui_dist::generate_routes(ApiDefinition {
        uri_prefix: "/docs/files",
        api_definition: OpenApiSource::Uri("/openapi.json"),
        title: Some("Fetchgate API"),
    });
    Router::new().route("/docs", get(page)).merge(files.with_state(()))
}
