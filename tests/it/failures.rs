//! What people see of vendors whose calls fail: one metric by outcome, and a few lines in the log.

use std::time::Duration;

use mock_vendors::{Answer, Fault};
use serde_json::Value;

use crate::{
    failure::{World, free_address, wait_until},
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(every_call_is_counted_by_what_came_of_it);

async fn every_call_is_counted_by_what_came_of_it(backend: Backend) {
    let config = format!(
        r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = []
timeout = "100ms"
breaker = false
[vendors.gone]
kind = "sync"
url = "http://{}/"
limits = []
breaker = false
retry = {{ attempts = 3 }}
"#,
        free_address()
    );
    let mut app = TestApp::with(backend, &config).await;
    app.vendors.script(
        "one",
        vec![
            Answer::status(500),
            Answer::status(429).header("retry-after", "1"),
            Answer::hang(),
            Answer::fault(Fault::Reset),
            Answer::json(200, "1"),
            Answer::status(404),
        ],
    );
    for vendor in ["one", "gone"] {
        app.submit(vendor, "1").await;
        app.run_until_idle().await;
    }
    app.submit("one", "1").await;
    app.run_until_idle().await;
    let metrics = app.get("/metrics").await.text;
    let count = |vendor: &str, outcome: &str| {
        let name = format!("fetchgate_vendor_calls_total{{vendor=\"{vendor}\",outcome=\"{outcome}\"}} ");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"))
            .to_owned()
    };
    for outcome in ["try_again", "slow_down", "timeout", "no_connection", "done", "refused"] {
        assert_eq!(count("one", outcome), "1", "{outcome}");
    }
    assert_eq!(count("gone", "no_connection"), "3", "connections that were refused");
    app.stop().await;
}

/// A vendor that nobody listens for, and one that refuses every job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_failure_of_a_vendor_is_a_warning_and_each_attempt_a_line_for_who_wants_them() {
    let vendors = format!(
        "[vendors.gone]\nkind = \"sync\"\nurl = \"http://{}/\"\nlimits = []\nretry = {{ attempts = 3, first = \"1ms\", max = \"1ms\" }}\n\
         [vendors.no]\nkind = \"sync\"\nurl = \"VENDORS/sync/no?status=404\"\nlimits = []\n",
        free_address()
    );
    let world = World::new(&vendors).await;
    let process = world.start_with_logs("info,fetchgate=debug").await;
    let mut ids = Vec::new();
    for vendor in ["gone", "gone", "no", "no"] {
        ids.push(process.submit(vendor, "1").await.expect("accepted"));
    }
    for id in &ids {
        assert_eq!(process.ended(id).await["status"], "failed");
    }
    let attempts = |lines: &[Value]| lines.iter().filter(|line| line["message"] == "an attempt has ended").count();
    let lines = wait_until("the log", Duration::from_secs(10), async || {
        let lines: Vec<Value> = process.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (attempts(&lines) == 8).then_some(lines)
    })
    .await;
    let warned: Vec<&Value> =
        lines.iter().filter(|line| line["level"] == "WARN" && line["failed"].is_number()).collect();
    assert_eq!(warned.len(), 2, "one for each vendor: {warned:#?}");
    let of = |vendor: &str| warned.iter().find(|line| line["vendor"] == vendor).expect("a line");
    assert!(of("gone")["reason"].as_str().is_some_and(|why| why.contains("refused")), "{}", of("gone"));
    assert!(of("no")["reason"].as_str().is_some_and(|why| why.contains("404")), "{}", of("no"));
    let last = lines.iter().find(|line| line["request_id"] == *ids[2] && line["message"] == "an attempt has ended");
    let last = last.expect("the attempt of the third job");
    assert_eq!(
        (&last["vendor"], &last["attempt"], &last["status"], &last["outcome"]),
        (&"no".into(), &1.into(), &404.into(), &"refused".into())
    );
    assert!(last["latency_ms"].is_number(), "{last}");
    let is_workers =
        |line: &&Value| line["target"].as_str().is_some_and(|target| target.starts_with("fetchgate::worker"));
    for line in lines.iter().filter(is_workers) {
        assert!(!line.to_string().contains("Some("), "a debug form: {line}");
    }
}

/// Whoever reaches the port may send callbacks that are refused: they must not fill the log (L15 of our own search for faults).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_callbacks_are_one_line_a_minute_and_none_for_vendors_that_there_are_not() {
    let vendors = "[vendors.hook]\nkind = \"webhook\"\nurl = \"VENDORS/async/hook\"\nlimits = []\nwebhook = { verify = \"github\", secret = \"s\" }\n";
    let world = World::new(vendors).await;
    let process = world.start().await;
    let before = process.log().len();
    let long = "x".repeat(10_000);
    for _ in 0..20 {
        for path in ["hook", "hook/forged", "nobody", "nobody/forged"] {
            let (status, _) = process.send("POST", &format!("/vendor-webhook/{path}"), "{}").await.expect("an answer");
            assert!(matches!(status, 401 | 404), "{path}: {status}");
        }
        let (status, body) = process.send("POST", &format!("/vendor-webhook/{long}"), "{}").await.expect("an answer");
        assert!(status == 404 && body.len() < 500, "{status}: {} bytes", body.len());
        process.send("POST", &format!("/vendor-webhook/{long}/x"), "{}").await.expect("an answer");
    }
    let log = process.log()[before..].to_owned();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(lines.len() == 1 && lines[0].contains("hook") && lines[0].contains("x-hub-signature-256"), "{lines:#?}");
    assert!(!log.contains("nobody") && log.len() < 10_000, "{log}");
}
