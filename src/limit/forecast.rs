//! When could the n-th next call of a pool go? From what its limits have used now, in closed form, so that n may be large.
//!
//! Pure, and only a forecast: it assumes that every permit is used as soon as it is available, by one vendor of the pool.

use super::{
    Limit, Per, Shape, Usage,
    calendar::period_at,
    rule::{Count, Method},
};
use crate::clock::{Nanos, nanos};

/// Calendar periods that are looked up one by one; all later ones are assumed to be as long as the last of them.
const LOOKED_UP: u64 = 400;

/// When the n-th call from now is expected, counted from 1, if the first may go at `from`.
pub fn expected(usage: &[Usage], from: Nanos, n: u64) -> Nanos {
    let pace = usage.iter().filter_map(|usage| pace(&usage.limit)).max().unwrap_or(0);
    usage.iter().map(|usage| nth(usage, from, n, pace)).max().unwrap_or(from)
}

/// The n-th call cannot go before this, however the calls so far were spread.
pub fn soonest(usage: &[Usage], from: Nanos, n: u64) -> Nanos {
    let bound = |usage: &Usage| match usage.limit.shape {
        Shape::Window => from.max(usage.next_at).saturating_add(times(window(&usage.limit), (n - 1) / calls(usage))),
        // As if the whole burst were left.
        Shape::Bucket { .. } => nth(&Usage { used: 0, ..usage.clone() }, from, n, 0),
        Shape::Paced | Shape::Calendar => nth(usage, from, n, 0),
    };
    usage.iter().map(bound).max().unwrap_or(from)
}

/// When one limit by itself allows the n-th call, if the others make calls come `pace` apart.
fn nth(usage: &Usage, from: Nanos, n: u64, pace: Nanos) -> Nanos {
    let (limit, first) = (&usage.limit, from.max(usage.next_at));
    match Count::new(limit).method() {
        Method::Gcra { every, burst } => {
            // What is left of the burst goes at once. By the time of `from` some of it may have come back.
            let left = if usage.next_at > from { 1 } else { burst.saturating_sub(usage.used).max(1) };
            first.saturating_add(times(every, n.saturating_sub(left)))
        }
        Method::Exact { .. } | Method::Parts { .. } => {
            // Windows of N calls follow each other, from the one that is under way on. When that began is known once it is used up.
            let (window, all) = (window(limit), calls(usage));
            let used = usage.used.min(all);
            let begun = if used == all && usage.next_at > from {
                usage.next_at.saturating_sub(window)
            } else {
                from.saturating_sub(times(pace, used).min(window))
            };
            let place = used.saturating_add(n - 1);
            let within = times(pace, place % all).min(window);
            begun.saturating_add(times(window, place / all)).saturating_add(within).max(first)
        }
        Method::Calendar => {
            let left = calls(usage).saturating_sub(usage.used);
            if n <= left {
                return first;
            }
            // Where nothing is left the first call is that of the next period.
            let after = n - left - 1;
            let start = if left == 0 && usage.next_at > from { first } else { period_at(&limit.per, first).1 };
            first.max(later_period(&limit.per, start, after / calls(usage)))
        }
    }
}

/// When the period begins that comes so many periods after the one of `at`; `at` itself for none.
fn later_period(per: &Per, at: Nanos, periods: u64) -> Nanos {
    let (mut at, mut length) = (at, 0);
    for _ in 0..periods.min(LOOKED_UP) {
        let (start, end) = period_at(per, at);
        (at, length) = (end, end.saturating_sub(start));
    }
    at.saturating_add(times(length, periods.saturating_sub(LOOKED_UP)))
}

/// E, of a limit under which calls come evenly sooner or later.
fn pace(limit: &Limit) -> Option<Nanos> {
    match Count::new(limit).method() {
        Method::Gcra { every, .. } => Some(every),
        _ => None,
    }
}

fn window(limit: &Limit) -> Nanos {
    match &limit.per {
        Per::Rolling(period) => nanos(*period).saturating_add(nanos(limit.guard)),
        Per::Day(_) | Per::Month(_) => 0,
    }
}

fn calls(usage: &Usage) -> u64 {
    usage.limit.calls.max(1)
}

fn times(every: Nanos, n: u64) -> Nanos {
    every.saturating_mul(Nanos::try_from(n).unwrap_or(Nanos::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::{Key, rule};

    const SECOND: Nanos = 1_000_000_000;
    const START: Nanos = 1_768_464_000 * SECOND;

    fn limit(calls: u64, per: Per, shape: Shape) -> Limit {
        Limit { id: "l".into(), calls, per, shape, guard: Duration::from_millis(10), key: Key::Vendor }
    }

    fn rolling(secs: u64) -> Per {
        Per::Rolling(Duration::from_secs(secs))
    }

    /// After `made` calls as soon as they may go, and a pause: the forecast for the n-th call beside what the arithmetic gives it.
    fn compare(limits: &[Limit], made: usize, pause: Nanos, n: u64) -> (Nanos, Nanos, Nanos) {
        let mut counts: Vec<Count> = limits.iter().map(Count::new).collect();
        let mut at = START;
        let mut call = |counts: &mut Vec<Count>, from: Nanos| {
            at = rule::slot(counts, at.max(from)).0;
            counts.iter_mut().for_each(|count| count.charge(at));
            at
        };
        for _ in 0..made {
            call(&mut counts, START);
        }
        let now = call(&mut counts, START) + pause;
        let usage: Vec<Usage> = std::iter::zip(limits, &counts)
            .map(|(limit, count)| Usage { limit: limit.clone(), used: count.used(now), next_at: count.earliest(now) })
            .collect();
        let mut real = now;
        for _ in 0..n {
            real = call(&mut counts, now);
        }
        (expected(&usage, now, n) - now, soonest(&usage, now, n) - now, real - now)
    }

    #[test]
    fn the_forecast_is_within_a_tenth_and_nothing_goes_sooner_than_the_soonest() {
        let day = Per::Day(jiff::tz::TimeZone::UTC);
        let sets = [
            vec![limit(50, rolling(1), Shape::Paced)],
            vec![limit(50, rolling(1), Shape::Bucket { burst: 10 })],
            vec![limit(100, rolling(60), Shape::Window)],
            vec![limit(50, rolling(1), Shape::Paced), limit(2000, rolling(60), Shape::Window)],
            vec![limit(50, rolling(1), Shape::Paced), limit(20_000, rolling(3600), Shape::Window)],
            vec![limit(1, rolling(1), Shape::Paced), limit(3000, day, Shape::Calendar)],
        ];
        for limits in sets {
            for made in [0, 7, 60, 1999, 2500] {
                for pause in [0, SECOND / 3, 20 * SECOND] {
                    for n in [1, 10, 500, 9000] {
                        let (expected, soonest, real) = compare(&limits, made, pause, n);
                        let what =
                            format!("{made} made, {pause} ns, the {n}th of {limits:?}: {expected}, {soonest}, {real}");
                        assert!(soonest <= real, "{what}");
                        // Where one window is under way the forecast cannot know how its calls were spread.
                        let longest = limits.iter().map(window).max().unwrap_or(0);
                        assert!(expected.abs_diff(real) <= real.unsigned_abs() / 10 + longest.unsigned_abs(), "{what}");
                        if limits.len() == 1 && limits[0].shape == Shape::Paced {
                            assert_eq!(expected, real, "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_limits_everything_goes_at_once() {
        assert_eq!(expected(&[], START, 1_000_000), START);
    }
}
