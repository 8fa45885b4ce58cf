//! Submit and find, over HTTP.
//!
//! Never decides what may happen to a job (see `job::lifecycle`), nor who may do it (see `access`).

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    response::Response,
};

use bytes::Bytes;

use super::{
    App,
    access::{By, unauthenticated},
    admission::{self, no_room},
    body::{self, NoParams, Params},
    connection::Peer,
    dto,
    error::ApiError,
    feasible,
    path::{NamedJob, Segments},
    standing, submission, wait,
};
use crate::{
    job::JobId,
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
    job.caller = submission::caller(&headers);
    feasible::check(&app, &job).await?;
    app.admission.take(&job.lane.tenant)?;
    let lane = job.lane.clone();
    let outcome = admission::store(&app, vec![job]).await?;
    drop(raw);
    let (id, replayed) = match outcome.first() {
        Some(Submitted::New(id)) => (*id, false),
        Some(Submitted::Known(id)) => (*id, true),
        Some(Submitted::KeyReused) => return Err(ApiError::key_reused()),
        Some(Submitted::NoRoom(why)) => return Err(no_room(&app.admission, &lane.tenant, *why)),
        None => return Err(ApiError::over_capacity()),
    };
    if !replayed && let Some(metrics) = app.metrics.vendor(&lane.vendor) {
        metrics.count_accepted(app.clock.now());
    }
    let mut response = match wait::preferred(&headers) {
        None => dto::accepted(id),
        Some(wait) => {
            let may_see_it = wait_until_ended(&app, &by, id, wait, &peer).await?;
            let mut response = dto::accepted(id);
            // Without memory for the job, its id has to do.
            if may_see_it
                && let Ok(memory) = app.edge.memory.before_a_read().await
                && let Some(job) = app.store.find(by.sees(), id, SMALL).await?.filter(|job| job.status.has_ended())
            {
                response = memory.with(dto::job(&job, None));
            }
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

/// Returns once the job has ended, the time is up, or nobody waits any more. Says whether the caller's key is still good.
async fn wait_until_ended(app: &App, by: &By, id: JobId, wait: Duration, peer: &Peer) -> Result<bool, ApiError> {
    // Registered before the job is looked at, so that an end between the two is not missed.
    let Some(waiter) = app.store.signals().wait_for(id) else { return Ok(true) };
    let job = app.store.find(by.sees(), id, With::NEITHER).await?;
    if job.is_some_and(|job| !job.status.has_ended()) {
        wait::until_ended(waiter, wait, peer).await;
    }
    Ok(app.access.keys.is_still_good(&by.0))
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
    if let Some(wait) = wait
        && !wait_until_ended(&app, &by, id, wait, &Peer::of(&request)).await?
    {
        return Err(unauthenticated());
    }
    let memory = app.edge.memory.before_a_read().await?;
    let job = app.store.find(by.sees(), id, With { payload, result: true }).await?.ok_or_else(ApiError::unknown_job)?;
    let memory = memory.for_only(job.payload.len() + job.result.as_ref().map_or(0, Bytes::len));
    Ok(memory.with(dto::job_with(&job, payload, standing::why_waiting(&app, &job).await?)))
}

/// `GET /jobs/{id}/attempts`
pub(super) async fn attempts(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
) -> Result<Response, ApiError> {
    let attempts = app.store.attempts(by.sees(), id).await?.ok_or_else(ApiError::unknown_job)?;
    Ok(dto::attempts(&attempts))
}
