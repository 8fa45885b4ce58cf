//! What is charged to the limits of one pool, and what may be given next: the books behind [`local`](super::local)'s lock.
//!
//! Never waits and never writes the `Book` itself: it says what has to be written first.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Answer, Blocker, Key, Limit, Per, Permit,
    calendar::period_at,
    late::PutOff,
    ledger::{Ledger, Sub, count_name},
    local::{Pool, lateness, tolerance},
    rule::{self, Count},
};
use crate::{
    clock::{Clock, Nanos, Time},
    store::book::Spend,
};

pub(super) const MS: Nanos = 1_000_000;
pub(super) const SECOND: Nanos = 1_000 * MS;

/// Limits that remember calls for longer than this are kept in the `Book`; the others are waited out after a restart.
pub(super) const DURABLE_FROM: Nanos = 10 * SECOND;

/// Tenants of one limit with calls that still matter. One more has to wait until somebody's are forgotten.
pub const MAX_TENANTS: usize = 10_000;

/// The newest permits of a pool that can be handed back.
pub(super) const MAX_RECENT: usize = 1_024;

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
    /// The newest permits, in order, so that they can be handed back.
    recent: VecDeque<Recent>,
}

struct Recent {
    at: Nanos,
    tenant: Arc<str>,
    before: Nanos,
    before_by: Option<Blocker>,
}

/// A limit that each tenant has for itself.
pub(super) struct TenantLimit {
    pub(super) limit: Limit,
    tick: Nanos,
    /// What a tenant that is not in `counts` has: nothing, or after a cold start everything used up.
    pub(super) fresh: Count,
    pub(super) counts: HashMap<Arc<str>, Count>,
    /// When so many are tracked, the idle ones are dropped; not before `next_sweep`.
    sweep_at: usize,
    next_sweep: Nanos,
}

impl State {
    pub(super) fn cold(limits: Vec<Limit>, opened: Nanos, tick: Nanos) -> State {
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
        };
        for limit in limits {
            let mut count = Count::on_grid(&limit, tick);
            if count.memory().is_some_and(|memory| memory <= DURABLE_FROM) {
                count.fill(opened);
            } else {
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
            Some(same) => (same.block, same.memory) = (same.block.min(new.block), same.memory.max(new.memory)),
            None => self.ledgers.push(new),
        }
    }

    /// Charges what the process before left in the book. Spends come in the order of their ends.
    pub(super) fn restore(&mut self, spend: &Spend, clock: &Clock, opened: Nanos) {
        let Some(ledger) = self.ledgers.iter_mut().find(|ledger| ledger.count == spend.count) else { return };
        let tenant: Arc<str> = spend.tenant.as_str().into();
        let calendar = !matches!(ledger.per, Per::Rolling(_));
        // The edge of a calendar period is a name, not a distance from now: it stays where it is.
        let end = if calendar { spend.ends_at.0.saturating_mul(MS) } else { clock.nanos_at(spend.ends_at) };
        let sub = Sub { end, ends_at: spend.ends_at, used: spend.calls, charged: spend.calls };
        ledger.accounts.entry(tenant.clone()).or_default().push_back(sub);

        let restore = |limit: &Limit, count: &mut Count| {
            if count_name(limit) != spend.count || count.memory().is_some_and(|memory| memory <= DURABLE_FROM) {
                return;
            }
            if !calendar {
                // Whatever the book says, the calls of a process that is dead were made before now.
                return count.restore(end.min(opened), spend.calls);
            }
            count.restore(end, spend.calls);
            // A period that should not have begun yet: the wall clock was set back, and today may be that day too.
            if period_at(&limit.per, end.saturating_sub(1)).0 > opened.saturating_add(60 * SECOND) {
                count.restore(period_at(&limit.per, opened).1, spend.calls);
            }
        };
        for (limit, count) in self.shared.iter().zip(&mut self.counts) {
            restore(limit, count);
        }
        for each in &mut self.tenants {
            if count_name(&each.limit) == spend.count && !each.is_cold() {
                let count = each.counts.entry(tenant.clone()).or_insert_with(|| each.fresh.clone());
                restore(&each.limit, count);
            }
        }
    }

    /// The time of the newest permit.
    pub(super) fn newest(&self) -> Nanos {
        self.last
    }

    /// Takes over what does not depend on the limits: the permits that can be handed back, and what the book has of the same counts.
    pub(super) fn go_on_after(&mut self, before: State) {
        (self.last, self.last_by, self.recent) = (before.last, before.last_by, before.recent);
        self.put_off = before.put_off;
        for ledger in before.ledgers {
            if let Some(same) = self.ledgers.iter_mut().find(|new| new.count == ledger.count) {
                same.accounts = ledger.accounts;
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

    /// Answers the wishes that have no answer yet. Stops at one whose permit the book does not cover, and gives its time.
    pub(super) fn grant(
        &mut self,
        pool: &Pool,
        wishes: &[Arc<str>],
        answers: &mut Vec<Answer>,
        now: Nanos,
        until: Nanos,
    ) -> Option<Nanos> {
        let (mut at, mut by) = self.next(now, pool.gate());
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
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        let (before, before_by) = (self.last, std::mem::replace(&mut self.last_by, by));
        self.last = at;
        self.recent.push_back(Recent { at, tenant: tenant.clone(), before, before_by });
    }

    /// The call with the permit at `at` goes out `late`.
    pub(super) fn put_off(&mut self, at: Nanos, late: Nanos) {
        let more = self.put_off.more(at, late, self.last);
        self.counts.iter_mut().for_each(|count| count.put_off(more));
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

    /// What to write so that the next wishes are covered at `at`, and what is paid for once that is durable.
    pub(super) fn missing(
        &mut self,
        pool: &Pool,
        wishes: &[Arc<str>],
        at: Nanos,
        until: Nanos,
        clock: &Clock,
    ) -> (Vec<Spend>, Vec<Paid>) {
        let (mut spends, mut paid) = (Vec::new(), Vec::new());
        let Some(first) = wishes.first() else { return (spends, paid) };
        let room = rule::room(&self.counts, self.gap, at, until, wishes.len()) as u64;
        let now = clock.nanos();
        for (index, ledger) in self.ledgers.iter_mut().enumerate() {
            let wanted = match ledger.key {
                Key::Vendor => room,
                Key::Tenant => room.min(wishes.iter().filter(|tenant| *tenant == first).count() as u64),
            };
            let block = ledger.block.max(wanted);
            let tenant = ledger.tenant_of(first);
            ledger.forget(now);
            let (own, other) = ledger.ends(at);
            for end in [Some(own), other].into_iter().flatten() {
                let sub = ledger.open_sub(&tenant, end, clock);
                if sub.used < sub.charged {
                    continue;
                }
                let calls = sub.used.saturating_add(block);
                let ends_at = sub.ends_at;
                let (pool, count) = (pool.name.to_string(), ledger.count.clone());
                spends.push(Spend { pool, count, tenant: tenant.to_string(), ends_at, calls });
                paid.push(Paid { ledger: index, tenant: tenant.clone(), ends_at, calls });
            }
        }
        (spends, paid)
    }

    pub(super) fn pay(&mut self, paid: &[Paid]) {
        for Paid { ledger, tenant, ends_at, calls } in paid {
            let subs = self.ledgers[*ledger].accounts.get_mut(tenant);
            if let Some(sub) = subs.and_then(|subs| subs.iter_mut().find(|sub| sub.ends_at == *ends_at)) {
                sub.charged = sub.charged.max(*calls);
            }
        }
    }

    /// What is charged ahead and not used; from here on it is not covered any more.
    pub(super) fn unused(&mut self, pool: &Pool) -> Vec<Spend> {
        let mut spends = Vec::new();
        for ledger in &mut self.ledgers {
            for (tenant, subs) in &mut ledger.accounts {
                for sub in subs.iter_mut().filter(|sub| sub.used < sub.charged) {
                    sub.charged = sub.used;
                    let (pool, count, tenant) = (pool.name.to_string(), ledger.count.clone(), tenant.to_string());
                    spends.push(Spend { pool, count, tenant, ends_at: sub.ends_at, calls: sub.used });
                }
            }
        }
        spends
    }
}

/// A sub-window's number that is being made durable.
pub(super) struct Paid {
    ledger: usize,
    tenant: Arc<str>,
    ends_at: Time,
    calls: u64,
}

impl TenantLimit {
    fn new(limit: Limit, fresh: Count, tick: Nanos) -> TenantLimit {
        let sweep_at = MAX_TENANTS / 8;
        TenantLimit { limit, tick, fresh, counts: HashMap::new(), sweep_at, next_sweep: Nanos::MIN }
    }

    /// What a tenant has of whom nothing is known but that it may have used up everything by then.
    pub(super) fn used_up(&self, at: Nanos) -> Count {
        let mut count = Count::on_grid(&self.limit, self.tick);
        count.fill(at);
        count
    }

    fn is_cold(&self) -> bool {
        self.fresh.memory().is_some_and(|memory| memory <= DURABLE_FROM)
    }

    /// Until when the tenant may not call at `at`.
    pub(super) fn wait(&mut self, tenant: &Arc<str>, at: Nanos, now: Nanos) -> Option<Nanos> {
        if !self.counts.contains_key(tenant) && self.is_full(now) {
            return Some(at.saturating_add(SECOND));
        }
        let until = self.counts.get(tenant).unwrap_or(&self.fresh).earliest(at);
        (until > at).then_some(until)
    }

    fn charge(&mut self, tenant: &Arc<str>, at: Nanos, now: Nanos) {
        if let Some(count) = self.counts.get_mut(tenant) {
            return count.charge(at);
        }
        if self.is_cold() && self.fresh.is_idle(now) {
            self.fresh = Count::on_grid(&self.limit, self.tick); // what was used up at the start is forgotten by now
        }
        let mut count = self.fresh.clone();
        count.charge(at);
        self.counts.insert(tenant.clone(), count);
    }

    /// True when no further tenant can be tracked. Drops those whose calls are forgotten, when that is worth looking for.
    fn is_full(&mut self, now: Nanos) -> bool {
        if self.counts.len() >= self.sweep_at && now >= self.next_sweep {
            self.counts.retain(|_, count| !count.is_idle(now));
            self.counts.shrink_to(self.counts.len() * 2);
            self.sweep_at = (self.counts.len() * 2).clamp(MAX_TENANTS / 8, MAX_TENANTS);
            self.next_sweep = now.saturating_add(100 * MS);
        }
        self.counts.len() >= MAX_TENANTS
    }
}
