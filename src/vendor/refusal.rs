//! What it means when a vendor does not answer 2xx, or not at all: try again, be silent for a while, or give up.
//!
//! Never waits: it says for how long.

use std::time::Duration;

use hyper::{
    HeaderMap, StatusCode,
    header::{DATE, RETRY_AFTER},
};

use super::{Reading, error::CallError, http::Reply};
use crate::job::{Failure, FailureCode, lifecycle::Step};

/// How long a pool's gate stays closed after a 429 that does not say for how long.
const GATE_WITHOUT_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest a vendor can close its gate with one reply.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(3600);

/// What it means that no reply came.
pub(super) fn without_reply(error: &CallError) -> Step {
    let code = match error {
        CallError::TooLarge(_) => {
            return Step::GiveUp { why: Failure::new(FailureCode::ResponseTooLarge, error.to_string()) };
        }
        CallError::TimedOut => FailureCode::Timeout,
        CallError::Missed(_)
        | CallError::LeaseTooOld
        | CallError::NoToken
        | CallError::Unreachable(_)
        | CallError::Interrupted(_) => FailureCode::AttemptsExhausted,
    };
    let may_be_done = matches!(error, CallError::TimedOut | CallError::Interrupted(_));
    Step::TryAgain { why: Failure::new(code, error.to_string()), after: None, counts: true, may_be_done }
}

/// A reply that is not 2xx.
pub(super) fn not_success(reply: &Reply) -> Reading {
    let status = reply.status;
    let message = format!("the vendor answered {}", status.as_u16());
    if status == StatusCode::UNAUTHORIZED {
        let why = Failure::new(FailureCode::VendorRefused, message);
        return Reading::of(Step::Unauthorized { why, is_alone: false });
    }
    let worth_another = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    if !worth_another {
        let step = Step::GiveUp { why: Failure::new(FailureCode::VendorRefused, message) };
        return Reading::of(step);
    }
    let busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let after = retry_after(&reply.headers).filter(|_| busy);
    let close_gate = after.or((status == StatusCode::TOO_MANY_REQUESTS).then_some(GATE_WITHOUT_RETRY_AFTER));
    let why = Failure::new(FailureCode::AttemptsExhausted, message);
    // A gateway that heard nothing from behind it knows no more than we do.
    let may_be_done = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
    Reading { step: Step::TryAgain { why, after, counts: after.is_none(), may_be_done }, close_gate, apart: None }
}

/// `Retry-After` (RFC 9110, 10.2.3) as a wait. A date is taken against the reply's own `Date`, not against our clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp());
            let now = date(headers.get(DATE)?.to_str().ok()?)?;
            Duration::from_secs(u64::try_from(date(text)?.as_second() - now.as_second()).unwrap_or(0))
        }
    };
    Some(wait.min(MAX_SILENCE))
}
