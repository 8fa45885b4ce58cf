//! HTTP in: every route on one screen, and what the handlers share. The only module that knows the web framework.
//!
//! Never calls a vendor, and answers that a job is accepted only after the store has it.

use std::sync::Arc;

use axum::{
    Router,
    http::{Method, StatusCode},
    middleware,
    routing::get,
};

use self::{
    access::{Need, Routes},
    edge::Edge,
    error::ApiError,
};
use crate::{
    admission::Admission,
    audit::Audit,
    clock::Clock,
    events::Events,
    in_force::InForce,
    job::JobIds,
    keys::Scope,
    limit::{Limiter, breakers::Breakers},
    pauses::Pauses,
    redis_link::Redis,
    roles::Roles,
    store::Store,
    telemetry::Metrics,
    vendor::Registry,
    worker::Failures,
};

mod access;
mod admission;
mod audit;
mod batch;
mod body;
mod bulk;
mod callbacks;
mod change;
mod connection;
mod credentials;
mod dashboard;
mod door;
mod dto;
pub mod edge;
mod error;
mod events;
mod failures;
mod feasible;
mod filters;
mod health;
mod jobs;
mod keys;
mod limits;
mod list;
pub mod memory;
mod metrics;
mod overview;
mod path;
mod result_webhooks;
pub mod server;
mod standing;
mod stats;
mod submission;
mod system;
pub mod tls;
mod vendors;
mod wait;

pub(crate) use self::result_webhooks::announced;
pub use self::{access::Access, feasible::Feasibility, overview::Overview};

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
    pub access: Arc<Access>,
    pub admission: Arc<Admission>,
    pub webhooks: Arc<crate::result_webhooks::Context>,
    pub events: Arc<Events>,
    pub overview: Arc<Overview>,
    /// Whose turn it is to change many jobs.
    pub bulk: tokio::sync::Mutex<()>,
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

const SUBMIT: Need = Need::OneOf(&[Scope::Submit]);
const READ: Need = Need::OneOf(&[Scope::Read]);
const READ_LIMITS: Need = Need::OneOf(&[Scope::Read, Scope::Operate]);
const METRICS: Need = Need::OneOf(&[Scope::Metrics, Scope::Operate]);
const OPERATE: Need = Need::OneOf(&[Scope::Operate]);
const ADMIN: Need = Need::OneOf(&[Scope::Admin]);
/// Whoever comes: probes, documentation, and vendors, who prove who they are in their own way.
const OPEN: Need = Need::Nothing;

/// The whole API: each route, and what a caller needs for it.
pub fn router(app: Arc<App>) -> Router {
    Routes::new()
        .at(SUBMIT, Method::POST, "/jobs", jobs::submit)
        .at(READ, Method::GET, "/jobs", list::list)
        .at(SUBMIT, Method::POST, "/jobs/batch", batch::submit)
        .at(SUBMIT, Method::POST, "/jobs/cancel", bulk::cancel)
        .at(SUBMIT, Method::POST, "/jobs/replay", bulk::replay)
        .at(READ, Method::GET, "/jobs/{id}", jobs::find)
        .at(SUBMIT, Method::DELETE, "/jobs/{id}", change::erase)
        .at(READ, Method::GET, "/jobs/{id}/attempts", jobs::attempts)
        .at(READ, Method::GET, "/jobs/{id}/events", events::of_job)
        .at(SUBMIT, Method::POST, "/jobs/{id}/cancel", change::cancel)
        .at(SUBMIT, Method::POST, "/jobs/{id}/replay", change::replay)
        .at(SUBMIT, Method::POST, "/jobs/{id}/result-webhook", result_webhooks::send_again)
        .at(SUBMIT, Method::GET, "/result-webhooks/secret", result_webhooks::secret)
        .at(READ, Method::GET, "/events", events::all)
        .at(OPEN, Method::GET, "/vendor-webhook/{vendor}", callbacks::shared)
        .at(OPEN, Method::POST, "/vendor-webhook/{vendor}", callbacks::shared)
        .at(OPEN, Method::GET, "/vendor-webhook/{vendor}/{token}", callbacks::for_one_job)
        .at(OPEN, Method::POST, "/vendor-webhook/{vendor}/{token}", callbacks::for_one_job)
        .at(READ, Method::GET, "/vendors", vendors::list)
        .at(READ, Method::GET, "/vendors/{name}", vendors::find)
        .at(OPERATE, Method::GET, "/vendors/{name}/audit", audit::audit)
        .at(READ_LIMITS, Method::GET, "/vendors/{name}/limits", limits::find)
        .at(OPERATE, Method::PUT, "/vendors/{name}/limits", limits::set)
        .at(OPERATE, Method::DELETE, "/vendors/{name}/limits", limits::clear)
        .at(OPERATE, Method::POST, "/vendors/{name}/pause", vendors::pause)
        .at(OPERATE, Method::POST, "/vendors/{name}/resume", vendors::resume)
        .at(ADMIN, Method::POST, "/keys", keys::create)
        .at(ADMIN, Method::GET, "/keys", keys::list)
        .at(ADMIN, Method::DELETE, "/keys/{id}", keys::delete)
        .at(READ, Method::GET, "/stats", stats::stats)
        .at(READ, Method::GET, "/failures", failures::failures)
        .at(OPERATE, Method::GET, "/system", system::system)
        .at(OPEN, Method::GET, "/livez", health::live)
        .at(OPEN, Method::GET, "/readyz", health::ready)
        .at(OPEN, Method::GET, "/health", health::ready)
        .at(METRICS, Method::GET, "/metrics", metrics::metrics)
        .at(OPEN, Method::GET, "/openapi.json", health::openapi)
        .at(OPEN, Method::GET, "/docs", health::docs)
        .at(OPEN, Method::GET, "/", dashboard::page)
        .guarded(&app, unknown_path, wrong_method)
        .merge(health::docs_files().method_not_allowed_fallback(wrong_method))
        .merge(dashboard::files().method_not_allowed_fallback(wrong_method))
        .layer(middleware::from_fn_with_state(app.clone(), edge::around))
        .with_state(app)
}

/// What every process answers on `ops.listen`, to whoever comes; a process without the API answers nothing else.
pub fn operations_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/health", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), edge::around))
        .with_state(app)
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
