//! Rows of the table `jobs` as jobs, and back.
//!
//! Never decides anything; a number or text that no version wrote is an error, not a guess.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rusqlite::{Row as SqlRow, types::Type};

use super::index::Row;
use crate::{
    clock::Time,
    job::{Attempts, Deadline, Failure, FailureCode, Job, JobId, Lane, Priority, Stage, Status},
};

/// The columns that [`job`] reads, from `jobs j JOIN lanes l`. Payload and result come after them, if at all.
pub(super) const COLUMNS: &str = "j.n, j.lane, l.vendor, l.priority, l.tenant, j.id, j.status, j.stage, j.due_at, j.answer_by, \
     j.deadline_at, j.deadline_within, j.run, j.tries, j.attempt, j.updated_at, j.finished_at, j.failure_code, j.failure, \
     j.ticket, j.tags";
const FIRST_BLOB: usize = 21;

/// The stage number of a job that has ended.
pub(super) const ENDED: u8 = 3;

/// A stage by its number. An ended job has none; it says `Call`, and nobody asks.
pub(super) fn stage(number: u8) -> rusqlite::Result<Stage> {
    match number {
        0 | ENDED => Ok(Stage::Call),
        1 => Ok(Stage::Poll),
        2 => Ok(Stage::Await),
        _ => Err(bad(0)),
    }
}

/// Reads a job; `payload` and `result` say whether those columns were asked for (in this order, after [`COLUMNS`]).
pub(super) fn job(row: &SqlRow<'_>, payload: bool, result: bool) -> rusqlite::Result<(Row, Job)> {
    let lane = Lane { vendor: arc(row, 2)?, priority: one_of(row, 3, &Priority::ALL)?, tenant: arc(row, 4)? };
    let deadline_at: Option<i64> = row.get(10)?;
    let within: Option<u64> = row.get(11)?;
    let failure_code: Option<String> = row.get(17)?;
    let tags: Option<String> = row.get(20)?;
    let blob = |wanted: bool, column: usize| -> rusqlite::Result<Option<Bytes>> {
        if wanted { Ok(row.get::<_, Option<Vec<u8>>>(column)?.map(Bytes::from)) } else { Ok(None) }
    };
    let job = Job {
        id: JobId::from_bytes(row.get(5)?),
        lane,
        payload: blob(payload, FIRST_BLOB)?.unwrap_or_default(),
        status: one_of(row, 6, &Status::ALL)?,
        stage: stage(row.get(7)?)?,
        due_at: Time(row.get(8)?),
        answer_by: row.get::<_, Option<i64>>(9)?.map(Time),
        deadline: deadline_at.map(|at| Deadline { at: Time(at), within: within.map(Duration::from_millis) }),
        tags: tags.map(|json| from_json(json.as_bytes(), 20)).transpose()?.unwrap_or_default(),
        run: row.get(12)?,
        tries: row.get(13)?,
        attempt: row.get(14)?,
        ticket: row.get(19)?,
        result: blob(result, FIRST_BLOB + usize::from(payload))?,
        failure: match failure_code {
            Some(code) => {
                Some(Failure { code: FailureCode::from_text(&code).ok_or_else(|| bad(17))?, message: row.get(18)? })
            }
            None => None,
        },
        updated_at: Time(row.get(15)?),
        finished_at: row.get::<_, Option<i64>>(16)?.map(Time),
    };
    Ok((Row { n: row.get(0)?, lane: row.get(1)? }, job))
}

pub(super) fn attempts(json: Option<Vec<u8>>) -> rusqlite::Result<Attempts> {
    json.map_or_else(|| Ok(Attempts::default()), |json| from_json(&json, 0))
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own plain structs always serialize")
}

fn from_json<T: serde::de::DeserializeOwned>(json: &[u8], column: usize) -> rusqlite::Result<T> {
    serde_json::from_slice(json)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error)))
}

fn one_of<T: Copy>(row: &SqlRow<'_>, column: usize, all: &[T]) -> rusqlite::Result<T> {
    all.get(row.get::<_, usize>(column)?).copied().ok_or_else(|| bad(column))
}

fn arc(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    Ok(Arc::from(row.get_ref(column)?.as_str()?))
}

fn bad(column: usize) -> rusqlite::Error {
    rusqlite::Error::IntegralValueOutOfRange(column, -1)
}
