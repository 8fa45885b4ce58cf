//! Calls that are made at most once: the record that such a call is about to be made, kept until the lease ends.
//!
//! Never ends a job: that is done when the lease is reclaimed (see `amend`).

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::{
    index::Index,
    refill::entry,
    steady::Now,
    writer::{After, Tx, Write},
};
use crate::{
    clock::{Clock, Time, nanos},
    job::JobId,
    store::{Lease, StoreError},
};

/// After a restart, a call that is on record counts as in flight for this long: a callback may still come.
const STILL_IN_FLIGHT: Duration = Duration::from_secs(30);

/// Puts the calls of leases on record.
pub(super) struct Mark {
    leases: Vec<Lease>,
    now: Time,
    /// For each lease: whether it is still good.
    good: Vec<bool>,
    reply: oneshot::Sender<Result<Vec<Lease>, StoreError>>,
}

impl Mark {
    pub(super) fn boxed(
        leases: Vec<Lease>,
        now: Time,
        reply: oneshot::Sender<Result<Vec<Lease>, StoreError>>,
    ) -> Box<dyn Write> {
        Box::new(Mark { leases, now, good: Vec::new(), reply })
    }
}

impl Write for Mark {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.good.clear();
        for lease in &self.leases {
            let marked = tx
                .conn
                .prepare_cached(
                    "INSERT OR REPLACE INTO called (id, attempt, called_at)
                     SELECT id, ?2, ?3 FROM jobs WHERE id = ?1 AND status < 2 AND attempt < ?2",
                )?
                .execute((lease.job.id.as_bytes(), lease.attempt, self.now.0))?;
            self.good.push(marked == 1);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let Mark { leases, now, good, reply } = *self;
        if let Err(error) = outcome {
            let now = after.now;
            give_back(&mut after.index, leases.into_iter().map(|lease| (lease, None)), now);
            let _ = reply.send(Err(error));
            return;
        }
        let marked = leases.into_iter().zip(good).filter(|(_, is_good)| *is_good);
        let _ = reply.send(Ok(marked.map(|(lease, _)| Lease { called_at: Some(now), ..lease }).collect()));
    }
}

/// Releases leases whose calls are on record and were not made after all.
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
        self.leases.iter().try_for_each(|(lease, _)| remove(tx, lease.job.id, lease.attempt))
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        match outcome {
            Ok(()) => {
                let now = after.now;
                give_back(&mut after.index, self.leases.into_iter(), now);
            }
            // The record is still there: the leases lapse, and the jobs end.
            Err(error) => {
                tracing::warn!(jobs = self.leases.len(), %error, "the record of calls that were not made could not be removed; these jobs end with an unknown outcome");
            }
        }
        let _ = self.reply.send(());
    }
}

/// Ends leases and puts their jobs back into their caches. With a time, the lane rests until then.
pub(super) fn give_back(index: &mut Index, leases: impl Iterator<Item = (Lease, Option<Time>)>, now: Now) {
    for (lease, rest_until) in leases {
        let Some(leased) = index.unlease(lease.job.id, Some(lease.attempt)) else { continue };
        if let Some(until) = rest_until {
            index.rest(leased.lane, until, now);
        }
        index.put_back(&leased, now);
    }
}

/// Since when the call of an attempt is on record, if it is.
pub(super) fn called_at(tx: &Tx<'_>, id: JobId, attempt: u32) -> rusqlite::Result<Option<Time>> {
    tx.conn
        .prepare_cached("SELECT called_at FROM called WHERE id = ?1 AND attempt = ?2")?
        .query_row((id.as_bytes(), attempt), |row| row.get(0).map(Time))
        .optional()
}

/// Removes the record of an attempt's call, if there is one.
pub(super) fn remove(tx: &Tx<'_>, id: JobId, attempt: u32) -> rusqlite::Result<()> {
    tx.conn.prepare_cached("DELETE FROM called WHERE id = ?1 AND attempt = ?2")?.execute((id.as_bytes(), attempt))?;
    Ok(())
}

/// At start: these calls were about to be made or in flight, and may not be made again. Their jobs are leased for a while, then reclaimed.
pub(super) fn restore(conn: &Connection, index: &mut Index, clock: &Clock) -> rusqlite::Result<()> {
    const LIVE: &str = "j.status < 2 AND j.attempt < c.attempt";
    conn.execute(
        &format!("DELETE FROM called AS c WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = c.id AND {LIVE})"),
        [],
    )?;
    let until = clock.nanos().saturating_add(nanos(STILL_IN_FLIGHT));
    let mut called = conn.prepare(
        "SELECT j.due_at, j.n, j.id, j.updated_at, length(j.payload), c.attempt - 1, j.lane, l.vendor
         FROM called c CROSS JOIN jobs j ON j.id = c.id CROSS JOIN lanes l ON l.lane = j.lane",
    )?;
    let mut found = called.query([])?;
    while let Some(row) = found.next()? {
        let (lane, vendor, place) = (row.get(6)?, row.get::<_, String>(7)?, (row.get(0)?, row.get(1)?));
        index.lease(lane, entry(row, place)?, &vendor, until);
    }
    Ok(())
}
