//! Were the limits kept? For every limit of a pool: the window with the most calls, and the number of breaches.
//!
//! Pure: it gets the calls in the order of their times, reads no clock and stores nothing. A window is half open: two calls exactly one period
//! apart are never in the same window. In a window that began before limits changed, the looser of the old and the new limits applies.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    block::Call,
    history::{Era, History},
};
use crate::limit::{Key, Limit, Per, calendar::period_at};

/// Calls of one rolling window that are remembered at most. Of a larger limit only this many calls of a window are counted.
const MOST_REMEMBERED: usize = 2_000_000;
/// With this many tenants of one limit, those without a call in the last period are forgotten.
const MANY_TENANTS: usize = 10_000;

/// A limit, as calls are compared with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name in the API and the log.
    pub id: Arc<str>,
    /// The most calls in one period.
    pub calls: u64,
    pub per: Per,
    pub key: Key,
}

impl Rule {
    fn of(limit: &Limit) -> Rule {
        Rule { id: limit.id.clone(), calls: limit.calls, per: limit.per.clone(), key: limit.key }
    }
}

/// The rules of a pool, by the name of what they count. Of two that count the same, the stricter.
pub fn rules(limits: &[Limit]) -> BTreeMap<String, Rule> {
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    for limit in limits {
        let rule = Rule::of(limit);
        let kept = rules.entry(limit.count()).or_insert_with(|| rule.clone());
        if rule.calls < kept.calls {
            *kept = rule;
        }
    }
    rules
}

/// What was found about one rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Finding {
    /// The most calls that were found in one window.
    pub worst: u64,
    /// When the first such window began.
    pub worst_at: Option<i64>,
    /// Calls that were one too many in a window.
    pub breaches: u64,
}

/// Compares the calls of a pool with the limits that were in force when they were made. An era is a time in which they did not change.
pub struct Judge {
    /// Beginning and end of each era.
    eras: Vec<(i64, i64)>,
    cases: Vec<Case>,
}

/// One rule: what was allowed in each era, and what was found.
struct Case {
    /// The name of what it counts.
    count: String,
    /// Its name when it was last in force.
    id: Arc<str>,
    windows: Windows,
    allowances: Vec<Allowance>,
    finding: Finding,
}

/// What the limits of one era allow in a window of a rule.
struct Allowance {
    /// Whether the rule itself was one of them.
    is_in_force: bool,
    /// The most calls in a window; `None` if they allow any number.
    most: Option<u64>,
}

impl Judge {
    /// For all limits in force, now or earlier.
    pub fn of_limits(history: &History) -> Judge {
        let eras = history.eras();
        let all: BTreeMap<&String, &Rule> = eras.iter().filter_map(|era| era.rules.as_ref()).flatten().collect();
        let case = |(count, rule): (&String, &Rule)| {
            let allowance = |era: &Era| Allowance { is_in_force: era.has(count), most: era.most(count, rule) };
            Case::new(count.clone(), rule, eras.iter().map(allowance).collect())
        };
        Judge { cases: all.into_iter().map(case).collect(), eras: spans(&eras) }
    }

    /// For windows of one length over the whole pool.
    pub fn of_window(history: &History, window: Duration) -> Judge {
        let eras = history.eras();
        let rule = Rule { id: "".into(), calls: u64::MAX, per: Per::Rolling(window), key: Key::Vendor };
        let allowance = |era: &Era| Allowance {
            is_in_force: true,
            most: era.rules.as_ref().and_then(|rules| most_in(&rule, rules)),
        };
        Judge { cases: vec![Case::new(String::new(), &rule, eras.iter().map(allowance).collect())], eras: spans(&eras) }
    }

    /// How far back a call may matter, in microseconds.
    pub fn memory(&self) -> i64 {
        self.cases.iter().map(|case| memory(&case.windows.per)).max().unwrap_or(0)
    }

    /// For each rule: the name of what it counts, its id, and what was found.
    pub fn findings(&self) -> impl Iterator<Item = (&str, &Arc<str>, Finding)> {
        self.cases.iter().map(|case| (&*case.count, &case.id, case.finding))
    }

    /// What was found about the rule with this count.
    pub fn finding(&self, count: &str) -> Finding {
        self.cases.iter().find(|case| case.count == count).map_or_else(Finding::default, |case| case.finding)
    }

    /// The most calls in a window that any rule in force now allows.
    pub fn largest(&self) -> u64 {
        let now = |case: &Case| case.allowances.last().filter(|now| now.is_in_force)?.most;
        self.cases.iter().filter_map(now).max().unwrap_or(0)
    }

    /// The most calls that are allowed now in a window of the only rule (see [`Judge::of_window`]).
    pub fn most_now(&self) -> Option<u64> {
        self.cases.first()?.allowances.last()?.most
    }

    /// Starts new findings; the calls so far still count in windows.
    pub fn begin_anew(&mut self) {
        self.cases.iter_mut().for_each(|case| case.finding = Finding::default());
    }

    /// Judges the next call; returns how many rules it broke.
    pub fn see(&mut self, call: &Call) -> u64 {
        let mut breaches = 0;
        for case in &mut self.cases {
            let (began, calls) = case.windows.add(call);
            if calls > case.finding.worst {
                (case.finding.worst, case.finding.worst_at) = (calls, Some(began));
            }
            if case.is_breach(&self.eras, call, began, calls) {
                case.finding.breaches += 1;
                breaches += 1;
            }
        }
        breaches
    }
}

fn spans(eras: &[Era]) -> Vec<(i64, i64)> {
    eras.iter().map(|era| (era.from, era.until)).collect()
}

impl Case {
    fn new(count: String, rule: &Rule, allowances: Vec<Allowance>) -> Case {
        let (id, windows) = (rule.id.clone(), Windows::new(rule.per.clone(), rule.key));
        Case { count, id, windows, allowances, finding: Finding::default() }
    }

    /// Whether the window that ends with this call, or a later part of it, has more calls than every set of limits in force during it allows.
    fn is_breach(&self, eras: &[(i64, i64)], call: &Call, began: i64, calls: u64) -> bool {
        let exceeds = |since: i64, calls: u64| {
            let during =
                eras.iter().zip(&self.allowances).filter(|((from, until), _)| *from <= call.at && *until > since);
            during.map(|(_, allowance)| allowance.most).all(|most| most.is_some_and(|most| calls > most))
        };
        let is_now = |((from, until), allowance): (&(i64, i64), &Allowance)| {
            allowance.is_in_force && (*from..*until).contains(&call.at)
        };
        if !eras.iter().zip(&self.allowances).any(is_now) {
            return false;
        }
        if eras.first().is_some_and(|(from, _)| began >= *from) && exceeds(began, calls) {
            return true;
        }
        // From the end of an era on, the limits of that era no longer excuse a call.
        let left = eras.iter().map(|(_, until)| *until).filter(|until| *until > began && *until <= call.at);
        left.into_iter().any(|since| exceeds(since, self.windows.since(call, since)))
    }
}

impl Era {
    fn has(&self, count: &str) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.contains_key(count))
    }

    /// The most calls that the era's limits allow in a window of a rule; `None` if they allow any number.
    fn most(&self, count: &str, rule: &Rule) -> Option<u64> {
        let rules = self.rules.as_ref()?;
        rules.get(count).map_or_else(|| most_in(rule, rules), |own| Some(own.calls))
    }
}

/// The most calls that these limits allow in a window of the rule's length; `None` if they allow any number.
fn most_in(rule: &Rule, limits: &BTreeMap<String, Rule>) -> Option<u64> {
    let window = memory(&rule.per);
    let whole = |period: Duration| window.unsigned_abs().div_ceil(micros(period).unsigned_abs().max(1));
    let most = |limit: &Rule| {
        // A window of up to a day can lie in two days, and the shortest day has 23 hours. Months likewise.
        let periods = match limit.per {
            Per::Rolling(period) => whole(period),
            Per::Day(_) => whole(Duration::from_secs(23 * 3600)).saturating_add(1),
            Per::Month(_) => whole(Duration::from_secs(28 * 86_400 - 3600)).saturating_add(1),
        };
        limit.calls.saturating_mul(periods)
    };
    // A limit for each tenant does not bound all tenants together.
    limits.values().filter(|limit| limit.key == Key::Vendor || rule.key == Key::Tenant).map(most).min()
}

/// The calls that still matter to windows of one period.
struct Windows {
    per: Per,
    key: Key,
    /// By tenant, or under `whole_pool`.
    seen: HashMap<Arc<str>, Seen>,
    /// The empty name, which no tenant has.
    whole_pool: Arc<str>,
    forget_at: usize,
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

impl Windows {
    fn new(per: Per, key: Key) -> Windows {
        Windows { per, key, seen: HashMap::new(), whole_pool: "".into(), forget_at: MANY_TENANTS }
    }

    /// Adds a call; returns when the window that ends with it began, and how many calls that has.
    fn add(&mut self, call: &Call) -> (i64, u64) {
        let whose = if self.key == Key::Tenant { call.tenant.clone() } else { self.whole_pool.clone() };
        if self.seen.len() >= self.forget_at && !self.seen.contains_key(&whose) {
            let oldest = call.at.saturating_sub(memory(&self.per));
            self.seen.retain(|_, seen| seen.matters_after(oldest));
            self.forget_at = (self.seen.len() * 2).max(MANY_TENANTS);
        }
        let per = &self.per;
        self.seen.entry(whose).or_insert_with(|| Seen::nothing(per)).add(per, call.at)
    }

    /// Of the window that ends with this call: how many calls were made at or after `from`.
    fn since(&self, call: &Call, from: i64) -> u64 {
        let whose = if self.key == Key::Tenant { &call.tenant } else { &self.whole_pool };
        match self.seen.get(whose) {
            Some(Seen::Window(calls)) => (calls.len() - calls.partition_point(|at| *at < from)) as u64,
            // A part of a calendar period is no window.
            Some(Seen::Period { .. }) | None => 0,
        }
    }
}

impl Seen {
    fn nothing(per: &Per) -> Seen {
        match per {
            Per::Rolling(_) => Seen::Window(VecDeque::new()),
            _ => Seen::Period { start: 0, end: i64::MIN, calls: 0 },
        }
    }

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

    fn matters_after(&self, oldest: i64) -> bool {
        match self {
            Seen::Window(calls) => calls.back().is_some_and(|last| *last > oldest),
            Seen::Period { end, .. } => *end > oldest,
        }
    }
}

/// How far back a call may matter, in microseconds.
fn memory(per: &Per) -> i64 {
    match per {
        Per::Rolling(period) => micros(*period),
        Per::Day(_) => micros(Duration::from_secs(25 * 3600)),
        Per::Month(_) => micros(Duration::from_secs(32 * 86_400)),
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_force::Change;

    const SECOND: i64 = 1_000_000;

    /// A judge of these limits by the time they came into force, in seconds; the first are from before all calls.
    fn judge(changes: &[(i64, &str)]) -> Judge {
        let change = |(n, (at, limits)): (usize, &(i64, &str))| Change {
            at: at * SECOND * 1000,
            is_first: n == 0,
            version: 0,
            limits: (*limits).to_owned(),
        };
        let mut history = History::default();
        history.follow(&changes.iter().enumerate().map(change).collect::<Vec<_>>(), |at| at / 1000, i64::MAX, None);
        Judge::of_limits(&history)
    }

    fn call(at: i64, tenant: &str) -> Call {
        Call { at, vendor: "v".into(), tenant: tenant.into() }
    }

    fn only(judge: &Judge) -> Finding {
        judge.findings().next().map(|(_, _, finding)| finding).unwrap()
    }

    #[test]
    fn calls_exactly_one_period_apart_share_no_window() {
        for (apart, breaches) in [(SECOND, 0), (SECOND - 1, 1)] {
            let mut judge = judge(&[(0, r#"["1/s"]"#)]);
            judge.see(&call(5, "a"));
            assert_eq!(judge.see(&call(5 + apart, "b")), breaches);
            let wanted = Finding { worst: breaches + 1, worst_at: Some(5), breaches };
            assert_eq!(only(&judge), wanted);
        }
    }

    #[test]
    fn tenants_are_counted_separately() {
        let mut judge = judge(&[(0, r#"[{"calls": 2, "per": "1s", "key": "tenant"}]"#)]);
        let breached = ["a", "b", "a", "b", "a"].map(|tenant| judge.see(&call(0, tenant)));
        assert_eq!(breached, [0, 0, 0, 0, 1]);
        assert_eq!(only(&judge).worst, 3);
    }

    #[test]
    fn a_calendar_day_begins_at_midnight_in_its_zone() {
        let midnight = (1_768_464_000 + 15 * 3600) * SECOND; // 23:00 UTC
        let mut judge = judge(&[(0, r#"[{"calls": 2, "per": "day", "tz": "Europe/Berlin"}]"#)]);
        let breached = [-2, -1, 0, 1, 2].map(|at| judge.see(&call(midnight + at, "a")));
        assert_eq!(breached, [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_window_from_before_a_change_is_judged_by_the_looser_limit_and_a_later_one_by_the_new() {
        // Two seconds after the change no process uses the old limits any more.
        let mut judge = judge(&[(0, r#"["9/10s"]"#), (100, r#"["3/10s"]"#)]);
        let before = (0..6).map(|n| judge.see(&call(99 * SECOND + n, "a"))).sum::<u64>();
        let after: Vec<u64> = (0..5).map(|n| judge.see(&call(103 * SECOND + n, "a"))).collect();
        assert_eq!((before, after), (0, vec![0, 0, 0, 1, 1]));
    }

    #[test]
    fn a_window_of_another_period_may_hold_what_the_limits_before_allow() {
        let mut judge = judge(&[(0, r#"["10/s", "25/2s"]"#), (100, r#"["6/3s"]"#)]);
        let times = (0..32).map(|n| 100 * SECOND - 2 * SECOND + n * 100_000 / 32 * 30);
        let breaches: u64 = times.map(|at| judge.see(&call(at, "a"))).sum();
        assert!(breaches > 0, "32 in three seconds are more than ten a second");
        assert_eq!(judge.finding("3s/vendor").breaches, 2);
    }

    #[test]
    fn limits_that_nobody_knows_allow_anything() {
        let mut history = History::default();
        let set = |at, version| Change { at, is_first: at == 0, version, limits: r#"["1/s"]"#.to_owned() };
        let changes = [set(0, 0), set(50_000_000_000, 2)];
        history.follow(&changes, |at| at / 1000, i64::MAX, None);
        let mut judge = Judge::of_limits(&history);
        let breaches = [40, 50, 60].map(|at| judge.see(&call(at * SECOND, "a")) + judge.see(&call(at * SECOND, "a")));
        assert_eq!(breaches, [1, 0, 1]);
    }

    #[test]
    fn a_million_calls_at_the_limit_are_no_breach() {
        let calls: Vec<Call> = (0..1_000_000).map(|n| call(n * 50, "a")).collect();
        let mut judge = judge(&[(0, r#"["20000/s"]"#)]);
        for call in &calls {
            judge.see(call);
        }
        assert_eq!(only(&judge), Finding { worst: 20_000, worst_at: Some(0), breaches: 0 });
    }
}
