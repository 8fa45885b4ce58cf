//! Announcements of ends, as callers see them: in the job, as their receivers get it, once more on demand, and the secret that signs them.
//!
//! Never sends one (see `crate::result_webhooks`).

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    App,
    access::By,
    body::{self, NoParams, Params},
    dto,
    error::ApiError,
    path::NamedJob,
};
use crate::{
    clock::Time,
    job::{Job, Lane, ResultWebhook},
    store::{StoreError, With, webhooks::WebhookChange},
};

/// How often it is tried to have one sent again while it changes.
const TRIES: usize = 5;

#[derive(Serialize)]
pub(super) struct WebhookView<'a> {
    url: &'a str,
    status: &'static str,
    attempts: u32,
    last_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<&'a str>,
    next_at: Option<Time>,
}

impl<'a> WebhookView<'a> {
    pub(super) fn of(webhook: &'a ResultWebhook) -> WebhookView<'a> {
        WebhookView {
            url: &webhook.url,
            status: webhook.status.as_str(),
            attempts: webhook.attempts,
            last_status: webhook.last_status,
            last_error: webhook.last_error.as_deref(),
            next_at: webhook.next_at,
        }
    }
}

/// A job as the receiver of its end gets it: like `GET /jobs/{id}`, but for the announcement itself.
pub(crate) fn announced(job: &Job, omits_result: bool) -> Vec<u8> {
    let mut body = dto::render(job, false, None);
    if omits_result {
        body.pop();
        body.extend(br#","result_omitted":true}"#);
    }
    body
}

/// `POST /jobs/{id}/result-webhook`
pub(super) async fn send_again(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
) -> Result<Response, ApiError> {
    for _ in 0..TRIES {
        let job = app.store.find(by.sees(), id, With::NEITHER).await?.ok_or_else(ApiError::unknown_job)?;
        let Some(was) = job.webhook.clone() else {
            let detail = "the job was submitted without a callback_url";
            return Err(ApiError::new(StatusCode::CONFLICT, "no_callback_url", detail));
        };
        if !job.status.has_ended() {
            let detail = format!("the job is {}; its end is announced when it has ended", job.status.as_str());
            return Err(ApiError::new(StatusCode::CONFLICT, "not_ended", detail));
        }
        let is = was.again(app.clock.now());
        let change = WebhookChange { id, was, is: is.clone() };
        if app.webhooks.outbox.change(vec![change]).await? == [true] {
            let job = Job { webhook: Some(is), ..job };
            return Ok((StatusCode::ACCEPTED, dto::job(&job, None)).into_response());
        }
    }
    Err(StoreError::Unavailable("the announcement changes all the time".into()).into())
}

/// `GET /result-webhooks/secret`
pub(super) async fn secret(State(app): State<Arc<App>>, by: By, request: Request) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let tenant = by.tenant(params.text("tenant")?.as_deref())?.unwrap_or_else(|| Arc::from("default"));
    params.finish()?;
    if !Lane::is_tenant(&tenant) {
        return Err(body::invalid_parameter("tenant", &format!("must have {}", Lane::TENANT_FORM)));
    }
    let secrets = app.webhooks.secrets.of(&tenant);
    let mut response = dto::json(StatusCode::OK, &serde_json::json!({ "tenant": tenant, "secrets": secrets }));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
