//! How long a caller waits for the end of a job: what it asked for, and whether it is still there.
//!
//! Never longer than a minute.

use std::time::Duration;

use axum::http::HeaderMap;

use super::{body, connection::Peer, error::ApiError};
use crate::{config::parse_duration, store::signals::Waiter};

/// The longest a caller can wait for the end of a job.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// `Prefer: wait=N` (RFC 7240), clamped. A preference that cannot be read is ignored, as the RFC allows.
pub(super) fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let prefers = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let wait = prefers.flat_map(|value| value.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| read_seconds(value.trim().trim_matches('"')))?
    });
    wait.map(|secs| Duration::from_secs(secs).min(MAX_WAIT))
}

/// A number of seconds; one that is too large becomes the largest.
fn read_seconds(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `?wait=30s`, clamped.
pub(super) fn read(text: &str) -> Result<Duration, ApiError> {
    let wait =
        parse_duration(text).map_err(|why| body::invalid_parameter("wait", &format!("is not a duration: {why}")))?;
    Ok(wait.min(MAX_WAIT))
}

/// Until the job ends, or the time is up, or nobody waits any more: a caller that has closed its side is answered at once.
pub(super) async fn until_ended(mut job: Waiter, wait: Duration, peer: &Peer) {
    let ended_or_left = async {
        tokio::select! {
            () = job.ended() => {}
            () = peer.left() => {}
        }
    };
    // When the time is up, the caller gets the job as it is.
    let _ = tokio::time::timeout(wait, ended_or_left).await;
}
