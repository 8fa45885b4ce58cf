//! Which call a job makes next, its submitting call or a poll, and what the templates make of the job.
//!
//! Never sends anything (see `http`) and never adds credentials (see `auth`).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header::HeaderName};
use serde_json::value::RawValue;

use super::{
    Vendor,
    error::bad,
    http::Origin,
    outgoing::{Content, Credentials, Outgoing, To, set},
    replies::On,
    template::{RenderError, Scope},
    webhook,
};
use crate::{
    config::{Address, Kind},
    job::{Failure, FailureCode, Job, JobId, Stage, Trace},
};

/// W3C Trace Context, on every call to the vendor itself.
const TRACEPARENT: &str = "traceparent";

impl Vendor {
    /// Where calls of this stage go, if the job itself does not say otherwise: connections are opened ahead to it.
    pub fn origin(&self, stage: Stage) -> Origin {
        if let Kind::Polling(polling) = &self.config.kind
            && let (Address::Url(url), Stage::Poll) = (&polling.url, stage)
        {
            return Origin::of_template(url);
        }
        self.origin.clone()
    }

    /// Whether all requests for a job can be built: with its own id and tenant, and for polls with some ticket.
    pub fn check(&self, id: JobId, tenant: &str, payload: &RawValue) -> Result<(), RenderError> {
        let (request_id, callback_url) = (id.to_string(), self.callback_url(id, 0));
        let callback_url = callback_url.as_deref();
        let scope = Scope { request_id: &request_id, payload, callback_url, ticket: Some("-"), tenant };
        self.config.url.render(&scope)?;
        for (_, value) in &self.config.header_templates {
            value.render(&scope)?;
        }
        if let Some(body) = &self.config.body {
            body.render(&scope)?;
        }
        let (poll, body) = match &self.config.kind {
            Kind::Polling(polling) => (Some(&polling.url), polling.body.as_ref()),
            Kind::Sync | Kind::Webhook(_) => (None, None),
        };
        for address in [poll, self.config.kind.result_url()].into_iter().flatten() {
            if let Address::Url(url) = address {
                url.render(&scope)?;
            }
        }
        body.map_or(Ok(()), |body| body.render(&scope).map(drop))
    }

    /// The job's next call: its submitting call, or a poll.
    pub fn request(&self, job: &Job) -> Result<Outgoing, Failure> {
        let mut call = self.with_scope(job, |scope| match self.on(job) {
            On::Poll | On::Fetch => self.ask(job, scope),
            On::Call | On::Callback => self.submit_request(job, scope).map_err(unfit),
        })?;
        // Each call is a span of its own. Other origins than the vendor's learn nothing of the job.
        if call.credentials == Credentials::Sent {
            let span = job.trace().with_span(fastrand::u64(1..));
            set(call.request.headers_mut(), HeaderName::from_static(TRACEPARENT), &span.to_string());
        }
        Ok(call)
    }

    /// Does something with what the templates can speak of in a job.
    pub(super) fn with_scope<T>(
        &self,
        job: &Job,
        work: impl FnOnce(&Scope<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let payload: &RawValue = serde_json::from_slice(&job.payload)
            .map_err(|error| bad(format!("the stored payload is not JSON: {error}")))?;
        let request_id = job.id.to_string();
        let callback_url = self.callback_url(job.id, job.run);
        work(&Scope {
            request_id: &request_id,
            payload,
            callback_url: callback_url.as_deref(),
            ticket: job.ticket.as_deref(),
            tenant: &job.lane.tenant,
        })
    }

    fn submit_request(&self, job: &Job, scope: &Scope<'_>) -> Result<Outgoing, RenderError> {
        let path = self.config.url.render(scope)?;
        let content = match (&self.config.body, &self.config.kind) {
            (_, _) if self.config.method == Method::GET => Content::none(),
            (Some(body), _) => body.render(scope)?,
            (None, Kind::Webhook(_)) => Content::json(webhook::default_body(scope).into()),
            (None, _) => Content::json(job.payload.clone()),
        };
        let to = To { origin: &self.origin, path: &path, credentials: Credentials::Sent };
        let mut call = self.outgoing(scope, self.config.method.clone(), to, content)?;
        let headers = call.request.headers_mut();
        if let Some(name) = &self.config.idempotency_header {
            let id = scope.request_id;
            set(headers, name.clone(), &if job.run == 0 { id.to_owned() } else { format!("{id}-{}", job.run) });
        }
        Ok(call)
    }

    /// Where this vendor reports on this run of the job. Only webhook vendors have one.
    fn callback_url(&self, id: JobId, run: u32) -> Option<String> {
        matches!(self.config.kind, Kind::Webhook(_))
            .then(|| format!("{}{}", self.callback_base, self.key.sign(self.name(), id, run)))
    }
}

/// The span that a request carries.
pub fn span_of(request: &Request<Full<Bytes>>) -> Option<Trace> {
    Trace::parse(request.headers().get(TRACEPARENT)?.to_str().ok()?)
}

pub(super) fn unfit(error: RenderError) -> Failure {
    Failure::new(FailureCode::VendorRefused, format!("the payload does not fit the vendor's template: {error}"))
}
