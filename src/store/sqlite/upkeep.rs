//! The writer's own chores: reading lanes into the index, deleting what is old, and small statements for the book.
//!
//! Never changes a job.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    index::Refill,
    rows,
    shelf::{MOST, Place},
    writer::{After, Tx, Write},
};
use crate::{clock::Time, job::Job, store::StoreError};

/// Bytes of payload that one reading brings at most; one job is always read.
const MOST_BYTES: usize = 4 << 20;

/// Rows that one reading brings while the memory for jobs is full.
const MOST_WHEN_FULL: usize = 8;

/// Reads the next jobs of a lane into the index. It goes through the writer, so that no insert falls between reading and taking in.
pub(super) struct ReadLane {
    refill: Refill,
    rows: Vec<(Place, Job)>,
    more: bool,
}

impl ReadLane {
    pub(super) fn new(refill: Refill) -> ReadLane {
        ReadLane { refill, rows: Vec::new(), more: false }
    }
}

impl Write for ReadLane {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.rows.clear();
        let sql = format!(
            "SELECT {}, j.payload FROM jobs j JOIN lanes l ON l.lane = j.lane
             WHERE j.lane = ?1 AND j.stage = ?2 AND j.stage < 2 AND (j.due_at, j.n) > (?3, ?4)
             ORDER BY j.due_at, j.n LIMIT ?5",
            rows::COLUMNS
        );
        let Refill { lane, stage, from } = self.refill;
        // With the memory full only the first is kept, and read past those that are leased.
        let most = if tx.shared.index().is_full() { MOST_WHEN_FULL } else { MOST / 2 };
        let mut statement = tx.conn.prepare_cached(&sql)?;
        let mut found = statement.query((lane, stage as u8, from.0, from.1, most))?;
        let mut bytes = 0;
        self.more = false;
        while let Some(row) = found.next()? {
            let (row, job) = rows::job(row, true, false)?;
            bytes += job.payload.len();
            self.rows.push(((job.due_at.0, row.n), job));
            if bytes > MOST_BYTES {
                self.more = true;
                break;
            }
        }
        self.more |= self.rows.len() == most;
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        if outcome.is_err() {
            return after.index.could_not_refill(self.refill);
        }
        if let Some((_, job)) = self.rows.first() {
            let vendor = job.lane.vendor.clone();
            after.ring(&vendor);
        }
        let now = after.now;
        after.index.refill(self.refill, self.rows, self.more, now);
    }
}

/// Deletes jobs that ended before a time, walking the table in order of arrival, a slice at a time.
pub(super) struct Prune {
    before: Time,
    /// Idempotency keys older than this are forgotten.
    keys_before: Time,
    from: i64,
    slice: Pruned,
    reply: oneshot::Sender<Result<Pruned, StoreError>>,
}

/// What a slice of pruning came to.
#[derive(Clone, Copy, Default)]
pub(super) struct Pruned {
    /// Where the next slice of jobs begins; `None` at the end of what is old enough.
    pub(super) next: Option<i64>,
    /// Idempotency keys are left that are old enough.
    pub(super) more_keys: bool,
}

impl Prune {
    /// Rows looked at in one slice.
    const SLICE: usize = 1000;

    pub(super) fn boxed(
        before: Time,
        keys_before: Time,
        from: i64,
        reply: oneshot::Sender<Result<Pruned, StoreError>>,
    ) -> Box<dyn Write> {
        Box::new(Prune { before, keys_before, from, slice: Pruned::default(), reply })
    }
}

impl Write for Prune {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        // A job that was created after `before` cannot have ended before it, and ids begin with the time of creation.
        let newest = crate::job::JobId::first_at(self.before);
        let last: Option<i64> = tx
            .conn
            .prepare_cached(
                "SELECT max(n) FROM (SELECT n, id FROM jobs WHERE n > ?1 ORDER BY n LIMIT ?2) WHERE id < ?3",
            )?
            .query_row((self.from, Self::SLICE, newest.as_bytes()), |row| row.get(0))?;
        if let Some(last) = last {
            tx.conn
                .prepare_cached("DELETE FROM jobs WHERE n > ?1 AND n <= ?2 AND status >= 2 AND finished_at < ?3")?
                .execute((self.from, last, self.before.0))?;
        }
        let keys = tx
            .conn
            .prepare_cached(
                "DELETE FROM idempotency WHERE (tenant, key) IN
                   (SELECT tenant, key FROM idempotency WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)",
            )?
            .execute((self.keys_before.0, Self::SLICE))?;
        self.slice = Pruned { next: last, more_keys: keys == Self::SLICE };
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        after.index.forget_idle_lanes();
        let _ = self.reply.send(outcome.map(|()| self.slice));
    }
}

/// A few statements that belong to no job.
pub(super) struct Do<T, F> {
    statements: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Do<T, F>
where
    T: Send + 'static,
    F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
{
    pub(super) fn boxed(statements: F, reply: oneshot::Sender<Result<T, StoreError>>) -> Box<dyn Write> {
        Box::new(Do { statements, value: None, reply })
    }
}

impl<T: Send, F: FnMut(&Connection) -> rusqlite::Result<T> + Send> Write for Do<T, F> {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.value = Some((self.statements)(tx.conn)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, _after: &mut After<'_>) {
        let lost = || StoreError::Unavailable("the statement did not run".into());
        let value = self.value;
        let _ = self.reply.send(outcome.and_then(|()| value.ok_or_else(lost)));
    }
}
