//! The arithmetic against a naive model that keeps every call and tries every moment.

use fetchgate::limit::calendar::SKEW;
use fetchgate::limit::rule::{self, Count};
use proptest::prelude::*;

use super::*;

/// Every call ever made, in order.
struct Model {
    limit: Limit,
    calls: Vec<Nanos>,
}

impl Model {
    fn window(&self) -> Nanos {
        let Per::Rolling(period) = self.limit.per else { unreachable!() };
        nanos(period) + nanos(self.limit.guard)
    }

    /// Moments are tried one by one: `t`, and those at which something changes.
    fn earliest(&self, t: Nanos) -> Nanos {
        let (n, window) = (self.limit.calls as i64, self.window());
        let ceil = |n: i64| window / n + i64::from(window % n > 0);
        match self.limit.shape {
            // Of any k calls that end with the new one, at most b + (time they take)/E.
            Shape::Bucket { .. } | Shape::Paced => {
                let b = if let Shape::Bucket { burst } = self.limit.shape { burst as i64 } else { 1 };
                let every = ceil(n - b + 1);
                let k = |j: usize| (self.calls.len() - j + 1) as i64;
                let from = |(j, at): (usize, &Nanos)| at + (k(j) - b).max(0) * every;
                self.calls.iter().enumerate().map(from).max().unwrap_or(t).max(t)
            }
            _ => {
                let fits = |t: Nanos| self.calls.iter().filter(|at| **at > t - window).count() < n as usize;
                let mut moments: Vec<Nanos> = self.calls.iter().map(|at| at + window).filter(|m| *m > t).collect();
                moments.push(t);
                moments.sort_unstable();
                moments.into_iter().find(|t| fits(*t)).unwrap()
            }
        }
    }
}

fn rolling() -> impl Strategy<Value = Limit> {
    let shape =
        prop_oneof![Just(Shape::Paced), Just(Shape::Window), (1_u64..12).prop_map(|burst| Shape::Bucket { burst })];
    (1_u64..40, 1_u64..20_000, shape, 0_u64..500).prop_map(|(calls, ms, shape, guard)| {
        let shape = match shape {
            Shape::Bucket { burst } => Shape::Bucket { burst: burst.min(calls) },
            other => other,
        };
        let guard = Duration::from_millis(guard.min(ms / 10));
        Limit { guard, ..limit(calls, Duration::from_millis(ms), shape) }
    })
}

/// Waits between calls, as thousandths of the window: mostly none.
fn waits() -> impl Strategy<Value = Vec<i64>> {
    proptest::collection::vec(prop_oneof![4 => Just(0_i64), 2 => 0_i64..100, 1 => 0_i64..1500], 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_arithmetic_agrees_with_the_naive_model(limit in rolling(), waits in waits()) {
        let mut model = Model { limit: limit.clone(), calls: Vec::new() };
        let mut count = Count::new(&limit);
        let mut now = 1_000 * SECOND;
        for wait in waits {
            now += model.window() / 1_000 * wait;
            let at = model.earliest(now);
            prop_assert_eq!(count.earliest(now), at);
            count.charge(at);
            model.calls.push(at);
            now = at;
        }
    }

    #[test]
    fn undoing_never_lets_a_call_go_too_early(limit in rolling(), waits in waits(), undone in 1_usize..30) {
        let mut model = Model { limit: limit.clone(), calls: Vec::new() };
        let mut count = Count::new(&limit);
        let mut now = 1_000 * SECOND;
        for (i, wait) in waits.into_iter().enumerate() {
            now += model.window() / 1_000 * wait;
            let at = count.earliest(now);
            prop_assert!(at >= model.earliest(now));
            if limit.shape == Shape::Window && undone as u64 <= limit.calls {
                prop_assert_eq!(at, model.earliest(now));
            }
            count.charge(at);
            model.calls.push(at);
            if i % 40 == 39 {
                for at in model.calls.split_off(model.calls.len().saturating_sub(undone)).into_iter().rev() {
                    count.undo(at, true);
                }
            }
        }
    }

    #[test]
    fn what_is_restored_is_never_earlier_than_the_truth(limit in rolling(), before in waits(), after in waits(), pause in 0_i64..400) {
        let mut model = Model { limit: limit.clone(), calls: Vec::new() };
        let mut now = 1_000 * SECOND;
        for wait in before {
            now = model.earliest(now + model.window() / 1_000 * wait);
            model.calls.push(now);
        }
        // The restart knows calls by sub-windows only, and those of the last window.
        let (opened, len) = (now + model.window() / 1_000 * pause, model.window() / 64 + 1);
        let mut subs: BTreeMap<Nanos, u64> = BTreeMap::new();
        for at in &model.calls {
            *subs.entry((at.div_euclid(len) + 1) * len).or_default() += 1;
        }
        let mut count = Count::new(&limit);
        for (end, calls) in subs {
            if end + model.window() > opened {
                count.restore(end.min(opened), calls);
            }
        }
        now = opened;
        let mut calls = model.calls.clone();
        for wait in after {
            now = count.earliest(now + model.window() / 1_000 * wait);
            count.charge(now);
            calls.push(now);
        }
        prop_assert!(most_in_any_window(calls, model.window()) as u64 <= limit.calls);
    }

    #[test]
    fn room_is_what_one_by_one_would_give(limits in proptest::collection::vec(rolling(), 1..4), waits in waits(), most in 1_usize..80, ahead in 1_i64..30_000) {
        let mut counts: Vec<Count> = limits.iter().map(Count::new).collect();
        let mut now = 1_000 * SECOND;
        for wait in waits {
            now = rule::slot(&counts, now + 10 * MS * wait).0;
            counts.iter_mut().for_each(|count| count.charge(now));
        }
        let until = now + ahead * MS;
        let (first, _) = rule::slot(&counts, now);
        let (gap, _) = rule::gap(&limits, 1);
        let room = rule::room(&counts, gap, first, until, most);
        let (mut given, mut at) = (0, now);
        while given < most {
            at = rule::slot(&counts, at).0;
            if at > until {
                break;
            }
            counts.iter_mut().for_each(|count| count.charge(at));
            (given, at) = (given + 1, at + gap);
        }
        prop_assert_eq!(room, given);
    }

    #[test]
    fn a_calendar_never_holds_more_than_n(calls in 1_u64..6, hours in proptest::collection::vec(0_i64..40, 1..60), monthly: bool, zone in 0_usize..4) {
        let zone = ["Europe/Berlin", "America/New_York", "Pacific/Apia", "UTC"][zone];
        let zone = jiff::tz::TimeZone::get(zone).unwrap();
        let per = if monthly { Per::Month(zone) } else { Per::Day(zone) };
        let limit = Limit { per, ..daily(calls, "UTC") };
        let mut count = Count::new(&limit);
        let mut now = START.0 * MS;
        let mut made = Vec::new();
        for hour in hours {
            // Every fourth lands a few seconds from a full hour, where the edges are.
            now = if hour % 4 == 0 { (now / (3600 * SECOND) + 1) * 3600 * SECOND - (hour / 4 - 5) * SECOND } else { now + hour * 1800 * SECOND };
            now = count.earliest(now);
            prop_assert_eq!(count.earliest(now), now);
            count.charge(now);
            made.push(now);
        }
        prop_assert!(most_in_any_period(&made, &limit.per) as u64 <= calls);
    }
}

/// Calls made by a full backlog over this time.
fn greedy(limit: &Limit, span: Nanos) -> Vec<Nanos> {
    let mut count = Count::new(limit);
    let mut calls = Vec::new();
    let mut at = count.earliest(START.0 * MS);
    let end = at + span;
    while at < end {
        count.charge(at);
        calls.push(at);
        at = count.earliest(at);
    }
    calls
}

#[test]
fn a_full_backlog_uses_the_documented_share() {
    let seconds = Duration::from_secs;
    let paced = limit(100, seconds(1), Shape::Paced);
    let window = limit(200, seconds(60), Shape::Window);
    let parts = limit(10_001, seconds(10), Shape::Window);
    let bucket = limit(100, seconds(10), Shape::Bucket { burst: 11 });
    for (limit, periods, share) in [(paced, 100, 0.99), (window, 100, 0.99), (parts, 12, 0.99), (bucket, 50, 0.895)] {
        let Per::Rolling(period) = limit.per else { unreachable!() };
        // Whole cycles: what is left of the last one would be counted as free gain.
        let calls = greedy(&limit, nanos(period) * periods);
        let full = calls.len() as u64 / limit.calls * limit.calls;
        let took = calls.get(full as usize).copied().unwrap_or(calls[0] + nanos(period) * periods) - calls[0];
        let used = full as f64 / limit.calls as f64 / (took as f64 / nanos(period) as f64);
        assert!(used >= share, "{limit:?} uses {used}");
        let stretched = nanos(period) + nanos(limit.guard);
        assert!(most_in_any_window(calls, stretched) as u64 <= limit.calls, "{limit:?}");
    }
}

#[test]
fn sub_windows_never_let_a_call_go_before_the_exact_window_would() {
    let limit = limit(10_007, Duration::from_secs(100), Shape::Window);
    let mut count = Count::new(&limit);
    let mut calls = Vec::new();
    let mut at = START.0 * MS;
    let mut random = 7_u64;
    for _ in 0..35_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        at = count.earliest(at + if random >> 60 == 0 { (random >> 40) as i64 * 5 } else { 0 });
        count.charge(at);
        calls.push(at);
    }
    assert!(most_in_any_window(calls, 100 * SECOND + 500 * MS) <= 10_007);
}

#[test]
fn the_first_call_goes_at_once() {
    for shape in [Shape::Paced, Shape::Window, Shape::Bucket { burst: 5 }] {
        assert_eq!(Count::new(&limit(5, Duration::from_secs(1), shape)).earliest(17), 17);
    }
}

#[test]
fn a_day_of_23_hours_ends_when_the_vendors_does() {
    let mut count = Count::new(&daily(2, "Europe/Berlin"));
    let midnight = START.0 * MS + 3600 * SECOND; // the start of 29 March 2026, when 02:00 becomes 03:00
    count.charge(midnight + 3600 * SECOND);
    count.charge(midnight + 3600 * SECOND);
    assert_eq!(count.earliest(midnight + 7200 * SECOND), midnight + 23 * 3600 * SECOND + SKEW);
}
