//! Where a limit that is new or was changed has its history from: the permits on record, and before them what the limits of that time allowed.
//!
//! Pure. It errs to one side: no call counts as earlier than it was made, and where nothing is known, all that may be was. So a window that
//! began before the change is held by the looser of the two limits, and one that began after it by the new one.

use std::collections::HashMap;

use super::{
    Key, Limit, Per,
    calendar::period_at,
    late,
    ledger::{SUB_WINDOWS, count_name, history_names},
    local::lateness,
    rule::{Count, Terms},
    state::{DURABLE_FROM, MS, OnTimeline, SECOND},
};
use crate::{
    book::Spend,
    clock::{Nanos, Time, nanos},
};

/// Entries in which the calls of one earlier limit are told at most; more calls share one.
const MOST_ENTRIES: i64 = 4_096;

/// Calendar periods that are looked back at.
const MOST_PERIODS: usize = 64;

/// Changes that are looked back at.
const MOST_FORMERS: usize = 8;

/// Calls that former limits allowed may lie so much later than their change: permits are for times up to half a second ahead, and another
/// process may learn of a change a second later.
const OUTLASTS: Nanos = 1_500 * MS;

/// Limits that were in force before those of now.
#[derive(Debug, Clone, PartialEq)]
pub struct Before {
    pub limits: Vec<Limit>,
    /// Until then, in wall time: when they were changed.
    pub until: Time,
}

/// The same, on the timeline.
#[derive(Debug, Clone)]
pub(super) struct Former {
    pub(super) limits: Vec<Limit>,
    pub(super) until: Nanos,
}

/// From here to there, on the timeline.
type Span = (Nanos, Nanos);

/// Calls by the time by which so many had been made, oldest first.
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
    /// What held before, the newest first; nothing where all of it still holds.
    pub(super) formers: &'a [Former],
    pub(super) rows: &'a Rows,
    /// Whose calls, if not those of the whole pool.
    pub(super) tenant: Option<&'a str>,
    /// How far wall time is ahead of the timeline.
    pub(super) ahead: Nanos,
    /// How much later than its permit a call of before may have gone than one under the limit of now.
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

    /// Whoever has any of their own.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|(_, tenant)| &**tenant).filter(|tenant| !tenant.is_empty())
    }

    /// Those of a limit that the book counts, in sub-windows of the length given that have any time in the span: as made at their ends, or at
    /// the end of the span. `None` for one that the book does not count.
    fn within(&self, limit: &Limit, tenant: Option<&str>, (from, until): Span, len: Nanos) -> Option<Calls> {
        if Count::new(limit).memory().is_some_and(|memory| memory <= DURABLE_FROM) {
            return None;
        }
        let owner = if limit.key == Key::Vendor { "" } else { tenant.unwrap_or_default() };
        let rows = self.0.get(&(count_name(limit), owner.to_owned())).into_iter().flatten();
        let rows = rows.filter(|(end, _)| *end > from && end.saturating_sub(len) <= until);
        let mut calls: Calls = rows.map(|(end, calls)| ((*end).min(until), *calls)).collect();
        calls.sort_unstable();
        Some(calls)
    }
}

impl Past<'_> {
    /// Charges all this to a count of N that has nothing yet.
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

    /// Bounds the calls between `from` and the recorded ones. Before the time that it gives nothing is known.
    fn earlier(&self, from: Nanos, most: u64) -> (Nanos, Calls) {
        let (mut known_since, mut calls) = (self.recorded_since, Calls::new());
        for (i, former) in self.formers.iter().enumerate() {
            if known_since <= from {
                break;
            }
            let begun = self.formers.get(i + 1).map_or(Nanos::MIN, |older| older.until);
            // Both limits may have allowed the calls around a change: each is asked about them.
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
    fn bound(&self, limit: &Limit, (from, until): Span, most: u64) -> Calls {
        if from > until {
            return Calls::new();
        }
        let Per::Rolling(period) = &limit.per else { return self.bound_by_calendar(limit, (from, until)) };
        let len = (nanos(*period) / SUB_WINDOWS).saturating_add(2 * MS);
        let on_record = self.rows.within(limit, self.tenant, (from, until), len);
        on_record.unwrap_or_else(|| match Count::new(limit).terms() {
            Terms::Even { every, burst } => evenly((from, until), every, 1, burst, most),
            Terms::Ring { window, .. } | Terms::Parts { window, .. } => {
                evenly((from, until), window, limit.calls, limit.calls, most)
            }
            Terms::Calendar => vec![(until, limit.calls)],
        })
    }

    /// The book has the period of now. Each before it may have been used up, by its end.
    fn bound_by_calendar(&self, limit: &Limit, (from, until): Span) -> Calls {
        let start_of = |at: Nanos| period_at(&limit.per, at.saturating_add(self.ahead)).0.saturating_sub(self.ahead);
        let mut start = start_of(until);
        let mut calls = self.rows.within(limit, self.tenant, (start, until), 32 * 86_400 * SECOND).unwrap_or_default();
        while start > from && calls.len() < MOST_PERIODS {
            calls.insert(0, (start, limit.calls));
            start = start_of(start.saturating_sub(1));
        }
        calls
    }
}

/// `newest` calls at the end of a span, and `each` for each interval before it: no fewer than wanted, if there is room for so many.
fn evenly((from, until): Span, every: Nanos, each: u64, newest: u64, wanted: u64) -> Calls {
    let wanted = i64::try_from(wanted.div_ceil(each)).unwrap_or(i64::MAX);
    let times = (until.saturating_sub(from) / every).min(wanted);
    let together = (times / MOST_ENTRIES).saturating_add(1);
    let mut calls = vec![(until, newest)];
    let mut k = 1;
    while k <= times {
        // The latest of those that share an entry stands for all.
        let n = together.min(times - k + 1);
        calls.push((until.saturating_sub(every.saturating_mul(k)), each.saturating_mul(n.unsigned_abs())));
        k += n;
    }
    calls.reverse();
    calls
}

/// What limits count, and how: a limit of the same name goes on with the history of another.
pub(super) fn names(limits: &[Limit]) -> Vec<String> {
    let counts: Vec<Count> = limits.iter().map(Count::new).collect();
    history_names(limits.iter().zip(&counts))
}

/// Which of the former limits a limit of this name has no history under: none of it where it held all the time, and where nothing that held
/// was taken away.
pub(super) fn unknown_to<'a>(name: &String, now: &[String], formers: &'a [Former]) -> &'a [Former] {
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

/// How much later than its permit a call under one of these may have gone than one under the limit of now may.
pub(super) fn later_by(formers: &[Former], now: &Limit) -> Nanos {
    let of = |former: &Former| former.limits.iter().map(lateness).min().unwrap_or(late::MOST);
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

/// Of the limits that held before those that can still matter to anybody, and no more than [`MOST_FORMERS`]: nothing is known of those before.
pub(super) fn still_matter(mut formers: Vec<Former>, limits: &[Limit], now: Nanos) -> Vec<Former> {
    let longest = matters_for(limits);
    let matters = |former: &Former| former.until.saturating_add(longest.max(matters_for(&former.limits))) > now;
    formers.truncate(formers.iter().take_while(|former| matters(former)).count());
    if formers.len() > MOST_FORMERS {
        formers.truncate(MOST_FORMERS);
        formers[MOST_FORMERS - 1].limits.clear();
    }
    formers
}
