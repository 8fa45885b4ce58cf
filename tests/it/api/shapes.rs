//! Callbacks in all the shapes that vendors send them: progress first, forms, gzip, GETs, many at once, challenges, for others than us.

use std::time::Duration;

use hyper::Method;
use mock_vendors::Answer as Reply;
use serde_json::{Value, json};

use super::once::call_that_hangs;
use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp, sign},
};

on_every_backend!(
    progress_callbacks_change_nothing_report_4,
    callbacks_are_forms_gzip_text_or_gets_report_11,
    a_get_is_a_callback_only_where_the_config_says_so,
    a_challenge_is_answered_where_the_config_has_one_report_14,
    what_is_for_no_job_of_ours_is_taken_where_the_config_says_so_report_17,
    one_callback_brings_many_events_report_23,
    a_callback_faster_than_the_reply_is_sent_again_report_30,
    an_empty_callback_says_something_only_if_done_fits_it,
    the_job_is_found_by_our_id_then_by_the_ticket_then_by_the_usual_id,
    a_ticket_without_anything_in_it_is_none,
    a_callback_during_a_call_leaves_that_call_on_record,
);

/// A vendor that accepts and says nothing, with these keys and this `webhook`.
fn quiet(name: &str, webhook: &str) -> String {
    format!(
        "[vendors.{name}]\nkind = \"webhook\"\nurl = \"VENDORS/async/{name}?never\"\nlimits = []\nwebhook = {{ {webhook} }}\n"
    )
}

async fn accepted(app: &mut TestApp, vendor: &str) -> (String, String) {
    let id = app.submit(vendor, "1").await;
    app.run_until_idle().await;
    let path = app.callback_path(vendor, app.calls(vendor) - 1);
    (id, path)
}

#[track_caller]
fn assert_taken(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), &*answer.text), (200, r#"{"status":"success"}"#));
}

async fn assert_result(app: &TestApp, id: &str, result: Value) {
    let job = app.find(id).await;
    assert_eq!((&job["status"], &job["result"]), (&json!("complete"), &result), "{job}");
}

async fn metric(app: &TestApp, vendor: &str, outcome: &str) -> String {
    let name = format!("fetchgate_callbacks_total{{vendor=\"{vendor}\",outcome=\"{outcome}\"}} ");
    let metrics = app.get("/metrics").await.text;
    metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{name}: {metrics}")).to_owned()
}

async fn progress_callbacks_change_nothing_report_4(backend: Backend) {
    let config =
        quiet("one", "verify = \"none\", result = \"/output\", done = { at = \"/status\", is = [\"succeeded\"] }")
            + "failed = { at = \"/status\", is = [\"failed\", \"canceled\"] }\n";
    let mut app = TestApp::with(backend, &config).await;
    let (id, own) = accepted(&mut app, "one").await;
    let job = app.find(&id).await;
    for body in [
        r#"{"id":"p","status":"starting","output":null}"#,
        r#"{"id":"p","status":"processing","output":["half"]}"#,
        r#"{"id":"p"}"#,
        "\"text\"",
        "[]",
    ] {
        assert_taken(&app.post(&own, body).await);
        assert_eq!(app.find(&id).await, job, "{body}");
    }
    assert_eq!(metric(&app, "one", "progress").await, "5");
    assert_taken(&app.post(&own, r#"{"id":"p","status":"succeeded","output":["https://x"]}"#).await);
    assert_result(&app, &id, json!(["https://x"])).await;
    assert_taken(&app.post(&own, r#"{"id":"p","status":"processing"}"#).await);
    let (id, own) = accepted(&mut app, "one").await;
    assert_taken(&app.post(&own, r#"{"status":"canceled"}"#).await);
    assert_eq!(app.find(&id).await["error"]["code"], "vendor_refused");
    assert_eq!((app.calls("one"), metric(&app, "one", "accepted").await), (2, "2".to_owned()));
    app.stop().await;
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Headers and body of a callback, and what it is read as.
type Case<'a> = (&'a [(&'a str, &'a str)], Vec<u8>, Value);

async fn callbacks_are_forms_gzip_text_or_gets_report_11(backend: Backend) {
    let mut app = TestApp::with(backend, &quiet("one", "verify = \"none\", get = true")).await;
    let form = "application/x-www-form-urlencoded";
    let cases: [Case<'_>; 7] = [
        (
            &[("content-type", "application/json"), ("content-encoding", "gzip")],
            gzip(br#"{"tasks":[1]}"#),
            json!({"tasks": [1]}),
        ),
        (
            &[("content-type", form)],
            b"MessageStatus=delivered&MessageSid=SM1&n=1+%2B&n=2".to_vec(),
            json!({"MessageStatus": "delivered", "MessageSid": "SM1", "n": ["1 +", "2"]}),
        ),
        (&[("content-type", form), ("content-encoding", "gzip")], gzip(b"data=x%20y"), json!("x y")),
        (&[("content-type", "text/xml")], b"<ok/>".to_vec(), json!("<ok/>")),
        (&[("content-type", "application/json")], b"\xef\xbb\xbf{\"data\":1}".to_vec(), json!(1)),
        (&[("content-type", "text/plain; charset=latin1")], b"caf\xe9".to_vec(), json!("caf\u{e9}")),
        (&[], b"ready".to_vec(), json!("ready")),
    ];
    for (headers, body, wanted) in cases {
        let (id, own) = accepted(&mut app, "one").await;
        assert_taken(&app.send(Method::POST, &own, headers, body).await);
        assert_result(&app, &id, wanted).await;
    }
    let (id, own) = accepted(&mut app, "one").await;
    assert_taken(&app.send(Method::GET, &format!("{own}?id=123&tag=a%20b&tag=c"), &[], "").await);
    assert_result(&app, &id, json!({"id": "123", "tag": ["a b", "c"]})).await;
    let (id, own) = accepted(&mut app, "one").await;
    let bomb = gzip(&vec![b' '; (8 << 20) + 1]);
    assert_eq!(app.send(Method::POST, &own, &[("content-encoding", "gzip")], bomb).await.code(), "body_too_large");
    let brotli = app.send(Method::POST, &own, &[("content-encoding", "br")], "x").await;
    assert_eq!((brotli.status.as_u16(), &*brotli.code()), (415, "unsupported_media_type"));
    assert_eq!(app.status(&id).await, "processing");
    assert_eq!(metric(&app, "one", "unreadable").await, "2");
    app.stop().await;
}

async fn a_get_is_a_callback_only_where_the_config_says_so(backend: Backend) {
    let config = quiet("one", "verify = \"none\"") + &quiet("two", "verify = \"none\", get = true");
    let mut app = TestApp::with(backend, &config).await;
    for (vendor, allowed) in [("one", "POST"), ("two", "GET, POST")] {
        let (id, own) = accepted(&mut app, vendor).await;
        let shared = format!("/vendor-webhook/{vendor}");
        for path in [format!("{own}?data=1"), format!("{shared}?request_id={id}&data=1")] {
            if vendor == "one" {
                let answer = app.send(Method::GET, &path, &[], "").await;
                assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, allowed), "{path}");
                assert_eq!(answer.code(), "method_not_allowed");
            }
            let head = app.send_unchecked(Method::HEAD, &path, &[], "").await;
            assert_eq!((head.status.as_u16(), head.header("allow")), (405, allowed), "{path}");
        }
        assert_eq!(app.status(&id).await, "processing", "{vendor}");
        let ping = app.send(Method::GET, &own, &[], "").await;
        assert_eq!(ping.status, if vendor == "one" { 405 } else { 200 });
        assert_eq!(app.status(&id).await, "processing", "an empty query says nothing");
    }
    let (id, _) = accepted(&mut app, "two").await;
    let path = format!("/vendor-webhook/two?request_id={id}&data=x");
    assert_taken(&app.send(Method::GET, &path, &[], "").await);
    assert_result(&app, &id, json!("x")).await;
    app.stop().await;
}

async fn a_challenge_is_answered_where_the_config_has_one_report_14(backend: Backend) {
    const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
    let config = [
        quiet("slack", &format!("verify = \"slack\", secret = \"{SECRET}\", challenge = \"slack\"")),
        quiet("graph", "verify = \"none\", challenge = \"graph\""),
        quiet("hub", "verify = \"github\", secret = \"s\", challenge = { hub = [\"new\", \"old\"] }"),
        quiet("none", "verify = \"none\", get = true"),
    ];
    let mut app = TestApp::with(backend, &config.concat()).await;
    #[track_caller]
    fn assert_text(answer: &Answer, text: &str) {
        assert_eq!((answer.status.as_u16(), &*answer.text), (200, text));
        let (kind, sniff) = (answer.header("content-type"), answer.header("x-content-type-options"));
        assert_eq!((kind, sniff), ("text/plain; charset=utf-8", "nosniff"));
    }
    let slack = async |secret: &str, challenge: &str| {
        let body = json!({"token": "t", "challenge": challenge, "type": "url_verification"}).to_string();
        let headers = sign::slack(secret, app.clock.now(), body.as_bytes());
        let mut headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.push(("content-type", "application/json"));
        app.send(Method::POST, "/vendor-webhook/slack", &headers, body.clone()).await
    };
    assert_text(&slack(SECRET, "3eZ <b>brw1</b>").await, "3eZ <b>brw1</b>");
    assert_eq!(slack("another", "3eZ").await.code(), "bad_signature");
    assert_text(&slack(SECRET, &"x".repeat(1024)).await, &"x".repeat(1024));
    assert_eq!(slack(SECRET, &"x".repeat(1025)).await.code(), "body_too_large");

    let graph = "?validationToken=Validation%3A+Testing%20%3Cscript%3E";
    assert_text(&app.post(&format!("/vendor-webhook/graph{graph}"), "").await, "Validation: Testing <script>");
    let (id, own) = accepted(&mut app, "graph").await;
    assert_text(&app.post(&format!("{own}{graph}"), "").await, "Validation: Testing <script>");
    assert_eq!(app.status(&id).await, "processing");
    let forged = format!("{}x{graph}", &own[..own.len() - 1]);
    assert_eq!(app.post(&forged, "").await.code(), "bad_signature");

    let hub = async |token: &str| {
        let path = format!("/vendor-webhook/hub?hub.mode=subscribe&hub.challenge=115&hub.verify_token={token}");
        app.send(Method::GET, &path, &[], "").await
    };
    assert_text(&hub("new").await, "115");
    assert_text(&hub("old").await, "115");
    for wrong in ["", "ne", "newer"] {
        assert_eq!(hub(wrong).await.code(), "bad_signature", "{wrong}");
    }
    assert_eq!(app.send(Method::GET, "/vendor-webhook/hub?x=1", &[], "").await.status, 405);
    assert_eq!(app.post("/vendor-webhook/hub?hub.challenge=115&hub.verify_token=new", "{}").await.status, 401);

    for (method, query) in [(Method::POST, graph), (Method::GET, "?hub.challenge=115&hub.verify_token=new")] {
        let answer = app.send(method, &format!("/vendor-webhook/none{query}"), &[], "").await;
        assert!(!answer.text.contains("Validation") && !answer.text.contains("115"), "{}", answer.text);
    }
    let body = r#"{"challenge":"3eZ","type":"url_verification"}"#;
    assert!(!app.post("/vendor-webhook/none", body).await.text.contains("3eZ"));
    assert_eq!(metric(&app, "graph", "challenge").await, "2");
    app.stop().await;
}

async fn what_is_for_no_job_of_ours_is_taken_where_the_config_says_so_report_17(backend: Backend) {
    let config = [
        quiet("strict", "verify = \"github\", secret = \"s\""),
        quiet("open", "verify = \"github\", secret = \"s\", unknown = \"accept\""),
    ];
    let mut app = TestApp::with(backend, &config.concat()).await;
    let (others, _) = accepted(&mut app, "strict").await;
    let bodies = [
        r#"{"request_id":"01a203e8-3838-7a3c-9f21-5b7e0c4d8a16","result":1}"#.to_owned(),
        r#"{"request_id":"an order of somebody else","result":1}"#.to_owned(),
        format!(r#"{{"request_id":"{others}","result":1}}"#),
        r#"{"zen":"Keep it logically awesome."}"#.to_owned(),
    ];
    let send = async |vendor: &str, secret: &str, body: &str| {
        let signature = sign::github(secret, body.as_bytes()).remove(0).1;
        let headers = [("x-hub-signature-256", &*signature), ("content-type", "application/json")];
        app.send(Method::POST, &format!("/vendor-webhook/{vendor}"), &headers, body.to_owned()).await
    };
    for body in &bodies {
        let refused = send("strict", "s", body).await.status.as_u16();
        // Its own job is found.
        let wanted = if body.contains(&others) {
            200
        } else if body.contains("zen") {
            400
        } else {
            404
        };
        assert_eq!(refused, wanted, "{body}");
        assert_taken(&send("open", "s", body).await);
        assert_eq!(send("open", "forged", body).await.code(), "bad_signature", "{body}");
    }
    assert_result(&app, &others, json!(1)).await;
    assert_eq!(
        (metric(&app, "open", "unknown").await, metric(&app, "open", "refused").await),
        ("4".into(), "4".into())
    );
    assert_eq!(metric(&app, "open", "accepted").await, "0");
    app.stop().await;
}

async fn one_callback_brings_many_events_report_23(backend: Backend) {
    let config = [
        quiet("whole", "verify = \"none\", events = \"\", done = { at = \"/event\", is = [\"done\"] }"),
        quiet("inside", "verify = \"none\", events = \"/deliveries\", unknown = \"accept\""),
    ];
    let mut app = TestApp::with(backend, &config.concat()).await;
    let event = |id: &str, event: &str, n: u32| format!(r#"{{"request_id":"{id}","event":"{event}","result":{n}}}"#);
    let nobody = "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16";
    let (a, own) = accepted(&mut app, "whole").await;
    let (b, _) = accepted(&mut app, "whole").await;
    let (c, _) = accepted(&mut app, "whole").await;
    // The first one that ends a job decides; one that names nobody costs the others nothing, and the vendor hears of it.
    let events = [
        event(&a, "processed", 0),
        event(&b, "done", 2),
        event(nobody, "done", 3),
        event(&a, "done", 1),
        event(&a, "done", 9),
    ];
    let answer = app.post("/vendor-webhook/whole", format!("[{}]", events.join(","))).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (404, "unknown_job"));
    assert_result(&app, &a, json!(1)).await;
    assert_result(&app, &b, json!(2)).await;
    assert_eq!(app.status(&c).await, "processing");
    assert_taken(&app.post("/vendor-webhook/whole", "[]").await);
    // One event without an array around it is one, and so is an array on the URL of a job.
    assert_taken(&app.post("/vendor-webhook/whole", event(&c, "processed", 0)).await);
    assert_taken(&app.post(&own, r#"[{"event":"done","result":7}]"#).await);
    assert_result(&app, &a, json!(1)).await;
    assert_taken(&app.post("/vendor-webhook/whole", event(&c, "done", 3)).await);
    assert_result(&app, &c, json!(3)).await;

    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(app.submit("inside", "1").await);
    }
    app.run_until_idle().await;
    let mut events: Vec<String> = ids.iter().zip(0..).map(|(id, n)| event(id, "x", n)).collect();
    events.resize(1_001, event(nobody, "x", 0));
    let body = |events: &[String]| format!(r#"{{"n":1,"deliveries":[{}]}}"#, events.join(","));
    let too_many = app.post("/vendor-webhook/inside", body(&events)).await;
    assert_eq!((too_many.status.as_u16(), &*too_many.code()), (413, "body_too_large"));
    assert_eq!(app.status(&ids[0]).await, "processing");
    assert_taken(&app.post("/vendor-webhook/inside", body(&events[..1_000])).await);
    for (id, n) in ids.iter().zip(0..) {
        assert_result(&app, id, json!(n)).await;
    }
    assert_eq!(metric(&app, "inside", "accepted").await, "30");
    app.stop().await;
}

async fn a_callback_faster_than_the_reply_is_sent_again_report_30(backend: Backend) {
    for more in ["", "at_most_once = true\n"] {
        let config =
            quiet("one", "verify = \"none\", ticket = \"/id\", ticket_in_callback = \"/ref\", unknown = \"accept\"")
                + more;
        let mut app = TestApp::with(backend, &config).await;
        app.vendors.script("one", vec![Reply::json(202, r#"{"id": "t1"}"#).after(Duration::from_millis(300))]);
        let id = app.submit("one", "1").await;
        call_that_hangs(&mut app, "one").await;
        let callback = r#"{"ref": "t1", "result": 7}"#;
        let early = app.post("/vendor-webhook/one", callback).await;
        assert_eq!((early.status.as_u16(), early.header("retry-after")), (503, "1"), "{}", early.text);
        app.run_until_idle().await;
        // For ten seconds more a ticket that nobody knows may be one of a reply that is not stored yet.
        for (wait, status) in [(0, 503), (9_999, 503), (1, 200)] {
            app.clock.advance(Duration::from_millis(wait));
            let answer = app.post("/vendor-webhook/one", r#"{"ref": "t2", "result": 7}"#).await;
            assert_eq!(answer.status, status, "{wait}: {}", answer.text);
        }
        assert_taken(&app.post("/vendor-webhook/one", callback).await);
        assert_result(&app, &id, json!(7)).await;
        assert_eq!((app.calls("one"), metric(&app, "one", "early").await), (1, "3".to_owned()), "{more}");
        app.stop().await;
    }
}

async fn an_empty_callback_says_something_only_if_done_fits_it(backend: Backend) {
    let config = [
        quiet("ping", "verify = \"none\", get = true"),
        quiet("ready", "get = true, done = { at = \"\", exists = false }"),
    ];
    let mut app = TestApp::with(backend, &config.concat()).await;
    let (id, own) = accepted(&mut app, "ping").await;
    for (method, path) in [(Method::POST, &*own), (Method::GET, &own), (Method::POST, "/vendor-webhook/ping")] {
        assert_taken(&app.send(method, path, &[("content-type", "application/json")], "").await);
        assert_eq!(app.status(&id).await, "processing");
    }
    assert_eq!(metric(&app, "ping", "empty").await, "3");
    for method in [Method::POST, Method::GET] {
        let (id, own) = accepted(&mut app, "ready").await;
        assert_taken(&app.send(Method::POST, &own, &[("content-type", "application/json")], "{\"a\":1}").await);
        assert_eq!(app.status(&id).await, "processing");
        assert_taken(&app.send(method, &own, &[], "").await);
        assert_result(&app, &id, Value::Null).await;
    }
    app.stop().await;
}

async fn the_job_is_found_by_our_id_then_by_the_ticket_then_by_the_usual_id(backend: Backend) {
    let config = [
        quiet("both", "verify = \"none\", request_id = \"/ref\", ticket = \"/id\", ticket_in_callback = \"/report\""),
        quiet("ticket", "verify = \"none\", ticket = \"/id\""),
    ];
    let mut app = TestApp::with(backend, &config.concat()).await;
    for (vendor, n) in [("both", 3), ("ticket", 2)] {
        let mut ids = Vec::new();
        for i in 0..n {
            app.vendors.script(vendor, vec![Reply::json(202, format!(r#"{{"id": "t{i}"}}"#))]);
            ids.push(accepted(&mut app, vendor).await.0);
        }
        // Each names several jobs, and the first place that counts decides.
        let bodies = match vendor {
            "both" => vec![
                json!({"ref": ids[0], "report": "t1", "request_id": ids[2], "result": 0}),
                json!({"ref": null, "report": "t1", "request_id": ids[2], "result": 1}),
                json!({"report": null, "request_id": ids[2], "result": 2}),
            ],
            _ => {
                vec![json!({"id": "t0", "request_id": ids[1], "result": 0}), json!({"request_id": ids[1], "result": 1})]
            }
        };
        for (at, body) in bodies.iter().enumerate() {
            assert_taken(&app.post(&format!("/vendor-webhook/{vendor}"), body.to_string()).await);
            assert_result(&app, &ids[at], json!(at)).await;
            for later in &ids[at + 1..] {
                assert_eq!(app.status(later).await, "processing", "{body}");
            }
        }
    }
    app.stop().await;
}

/// Many jobs may have got the same nothing, and a callback with it is for none of them in particular.
async fn a_ticket_without_anything_in_it_is_none(backend: Backend) {
    let webhook = "verify = \"none\", ticket = \"/id\", ticket_in_callback = \"/report\"";
    let mut app = TestApp::with(backend, &quiet("one", webhook)).await;
    for nothing in ["\"\"", "null"] {
        app.vendors.script("one", vec![Reply::json(202, format!(r#"{{"id": {nothing}}}"#)); 2]);
        let (first, _) = accepted(&mut app, "one").await;
        let (second, _) = accepted(&mut app, "one").await;
        assert!(app.find(&first).await.get("ticket").is_none());
        for sent in [nothing, "\"null\""] {
            let answer = app.post("/vendor-webhook/one", format!(r#"{{"report": {sent}, "result": 0}}"#)).await;
            assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "missing_request_id"), "{sent}");
        }
        let body = format!(r#"{{"report": {nothing}, "request_id": "{first}", "result": 1}}"#);
        assert_taken(&app.post("/vendor-webhook/one", body).await);
        assert_result(&app, &first, json!(1)).await;
        assert_eq!(app.status(&second).await, "processing");
    }
    app.stop().await;
}

/// The job has ended when the call's own reply comes: what came of the call is kept all the same.
async fn a_callback_during_a_call_leaves_that_call_on_record(backend: Backend) {
    let config = quiet("one", "verify = \"none\"") + "failed = { at = \"/status\", is = [\"failed\"] }\n";
    let mut app = TestApp::with(backend, &config).await;
    for (status, becomes) in [("ok", "complete"), ("failed", "failed")] {
        app.vendors.script("one", vec![Reply::json(202, r#"{"id": "x"}"#).after(Duration::from_millis(300))]);
        let (id, calls) = (app.submit("one", "1").await, app.calls("one"));
        call_that_hangs(&mut app, "one").await;
        let path = app.callback_path("one", calls);
        assert_taken(&app.post(&path, format!(r#"{{"status":"{status}"}}"#)).await);
        app.run_for(Duration::from_millis(1)).await;
        let job = app.find(&id).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!(becomes), &json!(1)), "{job}");
        let record = app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"].clone();
        assert_eq!(record.as_array().map(Vec::len), Some(1), "{status}: {record}");
        assert_eq!((&record[0]["n"], &record[0]["outcome"]), (&json!(1), &json!("accepted")), "{status}: {record}");
    }
    app.stop().await;
}
