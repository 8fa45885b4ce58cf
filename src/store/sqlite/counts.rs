//! How many jobs wait in each lane, and when they are due: kept at every change, so that nobody has to count them.
//!
//! Never looks into the table. Jobs that are leased still count here, as their rows still say that they want to go.

use std::{collections::HashMap, sync::Arc};

use super::index::LaneId;
use crate::{
    clock::Time,
    job::{Lane, Priority, Stage},
    store::histogram::{Around, Histogram},
};

/// The lanes of each vendor in which something waits.
#[derive(Default)]
pub(super) struct Counts(HashMap<Arc<str>, HashMap<LaneId, Counted>>);

/// One lane.
pub(super) struct Counted {
    pub(super) priority: Priority,
    pub(super) tenant: Arc<str>,
    pub(super) calls: Histogram,
    pub(super) polls: Histogram,
}

/// A job's stage and due time, as far as they make it wait.
pub(super) type Wants = Option<(Stage, Time)>;

impl Counts {
    /// So many jobs of a lane wait for something else from now on; what does not wait for a call or a poll counts for nothing.
    pub(super) fn change(&mut self, id: LaneId, lane: &Lane, from: Wants, to: Wants, jobs: u64) {
        if let Some((stage, due_at)) = to.filter(waits) {
            let lanes = self.0.entry(lane.vendor.clone()).or_default();
            let counted = lanes.entry(id).or_insert_with(|| Counted {
                priority: lane.priority,
                tenant: lane.tenant.clone(),
                calls: Histogram::default(),
                polls: Histogram::default(),
            });
            counted.of(stage).add(due_at, jobs);
        }
        let Some((stage, due_at)) = from.filter(waits) else { return };
        let Some(lanes) = self.0.get_mut(&lane.vendor) else { return };
        let Some(counted) = lanes.get_mut(&id) else { return };
        counted.of(stage).take(due_at, jobs);
        if counted.calls.is_empty() && counted.polls.is_empty() {
            lanes.remove(&id);
        }
    }

    pub(super) fn of_vendor(&self, vendor: &str) -> impl Iterator<Item = (LaneId, &Counted)> {
        self.0.get(vendor).into_iter().flatten().map(|(id, counted)| (*id, counted))
    }

    /// What is known of the place of a call that is due then, and how many polls of its lane are due by `now`.
    pub(super) fn around(&self, lane: LaneId, vendor: &str, due_at: Time, now: Time) -> Option<(Around, u64)> {
        let counted = self.0.get(vendor)?.get(&lane)?;
        Some((counted.calls.around(due_at), counted.polls.due_by(now)))
    }
}

impl Counted {
    fn of(&mut self, stage: Stage) -> &mut Histogram {
        if stage == Stage::Poll { &mut self.polls } else { &mut self.calls }
    }

    /// Jobs that are due by then.
    pub(super) fn due_by(&self, at: Time) -> u64 {
        self.calls.due_by(at) + self.polls.due_by(at)
    }
}

fn waits((stage, _): &(Stage, Time)) -> bool {
    matches!(stage, Stage::Call | Stage::Poll)
}
