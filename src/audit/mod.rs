//! The audit: what was really sent, and the worst window that ever was.
//!
//! Never decides whether a call may go: `limit` keeps the limits, and this checks whether they were kept, from the times at which calls went
//! out. Each process notes its own calls in memory and writes them once a second, so a crash loses a second of the record. Times are those
//! of the limiter, so that calls of several machines can be put in one order.
//!
//! [`block`] is how calls are stored, [`reader`] puts those of all processes in order, [`history`] knows which limits were in force when,
//! [`judge`] compares the calls with them, and [`watch`] does that all the time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{
    block::Call,
    watch::{LAG, rewind},
};
use crate::{
    clock::{Clock, Nanos, nanos},
    store::{
        StoreError,
        calls::{CallBlock, CallLog, MOST_SPAN, Tally},
    },
};

pub mod block;
pub mod history;
pub mod judge;
pub mod reader;
pub mod watch;

/// Calls are written this often, and when there are as many as fit into one block.
const WRITE_EVERY: Duration = Duration::from_secs(1);
const BLOCK: usize = 4096;
/// Calls of a pool that wait to be written at most; beyond it the oldest never get into the record.
const MOST_WAITING: usize = 65_536;
/// Blocks that wait for the store at most.
const MOST_BLOCKS: usize = 8192;
/// Blocks written at once.
const AT_ONCE: usize = 256;

/// What this process has sent, on its way to the record.
pub struct Audit {
    pub log: Arc<dyn CallLog>,
    clock: Clock,
    pools: HashMap<Arc<str>, Mutex<Noted>>,
    /// By vendor: what no tally has yet.
    throttled: HashMap<Arc<str>, (Arc<str>, AtomicU64)>,
    /// Notified when there is something to write, and when there is enough for a block.
    some: Notify,
    full: Notify,
    /// Locked while the record is written.
    unwritten: tokio::sync::Mutex<Unwritten>,
    lost: AtomicU64,
}

/// The calls of one pool.
#[derive(Default)]
struct Noted {
    waiting: VecDeque<Call>,
    /// When the last one was made.
    last: Option<i64>,
}

/// What could not be written so far, and when everything was written the last time.
struct Unwritten {
    blocks: VecDeque<(CallBlock, Vec<Tally>)>,
    written_at: Nanos,
}

impl Audit {
    /// For these vendors, each with its pool.
    pub fn new(log: Arc<dyn CallLog>, clock: Clock, vendors: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Audit {
        let throttled: HashMap<_, _> =
            vendors.into_iter().map(|(vendor, pool)| (vendor, (pool, AtomicU64::new(0)))).collect();
        let pools = throttled.values().map(|(pool, _)| (pool.clone(), Mutex::default())).collect();
        let unwritten = Unwritten { blocks: VecDeque::new(), written_at: clock.nanos() };
        let (some, full, lost) = (Notify::new(), Notify::new(), AtomicU64::new(0));
        Audit { log, clock, pools, throttled, some, full, unwritten: tokio::sync::Mutex::new(unwritten), lost }
    }

    /// Notes a call, right before its bytes go out.
    pub fn note(&self, pool: &str, call: Call) {
        let Some(noted) = self.pools.get(pool) else { return };
        let mut noted = lock(noted);
        noted.last = noted.last.max(Some(call.at));
        let calls = &mut noted.waiting;
        if calls.len() >= MOST_WAITING {
            calls.pop_front();
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        calls.push_back(call);
        match calls.len() {
            1 => self.some.notify_one(),
            BLOCK => self.full.notify_one(),
            _ => {}
        }
    }

    /// When this process last called a pool.
    fn last_call(&self, pool: &str) -> Option<i64> {
        lock(self.pools.get(pool)?).last
    }

    /// Notes that a vendor asked us to slow down.
    pub fn note_throttled(&self, vendor: &str) {
        if let Some((_, throttled)) = self.throttled.get(vendor) {
            throttled.fetch_add(1, Ordering::Relaxed);
            self.some.notify_one();
        }
    }

    /// Writes until `stop`, and sleeps while nothing is noted. What is noted later has to be written with [`Audit::write`].
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.some.notified() => {}
                () = stop.cancelled() => return,
            }
            let next = self.clock.nanos().saturating_add(nanos(WRITE_EVERY));
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = self.full.notified() => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.write().await {
                tracing::debug!(%error, "calls are not on record yet; trying again in a second");
                self.some.notify_one();
            }
        }
    }

    /// Writes what was noted so far.
    pub async fn write(&self) -> Result<(), StoreError> {
        let mut unwritten = self.unwritten.lock().await;
        let Unwritten { blocks, written_at } = &mut *unwritten;
        let gathered_at = self.clock.nanos();
        self.gather(blocks);
        while !blocks.is_empty() {
            let some = blocks.len().min(AT_ONCE);
            self.log.log(&blocks.make_contiguous()[..some]).await?;
            // The judge may have passed calls that were noted long ago.
            let is_late = self.clock.nanos().saturating_sub(*written_at) / 1000 >= LAG / 2;
            for (block, _) in blocks.range(..some).filter(|(block, _)| is_late && block.count > 0) {
                rewind(&*self.log, block).await?;
            }
            blocks.drain(..some);
        }
        *written_at = gathered_at;
        Ok(())
    }

    /// Puts what was noted into blocks, behind those that wait already.
    fn gather(&self, blocks: &mut VecDeque<(CallBlock, Vec<Tally>)>) {
        for (pool, noted) in &self.pools {
            let mut calls: Vec<Call> = std::mem::take(&mut lock(noted).waiting).into();
            // Attempts run beside each other: the one that looked first may note last.
            calls.sort_by_key(|call| call.at);
            let runs = calls.chunk_by(|a, b| a.at.div_euclid(MOST_SPAN) == b.at.div_euclid(MOST_SPAN));
            let block = |calls: &[Call]| (block::encode(pool, fastrand::i64(..), calls), tallies(calls));
            blocks.extend(runs.flat_map(|run| run.chunks(BLOCK)).map(block));
        }
        self.add_throttled(blocks);
        let over = blocks.len().saturating_sub(MOST_BLOCKS);
        let dropped: u64 = blocks.drain(..over).map(|(block, _)| block.count).sum();
        let lost = self.lost.swap(0, Ordering::Relaxed) + dropped;
        if lost > 0 {
            tracing::error!(
                lost,
                "calls are missing in the audit's record: the store was unavailable for too long; limits do not depend on the record"
            );
        }
    }

    /// Adds how often vendors asked us to slow down, as blocks without calls.
    fn add_throttled(&self, blocks: &mut VecDeque<(CallBlock, Vec<Tally>)>) {
        for (vendor, (pool, throttled)) in &self.throttled {
            let throttled = throttled.swap(0, Ordering::Relaxed);
            if throttled == 0 {
                continue;
            }
            let tally = Tally { vendor: vendor.to_string(), calls: 0, throttled };
            let id = fastrand::i64(..);
            blocks.push_back((block::encode(pool, id, &[]), vec![tally]));
        }
    }
}

fn tallies(calls: &[Call]) -> Vec<Tally> {
    let mut tallies: Vec<Tally> = Vec::new();
    for call in calls {
        match tallies.iter_mut().find(|tally| *tally.vendor == *call.vendor) {
            Some(tally) => tally.calls += 1,
            None => tallies.push(Tally { vendor: call.vendor.to_string(), calls: 1, throttled: 0 }),
        }
    }
    tallies
}

/// A panic under the lock leaves at worst a call that is not on record.
fn lock(noted: &Mutex<Noted>) -> MutexGuard<'_, Noted> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}
