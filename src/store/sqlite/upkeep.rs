//! The writer's own chores: reading lanes into the index, deleting what is old, and small statements for the book.
//!
//! Never changes a job.

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::{LaneId, Refill},
    rows,
    shelf::{Entry, MOST, Place},
    writer::{After, Tx, Write},
};
use crate::{
    clock::Time,
    job::JobId,
    store::{StoreError, With},
};

/// Reads the next jobs of a lane into the index. It goes through the writer, so that no insert falls between reading and taking in.
pub(super) struct ReadLane {
    refill: Refill,
    rows: Vec<Entry>,
    /// How far it has read; nothing when that is to the end.
    reaches: Option<Place>,
}

impl ReadLane {
    pub(super) fn new(refill: Refill) -> ReadLane {
        ReadLane { refill, rows: Vec::new(), reaches: None }
    }
}

impl Write for ReadLane {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        const SQL: &str = "SELECT due_at, n, id, updated_at, length(payload), attempt FROM jobs
             WHERE lane = ?1 AND stage = ?2 AND stage < 2 AND (due_at, n) > (?3, ?4) ORDER BY due_at, n LIMIT ?5";
        const MOST_READ: usize = MOST / 2;
        self.rows.clear();
        let Refill { lane, stage, from } = self.refill;
        let mut statement = tx.conn.prepare_cached(SQL)?;
        let mut found = statement.query((lane, stage as u8, from.0, from.1, MOST_READ))?;
        let (mut read, mut last) = (0, from);
        while let Some(row) = found.next()? {
            (read, last) = (read + 1, (row.get(0)?, row.get(1)?));
            self.rows.extend(rows::told_if_unreadable(last.1, entry(row, last))?);
        }
        self.reaches = (read == MOST_READ).then_some(last);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        if outcome.is_err() {
            return after.index.could_not_refill(self.refill);
        }
        let (has_jobs, now) = (!self.rows.is_empty(), after.now);
        let vendor = after.index.refill(self.refill, self.rows, self.reaches, now);
        if let Some(vendor) = vendor.filter(|_| has_jobs) {
            after.ring(&vendor);
        }
    }
}

/// The key of a job, from the third column on: its id, when it was written, the size of its payload, and its attempts.
pub(super) fn entry(row: &rusqlite::Row<'_>, place: Place) -> rusqlite::Result<Entry> {
    Ok(Entry::new(place, JobId::from_bytes(row.get(2)?), Time(row.get(3)?), row.get(4)?, row.get(5)?))
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
    /// Idempotency keys are left that are old enough, or lanes without jobs.
    pub(super) more_besides: bool,
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
        let newest = JobId::first_at(self.before);
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
        tx.shared.index().forget_idle_lanes();
        let lanes = drop_idle_lanes(tx)?;
        self.slice = Pruned { next: last, more_besides: keys == Self::SLICE || lanes == Self::SLICE };
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, _after: &mut After<'_>) {
        let _ = self.reply.send(outcome.map(|()| self.slice));
    }
}

/// Deletes a slice of the lanes that have no jobs; says how many there were. The rows of a lane's jobs are not looked for, which would need one
/// more index of all jobs: a lane whose last job came before the oldest that is left has none. A few that stay for long do not keep all others.
fn drop_idle_lanes(tx: &mut Tx<'_>) -> rusqlite::Result<usize> {
    const OLDEST: usize = 1000;
    let conn = tx.conn;
    let oldest: Option<i64> = conn
        .prepare_cached("SELECT n FROM jobs ORDER BY n LIMIT 1 OFFSET ?1")?
        .query_row([OLDEST], |row| row.get(0))
        .optional()?;
    let idle: Vec<LaneId> = conn
        .prepare_cached(
            "SELECT lane FROM lanes WHERE last_n < ?1 AND lane NOT IN (SELECT lane FROM jobs ORDER BY n LIMIT ?2)
             ORDER BY last_n LIMIT ?3",
        )?
        .query_map((oldest.unwrap_or(i64::MAX), OLDEST, Prune::SLICE), |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut delete = conn.prepare_cached("DELETE FROM lanes WHERE lane = ?1")?;
    let mut deleted = 0;
    for lane in &idle {
        // The number may be given to another lane, so the index must not know it by its old name.
        if !tx.shared.index().lanes.contains_key(lane) {
            deleted += delete.execute([lane])?;
        }
    }
    drop(delete);
    tx.forget_lanes(deleted);
    Ok(deleted)
}

/// Jobs whose alarm has gone off. One that cannot be read would go off for ever, and stand before others: it is told once and has none any more.
pub(super) fn overdue(conn: &Connection, now: Time, most: usize) -> rusqlite::Result<Vec<JobId>> {
    let sql = format!("{} WHERE j.alarm_at <= ?1 ORDER BY j.alarm_at", rows::select(With::NEITHER));
    let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query([now.0])?;
    while jobs.len() < most
        && let Some(row) = found.next()?
    {
        let n = row.get(0)?;
        match rows::told_if_unreadable(n, rows::with_lane(row))? {
            Some((_, job)) => jobs.push(job.id),
            None => unreadable.push(n),
        }
    }
    for n in unreadable {
        conn.execute("UPDATE jobs SET alarm_at = NULL WHERE n = ?1", [n])?;
    }
    Ok(jobs)
}

/// Writes a few pages, to see whether that can be done.
pub(super) fn write_something(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO settings (name, value) VALUES ('written to see whether it can be', zeroblob(16384))
         ON CONFLICT DO UPDATE SET value = excluded.value",
        [],
    )?;
    Ok(())
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
