//! When the machine's clock is set, or the machine was suspended: wall time moves against the timeline that limits are kept on.
//!
//! Never moves a rolling limit: those go by the timeline. Calendars are kept by the old time and the new one, and sub-windows in the book are
//! renamed so that a process which starts later understands them.

use std::sync::Arc;

use super::{
    calendar::{SKEW, period_at},
    ledger::{Changes, Ledger},
    local::LocalPool,
    rule::Count,
    state::{MS, SECOND, State},
};
use crate::{
    book::{Charge, Spend},
    clock::{Clock, Nanos, Time},
};

/// A wall clock that moves by less against the timeline was read, and not set.
const LEAST_STEP: Nanos = 50 * MS;

/// Calendars need not follow a clock that moves by less: calls that near to an edge count on both sides of it (see the skew).
const CALENDAR_STEP: Nanos = 4 * SECOND;

impl State {
    /// Checks whether the wall clock was set. If it was, keeps calendars by the old time and the new, and renames what the book has.
    pub(super) fn note_clock(&mut self, pool: &LocalPool, clock: &Clock) {
        let now = clock.nanos();
        let ahead = clock.now().0.saturating_mul(MS).saturating_sub(now);
        let mut changes = Vec::new();
        let by = ahead.saturating_sub(self.names_ahead);
        if by.abs() >= LEAST_STEP {
            self.names_ahead = ahead;
            tracing::warn!(pool = %pool.name, by_ms = by / MS, "the machine's clock was set; limits are kept, calendar limits by the old time and the new one");
            for ledger in &mut self.ledgers {
                changes.push((ledger.count.clone(), ledger.rename(now, clock)));
            }
        }
        if ahead.saturating_sub(self.calendars_ahead).abs() >= CALENDAR_STEP {
            changes.extend(self.step_calendars(ahead, now, clock));
        }
        for (count, changes) in changes {
            let ledger = self.ledgers.iter().find(|ledger| ledger.count == count);
            let forget = ledger.map_or(Time(i64::MIN), |ledger| ledger.forgotten_before(clock));
            let charge = |(tenant, ends_at, calls): (Arc<str>, Time, u64)| {
                let (pool, count, tenant) = (pool.name.to_string(), count.clone(), tenant.to_string());
                Charge { spend: Spend { pool, count, tenant, ends_at, calls }, forget }
            };
            self.unwritten.extend(changes.into_iter().map(charge));
        }
    }

    /// Calendars go by wall time, which is so far ahead of the timeline, and was so far ahead `before`. Gives what to write, by count.
    pub(super) fn set_calendars(
        &mut self,
        before: Nanos,
        ahead: Nanos,
        now: Nanos,
        clock: &Clock,
    ) -> Vec<(String, Changes)> {
        self.calendars_ahead = ahead;
        let is_step = ahead.saturating_sub(before).abs() >= CALENDAR_STEP;
        let before = if is_step { before } else { ahead };
        self.each_count(|count| {
            count.believe(before);
            count.step(ahead, now);
        });
        let step = |ledger: &mut Ledger| {
            ledger.ahead = before;
            (ledger.count.clone(), ledger.step(ahead, now, clock))
        };
        self.ledgers.iter_mut().map(step).collect()
    }

    /// Calendars go by the new time from here on. Gives what to write, by count.
    fn step_calendars(&mut self, ahead: Nanos, now: Nanos, clock: &Clock) -> Vec<(String, Changes)> {
        self.calendars_ahead = ahead;
        let (permits, since) = (self.recent_calls(), self.recorded_since);
        // Exact where all calls of the period are on record.
        let step = |count: &mut Count, tenant: Option<&str>| {
            count.step(ahead, now);
            if since <= count.matters_from(now) {
                let of = permits.iter().filter(|(_, whose)| tenant.is_none_or(|tenant| **whose == *tenant));
                count.recount(ahead, of.map(|(at, _)| *at));
            }
        };
        self.counts.iter_mut().for_each(|count| step(count, None));
        for each in &mut self.tenants {
            each.counts.iter_mut().for_each(|(tenant, count)| step(count, Some(tenant)));
            step(&mut each.fresh, Some(""));
        }
        let change = |ledger: &mut Ledger| {
            let begun = period_at(&ledger.per, now.saturating_add(ahead).saturating_sub(SKEW)).0;
            let is_exact = since <= begun.saturating_sub(ahead);
            let changes =
                if is_exact { ledger.recount(ahead, &permits, clock) } else { ledger.step(ahead, now, clock) };
            (ledger.count.clone(), changes)
        };
        self.ledgers.iter_mut().map(change).collect()
    }

    pub(super) fn each_count(&mut self, change: impl Fn(&mut Count)) {
        let tenants = self.tenants.iter_mut();
        let tenants = tenants.flat_map(|each| each.counts.values_mut().chain(std::iter::once(&mut each.fresh)));
        self.counts.iter_mut().chain(tenants).for_each(change);
    }
}
