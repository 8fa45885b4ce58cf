//! Events: jobs that their vendor has accepted, and jobs that have ended, in the order in which the store has stored that.
//!
//! Never a history: a job has one event, the last. Who listens is not known here (see `crate::events`).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::StoreError;
use crate::{
    clock::Time,
    job::{JobId, Status},
};

/// An event's place in the order of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Given by the store when it stores the event: microseconds since the Unix epoch, by the clock of the store.
    pub number: i64,
    pub job: JobId,
}

impl EventId {
    /// Before all events.
    pub const FIRST: EventId = EventId { number: 0, job: JobId::MIN };

    /// After all events with this number.
    pub fn after_all_at(number: i64) -> EventId {
        EventId { number, job: JobId::MAX }
    }

    /// The place that is earlier by this time; for no time the same place.
    #[must_use]
    pub fn earlier_by(self, time: Duration) -> EventId {
        if time.is_zero() {
            return self;
        }
        let by = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        EventId { number: self.number.saturating_sub(by), job: JobId::MIN }
    }
}

/// A job that its vendor has accepted, or that has ended.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: EventId,
    pub vendor: Arc<str>,
    pub tenant: Arc<str>,
    pub status: Status,
    pub tags: Vec<String>,
    /// When the job was last changed.
    pub at: Time,
}

/// Some events in their order.
#[derive(Debug, Clone)]
pub struct EventPage {
    pub events: Vec<Event>,
    /// Up to here the page has all of them: where the next page begins.
    pub reached: EventId,
    /// Whether there may be more.
    pub more: bool,
}

/// The events of all jobs, as long as their jobs are kept.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// An event may be stored with a number that is lower, by this as a rule, than one that can be read already. Whoever wants to miss nothing reads
    /// so much again, and more after the store has stood still: what was being stored then may be late by as long as that.
    fn overlap(&self) -> Duration;

    /// A place after all events that can be read now.
    async fn end(&self) -> Result<EventId, StoreError>;

    /// Events after this place, read from up to `most` jobs.
    async fn after(&self, place: EventId, most: usize) -> Result<EventPage, StoreError>;

    /// How many events are after this place, counted up to `most`.
    async fn count_after(&self, place: EventId, most: u64) -> Result<u64, StoreError>;

    /// The event of one job, if it has one.
    async fn of_job(&self, id: JobId) -> Result<Option<Event>, StoreError>;
}
