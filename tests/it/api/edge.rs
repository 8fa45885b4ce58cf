//! What clients can do to the port before anybody knows who they are, and what that costs others: next to nothing.

use std::{io::Write as _, sync::Arc, time::Duration};

use fetchgate::api::{self, server::Door, tls::Tls};
use hyper::Method;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{
    failure::{LONG, World, wait_until},
    on_every_backend,
    support::{Answer, Backend, THREE_KINDS, TestApp},
};

on_every_backend!(what_a_caller_sent_is_repeated_in_part_only, a_batch_of_mistakes_gets_a_small_answer);

const JSON: (&str, &str) = ("content-type", "application/json");
const MIB: usize = 1 << 20;

async fn start() -> TestApp {
    TestApp::start(Backend::Sqlite).await
}

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.url.trim_start_matches("http://")).await.expect("the service listens")
}

/// The next answer on a connection that stays open: its head and its body, whose length the head says.
async fn next_answer(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split_once("\r\n")).expect("a length").0;
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).await.expect("the body");
    (head, String::from_utf8(body).expect("text"))
}

/// The problem in an answer as it came.
fn problem(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/problem+json"), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let status = answer[9..12].parse().expect("a status");
    assert_eq!(problem["status"], status, "{answer}");
    assert!(
        head.contains(&format!("x-request-id: {}", problem["http_request_id"].as_str().expect("an id"))),
        "{answer}"
    );
    (status, problem)
}

#[track_caller]
fn assert_no_memory(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "over_capacity"), "{}", answer.text);
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_nobody_knows_leaves_nothing_in_the_metrics() {
    let app = start().await;
    for n in 0..30 {
        let method = format!("{}{n}", "A".repeat(5000));
        let request = format!("{method} /vendor-webhook/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert_eq!(problem(&app.send_bytes(request.as_bytes()).await).0, 405);
    }
    let metrics = app.get("/metrics").await.text;
    assert!(!metrics.contains("AAAA"), "a method is a label");
    let counted = r#"fetchgate_http_requests_total{method="other",route="/vendor-webhook/{vendor}",status="405"} 30"#;
    assert!(metrics.contains(counted), "{metrics}");
    app.stop().await;
}

async fn what_a_caller_sent_is_repeated_in_part_only(backend: Backend) {
    let app = TestApp::start(backend).await;
    // The longest that one character can become.
    let long = "\u{80}".repeat(4000);
    let escaped = "%C2%80".repeat(1000);
    let job = |fields: &str| format!(r#"{{"payload": 1, {fields}}}"#);
    let cases = [
        (Method::POST, "/jobs".to_owned(), job(&format!(r#""vendor": "{long}""#))),
        (Method::POST, "/jobs".to_owned(), job(&format!(r#""vendor": "sync", "{long}": 1"#))),
        (Method::POST, "/jobs".to_owned(), job(&format!(r#""vendor": "sync", "{}": 1"#, "~".repeat(4000)))),
        (Method::POST, "/jobs".to_owned(), job(&format!(r#""vendor": "sync", "priority": "{long}""#))),
        (Method::GET, format!("/jobs?{escaped}=1"), String::new()),
        (Method::GET, format!("/jobs?limit={escaped}"), String::new()),
        (Method::GET, format!("/jobs?created_after={escaped}"), String::new()),
        (Method::GET, format!("/vendors/{escaped}"), String::new()),
        (Method::POST, format!("/vendor-webhook/{escaped}"), "{}".to_owned()),
        (Method::POST, format!("/vendor-webhook/{escaped}/{escaped}"), "{}".to_owned()),
    ];
    for (method, path, body) in cases {
        let answer = app.send(method, &path, &[JSON], body).await;
        assert!(
            answer.status.is_client_error() && answer.text.len() < 3000,
            "{} bytes: {}",
            answer.text.len(),
            answer.text
        );
    }
    let answer = app.send(Method::POST, "/jobs", &[("content-type", &"x".repeat(9000))], "{}").await;
    assert!(answer.status == 415 && answer.text.len() < 1000, "{}", answer.text);
    app.stop().await;
}

async fn a_batch_of_mistakes_gets_a_small_answer(backend: Backend) {
    let app = TestApp::start(backend).await;
    let fields: Vec<String> = (0..40).map(|n| format!(r#""{}{n}":1"#, "\u{80}".repeat(80))).collect();
    let item = format!(r#"{{"payload":1,"vendor":"{}",{}}}"#, "\u{80}".repeat(100), fields.join(","));
    let items = 1000;
    let lines = [("content-type", "application/x-ndjson")];
    let answer = app.send(Method::POST, "/jobs/batch", &lines, vec![item; items].join("\n")).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert!(answer.text.len() < 4 * MIB, "{} bytes", answer.text.len());
    let batch = answer.json();
    let said = batch["items"].as_array().expect("items");
    assert_eq!((said.len(), &batch["rejected"]), (items, &json!(items)));
    assert!(said.iter().all(|item| item["error"]["code"] == "invalid_field"), "every item has its code");
    assert!(
        said[0]["error"]["errors"].as_array().expect("places").len() > 30
            && said[items - 1]["error"]["errors"].is_null()
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_no_memory_is_refused_and_all_else_is_answered() {
    let app = start().await;
    let id = app.submit("sync", &format!("\"{}\"", "x".repeat(10_000))).await;
    let memory = &app.app.edge.memory;
    let kept = memory.bodies.take(32 * MIB).await.expect("nobody else is here");
    let body = r#"{"payload": 1, "vendor": "sync"}"#;
    let refused = app.post("/jobs", body).await;
    assert_no_memory(&refused);
    for path in ["/livez", "/readyz", "/metrics", "/jobs", "/vendors/sync"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    assert_eq!(app.post("/jobs/batch", format!("[{body}]")).await.status, 202);
    assert_eq!(app.post("/vendor-webhook/async", r#"{"request_id": "x"}"#).await.status, 404);
    drop(kept);
    assert_eq!(app.post("/jobs", body).await.status, 202);

    let kept = memory.answers.take(32 * MIB).await.expect("nobody else is here");
    assert_no_memory(&app.get(&format!("/jobs/{id}?include=payload")).await);
    assert_eq!(app.get("/vendors").await.status, 200, "a small answer needs none");
    assert_eq!(app.get("/openapi.json").await.status, 200, "nor does a part of the program");
    drop(kept);
    assert_eq!(app.get(&format!("/jobs/{id}?include=payload")).await.status, 200);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_stalls_gives_way_to_one_that_waits() {
    let app = start().await;
    // A megabyte is left, and the stalled batch takes most of it.
    let kept = app.app.edge.memory.batches.take(71 * MIB).await.expect("nobody else is here");
    let mut stalled = connect(&app).await;
    let head = "POST /jobs/batch HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\ncontent-length: 60000000\r\n\r\n";
    stalled.write_all(head.as_bytes()).await.expect("sent");
    stalled.write_all(&vec![b' '; 900 << 10]).await.expect("sent");
    let job = format!(r#"{{"payload": "{}", "vendor": "sync"}}"#, "x".repeat(400));
    let batch = format!("[{}]", vec![job; 1000].join(","));
    assert_eq!(app.post("/jobs/batch", batch).await.status, 202);
    let mut answer = String::new();
    stalled.read_to_string(&mut answer).await.expect("an answer");
    assert_eq!(problem(&answer).0, 408, "{answer}");
    drop(kept);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_callbacks_take_a_bounded_share_and_true_ones_are_answered() {
    let app = start().await;
    let head = format!(
        "POST /vendor-webhook/async HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        8 * MIB
    );
    let mut stalled = JoinSet::new();
    for _ in 0..8 {
        let (mut stream, head) = (connect(&app).await, head.clone());
        stalled.spawn(async move {
            // Whoever has no place is not read any further.
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&vec![b' '; 7 * MIB]).await;
            stream
        });
    }
    let id = "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16";
    for _ in 0..3 {
        let answer = app
            .post("/vendor-webhook/async", format!(r#"{{"request_id": "{id}", "padding": "{}"}}"#, "x".repeat(5000)));
        assert_eq!(answer.await.code(), "unknown_job");
    }
    let job = app.submit("sync", "1").await;
    assert_eq!(app.status(&job).await, "pending");
    stalled.shutdown().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_callback_is_charged_for_what_it_can_become() {
    let app = start().await;
    let packed = |text: &[u8]| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(text).expect("memory");
        packer.finish().expect("memory")
    };
    let large = packed(format!(r#"{{"request_id": "x", "padding": "{}"}}"#, "x".repeat(7 * MIB)).as_bytes());
    let headers = [JSON, ("content-encoding", "gzip")];
    let send = async |body: Vec<u8>| app.send(Method::POST, "/vendor-webhook/async", &headers, body).await;
    assert!(large.len() < 10_000, "{} bytes", large.len());
    // Room for it as it came, and not for what it becomes.
    let kept = app.app.edge.memory.callbacks.take(22 * MIB).await.expect("nobody else is here");
    assert_no_memory(&send(large.clone()).await);
    assert_eq!(send(packed(br#"{"request_id": "x"}"#)).await.code(), "unknown_job");
    drop(kept);
    assert_eq!(send(large).await.code(), "unknown_job");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_when_answers_need_memory() {
    let app = start().await;
    let id = app.submit("sync", &format!("\"{}\"", "x".repeat(10_000))).await;
    let mut unread = connect(&app).await;
    let asks = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    unread.write_all(asks.as_bytes()).await.expect("sent");
    let kept = app.app.edge.memory.answers.take(32 * MIB).await.expect("nobody else is here");
    assert_no_memory(&app.get(&format!("/jobs/{id}?include=payload")).await);
    drop(kept);
    let mut taken = Vec::new();
    // The end may be a broken connection.
    let _ = unread.read_to_end(&mut taken).await;
    let answers = taken.windows(15).filter(|bytes| *bytes == b"HTTP/1.1 200 OK").count();
    assert!((1..100).contains(&answers), "{answers} answers");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_has_left_is_not_waited_for() {
    let app = start().await;
    let id = app.submit("sync", "1").await;
    let asks = format!("GET /jobs/{id}?wait=60s HTTP/1.1\r\nhost: localhost\r\n\r\n");
    // It has closed its side and still reads.
    let mut closed = connect(&app).await;
    closed.write_all(asks.as_bytes()).await.expect("sent");
    closed.shutdown().await.expect("closed");
    let (_, job) = tokio::time::timeout(LONG, next_answer(&mut closed)).await.expect("an answer at once");
    assert!(job.contains(r#""status":"pending""#), "{job}");
    // It has gone. What it has asked for is answered to nobody, and counted.
    let gone = connect(&app).await;
    let answered = async || {
        let metrics = app.get("/metrics").await.text;
        let line = metrics
            .lines()
            .find(|line| line.contains(r#"route="/jobs/{id}",status="200""#))
            .expect("counted")
            .to_owned();
        line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a number")
    };
    let before = answered().await;
    let (waiting, mut gone) = (app.app.edge.calls.available_permits(), gone);
    gone.write_all(asks.as_bytes()).await.expect("sent");
    wait_until("it waits", LONG, async || (app.app.edge.calls.available_permits() < waiting).then_some(())).await;
    gone.set_zero_linger().expect("a reset");
    drop(gone);
    wait_until("it is given up", LONG, async || (answered().await > before).then_some(())).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_bound_on_requests_probes_and_callbacks_are_answered() {
    let app = start().await;
    let places = app.app.edge.calls.available_permits();
    let taken = app.app.edge.calls.try_acquire_many(u32::try_from(places).expect("thousands")).expect("all of them");
    for path in ["/jobs", "/vendors", "/openapi.json"] {
        assert_no_memory(&app.get(path).await);
    }
    assert_no_memory(&app.post("/jobs", r#"{"payload": 1, "vendor": "sync"}"#).await);
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    assert_eq!(app.post("/vendor-webhook/async", "{}").await.code(), "missing_request_id");
    drop(taken);
    assert_eq!(app.get("/jobs").await.status, 200);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_cannot_be_read_is_a_problem_too() {
    let app = start().await;
    let cases = [
        ("GARBAGE\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("GET / HTTP/1.1\r\nhost x\r\n\r\n".to_owned(), 400, "malformed_request"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(20_000)), 431, "head_too_large"),
        (format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(70_000)), 431, "head_too_large"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: x\r\n".repeat(200)), 431, "head_too_large"),
        ("GET /livez HTTP/1.1\r\n\r\n".to_owned(), 400, "malformed_request"),
        ("GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n".to_owned(), 400, "malformed_request"),
        (
            "POST /jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            501,
            "not_supported",
        ),
    ];
    for (request, status, code) in cases {
        let shown: String = request.chars().take(60).collect();
        let (got, problem) = problem(&app.send_bytes(request.as_bytes()).await);
        assert_eq!((got, &problem["code"]), (status, &json!(code)), "{shown:?}");
    }
    let old = app.send_bytes(b"GET /livez HTTP/1.0\r\n\r\n").await;
    assert!(old.contains(" 200 OK\r\n"), "HTTP/1.0 has no Host: {old}");
    let body = r#"{"payload": 1, "vendor": "sync"}"#;
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(app.send(Method::POST, "/jobs", &twice, body).await.code(), "invalid_idempotency_key");
    assert_eq!(app.get("/jobs").await.json()["jobs"], json!([]));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_id_of_its_request() {
    let app = start().await;
    let longest = "x".repeat(128);
    for sent in ["mine-4711", &longest, "\"quoted\\"] {
        let answer = app.send(Method::GET, "/jobs/x", &[("x-request-id", sent)], "").await;
        assert_eq!((answer.header("x-request-id"), &answer.json()["http_request_id"]), (sent, &json!(sent)));
    }
    for sent in ["", "two words", &format!("{longest}x")] {
        let answer = app.send(Method::GET, "/jobs/x", &[("x-request-id", sent)], "").await;
        let made = answer.header("x-request-id");
        assert!(made.len() == 32 && made != sent && answer.json()["http_request_id"] == made, "{sent:?} {made:?}");
    }
    for path in ["/livez", "/jobs", "/openapi.json", "/docs", "/nowhere"] {
        assert_eq!(app.send_unchecked(Method::GET, path, &[], "").await.header("x-request-id").len(), 32, "{path}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_the_request_that_a_line_is_about() {
    let world = World::new(THREE_KINDS).await;
    let process = world.start().await;
    let mut stream = TcpStream::connect(world.address()).await.expect("it listens");
    let asks = "POST /vendor-webhook/async/forged HTTP/1.1\r\nhost: localhost\r\nx-request-id: mine-4711\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(asks.as_bytes()).await.expect("sent");
    let (head, body) = next_answer(&mut stream).await;
    assert!(head.contains(" 401 ") && body.contains(r#""http_request_id":"mine-4711""#), "{head}{body}");
    let named = r#""http_request_id":"mine-4711""#;
    wait_until("it is logged", LONG, async || process.log().contains(named).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_say_what_browsers_may_cache_and_load() {
    let app = start().await;
    for path in ["/jobs", "/jobs/x", "/livez", "/metrics", "/docs", "/openapi.json", "/nowhere"] {
        let answer = app.send_unchecked(Method::GET, path, &[], "").await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        let is_public = ["/docs", "/openapi.json"].contains(&path);
        assert_eq!(answer.header("cache-control"), if is_public { "" } else { "no-store" }, "{path}");
    }
    let page = app.get("/docs").await;
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self' 'sha256-", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("script-src 'self' 'unsafe"), "{policy}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pages_of_configured_origins_may_read_answers() {
    let text = format!("[server]\ncors = [\"https://app.example\"]\n{THREE_KINDS}");
    let app = TestApp::with(Backend::Sqlite, &text).await;
    let asks = |origin| [("origin", origin), ("access-control-request-method", "POST")];
    let allowed = app.send_unchecked(Method::OPTIONS, "/jobs", &asks("https://app.example"), "").await;
    assert_eq!((allowed.status.as_u16(), allowed.header("access-control-allow-origin")), (204, "https://app.example"));
    assert!(allowed.header("access-control-allow-headers").contains("authorization"));
    assert!(allowed.header("access-control-allow-credentials").is_empty());
    let foreign = app.send_unchecked(Method::OPTIONS, "/jobs", &asks("https://evil.example"), "").await;
    assert_eq!((foreign.status.as_u16(), foreign.header("access-control-allow-origin")), (405, ""));
    for (origin, seen) in
        [("https://app.example", "https://app.example"), ("https://app.example.evil", ""), ("null", "")]
    {
        let answer = app.send(Method::GET, "/jobs", &[("origin", origin)], "").await;
        assert_eq!(answer.header("access-control-allow-origin"), seen, "{origin}");
        assert_eq!(answer.header("vary"), "Origin");
    }
    app.stop().await;
    let app = start().await;
    let answer = app.send(Method::GET, "/jobs", &[("origin", "https://app.example")], "").await;
    assert_eq!((answer.header("access-control-allow-origin"), answer.header("vary")), ("", ""));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_no_more_connections_than_it_may() {
    let text = format!("[server]\nmax_connections_per_address = 3\n{THREE_KINDS}");
    let app = TestApp::with(Backend::Sqlite, &text).await;
    let asks = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&app).await;
        stream.write_all(asks).await.expect("sent");
        assert!(next_answer(&mut stream).await.0.contains(" 200 ok"));
        open.push(stream);
    }
    let mut one_more = connect(&app).await;
    // Closed, or reset because of what was sent.
    assert!(matches!(one_more.read(&mut [0; 1]).await, Ok(0) | Err(_)), "it is closed without an answer");
    open.pop();
    wait_until("there is a place again", LONG, async || {
        let mut stream = connect(&app).await;
        stream.write_all(asks).await.ok()?;
        stream.read_u8().await.ok()
    })
    .await;
    drop(open);
    app.stop().await;
}

/// The name in the certificate of whoever listens there, and the answer to a probe.
async fn over_tls(address: &str, trusted: &[&str]) -> Option<String> {
    let mut roots = rustls::RootCertStore::empty();
    for pem in trusted {
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.expect("it listens");
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_used_and_its_successor_as_soon_as_it_is_there() {
    let app = start().await;
    let (one, two) = (include_str!("../data/one.pem"), include_str!("../data/two.pem"));
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let wrong =
        |cert: &std::path::Path, key: &std::path::Path| format!("{:#}", Tls::open(cert, key).err().expect("refused"));
    assert!(wrong(&cert, &key).contains("server.tls.cert: cannot read"), "{}", wrong(&cert, &key));
    std::fs::write(&cert, one).expect("written");
    std::fs::write(&key, include_str!("../data/two.key")).expect("written");
    assert!(wrong(&cert, &key).contains("the key does not belong to the certificate"), "{}", wrong(&cert, &key));
    std::fs::write(&key, "no key").expect("written");
    assert!(wrong(&cert, &key).contains("no private key"), "{}", wrong(&cert, &key));
    std::fs::write(&key, include_str!("../data/one.key")).expect("written");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("the port").to_string();
    let tls = Some(Tls::open(&cert, &key).expect("good files"));
    let door = Door { tls, ..Door::plain(&app.app.edge.memory) };
    let (mut serving, stop) = (JoinSet::new(), CancellationToken::new());
    serving.spawn(api::server::serve(listener, api::router(app.app.clone()), door, stop.clone()));
    assert!(over_tls(&address, &[one]).await.expect("TLS").contains(r#"{"status":"alive"}"#));
    assert!(over_tls(&address, &[two]).await.is_none(), "the other certificate is not in use yet");
    // Half of a new pair is of no use: the old pair goes on.
    std::fs::write(&cert, two).expect("written");
    assert!(over_tls(&address, &[one]).await.is_some());
    std::fs::write(&key, include_str!("../data/two.key")).expect("written");
    wait_until("the new one is in use", LONG, async || over_tls(&address, &[two]).await).await;
    // Plain HTTP is not answered there.
    let mut plain = TcpStream::connect(&address).await.expect("it listens");
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut answer)).await.expect("closed");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    stop.cancel();
    while serving.join_next().await.is_some() {}
    app.stop().await;
}
