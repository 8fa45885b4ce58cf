//! Which call a job makes next, its submitting call or a poll, and what the templates make of the job.
//!
//! Never sends anything (see `http`) and never adds credentials (see `auth`).

use hyper::{Method, header::HeaderName};
use serde_json::value::RawValue;

use super::{
    Vendor,
    http::Origin,
    outgoing::{Content, Credentials, Outgoing, To, set},
    replies::On,
    template::{RenderError, Scope},
    webhook,
};
use crate::{
    config::{Address, Kind},
    job::{Failure, FailureCode, Job, JobId, Stage},
};

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
    pub fn request(&self, job: &Job) -> Result<Outgoing, Failure> {
        self.with_scope(job, |scope| match self.on(job) {
            On::Poll | On::Fetch => self.ask(job, scope),
            On::Call | On::Callback => self.submit_request(job, scope).map_err(unfit),
        })
    }

    /// Does something with what the templates can speak of in a job.
    pub(super) fn with_scope<T>(
        &self,
        job: &Job,
        work: impl FnOnce(&Scope<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let payload: &RawValue = serde_json::from_slice(&job.payload).map_err(|error| {
            Failure::new(FailureCode::BadResponse, format!("the stored payload is not JSON: {error}"))
        })?;
        let request_id = job.id.to_string();
        let callback_url = self.callback_url(job);
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
            (Some(template), _) => Content::json(template.render(scope)?.into()),
            (None, Kind::Webhook(_)) => Content::json(webhook::default_body(scope).into()),
            (None, _) => Content::json(job.payload.clone()),
        };
        let to = To { origin: &self.origin, path: &path, credentials: Credentials::Sent };
        let mut call = self.outgoing(scope, self.config.method.clone(), to, content)?;
        let key = if job.run == 0 { scope.request_id.to_owned() } else { format!("{}-{}", scope.request_id, job.run) };
        let headers = call.request.headers_mut();
        set(headers, HeaderName::from_static("idempotency-key"), &key);
        set(headers, HeaderName::from_static("traceparent"), &traceparent(job.id));
        Ok(call)
    }

    /// Where this vendor reports on this run of the job. Only webhook vendors have one.
    fn callback_url(&self, job: &Job) -> Option<String> {
        matches!(self.config.kind, Kind::Webhook(_))
            .then(|| format!("{}{}", self.callback_base, self.key.sign(self.name(), job.id, job.run)))
    }
}

pub(super) fn unfit(error: RenderError) -> Failure {
    Failure::new(FailureCode::VendorRefused, format!("the payload does not fit the vendor's template: {error}"))
}

/// W3C Trace Context: the job is the trace, each call a span of its own.
fn traceparent(id: JobId) -> String {
    format!("00-{:032x}-{:016x}-01", u128::from_be_bytes(*id.as_bytes()), fastrand::u64(1..))
}
