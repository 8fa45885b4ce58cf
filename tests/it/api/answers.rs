//! Whatever a vendor does, its job ends, with the status and the code that the contract names.

use std::time::Duration;

use mock_vendors::{Answer, Fault};
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    what_no_other_attempt_would_change_ends_the_job_at_once,
    what_another_attempt_may_change_is_tried_again,
    broken_connections_are_tried_until_the_attempts_are_used_up,
    a_vendor_that_hangs_times_out,
    a_redirect_is_not_followed,
    nobody_listening_is_tried_until_the_attempts_are_used_up,
    busy_with_a_wait_does_not_count_and_the_wait_is_kept,
    a_retry_after_date_is_read_against_the_vendors_own_clock,
    a_503_counts_with_a_wait_or_without,
    little_that_is_left_is_spread_for_the_whole_pool,
    a_429_although_every_limit_was_kept_is_counted,
    a_reported_failure_ends_a_job_of_every_kind,
    a_polling_vendor_must_give_a_ticket,
    bounds_hold_for_what_is_kept,
    a_ticket_is_bounded,
    a_poll_that_is_done_must_have_the_result,
    a_failed_poll_is_asked_again_and_a_refused_one_is_not,
    work_that_is_never_done_counts_as_no_answer_and_is_tried_again,
);

const ONE: &str = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = []
breaker = false
retry = { attempts = 5, first = "200ms", max = "1m" }
"#;

/// A job of vendor `one` after these answers, which must end it.
async fn job_after(app: &mut TestApp, answers: Vec<Answer>) -> Value {
    let (before, wanted) = (app.calls("one"), answers.len());
    app.vendors.script("one", answers);
    let id = app.submit("one", "1").await;
    end(app).await;
    assert_eq!(app.calls("one") - before, wanted, "every answer was used, and none more was asked for");
    app.find(&id).await
}

/// Works until nothing is left to do; a hang fails the test.
async fn end(app: &mut TestApp) {
    tokio::time::timeout(Duration::from_secs(60), app.run_until_idle()).await.expect("nothing hangs");
}

#[track_caller]
fn assert_failed(job: &Value, code: &str, attempts: u64) {
    assert_eq!(
        (&job["status"], &job["error"]["code"], &job["attempts"]),
        (&json!("failed"), &json!(code), &json!(attempts)),
        "{job}"
    );
    assert!(job.get("result").is_none() && job["finished_at"].is_string(), "{job}");
}

async fn what_no_other_attempt_would_change_ends_the_job_at_once(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for status in [300, 301, 304, 400, 402, 403, 404, 405, 409, 410, 413, 422, 451, 499] {
        let job = job_after(&mut app, vec![Answer::status(status)]).await;
        assert_failed(&job, "vendor_refused", 1);
        assert!(job["error"]["message"].as_str().unwrap().contains(&status.to_string()), "{job}");
    }
    let cases = [
        (Fault::NotUtf8, "bad_response"),
        (Fault::Deep, "bad_response"),
        (Fault::Big { size: 20_000_000 }, "response_too_large"),
    ];
    for (fault, code) in cases {
        assert_failed(&job_after(&mut app, vec![Answer::fault(fault)]).await, code, 1);
    }
    // The largest that is kept, and one byte more.
    app.vendors.script("one", vec![Answer::fault(Fault::Big { size: 8 << 20 })]);
    let id = app.submit("one", "1").await;
    end(&mut app).await;
    let job = app.send_bytes(format!("GET /jobs/{id} HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert!(job.len() > 8 << 20 && job.contains(r#""status":"complete""#));
    let job = job_after(&mut app, vec![Answer::fault(Fault::Big { size: (8 << 20) + 1 })]).await;
    assert_failed(&job, "response_too_large", 1);
    app.stop().await;
}

async fn what_another_attempt_may_change_is_tried_again(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for status in [408, 425, 500, 501, 502, 503, 504, 599] {
        let job = job_after(&mut app, vec![Answer::status(status), Answer::json(200, "1")]).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(2)), "{status}: {job}");
        let job = job_after(&mut app, vec![Answer::status(status); 5]).await;
        assert_failed(&job, "attempts_exhausted", 5);
    }
    for status in [200, 201, 202, 204, 206] {
        let job = job_after(&mut app, vec![Answer::status(status)]).await;
        assert_eq!((&job["status"], &job["result"]), (&json!("complete"), &Value::Null), "{status}: {job}");
    }
    app.stop().await;
}

async fn broken_connections_are_tried_until_the_attempts_are_used_up(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for fault in [Fault::Truncate, Fault::Reset, Fault::BadHttp] {
        let job = job_after(&mut app, vec![Answer::fault(fault), Answer::json(200, "1")]).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(2)), "{fault:?}: {job}");
        let job = job_after(&mut app, vec![Answer::fault(fault); 5]).await;
        assert_failed(&job, "attempts_exhausted", 5);
    }
    app.stop().await;
}

async fn a_vendor_that_hangs_times_out(backend: Backend) {
    let mut app =
        TestApp::with(backend, &(ONE.replace("attempts = 5", "attempts = 2") + "timeout = \"100ms\"\n")).await;
    let job = job_after(&mut app, vec![Answer::hang(); 2]).await;
    assert_failed(&job, "timeout", 2);
    let attempts = app.get(&format!("/jobs/{}/attempts", job["request_id"].as_str().unwrap())).await.json();
    for attempt in attempts["attempts"].as_array().unwrap() {
        assert_eq!((&attempt["outcome"], &attempt["status"]), (&json!("timeout"), &Value::Null), "{attempt}");
        assert!((100..5000).contains(&attempt["latency_ms"].as_u64().unwrap()), "{attempt}");
    }
    app.stop().await;
}

async fn little_that_is_left_is_spread_for_the_whole_pool(backend: Backend) {
    let config = ONE.replace("[]", "[\"100/s\"]") + "rate_headers = { remaining = \"X-Left\", reset = \"X-More\" }\n";
    for (left, more, least) in [("4", "2", 500), ("100", "1", 9)] {
        let mut app = TestApp::with(backend, &config).await;
        let answer = Answer::json(200, "1").header("x-left", left).header("x-more", more);
        app.vendors.script("one", vec![answer; 3]);
        let mut permits = Vec::new();
        for _ in 0..3 {
            let id = app.submit("one", "1").await;
            end(&mut app).await;
            let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
            let at: jiff::Timestamp = attempts["attempts"][0]["permit_at"].as_str().unwrap().parse().unwrap();
            permits.push(at.as_millisecond());
        }
        for two in permits.windows(2) {
            assert!((least..least + 20).contains(&(two[1] - two[0])), "{left} in {more} s: {permits:?}");
        }
        app.stop().await;
    }
}

async fn a_429_although_every_limit_was_kept_is_counted(backend: Backend) {
    let mut app = TestApp::with(backend, &ONE.replace("[]", "[\"100/s\"]")).await;
    job_after(&mut app, vec![Answer::status(429), Answer::json(200, "1")]).await;
    let metrics = app.send_unchecked(hyper::Method::GET, "/metrics", &[], "").await.text;
    let line = "fetchgate_vendor_throttled_unexplained_total{vendor=\"one\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    app.stop().await;
}

async fn a_redirect_is_not_followed(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let job = job_after(&mut app, vec![Answer::fault(Fault::Redirect)]).await;
    assert_failed(&job, "vendor_refused", 1);
    assert_eq!(app.calls("redirected"), 0);
    app.stop().await;
}

async fn nobody_listening_is_tried_until_the_attempts_are_used_up(backend: Backend) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let config = format!("[vendors.one]\nkind = \"sync\"\nurl = \"http://{closed}/\"\nlimits = []\n");
    let mut app = TestApp::with(backend, &config).await;
    let id = app.submit("one", "1").await;
    end(&mut app).await;
    assert_failed(&app.find(&id).await, "attempts_exhausted", 16);
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
    assert_eq!(attempts["attempts"][0]["sent_at"], Value::Null, "nothing was sent");
    app.stop().await;
}

async fn busy_with_a_wait_does_not_count_and_the_wait_is_kept(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let before = app.clock.now();
    let mut answers = vec![Answer::status(429).header("retry-after", "7"); 12];
    answers.push(Answer::json(200, "1"));
    let job = job_after(&mut app, answers).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(13)), "{job}");
    // Others go first: the job itself waits longer and longer.
    let took = app.clock.now().since(before);
    assert!(took >= Duration::from_secs(84) && took < Duration::from_secs(15 * 60), "{took:?}");
    app.stop().await;
}

async fn a_retry_after_date_is_read_against_the_vendors_own_clock(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    // Years from our clock: only the vendor's own counts.
    let date = |date: &str, after: &str| Answer::status(429).header("date", date).header("retry-after", after);
    let cases = [
        (date("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:07 GMT"), 30..31),
        (date("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:00 GMT"), 0..2),
    ];
    for (answer, wait_secs) in cases {
        let before = app.clock.now();
        let job = job_after(&mut app, vec![answer, Answer::json(200, "1")]).await;
        assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(2)), "{job}");
        let took = app.clock.now().since(before);
        assert!(wait_secs.contains(&took.as_secs()), "{took:?}");
    }
    app.stop().await;
}

async fn a_503_counts_with_a_wait_or_without(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for answer in [Answer::status(503), Answer::status(503).header("retry-after", "1")] {
        let job = job_after(&mut app, vec![answer; 5]).await;
        assert_failed(&job, "attempts_exhausted", 5);
    }
    app.stop().await;
}

async fn a_reported_failure_ends_a_job_of_every_kind(backend: Backend) {
    let config = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one?failed"
limits = []
failed = { at = "/status", is = ["error"] }
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?failed&callback_ms=0"
limits = []
failed = { at = "/status", is = ["error"] }
[vendors.poll]
kind = "polling"
url = "VENDORS/polling/poll?failed"
limits = []
polling = { ticket = "/id", url = "VENDORS/polling/poll/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }
failed = { at = "/state", is = ["error", 7] }
"#;
    let mut app = TestApp::with(backend, config).await;
    for (vendor, attempts) in [("one", 1), ("hook", 1), ("poll", 4)] {
        let id = app.submit(vendor, "1").await;
        end(&mut app).await;
        assert_failed(&app.find(&id).await, "vendor_refused", attempts);
    }
    assert_eq!(app.vendors.callback_replies("hook"), [200], "the vendor need not send it again");
    // In the reply to the submitting call, and as a number.
    app.vendors.script("hook", vec![Answer::json(202, r#"{"status": "error"}"#)]);
    app.vendors.script("poll", vec![Answer::json(202, r#"{"id": "x", "state": 7}"#)]);
    for vendor in ["hook", "poll"] {
        let id = app.submit(vendor, "1").await;
        end(&mut app).await;
        assert_failed(&app.find(&id).await, "vendor_refused", 1);
    }
    app.stop().await;
}

async fn a_polling_vendor_must_give_a_ticket(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    for body in ["{}", r#"{"id": null}"#, r#"{"id": ""}"#, "", "[]", "accepted"] {
        app.vendors.script("polling", vec![Answer::json(202, body)]);
        let id = app.submit("polling", "1").await;
        end(&mut app).await;
        assert_failed(&app.find(&id).await, "bad_response", 1);
    }
    app.stop().await;
}

async fn bounds_hold_for_what_is_kept(backend: Backend) {
    let text = format!("{ONE}clean = {{ redact = [\"/0\"] }}\n");
    let mut app = TestApp::with(backend, &text).await;
    // Text is kept as a JSON string, in which each of these takes six bytes.
    let job = job_after(&mut app, vec![Answer::status(200).body("\u{1}".repeat(2 << 20))]).await;
    assert_failed(&job, "response_too_large", 1);
    let job = job_after(&mut app, vec![Answer::status(200).body("\u{1}".repeat(1 << 20))]).await;
    assert_eq!((&job["status"], job["result"].as_str().map(str::len)), (&json!("complete"), Some(1 << 20)));
    // What is redacted is a little longer than what was there.
    let just_fits = format!("[0,\"{}\"]", "x".repeat((8 << 20) - 6));
    assert_failed(&job_after(&mut app, vec![Answer::json(200, just_fits)]).await, "response_too_large", 1);
    app.stop().await;
}

async fn a_ticket_is_bounded(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let ticket = |bytes: usize| Answer::json(200, json!({"id": "t".repeat(bytes)}).to_string());
    app.vendors.script("polling", vec![ticket(4097)]);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    let job = app.find(&id).await;
    assert_failed(&job, "bad_response", 1);
    assert!(job["error"]["message"].as_str().unwrap().contains("4096"), "{job}");
    app.vendors.script("polling", vec![ticket(4096), Answer::json(200, r#"{"state": "done", "output": 1}"#)]);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    assert_eq!(app.status(&id).await, "complete");
    app.stop().await;
}

async fn a_poll_that_is_done_must_have_the_result(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let accepted = Answer::json(202, r#"{"id": "t-1"}"#);
    app.vendors.script("polling", vec![accepted.clone(), Answer::json(200, r#"{"state": "done"}"#)]);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    assert_failed(&app.find(&id).await, "bad_response", 2);
    // Null is data.
    app.vendors.script("polling", vec![accepted, Answer::json(200, r#"{"state": "done", "output": null}"#)]);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], job.get("result")), (&json!("complete"), Some(&Value::Null)));
    app.stop().await;
}

async fn a_failed_poll_is_asked_again_and_a_refused_one_is_not(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let accepted = Answer::json(202, r#"{"id": "t-1"}"#);
    let mut answers = vec![accepted.clone()];
    answers.extend(vec![Answer::status(500); 9]);
    answers.push(Answer::fault(Fault::Reset));
    answers.push(Answer::status(429).header("retry-after", "1"));
    answers.push(Answer::json(200, r#"{"state": "done", "output": 1}"#));
    app.vendors.script("polling", answers);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(13)), "{job}");
    app.vendors.script("polling", vec![accepted, Answer::status(410)]);
    let id = app.submit("polling", "1").await;
    end(&mut app).await;
    assert_failed(&app.find(&id).await, "vendor_refused", 2);
    app.stop().await;
}

async fn work_that_is_never_done_counts_as_no_answer_and_is_tried_again(backend: Backend) {
    let config = r#"
[vendors.slow]
kind = "polling"
url = "VENDORS/polling/slow?polls=1000000"
limits = []
answer_within = "10s"
retry = { attempts = 2 }
polling = { ticket = "/id", url = "VENDORS/polling/slow/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }
"#;
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("slow", "1").await;
    app.live_for(Duration::from_secs(60)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("no_answer")), "{job}");
    let arrivals = app.vendors.arrivals("slow");
    let submits: Vec<_> = arrivals.iter().filter(|call| call.method == "POST").collect();
    assert_eq!(submits.len(), 2);
    for submit in submits {
        assert_eq!(submit.header("idempotency-key"), Some(&*id), "the same work, so the vendor need not do it twice");
    }
    let asked = |ticket: &str| arrivals.iter().filter(|call| call.path_and_query.ends_with(ticket)).count();
    assert!((4..=5).contains(&asked("slow-1")) && (4..=5).contains(&asked("slow-2")), "{arrivals:?}");
    app.stop().await;
}
