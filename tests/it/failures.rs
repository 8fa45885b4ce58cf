//! What people see of vendors whose calls fail: one metric by outcome, and a few lines in the log.

use std::{collections::BTreeSet, process::Command, time::Duration};

use mock_vendors::{Answer, Fault};
use serde_json::Value;

use crate::{
    failure::{BINARY, LONG, World, free_address, wait_until},
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

/// One way in which a vendor can be at fault, and where people see it.
struct Case {
    vendor: &'static str,
    /// In what `fetchgate vendors show` prints.
    shown: &'static str,
    /// In the reason of a line of the log.
    logged: &'static str,
    metric: &'static str,
    /// What the metric comes to, at the least.
    reaches: f64,
}

const FAULTS: [Case; 6] = [
    Case {
        vendor: "down",
        shown: "Connection refused",
        logged: "Connection refused",
        metric: r#"fetchgate_vendor_calls_total{vendor="down",outcome="no_connection"}"#,
        // The breaker has opened, and probes have failed.
        reaches: 8.0,
    },
    Case {
        vendor: "slow",
        shown: "the vendor did not reply in time (timeout, ",
        logged: "did not reply in time",
        metric: r#"fetchgate_vendor_calls_total{vendor="slow",outcome="timeout"}"#,
        reaches: 5.0,
    },
    Case {
        vendor: "login",
        shown: "login refuses our credentials",
        logged: "the vendor answered 401",
        metric: r#"fetchgate_credentials_state{vendor="login"}"#,
        reaches: 1.0,
    },
    Case {
        vendor: "refuses",
        shown: "the vendor said: 422 {",
        logged: "the vendor answered 422",
        metric: r#"fetchgate_jobs_failed_total{vendor="refuses",code="vendor_refused"}"#,
        reaches: 6.0,
    },
    Case {
        vendor: "silent",
        shown: "the vendor accepted the job and did not answer in time (no_answer, ",
        logged: "did not answer in time",
        metric: r#"fetchgate_jobs_failed_total{vendor="silent",code="no_answer"}"#,
        reaches: 6.0,
    },
    Case {
        vendor: "throttles",
        shown: "the vendor answered 429",
        logged: "the vendor answered 429 although every limit of the config was kept",
        metric: r#"fetchgate_vendor_throttled_unexplained_total{vendor="throttles"}"#,
        reaches: 4.0,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_says_what_is_wrong_with_a_vendor_and_so_do_the_log_and_a_metric() {
    let sync = |name: &str, url: &str, more: &str| {
        format!("[vendors.{name}]\nkind = \"sync\"\nurl = \"{url}\"\nlimits = [\"100/s\"]\n{more}\n")
    };
    let breaker = "breaker = { failed = 0.9, calls = 5, within = \"30s\", open = \"200ms\" }";
    let silent = "[vendors.silent]\nkind = \"webhook\"\nurl = \"VENDORS/async/silent?callback=never\"\nlimits = [\"100/s\"]\n\
                  answer_within = \"1s\"\nretry = { unanswered = 0 }\nwebhook = { verify = \"none\" }\n";
    let config = [
        sync("down", &format!("http://{}/", free_address()), breaker),
        sync("slow", "VENDORS/sync/slow?fault=hang", "timeout = \"100ms\""),
        sync("login", "VENDORS/sync/login?status=401", ""),
        sync("refuses", "VENDORS/sync/refuses?status=422", ""),
        sync("throttles", "VENDORS/sync/throttles?status=429", "slow_down = { first = \"100ms\", max = \"100ms\" }"),
        silent.to_owned(),
    ];
    let world = World::new(&config.concat()).await;
    let process = world.start().await;
    for fault in &FAULTS {
        process.submit_many(fault.vendor, 6).await;
    }
    for Case { vendor, shown, logged, metric, reaches } in FAULTS {
        wait_until(metric, LONG, async || {
            let (_, metrics) = process.get("/metrics").await?;
            let metrics = String::from_utf8_lossy(&metrics).into_owned();
            let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok())?;
            (value >= reaches).then_some(())
        })
        .await;
        let mut show = Command::new(BINARY);
        show.args(["vendors", "show", vendor]).env("FETCHGATE_URL", format!("http://{}", world.address()));
        let printed = show.env_remove("FETCHGATE_KEY").output().expect("it runs").stdout;
        let printed = String::from_utf8_lossy(&printed).into_owned();
        assert!(printed.contains(shown), "{vendor}: {printed}");
        let log = process.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let about =
            |line: &Value| line["vendor"] == vendor && ["WARN", "ERROR"].iter().any(|level| line["level"] == *level);
        let lines: Vec<Value> = lines.filter(about).collect();
        let reasons = |line: &&Value| line["reason"].as_str().is_some_and(|reason| reason.contains(logged));
        assert_eq!(lines.iter().filter(reasons).count(), 1, "{vendor}: {lines:#?}");
        let kinds: BTreeSet<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        assert_eq!(kinds.len(), lines.len(), "one line a minute of each kind: {lines:#?}");
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
