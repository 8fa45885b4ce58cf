//! Reading jobs: one by its id, its attempts, those that were just leased. On connections of their own, beside the writer.
//!
//! Never keeps a connection busy for longer than one bounded statement, so that the write-ahead log can be emptied.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::Semaphore;

use super::{index::Claimed, rows, writer::Core};
use crate::{
    clock::{Nanos, Time},
    job::{Attempts, FailureCode, Job, JobId, Status},
    store::{
        Lease, Sees, StoreError, With,
        failures::{Counting, Failures, Group, MOST_EXAMINED},
    },
};

/// Longer reads at once; others wait. Reads of one row are bounded by the runtime's threads.
const CONNECTIONS: usize = 4;

/// Connections that only read.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Readers {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Readers { path: path.to_owned(), idle: Mutex::default(), places }
    }

    /// Runs a read of one row on this thread: it takes some microseconds, less than another thread would cost.
    pub(super) fn look<T>(&self, statement: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.with_connection(statement).map_err(|error| explain(&error))
    }

    fn with_connection<T>(&self, statements: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.lock().pop();
        let conn = idle.map_or_else(|| open(&self.path), Ok)?;
        let value = statements(&conn);
        self.lock().push(conn);
        value
    }

    /// Runs a longer read on a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        statements: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let readers = Arc::clone(self);
        let read = move || {
            let _place = place;
            readers.with_connection(statements)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(value) => value.map_err(|error| explain(&error)),
            Err(error) => Err(StoreError::Unavailable(format!("the read was interrupted: {error}"))),
        }
    }

    pub(super) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(super::writer::BUSY)?;
    super::schema::keep_plans(&conn)?;
    conn.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -4096;")?;
    Ok(conn)
}

/// The error for the caller of a read that failed.
pub(super) fn explain(error: &rusqlite::Error) -> StoreError {
    if rows::is_unreadable(error) {
        return StoreError::Corrupt(error.to_string());
    }
    StoreError::Unavailable(error.to_string())
}

pub(super) fn find(conn: &Connection, sees: &Sees, id: JobId, with: With) -> rusqlite::Result<Option<Job>> {
    let sql = format!("{} WHERE j.id = ?1", rows::select(with));
    let found = conn.prepare_cached(&sql)?.query_row([id.as_bytes()], |row| Ok(rows::with_lane(row)?.1)).optional()?;
    Ok(found.filter(|job| sees.includes(&job.lane.tenant)))
}

/// Reads jobs that have just been leased, with all that a call needs. Gives `None` for a job that was changed meanwhile (whoever changed it
/// has ended the lease), and for one that cannot be read.
pub(super) fn leased(conn: &Connection, claimed: Vec<Claimed>, until: Nanos) -> rusqlite::Result<Vec<Option<Lease>>> {
    // One snapshot of the table for all.
    let tx = conn.unchecked_transaction()?;
    let mut leases = Vec::with_capacity(claimed.len());
    {
        let columns = rows::columns(With { payload: true, result: false });
        let sql = format!("SELECT {columns} FROM jobs j {} WHERE j.n = ?1", rows::WEBHOOKS);
        let mut statement = tx.prepare_cached(&sql)?;
        for Claimed { entry, stage, lane } in claimed {
            let n = entry.place.1;
            let found = statement.query_row([n], |row| Ok(rows::job(row, lane)?.1)).optional();
            let is_same = |job: &Job| job.attempt == entry.attempt && job.live_stage() == Some(stage);
            let job = rows::skip_unreadable(n, found)?.flatten().filter(is_same);
            leases.push(job.map(|job| Lease { attempt: job.attempt.saturating_add(1), job, called_at: None, until }));
        }
    }
    tx.commit()?;
    Ok(leases)
}

pub(super) fn attempts(conn: &Connection, sees: &Sees, id: JobId) -> rusqlite::Result<Option<Attempts>> {
    let found = conn
        .prepare_cached("SELECT j.attempts, l.tenant FROM jobs j JOIN lanes l ON l.lane = j.lane WHERE j.id = ?1")?
        .query_row([id.as_bytes()], |row| Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    found.filter(|(_, tenant)| sees.includes(tenant)).map(|(json, _)| rows::attempts(json)).transpose()
}

/// Counts jobs that ended without a result, newest first. But for the one example of each group, it reads nothing but their index.
pub(super) fn failures(
    conn: &Connection,
    sees: &Sees,
    vendor: Option<&str>,
    since: Time,
) -> rusqlite::Result<Failures> {
    const SQL: &str = "SELECT j.finished_at, j.failure_code, j.failure, l.vendor, l.tenant, j.n
         FROM jobs AS j INDEXED BY jobs_failed CROSS JOIN lanes l ON l.lane = j.lane
         WHERE j.finished_at >= ?1 AND j.failure_code IS NOT NULL ORDER BY j.finished_at DESC LIMIT ?2";
    let mut counting: Counting<i64> = Counting::new(since);
    let mut statement = conn.prepare_cached(SQL)?;
    let mut found = statement.query((since.0, MOST_EXAMINED))?;
    while let Some(row) = found.next()? {
        let ended_at = Time(row.get(0)?);
        counting.examined(ended_at);
        let (of_vendor, tenant) = (row.get_ref(3)?.as_str()?, row.get_ref(4)?.as_str()?);
        // A code that no version wrote: its job is skipped elsewhere too.
        let Some(code) = FailureCode::from_text(row.get_ref(1)?.as_str()?) else { continue };
        if sees.includes(tenant) && vendor.is_none_or(|vendor| vendor == of_vendor) {
            counting.add(of_vendor, code, row.get_ref(2)?.as_str()?, ended_at, row.get(5)?);
        }
    }
    let is_all = !counting.is_over();
    let Failures { since, more, count, groups, omitted } = counting.finish(is_all);
    let mut id = conn.prepare_cached("SELECT id FROM jobs WHERE n = ?1")?;
    let with_id = |group: Group<i64>| -> rusqlite::Result<Group> {
        let newest = JobId::from_bytes(id.query_row([group.newest], |row| row.get(0))?);
        let Group { vendor, code, message, count, first_at, last_at, .. } = group;
        Ok(Group { vendor, code, message, count, first_at, last_at, newest })
    };
    let groups = groups.into_iter().map(with_id).collect::<rusqlite::Result<_>>()?;
    Ok(Failures { since, more, count, groups, omitted })
}

/// A leased job is being processed, which only the index knows.
pub(super) fn overlay(job: Job, core: &Core) -> Job {
    if job.status == Status::Pending && core.index().is_leased(job.id) {
        return Job { status: Status::Processing, ..job };
    }
    job
}
