//! How long this process has waited for a new index to open and for leases to lapse.
//!
//! Never uses another clock than that of this process, which never steps: so it does not matter how the clocks of Redis and of other processes
//! are set.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{super::lock, words::VendorWork};
use crate::clock::{Nanos, nanos};

/// How long a new index stays shut, so that live workers can register their leases.
const SHUT: Duration = Duration::from_secs(3);
/// Looks that are remembered of a vendor at most. With fewer, what lapses between two of them is only found later.
const MOST_LOOKS: usize = 64;

/// By vendor: the index that was seen last.
#[derive(Default)]
pub(crate) struct Patience(Mutex<HashMap<Arc<str>, SeenIndex>>);

#[derive(Default)]
struct SeenIndex {
    epoch: String,
    since: Nanos,
    /// Looks for what has lapsed, by when their answers came.
    looks: VecDeque<(Nanos, i64)>,
}

impl Patience {
    /// This index was there when a script ran that has been answered now. Gives how long it has to stay shut, if it is.
    pub(crate) fn saw(&self, vendor: &VendorWork, epoch: &str, now: Nanos) -> Duration {
        let mut all = lock(&self.0);
        let known = all.entry(vendor.name.clone()).or_default();
        if known.epoch != epoch {
            *known = SeenIndex { epoch: epoch.to_owned(), since: now, looks: VecDeque::new() };
        }
        Duration::from_nanos((known.since + nanos(SHUT) - now).max(0).unsigned_abs())
    }

    /// The index that may open now, if it is shut: it has been so for long enough.
    pub(crate) fn may_open(&self, vendor: &VendorWork, now: Nanos) -> String {
        let all = lock(&self.0);
        let waited = all.get(&vendor.name).filter(|known| known.since + nanos(SHUT) <= now);
        waited.map_or_else(String::new, |known| known.epoch.clone())
    }

    /// A look of this number was made: everything leased by now in this index was leased before it.
    pub(crate) fn looked(&self, vendor: &VendorWork, epoch: &str, number: i64, now: Nanos) {
        self.saw(vendor, epoch, now);
        let mut all = lock(&self.0);
        let Some(known) = all.get_mut(&vendor.name) else { return };
        known.looks.push_back((now, number));
        if known.looks.len() > MOST_LOOKS {
            // The one that is missed least.
            let gap = |i: &usize| known.looks[i + 1].0 - known.looks[i - 1].0;
            let least = (1..MOST_LOOKS).min_by_key(gap).expect("there are many");
            known.looks.remove(least);
        }
    }

    /// The index, and the number of the look that is one lease ago: what was leased before it has lapsed. 0 if no look is that old.
    pub(crate) fn lapsed(&self, vendor: &VendorWork, now: Nanos) -> (String, i64) {
        let mut all = lock(&self.0);
        let Some(known) = all.get_mut(&vendor.name) else { return (String::new(), 0) };
        let is_over = |looks: &VecDeque<(Nanos, i64)>, i: usize| {
            looks.get(i).is_some_and(|(at, _)| at + nanos(vendor.lease) <= now)
        };
        while is_over(&known.looks, 1) {
            known.looks.pop_front();
        }
        let number = if is_over(&known.looks, 0) { known.looks[0].1 } else { 0 };
        (known.epoch.clone(), number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn vendor() -> VendorWork {
        VendorWork { name: "v".into(), polls: false, lease: Duration::from_secs(20), depth: 1, open: None }
    }

    #[test]
    fn what_was_leased_before_a_look_has_lapsed_a_lease_after_it() {
        let (patience, v) = (Patience::default(), vendor());
        assert_eq!(patience.lapsed(&v, 0), (String::new(), 0));
        patience.looked(&v, "a", 7, SECOND);
        patience.looked(&v, "a", 8, 2 * SECOND);
        assert_eq!(patience.lapsed(&v, 21 * SECOND - 1).1, 0);
        assert_eq!(patience.lapsed(&v, 21 * SECOND).1, 7);
        assert_eq!(patience.lapsed(&v, 99 * SECOND), ("a".into(), 8));
        patience.looked(&v, "b", 3, 99 * SECOND);
        assert_eq!(patience.lapsed(&v, 100 * SECOND), ("b".into(), 0), "looks in another index do not count");
    }

    #[test]
    fn looks_are_bounded_and_however_many_there_are_all_lapses_in_time() {
        let (patience, v) = (Patience::default(), vendor());
        for number in 1..2000 {
            // Ten a second.
            let now = number * SECOND / 10;
            let (_, lapsed) = patience.lapsed(&v, now);
            assert!(lapsed == 0 || number - lapsed >= 200, "before its time");
            assert!(number < 250 || number - lapsed < 250, "{lapsed} at {number}: late");
            patience.looked(&v, "a", number, now);
            assert!(lock(&patience.0)["v"].looks.len() <= MOST_LOOKS);
        }
    }

    #[test]
    fn a_new_index_may_open_three_seconds_after_it_was_seen() {
        let (patience, v) = (Patience::default(), vendor());
        assert_eq!(patience.saw(&v, "a", 10 * SECOND), SHUT);
        assert_eq!(patience.saw(&v, "a", 12 * SECOND), Duration::from_secs(1));
        assert_eq!(
            (patience.may_open(&v, 13 * SECOND - 1), patience.may_open(&v, 13 * SECOND)),
            ("".into(), "a".into())
        );
        assert_eq!(patience.saw(&v, "b", 13 * SECOND), SHUT);
        assert_eq!(patience.may_open(&v, 13 * SECOND), "");
    }
}
