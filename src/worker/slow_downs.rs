//! How often in a row each pool's vendors asked to slow down. It decides how long to wait if they do not say.
//!
//! Never closes a gate (see `limits`). Every process counts separately.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    clock::{Nanos, nanos},
    config::SlowDown,
};

/// The slow-downs of all pools. A pool that answers otherwise is forgotten.
#[derive(Default)]
pub struct SlowDowns(Mutex<HashMap<Arc<str>, InARow>>);

struct InARow {
    count: u32,
    /// When the last silence began.
    began: Nanos,
    until: Nanos,
}

/// A silence that a vendor asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) until: Nanos,
    /// Not one that had begun when the call was sent.
    pub(super) is_new: bool,
}

impl SlowDowns {
    /// Counts a call, sent at `sent`, that was answered with "slow down". `named`: the wait that the vendor named. Several calls that were in
    /// flight together count as one.
    pub(super) fn begin(
        &self,
        pool: &Arc<str>,
        sent: Nanos,
        now: Nanos,
        named: Option<Duration>,
        waits: &SlowDown,
    ) -> Begun {
        let mut pools = self.lock();
        let fresh = InARow { count: 0, began: Nanos::MIN, until: Nanos::MIN };
        let row = pools.entry(pool.clone()).or_insert(fresh);
        let is_new = sent > row.began;
        if is_new {
            (row.count, row.began) = (row.count.saturating_add(1), now);
        }
        let doubled = waits.first.saturating_mul(1 << row.count.saturating_sub(1).min(20)).min(waits.max);
        match named {
            Some(time) => row.until = row.until.max(now.saturating_add(nanos(time))),
            None if is_new => row.until = row.until.max(now.saturating_add(nanos(doubled))),
            None => {}
        }
        Begun { until: row.until, is_new }
    }

    /// Notes a call, sent at `sent`, with another answer.
    pub(super) fn end(&self, pool: &Arc<str>, sent: Nanos) {
        let mut pools = self.lock();
        if pools.get(pool).is_some_and(|row| sent > row.began) {
            pools.remove(pool);
        }
    }

    /// A panic elsewhere does not make a count wrong.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, InARow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;
    const WAITS: SlowDown = SlowDown { first: Duration::from_secs(1), max: Duration::from_secs(5) };

    #[test]
    fn a_silence_without_a_time_doubles_until_the_pool_answers_otherwise() {
        let (slow_downs, pool) = (SlowDowns::default(), Arc::from("p"));
        let begin = |now| slow_downs.begin(&pool, now, now, None, &WAITS).until - now;
        let waits: Vec<Nanos> = (1..=4).map(|i| begin(i * 100 * SECOND) / SECOND).collect();
        assert_eq!(waits, [1, 2, 4, 5]);
        slow_downs.end(&pool, 500 * SECOND);
        assert_eq!(begin(600 * SECOND), SECOND);
    }

    #[test]
    fn calls_that_were_under_way_together_are_one_slow_down() {
        let (slow_downs, pool) = (SlowDowns::default(), Arc::from("p"));
        for i in 0..30 {
            let begun = slow_downs.begin(&pool, 0, i, None, &WAITS);
            assert_eq!((begun.until, begun.is_new), (SECOND, i == 0));
        }
        // One of them names a longer time, and one was answered well: it says nothing of now.
        assert_eq!(slow_downs.begin(&pool, 0, 9, Some(WAITS.max), &WAITS).until, 9 + 5 * SECOND);
        slow_downs.end(&pool, 0);
        assert_eq!(slow_downs.begin(&pool, 10 * SECOND, 10 * SECOND, None, &WAITS).until, 12 * SECOND);
    }
}
