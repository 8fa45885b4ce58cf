//! The limits that vendors keep themselves: five ways to count, and what each lets in.
//!
//! Pure arithmetic over times of arrival: never reads a clock and never answers anybody. A refused call uses nothing up.

use std::collections::VecDeque;

use crate::behave::{DAY_MS, number};

const MS: u64 = 1_000_000;

/// A vendor's own limit. Times are nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    max: u64,
    per: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// At most `max` in any window of `per`.
    Log,
    /// At most `max` in each window of `per`; one of them begins at `phase`.
    Window { phase: u64 },
    /// The same windows; what is left of the one before, going by its share of the last `per`, counts too.
    Counter { phase: u64 },
    /// `burst` at once, refilled evenly with `max` each `per`.
    Bucket { burst: u64 },
    /// At most `max` under way.
    Concurrency,
}

/// What has been let in under one name.
#[derive(Default)]
pub(crate) struct Gate {
    log: VecDeque<u64>,
    /// Of the window with this number, and of the one before it.
    window: u64,
    calls: u64,
    calls_before: u64,
    /// When the bucket is full again, in nanoseconds times `max`: the refill of one call need not be a whole number.
    full_at: u128,
}

impl Gate {
    /// Leave for a call that arrives now. `under_way` counts it too.
    pub(crate) fn admit(&mut self, now: u64, under_way: usize, limit: &Limit) -> bool {
        match limit.kind {
            Kind::Log => self.log(now, limit),
            Kind::Window { phase } => {
                self.turn_to(now, phase, limit.per);
                self.count(self.calls < limit.max)
            }
            Kind::Counter { phase } => {
                let left = limit.per - self.turn_to(now, phase, limit.per);
                let weighed = u128::from(self.calls_before) * u128::from(left);
                let all = weighed + u128::from(self.calls) * u128::from(limit.per);
                self.count(all < u128::from(limit.max) * u128::from(limit.per))
            }
            Kind::Bucket { burst } => self.bucket(now, burst, limit),
            Kind::Concurrency => under_way as u64 <= limit.max,
        }
    }

    fn log(&mut self, now: u64, limit: &Limit) -> bool {
        while self.log.front().is_some_and(|first| now.saturating_sub(*first) >= limit.per) {
            self.log.pop_front();
        }
        let room = (self.log.len() as u64) < limit.max;
        if room {
            self.log.push_back(now);
        }
        room
    }

    /// Goes on to the window of now, and says how much of it is over. Never back: stamps may come a little out of order.
    fn turn_to(&mut self, now: u64, phase: u64, per: u64) -> u64 {
        let since = now + per - phase % per; // one window more, so that there is no time before the first
        let number = since / per;
        if number > self.window {
            self.calls_before = if number == self.window + 1 { self.calls } else { 0 };
            (self.window, self.calls) = (number, 0);
        }
        if number < self.window { 0 } else { since % per }
    }

    fn count(&mut self, admitted: bool) -> bool {
        self.calls += u64::from(admitted);
        admitted
    }

    fn bucket(&mut self, now: u64, burst: u64, limit: &Limit) -> bool {
        let (now, per) = (u128::from(now) * u128::from(limit.max), u128::from(limit.per));
        let full_at = self.full_at.max(now) + per;
        let room = full_at - now <= u128::from(burst) * per;
        if room {
            self.full_at = full_at;
        }
        room
    }
}

/// The parameters of a limit, as they come.
#[derive(Default)]
pub(crate) struct LimitQuery {
    kind: Option<String>,
    max: Option<u64>,
    per_ms: Option<u64>,
    phase_ms: Option<u64>,
    burst: Option<u64>,
}

impl LimitQuery {
    /// Says whether the parameter was one of a limit's.
    pub(crate) fn read(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "enforce" => self.kind = Some(value.into()),
            "max" => self.max = Some(number(key, value, 1, 1_000_000)?),
            "per_ms" => self.per_ms = Some(number(key, value, 1, DAY_MS)?),
            "phase_ms" => self.phase_ms = Some(number(key, value, 0, DAY_MS)?),
            "burst" => self.burst = Some(number(key, value, 1, 1_000_000)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn limit(self) -> Result<Option<Limit>, String> {
        let (phase, burst) = (self.phase_ms.map(|ms| ms * MS), self.burst);
        let kind = match (self.kind.as_deref(), phase, burst) {
            (None | Some("log"), None, None) => Kind::Log,
            (Some("window"), phase, None) => Kind::Window { phase: phase.unwrap_or(0) },
            (Some("counter"), phase, None) => Kind::Counter { phase: phase.unwrap_or(0) },
            (Some("bucket"), None, Some(burst)) => Kind::Bucket { burst },
            (Some("concurrency"), None, None) => Kind::Concurrency,
            _ => {
                let why = "`enforce` is log, window or counter (both with `phase_ms` if you like), bucket (with `burst`) or concurrency";
                return Err(why.into());
            }
        };
        match (kind, self.max, self.per_ms) {
            (Kind::Log, None, None) if self.kind.is_none() => Ok(None),
            (Kind::Concurrency, Some(max), None) => Ok(Some(Limit { max, per: 0, kind })),
            (Kind::Concurrency, ..) => Err("`enforce=concurrency` needs `max` and no `per_ms`".into()),
            (_, Some(max), Some(per_ms)) => Ok(Some(Limit { max, per: per_ms * MS, kind })),
            _ => Err("`max` and `per_ms` go together".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(query: &str) -> Limit {
        let mut limit = LimitQuery::default();
        for (key, value) in query.split('&').filter_map(|part| part.split_once('=')) {
            assert!(limit.read(key, value).expect("a value"), "{key}");
        }
        limit.limit().expect("a limit").expect("one")
    }

    /// Which of the calls at these milliseconds are let in.
    fn admitted(query: &str, at: &[u64]) -> Vec<u64> {
        let (limit, mut gate) = (limit(query), Gate::default());
        at.iter().copied().filter(|ms| gate.admit(ms * MS, 1, &limit)).collect()
    }

    #[test]
    fn a_log_looks_back_from_every_call() {
        assert_eq!(admitted("max=2&per_ms=10", &[0, 8, 9, 10, 17, 18]), [0, 8, 10, 18]);
    }

    #[test]
    fn a_window_lets_twice_as_many_in_across_its_edge_wherever_that_is() {
        assert_eq!(admitted("enforce=window&max=2&per_ms=10", &[8, 9, 9, 10, 11, 11]), [8, 9, 10, 11]);
        assert_eq!(admitted("enforce=window&max=2&per_ms=10&phase_ms=3", &[1, 2, 2, 3, 4, 4, 13]), [1, 2, 3, 4, 13]);
    }

    #[test]
    fn a_counter_remembers_the_share_of_the_window_before() {
        // Ten in the window before: 3 ms into the next one seven of them still count.
        let ten_then_a_burst: Vec<u64> = (0..10).chain([13; 10]).collect();
        assert_eq!(admitted("enforce=counter&max=10&per_ms=10", &ten_then_a_burst).len(), 10 + 3);
        // After an empty window nothing is left of it.
        let ten_and_later: Vec<u64> = (0..10).chain([23; 11]).collect();
        assert_eq!(admitted("enforce=counter&max=10&per_ms=10", &ten_and_later).len(), 10 + 10);
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_drips() {
        let every_ms: Vec<u64> = [0; 5].into_iter().chain(1..40).collect();
        assert_eq!(admitted("enforce=bucket&max=1&per_ms=10&burst=3", &every_ms), [0, 0, 0, 10, 20, 30]);
        // Three in 10 ms: no rounding gives a call away or takes one.
        let long: Vec<u64> = (0..=10_000).collect();
        assert_eq!(admitted("enforce=bucket&max=3&per_ms=10&burst=1", &long).len(), 2501);
    }

    #[test]
    fn concurrency_counts_what_is_under_way() {
        let (limit, mut gate) = (limit("enforce=concurrency&max=2"), Gate::default());
        assert_eq!([1, 2, 3, 2].map(|under_way| gate.admit(0, under_way, &limit)), [true, true, false, true]);
    }

    #[test]
    fn stamps_out_of_order_open_no_window_again() {
        assert_eq!(admitted("enforce=window&max=1&per_ms=10", &[11, 9, 12, 21]), [11, 21]);
    }

    #[test]
    fn parameters_that_do_not_belong_together_are_refused() {
        for query in [
            "max=5",
            "enforce=log",
            "enforce=bucket&max=1&per_ms=1",
            "enforce=log&max=1&per_ms=1&phase_ms=1",
            "enforce=concurrency&max=1&per_ms=1",
            "enforce=sometimes&max=1&per_ms=1",
        ] {
            let mut limit = LimitQuery::default();
            for (key, value) in query.split('&').filter_map(|part| part.split_once('=')) {
                limit.read(key, value).expect("a value");
            }
            assert!(limit.limit().is_err(), "{query}");
        }
    }
}
