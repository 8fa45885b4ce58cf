//! The embedded store: one SQLite file, one process. The table is the truth; the index in memory is what dispatch reads.
//!
//! Never writes but through the one writer thread, and never answers before the commit.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::schema::{OpenError, SCHEMA};
use self::{
    amend::{Amend, Reclaim},
    file::OurFile,
    index::Claimed,
    mark::{Mark, Unmark, give_back},
    queue::{Settle, Submit},
    read::Readers,
    room::Place,
    schema::migrate,
    upkeep::{Do, Prune},
    writer::{After, Core, Write, Writer, queue_refills, request},
};
use super::{
    Ahead, Amended, Backlog, Claim, Decide, Erased, Filter, Lease, Overdue, Page, Ready, Sees, Settled, Slice, Store,
    StoreError, Submitted, Unsettled, Which, With,
    failures::Failures,
    room::{Fitting, MostWaiting, NoRoom},
    signals::Signals,
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    job::lifecycle::Change,
    job::{Attempt, Attempts, Idempotency, Job, JobId, Lane, NewJob},
};

mod amend;
mod book;
mod calls;
mod counts;
mod events;
mod file;
mod index;
mod keys;
mod lane_cache;
mod leases;
mod list;
mod mark;
mod queue;
mod read;
mod refill;
mod room;
mod rows;
mod schema;
mod standing;
mod steady;
#[cfg(test)]
mod tests;
mod turns;
mod upkeep;
mod webhooks;
mod writer;

/// Idempotency keys are kept this long.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often to check that the file is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The store on one SQLite file.
pub struct Sqlite {
    core: Arc<Core>,
    readers: Arc<Readers>,
    /// `None` once the store is closed.
    requests: Mutex<Option<mpsc::Sender<Box<dyn Write>>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// The reason, once nothing more can be stored.
    failed: watch::Sender<Option<String>>,
    /// Where the next slice of pruning begins.
    prune_from: Mutex<i64>,
    file: OurFile,
}

impl Sqlite {
    /// Opens the file, or makes it. `vendors` are those that have a dispatcher; `most_waiting` bounds what has not ended.
    pub fn open(
        path: &Path,
        clock: Clock,
        vendors: impl IntoIterator<Item = Arc<str>>,
        most_waiting: impl Into<MostWaiting>,
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
        let last_event = events::last(&conn).map_err(explain)?;
        let core = Arc::new(Core::new(index, clock, signals, most_waiting.into(), last_event));
        let (requests, queue) = mpsc::channel(writer::MOST_QUEUED);
        let failed = watch::Sender::new(None);
        let writer = Writer { conn, core: Arc::clone(&core), requests: queue, next_n, failed: failed.clone() };
        let failing = failed.clone();
        let run = move || {
            // Nobody writes any more, and the index may be half-changed: the process has to end.
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
            core,
            readers: Arc::new(Readers::new(&file.path)),
            requests: Mutex::new(Some(requests)),
            writer: Mutex::new(Some(thread)),
            failed,
            prune_from: Mutex::new(0),
            file,
        })
    }

    /// Reads leased jobs on a connection beside the writer. A job that is not there as it was claimed loses its lease.
    fn read(&self, claimed: Vec<Claimed>, until: Nanos) -> Result<Vec<Lease>, StoreError> {
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let entries: Vec<_> = claimed.iter().map(|claimed| claimed.entry).collect();
        let read = self.readers.look(|conn| read::leased(conn, claimed, until));
        let is_gone = |lease: &Option<Lease>| lease.is_none();
        if read.as_ref().map_or(true, |leases| leases.iter().any(is_gone)) {
            let (mut index, now) = self.core.index_now();
            for (i, entry) in entries.iter().enumerate() {
                let is_good = read.as_ref().is_ok_and(|leases| leases[i].is_some());
                let ended = if is_good { None } else { index.unlease(entry.id, Some(entry.attempt.saturating_add(1))) };
                // After a failed read the job is still there.
                if let (Some(leased), Err(_)) = (ended, &read) {
                    index.put_back(&leased, now);
                }
            }
        }
        Ok(read?.into_iter().flatten().collect())
    }

    async fn store(&self, jobs: Vec<NewJob>, place: Place) -> Result<Vec<Submitted>, StoreError> {
        let now = self.core.clock.now();
        request(&self.requests()?, |reply| Submit::boxed(jobs, now, place, reply)).await?
    }

    async fn change(
        &self,
        sees: &Sees,
        jobs: Vec<Which>,
        now: Time,
        decide: Decide,
    ) -> Result<Vec<Amended>, StoreError> {
        let sees = sees.clone();
        request(&self.requests()?, |reply| Amend::boxed(sees, jobs, now, decide, reply)).await?
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
        let wanted = jobs.len();
        let Some((fitting, place)) = self.core.room.admit(&self.core.index(), jobs) else {
            return Ok(vec![Submitted::NoRoom(NoRoom::InAll); wanted]);
        };
        let (jobs, over) = fitting.into_parts();
        let stored = if jobs.is_empty() { Vec::new() } else { self.store(jobs, place).await? };
        Ok(Fitting::outcomes(over, stored))
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        let requests = self.requests()?;
        let until = self.core.clock.nanos().saturating_add(nanos(claim.lease));
        let (claimed, refills) = {
            let (mut index, now) = self.core.index_now();
            let claimed = index.claim(claim, until, now);
            let lanes: std::collections::BTreeSet<_> =
                claimed.iter().filter_map(|claimed| index.leased_lane(claimed.entry.id)).collect();
            let refills = index.refills(lanes);
            (claimed, refills)
        };
        queue_refills(&requests, &self.core, refills);
        self.read(claimed, until)
    }

    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        let now = self.core.clock.now();
        request(&self.requests()?, |reply| Mark::boxed(leases, now, reply)).await?
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        let (marked, free): (Vec<_>, Vec<_>) = leases.into_iter().partition(|(lease, _)| lease.called_at.is_some());
        {
            let (mut index, now) = self.core.index_now();
            give_back(&mut index, free.into_iter(), now);
        }
        if let (false, Ok(requests)) = (marked.is_empty(), self.requests()) {
            // A store that is closed has no leases.
            let _ = request(&requests, |reply| Unmark::boxed(marked, reply)).await;
        }
    }

    async fn wake(&self, vendor: &str) -> Result<(), StoreError> {
        let (mut index, now) = self.core.index_now();
        index.wake(vendor, now);
        Ok(())
    }

    async fn settle(&self, lease: Lease, change: Change, attempt: Attempt) -> Result<Settled, Unsettled> {
        let now = self.core.clock.now();
        let requests = match self.requests() {
            Ok(requests) => requests,
            Err(why) => return Err(Unsettled { lease: Box::new(lease), change, attempt, why }),
        };
        let (reply, answer) = oneshot::channel();
        if let Err(unsent) = requests.send(Settle::boxed(lease, change, attempt, now, reply)).await {
            // The writer has ended: its answer is that nothing was stored.
            let closed = StoreError::Unavailable("the store is closed".into());
            unsent.0.finish(Err(closed), &mut After::nothing(&self.core));
        }
        answer.await.expect("the writer answers every settle, even when it cannot store it")
    }

    async fn amend(&self, sees: &Sees, which: Which, now: Time, decide: Decide) -> Result<Amended, StoreError> {
        let amended = self.change(sees, vec![which], now, decide).await?.pop();
        amended.ok_or_else(|| StoreError::Unavailable("the change was not made".into()))
    }

    async fn amend_all(
        &self,
        sees: &Sees,
        jobs: &[JobId],
        now: Time,
        decide: Decide,
    ) -> Result<Vec<Amended>, StoreError> {
        self.change(sees, jobs.iter().copied().map(Which::Id).collect(), now, decide).await
    }

    async fn erase(&self, sees: &Sees, id: JobId) -> Result<Erased, StoreError> {
        let sees = sees.clone();
        self.write(move |conn| amend::erase(conn, &sees, id)).await
    }

    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        let next_alarm = self.core.index().next_alarm;
        if next_alarm.is_none_or(|at| at > now.0) {
            return Ok(Overdue { jobs: Vec::new(), next_at: next_alarm.map(Time) });
        }
        // Through the writer, so that no alarm is set between reading the next one and storing it in the index.
        let core = Arc::clone(&self.core);
        let read = move |conn: &Connection| {
            let jobs = upkeep::overdue(conn, now, most)?;
            let min = |sql, after: i64| conn.prepare_cached(sql)?.query_row([after], |row| row.get(0));
            // The earliest of all: while overdue ones are left, the next call reads them.
            core.index().next_alarm = min("SELECT min(alarm_at) FROM jobs WHERE alarm_at >= ?1", i64::MIN)?;
            let next_at: Option<i64> = min("SELECT min(alarm_at) FROM jobs WHERE alarm_at > ?1", now.0)?;
            Ok(Overdue { jobs, next_at: next_at.map(Time) })
        };
        request(&self.requests()?, |reply| Do::boxed(read, reply)).await?
    }

    async fn reclaim(&self) -> Result<usize, StoreError> {
        let now = self.core.clock.nanos();
        {
            let mut index = self.core.index();
            if !index.retry_readings() && index.lapsed(now).is_empty() {
                return Ok(0);
            }
        }
        request(&self.requests()?, |reply| Reclaim::boxed(now, reply)).await?
    }

    async fn find(&self, sees: &Sees, id: JobId, with: With) -> Result<Option<Job>, StoreError> {
        let job = self.readers.look(|conn| read::find(conn, sees, id, with))?;
        Ok(job.map(|job| read::overlay(job, &self.core)))
    }

    async fn attempts(&self, sees: &Sees, id: JobId) -> Result<Option<Attempts>, StoreError> {
        self.readers.look(|conn| read::attempts(conn, sees, id))
    }

    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
        let (tenant, key) = (tenant.to_owned(), key.clone());
        self.readers.read(move |conn| queue::recall(conn, &tenant, &key)).await
    }

    async fn list(&self, sees: &Sees, filter: &Filter, slice: Slice) -> Result<Page, StoreError> {
        let (core, sees, filter) = (Arc::clone(&self.core), sees.clone(), filter.clone());
        self.readers.read(move |conn| list::list(conn, &sees, &filter, slice, &core)).await
    }

    async fn failures(&self, sees: &Sees, vendor: Option<&str>, since: Time) -> Result<Failures, StoreError> {
        let (sees, vendor) = (sees.clone(), vendor.map(str::to_owned));
        self.readers.read(move |conn| read::failures(conn, &sees, vendor.as_deref(), since)).await
    }

    async fn prune(&self, before: Time) -> Result<bool, StoreError> {
        let from = *self.prune_from.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // By the earlier of two clocks, like the deletion of jobs.
        let now = self.core.clock.now().min(self.core.clock.unset());
        let keys_before = Time(now.0.saturating_sub(KEYS_KEPT.as_millis() as i64));
        let slice = request(&self.requests()?, |reply| Prune::boxed(before, keys_before, from, reply)).await??;
        *self.prune_from.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = slice.next.unwrap_or(0);
        Ok(slice.next.is_some() || slice.more_besides)
    }

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError> {
        let (index, now) = self.core.index_now();
        Ok(index.ready(vendor, now))
    }

    async fn backlog(&self, vendor: &str) -> Backlog {
        let (index, now) = self.core.index_now();
        index.backlog(vendor, now)
    }

    async fn backlog_of(&self, vendor: &str, tenant: &Arc<str>) -> Backlog {
        self.core.index().backlog_of(vendor, tenant)
    }

    async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError> {
        let (core, id) = (Arc::clone(&self.core), job.id);
        self.readers.read(move |conn| standing::ahead(conn, id, &core)).await
    }

    async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError> {
        let (core, lane) = (Arc::clone(&self.core), lane.clone());
        self.readers.read(move |conn| standing::due_in_lane(conn, &lane, most, &core)).await
    }

    fn signals(&self) -> &Signals {
        &self.core.signals
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.find(&Sees::All, JobId::MIN, With::NEITHER).await?;
        let Some(why) = self.core.refusing().clone() else { return Ok(()) };
        // Only a write can show whether that is still so, and callers may send none while jobs are refused. So we make one.
        if let Ok(requests) = self.requests()
            && requests.capacity() == writer::MOST_QUEUED
        {
            let (ignored, _) = oneshot::channel();
            // If the queue has filled meanwhile, there are writes enough.
            let _ = requests.try_send(Do::boxed(upkeep::write_something, ignored));
        }
        Err(StoreError::Unavailable(why))
    }

    async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        loop {
            let look_at = self.core.clock.next_beat(LOOK_EVERY);
            let has_reason = failed.wait_for(Option::is_some);
            tokio::select! {
                // The sender lives as long as `self`, so the wait ends only with a reason.
                why = has_reason => return why.ok().and_then(|why| why.clone()).unwrap_or_default(),
                () = self.core.clock.sleep_until(look_at) => {}
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
            // A panic was reported already, see `failed`.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.file.release();
    }
}
