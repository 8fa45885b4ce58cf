//! What a vendor says of its own limit in the headers of a reply: when nothing is left, the pool's gate closes until there is.
//!
//! Never opens anything: a vendor that says that much is left is not called faster than its configured limits.

use std::time::Duration;

use hyper::{HeaderMap, header::DATE};

use super::refusal::MAX_SILENCE;

/// `<prefix>remaining` and `<prefix>reset`, as the earlier drafts and most vendors write them.
const PREFIXES: [&str; 4] = ["ratelimit-", "x-ratelimit-", "x-rate-limit-", "x-ratelimit-requests-"];
/// A reset of more than this is a time, in seconds since 1970; of more than a thousand times this, in milliseconds.
const A_TIME: u64 = 1_000_000_000;

/// How long the vendor is to be left alone because it says that nothing is left; nothing when it does not say so.
pub(super) fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    let older = PREFIXES.iter().filter_map(|prefix| {
        let number = |name: &str| text(headers, &format!("{prefix}{name}"))?.parse::<f64>().ok();
        (number("remaining")? <= 0.0).then(|| reset(headers, number("reset")?)).flatten()
    });
    older.chain(structured(headers)).max().map(|wait| wait.min(MAX_SILENCE))
}

/// `RateLimit: "burst";r=0;t=5, "day";r=900;t=3600` (draft-ietf-httpapi-ratelimit-headers, from -08 on): each quota by itself.
fn structured(headers: &HeaderMap) -> Option<Duration> {
    let quotas = headers.get_all("ratelimit").iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    let wait = |quota: &str| {
        let parameter = |name: &str| {
            let parts = quota.split(';').skip(1).filter_map(|part| part.trim().split_once('='));
            parts.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse::<u64>().ok())
        };
        (parameter("r")? == 0).then(|| parameter("t").map(Duration::from_secs)).flatten()
    };
    quotas.filter_map(wait).max()
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
        exhausted(&map)
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
