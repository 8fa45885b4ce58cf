//! Lists: jobs that match a filter, newest first, a bounded number of rows at a time.
//!
//! Never passes by the jobs of other tenants to find those of one.

use rusqlite::{Connection, ToSql};

use super::{read::overlay, rows, writer::Core};
use crate::{
    job::JobId,
    store::{Filter, Page, Sees, Slice, With},
};

/// The jobs of one tenant: of each of its lanes the next one, of which the newest comes first. SQLite would drop the order of a `walk`
/// without a limit.
const OF_TENANT: &str = "WITH RECURSIVE walk (id, lane) AS (
  SELECT (SELECT id FROM jobs INDEXED BY jobs_of_lane WHERE lane = l.lane AND id < :below AND id >= :from ORDER BY id DESC LIMIT 1), l.lane
    FROM lanes l INDEXED BY lanes_of_tenant WHERE l.tenant = :tenant AND (:vendor IS NULL OR l.vendor = :vendor)
  UNION ALL
  SELECT (SELECT id FROM jobs INDEXED BY jobs_of_lane WHERE lane = walk.lane AND id < walk.id AND id >= :from ORDER BY id DESC LIMIT 1), walk.lane
    FROM walk WHERE walk.id IS NOT NULL
  ORDER BY 1 DESC LIMIT :examine)";

/// Looks at jobs in order and keeps those that match. The row of a leased job still says `pending`, so the status is compared here and not in
/// SQL.
pub(super) fn list(
    conn: &Connection,
    sees: &Sees,
    filter: &Filter,
    slice: Slice,
    core: &Core,
) -> rusqlite::Result<Page> {
    let (from, below) = filter.ids(slice.before);
    let (from, below) = (from.as_bytes(), below.as_bytes());
    let tenant = filter.only_tenant(sees);
    let mut values = vec![
        (":from", &from as &dyn ToSql),
        (":below", &below as &dyn ToSql),
        (":examine", &slice.examine as &dyn ToSql),
    ];
    let columns = rows::columns(With::NEITHER);
    const RANGE: &str = "j.id < :below AND j.id >= :from ORDER BY j.id DESC LIMIT :examine";
    let sql = if tenant.is_some() {
        values.extend([(":tenant", &tenant as &dyn ToSql), (":vendor", &filter.vendor as &dyn ToSql)]);
        format!("{OF_TENANT} {}", rows::select_from("walk CROSS JOIN jobs j ON j.id = walk.id", &columns))
    } else if filter.wants_no_result() {
        let select = rows::select_from("jobs j INDEXED BY jobs_without_result", &columns);
        format!("{select} WHERE j.status > 2 AND {RANGE}")
    } else {
        format!("{} WHERE {RANGE}", rows::select_from("jobs j", &columns))
    };
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = statement.query(&*values)?;
    let (mut page, mut last) = (Page::default(), None);
    while let Some(row) = found.next()? {
        page.examined += 1;
        // Also of a row that cannot be read as a job.
        last = row.get(2).map(JobId::from_bytes).ok().or(last);
        let Some((_, job)) = rows::skip_unreadable(row.get(0)?, rows::with_lane(row))? else { continue };
        let job = overlay(job, core);
        if sees.includes(&job.lane.tenant) && filter.matches(&job) {
            page.jobs.push(job);
        }
        if page.jobs.len() == slice.most {
            break;
        }
    }
    // If one of the bounds ended the walk, there may be more.
    if page.jobs.len() == slice.most || page.examined == slice.examine {
        page.next = last;
    }
    Ok(page)
}
