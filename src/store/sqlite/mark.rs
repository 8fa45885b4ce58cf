//! Calls that are made at most once: the record that such a call is about to be made, kept until its lease is over.
//!
//! Never ends a job: that is for whoever reclaims the lease (see `amend`).

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::Index,
    steady::Now,
    upkeep::entry,
    writer::{After, Tx, Write},
};
use crate::{
    clock::{Clock, Time, nanos},
    job::JobId,
    store::{Lease, StoreError},
};

/// A call that was under way when the process died is taken for under way so long after the next start: a callback may still come of it.
const STILL_CALLED: Duration = Duration::from_secs(30);

/// Puts the calls of leases on record.
pub(super) struct Mark {
    leases: Vec<Lease>,
    now: Time,
    /// For each lease: whether it still holds.
    held: Vec<bool>,
    reply: oneshot::Sender<Result<Vec<Lease>, StoreError>>,
}

impl Mark {
    pub(super) fn boxed(
        leases: Vec<Lease>,
        now: Time,
        reply: oneshot::Sender<Result<Vec<Lease>, StoreError>>,
    ) -> Box<dyn Write> {
        Box::new(Mark { leases, now, held: Vec::new(), reply })
    }
}

impl Write for Mark {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.held.clear();
        for lease in &self.leases {
            let marked = tx
                .conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO called (id, attempt, called_at)
                     SELECT id, ?2, ?3 FROM jobs WHERE id = ?1 AND status < 2 AND attempt < ?2",
                )?
                .execute((lease.job.id.as_bytes(), lease.attempt, self.now.0))?;
            self.held.push(marked == 1);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let Mark { leases, now, held, reply } = *self;
        if let Err(error) = outcome {
            let now = after.now;
            give_back(&mut after.index, leases.into_iter().map(|lease| (lease, None)), now);
            let _ = reply.send(Err(error));
            return;
        }
        let held = leases.into_iter().zip(held).filter(|(_, is_held)| *is_held);
        let _ = reply.send(Ok(held.map(|(lease, _)| Lease { called_at: Some(now), ..lease }).collect()));
    }
}

/// Gives leases back whose calls were not made after all.
pub(super) struct Unmark {
    leases: Vec<(Lease, Option<Time>)>,
    reply: oneshot::Sender<()>,
}

impl Unmark {
    pub(super) fn boxed(leases: Vec<(Lease, Option<Time>)>, reply: oneshot::Sender<()>) -> Box<dyn Write> {
        Box::new(Unmark { leases, reply })
    }
}

impl Write for Unmark {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.leases.iter().try_for_each(|(lease, _)| take(tx, lease.job.id, lease.attempt))
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        match outcome {
            Ok(()) => {
                let now = after.now;
                give_back(&mut after.index, self.leases.into_iter(), now);
            }
            // The record stands: the leases lapse, and the jobs end.
            Err(error) => {
                tracing::warn!(jobs = self.leases.len(), %error, "not called, and will end as if nobody knew");
            }
        }
        let _ = self.reply.send(());
    }
}

/// Puts the jobs of leases back on their shelves. With a time, their lane rests until then.
pub(super) fn give_back(index: &mut Index, leases: impl Iterator<Item = (Lease, Option<Time>)>, now: Now) {
    for (lease, rest_until) in leases {
        let Some(held) = index.unlease(lease.job.id, Some(lease.attempt)) else { continue };
        if let Some(until) = rest_until {
            index.rest(held.lane, until, now);
        }
        index.put_back(&held, now);
    }
}

/// Since when the call of an attempt is on record, if it is.
pub(super) fn called_at(tx: &Tx<'_>, id: JobId, attempt: u32) -> rusqlite::Result<Option<Time>> {
    tx.conn
        .prepare_cached("SELECT called_at FROM called WHERE id = ?1 AND attempt = ?2")?
        .query_row((id.as_bytes(), attempt), |row| row.get(0).map(Time))
        .optional()
}

/// Takes the record of an attempt's call away, if there is one.
pub(super) fn take(tx: &Tx<'_>, id: JobId, attempt: u32) -> rusqlite::Result<()> {
    tx.conn.prepare_cached("DELETE FROM called WHERE id = ?1 AND attempt = ?2")?.execute((id.as_bytes(), attempt))?;
    Ok(())
}

/// At start: nobody is known to hold these jobs, and nobody may call them again. They are leased for a while, and then reclaimed.
pub(super) fn restore(conn: &Connection, index: &mut Index, clock: &Clock) -> rusqlite::Result<()> {
    const LIVE: &str = "j.status < 2 AND j.attempt < c.attempt";
    conn.execute(
        &format!("DELETE FROM called AS c WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = c.id AND {LIVE})"),
        [],
    )?;
    let until = clock.nanos().saturating_add(nanos(STILL_CALLED));
    let mut called = conn.prepare(
        "SELECT j.due_at, j.n, j.id, j.updated_at, length(j.payload), c.attempt - 1, j.lane, l.vendor
         FROM called c JOIN jobs j ON j.id = c.id JOIN lanes l ON l.lane = j.lane",
    )?;
    let mut found = called.query([])?;
    while let Some(row) = found.next()? {
        let (lane, vendor, place) = (row.get(6)?, row.get::<_, String>(7)?, (row.get(0)?, row.get(1)?));
        index.lease(lane, entry(row, place)?, &vendor, until);
    }
    Ok(())
}
