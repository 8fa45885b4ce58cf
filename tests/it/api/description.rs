//! The description and the service say the same, and what people look at works without the internet.

use std::collections::{BTreeMap, BTreeSet};

use hyper::Method;
use serde_json::Value;

use crate::{
    on_every_backend,
    support::{Backend, TestApp, openapi},
};

on_every_backend!(
    every_described_operation_exists_and_no_other,
    the_description_is_served_as_it_is,
    the_docs_page_needs_nothing_from_outside,
    metrics_are_openmetrics_and_complete,
    the_front_door_and_the_probes_answer,
);

/// Operations of the file: its paths with their methods.
fn operations() -> BTreeSet<(String, String)> {
    let paths = openapi::file()["paths"].as_object().expect("paths");
    let methods = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
        let methods = item.as_object().expect("operations").keys().filter(|key| *key != "parameters");
        methods.map(|method| (path.clone(), method.to_ascii_uppercase())).collect()
    };
    paths.iter().flat_map(methods).collect()
}

/// Operations of the router, read off its source, because a router does not tell them.
fn routes() -> BTreeSet<(String, String)> {
    let source = include_str!("../../../src/api/mod.rs");
    let route = |line: &str| {
        let (_need, rest) = line.trim().strip_prefix(".at(")?.split_once(", Method::")?;
        let (method, rest) = rest.split_once(", \"")?;
        Some((rest.split_once('"')?.0.to_owned(), method.to_owned()))
    };
    source.lines().filter_map(route).collect()
}

async fn every_described_operation_exists_and_no_other(backend: Backend) {
    let app = TestApp::start(backend).await;
    assert_eq!(routes(), operations());
    let mut by_path: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, method) in operations() {
        by_path.entry(path).or_default().insert(method);
    }
    for (path, methods) in by_path {
        let real = path.replace("{id}", "01a203e8-3838-7a3c-9f21-5b7e0c4d8a16").replace("{name}", "sync");
        let real = real.replace("{vendor}", "async").replace("{token}", "x");
        // Otherwise it would not end.
        let real = if real == "/events" { "/events?status=x".to_owned() } else { real };
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = app.send(method.parse().unwrap(), &real, &[("content-type", "application/json")], "{}").await;
            let exists = !(answer.status == 405 || answer.status == 404 && answer.code() == "not_found");
            assert_eq!(exists, methods.contains(method), "{method} {path} answered {}", answer.status);
        }
    }
    app.stop().await;
}

#[test]
fn every_example_fits_its_schema() {
    let mut seen = 0;
    walk(openapi::file(), "", &mut seen);
    assert!(seen > 100, "{seen} examples");
}

/// Visits everything that has a schema and examples beside it, and every schema with examples inside.
fn walk(node: &'static Value, at: &str, seen: &mut usize) {
    match node {
        Value::Object(members) => {
            let named = members.get("examples").and_then(Value::as_object).into_iter().flatten();
            let named: Vec<_> = named.filter_map(|(_, example)| example.get("value")).collect();
            let inside: Vec<_> = members.get("examples").and_then(Value::as_array).into_iter().flatten().collect();
            let schema = members.get("schema").unwrap_or(node);
            for example in named.into_iter().chain(members.get("example")).chain(inside) {
                let misfit = openapi::misfit(schema, example);
                assert!(misfit.is_none(), "an example at {at}: {}\n{example}", misfit.unwrap_or_default());
                *seen += 1;
            }
            for (name, member) in members.iter().filter(|(name, _)| !["example", "examples"].contains(&name.as_str())) {
                walk(member, &format!("{at}/{name}"), seen);
            }
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| walk(item, &format!("{at}/{i}"), seen)),
        _ => {}
    }
}

/// The page at /docs sends an example unless it is deleted: with one, a first click lists no jobs or repeats an `Idempotency-Key`.
#[test]
fn no_optional_parameter_has_an_example() {
    let file = openapi::file();
    let items = file["paths"].as_object().expect("paths").values().filter_map(Value::as_object);
    let listed = items.flat_map(|item| item.values()).filter_map(|operation| operation["parameters"].as_array());
    let shared = file["components"]["parameters"].as_object().expect("parameters").values();
    for parameter in listed.flatten().chain(shared) {
        let has_example = !parameter["example"].is_null() || !parameter["examples"].is_null();
        assert!(parameter["required"] == true || !has_example, "{parameter}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(node: &Value) {
        match node {
            Value::Object(members) => {
                if let Some(pointer) = members.get("$ref").and_then(Value::as_str) {
                    assert!(openapi::file().pointer(pointer.trim_start_matches('#')).is_some(), "{pointer}");
                }
                members.values().for_each(walk);
            }
            Value::Array(items) => items.iter().for_each(walk),
            _ => {}
        }
    }
    walk(openapi::file());
}

async fn the_description_is_served_as_it_is(backend: Backend) {
    let app = TestApp::start(backend).await;
    let answer = app.get("/openapi.json").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    assert_eq!(&answer.json(), openapi::file());
    app.stop().await;
}

async fn the_docs_page_needs_nothing_from_outside(backend: Backend) {
    let app = TestApp::start(backend).await;
    let page = app.get("/docs").await;
    assert_eq!((page.status.as_u16(), &page.header("content-type")[..9]), (200, "text/html"));
    let attributes = ["src=\"", "href=\"", "url: \""];
    let links: Vec<&str> = attributes
        .iter()
        .flat_map(|attribute| page.text.split(attribute).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert!(links.len() >= 3 && links.contains(&"/openapi.json"), "{links:?}");
    for link in links {
        assert!(link.starts_with('/') && !link.starts_with("//"), "{link} leads outside");
        let file = app.send_unchecked(Method::GET, link, &[], "").await;
        assert_eq!(file.status, 200, "{link}");
        let kind = match link.rsplit_once('.').unwrap().1 {
            "css" => "text/css",
            "js" => "javascript",
            _ => "json",
        };
        assert!(file.header("content-type").contains(kind) && !file.text.is_empty(), "{link}");
    }
    assert!(!page.text.contains("://"), "{}", page.text);
    app.stop().await;
}

async fn the_front_door_and_the_probes_answer(backend: Backend) {
    let app = TestApp::start(backend).await;
    let door = app.get("/").await;
    assert!(door.status == 200 && door.text.contains("dashboard/main.js"), "{}", door.text);
    assert_eq!(app.get("/livez").await.json()["status"], "alive");
    for path in ["/readyz", "/health"] {
        let ready = app.get(path).await.json();
        assert_eq!((&ready["status"], &ready["checks"]["store"]), (&"ready".into(), &"ok".into()));
    }
    app.stop().await;
}

async fn metrics_are_openmetrics_and_complete(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    for vendor in ["sync", "async", "polling"] {
        app.submit(vendor, "1").await;
    }
    app.run_until_idle().await;
    app.run_janitor().await;
    let answer = app.get("/metrics").await;
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let samples = read_openmetrics(&answer.text);
    let wanted = [
        "jobs_accepted_total",
        "jobs_ended_total",
        "jobs_waiting",
        "oldest_waiting_seconds",
        "vendor_calls_total",
        "vendor_latency_seconds_count",
        "vendor_throttled_total",
        "permits_granted_total",
        "permits_unused_total",
        "permits_late_total",
        "limit_waits_total",
        "limit_breaches_total",
        "in_flight",
        "callbacks_total",
        "store_write_seconds_count",
        "store_errors_total",
        "http_requests_total",
        "http_request_seconds_count",
        "build_info",
        "process_info",
        "jobs_failed_total",
        "jobs_open",
        "vendor_blocked",
        "limit_used",
        "limit_calls",
    ];
    for name in wanted {
        assert!(samples.keys().any(|sample| sample.split('{').next() == Some(&*format!("fetchgate_{name}"))), "{name}");
    }
    for vendor in ["sync", "async", "polling"] {
        let value = |name: &str| samples[&format!("fetchgate_{name}{{vendor=\"{vendor}\"}}")];
        assert_eq!((value("jobs_accepted_total"), value("limit_breaches_total"), value("in_flight")), (1.0, 0.0, 0.0));
        let ended = samples.iter().find(|(name, _)| {
            name.starts_with("fetchgate_jobs_ended_total{") && name.contains(vendor) && name.contains("\"complete\"")
        });
        assert_eq!(ended.map(|(_, value)| *value), Some(1.0), "{vendor}");
    }
    for (outcome, calls) in [("accepted", 1.0), ("pending", 2.0), ("done", 1.0), ("no_connection", 0.0)] {
        let name = format!("fetchgate_vendor_calls_total{{vendor=\"polling\",outcome=\"{outcome}\"}}");
        assert_eq!(samples[&name], calls, "{outcome}");
    }
    assert_eq!(samples["fetchgate_callbacks_total{vendor=\"async\",outcome=\"accepted\"}"], 1.0);
    assert!(samples["fetchgate_store_write_seconds_count"] > 0.0, "stored jobs were timed");
    app.stop().await;
}

/// Samples by name and labels. Fails on what is not OpenMetrics: a family told twice or in parts, a sample of none, no end.
fn read_openmetrics(text: &str) -> BTreeMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    let (mut samples, mut families, mut family) = (BTreeMap::new(), BTreeSet::new(), "");
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap();
            assert!(families.insert(family), "{family} is told twice");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ").or(line.strip_prefix("# UNIT ")) {
            assert_eq!(kind.split(' ').next(), Some(family), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
        let is_named_well = name.starts_with("fetchgate_") || name.starts_with("process_");
        assert!(is_named_well && name.starts_with(family), "{line} is not of {family}");
        assert!(!name.contains("request_id"), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        assert!(samples.insert(name.to_owned(), value).is_none(), "{name} comes twice");
    }
    samples
}
