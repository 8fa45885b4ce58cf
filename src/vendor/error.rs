//! Why a call brought no reply, told apart by what it means for the job and for the limits.
//!
//! Never holds bodies, headers or query strings: messages end up in logs and in front of callers.

use crate::limit::Missed;

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
