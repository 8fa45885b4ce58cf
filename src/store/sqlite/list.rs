//! Lists: jobs that match a filter, newest first, a bounded number of rows at a time.
//!
//! Never passes by the jobs of other tenants, vendors or statuses to find those that are asked for, while there are few lanes.

use rusqlite::{Connection, ToSql};

use super::{read::overlay, rows, writer::Core};
use crate::{
    job::{JobId, Status},
    store::{Filter, Page, Sees, Slice, With},
};

/// A walk through lanes begins at so many places at most, each of which costs about as much as looking at a job. One tenant's are fewer.
const MOST_STARTS: usize = 2 * Slice::OF_LIST;

/// The jobs of some lanes with some statuses: of each lane and status the newest comes first, then the next one. Of all these the newest is
/// looked at first. SQLite would drop the order of a `walk` without a limit.
fn walk(lanes: &str, of_these: &str) -> String {
    let next = |lane, status, below| {
        format!(
            "(SELECT id FROM jobs INDEXED BY jobs_of_lane WHERE lane = {lane} AND status = {status} AND id < {below} AND id >= :from
              ORDER BY id DESC LIMIT 1), {lane}, {status}"
        )
    };
    format!(
        "WITH RECURSIVE walk (id, lane, status) AS (
           SELECT {} FROM {lanes} CROSS JOIN json_each(:statuses) s {of_these}
           UNION ALL SELECT unhex(value, '-'), NULL, NULL FROM json_each(:leased)
           UNION ALL SELECT {} FROM walk WHERE walk.id IS NOT NULL
           ORDER BY 1 DESC LIMIT :examine)",
        next("l.lane", "s.value", ":below"),
        next("walk.lane", "walk.status", "walk.id"),
    )
}

/// How a list finds its jobs.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Through the lanes of one tenant, of one vendor, of both, or of all, and only those with some statuses.
    Lanes {
        of_tenant: bool,
        of_vendor: bool,
    },
    /// Through all jobs without a result, which have an index of their own.
    WithoutResult,
    All,
}

impl Way {
    fn of(conn: &Connection, filter: &Filter, tenant: Option<&str>, statuses: usize) -> rusqlite::Result<Way> {
        let vendor = filter.vendor.as_deref();
        let lanes = Way::Lanes { of_tenant: tenant.is_some(), of_vendor: vendor.is_some() };
        let is_narrow = vendor.is_some() || (statuses < Status::ALL.len() && !filter.wants_no_result());
        Ok(match () {
            () if tenant.is_some() || (is_narrow && are_few(conn, vendor, statuses)?) => lanes,
            () if filter.wants_no_result() => Way::WithoutResult,
            () => Way::All,
        })
    }

    fn sql(self) -> String {
        const RANGE: &str = "j.id < :below AND j.id >= :from ORDER BY j.id DESC LIMIT :examine";
        const OF_TENANT: &str = "lanes l INDEXED BY lanes_of_tenant";
        let columns = rows::columns(With::NEITHER);
        let walk = match self {
            Way::All => return format!("{} WHERE {RANGE}", rows::select_from("jobs j", &columns)),
            Way::WithoutResult => {
                let select = rows::select_from("jobs j INDEXED BY jobs_without_result", &columns);
                return format!("{select} WHERE j.status > 2 AND {RANGE}");
            }
            Way::Lanes { of_tenant: true, of_vendor: true } => {
                walk(OF_TENANT, "WHERE l.tenant = :tenant AND l.vendor = :vendor")
            }
            Way::Lanes { of_tenant: true, of_vendor: false } => walk(OF_TENANT, "WHERE l.tenant = :tenant"),
            Way::Lanes { of_tenant: false, of_vendor: true } => walk("lanes l", "WHERE l.vendor = :vendor"),
            Way::Lanes { of_tenant: false, of_vendor: false } => walk("lanes l", ""),
        };
        format!("{walk} {}", rows::select_from("walk CROSS JOIN jobs j ON j.id = walk.id", &columns))
    }
}

/// Whether a walk through the lanes of a vendor, or of all, begins at few places.
fn are_few(conn: &Connection, vendor: Option<&str>, statuses: usize) -> rusqlite::Result<bool> {
    let which = if vendor.is_some() { "vendor = ?1" } else { "?1 IS NULL" };
    let sql = format!("SELECT 1 FROM lanes WHERE {which} LIMIT 1 OFFSET ?2");
    conn.prepare_cached(&sql)?.exists((vendor, MOST_STARTS / statuses)).map(|more| !more)
}

/// The jobs in a range that are being processed while their rows say `pending`, as a JSON array.
fn leased(core: &Core, from: JobId, below: JobId) -> String {
    let index = core.index();
    let ids = index.leases.keys().filter(|id| (from..below).contains(*id)).map(ToString::to_string);
    serde_json::json!(ids.collect::<Vec<_>>()).to_string()
}

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
    let (tenant, vendor, statuses) = (filter.only_tenant(sees), filter.vendor.as_deref(), filter.possible());
    if statuses.is_empty() {
        return Ok(Page::default());
    }
    // The row of a leased job says `pending`.
    let misses_leased = statuses.contains(&Status::Processing) && !statuses.contains(&Status::Pending);
    let leased = if misses_leased { leased(core, from, below) } else { "[]".to_owned() };
    let numbers = serde_json::json!(statuses.iter().map(|status| *status as u8).collect::<Vec<_>>()).to_string();
    let (from, below) = (from.as_bytes(), below.as_bytes());
    let mut values = vec![
        (":from", &from as &dyn ToSql),
        (":below", &below as &dyn ToSql),
        (":examine", &slice.examine as &dyn ToSql),
    ];
    let way = Way::of(conn, filter, tenant, statuses.len())?;
    if let Way::Lanes { .. } = way {
        values.extend([(":statuses", &numbers as &dyn ToSql), (":leased", &leased as &dyn ToSql)]);
        values.extend(tenant.iter().map(|tenant| (":tenant", tenant as &dyn ToSql)));
        values.extend(vendor.iter().map(|vendor| (":vendor", vendor as &dyn ToSql)));
    }
    let mut statement = conn.prepare_cached(&way.sql())?;
    let mut found = statement.query(&*values)?;
    let (mut page, mut last) = (Page::default(), None);
    while let Some(row) = found.next()? {
        page.examined += 1;
        // Also of a row that cannot be read as a job.
        let id = row.get(2).map(JobId::from_bytes).ok();
        if id.is_some() && id == last {
            continue; // its lease has just ended: it came as a leased job too
        }
        last = id.or(last);
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

#[cfg(test)]
mod tests {
    use super::Way;
    use crate::{
        clock::{Clock, Time},
        job::lifecycle::{Change, Next},
        job::{FailureCode, JobIds, Lane, NewJob, Priority, Status},
        store::{
            Claim, Filter, Page, Sees, Slice, Store,
            sqlite::{Sqlite, tests::done},
        },
    };

    /// A store with jobs that wait, the first of them of the vendor `rare`.
    async fn store(tenants: usize, jobs: usize) -> (Sqlite, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Time(0));
        let vendors = ["rare".into(), "v".into()];
        let store = Sqlite::open(&folder.path().join("jobs.db"), clock, vendors, 100_000).unwrap();
        let ids = JobIds::new();
        let job = |n: usize| {
            let lane = Lane {
                vendor: if n == 0 { "rare" } else { "v" }.into(),
                priority: Priority::Normal,
                tenant: format!("t{}", n % tenants).into(),
            };
            NewJob::new(ids.next(Time(0)), lane, "1", Time(0))
        };
        store.submit((0..jobs).map(job).collect()).await.unwrap();
        (store, folder)
    }

    /// One step of a walk that looks at ten jobs at most.
    async fn listed(store: &Sqlite, sees: &Sees, filter: Filter) -> Page {
        store.list(sees, &filter, Slice { before: None, most: 5, examine: 10 }).await.unwrap()
    }

    /// It looked at these jobs only, and knows that there are no more.
    fn assert_found_at_once(page: &Page, jobs: usize, what: &str) {
        assert_eq!((page.jobs.len(), page.examined, page.next), (jobs, jobs, None), "{what}");
    }

    #[tokio::test]
    async fn few_jobs_among_many_are_found_without_looking_at_the_others() {
        let (store, _folder) = store(3, 200).await;
        let statuses = |statuses: &[Status]| Filter { statuses: statuses.to_vec(), ..Filter::default() };
        let of_rare = || Filter { vendor: Some("rare".into()), ..Filter::default() };
        let of_nobody = Sees::Tenant("nobody".into());
        assert_found_at_once(&listed(&store, &Sees::All, of_rare()).await, 1, "of a vendor");
        assert_found_at_once(&listed(&store, &of_nobody, Filter::default()).await, 0, "of a tenant");
        for status in Status::ALL.into_iter().filter(|status| *status != Status::Pending) {
            assert_found_at_once(&listed(&store, &Sees::All, statuses(&[status])).await, 0, status.as_str());
        }
        let claim =
            Claim { vendor: "rare".into(), most: 1, calls: 1, now: Time(0), lease: std::time::Duration::from_secs(9) };
        let lease = store.claim(&claim).await.unwrap().remove(0);
        let processing = listed(&store, &Sees::All, statuses(&[Status::Processing])).await;
        assert_found_at_once(&processing, 1, "its row says that it is pending");
        assert_eq!((processing.jobs[0].id, processing.jobs[0].status), (lease.job.id, Status::Processing));
        let all_live = listed(&store, &Sees::All, statuses(&[Status::Pending, Status::Processing])).await;
        assert!(all_live.jobs.len() == 5 && all_live.next.is_some(), "each once: {all_live:?}");
        let change = Change::of(&lease.job, Next::Complete { result: "1".into() });
        store.settle(lease, change, done()).await.unwrap();
        assert_found_at_once(&listed(&store, &Sees::All, statuses(&[Status::Complete])).await, 1, "complete");
        assert_found_at_once(&listed(&store, &Sees::All, statuses(&[Status::Processing])).await, 0, "processing");
        let refused = Filter { code: Some(FailureCode::Timeout), ..of_rare() };
        assert_found_at_once(&listed(&store, &Sees::All, refused).await, 0, "of a vendor, with an error");
        store.close().await;
    }

    /// SQLite plans with the statistics that it wrote when the store was closed the last time. It has none of an index that an update has made since.
    #[tokio::test]
    async fn no_list_sorts_jobs_or_passes_by_others_in_an_index() {
        let (store, folder) = store(20, 5000).await;
        let path = folder.path().join("jobs.db");
        // Of a million jobs in sixty lanes.
        let statistics = "ANALYZE;
            DELETE FROM sqlite_stat1 WHERE idx = 'jobs_of_lane';
            UPDATE sqlite_stat1 SET stat = '999994 2001 2001 1 1' WHERE idx = 'jobs_waiting';
            UPDATE sqlite_stat1 SET stat = '1010000 1' WHERE idx = 'sqlite_autoindex_jobs_1';
            UPDATE sqlite_stat1 SET stat = '60 20 20 1' WHERE idx = 'sqlite_autoindex_lanes_1';
            UPDATE sqlite_stat1 SET stat = '60 3' WHERE idx = 'lanes_of_tenant';";
        rusqlite::Connection::open(&path).unwrap().execute_batch(statistics).unwrap();
        let conn = rusqlite::Connection::open(&path).unwrap();
        crate::store::sqlite::schema::keep_plans(&conn).unwrap();
        let lanes = [(true, true), (true, false), (false, true), (false, false)];
        let lanes = lanes.map(|(of_tenant, of_vendor)| Way::Lanes { of_tenant, of_vendor });
        for way in lanes.into_iter().chain([Way::WithoutResult, Way::All]) {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {}", way.sql())).unwrap();
            let (mut steps, mut plan) = (explain.raw_query(), Vec::new());
            while let Some(step) = steps.next().unwrap() {
                plan.push(step.get::<_, String>(3).unwrap());
            }
            let wanted = match way {
                Way::Lanes { .. } => "jobs_of_lane (lane=? AND status=? AND id>? AND id<?)",
                Way::WithoutResult => "jobs_without_result (id>? AND id<?)",
                Way::All => "sqlite_autoindex_jobs_1 (id>? AND id<?)",
            };
            assert!(plan.iter().any(|step| step.contains(wanted)), "{way:?}: {plan:?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{way:?}: {plan:?}");
        }
        store.close().await;
    }

    #[tokio::test]
    async fn so_many_lanes_that_each_has_few_jobs_are_not_gone_through() {
        let tenants = super::MOST_STARTS / Status::ALL.len() + 1;
        let (store, _folder) = store(tenants, tenants + 1).await;
        let of_v = || Filter { vendor: Some("v".into()), ..Filter::default() };
        let page = listed(&store, &Sees::All, of_v()).await;
        assert_eq!((page.jobs.len(), page.examined), (5, 5));
        let pending = Filter { statuses: vec![Status::Complete], ..of_v() };
        assert_found_at_once(&listed(&store, &Sees::All, pending).await, 0, "one status has fewer places to begin at");
        store.close().await;
    }
}
