//! Arguments and results of the index's scripts.
//!
//! Never runs a script.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Time,
    job::{Job, JobId, Priority, Stage},
    store::Ready,
};

/// What the index has to know about a vendor.
#[derive(Debug, Clone)]
pub struct VendorWork {
    pub name: Arc<str>,
    /// Whether it has polls: twice as many streams.
    pub polls: bool,
    /// How long a worker may lease a job.
    pub lease: Duration,
    /// Ids kept in each of its streams at most, those leased by workers aside: about half a second of its rate.
    pub depth: usize,
    /// Accepted and not answered at once, at most.
    pub open: Option<u64>,
}

impl VendorWork {
    pub(crate) fn streams(&self) -> usize {
        if self.polls { 6 } else { 3 }
    }
}

/// Which of a vendor's streams: 0 to 2 have its calls, 3 to 5 its polls, each by priority (high, normal, low).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamNo(pub(crate) usize);

impl StreamNo {
    /// Not a stream: jobs that wait for a callback. In the order of lanes they come after those of all streams.
    pub(crate) const AWAITS: StreamNo = StreamNo(6);

    pub(crate) const ALL: [StreamNo; 6] =
        [StreamNo(0), StreamNo(1), StreamNo(2), StreamNo(3), StreamNo(4), StreamNo(5)];

    pub(crate) fn new(priority: Priority, stage: Stage) -> StreamNo {
        StreamNo(priority as usize + if stage == Stage::Poll { 3 } else { 0 })
    }

    pub(crate) fn of(job: &Job) -> StreamNo {
        StreamNo::new(job.lane.priority, job.stage)
    }
}

/// An entry of a stream that this process has leased.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) stream: StreamNo,
    /// The stream's own name for it.
    pub(crate) name: String,
    pub(crate) id: JobId,
}

/// By how much the counts of a vendor change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CountChanges {
    pub(crate) waiting: i64,
    pub(crate) open: i64,
    pub(crate) live: i64,
    /// What their payloads count with.
    pub(crate) bytes: i64,
}

impl CountChanges {
    /// Counts a change of a job from `was` to `is`; `None` is before its submit and after its end.
    pub(crate) fn add(&mut self, was: Option<&Job>, is: Option<&Job>) {
        self.count(was, -1);
        self.count(is, 1);
    }

    fn count(&mut self, job: Option<&Job>, by: i64) {
        let Some((job, stage)) = job.and_then(|job| Some((job, job.live_stage()?))) else { return };
        self.bytes += by * i64::try_from(job.weight).unwrap_or(i64::MAX);
        self.live += by;
        self.open += by * i64::from(matches!(stage, Stage::Await | Stage::Poll));
        self.waiting += by * i64::from(matches!(stage, Stage::Call | Stage::Poll));
    }
}

/// A job that waits for a call or a poll: what the index needs to queue it.
pub(crate) struct Enqueue {
    pub(crate) stream: StreamNo,
    pub(crate) tenant: Arc<str>,
    pub(crate) due_at: Time,
    pub(crate) id: JobId,
}

impl Enqueue {
    pub(crate) fn of(job: &Job) -> Enqueue {
        Enqueue { stream: StreamNo::of(job), tenant: job.lane.tenant.clone(), due_at: job.due_at, id: job.id }
    }

    pub(crate) fn lane(&self) -> (StreamNo, Arc<str>) {
        (self.stream, self.tenant.clone())
    }
}

/// A job that was changed by a callback, an alarm, a cancel or a replay, and what it waits for next.
pub(crate) struct Amendment {
    pub(crate) id: JobId,
    pub(crate) next: Option<Enqueue>,
}

/// An entry that is given back, its tenant, and the time until which the tenant rests.
pub(crate) type GivenBack = (Entry, Arc<str>, Option<Time>);

/// An entry to remove from its stream, and what its job waits for next.
pub(crate) struct Removal {
    pub(crate) entry: Entry,
    pub(crate) which: RemoveIf,
    pub(crate) next: Option<Enqueue>,
}

/// Which entries of the job are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemoveIf {
    /// This one, if it is still leased to this process.
    Leased,
    /// This one, and any other that the job has by now.
    Any,
}

/// What a look at a vendor finds.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) epoch: String,
    /// The caller is to sweep for jobs that are missing in the index.
    pub(crate) sweep: bool,
    /// Calls that all workers together have leased.
    pub(crate) calls_leased: u64,
    /// Calls that were ever claimed.
    pub(crate) claimed: i64,
    pub(crate) ready: Ready,
    /// Something is leased, or tenants rest.
    pub(crate) upkeep: bool,
}

/// When the next call and the next poll are due, in milliseconds; negative: none. `open` is not counted here: a claim counts it itself.
pub(crate) fn ready(next_call: i64, next_poll: i64) -> Ready {
    let time = |at: i64| Some(Time(at)).filter(|at| at.0 >= 0);
    let (next_call, next_poll) = (time(next_call), time(next_poll));
    Ready { next_due: [next_call, next_poll].into_iter().flatten().min(), next_poll, open: 0 }
}

impl Stats {
    /// Whether the index has no job, and counts none.
    pub(crate) fn is_empty(&self) -> bool {
        (self.waiting, self.open, self.live, self.bytes, self.leased, self.heads.len()) == (0, 0, 0, 0, 0, 0)
    }
}

/// A tenant whose turn it is to be read from MongoDB.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) stream: StreamNo,
    pub(crate) tenant: String,
    /// How many to add.
    pub(crate) page: usize,
    /// How many ids are in the stream already.
    pub(crate) known: usize,
}

/// What was read for a tenant.
pub(crate) struct Read {
    pub(crate) tenant: String,
    pub(crate) ids: Vec<JobId>,
    /// Whether the tenant has more jobs, and when they are due.
    pub(crate) more: More,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Nothing,
    Due,
    At(Time),
}

/// What a claim gives.
#[derive(Default)]
pub(crate) struct Claimed {
    pub(crate) epoch: String,
    /// Streams run dry while there is more in MongoDB.
    pub(crate) low: bool,
    /// What a look would find now. Not known while the index is not open.
    pub(crate) left: Option<Ready>,
    pub(crate) entries: Vec<Entry>,
}

/// Counts of a vendor's jobs.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// As counted: negative where a count was lost, until a sweep corrects it.
    pub(crate) waiting: i64,
    pub(crate) open: i64,
    pub(crate) live: i64,
    pub(crate) bytes: i64,
    pub(crate) leased: u64,
    /// When an outcome was last stored.
    pub(crate) settled_at: Option<Time>,
    /// The first jobs of the streams.
    pub(crate) heads: Vec<JobId>,
}

/// Messages between processes. Any of them may be missed: listeners also poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The name of a vendor that may have something to do.
    Bells,
    /// The ids of jobs that have ended, one after the other.
    Ended,
    /// The name of the process that has changed the book.
    Book,
}
