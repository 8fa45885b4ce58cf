//! Ends of jobs, announced to those who asked for it.

use std::{collections::BTreeSet, time::Duration};

use fetchgate::{job::ResultWebhook, store::webhooks::WebhookChange};
use hyper::Method;
use mock_vendors::Arrival;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{
        Backend, TestApp,
        raw::{Raw, RawVendor},
        sign::standard_v1,
    },
};

on_every_backend!(
    an_ended_job_is_announced_once_signed_and_as_it_is_read,
    a_receiver_that_fails_gets_it_again_later_with_the_same_id,
    a_receiver_says_when_to_come_again_and_when_not_at_all,
    a_replayed_job_has_another_end_with_another_id,
    what_is_owed_survives_a_crash_and_keeps_its_job,
    what_a_dead_process_had_claimed_is_sent_when_the_claim_lapses,
    a_receiver_that_never_answers_delays_no_other,
    a_large_result_is_left_out,
    every_configured_secret_signs,
    an_erased_job_is_not_announced,
    a_url_that_can_never_be_allowed_is_refused,
);

pub(super) const ONE: &str = r#"
[result_webhooks]
allow = ["VENDORS"]
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = ["1000/s"]
[vendors.shaky]
kind = "sync"
url = "VENDORS/sync/shaky?status=400&first=1"
limits = ["1000/s"]
[vendors.large]
kind = "sync"
url = "VENDORS/sync/large?fault=big&size=300000"
limits = ["1000/s"]
"#;

/// A job for `vendor` whose end is announced at this path of the mock vendors.
pub(super) async fn submit(app: &TestApp, vendor: &str, path: &str) -> String {
    submit_to(app, vendor, &format!("{}{path}", app.vendors.url())).await
}

pub(super) async fn submit_to(app: &TestApp, vendor: &str, url: &str) -> String {
    app.submit_with(&json!({ "vendor": vendor, "payload": {"a": 1}, "callback_url": url }).to_string()).await
}

pub(super) async fn webhook(app: &TestApp, id: &str) -> Value {
    app.find(id).await["result_webhook"].clone()
}

async fn secrets(app: &TestApp, query: &str) -> Vec<String> {
    let answer = app.get(&format!("/result-webhooks/secret{query}")).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"), "{}", answer.text);
    serde_json::from_value(answer.json()["secrets"].clone()).expect("texts")
}

pub(super) fn header<'a>(arrival: &'a Arrival, name: &str) -> &'a str {
    arrival.header(name).unwrap_or_else(|| panic!("no {name}"))
}

pub(super) fn ids(app: &TestApp, name: &str) -> Vec<String> {
    app.vendors.arrivals(name).iter().map(|arrival| header(arrival, "webhook-id").to_owned()).collect()
}

async fn resend(app: &TestApp, id: &str) -> crate::support::Answer {
    app.send(Method::POST, &format!("/jobs/{id}/result-webhook"), &[], "").await
}

async fn an_ended_job_is_announced_once_signed_and_as_it_is_read(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let id = submit(&app, "sync", "/sync/hook").await;
    let before = webhook(&app, &id).await;
    assert_eq!(
        (&before["status"], &before["attempts"], &before["next_at"]),
        (&json!("pending"), &json!(0), &json!(null))
    );
    app.run_until_idle().await;
    app.announce().await;
    app.announce().await;
    let arrivals = app.vendors.arrivals("hook");
    assert_eq!(arrivals.len(), 1);
    let (one, body) = (&arrivals[0], &arrivals[0].body);
    let (message, at) = (header(one, "webhook-id"), header(one, "webhook-timestamp"));
    assert_eq!(at, (app.clock.now().0 / 1000).to_string());
    let made = secrets(&app, "").await;
    assert_eq!(made.len(), 1, "one secret was made");
    assert_eq!(header(one, "webhook-signature"), standard_v1(&made[0], message, at, body));
    assert_eq!((one.method.as_str(), header(one, "content-type")), ("POST", "application/json"));
    let mut job = app.find(&id).await;
    let told = job.as_object_mut().and_then(|job| job.remove("result_webhook")).expect("shown");
    assert_eq!(serde_json::from_slice::<Value>(body).expect("JSON"), job, "as it is read");
    assert_eq!((&told["status"], &told["attempts"]), (&json!("delivered"), &json!(1)));
    assert_eq!((&told["last_status"], &told["next_at"]), (&json!(200), &json!(null)));
    let plain = app.submit("sync", "1").await;
    app.run_until_idle().await;
    app.announce().await;
    assert_eq!((webhook(&app, &plain).await, ids(&app, "hook").len()), (json!(null), 1));
    let refused = resend(&app, &plain).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "no_callback_url"));
    app.stop().await;
}

async fn a_receiver_that_fails_gets_it_again_later_with_the_same_id(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let id = submit(&app, "sync", "/sync/hook?fail_first=2").await;
    app.run_until_idle().await;
    app.announce().await;
    let after = webhook(&app, &id).await;
    assert_eq!((&after["status"], &after["last_status"]), (&json!("pending"), &json!(500)));
    assert_eq!(after["last_error"], "the receiver answered 500");
    app.advance(Duration::from_secs(2)).await;
    app.announce().await;
    assert_eq!(ids(&app, "hook").len(), 1, "it waits");
    for (wait, tries) in [(3, 2), (10, 3)] {
        app.advance(Duration::from_secs(wait)).await;
        app.announce().await;
        assert_eq!(ids(&app, "hook").len(), tries);
    }
    assert_eq!(webhook(&app, &id).await["status"], "delivered");
    assert_eq!(ids(&app, "hook").into_iter().collect::<BTreeSet<_>>().len(), 1);
    app.stop().await;
}

async fn a_receiver_says_when_to_come_again_and_when_not_at_all(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let later = submit(&app, "sync", "/sync/later?status=503&retry_after=90&first=1").await;
    let gone = submit(&app, "sync", "/sync/gone?status=410&first=1").await;
    let refused = resend(&app, &gone).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "not_ended"));
    app.run_until_idle().await;
    app.announce().await;
    app.advance(Duration::from_secs(89)).await;
    app.announce().await;
    assert_eq!((ids(&app, "later").len(), &*webhook(&app, &later).await["last_status"].to_string()), (1, "503"));
    app.advance(Duration::from_secs(1)).await;
    app.announce().await;
    assert_eq!(webhook(&app, &later).await["status"], "delivered");
    let told = webhook(&app, &gone).await;
    assert_eq!(
        (&told["status"], &told["last_status"], &told["next_at"]),
        (&json!("gave_up"), &json!(410), &json!(null))
    );
    let again = resend(&app, &gone).await;
    assert_eq!((again.status.as_u16(), &again.json()["result_webhook"]["status"]), (202, &json!("pending")));
    app.announce().await;
    assert_eq!(webhook(&app, &gone).await["status"], "delivered");
    let ids = ids(&app, "gone");
    assert_eq!((ids.len(), &ids[0]), (2, &ids[1]));
    app.stop().await;
}

async fn a_replayed_job_has_another_end_with_another_id(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let id = submit(&app, "shaky", "/sync/hook").await;
    app.run_until_idle().await;
    app.announce().await;
    let replayed = app.post(&format!("/jobs/{id}/replay"), "").await;
    assert_eq!((replayed.status.as_u16(), &replayed.json()["result_webhook"]["status"]), (202, &json!("pending")));
    app.announce().await;
    assert_eq!(ids(&app, "hook").len(), 1, "it has not ended again");
    app.run_until_idle().await;
    app.announce().await;
    let told: Vec<Value> =
        app.vendors.arrivals("hook").iter().map(|one| serde_json::from_slice(&one.body).expect("JSON")).collect();
    assert_eq!((&told[0]["status"], &told[1]["status"], told.len()), (&json!("failed"), &json!("complete"), 2));
    let ids = ids(&app, "hook");
    assert_ne!(ids[0], ids[1]);
    app.stop().await;
}

async fn what_is_owed_survives_a_crash_and_keeps_its_job(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let (id, plain) = (submit(&app, "sync", "/sync/hook").await, app.submit("sync", "1").await);
    let cancelled = submit(&app, "sync", "/sync/hook").await;
    assert_eq!(app.post(&format!("/jobs/{cancelled}/cancel"), "").await.status, 200);
    app.run_until_idle().await;
    let mut app = app.crash_and_restart().await;
    app.advance(Duration::from_secs(8 * 86_400)).await;
    app.advance(Duration::from_secs(120)).await;
    assert_eq!(app.get(&format!("/jobs/{plain}")).await.status, 404, "over its retention");
    assert_eq!(app.status(&id).await, "complete");
    app.announce().await;
    assert_eq!(ids(&app, "hook").into_iter().collect::<BTreeSet<_>>().len(), 2);
    app.advance(Duration::from_secs(120)).await;
    app.advance(Duration::from_secs(120)).await;
    for id in [id, cancelled] {
        assert_eq!(app.get(&format!("/jobs/{id}")).await.status, 404);
    }
    app.stop().await;
}

async fn what_a_dead_process_had_claimed_is_sent_when_the_claim_lapses(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    submit(&app, "sync", "/sync/hook").await;
    app.run_until_idle().await;
    let (outbox, now) = (app.app.webhooks.outbox.clone(), app.clock.now());
    let (id, was) =
        outbox.due(&format!("{} default", app.vendors.url()).into(), now, 9).await.expect("the store works").remove(0);
    let claim = |secs| {
        let is = ResultWebhook { next_at: Some(now.plus(Duration::from_secs(secs))), ..was.clone() };
        vec![WebhookChange { id, was: was.clone(), is }]
    };
    assert_eq!(outbox.change(claim(60)).await.expect("the store works"), [true]);
    assert_eq!(outbox.change(claim(61)).await.expect("the store works"), [false], "only one claims it");
    let mut app = app.crash_and_restart().await;
    app.announce().await;
    assert_eq!(ids(&app, "hook").len(), 0);
    app.advance(Duration::from_secs(60)).await;
    app.announce().await;
    assert_eq!(ids(&app, "hook").len(), 1);
    app.stop().await;
}

async fn a_receiver_that_never_answers_delays_no_other(backend: Backend) {
    const EACH: usize = 60;
    let silent = RawVendor::start(vec![Raw::Stall(Vec::new())]).await;
    let mut app =
        TestApp::with(backend, &ONE.replace("\"VENDORS\"]", &format!("\"VENDORS\", \"{}\"]", silent.url))).await;
    for _ in 0..EACH {
        submit_to(&app, "sync", &format!("{}/hook", silent.url)).await;
        submit(&app, "sync", "/sync/hook").await;
    }
    app.run_until_idle().await;
    let announced = async {
        app.begin_announcing().await;
        while ids(&app, "hook").len() < EACH {
            app.get("/livez").await;
        }
    };
    // Less than the time that the silent one has to answer.
    tokio::time::timeout(Duration::from_secs(10), announced).await.expect("the other one gets all of its own");
    assert_eq!(ids(&app, "hook").into_iter().collect::<BTreeSet<_>>().len(), EACH);
    assert!((1..=8).contains(&silent.calls()), "{} at once", silent.calls());
    app.stop().await;
}

async fn a_large_result_is_left_out(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let id = submit(&app, "large", "/sync/hook").await;
    app.run_until_idle().await;
    app.announce().await;
    assert_eq!(app.status(&id).await, "complete");
    let told: Value = serde_json::from_slice(&app.vendors.arrivals("hook")[0].body).expect("JSON");
    assert_eq!(
        (&told["result_omitted"], &told["result"], &told["status"]),
        (&json!(true), &json!(null), &json!("complete"))
    );
    app.stop().await;
}

async fn every_configured_secret_signs(backend: Backend) {
    let [new, old, acme] = [
        "whsec_bmV3IG5ldyBuZXcgbmV3IG5ldw==",
        "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZA==",
        "whsec_YWNtZSBhY21lIGFjbWUgYWNtZQ==",
    ];
    let config =
        format!("[tenants.acme]\nwebhook_secret = \"{acme}\"\n[result_webhooks]\nsecret = [\"{new}\", \"{old}\"]");
    let mut app = TestApp::with(backend, &ONE.replace("[result_webhooks]", &config)).await;
    assert_eq!(secrets(&app, "?tenant=other").await, [new, old]);
    assert_eq!(secrets(&app, "?tenant=acme").await, [acme]);
    submit(&app, "sync", "/sync/all").await;
    let url = format!("{}/sync/acme", app.vendors.url());
    app.submit_with(&json!({"vendor": "sync", "payload": 1, "tenant": "acme", "callback_url": url}).to_string()).await;
    app.run_until_idle().await;
    app.announce().await;
    for (name, secrets) in [("all", vec![new, old]), ("acme", vec![acme])] {
        let one = &app.vendors.arrivals(name)[0];
        let (id, at) = (header(one, "webhook-id"), header(one, "webhook-timestamp"));
        let signed: Vec<String> = secrets.iter().map(|secret| standard_v1(secret, id, at, &one.body)).collect();
        assert_eq!(header(one, "webhook-signature"), signed.join(" "), "{name}");
    }
    app.stop().await;
}

async fn an_erased_job_is_not_announced(backend: Backend) {
    let mut app = TestApp::with(backend, ONE).await;
    let id = submit(&app, "sync", "/sync/hook").await;
    app.run_until_idle().await;
    assert_eq!(app.send(Method::DELETE, &format!("/jobs/{id}"), &[], "").await.status, 204);
    app.announce().await;
    assert_eq!(ids(&app, "hook"), Vec::<String>::new());
    assert_eq!(resend(&app, &id).await.code(), "unknown_job");
    app.stop().await;
}

async fn a_url_that_can_never_be_allowed_is_refused(backend: Backend) {
    let app = TestApp::with(backend, ONE).await;
    let long = format!("https://hooks.example/{}", "x".repeat(2048));
    for url in [
        "http://hooks.example/",
        "https://127.1/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://hooks.example:22/",
        "x",
        &long,
    ] {
        let answer = app.post("/jobs", json!({"vendor": "sync", "payload": 1, "callback_url": url}).to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "invalid_field"), "{url}");
        assert_eq!(answer.json()["errors"][0]["pointer"], "/callback_url", "{url}");
        assert!(!answer.text.contains(url) || url == "x", "it is not repeated: {}", answer.text);
    }
    for url in [json!(null), json!("https://hooks.example/a?b=c")] {
        let body = json!({"vendor": "sync", "payload": 1, "callback_url": url}).to_string();
        assert_eq!(app.post("/jobs", body).await.status, 202);
    }
    app.stop().await;
}
