//! The queues of a vendor's lanes: those with a due job take turns, by priority; the others wait for the time of their first job.
//!
//! Never reads the table: which job of a lane is first comes from its caches.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{index::LaneId, lane_cache::LaneCache};
use crate::{
    clock::Time,
    job::{Lane, Priority, Stage, turn},
};

/// A lane in memory.
pub(super) struct LaneState {
    pub(super) vendor: usize,
    pub(super) priority: usize,
    pub(super) tenant: Arc<str>,
    pub(super) calls: LaneCache,
    pub(super) polls: LaneCache,
    /// Its tenant is over its own limit until then. All times here are the index's steady time.
    pub(super) rests_until: i64,
    pub(super) queued: Queued,
    /// Its time in the vendor's `polls`.
    pub(super) poll_at: Option<i64>,
}

/// In which of its vendor's queues a lane is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Queued {
    Nowhere,
    Due,
    /// It was taken out of `due`, and its turn is not over.
    TakingTurn,
    Later(i64),
}

/// A vendor's lanes, and how many of its jobs are where.
#[derive(Default)]
pub(super) struct VendorState {
    pub(super) name: Arc<str>,
    /// For each priority, the lanes with a due job, in the order of their turns.
    pub(super) due: [VecDeque<LaneId>; 3],
    /// Stride scheduling (Waldspurger and Weihl 1995): the priority with the smallest pass goes next and pays for its turn.
    pub(super) passes: [u64; 3],
    /// Lanes whose first job is due later, by the time.
    pub(super) later: BTreeSet<(i64, LaneId)>,
    /// Lanes with polls, by the time of the first.
    pub(super) polls: BTreeSet<(i64, LaneId)>,
    pub(super) waiting: u64,
    pub(super) leased: u64,
    pub(super) open: u64,
    /// When this process last stored an outcome.
    pub(super) settled_at: Option<Time>,
}

impl LaneState {
    pub(super) fn empty(vendor: usize, lane: &Lane) -> LaneState {
        LaneState {
            vendor,
            priority: lane.priority as usize,
            tenant: lane.tenant.clone(),
            calls: LaneCache::default(),
            polls: LaneCache::default(),
            rests_until: i64::MIN,
            queued: Queued::Nowhere,
            poll_at: None,
        }
    }

    pub(super) fn cache(&mut self, stage: Stage) -> &mut LaneCache {
        if stage == Stage::Poll { &mut self.polls } else { &mut self.calls }
    }

    pub(super) fn first_due(&self) -> Option<i64> {
        [self.calls.first_due(), self.polls.first_due()].into_iter().flatten().min()
    }

    /// When its first job may go.
    fn next(&self) -> Option<i64> {
        self.first_due().map(|due| due.max(self.rests_until))
    }
}

/// Puts a lane into the queue where it belongs now. A lane that is in `due` keeps its turn.
pub(super) fn requeue(id: LaneId, lane: &mut LaneState, vendor: &mut VendorState, now: i64) {
    let poll_at = lane.polls.first_due().map(|due| due.max(lane.rests_until));
    if poll_at != lane.poll_at {
        lane.poll_at.map(|at| vendor.polls.remove(&(at, id)));
        poll_at.map(|at| vendor.polls.insert((at, id)));
        lane.poll_at = poll_at;
    }
    if lane.queued == Queued::Due {
        return;
    }
    if let Queued::Later(at) = lane.queued {
        vendor.later.remove(&(at, id));
    }
    let was_idle = lane.queued != Queued::TakingTurn;
    lane.queued = match lane.next() {
        None => Queued::Nowhere,
        Some(at) if at > now => Queued::Later(at),
        Some(_) => Queued::Due,
    };
    match lane.queued {
        Queued::Nowhere | Queued::TakingTurn => {}
        Queued::Later(at) => {
            vendor.later.insert((at, id));
        }
        Queued::Due => {
            if was_idle && vendor.due[lane.priority].is_empty() {
                // A priority that was idle gets no more turns for that.
                let current = next_priority(vendor).map_or(0, |p| vendor.passes[p]);
                vendor.passes[lane.priority] = vendor.passes[lane.priority].max(current);
            }
            vendor.due[lane.priority].push_back(id);
        }
    }
}

/// The priority that has the next turn.
pub(super) fn next_priority(vendor: &VendorState) -> Option<usize> {
    (0..3).filter(|p| !vendor.due[*p].is_empty()).min_by_key(|p| vendor.passes[*p])
}

/// What a turn costs a priority: the inverse of its share.
pub(super) fn pass_cost(priority: usize) -> u64 {
    turn::cost(Priority::ALL[priority])
}
