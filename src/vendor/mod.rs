//! How to talk to vendors: what a call looks like on the wire, and what its reply means. The only module that calls out.
//!
//! Never waits for a limit, never stores anything, never retries: a reply becomes a [`Step`], and others act on it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request,
    header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use serde_json::value::RawValue;

use self::{
    auth::Login,
    error::CallError,
    http::{MAX_REPLY_BYTES, Origin, Reply},
    quota::Quota,
    template::{RenderError, Scope},
    token::CallbackKey,
};
use crate::{
    config::{Config, Kind, Match, Vendor as VendorConfig},
    job::{
        AttemptKind, Failure, FailureCode, Job, JobId, Stage,
        lifecycle::{Policy, Step},
    },
    json,
};

pub mod auth;
pub mod clean;
pub mod error;
pub mod http;
mod polling;
mod quota;
mod refusal;
pub mod signature;
mod sync;
pub mod template;
pub mod token;
mod webhook;

pub use webhook::{Callback, NotBelieved};

/// Bytes of a vendor's ticket at most.
const MAX_TICKET_BYTES: usize = 4096;

/// All vendors of the config, by name.
pub struct Registry {
    vendors: BTreeMap<Arc<str>, Arc<Vendor>>,
    key: CallbackKey,
}

impl Registry {
    pub fn new(config: &Config, callback_secret: &[u8]) -> Registry {
        let key = CallbackKey::new(callback_secret);
        let public_url = config.server.public_url.as_str().trim_end_matches('/');
        let vendor = |vendor: &VendorConfig| {
            let callback_base = format!("{public_url}/vendor-webhook/{}/", vendor.name);
            (vendor.name.clone(), Arc::new(Vendor::new(vendor.clone(), callback_base, key.clone())))
        };
        Registry { vendors: config.vendors.iter().map(vendor).collect(), key }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Vendor>> {
        self.vendors.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Vendor>> {
        self.vendors.values()
    }

    /// The job and run that a callback token was made for; `None` for a token that we did not make.
    pub fn read_token(&self, vendor: &str, token: &str) -> Option<(JobId, u32)> {
        self.key.verify(vendor, token)
    }
}

/// One vendor, ready to be called.
pub struct Vendor {
    pub config: VendorConfig,
    origin: Origin,
    headers: HeaderMap,
    pub login: Login,
    callback_base: String,
    key: CallbackKey,
}

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub step: Step,
    /// The vendor asked for silence, or said that nothing is left of its limit: its whole pool is not called for this long.
    pub close_gate: Option<Duration>,
    /// What is left of the vendor's limit lasts if its pool's calls are so far apart.
    pub apart: Option<Duration>,
}

impl Reading {
    fn of(step: Step) -> Reading {
        Reading { step, close_gate: None, apart: None }
    }
}

impl Vendor {
    fn new(config: VendorConfig, callback_base: String, key: CallbackKey) -> Vendor {
        let mut headers = HeaderMap::new();
        // Those whose files may change are put on each request anew.
        for (name, value) in config.headers.iter().filter(|(_, value)| !value.is_in_files()) {
            // The config has checked them.
            if let Ok(mut value) = HeaderValue::from_str(&value.reveal()) {
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        let origin = Origin::of_template(&config.url);
        Vendor { origin, headers, login: Login::new(&config), callback_base, key, config }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// The rules that the state machine needs.
    pub fn policy(&self) -> Policy {
        Policy {
            retry: self.config.retry,
            answer_within: self.config.answer_within,
            at_most_once: self.config.at_most_once,
        }
    }

    /// Where the job's next call goes. Submitting calls and polls may go to different hosts.
    pub fn origin(&self, stage: Stage) -> Origin {
        match &self.config.kind {
            Kind::Polling(polling) if stage == Stage::Poll => Origin::of_template(&polling.url),
            _ => self.origin.clone(),
        }
    }

    /// Whether a payload has what this vendor's templates need.
    pub fn check_payload(&self, payload: &RawValue) -> Result<(), RenderError> {
        let scope = Scope { request_id: "-", payload, callback_url: Some("-"), ticket: Some("-"), tenant: "-" };
        self.config.url.render(&scope)?;
        if let Some(body) = &self.config.body {
            body.render(&scope)?;
        }
        Ok(())
    }

    /// The job's next call: its submitting call, or a poll.
    pub fn request(&self, job: &Job) -> Result<Request<Full<Bytes>>, Failure> {
        let payload: &RawValue = serde_json::from_slice(&job.payload).map_err(|error| {
            Failure::new(FailureCode::BadResponse, format!("the stored payload is not JSON: {error}"))
        })?;
        let request_id = job.id.to_string();
        let callback_url = self.callback_url(job);
        let scope = Scope {
            request_id: &request_id,
            payload,
            callback_url: callback_url.as_deref(),
            ticket: job.ticket.as_deref(),
            tenant: &job.lane.tenant,
        };
        let built = match &self.config.kind {
            Kind::Polling(polling) if job.stage == Stage::Poll => polling::poll_request(self, polling, &scope),
            _ => self.submit_request(job, &scope),
        };
        built.map_err(|error| {
            Failure::new(FailureCode::VendorRefused, format!("the payload does not fit the vendor's template: {error}"))
        })
    }

    fn submit_request(&self, job: &Job, scope: &Scope<'_>) -> Result<Request<Full<Bytes>>, RenderError> {
        let path = self.config.url.render(scope)?;
        let body = match (&self.config.body, &self.config.kind) {
            (_, _) if self.config.method == Method::GET => Bytes::new(),
            (Some(template), _) => template.render(scope)?.into(),
            (None, Kind::Webhook(_)) => webhook::default_body(scope).into(),
            (None, _) => job.payload.clone(),
        };
        let mut request = self.bare_request(self.config.method.clone(), &self.origin, &path, body);
        let key = if job.run == 0 { scope.request_id.to_owned() } else { format!("{}-{}", scope.request_id, job.run) };
        set(request.headers_mut(), "idempotency-key", &key);
        set(request.headers_mut(), "traceparent", &traceparent(job.id));
        Ok(request)
    }

    /// A request with the headers that every call to this vendor has.
    fn bare_request(&self, method: Method, origin: &Origin, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let has_body = !body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // The template has percent-encoded whatever is not allowed in a path.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        set(headers, HOST.as_str(), &origin.authority());
        headers
            .entry("user-agent")
            .or_insert(HeaderValue::from_static(concat!("fetchgate/", env!("CARGO_PKG_VERSION"))));
        headers.entry("accept").or_insert(HeaderValue::from_static("application/json"));
        if has_body {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        }
        request
    }

    /// Where this vendor reports on this run of the job. Only webhook vendors have one.
    fn callback_url(&self, job: &Job) -> Option<String> {
        matches!(self.config.kind, Kind::Webhook(_))
            .then(|| format!("{}{}", self.callback_base, self.key.sign(self.name(), job.id, job.run)))
    }

    /// What a reply, or its absence, means for the job.
    pub fn read(&self, job: &Job, reply: Result<Reply, CallError>) -> Reading {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return Reading::of(refusal::without_reply(&error)),
        };
        let Quota { silence, apart } = quota::read(&reply.headers, self.config.rate_headers.as_ref());
        if !reply.status.is_success() {
            let reading = refusal::not_success(&reply);
            return Reading { close_gate: reading.close_gate.max(silence), apart, ..reading };
        }
        let step = match &self.config.kind {
            Kind::Sync => sync::read(self, reply.body),
            Kind::Webhook(webhook) => webhook::accepted(self, webhook, &reply.body),
            Kind::Polling(polling) => polling::read(self, polling, job, reply.body),
        };
        Reading { step: step.unwrap_or_else(|why| Step::GiveUp { why }), close_gate: silence, apart }
    }

    /// The vendor's own word, inside a 2xx answer or a callback, that it failed.
    fn reported_failure(&self, body: &RawValue) -> Result<(), Failure> {
        match &self.config.failed {
            Some(failed) if matches(failed, body) => {
                let message = format!("the vendor reported a failure at {}", failed.at);
                Err(Failure::new(FailureCode::VendorRefused, message))
            }
            _ => Ok(()),
        }
    }

    /// Vendor data as we keep it.
    fn cleaned(&self, data: &RawValue) -> Result<Bytes, Failure> {
        if self.config.clean.is_noop() {
            return Ok(Bytes::copy_from_slice(data.get().as_bytes()));
        }
        let cleaned = self.config.clean.apply(data);
        if cleaned.len() > MAX_REPLY_BYTES {
            return Err(too_large("cleaned as its config wants it, the vendor's answer"));
        }
        Ok(Bytes::from(cleaned))
    }
}

/// Whether a body has one of the values at the place.
fn matches(wanted: &Match, body: &RawValue) -> bool {
    wanted.at.find(body).is_some_and(|found| wanted.is.iter().any(|is| *is == json::text(found)))
}

/// A body as JSON: what is not JSON becomes a JSON string, when it is UTF-8. As such it may be several times as long, and is bounded too.
fn as_json(body: &Bytes) -> Result<Box<RawValue>, Failure> {
    match json::check(body) {
        Ok(value) => Ok(value.to_owned()),
        Err(json::JsonFault::TooDeep) => {
            Err(Failure::new(FailureCode::BadResponse, "the vendor's answer is nested too deeply"))
        }
        Err(json::JsonFault::Malformed(_)) => {
            let no_text =
                || Failure::new(FailureCode::BadResponse, "the vendor's answer is neither JSON nor text in UTF-8");
            let text = std::str::from_utf8(body).map_err(|_| no_text())?;
            let mut bounded = Vec::new().limit(MAX_REPLY_BYTES).writer();
            serde_json::to_writer(&mut bounded, text)
                .map_err(|_| too_large("kept as a JSON string, the vendor's answer"))?;
            let text = String::from_utf8(bounded.into_inner().into_inner()).map_err(|_| no_text())?;
            RawValue::from_string(text).map_err(|_| no_text())
        }
    }
}

fn too_large(what: &str) -> Failure {
    let message = format!("{what} is larger than {MAX_REPLY_BYTES} bytes");
    Failure::new(FailureCode::ResponseTooLarge, message)
}

/// The vendor's own reference to what it has accepted. It is kept with the job and looked up by callbacks, so it is bounded.
fn bounded_ticket(found: &RawValue) -> Result<String, Failure> {
    let ticket = json::text(found);
    if ticket.len() > MAX_TICKET_BYTES {
        let message = format!(
            "the vendor accepted the job with a ticket of {} bytes; at most {MAX_TICKET_BYTES} are kept",
            ticket.len()
        );
        return Err(Failure::new(FailureCode::BadResponse, message));
    }
    Ok(ticket.into_owned())
}

/// W3C Trace Context: the job is the trace, each call a span of its own.
fn traceparent(id: JobId) -> String {
    let trace: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("00-{trace}-{:016x}-01", fastrand::u64(1..))
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// What kind of call a job's next one is.
pub fn attempt_kind(stage: Stage) -> AttemptKind {
    if stage == Stage::Poll { AttemptKind::Poll } else { AttemptKind::Call }
}
