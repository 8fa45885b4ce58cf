//! The history of a limit that is new or was changed: the permits on record, and before them what the limits of that time allowed.
//!
//! Pure. It errs to one side: no call counts as earlier than it was made, and where nothing is known, every call that was possible counts as
//! made. So a window that began before the change holds no more than the looser of the two limits allows, and a later one no more than the new.

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

/// Entries for the calls of one former limit at most; more calls share one.
const MOST_ENTRIES: i64 = 4_096;

/// Calendar periods that are looked back at most.
const MOST_PERIODS: usize = 64;

/// Former limits that are looked back at most.
const MOST_FORMERS: usize = 8;

/// Calls that former limits allowed may lie so much later than their change: permits are for times up to half a second ahead, and another
/// process may learn of a change a second later.
pub(super) const OUTLASTS: Nanos = 1_500 * MS;

/// Limits that were in force before those of now.
#[derive(Debug, Clone, PartialEq)]
pub struct Former<At = Time> {
    pub limits: Vec<Limit>,
    /// When they were changed: in wall time, or on the timeline.
    pub until: At,
}

/// From here to there, on the timeline.
type Span = (Nanos, Nanos);

/// So many calls had been made by each of these times, since the one before it; oldest first.
pub(super) type Calls = Vec<(Nanos, u64)>;

/// What the book has, by count and tenant: when a sub-window ends, on the timeline, and its calls.
#[derive(Default)]
pub(super) struct Rows(HashMap<(String, String), Calls>);

/// What is known of the calls of a pool, or of one tenant.
#[derive(Clone, Copy)]
pub(super) struct Past<'a> {
    /// All calls after `recorded_since`.
    pub(super) recent: &'a [(Nanos, u64)],
    pub(super) recorded_since: Nanos,
    /// What was in force before, the newest first; nothing where all of that still is.
    pub(super) formers: &'a [Former<Nanos>],
    pub(super) rows: &'a Rows,
    /// Whose calls, if not those of the whole pool.
    pub(super) tenant: Option<&'a str>,
    /// How far wall time is ahead of the timeline.
    pub(super) ahead: Nanos,
    /// A call under a former limit may have gone so much later after its permit than one under the limit of now may.
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

    /// The tenants that have any of their own.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|(_, tenant)| &**tenant).filter(|tenant| !tenant.is_empty())
    }

    /// The calls that the book has of a limit, in sub-windows that overlap the span: as made at their ends, or at the end of the span. `None`
    /// for a limit that is not in the book.
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
    /// Charges all this to a count of N that is still empty.
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

    /// Bounds the calls between `from` and the recorded ones. Also gives the time before which nothing is known.
    fn earlier(&self, from: Nanos, most: u64) -> (Nanos, Calls) {
        let (mut known_since, mut calls) = (self.recorded_since, Calls::new());
        for (i, former) in self.formers.iter().enumerate() {
            if known_since <= from {
                break;
            }
            let begun = self.formers.get(i + 1).map_or(Nanos::MIN, |older| older.until);
            // Both sets of limits may have allowed the calls around a change: each of them bounds these.
            let span = (begun.max(from), self.recorded_since.min(former.until.saturating_add(OUTLASTS)));
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

    /// What a limit says of the calls in a span of time: what the book has of them, or each as late as the limit allows.
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

    /// The book has the current period. Each earlier one may have been used up, by its end.
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

/// `newest` calls at the end of a span, and `each` at every interval before it, until there are as many as wanted or the span is full.
fn evenly((from, until): Span, every: Nanos, each: u64, newest: u64, wanted: u64) -> Calls {
    let wanted = i64::try_from(wanted.div_ceil(each)).unwrap_or(i64::MAX);
    let times = (until.saturating_sub(from) / every).min(wanted);
    let together = (times / MOST_ENTRIES).saturating_add(1);
    let mut calls = vec![(until, newest)];
    let mut k = 1;
    while k <= times {
        // Those that share an entry all count as made when the latest was.
        let n = together.min(times - k + 1);
        calls.push((until.saturating_sub(every.saturating_mul(k)), each.saturating_mul(n.unsigned_abs())));
        k += n;
    }
    calls.reverse();
    calls
}

/// The names of what limits count, and how: a limit of the same name goes on with the history of another.
pub(super) fn names(limits: &[Limit]) -> Vec<String> {
    let counts: Vec<Count> = limits.iter().map(Count::new).collect();
    history_names(limits.iter().zip(&counts))
}

/// The former limits under which a limit of this name has no history. None if it was in force all the time, or if it was added and everything
/// else stayed.
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

/// How much later after its permit a call under one of the former limits may have gone than one under the limit of now may.
pub(super) fn later_by(formers: &[Former<Nanos>], now: &Limit) -> Nanos {
    let of = |former: &Former<Nanos>| former.limits.iter().map(lateness).min().unwrap_or(late::MOST);
    let most = formers.iter().map(of).max().unwrap_or(0).min(late::MOST);
    most.saturating_sub(lateness(now)).max(0)
}

/// How long after they were changed limits can still matter.
pub(super) fn matters_for(limits: &[Limit]) -> Nanos {
    let period = |limit: &Limit| match &limit.per {
        Per::Rolling(period) => nanos(period.saturating_add(limit.guard)),
        Per::Day(_) => 26 * 3600 * SECOND,
        Per::Month(_) => 32 * 86_400 * SECOND,
    };
    limits.iter().map(period).max().unwrap_or(0)
}

/// The former limits that can still matter, at most [`MOST_FORMERS`] of them: nothing is known of the time before.
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

/// The same, from wall time to the timeline. None of them was in force after `now`.
pub(super) fn formers_on_timeline(
    formers: Vec<Former>,
    limits: &[Limit],
    clock: &Clock,
    now: Nanos,
) -> Vec<Former<Nanos>> {
    let former = |Former { limits, until }| Former { limits, until: clock.nanos_at(until).min(now) };
    still_matter(formers.into_iter().map(former).collect(), limits, now)
}
