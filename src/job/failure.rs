//! Why a job has no result: a stable code, a sentence, and what the vendor said.
//!
//! Never decides that a job has failed (see `lifecycle`).

use serde::{Deserialize, Serialize};

use super::AttemptOutcome;

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

    /// The message without what differs from job to job: a word with a digit in it becomes `#` if it is a number of four digits or more, or has
    /// eight characters or more, as ids have, or says where in a body (`line 1 column 5`). Statuses and counts stay. At most 200 characters.
    pub fn stable_part(message: &str) -> String {
        let is_in_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let mut stable = String::with_capacity(message.len());
        let (mut rest, mut is_place) = (message, false);
        while let Some(first) = rest.chars().next() {
            let end = if is_in_word(first) {
                rest.find(|c| !is_in_word(c)).unwrap_or(rest.len())
            } else {
                rest.find(is_in_word).unwrap_or(rest.len())
            };
            let (word, after) = rest.split_at(end);
            rest = after;
            if !is_in_word(first) {
                stable.push_str(word);
                continue;
            }
            let is_number = word.bytes().all(|c| c.is_ascii_digit()) && (is_place || word.len() >= 4);
            let is_id = word.len() >= 8 && word.contains(|c: char| c.is_ascii_digit());
            stable.push_str(if is_number || is_id { "#" } else { word });
            is_place = matches!(word, "line" | "column");
        }
        match stable.char_indices().nth(200) {
            Some((end, _)) => stable[..end].to_owned(),
            None => stable,
        }
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

    /// The word for one attempt that failed so: `AttemptsExhausted` is the end of a job, and a job whose credentials are refused goes on.
    pub fn of_attempt(self, outcome: AttemptOutcome) -> &'static str {
        match (self, outcome) {
            (FailureCode::AttemptsExhausted, _) | (_, AttemptOutcome::Unauthorized) => outcome.as_str(),
            _ => self.as_str(),
        }
    }

    pub fn from_text(text: &str) -> Option<FailureCode> {
        FailureCode::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stable_part_of_a_message_keeps_statuses_and_drops_ids() {
        let table = [
            ("the vendor answered 422", "the vendor answered 422"),
            ("16 attempts; the last: the vendor answered 503", "16 attempts; the last: the vendor answered 503"),
            ("has nothing at /reports/01a203e8-3838-7a3c-9f21-5b7e0c4d8a16/x", "has nothing at /reports/#/x"),
            ("expected value at line 1 column 52", "expected value at line # column #"),
            ("larger than 2097152 bytes", "larger than # bytes"),
            ("Connection refused (os error 111)", "Connection refused (os error 111)"),
            ("10.0.0.1:8080: UTF-8, order_20261127", "10.0.0.1:#: UTF-8, #"),
            ("größer: 12345", "größer: #"),
            ("", ""),
        ];
        for (message, stable) in table {
            assert_eq!(Failure::stable_part(message), stable, "{message}");
        }
        assert_eq!(Failure::stable_part(&"é ".repeat(300)).chars().count(), 200);
    }
}
