//! Events in MongoDB: a time in the document of each job that its vendor has accepted or that has ended. The server writes it, by its own clock:
//! the clocks of workers may differ.
//!
//! Never trusts the order of these times further than [`OVERLAP`].

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc};
use serde::Deserialize;

use super::{
    super::RedisMongo,
    docs::id_bson,
    mongo::{self, PATIENCE, within},
};
use crate::{
    clock::Time,
    job::{Job, JobId, Status},
    store::{
        StoreError,
        events::{Event, EventId, EventLog, EventPage},
    },
};

/// The field with the time, and its index. Only documents that have an event have it.
pub(crate) const EVENT_AT: &str = "event_at";
/// How far the times of events may be out of order: statements under way at the same time, and a new primary whose clock is behind.
const OVERLAP: Duration = Duration::from_secs(1);

/// What a change of a job does to its event: adds the operators to an update.
pub(crate) fn note(was: &Job, job: &Job, update: &mut Document) {
    if was.status == job.status {
        return; // another poll, for example
    }
    if job.status != Status::Pending {
        update.insert("$currentDate", doc! { EVENT_AT: true });
    } else if let Ok(unset) = update.get_document_mut("$unset") {
        unset.insert(EVENT_AT, "");
    }
}

/// What an event needs of a document.
#[derive(Deserialize)]
struct EventDoc {
    vendor: Arc<str>,
    tenant: Arc<str>,
    status: Option<Status>,
    #[serde(default)]
    tags: Vec<String>,
    updated_at: Option<i64>,
    finished_at: Option<i64>,
    event_at: Option<DateTime>,
}

fn wanted() -> Document {
    doc! { "vendor": 1, "tenant": 1, "status": 1, "tags": 1, "updated_at": 1, "finished_at": 1, EVENT_AT: 1 }
}

/// The place of a document in the order. That of an older version may have ended without a time.
fn place(job: JobId, event_at: Option<DateTime>) -> EventId {
    EventId { number: event_at.map_or(0, |at| at.timestamp_millis().saturating_mul(1000)), job }
}

fn time_of(place: EventId) -> DateTime {
    DateTime::from_millis(place.number.div_euclid(1000))
}

/// Events after a place, and others of the same millisecond.
fn from_millisecond_of(place: EventId) -> Document {
    doc! { EVENT_AT: { "$gte": time_of(place) } }
}

/// Exactly the events after a place.
fn beyond(place: EventId) -> Document {
    let at = time_of(place);
    let mut filter = from_millisecond_of(place);
    filter.insert("$or", [doc! { EVENT_AT: { "$gt": at } }, doc! { "_id": { "$gt": id_bson(place.job) } }]);
    filter
}

/// The event; none for a job that has not been accepted, or runs again.
fn read(job: JobId, raw: &RawDocumentBuf) -> Result<Option<Event>, StoreError> {
    let found = mongodb::bson::deserialize_from_slice::<EventDoc>(raw.as_bytes());
    let found = found.map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let Some(status) = found.status.filter(|status| *status != Status::Pending) else { return Ok(None) };
    Ok(Some(Event {
        id: place(job, found.event_at),
        vendor: found.vendor,
        tenant: found.tenant,
        status,
        tags: found.tags,
        at: found.updated_at.or(found.finished_at).map_or(job.created_at(), Time),
    }))
}

#[async_trait]
impl EventLog for RedisMongo {
    fn overlap(&self) -> Duration {
        OVERLAP
    }

    async fn end(&self) -> Result<EventId, StoreError> {
        let jobs = self.core.mongo.jobs.clone_with_type::<Document>();
        let newest = jobs.find_one(from_millisecond_of(EventId::FIRST)).sort(doc! { EVENT_AT: -1 });
        let newest = newest.projection(doc! { EVENT_AT: 1 }).max_time(PATIENCE);
        let found = within(async { newest.await }).await?;
        let at = found.and_then(|job| job.get_datetime(EVENT_AT).ok().copied());
        Ok(at.map_or(EventId::FIRST, |at| place(JobId::MAX, Some(at))))
    }

    async fn after(&self, after: EventId, most: usize) -> Result<EventPage, StoreError> {
        let jobs = self.core.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find(beyond(after)).sort(doc! { EVENT_AT: 1, "_id": 1 }).projection(wanted());
        let (limit, batch) = (i64::try_from(most).unwrap_or(i64::MAX), u32::try_from(most).unwrap_or(u32::MAX));
        let find = find.limit(limit).batch_size(batch).max_time(PATIENCE);
        let mut found = within(async { find.await }).await?;
        let (mut events, mut reached, mut examined) = (Vec::new(), after, 0);
        while let Some(raw) = within(found.try_next()).await? {
            examined += 1;
            let (Some(id), Ok(at)) = (mongo::id_of(&raw), raw.get_datetime(EVENT_AT)) else { continue };
            reached = place(id, Some(at));
            events.extend(self.core.mongo.unreadable.skip(id, read(id, &raw)).flatten());
        }
        Ok(EventPage { events, reached, more: examined == most })
    }

    async fn count_after(&self, after: EventId, most: u64) -> Result<u64, StoreError> {
        let count = self.core.mongo.jobs.count_documents(beyond(after)).limit(most);
        within(count.max_time(PATIENCE)).await
    }

    async fn of_job(&self, id: JobId) -> Result<Option<Event>, StoreError> {
        let jobs = self.core.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find_one(doc! { "_id": id_bson(id) }).projection(wanted()).max_time(PATIENCE);
        let found = within(async { find.await }).await?;
        found.map_or(Ok(None), |raw| read(id, &raw))
    }
}
