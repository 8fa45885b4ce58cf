//! Whose turn it is: a vendor's lanes in rounds by priority, asleep until something is due, or nowhere.
//!
//! Never looks into the table; what a lane has in memory is in its shelves.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{index::LaneId, shelf::Shelf};
use crate::job::{Lane, Priority, Stage, turn};

/// A lane in memory.
pub(super) struct LaneState {
    pub(super) vendor: usize,
    pub(super) priority: usize,
    pub(super) tenant: Arc<str>,
    pub(super) calls: Shelf,
    pub(super) polls: Shelf,
    /// Its tenant is over its own limit until then. All times here are in the index's steady time.
    pub(super) rests_until: i64,
    pub(super) filed: Filed,
    /// Where its polls are filed with its vendor.
    pub(super) poll_at: Option<i64>,
}

/// Where a lane is filed with its vendor.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Filed {
    Nowhere,
    InRound,
    /// Out of its round for the moment of its turn.
    InTurn,
    AsleepUntil(i64),
}

/// A vendor's lanes, and how many of its jobs are where.
#[derive(Default)]
pub(super) struct VendorState {
    pub(super) name: Arc<str>,
    /// For each priority, the lanes that have something due, in turn.
    pub(super) rounds: [VecDeque<LaneId>; 3],
    /// Stride scheduling (Waldspurger and Weihl 1995): the priority with the smallest pass goes next and pays for its turn.
    pub(super) passes: [u64; 3],
    /// Lanes whose first job is due later, by when.
    pub(super) asleep: BTreeSet<(i64, LaneId)>,
    /// When each lane with polls can make the first.
    pub(super) polls: BTreeSet<(i64, LaneId)>,
    pub(super) waiting: u64,
    pub(super) leased: u64,
    pub(super) open: u64,
}

impl LaneState {
    pub(super) fn empty(vendor: usize, lane: &Lane) -> LaneState {
        LaneState {
            vendor,
            priority: lane.priority as usize,
            tenant: lane.tenant.clone(),
            calls: Shelf::default(),
            polls: Shelf::default(),
            rests_until: i64::MIN,
            filed: Filed::Nowhere,
            poll_at: None,
        }
    }

    pub(super) fn shelf(&mut self, stage: Stage) -> &mut Shelf {
        if stage == Stage::Poll { &mut self.polls } else { &mut self.calls }
    }

    pub(super) fn first_due(&self) -> Option<i64> {
        [self.calls.first_due(), self.polls.first_due()].into_iter().flatten().min()
    }

    /// When it has something to do next.
    fn next(&self) -> Option<i64> {
        self.first_due().map(|due| due.max(self.rests_until))
    }
}

/// Files a lane with its vendor: in its round, asleep, or nowhere. In its round it keeps its turn until that comes.
pub(super) fn file(id: LaneId, lane: &mut LaneState, vendor: &mut VendorState, now: i64) {
    let poll_at = lane.polls.first_due().map(|due| due.max(lane.rests_until));
    if poll_at != lane.poll_at {
        lane.poll_at.map(|at| vendor.polls.remove(&(at, id)));
        poll_at.map(|at| vendor.polls.insert((at, id)));
        lane.poll_at = poll_at;
    }
    if lane.filed == Filed::InRound {
        return;
    }
    if let Filed::AsleepUntil(at) = lane.filed {
        vendor.asleep.remove(&(at, id));
    }
    let was_idle = lane.filed != Filed::InTurn;
    lane.filed = match lane.next() {
        None => Filed::Nowhere,
        Some(at) if at > now => Filed::AsleepUntil(at),
        Some(_) => Filed::InRound,
    };
    match lane.filed {
        Filed::Nowhere | Filed::InTurn => {}
        Filed::AsleepUntil(at) => {
            vendor.asleep.insert((at, id));
        }
        Filed::InRound => {
            if was_idle && vendor.rounds[lane.priority].is_empty() {
                // Having been idle earns no credit.
                let current = next_priority(vendor).map_or(0, |p| vendor.passes[p]);
                vendor.passes[lane.priority] = vendor.passes[lane.priority].max(current);
            }
            vendor.rounds[lane.priority].push_back(id);
        }
    }
}

/// The priority whose turn it is.
pub(super) fn next_priority(vendor: &VendorState) -> Option<usize> {
    (0..3).filter(|p| !vendor.rounds[*p].is_empty()).min_by_key(|p| vendor.passes[*p])
}

/// What a turn costs a priority: the inverse of its share.
pub(super) fn pass_cost(priority: usize) -> u64 {
    turn::cost(Priority::ALL[priority])
}
