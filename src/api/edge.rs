//! What is done around every request, whatever it asks for: bounds, the request's id, headers for browsers, and the count of its answer.
//!
//! Never looks into a body, and knows neither jobs nor vendors.

use std::{panic::AssertUnwindSafe, sync::Arc, sync::LazyLock, time::Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{
    App,
    body::{self, ChargedTo},
    error::ApiError,
    health,
    memory::{Charge, Memory, Reserved},
};
use crate::logs::HTTP_REQUEST_ID;

/// Requests in flight at most. Callbacks have a bound of their own; probes have none.
const MOST_CALLS: usize = 8000;
const MOST_CALLBACKS: usize = 1000;
/// Answers that are smaller are not charged to a budget.
const SMALL_ANSWER: u64 = 2048;
/// Characters of an `X-Request-Id` that is taken from the caller.
const MAX_REQUEST_ID: usize = 128;
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The bounds of one process's listeners, and the web pages that may call it.
pub struct Edge {
    pub memory: Memory,
    /// Origins whose pages may read answers.
    cors: Vec<HeaderValue>,
    /// Bounds the requests in flight, other than callbacks and probes.
    pub calls: Semaphore,
    pub callbacks: Semaphore,
}

impl Edge {
    pub fn new(cors: &[String]) -> Edge {
        Edge {
            memory: Memory::default(),
            cors: cors.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect(),
            calls: Semaphore::new(MOST_CALLS),
            callbacks: Semaphore::new(MOST_CALLBACKS),
        }
    }
}

/// What a request is, for the bounds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Answered however many requests are in flight.
    Probe,
    Callback,
    Batch,
    Call,
}

impl Kind {
    fn of(route: &str) -> Kind {
        match route {
            "/livez" | "/readyz" | "/health" | "/metrics" => Kind::Probe,
            "/jobs/batch" => Kind::Batch,
            _ if route.starts_with("/vendor-webhook/") => Kind::Callback,
            _ => Kind::Call,
        }
    }
}

/// Runs around every handler. Answers are counted under their route, never under the path as sent.
pub(super) async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unknown", |route| route.as_str());
    let (method, id) = (request.method().clone(), request_id(request.headers()));
    let origin = request.headers().get(header::ORIGIN).filter(|origin| app.edge.cors.contains(origin)).cloned();
    let mut response = match &origin {
        Some(_) if is_preflight(&request) => preflight(),
        // Every line that is logged meanwhile names the request.
        _ => HTTP_REQUEST_ID.scope(id.clone(), bounded(&app, Kind::of(route), request, next)).await,
    };
    if let Some(problem) = response.extensions_mut().remove::<ApiError>() {
        *response.body_mut() = Body::from(problem.written(id.to_str().ok()));
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let mut response = charged(&app.edge.memory, response, &id).await;
    let headers = response.headers_mut();
    headers.insert(&REQUEST_ID, id);
    protect(headers, route);
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    }
    if !app.edge.cors.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    app.metrics.count_http(method.as_str(), route, response.status().as_u16(), started.elapsed());
    response
}

/// The answer of the handler, if there is room for the request.
async fn bounded(app: &App, kind: Kind, mut request: Request, next: Next) -> Response {
    let bound = match kind {
        Kind::Probe => None,
        Kind::Callback => Some(&app.edge.callbacks),
        Kind::Batch | Kind::Call => Some(&app.edge.calls),
    };
    let Ok(_in_flight) = bound.map(Semaphore::try_acquire).transpose() else {
        let detail = "too many requests are under way; nothing was changed, send the same again later";
        let full = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "over_capacity", detail);
        return full.retry_after(1).into_response();
    };
    if let Err(problem) = check_head(&request) {
        // Where its body ends may not be known.
        return ([(header::CONNECTION, "close")], problem).into_response();
    }
    let memory = &app.edge.memory;
    let budget = match kind {
        Kind::Callback => &memory.callbacks,
        Kind::Batch => &memory.batches,
        Kind::Probe | Kind::Call => &memory.bodies,
    };
    request.extensions_mut().insert(ChargedTo(budget.clone()));
    without_panic(body::take_rest(request, next)).await
}

/// What a handler answers, or a problem if it panics. Nothing of the panic is in the answer.
async fn without_panic(answer: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        tracing::error!("a request met a bug: standard error has the panic; report it");
        let detail = "this request met a bug; the log names it by its http_request_id";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
    })
}

/// What RFC 9112 asks of a head (3.2, 6.1) and the HTTP library does not check.
fn check_head(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(ApiError::bad_request("malformed_request", "a request must have exactly one Host header"));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_known = codings.all(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if is_known && headers.get_all(header::TRANSFER_ENCODING).iter().count() < 2 {
        return Ok(());
    }
    let detail = "the only Transfer-Encoding that is understood is chunked";
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_supported", detail))
}

/// The caller's id for its request if it can be taken, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fits =
        |id: &&HeaderValue| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    let sent = headers.get(&REQUEST_ID).filter(fits).cloned();
    sent.unwrap_or_else(|| HeaderValue::from_str(&new_request_id()).expect("hexadecimal digits"))
}

pub(super) fn new_request_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// The answer with its memory charged until it has been sent, or a refusal. Texts that are part of the program take no memory.
async fn charged(memory: &Memory, mut response: Response, id: &HeaderValue) -> Response {
    let reserved = response.extensions_mut().remove::<Reserved>();
    let is_small = response.size_hint().exact().is_none_or(|bytes| bytes <= SMALL_ANSWER);
    if is_small {
        return response;
    }
    let whole = response.body_mut().collect().now_or_never();
    let Some(Ok(whole)) = whole else { return response };
    let bytes = whole.to_bytes();
    if !bytes.is_unique() {
        *response.body_mut() = Body::from(bytes);
        return response;
    }
    match memory.answers.take_for_answer(bytes.len(), reserved).await {
        Some(charge) => {
            *response.body_mut() = Body::from(Bytes::from_owner(Charged { bytes, _charge: charge }));
            response
        }
        None => {
            let full = ApiError::no_memory("the answer");
            let body = Body::from(full.written(id.to_str().ok()));
            let mut refusal = full.into_response();
            *refusal.body_mut() = body;
            refusal
        }
    }
}

/// A piece of an answer that is made while it is sent, with its memory charged until it has been sent; `None` if there is no memory for it.
pub(super) async fn charged_piece(memory: &Memory, piece: Bytes) -> Option<Bytes> {
    if piece.len() as u64 <= SMALL_ANSWER {
        return Some(piece);
    }
    let charge = memory.answers.take_for_answer(piece.len(), None).await?;
    Some(Bytes::from_owner(Charged { bytes: piece, _charge: charge }))
}

/// Bytes whose memory is charged until the last of them has been sent.
struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a page may do: load files from this service, and be in no frame. The script inside it is allowed by its hash.
static PAGE_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let script = health::DOCS.split_once("<script>").and_then(|(_, rest)| rest.split_once("</script>"));
    let hash = BASE64_STANDARD.encode(Sha256::digest(script.map_or("", |(script, _)| script)));
    let policy = format!(
        "default-src 'none'; script-src 'self' 'sha256-{hash}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("visible ASCII")
});

/// The headers for browsers that every answer gets, unless its handler has set them.
fn protect(headers: &mut HeaderMap, route: &str) {
    let is_page = headers.get(header::CONTENT_TYPE).is_some_and(|sort| sort.as_bytes().starts_with(b"text/html"));
    let is_public = route.starts_with("/docs") || route == "/openapi.json";
    let mut set = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    set(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !is_public {
        set(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if is_page {
        set(header::CONTENT_SECURITY_POLICY, PAGE_POLICY.clone());
        set(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What pages of a configured origin may send. There are no cookies, so none are allowed.
fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, idempotency-key, if-match, last-event-id, prefer, x-request-id",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_that_says_nothing_of_it() {
        let answer = without_panic(async { panic!("secret") }).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains(r#""code":"internal""#) && !text.contains("secret"), "{text}");
    }
}
