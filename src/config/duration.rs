//! Durations as people write them: `"250ms"`, `"30s"`, `"10m"`, `"2h"`, `"1d"`. The same form in the config, the API and the command line.
//!
//! Never decides whether a duration makes sense for its key; zero is a duration too.

use std::time::Duration;

/// Each unit with its length in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

const FORM: &str = r#"a whole number and a unit, such as "250ms", "30s", "10m", "2h" or "1d""#;

/// Reads one whole number with one unit. The error says what is wrong and shows the right form, and never repeats the text.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let Some((_, unit_ms)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("{}: write {FORM}", blame(text, number, unit)));
    };
    if number.is_empty() {
        return Err(format!("the number is missing: write {FORM}"));
    }
    let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*unit_ms));
    millis.map(Duration::from_millis).ok_or_else(|| format!("too long a time: write {FORM}"))
}

/// Writes a duration in the largest unit in which it is a whole number; a part of a millisecond counts as a whole one.
pub fn write(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    if millis == 0 {
        return "0s".to_owned();
    }
    let exact = UNITS.iter().find(|(_, unit_ms)| millis.is_multiple_of(u128::from(*unit_ms)));
    let (unit, unit_ms) = exact.unwrap_or(&("ms", 1));
    format!("{}{unit}", millis / u128::from(*unit_ms))
}

fn blame(text: &str, number: &str, unit: &str) -> &'static str {
    if text.is_empty() {
        "an empty text is not a duration"
    } else if text.contains(char::is_whitespace) {
        "a duration has no spaces"
    } else if text.contains(['.', ',']) {
        "a duration has no decimals"
    } else if text.starts_with(['-', '+']) {
        "a duration has no sign"
    } else if unit.is_empty() {
        "the unit is missing"
    } else if number.is_empty() {
        "a duration starts with a number"
    } else if unit.bytes().any(|b| b.is_ascii_digit()) {
        "a duration has one number and one unit"
    } else {
        "the unit is not one of ms, s, m, h, d"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_written_back_in_the_largest_that_fits() {
        let table = [
            ("250ms", 250, "250ms"),
            ("1000ms", 1000, "1s"),
            ("30s", 30_000, "30s"),
            ("90s", 90_000, "90s"),
            ("10m", 600_000, "10m"),
            ("120m", 7_200_000, "2h"),
            ("24h", 86_400_000, "1d"),
            ("0s", 0, "0s"),
            ("007d", 604_800_000, "7d"),
        ];
        for (text, millis, written) in table {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(write(Duration::from_millis(millis)), written, "{text}");
        }
        assert_eq!(write(Duration::from_nanos(1)), "1ms");
        assert_eq!(parse(&write(Duration::MAX)), Err(format!("too long a time: write {FORM}")));
    }

    #[test]
    fn anything_else_is_refused_with_the_right_form() {
        let table = [
            ("", "empty"),
            ("30", "the unit is missing"),
            ("s", "number"),
            ("30 s", "no spaces"),
            (" 30s", "no spaces"),
            ("1.5h", "no decimals"),
            ("-5s", "no sign"),
            ("1m30s", "one number"),
            ("5min", "not one of"),
            ("5µs", "not one of"),
            ("５s", "starts with a number"),
            ("18446744073709551615d", "too long"),
            ("99999999999999999999s", "too long"),
        ];
        for (text, word) in table {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word) && error.contains("\"30s\""), "{text}: {error}");
        }
    }
}
