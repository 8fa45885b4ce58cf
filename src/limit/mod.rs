//! May we call this vendor, and when? Limits belong to a pool (an account); a permit allows one call at one stated time.
//!
//! Never calls a vendor and never reads a job. [`rule`] is the pure arithmetic; [`local`] keeps it for one process,
//! [`redis`] for many.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

pub use past::Former;

use crate::{
    clock::{Nanos, Time},
    store_error::StoreError,
};

pub mod breaker;
pub mod breakers;
pub mod calendar;
mod change;
pub mod forecast;
mod late;
mod ledger;
pub mod local;
mod outgoing;
mod past;
mod payments;
pub mod redis;
pub mod rule;
mod state;
mod steps;
mod tenants;

/// One limit of a pool, checked and ready for the arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// How people name it: `id` from the config, else `calls/per` as written (`50/s`).
    pub id: Arc<str>,
    /// N: calls allowed in one period, at least 1.
    pub calls: u64,
    pub per: Per,
    pub shape: Shape,
    /// g: how much the period is stretched, because the vendor counts arrivals and the network jitters.
    pub guard: Duration,
    pub key: Key,
}

impl Limit {
    /// The name of what it counts: its period and key. Not N, so that what is known of the limit outlives a change of N.
    pub fn count(&self) -> String {
        ledger::count_name(self)
    }
}

/// The period of a limit.
#[derive(Debug, Clone, PartialEq)]
pub enum Per {
    /// Any window of this length, wherever it starts.
    Rolling(Duration),
    /// The vendor's calendar day, in its time zone.
    Day(jiff::tz::TimeZone),
    /// The vendor's calendar month, in its time zone.
    Month(jiff::tz::TimeZone),
}

/// How calls are spread inside the period. See `rule` for the arithmetic of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Evenly: one call each `ceil((T + g) / N)`.
    Paced,
    /// All at once if they like, then none until the oldest is T + g old.
    Window,
    /// A burst of up to this many (1..=N), then evenly.
    Bucket { burst: u64 },
    /// A count per calendar period; only with [`Per::Day`] and [`Per::Month`], which have no other shape.
    Calendar,
}

/// Whose calls a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// All calls of the pool together.
    Vendor,
    /// Each tenant by itself.
    Tenant,
}

/// A pool and its limits, as the config has them.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolLimits {
    pub pool: Arc<str>,
    pub limits: Vec<Limit>,
    /// What was in force before and may still matter, the newest first.
    pub formers: Vec<Former>,
}

/// Permission to make one call of a pool at `at`. It is charged when given: it can be used once, given back, or wasted.
#[derive(Debug)]
pub struct Permit {
    pub pool: Arc<str>,
    pub tenant: Arc<str>,
    /// Not before this.
    pub at: Nanos,
    /// A call that is later than this puts off later ones by the excess.
    pub on_time_until: Nanos,
    /// Not after this: a later call would eat into the guard that covers the network's jitter.
    pub late_after: Nanos,
}

impl Permit {
    /// For a pool without limits: all at once, and never late.
    fn without_limits(pool: &str, tenants: &[Arc<str>], at: Nanos) -> Vec<Answer> {
        let pool: Arc<str> = pool.into();
        let permit = |tenant: &Arc<str>| Permit {
            pool: pool.clone(),
            tenant: tenant.clone(),
            at,
            on_time_until: Nanos::MAX,
            late_after: Nanos::MAX,
        };
        tenants.iter().map(|tenant| Answer::Granted(permit(tenant))).collect()
    }

    /// By how much a call that leaves now puts off later ones, if it does.
    fn puts_off(&self, now: Nanos) -> Option<Nanos> {
        (now > self.on_time_until).then(|| (now - self.on_time_until).min(late::MOST))
    }

    fn check(&self, gate: Nanos, now: Nanos) -> Result<(), Missed> {
        if now > self.late_after {
            return Err(Missed::Late);
        }
        // A permit is never given for a time at which the gate is closed, so it was closed since.
        if gate > self.at { Err(Missed::GateClosed) } else { Ok(()) }
    }
}

/// A limiter's answer to one request for a permit.
#[derive(Debug)]
pub enum Answer {
    Granted(Permit),
    /// Not before `until`, because of the limit (or gate) named.
    NotBefore {
        until: Nanos,
        by: Blocker,
    },
}

impl Answer {
    fn permit(self) -> Option<Permit> {
        match self {
            Answer::Granted(permit) => Some(permit),
            Answer::NotBefore { .. } => None,
        }
    }
}

/// Why the next call of a pool has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A limit, by its id.
    Limit(Arc<str>),
    /// The vendor asked us to slow down (429, 503), or the limiter is starting cold.
    Gate,
}

/// When a pool's next call could go, as far as the limits of the whole pool go; nothing is charged by looking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The earliest time of the next permit; not before now.
    pub next_at: Nanos,
    /// What makes it later than now, if anything does.
    pub by: Option<Blocker>,
    /// How many permits are available between now and the `until` of the request, up to its `most`.
    pub room: usize,
}

/// A gate that a vendor has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Where that is known.
    pub since: Option<Time>,
    pub until: Nanos,
}

/// One limit's state for people: what `GET /vendors/{name}` shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    pub limit: Limit,
    /// Calls that count against the limit now (its whole pool; for a tenant limit, the busiest tenant).
    pub used: u64,
    /// When the next call is allowed by this limit alone.
    pub next_at: Nanos,
}

/// Why a permit may not be used any more. It stays charged: that wastes capacity and never breaks a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Woken after `late_after`.
    Late,
    /// The pool's gate has closed over the permit's time since it was given.
    GateClosed,
}

/// Gives permits for the calls of pools. No call is made without one; when the limiter cannot be reached, no call is made.
#[async_trait]
pub trait Limiter: Send + Sync {
    /// How far ahead permits should be reserved, so that a late wake-up or a round trip costs no capacity.
    fn horizon(&self) -> Duration;

    /// How many calls of a vendor this process may have in flight now, out of `most` in all processes. `busy`: how many it has or is
    /// about to have; with 0 others may use its share.
    async fn share_in_flight(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError>;

    /// When could the next call go, and how many before `until` (at most `most`)? Unknown pools have no limits.
    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError>;

    /// When could this tenant's next call go, and what makes that later than now? Its own limits count as well.
    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError>;

    /// A permit or two will be asked for soon, it is not known yet for whom: does what that takes and can be done before.
    async fn prepare(&self, _pool: &str) {}

    /// Reserves one permit for each of these tenants; one answer for each, in their order. Permits are future-dated, not after `until`, and never
    /// go backwards. Each is charged to all limits of its pool at once, or not given. A tenant over its own limit has to wait, and does not
    /// delay those behind it.
    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError>;

    /// The last look before the bytes go out: is this permit still good at `now`?
    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed>;

    /// The call with this permit has left: its first bytes were written by `now`, which is later than the last look if the machine paused
    /// in between. A late call puts off later ones of paced and bucket limits, so that half of the guard remains for the network.
    fn call_left(&self, permit: &Permit, now: Nanos);

    /// The time at `now` on the clock that all processes of this limiter share, in microseconds: for the record of calls.
    fn stamp(&self, pool: &str, now: Nanos) -> i64;

    /// Gives back permits that were not used and never will be. What a limit cannot take back exactly stays charged to it.
    async fn give_back(&self, permits: Vec<Permit>);

    /// Closes the gate of the whole pool until then, because the vendor asked for it. Never makes it open earlier than it would have.
    async fn close_gate(&self, pool: &str, until: Nanos);

    /// The pool's gate, if a vendor keeps it closed now. A gate that is closed only because the limiter starts cold does not count.
    async fn gate(&self, pool: &str) -> Result<Option<Gate>, StoreError>;

    /// Whether a vendor keeps the pool's gate closed now, as far as this process knows: for metrics.
    fn is_gated(&self, pool: &str) -> bool;

    /// Opens a gate that a vendor has closed, in every process.
    async fn open_gate(&self, pool: &str) -> Result<(), StoreError>;

    /// Puts these limits of the pool in force. A limit that differs from an earlier one only in N goes on with what was charged to that one.
    /// Earlier permits can still be used: they lie within the horizon. Does nothing for unknown pools.
    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError>;

    /// The pool's limits and how much of each is used.
    async fn usage(&self, pool: &str) -> Vec<Usage>;

    /// A clean stop: gives back what was charged ahead and not used.
    async fn stop(&self) -> Result<(), StoreError>;
}
