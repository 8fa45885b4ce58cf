//! All errors that callers get, as `application/problem+json` (RFC 9457) with a stable code.
//!
//! Never shows internals: no stack trace, no SQL, no secret. Errors of the service itself are logged here, once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{clock::Time, store::StoreError};

/// What is wrong with one place in a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// RFC 6901, from the top of the body.
    pub(crate) pointer: String,
    pub(crate) detail: String,
}

/// An error as a caller gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after_secs: Option<u32>,
    earliest: Option<Time>,
    headers: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    earliest: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_request_id: Option<&'a str>,
}

/// The characters of a caller's text that are repeated to it.
const MOST_REPEATED: usize = 100;

/// A caller's text as an answer may repeat it: in quotes, escaped and cut.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST_REPEATED) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> ApiError {
        let (detail, errors, headers) = (detail.into(), Vec::new(), Vec::new());
        ApiError { status, code, detail, errors, retry_after_secs: None, earliest: None, headers }
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> ApiError {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn unprocessable(code: &'static str, detail: impl Into<String>) -> ApiError {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// A body that is JSON but not valid, with every place that is wrong.
    pub(crate) fn invalid_fields(errors: Vec<FieldError>) -> ApiError {
        let detail = errors.first().map_or_else(String::new, |first| format!("{}: {}", first.pointer, first.detail));
        ApiError { errors, ..Self::unprocessable("invalid_field", detail) }
    }

    pub(crate) fn field(code: &'static str, pointer: &str, detail: impl Into<String>) -> ApiError {
        let detail = detail.into();
        let errors = vec![FieldError { pointer: pointer.to_owned(), detail: detail.clone() }];
        ApiError { errors, ..Self::unprocessable(code, detail) }
    }

    pub(crate) fn unknown_job() -> ApiError {
        Self::new(StatusCode::NOT_FOUND, "unknown_job", "there is no job with this id")
    }

    pub(crate) fn unknown_vendor(name: &str) -> ApiError {
        let detail = format!("no vendor is called {}; GET /vendors lists them", quoted(name));
        Self::new(StatusCode::NOT_FOUND, "unknown_vendor", detail)
    }

    pub(crate) fn key_reused() -> ApiError {
        let detail = "this Idempotency-Key was used before with another body; use a new key for a new job";
        Self::unprocessable("idempotency_key_reused", detail)
    }

    pub(crate) fn over_capacity() -> ApiError {
        let detail = "as many jobs have not ended as capacity.max_waiting says, or their payloads have as many bytes as \
                      capacity.max_waiting_bytes says; try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "over_capacity", detail).retry_after(5)
    }

    /// No budget has memory for `what`.
    pub(crate) fn no_memory(what: &str) -> ApiError {
        let detail = format!("there is no memory for {what} now; nothing was changed, send the same again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "over_capacity", detail).retry_after(1)
    }

    pub(crate) fn body_too_large(what: impl Into<String>) -> ApiError {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", what)
    }

    pub(crate) fn retry_after(self, secs: u32) -> ApiError {
        ApiError { retry_after_secs: Some(secs), ..self }
    }

    /// Adds a header to the answer. An item of a batch has none.
    pub(crate) fn header(mut self, name: &'static str, value: String) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// Adds the earliest deadline that can be met.
    pub(crate) fn earliest(self, at: Time) -> ApiError {
        ApiError { earliest: Some(at), ..self }
    }

    /// The bytes of text in it, about.
    pub(crate) fn size(&self) -> usize {
        self.detail.len() + self.errors.iter().map(|error| error.pointer.len() + error.detail.len()).sum::<usize>()
    }

    /// The same problem without what differs from one to the next.
    pub(crate) fn brief(self) -> ApiError {
        let detail = "too much is wrong with this batch to say it all; see the items before this one".to_owned();
        ApiError { detail, errors: Vec::new(), ..self }
    }

    /// The problem as JSON: an item of a batch.
    pub(crate) fn to_json(&self) -> String {
        self.written(None)
    }

    /// The problem as JSON, with the id of the HTTP request if it is the answer to one.
    pub(crate) fn written(&self, http_request_id: Option<&str>) -> String {
        let problem = Problem {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            errors: &self.errors,
            earliest: self.earliest,
            http_request_id,
        };
        serde_json::to_string(&problem).expect("a problem is plain data")
    }
}

/// While the store is unavailable every request fails: one line a second says so, and how many were left out before it.
fn log(error: &StoreError) {
    static LAST: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.0.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
        last.1 += 1;
        return;
    }
    tracing::error!(%error, unlogged = last.1, "a request failed");
    *last = (Some(Instant::now()), 0);
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        log(&error);
        match error {
            StoreError::Unavailable(_) => {
                let detail = "the store is unavailable, and it is not known whether anything was changed; send the same again later, with an Idempotency-Key";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail).retry_after(1)
            }
            StoreError::Corrupt(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "something stored could not be read; the log says what",
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        for (name, value) in &self.headers {
            // Our own texts are plain ASCII.
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (HeaderName::from_static(name), value)));
        }
        // The layer around all routes adds the request's id.
        response.extensions_mut().insert(self);
        response
    }
}
