//! Jobs that are erased before their retention is over.

use hyper::Method;
use serde_json::json;

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp},
};

on_every_backend!(an_ended_job_is_erased_and_leaves_nothing, a_key_of_an_erased_job_makes_no_new_job);

async fn erase(app: &TestApp, id: &str) -> Answer {
    app.send(Method::DELETE, &format!("/jobs/{id}"), &[], "").await
}

async fn an_ended_job_is_erased_and_leaves_nothing(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let id = app.submit("sync", r#"{"ssn": "078-05-1120"}"#).await;
    let refused = erase(&app, &id).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (409, "not_ended"));
    app.run_until_idle().await;
    let other = app.submit("sync", "2").await;
    app.run_until_idle().await;
    let erased = erase(&app, &id).await;
    assert_eq!((erased.status.as_u16(), erased.text.as_str()), (204, ""));
    for (method, path) in [
        (Method::GET, format!("/jobs/{id}")),
        (Method::GET, format!("/jobs/{id}/attempts")),
        (Method::POST, format!("/jobs/{id}/replay")),
        (Method::POST, format!("/jobs/{id}/cancel")),
        (Method::DELETE, format!("/jobs/{id}")),
    ] {
        let answer = app.send(method.clone(), &path, &[], "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "unknown_job"), "{method} {path}");
    }
    let app = app.crash_and_restart().await;
    let left = app.get("/jobs").await.json();
    assert_eq!((&left["jobs"][0]["request_id"], &left["jobs"][1]), (&json!(other), &json!(null)));
    for malformed in ["x", "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16"] {
        assert_eq!(erase(&app, malformed).await.code(), "unknown_job");
    }
    app.stop().await;
}

async fn a_key_of_an_erased_job_makes_no_new_job(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "order-1")];
    let body = r#"{"vendor": "sync", "payload": 1}"#;
    let submit = async |app: &TestApp| app.send(Method::POST, "/jobs", &headers, body).await;
    let id = submit(&app).await.json()["request_id"].as_str().expect("an id").to_owned();
    app.run_until_idle().await;
    assert_eq!(erase(&app, &id).await.status, 204);
    let again = submit(&app).await;
    assert_eq!((again.status.as_u16(), again.header("idempotency-replayed")), (202, "true"));
    assert_eq!(again.json()["request_id"], id);
    app.run_until_idle().await;
    assert_eq!((app.calls("sync"), app.get(&format!("/jobs/{id}")).await.status.as_u16()), (1, 404));
    app.stop().await;
}
