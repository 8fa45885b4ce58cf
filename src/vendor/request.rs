//! What a call looks like on the wire: the job's submitting call, or a poll.
//!
//! Never sends anything (see `http`) and never adds credentials (see `auth`).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request,
    header::{ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use serde_json::value::RawValue;

use super::{
    Vendor,
    http::Origin,
    polling,
    template::{RenderError, Scope},
    webhook,
};
use crate::{
    config::Kind,
    job::{Failure, FailureCode, Job, JobId, Stage},
};

impl Vendor {
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
    pub(super) fn bare_request(
        &self,
        method: Method,
        origin: &Origin,
        path: &str,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
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
