//! A job's way from submit to its end, as clients see it.

use std::time::Duration;

use serde_json::json;

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    a_sync_vendors_answer_becomes_the_result,
    a_webhook_vendors_callback_becomes_the_result,
    a_polling_vendor_is_asked_until_it_is_done,
    submit_answers_with_the_id_and_nothing_else,
    a_caller_can_wait_for_the_end,
    callers_who_wait_are_answered_when_the_service_stops,
    the_same_key_and_body_give_the_same_job,
    a_job_waits_for_its_time,
    a_job_past_its_deadline_expires_and_is_not_called,
    a_deadline_beyond_all_time_is_one_that_never_comes,
    a_deadline_before_the_job_may_begin_is_infeasible,
    a_cancelled_job_is_not_called,
    a_failed_job_can_be_replayed,
    jobs_are_listed_newest_first_and_filtered,
    a_batch_is_answered_item_by_item,
    failures_are_tried_again_until_the_attempts_are_used_up,
    busy_vendors_do_not_use_up_attempts,
    high_priority_goes_first_and_low_is_not_starved,
);

async fn a_sync_vendors_answer_becomes_the_result(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("sync", r#"{"customer_id": 12345}"#).await;
    assert_eq!(app.status(&id).await, "pending");
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!(job["status"], "complete");
    assert_eq!(job["result"]["echo"], json!({"customer_id": 12345}));
    assert_eq!(job["attempts"], 1);
    assert!(job["finished_at"].is_string());
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
    assert_eq!(attempts["attempts"][0]["outcome"], "done");
    assert_eq!(attempts["attempts"][0]["status"], 200);
    let sent = &app.vendors.arrivals("sync")[0];
    assert_eq!(sent.header("idempotency-key"), Some(&*id));
    assert!(sent.header("traceparent").is_some_and(|text| text.starts_with("00-")));
    app.stop().await;
}

async fn a_webhook_vendors_callback_becomes_the_result(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("async", r#"{"n": 1}"#).await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!(job["status"], "complete", "{job}");
    assert_eq!(job["result"]["echo"], json!({"n": 1}));
    assert_eq!(app.vendors.callback_replies("async"), [200]);
    app.stop().await;
}

async fn a_polling_vendor_is_asked_until_it_is_done(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("polling", r#"{"n": 2}"#).await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!(job["status"], "complete", "{job}");
    assert_eq!(job["result"]["echo"], json!({"n": 2}));
    let attempts = app.get(&format!("/jobs/{id}/attempts")).await.json();
    let kinds: Vec<_> = attempts["attempts"].as_array().unwrap().iter().map(|a| a["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["call", "poll", "poll", "poll"]);
    let polls = app.vendors.arrivals("polling");
    assert!(polls[1].header("idempotency-key").is_none(), "a poll carries no key");
    app.stop().await;
}

async fn submit_answers_with_the_id_and_nothing_else(backend: Backend) {
    let app = TestApp::start(backend).await;
    let answer = app.post("/jobs", r#"{"payload": null, "vendor": "sync"}"#).await;
    assert_eq!(answer.status, 202);
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.text, format!(r#"{{"request_id":"{id}"}}"#));
    assert_eq!(answer.header("location"), format!("/jobs/{id}"));
    assert_eq!(&id[14..15], "7", "a UUID v7");
    app.stop().await;
}

async fn a_caller_can_wait_for_the_end(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("sync", "1").await;
    let path = format!("/jobs/{id}?wait=60s");
    let request = app.request_in_background(hyper::Method::GET, &path, "").await;
    app.run_until_idle().await;
    assert_eq!(request.await.json()["status"], "complete");
    let body = r#"{"payload": 1, "vendor": "sync"}"#;
    let headers = [("content-type", "application/json"), ("prefer", "wait=0")];
    let answer = app.send(hyper::Method::POST, "/jobs", &headers, body).await;
    assert_eq!((answer.status.as_u16(), answer.header("preference-applied")), (202, "wait=0"));
    app.stop().await;
}

async fn callers_who_wait_are_answered_when_the_service_stops(backend: Backend) {
    let app = TestApp::start(backend).await;
    let id = app.submit("sync", "1").await;
    let path = format!("/jobs/{id}?wait=60s");
    let request = app.request_in_background(hyper::Method::GET, &path, "").await;
    // Whether the request has come by now or comes later: nobody may wait any more.
    app.app.store.signals().dismiss_waiters();
    assert_eq!(request.await.json()["status"], "pending");
    assert_eq!(app.get(&path).await.json()["status"], "pending");
    app.stop().await;
}

async fn the_same_key_and_body_give_the_same_job(backend: Backend) {
    let app = TestApp::start(backend).await;
    let send = async |key: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        app.send(hyper::Method::POST, "/jobs", &headers, body.to_owned()).await
    };
    let body = r#"{"payload": 1, "vendor": "sync"}"#;
    let first = send("k-1", body).await;
    let again = send("k-1", body).await;
    assert_eq!(again.text, first.text);
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), ("", "true"));
    assert_ne!(send("k-2", body).await.text, first.text);
    let other = send("k-1", r#"{"payload":1,"vendor":"sync"}"#).await;
    assert_eq!((other.status.as_u16(), &*other.code()), (422, "idempotency_key_reused"));
    // Two at once: the second waits for the first and is answered with its job.
    let (a, b) = tokio::join!(send("k-3", body), send("k-3", body));
    assert_eq!(a.text, b.text);
    let headers = [("content-type", "application/json"), ("idempotency-key", "has space")];
    let bad = app.send(hyper::Method::POST, "/jobs", &headers, body).await;
    assert_eq!(bad.code(), "invalid_idempotency_key");
    app.stop().await;
}

async fn a_job_waits_for_its_time(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit_with(r#"{"payload": 1, "vendor": "sync", "not_before": "10m"}"#).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("pending"), &json!("not_before")));
    assert_eq!(job["eligible_at"], "2026-01-15T08:10:00.000Z");
    app.run_for(Duration::from_secs(599)).await;
    assert_eq!(app.calls("sync"), 0);
    app.run_for(Duration::from_secs(2)).await;
    assert_eq!(app.status(&id).await, "complete");
    app.stop().await;
}

async fn a_job_past_its_deadline_expires_and_is_not_called(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.post("/vendors/sync/pause", "").await;
    let id = app.submit_with(r#"{"payload": 1, "vendor": "sync", "deadline": "5s"}"#).await;
    app.advance(Duration::from_secs(5)).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("expired"), &json!("deadline")));
    app.run_until_idle().await;
    app.post("/vendors/sync/resume", "").await;
    app.run_until_idle().await;
    assert_eq!(app.calls("sync"), 0);
    let again = app.post(&format!("/jobs/{id}/replay"), "").await;
    assert_eq!(again.status, 202, "{}", again.text);
    app.run_until_idle().await;
    assert_eq!(app.status(&id).await, "complete", "a duration deadline starts anew");
    app.stop().await;
}

async fn a_deadline_beyond_all_time_is_one_that_never_comes(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let mut ids = Vec::new();
    for long in ["18446744073709551615ms", "213503982334d", "9223372036854775808ms"] {
        ids.push(app.submit_with(&format!(r#"{{"payload": 1, "vendor": "sync", "deadline": "{long}"}}"#)).await);
        let batch = format!(
            r#"[{{"payload": 1, "vendor": "sync", "deadline": "{long}"}}, {{"payload": 2, "vendor": "sync"}}]"#
        );
        let answer = app.post("/jobs/batch", batch).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["accepted"]), (202, &json!(2)), "{}", answer.text);
    }
    assert_eq!(app.post(&format!("/jobs/{}/cancel", ids[0]), "").await.status, 200);
    assert_eq!(app.post(&format!("/jobs/{}/replay", ids[0]), "").await.status, 202);
    app.run_until_idle().await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete");
    }
    app.stop().await;
}

async fn a_deadline_before_the_job_may_begin_is_infeasible(backend: Backend) {
    let app = TestApp::start(backend).await;
    for deadline in ["5s", "10s"] {
        let body = format!(r#"{{"payload": 1, "vendor": "sync", "not_before": "10s", "deadline": "{deadline}"}}"#);
        let answer = app.post("/jobs", body).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "infeasible"));
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("2026-01-15T08:00:10.000Z"), "the earliest time is told: {detail}");
    }
    app.submit_with(r#"{"payload": 1, "vendor": "sync", "not_before": "10s", "deadline": "11s"}"#).await;
    app.stop().await;
}

async fn a_cancelled_job_is_not_called(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("sync", "1").await;
    assert_eq!(app.post(&format!("/jobs/{id}/cancel"), "").await.json()["status"], "cancelled");
    app.run_until_idle().await;
    assert_eq!(app.calls("sync"), 0);
    let again = app.post(&format!("/jobs/{id}/cancel"), "").await;
    assert_eq!((again.status.as_u16(), &*again.code()), (409, "already_ended"));
    app.stop().await;
}

async fn a_failed_job_can_be_replayed(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.vendors.script("sync", vec![mock_vendors::Answer::status(400)]);
    let id = app.submit("sync", "1").await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("vendor_refused")));
    assert!(job.get("result").is_none());
    assert_eq!(app.post(&format!("/jobs/{id}/replay"), "").await.json()["status"], "pending");
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["attempts"]), (&json!("complete"), &json!(2)));
    assert!(job.get("error").is_none());
    let keys: Vec<_> =
        app.vendors.arrivals("sync").iter().map(|call| call.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys, [id.clone(), format!("{id}-1")]);
    let again = app.post(&format!("/jobs/{id}/replay"), "").await;
    assert_eq!((again.status.as_u16(), &*again.code()), (409, "not_replayable"));
    app.stop().await;
}

async fn jobs_are_listed_newest_first_and_filtered(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let mut ids = Vec::new();
    for i in 0..7 {
        let (vendor, tag) = if i % 2 == 0 { ("sync", "even") } else { ("polling", "odd") };
        let body = format!(r#"{{"payload": {i}, "vendor": "{vendor}", "tags": ["{tag}"], "tenant": "t{i}"}}"#);
        ids.push(app.submit_with(&body).await);
        app.clock.advance(Duration::from_millis(1));
    }
    ids.reverse();
    let listed = async |query: &str| -> Vec<String> {
        let mut found = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = app.get(&format!("/jobs?limit=2{query}{cursor}")).await.json();
            let jobs = page["jobs"].as_array().unwrap().clone();
            assert!(jobs.len() <= 2 && jobs.iter().all(|job| job.get("result").is_none()));
            found.extend(jobs.iter().map(|job| job["request_id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    };
    assert_eq!(listed("").await, ids);
    assert_eq!(listed("&vendor=polling").await, [1, 3, 5].map(|i| ids[i].clone()));
    assert_eq!(listed("&tag=odd").await.len(), 3);
    assert_eq!(listed("&tenant=t0").await, [ids[6].clone()]);
    assert_eq!(listed("&status=complete").await, Vec::<String>::new());
    assert_eq!(listed("&created_after=2026-01-15T08:00:00.005Z").await, ids[..2]);
    assert_eq!(listed("&created_before=2026-01-15T08:00:00.002Z").await, ids[5..]);
    app.run_until_idle().await;
    let answer = app.get("/jobs?status=complete&limit=500").await;
    assert_eq!(answer.json()["jobs"].as_array().unwrap().len(), 7);
    app.stop().await;
}

async fn a_batch_is_answered_item_by_item(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let lines = "{\"payload\": 1, \"vendor\": \"sync\"}\n\n{\"payload\": 2}\r\nnot json\n{\"payload\": 3, \"vendor\": \"polling\"}";
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", "b")];
    let answer = app.send(hyper::Method::POST, "/jobs/batch", &headers, lines).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let batch = answer.json();
    assert_eq!((&batch["accepted"], &batch["rejected"]), (&json!(2), &json!(2)));
    assert_eq!(batch["items"][1]["error"]["errors"][0]["pointer"], "/vendor");
    assert_eq!(batch["items"][2]["error"]["code"], "malformed_json");
    let again = app.send(hyper::Method::POST, "/jobs/batch", &headers, lines).await.json();
    assert_eq!(again["items"], batch["items"], "the key covers the batch");
    let array = r#" [ {"payload": [1,"]"], "vendor": "sync"} , {"vendor": "sync"} ] "#;
    let answer = app.post("/jobs/batch", array).await.json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(1), &json!(1)));
    assert_eq!(app.post("/jobs/batch", "[]").await.json()["items"], json!([]));
    for bad in ["[1,]", "[", "{}", "[1] 2", "[{]}", ""] {
        assert_eq!(app.post("/jobs/batch", bad).await.code(), "malformed_json", "{bad}");
    }
    app.run_until_idle().await;
    let done = app.get("/jobs?status=complete").await.json();
    assert_eq!(done["jobs"].as_array().unwrap().len(), 3);
    app.stop().await;
}

async fn failures_are_tried_again_until_the_attempts_are_used_up(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.vendors.script("sync", vec![mock_vendors::Answer::status(500); 17]);
    let id = app.submit("sync", "1").await;
    app.run_until_idle().await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")));
    assert_eq!((job["attempts"].as_u64(), app.calls("sync")), (Some(16), 16));
    assert_eq!(job["error"]["message"], "16 attempts; the last: the vendor answered 500");
    app.stop().await;
}

async fn busy_vendors_do_not_use_up_attempts(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let busy = mock_vendors::Answer::status(429).header("retry-after", "2");
    app.vendors.script("sync", vec![busy; 12]);
    let id = app.submit("sync", "1").await;
    let other = app.submit("sync", "2").await;
    let before = app.clock.now();
    app.run_until_idle().await;
    for id in [&id, &other] {
        assert_eq!(app.status(id).await, "complete");
    }
    assert!(app.clock.now().since(before) >= Duration::from_secs(12), "each 429 closes the gate for two seconds");
    assert_eq!(app.get("/vendors/sync").await.json()["throttled_total"], 12);
    app.stop().await;
}

async fn high_priority_goes_first_and_low_is_not_starved(backend: Backend) {
    let config = crate::support::THREE_KINDS.replacen("1000/s", "10/s", 1);
    let mut app = TestApp::with(backend, &config).await;
    for priority in ["low", "normal", "high"] {
        for i in 0..42 {
            let body = format!(r#"{{"payload": "{priority}-{i}", "vendor": "sync", "priority": "{priority}"}}"#);
            app.submit_with(&body).await;
        }
    }
    app.run_until_idle().await;
    let order: Vec<String> =
        app.vendors.arrivals("sync").iter().map(|call| String::from_utf8_lossy(&call.body).into_owned()).collect();
    assert_eq!(order.len(), 126);
    let among_first = |priority: &str| order[..42].iter().filter(|body| body.contains(priority)).count();
    assert_eq!((among_first("high"), among_first("normal"), among_first("low")), (32, 8, 2));
    assert!(
        order.iter().filter(|body| body.contains("high")).is_sorted_by_key(|body| body.len()),
        "first in, first out"
    );
    app.stop().await;
}
