//! Events in SQLite: a number in the row of each job that its vendor has accepted or that has ended. The one writer numbers them.
//!
//! Never gives out a number twice, so that whoever has read up to a number has missed nothing before it.

use std::{sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow};

use super::{Sqlite, rows, writer::Core};
use crate::{
    clock::Time,
    job::{JobId, Status},
    store::{
        StoreError,
        events::{Event, EventId, EventLog, EventPage},
    },
};

const SELECT: &str = "SELECT j.event, j.n, j.id, j.status, j.tags, j.updated_at, l.vendor, l.tenant \
                      FROM jobs j JOIN lanes l ON l.lane = j.lane";

impl Core {
    /// The number of the next event. Only the writer asks. The time is in it because the job with the highest number may be deleted.
    pub(super) fn next_event(&self) -> i64 {
        let now = self.clock.now().0.saturating_mul(1000);
        let number = now.max(self.last_event.load(Ordering::Relaxed).saturating_add(1));
        self.last_event.store(number, Ordering::Relaxed);
        number
    }
}

/// The highest number that is stored; 0 if there is none.
pub(super) fn last(conn: &Connection) -> rusqlite::Result<i64> {
    let last = conn
        .prepare_cached("SELECT event FROM jobs WHERE event IS NOT NULL ORDER BY event DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

/// An event from the columns of [`SELECT`]. The job of an older version may have ended without a number.
fn read(row: &SqlRow<'_>) -> rusqlite::Result<Event> {
    let tags: Option<String> = row.get(4)?;
    Ok(Event {
        id: EventId { number: row.get::<_, Option<i64>>(0)?.unwrap_or(0), job: JobId::from_bytes(row.get(2)?) },
        status: rows::one_of(row, 3, &Status::ALL)?,
        tags: tags.map(|json| rows::from_json(json.as_bytes(), 4)).transpose()?.unwrap_or_default(),
        at: Time(row.get(5)?),
        vendor: rows::arc(row, 6)?,
        tenant: rows::arc(row, 7)?,
    })
}

fn after(conn: &Connection, place: EventId, most: usize) -> rusqlite::Result<EventPage> {
    let sql = format!("{SELECT} WHERE j.event > ?1 ORDER BY j.event LIMIT ?2");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query((place.number, most))?;
    let (mut events, mut reached, mut examined) = (Vec::new(), place, 0);
    while let Some(row) = found.next()? {
        examined += 1;
        reached = EventId::after_all_at(row.get(0)?);
        events.extend(rows::skip_unreadable(row.get(1)?, read(row))?);
    }
    Ok(EventPage { events, reached, more: examined == most })
}

#[async_trait]
impl EventLog for Sqlite {
    /// Commits are in the order of the numbers.
    fn overlap(&self) -> Duration {
        Duration::ZERO
    }

    async fn end(&self) -> Result<EventId, StoreError> {
        self.readers.look(last).map(EventId::after_all_at)
    }

    async fn after(&self, place: EventId, most: usize) -> Result<EventPage, StoreError> {
        self.readers.read(move |conn| after(conn, place, most)).await
    }

    async fn count_after(&self, place: EventId, most: u64) -> Result<u64, StoreError> {
        const SQL: &str = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE event > ?1 LIMIT ?2)";
        self.readers.read(move |conn| conn.prepare_cached(SQL)?.query_row((place.number, most), |row| row.get(0))).await
    }

    async fn of_job(&self, id: JobId) -> Result<Option<Event>, StoreError> {
        let sql = format!("{SELECT} WHERE j.id = ?1 AND j.status > 0");
        self.readers.look(|conn| conn.prepare_cached(&sql)?.query_row([id.as_bytes()], read).optional())
    }
}
