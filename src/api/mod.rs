//! HTTP in: every route on one screen, and what the handlers share. The only module that knows the web framework.
//!
//! Never calls a vendor, and answers that a job is accepted only after the store has it.

use std::sync::Arc;

use axum::{
    Router,
    http::StatusCode,
    middleware,
    response::Redirect,
    routing::{get, post},
};

use self::{edge::Edge, error::ApiError};
use crate::{
    audit::Audit,
    clock::Clock,
    in_force::InForce,
    job::JobIds,
    limit::{Limiter, breakers::Breakers},
    pauses::Pauses,
    redis_link::Redis,
    roles::Roles,
    store::Store,
    telemetry::Metrics,
    vendor::Registry,
    worker::Failures,
};

mod audit;
mod batch;
mod body;
mod callbacks;
mod connection;
mod credentials;
mod dto;
pub mod edge;
mod error;
mod feasible;
mod health;
mod jobs;
mod limits;
mod list;
pub mod memory;
pub mod server;
mod standing;
mod submission;
pub mod tls;
mod vendors;
mod wait;

pub use self::feasible::Feasibility;

/// The API's description, OpenAPI 3.1. Tests compare the routes and every answer with it.
pub const OPENAPI: &str = include_str!("../../docs/api/openapi.json");

/// What every handler needs. Built once.
pub struct App {
    pub store: Arc<dyn Store>,
    pub limiter: Arc<dyn Limiter>,
    pub breakers: Arc<dyn Breakers>,
    pub vendors: Arc<Registry>,
    pub pauses: Arc<Pauses>,
    pub limits: Arc<InForce>,
    pub audit: Arc<Audit>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub ids: JobIds,
    pub default_vendor: Option<Arc<str>>,
    pub roles: Roles,
    pub feasibility: Feasibility,
    pub edge: Arc<Edge>,
    /// Callbacks that were refused, for the log.
    pub refused_callbacks: Failures,
    /// Redis, if the store needs it: `readyz` checks whether it can be reached.
    pub queue: Option<Redis>,
}

impl App {
    /// Wakes the dispatchers of a pool, and its tenants that were over their limit, after its limits have changed.
    pub async fn wake_pool(&self, pool: &str) {
        for vendor in self.vendors.iter().filter(|vendor| *vendor.config.pool == *pool) {
            if let Err(error) = self.store.wake(vendor.name()).await {
                tracing::warn!(vendor = %vendor.name(), %error, "the limits have changed, but tenants that were over the old limit wait as long as it said");
            }
            self.store.signals().ring(vendor.name());
        }
    }
}

/// The whole API.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/jobs", post(jobs::submit).get(list::list))
        .route("/jobs/batch", post(batch::submit))
        .route("/jobs/{id}", get(jobs::find))
        .route("/jobs/{id}/attempts", get(jobs::attempts))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/replay", post(jobs::replay))
        // Vendors call these.
        .route("/vendor-webhook/{vendor}", get(callbacks::shared).post(callbacks::shared))
        .route("/vendor-webhook/{vendor}/{token}", get(callbacks::for_one_job).post(callbacks::for_one_job))
        .route("/vendors", get(vendors::list))
        .route("/vendors/{name}", get(vendors::find))
        .route("/vendors/{name}/limits", get(limits::find).put(limits::set).delete(limits::clear))
        .route("/vendors/{name}/audit", get(audit::audit))
        .route("/vendors/{name}/pause", post(vendors::pause))
        .route("/vendors/{name}/resume", post(vendors::resume))
        .route("/openapi.json", get(health::openapi))
        .route("/", get(|| async { Redirect::to("/docs") }))
        .merge(health::docs())
        .merge(operations())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), edge::around))
        .with_state(app)
}

/// What every process answers on `ops.listen`; a process without the API answers nothing else.
pub fn operations_router(app: Arc<App>) -> Router {
    operations()
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), edge::around))
        .with_state(app)
}

fn operations() -> Router<Arc<App>> {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/health", get(health::ready))
        .route("/metrics", get(health::metrics))
}

async fn unknown_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path; GET /openapi.json lists the paths",
    )
}

async fn wrong_method() -> ApiError {
    let detail = "this path does not accept this method; the Allow header lists those that it accepts";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
