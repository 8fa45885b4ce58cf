//! Wake-ups between the store and those who wait for it: a bell for each vendor's dispatcher, and waiters for the end of a job.
//!
//! Never carries data: whoever is woken looks into the store. A lost wake-up is impossible if one registers first, then looks, then waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, oneshot};

use crate::job::JobId;

/// All wake-ups of one store.
pub struct Signals {
    bells: HashMap<Arc<str>, Arc<Notify>>,
    alarm: Notify,
    book: Notify,
    is_deaf: AtomicBool,
    waits: Notify,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    by_job: HashMap<JobId, Vec<(u64, oneshot::Sender<()>)>>,
    count: usize,
    next_key: u64,
}

impl Signals {
    /// Callers that may wait for jobs at once; more are answered at once with what is known.
    pub const MAX_WAITERS: usize = 10_000;

    pub fn new(vendors: impl IntoIterator<Item = Arc<str>>) -> Signals {
        let bells = vendors.into_iter().map(|vendor| (vendor, Arc::default())).collect();
        let (alarm, book, waits) = (Notify::new(), Notify::new(), Notify::new());
        Signals { bells, alarm, book, is_deaf: AtomicBool::new(false), waits, waiting: Arc::default() }
    }

    /// The bell of a vendor: rung when it may have something to do. Nothing for a vendor that is not configured.
    pub fn bell(&self, vendor: &str) -> Option<Arc<Notify>> {
        self.bells.get(vendor).cloned()
    }

    pub fn ring(&self, vendor: &str) {
        if let Some(bell) = self.bells.get(vendor) {
            bell.notify_one();
        }
    }

    pub fn ring_all(&self) {
        self.bells.values().for_each(|bell| bell.notify_one());
    }

    /// Rung when an alarm was set that is earlier than those before.
    pub fn alarm(&self) -> &Notify {
        &self.alarm
    }

    /// Rung when another process has changed the book, or may have.
    pub fn book(&self) -> &Notify {
        &self.book
    }

    /// Whether what other processes say is not heard now.
    pub fn is_deaf(&self) -> bool {
        self.is_deaf.load(Ordering::Relaxed)
    }

    /// Takes note that what others say is heard from now on or not. Either way the book may have been changed unheard.
    pub fn note_deaf(&self, is_deaf: bool) {
        self.is_deaf.store(is_deaf, Ordering::Relaxed);
        self.book.notify_one();
    }

    /// Rung when somebody begins to wait for the end of a job.
    pub fn waits(&self) -> &Notify {
        &self.waits
    }

    /// Registers for the end of a job; `None` when too many wait already.
    pub fn wait_for(&self, id: JobId) -> Option<Waiter> {
        let mut waiting = lock(&self.waiting);
        if waiting.count >= Self::MAX_WAITERS {
            return None;
        }
        let (sender, ended) = oneshot::channel();
        let key = waiting.next_key;
        waiting.next_key += 1;
        waiting.count += 1;
        waiting.by_job.entry(id).or_default().push((key, sender));
        self.waits.notify_one();
        Some(Waiter { id, key, ended, waiting: Arc::clone(&self.waiting) })
    }

    pub fn somebody_waits(&self) -> bool {
        !lock(&self.waiting).by_job.is_empty()
    }

    /// The jobs that somebody waits for.
    pub fn waited_for(&self) -> Vec<JobId> {
        lock(&self.waiting).by_job.keys().copied().collect()
    }

    /// Wakes everybody, and lets nobody wait any more: the service is stopping, and callers are told what is known.
    pub fn dismiss_waiters(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.count = Self::MAX_WAITERS;
        waiting.by_job.clear();
    }

    /// Wakes those who wait for these jobs.
    pub fn announce_ended(&self, ids: &[JobId]) {
        let mut waiting = lock(&self.waiting);
        if waiting.count == 0 {
            return;
        }
        for id in ids {
            for (_, sender) in waiting.by_job.remove(id).unwrap_or_default() {
                waiting.count -= 1;
                // A waiter that has gone meanwhile does not mind.
                let _ = sender.send(());
            }
        }
    }
}

/// One registration for the end of a job; forgotten when dropped.
pub struct Waiter {
    id: JobId,
    key: u64,
    ended: oneshot::Receiver<()>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Waiter {
    /// Returns when the job has ended. Cancel-safe.
    pub async fn ended(&mut self) {
        // An error means that nobody may wait any more; the caller looks once more.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        let Some(senders) = waiting.by_job.get_mut(&self.id) else { return };
        let before = senders.len();
        senders.retain(|(key, _)| *key != self.key);
        let gone = before - senders.len();
        if senders.is_empty() {
            waiting.by_job.remove(&self.id);
        }
        waiting.count = waiting.count.saturating_sub(gone);
    }
}

/// A panic elsewhere does not make a list of wake-ups wrong.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
