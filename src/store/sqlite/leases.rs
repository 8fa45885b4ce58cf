//! Which jobs are leased, for which attempt, until when. Leases are only in memory; the fence is in the table.
//!
//! Never decides what becomes of a job.

use super::{
    index::{Index, LaneId, Row},
    lane_cache::Entry,
};
use crate::{
    clock::{Nanos, Time},
    job::{JobId, Stage},
};

/// A job that is leased.
pub(super) struct LeasedJob {
    pub(super) lane: LaneId,
    pub(super) entry: Entry,
    pub(super) stage: Stage,
    pub(super) vendor: usize,
    /// On the timeline that never steps: a wall clock that is set forward ends no lease.
    until: Nanos,
    /// It does not lapse: its outcome waits to be stored, or the job cannot be read.
    stays: bool,
}

impl LeasedJob {
    pub(super) fn new(lane: LaneId, entry: Entry, stage: Stage, vendor: usize, until: Nanos) -> LeasedJob {
        LeasedJob { lane, entry, stage, vendor, until, stays: false }
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
    /// Leases a job that is not in a cache.
    pub(super) fn lease(&mut self, lane: LaneId, entry: Entry, vendor: &str, until: Nanos) {
        let vendor = self.vendor_id(&vendor.into());
        self.vendors[vendor].leased += 1;
        self.leases.insert(entry.id, LeasedJob::new(lane, entry, Stage::Call, vendor, until));
    }

    /// Ends a lease, if it is still the one of this attempt (of any attempt with `None`).
    pub(super) fn unlease(&mut self, id: JobId, attempt: Option<u32>) -> Option<LeasedJob> {
        self.leases.get(&id).filter(|leased| attempt.is_none_or(|attempt| attempt == leased.attempt()))?;
        let leased = self.leases.remove(&id)?;
        let count = &mut self.vendors[leased.vendor].leased;
        *count = count.saturating_sub(1);
        Some(leased)
    }

    /// The same, because the attempt's outcome is stored.
    pub(super) fn settled(&mut self, id: JobId, attempt: u32, now: Time) -> Option<LeasedJob> {
        let leased = self.unlease(id, Some(attempt))?;
        self.vendors[leased.vendor].settled_at = Some(now);
        Some(leased)
    }

    pub(super) fn is_leased(&self, id: JobId) -> bool {
        self.leases.contains_key(&id)
    }

    /// The attempt that a job is leased for, if it is.
    pub(super) fn leased_for(&self, id: JobId) -> Option<u32> {
        self.leases.get(&id).map(LeasedJob::attempt)
    }

    /// The lane of a leased job.
    pub(super) fn leased_lane(&self, id: JobId) -> Option<LaneId> {
        self.leases.get(&id).map(|leased| leased.lane)
    }

    /// Leases that have lapsed, with the attempt each is for.
    pub(super) fn lapsed(&self, now: Nanos) -> Vec<(JobId, u32)> {
        let lapsed = self.leases.iter().filter(|(_, leased)| leased.until <= now && !leased.stays);
        lapsed.map(|(id, leased)| (*id, leased.attempt())).collect()
    }

    /// From now on the lease of this attempt does not lapse.
    pub(super) fn keep(&mut self, id: JobId, attempt: u32) {
        if let Some(leased) = self.leases.get_mut(&id).filter(|leased| leased.attempt() == attempt) {
            leased.stays = true;
        }
    }
}
