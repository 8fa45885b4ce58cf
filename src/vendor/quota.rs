//! What a vendor says of its own limit in the headers of a reply: when nothing is left, and how far apart calls must be for what is left to last.
//!
//! Never opens anything: a vendor that says that much is left is not called faster than its configured limits.

use std::time::Duration;

use hyper::HeaderMap;

use super::waits::{MAX_SILENCE, MOST_VALUES, reset, texts};
use crate::{
    clock::Time,
    config::{RateHeaders, ResetUnit},
};

/// What a reply says of the vendor's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quota {
    /// Nothing is left, whether or not it says for how long.
    pub(super) nothing_left: bool,
    /// Nothing is left for so long.
    pub(super) silence: Option<Duration>,
    /// What is left lasts until there is more if calls are so far apart.
    pub(super) apart: Option<Duration>,
}

/// Reads all that is said, by the usual names and by those of the config; of several the strictest counts.
pub(super) fn read(headers: &HeaderMap, rate_headers: &RateHeaders, now: Time) -> Quota {
    let mut quota = Quota::default();
    let named = match rate_headers {
        RateHeaders::Off => return quota,
        RateHeaders::Usual => &[][..],
        RateHeaders::Named(named) => named,
    };
    // Most vendors say nothing of it.
    if named.is_empty() && !headers.keys().any(|name| is_of_a_limit(name.as_str())) {
        return quota;
    }
    let named =
        named.iter().flat_map(|pair| pairs(headers, pair.remaining.as_str(), pair.reset.as_str(), pair.unit, now));
    let usual = headers.keys().filter_map(|name| Some((name, reset_for(name.as_str())?)));
    let usual =
        usual.flat_map(|(remaining, reset)| pairs(headers, remaining.as_str(), &reset, ResetUnit::Seconds, now));
    for (left, wait) in named.chain(usual).chain(structured(headers)) {
        quota.nothing_left |= left <= 0.0;
        let Some(wait) = wait.map(|wait| wait.min(MAX_SILENCE)) else { continue };
        if left > 0.0 {
            quota.apart = quota.apart.max(Some(wait.div_f64(left.max(1.0))));
        } else {
            quota.silence = quota.silence.max(Some(wait));
        }
    }
    quota
}

/// The header that says when there is more, for one that says what remains: `X-RateLimit-Remaining`, `X-Rate-Limit-Remaining`,
/// `RateLimit-Remaining`, `X-RateLimit-Requests-Remaining`, `X-RateLimit-Remaining-Tokens` and their like.
fn reset_for(name: &str) -> Option<String> {
    (is_of_a_limit(name) && name.contains("remaining")).then(|| name.replace("remaining", "reset"))
}

fn is_of_a_limit(name: &str) -> bool {
    name.contains("ratelimit") || name.contains("rate-limit")
}

/// What is left and for how long, by a pair of headers. Several values belong together in their order, or all to the only reset.
fn pairs(
    headers: &HeaderMap,
    remaining: &str,
    reset_name: &str,
    unit: ResetUnit,
    now: Time,
) -> Vec<(f64, Option<Duration>)> {
    let list = |name: &str| -> Vec<String> {
        // A date has a comma too.
        let values = texts(headers, name);
        values
            .flat_map(|text| match reset(&text, unit, headers, now) {
                Some(_) => vec![text],
                None => text.split(',').take(MOST_VALUES).map(|part| part.trim().to_owned()).collect(),
            })
            .take(MOST_VALUES)
            .collect()
    };
    let resets: Vec<Option<Duration>> = list(reset_name).iter().map(|text| reset(text, unit, headers, now)).collect();
    let left = list(remaining).into_iter().enumerate().filter_map(|(i, text)| {
        let left = text.parse::<f64>().ok().filter(|left| left.is_finite() && *left >= 0.0)?;
        let wait = if resets.len() == 1 { resets[0] } else { resets.get(i).copied().flatten() };
        Some((left, wait))
    });
    left.collect()
}

/// `RateLimit: "burst";r=0;t=5, "day";r=900;t=3600` (draft-ietf-httpapi-ratelimit-headers, from -08 on): each quota by itself. One that
/// does not say when there is more has it by the window of its `RateLimit-Policy` at the latest.
fn structured(headers: &HeaderMap) -> Vec<(f64, Option<Duration>)> {
    let policies = items(headers, "ratelimit-policy");
    let window =
        |name: &str| policies.iter().find(|(policy, _)| policy == name).and_then(|(_, item)| parameter(item, "w"));
    let quota = |(name, item): &(String, String)| {
        let wait = parameter(item, "t").or_else(|| window(name));
        Some((parameter(item, "r")? as f64, wait.map(Duration::from_secs)))
    };
    // `RateLimit: limit=100, remaining=0, reset=5` (draft -07).
    let plain = texts(headers, "ratelimit").filter_map(|text| {
        let item = text.replace(',', ";");
        Some((parameter(&item, "remaining")? as f64, parameter(&item, "reset").map(Duration::from_secs)))
    });
    items(headers, "ratelimit").iter().filter_map(quota).chain(plain).collect()
}

/// The items of a header's list: the name of each, and its parameters.
fn items(headers: &HeaderMap, name: &str) -> Vec<(String, String)> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let item = |item: &str| item.split_once(';').map(|(name, rest)| (name.trim().to_owned(), rest.to_owned()));
    values.flat_map(|value| value.split(',')).take(MOST_VALUES).filter_map(item).collect()
}

fn parameter(item: &str, name: &str) -> Option<u64> {
    let parts = item.split(';').filter_map(|part| part.trim().split_once('='));
    parts.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::config::RateHeader;

    fn wait(headers: &[(&str, &str)]) -> Option<Duration> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        said(&map).silence
    }

    fn said(headers: &HeaderMap) -> Quota {
        read(headers, &RateHeaders::Usual, Time(1_800_000_000_000))
    }

    #[test]
    fn what_is_left_is_spread_until_there_is_more() {
        let mut map = HeaderMap::new();
        map.append("ratelimit", HeaderValue::from_static(r#""burst";r=4;t=2, "day";r=900;t=3600"#));
        assert_eq!(said(&map), Quota { nothing_left: false, silence: None, apart: secs(4) });
        map.append("x-calls-left", HeaderValue::from_static("2"));
        map.append("x-calls-reset", HeaderValue::from_static("60"));
        let name = HeaderName::from_static;
        let named = |unit| {
            let pair = RateHeader { remaining: name("x-calls-left"), reset: name("x-calls-reset"), unit };
            read(&map, &RateHeaders::Named(vec![pair]), Time(0)).apart
        };
        assert_eq!(named(ResetUnit::Seconds), secs(30), "by the vendor's own names");
        assert_eq!(named(ResetUnit::Millis), secs(4), "60 ms for two calls is less than what the usual headers say");
        assert_eq!(read(&map, &RateHeaders::Off, Time(0)), Quota::default());
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
        assert_eq!(wait(&[("RateLimit", "limit=10, remaining=0, reset=5")]), secs(5));
        let tokens = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "6m0s")];
        assert_eq!(wait(&tokens), secs(360));
        assert_eq!(wait(&[("x-ratelimit-remaining", "4, 0"), ("x-ratelimit-reset", "1, 50")]), secs(50));
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
        assert_eq!(wait(&[date, zero, ("x-ratelimit-reset", "1800000011500")]), Some(Duration::from_millis(11_500)));
        assert_eq!(wait(&[date, zero, ("x-ratelimit-reset", "1799999999")]), secs(0));
        assert_eq!(wait(&[zero, ("x-ratelimit-reset", "1800000012")]), secs(12), "by our own clock where it has none");
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
        for left in ["NaN", "-inf", "-1"] {
            assert_eq!(wait(&[("x-ratelimit-remaining", left), ("x-ratelimit-reset", "30")]), None, "{left}");
        }
    }

    #[test]
    fn nothing_left_is_known_even_if_nobody_says_for_how_long() {
        let mut map = HeaderMap::new();
        map.append("x-ratelimit-remaining", HeaderValue::from_static("0"));
        assert_eq!(said(&map), Quota { nothing_left: true, silence: None, apart: None });
    }

    #[test]
    fn no_vendor_closes_its_gate_for_more_than_an_hour() {
        assert_eq!(wait(&[("ratelimit", r#""day";r=0;t=86400"#)]), secs(3600));
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1e12")]), None);
        assert_eq!(wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "900000000")]), secs(3600));
    }
}
