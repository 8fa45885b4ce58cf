//! Leases: who holds which job, for which attempt, until when. They are only in memory; the fence is in the table.
//!
//! Never decides what becomes of a job.

use super::{
    index::{Index, LaneId, Row},
    shelf::Entry,
};
use crate::{
    clock::Nanos,
    job::{JobId, Stage},
};

/// A lease: who holds which row until when.
pub(super) struct Held {
    pub(super) lane: LaneId,
    pub(super) entry: Entry,
    pub(super) stage: Stage,
    pub(super) vendor: usize,
    /// On the timeline that never steps: a wall clock that is set forward takes no lease away.
    until: Nanos,
    /// It does not lapse: the outcome is known and waits to be stored, or the job cannot be read.
    stays: bool,
}

impl Held {
    pub(super) fn new(lane: LaneId, entry: Entry, stage: Stage, vendor: usize, until: Nanos) -> Held {
        Held { lane, entry, stage, vendor, until, stays: false }
    }

    /// The attempt that the lease is for.
    pub(super) fn attempt(&self) -> u32 {
        self.entry.attempt.saturating_add(1)
    }

    pub(super) fn row(&self) -> Row {
        Row { n: self.entry.place.1, lane: self.lane }
    }
}

impl Index {
    /// Leases a job that is on no shelf.
    pub(super) fn lease(&mut self, lane: LaneId, entry: Entry, vendor: &str, until: Nanos) {
        let vendor = self.vendor_id(&vendor.into());
        self.vendors[vendor].leased += 1;
        self.leases.insert(entry.id, Held::new(lane, entry, Stage::Call, vendor, until));
    }

    /// Ends a lease, if it is still the one of this attempt (of any attempt with `None`).
    pub(super) fn unlease(&mut self, id: JobId, attempt: Option<u32>) -> Option<Held> {
        self.leases.get(&id).filter(|held| attempt.is_none_or(|attempt| attempt == held.attempt()))?;
        let held = self.leases.remove(&id)?;
        let leased = &mut self.vendors[held.vendor].leased;
        *leased = leased.saturating_sub(1);
        Some(held)
    }

    pub(super) fn is_leased(&self, id: JobId) -> bool {
        self.leases.contains_key(&id)
    }

    /// The attempt that a job is leased for, if it is.
    pub(super) fn leased_for(&self, id: JobId) -> Option<u32> {
        self.leases.get(&id).map(Held::attempt)
    }

    /// The lane of a leased job.
    pub(super) fn leased_lane(&self, id: JobId) -> Option<LaneId> {
        self.leases.get(&id).map(|held| held.lane)
    }

    /// Leases that have lapsed, with the attempt each is for.
    pub(super) fn lapsed(&self, now: Nanos) -> Vec<(JobId, u32)> {
        let lapsed = self.leases.iter().filter(|(_, held)| held.until <= now && !held.stays);
        lapsed.map(|(id, held)| (*id, held.attempt())).collect()
    }

    /// From here on the lease of this attempt does not lapse.
    pub(super) fn keep(&mut self, id: JobId, attempt: u32) {
        if let Some(held) = self.leases.get_mut(&id).filter(|held| held.attempt() == attempt) {
            held.stays = true;
        }
    }
}
