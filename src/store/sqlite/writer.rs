//! The one thread that writes: many requests share one transaction and one fsync (group commit).
//!
//! Never tells anybody that something is stored before the commit has returned.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, watch};

use super::{
    index::{Index, LaneId, Refill},
    upkeep::ReadLane,
};
use crate::{
    clock::{Clock, Time},
    job::{JobId, Lane},
    store::{StoreError, signals::Signals},
};

/// Requests that share a transaction at most.
const MOST_IN_BATCH: usize = 1024;
/// Requests that wait for the writer at most; more wait for a place in the queue.
pub(super) const MOST_QUEUED: usize = 4096;
/// Lanes whose numbers are remembered; tenants come and go.
const MOST_LANES: usize = 16_384;
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
    lanes: &'a mut HashMap<Lane, LaneId>,
    next_n: &'a mut i64,
}

/// What a request can do once its transaction is over. The index is locked throughout, so no claim falls between two requests.
pub(super) struct After<'a> {
    pub(super) index: MutexGuard<'a, Index>,
    pub(super) now: Time,
    ended: Vec<JobId>,
    ring: BTreeSet<Arc<str>>,
    alarm: bool,
}

/// What the writer, the claims and the reads share.
pub(super) struct Shared {
    index: Mutex<Index>,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
}

impl Shared {
    pub(super) fn new(index: Index, clock: Clock, signals: Signals) -> Shared {
        Shared { index: Mutex::new(index), clock, signals }
    }

    /// The index. A panic while it was locked would leave it half-changed, so it is not used after one.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("the index is whole: nothing that holds it panics")
    }
}

impl Tx<'_> {
    /// The number of a lane, which is made if it is new.
    pub(super) fn lane(&mut self, lane: &Lane) -> rusqlite::Result<LaneId> {
        if let Some(id) = self.lanes.get(lane) {
            return Ok(*id);
        }
        let key = (&*lane.vendor, lane.priority as u8, &*lane.tenant);
        self.conn
            .prepare_cached("INSERT INTO lanes (vendor, priority, tenant) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
            .execute(key)?;
        let id = self
            .conn
            .prepare_cached("SELECT lane FROM lanes WHERE vendor = ?1 AND priority = ?2 AND tenant = ?3")?
            .query_row(key, |row| row.get(0))?;
        if self.lanes.len() >= MOST_LANES {
            self.lanes.clear();
        }
        self.lanes.insert(lane.clone(), id);
        Ok(id)
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
        After { index: shared.index(), now: shared.clock.now(), ended: Vec::new(), ring: BTreeSet::new(), alarm: false }
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
    pub(super) fn alarm(&mut self, at: Time) {
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
        let mut lanes = HashMap::new();
        while let Some(batch) = self.next_batch() {
            self.write(batch, &mut lanes);
            let failed = self.failed.borrow().clone();
            if let Some(why) = failed {
                return self.refuse_all(&why);
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
    fn refuse_all(mut self, why: &str) {
        self.requests.close();
        while let Some(write) = self.requests.blocking_recv() {
            let refused = Err(StoreError::Unavailable(why.to_owned()));
            self.finish(std::iter::once((write, refused)));
        }
    }

    /// One transaction for all; if that fails, one for each, so that one bad request fails alone.
    fn write(&mut self, mut batch: Vec<Box<dyn Write>>, lanes: &mut HashMap<Lane, LaneId>) {
        if self.commit(&mut batch, lanes).is_ok() {
            self.finish(batch.into_iter().map(|write| (write, Ok(()))));
            return;
        }
        for write in batch {
            let mut alone = vec![write];
            let outcome = self.commit(&mut alone, lanes).map_err(|error| self.explain(&error));
            self.finish(alone.into_iter().map(|write| (write, outcome.clone())));
        }
    }

    fn commit(&mut self, batch: &mut [Box<dyn Write>], lanes: &mut HashMap<Lane, LaneId>) -> rusqlite::Result<()> {
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
        let fatal = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        );
        tracing::error!(%error, fatal, "the store could not write");
        if fatal {
            self.failed.send_replace(Some(format!("the disk failed ({error})")));
        }
        StoreError::Unavailable(error.to_string())
    }
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

/// How long opening waits for another process to let go of the file.
pub(super) const BUSY: Duration = Duration::from_secs(5);
