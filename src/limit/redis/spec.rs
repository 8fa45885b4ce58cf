//! A pool as the scripts know it: numbers in microseconds, names of what is counted, and the calendar edges around now.
//!
//! Pure: never talks to Redis, and derives nothing that [`rule`] does not.

use serde::Serialize;

use crate::{
    clock::{Nanos, nanos},
    limit::{
        Key, Limit, Per,
        calendar::{SKEW, period_at},
        ledger::{Ledger, SUB_WINDOWS, history_names},
        rule::{self, Count, Method},
        state::{DURABLE_FROM, MAX_RECENT, SECOND},
        tenants::MAX_TENANTS,
    },
};

/// Redis' clock counts whole microseconds.
pub(super) const MICRO: Nanos = 1_000;

/// Numbers in a script are doubles, exact up to here.
const MOST_EXACT: u64 = 1 << 53;

/// The edges of five calendar periods: the one before, the one of now, and those after. No permit lies beyond.
pub(super) type Edges = [i64; 5];

#[derive(Debug, Serialize)]
pub(super) struct Spec {
    pub(super) pool: String,
    /// How far ahead a permit may lie at most.
    longest: i64,
    /// How far apart permits are at least, and the number of the limit that wants it (0: none).
    gap: i64,
    gap_by: usize,
    skew: i64,
    most_tenants: usize,
    most_recent: usize,
    limits: Vec<LimitSpec>,
    ledgers: Vec<LedgerSpec>,
}

#[derive(Debug, Serialize)]
struct LimitSpec {
    /// What is counted, and how: two configs that differ only in N share it.
    name: String,
    calls: u64,
    per_tenant: bool,
    /// How long a call can be remembered.
    memory: i64,
    /// The number of its ledger; 0 when it is short enough to be waited out.
    ledger: usize,
    /// The number of its calendar; 0 for a rolling one.
    zone: usize,
    #[serde(flatten)]
    shape: ShapeSpec,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum ShapeSpec {
    Gcra { every: i64, burst: u64 },
    Exact { window: i64, keep: usize },
    Parts { window: i64, len: i64, most: usize },
    Calendar,
}

#[derive(Debug, Serialize)]
struct LedgerSpec {
    name: String,
    per_tenant: bool,
    /// See [`sub_window`].
    len: i64,
    zone: usize,
    block: u64,
}

impl Spec {
    /// For the limits of a pool, those of the whole pool first; also the ledgers and calendars that the numbers in it mean, counted from 1.
    pub(super) fn new(pool: &str, limits: &[Limit], longest: Nanos) -> (Spec, Vec<Ledger>, Vec<Per>) {
        let shared = limits.iter().take_while(|limit| limit.key == Key::Vendor).count();
        let (gap, gap_by) = rule::gap(&limits[..shared], MICRO);
        let mut spec = Spec {
            pool: pool.to_owned(),
            longest: micros_up(longest),
            gap: gap / MICRO,
            gap_by: gap_by.map_or(0, |i| i + 1),
            skew: micros_up(SKEW),
            most_tenants: MAX_TENANTS,
            most_recent: MAX_RECENT,
            limits: Vec::new(),
            ledgers: Vec::new(),
        };
        let (mut ledgers, mut zones) = (Vec::new(), Vec::new());
        let counts: Vec<Count> = limits.iter().map(|limit| Count::on_grid(limit, MICRO)).collect();
        for ((limit, count), name) in limits.iter().zip(&counts).zip(history_names(limits.iter().zip(&counts))) {
            spec.limits.push(LimitSpec::new(name, limit, count, &mut ledgers, &mut zones));
        }
        spec.ledgers = ledgers.iter().map(|ledger| LedgerSpec::new(ledger, &mut zones)).collect();
        (spec, ledgers, zones)
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are JSON")
    }
}

impl LimitSpec {
    fn new(name: String, limit: &Limit, count: &Count, ledgers: &mut Vec<Ledger>, zones: &mut Vec<Per>) -> LimitSpec {
        let shape = match count.method() {
            Method::Gcra { every, burst } => ShapeSpec::Gcra { every: micros_up(every), burst },
            Method::Exact { window, kept } => ShapeSpec::Exact { window: micros_up(window), keep: kept },
            Method::Parts { window, len, kept } => {
                ShapeSpec::Parts { window: micros_up(window), len: micros_up(len), most: kept }
            }
            Method::Calendar => ShapeSpec::Calendar,
        };
        let is_short = count.memory().is_some_and(|memory| memory <= DURABLE_FROM);
        let memory = match count.method() {
            Method::Gcra { every, burst } => every.saturating_mul(i64::try_from(burst).unwrap_or(i64::MAX)),
            Method::Exact { window, .. } | Method::Parts { window, .. } => window,
            Method::Calendar => 32 * 86_400 * SECOND, // longer than any month, with the skew
        };
        LimitSpec {
            name,
            calls: limit.calls.clamp(1, MOST_EXACT),
            per_tenant: limit.key == Key::Tenant,
            memory: micros_up(memory),
            ledger: if is_short { 0 } else { ledger_of(limit, ledgers) },
            zone: zone_of(&limit.per, zones),
            shape,
        }
    }
}

impl LedgerSpec {
    fn new(ledger: &Ledger, zones: &mut Vec<Per>) -> LedgerSpec {
        LedgerSpec {
            name: ledger.count.clone(),
            per_tenant: ledger.key == Key::Tenant,
            len: sub_window(ledger),
            zone: zone_of(&ledger.per, zones),
            block: ledger.block.clamp(1, MOST_EXACT),
        }
    }
}

/// Length of a ledger's sub-windows; 0 for one of a calendar.
pub(super) fn sub_window(ledger: &Ledger) -> i64 {
    match &ledger.per {
        Per::Rolling(period) => nanos(*period) / SUB_WINDOWS / MICRO,
        _ => 0,
    }
}

/// Limits of the same period and key share a ledger.
fn ledger_of(limit: &Limit, ledgers: &mut Vec<Ledger>) -> usize {
    let new = Ledger::new(limit);
    let known = ledgers.iter().position(|ledger| ledger.count == new.count);
    let i = known.unwrap_or(ledgers.len());
    match ledgers.get_mut(i) {
        Some(same) => (same.block, same.memory) = (same.block.min(new.block), same.memory.max(new.memory)),
        None => ledgers.push(new),
    }
    i + 1
}

fn zone_of(per: &Per, zones: &mut Vec<Per>) -> usize {
    if matches!(per, Per::Rolling(_)) {
        return 0;
    }
    let known = zones.iter().position(|zone| zone == per);
    known.unwrap_or_else(|| {
        zones.push(per.clone());
        zones.len() - 1
    }) + 1
}

/// The edges of the periods around now.
pub(super) fn edges(per: &Per, now: Nanos) -> Edges {
    let (start, end) = period_at(per, now);
    let before = period_at(per, start.saturating_sub(1)).0;
    let next = period_at(per, end).1;
    let last = period_at(per, next).1;
    [before, start, end, next, last].map(|edge| edge.div_euclid(MICRO))
}

pub(super) fn micros_up(interval: Nanos) -> i64 {
    interval.saturating_add(MICRO - 1).div_euclid(MICRO)
}
