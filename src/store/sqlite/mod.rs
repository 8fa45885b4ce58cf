//! The embedded store: one SQLite file, one process. The table is the truth; the index in memory is what dispatch reads.
//!
//! Never writes but through the one writer thread, and never answers before the commit.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::{Connection, config::DbConfig};
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    amend::{Amend, Reclaim},
    file::OurFile,
    index::Claimed,
    mark::{Mark, Unmark, give_back},
    queue::{Settle, Submit},
    read::Readers,
    upkeep::{Do, Prune},
    writer::{After, Shared, Write, Writer, ask, ask_refills},
};
use super::{
    Ahead, Amended, Backlog, Claim, Decide, Filter, Lease, Overdue, Page, Ready, Settled, Store, StoreError, Submitted,
    Unsettled, Which, With, signals::Signals,
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    job::lifecycle::Change,
    job::{Attempt, Attempts, Idempotency, Job, JobId, Lane, NewJob},
};

mod amend;
mod book;
mod calls;
mod file;
mod index;
mod leases;
mod mark;
mod queue;
mod read;
mod rounds;
mod rows;
mod shelf;
mod standing;
mod steady;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

/// The schema, one step a version: `PRAGMA user_version` says how many have been made.
const MIGRATIONS: [&str; 8] = [
    include_str!("../../../migrations/0001_jobs.sql"),
    include_str!("../../../migrations/0002_live_limits.sql"),
    include_str!("../../../migrations/0003_calls.sql"),
    include_str!("../../../migrations/0004_called.sql"),
    include_str!("../../../migrations/0005_idle_lanes.sql"),
    include_str!("../../../migrations/0006_limits_on_record.sql"),
    include_str!("../../../migrations/0007_unanswered.sql"),
    include_str!("../../../migrations/0008_vendors_words.sql"),
]; // in their order: each is made once

/// Idempotency keys are kept this long.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Whether the file is still there is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    /// Why nothing more can be stored, once that is so.
    failed: watch::Sender<Option<String>>,
    max_waiting: u64,
    /// Where the next slice of pruning begins.
    prune_from: Mutex<i64>,
    file: OurFile,
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
        let mut file = OurFile::take(path)?;
        let explain = |why| OpenError::Sqlite(path.to_owned(), why);
        let conn = Connection::open(&file.path).map_err(explain)?;
        migrate(&conn, path)?;
        file.has_a_log();
        let (mut index, next_n) = standing::read_index(&conn).map_err(explain)?;
        mark::restore(&conn, &mut index, &clock).map_err(explain)?;
        let signals = Signals::new(vendors);
        for (vendor, jobs) in index.jobs_by_vendor().filter(|(vendor, _)| signals.bell(vendor).is_none()) {
            tracing::warn!(%vendor, jobs, "jobs wait for a vendor that is not in the config; they stay until it is back, or are cancelled");
        }
        let shared = Arc::new(Shared::new(index, clock, signals));
        let (requests, queue) = mpsc::channel(writer::MOST_QUEUED);
        let failed = watch::Sender::new(None);
        let writer = Writer { conn, shared: Arc::clone(&shared), requests: queue, next_n, failed: failed.clone() };
        let failing = failed.clone();
        let run = move || {
            // Nobody writes any more, and the index may be half-changed: the process has to end, not to linger.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run())).is_err() {
                let why = "its writer panicked, which is a bug; start again; what was acknowledged is safe";
                failing.send_replace(Some(why.into()));
            }
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(run)
            .map_err(|why| OpenError::File(path.to_owned(), why))?;
        Ok(Sqlite {
            shared,
            readers: Arc::new(Readers::new(&file.path)),
            requests: Mutex::new(Some(requests)),
            writer: Mutex::new(Some(thread)),
            failed,
            max_waiting,
            prune_from: Mutex::new(0),
            file,
        })
    }

    /// Reads what has been leased, on a connection beside the writer. Of those that are not handed out the leases end.
    fn read(&self, claimed: Vec<Claimed>, until: Nanos) -> Result<Vec<Lease>, StoreError> {
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let entries: Vec<_> = claimed.iter().map(|claimed| claimed.entry).collect();
        let read = self.readers.look(|conn| read::leased(conn, claimed, until));
        let is_gone = |lease: &Option<Lease>| lease.is_none();
        if read.as_ref().map_or(true, |leases| leases.iter().any(is_gone)) {
            let (mut index, now) = self.shared.index_now();
            for (i, entry) in entries.iter().enumerate() {
                let is_held = read.as_ref().is_ok_and(|leases| leases[i].is_some());
                let ended = if is_held { None } else { index.unlease(entry.id, Some(entry.attempt.saturating_add(1))) };
                // What has gone needs no place any more; what could not be looked at does.
                if let (Some(held), Err(_)) = (ended, &read) {
                    index.put_back(&held, now);
                }
            }
        }
        Ok(read?.into_iter().flatten().collect())
    }

    fn requests(&self) -> Result<mpsc::Sender<Box<dyn Write>>, StoreError> {
        if let Some(why) = &*self.failed.borrow() {
            return Err(StoreError::Unavailable(why.clone()));
        }
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
        let until = self.shared.clock.nanos().saturating_add(nanos(claim.lease));
        let (claimed, wanted) = {
            let (mut index, now) = self.shared.index_now();
            let claimed = index.claim(claim, until, now);
            let lanes: std::collections::BTreeSet<_> =
                claimed.iter().filter_map(|claimed| index.leased_lane(claimed.entry.id)).collect();
            let wanted = index.wanted(lanes);
            (claimed, wanted)
        };
        ask_refills(&requests, &self.shared, wanted);
        self.read(claimed, until)
    }

    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        let now = self.shared.clock.now();
        ask(&self.requests()?, |reply| Mark::boxed(leases, now, reply)).await?
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        let (marked, free): (Vec<_>, Vec<_>) = leases.into_iter().partition(|(lease, _)| lease.called_at.is_some());
        {
            let (mut index, now) = self.shared.index_now();
            give_back(&mut index, free.into_iter(), now);
        }
        if let (false, Ok(requests)) = (marked.is_empty(), self.requests()) {
            // A store that is closed has no leases.
            let _ = ask(&requests, |reply| Unmark::boxed(marked, reply)).await;
        }
    }

    async fn wake(&self, vendor: &str) -> Result<(), StoreError> {
        let (mut index, now) = self.shared.index_now();
        index.wake(vendor, now);
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
            let jobs = upkeep::overdue(conn, now, most)?;
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
        // By the clock that says the earlier time, as jobs are.
        let now = self.shared.clock.now().min(self.shared.clock.unset());
        let keys_before = Time(now.0.saturating_sub(KEYS_KEPT.as_millis() as i64));
        let slice = ask(&self.requests()?, |reply| Prune::boxed(before, keys_before, from, reply)).await??;
        *self.prune_from.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = slice.next.unwrap_or(0);
        Ok(slice.next.is_some() || slice.more_besides)
    }

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError> {
        let (index, now) = self.shared.index_now();
        Ok(index.ready(vendor, now))
    }

    async fn backlog(&self, vendor: &str) -> Backlog {
        let (index, now) = self.shared.index_now();
        index.backlog(vendor, now)
    }

    async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError> {
        let (shared, id) = (Arc::clone(&self.shared), job.id);
        self.readers.read(move |conn| standing::ahead(conn, id, &shared)).await
    }

    async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError> {
        let (shared, lane) = (Arc::clone(&self.shared), lane.clone());
        self.readers.read(move |conn| standing::due_in_lane(conn, &lane, most, &shared)).await
    }

    fn signals(&self) -> &Signals {
        &self.shared.signals
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.find(JobId::MIN, With::NEITHER).await?;
        let Some(why) = self.shared.refusing().clone() else { return Ok(()) };
        // Whether that is still so shows at the next write, which whoever sends no jobs to a store that refuses them does not make.
        if let Ok(requests) = self.requests()
            && requests.capacity() == writer::MOST_QUEUED
        {
            let (unheard, _) = oneshot::channel();
            // A queue that has filled meanwhile has writes enough.
            let _ = requests.try_send(Do::boxed(upkeep::write_something, unheard));
        }
        Err(StoreError::Unavailable(why))
    }

    async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        loop {
            let look_at = self.shared.clock.next_beat(LOOK_EVERY);
            let is_told = failed.wait_for(Option::is_some);
            tokio::select! {
                // The sender is ours, so the wait ends only by a reason.
                why = is_told => return why.ok().and_then(|why| why.clone()).unwrap_or_default(),
                () = self.shared.clock.sleep_until(look_at) => {}
            }
            if let Some(why) = self.file.is_gone() {
                self.failed.send_replace(Some(why));
            }
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
        self.file.let_go();
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
