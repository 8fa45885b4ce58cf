//! Reading what callers send, within bounds: bodies, content types, and the query.
//!
//! Never reads further than a bound, and never waits for ever.

use std::{
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequestParts, Request},
    http::{HeaderMap, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::Response,
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use crate::json::{self, JsonFault};

/// Bytes of one job's body, and of other small bodies, at most.
pub(super) const MAX_BODY: usize = 2 << 20;
/// Bytes of a vendor's callback at most.
pub(super) const MAX_CALLBACK: usize = 8 << 20;
/// A body has to arrive within this time.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Bytes of a refused body that are still read, so that the caller can read the answer.
const MAX_REST: usize = 16 << 20;
/// No longer than this for the rest of a refused body.
const REST_WAIT: Duration = Duration::from_secs(5);

/// A whole body of at most `max` bytes.
pub(super) async fn read(request: Request, max: usize) -> Result<Bytes, ApiError> {
    read_body(request.into_body(), max).await
}

async fn read_body(mut body: Body, max: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::body_too_large(format!("the body is larger than {max} bytes"));
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let whole = async {
        // Most bodies are one piece, which then needs no copy.
        let first = next_piece(&mut body).await?.unwrap_or_default();
        let mut rest = BytesMut::new();
        let mut size = first.len();
        while size <= max {
            let Some(piece) = next_piece(&mut body).await? else {
                return Ok(if rest.is_empty() { first } else { rest.freeze() });
            };
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&piece);
            size += piece.len();
        }
        Err(too_large())
    };
    tokio::time::timeout(MAX_WAIT, whole).await.map_err(|_| too_slow())?
}

/// The next piece of a body; nothing at its end.
pub(super) async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let broken = |error| ApiError::bad_request("malformed_body", format!("the body could not be read: {error}"));
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

pub(super) fn too_slow() -> ApiError {
    let detail = format!("the body did not arrive within {} s", MAX_WAIT.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
}

/// Reads what a handler left of the body before the answer goes out: a caller that is still sending when the connection closes
/// sees a broken connection instead of the answer. A caller that sent `Expect` waits before it sends, and may be answered at once.
pub(super) async fn take_rest(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let mut body = SharedBody(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(head, Body::new(body.clone()))).await;
    let rest = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > MAX_REST {
                break;
            }
        }
    };
    // A caller that is slower, or sends more, exceeds the bounds in the API's description.
    let _ = tokio::time::timeout(REST_WAIT, rest).await;
    response
}

/// A body that a handler reads, and whose rest can be read afterwards.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    fn lock(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}

/// A body as JSON, or the problem with it.
pub(super) fn check_json(body: &[u8]) -> Result<&RawValue, ApiError> {
    json::check(body).map_err(|fault| {
        let code = match fault {
            JsonFault::Malformed(_) => "malformed_json",
            JsonFault::TooDeep => "too_deep",
        };
        ApiError::bad_request(code, fault.to_string())
    })
}

/// A small body that is a JSON object of ours; `expected` says of what form.
pub(super) fn read_object<'a, T: Deserialize<'a>>(body: &'a [u8], expected: &str) -> Result<T, ApiError> {
    let text = check_json(body)?.get();
    // serde would take an array for a struct too.
    let read = text.starts_with('{').then(|| serde_json::from_str(text).ok()).flatten();
    read.ok_or_else(|| ApiError::field("invalid_field", "", expected))
}

/// The media type of a body, without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(super) fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

pub(super) fn unsupported(headers: &HeaderMap, wanted: &str) -> ApiError {
    let sent = media_type(headers);
    let sent = if sent.is_empty() { "no Content-Type".to_owned() } else { format!("Content-Type {sent:?}") };
    let detail = format!("the body came with {sent}; send it as {wanted}");
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// For paths that take no parameters: any is an error.
pub(super) struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<NoParams, ApiError> {
        Params::of(&parts.uri).finish().map(|()| NoParams)
    }
}

/// The parameters of a query. Each is taken out by its name; a parameter that is left is an error.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri) -> Params {
        let query = uri.query().unwrap_or_default();
        Params(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let Some(at) = self.0.iter().position(|(key, _)| key == name) else { return Ok(None) };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(|(key, _)| key == name) {
            return Err(invalid_parameter(name, "is given more than once"));
        }
        Ok(Some(value))
    }

    pub(super) fn parse<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let wrong = |value: &str| invalid_parameter(name, &format!("is {value:?}; it must be {expected}"));
        self.take(name)?.map(|value| value.parse().map_err(|_| wrong(&value))).transpose()
    }

    /// To be called last: fails if there is a parameter that was not taken.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.first() {
            Some((name, _)) => Err(invalid_parameter(name, "is not a parameter of this path")),
            None => Ok(()),
        }
    }
}

pub(super) fn invalid_parameter(name: &str, what: &str) -> ApiError {
    ApiError::unprocessable("invalid_parameter", format!("the parameter {name:?} {what}"))
}
