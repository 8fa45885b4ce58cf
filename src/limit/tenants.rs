//! A limit that each tenant has for itself: a count for each tenant with calls that still matter, and what all others have.
//!
//! Never knows a pool's other limits (see [`state`](super::state)).

use std::{collections::HashMap, sync::Arc};

use super::{
    Limit,
    rule::Count,
    state::{MS, SECOND},
};
use crate::clock::Nanos;

/// Tenants of one limit with calls that still matter. One more has to wait until the calls of another are forgotten.
pub const MAX_TENANTS: usize = 10_000;

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

impl TenantLimit {
    pub(super) fn new(limit: Limit, fresh: Count, tick: Nanos) -> TenantLimit {
        let sweep_at = MAX_TENANTS / 8;
        TenantLimit { limit, tick, fresh, counts: HashMap::new(), sweep_at, next_sweep: Nanos::MIN }
    }

    /// For a tenant of which nothing is known, except that it may have used up everything by then.
    pub(super) fn used_up(&self, at: Nanos) -> Count {
        let mut count = Count::on_grid(&self.limit, self.tick);
        count.fill(at);
        count
    }

    /// Until when the tenant may not call at `at`.
    pub(super) fn wait(&mut self, tenant: &Arc<str>, at: Nanos, now: Nanos) -> Option<Nanos> {
        if !self.counts.contains_key(tenant) && self.is_full(now) {
            return Some(at.saturating_add(SECOND));
        }
        let until = self.counts.get(tenant).unwrap_or(&self.fresh).earliest(at);
        (until > at).then_some(until)
    }

    pub(super) fn charge(&mut self, tenant: &Arc<str>, at: Nanos, now: Nanos) {
        if let Some(count) = self.counts.get_mut(tenant) {
            return count.charge(at);
        }
        if self.fresh.is_idle(now) {
            self.fresh.forget(); // what was used up at the start
        }
        let mut count = self.fresh.clone();
        count.charge(at);
        self.counts.insert(tenant.clone(), count);
    }

    /// True when no further tenant can be tracked. Drops tenants whose calls are forgotten, but does not look for them too often.
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
