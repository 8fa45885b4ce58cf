//! Submit and find, over HTTP.
//!
//! Never decides what may happen to a job (see `job::lifecycle`), nor who may do it (see `access`).

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    response::Response,
};

use super::{
    App,
    access::By,
    admission::too_many_waiting,
    body::{self, NoParams, Params},
    connection::Peer,
    dto,
    error::ApiError,
    feasible,
    server::Segments,
    standing, submission, wait,
};
use crate::{
    job::{Job, JobId},
    store::{Submitted, With},
};

/// A job without its payload.
const SMALL: With = With { payload: false, result: true };

/// `POST /jobs`
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    if !body::is_json(&body::media_type(&headers)) {
        return Err(body::unsupported(&headers, "application/json"));
    }
    let key = submission::idempotency_key(&headers)?;
    let peer = Peer::of(&request);
    by.may_submit(&app)?;
    let raw = body::read(request, body::MAX_BODY).await?;
    let mut job = submission::parse(&app, &by, body::check_json(&raw)?)?;
    job.idempotency = key.map(|key| submission::idempotency(key, &raw));
    feasible::check(&app, &job).await?;
    app.admission.take(&job.lane.tenant)?;
    let lane = job.lane.clone();
    let outcome = app.metrics.timed(app.store.submit(vec![job])).await?;
    drop(raw); // Nobody waits for the job's end with its body in memory.
    let (id, replayed) = match outcome.first() {
        Some(Submitted::New(id)) => (*id, false),
        Some(Submitted::Known(id)) => (*id, true),
        Some(Submitted::KeyReused) => return Err(ApiError::key_reused()),
        Some(Submitted::TenantOverLimit) => return Err(too_many_waiting(&app.admission, &lane.tenant)),
        Some(Submitted::OverCapacity) | None => return Err(ApiError::over_capacity()),
    };
    if !replayed && let Some(metrics) = app.metrics.vendor(&lane.vendor) {
        metrics.accepted.inc();
    }
    let mut response = match wait::preferred(&headers) {
        None => dto::accepted(id),
        Some(wait) => {
            let ended = wait_until_ended(&app, &by, id, wait, SMALL, &peer).await?;
            let ended = ended.filter(|job| job.status.has_ended());
            let mut response = ended.map_or_else(|| dto::accepted(id), |job| dto::job(&job, None));
            let applied = format!("wait={}", wait.as_secs());
            response.headers_mut().insert("preference-applied", HeaderValue::from_str(&applied).expect("digits"));
            response
        }
    };
    let location = HeaderValue::from_str(&format!("/jobs/{id}")).expect("an id is plain ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    if replayed {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The job once it has ended, or as it is when the time is up or nobody waits any more.
async fn wait_until_ended(
    app: &App,
    by: &By,
    id: JobId,
    wait: Duration,
    with: With,
    peer: &Peer,
) -> Result<Option<Job>, ApiError> {
    // Registered before the job is read, so that an end between the two is not missed.
    let waiter = app.store.signals().wait_for(id);
    let job = app.store.find(by.sees(), id, with).await?;
    let (Some(found), Some(waiter)) = (&job, waiter) else { return Ok(job) };
    if found.status.has_ended() {
        return Ok(job);
    }
    drop(job); // Nor with its payload.
    wait::until_ended(waiter, wait, peer).await;
    Ok(app.store.find(by.sees(), id, with).await?)
}

/// `GET /jobs/{id}`
pub(super) async fn find(
    State(app): State<Arc<App>>,
    by: By,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let wait = params.take("wait")?.map(|text| wait::read(&text)).transpose()?;
    let payload = match params.take("include")?.as_deref() {
        None => false,
        Some("payload") => true,
        Some(_) => return Err(body::invalid_parameter("include", r#"can only be "payload""#)),
    };
    params.finish()?;
    let id = JobId::parse(&id).ok_or_else(ApiError::unknown_job)?;
    let with = With { payload, result: true };
    let job = match wait {
        Some(wait) => wait_until_ended(&app, &by, id, wait, with, &Peer::of(&request)).await?,
        None => app.store.find(by.sees(), id, with).await?,
    };
    let job = job.ok_or_else(ApiError::unknown_job)?;
    Ok(dto::job_with(&job, payload, standing::why_waiting(&app, &job).await?))
}

/// `GET /jobs/{id}/attempts`
pub(super) async fn attempts(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    Segments(id): Segments<String>,
) -> Result<Response, ApiError> {
    let id = JobId::parse(&id).ok_or_else(ApiError::unknown_job)?;
    let attempts = app.store.attempts(by.sees(), id).await?.ok_or_else(ApiError::unknown_job)?;
    Ok(dto::attempts(&attempts))
}
