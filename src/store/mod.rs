//! Where jobs are kept, from submit until they are deleted.
//!
//! Never calls a vendor and never decides what a step means (see `job::lifecycle`). Callers do not know which backend runs.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::filter::{Filter, Page, Slice};
pub use crate::store_error::StoreError;

use self::{failures::Failures, room::NoRoom};
use crate::{
    clock::{Nanos, Time},
    job::{Attempt, Attempts, Idempotency, Job, JobId, Lane, NewJob, Status, lifecycle::Change},
};

pub mod calls;
pub mod events;
pub mod failures;
mod filter;
pub mod keys;
pub mod redis_mongo;
pub mod room;
pub mod signals;
pub mod sqlite;
pub mod webhooks;

/// What became of one submitted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// Stored.
    New(JobId),
    /// The same key and body were submitted before, as this job.
    Known(JobId),
    /// The same key was submitted before with another body.
    KeyReused,
    /// As much is waiting as may; the job was not stored.
    NoRoom(NoRoom),
}

/// A worker's request for jobs of one vendor.
#[derive(Debug, Clone)]
pub struct Claim {
    pub vendor: Arc<str>,
    /// At most this many jobs in all.
    pub most: usize,
    /// At most this many of them for their submitting call; the rest can only be polls.
    pub calls: usize,
    pub now: Time,
    /// How long the leases last.
    pub lease: Duration,
}

/// A worker's timed lock on a job. The worker settles or releases it, or loses it when the time is up.
#[derive(Debug)]
pub struct Lease {
    pub job: Job,
    /// The fence: the number of the attempt that this lease is for.
    pub attempt: u32,
    /// When its call was put on record, if it was (see [`Store::mark`]).
    pub called_at: Option<Time>,
    /// Nobody else can have the job before this time, on this process's timeline. Counted from before the claim was sent.
    pub until: Nanos,
}

/// A settle that could not be stored, whole, so that it can be retried.
#[derive(Debug)]
pub struct Unsettled {
    pub lease: Box<Lease>,
    pub change: Change,
    pub attempt: Attempt,
    pub why: StoreError,
}

/// What became of a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Stored,
    /// The job has ended by other means, or another worker has leased it: nothing was changed.
    TooLate,
}

/// Whose jobs a caller sees and may change. For it the others do not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sees {
    All,
    Tenant(Arc<str>),
}

impl Sees {
    pub fn includes(&self, tenant: &str) -> bool {
        match self {
            Sees::All => true,
            Sees::Tenant(own) => **own == *tenant,
        }
    }
}

/// What became of a job that was to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    Done,
    /// It has not ended; nothing was changed.
    NotEnded(Status),
    Unknown,
}

/// Which job is meant.
#[derive(Debug, Clone)]
pub enum Which {
    Id(JobId),
    /// By the vendor's own reference to it.
    Ticket {
        vendor: Arc<str>,
        ticket: String,
    },
}

/// For the log: a ticket stays with the vendor.
impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Id(id) => id.fmt(f),
            Which::Ticket { vendor, .. } => write!(f, "one of {vendor}, by its ticket"),
        }
    }
}

/// A decision about a job as it is now. A pure function, because a store may call it more than once.
pub type Decide = Box<dyn Fn(&Job) -> Option<Change> + Send + Sync>;

/// What became of an amendment.
#[derive(Debug, Clone)]
pub enum Amended {
    /// Stored; the job as it is now (without payload and result).
    Changed(Job),
    /// The decision was not to change the job.
    Left(Job),
    /// An ended job was to wait again, and there is no room for it: it was not changed.
    NoRoom(Job, NoRoom),
    Unknown,
}

/// Jobs whose alarm is due, and when the next alarm will be.
#[derive(Debug, Clone, Default)]
pub struct Overdue {
    pub jobs: Vec<JobId>,
    pub next_at: Option<Time>,
}

/// How much of a job to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct With {
    pub payload: bool,
    pub result: bool,
}

impl With {
    /// Enough to decide something about a job.
    pub const NEITHER: With = With { payload: false, result: false };
}

/// Whether a vendor has something to do. Cheap enough for every turn of its dispatcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// When the next job is due; a past time means now.
    pub next_due: Option<Time>,
    /// When the next poll is due, for when only polls may be made.
    pub next_poll: Option<Time>,
    /// Jobs that the vendor has accepted and not answered, for dispatchers that bound them; 0 from a store whose claims bound them.
    pub open: u64,
}

/// How many jobs of a vendor are where, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs that wait for a call or a poll, now or later; leased ones do not count.
    pub waiting: u64,
    /// Jobs that workers have leased now.
    pub leased: u64,
    /// Accepted by the vendor and not answered.
    pub open: u64,
    /// When the oldest due job became due.
    pub oldest_due: Option<Time>,
    /// When an outcome was last stored, if that is known.
    pub settled_at: Option<Time>,
}

/// Positions up to this one, counted from 1, are exact.
pub const EXACT_PLACES: u64 = 1_000;

/// How many jobs are ahead of one that waits for its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Jobs of the same vendor.
    pub jobs: u64,
    /// Those of them that are of the same lane.
    pub in_lane: u64,
    /// Whether the count is exact. Otherwise at least so many are ahead.
    pub is_exact: bool,
}

/// The job's life, verb by verb. Every method returns only when what it did is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores new jobs together; one outcome for each, in their order.
    async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError>;

    /// Leases jobs that are due, fairly between the vendor's lanes; polls of accepted work before new calls.
    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError>;

    /// Puts on record that the submitting calls of these leases are about to be made. If such a lease is neither settled nor released, its
    /// job ends when the lease lapses, and nobody calls again. Gives the leases that are still good; after an error all are released.
    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError>;

    /// Gives leases back without an attempt, and removes the records of their calls. With a time, the job's lane rests until then (its tenant is
    /// over its own limit).
    async fn release(&self, leases: Vec<(Lease, Option<Time>)>);

    /// Lets lanes of a vendor that rest go on at once: its tenants' limits may have changed.
    async fn wake(&self, vendor: &str) -> Result<(), StoreError>;

    /// Stores what an attempt made of its job, if the lease is still good. `Complete` is stored from a stale lease too,
    /// while the job has not ended: the vendor was paid for it.
    async fn settle(&self, lease: Lease, change: Change, attempt: Attempt) -> Result<Settled, Unsettled>;

    /// Changes a job without a lease: callbacks, cancels, replays and alarms. Changes are made one after the other, each sees the one before.
    /// An ended job that is to wait again needs room, as a new one does.
    async fn amend(&self, sees: &Sees, which: Which, now: Time, decide: Decide) -> Result<Amended, StoreError>;

    /// The same for many jobs with one commit, for cancels and replays. Gives what became of the first of them, in their order: at least of one,
    /// and of all unless they are too large for one commit. A job that cannot be read is [`Amended::Unknown`].
    async fn amend_all(
        &self,
        sees: &Sees,
        jobs: &[JobId],
        now: Time,
        decide: Decide,
    ) -> Result<Vec<Amended>, StoreError>;

    /// Deletes a job that has ended, with its payload, its result and its attempts. Its idempotency key is kept as long as any other.
    async fn erase(&self, sees: &Sees, id: JobId) -> Result<Erased, StoreError>;

    /// Up to `most` jobs whose deadline or time to answer has passed.
    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError>;

    /// Frees jobs whose lease has lapsed for other workers, or ends them if their call is on record; says how many. Leases run on the timeline
    /// that never steps. With many processes, each measures a lease from the first call of this method that saw it.
    async fn reclaim(&self) -> Result<usize, StoreError>;

    /// Called by each worker once a second: reports that it is alive, and reads which other workers are. With many processes each vendor has a
    /// home among the workers, which wakes up for its jobs. False if this store can have only one process.
    async fn roll_call(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Wakes the other workers for a vendor with more due jobs than this one can claim at once.
    async fn call_helpers(&self, _vendor: &str) {}

    /// Whether this worker measures the vendor's backlog: it is the vendor's home, and the vendor is not idle.
    fn looks_after(&self, _vendor: &str) -> bool {
        true
    }

    async fn find(&self, sees: &Sees, id: JobId, with: With) -> Result<Option<Job>, StoreError>;

    async fn attempts(&self, sees: &Sees, id: JobId) -> Result<Option<Attempts>, StoreError>;

    /// What was submitted under this tenant's key before, if anything was.
    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError>;

    async fn list(&self, sees: &Sees, filter: &Filter, slice: Slice) -> Result<Page, StoreError>;

    /// Counts the jobs that ended without a result after `since`, of one vendor or of all, by what was wrong. Looks at a bounded number.
    async fn failures(&self, sees: &Sees, vendor: Option<&str>, since: Time) -> Result<Failures, StoreError>;

    /// Deletes some jobs that ended before `before`; says whether there may be more.
    async fn prune(&self, before: Time) -> Result<bool, StoreError>;

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError>;

    async fn backlog(&self, vendor: &str) -> Backlog;

    /// The part of one tenant: what waits and what is open. Jobs that workers have leased count as waiting.
    async fn backlog_of(&self, vendor: &str, tenant: &Arc<str>) -> Backlog;

    /// How many jobs are ahead of this one, exact below [`EXACT_PLACES`]. The work is bounded, however many jobs wait. `None` if it is unknown,
    /// or the job does not wait for its call any more.
    async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError>;

    /// How many jobs of a lane are due and not leased, counted up to `most`.
    async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError>;

    /// Wake-ups: for workers when there is work, for callers when a job has ended.
    fn signals(&self) -> &signals::Signals;

    /// Whether the store can be reached and accepts jobs; else the reason.
    async fn check(&self) -> Result<(), StoreError> {
        self.find(&Sees::All, JobId::MIN, With::NEITHER).await.map(drop)
    }

    /// Returns, with the reason, when nothing more can ever be stored, so that the process should end. Cancel-safe.
    async fn failed(&self) -> String;

    /// Refuses further writes, finishes those that are queued and releases what the store has locked.
    async fn close(&self);
}
