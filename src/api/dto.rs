//! Answers as JSON: jobs, lists and attempts.
//!
//! Never re-encodes a payload or a result: their bytes are put into the answer as they are stored.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use super::{result_webhooks::WebhookView, standing::WhyWaiting};
use crate::{
    clock::Time,
    job::{Attempts, Failure, Job, JobId, VendorSaid},
};

#[derive(Serialize)]
struct JobView<'a> {
    request_id: JobId,
    vendor: &'a str,
    tenant: &'a str,
    priority: &'static str,
    tags: &'a [String],
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<ErrorView<'a>>,
    attempts: u32,
    tries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<&'a str>,
    #[serde(flatten)]
    why: Option<&'a WhyWaiting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Time>,
    created_at: Time,
    updated_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_webhook: Option<WebhookView<'a>>,
}

/// Why a job failed, or what was wrong with a call.
#[derive(Serialize)]
pub(super) struct ErrorView<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<&'a VendorSaid>,
}

impl<'a> ErrorView<'a> {
    pub(super) fn of(failure: &'a Failure) -> ErrorView<'a> {
        ErrorView { code: failure.code.as_str(), message: &failure.message, vendor: failure.vendor.as_ref() }
    }
}

/// `202 {"request_id": "…"}`, exactly that.
pub(super) fn accepted(id: JobId) -> Response {
    json_response(StatusCode::ACCEPTED, format!(r#"{{"request_id":"{id}"}}"#).into())
}

/// A whole job without its payload.
pub(super) fn job(job: &Job, why: Option<WhyWaiting>) -> Response {
    job_with(job, false, why)
}

/// A whole job.
pub(super) fn job_with(job: &Job, payload: bool, why: Option<WhyWaiting>) -> Response {
    json_response(StatusCode::OK, render(job, payload, why.as_ref()).into())
}

/// One page of a list.
pub(super) fn page(jobs: &[Job], next_cursor: Option<&str>) -> Response {
    let mut body = br#"{"jobs":["#.to_vec();
    for (i, job) in jobs.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend(render(job, false, None));
    }
    // A cursor is base64: nothing in it needs escaping.
    let cursor = next_cursor.map_or_else(|| "null".to_owned(), |cursor| format!(r#""{cursor}""#));
    body.extend(format!(r#"],"next_cursor":{cursor}}}"#).into_bytes());
    json_response(StatusCode::OK, body.into())
}

pub(super) fn render(job: &Job, payload: bool, why: Option<&WhyWaiting>) -> Vec<u8> {
    let (error, last_error) = job.failure.as_ref().map_or((None, None), |why| match job.status.has_ended() {
        true => (Some(ErrorView::of(why)), None),
        false => (None, Some(ErrorView { code: why.code.of_attempt(job.last_outcome(why)), ..ErrorView::of(why) })),
    });
    let view = JobView {
        request_id: job.id,
        vendor: &job.lane.vendor,
        tenant: &job.lane.tenant,
        priority: job.lane.priority.as_str(),
        tags: &job.tags,
        status: job.status.as_str(),
        error,
        last_error,
        attempts: job.attempt,
        tries: job.tries,
        ticket: job.ticket.as_deref().filter(|_| !job.status.has_ended()),
        why,
        deadline: job.deadline.map(|deadline| deadline.at),
        created_at: job.id.created_at(),
        updated_at: job.updated_at,
        finished_at: job.finished_at,
        result_webhook: job.webhook.as_ref().map(WebhookView::of),
    };
    let mut body = serde_json::to_vec(&view).expect("a job's view is plain data");
    let mut splice = |name: &str, value: &[u8]| {
        body.pop(); // The closing brace.
        body.reserve(name.len() + value.len() + 8); // At once: a large value is not moved for the brace after it.
        body.extend(format!(r#","{name}":"#).into_bytes());
        body.extend(value);
        body.push(b'}');
    };
    if let Some(result) = &job.result {
        splice("result", result);
    }
    if payload {
        splice("payload", &job.payload);
    }
    body
}

/// The attempts of a job.
pub(super) fn attempts(attempts: &Attempts) -> Response {
    #[derive(Serialize)]
    struct View<'a> {
        n: u32,
        kind: crate::job::AttemptKind,
        sent_at: Option<Time>,
        permit_at: Time,
        status: Option<u16>,
        latency_ms: u64,
        outcome: crate::job::AttemptOutcome,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        response: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct List<'a> {
        attempts: Vec<View<'a>>,
        omitted: u32,
    }
    let views = attempts.iter().map(|attempt| View {
        n: attempt.n,
        kind: attempt.kind,
        sent_at: attempt.sent_at.map(Time),
        permit_at: Time(attempt.permit_at),
        status: attempt.status,
        latency_ms: attempt.latency_ms,
        outcome: attempt.outcome,
        detail: attempt.detail.as_deref(),
        response: attempt.response.as_deref(),
    });
    json(StatusCode::OK, &List { attempts: views.collect(), omitted: attempts.omitted() })
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_response(status, serde_json::to_vec(value).expect("our own answers are plain data").into())
}

pub(super) fn json_response(status: StatusCode, body: Bytes) -> Response {
    let mut response = (status, Body::from(body)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
