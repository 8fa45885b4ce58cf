//! Were the limits kept? The worst window of a pool's calls, limit by limit, and the calls that were too many.
//!
//! Pure: calls come in the order of their times, no clock is read, nothing is stored. A window is half open: two calls that are exactly
//! one period apart are in no window together.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::block::Call;
use crate::limit::{Key, Limit, Per, calendar::period_at};

/// Calls of one rolling window that are remembered; of a limit with more than that, windows up to this are judged.
const MOST_REMEMBERED: usize = 2_000_000;
/// Tenants of one limit that are looked at together; those without a call in the period are forgotten then.
const MANY_TENANTS: usize = 10_000;

/// What calls are held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// How people name it.
    pub id: Arc<str>,
    /// The most calls in one period; nothing when any number is allowed.
    pub calls: Option<u64>,
    pub per: Per,
    pub key: Key,
}

impl Rule {
    pub fn of(limit: &Limit) -> Rule {
        Rule { id: limit.id.clone(), calls: Some(limit.calls), per: limit.per.clone(), key: limit.key }
    }

    /// How far back a call may matter, in microseconds.
    pub fn memory(&self) -> i64 {
        match self.per {
            Per::Rolling(period) => micros(period),
            Per::Day(_) => micros(Duration::from_secs(25 * 3600)),
            Per::Month(_) => micros(Duration::from_secs(32 * 86_400)),
        }
    }
}

/// What was found about one rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Finding {
    /// The most calls that any window held.
    pub worst: u64,
    /// When the first such window began.
    pub worst_at: Option<i64>,
    /// Calls that were one too many in some window.
    pub breaches: u64,
}

/// One rule, and the calls that it has seen.
pub struct Judge {
    rule: Rule,
    /// Until then more calls are allowed than the rule says: it was stricter since, and a window may have begun before.
    allowed_before: Option<(u64, i64)>,
    /// By tenant; under the empty name for a limit of the whole pool.
    seen: HashMap<Arc<str>, Seen>,
    nobody: Arc<str>,
    forget_at: usize,
    finding: Finding,
}

/// The calls of the pool, or of a tenant, that still matter.
enum Seen {
    Window(VecDeque<i64>),
    /// The calendar period [start, end) and its calls so far.
    Period {
        start: i64,
        end: i64,
        calls: u64,
    },
}

impl Judge {
    pub fn new(rule: Rule) -> Judge {
        let (seen, nobody) = (HashMap::new(), "".into());
        Judge { rule, allowed_before: None, seen, nobody, forget_at: MANY_TENANTS, finding: Finding::default() }
    }

    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    pub fn finding(&self) -> Finding {
        self.finding
    }

    /// Forgets what was found, and not what was seen: what follows is a finding of its own.
    pub fn begin_anew(&mut self) {
        self.finding = Finding::default();
    }

    /// Windows that end before `until` may hold this many.
    pub fn allow_before(&mut self, calls: u64, until: i64) {
        self.allowed_before = Some((calls, until));
    }

    /// Looks at the next call; says whether it was one too many.
    pub fn see(&mut self, call: &Call) -> bool {
        let whose = if self.rule.key == Key::Tenant { call.tenant.clone() } else { self.nobody.clone() };
        if self.seen.len() >= self.forget_at && !self.seen.contains_key(&whose) {
            let oldest = call.at.saturating_sub(self.rule.memory());
            self.seen.retain(|_, seen| seen.reaches(oldest));
            self.forget_at = (self.seen.len() * 2).max(MANY_TENANTS);
        }
        let per = &self.rule.per;
        let (begun, calls) = self.seen.entry(whose).or_insert_with(|| Seen::nothing(per)).add(per, call.at);
        if calls > self.finding.worst {
            (self.finding.worst, self.finding.worst_at) = (calls, Some(begun));
        }
        let before = self.allowed_before.filter(|(_, until)| call.at < *until).map_or(0, |(calls, _)| calls);
        let is_breach = self.rule.calls.is_some_and(|most| calls > most.max(before));
        self.finding.breaches += u64::from(is_breach);
        is_breach
    }
}

impl Seen {
    fn nothing(per: &Per) -> Seen {
        match per {
            Per::Rolling(_) => Seen::Window(VecDeque::new()),
            _ => Seen::Period { start: 0, end: i64::MIN, calls: 0 },
        }
    }

    /// Takes a call in; says when the window that ends with it began, and how many calls it holds.
    fn add(&mut self, per: &Per, at: i64) -> (i64, u64) {
        match self {
            Seen::Window(calls) => {
                let Per::Rolling(period) = per else { return (at, 1) };
                let before = at.saturating_sub(micros(*period));
                while calls.front().is_some_and(|first| *first <= before) || calls.len() >= MOST_REMEMBERED {
                    calls.pop_front();
                }
                calls.push_back(at);
                (calls.front().copied().unwrap_or(at), calls.len() as u64)
            }
            Seen::Period { start, end, calls } => {
                if at >= *end {
                    let (from, to) = period_at(per, at.saturating_mul(1000));
                    (*start, *end, *calls) = (from.div_euclid(1000), to.div_euclid(1000), 0);
                }
                *calls += 1;
                (*start, *calls)
            }
        }
    }

    fn reaches(&self, oldest: i64) -> bool {
        match self {
            Seen::Window(calls) => calls.back().is_some_and(|last| *last > oldest),
            Seen::Period { end, .. } => *end > oldest,
        }
    }
}

/// The most calls that limits of the whole pool leave to any window of this length; nothing when they do not say.
pub fn most_in(window: Duration, limits: &[Limit]) -> Option<u64> {
    let whole = |period: Duration| {
        let periods = window.as_nanos().div_ceil(period.as_nanos().max(1));
        u64::try_from(periods).unwrap_or(u64::MAX)
    };
    let most = |limit: &Limit| {
        // A window that is no longer than a day can lie in two of them, and the shortest day has 23 hours.
        let periods = match limit.per {
            Per::Rolling(period) => whole(period),
            Per::Day(_) => whole(Duration::from_secs(23 * 3600)).saturating_add(1),
            Per::Month(_) => whole(Duration::from_secs(28 * 86_400 - 3600)).saturating_add(1),
        };
        limit.calls.saturating_mul(periods)
    };
    limits.iter().filter(|limit| limit.key == Key::Vendor).map(most).min()
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn judge(calls: u64, per: Per, key: Key) -> Judge {
        Judge::new(Rule { id: "a".into(), calls: Some(calls), per, key })
    }

    fn call(at: i64, tenant: &str) -> Call {
        Call { at, vendor: "v".into(), tenant: tenant.into() }
    }

    #[test]
    fn calls_exactly_one_period_apart_share_no_window() {
        for (apart, breaches) in [(SECOND, 0), (SECOND - 1, 1)] {
            let mut judge = judge(1, Per::Rolling(Duration::from_secs(1)), Key::Vendor);
            judge.see(&call(5, "a"));
            assert_eq!(judge.see(&call(5 + apart, "b")), breaches == 1);
            let wanted = Finding { worst: breaches + 1, worst_at: Some(5), breaches };
            assert_eq!(judge.finding(), wanted);
        }
    }

    #[test]
    fn tenants_are_counted_each_by_itself() {
        let mut judge = judge(2, Per::Rolling(Duration::from_secs(1)), Key::Tenant);
        let breached = ["a", "b", "a", "b", "a"].map(|tenant| judge.see(&call(0, tenant)));
        assert_eq!(breached, [false, false, false, false, true]);
        assert_eq!(judge.finding().worst, 3);
    }

    #[test]
    fn a_calendar_day_begins_at_midnight_in_its_zone() {
        let berlin = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
        let midnight = (1_768_464_000 + 15 * 3600) * SECOND; // 23:00 UTC
        let mut judge = judge(2, Per::Day(berlin), Key::Vendor);
        let breached = [-2, -1, 0, 1, 2].map(|at| judge.see(&call(midnight + at, "a")));
        assert_eq!(breached, [false, false, false, false, true]);
    }

    #[test]
    fn a_limit_that_became_stricter_judges_only_windows_that_began_after() {
        let mut judge = judge(1, Per::Rolling(Duration::from_secs(1)), Key::Vendor);
        judge.allow_before(2, 2 * SECOND);
        let breached = [0, 1, 2 * SECOND, 2 * SECOND + 1].map(|at| judge.see(&call(at, "a")));
        assert_eq!(breached, [false, false, false, true]);
    }

    #[test]
    fn a_million_calls_at_the_limit_are_no_breach() {
        let calls: Vec<Call> = (0..1_000_000).map(|n| call(n * 50, "a")).collect();
        let mut judge = judge(20_000, Per::Rolling(Duration::from_secs(1)), Key::Vendor);
        for call in &calls {
            judge.see(call);
        }
        assert_eq!(judge.finding(), Finding { worst: 20_000, worst_at: Some(0), breaches: 0 });
    }
}
