//! The words: a job, its id, its status, its attempts. [`lifecycle`] has the rules, [`retry`] the arithmetic of waiting.
//!
//! Never does I/O, never reads a clock, never awaits: whatever is needed comes as an argument.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Time;

pub mod lifecycle;
pub mod retry;
pub mod turn;

/// A job's id: a UUID v7, so it sorts by the millisecond in which the job was accepted. `request_id` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JobId {
    /// No id is less.
    pub const MIN: JobId = JobId(Uuid::nil());
    /// No id is greater.
    pub const MAX: JobId = JobId(Uuid::max());

    /// Reads an id from a URL or a body. Only the hyphenated form that we give out is one.
    pub fn parse(text: &str) -> Option<JobId> {
        (text.len() == 36).then(|| Uuid::try_parse(text).ok().map(JobId)).flatten()
    }

    /// The smallest id of a millisecond: every id made at or after `at` is not less.
    pub fn first_at(at: Time) -> JobId {
        let ms = u128::try_from(at.0).unwrap_or(0);
        JobId(Uuid::from_u128(ms << 80))
    }

    pub fn from_bytes(bytes: [u8; 16]) -> JobId {
        JobId(Uuid::from_bytes(bytes))
    }

    /// Nothing when these are not sixteen bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<JobId> {
        bytes.try_into().ok().map(JobId::from_bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id's own millisecond.
    pub fn created_at(&self) -> Time {
        Time(i64::try_from(self.0.as_u128() >> 80).unwrap_or(0))
    }
}

/// Makes ids that go up, even within a millisecond and when the clock is set back.
pub struct JobIds(Mutex<uuid::ContextV7>);

impl JobIds {
    pub fn new() -> JobIds {
        JobIds(Mutex::new(uuid::ContextV7::new()))
    }

    /// A new id for this moment.
    pub fn next(&self, now: Time) -> JobId {
        let ms = u64::try_from(now.0).unwrap_or(0);
        let at = uuid::Timestamp::from_unix(&self.0, ms / 1000, u32::try_from(ms % 1000 * 1_000_000).unwrap_or(0));
        JobId(Uuid::new_v7(at))
    }
}

impl Default for JobIds {
    fn default() -> JobIds {
        JobIds::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Where a job stands. The last four are ends: they change only through a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted: waiting for its time, a permit or the next attempt.
    Pending,
    /// A call is under way, or the vendor has accepted and works on it.
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

/// When a job is no longer worth a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    pub at: Time,
    /// Given as a duration: a replay starts it anew. A given time is dropped by a replay once it is past.
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
}

/// A caller's `Idempotency-Key` and what came under it.
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
    /// The next poll, at or after its due time; the vendor has accepted.
    Poll,
    /// The vendor's callback; the vendor has accepted.
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

/// A job as the store knows it. Payload and result are bytes to us.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub lane: Lane,
    pub payload: Bytes,
    pub status: Status,
    pub stage: Stage,
    /// When the next call or poll may go; for [`Stage::Await`] when it began to wait.
    pub due_at: Time,
    /// The vendor accepted and has to answer by then.
    pub answer_by: Option<Time>,
    pub deadline: Option<Deadline>,
    pub tags: Vec<String>,
    /// How often it was replayed.
    pub run: u32,
    /// Calls of this run that count against `retry.attempts`.
    pub tries: u32,
    /// Orders of this run that the vendor accepted and did not answer in time. Known where the payload was read too.
    pub unanswered: u32,
    /// How often in a row its vendor asked to slow down.
    pub slowed: u32,
    /// All attempts so far, of all runs: the fence.
    pub attempt: u32,
    /// The vendor's own reference to accepted work.
    pub ticket: Option<String>,
    pub result: Option<Bytes>,
    /// Why it ended without a result; while it has not ended, what was wrong with its last attempt.
    pub failure: Option<Failure>,
    pub updated_at: Time,
    pub finished_at: Option<Time>,
}

impl Job {
    /// What it waits for; nothing once it has ended.
    pub fn live_stage(&self) -> Option<Stage> {
        (!self.status.has_ended()).then_some(self.stage)
    }

    /// Whether it waits for a call or a poll.
    pub fn wants_to_go(&self) -> bool {
        matches!(self.live_stage(), Some(Stage::Call | Stage::Poll))
    }

    /// When something has to happen to this job without a call: its deadline, or the vendor's time to answer.
    pub fn alarm_at(&self) -> Option<Time> {
        let deadline = self.deadline.map(|d| d.at);
        [deadline, self.answer_by].into_iter().flatten().min().filter(|_| !self.status.has_ended())
    }
}

/// Why a job failed or expired: a stable code, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
    /// What the vendor said last, if it answered.
    pub vendor: Option<VendorSaid>,
}

impl Failure {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), vendor: None }
    }

    /// The same, with the vendor's own words.
    pub fn with_words(self, vendor: Option<VendorSaid>) -> Failure {
        Failure { vendor, ..self }
    }
}

/// What a vendor answered when it brought no data. Both are bounded and redacted before they get here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VendorSaid {
    /// Nothing for a callback, which has none.
    pub status: Option<u16>,
    /// The beginning of the body, as text.
    pub body: String,
}

impl VendorSaid {
    /// Bytes of a body that are kept at most.
    pub const MAX_BODY: usize = 2048;
}

/// The stable names of what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// The vendor said no in a way that another attempt would not change.
    VendorRefused,
    /// Every attempt that was allowed failed.
    AttemptsExhausted,
    /// The last allowed call took too long.
    Timeout,
    /// The vendor accepted and did not answer in time.
    NoAnswer,
    /// The vendor answered something that is not data.
    BadResponse,
    ResponseTooLarge,
    /// The job's deadline passed first.
    Deadline,
    /// Workers died again and again while they held the job.
    Crashed,
    /// The call may have been done, and its vendor is called at most once.
    UnknownOutcome,
}

impl FailureCode {
    pub const ALL: [FailureCode; 9] = [
        FailureCode::VendorRefused,
        FailureCode::AttemptsExhausted,
        FailureCode::Timeout,
        FailureCode::NoAnswer,
        FailureCode::BadResponse,
        FailureCode::ResponseTooLarge,
        FailureCode::Deadline,
        FailureCode::Crashed,
        FailureCode::UnknownOutcome,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            FailureCode::VendorRefused => "vendor_refused",
            FailureCode::AttemptsExhausted => "attempts_exhausted",
            FailureCode::Timeout => "timeout",
            FailureCode::NoAnswer => "no_answer",
            FailureCode::BadResponse => "bad_response",
            FailureCode::ResponseTooLarge => "response_too_large",
            FailureCode::Deadline => "deadline",
            FailureCode::Crashed => "crashed",
            FailureCode::UnknownOutcome => "unknown_outcome",
        }
    }

    pub fn from_text(text: &str) -> Option<FailureCode> {
        FailureCode::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

/// One vendor call for a job, on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1, over all runs.
    pub n: u32,
    pub kind: AttemptKind,
    /// Milliseconds since the Unix epoch; `None`: nothing was sent.
    pub sent_at: Option<i64>,
    pub permit_at: i64,
    /// The HTTP status, if the vendor answered.
    pub status: Option<u16>,
    pub latency_ms: u64,
    pub outcome: AttemptOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of a body that was neither data nor "not yet".
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptKind {
    Call,
    Poll,
}

/// What came of an attempt. The aliases are the words of earlier versions, which are still in stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    Done,
    /// Not yet: the vendor is asked again.
    #[serde(alias = "check_again")]
    Pending,
    /// The vendor took the job and will call back or wants to be polled.
    #[serde(alias = "await_callback")]
    Accepted,
    /// The vendor wants fewer calls.
    SlowDown,
    /// The vendor failed in a way that may pass.
    TryAgain,
    /// The vendor said no, or something that is not data.
    #[serde(alias = "give_up")]
    Refused,
    /// The vendor does not take our credentials.
    Unauthorized,
    /// No reply in time.
    Timeout,
    /// No connection, or one that broke.
    NoConnection,
}

impl AttemptOutcome {
    pub const ALL: [AttemptOutcome; 9] = [
        AttemptOutcome::Done,
        AttemptOutcome::Pending,
        AttemptOutcome::Accepted,
        AttemptOutcome::SlowDown,
        AttemptOutcome::TryAgain,
        AttemptOutcome::Refused,
        AttemptOutcome::Unauthorized,
        AttemptOutcome::Timeout,
        AttemptOutcome::NoConnection,
    ];

    /// Whether the call failed. A vendor that is merely busy has a gate for that, and a line in the log of its own.
    pub fn is_failure(self) -> bool {
        use AttemptOutcome::{NoConnection, Refused, Timeout, TryAgain, Unauthorized};
        matches!(self, TryAgain | Refused | Unauthorized | Timeout | NoConnection)
    }

    /// The word in the API and in labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptOutcome::Done => "done",
            AttemptOutcome::Pending => "pending",
            AttemptOutcome::Accepted => "accepted",
            AttemptOutcome::SlowDown => "slow_down",
            AttemptOutcome::TryAgain => "try_again",
            AttemptOutcome::Refused => "refused",
            AttemptOutcome::Unauthorized => "unauthorized",
            AttemptOutcome::Timeout => "timeout",
            AttemptOutcome::NoConnection => "no_connection",
        }
    }
}

/// A job's attempts: the first 5, the last 45, and how many between them are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    first: Vec<Attempt>,
    #[serde(skip_serializing_if = "VecDeque::is_empty", default)]
    last: VecDeque<Attempt>,
    #[serde(default)]
    omitted: u32,
}

impl Attempts {
    const FIRST: usize = 5;
    const LAST: usize = 45;
    /// Bytes of responses that are kept of one job at most.
    const MAX_RESPONSES: usize = 16 << 10;

    pub fn push(&mut self, attempt: Attempt) {
        if self.first.len() < Self::FIRST {
            self.first.push(attempt);
            return;
        }
        if self.last.len() == Self::LAST {
            self.last.pop_front();
            self.omitted += 1;
        }
        self.last.push_back(attempt);
        self.bound_responses();
    }

    /// Drops the oldest responses after the first attempts, until what is left is small enough.
    fn bound_responses(&mut self) {
        let length = |attempt: &Attempt| attempt.response.as_ref().map_or(0, String::len);
        let mut kept: usize = self.iter().map(length).sum();
        for attempt in &mut self.last {
            if kept <= Self::MAX_RESPONSES {
                return;
            }
            kept -= length(attempt);
            attempt.response = None;
        }
    }

    /// Those on record, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.last)
    }

    pub fn omitted(&self) -> u32 {
        self.omitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: u32, response: &str) -> Attempt {
        Attempt {
            n,
            kind: AttemptKind::Call,
            sent_at: None,
            permit_at: 0,
            status: Some(500),
            latency_ms: 0,
            outcome: AttemptOutcome::TryAgain,
            detail: None,
            response: Some(response.to_owned()),
        }
    }

    #[test]
    fn responses_of_a_job_are_bounded_and_the_first_and_the_last_are_kept() {
        let mut attempts = Attempts::default();
        (1..=100).for_each(|n| attempts.push(attempt(n, &"x".repeat(VendorSaid::MAX_BODY))));
        let kept: Vec<u32> = attempts.iter().filter(|one| one.response.is_some()).map(|one| one.n).collect();
        assert_eq!(kept, [1, 2, 3, 4, 5, 98, 99, 100]);
        assert_eq!((attempts.iter().count(), attempts.omitted()), (50, 50));
    }

    #[test]
    fn outcomes_that_earlier_versions_stored_are_still_read() {
        let read = |word: &str| serde_json::from_str::<AttemptOutcome>(&format!("\"{word}\"")).unwrap();
        let words = ["done", "check_again", "await_callback", "try_again", "give_up"].map(|word| read(word).as_str());
        assert_eq!(words, ["done", "pending", "accepted", "try_again", "refused"]);
        assert!(AttemptOutcome::ALL.into_iter().all(|outcome| read(outcome.as_str()) == outcome));
    }
}
