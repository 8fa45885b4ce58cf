//! Replaced limits that still bind: a window that began before a change holds no more than the loosest of the limits of its time allows, and
//! not what each of them allows in its part of the window.
//!
//! Pure. Calendars have no part in it: each is kept for its own time.

use super::{
    Former, Key, Limit, Per,
    past::{CHANGE_OVERLAP, names},
    state::SECOND,
};
use crate::clock::{Nanos, nanos};

const DAY: Nanos = 86_400 * SECOND;

/// The limits of a pool, and the replaced ones that still bind.
#[derive(Debug, Clone, Default)]
pub(super) struct Enforced {
    /// The limits in force.
    pub(super) own: Vec<Limit>,
    outgoing: Vec<Limit>,
    /// The first of the outgoing ones binds until then.
    until: Option<Nanos>,
}

impl Enforced {
    pub(super) fn new(own: Vec<Limit>, formers: &[Former<Nanos>], now: Nanos) -> Enforced {
        let mut taken = names(&own);
        let (mut outgoing, mut until): (Vec<Limit>, Option<Nanos>) = (Vec::new(), None);
        let mut newer: Vec<&[Limit]> = vec![&own];
        for former in formers {
            for (limit, name) in former.limits.iter().zip(names(&former.limits)) {
                let Per::Rolling(period) = limit.per else { continue };
                let ends = former
                    .until
                    .saturating_add(CHANGE_OVERLAP)
                    .saturating_add(nanos(period.saturating_add(limit.guard)));
                let most = newer.iter().map(|limits| most_in(limits, limit.key, nanos(period))).max();
                let calls = most.unwrap_or(u64::MAX).max(limit.calls);
                if ends > now && calls < u64::MAX && !taken.contains(&name) {
                    outgoing.push(Limit { calls, ..limit.clone() });
                    taken.push(name);
                    until = Some(until.map_or(ends, |first| first.min(ends)));
                }
            }
            newer.push(&former.limits);
        }
        Enforced { own, outgoing, until }
    }

    /// All of them, those in force first.
    pub(super) fn all(&self) -> Vec<Limit> {
        self.own.iter().chain(&self.outgoing).cloned().collect()
    }

    /// Whether one of the outgoing limits does not bind any more.
    pub(super) fn is_over(&self, now: Nanos) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// The most calls, of all or of one tenant, that the limits allow in any window of this length.
fn most_in(limits: &[Limit], of: Key, window: Nanos) -> u64 {
    let bounds = limits.iter().filter(|limit| limit.key == Key::Vendor || of == Key::Tenant).map(|limit| {
        let periods = match &limit.per {
            Per::Rolling(period) => window.unsigned_abs().div_ceil(nanos(*period).unsigned_abs().max(1)),
            Per::Day(_) => (window / DAY).unsigned_abs() + 2,
            Per::Month(_) => (window / (28 * DAY)).unsigned_abs() + 2,
        };
        limit.calls.saturating_mul(periods)
    });
    bounds.min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::Shape;

    fn limit(calls: u64, ms: u64) -> Limit {
        let per = Per::Rolling(Duration::from_millis(ms));
        let id = format!("{calls}/{ms}ms").into();
        Limit { id, calls, per, shape: Shape::Window, guard: Duration::from_millis(5), key: Key::Vendor }
    }

    #[test]
    fn a_replaced_limit_binds_for_its_period_with_what_the_loosest_of_its_time_allows() {
        let until = 10 * SECOND;
        let formers = |calls| vec![Former { limits: vec![limit(calls, 4_484)], until }];
        let of = |calls, now| Enforced::new(vec![limit(2, 2_242)], &formers(calls), now).all();
        assert_eq!(of(5, until)[1].calls, 5);
        assert_eq!(of(3, until)[1].calls, 4, "the new one allows twice 2");
        assert_eq!(of(5, until + 7 * SECOND).len(), 1, "no window that began before is left");
    }

    #[test]
    fn a_limit_of_which_only_n_changes_is_not_replaced() {
        let formers = [Former { limits: vec![limit(5, 4_484)], until: 10 * SECOND }];
        let enforced = Enforced::new(vec![limit(3, 4_484)], &formers, 10 * SECOND);
        assert_eq!((enforced.all().len(), enforced.is_over(Nanos::MAX)), (1, false));
    }

    #[test]
    fn nothing_outlasts_a_change_to_no_limits_at_all() {
        let formers = [Former { limits: vec![limit(5, 4_484)], until: 10 * SECOND }];
        assert!(Enforced::new(Vec::new(), &formers, 10 * SECOND).all().is_empty());
    }
}
