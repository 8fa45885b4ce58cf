//! Changes to one job that its caller asks for: cancel, replay, erase.
//!
//! Never decides what may happen to a job (see `job::lifecycle`), nor whose jobs a caller may change (see `store::Sees`).

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{App, access::By, admission::no_room, body::NoParams, dto, error::ApiError, path::NamedJob, standing};
use crate::{
    job::{Job, lifecycle},
    store::{Amended, Erased, Which},
};

/// `POST /jobs/{id}/cancel`
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
) -> Result<Response, ApiError> {
    match app.store.amend(by.sees(), Which::Id(id), app.clock.now(), Box::new(lifecycle::cancel)).await? {
        Amended::Changed(job) => {
            if let Some(metrics) = app.metrics.vendor(&job.lane.vendor) {
                metrics.count_end_of(&job);
            }
            Ok(dto::job(&job, None))
        }
        Amended::Left(job) | Amended::NoRoom(job, _) => {
            let detail = format!("the job is {}; only a job that has not ended can be cancelled", job.status.as_str());
            Err(ApiError::new(StatusCode::CONFLICT, "already_ended", detail))
        }
        Amended::Unknown => Err(ApiError::unknown_job()),
    }
}

/// `POST /jobs/{id}/replay`
pub(super) async fn replay(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let decide = Box::new(move |job: &Job| lifecycle::replay(job, now));
    match app.store.amend(by.sees(), Which::Id(id), now, decide).await? {
        Amended::Changed(job) => {
            let why = standing::why_waiting(&app, &job).await?;
            Ok((StatusCode::ACCEPTED, dto::job(&job, why)).into_response())
        }
        Amended::Left(job) => {
            let detail =
                format!("the job is {}; only a failed, expired or cancelled job can be replayed", job.status.as_str());
            Err(ApiError::new(StatusCode::CONFLICT, "not_replayable", detail))
        }
        Amended::NoRoom(job, why) => Err(no_room(&app.admission, &job.lane.tenant, why)),
        Amended::Unknown => Err(ApiError::unknown_job()),
    }
}

/// `DELETE /jobs/{id}`
pub(super) async fn erase(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
) -> Result<Response, ApiError> {
    match app.store.erase(by.sees(), id).await? {
        Erased::Done => {
            tracing::info!(by = %by.0.by, request_id = %id, "a job was erased");
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Erased::NotEnded(status) => {
            let detail = format!("the job is {}; only a job that has ended can be erased", status.as_str());
            Err(ApiError::new(StatusCode::CONFLICT, "not_ended", detail))
        }
        Erased::Unknown => Err(ApiError::unknown_job()),
    }
}
