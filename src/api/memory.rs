//! Memory for what clients send and what they are slow to read: budgets, charged as the bytes arrive.
//!
//! Never waits for ever: whoever cannot get memory soon is refused, and whoever keeps some without moving on gives way to those who wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest wait for memory.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// Within this time a client must move on while others wait for the memory that it keeps.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Answers that may wait for memory at the same time: their bytes exist already and are in no budget.
const WAITING_ANSWERS: usize = 2;

/// The budgets of one process, by what they are for, so that no kind of request can take the memory of another.
pub struct Memory {
    /// Bodies of single jobs, and other small bodies.
    pub bodies: Arc<Budget>,
    /// Batches: a whole one, and some small ones beside it.
    pub batches: Arc<Budget>,
    /// Callbacks of vendors.
    pub callbacks: Arc<Budget>,
    /// Answers that have not been sent yet.
    pub answers: Arc<Budget>,
}

impl Default for Memory {
    fn default() -> Memory {
        let budget = |mib| Arc::new(Budget::new(mib));
        Memory { bodies: budget(32), batches: budget(72), callbacks: budget(24), answers: budget(32) }
    }
}

/// Memory that is shared by all who need it for the same purpose.
pub struct Budget {
    free_kib: Arc<Semaphore>,
    total_kib: u32,
    waiting: AtomicUsize,
}

impl Budget {
    fn new(mib: u32) -> Budget {
        let total_kib = mib * 1024;
        Budget { free_kib: Arc::new(Semaphore::new(total_kib as usize)), total_kib, waiting: AtomicUsize::new(0) }
    }

    /// Whether somebody waits for memory of this budget now.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// This many bytes; nothing if they do not become free within [`WAIT`]. More than there are in all counts as all.
    pub async fn take(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: self.clone(), kept: None, bytes: 0 };
        charge.grow(bytes).await.then_some(charge)
    }

    /// For an answer, whose bytes exist already: only a few may wait.
    pub(super) async fn take_for_answer(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        if self.waiting.load(Ordering::Relaxed) < WAITING_ANSWERS {
            return self.take(bytes).await;
        }
        let kept = self.free_kib.clone().try_acquire_many_owned(self.kib(bytes)).ok()?;
        Some(Charge { budget: self.clone(), kept: Some(kept), bytes })
    }

    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.total_kib)
    }

    async fn acquire(self: &Arc<Budget>, kib: u32) -> Option<OwnedSemaphorePermit> {
        if let Ok(free) = self.free_kib.clone().try_acquire_many_owned(kib) {
            return Some(free);
        }
        let _waiting = Waiting::at(self);
        tokio::time::timeout(WAIT, self.free_kib.clone().acquire_many_owned(kib)).await.ok()?.ok()
    }
}

/// Counts one who waits, until it is dropped.
struct Waiting<'a>(&'a Budget);

impl Waiting<'_> {
    fn at(budget: &Budget) -> Waiting<'_> {
        budget.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(budget)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that is charged to a budget until this is dropped.
pub struct Charge {
    budget: Arc<Budget>,
    kept: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Charge {
    pub(super) fn none(budget: Arc<Budget>) -> Charge {
        Charge { budget, kept: None, bytes: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Charges so many bytes more. If they do not become free within [`WAIT`] this is false, and nothing has changed.
    pub(super) async fn grow(&mut self, bytes: usize) -> bool {
        let more = self.budget.kib(self.bytes + bytes) - self.budget.kib(self.bytes);
        if more > 0 {
            let Some(more) = self.budget.acquire(more).await else { return false };
            match &mut self.kept {
                Some(kept) => kept.merge(more),
                None => self.kept = Some(more),
            }
        }
        self.bytes += bytes;
        true
    }
}
