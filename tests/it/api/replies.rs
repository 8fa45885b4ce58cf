//! What vendors really answer, as the people who call them report it, and what becomes of the job.

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use mock_vendors::{Answer, MockVendors};
use serde_json::{Value, json};

use crate::{
    failure::free_address,
    on_every_backend,
    support::{
        Backend, TestApp,
        raw::{Raw, RawVendor},
    },
};

on_every_backend!(
    report_02_a_403_that_asks_to_wait_is_no_refusal,
    report_02_a_body_that_says_so_is_a_slow_down,
    report_03_a_429_without_a_time_is_waited_out_and_does_not_count,
    report_03_calls_that_were_under_way_together_are_one_slow_down,
    report_05_a_retry_after_with_a_fraction_waits_and_does_not_count,
    report_06_a_200_with_errors_can_be_a_failure,
    report_07_a_200_that_says_throttled_is_tried_again,
    report_13_the_vendors_words_are_kept,
    report_13_the_words_are_redacted_or_not_kept,
    report_15_a_poll_keeps_the_vendors_wait,
    report_16_a_202_is_asked_again_until_the_data_is_there,
    report_16_an_answer_that_never_comes_is_no_answer,
    report_18_a_reset_in_milliseconds_is_read_as_such,
    report_20_a_409_after_a_call_that_may_have_been_done_is_tried_again,
    report_20_a_409_after_connections_that_were_refused_is_a_refusal,
    report_24_a_retry_after_is_kept_whatever_the_status,
    a_rule_can_make_a_job_wait_and_nobody_else,
    report_26_gzip_is_taken_whether_it_is_declared_or_not,
    report_32_a_retry_after_of_zero_is_no_full_speed,
    hostile_m2_the_head_counts_whatever_becomes_of_the_body,
    an_acceptance_counts_by_its_head_and_is_not_ordered_twice,
    a_rule_about_the_body_of_a_refusal_reads_all_of_it,
    hostile_m3_a_gate_that_a_header_closed_is_seen_and_can_be_opened,
    hostile_m3_rate_headers_can_be_ignored,
    hostile_l2_a_date_needs_no_date_of_the_reply,
    hostile_l3_a_remainder_that_is_no_number_says_nothing,
    hostile_l4_a_byte_order_mark_hides_no_failure,
    hostile_l5_a_coding_that_nobody_asked_for_is_named,
    no_match_can_be_an_answer,
    json_that_is_none_is_no_data,
    what_says_that_it_is_no_json_is_kept_as_a_string,
    a_poll_that_cannot_be_read_is_a_bad_response,
    a_job_waits_longer_each_time_that_its_vendor_is_slow_and_an_hour_at_most,
    a_callback_that_changes_no_job_of_its_vendor_closes_no_gate,
);

const ONE: &str = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = []
retry = { attempts = 3, first = "1s", max = "1m" }
"#;

/// A job of vendor `one` after these answers, which must end it; its attempts, and how long all took.
async fn job_after(app: &mut TestApp, answers: Vec<Answer>) -> (Value, Vec<Value>, Duration) {
    let (before, wanted, began) = (app.calls("one"), answers.len(), app.clock.now());
    app.vendors.script("one", answers);
    let id = app.submit("one", "1").await;
    tokio::time::timeout(Duration::from_secs(60), app.run_until_idle()).await.expect("nothing hangs");
    assert_eq!(app.calls("one") - before, wanted, "every answer was used, and none more was asked for");
    let took = app.clock.now().since(began);
    (app.find(&id).await, attempts(app, &id).await, took)
}

async fn attempts(app: &TestApp, id: &str) -> Vec<Value> {
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
    attempts["attempts"].as_array().expect("a list").clone()
}

#[track_caller]
fn assert_complete(job: &Value, attempts: u64, tries: u64) {
    let is = (&job["status"], &job["attempts"], &job["tries"]);
    assert_eq!(is, (&json!("complete"), &json!(attempts), &json!(tries)), "{job}");
}

#[track_caller]
fn assert_failed(job: &Value, code: &str) {
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{job}");
}

fn done() -> Answer {
    Answer::json(200, r#"{"ok":1}"#)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

async fn report_02_a_403_that_asks_to_wait_is_no_refusal(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let date = "Fri, 15 Jan 2027 08:00:00 GMT"; // 1800000000
    let answers = [
        Answer::status(403).header("retry-after", "60"),
        Answer::status(403)
            .header("date", date)
            .header("x-ratelimit-remaining", "0")
            .header("x-ratelimit-reset", "1800000060"),
    ];
    for answer in answers {
        let (job, attempts, took) = job_after(&mut app, vec![answer, done()]).await;
        assert_complete(&job, 2, 1);
        assert_eq!((&attempts[0]["outcome"], &attempts[0]["status"]), (&json!("slow_down"), &json!(403)));
        assert!((secs(60)..secs(63)).contains(&took), "{took:?}");
    }
    let (job, _, _) = job_after(&mut app, vec![Answer::status(403)]).await;
    assert_failed(&job, "vendor_refused");
    app.stop().await;
}

async fn report_02_a_body_that_says_so_is_a_slow_down(backend: Backend) {
    let rule = r#"{ status = [403], at = "/error/errors/0/reason", is = ["userRateLimitExceeded"], means = "slow_down", wait = "30s" }"#;
    let mut app = TestApp::with(backend, &format!("{ONE}replies = [{rule}]\n")).await;
    let said = |reason: &str| Answer::json(403, json!({"error": {"errors": [{"reason": reason}]}}).to_string());
    let (job, _, took) = job_after(&mut app, vec![said("userRateLimitExceeded"), done()]).await;
    assert_complete(&job, 2, 1);
    assert!((secs(30)..secs(33)).contains(&took), "{took:?}");
    let (job, _, _) = job_after(&mut app, vec![said("accessNotConfigured")]).await;
    assert_failed(&job, "vendor_refused");
    assert_eq!(job["error"]["vendor"]["body"], r#"{"error":{"errors":[{"reason":"accessNotConfigured"}]}}"#);
    app.stop().await;
}

async fn report_03_a_429_without_a_time_is_waited_out_and_does_not_count(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let mut answers = vec![Answer::status(429); 6];
    answers.push(done());
    let (job, attempts, took) = job_after(&mut app, answers).await;
    assert_complete(&job, 7, 1);
    assert!(attempts[..6].iter().all(|attempt| attempt["outcome"] == "slow_down"), "{attempts:?}");
    // 1 + 2 + 4 + 8 + 16 + 32 s of silence, and what the job itself waits beyond.
    assert!(took >= secs(63) && took < secs(200), "{took:?}");
    // A wait that a header names.
    let named = Answer::status(429).header("x-ratelimit-remaining", "0").header("x-ratelimit-reset", "25");
    let (job, _, took) = job_after(&mut app, vec![named, done()]).await;
    assert_complete(&job, 2, 1);
    assert!((secs(25)..secs(28)).contains(&took), "{took:?}");
    app.stop().await;
}

async fn report_03_calls_that_were_under_way_together_are_one_slow_down(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    // All six have been sent when the first of them is answered.
    app.vendors.script("one", vec![Answer::status(429).after(Duration::from_millis(200)); 6]);
    for n in 0..6 {
        app.submit("one", &n.to_string()).await;
    }
    let began = app.clock.now();
    app.run_until_idle().await;
    let took = app.clock.now().since(began);
    assert!(app.calls("one") == 12 && took < secs(6), "a second of silence, not 32: {took:?}");
    app.stop().await;
}

async fn report_05_a_retry_after_with_a_fraction_waits_and_does_not_count(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for (text, wait) in [("2.0", 2_000), ("2.65", 2_650)] {
        let answers = vec![Answer::status(429).header("retry-after", text); 5].into_iter().chain([done()]).collect();
        let (job, attempts, _) = job_after(&mut app, answers).await;
        assert_complete(&job, 6, 1);
        let at = |i: usize| attempts[i]["permit_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let first = at(1).as_millisecond() - at(0).as_millisecond();
        assert!((wait..wait + 600).contains(&first), "{text}: {first}");
    }
    app.stop().await;
}

async fn report_06_a_200_with_errors_can_be_a_failure(backend: Backend) {
    let rule = r#"replies = [{ status = [200], at = "/errors", exists = true, means = "refused" }]"#;
    for config in [format!("{ONE}{rule}\n"), format!("{ONE}failed = {{ at = \"/errors\", exists = true }}\n")] {
        let mut app = TestApp::with(backend, &config).await;
        for body in [r#"{"data":null,"errors":[{"message":"scope"}]}"#, r#"{"errors":[{"message":"scope"}]}"#] {
            let (job, _, _) = job_after(&mut app, vec![Answer::json(200, body)]).await;
            assert_failed(&job, "vendor_refused");
            assert_eq!(job["error"]["vendor"], json!({"status": 200, "body": body}));
            assert!(job["error"]["message"].as_str().unwrap().contains("/errors"), "{job}");
        }
        for body in [r#"{"data":1}"#, r#"{"data":1,"errors":[]}"#, r#"{"data":1,"errors":null}"#] {
            assert_complete(&job_after(&mut app, vec![Answer::json(200, body)]).await.0, 1, 1);
        }
        app.stop().await;
    }
}

async fn report_07_a_200_that_says_throttled_is_tried_again(backend: Backend) {
    let rule = r#"{ at = "/errors/0/extensions/code", is = ["THROTTLED"], means = "slow_down", wait = "5s" }"#;
    let mut app = TestApp::with(backend, &format!("{ONE}replies = [{rule}]\n")).await;
    let throttled = Answer::json(200, r#"{"errors":[{"extensions":{"code":"THROTTLED"}}]}"#);
    let answers = vec![throttled; 5].into_iter().chain([done()]).collect();
    let (job, attempts, took) = job_after(&mut app, answers).await;
    assert_complete(&job, 6, 1);
    assert_eq!((&attempts[0]["outcome"], &attempts[0]["status"]), (&json!("slow_down"), &json!(200)));
    assert!(took >= secs(25), "{took:?}");
    app.stop().await;
}

async fn report_13_the_vendors_words_are_kept(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let body = r#"{"errors":{"postcode":"must have 5 digits"}}"#;
    let (job, attempts, _) = job_after(&mut app, vec![Answer::json(422, body)]).await;
    assert_failed(&job, "vendor_refused");
    assert_eq!(job["error"]["vendor"], json!({"status": 422, "body": body}));
    assert_eq!((&attempts[0]["outcome"], &attempts[0]["response"]), (&json!("refused"), &json!(body)));
    // While it goes on, and after the last attempt.
    app.vendors.script("one", vec![Answer::status(500).body("first"), Answer::status(503).body("x".repeat(5000))]);
    let id = app.submit("one", "1").await;
    app.run_for(Duration::from_millis(100)).await;
    let waiting = app.find(&id).await;
    let error =
        json!({"code": "try_again", "message": "the vendor answered 500", "vendor": {"status": 500, "body": "first"}});
    assert_eq!((&waiting["last_error"], waiting.get("error")), (&error, None), "{waiting}");
    assert!(waiting["since"].is_string() && waiting["until"].is_string(), "{waiting}");
    app.vendors.script("one", vec![Answer::status(503).body("x".repeat(5000)); 2]);
    app.run_until_idle().await;
    let failed = app.find(&id).await;
    assert_failed(&failed, "attempts_exhausted");
    assert_eq!(failed["error"]["vendor"], json!({"status": 503, "body": "x".repeat(2048)}));
    assert_eq!(failed["tries"], 3);
    let view = app.get("/vendors/one").await.json();
    assert_eq!(view["last_error"]["vendor"]["status"], 503, "{view}");
    app.stop().await;
}

async fn report_13_the_words_are_redacted_or_not_kept(backend: Backend) {
    let mut app = TestApp::with(backend, &format!("{ONE}clean = {{ redact = [\"/ssn\"] }}\n")).await;
    let (job, attempts, _) = job_after(&mut app, vec![Answer::json(422, r#"{"ssn":"123","why":"no"}"#)]).await;
    assert_eq!(job["error"]["vendor"]["body"], r#"{"ssn":"[redacted]","why":"no"}"#);
    assert_eq!(attempts[0]["response"], r#"{"ssn":"[redacted]","why":"no"}"#);
    let (job, attempts, _) = job_after(&mut app, vec![Answer::status(422).body("ssn 123")]).await;
    assert_eq!((&job["error"]["vendor"]["body"], attempts[0].get("response")), (&json!(""), None));
    app.stop().await;
}

async fn report_15_a_poll_keeps_the_vendors_wait(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let wait = |answer: Answer| answer.header("retry-after", "30");
    let accepted = wait(Answer::json(202, r#"{"id": "t-1"}"#));
    let running = wait(Answer::json(200, r#"{"state": "running"}"#));
    let done = Answer::json(200, r#"{"state": "done", "output": 1}"#);
    app.vendors.script("polling", vec![accepted, running, done]);
    let (id, began) = (app.submit("polling", "1").await, app.clock.now());
    app.run_for(secs(1)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["ticket"], &job["blocked_on"]), (&json!("t-1"), &json!("next_poll")), "{job}");
    app.run_until_idle().await;
    assert_complete(&app.find(&id).await, 3, 1);
    let took = app.clock.now().since(began);
    assert!((secs(60)..secs(63)).contains(&took), "{took:?}");
    let outcomes: Vec<Value> = attempts(&app, &id).await.iter().map(|one| one["outcome"].clone()).collect();
    assert_eq!(outcomes, ["accepted", "pending", "done"]);
    app.stop().await;
}

async fn report_16_a_202_is_asked_again_until_the_data_is_there(backend: Backend) {
    let config = ONE.replace("\"sync\"", "\"sync\"\nmethod = \"GET\"");
    let mut app = TestApp::with(backend, &config).await;
    let answers = vec![Answer::json(202, "{}"), Answer::status(202), Answer::json(200, "[1]")];
    let (job, attempts, took) = job_after(&mut app, answers).await;
    assert_complete(&job, 3, 1);
    assert_eq!((&job["result"], &attempts[0]["outcome"]), (&json!([1]), &json!("pending")));
    assert!((secs(6)..secs(8)).contains(&took), "2 s, then 4 s: {took:?}");
    // A wait that the vendor names is kept, and so is what another request says.
    let named = Answer::status(202).header("retry-after", "20");
    let answers = vec![named, Answer::status(500), Answer::json(200, "[2]")];
    let (job, _, took) = job_after(&mut app, answers).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(3)), "{job}");
    assert!(took >= secs(20), "{took:?}");
    app.stop().await;
    // A POST is data unless a rule says otherwise.
    let mut app = TestApp::with(backend, ONE).await;
    assert_complete(&job_after(&mut app, vec![Answer::json(202, "{}")]).await.0, 1, 1);
    app.stop().await;
    let rule = r#"replies = [{ status = [202], means = "pending", wait = "5s" }]"#;
    let mut app = TestApp::with(backend, &format!("{ONE}{rule}\n")).await;
    let (job, _, took) = job_after(&mut app, vec![Answer::json(202, "{}"), done()]).await;
    assert_complete(&job, 2, 1);
    assert!((secs(5)..secs(7)).contains(&took), "{took:?}");
    app.stop().await;
}

async fn report_16_an_answer_that_never_comes_is_no_answer(backend: Backend) {
    let config = ONE.replace("\"sync\"", "\"sync\"\nmethod = \"GET\"\nanswer_within = \"20s\"").replace("3", "1");
    let mut app = TestApp::with(backend, &config).await;
    app.vendors.script("one", vec![Answer::json(202, "{}"); 30]);
    let id = app.submit("one", "1").await;
    app.live_for(secs(100)).await;
    assert_failed(&app.find(&id).await, "no_answer");
    assert!(app.calls("one") <= 10, "{}", app.calls("one"));
    app.stop().await;
}

async fn report_18_a_reset_in_milliseconds_is_read_as_such(backend: Backend) {
    let headers = r#"rate_headers = { remaining = "X-Rate-Limit-Requests-Left", reset = "X-Rate-Limit-Time-Reset-Ms", unit = "ms" }"#;
    let mut app = TestApp::with(backend, &format!("{ONE}{headers}\n")).await;
    let answer = |left: &str, reset: &str| {
        done().header("x-rate-limit-requests-left", left).header("x-rate-limit-time-reset-ms", reset)
    };
    for (left, reset) in [("35", "15000"), ("0", "4000")] {
        job_after(&mut app, vec![answer(left, reset)]).await;
    }
    let (_, _, took) = job_after(&mut app, vec![done()]).await;
    assert!((Duration::from_millis(3_900)..secs(5)).contains(&took), "{took:?}");
    // A time in microseconds or nanoseconds, under the usual name.
    for (left, reset) in [("0", "1768464003000000"), ("0", "1768464003000000000")] {
        let answer = done()
            .header("date", "Thu, 15 Jan 2026 08:00:00 GMT")
            .header("x-ratelimit-remaining", left)
            .header("x-ratelimit-reset", reset);
        job_after(&mut app, vec![answer]).await;
        let (_, _, took) = job_after(&mut app, vec![done()]).await;
        assert!((Duration::from_millis(2_900)..secs(4)).contains(&took), "{reset}: {took:?}");
    }
    app.stop().await;
}

async fn report_20_a_409_after_a_call_that_may_have_been_done_is_tried_again(backend: Backend) {
    let mut app = TestApp::with(backend, &format!("{ONE}timeout = \"100ms\"\n")).await;
    let in_use = || Answer::json(409, r#"{"code":"idempotency_key_in_use"}"#);
    let (job, _, _) = job_after(&mut app, vec![Answer::hang(), in_use(), done()]).await;
    assert_complete(&job, 3, 3);
    let (job, _, _) = job_after(&mut app, vec![in_use()]).await;
    assert_failed(&job, "vendor_refused");
    app.stop().await;
}

async fn report_20_a_409_after_connections_that_were_refused_is_a_refusal(backend: Backend) {
    let address = free_address();
    let config = ONE.replace("VENDORS", &format!("http://{address}")).replace("attempts = 3", "attempts = 30");
    let mut app = TestApp::with(backend, &config).await;
    let id = app.submit("one", "1").await;
    app.run_for(secs(5)).await;
    let waiting = app.find(&id).await;
    assert!(waiting["tries"].as_u64() >= Some(2) && waiting["status"] == "pending", "{waiting}");
    let vendor = MockVendors::start(&address.to_string()).await.expect("the port is still free");
    vendor.script("one", vec![Answer::status(409)]);
    app.run_until_idle().await;
    assert_failed(&app.find(&id).await, "vendor_refused");
    assert_eq!(vendor.count("one"), 1);
    app.stop().await;
}

async fn report_24_a_retry_after_is_kept_whatever_the_status(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let banned = Answer::status(418).header("retry-after", "120");
    let (job, _, took) = job_after(&mut app, vec![banned, done()]).await;
    assert_complete(&job, 2, 1);
    assert!((secs(120)..secs(123)).contains(&took), "{took:?}");
    for status in [500, 502, 503, 529] {
        app.vendors.script("one", vec![Answer::status(status).header("retry-after", "30"), done(), done()]);
        let (first, began) = (app.submit("one", "1").await, app.clock.now());
        app.run_for(Duration::from_millis(100)).await;
        let other = app.submit("one", "2").await;
        for id in [&first, &other] {
            let job = app.find(id).await;
            assert_eq!(job["blocked_on"], "slowed_by_vendor", "{status}: {job}");
            assert!(job["until"].is_string() && job["since"].is_string() && job["eta"].is_string(), "{job}");
        }
        app.run_until_idle().await;
        let took = app.clock.now().since(began);
        assert!((secs(30)..secs(33)).contains(&took), "the whole pool waits: {took:?}");
        assert_complete(&app.find(&first).await, 2, 2);
    }
    app.stop().await;
}

async fn a_rule_can_make_a_job_wait_and_nobody_else(backend: Backend) {
    let rule = r#"replies = [{ status = [500], means = "try_again", wait = "30s" }]"#;
    let mut app = TestApp::with(backend, &format!("{ONE}{rule}\n")).await;
    app.vendors.script("one", vec![Answer::status(500)]);
    let (id, began) = (app.submit("one", "1").await, app.clock.now());
    app.run_for(secs(1)).await;
    let other = app.submit("one", "2").await;
    app.run_for(secs(1)).await;
    assert_complete(&app.find(&other).await, 1, 1);
    app.run_until_idle().await;
    assert_complete(&app.find(&id).await, 2, 2);
    let took = app.clock.now().since(began);
    assert!((secs(30)..secs(33)).contains(&took), "{took:?}");
    app.stop().await;
}

async fn report_26_gzip_is_taken_whether_it_is_declared_or_not(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(br#"{"a":1.10}"#).unwrap();
    let gzip = gzip.finish().unwrap();
    let declared = Answer::json(200, gzip.clone()).header("content-encoding", "gzip");
    for answer in [declared, Answer::json(200, gzip)] {
        let (job, _, _) = job_after(&mut app, vec![answer]).await;
        assert_complete(&job, 1, 1);
        assert_eq!(app.letters(job["request_id"].as_str().unwrap(), "result").await, r#"{"a":1.10}"#);
    }
    assert_eq!(app.vendors.arrivals("one")[0].header("accept-encoding"), Some("gzip"));
    let (job, _, _) = job_after(
        &mut app,
        vec![
            Answer::json(200, &b"{\"n\":\"M\xfcller\"}"[..])
                .header("content-type", "application/json; charset=ISO-8859-1"),
        ],
    )
    .await;
    assert_eq!(job["result"], json!({"n": "Müller"}), "{job}");
    app.stop().await;
}

async fn report_32_a_retry_after_of_zero_is_no_full_speed(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    app.vendors.script("one", vec![Answer::status(429).header("retry-after", "0"); 1000]);
    for n in 0..10 {
        app.submit("one", &n.to_string()).await;
    }
    app.run_for(Duration::from_millis(100)).await;
    let late = app.submit("one", "11").await;
    app.run_for(Duration::from_millis(100)).await;
    let waits = app.find(&late).await;
    assert_eq!((&waits["blocked_on"], &waits["attempts"]), (&json!("slowed_by_vendor"), &json!(0)), "{waits}");
    app.run_for(secs(600)).await;
    // 1 + 2 + 4 + … 256 s of silence, then 5 min each: what is in flight together answers together.
    assert!(app.calls("one") <= 100, "{} calls in ten minutes", app.calls("one"));
    let jobs = app.get("/jobs").await.json();
    assert!(jobs["jobs"].as_array().unwrap().iter().all(|job| job["tries"] == 0), "{jobs}");
    app.stop().await;
}

async fn hostile_m2_the_head_counts_whatever_becomes_of_the_body(backend: Backend) {
    let head =
        |status: &str| format!("HTTP/1.1 {status} X\r\nretry-after: 30\r\ncontent-length: 50\r\n\r\nabc").into_bytes();
    let ok = || Raw::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n1".to_vec());
    let large =
        [&b"HTTP/1.1 429 X\r\nretry-after: 30\r\ncontent-length: 9000000\r\n\r\n"[..], &vec![b'x'; 200_000]].concat();
    for (answer, tries) in
        [(Raw::Cut(head("429")), 1), (Raw::Stall(head("429")), 1), (Raw::Cut(large), 1), (Raw::Cut(head("503")), 2)]
    {
        let vendor = RawVendor::start(vec![answer, ok()]).await;
        let mut app = TestApp::with(backend, &ONE.replace("VENDORS/sync/one", &vendor.url)).await;
        let (id, began) = (app.submit("one", "1").await, app.clock.now());
        app.run_for(Duration::from_millis(100)).await;
        let job = app.find(&id).await;
        assert_eq!(job["blocked_on"], "slowed_by_vendor", "{job}");
        app.run_until_idle().await;
        assert_complete(&app.find(&id).await, 2, tries);
        let took = app.clock.now().since(began);
        assert!((secs(30)..secs(33)).contains(&took) && vendor.calls() == 2, "{took:?}");
        let status = attempts(&app, &id).await[0]["status"].as_u64();
        assert!(matches!(status, Some(429 | 503)), "{status:?}");
        app.stop().await;
    }
}

async fn an_acceptance_counts_by_its_head_and_is_not_ordered_twice(backend: Backend) {
    let head = b"HTTP/1.1 202 Accepted\r\ncontent-length: 50\r\n\r\n{".to_vec();
    let vendor = RawVendor::start(vec![Raw::Cut(head)]).await;
    let config = ONE.replace("\"sync\"", "\"webhook\"").replace("VENDORS/sync/one", &vendor.url);
    let mut app = TestApp::with(backend, &config).await;
    let id = app.submit("one", "1").await;
    app.run_for(secs(60)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")), "{job}");
    assert_eq!(vendor.calls(), 1);
    app.stop().await;
}

async fn a_rule_about_the_body_of_a_refusal_reads_all_of_it(backend: Backend) {
    let rule = r#"{ status = [403], at = "/reason", is = ["rate"], means = "slow_down", wait = "5s" }"#;
    let mut app = TestApp::with(backend, &format!("{ONE}replies = [{rule}]\n")).await;
    // Longer than what is read of a refusal for people only.
    let body = json!({"trace": "x".repeat(100_000), "reason": "rate"}).to_string();
    let (job, _, _) = job_after(&mut app, vec![Answer::json(403, body), done()]).await;
    assert_complete(&job, 2, 1);
    app.stop().await;
}

async fn hostile_m3_a_gate_that_a_header_closed_is_seen_and_can_be_opened(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let odd = done().header("x-ratelimit-remaining", "0").header("x-ratelimit-reset", "999999999");
    job_after(&mut app, vec![odd]).await;
    let id = app.submit("one", "2").await;
    app.run_for(secs(10)).await;
    assert_eq!(app.calls("one"), 1);
    let (job, vendor) = (app.find(&id).await, app.get("/vendors/one").await.json());
    for view in [&job, &vendor] {
        assert_eq!(view["blocked_on"], "slowed_by_vendor", "{view}");
        let time = |name: &str| view[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
        assert!((3_598..=3_601).contains(&(time("until") - time("since"))), "an hour at most: {view}");
    }
    let metrics = app.send_unchecked(hyper::Method::GET, "/metrics", &[], "").await.text;
    assert!(metrics.contains("fetchgate_vendor_gate_closed_total{vendor=\"one\"} 1"), "{metrics}");
    let answer = app.send(hyper::Method::POST, "/vendors/one/resume", &[], "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["blocked_on"]), (200, &Value::Null));
    app.run_for(secs(1)).await;
    assert_eq!((app.status(&id).await.as_str(), app.calls("one")), ("complete", 2));
    // Nor does a restart bring it back.
    let app = app.crash_and_restart().await;
    assert_eq!(app.get("/vendors/one").await.json()["blocked_on"], Value::Null);
    app.stop().await;
}

async fn hostile_m3_rate_headers_can_be_ignored(backend: Backend) {
    let mut app = TestApp::with(backend, &format!("{ONE}rate_headers = \"off\"\n")).await;
    let odd = done().header("x-ratelimit-remaining", "0").header("x-ratelimit-reset", "999999999");
    for _ in 0..3 {
        let (_, _, took) = job_after(&mut app, vec![odd.clone()]).await;
        assert!(took < secs(1), "{took:?}");
    }
    app.stop().await;
}

async fn hostile_l2_a_date_needs_no_date_of_the_reply(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let (in_30_s, in_a_day) = (secs(30), secs(86_400));
    for (format, until, longest) in [
        ("%a, %d %b %Y %H:%M:%S GMT", in_30_s, 30_000),
        ("%A, %d-%b-%y %H:%M:%S GMT", in_30_s, 30_000),
        ("%a %b %e %H:%M:%S %Y", in_30_s, 30_000),
        ("%a, %d %b %Y %H:%M:%S GMT", in_a_day, 3_600_000),
    ] {
        let began = app.clock.now();
        let until = jiff::Timestamp::from_second(began.plus(until).0 / 1000).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
        // The mock's own Date is of today; an unreadable one is like none.
        let answer =
            Answer::status(429).header("date", "unknown").header("retry-after", &until.strftime(format).to_string());
        let (job, _, _) = job_after(&mut app, vec![answer, done()]).await;
        assert_complete(&job, 2, 1);
        let took = i64::try_from(app.clock.now().since(began).as_millis()).unwrap();
        assert!((longest - 1_000..longest + 3_000).contains(&took), "{format}: {took}");
    }
    app.stop().await;
}

async fn hostile_l3_a_remainder_that_is_no_number_says_nothing(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    for left in ["NaN", "-inf", "-1", "none"] {
        let answer = done().header("x-ratelimit-remaining", left).header("x-ratelimit-reset", "30");
        job_after(&mut app, vec![answer]).await;
        let (_, _, took) = job_after(&mut app, vec![done()]).await;
        assert!(took < secs(1), "{left}: {took:?}");
    }
    app.stop().await;
}

async fn hostile_l4_a_byte_order_mark_hides_no_failure(backend: Backend) {
    let mut app = TestApp::with(backend, &format!("{ONE}failed = {{ at = \"/status\", is = [\"error\"] }}\n")).await;
    let (job, _, _) = job_after(&mut app, vec![Answer::json(200, "\u{feff}{\"status\":\"error\"}")]).await;
    assert_failed(&job, "vendor_refused");
    let (job, _, _) = job_after(&mut app, vec![Answer::json(200, "\u{feff}{\"status\":\"ok\"}")]).await;
    assert_eq!(job["result"], json!({"status": "ok"}), "{job}");
    app.stop().await;
}

async fn hostile_l5_a_coding_that_nobody_asked_for_is_named(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let (job, _, _) = job_after(&mut app, vec![Answer::json(200, "xyz").header("content-encoding", "br")]).await;
    assert_failed(&job, "bad_response");
    assert!(job["error"]["message"].as_str().unwrap().contains("\"br\""), "{job}");
    app.stop().await;
}

async fn no_match_can_be_an_answer(backend: Backend) {
    let mut app = TestApp::with(backend, &format!("{ONE}replies = [{{ status = [404], means = \"done\" }}]\n")).await;
    let (job, attempts, _) = job_after(&mut app, vec![Answer::json(404, r#"{"match":false}"#)]).await;
    assert_complete(&job, 1, 1);
    assert_eq!((&job["result"], &attempts[0]["outcome"]), (&json!({"match": false}), &json!("done")));
    app.stop().await;
}

async fn json_that_is_none_is_no_data(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let (job, _, _) = job_after(&mut app, vec![Answer::json(200, r#"{"a":"#)]).await;
    assert_failed(&job, "bad_response");
    assert!(job["error"]["message"].as_str().unwrap().contains("line 1 column 5"), "{job}");
    let (job, _, _) =
        job_after(&mut app, vec![Answer::status(200).body("a,b").header("content-type", "text/csv")]).await;
    assert_eq!(job["result"], "a,b", "{job}");
    let (job, _, _) = job_after(&mut app, vec![Answer::status(204)]).await;
    assert_eq!((&job["status"], job.get("result")), (&json!("complete"), Some(&Value::Null)), "{job}");
    app.stop().await;
    let mut app = TestApp::with(backend, &format!("{ONE}expect = \"json\"\n")).await;
    let (job, _, _) =
        job_after(&mut app, vec![Answer::status(200).body("a,b").header("content-type", "text/csv")]).await;
    assert_failed(&job, "bad_response");
    app.stop().await;
}

async fn what_says_that_it_is_no_json_is_kept_as_a_string(backend: Backend) {
    let typed = |content_type: &str| Answer::status(200).body(r#"{"a":1}"#).header("content-type", content_type);
    let mut app = TestApp::with(backend, ONE).await;
    for content_type in ["text/plain", "text/html; charset=utf-8"] {
        let (job, _, _) = job_after(&mut app, vec![typed(content_type)]).await;
        assert_eq!(job["result"], r#"{"a":1}"#, "{content_type}: {job}");
    }
    for untold in [typed("application/octet-stream"), Answer::status(200).body(r#"{"a":1}"#)] {
        let (job, _, _) = job_after(&mut app, vec![untold]).await;
        assert_eq!(job["result"], json!({"a": 1}), "{job}");
    }
    app.stop().await;
    let mut app = TestApp::with(backend, &format!("{ONE}expect = \"json\"\n")).await;
    let (job, _, _) = job_after(&mut app, vec![typed("text/plain")]).await;
    assert_eq!(job["result"], json!({"a": 1}), "JSON is wanted, so it is read as such: {job}");
    app.stop().await;
}

async fn a_poll_that_cannot_be_read_is_a_bad_response(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let accepted = || Answer::json(202, r#"{"id": "t-1"}"#);
    app.vendors.script("polling", vec![accepted(), Answer::json(200, r#"{"state": "#)]);
    let id = app.submit("polling", "1").await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_failed(&job, "bad_response");
    assert_eq!((&job["attempts"], &job["error"]["vendor"]["body"]), (&json!(2), &json!(r#"{"state": "#)), "{job}");
    // A page of somebody in between says that it is no JSON, and so not that the work is done.
    let page = Answer::status(200).body("<html>").header("content-type", "text/html");
    app.vendors.script("polling", vec![accepted(), page, Answer::json(200, r#"{"state": "done", "output": 1}"#)]);
    let id = app.submit("polling", "1").await;
    app.run_until_idle().await;
    assert_complete(&app.find(&id).await, 3, 1);
    app.stop().await;
}

async fn a_job_waits_longer_each_time_that_its_vendor_is_slow_and_an_hour_at_most(backend: Backend) {
    let config = ONE.replace("1m", "2s") + "slow_down = { first = \"1s\", max = \"1s\" }\n";
    let mut app = TestApp::with(backend, &config).await;
    app.vendors.script("one", vec![Answer::status(429); 15]);
    let id = app.submit("one", "1").await;
    app.run_for(secs(1200)).await;
    let waiting = app.find(&id).await;
    assert_eq!((&waiting["status"], &waiting["blocked_on"]), (&json!("pending"), &json!("retry_backoff")), "{waiting}");
    let calls = app.calls("one");
    app.vendors.script("one", vec![done()]);
    app.run_until_idle().await;
    assert_complete(&app.find(&id).await, 16, 1);
    assert!((9..=12).contains(&calls), "1 + 2 + 4 + ... s, or half of it: {calls}");
    let attempts = attempts(&app, &id).await;
    let at = |i: usize| attempts[i]["sent_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    let waits: Vec<i64> = (1..attempts.len()).map(|i| at(i) - at(i - 1)).collect();
    assert!(waits.iter().all(|wait| *wait <= 3602), "{waits:?}");
    assert!(waits[12..].iter().all(|wait| *wait >= 1799), "{waits:?}");
    app.stop().await;
}

async fn a_callback_that_changes_no_job_of_its_vendor_closes_no_gate(backend: Backend) {
    let hook = |name: &str| {
        format!(
            "[vendors.{name}]\nkind = \"webhook\"\nurl = \"VENDORS/async/{name}?never\"\nlimits = []\nwebhook = {{ verify = \"none\" }}\n\
             replies = [{{ on = [\"callback\"], at = \"/code\", is = [\"BUSY\"], means = \"slow_down\", wait = \"30s\" }}]\n"
        )
    };
    let mut app = TestApp::with(backend, &(hook("one") + &hook("other"))).await;
    let (mine, others) = (app.submit("one", "1").await, app.submit("other", "1").await);
    app.run_until_idle().await;
    let busy = |id: &str| json!({"request_id": id, "code": "BUSY"}).to_string();
    for id in [&others, "01890000-0000-7000-8000-000000000000"] {
        assert_eq!(app.post("/vendor-webhook/one", busy(id)).await.status, 404);
        assert_eq!(app.get("/vendors/one").await.json()["blocked_on"], Value::Null, "{id}");
    }
    assert_eq!(app.post("/vendor-webhook/one", busy(&mine)).await.status, 200);
    assert_eq!(app.get("/vendors/one").await.json()["blocked_on"], "slowed_by_vendor");
    app.stop().await;
}
