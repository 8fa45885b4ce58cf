//! `GET /events` and `GET /jobs/{id}/events`: what becomes of jobs, as Server-Sent Events.
//!
//! Never decides what a reader gets when (see `stream`).

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::stream::unfold;

use self::stream::Stream;
use super::{
    App,
    access::By,
    body::{self, NoParams, Params},
    connection::Peer,
    error::ApiError,
    path::NamedJob,
};
use crate::{
    events::Full,
    job::{JobId, Status},
    store::{
        With,
        events::{Event, EventId},
    },
};

mod stream;

/// `GET /events`
pub(super) async fn all(State(app): State<Arc<App>>, by: By, request: Request) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let shows = Shows {
        job: None,
        status: read_status(&mut params)?,
        vendor: params.text("vendor")?,
        tenant: by.tenant(params.text("tenant")?.as_deref())?,
        tag: params.text("tag")?,
    };
    params.finish()?;
    open(app, by, shows, Peer::of(&request), last_event_id(request.headers())).await
}

/// `GET /jobs/{id}/events`
pub(super) async fn of_job(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedJob(id): NamedJob,
    request: Request,
) -> Result<Response, ApiError> {
    let (peer, last) = (Peer::of(&request), last_event_id(request.headers()));
    app.store.find(by.sees(), id, With::NEITHER).await?.ok_or_else(ApiError::unknown_job)?;
    open(app, by, Shows { job: Some(id), ..Shows::default() }, peer, last).await
}

fn read_status(params: &mut Params) -> Result<Option<Status>, ApiError> {
    let Some(text) = params.take("status")? else { return Ok(None) };
    let status = Status::ALL.into_iter().find(|status| status.as_str() == text && *status != Status::Pending);
    let expected = "must be processing, complete, failed, cancelled or expired";
    status.map(Some).ok_or_else(|| body::invalid_parameter("status", expected))
}

/// Which events a stream shows.
#[derive(Default)]
struct Shows {
    job: Option<JobId>,
    status: Option<Status>,
    vendor: Option<String>,
    tenant: Option<Arc<str>>,
    tag: Option<String>,
}

impl Shows {
    fn includes(&self, event: &Event) -> bool {
        self.job.is_none_or(|job| job == event.id.job)
            && self.status.is_none_or(|status| status == event.status)
            && self.vendor.as_ref().is_none_or(|vendor| **vendor == *event.vendor)
            && self.tenant.as_ref().is_none_or(|tenant| **tenant == *event.tenant)
            && self.tag.as_ref().is_none_or(|tag| event.tags.contains(tag))
    }
}

async fn open(app: Arc<App>, by: By, shows: Shows, peer: Peer, last: LastEventId) -> Result<Response, ApiError> {
    let open_stream = app.events.open_stream(by.0.key()).map_err(too_many)?;
    let listening = app.events.listen().await?;
    let mut events = Stream::new(app, by, shows, peer, open_stream, listening);
    events.begin(last).await;
    let pieces = unfold(events, |mut events| async move {
        let piece = events.next().await?;
        Some((Ok::<Bytes, Infallible>(piece), events))
    });
    // The second tells nginx to pass on each event at once.
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn too_many(full: Full) -> ApiError {
    let (status, code, detail) = match full {
        Full::InAll => (
            StatusCode::SERVICE_UNAVAILABLE,
            "over_capacity",
            "as many streams of events are open as can be; try again later",
        ),
        Full::OfKey => (
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_streams",
            "as many streams of events are open with this key as one key can have; close some",
        ),
    };
    ApiError::new(status, code, detail).retry_after(5)
}

/// The last event that a reader has got, if it says one; an error if that is not from here.
type LastEventId = Option<Result<EventId, ()>>;

fn last_event_id(headers: &HeaderMap) -> LastEventId {
    let value = headers.get("last-event-id").filter(|value| !value.is_empty())?;
    Some(value.to_str().ok().and_then(read_id).ok_or(()))
}

fn read_id(text: &str) -> Option<EventId> {
    let bytes: [u8; 24] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let (number, job) = bytes.split_at(8);
    Some(EventId { number: i64::from_be_bytes(number.try_into().ok()?), job: JobId::from_slice(job)? })
}

fn write_id(id: EventId) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([&id.number.to_be_bytes()[..], id.job.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_nothing_else_is_one() {
        for id in [EventId::FIRST, EventId::after_all_at(1_795_698_729_830_123), EventId::after_all_at(i64::MAX)] {
            assert_eq!(read_id(&write_id(id)), Some(id));
        }
        for text in ["", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "\u{80}"] {
            assert_eq!(read_id(text), None, "{text:?}");
        }
    }
}
