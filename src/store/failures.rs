//! Jobs that ended without a result, counted by what was wrong.
//!
//! Never looks at more than a bounded number of them, however many there are.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use crate::{
    clock::Time,
    job::{Failure, FailureCode, JobId},
};

/// Jobs that one count looks at, at most: the newest.
pub const MOST_EXAMINED: usize = 100_000;
/// Groups that are shown, at most.
pub const MOST_GROUPS: usize = 200;
/// Groups that are kept while counting.
const MOST_COUNTED: usize = 2_000;

/// Jobs of one vendor that ended with the same code and, but for ids and numbers, the same message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<Id = JobId> {
    pub vendor: Arc<str>,
    pub code: FailureCode,
    pub message: Arc<str>,
    pub count: u64,
    pub first_at: Time,
    pub last_at: Time,
    /// The newest of them.
    pub newest: Id,
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures<Id = JobId> {
    /// All jobs that ended after this time are counted.
    pub since: Time,
    /// There are older ones after the time that was asked for, too many to look at.
    pub more: bool,
    pub count: u64,
    /// The most frequent first.
    pub groups: Vec<Group<Id>>,
    /// Jobs of further groups.
    pub omitted: u64,
}

/// Counts jobs, which come newest first. `Id` is how a store finds one again.
pub(super) struct Counting<Id> {
    since: Time,
    examined: usize,
    oldest: Time,
    count: u64,
    omitted: u64,
    groups: HashMap<(Arc<str>, FailureCode, Arc<str>), Group<Id>>,
    vendors: HashMap<String, Arc<str>>,
    /// The stable parts of messages that were seen: most jobs have one of a few.
    messages: HashMap<String, Arc<str>>,
}

impl<Id> Counting<Id> {
    pub(super) fn new(since: Time) -> Counting<Id> {
        let (groups, vendors, messages) = (HashMap::new(), HashMap::new(), HashMap::new());
        Counting { since, examined: 0, oldest: since, count: 0, omitted: 0, groups, vendors, messages }
    }

    /// Notes that a job that ended then was looked at, whether it is counted or not.
    pub(super) fn examined(&mut self, ended_at: Time) {
        self.examined += 1;
        self.oldest = ended_at;
    }

    pub(super) fn add(&mut self, vendor: &str, code: FailureCode, message: &str, ended_at: Time, id: Id) {
        self.count += 1;
        let vendor = known(&mut self.vendors, vendor, |vendor| vendor.into());
        let message = known(&mut self.messages, message, |message| Failure::stable_part(message).into());
        let (key, is_full) = ((vendor, code, message), self.groups.len() >= MOST_COUNTED);
        match self.groups.get_mut(&key) {
            Some(group) => {
                group.count += 1;
                group.first_at = ended_at;
            }
            None if is_full => self.omitted += 1,
            None => {
                let (vendor, code, message) = key.clone();
                let group =
                    Group { vendor, code, message, count: 1, first_at: ended_at, last_at: ended_at, newest: id };
                self.groups.insert(key, group);
            }
        }
    }

    /// `is_all`: the store had no more than what was looked at.
    pub(super) fn finish(self, is_all: bool) -> Failures<Id> {
        let mut groups: Vec<Group<Id>> = self.groups.into_values().collect();
        groups.sort_by(|a, b| {
            let order = |group: &Group<Id>| (Reverse(group.count), Reverse(group.last_at), group.vendor.clone());
            order(a).cmp(&order(b))
        });
        let rest: u64 = groups.iter().skip(MOST_GROUPS).map(|group| group.count).sum();
        groups.truncate(MOST_GROUPS);
        let more = !is_all && self.examined > 0;
        let since = if more { self.oldest } else { self.since };
        Failures { since, more, count: self.count, groups, omitted: self.omitted + rest }
    }

    /// Whether no more may be looked at.
    pub(super) fn is_over(&self) -> bool {
        self.examined >= MOST_EXAMINED
    }
}

/// What a text is made into, looked up if it was made before.
fn known(all: &mut HashMap<String, Arc<str>>, text: &str, make: impl FnOnce(&str) -> Arc<str>) -> Arc<str> {
    if let Some(known) = all.get(text) {
        return known.clone();
    }
    let made = make(text);
    if all.len() < MOST_COUNTED {
        all.insert(text.to_owned(), made.clone());
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_many_jobs_is_one_group_and_beyond_the_bounds_only_a_number() {
        let mut counting = Counting::new(Time(0));
        for n in 0..3_000 {
            counting.examined(Time(10_000 - n));
            let message = format!("x{}", "y".repeat(usize::try_from(n % 2_500).unwrap() / 20));
            counting.add("v", FailureCode::BadResponse, &format!("{message} 123456{n}"), Time(10_000 - n), n);
        }
        let found = counting.finish(true);
        assert_eq!((found.count, found.groups.len(), found.omitted, found.more), (3_000, 125, 0, false));
        let first = &found.groups[0];
        assert_eq!((first.count, first.newest, first.first_at, first.last_at), (40, 0, Time(7_481), Time(10_000)));

        let mut counting = Counting::new(Time(0));
        for n in 0..2_100_u32 {
            counting.examined(Time(i64::from(5_000 - n)));
            // Letters only: nothing of it counts as an id.
            let name: String = n.to_string().bytes().map(|digit| char::from(digit + 49)).collect();
            counting.add("v", FailureCode::Timeout, &name, Time(i64::from(5_000 - n)), n);
        }
        let found = counting.finish(false);
        assert_eq!((found.count, found.groups.len(), found.omitted), (2_100, MOST_GROUPS, 1_900));
        assert_eq!((found.more, found.since), (true, Time(2_901)));
    }
}
