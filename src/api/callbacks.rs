//! Callbacks of vendors: a callback decides the outcome of its job, in every state that has not ended.
//!
//! Never reads the store before the caller has proved who it is, nor a body before its head has shown all that it can show, and never answers
//! 200 before the outcome is durable.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::HeaderMap;

use super::{
    App,
    body::{self, MAX_CALLBACK, Whole},
    dto,
    error::ApiError,
    path::{NamedVendor, Segments},
};
use crate::{
    clock::nanos,
    job::{Job, JobId, lifecycle, lifecycle::Step},
    store::{Amended, Sees, Which},
    telemetry::CallbackOutcome,
    vendor::{
        Callback, Challenged, MAX_CHALLENGE, MAX_EVENTS, Silence, Vendor, form,
        value::{Value, ValueFault},
        verify::{NotBelieved, Verify},
    },
};

/// Callbacks of one body whose outcomes are stored at once, each for a job of its own.
const SIDE_BY_SIDE: usize = 16;
/// How long after a call its reply, which has the ticket, may not be stored yet.
const LATELY: Duration = Duration::from_secs(10);

/// `POST /vendor-webhook/{vendor}/{token}`: the URL that the vendor got for one job. The token is the proof.
pub(super) async fn for_one_job(
    State(app): State<Arc<App>>,
    Segments((name, token)): Segments<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some((id, run)) = app.vendors.read_token(&name, &token) else {
        return Err(refused(&app, app.vendors.get(&name), "the token in its URL is wrong"));
    };
    // The token of a vendor that was removed from the config is still valid, but its rules for reading are gone.
    let vendor = app.vendors.get(&name).ok_or_else(|| ApiError::unknown_vendor(&name))?;
    reread_secrets(&app, vendor).await;
    if let Some(answer) = answer_to_head(&app, vendor, &request)? {
        return Ok(answer);
    }
    let sent = Sent::read(request).await?;
    let (sent, values) = match callbacks(&app, vendor, sent)? {
        ControlFlow::Continue(callbacks) => callbacks,
        ControlFlow::Break(answer) => return Ok(answer),
    };
    for value in values {
        if let Amended::Unknown = amend(&app, vendor, Which::Id(id), Some(run), &sent, value).await? {
            // The job had ended and was deleted, so the vendor need not repeat the callback.
            count(&app, vendor, CallbackOutcome::Ignored);
        }
    }
    Ok(success())
}

/// `POST /vendor-webhook/{vendor}`: one URL for all jobs of a vendor; the body says which.
pub(super) async fn shared(
    State(app): State<Arc<App>>,
    NamedVendor(vendor): NamedVendor,
    request: Request,
) -> Result<Response, ApiError> {
    if let Verify::Off = vendor.verify() {
        return Ok(not_believed(&app, &vendor, &NotBelieved::SharedUrlOff));
    }
    reread_secrets(&app, &vendor).await;
    if let Some(answer) = answer_to_head(&app, &vendor, &request)? {
        return Ok(answer);
    }
    if let Err(why) = vendor.may_believe(request.method(), request.headers(), app.clock.now()) {
        return Ok(not_believed(&app, &vendor, &why));
    }
    let sent = Sent::read(request).await?;
    if let Err(why) = vendor.verify().whole(&sent.headers, &sent.raw, app.clock.now()) {
        return Ok(not_believed(&app, &vendor, &why));
    }
    let (sent, values) = match callbacks(&app, &vendor, sent)? {
        ControlFlow::Continue(callbacks) => callbacks,
        ControlFlow::Break(answer) => return Ok(answer),
    };
    // Those for one job keep their order: the first one that ends it decides.
    let mut by_job: Vec<(Option<Callback>, Vec<Value>)> = Vec::new();
    for value in values {
        let job = vendor.job_in_callback(&value.json);
        match by_job.iter_mut().find(|(other, _)| *other == job) {
            Some((_, values)) => values.push(value),
            None => by_job.push((job, vec![value])),
        }
    }
    let landing = by_job.into_iter().map(|(job, values)| land(&app, &vendor, &sent, job, values));
    let landed: Vec<Landed> = stream::iter(landing).buffer_unordered(SIDE_BY_SIDE).collect().await;
    landed.into_iter().max_by_key(Landed::weight).map_or(Ok(success()), Landed::into_answer)
}

/// Reads the files of the secrets that the vendor sends, where it is time for that.
async fn reread_secrets(app: &App, vendor: &Arc<Vendor>) {
    if vendor.wants_reread(app.clock.nanos()) {
        let vendor = vendor.clone();
        // A panic there leaves the secrets as they were.
        let _ = tokio::task::spawn_blocking(move || vendor.reread_callback_secrets()).await;
    }
}

/// A callback as it came.
struct Sent {
    method: Method,
    headers: HeaderMap,
    /// The body; of a GET the query.
    raw: Bytes,
    /// Its memory is charged as long as this is kept.
    _body: Option<Whole>,
    /// Several callbacks are in it.
    is_many: bool,
}

impl Sent {
    async fn read(request: Request) -> Result<Sent, ApiError> {
        let (method, headers) = (request.method().clone(), request.headers().clone());
        if method == Method::GET {
            let raw = Bytes::copy_from_slice(request.uri().query().unwrap_or_default().as_bytes());
            return Ok(Sent { method, headers, raw, _body: None, is_many: false });
        }
        let mut body = body::read(request, MAX_CALLBACK).await?;
        if headers.contains_key(header::CONTENT_ENCODING) {
            body.before_unpacking(MAX_CALLBACK).await?;
        }
        Ok(Sent { method, headers, raw: body.clone(), _body: Some(body), is_many: false })
    }

    /// What it says: read as replies are.
    fn value(&self, vendor: &Vendor) -> Result<Value, ValueFault> {
        if self.method == Method::GET { form::form(&self.raw) } else { vendor.value(&self.headers, self.raw.clone()) }
    }
}

/// The answer to a request that is no callback, by its head: a challenge, or a method that this vendor's URLs do not take.
fn answer_to_head(app: &App, vendor: &Arc<Vendor>, request: &Request) -> Result<Option<Response>, ApiError> {
    let method = request.method();
    match vendor.challenge_in_head(method, request.uri()) {
        Some(Ok(text)) => return challenged(app, vendor, text).map(Some),
        Some(Err(why)) => return Ok(Some(not_believed(app, vendor, &why))),
        None => {}
    }
    if method == Method::POST || (method == Method::GET && vendor.takes_get()) {
        return Ok(None);
    }
    let detail = "this vendor's callbacks are POSTs; GETs are taken with webhook.get = true in the config";
    let mut answer = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).into_response();
    let allowed = if vendor.takes_get() { "GET, POST" } else { "POST" };
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    Ok(Some(answer))
}

/// The callbacks in a body that is believed, or the answer to one without any.
fn callbacks(
    app: &App,
    vendor: &Arc<Vendor>,
    mut sent: Sent,
) -> Result<ControlFlow<Response, (Sent, Vec<Value>)>, ApiError> {
    let value = sent.value(vendor).map_err(|fault| unreadable(app, vendor, &fault))?;
    if let Some(text) = vendor.challenge_in_body(&value.json) {
        return challenged(app, vendor, text).map(ControlFlow::Break);
    }
    let empty = || {
        count(app, vendor, CallbackOutcome::Empty);
        Ok(ControlFlow::Break(success()))
    };
    if vendor.is_ping(&value) {
        return empty();
    }
    let values = vendor.events(value).map_err(|_| {
        count(app, vendor, CallbackOutcome::Unreadable);
        let detail = format!("the body has more than {MAX_EVENTS} events; let the vendor send fewer in one callback");
        ApiError::body_too_large(detail)
    })?;
    if values.is_empty() {
        return empty();
    }
    sent.is_many = values.len() > 1;
    if sent.is_many {
        // Each is JSON in UTF-8 by now.
        sent.headers.remove(header::CONTENT_ENCODING);
        sent.headers.remove(header::CONTENT_TYPE);
    }
    Ok(ControlFlow::Continue((sent, values)))
}

/// What became of the callbacks for one job.
enum Landed {
    Stored,
    NamesNoJob,
    UnknownJob,
    TooEarly,
    NotStored(ApiError),
}

impl Landed {
    /// Of several, the heaviest is the answer: while one is not stored, all are to be sent again.
    fn weight(&self) -> u8 {
        match self {
            Landed::Stored => 0,
            Landed::NamesNoJob => 1,
            Landed::UnknownJob => 2,
            Landed::TooEarly => 3,
            Landed::NotStored(_) => 4,
        }
    }

    fn into_answer(self) -> Result<Response, ApiError> {
        match self {
            Landed::Stored => Ok(success()),
            Landed::NamesNoJob => {
                let detail =
                    "the body names no job; see webhook.request_id and webhook.ticket_in_callback in the config";
                Err(ApiError::bad_request("missing_request_id", detail))
            }
            Landed::UnknownJob => Err(ApiError::unknown_job()),
            Landed::TooEarly => {
                let detail = "no job has this ticket yet, but a call is in flight or has just ended; send it again";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unknown_job", detail).retry_after(1))
            }
            Landed::NotStored(error) => Err(error),
        }
    }
}

/// Lets callbacks on the shared URL decide the job that they name, one after the other.
async fn land(app: &App, vendor: &Arc<Vendor>, sent: &Sent, job: Option<Callback>, values: Vec<Value>) -> Landed {
    let which = match job {
        None => return no_job(app, vendor, None, Landed::NamesNoJob).await,
        Some(Callback::UnknownJob) => return no_job(app, vendor, None, Landed::UnknownJob).await,
        Some(Callback::Job(id)) => Which::Id(id),
        Some(Callback::Ticket(ticket)) => Which::Ticket { vendor: vendor.name().clone(), ticket },
    };
    for value in values {
        match amend(app, vendor, which.clone(), None, sent, value).await {
            Ok(Amended::Changed(_) | Amended::Left(_) | Amended::NoRoom(..)) => {}
            Ok(Amended::Unknown) => return no_job(app, vendor, Some(&which), Landed::UnknownJob).await,
            Err(error) => return Landed::NotStored(error),
        }
    }
    Landed::Stored
}

/// What becomes of a callback for no job of ours. The vendor may have called back before its own reply, which has the ticket, was stored.
async fn no_job(app: &App, vendor: &Arc<Vendor>, which: Option<&Which>, unknown: Landed) -> Landed {
    if let Some(Which::Ticket { .. }) = which {
        let (backlog, now) = (app.store.backlog(vendor.name()).await, app.clock.now());
        if backlog.leased > 0 || backlog.settled_at.is_some_and(|at| now.since(at) < LATELY) {
            count(app, vendor, CallbackOutcome::Early);
            return Landed::TooEarly;
        }
    }
    count(app, vendor, CallbackOutcome::Unknown);
    if vendor.accepts_unknown() { Landed::Stored } else { unknown }
}

/// Lets a callback decide the job, if it has not ended and is this vendor's.
async fn amend(
    app: &App,
    vendor: &Arc<Vendor>,
    which: Which,
    run: Option<u32>,
    sent: &Sent,
    value: Value,
) -> Result<Amended, ApiError> {
    let (name, now) = (vendor.name().clone(), app.clock.now());
    let raw = if sent.is_many { Bytes::copy_from_slice(value.json.get().as_bytes()) } else { sent.raw.clone() };
    let reading = vendor.read_callback(&sent.headers, &raw, value, now);
    let step = reading.step;
    let is_progress = matches!(step, Step::CheckAgain { .. } | Step::AwaitCallback { .. });
    let (policy, jitter) = (vendor.policy(), fastrand::f64());
    let decide = move |job: &Job| {
        if job.lane.vendor != name {
            return None;
        }
        lifecycle::called_back(job, run, step.clone(), &policy, jitter, now)
    };
    match app.store.amend(&Sees::All, which, now, Box::new(decide)).await? {
        Amended::Changed(job) => {
            // One that changes no job of this vendor is not listened to.
            if let Some(Silence::Asked(time)) = reading.silence {
                let silence = nanos(time.unwrap_or(vendor.config.slow_down.first));
                app.limiter.close_gate(&vendor.config.pool, app.clock.nanos().saturating_add(silence)).await;
            }
            count(app, vendor, CallbackOutcome::Accepted);
            if let Some(metrics) = app.metrics.vendor(vendor.name()) {
                metrics.spans.called_back(&job, now, app.clock.now());
                metrics.count_end_of(&job);
            }
            Ok(Amended::Changed(job))
        }
        Amended::Left(job) if job.lane.vendor != *vendor.name() => Ok(Amended::Unknown),
        Amended::Left(job) if is_progress && !job.status.has_ended() => {
            count(app, vendor, CallbackOutcome::Progress);
            Ok(Amended::Left(job))
        }
        Amended::Left(job) | Amended::NoRoom(job, _) => {
            log_ignored(job.id, vendor.name());
            count(app, vendor, CallbackOutcome::Ignored);
            Ok(Amended::Left(job))
        }
        Amended::Unknown => Ok(Amended::Unknown),
    }
}

fn log_ignored(id: JobId, vendor: &str) {
    tracing::info!(%vendor, request_id = %id, "callback ignored: the job has ended, or this is for an earlier run");
}

fn count(app: &App, vendor: &Vendor, outcome: CallbackOutcome) {
    if let Some(metrics) = app.metrics.vendor(vendor.name()) {
        metrics.count_callback(outcome);
    }
}

/// The text that a challenge asks for, as nothing but text.
fn challenged(app: &App, vendor: &Vendor, Challenged(text): Challenged) -> Result<Response, ApiError> {
    count(app, vendor, CallbackOutcome::Challenge);
    if text.len() > MAX_CHALLENGE {
        return Err(ApiError::body_too_large(format!("the challenge is larger than {MAX_CHALLENGE} bytes")));
    }
    let headers: [(HeaderName, &str); 2] =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, text).into_response())
}

/// One line a minute says so for each vendor, and none for a vendor that we do not have.
fn refused(app: &App, vendor: Option<&Arc<Vendor>>, why: &str) -> ApiError {
    if let Some(vendor) = vendor {
        app.refused_callbacks.note(vendor.name(), why, app.clock.nanos());
        count(app, vendor, CallbackOutcome::Refused);
    }
    ApiError::new(StatusCode::UNAUTHORIZED, "bad_signature", "the callback's token or signature is wrong")
}

/// Who is not believed learns nothing about why; the log says it.
fn not_believed(app: &App, vendor: &Arc<Vendor>, why: &NotBelieved) -> Response {
    let error = refused(app, Some(vendor), &why.to_string());
    if let NotBelieved::SharedUrlOff = why {
        return ApiError::new(StatusCode::FORBIDDEN, "shared_webhook_off", why.to_string()).into_response();
    }
    let mut answer = error.into_response();
    if let Verify::Basic { .. } = vendor.verify() {
        // Some clients send their password only when they are asked for it.
        let basic = HeaderValue::from_static("Basic realm=\"callbacks\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    }
    answer
}

fn unreadable(app: &App, vendor: &Arc<Vendor>, fault: &ValueFault) -> ApiError {
    let detail = format!("the callback's body {fault}");
    app.refused_callbacks.note(vendor.name(), &detail, app.clock.nanos());
    count(app, vendor, CallbackOutcome::Unreadable);
    match fault {
        ValueFault::TooLarge | ValueFault::TooManyFields => ApiError::body_too_large(detail),
        ValueFault::TooDeep => ApiError::bad_request("too_deep", detail),
        ValueFault::UnknownCoding(_) => {
            ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        }
        ValueFault::BadCoding { .. } | ValueFault::BadText(_) | ValueFault::NotJson(_) => {
            ApiError::bad_request("malformed_json", detail)
        }
    }
}

fn success() -> Response {
    dto::json_response(StatusCode::OK, r#"{"status":"success"}"#.into())
}
