//! The last minute in numbers, failures by what was wrong, and the system as those who run it see it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Answer, Backend, TestApp, openapi},
};

on_every_backend!(
    stats_say_what_came_and_what_became_of_it,
    stats_say_what_waits_and_for_how_long,
    stats_are_worked_out_once_a_second_for_all_who_ask,
    a_tenants_key_sees_its_own_numbers_only,
    failures_are_counted_by_vendor_code_and_message,
    failures_are_counted_since_a_time_and_not_for_ever,
    a_wrong_parameter_of_failures_is_named,
    the_system_is_shown_without_its_secrets,
    processes_with_another_config_have_another_hash,
    metrics_count_failures_by_code_and_show_what_keeps_a_vendor_back,
    metrics_come_in_the_older_form_for_those_who_prefer_it,
);

const VENDORS: &str = r#"
[vendors.bad]
kind = "sync"
url = "VENDORS/sync/bad?status=422"
limits = []
[vendors.broken]
kind = "sync"
url = "VENDORS/sync/broken?status=500"
limits = []
retry = { attempts = 1 }
[vendors.good]
kind = "sync"
url = "VENDORS/sync/good"
limits = ["1000/s"]
"#;

const ADMIN: &str = "an-admin-key-of-at-least-32-characters";

async fn submit(app: &TestApp, vendor: &str, jobs: usize) {
    for _ in 0..jobs {
        app.submit(vendor, "1").await;
    }
}

/// What was shown a second ago is worked out anew.
async fn later(app: &TestApp, path: &str) -> Value {
    app.clock.advance(Duration::from_secs(1));
    let answer = app.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// Jobs accepted, done and failed in the window of these statistics.
fn jobs(stats: &Value, of: &Value) -> [u64; 3] {
    let window = stats["window_s"].as_f64().expect("a window");
    let jobs = |what: &str| (of[what].as_f64().unwrap_or_else(|| panic!("{what}: {of}")) * window).round() as u64;
    ["accepted_per_s", "done_per_s", "failed_per_s"].map(jobs)
}

fn vendor<'a>(stats: &'a Value, name: &str) -> &'a Value {
    stats["vendors"].as_array().expect("vendors").iter().find(|one| one["name"] == name).expect("the vendor")
}

async fn stats_say_what_came_and_what_became_of_it(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    submit(&app, "good", 3).await;
    submit(&app, "bad", 2).await;
    let cancelled = app.submit("good", "1").await;
    assert_eq!(app.post(&format!("/jobs/{cancelled}/cancel"), "").await.status, 200);
    app.run_until_idle().await;
    let stats = later(&app, "/stats").await;
    assert_eq!(jobs(&stats, vendor(&stats, "good")), [4, 3, 0], "{stats}");
    assert_eq!(jobs(&stats, vendor(&stats, "bad")), [2, 0, 2], "{stats}");
    assert_eq!(jobs(&stats, &stats), [6, 3, 2], "{stats}");
    assert_eq!(vendor(&stats, "bad")["end_to_end_ms"], Value::Null, "none was done");
    let names: Vec<&Value> = stats["vendors"].as_array().unwrap().iter().map(|vendor| &vendor["name"]).collect();
    assert_eq!(names, ["bad", "broken", "good"]);

    app.clock.advance(Duration::from_secs(60));
    let idle = later(&app, "/stats").await;
    assert_eq!((jobs(&idle, &idle), &idle["end_to_end_ms"]), ([0; 3], &Value::Null), "{idle}");
    let window = idle["window_s"].as_f64().unwrap();
    assert!((55.0..=60.0).contains(&window), "{idle}");

    app.submit_with(r#"{"payload": 1, "vendor": "good", "not_before": "20s"}"#).await;
    submit(&app, "good", 1).await;
    app.run_until_idle().await;
    let times = &later(&app, "/stats").await["end_to_end_ms"];
    assert!(
        times["p50"].as_u64().unwrap() < 1_000 && times["p95"].as_u64().unwrap().abs_diff(20_000) < 1_300,
        "{times}"
    );
    app.stop().await;
}

async fn stats_say_what_waits_and_for_how_long(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    assert_eq!(app.post("/vendors/good/pause", "").await.status, 200);
    submit(&app, "good", 2).await;
    app.clock.advance(Duration::from_secs(5));
    let stats = later(&app, "/stats").await;
    for of in [&stats, vendor(&stats, "good")] {
        assert_eq!((&of["waiting"], &of["open"]), (&json!(2), &json!(0)), "{stats}");
        assert!(of["oldest_waiting_s"].as_f64().is_some_and(|s| (6.0..7.0).contains(&s)), "{stats}");
    }
    assert_eq!(vendor(&stats, "bad")["oldest_waiting_s"], Value::Null);
    app.stop().await;
}

async fn stats_are_worked_out_once_a_second_for_all_who_ask(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    assert_eq!(app.post("/vendors/good/pause", "").await.status, 200);
    let first = app.get("/stats").await.text;
    submit(&app, "good", 1).await;
    assert_eq!(app.get("/stats").await.text, first, "it costs nothing to ask again");
    assert_eq!(later(&app, "/stats").await["waiting"], 1);
    app.stop().await;
}

async fn ask(app: &TestApp, key: &str, method: Method, path: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = app.send_unchecked(method.clone(), path, &headers, body.to_owned()).await;
    openapi::check(&method, path, &answer);
    answer
}

async fn a_tenants_key_sees_its_own_numbers_only(backend: Backend) {
    let keys = format!("[auth]\nmode = \"api_key\"\nadmin_key = \"{ADMIN}\"\n{VENDORS}");
    let mut app = TestApp::with(backend, &keys).await;
    let mut key = Vec::new();
    for tenant in ["acme", "other"] {
        let wanted = json!({"name": tenant, "tenant": tenant, "scopes": ["submit", "read"]}).to_string();
        let made = ask(&app, ADMIN, Method::POST, "/keys", &wanted).await.json();
        key.push(made["key"].as_str().expect("a key").to_owned());
    }
    let paused = ask(&app, ADMIN, Method::POST, "/vendors/good/pause", "").await;
    assert_eq!(paused.status, 200, "{}", paused.text);
    for (key, jobs) in key.iter().zip([2, 3]) {
        for vendor in std::iter::repeat_n("good", jobs).chain(std::iter::repeat_n("bad", jobs)) {
            let job = json!({"payload": 1, "vendor": vendor}).to_string();
            assert_eq!(ask(&app, key, Method::POST, "/jobs", &job).await.status, 202);
        }
    }
    app.run_for(Duration::from_secs(1)).await;
    let waiting = |name: &str, waiting: u64| json!({"name": name, "waiting": waiting, "open": 0});
    for (key, jobs) in key.iter().zip([2, 3]) {
        let mut stats = ask(&app, key, Method::GET, "/stats", "").await.json();
        assert!(stats.as_object_mut().unwrap().remove("at").is_some());
        let vendors = [waiting("bad", 0), waiting("broken", 0), waiting("good", jobs)];
        assert_eq!(stats, json!({"waiting": jobs, "open": 0, "vendors": vendors}));
        let failures = ask(&app, key, Method::GET, "/failures", "").await.json();
        assert_eq!((&failures["count"], &failures["failures"][0]["count"]), (&json!(jobs), &json!(jobs)), "{failures}");
        let id = failures["failures"][0]["request_id"].as_str().unwrap();
        assert_eq!(ask(&app, key, Method::GET, &format!("/jobs/{id}"), "").await.status, 200, "one of its own");
        let system = ask(&app, key, Method::GET, "/system", "").await;
        assert_eq!((system.status.as_u16(), system.code()), (403, "forbidden".to_owned()));
    }
    let others = ask(&app, &key[0], Method::GET, "/failures?tenant=other", "").await;
    assert_eq!((others.status.as_u16(), others.code()), (403, "forbidden".to_owned()));
    let stats = ask(&app, ADMIN, Method::GET, "/stats", "").await.json();
    assert_eq!((&stats["waiting"], jobs(&stats, &stats)), (&json!(5), [10, 0, 5]), "{stats}");
    let all = ask(&app, ADMIN, Method::GET, "/failures", "").await.json();
    let one = ask(&app, ADMIN, Method::GET, "/failures?tenant=other", "").await.json();
    assert_eq!((&all["count"], &one["count"]), (&json!(5), &json!(3)));
    app.stop().await;
}

/// The groups as vendor, code, message and count.
fn groups(failures: &Value) -> Vec<(&str, &str, &str, u64)> {
    fn group(group: &Value) -> (&str, &str, &str, u64) {
        let [vendor, code, message] = ["vendor", "code", "message"].map(|name| group[name].as_str().expect("a text"));
        (vendor, code, message, group["count"].as_u64().expect("a number"))
    }
    failures["failures"].as_array().expect("groups").iter().map(group).collect()
}

async fn failures_are_counted_by_vendor_code_and_message(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    submit(&app, "bad", 2).await;
    submit(&app, "good", 2).await;
    app.run_until_idle().await;
    app.clock.advance(Duration::from_secs(60));
    let newest = app.submit("bad", "1").await;
    submit(&app, "broken", 1).await;
    app.run_until_idle().await;
    assert_eq!(app.post("/vendors/good/pause", "").await.status, 200);
    app.submit_with(r#"{"payload": 1, "vendor": "good", "deadline": "5s"}"#).await;
    let cancelled = app.submit("good", "1").await;
    assert_eq!(app.post(&format!("/jobs/{cancelled}/cancel"), "").await.status, 200);
    app.advance(Duration::from_secs(6)).await;
    let found = later(&app, "/failures").await;
    let deadline = "the job's deadline passed before the vendor's data came";
    let expected = [
        ("bad", "vendor_refused", "the vendor answered 422", 3),
        ("good", "deadline", deadline, 1),
        ("broken", "attempts_exhausted", "the vendor answered 500", 1),
    ];
    assert_eq!(groups(&found), expected, "{found}");
    let rest = (&found["count"], &found["more"], &found["omitted"]);
    assert_eq!(rest, (&json!(5), &json!(false), &json!(0)));
    let (bad, newest) = (&found["failures"][0], app.find(&newest).await);
    assert_eq!((&bad["request_id"], &bad["last_at"]), (&newest["request_id"], &newest["finished_at"]));
    let seconds = |at: &Value| at.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    assert_eq!(seconds(&bad["last_at"]) - seconds(&bad["first_at"]), 60);

    assert_eq!(groups(&later(&app, "/failures?vendor=broken").await), [expected[2]]);
    assert_eq!(later(&app, "/failures?vendor=nobody").await["count"], 0);
    let id = newest["request_id"].as_str().unwrap();
    assert_eq!(app.post(&format!("/jobs/{id}/replay"), "").await.status, 202);
    assert_eq!(later(&app, "/failures?vendor=bad").await["count"], 2, "it goes on");
    app.stop().await;
}

async fn failures_are_counted_since_a_time_and_not_for_ever(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    submit(&app, "bad", 2).await;
    app.run_until_idle().await;
    app.clock.advance(Duration::from_secs(2 * 3600));
    submit(&app, "bad", 1).await;
    app.run_until_idle().await;
    let now = app.clock.now();
    for (since, count) in [("", 1), ("?since=3h", 3), ("?since=10m", 1), ("?since=10000d", 3)] {
        assert_eq!(app.get(&format!("/failures{since}")).await.json()["count"], count, "{since}");
    }
    let hours_ago = |hours: i64| fetchgate::clock::Time(now.0 - hours * 3_600_000).rfc3339();
    for (hours, count) in [(1, 1), (3, 3)] {
        let found = app.get(&format!("/failures?since={}", hours_ago(hours))).await.json();
        assert_eq!((&found["count"], &found["since"]), (&json!(count), &json!(hours_ago(hours))));
    }
    let found = app.get("/failures?since=10000d").await.json();
    assert_eq!(found["since"], hours_ago(7 * 24), "older jobs are deleted");
    app.stop().await;
}

async fn a_wrong_parameter_of_failures_is_named(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    for (query, word) in [("since=x", "since"), ("since=-1h", "since"), ("vendor=", "vendor"), ("until=1h", "until")] {
        let answer = app.get(&format!("/failures?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (422, "invalid_parameter".to_owned()), "{query}");
        assert!(answer.text.contains(&format!("\\\"{word}\\\"")), "{}", answer.text);
    }
    for path in ["/stats?x=1", "/system?x=1"] {
        assert_eq!(app.get(path).await.status, 422, "{path}");
    }
    app.stop().await;
}

async fn the_system_is_shown_without_its_secrets(backend: Backend) {
    let secret = "s3cret-that-nobody-sees";
    let config = format!(
        "{VENDORS}auth = {{ kind = \"bearer\", token = \"{secret}\" }}\nheaders = {{ x-key = \"{secret}\" }}\n"
    );
    let app = TestApp::with(backend, &config).await;
    app.clock.advance(Duration::from_secs(90));
    let answer = app.get("/system").await;
    let system = answer.json();
    assert!(!answer.text.contains("s3cret"), "{}", answer.text);
    let this = &system["process"];
    assert_eq!((&this["roles"], &this["version"]), (&json!(["api", "worker"]), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&system["processes"], &system["uptime_s"]), (&json!([this]), &system["uptime_s"]));
    assert!(system["uptime_s"].as_f64().is_some_and(|seconds| seconds >= 90.0), "{system}");
    let is_many = backend == Backend::RedisMongo;
    let (kind, redis) = if is_many { ("mongodb", "ok") } else { ("sqlite", "") };
    assert_eq!((&system["store"]["kind"], &system["store"]["status"]), (&json!(kind), &json!("ok")));
    assert!(system["store"]["schema"].as_u64().is_some_and(|schema| schema >= 1));
    assert_eq!(system["redis"].is_object(), is_many, "{system}");
    assert_eq!(system["redis"]["status"].as_str().unwrap_or(""), redis);
    assert_eq!(system["redis"]["version"].is_string(), is_many, "{system}");
    let config = &system["config"];
    assert_eq!((&config["hash"], &config["settings"]["store.retention"]), (&this["config"], &json!("7d")));
    assert_eq!(config["settings"]["auth.mode"], "none");
    let words = config["vendors"]["good"].as_array().expect("words");
    assert!(words.iter().any(|line| line.as_str().unwrap().contains("bearer token")), "{words:?}");
    app.stop().await;
}

async fn processes_with_another_config_have_another_hash(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    let before = app.get("/system").await.json()["process"].clone();
    let app = app.crash_and_restart().await;
    let same = app.get("/system").await.json()["process"].clone();
    assert_eq!(same["config"], before["config"]);
    let app = app.crash_and_restart_with(&VENDORS.replace("/good\"", "/better\"")).await;
    let after = app.get("/system").await.json()["process"].clone();
    assert_ne!(after["config"], before["config"], "a URL differs");
    assert!(before["id"] != same["id"] && same["id"] != after["id"]);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_has_counted_is_known_to_the_others_also_when_it_is_dead() {
    let mut app = TestApp::with(Backend::RedisMongo, VENDORS).await;
    submit(&app, "good", 2).await;
    app.run_until_idle().await;
    app.app.overview.stats.share().await.expect("Redis works");
    let mut app = app.crash_and_restart().await;
    submit(&app, "good", 1).await;
    app.run_until_idle().await;
    let stats = app.get("/stats").await.json();
    assert_eq!(jobs(&stats, vendor(&stats, "good")), [3, 3, 0], "{stats}");

    let processes = |system: &Value| -> Vec<bool> {
        let processes = system["processes"].as_array().expect("processes");
        processes.iter().map(|process| process["alive"].as_bool().expect("so or not")).collect()
    };
    app.clock.advance(Duration::from_secs(16));
    assert_eq!(processes(&app.get("/system").await.json()), [false, true], "it crashed");
    app.clock.advance(Duration::from_secs(3600));
    assert_eq!(processes(&later(&app, "/system").await), [true]);
    app.stop().await;
}

async fn sample(app: &TestApp, name: &str) -> String {
    let text = app.get("/metrics").await.text;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

async fn metrics_count_failures_by_code_and_show_what_keeps_a_vendor_back(backend: Backend) {
    let mut app = TestApp::with(backend, VENDORS).await;
    submit(&app, "bad", 2).await;
    app.run_until_idle().await;
    let failed = |code: &str| format!("fetchgate_jobs_failed_total{{vendor=\"bad\",code=\"{code}\"}}");
    assert_eq!(sample(&app, &failed("vendor_refused")).await, "2");
    assert_eq!(sample(&app, &failed("timeout")).await, "0");
    let blocked = "fetchgate_vendor_blocked{vendor=\"good\",reason=\"vendor_paused\"}";
    assert_eq!(sample(&app, blocked).await, "0");
    assert_eq!(app.post("/vendors/good/pause", "").await.status, 200);
    assert_eq!(sample(&app, blocked).await, "1");
    let slowed = "fetchgate_vendor_blocked{vendor=\"good\",reason=\"slowed_by_vendor\"}";
    assert_eq!(sample(&app, slowed).await, "0");
    let until = app.clock.nanos() + 60_000_000_000;
    app.app.limiter.close_gate("good", until).await;
    assert_eq!(sample(&app, slowed).await, "1");
    assert_eq!(sample(&app, "fetchgate_limit_calls{pool=\"good\",limit=\"1000/s\"}").await, "1000");
    let used = sample(&app, "fetchgate_limit_used{pool=\"good\",limit=\"1000/s\"}").await;
    assert!(used.parse::<u64>().is_ok_and(|used| used < 1000), "{used}");
    let config = app.get("/system").await.json()["process"]["config"].as_str().unwrap().to_owned();
    let process = format!("fetchgate_process_info{{role=\"api,worker\",config=\"{config}\"}}");
    assert_eq!(sample(&app, &process).await, "1");
    assert!(sample(&app, "process_resident_memory_bytes").await.parse::<f64>().is_ok_and(|bytes| bytes > 1e6));
    app.stop().await;
}

async fn metrics_come_in_the_older_form_for_those_who_prefer_it(backend: Backend) {
    let app = TestApp::with(backend, VENDORS).await;
    let answer = app.send(Method::GET, "/metrics", &[("accept", "text/plain;version=0.0.4")], "").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(answer.text.contains("# TYPE fetchgate_jobs_accepted_total counter\n"), "{}", answer.text);
    assert!(answer.text.contains("# TYPE fetchgate_build_info gauge\n"), "{}", answer.text);
    assert!(!answer.text.contains("# EOF"), "OpenMetrics ends so");
    app.stop().await;
}
