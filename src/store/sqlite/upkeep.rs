//! The writer's other work: deletion of old jobs, the search for alarms, and small statements for the book.
//!
//! Never changes what a job is.

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::LaneId,
    rows,
    writer::{After, Tx, Write},
};
use crate::{
    clock::Time,
    job::JobId,
    store::{StoreError, With},
};

/// Deletes jobs that ended before a time, walking the table in order of arrival, a slice at a time.
pub(super) struct Prune {
    before: Time,
    /// Idempotency keys older than this are deleted.
    keys_before: Time,
    from: i64,
    slice: Pruned,
    reply: oneshot::Sender<Result<Pruned, StoreError>>,
}

/// The outcome of one slice of pruning.
#[derive(Clone, Copy, Default)]
pub(super) struct Pruned {
    /// Where the next slice of jobs begins; `None` at the end of what is old enough.
    pub(super) next: Option<i64>,
    /// There are more idempotency keys, or lanes without jobs, to delete.
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
            const OLD: &str = "n > ?1 AND n <= ?2 AND status >= 2 AND finished_at < ?3";
            // What is still to be announced keeps its job.
            let settled = format!(
                "DELETE FROM result_webhooks WHERE next_at IS NULL AND id IN (SELECT id FROM jobs WHERE {OLD})"
            );
            let jobs = format!(
                "DELETE FROM jobs WHERE {OLD} AND NOT EXISTS (SELECT 1 FROM result_webhooks w WHERE w.id = jobs.id)"
            );
            for delete in [settled, jobs] {
                tx.conn.prepare_cached(&delete)?.execute((self.from, last, self.before.0))?;
            }
        }
        let keys = tx
            .conn
            .prepare_cached(
                "DELETE FROM idempotency WHERE (tenant, key) IN
                   (SELECT tenant, key FROM idempotency WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)",
            )?
            .execute((self.keys_before.0, Self::SLICE))?;
        tx.core.index().forget_idle_lanes();
        let lanes = drop_idle_lanes(tx)?;
        self.slice = Pruned { next: last, more_besides: keys == Self::SLICE || lanes == Self::SLICE };
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, _after: &mut After<'_>) {
        let _ = self.reply.send(outcome.map(|()| self.slice));
    }
}

/// Deletes some lanes without jobs; says how many. The jobs of each lane are not looked for: a lane whose last number is below that of the
/// oldest job has none. The first `OLDEST` jobs are looked at one by one, so that a few jobs that
/// stay for long do not keep all lanes.
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
        // The table may give the number to another lane, so the index must have forgotten it.
        if !tx.core.index().lanes.contains_key(lane) {
            deleted += delete.execute([lane])?;
        }
    }
    drop(delete);
    tx.forget_lanes(deleted);
    Ok(deleted)
}

/// Jobs whose alarm is due. The alarm of a job that cannot be read would stay due for ever and come first, so it is logged and removed.
pub(super) fn overdue(conn: &Connection, now: Time, most: usize) -> rusqlite::Result<Vec<JobId>> {
    let sql = format!("{} WHERE j.alarm_at <= ?1 ORDER BY j.alarm_at", rows::select(With::NEITHER));
    let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query([now.0])?;
    while jobs.len() < most
        && let Some(row) = found.next()?
    {
        let n = row.get(0)?;
        match rows::skip_unreadable(n, rows::with_lane(row))? {
            Some((_, job)) => jobs.push(job.id),
            None => unreadable.push(n),
        }
    }
    for n in unreadable {
        conn.execute("UPDATE jobs SET alarm_at = NULL WHERE n = ?1", [n])?;
    }
    Ok(jobs)
}

/// Writes a few pages, to test whether writing works.
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
