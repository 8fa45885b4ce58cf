//! What a job is: its status, its stage, its lane. [`lifecycle`] has the rules, [`retry`] the arithmetic of waiting.
//!
//! Never does I/O, never reads a clock, never awaits: whatever is needed comes as an argument.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::{
    attempts::{Attempt, AttemptKind, AttemptOutcome, Attempts},
    end::End,
    failure::{Failure, FailureCode, VendorSaid},
    id::{JobId, JobIds},
    result_webhook::{DeliveryStatus, ResultWebhook, Tried},
    trace::Trace,
};
use crate::clock::Time;

mod attempts;
mod end;
mod failure;
mod id;
pub mod lifecycle;
mod result_webhook;
pub mod retry;
mod trace;
pub mod turn;

/// Payloads of up to this many bytes do not count where waiting bytes are bounded: there the number of waiting jobs is bound enough.
pub const SMALL_PAYLOAD: usize = 4 << 10;

/// The bytes that a payload of this size counts with where waiting bytes are bounded.
pub fn weight(payload: usize) -> u64 {
    if payload > SMALL_PAYLOAD { payload as u64 } else { 0 }
}

/// A job that could not be polled for so long after its vendor's time to answer ends, so that none stays for ever.
const LONGEST_UNASKED: Duration = Duration::from_secs(30 * 86_400);

/// What callers see of a job's progress. The last four are ends: only a replay changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted: waiting for its time, a permit or the next attempt.
    Pending,
    /// A call is in flight, or the vendor has accepted the job and works on it.
    Processing,
    Complete,
    Failed,
    Cancelled,
    Expired,
}

impl Status {
    pub const ALL: [Status; 6] =
        [Status::Pending, Status::Processing, Status::Complete, Status::Failed, Status::Cancelled, Status::Expired];

    pub fn has_ended(self) -> bool {
        !matches!(self, Status::Pending | Status::Processing)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Processing => "processing",
            Status::Complete => "complete",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Expired => "expired",
        }
    }
}

/// Weighted shares between lanes: 16 : 4 : 1. None starves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// How many calls this priority gets while `Low` gets one.
    pub fn share(self) -> u32 {
        match self {
            Priority::High => 16,
            Priority::Normal => 4,
            Priority::Low => 1,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        }
    }
}

/// The unit of order and fairness: jobs of one lane go first in, first out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    pub vendor: Arc<str>,
    pub priority: Priority,
    pub tenant: Arc<str>,
}

impl Lane {
    /// What a tenant's name is made of.
    pub const TENANT_FORM: &str = "1 to 64 characters, none of them a control character";

    /// Whether a tenant can have this name.
    pub fn is_tenant(name: &str) -> bool {
        (1..=64).contains(&name.chars().count()) && !name.chars().any(char::is_control)
    }
}

/// The time after which nobody needs the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    pub at: Time,
    /// Given as a duration: a replay starts it again. If it was given as a time that is past, a replay drops it.
    pub within: Option<Duration>,
}

/// A job that has been checked and not yet stored.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    pub lane: Lane,
    pub payload: Bytes,
    /// Not called before this.
    pub due_at: Time,
    pub deadline: Option<Deadline>,
    pub tags: Vec<String>,
    pub idempotency: Option<Idempotency>,
    /// Where its end is announced.
    pub webhook: Option<ResultWebhook>,
    /// The span in which its caller submitted it.
    pub caller: Option<Trace>,
}

impl NewJob {
    /// A job with nothing that a caller may leave out.
    pub fn new(id: JobId, lane: Lane, payload: impl Into<Bytes>, due_at: Time) -> NewJob {
        let (payload, tags) = (payload.into(), Vec::new());
        NewJob { id, lane, payload, due_at, deadline: None, tags, idempotency: None, webhook: None, caller: None }
    }
}

/// A caller's `Idempotency-Key` and the body that was sent with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    pub key: String,
    /// SHA-256 of the request's raw body.
    pub body_hash: [u8; 32],
}

/// What a job that has not ended waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The submitting call, at or after its due time.
    Call,
    /// The next poll, at or after its due time; the vendor has accepted the job. To fetch its data is a poll too.
    Poll,
    /// The vendor's callback; the vendor has accepted the job.
    Await,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Call => "call",
            Stage::Poll => "poll",
            Stage::Await => "await",
        }
    }
}

/// Where the data of a job is whose vendor is done and has not given it.
#[derive(Clone, PartialEq, Eq)]
pub enum Fetch {
    /// Where the config's `result_url` says.
    ByConfig,
    /// At this URL, which the vendor gave.
    At(String),
}

impl Fetch {
    /// As the stores keep it.
    pub fn as_text(&self) -> &str {
        match self {
            Fetch::ByConfig => "",
            Fetch::At(url) => url,
        }
    }

    pub fn from_text(text: String) -> Fetch {
        if text.is_empty() { Fetch::ByConfig } else { Fetch::At(text) }
    }
}

/// Such a URL often contains a secret, so it is not shown.
impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fetch::ByConfig => "by the config",
            Fetch::At(_) => "at a URL of the vendor's",
        })
    }
}

/// A job as the store has it. Payload and result are bytes that nobody here looks into.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub lane: Lane,
    pub payload: Bytes,
    /// See [`weight`]. Known also where the job was read without its payload.
    pub weight: u64,
    pub status: Status,
    pub stage: Stage,
    /// When the next call or poll may go; for [`Stage::Await`] when it began to wait.
    pub due_at: Time,
    /// The vendor accepted the job and has to answer by then; while it is polled, not before it has been asked at that time or later.
    pub answer_by: Option<Time>,
    pub deadline: Option<Deadline>,
    pub tags: Vec<String>,
    /// How often it was replayed.
    pub run: u32,
    /// Calls of this run that count against `retry.attempts`.
    pub tries: u32,
    /// Orders of this run that the vendor accepted and did not answer in time. 0 if the job was read without its payload.
    pub unanswered: u32,
    /// How often in a row its vendor gave the answer in `failure`, if that does not count as a try: see [`Job::in_a_row`].
    pub slowed: u32,
    /// All attempts so far, of all runs: the fence.
    pub attempt: u32,
    /// The vendor's own reference to accepted work.
    pub ticket: Option<String>,
    /// For [`Stage::Poll`]: the vendor is done, and what is left is to fetch its data.
    pub fetch: Option<Fetch>,
    pub result: Option<Bytes>,
    /// Why it ended without a result; while it has not ended, what was wrong with its last attempt.
    pub failure: Option<Failure>,
    pub updated_at: Time,
    pub finished_at: Option<Time>,
    /// Where its end is announced, and how far that is.
    pub webhook: Option<ResultWebhook>,
    /// The span in which its caller submitted it. `None` too if the job was read only to be shown.
    pub caller: Option<Trace>,
}

impl From<NewJob> for Job {
    /// The job as it is when it has just been accepted.
    fn from(new: NewJob) -> Job {
        Job {
            updated_at: new.id.created_at(),
            id: new.id,
            lane: new.lane,
            weight: weight(new.payload.len()),
            payload: new.payload,
            status: Status::Pending,
            stage: Stage::Call,
            due_at: new.due_at,
            answer_by: None,
            deadline: new.deadline,
            tags: new.tags,
            run: 0,
            tries: 0,
            unanswered: 0,
            slowed: 0,
            attempt: 0,
            ticket: None,
            fetch: None,
            result: None,
            failure: None,
            finished_at: None,
            webhook: new.webhook,
            caller: new.caller,
        }
    }
}

impl Job {
    /// The span of this run of the job, of which all its calls are children: in its caller's trace, else in one whose id is the job's. Every
    /// process knows it without asking.
    pub fn trace(&self) -> Trace {
        let own = u128::from_be_bytes(*self.id.as_bytes());
        let (id, is_sampled) = self.caller.map_or((own, true), |caller| (caller.id, caller.is_sampled));
        Trace { id, span: (own as u64).wrapping_add(u64::from(self.run)).max(1), is_sampled }
    }

    /// What it waits for; nothing once it has ended.
    pub fn live_stage(&self) -> Option<Stage> {
        (!self.status.has_ended()).then_some(self.stage)
    }

    /// Whether its end is still to be announced.
    pub fn owes_webhook(&self) -> bool {
        self.webhook.as_ref().is_some_and(|webhook| webhook.next_at.is_some())
    }

    /// Whether a call or a poll is what it waits for.
    pub fn needs_call(&self) -> bool {
        matches!(self.live_stage(), Some(Stage::Call | Stage::Poll))
    }

    /// A job whose calls are refused for our credentials this often in a row, while other jobs' calls are not, ends as failed.
    pub const MOST_REFUSALS: u32 = 3;

    /// How often in a row its vendor gave the same answer that counts as no try: "slow down" (`AttemptsExhausted`), or a refusal of our
    /// credentials (`VendorRefused`).
    pub fn in_a_row(&self, code: FailureCode) -> u32 {
        if self.failure.as_ref().is_some_and(|last| last.code == code) { self.slowed } else { 0 }
    }

    /// What its last attempt came to, of a job that goes on after `failure`. A connection that broke in the middle of a reply counts as
    /// `TryAgain` here: the vendor had answered.
    pub fn last_outcome(&self, failure: &Failure) -> AttemptOutcome {
        match failure.code {
            FailureCode::Timeout => AttemptOutcome::Timeout,
            FailureCode::VendorRefused => AttemptOutcome::Unauthorized,
            _ if self.slowed > 0 => AttemptOutcome::SlowDown,
            _ if failure.vendor.is_some() => AttemptOutcome::TryAgain,
            _ => AttemptOutcome::NoConnection,
        }
    }

    /// Whether an earlier call of this run may have been done, by the record of the job's attempts.
    pub fn may_be_done(&self, record: &Attempts) -> bool {
        // A worker that died left no record of its call. The count of attempts is over all runs, so it proves that only in the first.
        let is_lost = self.run == 0 && self.attempt > record.made();
        is_lost || record.went_out(self.tries)
    }

    /// When something has to happen to this job without a call: its deadline, or the vendor's time to answer.
    pub fn alarm_at(&self) -> Option<Time> {
        let deadline = self.deadline.map(|d| d.at);
        [deadline, self.gives_up_at()].into_iter().flatten().min().filter(|_| !self.status.has_ended())
    }

    /// When the job ends, or is ordered again, without another poll. For a polled job that is long after `answer_by`, because only a poll
    /// that brings nothing ends it (see `lifecycle::polls`).
    pub fn gives_up_at(&self) -> Option<Time> {
        let unasked = if self.stage == Stage::Poll { LONGEST_UNASKED } else { Duration::ZERO };
        self.answer_by.map(|by| by.plus(unasked))
    }
}
