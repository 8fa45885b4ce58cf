//! The position of a job: how many jobs are ahead of it. And what the index reads at start.
//!
//! Never counts more than a bounded number of rows, and never reads them through the writer.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, named_params};

use super::{
    index::{Index, LaneId, Row},
    rows,
    writer::Core,
};
use crate::{
    clock::Time,
    job::{JobId, Lane, Priority, SMALL_PAYLOAD, Stage, turn},
    store::{Ahead, EXACT_PLACES, room::Load},
};

/// The other lanes of a vendor that have something due, as seen from one lane.
struct Others {
    /// What each priority has paid for its turns so far.
    paid: [u64; 3],
    /// By priority, in the order of their turns.
    lanes: [Vec<Other>; 3],
    /// Leased jobs of the lane itself, whose rows still say that they wait.
    leased: u64,
}

#[derive(Clone, Copy)]
struct Other {
    lane: LaneId,
    leased: u64,
    /// Its next turn is earlier than that of the lane itself.
    goes_first: bool,
}

impl Index {
    fn others(&self, vendor: &str, own: Row, due_by: Time) -> Others {
        let mut leased: HashMap<LaneId, u64> = HashMap::new();
        for job in self.leases.values() {
            *leased.entry(job.lane).or_default() += 1;
        }
        let leased = |lane: LaneId| leased.get(&lane).copied().unwrap_or(0);
        let mut others = Others { paid: [0; 3], lanes: Default::default(), leased: leased(own.lane) };
        let Some(state) = self.vendor_ids.get(vendor).map(|id| &self.vendors[*id]) else { return others };
        others.paid = state.passes;
        // Each of these has a job that is due, so more lanes than places need not be looked at.
        const MOST: usize = EXACT_PLACES as usize;
        for (lanes, due) in others.lanes.iter_mut().zip(&state.due) {
            let own_turn = due.iter().position(|lane| *lane == own.lane).unwrap_or(due.len());
            let in_turn = due.iter().copied().enumerate().filter(|(_, lane)| *lane != own.lane).take(MOST);
            lanes.extend(in_turn.map(|(turn, lane)| Other { lane, leased: leased(lane), goes_first: turn < own_turn }));
        }
        // Lanes whose first job is due later, but not later than the job itself.
        let due_by = self.steady.of(due_by);
        for (_, lane) in state.later.range(..=(due_by, LaneId::MAX)).filter(|(_, lane)| *lane != own.lane).take(MOST) {
            let Some(later) = self.lanes.get(lane) else { continue };
            others.lanes[later.priority].push(Other { lane: *lane, leased: leased(*lane), goes_first: false });
        }
        others
    }
}

/// How many jobs are ahead of one that waits for its call.
pub(super) fn ahead(conn: &Connection, id: JobId, core: &Core) -> rusqlite::Result<Option<Ahead>> {
    let found = conn
        .prepare_cached(
            "SELECT j.n, j.lane, j.due_at, l.vendor, l.priority FROM jobs j JOIN lanes l ON l.lane = j.lane
             WHERE j.id = ?1 AND j.stage = 0",
        )?
        .query_row([id.as_bytes()], |row| {
            let own = Row { n: row.get(0)?, lane: row.get(1)? };
            let priority = Priority::ALL.get(row.get::<_, usize>(4)?).copied().unwrap_or_default();
            Ok((own, Time(row.get(2)?), row.get::<_, String>(3)?, priority))
        })
        .optional()?;
    let Some((own, due_at, vendor, priority)) = found else { return Ok(None) };
    let now = core.clock.now();
    let due_by = due_at.max(now);
    let others = {
        let index = core.index();
        if index.is_leased(id) {
            return Ok(None);
        }
        index.others(&vendor, own, due_by)
    };
    let in_lane = before_in_lane(conn, own, due_at, now, others.leased)?;
    let mut before = in_lane;
    for other in &others.lanes[priority as usize] {
        if before >= EXACT_PLACES {
            break;
        }
        before += due_in(conn, *other, due_by, turn::of_other_lane(in_lane, other.goes_first))?;
    }
    let same_priority = before;
    for other_priority in Priority::ALL.into_iter().filter(|other| *other != priority) {
        let turns = turn::of_other_priority(other_priority, priority, &others.paid, same_priority);
        let turns = turns.min(EXACT_PLACES.saturating_sub(before));
        let mut left = turns;
        for other in &others.lanes[other_priority as usize] {
            if left == 0 {
                break;
            }
            left -= due_in(conn, *other, due_by, left)?;
        }
        before += turns - left;
    }
    Ok(Some(Ahead { jobs: before, in_lane, is_exact: before < EXACT_PLACES }))
}

/// How many jobs of its lane are ahead of a call: due polls, and earlier calls. A bounded count.
fn before_in_lane(conn: &Connection, own: Row, due_at: Time, now: Time, leased: u64) -> rusqlite::Result<u64> {
    const SQL: &str = "SELECT count(*) FROM (
           SELECT * FROM (SELECT 1 FROM jobs
             WHERE lane = :lane AND stage = 0 AND stage < 2 AND (due_at, n) < (:due_at, :n) LIMIT :most)
           UNION ALL
           SELECT * FROM (SELECT 1 FROM jobs WHERE lane = :lane AND stage = 1 AND stage < 2 AND due_at <= :now LIMIT :most))";
    let most = EXACT_PLACES + leased;
    let values = named_params! { ":lane": own.lane, ":due_at": due_at.0, ":n": own.n, ":now": now.0, ":most": most };
    let counted: u64 = conn.prepare_cached(SQL)?.query_row(values, |row| row.get(0))?;
    Ok(counted.saturating_sub(leased))
}

/// How many jobs of a lane are due by then and not leased, counted up to `most`.
fn due_in(conn: &Connection, lane: Other, by: Time, most: u64) -> rusqlite::Result<u64> {
    if most == 0 {
        return Ok(0);
    }
    const SQL: &str = "SELECT count(*) FROM (SELECT 1 FROM jobs
         WHERE lane = ?1 AND stage IN (0, 1) AND stage < 2 AND due_at <= ?2 LIMIT ?3)";
    let values = (lane.lane, by.0, most.saturating_add(lane.leased));
    let counted: u64 = conn.prepare_cached(SQL)?.query_row(values, |row| row.get(0))?;
    Ok(counted.saturating_sub(lane.leased).min(most))
}

/// How many jobs of a lane are due now and not leased, counted up to `most`.
pub(super) fn due_in_lane(conn: &Connection, lane: &Lane, most: u64, core: &Core) -> rusqlite::Result<u64> {
    let known = conn
        .prepare_cached("SELECT lane FROM lanes WHERE vendor = ?1 AND priority = ?2 AND tenant = ?3")?
        .query_row((&*lane.vendor, lane.priority as u8, &*lane.tenant), |row| row.get(0))
        .optional()?;
    let Some(lane) = known else { return Ok(0) };
    let leased = core.index().leases.values().filter(|leased| leased.lane == lane).count() as u64;
    due_in(conn, Other { lane, leased, goes_first: false }, core.clock.now(), most)
}

/// The index at start: the lanes with work, the counts by vendor, the earliest alarm. And the number of the newest job.
pub(super) fn read_index(conn: &Connection) -> rusqlite::Result<(Index, i64)> {
    let mut index = Index::default();
    // Each half uses an index of the jobs that are alive: those that wait for a call or a poll, and those with an alarm (one that awaits a
    // callback has one).
    let mut counts = conn.prepare(
        "SELECT l.lane, l.vendor, l.priority, l.tenant, c.stage, c.jobs
         FROM (SELECT lane, stage, count(*) AS jobs FROM jobs INDEXED BY jobs_waiting
                 WHERE stage < 2 GROUP BY lane, stage
               UNION ALL
               SELECT lane, stage, count(*) FROM jobs INDEXED BY jobs_alarm
                 WHERE alarm_at IS NOT NULL AND stage = 2 GROUP BY lane) c
         JOIN lanes l ON l.lane = c.lane",
    )?;
    let mut found = counts.query([])?;
    while let Some(row) = found.next()? {
        let priority = Priority::ALL.get(row.get::<_, usize>(2)?).copied().unwrap_or_default();
        let (vendor, tenant): (String, String) = (row.get(1)?, row.get(3)?);
        let lane = Lane { vendor: vendor.into(), priority, tenant: tenant.into() };
        let stage = rows::stage(row.get(4)?)?;
        if stage != Stage::Await {
            index.add_unread(row.get(0)?, &lane, stage);
        }
        index.recount(&lane, None, Some(stage), Load { jobs: row.get(5)?, bytes: 0 });
    }
    drop(found);
    let mut heavy = conn.prepare(&format!(
        "SELECT l.vendor, l.tenant, sum(length(j.payload)) FROM jobs j INDEXED BY jobs_heavy JOIN lanes l ON l.lane = j.lane
         WHERE j.stage < 3 AND length(j.payload) > {SMALL_PAYLOAD} GROUP BY j.lane"
    ))?;
    let mut found = heavy.query([])?;
    while let Some(row) = found.next()? {
        let (vendor, tenant): (String, String) = (row.get(0)?, row.get(1)?);
        let lane = Lane { vendor: vendor.into(), priority: Priority::default(), tenant: tenant.into() };
        index.recount(&lane, None, Some(Stage::Call), Load { jobs: 0, bytes: row.get(2)? });
    }
    index.next_alarm = conn.query_row("SELECT min(alarm_at) FROM jobs", [], |row| row.get(0))?;
    let next_n: Option<i64> = conn.query_row("SELECT max(n) FROM jobs", [], |row| row.get(0))?;
    Ok((index, next_n.unwrap_or(0)))
}
