//! What a vendor says of its own limit in the headers of a reply: when nothing is left, and how far apart calls must be for what is left to last.
//!
//! Never opens anything: a vendor that says that much is left is not called faster than its configured limits.

use std::time::Duration;

use hyper::{HeaderMap, header::DATE};

use super::refusal::MAX_SILENCE;
use crate::config::RateHeaders;

/// What is left, and when there is more, as the earlier drafts and most vendors write it.
const USUAL: [(&str, &str); 4] = [
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
    ("x-ratelimit-requests-remaining", "x-ratelimit-requests-reset"),
];
/// A reset of more than this is a time, in seconds since 1970; of more than a thousand times this, in milliseconds.
const A_TIME: u64 = 1_000_000_000;

/// What a reply says of the vendor's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quota {
    /// Nothing is left for so long.
    pub(super) silence: Option<Duration>,
    /// What is left lasts until there is more if calls are so far apart.
    pub(super) apart: Option<Duration>,
}

/// Reads all that is said, by the usual names and by those of the config; of several the strictest counts.
pub(super) fn read(headers: &HeaderMap, named: Option<&RateHeaders>) -> Quota {
    let number = |name: &str| text(headers, name)?.parse::<f64>().ok();
    let pair = |remaining: &str, at: &str| Some((number(remaining)?, reset(headers, number(at)?)?));
    let usual = USUAL.iter().filter_map(|(remaining, reset)| pair(remaining, reset));
    let named = named.and_then(|named| pair(named.remaining.as_str(), named.reset.as_str()));
    let mut quota = Quota::default();
    for (left, wait) in usual.chain(named).chain(structured(headers)) {
        let wait = wait.min(MAX_SILENCE);
        if left > 0.0 {
            quota.apart = quota.apart.max(Some(wait.div_f64(left.max(1.0))));
        } else {
            quota.silence = quota.silence.max(Some(wait));
        }
    }
    quota
}

/// `RateLimit: "burst";r=0;t=5, "day";r=900;t=3600` (draft-ietf-httpapi-ratelimit-headers, from -08 on): each quota by itself. One that
/// does not say when there is more has it by the window of its `RateLimit-Policy` at the latest.
fn structured(headers: &HeaderMap) -> Vec<(f64, Duration)> {
    let policies = items(headers, "ratelimit-policy");
    let window =
        |name: &str| policies.iter().find(|(policy, _)| policy == name).and_then(|(_, item)| parameter(item, "w"));
    let quota = |(name, item): &(String, String)| {
        let wait = parameter(item, "t").or_else(|| window(name))?;
        Some((parameter(item, "r")? as f64, Duration::from_secs(wait)))
    };
    items(headers, "ratelimit").iter().filter_map(quota).collect()
}

/// The items of a header's list: the name of each, and its parameters.
fn items(headers: &HeaderMap, name: &str) -> Vec<(String, String)> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let item = |item: &str| item.split_once(';').map(|(name, rest)| (name.trim().to_owned(), rest.to_owned()));
    values.flat_map(|value| value.split(',')).filter_map(item).collect()
}

fn parameter(item: &str, name: &str) -> Option<u64> {
    let parts = item.split(';').filter_map(|part| part.trim().split_once('='));
    parts.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse().ok())
}

/// A reset as a wait. A time is taken against the reply's own `Date`, not against our clock; without one it says nothing.
fn reset(headers: &HeaderMap, reset: f64) -> Option<Duration> {
    if !reset.is_finite() || reset < 0.0 {
        return None;
    }
    let whole = reset as u64;
    if whole < A_TIME {
        return Some(Duration::from_secs_f64(reset.min(MAX_SILENCE.as_secs_f64())));
    }
    let date = jiff::fmt::rfc2822::parse(&text(headers, DATE.as_str())?).ok()?.timestamp().as_second();
    let at = if whole / 1000 >= A_TIME { whole.div_ceil(1000) } else { whole };
    Some(Duration::from_secs(at.saturating_sub(u64::try_from(date).ok()?)))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn wait(headers: &[(&str, &str)]) -> Option<Duration> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        read(&map, None).silence
    }

    #[test]
    fn what_is_left_is_spread_until_there_is_more() {
        let mut map = HeaderMap::new();
        map.append("ratelimit", HeaderValue::from_static(r#""burst";r=4;t=2, "day";r=900;t=3600"#));
        assert_eq!(read(&map, None), Quota { silence: None, apart: secs(4) });
        map.append("x-calls-left", HeaderValue::from_static("2"));
        map.append("x-calls-reset", HeaderValue::from_static("60"));
        let name = HeaderName::from_static;
        let named = RateHeaders { remaining: name("x-calls-left"), reset: name("x-calls-reset") };
        assert_eq!(read(&map, Some(&named)).apart, secs(30), "by the vendor's own names");
    }

    #[test]
    fn a_quota_without_a_time_is_waited_out_for_the_window_of_its_policy() {
        let policy = ("ratelimit-policy", r#""burst";q=100;w=60, "day";q=1000;w=86400"#);
        assert_eq!(wait(&[policy, ("ratelimit", r#""burst";r=0"#)]), secs(60));
        assert_eq!(wait(&[policy, ("ratelimit", r#""other";r=0"#)]), None);
    }

    fn secs(secs: u64) -> Option<Duration> {
        Some(Duration::from_secs(secs))
    }

    #[test]
    fn nothing_left_closes_until_the_reset_whatever_the_header_is_called() {
        assert_eq!(wait(&[("ratelimit", r#""burst";r=0;t=5"#)]), secs(5));
        assert_eq!(wait(&[("RateLimit", r#""day";q=9;r=900;t=3600, "burst"; r=0 ; t=7"#)]), secs(7));
        assert_eq!(wait(&[("ratelimit", r#""a";r=0;t=1"#), ("ratelimit", r#""b";r=0;t=2"#)]), secs(2));
        for prefix in ["RateLimit", "X-RateLimit", "X-Rate-Limit"] {
            let (remaining, reset) = (format!("{prefix}-Remaining"), format!("{prefix}-Reset"));
            assert_eq!(wait(&[(&remaining, "0"), (&reset, "30")]), secs(30));
        }
    }

    #[test]
    fn a_reset_that_is_a_time_is_taken_against_the_vendors_own_clock() {
        let date = ("date", "Fri, 15 Jan 2027 08:00:00 GMT"); // 1800000000
        let zero = ("x-ratelimit-remaining", "0");
        assert_eq!(wait(&[date, zero, ("x-ratelimit-reset", "1800000012")]), secs(12));
        assert_eq!(wait(&[date, zero, ("x-ratelimit-reset", "1800000011500")]), secs(12));
        assert_eq!(wait(&[date, zero, ("x-ratelimit-reset", "1799999999")]), secs(0));
        assert_eq!(wait(&[zero, ("x-ratelimit-reset", "1800000012")]), None, "nobody knows what time it is there");
    }

    #[test]
    fn as_long_as_something_is_left_or_nothing_is_said_nothing_closes() {
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[("ratelimit", r#""burst";r=1;t=5"#)]), None);
        assert_eq!(wait(&[("ratelimit", r#""burst";r=0"#)]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "12"), ("x-ratelimit-reset", "30")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "0")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "none"), ("x-ratelimit-reset", "NaN")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "NaN")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "-3")]), None);
    }

    #[test]
    fn no_vendor_closes_its_gate_for_more_than_an_hour() {
        assert_eq!(wait(&[("ratelimit", r#""day";r=0;t=86400"#)]), secs(3600));
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1e12")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "900000000")]), secs(3600));
    }
}
