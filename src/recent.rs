//! What one process has counted of a vendor's jobs in the last minute, by slots of time.
//!
//! Never asks other processes (see `stats`), and never makes a job wait for more than a short lock.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    clock::Time,
    job::{End, Status},
};

/// Counts are kept by slots of wall time, which begin at whole multiples of this, so that those of several processes can be added.
pub(crate) const SLOT_MS: i64 = 5_000;
/// Whole slots in the window, before the one that is not over yet: the window is 55 to 60 s long.
const WHOLE_SLOTS: i64 = 11;
/// Times below this many milliseconds are counted exactly, longer ones in buckets an eighth of a power of two wide.
const EXACT_MS: u64 = 8;

/// Counts of jobs over some time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    #[serde(rename = "a")]
    pub accepted: u64,
    /// Those that are complete.
    #[serde(rename = "d")]
    pub done: u64,
    /// Those that failed or expired.
    #[serde(rename = "f")]
    pub failed: u64,
    /// From submit to end: how many of those done are in which bucket.
    #[serde(rename = "t")]
    times: BTreeMap<u64, u64>,
}

impl Counts {
    fn end(&mut self, end: &End) {
        match end.status {
            Status::Complete => {
                self.done += 1;
                if let Some(took) = end.took {
                    *self.times.entry(bucket(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))).or_default() += 1;
                }
            }
            Status::Failed | Status::Expired => self.failed += 1,
            Status::Pending | Status::Processing | Status::Cancelled => {}
        }
    }

    /// Adds these too.
    pub fn add(&mut self, others: &Counts) {
        self.accepted += others.accepted;
        self.done += others.done;
        self.failed += others.failed;
        for (bucket, jobs) in &others.times {
            *self.times.entry(*bucket).or_default() += jobs;
        }
    }

    /// Within how many milliseconds after submit this many percent of the jobs were done, to about 6 %; `None` if none was.
    pub fn percentile_ms(&self, percent: u64) -> Option<u64> {
        let all: u64 = self.times.values().sum();
        let mut left = (all * percent).div_ceil(100);
        let mut is_reached = |jobs: u64| {
            left = left.saturating_sub(jobs);
            left == 0
        };
        self.times.iter().find(|(_, jobs)| is_reached(**jobs)).map(|(bucket, _)| middle_ms(*bucket))
    }
}

/// The bucket of a time.
fn bucket(ms: u64) -> u64 {
    if ms < EXACT_MS {
        return ms;
    }
    let power = u64::from(ms.ilog2());
    (power - 2) * EXACT_MS + (ms >> (power - 3)) % EXACT_MS
}

/// The time in the middle of a bucket. A number that no version wrote is a very long time.
fn middle_ms(bucket: u64) -> u64 {
    if bucket < EXACT_MS {
        return bucket;
    }
    let power = (bucket / EXACT_MS + 2).min(63);
    let width = 1 << (power - 3);
    (EXACT_MS + bucket % EXACT_MS) * width + width / 2
}

/// What one process has counted of one vendor lately.
pub struct Recent {
    slots: Mutex<BTreeMap<i64, Slot>>,
    /// Rung by each count.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Slot {
    counts: Counts,
    /// Whether the other processes can read all of it.
    is_shared: bool,
}

impl Recent {
    pub fn new(changed: Arc<Notify>) -> Recent {
        Recent { slots: Mutex::default(), changed }
    }

    pub fn accepted(&self, now: Time) {
        self.count(now, |counts| counts.accepted += 1);
    }

    pub fn ended(&self, end: &End) {
        self.count(end.at, |counts| counts.end(end));
    }

    fn count(&self, at: Time, count: impl FnOnce(&mut Counts)) {
        let number = slot_of(at);
        {
            let mut slots = self.lock();
            if !slots.contains_key(&number) {
                // Also those that are ahead of a clock that was set back.
                slots.retain(|other, _| window(at).contains(other));
            }
            let slot = slots.entry(number).or_default();
            count(&mut slot.counts);
            slot.is_shared = false;
        }
        self.changed.notify_one();
    }

    /// The counts of these slots.
    pub(crate) fn sum(&self, slots: RangeInclusive<i64>) -> Counts {
        let mut sum = Counts::default();
        self.lock().range(slots).for_each(|(_, slot)| sum.add(&slot.counts));
        sum
    }

    /// The slots with counts that the other processes cannot read yet. From now on they count as shared.
    pub(crate) fn take_unshared(&self) -> Vec<(i64, Counts)> {
        let mut slots = self.lock();
        let unshared = slots.iter_mut().filter(|(_, slot)| !slot.is_shared);
        unshared
            .map(|(number, slot)| {
                slot.is_shared = true;
                (*number, slot.counts.clone())
            })
            .collect()
    }

    pub(crate) fn unshare(&self, number: i64) {
        if let Some(slot) = self.lock().get_mut(&number) {
            slot.is_shared = false;
        }
    }

    /// A panic under the lock leaves at worst a job that is not counted.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot_of(at: Time) -> i64 {
    at.0.div_euclid(SLOT_MS)
}

/// The slots of the window that ends now.
pub(crate) fn window(now: Time) -> RangeInclusive<i64> {
    slot_of(now) - WHOLE_SLOTS..=slot_of(now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn done(at: i64, took_ms: u64) -> End {
        End { status: Status::Complete, code: None, at: Time(at), took: Some(Duration::from_millis(took_ms)) }
    }

    #[test]
    fn a_bucket_is_close_to_every_time_in_it() {
        let mut before = 0;
        for ms in (0..5_000).chain([10_000, 86_400_000, 1 << 40, u64::MAX >> 1]) {
            let (bucket, middle) = (bucket(ms), middle_ms(bucket(ms)));
            assert!(bucket >= before, "buckets go up: {ms}");
            assert!(middle.abs_diff(ms) <= ms / 15, "{ms} counts as {middle}");
            before = bucket;
        }
        assert_eq!(middle_ms(bucket(15)), 15, "short times are exact");
    }

    #[test]
    fn percentiles_are_those_of_the_times_counted() {
        let mut counts = Counts::default();
        assert_eq!(counts.percentile_ms(50), None);
        for ms in 1..=100 {
            counts.end(&done(0, ms));
        }
        let near = |percent: u64| counts.percentile_ms(percent).is_some_and(|ms| ms.abs_diff(percent) * 15 <= percent);
        assert!(near(50) && near(95) && near(100) && near(1), "{counts:?}");
    }

    #[test]
    fn only_the_last_minute_counts_also_after_the_clock_was_set_back() {
        let (recent, hour) = (Recent::new(Arc::default()), 3_600_000);
        for at in [hour, hour + 54_000, hour + 59_999] {
            recent.ended(&done(at, 1));
        }
        assert_eq!(recent.sum(window(Time(hour + 59_999))).done, 3);
        assert_eq!(recent.sum(window(Time(hour + 60_000))).done, 2);
        recent.accepted(Time(hour / 2));
        assert_eq!(recent.lock().len(), 1, "what lies in the future is forgotten");
        assert_eq!(recent.take_unshared().len(), 1);
        assert_eq!(recent.take_unshared(), []);
    }
}
