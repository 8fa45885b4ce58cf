//! Traces as a collector receives them, joined to those of callers.

use std::collections::BTreeMap;

use hyper::Method;
use mock_vendors::{Answer, MockVendors};
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, THREE_KINDS, TestApp},
};

on_every_backend!(
    the_trace_of_a_webhook_job_is_its_callers_from_the_wait_to_the_callback,
    a_job_without_a_caller_has_a_trace_of_its_own_and_a_failure_is_marked,
    a_trace_that_its_caller_does_not_record_is_passed_on_and_not_sent,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A service and the collector that it sends traces to.
struct Traced {
    app: TestApp,
    collector: MockVendors,
}

impl Traced {
    /// The collector answers with this status.
    async fn start(backend: Backend, status: u16) -> Traced {
        let collector = MockVendors::start("127.0.0.1:0").await.expect("a port for the collector");
        let url = format!("{}/sync/collector?status={status}", collector.url());
        let env = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.as_str()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b"),
            ("OTEL_SERVICE_NAME", "jobs"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Traced { app: TestApp::with_environment(backend, THREE_KINDS, &env).await, collector }
    }

    /// Submits a job with this `traceparent`, and lets it end.
    async fn run(&mut self, vendor: &str, traceparent: Option<&str>) -> String {
        let body = json!({ "vendor": vendor, "payload": { "n": 1 } }).to_string();
        let headers: Vec<(&str, &str)> = [("content-type", "application/json")]
            .into_iter()
            .chain(traceparent.map(|value| ("traceparent", value)))
            .collect();
        let accepted = self.app.send(Method::POST, "/jobs", &headers, body).await;
        assert_eq!(accepted.status, 202, "{}", accepted.text);
        self.app.run_until_idle().await;
        self.app.app.metrics.spans.flush().await;
        accepted.json()["request_id"].as_str().expect("an id").to_owned()
    }

    /// The spans that arrived, by their names.
    fn spans(&self) -> BTreeMap<String, Value> {
        let arrivals = self.collector.arrivals("collector");
        let bodies = arrivals.iter().map(|arrival| serde_json::from_slice::<Value>(&arrival.body).expect("JSON"));
        let spans = bodies
            .flat_map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone());
        spans.map(|span| (span["name"].as_str().expect("a name").to_owned(), span)).collect()
    }
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let mut all = span["attributes"].as_array().expect("attributes").iter();
    all.find(|one| one["key"] == key).map_or(&Value::Null, |one| &one["value"])
}

async fn the_trace_of_a_webhook_job_is_its_callers_from_the_wait_to_the_callback(backend: Backend) {
    let mut traced = Traced::start(backend, 200).await;
    let id = traced.run("async", Some(&format!("00-{TRACE}-{SPAN}-01"))).await;
    let job = traced.app.find(&id).await;
    assert_eq!(job["status"], "complete", "{job}");
    let spans = traced.spans();
    let names: Vec<&str> = spans.keys().map(String::as_str).collect();
    assert_eq!(names, ["call async", "callback async", "job async", "wait for a permit"]);
    for span in spans.values() {
        assert_eq!(span["traceId"], TRACE, "{span}");
        assert_eq!(attribute(span, "fetchgate.request_id")["stringValue"], *id);
        assert_eq!(attribute(span, "fetchgate.vendor")["stringValue"], "async");
        let time = |name: &str| span[name].as_str().expect("text").parse::<u64>().expect("nanoseconds");
        assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"), "{span}");
    }
    let whole = &spans["job async"];
    assert_eq!(whole["parentSpanId"], SPAN);
    assert_eq!(attribute(whole, "fetchgate.status")["stringValue"], "complete");
    for name in ["call async", "callback async", "wait for a permit"] {
        assert_eq!(spans[name]["parentSpanId"], whole["spanId"], "{name}");
    }
    let call = &spans["call async"];
    assert_eq!(call["kind"], 3);
    assert_eq!(attribute(call, "fetchgate.attempt")["intValue"], "1");
    assert_eq!(attribute(call, "fetchgate.outcome")["stringValue"], "accepted");
    let sent = traced.app.vendors.arrivals("async");
    let carried = format!("00-{TRACE}-{}-01", call["spanId"].as_str().expect("an id"));
    assert_eq!(sent[0].header("traceparent"), Some(&*carried), "the vendor's own spans are children of the call");
    let request = &traced.collector.arrivals("collector")[0];
    assert_eq!((&*request.method, request.header("content-type")), ("POST", Some("application/json")));
    assert_eq!(request.header("api-key"), Some("a b"));
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let resource = &body["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name")["stringValue"], "jobs");
    let exported = "fetchgate_spans_total{outcome=\"exported\"} 4";
    assert!(traced.app.get("/metrics").await.text.contains(exported));
    traced.app.stop().await;
}

async fn a_job_without_a_caller_has_a_trace_of_its_own_and_a_failure_is_marked(backend: Backend) {
    let mut traced = Traced::start(backend, 200).await;
    let id = traced.run("polling", None).await;
    let spans = traced.spans();
    assert_eq!(spans["job polling"]["traceId"], id.replace('-', ""));
    assert_eq!(spans["job polling"]["parentSpanId"], "");
    let carried = |n: usize| traced.app.vendors.arrivals("polling")[n].header("traceparent").expect("one").to_owned();
    assert!(carried(1).contains(&id.replace('-', "")), "a poll is in the trace too");
    assert_ne!(carried(1), carried(2), "each call is a span of its own");
    assert_eq!(spans["poll polling"]["status"]["code"], 0);
    traced.app.vendors.script("sync", vec![Answer::status(422)]);
    traced.run("sync", None).await;
    let spans = traced.spans();
    for (name, why) in [("call sync", "refused"), ("job sync", "vendor_refused")] {
        assert_eq!(spans[name]["status"]["code"], 2, "{name}");
        assert_eq!(attribute(&spans[name], "error.type")["stringValue"], why);
    }
    assert_eq!(attribute(&spans["call sync"], "http.response.status_code")["intValue"], "422");
    assert_eq!(attribute(&spans["job sync"], "fetchgate.status")["stringValue"], "failed");
    traced.app.stop().await;
}

async fn a_trace_that_its_caller_does_not_record_is_passed_on_and_not_sent(backend: Backend) {
    let mut traced = Traced::start(backend, 200).await;
    traced.run("sync", Some(&format!("00-{TRACE}-{SPAN}-00"))).await;
    assert!(traced.spans().is_empty());
    let sent = traced.app.vendors.arrivals("sync");
    let carried = sent[0].header("traceparent").expect("one");
    assert!(carried.starts_with(&format!("00-{TRACE}-")) && carried.ends_with("-00"), "{carried}");
    traced.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_refuses_for_good_is_dropped_and_what_it_cannot_take_now_is_kept() {
    for (status, outcome) in [(400, "dropped"), (503, "exported")] {
        let mut traced = Traced::start(Backend::Sqlite, status).await;
        traced.run("sync", None).await;
        let lost = "fetchgate_spans_total{outcome=\"dropped\"} 3";
        assert_eq!(traced.app.get("/metrics").await.text.contains(lost), outcome == "dropped", "{status}");
        traced.app.app.metrics.spans.flush().await;
        let requests = if outcome == "dropped" { 1 } else { 2 };
        assert_eq!(traced.collector.arrivals("collector").len(), requests, "{status}");
        traced.app.stop().await;
    }
}
