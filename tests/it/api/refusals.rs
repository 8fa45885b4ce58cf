//! Everything that is wrong is refused with its own code and place, and leaves nothing behind.

use bytes::Bytes;
use hyper::Method;
use serde_json::json;

use crate::{
    on_every_backend,
    support::{Answer, Backend, THREE_KINDS, TestApp},
};

on_every_backend!(
    a_body_that_is_not_a_job_is_refused,
    paths_without_parameters_take_none,
    each_wrong_field_is_named,
    everything_that_is_wrong_is_reported_at_once,
    what_lies_just_within_the_bounds_is_taken,
    a_payload_without_what_the_vendors_url_needs_is_refused,
    a_body_that_is_too_large_is_refused_and_the_caller_can_read_why,
    a_body_has_to_say_that_it_is_json,
    a_wrong_method_gets_the_allowed_ones,
    there_is_nothing_at_other_paths,
    an_id_that_is_none_is_not_found_anywhere,
    a_wrong_parameter_is_named,
    a_batch_beyond_its_bounds_is_refused_as_a_whole,
    what_is_wrong_with_an_item_spoils_only_that,
);

const JSON: (&str, &str) = ("content-type", "application/json");
const MIB: usize = 1 << 20;

async fn start(backend: Backend) -> TestApp {
    let shaped = r#"
[vendors.shaped]
kind = "sync"
url = "VENDORS/sync/{{ payload.region.id | path }}?body={{ payload.text | query }}"
limits = []
"#;
    TestApp::with(backend, &format!("{THREE_KINDS}{shaped}")).await
}

/// Nothing was stored, and the next job is served.
async fn end(mut app: TestApp) {
    assert_eq!(app.get("/jobs").await.json(), json!({"jobs": [], "next_cursor": null}));
    let id = app.submit("sync", "1").await;
    app.run_until_idle().await;
    assert_eq!(app.status(&id).await, "complete");
    app.stop().await;
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, what: &str) {
    let shown: String = what.chars().take(200).collect();
    assert_eq!(answer.status, status, "{shown}\n{}", answer.text);
    assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{shown}\n{}", answer.text);
    let problem = answer.json();
    assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)), "{shown}");
    assert!(!problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty());
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

async fn a_body_that_is_not_a_job_is_refused(backend: Backend) {
    let app = start(backend).await;
    let good = r#"{"payload": 1, "vendor": "sync"}"#;
    let cases: Vec<(Bytes, u16, &str)> = vec![
        ("".into(), 400, "malformed_json"),
        (" ".into(), 400, "malformed_json"),
        ("{".into(), 400, "malformed_json"),
        ("hello".into(), 400, "malformed_json"),
        ("payload=1&vendor=sync".into(), 400, "malformed_json"),
        (r#"{"payload": 1, "vendor": "sync",}"#.into(), 400, "malformed_json"),
        (r#"{"payload": 01, "vendor": "sync"}"#.into(), 400, "malformed_json"),
        (r#"{"payload": NaN, "vendor": "sync"}"#.into(), 400, "malformed_json"),
        (r#"{'payload': 1, 'vendor': 'sync'}"#.into(), 400, "malformed_json"),
        ("{\"payload\": \"a\nb\", \"vendor\": \"sync\"}".into(), 400, "malformed_json"),
        (r#"{"payload": "\x", "vendor": "sync"}"#.into(), 400, "malformed_json"),
        (format!("{good} {good}").into(), 400, "malformed_json"),
        (format!("\u{feff}{good}").into(), 400, "malformed_json"),
        (Bytes::from_static(b"{\"payload\": \"\xff\xfe\", \"vendor\": \"sync\"}"), 400, "malformed_json"),
        (Bytes::from_static(b"{\"payload\": \"\xed\xa0\x80\", \"vendor\": \"sync\"}"), 400, "malformed_json"),
        (Bytes::from_static(b"\x1f\x8b\x08\x00"), 400, "malformed_json"),
        (format!(r#"{{"payload": {}, "vendor": "sync"}}"#, nested(128)).into(), 400, "too_deep"),
        (format!(r#"{{"payload": {}, "vendor": "sync"}}"#, nested(100_000)).into(), 400, "too_deep"),
        (format!(r#"{{"payload": {}, "vendor": "sync"}}"#, nested(1_000_000)).into(), 400, "too_deep"),
        ("[".repeat(1_000_000).into(), 400, "too_deep"),
        (r#"{"a":"#.repeat(400_000).into(), 400, "too_deep"),
        ("null".into(), 422, "invalid_field"),
        ("1".into(), 422, "invalid_field"),
        (r#""payload""#.into(), 422, "invalid_field"),
        (format!("[{good}]").into(), 422, "invalid_field"),
        ("{}".into(), 422, "invalid_field"),
    ];
    for (body, status, code) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        assert_refused(&app.post("/jobs", body).await, status, code, &shown);
    }
    end(app).await;
}

async fn each_wrong_field_is_named(backend: Backend) {
    let app = start(backend).await;
    let long = format!(r#""{}""#, "é".repeat(65));
    let tags = |n: usize| serde_json::to_string(&vec!["tag"; n]).unwrap();
    let cases: Vec<(&str, Vec<String>)> = vec![
        ("priority", ["\"urgent\"", "\"HIGH\"", "1", "null", "[]", "{}", r#"{"high": null}"#].map(String::from).into()),
        ("not_before", BAD_MOMENTS.map(String::from).into()),
        ("deadline", BAD_MOMENTS.map(String::from).into()),
        ("deadline", ["\"0s\"", "\"2026-01-15T08:00:00Z\"", "\"2020-01-01T00:00:00Z\""].map(String::from).into()),
        (
            "tenant",
            vec!["\"\"".into(), long.clone(), "1".into(), "null".into(), r#""a\u0000""#.into(), r#""a\nb""#.into()],
        ),
        (
            "tags",
            vec![
                tags(17),
                "[\"\"]".into(),
                format!("[{long}]"),
                "\"a\"".into(),
                "[1]".into(),
                "null".into(),
                "{}".into(),
            ],
        ),
    ];
    for (field, values) in cases {
        for value in values {
            let body = format!(r#"{{"payload": 1, "vendor": "sync", "{field}": {value}}}"#);
            let answer = app.post("/jobs", body.clone()).await;
            assert_refused(&answer, 422, "invalid_field", &body);
            let errors = answer.json()["errors"].clone();
            assert_eq!(
                (errors.as_array().unwrap().len(), &errors[0]["pointer"]),
                (1, &json!(format!("/{field}"))),
                "{body}"
            );
        }
    }
    let cases = [
        (r#"{"vendor": "sync"}"#, "invalid_field", "/payload"),
        (r#"{"payload": 1}"#, "invalid_field", "/vendor"),
        (r#"{"payload": 1, "vendor": 1}"#, "invalid_field", "/vendor"),
        (r#"{"payload": 1, "vendor": null}"#, "invalid_field", "/vendor"),
        (r#"{"payload": 1, "vendor": ""}"#, "unknown_vendor", "/vendor"),
        (r#"{"payload": 1, "vendor": "syncc"}"#, "unknown_vendor", "/vendor"),
        (r#"{"payload": 1, "vendor": "Sync"}"#, "unknown_vendor", "/vendor"),
        (r#"{"payload": 1, "vendor": "sync", "payloads": 1}"#, "invalid_field", "/payloads"),
        (r#"{"payload": 1, "vendor": "sync", "Priority": "high"}"#, "invalid_field", "/Priority"),
        (r#"{"payload": 1, "vendor": "sync", "": 1}"#, "invalid_field", "/"),
        (r#"{"payload": 1, "vendor": "sync", "a/b~c": 1}"#, "invalid_field", "/a~1b~0c"),
        (r#"{"payload": 1, "vendor": "sync", "request_id": "x"}"#, "invalid_field", "/request_id"),
        (r#"{"payload": 1, "vendor": "sync", "payload": 1}"#, "invalid_field", "/payload"),
        (r#"{"payload": 1, "vendor": "sync", "vendor": "sync"}"#, "invalid_field", "/vendor"),
        (r#"{"payload": 1, "vendor": "sync", "pay\u006coad": 2}"#, "invalid_field", "/payload"),
        (r#"{"payload": 1, "vendor": "sync", "callback_url": 1}"#, "invalid_field", "/callback_url"),
    ];
    for (body, code, pointer) in cases {
        let answer = app.post("/jobs", body).await;
        assert_refused(&answer, 422, code, body);
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    end(app).await;
}

const BAD_MOMENTS: [&str; 21] = [
    "5",
    "null",
    "{}",
    "\"\"",
    "\"soon\"",
    "\"10\"",
    "\"10 m\"",
    "\"1.5h\"",
    "\"-5s\"",
    "\"1h30m\"",
    "\"10M\"",
    "\"1w\"",
    "\"2027-13-01T00:00:00Z\"",
    "\"2027-02-30T00:00:00Z\"",
    "\"2027-02-03\"",
    "\"2027-02-03T00:00:00\"",
    "\"99999999999999999999d\"",
    "\"2027-02-03T00:00:00Z[nonsense]\"",
    "\"2027-02-03T00:00:00+25:59\"",
    "\"2027-02-03T00:00:00+01:60\"",
    "\"20270203T000000Z\"",
];

async fn everything_that_is_wrong_is_reported_at_once(backend: Backend) {
    let app = start(backend).await;
    let body = r#"{"vendor": 1, "priority": "urgent", "tags": "a", "extra": 1}"#;
    let problem = app.post("/jobs", body).await.json();
    let pointers: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/vendor", "/priority", "/tags", "/extra", "/payload"]);
    // And never more than anybody would read.
    let many: Vec<String> = (0..10_000).map(|i| format!(r#""f{i}": 1"#)).collect();
    let answer = app.post("/jobs", format!("{{{}}}", many.join(","))).await;
    assert_refused(&answer, 422, "invalid_field", "many");
    assert!(answer.json()["errors"].as_array().unwrap().len() <= 40 && answer.text.len() < 10_000);
    end(app).await;
}

async fn what_lies_just_within_the_bounds_is_taken(backend: Backend) {
    let app = start(backend).await;
    let tags = serde_json::to_string(&vec!["é".repeat(64); 16]).unwrap();
    let whole = |payload: &str| format!(r#"{{"payload": {payload}, "vendor": "sync"}}"#);
    let filler = "x".repeat(2 * MIB - whole(r#""""#).len());
    let bodies = [
        whole(&nested(127)),
        whole(&format!("\"{filler}\"")),
        format!(r#"{{"payload": 1, "vendor": "sync", "tags": {tags}, "tenant": "{}"}}"#, "é".repeat(64)),
        r#"{"payload": 1, "vendor": "sync", "not_before": "0s", "deadline": "1ms"}"#.into(),
        r#"{"payload": 1, "vendor": "sync", "not_before": "1999-01-01T00:00:00Z"}"#.into(),
        r#"{"payload": 1, "vendor": "sync", "not_before": "2999-01-01T00:00:00.123456789+14:00"}"#.into(),
        r#"{"payload": 1, "vendor": "sync", "not_before": "36500d", "deadline": "36501d"}"#.into(),
        // Held at the end of time.
        r#"{"payload": 1, "vendor": "sync", "not_before": "9999999999d"}"#.into(),
        r#"{"payload": 1, "vendor": "sync", "deadline": "9999999999d"}"#.into(),
    ];
    for body in bodies {
        let id = app.submit_with(&body).await;
        // What was taken can be shown.
        app.find(&id).await;
    }
    app.stop().await;
}

async fn a_payload_without_what_the_vendors_url_needs_is_refused(backend: Backend) {
    let app = start(backend).await;
    let cases = [
        ("null", "/payload/region/id"),
        ("{}", "/payload/region/id"),
        (r#"{"region": {}, "text": ""}"#, "/payload/region/id"),
        (r#"{"region": {"id": null}, "text": ""}"#, "/payload/region/id"),
        (r#"{"region": {"id": {}}, "text": ""}"#, "/payload/region/id"),
        (r#"{"region": {"id": ""}, "text": ""}"#, "/payload/region/id"),
        (r#"{"region": {"id": ".."}, "text": ""}"#, "/payload/region/id"),
        (r#"{"region": {"id": "eu"}}"#, "/payload/text"),
        (r#"{"region": {"id": "eu"}, "text": ["a"]}"#, "/payload/text"),
    ];
    for (payload, pointer) in cases {
        let body = format!(r#"{{"payload": {payload}, "vendor": "shaped"}}"#);
        let answer = app.post("/jobs", body.clone()).await;
        assert_refused(&answer, 422, "invalid_field", &body);
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    let long =
        format!(r#"{{"payload": {{"region": {{"id": "eu"}}, "text": "{}"}}, "vendor": "shaped"}}"#, "x".repeat(9000));
    let answer = app.post("/jobs", long).await;
    assert_refused(&answer, 422, "invalid_field", "long");
    assert_eq!(answer.json()["errors"][0]["pointer"], "/payload/text");
    end(app).await;
}

async fn a_body_that_is_too_large_is_refused_and_the_caller_can_read_why(backend: Backend) {
    let app = start(backend).await;
    let start = r#"{"vendor": "sync", "payload": ""#;
    let body = format!("{start}{}\"}}", "x".repeat(2 * MIB - start.len() - 1));
    assert_eq!(body.len(), 2 * MIB + 1);
    assert_refused(&app.post("/jobs", body).await, 413, "body_too_large", "one byte more");
    for size in [3 * MIB, 10 * MIB] {
        assert_refused(&app.post("/jobs", vec![b' '; size]).await, 413, "body_too_large", "with a length");
        let mut chunked = b"POST /jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..size / 65536 {
            chunked.extend(b"10000\r\n");
            chunked.extend([b' '; 65536]);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        let answer = app.send_bytes(&chunked).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains(r#""code":"body_too_large""#), "{answer}");
        // Whatever it is refused for.
        let answer = app.send(Method::POST, "/jobs", &[], vec![b' '; size]).await;
        assert_refused(&answer, 415, "unsupported_media_type", "no content type");
        let answer = app.post("/nowhere", vec![b' '; size]).await;
        assert_refused(&answer, 404, "not_found", "unknown path");
    }
    // Who asks first is not made to send it.
    let asks = format!(
        "POST /jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        3 * MIB
    );
    let answer = app.send_bytes(asks.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    end(app).await;
}

async fn a_body_has_to_say_that_it_is_json(backend: Backend) {
    let app = start(backend).await;
    let good = r#"{"payload": 1, "vendor": "sync"}"#;
    let wrong = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "json",
        "",
        "application/jsonp",
        "text/json",
    ];
    for path in ["/jobs", "/jobs/batch"] {
        for media_type in wrong {
            let answer = app.send(Method::POST, path, &[("content-type", media_type)], good).await;
            assert_refused(&answer, 415, "unsupported_media_type", media_type);
        }
        let answer = app.send(Method::POST, path, &[], good).await;
        assert_refused(&answer, 415, "unsupported_media_type", "none");
    }
    let answer = app.send(Method::POST, "/jobs", &[("content-type", "application/x-ndjson")], good).await;
    assert_refused(&answer, 415, "unsupported_media_type", "lines are for batches");
    assert_eq!(app.get("/jobs").await.json()["jobs"], json!([]));
    for media_type in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.acme+json"] {
        let answer = app.send(Method::POST, "/jobs", &[("content-type", media_type)], good).await;
        assert_eq!(answer.status, 202, "{media_type}");
    }
    app.stop().await;
}

async fn a_wrong_method_gets_the_allowed_ones(backend: Backend) {
    let app = start(backend).await;
    let cases = [
        ("/jobs", "DELETE", "GET,HEAD,POST"),
        ("/jobs", "PUT", "GET,HEAD,POST"),
        ("/jobs/batch", "PUT", "GET,HEAD,POST"),
        ("/jobs/01a203e8-3838-7a3c-9f21-5b7e0c4d8a16", "PUT", "DELETE,GET,HEAD"),
        ("/jobs/x/attempts", "POST", "GET,HEAD"),
        ("/jobs/x/cancel", "GET", "POST"),
        ("/jobs/x/replay", "PATCH", "POST"),
        ("/vendors", "POST", "GET,HEAD"),
        ("/vendors/sync", "PUT", "GET,HEAD"),
        ("/vendors/sync/pause", "GET", "POST"),
        ("/vendors/sync/resume", "DELETE", "POST"),
        ("/vendor-webhook/sync", "PUT", "GET,HEAD,POST"),
        ("/vendor-webhook/async/x", "PUT", "GET,HEAD,POST"),
        ("/metrics", "POST", "GET,HEAD"),
        ("/health", "POST", "GET,HEAD"),
        ("/openapi.json", "POST", "GET,HEAD"),
        ("/docs", "POST", "GET,HEAD"),
        ("/", "POST", "GET,HEAD"),
    ];
    for (path, method, allowed) in cases {
        let answer = app.send(method.parse().unwrap(), path, &[JSON], r#"{"payload": 1, "vendor": "sync"}"#).await;
        assert_refused(&answer, 405, "method_not_allowed", path);
        let mut allow: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        // `batch` is in the place of an id too, and no job's.
        let allowed = if path == "/jobs/batch" { "POST" } else { allowed };
        assert_eq!(allow.join(","), allowed, "{method} {path}");
    }
    end(app).await;
}

async fn there_is_nothing_at_other_paths(backend: Backend) {
    let app = start(backend).await;
    for path in [
        "/nope",
        "/jobs/",
        "//jobs",
        "/jobs/x/y",
        "/jobs/x/cancel/z",
        "/job",
        "/Jobs",
        "/vendors/",
        "/vendors/sync/limit",
        "/vendor-webhook",
        "/vendor-webhook/",
        "/vendor-webhook/a/b/c",
        "/docs/../etc/passwd",
        "/%00",
        "/jobs%2Fbatch",
        "/docs/files/nope.js",
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = app.send_unchecked(method.clone(), path, &[JSON], r#"{"payload": 1, "vendor": "sync"}"#).await;
            assert!(matches!(answer.status.as_u16(), 404 | 405), "{method} {path} {}", answer.text);
            assert!(["not_found", "method_not_allowed"].contains(&&*answer.code()), "{method} {path} {}", answer.text);
        }
    }
    end(app).await;
}

async fn an_id_that_is_none_is_not_found_anywhere(backend: Backend) {
    let app = start(backend).await;
    let ids = [
        "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16",
        "00000000-0000-0000-0000-000000000000",
        "01a203e838387a3c9f215b7e0c4d8a16",
        "{01a203e8-3838-7a3c-9f21-5b7e0c4d8a16}",
        "4711",
        "x",
        "null",
        "%20",
        "%27%20OR%201=1",
        &"9".repeat(5000),
    ];
    for id in ids {
        for (method, path) in [
            ("GET", ""),
            ("GET", "?include=payload&wait=1s"),
            ("GET", "/attempts"),
            ("POST", "/cancel"),
            ("POST", "/replay"),
        ] {
            let path = format!("/jobs/{id}{path}");
            assert_refused(
                &app.send(method.parse().unwrap(), &path.replace(['{', '}'], "%7B"), &[], "").await,
                404,
                "unknown_job",
                &path,
            );
        }
    }
    for path in ["/jobs/%FF", "/jobs/%FF/attempts", "/vendors/%FF"] {
        assert_eq!(app.send_unchecked(Method::GET, path, &[], "").await.status, 404, "{path}");
    }
    end(app).await;
}

async fn a_wrong_parameter_is_named(backend: Backend) {
    let app = start(backend).await;
    let id = "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16";
    let lists = [
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1&limit=2",
        "status=done",
        "status=",
        "status=COMPLETE",
        "created_after=yesterday",
        "created_before=5m",
        "created_after=",
        "created_after=2027-02-03T00:00:00Z[nonsense]",
        "created_after=0000-01-01T00:00:00%2B05:30",
        "vendor=",
        "tenant=",
        "tag=",
        "tag=a&tag=b",
        "stauts=failed",
        "offset=10",
        "status=failed&status=failed",
        "&x",
        "%00=1",
    ];
    let jobs = [
        "wait=abc",
        "wait=30",
        "wait=-1s",
        "wait=",
        "wait=1s&wait=1s",
        "include=all",
        "include=",
        "include=payload&include=payload",
        "x=1",
    ];
    let mut cases: Vec<(Method, String)> = lists.iter().map(|query| (Method::GET, format!("/jobs?{query}"))).collect();
    cases.extend(jobs.iter().map(|query| (Method::GET, format!("/jobs/{id}?{query}"))));
    cases.extend([
        (Method::POST, "/jobs?wait=5s".into()),
        (Method::POST, "/jobs/batch?x=1".into()),
        (Method::GET, "/vendors?name=sync".into()),
    ]);
    for (method, path) in cases {
        let answer = app.send(method, &path, &[JSON], r#"{"payload": 1, "vendor": "sync"}"#).await;
        assert_refused(&answer, 422, "invalid_parameter", &path);
        let name = path.split_once('?').unwrap().1.trim_start_matches('&').split(['=', '&']).next().unwrap();
        assert!(
            name.contains('%') || answer.json()["detail"].as_str().unwrap().contains(name),
            "{path} {}",
            answer.text
        );
    }
    for cursor in ["x", "", "AAAA", id, "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAA%3D", "%FF"] {
        let path = format!("/jobs?cursor={cursor}");
        assert_refused(&app.get(&path).await, 422, "invalid_cursor", &path);
    }
    end(app).await;
}

async fn a_batch_beyond_its_bounds_is_refused_as_a_whole(backend: Backend) {
    let app = start(backend).await;
    let good = r#"{"payload":1,"vendor":"sync"}"#;
    let large = format!(r#"{{"payload":"{}","vendor":"sync"}}"#, "x".repeat(2 * MIB));
    let lines = [("content-type", "application/x-ndjson")];
    let cases = [
        ("10,001 jobs", &JSON, format!("[{}]", vec![good; 10_001].join(","))),
        ("10,001 lines", &lines[0], vec![good; 10_001].join("\n")),
        ("one large job", &JSON, format!("[{good},{large}]")),
        ("one large line", &lines[0], format!("{good}\n{large}\n{good}")),
        ("one that never ends", &JSON, format!("[{good},\"{}", "x".repeat(3 * MIB))),
    ];
    for (what, media_type, body) in cases {
        let answer = app.send(Method::POST, "/jobs/batch", &[*media_type], body).await;
        assert_refused(&answer, 413, "body_too_large", what);
    }
    // 64 MiB and a little more, in lines that are blank but for the first.
    let mut blank = format!("{good}\n").into_bytes();
    while blank.len() <= 64 * MIB {
        blank.resize(blank.len() + MIB, b' ');
        blank.push(b'\n');
    }
    let answer = app.send(Method::POST, "/jobs/batch", &lines, blank).await;
    assert_refused(&answer, 413, "body_too_large", "64 MiB");
    // Good jobs before what spoils an array are not stored either.
    let deep = nested(129);
    for (body, code) in [
        (format!("[{good},{good}"), "malformed_json"),
        (format!("[{good},nope]"), "malformed_json"),
        (format!("[{good}] {good}"), "malformed_json"),
        (good.to_owned(), "malformed_json"),
        (format!("[{good},\u{1}]"), "malformed_json"),
    ] {
        assert_refused(&app.post("/jobs/batch", body.clone()).await, 400, code, &body);
    }
    let answer = app.post("/jobs/batch", format!("[{good},{deep}")).await;
    assert_refused(&answer, 400, "malformed_json", "an array that does not end");
    end(app).await;
}

async fn what_is_wrong_with_an_item_spoils_only_that(backend: Backend) {
    let app = start(backend).await;
    let deep = nested(129);
    let lines: [(&str, u16, &str); 8] = [
        ("{", 400, "malformed_json"),
        (&deep, 400, "too_deep"),
        ("1", 422, "invalid_field"),
        ("{}", 422, "invalid_field"),
        (r#"{"payload": 1, "vendor": "nobody"}"#, 422, "unknown_vendor"),
        (r#"{"payload": 1, "vendor": "sync", "callback_url": "x"}"#, 422, "invalid_field"),
        (r#"{"payload": {}, "vendor": "shaped"}"#, 422, "invalid_field"),
        (r#"{"payload": 1, "vendor": "sync", "x": 1}"#, 422, "invalid_field"),
    ];
    let body: Vec<&str> = lines.iter().map(|(line, ..)| *line).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let answer = app.send(Method::POST, "/jobs/batch", &headers, body.join("\n")).await;
    let batch = answer.json();
    assert_eq!((answer.status.as_u16(), &batch["accepted"], &batch["rejected"]), (202, &json!(0), &json!(8)));
    for ((line, status, code), item) in lines.iter().zip(batch["items"].as_array().unwrap()) {
        assert_eq!((&item["error"]["status"], &item["error"]["code"]), (&json!(status), &json!(code)), "{line}");
    }
    end(app).await;
}

async fn paths_without_parameters_take_none(backend: Backend) {
    let app = TestApp::start(backend).await;
    let id = app.submit("sync", "1").await;
    for (method, path) in [
        (Method::GET, format!("/jobs/{id}/attempts")),
        (Method::POST, format!("/jobs/{id}/cancel")),
        (Method::POST, format!("/jobs/{id}/replay")),
        (Method::GET, "/vendors/sync".into()),
        (Method::POST, "/vendors/sync/pause".into()),
        (Method::POST, "/vendors/sync/resume".into()),
    ] {
        let answer = app.send(method, &format!("{path}?dry_run=true"), &[], "").await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "invalid_parameter"), "{path}");
    }
    assert_eq!(app.status(&id).await, "pending");
    app.stop().await;
}
