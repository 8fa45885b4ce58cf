//! What has to be in the `Book` before permits of long limits are given: payments in advance, in blocks.
//!
//! Never writes the `Book` itself (see [`local`](super::local)) and never gives a permit.

use std::{collections::BTreeMap, sync::Arc};

use super::{Key, ledger::Sub, local::LocalPool, rule, state::State};
use crate::{
    book::{Charge, Spend},
    clock::{Clock, Nanos, Time},
};

/// What has to be written before some wishes are covered.
pub(super) struct Due {
    pub(super) charges: Vec<Charge>,
    payments: Vec<Payment>,
    /// So many of the charges come from a step of the clock.
    unwritten: usize,
}

/// The number of calls of a sub-window that is being made durable.
struct Payment {
    ledger: usize,
    tenant: Arc<str>,
    ends_at: Time,
    calls: u64,
}

/// The calls that some wishes add to each sub-window: by ledger, owner and end.
type Wanted = BTreeMap<(usize, Arc<str>, Nanos), u64>;

impl Due {
    pub(super) fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }
}

impl State {
    /// What has to be written before these wishes are covered, each at its own slot.
    pub(super) fn due(&mut self, pool: &LocalPool, wishes: &[Arc<str>], until: Nanos, clock: &Clock) -> Due {
        let mut due = Due { charges: self.unwritten.clone(), payments: Vec::new(), unwritten: self.unwritten.len() };
        let now = clock.nanos();
        let (first, _) = self.next(now, pool.gate());
        if wishes.is_empty() || first > until || self.is_surely_covered(wishes.len() as u64, first, until) {
            return due;
        }
        for ((index, tenant, end), wanted) in self.wanted(wishes, first, until, now) {
            let ledger = &mut self.ledgers[index];
            ledger.forget(now);
            let (count, block, forget) = (ledger.count.clone(), ledger.block, ledger.forgotten_before(clock));
            let sub = ledger.open_sub(&tenant, end, clock);
            if sub.used.saturating_add(wanted) <= sub.charged {
                continue;
            }
            let (ends_at, calls) = (sub.ends_at, sub.used.saturating_add(block.max(wanted)));
            let spend = Spend { pool: pool.name.to_string(), count, tenant: tenant.to_string(), ends_at, calls };
            due.charges.push(Charge { spend, forget });
            due.payments.push(Payment { ledger: index, tenant, ends_at, calls });
        }
        due
    }

    fn wanted(&mut self, wishes: &[Arc<str>], first: Nanos, until: Nanos, now: Nanos) -> Wanted {
        let mut wanted = Wanted::new();
        let slots = rule::slots(&self.counts, self.gap, first, until, wishes.len());
        let mut slots = slots.into_iter().peekable();
        for tenant in wishes {
            let Some(at) = slots.peek().copied() else { break };
            if self.tenant_wait(tenant, at, now).is_some() {
                continue;
            }
            slots.next();
            for (index, ledger) in self.ledgers.iter_mut().enumerate() {
                let (owner, (own, other)) = (ledger.tenant_of(tenant), ledger.ends(at));
                for end in [Some(own), other].into_iter().flatten() {
                    let calls: &mut u64 = wanted.entry((index, owner.clone(), end)).or_default();
                    *calls = (*calls + 1).min(ledger.most);
                }
            }
        }
        wanted
    }

    /// A quick look that spares the exact one: true when the wishes are surely covered, false when that is not known.
    fn is_surely_covered(&mut self, wishes: u64, first: Nanos, until: Nanos) -> bool {
        self.ledgers.iter_mut().all(|ledger| {
            let ends = ledger.ends(first);
            if ledger.ends(until) != ends {
                return false;
            }
            let is_left = |sub: &Sub| sub.end == ends.0 && sub.charged.saturating_sub(sub.used) >= wishes;
            let account = ledger.accounts.get("").filter(|_| ledger.key == Key::Vendor && ends.1.is_none());
            account.is_some_and(|subs| subs.iter().rev().any(is_left))
        })
    }

    /// The charges are durable.
    pub(super) fn paid(&mut self, due: Due) {
        self.unwritten.drain(..due.unwritten.min(self.unwritten.len()));
        for Payment { ledger, tenant, ends_at, calls } in due.payments {
            let subs = self.ledgers[ledger].accounts.get_mut(&tenant);
            if let Some(sub) = subs.and_then(|subs| subs.iter_mut().find(|sub| sub.ends_at == ends_at)) {
                sub.charged = sub.charged.max(calls);
            }
        }
    }

    /// What is charged ahead and not used; from here on it is not covered any more.
    pub(super) fn unused(&mut self, pool: &LocalPool, clock: &Clock) -> Vec<Charge> {
        let mut charges = Vec::new();
        for ledger in &mut self.ledgers {
            let forget = ledger.forgotten_before(clock);
            for (tenant, subs) in &mut ledger.accounts {
                for sub in subs.iter_mut().filter(|sub| sub.used < sub.charged) {
                    sub.charged = sub.used;
                    let (pool, count, tenant) = (pool.name.to_string(), ledger.count.clone(), tenant.to_string());
                    let spend = Spend { pool, count, tenant, ends_at: sub.ends_at, calls: sub.used };
                    charges.push(Charge { spend, forget });
                }
            }
        }
        charges
    }
}
