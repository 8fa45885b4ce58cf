//! Checks the settings of a vendor's breaker.
//!
//! Never decides when a breaker opens (see `limit::breaker`).

use std::time::Duration;

use toml::Spanned;

use super::{BESIDE_A_CALL, check::Check, raw};
use crate::limit::breaker::Terms;

const LONGEST: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_millis(100);

/// The defaults of keys that are left out.
const FAILED: f64 = 0.9;
const CALLS: u64 = 20;
const WITHIN: Duration = Duration::from_secs(30);
const OPEN: Duration = Duration::from_secs(10);

/// The settings of the breaker, for a vendor with this time-out.
pub(super) fn breaker(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Breaker>, timeout: Duration) -> Option<Terms> {
    let raw = raw.get_ref();
    let failed = match &raw.failed {
        Some(failed) => share(cx, &format!("{key}.failed"), failed),
        None => Some(FAILED),
    };
    let calls = match &raw.calls {
        Some(calls) => cx.number(&format!("{key}.calls"), calls, 1..=10_000),
        None => Some(CALLS),
    };
    let within = span(cx, &format!("{key}.within"), raw.within.as_ref(), WITHIN);
    let open = span(cx, &format!("{key}.open"), raw.open.as_ref(), OPEN);
    // In millionths; `share` has made sure that it is between 0 and 1.
    let failed = (failed? * 1e6).round().max(1.0) as u64;
    let open = open?;
    Some(Terms { failed, calls: calls?, within: within?, open, longest: open, probe: timeout + BESIDE_A_CALL })
}

fn share(cx: &mut Check<'_>, key: &str, raw: &Spanned<f64>) -> Option<f64> {
    let share = *raw.get_ref();
    if share > 0.0 && share <= 1.0 {
        return Some(share);
    }
    cx.problem(key, &raw.span(), "this is not a share of the calls", "Write a number over 0 and up to 1, such as 0.9");
    None
}

fn span(cx: &mut Check<'_>, key: &str, raw: Option<&raw::Text>, default: Duration) -> Option<Duration> {
    let Some(raw) = raw else { return Some(default) };
    let span = cx.duration(key, raw, LONGEST)?;
    if span >= SHORTEST {
        return Some(span);
    }
    cx.problem(key, &raw.span(), "this is too short", "Write at least \"100ms\"");
    None
}
