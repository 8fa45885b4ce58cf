//! The index: what dispatch needs of the table, in bounded memory. It has the keys of the first jobs of each lane, all leases, and counts of
//! jobs by vendor.
//!
//! Never the truth: it is rebuilt from the table at start, changed only after a commit (except for leases, which are only here), and refilled
//! from the table lane by lane. Only this process changes the table, because it owns the file. Never has a payload.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    counts::{Counts, TenantCounts},
    lane_cache::Entry,
    leases::LeasedJob,
    steady::{Now, Steady},
    turns::{LaneState, Queued, VendorState, next_priority, pass_cost, requeue},
};
use crate::{
    clock::{Clock, Nanos, Time},
    job::{Job, JobId, Lane, Priority, Stage},
    store::{Backlog, Claim, Ready, room::Load},
};

/// Bytes of payload that one claim reads at most; one job is always taken.
const MOST_CLAIMED: usize = 4 << 20;

/// A lane's number in the table.
pub(super) type LaneId = i64;

#[derive(Default)]
pub(super) struct Index {
    pub(super) lanes: HashMap<LaneId, LaneState>,
    pub(super) vendors: Vec<VendorState>,
    pub(super) vendor_ids: HashMap<Arc<str>, usize>,
    pub(super) leases: HashMap<JobId, LeasedJob>,
    pub(super) steady: Steady,
    /// Lanes with jobs in the table and none in memory. No claim finds them, so the writer refills them without being asked.
    pub(super) unread: BTreeSet<LaneId>,
    /// Such lanes whose last refill failed.
    pub(super) unreadable: BTreeSet<LaneId>,
    /// Jobs that have not ended.
    pub(super) live: Load,
    pub(super) tenants: TenantCounts,
    /// A lower bound of the earliest alarm.
    pub(super) next_alarm: Option<i64>,
}

/// A job that was just leased; the rest of it is still to be read.
pub(super) struct Claimed {
    pub(super) entry: Entry,
    pub(super) stage: Stage,
    pub(super) lane: Lane,
}

/// A job's row number in the table, and the number of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) n: i64,
    pub(super) lane: LaneId,
}

impl Index {
    /// The time. If the clock was set, jobs that wait for a wall-clock time become due at another steady time.
    pub(super) fn now(&mut self, clock: &Clock) -> Now {
        let (now, is_set) = self.steady.look(clock);
        if is_set {
            for (id, lane) in &mut self.lanes {
                if lane.calls.retime(&self.steady) {
                    let vendor = &mut self.vendors[lane.vendor];
                    requeue(*id, lane, vendor, now.steady);
                }
            }
        }
        now
    }

    pub(super) fn vendor_id(&mut self, name: &Arc<str>) -> usize {
        if let Some(id) = self.vendor_ids.get(name) {
            return *id;
        }
        let id = self.vendors.len();
        self.vendor_ids.insert(name.clone(), id);
        self.vendors.push(VendorState { name: name.clone(), ..VendorState::default() });
        id
    }

    /// Adds a job that was stored and waits for a call or a poll.
    pub(super) fn put(&mut self, row: Row, job: &Job, now: Now) {
        self.put_new(row.lane, &job.lane, job.stage, Entry::of(row.n, job), now);
    }

    pub(super) fn put_new(&mut self, id: LaneId, lane: &Lane, stage: Stage, entry: Entry, now: Now) {
        let entry = entry.timed(&self.steady, now);
        self.put_entry(id, lane, stage, entry, now);
    }

    /// Adds a job whose `due` is already known: it was in the index before.
    pub(super) fn put_entry(&mut self, id: LaneId, lane: &Lane, stage: Stage, entry: Entry, now: Now) {
        let vendor = self.vendor_id(&lane.vendor);
        // A lane that is not in memory has no jobs in the table: it is new, or was forgotten when it was empty.
        let state = self.lanes.entry(id).or_insert_with(|| LaneState::empty(vendor, lane));
        state.cache(stage).put(entry.timed_again(&self.steady));
        requeue(id, state, &mut self.vendors[vendor], now.steady);
    }

    /// Puts a leased job back; returns its vendor.
    pub(super) fn put_back(&mut self, leased: &LeasedJob, now: Now) -> Option<Arc<str>> {
        // The lane of a leased job is never forgotten.
        let (state, vendor) = lane_and_vendor(&mut self.lanes, &mut self.vendors, leased.lane)?;
        state.cache(leased.stage).put(leased.entry.timed_again(&self.steady));
        requeue(leased.lane, state, vendor, now.steady);
        Some(vendor.name.clone())
    }

    /// Removes a job from its cache, if it is there: it no longer waits, or must not be claimed for now.
    pub(super) fn remove(&mut self, row: Row, stage: Stage) -> Option<Entry> {
        let (state, vendor) = lane_and_vendor(&mut self.lanes, &mut self.vendors, row.lane)?;
        let cache = state.cache(stage);
        let removed = cache.remove(row.n);
        if cache.is_drained() {
            self.unread.insert(row.lane);
        }
        // The lane's next job is not due earlier than this one was. If it is due already, the next claim finds it.
        requeue(row.lane, state, vendor, i64::MIN);
        removed
    }

    /// Counts jobs that moved from one stage to another; `None` is before the submit and after the end.
    pub(super) fn recount(&mut self, lane: &Lane, from: Option<Stage>, to: Option<Stage>, load: Load) {
        let id = self.vendor_id(&lane.vendor);
        let vendor = &mut self.vendors[id];
        let mut counts = Counts { waiting: vendor.waiting, open: vendor.open, live: self.live };
        counts.recount(from, to, load);
        (vendor.waiting, vendor.open, self.live) = (counts.waiting, counts.open, counts.live);
        self.tenants.recount(id, &lane.tenant, from, to, load);
    }

    /// Leases due jobs of a vendor. Priorities take turns by their shares, tenants equally; a lane's polls go before its calls.
    pub(super) fn claim(&mut self, claim: &Claim, until: Nanos, now: Now) -> Vec<Claimed> {
        let Some(vendor_id) = self.vendor_ids.get(&claim.vendor).copied() else { return Vec::new() };
        self.queue_due_lanes(vendor_id, now.steady);
        let mut claimed = Vec::with_capacity(claim.most.min(256));
        let (mut calls_left, mut bytes_left) = (claim.calls, MOST_CLAIMED);
        // While no call may be made, lanes that have only calls keep their turn.
        let mut passed_over = Vec::new();
        while claimed.len() < claim.most {
            let vendor = &mut self.vendors[vendor_id];
            let Some(priority) = next_priority(vendor) else { break };
            let Some(lane) = vendor.due[priority].pop_front() else { break };
            match self.take(lane, calls_left > 0, bytes_left, until, now) {
                Taken::OnlyCalls => {
                    passed_over.push((priority, lane));
                    continue;
                }
                Taken::TooLarge => {
                    self.vendors[vendor_id].due[priority].push_front(lane);
                    break;
                }
                Taken::Nothing => {}
                Taken::Job { entry, stage, tenant } => {
                    self.vendors[vendor_id].passes[priority] += pass_cost(priority);
                    if stage == Stage::Call {
                        calls_left -= 1;
                    }
                    // A job that is larger than the bound is claimed too, but alone.
                    bytes_left = bytes_left.saturating_sub(entry.bytes as usize);
                    let lane = Lane { vendor: claim.vendor.clone(), priority: Priority::ALL[priority], tenant };
                    claimed.push(Claimed { entry, stage, lane });
                }
            }
            if let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) {
                state.queued = Queued::TakingTurn;
                requeue(lane, state, vendor, now.steady);
            }
        }
        let vendor = &mut self.vendors[vendor_id];
        passed_over.into_iter().rev().for_each(|(priority, lane)| vendor.due[priority].push_front(lane));
        vendor.leased += claimed.len() as u64;
        claimed
    }

    fn take(&mut self, lane: LaneId, calls_too: bool, bytes_left: usize, until: Nanos, now: Now) -> Taken {
        let Some(state) = self.lanes.get_mut(&lane).filter(|state| state.rests_until <= now.steady) else {
            return Taken::Nothing;
        };
        let stage = if state.polls.due(now.steady).is_some() { Stage::Poll } else { Stage::Call };
        let cache = state.cache(stage);
        let Some(entry) = cache.due(now.steady).copied() else { return Taken::Nothing };
        if stage == Stage::Call && !calls_too {
            return Taken::OnlyCalls;
        }
        if entry.bytes as usize > bytes_left && bytes_left < MOST_CLAIMED {
            return Taken::TooLarge;
        }
        cache.pop();
        let (vendor, tenant) = (state.vendor, state.tenant.clone());
        self.leases.insert(entry.id, LeasedJob::new(lane, entry, stage, vendor, until));
        Taken::Job { entry, stage, tenant }
    }

    /// Lets a lane rest until its tenant's own limit allows a call again.
    pub(super) fn rest(&mut self, lane: LaneId, until: Time, now: Now) {
        let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) else { return };
        state.rests_until = state.rests_until.max(self.steady.of(until));
        requeue(lane, state, vendor, now.steady);
    }

    /// Ends the rest of all lanes of a vendor.
    pub(super) fn wake(&mut self, vendor: &str, now: Now) {
        let Some(vendor_id) = self.vendor_ids.get(vendor).copied() else { return };
        for (lane, state) in &mut self.lanes {
            if state.vendor == vendor_id && state.rests_until > now.steady {
                state.rests_until = i64::MIN;
                requeue(*lane, state, &mut self.vendors[vendor_id], now.steady);
            }
        }
    }

    pub(super) fn ready(&self, vendor: &str, now: Now) -> Ready {
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return Ready::default() };
        let has_due = state.due.iter().any(|lanes| !lanes.is_empty());
        let first = |lanes: &BTreeSet<(i64, LaneId)>| lanes.first().map(|(at, _)| self.steady.wall(*at));
        let next_due = if has_due { Some(now.wall) } else { first(&state.later) };
        Ready { next_due, next_poll: first(&state.polls), open: state.open }
    }

    pub(super) fn backlog(&self, vendor: &str, now: Now) -> Backlog {
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return Backlog::default() };
        let due = state.due.iter().flatten().filter_map(|lane| self.lanes.get(lane)?.first_due());
        let oldest_due = due.min().filter(|due| *due <= now.steady).map(|due| self.steady.wall(due));
        let waiting = state.waiting.saturating_sub(state.leased);
        Backlog { waiting, leased: state.leased, open: state.open, oldest_due, settled_at: state.settled_at }
    }

    /// The part of one tenant. Leased jobs count as waiting.
    pub(super) fn backlog_of(&self, vendor: &str, tenant: &Arc<str>) -> Backlog {
        let Some(id) = self.vendor_ids.get(vendor) else { return Backlog::default() };
        let Counts { waiting, open, .. } = self.tenants.of_vendor(*id, tenant);
        Backlog { waiting, open, ..Backlog::default() }
    }

    /// A lower bound of the number of jobs of each vendor.
    pub(super) fn jobs_by_vendor(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        // A polled job counts as both waiting and open, so the two cannot be added.
        self.vendor_ids.iter().map(|(name, id)| (name, self.vendors[*id].waiting.max(self.vendors[*id].open)))
    }

    /// Moves lanes whose first job has become due from `later` to `due`.
    fn queue_due_lanes(&mut self, vendor: usize, now: i64) {
        while let Some((_, lane)) = self.vendors[vendor].later.first().copied().filter(|(at, _)| *at <= now) {
            let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) else { return };
            requeue(lane, state, vendor, now);
        }
    }

    /// Forgets lanes without jobs, so that tenants that come and go do not pile up.
    pub(super) fn forget_idle_lanes(&mut self) {
        let leased: HashSet<LaneId> = self.leases.values().map(|leased| leased.lane).collect();
        let mut any_due = false;
        self.lanes.retain(|id, state| {
            let is_empty = state.calls.is_empty() && state.polls.is_empty() && !leased.contains(id);
            any_due |= is_empty && state.queued == Queued::Due;
            !is_empty
        });
        // A later lane of another vendor may get the same number.
        for due in self.vendors.iter_mut().flat_map(|vendor| &mut vendor.due).filter(|_| any_due) {
            due.retain(|lane| self.lanes.contains_key(lane));
        }
    }
}

enum Taken {
    Job {
        entry: Entry,
        stage: Stage,
        tenant: Arc<str>,
    },
    OnlyCalls,
    /// Its payload is larger than what the claim may still read.
    TooLarge,
    Nothing,
}

pub(super) fn lane_and_vendor<'a>(
    lanes: &'a mut HashMap<LaneId, LaneState>,
    vendors: &'a mut [VendorState],
    lane: LaneId,
) -> Option<(&'a mut LaneState, &'a mut VendorState)> {
    let state = lanes.get_mut(&lane)?;
    let vendor = &mut vendors[state.vendor];
    Some((state, vendor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(i: i64) -> Lane {
        Lane { vendor: "v".into(), priority: Priority::Normal, tenant: i.to_string().into() }
    }

    fn index_of(lanes: i64, bytes: usize) -> (Index, Now) {
        let (mut index, clock) = (Index::default(), Clock::manual(Time(0)));
        let now = index.now(&clock);
        for n in 0..lanes {
            let id = JobId::from_bytes(u128::try_from(n).unwrap().to_be_bytes());
            index.recount(&lane(n), None, Some(Stage::Call), Load { jobs: 1, bytes: bytes as u64 });
            index.put_new(n, &lane(n), Stage::Call, Entry::new((0, n), id, Time(0), bytes, 0), now);
        }
        (index, now)
    }

    #[test]
    fn a_tenant_with_one_job_costs_less_than_half_a_kilobyte_whatever_its_payload() {
        let (index, _) = index_of(1000, 1 << 20);
        // A map that is full to between 7/16 and 7/8, and what lies on the heap: the entry and the name.
        let each = size_of::<(LaneId, LaneState)>() * 3 / 2 + size_of::<Entry>() + 16 + 40;
        assert!(each < 500, "{each} bytes");
        assert!(index.lanes.values().all(|lane| lane.calls.room() == 1 && lane.polls.room() == 0), "no room to spare");
    }

    #[test]
    fn a_claim_reads_a_bounded_number_of_bytes_and_every_tenant_has_its_turn() {
        let (mut index, now) = index_of(256, 1 << 20);
        let lease = std::time::Duration::from_secs(1);
        let claim = Claim { vendor: "v".into(), most: 256, calls: 256, now: now.wall, lease };
        let mut tenants = HashSet::new();
        for turn in 1..=64 {
            tenants.extend(index.claim(&claim, Nanos::MAX, now).into_iter().map(|claimed| claimed.lane.tenant));
            assert_eq!(tenants.len(), turn * 4);
        }
        let (mut index, now) = index_of(2, MOST_CLAIMED + 1);
        assert_eq!([1, 1, 0].map(|_| index.claim(&claim, Nanos::MAX, now).len()), [1, 1, 0], "too large, and alone");
    }
}
