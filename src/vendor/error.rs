//! Why a call brought no reply, by what that means for the job and for the limits.
//!
//! Never holds bodies, headers or query strings: messages end up in logs and in front of callers.

use super::Reading;
use crate::{
    job::{AttemptOutcome, Failure, FailureCode, VendorSaid, lifecycle::Step},
    limit::Missed,
};

#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The permit had lost its validity before anything was written: no call was made.
    #[error("the permit was missed before anything was sent")]
    Missed(Missed),
    /// The job's lease might lapse before the call is over, and another worker call too: no call was made.
    #[error("the job's lease is too old for a call")]
    LeaseTooOld,
    /// The token that the call needs is being asked for: no call was made.
    #[error("there is no token for the call yet")]
    NoToken,
    /// No connection: name, network or TLS. No call was made.
    #[error("the vendor could not be reached: {0}")]
    Unreachable(String),
    /// The request may have arrived; the reply did not.
    #[error("the connection broke before the reply was complete: {0}")]
    Interrupted(String),
    #[error("the vendor did not reply in time")]
    TimedOut,
    /// The reply is larger than we keep; the rest was not read.
    #[error("the vendor's reply is larger than {0} bytes")]
    TooLarge(usize),
}

impl CallError {
    pub(super) fn unreachable(why: impl std::fmt::Display) -> CallError {
        CallError::Unreachable(why.to_string())
    }

    /// What it means for the job that no reply came, or not all of it.
    pub(super) fn reading(&self, words: Option<VendorSaid>) -> Reading {
        let failure = |code| Failure::new(code, self.to_string()).with_words(words);
        let again = |why, may_be_done| Step::TryAgain { why, after: None, may_be_done };
        match self {
            CallError::TooLarge(_) => {
                let why = failure(FailureCode::ResponseTooLarge);
                Reading::of(Step::GiveUp { why }, AttemptOutcome::Refused)
            }
            CallError::TimedOut => Reading::of(again(failure(FailureCode::Timeout), true), AttemptOutcome::Timeout),
            CallError::Interrupted(_) => {
                Reading::of(again(failure(FailureCode::AttemptsExhausted), true), AttemptOutcome::NoConnection)
            }
            CallError::Missed(_) | CallError::LeaseTooOld | CallError::NoToken | CallError::Unreachable(_) => {
                Reading::of(again(failure(FailureCode::AttemptsExhausted), false), AttemptOutcome::NoConnection)
            }
        }
    }
}

/// The vendor's answer is of no use.
pub(super) fn bad(what: impl Into<String>) -> Failure {
    Failure::new(FailureCode::BadResponse, what)
}
