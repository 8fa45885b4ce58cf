//! What dispatch needs of the table, in bounded memory: the first jobs of each lane, leases, and counts.
//!
//! Never the truth: it is rebuilt from the table at start, changed only after a commit (leases excepted, which are only here),
//! and refilled from the table lane by lane. One process owns the file, so nobody else changes the table.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    counts::{Counts, Wants},
    rounds::{Filed, LaneState, VendorState, file, next_priority, pass_cost},
    shelf::{Place, Shelf, weight},
};
use crate::{
    clock::{Nanos, Time},
    job::{Job, JobId, Lane, Stage},
    store::{Backlog, Claim, Lease, Ready},
};

/// All jobs in memory together, about; beyond it jobs wait in the table.
const MOST_BYTES: usize = 48 << 20;

/// A lane's number in the table.
pub(super) type LaneId = i64;

#[derive(Default)]
pub(super) struct Index {
    pub(super) lanes: HashMap<LaneId, LaneState>,
    pub(super) vendors: Vec<VendorState>,
    pub(super) vendor_ids: HashMap<Arc<str>, usize>,
    pub(super) leases: HashMap<JobId, Held>,
    pub(super) counts: Counts,
    /// Bytes of all jobs in memory, about.
    bytes: usize,
    /// Lanes of which nothing is in memory and something in the table, and that nobody has asked for: no claim would come by.
    unread: BTreeSet<LaneId>,
    /// The same, but the last reading failed: it waits for `retry_readings`.
    unreadable: BTreeSet<LaneId>,
    /// Jobs that have not ended.
    pub(super) live: u64,
    /// The earliest alarm that is set; may be too early, never too late.
    pub(super) next_alarm: Option<i64>,
}

/// A lease: who holds which row until when.
pub(super) struct Held {
    pub(super) row: Row,
    vendor: usize,
    attempt: u32,
    /// On the timeline that never steps: a wall clock that is set forward takes no lease away.
    until: Nanos,
}

/// A job's row number and lane: what the table calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) n: i64,
    pub(super) lane: LaneId,
}

/// A piece of a lane to read from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refill {
    pub(super) lane: LaneId,
    pub(super) stage: Stage,
    pub(super) from: Place,
}

impl Index {
    /// A lane that may have jobs in the table that have not been read.
    pub(super) fn add_unread_lane(&mut self, id: LaneId, lane: &Lane) {
        let vendor = self.vendor_id(&lane.vendor);
        let unread = LaneState { calls: Shelf::unread(), polls: Shelf::unread(), ..LaneState::empty(vendor, lane) };
        self.lanes.insert(id, unread);
        self.unread.insert(id);
    }

    fn vendor_id(&mut self, name: &Arc<str>) -> usize {
        if let Some(id) = self.vendor_ids.get(name) {
            return *id;
        }
        let id = self.vendors.len();
        self.vendor_ids.insert(name.clone(), id);
        self.vendors.push(VendorState::default());
        id
    }

    /// A job that wants to go has been stored, or has been given back.
    pub(super) fn put(&mut self, row: Row, job: Job, now: Time) {
        let full = self.bytes > MOST_BYTES;
        let vendor = self.vendor_id(&job.lane.vendor);
        // A lane that is not known has nothing in the table: either it is new, or it was forgotten when it was empty.
        let state = self.lanes.entry(row.lane).or_insert_with(|| LaneState::empty(vendor, &job.lane));
        let vendor = &mut self.vendors[vendor];
        let shelf = state.shelf(job.stage);
        let before = shelf.bytes();
        shelf.put((job.due_at.0, row.n), job, full);
        self.bytes = self.bytes + shelf.bytes() - before;
        file(row.lane, state, vendor, now.0);
    }

    /// Takes a job off its shelf, if it is there, so that nobody can claim it; says for which attempt it is leased, if it is.
    pub(super) fn withdraw(&mut self, row: Row, job: &Job) -> Option<u32> {
        if let Some(held) = self.leases.get(&job.id) {
            return Some(held.attempt);
        }
        self.remove(row, job.stage, job.due_at);
        None
    }

    /// A job that may be on a shelf no longer wants to go.
    pub(super) fn remove(&mut self, row: Row, stage: Stage, due_at: Time) {
        let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, row.lane) else { return };
        let shelf = state.shelf(stage);
        let before = shelf.bytes();
        shelf.remove((due_at.0, row.n));
        self.bytes = self.bytes + shelf.bytes() - before;
        if shelf.is_drained() {
            self.unread.insert(row.lane);
        }
        // The lane's next job can only be later than before; if that is due, the next claim will see it.
        file(row.lane, state, vendor, i64::MIN);
    }

    /// Moves `jobs` of a lane in the counts from one stage and due time to another; `None` is before birth and after the end.
    pub(super) fn recount(&mut self, id: LaneId, lane: &Lane, from: Wants, to: Wants, jobs: u64) {
        self.counts.change(id, lane, from, to, jobs);
        let (from, to) = (from.map(|(stage, _)| stage), to.map(|(stage, _)| stage));
        let vendor = self.vendor_id(&lane.vendor);
        let vendor = &mut self.vendors[vendor];
        let waits = |stage: Option<Stage>| jobs * u64::from(matches!(stage, Some(Stage::Call | Stage::Poll)));
        let is_open = |stage: Option<Stage>| jobs * u64::from(matches!(stage, Some(Stage::Await | Stage::Poll)));
        let lives = |stage: Option<Stage>| jobs * u64::from(stage.is_some());
        vendor.waiting = (vendor.waiting + waits(to)).saturating_sub(waits(from));
        vendor.open = (vendor.open + is_open(to)).saturating_sub(is_open(from));
        self.live = (self.live + lives(to)).saturating_sub(lives(from));
    }

    /// Leases due jobs of a vendor: a lane's polls before its calls, by priority share and in turn between tenants.
    pub(super) fn claim(&mut self, claim: &Claim, until: Nanos) -> Vec<Lease> {
        let Some(vendor_id) = self.vendor_ids.get(&claim.vendor).copied() else { return Vec::new() };
        self.wake_lanes(vendor_id, claim.now.0);
        let mut leases = Vec::with_capacity(claim.most.min(256));
        let mut calls_left = claim.calls;
        // Lanes that have only calls while none may be made keep their turn.
        let mut passed_over = Vec::new();
        while leases.len() < claim.most {
            let vendor = &mut self.vendors[vendor_id];
            let Some(priority) = next_priority(vendor) else { break };
            let Some(lane) = vendor.rounds[priority].pop_front() else { break };
            match self.take(lane, calls_left > 0, claim, until) {
                Taken::OnlyCalls => {
                    passed_over.push((priority, lane));
                    continue;
                }
                Taken::Nothing => {}
                Taken::Job(lease) => {
                    self.vendors[vendor_id].passes[priority] += pass_cost(priority);
                    if lease.job.stage == Stage::Call {
                        calls_left -= 1;
                    }
                    leases.push(*lease);
                }
            }
            if let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) {
                state.filed = Filed::InTurn;
                file(lane, state, vendor, claim.now.0);
            }
        }
        let vendor = &mut self.vendors[vendor_id];
        passed_over.into_iter().rev().for_each(|(priority, lane)| vendor.rounds[priority].push_front(lane));
        vendor.leased += leases.len() as u64;
        leases
    }

    fn take(&mut self, lane: LaneId, calls_too: bool, claim: &Claim, until: Nanos) -> Taken {
        let Some(state) = self.lanes.get_mut(&lane).filter(|state| state.rests_until <= claim.now.0) else {
            return Taken::Nothing;
        };
        let before = state.bytes();
        let mut taken = state.polls.take_due(claim.now.0);
        if taken.is_none() {
            if !calls_too && state.calls.first_due().is_some_and(|due| due <= claim.now.0) {
                return Taken::OnlyCalls;
            }
            taken = state.calls.take_due(claim.now.0);
        }
        let Some(((_, n), job)) = taken else { return Taken::Nothing };
        self.bytes = self.bytes + state.bytes() - before;
        let attempt = job.attempt + 1;
        self.leases.insert(job.id, Held { row: Row { n, lane }, vendor: state.vendor, attempt, until });
        Taken::Job(Box::new(Lease { job, attempt, called_at: None, until }))
    }

    /// Leases a job that is on no shelf.
    pub(super) fn lease(&mut self, id: JobId, row: Row, vendor: &str, attempt: u32, until: Nanos) {
        let vendor = self.vendor_id(&vendor.into());
        self.vendors[vendor].leased += 1;
        self.leases.insert(id, Held { row, vendor, attempt, until });
    }

    /// Ends a lease, if it is still the one of this attempt (of any attempt with `None`).
    pub(super) fn unlease(&mut self, id: JobId, attempt: Option<u32>) -> Option<Row> {
        self.leases.get(&id).filter(|held| attempt.is_none_or(|attempt| attempt == held.attempt))?;
        let held = self.leases.remove(&id)?;
        let leased = &mut self.vendors[held.vendor].leased;
        *leased = leased.saturating_sub(1);
        Some(held.row)
    }

    pub(super) fn is_leased(&self, id: JobId) -> bool {
        self.leases.contains_key(&id)
    }

    /// The lane of a leased job.
    pub(super) fn leased_lane(&self, id: JobId) -> Option<LaneId> {
        self.leases.get(&id).map(|held| held.row.lane)
    }

    /// Leases that have lapsed, with the attempt each is for.
    pub(super) fn lapsed(&self, now: Nanos) -> Vec<(JobId, u32)> {
        self.leases.iter().filter(|(_, held)| held.until <= now).map(|(id, held)| (*id, held.attempt)).collect()
    }

    /// Lets a lane rest: its tenant may not call before then.
    pub(super) fn rest(&mut self, lane: LaneId, until: Time, now: Time) {
        let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) else { return };
        state.rests_until = state.rests_until.max(until.0);
        file(lane, state, vendor, now.0);
    }

    /// Lets no lane of a vendor rest any longer.
    pub(super) fn wake(&mut self, vendor: &str, now: Time) {
        let Some(vendor_id) = self.vendor_ids.get(vendor).copied() else { return };
        for (lane, state) in &mut self.lanes {
            if state.vendor == vendor_id && state.rests_until > now.0 {
                state.rests_until = i64::MIN;
                file(*lane, state, &mut self.vendors[vendor_id], now.0);
            }
        }
    }

    /// Pieces of lanes that should be read from the table now; each is told once.
    pub(super) fn wanted(&mut self, lanes: impl IntoIterator<Item = LaneId>) -> Vec<Refill> {
        let mut wanted = Vec::new();
        for lane in lanes {
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            for (stage, shelf) in [(Stage::Call, &mut state.calls), (Stage::Poll, &mut state.polls)] {
                if let Some(from) = shelf.wants_more() {
                    shelf.refilling = true;
                    wanted.push(Refill { lane, stage, from });
                }
            }
        }
        wanted
    }

    /// Pieces of up to `lanes` lanes that nobody else asks for; each is told once.
    pub(super) fn wanted_by_nobody(&mut self, lanes: usize) -> Vec<Refill> {
        let unread: Vec<LaneId> = std::iter::from_fn(|| self.unread.pop_first()).take(lanes).collect();
        self.wanted(unread)
    }

    /// A reading that was told found no place in the queue.
    pub(super) fn not_refilling(&mut self, refill: Refill) {
        if let Some(state) = self.lanes.get_mut(&refill.lane) {
            state.shelf(refill.stage).refilling = false;
            self.unread.insert(refill.lane);
        }
    }

    /// A reading failed.
    pub(super) fn could_not_refill(&mut self, refill: Refill) {
        if let Some(state) = self.lanes.get_mut(&refill.lane) {
            state.shelf(refill.stage).refilling = false;
            self.unreadable.insert(refill.lane);
        }
    }

    /// Has the readings that failed tried again; says whether there are any.
    pub(super) fn retry_readings(&mut self) -> bool {
        self.unread.append(&mut self.unreadable);
        !self.unread.is_empty()
    }

    /// As much is in memory as may be.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > MOST_BYTES
    }

    /// Takes in what was read from the table.
    pub(super) fn refill(&mut self, refill: Refill, rows: Vec<(Place, Job)>, more: bool, now: Time) {
        let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, refill.lane) else { return };
        let before = state.bytes();
        let (mut free, mut reaches, mut more) = (Vec::new(), None, more);
        let mut bytes = self.bytes;
        for (place, job) in rows {
            // With the memory full a lane keeps one job, so that its turn comes.
            if bytes > MOST_BYTES && !free.is_empty() {
                more = true;
                break;
            }
            reaches = Some(place);
            // A leased job's row still says that it wants to go; it must not go twice.
            if !self.leases.contains_key(&job.id) {
                bytes += weight(&job);
                free.push((place, job));
            }
        }
        let shelf = state.shelf(refill.stage);
        shelf.refill(refill.from, free, reaches.filter(|_| more));
        if shelf.is_drained() {
            self.unread.insert(refill.lane);
        }
        self.bytes = self.bytes + state.bytes() - before;
        file(refill.lane, state, vendor, now.0);
    }

    pub(super) fn ready(&self, vendor: &str, now: Time) -> Ready {
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return Ready::default() };
        let has_due = state.rounds.iter().any(|round| !round.is_empty());
        let next_due = if has_due { Some(now) } else { state.asleep.first().map(|(at, _)| Time(*at)) };
        let next_poll = state.polls.first().map(|(at, _)| Time(*at));
        Ready { next_due, next_poll, open: state.open }
    }

    pub(super) fn backlog(&self, vendor: &str, now: Time) -> Backlog {
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return Backlog::default() };
        let due = state.rounds.iter().flatten().filter_map(|lane| self.lanes.get(lane)?.first_due());
        let oldest_due = due.min().map(Time).filter(|due| *due <= now);
        let waiting = state.waiting.saturating_sub(state.leased);
        Backlog { waiting, leased: state.leased, open: state.open, oldest_due }
    }

    /// How many jobs each vendor has, at least.
    pub(super) fn jobs_by_vendor(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        // A job that is polled both waits and is open.
        self.vendor_ids.iter().map(|(name, id)| (name, self.vendors[*id].waiting.max(self.vendors[*id].open)))
    }

    /// Moves lanes whose first job has become due into their round.
    fn wake_lanes(&mut self, vendor: usize, now: i64) {
        while let Some((_, lane)) = self.vendors[vendor].asleep.first().copied().filter(|(at, _)| *at <= now) {
            let Some((state, vendor)) = lane_and_vendor(&mut self.lanes, &mut self.vendors, lane) else { return };
            file(lane, state, vendor, now);
        }
    }

    /// Forgets lanes with nothing in them, so that tenants that come and go do not pile up.
    pub(super) fn forget_idle_lanes(&mut self) {
        let held: HashSet<LaneId> = self.leases.values().map(|held| held.row.lane).collect();
        self.lanes.retain(|id, state| {
            let empty = state.calls.is_empty() && state.polls.is_empty() && state.filed == Filed::Nowhere;
            !empty || held.contains(id)
        });
    }
}

enum Taken {
    Job(Box<Lease>),
    OnlyCalls,
    Nothing,
}

fn lane_and_vendor<'a>(
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
    use crate::job::{Priority, Status};

    fn job(lane: &Lane, payload: &bytes::Bytes, n: u8) -> Job {
        Job {
            id: JobId::from_bytes([n; 16]),
            lane: lane.clone(),
            payload: payload.clone(),
            status: Status::Pending,
            stage: Stage::Call,
            due_at: Time(0),
            answer_by: None,
            deadline: None,
            tags: Vec::new(),
            run: 0,
            tries: 0,
            attempt: 0,
            ticket: None,
            result: None,
            failure: None,
            updated_at: Time(0),
            finished_at: None,
        }
    }

    #[test]
    fn readings_keep_to_the_bound_on_memory_and_every_lane_keeps_a_job() {
        let (mut index, payload) = (Index::default(), bytes::Bytes::from(vec![b'1'; 1 << 20]));
        let lane = |i: i64| Lane { vendor: "v".into(), priority: Priority::Normal, tenant: i.to_string().into() };
        for i in 0..60 {
            index.add_unread_lane(i, &lane(i));
        }
        let wanted = index.wanted_by_nobody(100);
        assert_eq!(wanted.len(), 120, "calls and polls of each");
        for refill in wanted {
            let i = refill.lane;
            let rows: Vec<_> = (0..4).map(|k| ((0, i * 4 + k), job(&lane(i), &payload, (i * 4 + k) as u8))).collect();
            let rows = if refill.stage == Stage::Call { rows } else { Vec::new() };
            index.refill(refill, rows, false, Time(0));
        }
        assert!(index.is_full());
        // 48 MiB, and a job for each lane that came too late.
        assert!(index.bytes < (48 + 1 + 48) << 20, "{} bytes", index.bytes);
        let claim =
            Claim { vendor: "v".into(), most: 60, calls: 60, now: Time(0), lease: std::time::Duration::from_secs(1) };
        let tenants: HashSet<_> =
            index.claim(&claim, Nanos::MAX).into_iter().map(|lease| lease.job.lane.tenant.clone()).collect();
        assert_eq!(tenants.len(), 60);
    }
}
