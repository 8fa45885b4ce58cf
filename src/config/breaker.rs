//! Checks the settings of a vendor's breaker.
//!
//! Never decides when a breaker opens (see `limit::breaker`).

use std::time::Duration;

use toml::Spanned;

use super::{BESIDE_A_CALL, check::Check, raw};
use crate::limit::breaker::Terms;

const LONGEST: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_millis(100);

/// The settings of the breaker, for a vendor with this time-out.
pub(super) fn breaker(
    cx: &mut Check<'_>,
    key: &str,
    raw: &raw::BreakerTable,
    timeout: Option<Duration>,
) -> Option<Terms> {
    let failed = share(cx, &format!("{key}.failed"), &raw.failed);
    let calls = cx.number(&format!("{key}.calls"), &raw.calls, 1..=10_000);
    let within = span(cx, &format!("{key}.within"), &raw.within);
    let open = span(cx, &format!("{key}.open"), &raw.open);
    // Whole millionths; `share` has checked that it is between 0 and 1.
    let failed = (failed? * 1e6).round().max(1.0) as u64;
    let open = open?;
    let probe = timeout? + BESIDE_A_CALL;
    Some(Terms { failed, calls: calls?, within: within?, open, longest: open, probe })
}

fn share(cx: &mut Check<'_>, key: &str, raw: &Spanned<f64>) -> Option<f64> {
    let share = *raw.get_ref();
    if share > 0.0 && share <= 1.0 {
        return Some(share);
    }
    cx.refuse(key, &raw.span(), "this is not a share of the calls", "Write a number over 0 and up to 1, such as 0.9")
}

fn span(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Duration> {
    let span = cx.duration(key, raw, LONGEST)?;
    if span >= SHORTEST {
        return Some(span);
    }
    cx.refuse(key, &raw.span(), "this is too short", "Write at least \"100ms\"")
}
