//! How long a vendor asks us to wait, in the many ways in which headers say it.
//!
//! Never believes more than an hour, and takes what is no time for nothing.

use std::time::{Duration, UNIX_EPOCH};

use hyper::{
    HeaderMap,
    header::{DATE, RETRY_AFTER},
};

use crate::{clock::Time, config::ResetUnit};

/// The longest a vendor can close its gate with one reply.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(3600);

/// Values of one header that are looked at; nobody needs more.
pub(super) const MOST_VALUES: usize = 32;

/// Numbers from here on are times since 1970: in seconds (from 2001 on), then milliseconds, microseconds and nanoseconds.
const EPOCH_SECONDS: f64 = 1e9;
const EPOCH_MILLIS: f64 = 1e11;
const EPOCH_MICROS: f64 = 1e14;
const EPOCH_NANOS: f64 = 1e17;

/// `Retry-After` (RFC 9110, 10.2.3) as a wait, of several values the longest. Zero when it is over already.
pub(crate) fn retry_after(headers: &HeaderMap, now: Time) -> Option<Duration> {
    if !headers.contains_key(RETRY_AFTER) {
        return None;
    }
    let now = vendors_now(headers, now);
    let wait = |text: &str| seconds(text).or_else(|| until(date(text)?, now));
    texts(headers, RETRY_AFTER.as_str()).filter_map(|text| longest(&text, wait)).max()
}

/// A reset of a limit as a wait: a number (with `unit`, unless its size shows that it is a time), a time, or `6m0s`.
pub(super) fn reset(text: &str, unit: ResetUnit, headers: &HeaderMap, now: Time) -> Option<Duration> {
    let text = text.trim();
    let until = |at| until(at, vendors_now(headers, now));
    if let Some(number) = number(text) {
        let at = match number {
            n if n < EPOCH_SECONDS => {
                let seconds = if unit == ResetUnit::Millis { n / 1e3 } else { n };
                return Some(bounded(seconds));
            }
            n if n < EPOCH_MILLIS => n * 1e3,
            n if n < EPOCH_MICROS => n,
            n if n < EPOCH_NANOS => n / 1e3,
            n => n / 1e6,
        };
        return until(Time(at.ceil() as i64));
    }
    spelled(text).or_else(|| until(date(text)?))
}

/// The values of a header.
pub(super) fn texts<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = String> + use<'a> {
    headers.get_all(name).iter().filter_map(|value| Some(value.to_str().ok()?.trim().to_owned()))
}

/// The vendor's clock: what its reply says, else our own.
fn vendors_now(headers: &HeaderMap, now: Time) -> Time {
    texts(headers, DATE.as_str()).find_map(|text| date(&text)).unwrap_or(now)
}

/// A value, or the longest of a list of values. A date has a comma too.
fn longest(text: &str, wait: impl Fn(&str) -> Option<Duration>) -> Option<Duration> {
    wait(text).or_else(|| text.split(',').take(MOST_VALUES).filter_map(|part| wait(part.trim())).max())
}

fn seconds(text: &str) -> Option<Duration> {
    number(text).map(bounded)
}

/// Digits with or without a fraction. A sign, an exponent or a word such as `inf` does not mean a wait.
fn number(text: &str) -> Option<f64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|number: &f64| is_plain && number.is_finite())
}

fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(MAX_SILENCE.as_secs_f64()))
}

/// A wait until then, zero when that is past.
fn until(at: Time, now: Time) -> Option<Duration> {
    Some(at.since(now).min(MAX_SILENCE))
}

/// A date of HTTP in any of its three forms, of a mail, or by RFC 3339.
fn date(text: &str) -> Option<Time> {
    if let Ok(date) = httpdate::parse_http_date(text) {
        let since = date.duration_since(UNIX_EPOCH).ok()?;
        return Some(Time(i64::try_from(since.as_millis()).ok()?));
    }
    let timestamp = text.parse::<jiff::Timestamp>().ok();
    let timestamp = timestamp.or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    Some(Time(timestamp?.as_millisecond()))
}

/// `6m0s`, `1h`, `1.5s`, `120ms`.
fn spelled(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (count, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number(count)? * seconds;
        rest = after;
    }
    (!text.is_empty()).then(|| bounded(total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time(1_800_000_000_000); // Fri, 15 Jan 2027 08:00:00 GMT
    const SECONDS: ResetUnit = ResetUnit::Seconds;

    fn wait(headers: &[(&'static str, &str)]) -> Option<f64> {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| _ = map.append(*name, value.parse().unwrap()));
        retry_after(&map, NOW).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        for (text, wanted) in [
            ("30", Some(30.0)),
            ("2.0", Some(2.0)),
            ("0.65", Some(0.65)),
            (" 7 ", Some(7.0)),
            ("0", Some(0.0)),
            ("18446744073709551616", Some(3600.0)),
            ("Fri, 15 Jan 2027 08:00:30 GMT", Some(30.0)),
            ("Friday, 15-Jan-27 08:00:30 GMT", Some(30.0)),
            ("Fri Jan 15 08:00:30 2027", Some(30.0)),
            ("2027-01-15T08:00:30Z", Some(30.0)),
            ("Fri, 15 Jan 2027 07:00:00 GMT", Some(0.0)),
            ("Sat, 16 Jan 2027 08:00:00 GMT", Some(3600.0)),
            ("5, 9", Some(9.0)),
            ("-1", None),
            ("soon", None),
            ("NaN", None),
            ("inf", None),
            ("1e3", None),
            ("", None),
        ] {
            assert_eq!(wait(&[("retry-after", text)]), wanted, "{text:?}");
        }
        assert_eq!(wait(&[("retry-after", "5"), ("retry-after", "x"), ("retry-after", "8")]), Some(8.0));
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn a_date_is_taken_against_the_vendors_own_clock_where_it_has_one() {
        let after = ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT");
        assert_eq!(wait(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT"), after]), Some(30.0));
        assert_eq!(wait(&[("date", "yesterday"), after]), Some(0.0));
        assert_eq!(wait(&[after]), Some(0.0));
    }

    #[test]
    fn a_reset_is_read_in_every_form() {
        let empty = HeaderMap::new();
        let read = |text: &str, unit| reset(text, unit, &empty, NOW).map(|wait| wait.as_secs_f64());
        for (text, wanted) in [
            ("30", Some(30.0)),
            ("1.5", Some(1.5)),
            ("1800000012", Some(12.0)),
            ("1800000012000", Some(12.0)),
            ("1800000012000000", Some(12.0)),
            ("1800000012000000000", Some(12.0)),
            ("1799999999", Some(0.0)),
            ("900000000", Some(3600.0)),
            ("6m0s", Some(360.0)),
            ("120ms", Some(0.12)),
            ("1h0m0s", Some(3600.0)),
            ("1m1.5s", Some(61.5)),
            ("2027-01-15T08:00:12Z", Some(12.0)),
            ("Fri, 15 Jan 2027 08:00:12 GMT", Some(12.0)),
            ("-3", None),
            ("NaN", None),
            ("1e12", None),
            ("none", None),
            ("s", None),
            ("5 s", None),
            ("", None),
        ] {
            assert_eq!(read(text, SECONDS), wanted, "{text:?}");
        }
        assert_eq!(read("15000", ResetUnit::Millis), Some(15.0));
        assert_eq!(read("1800000012000", ResetUnit::Millis), Some(12.0));
    }

    proptest! {
        #[test]
        fn nothing_is_believed_for_more_than_an_hour(text in "[ -~]{0,30}|[0-9.]{0,25}|([0-9]{1,4}(d|h|m|s|ms)){0,4}") {
            let mut map = HeaderMap::new();
            map.insert("retry-after", text.parse().unwrap());
            prop_assert!(retry_after(&map, NOW).is_none_or(|wait| wait <= MAX_SILENCE));
            for unit in [SECONDS, ResetUnit::Millis] {
                prop_assert!(reset(&text, unit, &map, NOW).is_none_or(|wait| wait <= MAX_SILENCE));
            }
        }
    }
}
