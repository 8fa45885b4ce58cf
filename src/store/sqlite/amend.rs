//! Changes to a job from outside its attempts: callbacks, cancels, replays, alarms, and lapsed leases.
//!
//! Never waits for a worker: a job can end here during its call, and the fence refuses what the call brings later.

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::Row,
    lane_cache::Entry,
    mark,
    queue::{Fence, attempts_so_far, reindex, update, with_attempt},
    room::Place,
    rows,
    writer::{After, Tx, Write},
};
use crate::{
    clock::{Nanos, Time},
    job::{Job, JobId, Status, lifecycle},
    store::{Amended, Decide, Erased, Sees, StoreError, Which, room::NoRoom},
};

/// Bytes of payload of the jobs that one request changes, about: each row is written again as a whole.
const MOST_BYTES: u64 = 8 << 20;

/// Changes jobs by a decision about each as it is.
pub(super) struct Amend {
    sees: Sees,
    jobs: Vec<Which>,
    decide: Decide,
    now: Time,
    /// What became of the first of them.
    found: Vec<Option<Found>>,
    /// Their keys, which this run or one before has taken out of their caches.
    entries: Vec<Option<Entry>>,
    reply: oneshot::Sender<Result<Vec<Amended>, StoreError>>,
}

struct Found {
    row: Row,
    was: Job,
    /// What it becomes, if the decision was to change it.
    is: Option<Job>,
    /// The attempt that it is leased for.
    attempt: Option<u32>,
    /// If it is to wait again: its place until it is in the index, or why it has none.
    room: Option<Result<Place, NoRoom>>,
}

impl Amend {
    pub(super) fn boxed(
        sees: Sees,
        jobs: Vec<Which>,
        now: Time,
        decide: Decide,
        reply: oneshot::Sender<Result<Vec<Amended>, StoreError>>,
    ) -> Box<dyn Write> {
        let (found, entries) = (Vec::with_capacity(jobs.len()), vec![None; jobs.len()]);
        Box::new(Amend { sees, jobs, decide, now, found, entries, reply })
    }

    /// Takes the i-th job, if there is one to see, and decides. No worker can claim it from here on. One that has leased it is fenced off by the
    /// attempt number.
    fn take(&mut self, tx: &Tx<'_>, i: usize) -> rusqlite::Result<Option<Found>> {
        let found = match read(tx, &self.jobs[i]) {
            // It does not keep the others from being changed.
            Err(error) if self.jobs.len() > 1 && rows::is_unreadable(&error) => {
                tracing::error!(request_id = %self.jobs[i], %error, "a job cannot be read, and is left as it is");
                None
            }
            found => found?,
        };
        let Some((row, was)) = found.filter(|(_, job)| self.sees.includes(&job.lane.tenant)) else { return Ok(None) };
        let attempt = {
            let mut index = tx.core.index();
            let attempt = index.leased_for(was.id);
            let entry = &mut self.entries[i];
            *entry = if attempt.is_none() { index.remove(row, was.stage).or(*entry) } else { None };
            attempt
        };
        let is = (self.decide)(&was).map(|change| change.apply(&was, attempt.unwrap_or(0), self.now));
        let waits_again = is.as_ref().filter(|job| was.status.has_ended() && !job.status.has_ended());
        let room = waits_again.map(|job| tx.core.room.admit_again(&tx.core.index(), job));
        let is = is.filter(|_| !matches!(room, Some(Err(_))));
        Ok(Some(Found { row, was, is, attempt, room }))
    }
}

impl Write for Amend {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.found.clear();
        let mut bytes = 0;
        // All are taken before the first one is written: if that fails, all of them are put back.
        while self.found.len() < self.jobs.len() && bytes < MOST_BYTES {
            let found = self.take(tx, self.found.len())?;
            bytes += found.as_ref().filter(|found| found.is.is_some()).map_or(0, |found| found.was.weight);
            self.found.push(found);
        }
        for found in self.found.iter().flatten() {
            let Some(job) = &found.is else { continue };
            update(tx, job, None, Fence::Any)?;
            if let Some(attempt) = found.attempt {
                mark::remove(tx, job.id, attempt)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let mut amended = Vec::with_capacity(self.found.len());
        for (found, entry) in self.found.into_iter().zip(self.entries) {
            amended.push(match found {
                None => Amended::Unknown,
                Some(Found { row, was, is: Some(job), room, .. }) if outcome.is_ok() => {
                    // A refill in the same batch may have put it into its cache again.
                    after.index.remove(row, was.stage);
                    after.index.unlease(job.id, None);
                    reindex(after, row, &was, &job);
                    drop(room);
                    Amended::Changed(job)
                }
                Some(found) => {
                    put_back(after, &found, entry);
                    match found.room {
                        Some(Err(why)) => Amended::NoRoom(found.was, why),
                        _ => Amended::Left(found.was),
                    }
                }
            });
        }
        let _ = self.reply.send(outcome.map(|()| amended));
    }
}

/// Puts a job that was not changed back into its cache.
fn put_back(after: &mut After<'_>, found: &Found, entry: Option<Entry>) {
    let Found { row, was, attempt, .. } = found;
    if attempt.is_some() || !was.needs_call() {
        return;
    }
    // A refill in the same batch may have put it there already.
    after.index.remove(*row, was.stage);
    let now = after.now;
    match entry.filter(|entry| entry.place == (was.due_at.0, row.n) && entry.attempt == was.attempt) {
        Some(entry) => after.index.put_entry(row.lane, &was.lane, was.stage, entry, now),
        None => after.index.put(*row, was, now),
    }
    after.ring(&was.lane.vendor);
}

/// A job as it is now, with all that a decision about it needs.
pub(super) fn read(tx: &Tx<'_>, which: &Which) -> rusqlite::Result<Option<(Row, Job)>> {
    let select = rows::select_to_decide();
    match which {
        Which::Id(id) => {
            let sql = format!("{select} WHERE j.id = ?1");
            tx.conn.prepare_cached(&sql)?.query_row([id.as_bytes()], rows::with_lane).optional()
        }
        Which::Ticket { vendor, ticket } => {
            let sql = format!("{select} WHERE j.ticket = ?1 AND l.vendor = ?2 ORDER BY j.n DESC LIMIT 1");
            tx.conn.prepare_cached(&sql)?.query_row((ticket, &**vendor), rows::with_lane).optional()
        }
    }
}

/// Deletes a job that has ended. It is in no part of the index any more.
pub(super) fn erase(conn: &Connection, sees: &Sees, id: JobId) -> rusqlite::Result<Erased> {
    let found = conn
        .prepare_cached("SELECT j.status, l.tenant FROM jobs j JOIN lanes l ON l.lane = j.lane WHERE j.id = ?1")?
        .query_row([id.as_bytes()], |row| Ok((row.get::<_, usize>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    let Some((status, _)) = found.filter(|(_, tenant)| sees.includes(tenant)) else { return Ok(Erased::Unknown) };
    let status = Status::ALL.get(status).copied().unwrap_or(Status::Pending);
    if !status.has_ended() {
        return Ok(Erased::NotEnded(status));
    }
    conn.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id.as_bytes()])?;
    conn.prepare_cached("DELETE FROM result_webhooks WHERE id = ?1")?.execute([id.as_bytes()])?;
    Ok(Erased::Done)
}

/// Frees the jobs of lapsed leases, with an attempt number that fences their workers off. Jobs whose call is on record end.
pub(super) struct Reclaim {
    now: Nanos,
    freed: Vec<(JobId, u32)>,
    /// As they were, and as they ended.
    lost: Vec<(Row, Job, Job)>,
    /// Their rows cannot be read, so they can neither end nor be called again.
    unreadable: Vec<(JobId, u32)>,
    reply: oneshot::Sender<Result<usize, StoreError>>,
}

impl Reclaim {
    pub(super) fn boxed(now: Nanos, reply: oneshot::Sender<Result<usize, StoreError>>) -> Box<dyn Write> {
        Box::new(Reclaim { now, freed: Vec::new(), lost: Vec::new(), unreadable: Vec::new(), reply })
    }

    fn free(&mut self, tx: &Tx<'_>, id: JobId, attempt: u32) -> rusqlite::Result<()> {
        if let Some(called_at) = mark::called_at(tx, id, attempt)? {
            // The record goes last: if the job cannot be read, the record prevents a call after the next start.
            self.lost.extend(lose(tx, id, attempt, called_at)?);
            return mark::remove(tx, id, attempt);
        }
        let freed = tx
            .conn
            .prepare_cached("UPDATE jobs SET attempt = ?2 WHERE id = ?1 AND status < 2 AND attempt < ?2")?
            .execute((id.as_bytes(), attempt))?;
        if freed == 1 {
            self.freed.push((id, attempt));
        }
        Ok(())
    }
}

impl Write for Reclaim {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.freed.clear();
        self.lost.clear();
        self.unreadable.clear();
        let lapsed: Vec<(JobId, u32)> = tx.core.index().lapsed(self.now);
        for (id, attempt) in lapsed {
            match self.free(tx, id, attempt) {
                Err(error) if rows::is_unreadable(&error) => {
                    tracing::error!(request_id = %id, %error, "a job whose lease has lapsed cannot be read; it is skipped until the next start");
                    self.unreadable.push((id, attempt));
                }
                freed => freed?,
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let freed = self.freed.len() + self.lost.len();
        if outcome.is_ok() {
            for (id, attempt) in self.unreadable {
                after.index.keep(id, attempt);
            }
            for (row, was, job) in self.lost {
                tracing::warn!(request_id = %job.id, vendor = %job.lane.vendor, attempt = job.attempt, "its worker died or hung in a call that is made at most once");
                after.index.unlease(job.id, Some(job.attempt));
                reindex(after, row, &was, &job);
            }
            for (id, attempt) in self.freed {
                let Some(mut leased) = after.index.unlease(id, Some(attempt)) else { continue };
                tracing::warn!(request_id = %id, attempt, "its lease has lapsed: its worker died or hung; it is retried");
                let now = after.now;
                leased.entry.attempt = attempt;
                if let Some(vendor) = after.index.put_back(&leased, now) {
                    after.ring(&vendor);
                }
            }
        }
        let _ = self.reply.send(outcome.map(|()| freed));
    }
}

/// Ends a job with an unknown outcome.
fn lose(tx: &Tx<'_>, id: JobId, attempt: u32, called_at: Time) -> rusqlite::Result<Option<(Row, Job, Job)>> {
    let Some((row, was)) = read(tx, &Which::Id(id))? else { return Ok(None) };
    let (change, record) = lifecycle::lost(&was, attempt, called_at);
    let job = change.apply(&was, attempt, tx.core.clock.now());
    let history = with_attempt(attempts_so_far(tx, id)?, &record);
    let is_lost = update(tx, &job, Some(&history), Fence::NotEndedBefore(attempt))?;
    Ok(is_lost.then_some((row, was, job)))
}
