//! Whose turn it is: which of a vendor's waiting jobs go before one of them.
//!
//! Pure: no clock, no I/O. It says what the stores' dispatch does, it does not do it: lanes of one priority take equal turns,
//! priorities take turns by their shares, and inside a lane jobs go by due time, then arrival.

use std::{collections::HashMap, sync::Arc};

use super::{Lane, Priority};
use crate::clock::Time;

/// What waits in one lane of a vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Jobs that are due by the time asked about, those that workers hold left out.
    pub jobs: u64,
    /// Its place in the round of its priority. Where that is not known all have the same.
    pub turn: u32,
}

/// What waits for one vendor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lanes {
    /// By priority and tenant.
    pub lanes: HashMap<(Priority, Arc<str>), Waiting>,
    /// What each priority has paid for its turns so far: the one that has paid the least goes next.
    pub paid: [u64; 3],
    /// When the last job of all becomes due, about.
    pub last_due: Option<Time>,
}

impl Lanes {
    /// How many jobs go before one that has `in_lane` before it in its own lane, as things stand.
    pub fn ahead(&self, lane: &Lane, in_lane: u64) -> u64 {
        let own = self.lanes.get(&(lane.priority, lane.tenant.clone())).map_or(u32::MAX, |own| own.turn);
        let is_other = |priority: Priority, tenant: &str| priority == lane.priority && *tenant != *lane.tenant;
        let others = self.lanes.iter().filter(|((priority, tenant), _)| is_other(*priority, tenant));
        // One turn each before every turn of this lane, and one more for those that come before it in the round.
        let others: u64 = others.map(|(_, other)| other.jobs.min(in_lane + u64::from(other.turn < own))).sum();
        let same_priority = in_lane + others;
        let higher_and_lower = Priority::ALL.into_iter().filter(|other| *other != lane.priority);
        same_priority + higher_and_lower.map(|other| self.ahead_of(other, lane.priority, same_priority)).sum::<u64>()
    }

    /// How many jobs of another priority go before a job with so many of its own priority before it.
    fn ahead_of(&self, other: Priority, own: Priority, before: u64) -> u64 {
        let waiting =
            self.lanes.iter().filter(|((priority, _), _)| *priority == other).map(|(_, lane)| lane.jobs).sum();
        let paid = |priority: Priority| self.paid[priority as usize];
        let own_pays = paid(own).saturating_add(before.saturating_mul(cost(own)));
        // Who has paid as much goes first if it is the higher one.
        let until = own_pays.saturating_add(u64::from(other < own));
        until.saturating_sub(paid(other)).div_ceil(cost(other)).min(waiting)
    }

    /// How many jobs of this lane are due.
    pub fn of(&self, lane: &Lane) -> u64 {
        self.lanes.get(&(lane.priority, lane.tenant.clone())).map_or(0, |own| own.jobs)
    }
}

/// What a turn costs a priority: the inverse of its share.
pub fn cost(priority: Priority) -> u64 {
    u64::from(Priority::High.share() / priority.share())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The order in which jobs go, by brute force: stride between priorities, one job a turn between tenants.
    fn order(lanes: &Lanes) -> Vec<(Priority, Arc<str>, u64)> {
        let mut rounds: [VecDeque<(Arc<str>, u64, u64)>; 3] = Default::default();
        let mut sorted: Vec<_> = lanes.lanes.iter().filter(|(_, lane)| lane.jobs > 0).collect();
        sorted.sort_by_key(|(_, lane)| lane.turn);
        for ((priority, tenant), lane) in sorted {
            rounds[*priority as usize].push_back((tenant.clone(), lane.jobs, 0));
        }
        let (mut paid, mut order) = (lanes.paid, Vec::new());
        while let Some(next) =
            Priority::ALL.into_iter().filter(|p| !rounds[*p as usize].is_empty()).min_by_key(|p| paid[*p as usize])
        {
            let round = &mut rounds[next as usize];
            paid[next as usize] += cost(next);
            let Some((tenant, jobs, gone)) = round.pop_front() else { break };
            order.push((next, tenant.clone(), gone));
            if gone + 1 < jobs {
                round.push_back((tenant, jobs, gone + 1));
            }
        }
        order
    }

    #[test]
    fn every_job_of_every_lane_goes_exactly_when_it_is_said_to() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut lanes = Lanes { paid: [random.u64(..40), random.u64(..40), random.u64(..40)], ..Lanes::default() };
            for priority in Priority::ALL {
                for turn in 0..random.u32(..4) {
                    let waiting = Waiting { jobs: random.u64(1..30), turn };
                    lanes.lanes.insert((priority, turn.to_string().into()), waiting);
                }
            }
            for (place, (priority, tenant, in_lane)) in order(&lanes).into_iter().enumerate() {
                let lane = Lane { vendor: "v".into(), priority, tenant };
                assert_eq!(lanes.ahead(&lane, in_lane), place as u64, "{lane:?} {in_lane} of {lanes:?}");
            }
        }
    }

    #[test]
    fn where_nobody_knows_whose_turn_it_is_each_lane_is_off_by_one_at_most() {
        let lane = |tenant: &str| ((Priority::Normal, tenant.into()), Waiting { jobs: 10, turn: 0 });
        let lanes = Lanes { lanes: ["a", "b", "c"].map(lane).into(), ..Lanes::default() };
        let own = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "b".into() };
        assert_eq!(lanes.ahead(&own, 4), 12);
        assert_eq!(lanes.ahead(&own, 9), 27);
    }
}
