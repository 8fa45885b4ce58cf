//! What new counts in Redis begin with: computed by the same code as in the limiter of one process, from the book, the permits on record and
//! the limits that were in force before.
//!
//! Never talks to Redis or the book itself (see the parent module).

use std::sync::Arc;

use super::{
    args::{CountRow, History, Row},
    pool::{LimitSet, forgotten_before},
    spec::MICRO,
};
use crate::{
    book::{Charge, Spend},
    clock::{Clock, Nanos, Time},
    limit::{
        Former,
        change::OnRecord,
        past::Rows,
        rule::Count,
        state::{MS, State, is_short},
    },
};

/// The count under which the book keeps how far Redis' clock is ahead of a pool's timeline: its newest row counts.
const CLOCK: &str = "clock";
/// Added to it, because the book's numbers are never negative.
const CLOCK_ZERO: i64 = 1 << 52;
/// Its rows end in the year 287396, and so are never forgotten; the newest is the last.
const CLOCK_FROM: i64 = 9_007_199_254_740_992;

/// The time at which counts begin, in microseconds on the pool's timeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    /// No earlier permit is for a later time.
    pub(super) at: i64,
    /// How far Redis' clock was ahead of the timeline, and is.
    pub(super) ahead_before: i64,
    pub(super) ahead: i64,
    /// The same moment on the process's own timeline, from which the age of former limits is computed.
    pub(super) now: Nanos,
}

impl LimitSet {
    /// For a new epoch, in which nothing is on record. Also gives what has to be written to the book first: the calls that a step of the clock
    /// has moved into another calendar period.
    pub(super) fn anew(&self, pool: &str, spends: &[Spend], begin: Begin, clock: &Clock) -> (History, Vec<Charge>) {
        let mut spends = of_pool(pool, spends);
        let opened = begin.at.saturating_mul(MICRO);
        let mut state =
            State::open(self.enforced.clone(), self.formers_at(begin), &spends, opened, &on_timeline, MICRO);
        let (before, ahead) = (begin.ahead_before.saturating_mul(MICRO), begin.ahead.saturating_mul(MICRO));
        let moved = state.set_calendars(before, ahead, opened, clock);
        let forget = |count: &str| {
            let ledger = self.ledgers.iter().find(|ledger| ledger.count == count);
            forgotten_before(begin.at.saturating_add(begin.ahead), ledger.map_or(0, |ledger| ledger.memory))
        };
        let mut charges = Vec::new();
        for (count, changes) in moved {
            charges.extend(changes.into_iter().map(|(tenant, ends_at, calls)| Charge {
                forget: forget(&count),
                spend: Spend {
                    pool: pool.to_owned(),
                    count: count.clone(),
                    tenant: tenant.to_string(),
                    ends_at,
                    calls,
                },
            }));
        }
        spends.extend(charges.iter().map(|charge| charge.spend.clone()));
        let short = state.counts.iter().filter(|count| is_short(count));
        let gate = short.map(|count| count.earliest(opened)).max().unwrap_or(opened).max(opened);
        let all: Vec<usize> = (1..=self.limits.len()).collect();
        let gate = gate.saturating_add(MICRO - 1).div_euclid(MICRO);
        (History { opened_at: begin.at, gate, ..self.history(&state, &all, &spends) }, charges)
    }

    /// For limits that are new in an epoch that goes on, with these permits on record.
    pub(super) fn changed(
        &self,
        pool: &str,
        spends: &[Spend],
        begin: Begin,
        missing: &[i64],
        record: &Record,
    ) -> History {
        let spends = of_pool(pool, spends);
        let now = begin.at.saturating_mul(MICRO);
        let mut formers = self.formers_at(begin);
        if formers.is_empty() {
            formers.push(Former { limits: Vec::new(), until: now }); // other processes had limits that are not known here
        }
        let mut state = State::empty(self.enforced.clone(), formers, now, MICRO);
        state.each_count(|count| count.believe(begin.ahead.saturating_mul(MICRO)));
        state.calendars_ahead = begin.ahead.saturating_mul(MICRO);
        let missing: Vec<usize> = missing.iter().filter_map(|number| usize::try_from(*number).ok()).collect();
        let names = state.names();
        let goes_on = |name: &String| !missing.iter().any(|number| names.get(number - 1) == Some(name));
        let rows = Rows::new(&spends, &on_timeline);
        let on_record = OnRecord { since: Some(record.since.saturating_mul(MICRO)), permits: record.permits.clone() };
        state.begin(&on_record, &rows, now, goes_on);
        let newest = record.permits.last().map_or(0, |(at, _)| at.div_euclid(MICRO));
        History { newest, ..self.history(&state, &missing, &spends) }
    }

    fn history(&self, state: &State, missing: &[usize], spends: &[Spend]) -> History {
        let (mut counts, mut opened) = (Vec::new(), vec![0; self.limits.len()]);
        let mut add = |limit: usize, tenant: &str, count: &Count| {
            counts.push(CountRow { limit, tenant: Arc::from(tenant), stored: count.stored() });
        };
        for limit in missing.iter().copied() {
            match limit.checked_sub(state.counts.len() + 1).and_then(|i| state.tenants.get(i)) {
                Some(each) => {
                    opened[limit - 1] = each.fresh.used_up_since();
                    each.counts.iter().for_each(|(tenant, count)| add(limit, tenant, count));
                }
                None => add(limit, "", &state.counts[limit - 1]),
            }
        }
        let row = |spend: &Spend| {
            let ledger = self.ledgers.iter().position(|ledger| ledger.count == spend.count)? + 1;
            let Time(ends_at) = spend.ends_at;
            Some(Row { ledger, tenant: spend.tenant.clone(), ends_at, calls: spend.calls })
        };
        History { counts, opened, rows: spends.iter().filter_map(row).collect(), ..History::default() }
    }

    /// The former limits on the pool's timeline: as long ago as they are by our own clock.
    fn formers_at(&self, begin: Begin) -> Vec<Former<Nanos>> {
        let former = |former: &Former<Nanos>| Former {
            until: begin.at.saturating_mul(MICRO).saturating_sub(begin.now.saturating_sub(former.until)),
            ..former.clone()
        };
        self.formers.iter().map(former).collect()
    }
}

/// The newest permits of an epoch, oldest first.
#[derive(Debug)]
pub(super) struct Record {
    /// All since then are here.
    since: i64,
    permits: Vec<(Nanos, Arc<str>)>,
}

impl Record {
    /// From the permits in a reply: each with its time, what made it wait, and its tenant.
    pub(super) fn new(since: i64, recent: &[String]) -> Record {
        let permit = |permit: &String| {
            let mut parts = permit.splitn(3, ' ');
            let at: i64 = parts.next()?.parse().ok()?;
            let tenant = parts.nth(1)?;
            Some((at.saturating_mul(MICRO), Arc::from(tenant)))
        };
        Record { since, permits: recent.iter().filter_map(permit).collect() }
    }
}

/// What to write to the book before Redis' clock counts as so far ahead of the pool's timeline.
pub(super) fn note_clock(pool: &str, redis_ms: i64, ahead: i64) -> Charge {
    let ends_at = Time(CLOCK_FROM.saturating_add(redis_ms));
    let calls = CLOCK_ZERO.saturating_add(ahead).unsigned_abs();
    let spend = Spend { pool: pool.to_owned(), count: CLOCK.to_owned(), tenant: String::new(), ends_at, calls };
    Charge { spend, forget: ends_at }
}

/// How far Redis' clock was ahead of the pool's timeline when that was last written.
pub(super) fn clock_ahead(pool: &str, spends: &[Spend]) -> i64 {
    let newest =
        spends.iter().filter(|spend| spend.pool == pool && spend.count == CLOCK).max_by_key(|spend| spend.ends_at);
    newest.and_then(|spend| i64::try_from(spend.calls).ok()).map_or(0, |calls| calls.saturating_sub(CLOCK_ZERO))
}

fn of_pool(pool: &str, spends: &[Spend]) -> Vec<Spend> {
    let mut spends: Vec<Spend> =
        spends.iter().filter(|spend| spend.pool == pool && spend.count != CLOCK).cloned().collect();
    spends.sort_by_key(|spend| spend.ends_at);
    spends
}

/// The book counts in the pool's own time.
fn on_timeline(at: Time) -> Nanos {
    at.0.saturating_mul(MS)
}
