//! OTLP, how spans go to a collector (<https://opentelemetry.io/docs/specs/otlp/>): as JSON over HTTP. Written here, because the crates for it cost
//! every build more than these lines.
//!
//! Never decides what a span is (see `spans`), and never tries again by itself.

use std::{borrow::Cow, ops::Range, time::Duration};

use http_body_util::Full;
use hyper::{
    Request,
    header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    config::Collector,
    job::Trace,
    vendor::{error::CallError, http::Client},
};

/// A collector has this long to take a batch, connecting included.
const WITHIN: Duration = Duration::from_secs(10);
const US: &str = concat!("fetchgate/", env!("CARGO_PKG_VERSION"));

/// What a span is to the service that it is in: numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
    /// What was taken from a queue.
    Consumer = 5,
}

/// A span as it goes out.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span {
    trace_id: String,
    span_id: String,
    /// Empty: none.
    parent_span_id: String,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute>,
    status: Status,
}

#[derive(Debug, Clone, Serialize)]
struct Attribute {
    key: Cow<'static, str>,
    value: Value,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
enum Value {
    StringValue(String),
    /// As text, because JSON's numbers are floats to many.
    IntValue(String),
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Status {
    /// 0 unset, 2 error.
    code: u8,
}

impl Span {
    /// A span without attributes; times are nanoseconds since the Unix epoch.
    pub(crate) fn new(at: Trace, parent: Option<u64>, name: String, kind: Kind, times: Range<u128>) -> Span {
        Span {
            trace_id: format!("{:032x}", at.id),
            span_id: format!("{:016x}", at.span),
            parent_span_id: parent.map(|parent| format!("{parent:016x}")).unwrap_or_default(),
            name,
            kind: kind as u8,
            start_time_unix_nano: times.start.to_string(),
            end_time_unix_nano: times.end.to_string(),
            attributes: Vec::new(),
            status: Status { code: 0 },
        }
    }

    #[must_use]
    pub(crate) fn with(mut self, key: &'static str, value: impl Into<String>) -> Span {
        self.attributes.push(Attribute { key: key.into(), value: Value::StringValue(value.into()) });
        self
    }

    #[must_use]
    pub(crate) fn with_number(mut self, key: &'static str, value: impl Into<u64>) -> Span {
        let value = Value::IntValue(value.into().to_string());
        self.attributes.push(Attribute { key: key.into(), value });
        self
    }

    /// The same, failed for this reason, which is one of a few words.
    #[must_use]
    pub(crate) fn failed(mut self, why: &str) -> Span {
        self.status.code = 2;
        self.with("error.type", why)
    }
}

/// Why a collector did not take a batch.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It may take it later.
    ForNow(String),
    /// It never will.
    ForGood(String),
}

/// The way to a collector.
pub(crate) struct Exporter {
    collector: Collector,
    client: Client,
}

impl Exporter {
    pub(crate) fn new(collector: Collector) -> Exporter {
        Exporter { collector, client: Client::new() }
    }

    pub(crate) fn collector(&self) -> &Collector {
        &self.collector
    }

    /// Sends spans once. Not cancel-safe: dropped half-way, the collector may have them.
    pub(crate) async fn send(&self, spans: &[Span]) -> Result<(), Refused> {
        let Collector { origin, .. } = &self.collector;
        let request = self.request(spans);
        let sending = async {
            let mut connection = self.client.connection(origin).await?;
            let reply = connection.send(request).await?;
            self.client.keep(connection);
            Ok::<_, CallError>(reply.status)
        };
        let status = match tokio::time::timeout(WITHIN, sending).await.unwrap_or(Err(CallError::TimedOut)) {
            Ok(status) => status,
            Err(error) => return Err(Refused::ForNow(words(error))),
        };
        let why = format!("it answered {}", status.as_u16());
        match status.as_u16() {
            200..=299 => Ok(()),
            429 | 502..=504 => Err(Refused::ForNow(why)),
            _ => Err(Refused::ForGood(why)),
        }
    }

    fn request(&self, spans: &[Span]) -> Request<Full<bytes::Bytes>> {
        let text = |(key, value): &(String, String)| Attribute {
            key: key.clone().into(),
            value: Value::StringValue(value.clone()),
        };
        let attributes: Vec<Attribute> = self.collector.resource.iter().map(text).collect();
        let scope = json!({ "name": "fetchgate", "version": env!("CARGO_PKG_VERSION") });
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": attributes },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }]});
        let mut request = Request::new(Full::new(body.to_string().into()));
        *request.method_mut() = hyper::Method::POST;
        // A URL that was read has percent-encoded whatever is not allowed in a path.
        *request.uri_mut() = self.collector.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(US));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(self.collector.headers.clone());
        if let Ok(host) = HeaderValue::from_str(&self.collector.origin.authority()) {
            headers.insert(HOST, host);
        }
        request
    }
}

/// The client speaks of vendors.
fn words(error: CallError) -> String {
    match error {
        CallError::Unreachable(why) => format!("no connection: {why}"),
        CallError::Interrupted(why) => format!("the connection broke: {why}"),
        CallError::TimedOut => "no answer in time".to_owned(),
        other => other.to_string(),
    }
}
