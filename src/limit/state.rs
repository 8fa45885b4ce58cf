//! What is charged to the limits of one pool, and which permit can be given next: the state behind [`local`](super::local)'s lock.
//!
//! Never waits and never writes the `Book` (see [`payments`](super::payments)).

use std::{collections::VecDeque, sync::Arc};

use super::{
    Answer, Blocker, Former, Key, Limit, Per, Permit,
    calendar::period_at,
    change::OnRecord,
    late::PutOff,
    ledger::{Ledger, Sub, count_name},
    local::{LocalPool, lateness, tolerance},
    outgoing::Enforced,
    past::Rows,
    rule::{self, Count},
    tenants::TenantLimit,
};
use crate::{
    book::{Charge, Spend},
    clock::{Nanos, Time},
};

pub(super) const MS: Nanos = 1_000_000;
pub(super) const SECOND: Nanos = 1_000 * MS;

/// Limits that remember calls for longer than this are kept in the `Book`; for the others a restarted process waits.
pub(super) const DURABLE_FROM: Nanos = 10 * SECOND;

/// How many of the newest permits of a pool can be taken back.
pub(super) const MAX_RECENT: usize = 1_024;

/// Where a time of the book lies on the timeline.
pub(super) type OnTimeline<'a> = &'a dyn Fn(Time) -> Nanos;

/// What is charged to the limits of one pool.
pub(super) struct State {
    /// Limits of the whole pool, and their counts in the same order.
    pub(super) shared: Vec<Limit>,
    pub(super) counts: Vec<Count>,
    pub(super) tenants: Vec<TenantLimit>,
    pub(super) ledgers: Vec<Ledger>,
    /// How long after its time a permit may be used.
    lateness: Nanos,
    /// How long after its time it may be used without putting off others.
    tolerance: Nanos,
    put_off: PutOff,
    /// No permit is given sooner than this after the newest one, because of that limit.
    pub(super) gap: Nanos,
    gap_by: Option<Blocker>,
    /// The newest permit, and why that one was not earlier.
    last: Nanos,
    last_by: Option<Blocker>,
    /// The newest permits, in order, so that they can be taken back.
    recent: VecDeque<Recent>,
    /// All permits after this are in `recent`, if they were not taken back.
    pub(super) recorded_since: Nanos,
    /// The limits in force, and the replaced ones that still bind; all of them are counted.
    pub(super) enforced: Enforced,
    /// What was in force before and may still matter, the newest first.
    pub(super) formers: Vec<Former<Nanos>>,
    /// How far wall time is ahead of the timeline, as the calendars take it and as the book's names are.
    pub(super) calendars_ahead: Nanos,
    pub(super) names_ahead: Nanos,
    /// What a step of the clock has changed and the book does not have yet: no permit is given until it has.
    pub(super) unwritten: Vec<Charge>,
}

struct Recent {
    at: Nanos,
    tenant: Arc<str>,
    before: Nanos,
    before_by: Option<Blocker>,
}

impl State {
    /// The state of a process that begins at `opened`: short limits count as used up then, long ones have what the book has.
    pub(super) fn open(
        enforced: Enforced,
        formers: Vec<Former<Nanos>>,
        spends: &[Spend],
        opened: Nanos,
        on_timeline: OnTimeline<'_>,
        tick: Nanos,
    ) -> State {
        let mut state = State::empty(enforced, formers, opened, tick);
        let rows = Rows::new(spends, on_timeline);
        state.begin(&OnRecord { since: None, permits: Vec::new() }, &rows, opened, |_| false);
        for count in state.counts.iter_mut().filter(|count| is_short(count)) {
            count.fill(opened);
        }
        for each in &mut state.tenants {
            if is_short(&each.fresh) {
                each.fresh.fill(opened);
                each.counts.values_mut().for_each(|count| count.fill(opened));
            }
        }
        for spend in spends {
            state.restore(spend, on_timeline, opened);
        }
        state
    }

    /// Nothing charged yet.
    pub(super) fn empty(enforced: Enforced, formers: Vec<Former<Nanos>>, opened: Nanos, tick: Nanos) -> State {
        let limits = enforced.all();
        let mut state = State {
            shared: Vec::new(),
            counts: Vec::new(),
            tenants: Vec::new(),
            ledgers: Vec::new(),
            gap: 0,
            gap_by: None,
            lateness: limits.iter().map(lateness).min().unwrap_or(Nanos::MAX),
            tolerance: limits.iter().map(tolerance).min().unwrap_or(Nanos::MAX),
            put_off: PutOff::default(),
            last: Nanos::MIN,
            last_by: None,
            recent: VecDeque::new(),
            recorded_since: opened,
            enforced,
            formers,
            calendars_ahead: 0,
            names_ahead: 0,
            unwritten: Vec::new(),
        };
        for limit in limits {
            let count = Count::on_grid(&limit, tick);
            if !is_short(&count) {
                state.keep_durably(&limit);
            }
            match limit.key {
                Key::Vendor => {
                    state.shared.push(limit);
                    state.counts.push(count);
                }
                Key::Tenant => state.tenants.push(TenantLimit::new(limit, count, tick)),
            }
        }
        let (gap, by) = rule::gap(&state.shared, tick);
        (state.gap, state.gap_by) = (gap, by.map(|i| Blocker::Limit(state.shared[i].id.clone())));
        state
    }

    fn keep_durably(&mut self, limit: &Limit) {
        let new = Ledger::new(limit);
        match self.ledgers.iter_mut().find(|ledger| ledger.count == new.count) {
            Some(same) => {
                (same.block, same.most) = (same.block.min(new.block), same.most.max(new.most));
                same.memory = same.memory.max(new.memory);
            }
            None => self.ledgers.push(new),
        }
    }

    /// Takes over what the book has of a count. Gives whether it belongs to a calendar, and when it ends: on the timeline, or in wall time.
    pub(super) fn restore_ledger(&mut self, spend: &Spend, on_timeline: OnTimeline<'_>) -> Option<(bool, Nanos)> {
        let ledger = self.ledgers.iter_mut().find(|ledger| ledger.count == spend.count)?;
        if spend.calls == 0 {
            return None; // given back, or renamed
        }
        let calendar = !matches!(ledger.per, Per::Rolling(_));
        // The edge of a calendar period is a name, not a distance from now: it stays where it is.
        let end = if calendar { spend.ends_at.0.saturating_mul(MS) } else { on_timeline(spend.ends_at) };
        let sub = Sub { end, ends_at: spend.ends_at, used: spend.calls, charged: spend.calls };
        ledger.accounts.entry(spend.tenant.as_str().into()).or_default().push_back(sub);
        Some((calendar, end))
    }

    /// Charges what the previous process left in the book. Spends come in the order of their ends.
    fn restore(&mut self, spend: &Spend, on_timeline: OnTimeline<'_>, opened: Nanos) {
        let Some((calendar, end)) = self.restore_ledger(spend, on_timeline) else { return };
        let tenant: Arc<str> = spend.tenant.as_str().into();
        let restore = |limit: &Limit, count: &mut Count| {
            if count_name(limit) != spend.count || is_short(count) {
                return;
            }
            if !calendar {
                // Whatever the book says, calls of a dead process were made before now.
                return count.restore(end.min(opened), spend.calls);
            }
            count.restore(end, spend.calls);
            // The period should not have begun yet: the wall clock was set back, and today may be that day too.
            if period_at(&limit.per, end.saturating_sub(1)).0 > opened.saturating_add(60 * SECOND) {
                count.restore(period_at(&limit.per, opened).1, spend.calls);
            }
        };
        for (limit, count) in self.shared.iter().zip(&mut self.counts) {
            restore(limit, count);
        }
        for each in &mut self.tenants {
            if count_name(&each.limit) == spend.count && !is_short(&each.fresh) {
                let count = each.counts.entry(tenant.clone()).or_insert_with(|| each.fresh.clone());
                restore(&each.limit, count);
            }
        }
    }

    /// The time of the newest permit.
    pub(super) fn newest(&self) -> Nanos {
        self.last
    }

    /// The newest permits, oldest first.
    pub(super) fn recent_calls(&self) -> Vec<(Nanos, Arc<str>)> {
        self.recent.iter().map(|recent| (recent.at, recent.tenant.clone())).collect()
    }

    /// Takes over what does not depend on the limits: the permits on record, the time, and what the book has of the same counts.
    pub(super) fn go_on_after(&mut self, before: &mut State) {
        (self.last, self.last_by, self.recorded_since) = (before.last, before.last_by.take(), before.recorded_since);
        self.recent = std::mem::take(&mut before.recent);
        self.put_off = std::mem::take(&mut before.put_off);
        self.unwritten = std::mem::take(&mut before.unwritten);
        (self.calendars_ahead, self.names_ahead) = (before.calendars_ahead, before.names_ahead);
        let (ahead, now) = (self.calendars_ahead, self.last);
        self.each_count(|count| count.step(ahead, now));
        for ledger in &mut self.ledgers {
            ledger.ahead = ahead;
            if let Some(same) = before.ledgers.iter_mut().find(|old| old.count == ledger.count) {
                ledger.accounts = std::mem::take(&mut same.accounts);
            }
        }
    }

    /// The pool's next slot, and why it is not now.
    pub(super) fn next(&self, now: Nanos, gate: Nanos) -> (Nanos, Option<Blocker>) {
        let (mut base, mut by) = (now, None);
        if self.last.saturating_add(self.gap) > base {
            (base, by) = (self.last + self.gap, self.last_by.clone().or_else(|| self.gap_by.clone()));
        }
        if gate > base {
            (base, by) = (gate, Some(Blocker::Gate));
        }
        match rule::slot(&self.counts, base) {
            (at, Some(i)) => (at, Some(Blocker::Limit(self.shared[i].id.clone()))),
            (at, None) => (at, by),
        }
    }

    /// Answers the wishes that have no answer yet. Stops at the first whose permit the book does not cover, and gives that permit's time.
    pub(super) fn grant(
        &mut self,
        pool: &LocalPool,
        wishes: &[Arc<str>],
        answers: &mut Vec<Answer>,
        now: Nanos,
        until: Nanos,
    ) -> Option<Nanos> {
        let (mut at, mut by) = self.next(now, pool.gate());
        if !self.unwritten.is_empty() {
            return Some(at);
        }
        for tenant in &wishes[answers.len()..] {
            if at > until {
                let by = by.clone().unwrap_or(Blocker::Gate); // only a caller whose `until` has passed sees this one
                answers.push(Answer::NotBefore { until: at, by });
                continue;
            }
            if let Some((until, by)) = self.tenant_wait(tenant, at, now) {
                answers.push(Answer::NotBefore { until, by });
                continue;
            }
            if !self.ledgers.iter_mut().all(|ledger| ledger.covers(tenant, at)) {
                return Some(at);
            }
            self.charge(tenant, at, by.take(), now);
            answers.push(Answer::Granted(Permit {
                pool: pool.name.clone(),
                tenant: tenant.clone(),
                at,
                on_time_until: at.saturating_add(self.tolerance),
                late_after: at.saturating_add(self.lateness),
            }));
            (at, by) = self.next(now, pool.gate());
        }
        None
    }

    /// Until when the tenant's own limits forbid a call at `at`, if they do.
    pub(super) fn tenant_wait(&mut self, tenant: &Arc<str>, at: Nanos, now: Nanos) -> Option<(Nanos, Blocker)> {
        let waits = self.tenants.iter_mut().filter_map(|each| {
            let until = each.wait(tenant, at, now)?;
            Some((until, Blocker::Limit(each.limit.id.clone())))
        });
        waits.max_by_key(|(until, _)| *until)
    }

    fn charge(&mut self, tenant: &Arc<str>, at: Nanos, by: Option<Blocker>, now: Nanos) {
        self.counts.iter_mut().for_each(|count| count.charge(at));
        for each in &mut self.tenants {
            each.charge(tenant, at, now);
        }
        for ledger in &mut self.ledgers {
            ledger.each_sub(tenant, at, |sub| sub.used += 1);
        }
        if self.recent.len() >= MAX_RECENT
            && let Some(gone) = self.recent.pop_front()
        {
            self.recorded_since = self.recorded_since.max(gone.at);
        }
        let (before, before_by) = (self.last, std::mem::replace(&mut self.last_by, by));
        self.last = at;
        self.recent.push_back(Recent { at, tenant: tenant.clone(), before, before_by });
    }

    /// The call with the permit at `at` went out `late`: later ones are put off.
    pub(super) fn put_off(&mut self, at: Nanos, late: Nanos) {
        let more = self.put_off.more(at, late, self.last);
        if more > 0 {
            self.counts.iter_mut().for_each(|count| count.put_off(more));
        }
    }

    /// Takes a permit back that was not used.
    pub(super) fn undo(&mut self, permit: &Permit) {
        let same = |recent: &mut Recent| recent.at == permit.at && recent.tenant == permit.tenant;
        let newest = self.recent.pop_back_if(same);
        self.counts.iter_mut().for_each(|count| count.undo(permit.at, newest.is_some()));
        for each in &mut self.tenants {
            if let Some(count) = each.counts.get_mut(&permit.tenant) {
                count.undo(permit.at, newest.is_some());
            }
        }
        for ledger in &mut self.ledgers {
            ledger.each_sub(&permit.tenant, permit.at, |sub| sub.used = sub.used.saturating_sub(1));
        }
        if let Some(recent) = newest {
            (self.last, self.last_by) = (recent.before, recent.before_by);
        }
    }
}

/// True of a limit that forgets its calls so soon that a restarted process waits for it.
pub(super) fn is_short(count: &Count) -> bool {
    count.memory().is_some_and(|memory| memory <= DURABLE_FROM)
}
