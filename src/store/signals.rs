//! Wake-ups from the store: a bell for each vendor's dispatcher, and for callers the end of the job that they wait for.
//!
//! Never carries data: who is woken reads the store. No wake-up is lost by those who register first, then read, then wait.

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
    webhooks: Notify,
    is_unsubscribed: AtomicBool,
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
    /// Callers that may wait for jobs at once; more get the job as it is without waiting.
    pub const MAX_WAITERS: usize = 10_000;

    pub fn new(vendors: impl IntoIterator<Item = Arc<str>>) -> Signals {
        let bells = vendors.into_iter().map(|vendor| (vendor, Arc::default())).collect();
        let (alarm, book, waits, webhooks) = (Notify::new(), Notify::new(), Notify::new(), Notify::new());
        let is_unsubscribed = AtomicBool::new(false);
        Signals { bells, alarm, book, webhooks, is_unsubscribed, waits, waiting: Arc::default() }
    }

    /// The bell of a vendor: rung when it may have something to do. `None` for a vendor that is not in the config.
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

    /// Rung when an alarm was set that is earlier than all others.
    pub fn alarm(&self) -> &Notify {
        &self.alarm
    }

    /// Rung when another process has changed the book, or may have.
    pub fn book(&self) -> &Notify {
        &self.book
    }

    /// Rung when the end of a job is to be announced.
    pub fn webhooks(&self) -> &Notify {
        &self.webhooks
    }

    /// Whether messages of other processes do not arrive now.
    pub fn is_unsubscribed(&self) -> bool {
        self.is_unsubscribed.load(Ordering::Relaxed)
    }

    /// Messages of other processes arrive from now on, or not. In both cases one about the book may have been missed.
    pub fn note_unsubscribed(&self, is_unsubscribed: bool) {
        self.is_unsubscribed.store(is_unsubscribed, Ordering::Relaxed);
        self.book.notify_one();
    }

    /// Rung when a caller begins to wait for the end of a job.
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

    /// The jobs that callers wait for.
    pub fn waited_for(&self) -> Vec<JobId> {
        lock(&self.waiting).by_job.keys().copied().collect()
    }

    /// Wakes all callers, and lets none wait any more: the service is stopping, and they get the job as it is.
    pub fn dismiss_waiters(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.count = Self::MAX_WAITERS;
        waiting.by_job.clear();
    }

    /// Wakes the callers that wait for these jobs.
    pub fn announce_ended(&self, ids: &[JobId]) {
        let mut waiting = lock(&self.waiting);
        if waiting.count == 0 {
            return;
        }
        for id in ids {
            for (_, sender) in waiting.by_job.remove(id).unwrap_or_default() {
                waiting.count -= 1;
                // An error means that the caller has gone.
                let _ = sender.send(());
            }
        }
    }
}

/// One registration for the end of a job; ends when dropped.
pub struct Waiter {
    id: JobId,
    key: u64,
    ended: oneshot::Receiver<()>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Waiter {
    /// Returns when the job has ended. Cancel-safe.
    pub async fn ended(&mut self) {
        // An error means that nobody may wait any more; the caller reads the job in both cases.
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

/// A panic elsewhere cannot leave this half-changed.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
