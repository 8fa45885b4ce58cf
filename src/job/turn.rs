//! Turns between lanes: how many of a vendor's waiting jobs are called before one of them.
//!
//! Never reads a clock or a store. It describes what dispatch does in both stores: lanes of one priority take equal turns, priorities take
//! turns by their shares, and inside a lane jobs go by due time, then arrival.

use super::Priority;

/// How many jobs of another lane of the same priority go before a job that has `in_lane` jobs of its own lane before it, if so many wait.
/// `goes_first`: the other lane's next turn is earlier. Where the order of the turns is not known, it is `false`.
pub fn of_other_lane(in_lane: u64, goes_first: bool) -> u64 {
    in_lane + u64::from(goes_first)
}

/// How many jobs of another priority go before a job that has `before` jobs of its own priority before it, if so many wait. `paid` is what
/// each priority has paid for its turns so far: the one that has paid the least has the next turn.
pub fn of_other_priority(other: Priority, own: Priority, paid: &[u64; 3], before: u64) -> u64 {
    let own_pays = paid[own as usize].saturating_add(before.saturating_mul(cost(own)));
    // Of two that have paid the same, the higher priority goes first.
    let until = own_pays.saturating_add(u64::from(other < own));
    until.saturating_sub(paid[other as usize]).div_ceil(cost(other))
}

/// What a turn costs a priority: the inverse of its share.
pub fn cost(priority: Priority) -> u64 {
    u64::from(Priority::High.share() / priority.share())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// What waits in a lane, which has this place in the round of its priority.
    #[derive(Debug)]
    struct Waiting {
        priority: Priority,
        turn: u32,
        jobs: u64,
    }

    /// How many jobs go before one that has `in_lane` before it in its own lane.
    fn before(lanes: &[Waiting], paid: &[u64; 3], own: &Waiting, in_lane: u64) -> u64 {
        let of_priority = |priority| lanes.iter().filter(move |lane| lane.priority == priority);
        let others = of_priority(own.priority).filter(|other| other.turn != own.turn);
        let others: u64 = others.map(|other| other.jobs.min(of_other_lane(in_lane, other.turn < own.turn))).sum();
        let same_priority = in_lane + others;
        let other_priorities = Priority::ALL.into_iter().filter(|other| *other != own.priority).map(|other| {
            let waiting: u64 = of_priority(other).map(|lane| lane.jobs).sum();
            waiting.min(of_other_priority(other, own.priority, paid, same_priority))
        });
        same_priority + other_priorities.sum::<u64>()
    }

    /// The order in which jobs go, by brute force: stride between priorities, one job a turn between lanes.
    fn order(lanes: &[Waiting], mut paid: [u64; 3]) -> Vec<(usize, u64)> {
        let mut rounds: [VecDeque<(usize, u64)>; 3] = Default::default();
        for (i, lane) in lanes.iter().enumerate() {
            rounds[lane.priority as usize].push_back((i, 0));
        }
        let mut order = Vec::new();
        while let Some(next) =
            Priority::ALL.into_iter().filter(|p| !rounds[*p as usize].is_empty()).min_by_key(|p| paid[*p as usize])
        {
            let round = &mut rounds[next as usize];
            paid[next as usize] += cost(next);
            let Some((lane, gone)) = round.pop_front() else { break };
            order.push((lane, gone));
            if gone + 1 < lanes[lane].jobs {
                round.push_back((lane, gone + 1));
            }
        }
        order
    }

    #[test]
    fn every_job_of_every_lane_goes_exactly_when_it_is_said_to() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let paid = [random.u64(..40), random.u64(..40), random.u64(..40)];
            let mut lanes = Vec::new();
            for priority in Priority::ALL {
                let of_priority = 0..random.u32(..4);
                lanes.extend(of_priority.map(|turn| Waiting { priority, turn, jobs: random.u64(1..30) }));
            }
            for (place, (lane, in_lane)) in order(&lanes, paid).into_iter().enumerate() {
                let said = before(&lanes, &paid, &lanes[lane], in_lane);
                assert_eq!(said, place as u64, "job {in_lane} of lane {lane} of {lanes:?}, paid {paid:?}");
            }
        }
    }
}
