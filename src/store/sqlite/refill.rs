//! Reading lanes from the table into the index, a bounded piece at a time.
//!
//! Never reads but through the writer, so that no insert falls between the reading and the index.

use std::sync::Arc;

use super::{
    index::{Index, LaneId, lane_and_vendor},
    lane_cache::{Entry, MOST, Place},
    rows,
    steady::Now,
    turns::{LaneState, requeue},
    writer::{After, Tx, Write},
};
use crate::{
    clock::Time,
    job::{JobId, Lane, Stage},
    store::StoreError,
};

/// A piece of a lane to read from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refill {
    pub(super) lane: LaneId,
    pub(super) stage: Stage,
    pub(super) from: Place,
}

impl Index {
    /// A lane with jobs in the table that have not been read.
    pub(super) fn add_unread(&mut self, id: LaneId, lane: &Lane, stage: Stage) {
        let vendor = self.vendor_id(&lane.vendor);
        self.lanes.entry(id).or_insert_with(|| LaneState::empty(vendor, lane)).cache(stage).set_unread();
        self.unread.insert(id);
    }

    /// What is to be read of these lanes. Each piece is given once.
    pub(super) fn refills(&mut self, lanes: impl IntoIterator<Item = LaneId>) -> Vec<Refill> {
        let mut refills = Vec::new();
        for lane in lanes {
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            for (stage, cache) in [(Stage::Call, &mut state.calls), (Stage::Poll, &mut state.polls)] {
                if let Some(from) = cache.refill_from() {
                    cache.refilling = true;
                    refills.push(Refill { lane, stage, from });
                }
            }
        }
        refills
    }

    /// What is to be read of up to `lanes` lanes that no claim comes by. Each piece is given once.
    pub(super) fn unread_refills(&mut self, lanes: usize) -> Vec<Refill> {
        let unread: Vec<LaneId> = std::iter::from_fn(|| self.unread.pop_first()).take(lanes).collect();
        self.refills(unread)
    }

    /// The writer's queue was full: the lane is read later.
    pub(super) fn not_refilling(&mut self, refill: Refill) {
        if let Some(state) = self.lanes.get_mut(&refill.lane) {
            state.cache(refill.stage).refilling = false;
            self.unread.insert(refill.lane);
        }
    }

    /// The lane could not be read.
    fn could_not_refill(&mut self, refill: Refill) {
        if let Some(state) = self.lanes.get_mut(&refill.lane) {
            state.cache(refill.stage).refilling = false;
            self.unreadable.insert(refill.lane);
        }
    }

    /// Lanes that could not be read are read again; says whether there are any.
    pub(super) fn retry_readings(&mut self) -> bool {
        self.unread.append(&mut self.unreadable);
        !self.unread.is_empty()
    }

    /// Adds what was read; gives the vendor of the lane.
    pub(super) fn refill(
        &mut self,
        refill: Refill,
        rows: Vec<Entry>,
        complete_to: Option<Place>,
        now: Now,
    ) -> Option<Arc<str>> {
        let (state, vendor) = lane_and_vendor(&mut self.lanes, &mut self.vendors, refill.lane)?;
        // The row of a leased job still says that it waits for a call; it must not be leased twice.
        let free = rows.into_iter().filter(|entry| !self.leases.contains_key(&entry.id));
        let cache = state.cache(refill.stage);
        cache.refill(refill.from, free.map(|entry| entry.timed(&self.steady, now)), complete_to);
        if cache.is_drained() {
            self.unread.insert(refill.lane);
        }
        requeue(refill.lane, state, vendor, now.steady);
        Some(vendor.name.clone())
    }
}

/// Reads the next jobs of a lane into the index.
pub(super) struct ReadLane {
    refill: Refill,
    rows: Vec<Entry>,
    /// How far it has read; `None` is to the end of the lane.
    complete_to: Option<Place>,
}

impl ReadLane {
    pub(super) fn new(refill: Refill) -> ReadLane {
        ReadLane { refill, rows: Vec::new(), complete_to: None }
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
            self.rows.extend(rows::skip_unreadable(last.1, entry(row, last))?);
        }
        self.complete_to = (read == MOST_READ).then_some(last);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        if outcome.is_err() {
            return after.index.could_not_refill(self.refill);
        }
        let (has_jobs, now) = (!self.rows.is_empty(), after.now);
        let vendor = after.index.refill(self.refill, self.rows, self.complete_to, now);
        if let Some(vendor) = vendor.filter(|_| has_jobs) {
            after.ring(&vendor);
        }
    }
}

/// A job's key. The columns from the third on are: id, time of the last write, size of the payload, attempts.
pub(super) fn entry(row: &rusqlite::Row<'_>, place: Place) -> rusqlite::Result<Entry> {
    Ok(Entry::new(place, JobId::from_bytes(row.get(2)?), Time(row.get(3)?), row.get(4)?, row.get(5)?))
}
