//! The one thread that writes: many requests share one transaction and one fsync (group commit).
//!
//! Never answers that something is stored before the commit has returned.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicI64},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tokio::sync::{mpsc, watch};

use super::{
    index::{Index, LaneId},
    read,
    refill::{ReadLane, Refill},
    room::Room,
    steady::Now,
};
use crate::{
    clock::Clock,
    job::{JobId, Lane},
    store::{StoreError, room::MostWaiting, signals::Signals},
};

/// Requests that share a transaction at most.
const MOST_IN_BATCH: usize = 1024;
/// Requests in the writer's queue at most; further senders wait.
pub(super) const MOST_QUEUED: usize = 4096;
/// Lanes whose numbers are kept in memory at most.
const MOST_LANES: usize = 16_384;
/// A lane's `last_n` is set this far ahead, so that it is written seldom.
const LAST_AHEAD: i64 = 20_000;
/// Lanes that are read with one batch, of those that no claim comes by (at start, for example).
const UNREAD_IN_BATCH: usize = 64;
/// Pages in the write-ahead log after which it is copied into the database. Small slices keep commits short.
const CHECKPOINT_PAGES: i64 = 4000;
/// The same while nobody waits for a commit.
const IDLE_CHECKPOINT_PAGES: i64 = 500;

/// One request to the writer.
pub(super) trait Write: Send {
    /// Its statements, inside the shared transaction. They run again if the transaction was rolled back.
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()>;

    /// After the commit, or its failure: updates the index and answers the caller.
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>);
}

/// What a request works with while its transaction is open.
pub(super) struct Tx<'a> {
    pub(super) conn: &'a Connection,
    pub(super) core: &'a Core,
    lanes: &'a mut Lanes,
    next_n: &'a mut i64,
}

/// The number and `last_n` of lanes: the highest number that a job of the lane may have.
type Lanes = HashMap<Lane, (LaneId, i64)>;

/// What a request works with after its transaction. The index stays locked, so no claim falls between two requests.
pub(super) struct After<'a> {
    pub(super) index: MutexGuard<'a, Index>,
    pub(super) now: Now,
    ended: Vec<JobId>,
    ring: BTreeSet<Arc<str>>,
    alarm: bool,
    /// An end is to be announced.
    owes_webhooks: bool,
}

/// What the writer, the claims and the reads share.
pub(super) struct Core {
    index: Mutex<Index>,
    pub(super) clock: Clock,
    pub(super) signals: Signals,
    pub(super) room: Arc<Room>,
    /// The highest number of an event so far.
    pub(super) last_event: AtomicI64,
    /// Why the last write failed, if it did: the next one is likely to fail too.
    refusing: Mutex<Option<String>>,
}

impl Core {
    pub(super) fn new(index: Index, clock: Clock, signals: Signals, most: MostWaiting, last_event: i64) -> Core {
        let (room, last_event) = (Arc::new(Room::new(most)), AtomicI64::new(last_event));
        Core { index: Mutex::new(index), clock, signals, room, last_event, refusing: Mutex::default() }
    }

    /// The index, and the time.
    pub(super) fn index_now(&self) -> (MutexGuard<'_, Index>, Now) {
        let mut index = self.index();
        let now = index.now(&self.clock);
        (index, now)
    }

    /// Why jobs are refused now, if they are. A panic elsewhere cannot leave this half-changed.
    pub(super) fn refusing(&self) -> MutexGuard<'_, Option<String>> {
        self.refusing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The index. A panic while it was locked would leave it half-changed, so it is not used after one.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("the index is whole: nothing panics while it is locked")
    }
}

impl Tx<'_> {
    /// The number of the lane of job `n`. A new lane gets a row; an old one gets a higher `last_n` if it has to.
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

    /// After rows of lanes were deleted.
    pub(super) fn forget_lanes(&mut self, deleted: usize) {
        if deleted > 0 {
            self.lanes.clear();
        }
    }

    /// The number of the next job.
    pub(super) fn next_n(&mut self) -> i64 {
        *self.next_n += 1;
        *self.next_n
    }
}

impl<'a> After<'a> {
    /// For a request that never reached the writer.
    pub(super) fn nothing(core: &'a Core) -> After<'a> {
        let (index, now) = core.index_now();
        After { index, now, ended: Vec::new(), ring: BTreeSet::new(), alarm: false, owes_webhooks: false }
    }

    pub(super) fn has_ended(&mut self, id: JobId, owes_webhook: bool) {
        self.ended.push(id);
        self.owes_webhooks |= owes_webhook;
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
    pub(super) core: Arc<Core>,
    pub(super) requests: mpsc::Receiver<Box<dyn Write>>,
    pub(super) next_n: i64,
    /// Gets the reason when the disk has failed in a way that a retry cannot repair.
    pub(super) failed: watch::Sender<Option<String>>,
}

impl Writer {
    /// Serves requests until all senders are gone, then empties the write-ahead log and closes the file.
    pub(super) fn run(mut self) {
        // A longer wait for the file would be a longer wait for callers.
        if let Err(error) = self.conn.busy_timeout(BUSY_WRITING) {
            tracing::warn!(%error, "a busy file delays writes for longer than it should");
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
            tracing::warn!(%error, "the write-ahead log could not be emptied; the next start empties it");
        }
    }

    /// The queued requests, and lanes to read; waits while there is neither. `None` when all senders are gone.
    fn next_batch(&mut self) -> Option<Vec<Box<dyn Write>>> {
        let lanes = if self.requests.is_closed() { 0 } else { UNREAD_IN_BATCH };
        let unread = self.core.index().unread_refills(lanes);
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

    /// Answers all requests, those to come included, that nothing can be stored any more.
    fn refuse_all(mut self, batch: Vec<Box<dyn Write>>, why: &str) {
        let refused = || Err(StoreError::Unavailable(why.to_owned()));
        self.finish(batch.into_iter().map(|write| (write, refused())));
        self.requests.close();
        while let Some(write) = self.requests.blocking_recv() {
            self.finish(std::iter::once((write, refused())));
        }
    }

    /// One transaction for all; if that fails, one for each, so that one bad request fails alone. But not if the file is locked by another
    /// program: that has nothing to do with a request, and each would wait again.
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
            let mut tx = Tx { conn: &self.conn, core: &self.core, lanes, next_n: &mut self.next_n };
            batch.iter_mut().try_for_each(|write| write.run(&mut tx))?;
            self.conn.execute_batch("COMMIT")
        });
        if written.is_err() {
            lanes.clear();
            if !self.conn.is_autocommit() {
                // Fails only if SQLite has rolled back by itself.
                let _ = self.conn.execute_batch("ROLLBACK");
            }
        } else if self.conn.total_changes() != before {
            self.core.refusing().take();
        }
        written
    }

    fn finish(&self, batch: impl Iterator<Item = (Box<dyn Write>, Result<(), StoreError>)>) {
        let mut after = After::nothing(&self.core);
        batch.for_each(|(write, outcome)| write.finish(outcome, &mut after));
        let After { index, ended, ring, alarm, owes_webhooks, .. } = after;
        drop(index);
        self.core.signals.announce_ended(&ended);
        ring.iter().for_each(|vendor| self.core.signals.ring(vendor));
        if alarm {
            self.core.signals.alarm().notify_one();
        }
        if owes_webhooks {
            self.core.signals.webhooks().notify_one();
        }
    }

    /// The error for callers. A disk that fails to read or write ends the writer, because nobody knows what is stored then.
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
            // An error of one request, which does not concern others.
            _ => return read::explain(error),
        };
        *self.core.refusing() = Some(format!("jobs are refused: {why}"));
        StoreError::Unavailable(why)
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn checkpoint(conn: &Connection, limit_pages: i64) {
    // NOOP gives the size of the log without copying anything.
    let pages =
        conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?));
    let done = match pages {
        Ok(pages) if pages >= limit_pages => conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "the write-ahead log could not be copied into the database; retrying after the next commit");
    }
}

/// Sends a request to the writer and waits for the answer.
pub(super) async fn request<T>(
    requests: &mpsc::Sender<Box<dyn Write>>,
    make: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Box<dyn Write>,
) -> Result<T, StoreError> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let closed = || StoreError::Unavailable("the store is closed".into());
    requests.send(make(reply)).await.map_err(|_| closed())?;
    answer.await.map_err(|_| closed())
}

/// Has the writer read lanes that have run low. If its queue is full, they are read with its next batch.
pub(super) fn queue_refills(requests: &mpsc::Sender<Box<dyn Write>>, core: &Core, refills: Vec<Refill>) {
    for refill in refills {
        let write = Box::new(ReadLane::new(refill));
        if requests.try_send(write).is_err() {
            core.index().not_refilling(refill);
        }
    }
}

/// How long opening and reading wait while another program has locked the file.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// The same for a write. It is short because requests that come meanwhile wait for this write, and then for as long again.
const BUSY_WRITING: Duration = Duration::from_secs(1);
