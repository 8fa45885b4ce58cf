//! Rows of the table `jobs` as jobs, and back.
//!
//! Never guesses: a number or text that no version wrote is an error.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rusqlite::{Row as SqlRow, types::Type};

use super::{index::Row, webhooks};
use crate::{
    clock::Time,
    job::{Attempts, Deadline, Failure, FailureCode, Fetch, Job, JobId, Lane, Priority, Stage, Status, Trace, weight},
    store::With,
};

/// The columns that [`job`] reads, from jobs `j` and [`WEBHOOKS`]. Payload and result are empty unless they are wanted.
pub(super) fn columns(with: With) -> String {
    // What is stored behind the payload costs as much to read as the payload.
    let payload = if with.payload { "j.payload, j.unanswered, j.fetch, j.traceparent" } else { "NULL, 0, NULL, NULL" };
    all_columns(payload, if with.result { "j.result" } else { "NULL" })
}

fn all_columns(payload: &str, result: &str) -> String {
    format!(
        "j.n, j.lane, j.id, j.status, j.stage, j.due_at, j.answer_by, j.deadline_at, j.deadline_within, j.run, j.tries, j.attempt, \
         j.updated_at, j.finished_at, j.failure_code, j.failure, j.ticket, j.tags, {payload}, {result}, j.said, j.slowed, \
         length(j.payload), {}",
        webhooks::COLUMNS
    )
}

/// Where the ends of jobs are announced.
pub(super) const WEBHOOKS: &str = "LEFT JOIN result_webhooks w ON w.id = j.id";
/// The first column of that.
const WEBHOOK: usize = 26;

/// A statement, without its condition, that reads jobs with their lanes for [`with_lane`].
pub(super) fn select(with: With) -> String {
    select_from("jobs j", &columns(with))
}

/// The same without payload and result, but with all that a decision about a job needs.
pub(super) fn select_to_decide() -> String {
    select_from("jobs j", &all_columns("NULL, j.unanswered, j.fetch, j.traceparent", "NULL"))
}

/// The same for some columns of jobs `j`, with an index, or a join before them. Lanes come last: SQLite might go through them first and sort all
/// jobs.
pub(super) fn select_from(jobs: &str, columns: &str) -> String {
    format!(
        "SELECT {columns}, l.vendor, l.priority, l.tenant FROM {jobs} {WEBHOOKS} CROSS JOIN lanes l ON l.lane = j.lane"
    )
}

/// Reads a job and its lane.
pub(super) fn with_lane(row: &SqlRow<'_>) -> rusqlite::Result<(Row, Job)> {
    const AT: usize = WEBHOOK + webhooks::WIDTH;
    let lane =
        Lane { vendor: arc(row, AT)?, priority: one_of(row, AT + 1, &Priority::ALL)?, tenant: arc(row, AT + 2)? };
    job(row, lane)
}

/// The stage number of a job that has ended.
pub(super) const ENDED: u8 = 3;

/// A stage by its number. An ended job has none and gets `Call`, which nobody reads.
pub(super) fn stage(number: u8) -> rusqlite::Result<Stage> {
    match number {
        0 | ENDED => Ok(Stage::Call),
        1 => Ok(Stage::Poll),
        2 => Ok(Stage::Await),
        _ => Err(bad(0)),
    }
}

/// Reads a job whose lane is known.
pub(super) fn job(row: &SqlRow<'_>, lane: Lane) -> rusqlite::Result<(Row, Job)> {
    let deadline_at: Option<i64> = row.get(7)?;
    let within: Option<u64> = row.get(8)?;
    let tags: Option<String> = row.get(17)?;
    let caller: Option<String> = row.get(21)?;
    let blob = |column: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<Vec<u8>>>(column)?.map(Bytes::from));
    let job = Job {
        id: JobId::from_bytes(row.get(2)?),
        lane,
        payload: blob(18)?.unwrap_or_default(),
        weight: weight(row.get(25)?),
        status: one_of(row, 3, &Status::ALL)?,
        stage: stage(row.get(4)?)?,
        due_at: Time(row.get(5)?),
        answer_by: row.get::<_, Option<i64>>(6)?.map(Time),
        deadline: deadline_at.map(|at| Deadline { at: Time(at), within: within.map(Duration::from_millis) }),
        tags: tags.map(|json| from_json(json.as_bytes(), 17)).transpose()?.unwrap_or_default(),
        run: row.get(9)?,
        tries: row.get(10)?,
        unanswered: row.get(19)?,
        attempt: row.get(11)?,
        ticket: row.get(16)?,
        fetch: row.get::<_, Option<String>>(20)?.map(Fetch::from_text),
        result: blob(22)?,
        slowed: row.get(24)?,
        failure: failure(row)?,
        updated_at: Time(row.get(12)?),
        finished_at: row.get::<_, Option<i64>>(13)?.map(Time),
        webhook: webhooks::read(row, WEBHOOK)?,
        caller: caller.map(|text| Trace::parse(&text).ok_or_else(|| bad(21))).transpose()?,
    };
    Ok((Row { n: row.get(0)?, lane: row.get(1)? }, job))
}

fn failure(row: &SqlRow<'_>) -> rusqlite::Result<Option<Failure>> {
    let Some(code) = row.get::<_, Option<String>>(14)? else { return Ok(None) };
    let code = FailureCode::from_text(&code).ok_or_else(|| bad(14))?;
    let said: Option<String> = row.get(23)?;
    let vendor = said.map(|json| from_json(json.as_bytes(), 23)).transpose()?;
    Ok(Some(Failure { code, message: row.get(15)?, vendor }))
}

/// What was read; `None`, and a line in the log, for a row that cannot be read: one bad row must not hide others.
pub(super) fn skip_unreadable<T>(n: i64, read: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_unreadable(&error) => {
            tracing::error!(row = n, %error, "a job's row cannot be read, and is skipped; run the version that wrote it");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    matches!(error, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..))
}

pub(super) fn attempts(json: Option<Vec<u8>>) -> rusqlite::Result<Attempts> {
    json.map_or_else(|| Ok(Attempts::default()), |json| from_json(&json, 0))
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own plain structs always serialize")
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(json: &[u8], column: usize) -> rusqlite::Result<T> {
    serde_json::from_slice(json)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error)))
}

pub(super) fn one_of<T: Copy>(row: &SqlRow<'_>, column: usize, all: &[T]) -> rusqlite::Result<T> {
    all.get(row.get::<_, usize>(column)?).copied().ok_or_else(|| bad(column))
}

pub(super) fn arc(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    Ok(Arc::from(row.get_ref(column)?.as_str()?))
}

fn bad(column: usize) -> rusqlite::Error {
    rusqlite::Error::IntegralValueOutOfRange(column, -1)
}
