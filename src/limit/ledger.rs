//! What the book has of the long limits: sub-windows, how much of each is used, and how much is paid for in advance.
//!
//! Never writes the book itself (see [`local`](super::local)) and never decides when a call may go (see [`rule`](super::rule)).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Key, Limit, Per,
    calendar::{Period, SKEW, period_at, stepped},
    rule::Count,
    state::SECOND,
    tenants::MAX_TENANTS,
};
use crate::clock::{Clock, Nanos, Time, nanos};

const MS: Nanos = 1_000_000;

/// Sub-windows in which the `Book` counts a rolling period.
pub(super) const SUB_WINDOWS: Nanos = 256;

/// A calendar period may come back, when the clock is set back.
const CALENDAR_MEMORY: Nanos = 2 * 86_400 * SECOND;

/// Blocks charged ahead: this share of N, one 500th (0.2 %).
const BLOCK_SHARE: u64 = 500;

/// What the `Book` has of one count of the pool. Limits of the same period and key share it: every call is charged to all of them.
pub(super) struct Ledger {
    pub(super) count: String,
    pub(super) key: Key,
    pub(super) per: Per,
    /// Calls charged ahead at least.
    pub(super) block: u64,
    /// N: more are never charged together.
    pub(super) most: u64,
    /// How long a sub-window matters after its end.
    pub(super) memory: Nanos,
    /// By tenant; the empty name for a count of the whole pool.
    pub(super) accounts: HashMap<Arc<str>, VecDeque<Sub>>,
    /// How far wall time is ahead of the timeline: calendar periods are of wall time.
    pub(super) ahead: Nanos,
    /// The calendar period of the newest call, so that its edges are computed once.
    period: (Nanos, Nanos),
    sweep_at: usize,
}

/// What to write to the book: the tenant and name of each sub-window, and its calls.
pub(super) type Changes = Vec<(Arc<str>, Time, u64)>;

/// One sub-window.
pub(super) struct Sub {
    /// On the limiter's timeline, or in wall time for a calendar. Its calls were made before this, and not before the end of the previous one.
    pub(super) end: Nanos,
    /// The same in the `Book`, where it is the sub-window's name.
    pub(super) ends_at: Time,
    pub(super) used: u64,
    /// Durable in the `Book`: never less than `used`.
    pub(super) charged: u64,
}

impl Ledger {
    pub(super) fn new(limit: &Limit) -> Ledger {
        // The whole window even for a paced limit: the next config may make it a window.
        let memory = match &limit.per {
            Per::Rolling(period) => nanos(*period).saturating_add(nanos(limit.guard)),
            _ => CALENDAR_MEMORY,
        };
        Ledger {
            count: count_name(limit),
            key: limit.key,
            per: limit.per.clone(),
            block: limit.calls.div_ceil(BLOCK_SHARE),
            most: limit.calls,
            memory,
            accounts: HashMap::new(),
            ahead: 0,
            period: (0, 0),
            sweep_at: MAX_TENANTS / 8,
        }
    }

    pub(super) fn tenant_of(&self, tenant: &Arc<str>) -> Arc<str> {
        match self.key {
            Key::Vendor => "".into(),
            Key::Tenant => tenant.clone(),
        }
    }

    pub(super) fn account(&self, tenant: &Arc<str>) -> Option<&VecDeque<Sub>> {
        self.accounts.get(if self.key == Key::Vendor { "" } else { tenant.as_ref() })
    }

    /// The end of the sub-window that a call at `at` counts in, and of the other one when it is near the edge of a calendar period.
    pub(super) fn ends(&mut self, at: Nanos) -> (Nanos, Option<Nanos>) {
        if let Per::Rolling(period) = &self.per {
            let len = (nanos(*period) / SUB_WINDOWS).max(MS);
            return (at.div_euclid(len).saturating_add(1).saturating_mul(len), None);
        }
        let at = at.saturating_add(self.ahead);
        if at < self.period.0 || at >= self.period.1 {
            self.period = period_at(&self.per, at);
        }
        let (start, end) = self.period;
        if at.saturating_sub(SKEW) < start {
            return (end, Some(start));
        }
        let near_end = at.saturating_add(SKEW) >= end;
        (end, near_end.then(|| period_at(&self.per, end).1))
    }

    pub(super) fn covers(&mut self, tenant: &Arc<str>, at: Nanos) -> bool {
        let (own, other) = self.ends(at);
        let Some(subs) = self.account(tenant) else { return false };
        let covered = |end: Nanos| subs.iter().rev().any(|sub| sub.end == end && sub.used < sub.charged);
        covered(own) && other.is_none_or(covered)
    }

    pub(super) fn each_sub(&mut self, tenant: &Arc<str>, at: Nanos, change: impl Fn(&mut Sub)) {
        let (own, other) = self.ends(at);
        let key = if self.key == Key::Vendor { "" } else { tenant.as_ref() };
        let Some(subs) = self.accounts.get_mut(key) else { return };
        for end in [Some(own), other].into_iter().flatten() {
            if let Some(sub) = subs.iter_mut().rev().find(|sub| sub.end == end) {
                change(sub);
            }
        }
    }

    /// The sub-window of a tenant that ends then; begun if there is none. One of a calendar goes on across a restart, since the end of its period
    /// is the same; a rolling one starts anew beside the one that the previous process began.
    pub(super) fn open_sub(&mut self, tenant: &Arc<str>, end: Nanos, clock: &Clock) -> &mut Sub {
        let rolling = matches!(self.per, Per::Rolling(_));
        let subs = self.accounts.entry(tenant.clone()).or_default();
        let known = subs.iter().rposition(|sub| sub.end == end);
        let i = known.unwrap_or_else(|| {
            let ends_at = if rolling { name_of(end, clock, subs) } else { Time(end.div_euclid(MS)) };
            subs.push_back(Sub { end, ends_at, used: 0, charged: 0 });
            subs.len() - 1
        });
        &mut subs[i]
    }

    /// The wall clock was set: sub-windows of a rolling period get the names that they would have by the new time, so that after a restart
    /// their calls are as old as they are. Gives what to write: tenant, name, and calls.
    pub(super) fn rename(&mut self, now: Nanos, clock: &Clock) -> Changes {
        let mut changes = Vec::new();
        if !matches!(self.per, Per::Rolling(_)) {
            return changes;
        }
        for (tenant, subs) in &mut self.accounts {
            subs.retain(|sub| sub.end.saturating_add(self.memory) > now);
            for i in 0..subs.len() {
                let before = subs[i].ends_at;
                subs[i].ends_at = name_of(subs[i].end, clock, subs);
                changes.push((tenant.clone(), before, 0));
            }
            // These come last: an earlier name of one may be another's name by now.
            changes.extend(subs.iter().map(|sub| (tenant.clone(), sub.ends_at, sub.charged)));
        }
        changes
    }

    /// The wall clock was set, and is `to` ahead of the timeline: these are all the calls that matter. Only calendars go by it. Gives what to
    /// write.
    pub(super) fn recount(&mut self, to: Nanos, calls: &[(Nanos, Arc<str>)], clock: &Clock) -> Changes {
        if matches!(self.per, Per::Rolling(_)) {
            return Vec::new();
        }
        (self.ahead, self.period) = (to, (0, 0));
        self.accounts.values_mut().flatten().for_each(|sub| sub.used = 0);
        for (at, tenant) in calls {
            let (owner, (own, other)) = (self.tenant_of(tenant), self.ends(*at));
            for end in [Some(own), other].into_iter().flatten() {
                self.open_sub(&owner, end, clock).used += 1;
            }
        }
        let mut changes = Vec::new();
        for (tenant, subs) in &mut self.accounts {
            for sub in subs {
                sub.charged = sub.charged.max(sub.used);
                changes.push((tenant.clone(), sub.ends_at, sub.charged));
            }
        }
        changes
    }

    /// The same where the times of the calls are not known (see [`stepped`]).
    pub(super) fn step(&mut self, to: Nanos, now: Nanos, clock: &Clock) -> Changes {
        let before = std::mem::replace(&mut self.ahead, to);
        let mut changes = Vec::new();
        if matches!(self.per, Per::Rolling(_)) {
            return changes;
        }
        let per = self.per.clone();
        let tenants: Vec<Arc<str>> = self.accounts.keys().cloned().collect();
        for tenant in tenants {
            let periods = self.accounts[&tenant].iter().map(|sub| {
                let (start, end) = period_at(&per, sub.end.saturating_sub(1));
                Period { start, end, calls: sub.used }
            });
            for period in stepped(&per, &periods.collect(), (before, to), now) {
                let sub = self.open_sub(&tenant, period.end, clock);
                sub.used = sub.used.max(period.calls);
                sub.charged = sub.charged.max(sub.used);
                changes.push((tenant.clone(), sub.ends_at, sub.charged));
            }
        }
        changes
    }

    /// What ended before this is of no use to this process or to one that starts later.
    pub(super) fn forgotten_before(&self, clock: &Clock) -> Time {
        let oldest = clock.nanos().saturating_sub(self.memory).saturating_sub(60 * SECOND);
        // A wall clock that is set forward for a while must not make the book forget too early.
        clock.time_at(oldest).min(Time(oldest.div_euclid(MS)))
    }

    /// Drops what does not matter any more.
    pub(super) fn forget(&mut self, now: Nanos) {
        let now = if matches!(self.per, Per::Rolling(_)) { now } else { now.saturating_add(self.ahead) };
        let memory = self.memory;
        let gone = |sub: &Sub| sub.end.saturating_add(memory) <= now;
        for subs in self.accounts.values_mut().filter(|subs| subs.len() > 300) {
            subs.retain(|sub| !gone(sub));
        }
        if self.accounts.len() >= self.sweep_at {
            self.accounts.retain(|_, subs| !subs.iter().all(gone));
            self.sweep_at = (self.accounts.len() * 2).max(MAX_TENANTS / 8);
        }
    }
}

/// A name for a sub-window of a rolling period that no other one has: after a restart, or when the wall clock has moved, the usual one may be taken.
fn name_of(end: Nanos, clock: &Clock, subs: &VecDeque<Sub>) -> Time {
    let mut name = Time(clock.time_at(end).0.saturating_add(1));
    while subs.iter().any(|sub| sub.ends_at == name) {
        name.0 += 1;
    }
    name
}

/// Which count of its pool a limit charges: its period and key. Not N, so that the history survives a change of N.
pub(super) fn count_name(limit: &Limit) -> String {
    let zone = |zone: &jiff::tz::TimeZone| zone.iana_name().map_or_else(|| format!("{zone:?}"), str::to_owned);
    let key = match limit.key {
        Key::Vendor => "vendor",
        Key::Tenant => "tenant",
    };
    match &limit.per {
        Per::Rolling(period) if period.subsec_nanos() == 0 => format!("{}s/{key}", period.as_secs()),
        Per::Rolling(period) => format!("{}ns/{key}", period.as_nanos()),
        Per::Day(tz) => format!("day {}/{key}", zone(tz)),
        Per::Month(tz) => format!("month {}/{key}", zone(tz)),
    }
}

/// The name of what each limit counts, and how: a limit goes on with the history of one that differs only in N. Several limits of one pool with
/// the same name get a number each.
pub(super) fn history_names<'a>(limits: impl Iterator<Item = (&'a Limit, &'a Count)>) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let name = |(limit, count): (&Limit, &Count)| {
        let name = format!("{}+{}ns/{}", count_name(limit), limit.guard.as_nanos(), count.kind());
        let same = seen.entry(name.clone()).or_default();
        *same += 1;
        if *same == 1 { name } else { format!("{name}#{}", *same - 1) }
    };
    limits.map(name).collect()
}
