//! Announcements of ends in SQLite: a small table beside the jobs.
//!
//! Never decides what becomes of an announcement (see `job::ResultWebhook`).

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::{Sqlite, rows};
use crate::{
    clock::Time,
    job::{DeliveryStatus, JobId, ResultWebhook},
    store::{
        StoreError,
        webhooks::{Outbox, Receiver, WebhookChange},
    },
};

/// The columns that [`read`] reads, from `result_webhooks w`.
pub(super) const COLUMNS: &str =
    "w.url, w.receiver, w.status, w.next_at, w.since, w.attempts, w.last_status, w.last_error, w.omits_result";
/// How many they are.
pub(super) const WIDTH: usize = 9;

/// An announcement from its columns, the first of which is `at`; `None` where there is none.
pub(super) fn read(row: &SqlRow<'_>, at: usize) -> rusqlite::Result<Option<ResultWebhook>> {
    let Some(url) = row.get::<_, Option<String>>(at)? else { return Ok(None) };
    Ok(Some(ResultWebhook {
        url: url.into(),
        receiver: rows::arc(row, at + 1)?,
        status: rows::one_of(row, at + 2, &DeliveryStatus::ALL)?,
        next_at: row.get::<_, Option<i64>>(at + 3)?.map(Time),
        since: row.get::<_, Option<i64>>(at + 4)?.map(Time),
        attempts: row.get(at + 5)?,
        last_status: row.get(at + 6)?,
        last_error: row.get(at + 7)?,
        omits_result: row.get(at + 8)?,
    }))
}

/// Writes a job's announcement, whatever was there.
pub(super) fn put(conn: &Connection, id: JobId, webhook: &ResultWebhook) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO result_webhooks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            id.as_bytes(),
            &*webhook.url,
            &*webhook.receiver,
            webhook.status as u8,
            webhook.next_at.map(|at| at.0),
            webhook.since.map(|at| at.0),
            webhook.attempts,
            webhook.last_status,
            webhook.last_error,
            webhook.omits_result,
        ])
        .map(drop)
}

/// The same, if it is still as it was.
fn change(conn: &Connection, change: &WebhookChange) -> rusqlite::Result<bool> {
    let WebhookChange { id, was, is } = change;
    let same = conn
        .prepare_cached("SELECT 1 FROM result_webhooks WHERE id = ?1 AND status = ?2 AND next_at IS ?3")?
        .query_row((id.as_bytes(), was.status as u8, was.next_at.map(|at| at.0)), |_| Ok(()))
        .optional()?;
    same.map(|()| put(conn, *id, is)).transpose().map(|put| put.is_some())
}

#[async_trait]
impl Outbox for Sqlite {
    async fn receivers(&self, after: &str, most: usize) -> Result<Vec<Receiver>, StoreError> {
        let mut last = after.to_owned();
        self.readers
            .read(move |conn| {
                // One step in the index for each, however much waits for it.
                let mut next = conn.prepare_cached(
                    "SELECT receiver, next_at FROM result_webhooks WHERE receiver > ?1 AND next_at IS NOT NULL
                     ORDER BY receiver, next_at LIMIT 1",
                )?;
                let mut found = Vec::new();
                while found.len() < most
                    && let Some((name, next_at)) =
                        next.query_row([&last], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).optional()?
                {
                    found.push(Receiver { name: name.as_str().into(), next_at: Time(next_at) });
                    last = name;
                }
                Ok(found)
            })
            .await
    }

    async fn due(
        &self,
        receiver: &Arc<str>,
        now: Time,
        most: usize,
    ) -> Result<Vec<(JobId, ResultWebhook)>, StoreError> {
        let receiver = receiver.clone();
        self.readers
            .read(move |conn| {
                let sql = format!(
                    "SELECT w.id, {COLUMNS} FROM result_webhooks w WHERE w.receiver = ?1 AND w.next_at <= ?2
                     ORDER BY w.next_at LIMIT ?3"
                );
                let mut statement = conn.prepare_cached(&sql)?;
                let found = statement.query_map((&*receiver, now.0, most), |row| {
                    let id = JobId::from_bytes(row.get(0)?);
                    Ok(read(row, 1)?.map(|webhook| (id, webhook)))
                })?;
                found.filter_map(Result::transpose).collect()
            })
            .await
    }

    async fn change(&self, changes: Vec<WebhookChange>) -> Result<Vec<bool>, StoreError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let is_news = changes.iter().any(WebhookChange::is_news);
        let changed = self.write(move |conn| changes.iter().map(|one| change(conn, one)).collect()).await;
        if is_news {
            self.core.signals.webhooks().notify_one();
        }
        changed
    }
}
