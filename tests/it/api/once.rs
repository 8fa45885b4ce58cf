//! Vendors that are called at most once for a job, because a call costs money.

use std::time::Duration;

use mock_vendors::{Answer, Fault};
use serde_json::{Value, json};

use crate::{
    failure::wait_until,
    support::{Backend, TestApp},
};

crate::on_every_backend!(
    a_call_that_may_have_been_done_is_not_repeated,
    a_call_that_was_refused_or_never_sent_is_tried_again,
    a_process_that_dies_during_a_call_leaves_an_unknown_outcome_and_no_second_call,
    a_vendor_that_accepted_and_did_not_answer_is_not_asked_again,
    a_job_whose_permit_was_missed_is_called_later,
    a_person_may_call_again,
    a_job_whose_tenant_is_over_its_limit_is_not_marked,
    the_record_says_what_came_of_each_call,
    a_vendor_that_is_polled_has_all_of_its_time_to_answer,
    a_callback_before_the_vendors_own_reply_decides_the_job,
    an_early_callback_by_ticket_is_sent_again_while_a_call_is_under_way,
);

const ONCE: &str = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = ["1000/s"]
at_most_once = true
timeout = "100ms"
"#;

/// A job of vendor `one` after these answers.
async fn job_after(app: &mut TestApp, answers: Vec<Answer>) -> (Value, usize) {
    let before = app.calls("one");
    app.vendors.script("one", answers);
    let id = app.submit("one", "1").await;
    tokio::time::timeout(Duration::from_secs(60), app.run_until_idle()).await.expect("nothing hangs");
    let called = app.calls("one") - before;
    app.vendors.script("one", vec![]);
    (app.find(&id).await, called)
}

#[track_caller]
fn assert_unknown(job: &Value) {
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("unknown_outcome")), "{job}");
}

async fn a_call_that_may_have_been_done_is_not_repeated(backend: Backend) {
    let mut app = TestApp::with(backend, ONCE).await;
    let answers = [
        Answer::hang(),
        Answer::fault(Fault::Reset),
        Answer::fault(Fault::Truncate),
        Answer::status(502),
        Answer::status(504),
    ];
    for answer in answers {
        let (job, calls) = job_after(&mut app, vec![answer]).await;
        assert_unknown(&job);
        assert_eq!(calls, 1, "{job}");
    }
    app.stop().await;
}

async fn a_call_that_was_refused_or_never_sent_is_tried_again(backend: Backend) {
    let mut app = TestApp::with(backend, ONCE).await;
    for status in [408, 425, 429, 500, 503] {
        let (job, calls) = job_after(&mut app, vec![Answer::status(status), Answer::json(200, "7")]).await;
        assert_eq!((&job["status"], &job["result"], calls), (&json!("complete"), &json!(7), 2), "{status}: {job}");
    }
    let (job, calls) = job_after(&mut app, vec![Answer::status(404)]).await;
    assert_eq!((&job["error"]["code"], calls), (&json!("vendor_refused"), 1), "{job}");
    app.stop().await;
}

async fn work(app: &mut TestApp) {
    loop {
        app.run_for(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }
}

/// The dispatchers turn until the vendor has been called; it does not answer.
pub(super) async fn call_that_hangs(app: &mut TestApp, name: &'static str) {
    let (vendors, before) = (app.vendors.clone(), app.calls(name));
    let called =
        wait_until("the call", Duration::from_secs(30), async || (vendors.arrivals(name).len() > before).then_some(()));
    tokio::select! {
        () = work(app) => {}
        () = called => {}
    }
}

async fn a_process_that_dies_during_a_call_leaves_an_unknown_outcome_and_no_second_call(backend: Backend) {
    let mut app = TestApp::with(backend, &ONCE.replace("100ms", "20s")).await;
    app.vendors.script("one", vec![Answer::hang()]);
    let id = app.submit("one", "1").await;
    call_that_hangs(&mut app, "one").await;
    let mut app = app.crash_and_restart().await;
    app.run_until_idle().await;
    assert_eq!(app.status(&id).await, "processing");
    app.live_for(Duration::from_secs(120)).await;
    assert_unknown(&app.find(&id).await);
    assert_eq!(app.calls("one"), 1);
    // It was going to be called, and nobody knows whether it was.
    let record = app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"].clone();
    assert_eq!(record.as_array().map(Vec::len), Some(1), "{record}");
    assert_eq!(
        (&record[0]["n"], &record[0]["outcome"], &record[0]["sent_at"], &record[0]["status"]),
        (&json!(1), &json!("no_connection"), &json!(null), &json!(null))
    );
    assert_eq!(record[0]["detail"], "its worker died or hung; nobody knows whether it was made");
    app.stop().await;
}

async fn a_vendor_that_accepted_and_did_not_answer_is_not_asked_again(backend: Backend) {
    let config = r#"
[vendors.one]
kind = "webhook"
url = "VENDORS/async/one?callback=never"
limits = ["1000/s"]
at_most_once = true
answer_within = "1m"
"#;
    let mut app = TestApp::with(backend, config).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"id": "x"}"#)]);
    let id = app.submit("one", "1").await;
    app.run_until_idle().await;
    assert_eq!(app.find(&id).await["blocked_on"], "awaiting_callback");
    app.live_for(Duration::from_secs(90)).await;
    assert_unknown(&app.find(&id).await);
    assert_eq!(app.calls("one"), 1);
    app.stop().await;
}

async fn a_job_whose_permit_was_missed_is_called_later(backend: Backend) {
    let mut app = TestApp::with(backend, ONCE).await;
    app.vendors.script("one", vec![Answer::status(429).header("retry-after", "2")]);
    let ids = [app.submit("one", "1").await, app.submit("one", "2").await, app.submit("one", "3").await];
    app.run_until_idle().await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete");
    }
    assert_eq!(app.calls("one"), 4);
    app.stop().await;
}

async fn a_job_whose_tenant_is_over_its_limit_is_not_marked(backend: Backend) {
    let limits = r#"["1000/s", { calls = 2, per = "30s", key = "tenant" }]"#;
    let mut app = TestApp::with(backend, &ONCE.replace(r#"["1000/s"]"#, limits)).await;
    let mut ids = Vec::new();
    for tenant in ["a", "a", "a", "a", "a", "b"] {
        ids.push(app.submit_with(&format!(r#"{{"payload": 1, "vendor": "one", "tenant": "{tenant}"}}"#)).await);
    }
    app.run_for(Duration::from_secs(5)).await;
    for id in ids.iter().take(2).chain(&ids[5..]) {
        assert_eq!(app.status(id).await, "complete");
    }
    for id in &ids[2..5] {
        let waiting = app.find(id).await;
        assert_eq!((&waiting["status"], &waiting["attempts"]), (&json!("pending"), &json!(0)), "{waiting}");
        assert_eq!(app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"], json!([]));
    }
    let mut app = app.crash_and_restart().await;
    app.live_for(Duration::from_secs(120)).await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete");
    }
    assert_eq!(app.calls("one"), ids.len());
    app.stop().await;
}

async fn the_record_says_what_came_of_each_call(backend: Backend) {
    let mut app = TestApp::with(backend, ONCE).await;
    let answers = vec![Answer::status(500), Answer::json(200, "7")];
    let (job, _) = job_after(&mut app, answers).await;
    let id = job["request_id"].as_str().expect("an id");
    let record = app.get(&format!("/jobs/{id}/attempts")).await.json()["attempts"].clone();
    let of = |field: &str| record.as_array().expect("a list").iter().map(|one| one[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("outcome"), ["try_again", "done"], "{record}");
    assert_eq!(of("status"), [500, 200]);
    assert_eq!(of("n"), [1, 2]);
    assert!(of("sent_at").iter().all(Value::is_string), "{record}");
    app.stop().await;
}

async fn a_person_may_call_again(backend: Backend) {
    let mut app = TestApp::with(backend, ONCE).await;
    let (job, _) = job_after(&mut app, vec![Answer::hang()]).await;
    assert_unknown(&job);
    let id = job["request_id"].as_str().expect("an id");
    let answer = app.post(&format!("/jobs/{id}/replay"), "").await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    app.run_until_idle().await;
    assert_eq!(app.status(id).await, "complete");
    app.stop().await;
}

async fn a_vendor_that_is_polled_has_all_of_its_time_to_answer(backend: Backend) {
    let config = r#"
[vendors.one]
kind = "polling"
url = "VENDORS/polling/one?polls=35"
limits = ["1000/s"]
at_most_once = true
answer_within = "10m"
polling = { ticket = "/id", url = "VENDORS/polling/one/{{ ticket | path }}?polls=35", every = "2s", done = { at = "/state", is = ["done"] }, result = "/output" }
"#;
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("one", "1").await;
    app.live_for(Duration::from_secs(100)).await;
    let job = app.find(&id).await;
    assert_eq!(job["status"], "complete", "{job}");
    let posts = app.vendors.arrivals("one").iter().filter(|call| call.method == "POST").count();
    assert_eq!((posts, app.calls("one")), (1, 37));
    app.stop().await;
}

/// A webhook vendor that calls back by its own reference.
const BY_TICKET: &str = r#"
[vendors.one]
kind = "webhook"
url = "VENDORS/async/one?never"
limits = ["1000/s"]
at_most_once = true
webhook = { verify = "none", ticket = "/id", ticket_in_callback = "/id" }
"#;

async fn a_callback_before_the_vendors_own_reply_decides_the_job(backend: Backend) {
    let mut app = TestApp::with(backend, BY_TICKET).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"id": "x"}"#).after(Duration::from_millis(300))]);
    let id = app.submit("one", "1").await;
    call_that_hangs(&mut app, "one").await;
    let answer = app.post(&app.callback_path("one", 0), r#"{"result": 7}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["result"]), (&json!("complete"), &json!(7)), "{job}");
    app.run_until_idle().await;
    let ended = app.find(&id).await;
    assert_eq!((ended, app.calls("one")), (job, 1), "the reply changes nothing");
    app.stop().await;
}

async fn an_early_callback_by_ticket_is_sent_again_while_a_call_is_under_way(backend: Backend) {
    let mut app = TestApp::with(backend, BY_TICKET).await;
    app.vendors.script("one", vec![Answer::json(202, r#"{"id": "x"}"#).after(Duration::from_millis(300))]);
    let id = app.submit("one", "1").await;
    call_that_hangs(&mut app, "one").await;
    let early = app.post("/vendor-webhook/one", r#"{"id": "x", "result": 7}"#).await;
    assert_eq!((early.status.as_u16(), early.header("retry-after")), (503, "1"), "{}", early.text);
    app.run_until_idle().await;
    let again = app.post("/vendor-webhook/one", r#"{"id": "x", "result": 7}"#).await;
    assert_eq!(again.status, 200, "{}", again.text);
    assert_eq!(app.find(&id).await["result"], 7);
    app.clock.advance(Duration::from_secs(10));
    assert_eq!(app.post("/vendor-webhook/one", r#"{"id": "y"}"#).await.status, 404, "no call is under way");
    app.stop().await;
}
