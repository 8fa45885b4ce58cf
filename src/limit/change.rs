//! The limits of a pool change, while it runs or between two starts: which history goes on, and what a count without one begins with.
//!
//! Never gives a permit and never reads the `Book` itself (see [`local`](super::local)).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Former, Limit, PoolLimits,
    ledger::{Ledger, history_names},
    outgoing::Enforced,
    past::{self, Calls, Past, Rows, later_by, still_matter, unknown_to},
    rule::Count,
    state::State,
    tenants::TenantLimit,
};
use crate::{
    book::Spend,
    clock::{Clock, Nanos},
};

/// The permits on record, and since when they all are; a process that begins has none.
pub(super) struct OnRecord {
    pub(super) since: Option<Nanos>,
    pub(super) permits: Vec<(Nanos, Arc<str>)>,
}

impl State {
    /// Puts these limits in force. A count goes on with the history of one that differs only in N; others begin with what is known of the
    /// calls before (see [`past`]).
    /// `None` keeps the limits, without the replaced ones that do not bind any more.
    pub(super) fn change(&mut self, limits: Option<Vec<Limit>>, spends: &[Spend], clock: &Clock, tick: Nanos) {
        let now = clock.nanos();
        let newest = self.newest().max(now);
        let own = std::mem::take(&mut self.enforced.own);
        let mut formers = std::mem::take(&mut self.formers);
        let limits = match limits {
            None => own,
            Some(limits) => {
                formers.insert(0, Former { limits: own, until: newest });
                limits
            }
        };
        let formers = still_matter(formers, &limits, now);
        let enforced = Enforced::new(limits, &formers, now);
        let mut changed = State::empty(enforced, formers, newest, tick);
        for spend in spends {
            changed.restore_ledger(spend, &|at| clock.nanos_at(at));
        }
        let mut before = std::mem::replace(self, changed);
        self.go_on_after(&mut before);
        let (old, new) = (before.names(), self.names());
        let permits = self.recent_calls();
        let rows = Rows::new(spends, &|at| clock.nanos_at(at));
        self.begin(&OnRecord { since: Some(self.recorded_since), permits }, &rows, now, |name| old.contains(name));
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
    }

    /// Charges what is known of the calls before to the counts that do not go on with a history of their own.
    pub(super) fn begin(&mut self, record: &OnRecord, rows: &Rows, now: Nanos, goes_on: impl Fn(&String) -> bool) {
        let (names, formers) = (self.names(), std::mem::take(&mut self.formers));
        let own = past::names(&self.enforced.own);
        let all: Calls = record.permits.iter().map(|(at, _)| (*at, 1)).collect();
        for (i, name) in names.iter().enumerate().filter(|(_, name)| !goes_on(name)) {
            let unknown = unknown_to(name, &own, &formers);
            // Calls since the last change are in the book, or count as used up because the process has just begun.
            let Some(recorded_since) = record.since.or(unknown.first().map(|former| former.until)) else { continue };
            let ahead = self.calendars_ahead;
            let tenant_limit = i.checked_sub(self.counts.len());
            let limit = tenant_limit.map_or_else(|| &self.shared[i], |i| &self.tenants[i].limit);
            let late_by = later_by(&formers, limit);
            let past = Past { recent: &all, recorded_since, formers: unknown, rows, tenant: None, ahead, late_by };
            match tenant_limit {
                None => past.charge(&mut self.counts[i], self.shared[i].calls, now),
                Some(i) => self.tenants[i].begin(&past, &record.permits, now),
            }
        }
        self.formers = formers;
    }

    /// What each limit counts: those of the pool first.
    pub(super) fn names(&self) -> Vec<String> {
        let shared = self.shared.iter().zip(&self.counts);
        history_names(shared.chain(self.tenants.iter().map(|each| (&each.limit, &each.fresh))))
    }
}

impl TenantLimit {
    fn go_on(&mut self, before: &TenantLimit) {
        let counts =
            before.counts.iter().map(|(tenant, count)| (Arc::clone(tenant), count.clone().retuned(&self.fresh)));
        self.counts = counts.collect();
        // A tenant that has not called since a cold start has used up the whole bucket of now, not the earlier one.
        self.fresh = match before.fresh.used_up_at() {
            Some(at) => self.used_up(at),
            None => before.fresh.clone().retuned(&self.fresh),
        };
    }

    fn begin(&mut self, past: &Past<'_>, permits: &[(Nanos, Arc<str>)], now: Nanos) {
        let mut by_tenant: BTreeMap<Arc<str>, Calls> =
            past.rows.tenants().map(|name| (name.into(), Calls::new())).collect();
        for (at, tenant) in permits {
            by_tenant.entry(tenant.clone()).or_default().push((*at, 1));
        }
        let begun = |tenant: &str, recent: &Calls, mut count: Count| {
            Past { recent, tenant: Some(tenant), ..*past }.charge(&mut count, self.limit.calls, now);
            count
        };
        for (tenant, recent) in &by_tenant {
            let count = begun(tenant, recent, self.fresh.clone());
            self.counts.insert(tenant.clone(), count);
        }
        // Nothing is on record of all others.
        self.fresh = begun("", &Calls::new(), self.fresh.clone());
    }
}

/// How long what the book has of these limits matters.
pub(super) fn memory(limits: &[Limit]) -> Nanos {
    limits.iter().map(|limit| Ledger::new(limit).memory).max().unwrap_or(0)
}

/// The same for all limits of a pool, the former ones included.
pub(super) fn memory_of(pool: &PoolLimits) -> Nanos {
    pool.formers.iter().map(|former| memory(&former.limits)).fold(memory(&pool.limits), Nanos::max)
}
