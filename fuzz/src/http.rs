//! The API, whole: requests go over a connection into a server with a store of its own.
//!
//! Every answer is one that the API promises: no 5xx but for want of room (503) and for codings of transfer (501), and a problem of a few KiB
//! for whatever is wrong.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fetchgate::{
    api::{self, server::Door},
    clock::Clock,
    config::parse,
    roles::Roles,
    service::Service,
    vendor::http::{Client, Origin, Reply},
};
use http_body_util::Full;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, header};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    message,
    vendors::{CONFIG, NOW},
};

const KEY: &str = "Bearer fg_0123456789abcdefghijklmnopqrstuvwxyzABCDEF";
const JSON: &str = "application/json";
/// Some requests wait for a job, which nobody calls here.
const PATIENCE: Duration = Duration::from_millis(500);
/// The bytes of a problem at most, also of one with 32 fields.
const MAX_PROBLEM: usize = 16 << 10;

struct Site {
    runtime: Runtime,
    client: Client,
    origin: Origin,
    _server: Mutex<JoinSet<()>>,
}

static SITE: OnceLock<Site> = OnceLock::new();
/// The folder of the store: a static is never dropped.
static FOLDER: Mutex<Option<TempDir>> = Mutex::new(None);

fn site() -> &'static Site {
    SITE.get_or_init(|| {
        let folder = TempDir::new().expect("a folder");
        let text = CONFIG.replace("STORE", folder.path().join("fuzz.db").to_str().expect("a path in UTF-8"));
        let config = parse(&text, "vendors.toml", []).unwrap_or_else(|error| panic!("{error}"));
        let runtime = Runtime::new().expect("a runtime");
        let (origin, server) = runtime.block_on(async {
            let service = Service::build(&config, Roles::Both, Clock::manual(NOW)).await.expect("the service");
            let (app, _) = service.into_parts();
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("the port"));
            let door = Door::plain(&app.edge.memory);
            let mut server = JoinSet::new();
            server.spawn(api::server::serve(listener, api::router(app), door, CancellationToken::new()));
            (Origin::of(&url.parse().expect("a URL")).expect("http"), server)
        });
        *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
        Site { runtime, client: Client::new(), origin, _server: Mutex::new(server) }
    })
}

/// Deletes the store of the API. No target of it can run after that.
pub fn clean_up() {
    drop(FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// The status of the answer, which is checked; nothing if it does not come soon, or if what is asked cannot be sent.
fn ask(method: Method, target: &[u8], headers: &HeaderMap, body: &[u8]) -> Option<StatusCode> {
    if method == Method::CONNECT {
        return None; // The client would wait for a tunnel.
    }
    let mut request = Request::builder().method(method.clone()).uri(Uri::try_from(target).ok()?);
    request.headers_mut()?.extend(headers.clone());
    // Without it the head alone would be refused, and nothing else read.
    request.headers_mut()?.entry(header::HOST).or_insert(header::HeaderValue::from_static("fetchgate.example"));
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).ok()?;
    let site = site();
    let answered = site.runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async {
            let mut connection = site.client.connection(&site.origin).await.expect("the server is there");
            let reply = connection.send(request).await.ok()?;
            site.client.keep(connection);
            Some(reply)
        })
        .await
    });
    let Reply { status, headers, body, .. } = answered.ok()??;
    let text = String::from_utf8_lossy(&body);
    if status.is_client_error() || status.is_server_error() {
        assert!(status.as_u16() < 500 || [501, 503].contains(&status.as_u16()), "{status}: {text}");
        let kind = headers.get(header::CONTENT_TYPE);
        assert!(kind.is_some_and(|kind| kind == "application/problem+json"), "{status}: {kind:?}");
        assert!(body.len() < MAX_PROBLEM, "{status}: {} bytes", body.len());
        if method != Method::HEAD {
            let problem: serde_json::Value = serde_json::from_slice(&body).expect("a problem is JSON");
            assert!(problem["code"].is_string() && problem["status"] == status.as_u16(), "{problem}");
        }
    }
    Some(status)
}

fn with_key(content_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, header::HeaderValue::from_static(KEY));
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers
}

/// `METHOD TARGET`, headers, a body. A key is added, unless there is one.
pub(crate) fn api(data: &[u8]) {
    let (first, mut headers, body) = message(data);
    let mut words = first.splitn(2, |byte| *byte == b' ');
    let Ok(method) = Method::from_bytes(words.next().unwrap_or_default()) else { return };
    if !headers.contains_key(header::AUTHORIZATION) {
        headers.insert(header::AUTHORIZATION, header::HeaderValue::from_static(KEY));
    }
    ask(method, words.next().unwrap_or_default(), &headers, body);
}

/// The body of one job.
pub(crate) fn submit(data: &[u8]) {
    let status = ask(Method::POST, b"/jobs", &with_key(JSON), data);
    assert!(status.is_none_or(|status| [200, 202, 400, 413, 422, 429, 503].contains(&status.as_u16())), "{status:?}");
}

/// A batch, as an array.
pub(crate) fn batch(data: &[u8]) {
    check_batch(ask(Method::POST, b"/jobs/batch", &with_key(JSON), data));
}

/// A batch, one job a line.
pub(crate) fn ndjson(data: &[u8]) {
    check_batch(ask(Method::POST, b"/jobs/batch", &with_key("application/x-ndjson"), data));
}

fn check_batch(status: Option<StatusCode>) {
    assert!(
        status.is_none_or(|status| [200, 202, 207, 400, 413, 422, 429, 503].contains(&status.as_u16())),
        "{status:?}"
    );
}

/// New limits of a vendor.
pub(crate) fn limits(data: &[u8]) {
    let mut headers = with_key(JSON);
    headers.insert(header::IF_MATCH, header::HeaderValue::from_static("*"));
    let status = ask(Method::PUT, b"/vendors/sync/limits", &headers, data);
    assert!(status.is_none_or(|status| [200, 400, 413, 422].contains(&status.as_u16())), "{status:?}");
}

/// A cursor, and whatever else is in a query: the list is there, or what is wrong with the query.
pub(crate) fn cursor(data: &[u8]) {
    let target = [b"/jobs?", data].concat();
    let status = ask(Method::GET, &target, &with_key(JSON), b"");
    assert!(status.is_none_or(|status| [200, 400, 422].contains(&status.as_u16())), "{status:?}");
}

/// What stands where a key should: it lets nobody in.
pub(crate) fn key(data: &[u8]) {
    let Ok(value) = header::HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    let status = ask(Method::GET, b"/jobs", &headers, b"");
    let is_ours = headers[header::AUTHORIZATION].as_bytes().ends_with(&KEY.as_bytes()["Bearer ".len()..]);
    assert!(is_ours || status.is_none_or(|status| status == StatusCode::UNAUTHORIZED), "{status:?}");
}
