//! The embedded store: one SQLite file, one process. The table is the truth; the index in memory is what dispatch reads.
//!
//! Never writes but through the one writer thread, and never answers before the commit.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use rusqlite::{Connection, config::DbConfig};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    amend::{Amend, Reclaim},
    mark::{Mark, Unmark, give_back},
    queue::{Settle, Submit},
    read::Readers,
    upkeep::{Do, Prune},
    writer::{After, Shared, Write, Writer, ask, ask_refills},
};
use super::{
    Amended, Backlog, Claim, Decide, Filter, Lease, Overdue, Page, Ready, Settled, Store, StoreError, Submitted,
    Unsettled, Which, With, signals::Signals,
};
use crate::{
    clock::{Clock, Time, nanos},
    job::lifecycle::Change,
    job::{Attempt, Attempts, Idempotency, Job, JobId, NewJob, turn::Lanes},
};

mod amend;
mod book;
mod calls;
mod counts;
mod index;
mod mark;
mod queue;
mod read;
mod rounds;
mod rows;
mod shelf;
mod standing;
mod upkeep;
mod writer;

/// The schema, one step a version: `PRAGMA user_version` says how many have been made.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/0001_jobs.sql"),
    include_str!("../../../migrations/0002_live_limits.sql"),
    include_str!("../../../migrations/0003_calls.sql"),
    include_str!("../../../migrations/0004_called.sql"),
    include_str!("../../../migrations/0006_limits_on_record.sql"),
]; // in their order: each is made once

/// Idempotency keys are kept this long.
const KEYS_KEPT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Why the store could not be opened: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process; one process owns the file, so stop the other one or give this one another store.url", path = .0.display())]
    InUse(PathBuf),
    #[error("cannot open {path}: {why}; check that the folder exists, is on a local disk and can be written", path = .0.display(), why = .1)]
    File(PathBuf, std::io::Error),
    #[error("cannot use {path} as the store: {why}", path = .0.display(), why = .1)]
    Sqlite(PathBuf, rusqlite::Error),
    #[error("{path} was written by a newer version of Fetchgate (schema {found}, this one knows {known}); run that version", path = .path.display())]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("SQLite {0} can lose commits when its log is reset; 3.51.3 or newer is needed")]
    OldSqlite(&'static str),
}

/// The store on one SQLite file.
pub struct Sqlite {
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    /// Gone once the store is closing.
    requests: Mutex<Option<mpsc::Sender<Box<dyn Write>>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    failed: watch::Receiver<Option<String>>,
    max_waiting: u64,
    /// Where the next slice of pruning begins.
    prune_from: Mutex<i64>,
    reckoned: standing::Reckoned,
    /// Keeps other processes out until the store is closed.
    lock: File,
}

impl Sqlite {
    /// Opens the file, or makes it. `vendors` are those that have a dispatcher; `max_waiting` bounds the jobs that have not ended.
    pub fn open(
        path: &Path,
        clock: Clock,
        vendors: impl IntoIterator<Item = Arc<str>>,
        max_waiting: u64,
    ) -> Result<Sqlite, OpenError> {
        if rusqlite::version_number() < 3_051_003 {
            return Err(OpenError::OldSqlite(rusqlite::version()));
        }
        let lock = lock_file(path)?;
        let explain = |why| OpenError::Sqlite(path.to_owned(), why);
        let conn = Connection::open(path).map_err(explain)?;
        migrate(&conn, path)?;
        let (mut index, next_n) = standing::read_index(&conn).map_err(explain)?;
        mark::restore(&conn, &mut index, clock.nanos()).map_err(explain)?;
        let signals = Signals::new(vendors);
        for (vendor, jobs) in index.jobs_by_vendor().filter(|(vendor, _)| signals.bell(vendor).is_none()) {
            tracing::warn!(%vendor, jobs, "jobs wait for a vendor that is not in the config; they stay until it is back, or are cancelled");
        }
        let shared = Arc::new(Shared::new(index, clock, signals));
        let (requests, queue) = mpsc::channel(writer::MOST_QUEUED);
        let (failing, failed) = watch::channel(None);
        let writer = Writer { conn, shared: Arc::clone(&shared), requests: queue, next_n, failed: failing.clone() };
        let run = move || {
            // Nobody writes any more, and the index may be half-changed: the process has to end, not to linger.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run())).is_err() {
                failing.send_replace(Some("its writer panicked, which is a bug".into()));
            }
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(run)
            .map_err(|why| OpenError::File(path.to_owned(), why))?;
        Ok(Sqlite {
            shared,
            readers: Arc::new(Readers::new(path)),
            requests: Mutex::new(Some(requests)),
            writer: Mutex::new(Some(thread)),
            failed,
            max_waiting,
            prune_from: Mutex::new(0),
            reckoned: standing::Reckoned::default(),
            lock,
        })
    }

    fn requests(&self) -> Result<mpsc::Sender<Box<dyn Write>>, StoreError> {
        let requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        requests.clone().ok_or_else(|| StoreError::Unavailable("the store is closed".into()))
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
        if self.shared.index().live + jobs.len() as u64 > self.max_waiting {
            return Ok(vec![Submitted::OverCapacity; jobs.len()]);
        }
        let now = self.shared.clock.now();
        ask(&self.requests()?, |reply| Submit::boxed(jobs, now, reply)).await?
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        let requests = self.requests()?;
        let (leases, wanted) = {
            let mut index = self.shared.index();
            let until = self.shared.clock.nanos().saturating_add(nanos(claim.lease));
            let leases = index.claim(claim, until);
            let lanes: std::collections::BTreeSet<_> =
                leases.iter().filter_map(|lease| index.leased_lane(lease.job.id)).collect();
            let wanted = index.wanted(lanes);
            (leases, wanted)
        };
        ask_refills(&requests, &self.shared, wanted);
        Ok(leases)
    }

    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        let now = self.shared.clock.now();
        ask(&self.requests()?, |reply| Mark::boxed(leases, now, reply)).await?
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        let now = self.shared.clock.now();
        let (marked, free): (Vec<_>, Vec<_>) = leases.into_iter().partition(|(lease, _)| lease.called_at.is_some());
        give_back(&mut self.shared.index(), free.into_iter(), now);
        if let (false, Ok(requests)) = (marked.is_empty(), self.requests()) {
            // A store that is closed has no leases.
            let _ = ask(&requests, |reply| Unmark::boxed(marked, reply)).await;
        }
    }

    async fn wake(&self, vendor: &str) -> Result<(), StoreError> {
        let now = self.shared.clock.now();
        self.shared.index().wake(vendor, now);
        Ok(())
    }

    async fn settle(&self, lease: Lease, change: Change, attempt: Attempt) -> Result<Settled, Unsettled> {
        let now = self.shared.clock.now();
        let requests = match self.requests() {
            Ok(requests) => requests,
            Err(why) => return Err(Unsettled { lease: Box::new(lease), change, attempt, why }),
        };
        let (reply, answer) = oneshot::channel();
        if let Err(unsent) = requests.send(Settle::boxed(lease, change, attempt, now, reply)).await {
            // The writer has ended: its answer is that nothing was stored.
            let closed = StoreError::Unavailable("the store is closed".into());
            unsent.0.finish(Err(closed), &mut After::nothing(&self.shared));
        }
        answer.await.expect("the writer answers every settle, even when it cannot store it")
    }

    async fn amend(&self, which: Which, now: Time, decide: Decide) -> Result<Amended, StoreError> {
        ask(&self.requests()?, |reply| Amend::boxed(which, now, decide, reply)).await?
    }

    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        let next_alarm = self.shared.index().next_alarm;
        if next_alarm.is_none_or(|at| at > now.0) {
            return Ok(Overdue { jobs: Vec::new(), next_at: next_alarm.map(Time) });
        }
        // Through the writer, so that no alarm is set between reading the next one and noting it.
        let shared = Arc::clone(&self.shared);
        let read = move |conn: &Connection| {
            let jobs = conn
                .prepare_cached("SELECT id FROM jobs WHERE alarm_at <= ?1 ORDER BY alarm_at LIMIT ?2")?
                .query_map((now.0, most), |row| Ok(JobId::from_bytes(row.get(0)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let min = |sql, after: i64| conn.prepare_cached(sql)?.query_row([after], |row| row.get(0));
            // The first of all, for those that are overdue and still will be: whoever asks next is to look.
            shared.index().next_alarm = min("SELECT min(alarm_at) FROM jobs WHERE alarm_at >= ?1", i64::MIN)?;
            let next_at: Option<i64> = min("SELECT min(alarm_at) FROM jobs WHERE alarm_at > ?1", now.0)?;
            Ok(Overdue { jobs, next_at: next_at.map(Time) })
        };
        ask(&self.requests()?, |reply| Do::boxed(read, reply)).await?
    }

    async fn reclaim(&self) -> Result<usize, StoreError> {
        let now = self.shared.clock.nanos();
        {
            let mut index = self.shared.index();
            if !index.retry_readings() && index.lapsed(now).is_empty() {
                return Ok(0);
            }
        }
        ask(&self.requests()?, |reply| Reclaim::boxed(now, reply)).await?
    }

    async fn find(&self, id: JobId, with: With) -> Result<Option<Job>, StoreError> {
        let job = self.readers.look(|conn| read::find(conn, id, with))?;
        Ok(job.map(|job| read::overlay(job, &self.shared)))
    }

    async fn attempts(&self, id: JobId) -> Result<Option<Attempts>, StoreError> {
        self.readers.look(|conn| read::attempts(conn, id))
    }

    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
        let (tenant, key) = (tenant.to_owned(), key.clone());
        self.readers.read(move |conn| queue::recall(conn, &tenant, &key)).await
    }

    async fn list(&self, filter: Filter) -> Result<Page, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.readers.read(move |conn| read::list(conn, &filter, &shared)).await
    }

    async fn prune(&self, before: Time) -> Result<bool, StoreError> {
        let from = *self.prune_from.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let keys_before = Time(self.shared.clock.now().0 - KEYS_KEPT.as_millis() as i64);
        let slice = ask(&self.requests()?, |reply| Prune::boxed(before, keys_before, from, reply)).await??;
        *self.prune_from.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = slice.next.unwrap_or(0);
        Ok(slice.next.is_some() || slice.more_keys)
    }

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError> {
        let now = self.shared.clock.now();
        Ok(self.shared.index().ready(vendor, now))
    }

    async fn backlog(&self, vendor: &str) -> Backlog {
        let now = self.shared.clock.now();
        self.shared.index().backlog(vendor, now)
    }

    async fn lanes(&self, vendor: &str, due_by: Time) -> Result<Option<Arc<Lanes>>, StoreError> {
        Ok(Some(self.reckoned.lanes(vendor, due_by, &self.shared)))
    }

    async fn ahead(&self, job: &Job) -> Result<Option<u64>, StoreError> {
        let (shared, id) = (Arc::clone(&self.shared), job.id);
        self.readers.read(move |conn| standing::ahead(conn, id, &shared)).await
    }

    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await.map(|why| why.clone()) {
            Ok(why) => why.unwrap_or_default(),
            Err(_) => std::future::pending().await, // Closed in good order.
        }
    }

    async fn close(&self) {
        self.readers.close();
        drop(self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        let thread = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // How it ended is known by then, see `failed`.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        // Now, and not when the last copy of the handle is gone: a child process that is just being started has one too.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the store's file could not be let go; it is when this process ends");
        }
    }
}

/// Takes the file for this process, by a lock on a file beside it that the operating system lets go of when the process dies.
fn lock_file(path: &Path) -> Result<File, OpenError> {
    let explain = |why| OpenError::File(path.to_owned(), why);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(explain)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&beside).map_err(explain)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(why)) => Err(explain(why)),
    }
}

/// Sets the connection up and brings the schema to the newest version.
fn migrate(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let explain = |why| OpenError::Sqlite(path.to_owned(), why);
    conn.busy_timeout(writer::BUSY).map_err(explain)?;
    conn.set_prepared_statement_cache_capacity(64);
    keep_plans(conn).map_err(explain)?;
    // FULL: an accepted job survives a power cut. No automatic checkpoints: the writer does them between commits. No mmap. A small cache: a
    // commit in which pages were split looks through all of it, and what is written lies close together.
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
         PRAGMA mmap_size = 0; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF;
         PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(explain)?;
    let found: usize = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(explain)?;
    if found > MIGRATIONS.len() {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    for (done, step) in MIGRATIONS.iter().enumerate().skip(found) {
        let step = format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {}; COMMIT;", done + 1);
        conn.execute_batch(&step).map_err(explain)?;
    }
    Ok(())
}

/// Prepared statements stay prepared. Without this SQLite plans a statement anew whenever a bound value might make a partial index
/// usable (`IS NOT NULL` in its condition is enough), which is at every settle and every read.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Lane, Priority, Stage};

    #[tokio::test]
    async fn a_writer_that_panics_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("jobs.db"), Clock::system(), ["v".into()], 100).unwrap();
        let panics = |_: &Connection| -> rusqlite::Result<()> { panic!("on purpose") };
        let asked = ask(&store.requests().unwrap(), |reply| Do::boxed(panics, reply)).await;
        assert!(matches!(asked, Err(StoreError::Unavailable(_))));
        assert!(store.failed().await.contains("panicked"));
        store.close().await;
    }

    #[tokio::test]
    async fn a_full_disk_refuses_jobs_and_takes_them_again_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Time(0));
        let store = Sqlite::open(&folder.path().join("jobs.db"), clock, ["v".into()], 100).unwrap();
        // The pages that the file may have are what a disk has left; only the writer's own connection can be told.
        let most_pages = async |pages: u32| {
            let set = move |conn: &Connection| conn.execute_batch(&format!("PRAGMA max_page_count = {pages}"));
            ask(&store.requests().unwrap(), |reply| Do::boxed(set, reply)).await.unwrap().unwrap();
        };
        let ids = crate::job::JobIds::new();
        let submit = async || {
            let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
            let payload = vec![b'1'; 100_000].into();
            let (id, due_at) = (ids.next(Time(0)), Time(0));
            let job = NewJob { id, lane, payload, due_at, deadline: None, tags: Vec::new(), idempotency: None };
            store.submit(vec![job]).await
        };
        submit().await.unwrap();
        most_pages(100).await;
        let mut taken = 1;
        let refused = loop {
            match submit().await {
                Ok(_) => taken += 1,
                Err(why) => break why,
            }
        };
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
        assert!(taken < 10);
        assert_eq!(store.backlog("v").await.waiting, taken, "what was refused is not counted");
        most_pages(100_000).await;
        submit().await.unwrap();
        let claim =
            Claim { vendor: "v".into(), most: 100, calls: 100, now: Time(0), lease: std::time::Duration::from_secs(1) };
        let leases = store.claim(&claim).await.unwrap();
        assert_eq!(leases.len() as u64, taken + 1);
        assert!(leases.iter().all(|lease| lease.job.stage == Stage::Call));
        store.close().await;
    }
}
