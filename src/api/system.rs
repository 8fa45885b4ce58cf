//! `GET /system`: the processes of the service, what they depend on, and the config in force.
//!
//! Never shows a secret: the config comes masked (see `shown`).

use std::{sync::Arc, time::Duration};

use axum::{extract::State, response::Response};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{App, body::NoParams, error::ApiError, health};
use crate::processes::Process;

/// What does not answer within this time is left out.
const MAX_WAIT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct SystemView<'a> {
    process: Process,
    uptime_s: f64,
    processes: Vec<Process>,
    store: StoreView,
    redis: Option<RedisView>,
    config: &'a RawValue,
}

#[derive(Serialize)]
struct StoreView {
    kind: &'static str,
    status: String,
    schema: u64,
}

#[derive(Serialize)]
struct RedisView {
    status: String,
    version: Option<String>,
}

/// `GET /system`
pub(super) async fn system(State(app): State<Arc<App>>, _: NoParams) -> Result<Response, ApiError> {
    app.overview
        .answers
        .get(&app.clock, super::overview::GOOD_FOR, "system".to_owned(), async { Ok(view(&app).await) })
        .await
}

async fn view(app: &App) -> SystemView<'_> {
    let overview = &app.overview;
    let version = async {
        let version = tokio::time::timeout(MAX_WAIT, app.queue.as_ref()?.version()).await;
        version.ok()?.ok()
    };
    let processes = tokio::time::timeout(MAX_WAIT, overview.processes.all());
    let (store, queue, version, processes) = tokio::join!(health::store(app), health::queue(app), version, processes);
    let process = overview.processes.this();
    let sentence = |wrong: Option<String>| wrong.unwrap_or_else(|| "ok".to_owned());
    let (kind, schema) = overview.store;
    SystemView {
        uptime_s: app.clock.now().since(process.started_at).as_secs_f64(),
        // While the book cannot be read, only this one is known.
        processes: processes.ok().and_then(Result::ok).unwrap_or_else(|| vec![process.clone()]),
        process,
        store: StoreView { kind, status: sentence(store), schema },
        redis: queue.map(|wrong| RedisView { status: sentence(wrong), version }),
        config: &overview.config,
    }
}
