//! Vendors call us: early, twice, late, wrong, forged or never.

use std::time::Duration;

use fetchgate::clock::Time;
use hyper::Method;
use mock_vendors::Answer;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, START, TestApp, sign},
};

on_every_backend!(
    a_callback_before_the_vendors_own_reply_is_taken,
    a_second_callback_changes_nothing,
    a_late_callback_is_welcomed_and_changes_nothing,
    a_forged_token_is_refused,
    a_token_is_good_for_one_vendor_only,
    a_callback_for_an_earlier_run_is_ignored,
    a_callback_for_a_cancelled_job_is_ignored,
    a_vendor_that_never_calls_back_is_called_again_and_then_given_up,
    a_callback_ends_a_job_that_waits_for_its_next_attempt,
    a_callback_ends_a_job_that_is_being_called_again,
    a_callback_can_report_a_failure,
    a_callback_that_means_unauthorized_is_an_attempt_that_failed,
    the_result_is_found_in_its_usual_places,
    a_configured_result_must_be_there,
    a_body_that_is_no_json_is_refused_and_the_job_waits_on,
    a_callback_that_grows_too_large_when_it_is_cleaned_ends_its_job,
    the_shared_url_is_off_unless_configured,
    the_shared_url_finds_the_job_by_our_id,
    the_shared_url_finds_the_job_by_the_vendors_ticket,
    the_shared_url_with_signatures_believes_only_those,
    no_more_than_open_jobs_are_with_the_vendor,
);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Vendors that accept and say nothing; the test calls back for them.
const QUIET: &str = r#"
[vendors.one]
kind = "webhook"
url = "VENDORS/async/one?never"
limits = []
[vendors.other]
kind = "webhook"
url = "VENDORS/async/other?never"
limits = []
webhook = { verify = "none" }
"#;

const ACCEPTED: &str = r#"{"status":"success"}"#;

/// A job that its vendor has accepted, and the path to call back on.
async fn accepted(app: &mut TestApp, vendor: &str) -> (String, String) {
    let id = app.submit(vendor, "1").await;
    app.run_until_idle().await;
    let path = app.callback_path(vendor, app.calls(vendor) - 1);
    (id, path)
}

async fn assert_awaits(app: &TestApp, id: &str) {
    let job = app.find(id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")), "{job}");
}

/// A callback that is believed.
async fn call_back(app: &TestApp, path: &str, body: &str) {
    let answer = app.post(path, body.to_owned()).await;
    assert_eq!((answer.status.as_u16(), &*answer.text), (200, ACCEPTED));
}

async fn assert_result(app: &TestApp, id: &str, result: Value) {
    let job = app.find(id).await;
    assert_eq!((&job["status"], &job["result"]), (&json!("complete"), &result), "{job}");
}

async fn a_callback_before_the_vendors_own_reply_is_taken(backend: Backend) {
    let config = "[vendors.one]\nkind = \"webhook\"\nurl = \"VENDORS/async/one?callback=early\"\nlimits = []\n";
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("one", r#"{"n": 1}"#).await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["result"]["echo"]), (&json!("complete"), &json!({"n": 1})), "{job}");
    assert_eq!((app.vendors.callback_replies("one"), app.calls("one")), (vec![200], 1));
    assert_eq!(job["attempts"], 1);
    // What came of the call is on record, though the job had ended before it.
    let record = app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"].clone();
    assert_eq!(
        (&record[0]["n"], &record[0]["outcome"], &record[0]["status"]),
        (&json!(1), &json!("accepted"), &json!(202))
    );
    app.stop().await;
}

async fn a_second_callback_changes_nothing(backend: Backend) {
    let config =
        "[vendors.one]\nkind = \"webhook\"\nurl = \"VENDORS/async/one?callback_ms=0&callback_times=5\"\nlimits = []\n";
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    assert_eq!(app.vendors.callback_replies("one"), [200; 5]);
    let job = app.find(&id).await;
    assert_eq!(job["status"], "complete");
    app.clock.advance(Duration::from_secs(1));
    call_back(&app, &app.callback_path("one", 0), r#"{"result": "another"}"#).await;
    assert_eq!(app.find(&id).await, job);
    app.stop().await;
}

async fn a_late_callback_is_welcomed_and_changes_nothing(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let body = r#"{"payload": 1, "vendor": "one", "deadline": "5s"}"#;
    let id = app.submit_with(body).await;
    app.run_until_idle().await;
    app.advance(Duration::from_secs(5)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("expired"), &json!("deadline")));
    app.clock.advance(Duration::from_secs(1));
    call_back(&app, &app.callback_path("one", 0), r#"{"result": 1}"#).await;
    assert_eq!(app.find(&id).await, job);
    // Long after, when nothing is left of the job.
    app.advance(Duration::from_secs(8 * 86_400)).await;
    assert_eq!(app.get(&format!("/jobs/{id}")).await.code(), "unknown_job");
    call_back(&app, &app.callback_path("one", 0), r#"{"result": 1}"#).await;
    app.stop().await;
}

async fn a_forged_token_is_refused(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let (id, path) = accepted(&mut app, "one").await;
    let (start, token) = path.rsplit_once('/').unwrap();
    let mut forged: Vec<String> = (0..token.len())
        .map(|at| {
            let other = if &token[at..=at] == "x" { "y" } else { "x" };
            format!("{}{other}{}", &token[..at], &token[at + 1..])
        })
        .collect();
    forged.extend([
        "x".into(),
        "A".repeat(48),
        format!("{token}A"),
        token[1..].into(),
        format!("{token}="),
        "%FF".into(),
    ]);
    for token in forged {
        let answer = app.send_unchecked(Method::POST, &format!("{start}/{token}"), &[], r#"{"result": 0}"#).await;
        let expected = if token == "%FF" { (404, "not_found") } else { (401, "bad_signature") };
        assert_eq!((answer.status.as_u16(), &*answer.code()), expected, "{token}");
    }
    assert_awaits(&app, &id).await;
    call_back(&app, &path, r#"{"result": 1}"#).await;
    assert_result(&app, &id, json!(1)).await;
    app.stop().await;
}

async fn a_token_is_good_for_one_vendor_only(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let (id, path) = accepted(&mut app, "one").await;
    for vendor in ["other", "nobody"] {
        let elsewhere = path.replace("/one/", &format!("/{vendor}/"));
        let answer = app.post(&elsewhere, r#"{"result": 0}"#).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (401, "bad_signature"));
    }
    assert_awaits(&app, &id).await;
    app.stop().await;
}

async fn a_callback_for_an_earlier_run_is_ignored(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let (id, earlier) = accepted(&mut app, "one").await;
    app.post(&format!("/jobs/{id}/cancel"), "").await;
    assert_eq!(app.post(&format!("/jobs/{id}/replay"), "").await.status, 202);
    call_back(&app, &earlier, r#"{"result": "of the earlier run"}"#).await;
    assert_eq!(app.status(&id).await, "pending");
    app.run_until_idle().await;
    call_back(&app, &earlier, r#"{"result": "of the earlier run"}"#).await;
    assert_awaits(&app, &id).await;
    let later = app.callback_path("one", 1);
    assert_ne!(earlier, later);
    call_back(&app, &later, r#"{"result": "of this run"}"#).await;
    assert_result(&app, &id, json!("of this run")).await;
    app.stop().await;
}

async fn a_callback_for_a_cancelled_job_is_ignored(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let (id, path) = accepted(&mut app, "one").await;
    app.post(&format!("/jobs/{id}/cancel"), "").await;
    let job = app.find(&id).await;
    app.clock.advance(Duration::from_secs(1));
    call_back(&app, &path, r#"{"result": 1}"#).await;
    assert_eq!((app.find(&id).await, &job["status"]), (job.clone(), &json!("cancelled")));
    app.stop().await;
}

async fn a_vendor_that_never_calls_back_is_called_again_and_then_given_up(backend: Backend) {
    let retry = "retry = { unanswered = 2, first = \"1d\", max = \"1d\" }";
    let config = format!("{QUIET}answer_within = \"10s\"\n{retry}\n");
    let mut app = TestApp::with(backend, &config).await;
    let (id, _) = accepted(&mut app, "other").await;
    app.advance(Duration::from_millis(9_999)).await;
    assert_awaits(&app, &id).await;
    app.advance(Duration::from_millis(1)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("pending"), &json!("retry_backoff")), "{job}");
    app.live_for(Duration::from_secs(3 * 86_400)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("no_answer")), "{job}");
    assert_eq!((&job["attempts"], app.calls("other")), (&json!(3), 3));
    let keys: Vec<_> =
        app.vendors.arrivals("other").iter().map(|call| call.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys, vec![id; 3], "the vendor can see that it is the same work");
    app.stop().await;
}

async fn a_callback_ends_a_job_that_waits_for_its_next_attempt(backend: Backend) {
    let config = QUIET.replacen("limits = []", "limits = []\nretry = { first = \"1d\", max = \"1d\" }", 1);
    let mut app = TestApp::with(backend, &config).await;
    // The vendor took the work, and only its answer went wrong.
    app.vendors.script("one", vec![Answer::status(500)]);
    let id = app.submit("one", "1").await;
    app.run_for(Duration::from_millis(1)).await;
    assert_eq!(app.find(&id).await["blocked_on"], "retry_backoff");
    call_back(&app, &app.callback_path("one", 0), r#"{"result": 1}"#).await;
    assert_result(&app, &id, json!(1)).await;
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 1);
    assert_result(&app, &id, json!(1)).await;
    app.stop().await;
}

async fn a_callback_ends_a_job_that_is_being_called_again(backend: Backend) {
    let config = "[vendors.one]\nkind = \"webhook\"\nlimits = []\nanswer_within = \"10s\"\nurl = \"VENDORS/async/one?callback=early&fail_first=2&accepted\"\n";
    let mut app = TestApp::with(backend, config).await;
    app.vendors.script("one", vec![Answer::json(202, "{}")]);
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    assert_awaits(&app, &id).await;
    app.advance(Duration::from_secs(10)).await;
    // The callback comes while the second call is in flight, which then fails.
    app.run_until_idle().await;
    assert_eq!((app.calls("one"), app.vendors.callback_replies("one")), (2, vec![200]));
    assert_eq!(app.status(&id).await, "complete");
    app.stop().await;
}

async fn a_callback_can_report_a_failure(backend: Backend) {
    let config = format!("{QUIET}failed = {{ at = \"/status\", is = [\"error\", false] }}\n");
    let mut app = TestApp::with(backend, &config).await;
    for body in [r#"{"status": "error", "result": 1}"#, r#"{"status": false}"#] {
        let (id, path) = accepted(&mut app, "other").await;
        call_back(&app, &path, body).await;
        let job = app.find(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("vendor_refused")), "{job}");
        call_back(&app, &path, r#"{"status": "done", "result": 1}"#).await;
        assert_eq!(app.find(&id).await, job);
    }
    app.stop().await;
}

async fn a_callback_that_means_unauthorized_is_an_attempt_that_failed(backend: Backend) {
    let rule = "retry = { attempts = 3, first = \"1s\" }\n\
                replies = [{ at = \"/code\", is = [\"AUTH\"], on = [\"callback\"], means = \"unauthorized\" }]\n";
    let mut app = TestApp::with(backend, &format!("{}{rule}", QUIET.split("[vendors.other]").next().unwrap())).await;
    let id = app.submit("one", "1").await;
    for call in 0..3 {
        app.run_for(Duration::from_secs(20)).await;
        assert_eq!(app.calls("one"), call + 1, "one order for each callback");
        assert_eq!(app.post(&app.callback_path("one", call), r#"{"code": "AUTH"}"#).await.status, 200);
    }
    app.run_for(Duration::from_secs(60)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["tries"], app.calls("one")), (&json!("failed"), &json!(3), 3), "{job}");
    app.stop().await;
}

async fn the_result_is_found_in_its_usual_places(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let cases = [
        (r#"{"data": 1, "result": 2, "final_result": 3}"#, json!(3)),
        (r#"{"data": 1, "result": 2}"#, json!(2)),
        (r#"{"data": 1, "else": 2}"#, json!(1)),
        (r#"{"else": 2}"#, json!({"else": 2})),
        (r#"{"final_result": null, "result": 2}"#, Value::Null),
        ("[1, 2]", json!([1, 2])),
        ("null", Value::Null),
        (r#" "text" "#, json!("text")),
    ];
    for (body, wanted) in cases {
        let (id, path) = accepted(&mut app, "one").await;
        call_back(&app, &path, body).await;
        assert_result(&app, &id, wanted).await;
    }
    app.stop().await;
}

async fn a_configured_result_must_be_there(backend: Backend) {
    let config = QUIET.replacen("limits = []", "limits = []\nwebhook = { result = \"/report/0\" }", 1);
    let mut app = TestApp::with(backend, &config).await;
    let (id, path) = accepted(&mut app, "one").await;
    call_back(&app, &path, r#"{"report": [{"a": 1}], "result": 2}"#).await;
    assert_result(&app, &id, json!({"a": 1})).await;
    let (id, path) = accepted(&mut app, "one").await;
    call_back(&app, &path, r#"{"result": 2}"#).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("bad_response")));
    app.stop().await;
}

async fn a_body_that_is_no_json_is_refused_and_the_job_waits_on(backend: Backend) {
    let mut app = TestApp::with(backend, QUIET).await;
    let (id, own) = accepted(&mut app, "other").await;
    let deep = |levels| "[".repeat(levels) + &"]".repeat(levels);
    let cases: [(Vec<u8>, u16, &str); 7] = [
        ("{".into(), 400, "malformed_json"),
        ("hello".into(), 400, "malformed_json"),
        ("1 2".into(), 400, "malformed_json"),
        (b"\"\xff\xfe\"".to_vec(), 400, "malformed_json"),
        (deep(129).into(), 400, "too_deep"),
        (deep(100_000).into(), 400, "too_deep"),
        (vec![b' '; (8 << 20) + 1], 413, "body_too_large"),
    ];
    for path in [&*own, "/vendor-webhook/other"] {
        for (body, status, code) in &cases {
            let answer = app.post(path, body.clone()).await;
            assert_eq!((answer.status.as_u16(), &*answer.code()), (*status, *code), "{path}");
        }
        // A ping says nothing of any job.
        assert_eq!(app.post(path, "").await.status, 200);
    }
    assert_awaits(&app, &id).await;
    // Large and deep is not wrong, up to the bounds.
    let large = format!(r#"{{"result": {:?}}}"#, "x".repeat(7 << 20));
    call_back(&app, &own, &large).await;
    let (id, own) = accepted(&mut app, "other").await;
    call_back(&app, &own, &deep(128)).await;
    assert_eq!(app.letters(&id, "result").await, deep(128));
    app.stop().await;
}

async fn a_callback_that_grows_too_large_when_it_is_cleaned_ends_its_job(backend: Backend) {
    let config = QUIET.replace("limits = []\n", "limits = []\nclean = { redact = [\"/0\"] }\n");
    let mut app = TestApp::with(backend, &config).await;
    let (id, path) = accepted(&mut app, "one").await;
    let body = format!("{{\"data\":[0,\"{}\"]}}", "x".repeat((8 << 20) - 15));
    assert_eq!(body.len(), 8 << 20, "the largest that is taken");
    call_back(&app, &path, &body).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("response_too_large")), "{job}");
}

async fn the_shared_url_is_off_unless_configured(backend: Backend) {
    let config = format!("{QUIET}[vendors.sync]\nkind = \"sync\"\nurl = \"VENDORS/sync\"\nlimits = []\n");
    let mut app = TestApp::with(backend, &config).await;
    let (id, _) = accepted(&mut app, "one").await;
    let body = format!(r#"{{"request_id": "{id}", "result": 1}}"#);
    for (vendor, status, code) in
        [("one", 403, "shared_webhook_off"), ("sync", 403, "shared_webhook_off"), ("nobody", 404, "unknown_vendor")]
    {
        let answer = app.post(&format!("/vendor-webhook/{vendor}"), body.clone()).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code));
    }
    assert_awaits(&app, &id).await;
    app.stop().await;
}

async fn the_shared_url_finds_the_job_by_our_id(backend: Backend) {
    let config = format!(
        "{QUIET}[vendors.third]\nkind = \"webhook\"\nurl = \"VENDORS/async/third?never\"\nlimits = []\nwebhook = {{ verify = \"none\", request_id = \"/ref/id\" }}\n"
    );
    let mut app = TestApp::with(backend, &config).await;
    let (others, _) = accepted(&mut app, "one").await;
    let (id, _) = accepted(&mut app, "other").await;
    let unknown = "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16";
    let cases = [
        (r#"{"result": 1}"#.to_owned(), 400, "missing_request_id"),
        (r#"{"request_id": null}"#.to_owned(), 400, "missing_request_id"),
        ("[]".to_owned(), 400, "missing_request_id"),
        (format!(r#"{{"request_id": "{unknown}"}}"#), 404, "unknown_job"),
        (r#"{"request_id": "4711"}"#.to_owned(), 404, "unknown_job"),
        (r#"{"request_id": 4711}"#.to_owned(), 404, "unknown_job"),
        (format!(r#"{{"request_id": "{others}", "result": 0}}"#), 404, "unknown_job"),
    ];
    for (body, status, code) in cases {
        let answer = app.post("/vendor-webhook/other", body.clone()).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{body}");
    }
    assert_awaits(&app, &others).await;
    assert_awaits(&app, &id).await;
    let body = format!(r#"{{"request_id": "{id}", "result": 1}}"#);
    call_back(&app, "/vendor-webhook/other", &body).await;
    assert_result(&app, &id, json!(1)).await;
    call_back(&app, "/vendor-webhook/other", &body.replace("1}", "2}")).await;
    assert_result(&app, &id, json!(1)).await;
    let (id, _) = accepted(&mut app, "third").await;
    call_back(&app, "/vendor-webhook/third", &format!(r#"{{"ref": {{"id": "{id}"}}, "data": 3}}"#)).await;
    assert_result(&app, &id, json!(3)).await;
    app.stop().await;
}

async fn the_shared_url_finds_the_job_by_the_vendors_ticket(backend: Backend) {
    let webhook = "webhook = { verify = \"none\", ticket = \"/id\", ticket_in_callback = \"/report_id\" }";
    let config = QUIET.replace("webhook = { verify = \"none\" }", webhook);
    let mut app = TestApp::with(backend, &config).await;
    for (ticket, in_reply) in [(r#""T-1""#, r#""T-1""#), ("4711", "4711"), (r#""\u00e9""#, r#""é""#)] {
        app.vendors.script("other", vec![Answer::json(202, format!(r#"{{"id": {in_reply}}}"#))]);
        let (id, _) = accepted(&mut app, "other").await;
        // Until then the ticket could be one that is not stored yet.
        app.clock.advance(Duration::from_secs(10));
        let wrong = app.post("/vendor-webhook/other", r#"{"report_id": "T-9", "result": 0}"#).await;
        assert_eq!((wrong.status.as_u16(), &*wrong.code()), (404, "unknown_job"));
        let none = app.post("/vendor-webhook/other", r#"{"id": "T-1", "result": 0}"#).await;
        assert_eq!((none.status.as_u16(), &*none.code()), (400, "missing_request_id"));
        let body = format!(r#"{{"report_id": {ticket}, "result": 1}}"#);
        call_back(&app, "/vendor-webhook/other", &body).await;
        assert_result(&app, &id, json!(1)).await;
        call_back(&app, "/vendor-webhook/other", &body).await;
    }
    app.stop().await;
}

async fn the_shared_url_with_signatures_believes_only_those(backend: Backend) {
    let webhook = format!("webhook = {{ verify = \"standard-webhooks\", secret = \"{SECRET}\" }}");
    let config = QUIET.replace("webhook = { verify = \"none\" }", &webhook);
    let mut app = TestApp::with(backend, &config).await;
    let (id, own) = accepted(&mut app, "other").await;
    let body = format!(r#"{{"request_id": "{id}", "result": 1}}"#);
    let (good, wrong) = (SECRET, "whsec_c29tZSBvdGhlciBzZWNyZXQgb2YgMjQ=");
    let send = async |secret: &str, signed: &str, sent: &str, at: Time, without: &str| {
        let signed = sign::standard(sign::WEBHOOK, secret, at, signed.as_bytes());
        let headers = signed.iter().filter(|(name, _)| *name != without);
        let headers: Vec<(&str, &str)> = headers.map(|(name, value)| (*name, value.as_str())).collect();
        let answer = app.send(Method::POST, "/vendor-webhook/other", &headers, sent.to_owned()).await;
        if answer.status == 200 {
            "success".to_owned()
        } else {
            format!("{} {}", answer.status.as_u16(), answer.code())
        }
    };
    let (old, early) = (Time(START.0 - 301_000), Time(START.0 + 302_000));
    let refused = "401 bad_signature";
    assert_eq!(send(wrong, &body, &body, START, "").await, refused);
    assert_eq!(send(good, &body, &body.replace('1', "2"), START, "").await, refused);
    assert_eq!(send(good, &body, &body, old, "").await, refused);
    assert_eq!(send(good, &body, &body, early, "").await, refused);
    for header in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        assert_eq!(send(good, &body, &body, START, header).await, refused);
    }
    // Who is not believed learns nothing: neither what is wrong with the body nor which jobs there are.
    assert_eq!(send(wrong, "{", "{", START, "").await, refused);
    assert_eq!(
        send(good, "{", "{", START, "").await,
        "400 missing_request_id",
        "text of no declared type names no job"
    );
    assert_awaits(&app, &id).await;
    assert_eq!(send(good, &body, &body, START, "").await, "success");
    assert_result(&app, &id, json!(1)).await;
    assert_eq!(send(good, &body, &body, START, "").await, "success");
    // The job's own URL needs no signature.
    call_back(&app, &own, r#"{"result": 2}"#).await;
    assert_result(&app, &id, json!(1)).await;
    app.stop().await;
}

async fn no_more_than_open_jobs_are_with_the_vendor(backend: Backend) {
    let config = QUIET.replacen("limits = []", "limits = []\nopen = 2", 1);
    let mut app = TestApp::with(backend, &config).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(app.submit("one", "1").await);
    }
    app.run_until_idle().await;
    app.run_for(Duration::from_secs(60)).await;
    assert_eq!(app.calls("one"), 2);
    let vendor = app.get("/vendors/one").await.json();
    assert_eq!((&vendor["open"], &vendor["waiting"]), (&json!(2), &json!(2)));
    assert_awaits(&app, &ids[1]).await;
    assert_eq!(app.status(&ids[2]).await, "pending");
    // The two calls may have arrived in either order.
    let answered = app.vendors.arrivals("one")[1].header("idempotency-key").unwrap().to_owned();
    call_back(&app, &app.callback_path("one", 1), r#"{"result": 1}"#).await;
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 3);
    let open = ids[..2].iter().find(|id| **id != answered).unwrap();
    app.post(&format!("/jobs/{open}/cancel"), "").await;
    app.run_until_idle().await;
    assert_eq!(app.calls("one"), 4, "a cancelled job makes room as well");
    app.stop().await;
}
