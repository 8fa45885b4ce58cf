//! Callbacks of vendors: a callback decides the outcome of its job, in every state that has not ended.
//!
//! Never reads the store before the caller has proved who it is, and never answers 200 before the outcome is durable.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use hyper::HeaderMap;

use super::{
    App,
    body::{self, MAX_CALLBACK},
    dto,
    error::ApiError,
    server::Segments,
};
use crate::{
    clock::nanos,
    job::{Job, JobId, lifecycle},
    store::{Amended, Sees, Which},
    vendor::{
        Callback, NotBelieved, Reading, Silence, Vendor,
        value::{Value, ValueFault},
    },
};

/// `POST /vendor-webhook/{vendor}/{token}`: the URL that the vendor got for one job. The token is the proof.
pub(super) async fn for_one_job(
    State(app): State<Arc<App>>,
    Segments((vendor, token)): Segments<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some((id, run)) = app.vendors.read_token(&vendor, &token) else {
        refused(&app, &vendor);
        return Err(bad_signature());
    };
    // The token of a vendor that was removed from the config is still valid, but its rules for reading are gone.
    let vendor = app.vendors.get(&vendor).ok_or_else(|| ApiError::unknown_vendor(&vendor))?;
    let headers = request.headers().clone();
    let raw = body::read(request, MAX_CALLBACK).await?;
    let value = value(vendor, &headers, &raw)?;
    if value.is_empty {
        return Ok(success()); // A ping: it says nothing of the job.
    }
    let reading = vendor.read_callback(&headers, &raw, value, app.clock.now());
    match amend(&app, vendor, Which::Id(id), Some(run), reading).await? {
        // Unknown: the job had ended and was deleted, so the vendor need not repeat the callback.
        Amended::Unknown | Amended::Changed(_) | Amended::Left(_) => Ok(success()),
    }
}

/// `POST /vendor-webhook/{vendor}`: one URL for all jobs of a vendor; the body says which.
pub(super) async fn shared(
    State(app): State<Arc<App>>,
    Segments(name): Segments<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let vendor = app.vendors.get(&name).ok_or_else(|| ApiError::unknown_vendor(&name))?;
    let headers = request.headers().clone();
    let raw = body::read(request, MAX_CALLBACK).await?;
    vendor.verify_shared(&headers, &raw, app.clock.now()).map_err(|why| {
        refused(&app, &name);
        match why {
            NotBelieved::BadSignature => bad_signature(),
            NotBelieved::SharedUrlOff => {
                let detail =
                    "this vendor has no webhook.verify in the config; set a signature scheme, or verify = \"none\"";
                ApiError::new(StatusCode::FORBIDDEN, "shared_webhook_off", detail)
            }
        }
    })?;
    let value = value(vendor, &headers, &raw)?;
    if value.is_empty {
        return Ok(success());
    }
    let which = match vendor.job_in_callback(&value.json) {
        Some(Callback::Job(id)) => Which::Id(id),
        Some(Callback::Ticket(ticket)) => Which::Ticket { vendor: vendor.name().clone(), ticket },
        Some(Callback::UnknownJob) => return Err(ApiError::unknown_job()),
        None => {
            let detail = "the body names no job; see webhook.request_id and webhook.ticket_in_callback in the config";
            return Err(ApiError::bad_request("missing_request_id", detail));
        }
    };
    let by_ticket = matches!(which, Which::Ticket { .. });
    let reading = vendor.read_callback(&headers, &raw, value, app.clock.now());
    match amend(&app, vendor, which, None, reading).await? {
        Amended::Changed(job) | Amended::Left(job) if job.lane.vendor == *vendor.name() => Ok(success()),
        // The vendor may have called back before its own reply, which has the ticket, was stored.
        Amended::Unknown if by_ticket && app.store.backlog(vendor.name()).await.leased > 0 => {
            let detail = "no job has this ticket yet, but a call is in flight; send it again";
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unknown_job", detail).retry_after(1))
        }
        _ => Err(ApiError::unknown_job()),
    }
}

/// What a callback says: read as replies are.
fn value(vendor: &Vendor, headers: &HeaderMap, raw: &Bytes) -> Result<Value, ApiError> {
    vendor.value(headers, raw.clone()).map_err(|fault| {
        let detail = format!("the callback's body {fault}");
        match fault {
            ValueFault::TooLarge => ApiError::body_too_large(detail),
            ValueFault::TooDeep => ApiError::bad_request("too_deep", detail),
            ValueFault::UnknownCoding(_) => {
                ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
            }
            ValueFault::BadCoding { .. } | ValueFault::BadText(_) | ValueFault::NotJson(_) => {
                ApiError::bad_request("malformed_json", detail)
            }
        }
    })
}

/// Lets the outcome decide the job, if it has not ended and is this vendor's.
async fn amend(
    app: &App,
    vendor: &Arc<Vendor>,
    which: Which,
    run: Option<u32>,
    reading: Reading,
) -> Result<Amended, ApiError> {
    let name = vendor.name().clone();
    let step = reading.step;
    let (policy, jitter, now) = (vendor.policy(), fastrand::f64(), app.clock.now());
    let decide = move |job: &Job| {
        if job.lane.vendor != name {
            return None;
        }
        lifecycle::called_back(job, run, step.clone(), &policy, jitter, now)
    };
    let amended = app.store.amend(&Sees::All, which, now, Box::new(decide)).await?;
    // One that changes no job of this vendor is not listened to.
    if let (Amended::Changed(_), Some(Silence::Asked(time))) = (&amended, reading.silence) {
        let silence = nanos(time.unwrap_or(vendor.config.slow_down.first));
        app.limiter.close_gate(&vendor.config.pool, app.clock.nanos().saturating_add(silence)).await;
    }
    if let Some(metrics) = app.metrics.vendor(vendor.name()) {
        match &amended {
            Amended::Changed(job) => {
                metrics.callbacks_accepted.inc();
                metrics.count_ended(job.status);
            }
            Amended::Left(job) => {
                log_ignored(job.id, vendor.name());
                metrics.callbacks_ignored.inc();
            }
            Amended::Unknown => {
                metrics.callbacks_ignored.inc();
            }
        }
    }
    Ok(amended)
}

fn log_ignored(id: JobId, vendor: &str) {
    tracing::info!(%vendor, job = %id, "callback ignored: the job has ended, or this is for an earlier run");
}

fn refused(app: &App, vendor: &str) {
    tracing::warn!(%vendor, "callback refused: its token or signature is wrong");
    if let Some(metrics) = app.metrics.vendor(vendor) {
        metrics.callbacks_refused.inc();
    }
}

fn bad_signature() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "bad_signature", "the callback's token or signature is wrong")
}

fn success() -> Response {
    dto::json_response(StatusCode::OK, r#"{"status":"success"}"#.into())
}
