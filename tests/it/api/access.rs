//! Who may do what: every route with every kind of key, tenants that do not see each other, and pages in browsers.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp, openapi},
};

on_every_backend!(
    every_route_wants_its_scope_and_says_nothing_else,
    every_key_that_is_not_good_gets_the_same_answer,
    a_key_that_ends_during_a_wait_shows_no_job,
    a_tenant_sees_and_touches_its_own_jobs_only,
    a_key_for_all_tenants_says_which_it_means,
    a_key_that_may_not_be_is_not_made,
    a_key_is_shown_once_and_listed_with_its_last_use,
    who_paused_and_who_set_limits_is_shown,
    without_keys_everybody_may_do_everything_by_the_name_of_anonymous,
    a_page_of_another_origin_changes_nothing,
    a_name_that_is_not_this_machines_is_refused_where_no_key_is_needed,
);

pub(super) const ADMIN: &str = "an-admin-key-of-at-least-32-characters";

/// One vendor, and keys on.
pub(super) fn keyed(more: &str) -> String {
    let general = format!("[auth]\nmode = \"api_key\"\nadmin_key = \"{ADMIN}\"\n{more}");
    format!("{general}\n[vendors.one]\nkind = \"sync\"\nurl = \"VENDORS/sync/one\"\nlimits = [\"1000/s\"]\n")
}

pub(super) async fn ask(app: &TestApp, key: &str, method: Method, path: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    app.send(method, path, &headers, body.to_owned()).await
}

async fn get(app: &TestApp, key: &str, path: &str) -> Answer {
    ask(app, key, Method::GET, path, "").await
}

async fn post(app: &TestApp, key: &str, path: &str, body: &str) -> Answer {
    ask(app, key, Method::POST, path, body).await
}

/// Makes a key with the admin key; gives its id and itself.
pub(super) async fn make_key(app: &TestApp, body: &Value) -> (String, String) {
    let made = post(app, ADMIN, "/keys", &body.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let text = |name: &str| made.json()[name].as_str().expect("a text").to_owned();
    (text("id"), text("key"))
}

pub(super) async fn submit(app: &TestApp, key: &str, body: &str) -> String {
    let answer = post(app, key, "/jobs", body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json()["request_id"].as_str().expect("an id").to_owned()
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.code())
}

/// What a problem says, without what is different in each answer.
fn said(answer: &Answer) -> Value {
    let mut problem = answer.json();
    problem.as_object_mut().expect("a problem").remove("http_request_id");
    problem
}

/// Each operation of the description: its path with everything filled in, its method, and the scopes of which it needs one.
fn operations() -> Vec<(String, Method, Vec<String>)> {
    let mut all = Vec::new();
    for (path, item) in openapi::file()["paths"].as_object().expect("paths") {
        for (method, operation) in
            item.as_object().expect("operations").iter().filter(|(name, _)| *name != "parameters")
        {
            let real = path.replace("/jobs/{id}", "/jobs/01a203e8-3838-7a3c-9f21-5b7e0c4d8a16");
            let real =
                real.replace("{id}", "0").replace("{name}", "one").replace("{vendor}", "one").replace("{token}", "x");
            // Otherwise it would not end.
            let real = if real == "/events" { "/events?status=x".to_owned() } else { real };
            let needs = operation["security"].as_array().expect("each operation says what it needs");
            let scopes = needs.iter().map(|need| need["key"][0].as_str().expect("one scope").to_owned()).collect();
            all.push((real, method.to_ascii_uppercase().parse().expect("a method"), scopes));
        }
    }
    all
}

async fn every_route_wants_its_scope_and_says_nothing_else(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let mut keys = Vec::new();
    for scope in ["submit", "read", "metrics"] {
        keys.push((scope, make_key(&app, &json!({"name": scope, "tenant": "acme", "scopes": [scope]})).await.1));
    }
    for scope in ["operate", "admin"] {
        keys.push((scope, make_key(&app, &json!({"name": scope, "scopes": [scope]})).await.1));
    }
    let (revoked_id, revoked) = make_key(&app, &json!({"name": "r", "tenant": "acme", "scopes": ["read"]})).await;
    assert_eq!(ask(&app, ADMIN, Method::DELETE, &format!("/keys/{revoked_id}"), "").await.status, 204);
    let expiring = json!({"name": "e", "scopes": ["operate", "admin"], "expires_in": "1m"});
    let expired = make_key(&app, &expiring).await.1;
    app.clock.advance(Duration::from_secs(60));
    let operations = operations();
    assert!(operations.len() >= 28, "{}", operations.len());
    for (path, method, scopes) in &operations {
        let what = format!("{method} {path}");
        for bad in ["", "x", &revoked, &expired] {
            let answer = ask(&app, bad, method.clone(), path, "{}").await;
            let is_refused = answer.status == StatusCode::UNAUTHORIZED && answer.code() == "unauthenticated";
            assert_eq!(is_refused, !scopes.is_empty(), "{what} with {bad:?}: {}", answer.text);
        }
        for (scope, key) in &keys {
            let answer = ask(&app, key, method.clone(), path, "{}").await;
            let is_forbidden = answer.status == StatusCode::FORBIDDEN && answer.code() == "forbidden";
            let may = scopes.is_empty() || scopes.contains(&(*scope).to_owned());
            assert_eq!(is_forbidden, !may, "{what} with {scope}: {}", answer.text);
            assert!(may || scopes.iter().all(|scope| answer.text.contains(scope)), "{}", answer.text);
            assert_ne!(answer.code_if_problem(), Some("unauthenticated".to_owned()), "{what} with {scope}");
        }
        let answer = ask(&app, ADMIN, method.clone(), path, "{}").await;
        let code = answer.code_if_problem().unwrap_or_default();
        assert!(!["unauthenticated", "forbidden"].contains(&&*code), "{what} with the admin key: {code}");
    }
    // What there is not, and what is not there with this method, only callers hear.
    for (method, path, open) in
        [(Method::GET, "/nothing", false), (Method::PUT, "/jobs", false), (Method::PUT, "/livez", true)]
    {
        let unchecked = async |key: &str| {
            let bearer = format!("Bearer {key}");
            app.send_unchecked(method.clone(), path, &[("authorization", &bearer)], "").await
        };
        let (stranger, known) = (unchecked("").await, unchecked(&keys[0].1).await);
        assert_eq!(stranger.status == 401, !open, "{method} {path}");
        assert!(known.status == 404 || known.status == 405, "{method} {path}: {}", known.status);
    }
    app.stop().await;
}

async fn every_key_that_is_not_good_gets_the_same_answer(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let (id, key) = make_key(&app, &json!({"name": "k", "tenant": "acme", "scopes": ["read"]})).await;
    assert_eq!(get(&app, &key, "/jobs").await.status, 200);
    let none = app.send(Method::GET, "/jobs", &[], "").await;
    assert_eq!(refused(&none), (401, "unauthenticated".to_owned()));
    let last = if key.ends_with('0') { "1" } else { "0" };
    let wrong_secret = format!("{}{last}", &key[..key.len() - 1]);
    let values = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {key}"),
        key.clone(),
        format!("Bearer {wrong_secret}"),
        format!("Bearer fg_{id}_"),
        format!("Bearer fg_000000000000_{}", "0".repeat(48)),
        format!("Bearer {key}0"),
        format!("Bearer {}", key.to_uppercase()),
        format!("Bearer {}", &ADMIN[..ADMIN.len() - 1]),
        format!("Bearer {}", "x".repeat(10_000)),
    ];
    for value in &values {
        let answer = app.send(Method::GET, "/jobs", &[("authorization", value)], "").await;
        assert_eq!(
            (answer.status, said(&answer), answer.header("www-authenticate")),
            (none.status, said(&none), "Bearer")
        );
    }
    let good = format!("Bearer {key}");
    for other in [good.as_str(), "Bearer x", "Basic eDp5"] {
        let both = [("authorization", good.as_str()), ("authorization", other)];
        assert_eq!(app.send(Method::GET, "/jobs", &both, "").await.status, 401, "a proxy may have checked {other}");
    }
    for value in [format!("bearer {key}"), format!("BEARER  {key} ")] {
        assert_eq!(app.send(Method::GET, "/jobs", &[("authorization", &value)], "").await.status, 200, "{value}");
    }
    app.stop().await;
}

async fn a_key_that_ends_during_a_wait_shows_no_job(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    for is_deleted in [true, false] {
        let id = submit(&app, ADMIN, r#"{"vendor": "one", "payload": 1, "tenant": "acme", "not_before": "1h"}"#).await;
        let body = json!({"name": "k", "tenant": "acme", "scopes": ["read"], "expires_in": "1m"});
        let (key_id, key) = make_key(&app, &body).await;
        let (caller, bearer, path) = (app.caller(), format!("Bearer {key}"), format!("/jobs/{id}?wait=60s"));
        let headers = [("authorization", bearer.as_str())];
        let ends = async {
            let is_used = async || {
                let keys = get(&app, ADMIN, "/keys").await.json();
                let key = keys["keys"].as_array().expect("keys").iter().find(|key| key["id"] == *key_id).cloned();
                !key.expect("the key")["last_used_at"].is_null()
            };
            while !is_used().await {}
            if is_deleted {
                assert_eq!(ask(&app, ADMIN, Method::DELETE, &format!("/keys/{key_id}"), "").await.status, 204);
            } else {
                app.clock.advance(Duration::from_secs(60));
            }
            assert_eq!(post(&app, ADMIN, &format!("/jobs/{id}/cancel"), "").await.status, 200);
        };
        let (answer, ()) = tokio::join!(caller.get_with(&headers, &path), ends);
        assert_eq!(refused(&answer), (401, "unauthenticated".to_owned()), "{}", answer.text);
    }
    app.stop().await;
}

async fn a_tenant_sees_and_touches_its_own_jobs_only(backend: Backend) {
    let mut app = TestApp::with(backend, &keyed("")).await;
    let own = make_key(&app, &json!({"name": "own", "tenant": "acme", "scopes": ["submit", "read"]})).await.1;
    let other = make_key(&app, &json!({"name": "other", "tenant": "rival", "scopes": ["submit", "read"]})).await.1;
    let ended = submit(&app, &own, r#"{"vendor": "one", "payload": 1}"#).await;
    app.run_until_idle().await;
    let waiting = submit(&app, &own, r#"{"vendor": "one", "payload": 1, "tenant": "acme", "not_before": "1h"}"#).await;
    submit(&app, &other, r#"{"vendor": "one", "payload": 1, "not_before": "1h"}"#).await;
    assert_eq!(get(&app, &own, &format!("/jobs/{ended}")).await.json()["tenant"], "acme");

    let nowhere = "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16";
    for id in [&ended, &waiting] {
        for (method, rest) in [
            (Method::GET, ""),
            (Method::GET, "?wait=10s&include=payload"),
            (Method::GET, "/attempts"),
            (Method::POST, "/cancel"),
            (Method::POST, "/replay"),
            (Method::DELETE, ""),
        ] {
            let answer = ask(&app, &other, method.clone(), &format!("/jobs/{id}{rest}"), "").await;
            let unknown = ask(&app, &other, method.clone(), &format!("/jobs/{nowhere}{rest}"), "").await;
            assert_eq!((answer.status.as_u16(), said(&answer)), (404, said(&unknown)), "{method} {rest}");
        }
    }
    assert_eq!(get(&app, &own, &format!("/jobs/{ended}")).await.json()["status"], "complete", "nothing was changed");
    assert_eq!(get(&app, &own, &format!("/jobs/{waiting}")).await.json()["status"], "pending");

    let listed = async |key: &str| {
        let page = get(&app, key, "/jobs").await.json();
        page["jobs"]
            .as_array()
            .expect("jobs")
            .iter()
            .map(|job| job["tenant"].as_str().expect("one").to_owned())
            .collect()
    };
    let (mine, theirs): (Vec<String>, Vec<String>) = (listed(&own).await, listed(&other).await);
    assert_eq!((mine, theirs), (vec!["acme".to_owned(); 2], vec!["rival".to_owned()]));
    for answer in [
        get(&app, &other, "/jobs?tenant=acme").await,
        post(&app, &other, "/jobs", r#"{"vendor": "one", "payload": 1, "tenant": "acme"}"#).await,
    ] {
        assert_eq!(refused(&answer), (403, "forbidden".to_owned()));
    }
    let batch =
        post(&app, &other, "/jobs/batch", r#"[{"vendor": "one", "payload": 1, "tenant": "acme"}]"#).await.json();
    assert_eq!((&batch["accepted"], &batch["items"][0]["error"]["code"]), (&json!(0), &json!("forbidden")));

    // Of a vendor it sees the state, and its own counts.
    let vendor = get(&app, &other, "/vendors/one").await.json();
    assert_eq!((&vendor["waiting"], &vendor["open"], &vendor["paused"]), (&json!(1), &json!(0), &json!(false)));
    for hidden in ["in_flight", "calls_total", "throttled_total", "breaches_total", "oldest_waiting_s", "drain_eta"] {
        assert!(vendor.get(hidden).is_none(), "{hidden}");
    }
    assert!(vendor["limits"][0].get("used").is_none());
    assert_eq!(get(&app, ADMIN, "/vendors/one").await.json()["calls_total"], 1);
    app.stop().await;
}

async fn a_key_for_all_tenants_says_which_it_means(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let all = make_key(&app, &json!({"name": "all", "scopes": ["operate", "submit", "read"]})).await.1;
    let job = async |body: &str| {
        let id = submit(&app, &all, body).await;
        get(&app, &all, &format!("/jobs/{id}")).await.json()["tenant"].clone()
    };
    assert_eq!(job(r#"{"vendor": "one", "payload": 1}"#).await, "default");
    assert_eq!(job(r#"{"vendor": "one", "payload": 1, "tenant": "acme"}"#).await, "acme");
    let of_acme = get(&app, &all, "/jobs?tenant=acme").await.json();
    assert_eq!(of_acme["jobs"].as_array().expect("jobs").len(), 1);
    assert_eq!(get(&app, &all, "/jobs").await.json()["jobs"].as_array().expect("jobs").len(), 2);
    app.stop().await;
}

async fn a_key_that_may_not_be_is_not_made(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    for (body, pointer) in [
        (r#"{"name": "", "tenant": "t", "scopes": ["read"]}"#, "/name"),
        (r#"{"name": "admin_key", "tenant": "t", "scopes": ["read"]}"#, "/name"),
        (r#"{"name": "k", "tenant": "", "scopes": ["read"]}"#, "/tenant"),
        (r#"{"name": "k", "scopes": ["read"]}"#, "/tenant"),
        (r#"{"name": "k", "tenant": null, "scopes": ["read", "submit"]}"#, "/tenant"),
        (r#"{"name": "k", "tenant": "t", "scopes": []}"#, "/scopes"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read", "write"]}"#, "/scopes"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read", "operate"]}"#, "/scopes"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["admin"]}"#, "/scopes"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read"], "expires_in": "soon"}"#, "/expires_in"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read"], "expires_in": "0s"}"#, "/expires_in"),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read"], "expires_in": "99999d"}"#, "/expires_in"),
        (r#"{"name": "k", "tenant": "t", "scopes": "read"}"#, ""),
        (r#"{"tenant": "t", "scopes": ["read"]}"#, ""),
        (r#"{"name": "k", "tenant": "t", "scopes": ["read"], "role": "x"}"#, ""),
    ] {
        let answer = post(&app, ADMIN, "/keys", body).await;
        assert_eq!(refused(&answer), (422, "invalid_field".to_owned()), "{body}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
    assert_eq!(get(&app, ADMIN, "/keys").await.json(), json!({"keys": []}));
    let scraper = make_key(&app, &json!({"name": "prometheus", "scopes": ["metrics"]})).await.1;
    assert_eq!(get(&app, &scraper, "/metrics").await.status, 200, "metrics alone need no tenant");
    app.stop().await;
}

async fn a_key_is_shown_once_and_listed_with_its_last_use(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let body = json!({"name": "billing", "tenant": "acme", "scopes": ["read", "submit"], "expires_in": "90d"});
    let made = post(&app, ADMIN, "/keys", &body.to_string()).await;
    assert_eq!((made.status.as_u16(), made.header("cache-control")), (201, "no-store"));
    let (made, key) = (made.json(), made.json()["key"].as_str().expect("a key").to_owned());
    let secret = key.rsplit_once('_').expect("a secret").1.to_owned();
    assert!(key.starts_with(&format!("fg_{}_", made["id"].as_str().expect("an id"))) && secret.len() >= 32, "{key}");
    let mut listed = json!({
        "id": made["id"], "name": "billing", "tenant": "acme", "scopes": ["submit", "read"], "created_by": "admin_key",
        "created_at": "2026-01-15T08:00:00.000Z", "expires_at": "2026-04-15T08:00:00.000Z", "last_used_at": null,
    });
    let list = async |app: &TestApp| {
        let answer = get(app, ADMIN, "/keys").await;
        assert!(!answer.text.contains(&secret), "{}", answer.text);
        answer.json()["keys"][0].clone()
    };
    assert_eq!(list(&app).await, listed);
    app.clock.advance(Duration::from_secs(90));
    assert_eq!(get(&app, &key, "/jobs").await.status, 200);
    listed["last_used_at"] = json!("2026-01-15T08:01:30.000Z");
    assert_eq!(list(&app).await, listed);
    app.app.access.keys.note_uses().await.expect("the store works");
    let app = app.crash_and_restart().await;
    assert_eq!(list(&app).await, listed, "that was written");
    assert_eq!(get(&app, &key, "/jobs").await.status, 200, "and the key is good");
    let path = format!("/keys/{}", made["id"].as_str().expect("an id"));
    assert_eq!(ask(&app, ADMIN, Method::DELETE, &path, "").await.status, 204);
    assert_eq!(get(&app, &key, "/jobs").await.status, 401);
    assert_eq!(refused(&ask(&app, ADMIN, Method::DELETE, &path, "").await), (404, "unknown_key".to_owned()));
    let app = app.crash_and_restart().await;
    assert_eq!(get(&app, &key, "/jobs").await.status, 401);
    app.stop().await;
}

async fn who_paused_and_who_set_limits_is_shown(backend: Backend) {
    let app = TestApp::with(backend, &keyed("")).await;
    let key = make_key(&app, &json!({"name": "on call", "scopes": ["operate", "read"]})).await.1;
    post(&app, &key, "/vendors/one/pause", r#"{"for": "10m"}"#).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json"), ("if-match", "*")];
    let set = app.send(Method::PUT, "/vendors/one/limits", &headers, r#"{"limits": ["5/s"]}"#).await;
    assert_eq!((set.status.as_u16(), &set.json()["by"]), (200, &json!("on call")));
    let app = app.crash_and_restart().await;
    let vendor = get(&app, &key, "/vendors/one").await.json();
    let start = json!("2026-01-15T08:00:00.000Z");
    assert_eq!((&vendor["paused_by"], &vendor["paused_since"], &vendor["since"]), (&json!("on call"), &start, &start));
    let limits = get(&app, &key, "/vendors/one/limits").await.json();
    assert_eq!((&limits["by"], &limits["since"]), (&json!("on call"), &start));
    let resumed = post(&app, &key, "/vendors/one/resume", "").await.json();
    assert_eq!((&resumed["paused_by"], &resumed["paused_since"]), (&Value::Null, &Value::Null));
    app.stop().await;
}

async fn without_keys_everybody_may_do_everything_by_the_name_of_anonymous(backend: Backend) {
    let app = TestApp::start(backend).await;
    assert_eq!(app.post("/vendors/sync/pause", "").await.json()["paused_by"], "anonymous");
    let made = app.post("/keys", r#"{"name": "later", "scopes": ["admin"]}"#).await;
    assert_eq!((made.status.as_u16(), &made.json()["created_by"]), (201, &json!("anonymous")));
    assert_eq!(app.send(Method::GET, "/jobs", &[("authorization", "Bearer nonsense")], "").await.status, 200);
    app.stop().await;
}

async fn a_page_of_another_origin_changes_nothing(backend: Backend) {
    let open = TestApp::start(backend).await;
    let own = open.url.clone();
    let foreign = ["https://evil.example", "null", "http://127.0.0.1:1", "nonsense", "file://"];
    for origin in foreign {
        for (method, path) in
            [(Method::POST, "/jobs"), (Method::POST, "/vendors/sync/pause"), (Method::DELETE, "/keys/x")]
        {
            let answer = open.send(method.clone(), path, &[("origin", origin)], "").await;
            assert_eq!(refused(&answer), (403, "foreign_origin".to_owned()), "{method} {path} from {origin}");
        }
        let callback = open.send(Method::POST, "/vendor-webhook/async", &[("origin", origin)], "{}").await;
        assert_eq!(refused(&callback), (403, "foreign_origin".to_owned()), "{origin}");
        assert_eq!(
            open.send(Method::GET, "/jobs", &[("origin", origin)], "").await.status,
            200,
            "reading is not changing"
        );
    }
    assert_eq!(open.send(Method::POST, "/vendors/sync/pause", &[("origin", &own)], "").await.status, 200);
    open.stop().await;
    let keyed = TestApp::with(backend, &keyed("")).await;
    let bearer = format!("Bearer {ADMIN}");
    let headers = [("authorization", bearer.as_str()), ("origin", "https://evil.example")];
    let answer = keyed.send(Method::POST, "/vendors/one/pause", &headers, "").await;
    assert_eq!(refused(&answer), (403, "foreign_origin".to_owned()), "with a key too");
    keyed.stop().await;
}

async fn a_name_that_is_not_this_machines_is_refused_where_no_key_is_needed(backend: Backend) {
    let app = TestApp::start(backend).await;
    let port = app.url.rsplit_once(':').expect("a port").1;
    let status = async |app: &TestApp, target: &str, host: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        app.send_bytes(request.as_bytes()).await[9..12].to_owned()
    };
    for host in ["localhost", "127.0.0.1", "[::1]", "api.localhost", "127.0.0.2", "localhost.", "api.localhost."] {
        assert_eq!(status(&app, "/jobs", &format!("{host}:{port}")).await, "200", "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "evil.example.", "10.0.0.1", "169.254.169.254", "0.0.0.0"] {
        for path in ["/jobs", "/livez", "/docs"] {
            assert_eq!(status(&app, path, host).await, "421", "{host} {path}");
        }
    }
    assert_eq!(
        status(&app, "http://evil.example/jobs", "localhost").await,
        "421",
        "the first line goes before the header"
    );
    app.stop().await;
    let app = TestApp::with(backend, &keyed("")).await;
    assert_eq!(status(&app, "/livez", "jobs.example").await, "200", "with keys a proxy may call it anything");
    app.stop().await;
}
