//! Why a job has no result: a stable code, a sentence, and what the vendor said.
//!
//! Never decides that a job has failed (see `lifecycle`).

use serde::{Deserialize, Serialize};

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

/// What a vendor answered instead of data. Both fields are bounded and redacted before they get here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VendorSaid {
    /// `None` for a callback, which has no status.
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
    /// The vendor refused, and another attempt would not change that.
    VendorRefused,
    /// Every attempt that was allowed failed.
    AttemptsExhausted,
    /// The last allowed call took too long.
    Timeout,
    /// The vendor accepted the job and did not answer in time.
    NoAnswer,
    /// The vendor's answer is not data.
    BadResponse,
    ResponseTooLarge,
    /// The job's deadline passed first.
    Deadline,
    /// Workers died again and again while they had leased the job.
    Crashed,
    /// The call may have been made, and its vendor is called at most once.
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
