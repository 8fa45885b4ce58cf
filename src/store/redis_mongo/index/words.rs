//! Arguments and results of the index's scripts.
//!
//! Never runs a script.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Time,
    job::{Job, JobId, Priority, Stage},
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
    pub(crate) fn lines(&self) -> usize {
        if self.polls { 6 } else { 3 }
    }
}

/// A stream of a vendor: its calls, then its polls, each by priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Line(pub(crate) usize);

impl Line {
    pub(crate) const ALL: [Line; 6] = [Line(0), Line(1), Line(2), Line(3), Line(4), Line(5)];

    pub(crate) fn new(priority: Priority, stage: Stage) -> Line {
        Line(priority as usize + if stage == Stage::Poll { 3 } else { 0 })
    }

    pub(crate) fn of(job: &Job) -> Line {
        Line::new(job.lane.priority, job.stage)
    }
}

/// An entry of a stream that this process has leased.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) line: Line,
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
}

impl CountChanges {
    /// A job as it was is now another; nothing is one that is not born.
    pub(crate) fn add(&mut self, was: Option<&Job>, is: Option<&Job>) {
        self.count(was, -1);
        self.count(is, 1);
    }

    fn count(&mut self, job: Option<&Job>, by: i64) {
        let Some(stage) = job.and_then(Job::live_stage) else { return };
        self.live += by;
        self.open += by * i64::from(matches!(stage, Stage::Await | Stage::Poll));
        self.waiting += by * i64::from(matches!(stage, Stage::Call | Stage::Poll));
    }
}

/// A job that wants to go, or will.
pub(crate) struct Wanted {
    pub(crate) line: Line,
    pub(crate) tenant: Arc<str>,
    pub(crate) due_at: Time,
    pub(crate) id: JobId,
}

impl Wanted {
    pub(crate) fn lane(&self) -> (Line, Arc<str>) {
        (self.line, self.tenant.clone())
    }
}

/// A job that was changed from outside, and what it waits for next.
pub(crate) struct Amendment {
    pub(crate) id: JobId,
    pub(crate) next: Option<Wanted>,
}

/// An entry that is given back, its tenant, and until when that is to rest.
pub(crate) type GivenBack = (Entry, Arc<str>, Option<Time>);

/// An entry to remove from its stream, and what its job waits for next.
pub(crate) struct Removal {
    pub(crate) entry: Entry,
    pub(crate) which: RemoveIf,
    pub(crate) next: Option<Wanted>,
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
    /// Calls that workers lease, all of them together, and how many were ever claimed.
    pub(crate) calls_leased: u64,
    pub(crate) claimed: i64,
    pub(crate) next_call: Option<Time>,
    pub(crate) next_poll: Option<Time>,
}

/// A tenant whose turn it is to be read from MongoDB.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) line: Line,
    pub(crate) tenant: String,
    /// How many to add.
    pub(crate) page: usize,
    /// How many ids of the line are in its stream already.
    pub(crate) known: usize,
}

/// What was read for a tenant.
pub(crate) struct Read {
    pub(crate) tenant: String,
    pub(crate) ids: Vec<JobId>,
    /// Whether it has more than that, and when.
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
    pub(crate) entries: Vec<Entry>,
}

/// How much is where.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// As counted: negative where a count was lost, until a sweep corrects it.
    pub(crate) waiting: i64,
    pub(crate) open: i64,
    pub(crate) live: i64,
    pub(crate) leased: u64,
    /// When what came of a call was last stored.
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
