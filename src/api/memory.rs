//! Budgets of memory for requests as they arrive and for answers until they are read.
//!
//! Never waits for ever: a request that gets no memory in time is refused, and a client that stalls is cut off while others wait for its memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// The longest wait for memory.
const WAIT: Duration = Duration::from_secs(2);
/// A shorter wait is normal: no stalled client is cut off for it.
const SHORT_WAIT: Duration = Duration::from_millis(500);
/// While others wait for memory, a client that makes no progress for this long is cut off.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Answers that may wait for memory at the same time. Few, because their bytes exist already and are in no budget.
const WAITING_ANSWERS: usize = 2;
/// Bytes that are reserved before a job of unknown size is read. So at most eight are read at a time, and none while unread answers fill
/// the budget.
const ONE_READ: usize = 4 << 20;

/// The budgets of one process, by what they are for, so that no kind of request can take the memory of another.
pub struct Memory {
    /// Bodies of single jobs, and other small bodies.
    pub bodies: Arc<Budget>,
    /// Batches: room for a whole one and some small ones.
    pub batches: Arc<Budget>,
    /// Callbacks of vendors.
    pub callbacks: Arc<Budget>,
    /// Answers that have not been sent yet.
    pub answers: Arc<Budget>,
    /// Heads of requests that are larger than most.
    pub heads: Arc<Budget>,
}

impl Default for Memory {
    fn default() -> Memory {
        let budget = |mib| Arc::new(Budget::new(mib));
        Memory {
            bodies: budget(32),
            batches: budget(72),
            callbacks: budget(24),
            answers: budget(32),
            heads: budget(32),
        }
    }
}

impl Memory {
    /// Reserves memory before something is read that may be large. It is passed on with the answer.
    pub(super) async fn before_a_read(&self) -> Result<Reserved, ApiError> {
        let charge = self.answers.take(ONE_READ).await.ok_or_else(|| ApiError::no_memory("the answer"))?;
        Ok(Reserved(Arc::new(charge)))
    }
}

/// Memory for an answer that is being made.
#[derive(Clone)]
pub(super) struct Reserved(Arc<Charge>);

impl Reserved {
    /// Keeps what is needed for this many bytes and frees the rest.
    pub(super) fn for_only(mut self, bytes: usize) -> Reserved {
        if let Some(charge) = Arc::get_mut(&mut self.0) {
            charge.shrink(bytes);
        }
        self
    }

    /// Attaches the memory to the answer.
    pub(super) fn with(self, mut response: Response) -> Response {
        response.extensions_mut().insert(self);
        response
    }
}

/// Memory that is shared by all who need it for the same purpose.
pub struct Budget {
    free_kib: Arc<Semaphore>,
    total_kib: u32,
    /// How many have waited for longer than [`SHORT_WAIT`].
    waiting: AtomicUsize,
    /// Bounds the answers that wait for memory.
    late_answers: Semaphore,
}

impl Budget {
    fn new(mib: u32) -> Budget {
        let total_kib = mib * 1024;
        let (free_kib, late_answers) = (Arc::new(Semaphore::new(total_kib as usize)), Semaphore::new(WAITING_ANSWERS));
        Budget { free_kib, total_kib, waiting: AtomicUsize::new(0), late_answers }
    }

    /// Whether somebody has waited for memory of this budget for longer than [`SHORT_WAIT`].
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Charges this many bytes; `None` if they do not become free within two seconds. More than the whole budget counts as all of it.
    pub async fn take(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: self.clone(), kept: None, bytes: 0 };
        charge.grow(bytes).await.then_some(charge)
    }

    /// The same without waiting.
    pub(super) fn try_take(self: &Arc<Budget>, bytes: usize) -> Option<Charge> {
        let kept = self.free_kib.clone().try_acquire_many_owned(self.kib(bytes)).ok()?;
        Some(Charge { budget: self.clone(), kept: Some(kept), bytes })
    }

    /// Charges an answer, whose bytes exist already. What was reserved for it is used first; for more only [`WAITING_ANSWERS`] may wait.
    pub(super) async fn take_for_answer(
        self: &Arc<Budget>,
        bytes: usize,
        reserved: Option<Reserved>,
    ) -> Option<Charge> {
        let reserved = reserved.and_then(|Reserved(charge)| Arc::into_inner(charge));
        let mut charge = reserved.unwrap_or_else(|| Charge::none(self.clone()));
        charge.shrink(bytes);
        let more = bytes - charge.bytes;
        if !charge.try_grow(more) {
            let _place = self.late_answers.try_acquire().ok()?;
            if !charge.grow(more).await {
                return None;
            }
        }
        Some(charge)
    }

    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.total_kib)
    }

    async fn acquire(&self, kib: u32) -> Option<OwnedSemaphorePermit> {
        let free = self.free_kib.clone().acquire_many_owned(kib);
        tokio::pin!(free);
        if let Ok(free) = tokio::time::timeout(SHORT_WAIT, &mut free).await {
            return free.ok();
        }
        let _waiting = Waiting::at(self);
        tokio::time::timeout(WAIT - SHORT_WAIT, free).await.ok()?.ok()
    }
}

/// Counts one waiting request until it is dropped.
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

    /// Charges this many bytes more. False, and no change, if they do not become free within [`WAIT`].
    pub(super) async fn grow(&mut self, bytes: usize) -> bool {
        if self.try_grow(bytes) {
            return true;
        }
        let more = self.budget.acquire(self.kib_for(bytes)).await;
        more.is_some_and(|more| self.add(bytes, more))
    }

    /// The same without waiting.
    fn try_grow(&mut self, bytes: usize) -> bool {
        let more = self.budget.free_kib.clone().try_acquire_many_owned(self.kib_for(bytes));
        more.is_ok_and(|more| self.add(bytes, more))
    }

    fn kib_for(&self, more: usize) -> u32 {
        self.budget.kib(self.bytes + more) - self.budget.kib(self.bytes)
    }

    fn add(&mut self, bytes: usize, more: OwnedSemaphorePermit) -> bool {
        match &mut self.kept {
            Some(kept) => kept.merge(more),
            None => self.kept = Some(more),
        }
        self.bytes += bytes;
        true
    }

    /// Frees what is charged beyond this many bytes.
    fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            let back = self.budget.kib(self.bytes) - self.budget.kib(bytes);
            drop(self.kept.as_mut().and_then(|kept| kept.split(back as usize)));
            self.bytes = bytes;
        }
    }
}
