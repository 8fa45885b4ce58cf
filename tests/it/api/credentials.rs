//! Credentials that end, that are refused and that change: the vendor waits, its jobs are kept, and no secret is shown.

use std::{fs, path::PathBuf, time::Duration};

use mock_vendors::{Answer, Arrival};
use serde_json::Value;

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    report_01_a_token_is_renewed_before_it_ends_and_150_jobs_complete,
    report_01_a_token_that_the_vendor_ends_early_is_renewed_once_for_all,
    an_identity_provider_that_is_unavailable_for_a_minute_fails_no_job,
    an_identity_provider_that_fails_before_a_token_ends_stops_no_call,
    what_an_identity_provider_says_is_shown_without_the_secret,
    report_01_a_vendor_that_answers_401_to_everybody_for_a_minute_fails_no_job,
    report_01_calls_that_are_refused_together_are_one_renewal,
    a_job_is_not_to_blame_while_nobody_is_taken,
    a_single_job_whose_own_object_is_401_fails_alone,
    a_restart_forgets_no_refusal_of_a_job,
    a_poll_that_meets_401_keeps_its_ticket,
    resume_asks_a_vendor_that_refused_our_credentials_at_once,
    a_secret_in_a_file_is_used_within_two_seconds_of_its_change,
    a_vendor_that_waits_is_asked_when_a_secrets_file_changes,
    a_secrets_file_that_is_gone_leaves_the_last_secret_in_use,
    every_kind_of_auth_goes_out_and_no_secret_is_shown,
    a_secret_that_the_vendor_repeats_is_masked,
    a_secret_in_a_url_that_the_vendor_repeats_is_masked,
);

const SECOND: Duration = Duration::from_secs(1);

fn vendor(auth: &str) -> String {
    format!(
        "[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = [\"10/s\"]\nretry = {{ first = \"1s\" }}\n{auth}\n"
    )
}

fn oauth() -> String {
    vendor(
        r#"auth = { kind = "oauth2", token_url = "VENDORS/sync/idp?latency_ms=0", client_id = "us/1", client_secret = "s3cr+t", scope = "a b" }"#,
    )
}

/// What the identity provider answers: tokens `t1`, `t2`, ...
fn tokens(count: usize, seconds: u32) -> Vec<Answer> {
    let token = |n| format!(r#"{{"access_token": "t{n}", "token_type": "bearer", "expires_in": {seconds}}}"#);
    (1..=count).map(|n| Answer::json(200, token(n))).collect()
}

async fn submit(app: &TestApp, jobs: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..jobs {
        ids.push(app.submit("one", &i.to_string()).await);
    }
    ids
}

async fn assert_all_are(app: &TestApp, ids: &[String], status: &str) {
    for id in ids {
        let job = app.find(id).await;
        assert_eq!(job["status"], status, "{job}");
    }
}

fn authorizations(app: &TestApp) -> Vec<String> {
    let of = |arrival: &Arrival| arrival.header("authorization").unwrap_or_default().to_owned();
    app.vendors.arrivals("one").iter().map(of).collect()
}

async fn state(app: &TestApp) -> (Value, String) {
    let metrics = app.get("/metrics").await.text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("fetchgate_credentials_state{vendor=\"one\"} "));
    (app.get("/vendors/one").await.json()["blocked_on"].clone(), line.expect("the metric").to_owned())
}

async fn report_01_a_token_is_renewed_before_it_ends_and_150_jobs_complete(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth()).await;
    app.vendors.script("idp", tokens(9, 8));
    let ids = submit(&app, 150).await;
    let (start, mut issued) = (app.clock.nanos(), Vec::new());
    while app.clock.nanos() < start + fetchgate::clock::nanos(20 * SECOND) {
        while issued.len() < app.calls("idp") {
            issued.push(app.clock.nanos());
        }
        // Those that have not ended, and the one that may be issued next.
        let is_good = |at: &i64| app.clock.nanos() < at + fetchgate::clock::nanos(8 * SECOND);
        let good = issued.iter().enumerate().filter(|(_, at)| is_good(at)).map(|(n, _)| n + 1);
        let good: Vec<String> = good.chain([issued.len() + 1]).map(|n| format!("Bearer t{n}")).collect();
        app.vendors.accept_only("one", &good.iter().map(String::as_str).collect::<Vec<_>>());
        app.run_for(SECOND / 20).await;
    }
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!(
        (app.calls("one"), app.calls("idp")),
        (150, 3),
        "no call was refused, and a token was asked for in time"
    );
    assert!(authorizations(&app).is_sorted(), "no call went out with an old token after the renewal");
    let asked = &app.vendors.arrivals("idp")[0];
    assert_eq!(asked.body, "grant_type=client_credentials&scope=a+b".as_bytes());
    assert_eq!(asked.header("authorization"), Some("Basic dXMlMkYxOnMzY3IlMkJ0"), "us%2F1:s3cr%2Bt");
    assert_eq!((asked.method.as_str(), asked.path_and_query.as_str()), ("POST", "/sync/idp?latency_ms=0"));
}

async fn report_01_a_token_that_the_vendor_ends_early_is_renewed_once_for_all(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth()).await;
    app.vendors.script("idp", tokens(9, 3600));
    let ids = submit(&app, 30).await;
    app.run_for(SECOND).await;
    assert_eq!(app.calls("idp"), 1);
    app.vendors.accept_only("one", &["Bearer t2"]);
    app.run_for(SECOND).await;
    assert_eq!(app.calls("idp"), 2);
    // And again: the last renewal did its work.
    app.vendors.accept_only("one", &["Bearer t3"]);
    app.run_for(10 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!(app.calls("idp"), 3);
    assert!(authorizations(&app).is_sorted());
    assert_eq!(state(&app).await, (Value::Null, "0".into()));
}

async fn report_01_calls_that_are_refused_together_are_one_renewal(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth().replace(r#"["10/s"]"#, "[]")).await;
    app.vendors.script("idp", tokens(9, 3600));
    app.vendors.accept_only("one", &["Bearer t2"]);
    let ids = submit(&app, 10).await;
    app.run_for(SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!(app.calls("idp"), 2, "a late refusal of the old token does not end the new one");
    assert_eq!(state(&app).await, (Value::Null, "0".into()));
}

async fn a_job_is_not_to_blame_while_nobody_is_taken(backend: Backend) {
    let mut app = TestApp::with(backend, &vendor(r#"auth = { kind = "bearer", token = "k" }"#)).await;
    app.vendors.accept_only("one", &[]);
    let id = submit(&app, 1).await.remove(0);
    app.run_for(600 * SECOND).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&"pending".into(), &"credentials".into()), "{job}");
    // At 0, 30, 90, 210 and 450 s.
    assert_eq!((&job["attempts"], &job["tries"]), (&5.into(), &0.into()));
    app.vendors.accept_only("one", &["Bearer k"]);
    app.run_for(300 * SECOND).await;
    assert_all_are(&app, &[id], "complete").await;
}

async fn an_identity_provider_that_is_unavailable_for_a_minute_fails_no_job(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth()).await;
    app.vendors.script("idp", vec![Answer::status(503), Answer::status(503)]);
    app.vendors.script("idp", tokens(1, 3600));
    let ids = submit(&app, 20).await;
    app.run_for(29 * SECOND).await;
    assert_eq!((app.calls("idp"), app.calls("one")), (1, 0), "one request, and no call without a token");
    let job = app.find(&ids[0]).await;
    assert_eq!(
        (&job["status"], &job["blocked_on"], &job["attempts"]),
        (&"pending".into(), &"credentials".into(), &0.into())
    );
    assert_eq!(state(&app).await, ("credentials".into(), "2".into()));
    app.run_for(31 * SECOND).await;
    assert_eq!((app.calls("idp"), app.calls("one")), (2, 0));
    app.run_for(40 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!(state(&app).await, (Value::Null, "0".into()));
}

async fn an_identity_provider_that_fails_before_a_token_ends_stops_no_call(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth()).await;
    let mut answers = tokens(2, 8);
    answers.insert(1, Answer::status(503));
    app.vendors.script("idp", answers);
    let ids = submit(&app, 100).await;
    app.run_for(12 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!((app.calls("one"), app.calls("idp")), (100, 3));
}

async fn what_an_identity_provider_says_is_shown_without_the_secret(backend: Backend) {
    let mut app = TestApp::with(backend, &oauth()).await;
    let said = r#"{"error": "invalid_client", "error_description": "the secret s3cr+t has ended"}"#;
    app.vendors.script("idp", vec![Answer::json(401, said)]);
    submit(&app, 1).await;
    app.run_for(SECOND).await;
    let vendor = app.get("/vendors/one").await.json();
    let message = vendor["last_error"]["message"].as_str().expect("a message");
    assert!(message.contains("401") && message.contains("invalid_client: the secret [secret] has ended"), "{message}");
    assert!(vendor["since"].is_string() && vendor["until"].is_string(), "{vendor}");
}

async fn report_01_a_vendor_that_answers_401_to_everybody_for_a_minute_fails_no_job(backend: Backend) {
    let mut app = TestApp::with(backend, &vendor(r#"auth = { kind = "bearer", token = "k" }"#)).await;
    app.vendors.accept_only("one", &[]);
    let ids = submit(&app, 20).await;
    app.run_for(29 * SECOND).await;
    assert_eq!(app.calls("one"), 1, "the first refusal stops all");
    let job = app.find(&ids[19]).await;
    assert_eq!((&job["blocked_on"], &job["attempts"]), (&"credentials".into(), &0.into()));
    let vendor = app.get("/vendors/one").await.json();
    assert_eq!(vendor["last_error"]["message"], "the vendor answered 401");
    let said = &vendor["last_error"]["vendor"];
    assert_eq!((&said["status"], &said["body"]), (&401.into(), &r#"{"error":"invalid_token"}"#.into()), "{vendor}");
    let since = vendor["since"].clone();
    assert_eq!(state(&app).await, ("credentials".into(), "2".into()));
    app.run_for(31 * SECOND).await;
    assert_eq!(app.calls("one"), 2, "one probe");
    let arrivals = app.vendors.arrivals("one");
    assert_ne!(arrivals[0].header("idempotency-key"), arrivals[1].header("idempotency-key"), "of another job");
    assert_eq!(app.get("/vendors/one").await.json()["since"], since);
    app.vendors.accept_only("one", &["Bearer k"]);
    app.run_for(35 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    let first = app.find(&ids[0]).await;
    assert_eq!(first["attempts"], 2);
    assert_eq!(state(&app).await, (Value::Null, "0".into()));
}

/// Twenty jobs, the sixth of which the vendor answers with 401 and the others with their data.
async fn one_of_twenty_is_refused(backend: Backend) -> (TestApp, String, Vec<String>) {
    let text = vendor(r#"auth = { kind = "bearer", token = "k" }"#)
        .replace("/sync/one", "/sync/one?status={{ payload.status | query }}");
    let app = TestApp::with(backend, &text).await;
    let mut ids = Vec::new();
    for i in 0..20 {
        let status = if i == 5 { 401 } else { 200 };
        ids.push(app.submit("one", &format!(r#"{{"status": {status}}}"#)).await);
    }
    let bad = ids.remove(5);
    (app, bad, ids)
}

async fn a_single_job_whose_own_object_is_401_fails_alone(backend: Backend) {
    let (mut app, bad, ids) = one_of_twenty_is_refused(backend).await;
    app.run_for(29 * SECOND).await;
    assert_eq!((app.calls("one"), state(&app).await.0), (6, "credentials".into()), "all wait: it may be about all");
    app.run_for(10 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    app.run_for(60 * SECOND).await;
    let job = app.find(&bad).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"vendor_refused".into()), "{job}");
    assert_eq!((&job["attempts"], &job["tries"]), (&3.into(), &0.into()));
    assert_eq!(state(&app).await, (Value::Null, "0".into()));
}

async fn a_restart_forgets_no_refusal_of_a_job(backend: Backend) {
    let (mut app, bad, ids) = one_of_twenty_is_refused(backend).await;
    app.run_for(40 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
    assert_eq!(app.find(&bad).await["attempts"], 2, "it was refused, others were taken, and it was refused again");
    let mut app = app.crash_and_restart().await;
    app.run_for(60 * SECOND).await;
    let job = app.find(&bad).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"vendor_refused".into()), "{job}");
    assert_eq!(job["attempts"], 3);
}

async fn a_poll_that_meets_401_keeps_its_ticket(backend: Backend) {
    let text = vendor(r#"auth = { kind = "bearer", token = "k" }"#)
        .replace("\"sync\"", "\"polling\"")
        .replace("sync/one", "polling/one")
        + r#"polling = { ticket = "/id", url = "VENDORS/polling/one/{{ ticket | path }}", every = "1s", done = { at = "/state", is = ["done"] } }"#;
    let mut app = TestApp::with(backend, &text).await;
    let id = submit(&app, 1).await.remove(0);
    app.run_for(SECOND / 2).await;
    assert_eq!(app.calls("one"), 1);
    app.vendors.accept_only("one", &[]);
    app.run_for(10 * SECOND).await;
    let job = app.find(&id).await;
    assert_eq!((&job["status"], &job["blocked_on"]), (&"processing".into(), &"credentials".into()));
    app.vendors.accept_only("one", &["Bearer k"]);
    app.run_for(60 * SECOND).await;
    assert_eq!(app.status(&id).await, "complete");
    let submits = app.vendors.arrivals("one").iter().filter(|arrival| arrival.method == "POST").count();
    assert_eq!(submits, 1, "it was polled under its ticket, not submitted again");
}

async fn resume_asks_a_vendor_that_refused_our_credentials_at_once(backend: Backend) {
    let mut app = TestApp::with(backend, &vendor(r#"auth = { kind = "bearer", token = "k" }"#)).await;
    app.vendors.accept_only("one", &[]);
    let ids = submit(&app, 3).await;
    app.run_for(5 * SECOND).await;
    assert_eq!(app.calls("one"), 1);
    app.vendors.accept_only("one", &["Bearer k"]);
    assert_eq!(app.post("/vendors/one/resume", "").await.status, 200);
    app.run_for(2 * SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
}

/// A file with a secret, and the vendor that uses it.
fn in_file(folder: &tempfile::TempDir) -> (PathBuf, String) {
    let path = folder.path().join("token");
    fs::write(&path, "old\n").expect("written");
    let auth = format!("auth = {{ kind = \"bearer\", token = \"${{file:{}}}\" }}", path.display());
    (path, vendor(&auth))
}

async fn a_secret_in_a_file_is_used_within_two_seconds_of_its_change(backend: Backend) {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, text) = in_file(&folder);
    let headers = format!("headers = {{ x-key = \"key ${{file:{}}}\" }}\n", path.display());
    let mut app = TestApp::with(backend, &(text + &headers)).await;
    submit(&app, 1).await;
    app.run_for(SECOND).await;
    fs::write(&path, "new\n").expect("written");
    app.live_for(2 * SECOND).await;
    submit(&app, 1).await;
    app.live_for(SECOND).await;
    assert_eq!(authorizations(&app), ["Bearer old", "Bearer new"]);
    let arrivals = app.vendors.arrivals("one");
    let keys: Vec<_> = arrivals.iter().map(|arrival| arrival.header("x-key").unwrap_or_default()).collect();
    assert_eq!(keys, ["key old", "key new"], "in headers too");
}

async fn a_vendor_that_waits_is_asked_when_a_secrets_file_changes(backend: Backend) {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, text) = in_file(&folder);
    let mut app = TestApp::with(backend, &text).await;
    app.vendors.accept_only("one", &["Bearer new"]);
    let ids = submit(&app, 3).await;
    app.run_for(SECOND).await;
    assert_eq!((app.calls("one"), state(&app).await.0), (1, "credentials".into()));
    fs::write(&path, "new\n").expect("written");
    app.live_for(2 * SECOND).await;
    app.run_for(SECOND).await;
    assert_all_are(&app, &ids, "complete").await;
}

async fn a_secrets_file_that_is_gone_leaves_the_last_secret_in_use(backend: Backend) {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, text) = in_file(&folder);
    let mut app = TestApp::with(backend, &text).await;
    fs::remove_file(&path).expect("removed");
    app.live_for(2 * SECOND).await;
    fs::write(&path, "").expect("written");
    app.live_for(2 * SECOND).await;
    submit(&app, 1).await;
    app.live_for(SECOND).await;
    assert_eq!(authorizations(&app), ["Bearer old"]);
}

async fn every_kind_of_auth_goes_out_and_no_secret_is_shown(backend: Backend) {
    const SECRET: &str = "canary-51b0";
    for (auth, header, value) in [
        (r#"{ kind = "bearer", token = "canary-51b0" }"#, "authorization", "Bearer canary-51b0"),
        (r#"{ kind = "basic", user = "u", password = "canary-51b0" }"#, "authorization", "Basic dTpjYW5hcnktNTFiMA=="),
        (r#"{ kind = "header", name = "X-Api-Key", value = "canary-51b0" }"#, "x-api-key", SECRET),
        (r#"{ kind = "query", name = "body", value = "canary-51b0&" }"#, "", ""),
        (
            r#"{ kind = "sigv4", region = "eu-west-1", service = "execute-api", access_key = "ID", secret_key = "canary-51b0" }"#,
            "x-amz-date",
            "20260115T080000Z",
        ),
    ] {
        let mut app = TestApp::with(backend, &vendor(&format!("auth = {auth}"))).await;
        app.vendors.script("one", vec![Answer::status(404)]);
        let id = submit(&app, 1).await.remove(0);
        app.run_for(SECOND).await;
        let arrival = app.vendors.arrivals("one").remove(0);
        if header.is_empty() {
            assert_eq!(arrival.path_and_query, "/sync/one?body=canary%2D51b0%26");
        } else {
            assert_eq!(arrival.header(header), Some(value));
        }
        for path in [format!("/jobs/{id}"), format!("/jobs/{id}/attempts"), "/vendors".into(), "/metrics".into()] {
            let text = app.get(&path).await.text;
            assert!(!text.contains(SECRET), "{path}: {text}");
        }
        assert_eq!(app.status(&id).await, "failed");
    }
}

async fn a_secret_that_the_vendor_repeats_is_masked(backend: Backend) {
    const SECRET: &str = "canary-7f3a9c";
    for (auth, repeated) in [
        (r#"{ kind = "bearer", token = "canary-7f3a9c" }"#, "Bearer canary-7f3a9c".to_owned()),
        (
            r#"{ kind = "query", name = "body", value = "canary-7f3a9c" }"#,
            "Cannot GET /x?body=canary%2D7f3a9c".to_owned(),
        ),
        (r#"{ kind = "basic", user = "u", password = "canary-7f3a9c" }"#, "Basic dTpjYW5hcnktN2YzYTlj".to_owned()),
        // Over the end of what is kept.
        (r#"{ kind = "bearer", token = "canary-7f3a9c" }"#, format!("{}{SECRET}", "x".repeat(2044))),
    ] {
        let mut app = TestApp::with(backend, &vendor(&format!("auth = {auth}"))).await;
        app.vendors.script("one", vec![Answer::status(422).body(repeated)]);
        let id = submit(&app, 1).await.remove(0);
        app.run_for(SECOND).await;
        let shown = [
            app.find(&id).await,
            app.get(&format!("/jobs/{id}/attempts")).await.json(),
            app.get("/vendors/one").await.json(),
        ];
        for shown in shown {
            let text = shown.to_string();
            assert!(["canary", "dTpj", "7f3a9c"].iter().all(|part| !text.contains(part)), "{text}");
        }
        let job = app.find(&id).await;
        assert!(job["error"]["vendor"]["body"].as_str().is_some_and(|body| body.contains("***")), "{auth}: {job}");
    }
}

async fn a_secret_in_a_url_that_the_vendor_repeats_is_masked(backend: Backend) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key");
    fs::write(&path, "canary/7f3a9c\n").expect("written");
    let text = vendor("").replace("sync/one", &format!("sync/one?body=${{file:{}}}", path.display()));
    let mut app = TestApp::with(backend, &text).await;
    for repeated in ["Cannot GET /sync/one?body=canary/7f3a9c", "canary%2F7f3a9c", r#"{"key":"canary\/7f3a9c"}"#] {
        app.vendors.script("one", vec![Answer::status(422).body(repeated)]);
        let id = submit(&app, 1).await.remove(0);
        app.run_for(SECOND).await;
        let job = app.find(&id).await;
        let body = job["error"]["vendor"]["body"].as_str().expect("the vendor's words");
        assert!(body.contains("***") && !body.contains("7f3a9c"), "{job}");
    }
    assert_eq!(app.vendors.arrivals("one")[0].path_and_query, "/sync/one?body=canary/7f3a9c");
}
