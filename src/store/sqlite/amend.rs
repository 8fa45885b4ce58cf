//! Changes to a job from outside its attempts: callbacks, cancels, replays, alarms, and lapsed leases.
//!
//! Never waits for a worker: a job can end here during its call, and the fence refuses what the call brings later.

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::Row,
    mark,
    queue::{Fence, attempts_so_far, reindex, update, with_attempt},
    room::Place,
    rows,
    shelf::Entry,
    writer::{After, Tx, Write},
};
use crate::{
    clock::{Nanos, Time},
    job::{Job, JobId, Status, lifecycle},
    store::{Amended, Decide, Erased, Sees, StoreError, Which, With, room::NoRoom},
};

/// Changes one job by a decision about it as it is.
pub(super) struct Amend {
    sees: Sees,
    which: Which,
    decide: Decide,
    now: Time,
    found: Option<Found>,
    /// Its key, which this run or one before has taken off its shelf.
    entry: Option<Entry>,
    /// If it is to wait again: until it is in the index, or why it cannot.
    room: Option<Result<Place, NoRoom>>,
    reply: oneshot::Sender<Result<Amended, StoreError>>,
}

struct Found {
    row: Row,
    was: Job,
    /// What it has become, if the decision was to change it.
    is: Option<Job>,
    leased: bool,
}

impl Amend {
    pub(super) fn boxed(
        sees: Sees,
        which: Which,
        now: Time,
        decide: Decide,
        reply: oneshot::Sender<Result<Amended, StoreError>>,
    ) -> Box<dyn Write> {
        Box::new(Amend { sees, which, decide, now, found: None, entry: None, room: None, reply })
    }
}

impl Write for Amend {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        (self.found, self.room) = (None, None);
        let is_seen = |(_, job): &(Row, Job)| self.sees.includes(&job.lane.tenant);
        let Some((row, was)) = read(tx, &self.which)?.filter(is_seen) else { return Ok(()) };
        // From here on no worker can claim it. A worker that has leased it is fenced off by the attempt number.
        let attempt = {
            let mut index = tx.core.index();
            let attempt = index.leased_for(was.id);
            self.entry = if attempt.is_none() { index.remove(row, was.stage).or(self.entry) } else { None };
            attempt
        };
        let mut is = (self.decide)(&was).map(|change| change.apply(&was, attempt.unwrap_or(0), self.now));
        if let Some(job) = is.as_ref().filter(|job| was.status.has_ended() && !job.status.has_ended()) {
            let room = self.room.insert(tx.core.room.admit_again(&tx.core.index(), job));
            is = is.filter(|_| room.is_ok());
        }
        if let Some(job) = &is {
            update(tx, job, None, Fence::Any)?;
            if let Some(attempt) = attempt {
                mark::remove(tx, job.id, attempt)?;
            }
        }
        self.found = Some(Found { row, was, is, leased: attempt.is_some() });
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let reply = match (outcome, self.found) {
            (Err(error), found) => {
                if let Some(found) = found {
                    put_back(after, &found, self.entry);
                }
                Err(error)
            }
            (Ok(()), None) => Ok(Amended::Unknown),
            (Ok(()), Some(Found { row, was, is: Some(job), .. })) => {
                // A refill in the same batch may have put it on its shelf again.
                after.index.remove(row, was.stage);
                after.index.unlease(job.id, None);
                reindex(after, row, &was, &job);
                Ok(Amended::Changed(job))
            }
            (Ok(()), Some(found)) => {
                put_back(after, &found, self.entry);
                Ok(match self.room {
                    Some(Err(why)) => Amended::NoRoom(found.was, why),
                    _ => Amended::Left(found.was),
                })
            }
        };
        let _ = self.reply.send(reply);
    }
}

/// Puts a job that was not changed back on its shelf.
fn put_back(after: &mut After<'_>, found: &Found, entry: Option<Entry>) {
    let Found { row, was, leased, .. } = found;
    if *leased || !was.needs_call() {
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

/// A job as it is now, with its payload: the index needs its size.
pub(super) fn read(tx: &Tx<'_>, which: &Which) -> rusqlite::Result<Option<(Row, Job)>> {
    let select = rows::select(With { payload: true, result: false });
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
                    tracing::error!(job = %id, %error, "a job whose lease has lapsed cannot be read; it is skipped until the next start");
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
                tracing::warn!(job = %job.id, attempt = job.attempt, "its worker died or hung in a call that is made at most once");
                after.index.unlease(job.id, Some(job.attempt));
                reindex(after, row, &was, &job);
            }
            for (id, attempt) in self.freed {
                let Some(mut leased) = after.index.unlease(id, Some(attempt)) else { continue };
                tracing::warn!(job = %id, attempt, "its lease has lapsed: its worker died or hung; it is retried");
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
