//! Answers, limits, scripts and the journal.

use std::time::{Duration, Instant};

use mock_vendors::Answer;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{SECOND, ask, ask_with, get, sent, start};

#[tokio::test]
async fn a_body_is_echoed_to_the_letter() {
    let mock = start().await;
    let body = r#" {"z":123456789012345678901234567890 , "a": 1.10,"a":-0.0e+05, "u":"\u00e9é"} "#;
    let reply = ask(&mock, "POST /sync/bureau", body).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert!(reply.text().starts_with(r#"{"vendor":"bureau","call":1,"data":{"score":700,"#), "{}", reply.text());
    assert!(reply.text().ends_with(&format!(r#""echo":{body}}}"#)), "{}", reply.text());
    assert_eq!(ask(&mock, "GET /sync", "").await.json()["echo"], json!(null));
}

#[tokio::test]
async fn polled_work_is_done_after_so_many_asks_and_echoes_its_submit() {
    let mock = start().await;
    let body = r#"{"n":1.10}"#;
    let submitted = ask(&mock, "POST /polling/batchy?polls=3", body).await;
    assert_eq!((submitted.status, submitted.text()), (202, r#"{"id":"batchy-1","state":"working"}"#));
    for _ in 0..3 {
        assert_eq!(get(&mock, "/polling/batchy/batchy-1").await["state"], "working");
    }
    for path in ["/polling/batchy/batchy-1", "/polling/batchy-1"] {
        let done = ask(&mock, &format!("GET {path}"), "").await;
        assert_eq!(done.json()["state"], "done");
        assert!(done.text().ends_with(r#""echo":{"n":1.10}}}"#), "{}", done.text());
    }
    assert_eq!(ask(&mock, "GET /polling/batchy/batchy-2", "").await.status, 404);
    assert_eq!(mock.count("batchy"), 7);
}

#[tokio::test]
async fn polled_work_can_be_ready_by_time() {
    let mock = start().await;
    ask(&mock, "POST /polling?ready_ms=80000", "{}").await;
    ask(&mock, "POST /polling?ready_ms=0", "{}").await;
    assert_eq!(get(&mock, "/polling/polling/polling-1").await["state"], "working");
    assert_eq!(get(&mock, "/polling/polling/polling-2").await["state"], "done");
    assert_eq!(get(&mock, "/polling/polling/polling-1?ready_ms=0&failed").await["state"], "error");
}

#[tokio::test]
async fn the_worst_window_is_counted_from_arrivals() {
    let mock = start().await;
    for _ in 0..7 {
        ask(&mock, "POST /sync/w", "{}").await;
    }
    let times = mock.arrival_times("w");
    assert!(times.is_sorted() && times.len() == 7);
    assert_eq!(mock.stats("w", 60 * SECOND).worst_window, 7);
    // A window exactly as long as the span leaves the last arrival out: windows are half-open.
    assert_eq!(mock.stats("w", times[6] - times[0]).worst_window, 6);
    let stats = get(&mock, "/stats/w?window_ms=60000&n=6").await;
    assert_eq!((&stats["worst_window"], &stats["window_ms"]), (&json!(7), &json!(60_000)));
    let span_ms = (times[6] - times[0]).as_nanos() as f64 / 1e6;
    assert!((stats["smallest_span_ms"].as_f64().expect("a span") - span_ms).abs() < 1e-6, "{stats}");
}

#[tokio::test]
async fn a_call_over_the_limit_is_answered_429() {
    let mock = start().await;
    let line = "POST /sync/l?max=3&per_ms=60000&retry_after=7";
    for _ in 0..3 {
        assert_eq!(ask(&mock, line, "{}").await.status, 200);
    }
    let refused = ask(&mock, line, "{}").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("7")));
    let stats = mock.stats("l", SECOND);
    assert_eq!((stats.count, stats.rejected), (4, 1));
}

#[tokio::test]
async fn the_limit_slides() {
    let mock = start().await;
    let line = "POST /sync/s?max=2&per_ms=40";
    let mut admitted = Vec::new();
    while admitted.len() < 10 {
        if ask(&mock, line, "{}").await.status == 200 {
            admitted.push(*mock.arrival_times("s").last().expect("an arrival"));
        }
    }
    assert!(admitted.windows(3).all(|three| three[2] - three[0] >= Duration::from_millis(40)));
}

#[tokio::test]
async fn calls_under_way_over_the_limit_are_answered_429() {
    let mock = start().await;
    let line = "POST /sync/u?enforce=concurrency&max=2&latency_ms=60000";
    let _two = (sent(&mock, line, "", "").await, sent(&mock, line, "", "").await);
    while mock.count("u") < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&mock, "POST /sync/u?enforce=concurrency&max=2", "").await.status, 429);
    assert_eq!(ask(&mock, "POST /sync/u?enforce=concurrency&max=3", "").await.status, 200);
}

#[tokio::test]
async fn refusals_come_on_the_calls_that_were_asked_for() {
    let mock = start().await;
    for (line, expected) in [
        ("POST /sync/a?fail_first=2", [500, 500, 200, 200]),
        ("POST /sync/b?fail_every=2", [200, 500, 200, 500]),
        ("POST /sync/c?throttle_first=1", [429, 200, 200, 200]),
        ("POST /sync/d?fault=text&fault_every=3&status=201", [201, 201, 200, 201]),
        ("POST /sync/e?status=503&retry_after=1", [503; 4]),
    ] {
        for (call, expected) in expected.iter().enumerate() {
            assert_eq!(ask(&mock, line, "{}").await.status, *expected, "{line}, call {}", call + 1);
        }
    }
}

#[tokio::test]
async fn a_status_with_its_headers_can_be_for_the_first_calls() {
    let mock = start().await;
    let line = "POST /sync/x?status=403&retry_after=2.0&body=slowly&header=x-left:0&first=2";
    for _ in 0..2 {
        let refused = ask(&mock, line, "{}").await;
        assert_eq!((refused.status, refused.header("retry-after"), refused.text()), (403, Some("2.0"), "slowly"));
        assert_eq!(refused.header("x-left"), Some("0"));
    }
    let answer = ask(&mock, line, "{}").await;
    assert_eq!((answer.status, answer.header("retry-after"), answer.header("x-left")), (200, None, None));
    assert!(answer.json()["data"].is_object());
    // The data carries no Retry-After, but any header that was asked for.
    let answer = ask(&mock, "POST /sync/y?retry_after=1&header=retry-after:5", "{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (200, Some("5")));
    assert_eq!(ask(&mock, "POST /polling/y?retry_after=1", "{}").await.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_token_is_good_for_so_long() {
    let mock = start().await;
    let line = "POST /sync/x?token_ms=60000";
    assert_eq!(ask_with(&mock, line, "authorization: Bearer a\r\n", "{}").await.status, 200);
    let expired = ask_with(&mock, "POST /sync/x?token_ms=0", "authorization: Bearer a\r\n", "{}").await;
    assert_eq!((expired.status, expired.header("www-authenticate").is_some()), (401, true));
    assert_eq!(ask_with(&mock, line, "authorization: Bearer b\r\n", "{}").await.status, 200);
    assert_eq!(ask(&mock, line, "{}").await.status, 200, "none is one too");
}

#[tokio::test]
async fn the_port_can_be_closed_for_a_while() {
    let mock = start().await;
    assert_eq!(ask(&mock, "POST /refuse", "").await.status, 400);
    let hanging = sent(&mock, "POST /sync?fault=hang", "", "{}").await;
    let mut idle = TcpStream::connect(mock.address()).await.expect("connects");
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: mock\r\n\r\n").await.expect("sends");
    idle.read_exact(&mut [0; 12]).await.expect("an answer");
    let mut unused = TcpStream::connect(mock.address()).await.expect("connects");
    assert_eq!(ask(&mock, "POST /refuse?for_ms=300", "").await.status, 202);
    // From the answer on nobody is called: not on a new connection, and not on an old one.
    assert!(TcpStream::connect(mock.address()).await.is_err());
    for connection in [&mut idle, &mut unused] {
        let _ = connection.write_all(b"GET /livez HTTP/1.1\r\nhost: mock\r\n\r\n").await;
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{rest:?}");
    }
    while TcpStream::connect(mock.address()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&mock, "POST /sync", "{}").await.status, 200);
    drop(hanging);
    mock.stop().await;
}

#[tokio::test]
async fn a_literal_body_is_returned_byte_for_byte() {
    let mock = start().await;
    let line = "POST /sync/x?body=%7B%22a%22%3A%201.10e+5%7D";
    assert_eq!(ask(&mock, line, "{}").await.text(), r#"{"a": 1.10e+5}"#);
    assert_eq!(ask(&mock, "POST /polling/x?body=null&status=200", "{}").await.text(), "null");
    let refused = ask(&mock, "POST /sync/x?status=422&body=%5B%5D", "{}").await;
    assert_eq!((refused.status, refused.text()), (422, "[]"));
}

#[tokio::test]
async fn an_unknown_parameter_is_refused_and_not_journaled() {
    let mock = start().await;
    let refused = ask(&mock, "POST /sync/x?faultt=hang", "{}").await;
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().is_some_and(|why| why.contains("`faultt`")));
    assert_eq!(mock.count("x"), 0);
}

#[tokio::test]
async fn scripted_answers_come_in_order_and_then_it_behaves_again() {
    let mock = start().await;
    mock.script("p", vec![Answer::status(503).header("retry-after", "2"), Answer::json(200, r#"{"a":1.0}"#)]);
    let first = ask(&mock, "POST /sync/p?fail_every=1", "{}").await;
    assert_eq!((first.status, first.header("retry-after")), (503, Some("2")));
    assert_eq!(ask(&mock, "POST /sync/p", "{}").await.text(), r#"{"a":1.0}"#);
    assert_eq!(ask(&mock, "POST /sync/p", "{}").await.json()["call"], 3);
}

#[tokio::test]
#[should_panic(expected = "a vendor answers 200 to 599")]
async fn a_script_that_http_cannot_carry_panics_where_it_is_handed_in() {
    start().await.script("p", vec![Answer::status(99)]);
}

#[tokio::test]
async fn arrivals_are_kept_with_headers_and_body() {
    let mock = start().await;
    let before = Instant::now();
    ask_with(&mock, "POST /sync/h?latency_ms=1", "X-Trace: AbC\r\n", r#"{"n":1}"#).await;
    let arrivals = mock.arrivals("h");
    let [arrival] = &arrivals[..] else { panic!("{arrivals:?}") };
    assert_eq!((arrival.method.as_str(), arrival.path_and_query.as_str()), ("POST", "/sync/h?latency_ms=1"));
    assert_eq!((arrival.header("x-trace"), arrival.body.as_ref()), (Some("AbC"), br#"{"n":1}"#.as_ref()));
    assert!(before < arrival.at && arrival.at < Instant::now());
}

#[tokio::test]
async fn repeated_idempotency_keys_of_submits_are_counted() {
    let mock = start().await;
    for key in ["a", "b", "a", "a"] {
        ask_with(&mock, "POST /polling/k", &format!("idempotency-key: {key}\r\n"), "{}").await;
    }
    ask_with(&mock, "GET /polling/k/k-1", "idempotency-key: a\r\n", "").await;
    let stats = mock.stats("k", SECOND);
    assert_eq!((stats.distinct, stats.repeats, stats.count), (2, 2, 5));
}

#[tokio::test]
async fn calls_under_way_are_counted_until_they_end() {
    let mock = start().await;
    let calls = [1, 2, 3].map(|_| sent(&mock, "POST /sync/f?fault=hang", "", "{}"));
    let mut open = Vec::new();
    for call in calls {
        open.push(call.await);
    }
    while mock.count("f") < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(mock.stats("f", SECOND).max_in_flight, 3);
}

#[tokio::test]
async fn a_reset_forgets_what_was_counted_but_never_reuses_an_id() {
    let mock = start().await;
    ask(&mock, "POST /polling/r", "{}").await;
    ask(&mock, "DELETE /stats/r", "").await;
    assert_eq!(get(&mock, "/count/r").await, json!({"count": 0}));
    assert_eq!(ask(&mock, "POST /polling/r", "{}").await.json()["id"], "r-2");
    assert_eq!(get(&mock, "/polling/r/r-1").await["state"], "working");
}

#[tokio::test]
async fn other_routes_and_methods_are_answered_in_json() {
    let mock = start().await;
    assert!(get(&mock, "/").await["routes"].is_object());
    assert_eq!(ask(&mock, "GET /livez", "").await.status, 200);
    assert_eq!(get(&mock, "/stats/never-called").await["count"], 0);
    for (line, status) in [
        ("GET /nothing", 404),
        ("POST /sync/a%2Fb", 404),
        ("GET /async/x", 405),
        ("PUT /sync", 405),
        ("DELETE /count/x", 405),
        ("GET /stats/x?windowms=1", 400),
    ] {
        let reply = ask(&mock, line, "").await;
        assert_eq!(reply.status, status, "{line}");
        assert!(reply.json()["error"].is_string(), "{line}");
        assert_eq!(reply.header("allow").is_some(), status == 405, "{line}");
    }
}

#[tokio::test]
async fn the_port_is_free_after_stop() {
    let mock = start().await;
    let _hanging = sent(&mock, "POST /sync?fault=hang", "", "{}").await;
    let address = mock.address();
    mock.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_vendor_that_wants_a_token_takes_those_of_its_issuer_until_they_end() {
    let mock = start().await;
    let wanted = "POST /sync/bank?token_from=oauth";
    assert_eq!(ask(&mock, wanted, "{}").await.status, 401);
    let issued = ask(&mock, "POST /oauth/token?expires_in=60", "grant_type=client_credentials&scope=a").await.json();
    assert_eq!((&issued["token_type"], &issued["expires_in"]), (&json!("Bearer"), &json!(60)));
    let token = issued["access_token"].as_str().expect("a token");
    let header = format!("authorization: Bearer {token}\r\n");
    assert_eq!(ask_with(&mock, wanted, &header, "{}").await.status, 200);
    assert_eq!(ask(&mock, "POST /oauth/token", "grant_type=password").await.status, 400);
    mock.accept_only("bank", &["Bearer another"]);
    assert_eq!(ask_with(&mock, wanted, &header, "{}").await.status, 401);
}
