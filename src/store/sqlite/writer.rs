//! The one thread that writes: many requests share one transaction and one fsync (group commit).
//!
//! Never tells anybody that something is stored before the commit has returned.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tokio::sync::{mpsc, watch};

use super::{
    index::{Index, LaneId, Refill},
    read,
    steady::Now,
    upkeep::ReadLane,
};
use crate::{
    clock::Clock,
    job::{JobId, Lane},
    store::{StoreError, signals::Signals},
};

/// Requests that share a transaction at most.
const MOST_IN_BATCH: usize = 1024;
/// Requests that wait for the writer at most; more wait for a place in the queue.
pub(super) const MOST_QUEUED: usize = 4096;
/// Lanes whose numbers are remembered; tenants come and go.
const MOST_LANES: usize = 16_384;
/// Jobs that may arrive before a lane's row says anew how far its jobs go.
const LAST_AHEAD: i64 = 20_000;
/// Lanes that are read between two batches, when nobody claims from them: at start, say.
const UNREAD_IN_BATCH: usize = 64;
/// Pages in the write-ahead log after which it is copied into the database: small slices keep commits short.
const CHECKPOINT_PAGES: i64 = 4000;
/// The same, when nobody waits for a commit.
const IDLE_CHECKPOINT_PAGES: i64 = 500;

/// One request to the writer.
pub(super) trait Write: Send {
    /// Its statements, inside the shared transaction. May run again, from the start, if the transaction had to be rolled back.
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()>;

    /// After the commit, or its failure: brings the index up to date and answers whoever waits.
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>);
}

/// What a request sees while its transaction is open.
pub(super) struct Tx<'a> {
    pub(super) conn: &'a Connection,
    pub(super) shared: &'a Shared,
    lanes: &'a mut Lanes,
    next_n: &'a mut i64,
}

/// Lanes by their names, each with the highest number that a job of it may have by what its row says.
type Lanes = HashMap<Lane, (LaneId, i64)>;

/// What a request can do once its transaction is over. The index is locked throughout, so no claim falls between two requests.
pub(super) struct After<'a> {
    pub(super) index: MutexGuard<'a, Index>,
    pub(super) now: Now,
    ended: Vec<JobId>,
    ring: BTreeSet<Arc<str>>,
    alarm: bool,
}

/// What the writer, the claims and the reads share.
pub(super) struct Shared {
    index: Mutex<Index>,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    /// Why the last write failed, if it did: the next one will too, as a rule.
    refusing: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn new(index: Index, clock: Clock, signals: Signals) -> Shared {
        Shared { index: Mutex::new(index), clock, signals, refusing: Mutex::default() }
    }

    /// The index, and which moment it is.
    pub(super) fn index_now(&self) -> (MutexGuard<'_, Index>, Now) {
        let mut index = self.index();
        let now = index.now(&self.clock);
        (index, now)
    }

    /// Why jobs are refused now, if they are. A panic elsewhere does not make a sentence wrong.
    pub(super) fn refusing(&self) -> MutexGuard<'_, Option<String>> {
        self.refusing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The index. A panic while it was locked would leave it half-changed, so it is not used after one.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("the index is whole: nothing that holds it panics")
    }
}

impl Tx<'_> {
    /// The number of a lane for its job `n`, which is made if it is new. Its row says how far its jobs may go, which changes seldom.
    pub(super) fn lane(&mut self, lane: &Lane, n: i64) -> rusqlite::Result<LaneId> {
        if let Some((id, _)) = self.lanes.get(lane).filter(|(_, last_n)| n <= *last_n) {
            return Ok(*id);
        }
        let name = (&*lane.vendor, lane.priority as u8, &*lane.tenant);
        let known = self
            .conn
            .prepare_cached("SELECT lane, last_n FROM lanes WHERE vendor = ?1 AND priority = ?2 AND tenant = ?3")?
            .query_row(name, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (id, last_n) = match known.filter(|(_, last_n)| n <= *last_n) {
            Some(known) => known,
            None => self
                .conn
                .prepare_cached(
                    "INSERT INTO lanes (vendor, priority, tenant, last_n) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET last_n = excluded.last_n RETURNING lane, last_n",
                )?
                .query_row((name.0, name.1, name.2, n.saturating_add(LAST_AHEAD)), |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?,
        };
        if self.lanes.len() >= MOST_LANES {
            self.lanes.clear();
        }
        self.lanes.insert(lane.clone(), (id, last_n));
        Ok(id)
    }

    /// So many rows of lanes have been deleted.
    pub(super) fn forget_lanes(&mut self, deleted: usize) {
        if deleted > 0 {
            self.lanes.clear();
        }
    }

    /// The number of the next job to arrive.
    pub(super) fn next_n(&mut self) -> i64 {
        *self.next_n += 1;
        *self.next_n
    }
}

impl<'a> After<'a> {
    /// For a request that never reached the writer.
    pub(super) fn nothing(shared: &'a Shared) -> After<'a> {
        let (index, now) = shared.index_now();
        After { index, now, ended: Vec::new(), ring: BTreeSet::new(), alarm: false }
    }

    pub(super) fn has_ended(&mut self, id: JobId) {
        self.ended.push(id);
    }

    pub(super) fn ring(&mut self, vendor: &Arc<str>) {
        if !self.ring.contains(vendor) {
            self.ring.insert(vendor.clone());
        }
    }

    /// An alarm has been set.
    pub(super) fn alarm(&mut self, at: crate::clock::Time) {
        if self.index.next_alarm.is_none_or(|next| at.0 < next) {
            self.index.next_alarm = Some(at.0);
            self.alarm = true;
        }
    }
}

/// The writer's own state.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Receiver<Box<dyn Write>>,
    pub(super) next_n: i64,
    /// Told the reason when the disk has failed in a way that cannot be repaired by trying again.
    pub(super) failed: watch::Sender<Option<String>>,
}

impl Writer {
    /// Serves requests until all senders are gone, then empties the write-ahead log and closes the file.
    pub(super) fn run(mut self) {
        // Waiting longer would be the callers' wait.
        if let Err(error) = self.conn.busy_timeout(BUSY_WRITING) {
            tracing::warn!(%error, "SQLite waits longer than it should for others who have the file");
        }
        let (mut lanes, failing) = (HashMap::new(), self.failed.clone());
        let failed = || failing.borrow().clone();
        while let Some(batch) = self.next_batch() {
            if let Some(why) = failed() {
                return self.refuse_all(batch, &why);
            }
            self.write(batch, &mut lanes);
            if let Some(why) = failed() {
                return self.refuse_all(Vec::new(), &why);
            }
            let limit = if self.requests.is_empty() { IDLE_CHECKPOINT_PAGES } else { CHECKPOINT_PAGES };
            checkpoint(&self.conn, limit);
        }
        if let Err(error) = self.conn.execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE);") {
            tracing::warn!(%error, "the write-ahead log could not be emptied; the next start will do it");
        }
    }

    /// What is waiting, lanes to read included; waits for a request when there is nothing. `None` when all senders are gone.
    fn next_batch(&mut self) -> Option<Vec<Box<dyn Write>>> {
        let lanes = if self.requests.is_closed() { 0 } else { UNREAD_IN_BATCH };
        let unread = self.shared.index().wanted_by_nobody(lanes);
        let mut batch: Vec<Box<dyn Write>> = Vec::new();
        batch.extend(unread.into_iter().map(|refill| Box::new(ReadLane::new(refill)) as Box<dyn Write>));
        if batch.is_empty() {
            batch.push(self.requests.blocking_recv()?);
        }
        while batch.len() < MOST_IN_BATCH
            && let Ok(next) = self.requests.try_recv()
        {
            batch.push(next);
        }
        Some(batch)
    }

    /// Answers whoever is in the queue or still comes that nothing can be stored any more.
    fn refuse_all(mut self, batch: Vec<Box<dyn Write>>, why: &str) {
        let refused = || Err(StoreError::Unavailable(why.to_owned()));
        self.finish(batch.into_iter().map(|write| (write, refused())));
        self.requests.close();
        while let Some(write) = self.requests.blocking_recv() {
            self.finish(std::iter::once((write, refused())));
        }
    }

    /// One transaction for all; if that fails, one for each, so that one bad request fails alone. When others have the file nobody has a better
    /// chance alone, and each would wait as long again.
    fn write(&mut self, mut batch: Vec<Box<dyn Write>>, lanes: &mut Lanes) {
        let together = self.commit(&mut batch, lanes);
        let Err(error) = together else {
            return self.finish(batch.into_iter().map(|write| (write, Ok(()))));
        };
        if is_busy(&error) {
            let why = self.explain(&error);
            return self.finish(batch.into_iter().map(|write| (write, Err(why.clone()))));
        }
        for write in batch {
            let mut alone = vec![write];
            let outcome = self.commit(&mut alone, lanes).map_err(|error| self.explain(&error));
            self.finish(alone.into_iter().map(|write| (write, outcome.clone())));
        }
    }

    fn commit(&mut self, batch: &mut [Box<dyn Write>], lanes: &mut Lanes) -> rusqlite::Result<()> {
        let before = self.conn.total_changes();
        let written = self.conn.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            let mut tx = Tx { conn: &self.conn, shared: &self.shared, lanes, next_n: &mut self.next_n };
            batch.iter_mut().try_for_each(|write| write.run(&mut tx))?;
            self.conn.execute_batch("COMMIT")
        });
        if written.is_err() {
            lanes.clear();
            if !self.conn.is_autocommit() {
                // Fails only if SQLite has rolled back by itself meanwhile.
                let _ = self.conn.execute_batch("ROLLBACK");
            }
        } else if self.conn.total_changes() != before {
            self.shared.refusing().take();
        }
        written
    }

    fn finish(&self, batch: impl Iterator<Item = (Box<dyn Write>, Result<(), StoreError>)>) {
        let mut after = After::nothing(&self.shared);
        batch.for_each(|(write, outcome)| write.finish(outcome, &mut after));
        let After { index, ended, ring, alarm, .. } = after;
        drop(index);
        self.shared.signals.announce_ended(&ended);
        ring.iter().for_each(|vendor| self.shared.signals.ring(vendor));
        if alarm {
            self.shared.signals.alarm().notify_one();
        }
    }

    /// What callers are told; a disk that fails to read or write ends the writer, for nobody knows then what is stored.
    fn explain(&self, error: &rusqlite::Error) -> StoreError {
        let code = error.sqlite_error_code();
        let is_fatal =
            matches!(code, Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
        tracing::error!(%error, is_fatal, "the store could not write");
        if is_fatal {
            let why = format!("the disk failed ({error}); check it and start again; what was acknowledged is safe");
            self.failed.send_replace(Some(why));
        }
        let why = match code {
            Some(ErrorCode::DiskFull) => "the disk is full".to_owned(),
            Some(ErrorCode::ReadOnly) => "the file cannot be written".to_owned(),
            _ if is_busy(error) => "another program has locked the file".to_owned(),
            // What is wrong with one request says nothing about others.
            _ => return read::explain(error),
        };
        *self.shared.refusing() = Some(format!("jobs are refused: {why}"));
        StoreError::Unavailable(why)
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn checkpoint(conn: &Connection, limit_pages: i64) {
    // NOOP tells the size of the log without copying anything.
    let pages =
        conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?));
    let done = match pages {
        Ok(pages) if pages >= limit_pages => conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "the write-ahead log could not be copied; it is tried again after the next commit");
    }
}

/// Queues a request and waits for its answer.
pub(super) async fn ask<T>(
    requests: &mpsc::Sender<Box<dyn Write>>,
    make: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Box<dyn Write>,
) -> Result<T, StoreError> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let closed = || StoreError::Unavailable("the store is closed".into());
    requests.send(make(reply)).await.map_err(|_| closed())?;
    answer.await.map_err(|_| closed())
}

/// Queues readings of the table for lanes that have run low. Those that find no place in the queue are read after its next batch.
pub(super) fn ask_refills(requests: &mpsc::Sender<Box<dyn Write>>, shared: &Shared, refills: Vec<Refill>) {
    for refill in refills {
        let write = Box::new(ReadLane::new(refill));
        if requests.try_send(write).is_err() {
            shared.index().not_refilling(refill);
        }
    }
}

/// How long opening, and reading, waits for another process to let go of the file.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// How long a write does: whoever comes meanwhile waits for this one, and then for as long again.
const BUSY_WRITING: Duration = Duration::from_secs(1);
