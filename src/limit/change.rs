//! The limits of a pool change while it runs: which history goes on, and what begins anew.
//!
//! Never gives a permit and never reads the `Book` itself: it is brought what the book has (see [`local`](super::local)).

use std::sync::Arc;

use super::{
    Limit,
    ledger::{Ledger, history_names},
    state::{State, TenantLimit},
};
use crate::{
    clock::{Clock, Nanos},
    store::book::Spend,
};

impl State {
    /// Has these limits from here on. A count goes on with the history of one that differs only in N. One that has none begins as a
    /// process does that knows nothing of the one before: used up at the newest permit when it is short, else with what the book has.
    pub(super) fn change(&mut self, limits: Vec<Limit>, spends: &[Spend], clock: &Clock, tick: Nanos) {
        let newest = self.newest().max(clock.nanos());
        let mut changed = State::cold(limits, newest, tick);
        for spend in spends {
            changed.restore(spend, clock, newest);
        }
        let before = std::mem::replace(self, changed);
        let (old, new) = (before.names(), self.names());
        let known = |i: usize| old.iter().position(|name| *name == new[i]);
        for (i, count) in self.counts.iter_mut().enumerate() {
            if let Some(known) = known(i) {
                *count = before.counts[known].clone().retuned(count);
            }
        }
        for (i, each) in self.tenants.iter_mut().enumerate() {
            // A limit's key is in its name: a tenant's goes on with a tenant's.
            if let Some(known) = known(self.counts.len() + i) {
                each.go_on(&before.tenants[known - before.counts.len()]);
            }
        }
        self.go_on_after(before);
    }

    /// What each limit counts: those of the pool first.
    fn names(&self) -> Vec<String> {
        let shared = self.shared.iter().zip(&self.counts);
        history_names(shared.chain(self.tenants.iter().map(|each| (&each.limit, &each.fresh))))
    }
}

impl TenantLimit {
    fn go_on(&mut self, before: &TenantLimit) {
        let counts =
            before.counts.iter().map(|(tenant, count)| (Arc::clone(tenant), count.clone().retuned(&self.fresh)));
        self.counts = counts.collect();
        // Whoever has not called since a cold start has the whole bucket of now used up, not that of before.
        self.fresh = match before.fresh.used_up_at() {
            Some(at) => self.used_up(at),
            None => before.fresh.clone().retuned(&self.fresh),
        };
    }
}

/// How long what the book has of these limits matters.
pub(super) fn memory(limits: &[Limit]) -> Nanos {
    limits.iter().map(|limit| Ledger::new(limit).memory).max().unwrap_or(0)
}
