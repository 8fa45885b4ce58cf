//! Reading what callers send, within bounds: bodies, content types, and the query.
//!
//! Never reads further than a bound, never waits for ever, and keeps no byte that is not charged to a budget (see `memory`).

use std::{
    ops::Deref,
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
use tokio::time::Instant;

use super::{
    error::{ApiError, quoted},
    memory::{Budget, Charge, PATIENCE},
};
use crate::json::{self, JsonFault};

/// Bytes of one job's body, and of other small bodies, at most.
pub(super) const MAX_BODY: usize = 2 << 20;
/// Bytes of a vendor's callback at most.
pub(super) const MAX_CALLBACK: usize = 8 << 20;
/// Characters of a vendor's, a tenant's or a tag's name at most.
const MAX_NAME: usize = 64;
/// A body has to arrive within this time.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Bytes of a refused body that are still read, so that the caller can read the answer.
const MAX_REST: usize = 16 << 20;
/// No longer than this for the rest of a refused body.
const REST_WAIT: Duration = Duration::from_secs(5);

/// While others wait for memory, a body has to grow by this part of itself within [`PATIENCE`], and by so many bytes at least.
const STEP: usize = 64;
const LEAST_STEP: usize = 16 << 10;

/// The budget that the body of a request is charged to. The layer around all routes puts it into the request.
#[derive(Clone)]
pub(super) struct ChargedTo(pub(super) Arc<Budget>);

/// A whole body; its memory is charged as long as this is kept.
pub(super) struct Whole {
    bytes: Bytes,
    charge: Charge,
}

/// The most bytes that one byte of a compressed body can become: the limit of deflate.
const MOST_UNPACKED: usize = 1032;

impl Whole {
    /// Charges also what a compressed body can become, `max` bytes at most.
    pub(super) async fn before_unpacking(&mut self, max: usize) -> Result<(), ApiError> {
        let most = self.bytes.len().saturating_mul(MOST_UNPACKED).min(max);
        if self.charge.grow(most).await { Ok(()) } else { Err(ApiError::no_memory("this body")) }
    }
}

impl Deref for Whole {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// A whole body of at most `max` bytes.
pub(super) async fn read(request: Request, max: usize) -> Result<Whole, ApiError> {
    read_within(MAX_WAIT, request, max).await
}

async fn read_within(time: Duration, request: Request, max: usize) -> Result<Whole, ApiError> {
    let too_large = || ApiError::body_too_large(format!("the body is larger than {max} bytes"));
    let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(too_large());
    }
    let mut arriving = Arriving::of(request);
    let whole = async {
        // Most bodies are one piece, which then needs no copy.
        let first = arriving.next().await?.unwrap_or_default();
        let mut rest = BytesMut::new();
        let mut size = first.len();
        while size <= max {
            let Some(piece) = arriving.next().await? else {
                return Ok(if rest.is_empty() { first } else { rest.freeze() });
            };
            if rest.is_empty() {
                // Memory that is only reserved is not resident.
                rest.reserve(announced.max(first.len() + piece.len()));
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&piece);
            size += piece.len();
        }
        Err(too_large())
    };
    let bytes = tokio::time::timeout(time, whole).await.map_err(|_| too_slow())??;
    Ok(Whole { bytes, charge: arriving.charge })
}

/// A body that is read piece by piece, each charged before the next is read.
pub(super) struct Arriving {
    body: Body,
    pub(super) charge: Charge,
    /// When it had last grown by a step, and to what.
    moved: (Instant, usize),
}

impl Arriving {
    pub(super) fn of(request: Request) -> Arriving {
        let ChargedTo(budget) =
            request.extensions().get::<ChargedTo>().expect("the layer around all routes has put it there");
        let charge = Charge::none(budget.clone());
        Arriving { body: request.into_body(), charge, moved: (Instant::now(), 0) }
    }

    /// The next piece; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let began = Instant::now();
        let piece = loop {
            match tokio::time::timeout(PATIENCE, next_piece(&mut self.body)).await {
                Ok(piece) => break piece?,
                Err(_) if began.elapsed() >= MAX_WAIT => return Err(too_slow()),
                Err(_) => self.give_way()?,
            }
        };
        let Some(piece) = piece else { return Ok(None) };
        let asked = Instant::now();
        if !self.charge.grow(piece.len()).await {
            return Err(ApiError::no_memory("this body"));
        }
        // Waiting for memory is not the client's fault.
        self.moved.0 += asked.elapsed();
        let now = self.charge.bytes();
        if now - self.moved.1 >= (self.moved.1 / STEP).max(LEAST_STEP) {
            self.moved = (Instant::now(), now);
        }
        self.give_way()?;
        Ok(Some(piece))
    }

    /// Fails if others wait for memory and this body hardly grows.
    fn give_way(&self) -> Result<(), ApiError> {
        let is_slow = self.charge.bytes() > 0 && self.moved.0.elapsed() > PATIENCE;
        if is_slow && self.charge.budget().is_wanted() { Err(too_slow()) } else { Ok(()) }
    }
}

/// The next piece of a body; nothing at its end.
async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let broken = |error| ApiError::bad_request("malformed_body", format!("the body could not be read: {error}"));
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

pub(super) fn too_slow() -> ApiError {
    let detail =
        "the body arrived too slowly: 30 s for all of it (a batch 120 s), and less while others wait for memory";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
}

/// Reads what a handler left of the body before the answer goes out: a caller that is still sending when the connection closes
/// sees a broken connection instead of the answer. A caller that sent `Expect` waits before it sends, and may be answered at once; so is one
/// that was too slow.
pub(super) async fn take_rest(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let mut body = SharedBody(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(head, Body::new(body.clone()))).await;
    if response.status() == StatusCode::REQUEST_TIMEOUT {
        return response;
    }
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

/// Refuses a body that does not say that it is JSON.
pub(super) fn needs_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(&media_type(headers)) { Ok(()) } else { Err(unsupported(headers, "application/json")) }
}

pub(super) fn unsupported(headers: &HeaderMap, wanted: &str) -> ApiError {
    let sent = media_type(headers);
    let sent = if sent.is_empty() { "no Content-Type".to_owned() } else { format!("Content-Type {}", quoted(&sent)) };
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

    /// A name: not empty, and as long as names of vendors, tenants and tags can be.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let text = self.take(name)?;
        text.as_deref().map_or(Ok(()), check_name).map_err(|what| invalid_parameter(name, what))?;
        Ok(text)
    }

    pub(super) fn parse<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let wrong = |value: &str| invalid_parameter(name, &format!("is {}; it must be {expected}", quoted(value)));
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

/// What is wrong with the name of a vendor, a tenant or a tag, if no such thing can have it.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    match name.chars().count() {
        0 => Err("is empty; leave it out, or give it a value"),
        length if length > MAX_NAME => Err("is longer than 64 characters, and no name is"),
        _ => Ok(()),
    }
}

pub(super) fn invalid_parameter(name: &str, what: &str) -> ApiError {
    ApiError::unprocessable("invalid_parameter", format!("the parameter {} {what}", quoted(name)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::{Router, middleware, routing::post};
    use futures_util::{StreamExt as _, stream};
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::api::memory::Memory;

    async fn handle(request: Request) -> Result<(), ApiError> {
        read_within(Duration::from_millis(20), request, MAX_BODY).await.map(drop)
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_given_up_in_time_and_its_rest_is_not_waited_for() {
        let routes = Router::new().route("/", post(handle)).layer(middleware::from_fn(take_rest));
        let piece = async { Ok::<_, Infallible>(Bytes::from_static(b"[")) };
        let body = Body::from_stream(stream::once(piece).chain(stream::pending()));
        let mut request = Request::post("/").body(body).expect("a request");
        request.extensions_mut().insert(ChargedTo(Memory::default().bodies));
        let began = Instant::now();
        let answer = TowerToHyperService::new(routes).call(request).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(began.elapsed() < REST_WAIT, "{:?}", began.elapsed());
    }
}
