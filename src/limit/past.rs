//! What a limit that is new or was changed begins with: the calls before it. Recent ones are on record. Of older ones the limits that were in
//! force then ("former limits") bound how many there can have been.
//!
//! Pure. It never counts too few: no call counts as earlier than it was made, and all calls that may have been made count. So a window that
//! began before the change has at most the calls that the looser of the two limits allows, and a later one those that the new limit allows.

use std::collections::HashMap;

use super::{
    Key, Limit, Per,
    calendar::period_at,
    late,
    ledger::{SUB_WINDOWS, count_name, history_names},
    local::lateness,
    rule::{Count, Method},
    state::{DURABLE_FROM, MS, OnTimeline, SECOND},
};
use crate::{
    book::Spend,
    clock::{Clock, Nanos, Time, nanos},
};

/// Entries at most for the calls of one former limit; beyond that several calls share an entry.
const MOST_ENTRIES: i64 = 4_096;

/// How many calendar periods it goes back at most.
const MOST_PERIODS: usize = 64;

/// How many changes of the limits it goes back at most.
const MOST_FORMERS: usize = 8;

/// How long after a change a call under the former limits may still be made: permits are dated up to half a second ahead, and another process
/// may learn of the change a second later.
pub(super) const CHANGE_OVERLAP: Nanos = 1_500 * MS;

/// Limits of a pool that were in force until they were changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Former<At = Time> {
    pub limits: Vec<Limit>,
    /// When they were changed: in wall time (`Time`) or on the limiter's timeline (`Nanos`).
    pub until: At,
}

/// From one time to another, on the timeline.
type Span = (Nanos, Nanos);

/// Calls by time, oldest first: the number at a time counts the calls since the time before it.
pub(super) type Calls = Vec<(Nanos, u64)>;

/// The calls in the book, by count and tenant: for each sub-window its end, on the timeline, and its calls.
#[derive(Default)]
pub(super) struct Rows(HashMap<(String, String), Calls>);

/// What is known of the calls of a pool, or of one tenant.
#[derive(Clone, Copy)]
pub(super) struct Past<'a> {
    /// All calls since `recorded_since`.
    pub(super) recent: &'a [(Nanos, u64)],
    pub(super) recorded_since: Nanos,
    /// The former limits, newest first. Empty if the limits have not changed.
    pub(super) formers: &'a [Former<Nanos>],
    pub(super) rows: &'a Rows,
    /// The tenant whose calls these are; `None` for those of the whole pool.
    pub(super) tenant: Option<&'a str>,
    /// Wall time minus the timeline.
    pub(super) ahead: Nanos,
    /// How much later after its permit's time a call could be made under a former limit than under this one.
    pub(super) late_by: Nanos,
}

impl Rows {
    pub(super) fn new(spends: &[Spend], on_timeline: OnTimeline<'_>) -> Rows {
        let mut rows: HashMap<(String, String), Calls> = HashMap::new();
        for spend in spends.iter().filter(|spend| spend.calls > 0) {
            let end = on_timeline(spend.ends_at);
            rows.entry((spend.count.clone(), spend.tenant.clone())).or_default().push((end, spend.calls));
        }
        Rows(rows)
    }

    /// The tenants that have calls of their own in the book.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|(_, tenant)| &**tenant).filter(|tenant| !tenant.is_empty())
    }

    /// The calls of a limit in the book, from the sub-windows that overlap the span. Each counts as made at the end of its sub-window, or of
    /// the span if that is earlier. `None` for a limit that is not kept in the book.
    fn within(&self, limit: &Limit, tenant: Option<&str>, (from, until): Span) -> Option<Calls> {
        if Count::new(limit).memory().is_some_and(|memory| memory <= DURABLE_FROM) {
            return None;
        }
        let len = match &limit.per {
            Per::Rolling(period) => (nanos(*period) / SUB_WINDOWS).saturating_add(2 * MS),
            Per::Day(_) | Per::Month(_) => 32 * 86_400 * SECOND,
        };
        let owner = if limit.key == Key::Vendor { "" } else { tenant.unwrap_or_default() };
        let rows = self.0.get(&(count_name(limit), owner.to_owned())).into_iter().flatten();
        let rows = rows.filter(|(end, _)| *end > from && end.saturating_sub(len) <= until);
        let mut calls: Calls = rows.map(|(end, calls)| ((*end).min(until), *calls)).collect();
        calls.sort_unstable();
        Some(calls)
    }
}

impl Past<'_> {
    /// Charges these calls to the empty count of a limit of `n` calls.
    pub(super) fn charge(&self, count: &mut Count, n: u64, now: Nanos) {
        let from = count.matters_from(now).saturating_sub(self.late_by);
        let (known_since, mut calls) = self.earlier(from, n);
        if known_since > from {
            count.made(known_since.saturating_add(self.late_by), n);
        }
        calls.extend(self.recent);
        for (at, calls) in calls.into_iter().filter(|(at, _)| *at >= from.max(known_since)) {
            count.made(at.saturating_add(self.late_by), calls);
        }
    }

    /// An upper bound of the calls between `from` and `recorded_since`. Also gives the time before which nothing is known.
    fn earlier(&self, from: Nanos, most: u64) -> (Nanos, Calls) {
        let (mut known_since, mut calls) = (self.recorded_since, Calls::new());
        for (i, former) in self.formers.iter().enumerate() {
            if known_since <= from {
                break;
            }
            let begun = self.formers.get(i + 1).map_or(Nanos::MIN, |older| older.until);
            // Calls around a change may have been allowed by either set of limits, so they count for both.
            let span = (begun.max(from), self.recorded_since.min(former.until.saturating_add(CHANGE_OVERLAP)));
            let bounds = former.limits.iter().filter(|limit| limit.key == Key::Vendor || self.tenant.is_some());
            let bounds = bounds.map(|limit| self.bound(limit, span, most));
            let Some(fewest) = bounds.min_by_key(|calls| calls.iter().map(|(_, n)| *n).fold(0, u64::saturating_add))
            else {
                known_since = span.1;
                break;
            };
            calls.extend(fewest);
            known_since = known_since.min(begun);
        }
        calls.sort_unstable();
        (if self.formers.is_empty() { Nanos::MIN } else { known_since }, calls)
    }

    /// The most calls that a limit can have allowed in a span: those in the book, or else as many as it allows, each as late as it allows.
    fn bound(&self, limit: &Limit, span: Span, most: u64) -> Calls {
        if span.0 > span.1 {
            return Calls::new();
        }
        let (every, each, newest) = match Count::new(limit).method() {
            Method::Calendar => return self.bound_by_calendar(limit, span),
            Method::Gcra { every, burst } => (every, 1, burst),
            Method::Exact { window, .. } | Method::Parts { window, .. } => (window, limit.calls, limit.calls),
        };
        let in_book = self.rows.within(limit, self.tenant, span);
        in_book.unwrap_or_else(|| evenly(span, every, each, newest, most))
    }

    /// Of the last period of the span the book has the calls. Every earlier one counts as used up at its end.
    fn bound_by_calendar(&self, limit: &Limit, (from, until): Span) -> Calls {
        let start_of = |at: Nanos| period_at(&limit.per, at.saturating_add(self.ahead)).0.saturating_sub(self.ahead);
        let mut start = start_of(until);
        let mut calls = self.rows.within(limit, self.tenant, (start, until)).unwrap_or_default();
        while start > from && calls.len() < MOST_PERIODS {
            calls.insert(0, (start, limit.calls));
            start = start_of(start.saturating_sub(1));
        }
        calls
    }
}

/// `newest` calls at the end of a span, and `each` more at every interval `every` before it, until there are `wanted` or the span is full.
fn evenly((from, until): Span, every: Nanos, each: u64, newest: u64, wanted: u64) -> Calls {
    let wanted = i64::try_from(wanted.div_ceil(each)).unwrap_or(i64::MAX);
    let times = (until.saturating_sub(from) / every).min(wanted);
    let together = (times / MOST_ENTRIES).saturating_add(1);
    let mut calls = vec![(until, newest)];
    let mut k = 1;
    while k <= times {
        // Calls that share an entry all count as made at the time of the latest.
        let n = together.min(times - k + 1);
        calls.push((until.saturating_sub(every.saturating_mul(k)), each.saturating_mul(n.unsigned_abs())));
        k += n;
    }
    calls.reverse();
    calls
}

/// The names of the limits' histories. A new limit with the same name as a former one goes on with its history.
pub(super) fn names(limits: &[Limit]) -> Vec<String> {
    let counts: Vec<Count> = limits.iter().map(Count::new).collect();
    history_names(limits.iter().zip(&counts))
}

/// The former limits from the time in which a limit of this name has no history. None if it was always in force, or if it was added and no
/// other limit was changed then.
pub(super) fn unknown_to<'a>(name: &String, now: &[String], formers: &'a [Former<Nanos>]) -> &'a [Former<Nanos>] {
    let mut newer = now.to_vec();
    for (i, former) in formers.iter().enumerate() {
        let names = names(&former.limits);
        if !names.contains(name) {
            let is_added = names.iter().all(|old| newer.contains(old));
            return if is_added { &[] } else { &formers[i..] };
        }
        newer = names;
    }
    &[]
}

/// How much later after its permit's time a call could be made under any of the former limits than under this one.
pub(super) fn later_by(formers: &[Former<Nanos>], now: &Limit) -> Nanos {
    let of = |former: &Former<Nanos>| former.limits.iter().map(lateness).min().unwrap_or(late::MOST);
    let most = formers.iter().map(of).max().unwrap_or(0).min(late::MOST);
    most.saturating_sub(lateness(now)).max(0)
}

/// How long after their change limits can still matter: their longest period.
fn matters_for(limits: &[Limit]) -> Nanos {
    let period = |limit: &Limit| match &limit.per {
        Per::Rolling(period) => nanos(period.saturating_add(limit.guard)),
        Per::Day(_) => 26 * 3600 * SECOND,
        Per::Month(_) => 32 * 86_400 * SECOND,
    };
    limits.iter().map(period).max().unwrap_or(0)
}

/// The former limits that can still matter, at most [`MOST_FORMERS`] of them. Of the time before those nothing is known.
pub(super) fn still_matter(mut formers: Vec<Former<Nanos>>, limits: &[Limit], now: Nanos) -> Vec<Former<Nanos>> {
    let longest = matters_for(limits);
    let matters = |former: &Former<Nanos>| former.until.saturating_add(longest.max(matters_for(&former.limits))) > now;
    formers.truncate(formers.iter().take_while(|former| matters(former)).count());
    if formers.len() > MOST_FORMERS {
        formers.truncate(MOST_FORMERS);
        formers[MOST_FORMERS - 1].limits.clear();
    }
    formers
}

/// [`still_matter`] for former limits with wall times. A time after `now` counts as `now`.
pub(super) fn formers_on_timeline(
    formers: Vec<Former>,
    limits: &[Limit],
    clock: &Clock,
    now: Nanos,
) -> Vec<Former<Nanos>> {
    let former = |Former { limits, until }| Former { limits, until: clock.nanos_at(until).min(now) };
    still_matter(formers.into_iter().map(former).collect(), limits, now)
}
