//! How to talk to vendors: what a call looks like on the wire, and what its reply means. The only module that calls out.
//!
//! Never waits for a limit, never stores anything, never retries: a reply becomes a [`Reading`], and others act on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request,
    header::{ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use serde_json::value::RawValue;

use self::{
    auth::Login,
    clean::Clean,
    http::{MAX_REPLY_BYTES, Origin},
    replies::Rule,
    template::{RenderError, Scope},
    token::CallbackKey,
};
use crate::{
    clock::Time,
    config::{Config, Kind, Vendor as VendorConfig},
    job::{AttemptKind, Failure, FailureCode, Job, JobId, Stage, lifecycle::Policy},
    json::{self, Pointer},
};

pub mod auth;
pub mod clean;
pub mod error;
pub mod http;
mod polling;
mod quota;
mod reading;
pub mod replies;
pub mod signature;
pub mod template;
pub mod token;
pub mod value;
mod waits;
mod webhook;

pub use reading::{Reading, Silence};
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
    /// What its answers mean, in the order in which the rules count.
    rules: Vec<Rule>,
    /// What is redacted in a whole body of its own words.
    redacted: Clean,
    /// What was wrong with its last call in this process, if anything was, and when.
    last_error: Mutex<Option<(Failure, Time)>>,
    callback_base: String,
    key: CallbackKey,
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
        let (rules, redacted) = (replies::of(&config), redacted(&config.clean, &config.kind));
        let login = Login::new(&config);
        Vendor { origin, headers, login, rules, redacted, last_error: Mutex::default(), callback_base, key, config }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Remembers what was wrong with a call, or that nothing was.
    pub fn note(&self, reading: &Reading, now: Time) {
        *self.last_error() = reading.failure().map(|why| (why.clone(), now));
    }

    /// What was wrong with the last call of this process, if anything was, and when.
    pub fn last_error(&self) -> MutexGuard<'_, Option<(Failure, Time)>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
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
        headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("gzip"));
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

/// What to redact in a whole body: the places of the config, in the body itself and in the part of it that is the result.
fn redacted(clean: &Clean, kind: &Kind) -> Clean {
    let results: Vec<Pointer> = match kind {
        Kind::Sync => Vec::new(),
        Kind::Polling(polling) => polling.result.iter().cloned().collect(),
        Kind::Webhook(webhook) => match &webhook.result {
            Some(at) => vec![at.clone()],
            None => webhook::DEFAULT_RESULTS.iter().map(|key| Pointer::from_keys([*key])).collect(),
        },
    };
    let inside = results.iter().flat_map(|result| clean.redact.iter().map(move |at| result.join(at)));
    Clean { redact: clean.redact.iter().cloned().chain(inside).collect(), ..Clean::default() }
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
