//! Where a job stands: what waits in each lane, and how many jobs go before one. And the counters for it, read at start.
//!
//! Never counts more than a bounded number of rows, and never reads them through the writer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, named_params};

use super::{
    index::{Index, LaneId, Row},
    rows,
    steady::Now,
    writer::Shared,
};
use crate::{
    clock::Time,
    job::{
        JobId, Lane, Priority, Stage,
        turn::{Lanes, Waiting},
    },
    store::histogram::Around,
};

/// Rows counted for one place at most.
const COUNTED: u64 = 2_000;
/// What waits in more lanes than this is reckoned only now and then.
const MANY: usize = 256;
const RECKON_EVERY: Duration = Duration::from_secs(1);

/// What waits for each vendor with many lanes, and when that was reckoned.
#[derive(Default)]
pub(super) struct Reckoned(Mutex<HashMap<String, (Instant, Arc<Lanes>)>>);

impl Reckoned {
    /// What waits for a vendor and is due by then.
    pub(super) fn lanes(&self, vendor: &str, due_by: Time, shared: &Shared) -> Arc<Lanes> {
        let is_now = due_by <= shared.clock.now();
        if let Some((at, lanes)) = self.lock().get(vendor).filter(|_| is_now)
            && at.elapsed() < RECKON_EVERY
        {
            return lanes.clone();
        }
        let lanes = Arc::new(shared.index().standing(vendor, due_by));
        if is_now && lanes.lanes.len() > MANY {
            self.lock().insert(vendor.to_owned(), (Instant::now(), lanes.clone()));
        }
        lanes
    }

    /// A panic elsewhere makes none of this wrong.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Arc<Lanes>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// What waits in each lane of a vendor and is due by then.
    pub(super) fn standing(&self, vendor: &str, due_by: Time) -> Lanes {
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return Lanes::default() };
        let turns = state.rounds.iter().flat_map(|round| round.iter().copied().zip(0_u32..));
        let turns: HashMap<LaneId, u32> = turns.collect();
        let mut leased: HashMap<LaneId, u64> = HashMap::new();
        for held in self.leases.values() {
            *leased.entry(held.lane).or_default() += 1;
        }
        let mut lanes = Lanes { lanes: HashMap::new(), paid: state.passes, last_due: None };
        for (id, counted) in self.counts.of_vendor(vendor) {
            let jobs = counted.due_by(due_by).saturating_sub(leased.get(&id).copied().unwrap_or(0));
            let waiting = Waiting { jobs, turn: turns.get(&id).copied().unwrap_or(u32::MAX) };
            lanes.lanes.insert((counted.priority, counted.tenant.clone()), waiting);
            let last_due = counted.calls.last_due().max(counted.polls.last_due());
            lanes.last_due = lanes.last_due.max(last_due);
        }
        lanes
    }

    /// Jobs of a lane before this call, if that lies within what is in memory.
    fn on_shelf(&self, row: Row, now: Now) -> Option<u64> {
        let state = self.lanes.get(&row.lane)?;
        Some((state.calls.before(row.n)? + state.polls.all_due(now)?) as u64)
    }

    fn leased_of(&self, lane: LaneId) -> u64 {
        self.leases.values().filter(|held| held.lane == lane).count() as u64
    }
}

/// How many jobs of its lane go before a job that waits for its call.
pub(super) fn ahead(conn: &Connection, id: JobId, shared: &Shared) -> rusqlite::Result<Option<u64>> {
    let found = conn
        .prepare_cached(
            "SELECT j.n, j.lane, j.due_at, l.vendor FROM jobs j JOIN lanes l ON l.lane = j.lane WHERE j.id = ?1 AND j.stage = 0",
        )?
        .query_row([id.as_bytes()], |row| {
            Ok((Row { n: row.get(0)?, lane: row.get(1)? }, Time(row.get(2)?), row.get::<_, String>(3)?))
        })
        .optional()?;
    let Some((row, due_at, vendor)) = found else { return Ok(None) };
    let (around, polls, leased) = {
        let (index, now) = shared.index_now();
        if index.is_leased(id) {
            return Ok(None);
        }
        if let Some(ahead) = index.on_shelf(row, now) {
            return Ok(Some(ahead));
        }
        let Some((around, polls)) = index.counts.around(row.lane, &vendor, due_at, now.wall) else { return Ok(None) };
        (around, polls, index.leased_of(row.lane))
    };
    let counted = count(conn, row, due_at, Time(i64::MIN))?;
    let calls = if counted < COUNTED { counted } else { around.before + within(conn, row, due_at, &around)? };
    Ok(Some((calls + polls).saturating_sub(leased)))
}

/// How many calls of its lane that are due from then on go before a call, up to the bound.
fn count(conn: &Connection, row: Row, due_at: Time, from: Time) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM jobs
               WHERE lane = :lane AND stage = 0 AND stage < 2 AND due_at >= :from AND (due_at, n) < (:due_at, :n) LIMIT :most)";
    let values =
        named_params! { ":lane": row.lane, ":from": from.0, ":due_at": due_at.0, ":n": row.n, ":most": COUNTED };
    conn.prepare_cached(sql)?.query_row(values, |row| row.get(0))
}

/// How many jobs of its piece go before a call: counted as far as the bound lets us, judged by its time or its arrival beyond.
fn within(conn: &Connection, row: Row, due_at: Time, around: &Around) -> rusqlite::Result<u64> {
    let counted = count(conn, row, due_at, around.from)?;
    if counted < COUNTED {
        return Ok(counted);
    }
    let first: (i64, i64) = conn
        .prepare_cached(
            "SELECT due_at, n FROM jobs WHERE lane = ?1 AND stage = 0 AND stage < 2 AND due_at >= ?2 ORDER BY due_at, n LIMIT 1",
        )?
        .query_row((row.lane, around.from.0), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let judged = if first.0 == due_at.0 {
        // Many jobs due in one instant, the piece's first: they go by arrival.
        let last: i64 = conn
            .prepare_cached("SELECT max(n) FROM jobs WHERE lane = ?1 AND stage = 0 AND stage < 2 AND due_at = ?2")?
            .query_row((row.lane, due_at.0), |row| row.get(0))?;
        let (passed, all) = (row.n.abs_diff(first.1), last.abs_diff(first.1).max(1));
        (u128::from(around.jobs) * u128::from(passed) / u128::from(all)) as u64
    } else {
        around.jobs * around.share / 1000
    };
    Ok(judged.clamp(COUNTED, around.jobs.max(COUNTED)))
}

/// What the index has to know at start: the lanes with work, how much waits in each and when, the earliest alarm; and the newest job's
/// number.
pub(super) fn read_index(conn: &Connection) -> rusqlite::Result<(Index, i64)> {
    let mut index = Index::default();
    // Each half by an index of its own: what wants to go, and what has an alarm (a job that awaits a callback always has one).
    let mut counts = conn.prepare(
        "SELECT l.lane, l.vendor, l.priority, l.tenant, c.stage, c.jobs, c.second
         FROM (SELECT lane, stage, count(*) AS jobs, due_at / 1000 AS second FROM jobs WHERE stage < 2 GROUP BY lane, stage, due_at / 1000
               UNION ALL
               SELECT lane, stage, count(*), 0 FROM jobs WHERE alarm_at IS NOT NULL AND stage = 2 GROUP BY lane) c
         JOIN lanes l ON l.lane = c.lane",
    )?;
    let mut found = counts.query([])?;
    let mut last: Option<(LaneId, Lane)> = None;
    while let Some(row) = found.next()? {
        let id: LaneId = row.get(0)?;
        let lane = match last.take().filter(|(last, _)| *last == id) {
            Some((_, lane)) => lane,
            None => {
                let priority = Priority::ALL.get(row.get::<_, usize>(2)?).copied().unwrap_or_default();
                let (vendor, tenant): (String, String) = (row.get(1)?, row.get(3)?);
                Lane { vendor: vendor.into(), priority, tenant: tenant.into() }
            }
        };
        let (stage, second): (Stage, i64) = (rows::stage(row.get(4)?)?, row.get(6)?);
        if stage != Stage::Await {
            index.add_unread(id, &lane, stage);
        }
        index.recount(id, &lane, None, Some((stage, Time(second.saturating_mul(1000)))), row.get(5)?);
        last = Some((id, lane));
    }
    index.next_alarm = conn.query_row("SELECT min(alarm_at) FROM jobs", [], |row| row.get(0))?;
    let next_n: Option<i64> = conn.query_row("SELECT max(n) FROM jobs", [], |row| row.get(0))?;
    Ok((index, next_n.unwrap_or(0)))
}
