//! Vendors that accept work and are asked again: where, how and how often, where their data is, and for how long.

use std::time::Duration;

use mock_vendors::Answer;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    report_08_the_url_to_ask_is_in_a_header_and_the_status_says_when_it_is_done,
    report_08_the_url_to_ask_is_in_the_body,
    report_12_the_data_is_at_another_url,
    report_12_a_callback_says_that_the_data_can_be_fetched,
    report_12_data_that_cannot_be_fetched_in_time_is_not_ordered_again,
    report_15_polls_begin_late_and_grow_apart,
    report_16_a_303_is_followed_once,
    report_28_an_acceptance_that_is_done_ends_the_job,
    report_29_a_status_is_asked_by_post,
    a_404_soon_after_the_acceptance_means_not_yet,
    the_time_to_answer_stands_still_while_a_vendor_is_paused,
    the_time_to_answer_stands_still_while_a_limit_is_used_up,
    a_job_that_can_never_be_asked_ends_all_the_same,
);

const POLLING: &str = r#"
[vendors.one]
kind = "polling"
url = "VENDORS/polling/one"
limits = []
"#;

/// Vendor `one`, asked so.
fn asked(polling: &str) -> String {
    format!("{POLLING}polling = {{ every = \"2s\", {polling} }}\n")
}

const BY_ID: &str =
    r#"ticket = "/id", url = "VENDORS/polling/one/{{ ticket | path }}", done = { at = "/state", is = ["done"] }"#;

fn accepted() -> Answer {
    Answer::json(202, r#"{"id": "t-7"}"#)
}

fn running() -> Answer {
    Answer::json(200, r#"{"state": "running"}"#)
}

fn done() -> Answer {
    Answer::json(200, r#"{"state": "done"}"#)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

async fn run(app: &mut TestApp) {
    tokio::time::timeout(secs(60), app.run_until_idle()).await.expect("nothing hangs");
}

/// A job of vendor `one` after these answers to its call and its polls.
async fn job_after(app: &mut TestApp, answers: Vec<Answer>) -> Value {
    app.vendors.script("one", answers);
    let id = app.submit("one", "1").await;
    run(app).await;
    app.find(&id).await
}

/// One member of each attempt.
async fn attempts(app: &TestApp, job: &Value, member: &str) -> Vec<Value> {
    let id = job["request_id"].as_str().expect("an id");
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
    attempts["attempts"].as_array().expect("a list").iter().map(|one| one[member].clone()).collect()
}

#[track_caller]
fn assert_complete(job: &Value, attempts: u64) {
    assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(attempts)), "{job}");
}

#[track_caller]
fn assert_failed(job: &Value, code: &str) {
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{job}");
}

async fn report_08_the_url_to_ask_is_in_a_header_and_the_status_says_when_it_is_done(backend: Backend) {
    let config = asked(r#"ticket_header = "Operation-Location", url = "{{ ticket }}""#)
        + "replies = [{ status = [202], means = \"pending\" }]\nheaders = { x-key = \"key of this test\" }\n";
    let mut app = TestApp::with(backend, &config).await;
    let whole = format!("{}/polling/one/t-7#top", app.vendors.url());
    for location in [&*whole, "/polling/one/t-7", "one/t-7"] {
        let accepted = Answer::status(202).header("operation-location", location).header("retry-after", "30");
        let wait = Answer::status(202).header("retry-after", "20");
        app.vendors.script("one", vec![accepted, wait, Answer::json(200, r#"{"n": 1.10}"#)]);
        let (id, began) = (app.submit("one", "1").await, app.clock.now());
        app.run_for(secs(1)).await;
        let job = app.find(&id).await;
        assert_eq!((&job["ticket"], &job["blocked_on"]), (&json!(location), &json!("next_poll")), "{job}");
        run(&mut app).await;
        let (job, took) = (app.find(&id).await, app.clock.now().since(began));
        assert_complete(&job, 3);
        assert_eq!(app.letters(&id, "result").await, r#"{"n": 1.10}"#);
        assert!((secs(50)..secs(53)).contains(&took), "both waits are kept: {took:?}");
        assert_eq!(attempts(&app, &job, "outcome").await, ["accepted", "pending", "done"]);
        let poll = app.vendors.arrivals("one").pop().expect("a poll");
        assert_eq!((&*poll.method, &*poll.path_and_query), ("GET", "/polling/one/t-7"), "{location}");
        assert_eq!(poll.header("x-key"), Some("key of this test"));
    }
    let job = job_after(&mut app, vec![Answer::status(202)]).await;
    assert_failed(&job, "bad_response");
    assert!(job["error"]["message"].as_str().unwrap().contains("operation-location"), "{job}");
    app.stop().await;
}

async fn report_08_the_url_to_ask_is_in_the_body(backend: Backend) {
    let config = asked(
        r#"ticket = "/urls/get", ticket_header = "Location", url = "{{ ticket }}", done = { at = "/state", is = ["done"] }, result = "/output""#,
    );
    let mut app = TestApp::with(backend, &config).await;
    let url = format!("{}/polling/one/p-1", app.vendors.url());
    let in_body = Answer::json(201, json!({"urls": {"get": url}}).to_string()).header("location", "/never");
    let in_header = Answer::json(201, r#"{"urls": {}}"#).header("location", "/polling/one/p-2");
    for (accepted, path) in [(in_body, "/polling/one/p-1"), (in_header, "/polling/one/p-2")] {
        let data = Answer::json(200, r#"{"state": "done", "output": ["x"]}"#);
        let job = job_after(&mut app, vec![accepted, running(), data]).await;
        assert_complete(&job, 3);
        assert_eq!(job["result"], json!(["x"]));
        assert_eq!(app.vendors.arrivals("one").pop().expect("a poll").path_and_query, path);
    }
    app.stop().await;
}

async fn report_12_the_data_is_at_another_url(backend: Backend) {
    let config =
        asked(&format!(r#"{BY_ID}, result_url = "VENDORS/sync/data-{{{{ ticket | path }}}}", result = "/output""#));
    let mut app = TestApp::with(backend, &config).await;
    let data = Answer::json(200, r#"{"state": "archived", "output": {"n": 1.10}}"#);
    app.vendors.script("data-t-7", vec![Answer::status(500), Answer::status(404), data]);
    let job = job_after(&mut app, vec![accepted(), running(), done()]).await;
    assert_complete(&job, 6);
    assert_eq!(job["tries"], 1);
    assert_eq!(app.letters(job["request_id"].as_str().unwrap(), "result").await, r#"{"n": 1.10}"#);
    let outcomes = attempts(&app, &job, "outcome").await;
    assert_eq!(outcomes, ["accepted", "pending", "pending", "try_again", "pending", "done"]);
    assert_eq!(attempts(&app, &job, "kind").await, ["call", "poll", "poll", "poll", "poll", "poll"]);
    let fetch = app.vendors.arrivals("data-t-7").pop().expect("a fetch");
    assert_eq!((&*fetch.method, fetch.header("idempotency-key")), ("GET", None));
    // What is no data is no reason to fetch: it is the answer.
    app.stop().await;
    let mut app =
        TestApp::with(backend, &format!("{config}replies = [{{ status = [410], means = \"done\" }}]\n")).await;
    let job = job_after(&mut app, vec![accepted(), Answer::json(410, r#"{"why": "no match"}"#)]).await;
    assert_complete(&job, 2);
    assert_eq!((&job["result"], app.calls("data-t-7")), (&json!({"why": "no match"}), 0));
    app.stop().await;
}

const WEBHOOK: &str = r#"
[vendors.one]
kind = "webhook"
url = "VENDORS/async/one"
limits = []
webhook = { ticket = "/id", ticket_in_callback = "/transcript_id", done = { at = "/status", is = ["completed"] }, result = "/text", result_url = "VENDORS/sync/{{ ticket | path }}" }
failed = { at = "/status", is = ["error"] }
"#;

async fn report_12_a_callback_says_that_the_data_can_be_fetched(backend: Backend) {
    let mut app = TestApp::with(backend, WEBHOOK).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"id": "t-1"}"#)]);
    app.vendors.script("t-1", vec![Answer::status(503), Answer::json(200, r#"{"text": "hello"}"#)]);
    let id = app.submit("one", "1").await;
    app.run_for(Duration::from_millis(100)).await;
    let path = app.callback_path("one", 0);
    let called_back = async |app: &TestApp, status: &str| {
        let body = json!({"transcript_id": "t-1", "status": status}).to_string();
        assert_eq!(app.post(&path, body).await.status, 200, "{status}");
    };
    called_back(&app, "queued").await;
    let waiting = app.find(&id).await;
    assert_eq!((&waiting["status"], &waiting["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")));
    called_back(&app, "completed").await;
    app.run_for(Duration::from_millis(100)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("next_poll")), "{job}");
    assert_eq!(job["last_error"]["vendor"]["status"], 503, "{job}");
    // Once it is done, nothing that comes later changes that, nor does the death of the process.
    let mut app = app.crash_and_restart().await;
    for late in ["completed", "queued", "error"] {
        called_back(&app, late).await;
    }
    run(&mut app).await;
    let job = app.find(&id).await;
    assert_complete(&job, 3);
    assert_eq!((&job["result"], app.calls("one"), app.calls("t-1")), (&json!("hello"), 1, 2));
    // Before the vendor's own reply is stored: the callback has the ticket.
    app.vendors.script("t-2", vec![Answer::json(200, r#"{"text": "early"}"#)]);
    let id = app.submit("one", "2").await;
    let token = app.app.vendors.get("one").expect("it is there").request(&stored(&app, &id).await).expect("a request");
    let sent: Value = serde_json::from_slice(&body_of(token).await).expect("JSON");
    let url = sent["callback_url"].as_str().expect("a URL").strip_prefix(&app.url).expect("ours").to_owned();
    assert_eq!(app.post(&url, r#"{"transcript_id": "t-2", "status": "completed"}"#).await.status, 200);
    run(&mut app).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["result"], app.calls("one")), (&json!("complete"), &json!("early"), 1), "{job}");
    app.stop().await;
}

async fn stored(app: &TestApp, id: &str) -> fetchgate::job::Job {
    let with = fetchgate::store::With { payload: true, result: false };
    let id = fetchgate::job::JobId::parse(id).expect("an id");
    app.app
        .store
        .find(&fetchgate::store::Sees::All, id, with)
        .await
        .expect("the store works")
        .expect("the job is there")
}

async fn body_of(outgoing: fetchgate::vendor::outgoing::Outgoing) -> bytes::Bytes {
    use http_body_util::BodyExt as _;
    outgoing.request.into_body().collect().await.expect("in memory").to_bytes()
}

async fn report_12_data_that_cannot_be_fetched_in_time_is_not_ordered_again(backend: Backend) {
    let config =
        asked(&format!(r#"{BY_ID}, result_url = "VENDORS/sync/data?status=500&body={{{{ ticket | query }}}}""#))
            + "answer_within = \"1m\"\nbreaker = false\n";
    let mut app = TestApp::with(backend, &config).await;
    app.vendors.script("one", vec![accepted(), done()]);
    let id = app.submit("one", "1").await;
    app.live_for(secs(120)).await;
    let job = app.find(&id).await;
    assert_failed(&job, "no_answer");
    assert_eq!((job["error"]["vendor"]["status"].as_u64(), app.calls("one")), (Some(500), 2), "{job}");
    assert!(app.calls("data") > 5, "{}", app.calls("data"));
    app.stop().await;
}

async fn report_15_polls_begin_late_and_grow_apart(backend: Backend) {
    let config = asked(&format!(r#"{BY_ID}, first = "10s", max = "8s""#));
    let mut app = TestApp::with(backend, &config).await;
    let job = job_after(&mut app, [vec![accepted()], vec![running(); 5], vec![done()]].concat()).await;
    assert_complete(&job, 7);
    let at = |text: &Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let times: Vec<i64> = attempts(&app, &job, "permit_at").await.iter().map(at).collect();
    let apart: Vec<i64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect();
    assert_eq!(apart, [10, 2, 4, 8, 8, 8], "{times:?}");
    app.stop().await;
}

async fn report_16_a_303_is_followed_once(backend: Backend) {
    let mut app = TestApp::with(backend, &asked(&format!(r#"{BY_ID}, result = "/output""#))).await;
    let see = |location: &str| Answer::status(303).header("location", location);
    for location in [format!("{}/sync/data", app.vendors.url()), "/sync/data".into(), "../../sync/data".into()] {
        app.vendors.script("data", vec![Answer::json(200, r#"{"output": 7}"#)]);
        let job = job_after(&mut app, vec![accepted(), running(), see(&location)]).await;
        assert_complete(&job, 4);
        assert_eq!(job["result"], 7, "{location}");
    }
    app.vendors.script("data", vec![see("/sync/other")]);
    let job = job_after(&mut app, vec![accepted(), see("/sync/data")]).await;
    assert_failed(&job, "vendor_refused");
    for refused in [
        vec![accepted(), Answer::status(303)],
        vec![accepted(), Answer::status(302).header("location", "/sync/other")],
        vec![see("/sync/other")],
    ] {
        let job = job_after(&mut app, refused).await;
        assert_failed(&job, "vendor_refused");
    }
    assert_eq!(app.calls("other"), 0);
    app.stop().await;
}

async fn report_28_an_acceptance_that_is_done_ends_the_job(backend: Backend) {
    let config = WEBHOOK.replace(r#", result = "/text", result_url = "VENDORS/sync/{{ ticket | path }}""#, "");
    let mut app = TestApp::with(backend, &config).await;
    let job = job_after(&mut app, vec![Answer::json(200, r#"{"status": "completed", "result": {"n": 1.10}}"#)]).await;
    assert_complete(&job, 1);
    assert_eq!(app.letters(job["request_id"].as_str().unwrap(), "result").await, r#"{"n": 1.10}"#);
    let job = job_after(&mut app, vec![Answer::json(202, r#"{"status": "queued", "id": "t-1"}"#)]).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")), "{job}");
    assert_eq!(app.calls("one"), 2, "nothing is ordered twice");
    app.stop().await;
}

async fn report_29_a_status_is_asked_by_post(backend: Backend) {
    let polling = r#"ticket = "/name", url = "VENDORS/sync/status", method = "POST", body = '{"task": {{ ticket | json }}, "of": {{ payload.id | json }}}', done = { at = "/state", is = ["done"] }"#;
    let mut app = TestApp::with(backend, &asked(polling)).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"name": "projects/p/operations/1"}"#)]);
    app.vendors.script("status", vec![running(), done()]);
    let id = app.submit("one", r#"{"id": 1.10}"#).await;
    run(&mut app).await;
    assert_complete(&app.find(&id).await, 3);
    let polls = app.vendors.arrivals("status");
    assert_eq!(polls.len(), 2);
    for poll in polls {
        assert_eq!((&*poll.method, poll.header("content-type")), ("POST", Some("application/json")));
        assert_eq!(&*poll.body, br#"{"task": "projects/p/operations/1", "of": 1.10}"#);
    }
    app.stop().await;
}

async fn a_404_soon_after_the_acceptance_means_not_yet(backend: Backend) {
    let mut app = TestApp::with(backend, &asked(&format!(r#"{BY_ID}, missing = "5s""#))).await;
    let job = job_after(&mut app, vec![accepted(), Answer::status(404), Answer::status(404), done()]).await;
    assert_complete(&job, 4);
    let job = job_after(&mut app, [vec![accepted()], vec![Answer::status(404); 3]].concat()).await;
    assert_failed(&job, "vendor_refused");
    assert_eq!(attempts(&app, &job, "outcome").await, ["accepted", "pending", "pending", "refused"]);
    app.stop().await;
}

async fn the_time_to_answer_stands_still_while_a_vendor_is_paused(backend: Backend) {
    let mut app = TestApp::with(backend, &(asked(BY_ID) + "answer_within = \"10m\"\n")).await;
    app.vendors.script("one", [vec![accepted()], vec![running(); 100]].concat());
    let id = app.submit("one", "1").await;
    app.live_for(secs(60)).await;
    let polls = app.calls("one");
    assert_eq!(app.send(hyper::Method::POST, "/vendors/one/pause", &[], "").await.status, 200);
    app.live_for(secs(3600)).await;
    let job = app.find(&id).await;
    assert_eq!(
        (&job["status"], &job["blocked_on"], app.calls("one")),
        (&json!("processing"), &json!("vendor_paused"), polls)
    );
    assert_eq!(app.send(hyper::Method::POST, "/vendors/one/resume", &[], "").await.status, 200);
    // It has as much time as it had: 2 of 10 minutes are used up after this one.
    app.live_for(secs(60)).await;
    assert_eq!(app.status(&id).await, "processing");
    assert!(app.calls("one") > polls + 20, "{}", app.calls("one"));
    app.vendors.script("one", vec![running(); 300]);
    app.live_for(secs(7 * 60)).await;
    assert_eq!(app.status(&id).await, "processing");
    let orders = |app: &TestApp| app.vendors.arrivals("one").iter().filter(|call| call.method == "POST").count();
    assert_eq!(orders(&app), 1);
    // And no more than it had.
    app.live_for(secs(90)).await;
    assert_eq!(orders(&app), 2, "{}", app.find(&id).await);
    app.stop().await;
}

async fn the_time_to_answer_stands_still_while_a_limit_is_used_up(backend: Backend) {
    let limits = r#"limits = [{ calls = 1, per = "5m" }]"#;
    let config = asked(BY_ID).replace("limits = []", limits) + "answer_within = \"1m\"\n";
    let mut app = TestApp::with(backend, &config).await;
    app.clock.advance(secs(600));
    app.vendors.script("one", vec![accepted(), running(), running(), done()]);
    let id = app.submit("one", "1").await;
    app.live_for(secs(2400)).await;
    assert_complete(&app.find(&id).await, 4);
    app.stop().await;
}

async fn a_job_that_can_never_be_asked_ends_all_the_same(backend: Backend) {
    let config = asked(BY_ID) + "answer_within = \"10m\"\nretry = { unanswered = 0 }\n";
    let mut app = TestApp::with(backend, &config).await;
    app.vendors.script("one", vec![accepted(), running()]);
    let id = app.submit("one", "1").await;
    app.run_for(secs(3)).await;
    assert_eq!(app.send(hyper::Method::POST, "/vendors/one/pause", &[], "").await.status, 200);
    app.advance(secs(29 * 86_400)).await;
    assert_eq!(app.status(&id).await, "processing");
    app.advance(secs(2 * 86_400)).await;
    assert_failed(&app.find(&id).await, "no_answer");
    app.stop().await;
}
