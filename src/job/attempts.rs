//! The record of a job's attempts, which is kept inside the job and so is bounded.
//!
//! Never decides what an attempt makes of its job (see `lifecycle`).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// One vendor call for a job.
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

/// What came of an attempt. The aliases are the names that earlier versions stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    Done,
    /// The vendor has no data yet: it is polled again.
    #[serde(alias = "check_again")]
    Pending,
    /// The vendor accepted the job and will call back, or is polled.
    #[serde(alias = "await_callback")]
    Accepted,
    /// The vendor answered that there are too many calls.
    SlowDown,
    /// The vendor failed in a way that a retry may mend.
    TryAgain,
    /// The vendor refused, or its answer is not data.
    #[serde(alias = "give_up")]
    Refused,
    /// The vendor refused our credentials.
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

    /// Whether the call failed. `SlowDown` is no failure: it closes the pool's gate, and has its own line in the log.
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

    /// Drops responses until the rest is small enough: the oldest ones, but none of the first attempts.
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

    /// Those that are kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Attempt> {
        self.first.iter().chain(&self.last)
    }

    /// How many there were, those that are not kept included.
    pub fn made(&self) -> u32 {
        u32::try_from(self.first.len() + self.last.len()).unwrap_or(u32::MAX).saturating_add(self.omitted)
    }

    /// Whether one of the last `calls` submitting calls went out. Those after which the vendor said that it did nothing are left out: "slow
    /// down", and that it does not take our credentials.
    pub fn went_out(&self, calls: u32) -> bool {
        use AttemptOutcome::{SlowDown, Unauthorized};
        let is_call = |one: &&Attempt| one.kind == AttemptKind::Call && !matches!(one.outcome, SlowDown | Unauthorized);
        self.iter().rev().filter(is_call).take(calls as usize).any(|one| one.sent_at.is_some())
    }

    pub fn omitted(&self) -> u32 {
        self.omitted
    }
}

#[cfg(test)]
mod tests {
    use super::{super::VendorSaid, *};

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
