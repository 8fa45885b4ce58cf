//! Checks the limits of a pool, written as `"50/s"` or as a table.
//!
//! Never accepts a contradiction, and warns if much of a limit cannot be used. The arithmetic of limits is in `limit::rule`.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use jiff::tz::TimeZone;

use super::{
    check::{Check, Filled, LONGEST},
    duration, raw,
};
use crate::limit::{Key, Limit, Per, Shape};

/// Limits of one pool at most; each costs memory and time at every call.
const MOST: usize = 16;
const MOST_CALLS: u64 = 1_000_000_000;
/// In shorter windows the network's jitter would be larger than the period.
const SHORTEST: Duration = Duration::from_millis(10);
/// Up to this period calls are spread evenly by default.
const PACED_UP_TO: Duration = Duration::from_secs(10);
/// The least time that covers our own lateness and the network's jitter.
const SHORTEST_GUARD: Duration = Duration::from_millis(3);

/// If guard and burst cost more than this share of a limit's calls, there is a warning.
const TOLERATED_COST: f64 = 0.01;

/// Checks all limits of one vendor, each under its key; `None` if any of them is wrong.
pub(super) fn limits(cx: &mut Check<'_>, key: &str, raw: &raw::Limits) -> Option<Vec<Limit>> {
    if raw.get_ref().len() > MOST {
        let what = format!("{} limits are too many", raw.get_ref().len());
        return cx.refuse(key, &raw.span(), what, format!("Have at most {MOST}"));
    }
    let mut ids: HashMap<Arc<str>, usize> = HashMap::new();
    let mut checked = Vec::new();
    for (i, item) in raw.get_ref().iter().enumerate() {
        let key = format!("{key}[{i}]");
        let limit = match item.get_ref() {
            raw::TextOr::Text(text) => short(cx, &key, &toml::Spanned::new(item.span(), text.clone())),
            raw::TextOr::Table(table) => full(cx, &key, table, &item.span()),
        };
        let Some(limit) = limit else { continue };
        if let Some(first) = ids.insert(limit.id.clone(), i) {
            let what = format!("its id {:?} is that of limits[{first}] too", limit.id);
            cx.problem(&key, &item.span(), what, "Remove one of the two, or give one an id of its own: id = \"...\"");
        }
        warn_of_cost(cx, &key, &limit);
        checked.push(limit);
    }
    (checked.len() == raw.get_ref().len()).then_some(checked)
}

const SHORT_FORM: &str = r#"Write "50/s", "2000/m", "100/h", "20000/d" or "10/5s""#;

/// `calls/per`; a unit without a number means one of it.
pub(super) fn short(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Limit> {
    let text = cx.text(key, raw)?;
    let mut wrong =
        |why: &str, mend: &str| cx.refuse(key, &text.span, format!("{} is not a limit: {why}", text.shown), mend);
    let Some((calls, per)) = text.text.split_once('/') else { return wrong("there is no slash in it", SHORT_FORM) };
    if matches!(per, "day" | "month") {
        let mend = format!(
            "Write {{ calls = {calls}, per = \"{per}\" }} for a calendar {per}, or \"{calls}/d\" for a rolling day"
        );
        let mend = if text.is_filled { SHORT_FORM } else { &mend };
        return wrong("calendars need a table", mend);
    }
    if calls.is_empty() || !calls.bytes().all(|b| b.is_ascii_digit()) {
        return wrong("there is no whole number before the slash", SHORT_FORM);
    }
    let calls = match calls.parse() {
        Ok(0) => return wrong("no calls at all", "Allow at least 1 call, or remove the vendor"),
        Ok(calls) if calls <= MOST_CALLS => calls,
        _ => return wrong("too many calls", &format!("Write at most {MOST_CALLS} calls")),
    };
    let one = if matches!(per, "s" | "m" | "h" | "d") { "1" } else { "" };
    let Ok(period) = duration::parse(&format!("{one}{per}")) else {
        return wrong("there is no period after the slash", SHORT_FORM);
    };
    if !(SHORTEST..=LONGEST).contains(&period) {
        return wrong("the period is too short or too long", "Write a period from 10ms to 3650d");
    }
    let guard = default_guard(period);
    let shape = default_shape(period);
    let id = text.text.as_str().into();
    Some(Limit { id, calls, per: Per::Rolling(period), shape, guard, key: Key::Vendor })
}

/// A limit in full.
fn full(cx: &mut Check<'_>, key: &str, raw: &raw::LimitTable, whole: &Range<usize>) -> Option<Limit> {
    let calls_key = format!("{key}.calls");
    let calls = cx.needed(&calls_key, whole, &raw.calls, "Write calls = 600, say: how many the vendor allows");
    let calls = calls.and_then(|calls| cx.number(&calls_key, calls, 1..=MOST_CALLS));
    let per_key = format!("{key}.per");
    let per_text = cx.needed(&per_key, whole, &raw.per, r#"Write per = "1m", say, or per = "day""#);
    let per_text = per_text.and_then(|per| cx.text(&per_key, per));
    let per = per_text.as_ref().and_then(|text| period(cx, key, text, raw.tz.as_ref()));
    let length = per.as_ref().map(length);
    let shape = match (&per, calls) {
        (Some(per), Some(calls)) => shape(cx, key, raw, per, calls),
        _ => None,
    };
    let guard = match &raw.guard {
        Some(text) => guard(cx, &format!("{key}.guard"), text, length?),
        None => length.map(default_guard),
    };
    let whose = match &raw.key {
        None => Some(Key::Vendor),
        Some(text) => {
            let words = [("vendor", Key::Vendor), ("tenant", Key::Tenant)];
            let mend = r#"Write "vendor" (all calls together) or "tenant" (each tenant by itself)"#;
            cx.word(&format!("{key}.key"), text, &words, "a limit cannot count for each", mend)
        }
    };
    let id = match &raw.id {
        Some(text) => id(cx, &format!("{key}.id"), text),
        None => calls.zip(per_text.as_ref()).map(|(calls, per)| format!("{calls}/{}", per.text).into()),
    };
    Some(Limit { id: id?, calls: calls?, per: per?, shape: shape?, guard: guard?, key: whose? })
}

fn period(cx: &mut Check<'_>, key: &str, text: &Filled, tz: Option<&raw::Text>) -> Option<Per> {
    let calendar: Option<fn(TimeZone) -> Per> = match text.text.as_str() {
        "day" => Some(Per::Day),
        "month" => Some(Per::Month),
        _ => None,
    };
    if let Some(calendar) = calendar {
        return match tz {
            None => Some(calendar(TimeZone::UTC)),
            Some(tz) => time_zone(cx, &format!("{key}.tz"), tz).map(calendar),
        };
    }
    if let Some(tz) = tz {
        let what = format!("a window of {} has no time zone", text.shown);
        cx.problem(&format!("{key}.tz"), &tz.span(), what, r#"Remove tz, or write per = "day" or "month""#);
    }
    let key = format!("{key}.per");
    match duration::parse(&text.text) {
        Ok(period) if (SHORTEST..=LONGEST).contains(&period) => return Some(Per::Rolling(period)),
        Ok(_) => {
            let what = format!("{} is too short or too long a period", text.shown);
            cx.problem(&key, &text.span, what, "Write a period from 10ms to 3650d");
        }
        Err(_) => {
            let mend = r#"Write a duration such as "1s", "1m" or "1d", or "day" or "month" for the vendor's calendar"#;
            cx.problem(&key, &text.span, format!("{} is not a period", text.shown), mend);
        }
    }
    None
}

fn time_zone(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<TimeZone> {
    let name = cx.text(key, raw)?;
    let zone = TimeZone::get(&name.text).ok();
    if zone.is_none() {
        let mend = r#"Write a name of the IANA list, such as "America/New_York", or remove tz for UTC"#;
        cx.problem(key, &name.span, format!("there is no time zone {}", name.shown), mend);
    }
    zone
}

fn shape(cx: &mut Check<'_>, key: &str, raw: &raw::LimitTable, per: &Per, calls: u64) -> Option<Shape> {
    let is_calendar = !matches!(per, Per::Rolling(_));
    let shape_key = format!("{key}.shape");
    let named = match &raw.shape {
        Some(text) => Some(cx.text(&shape_key, text)?),
        None => None,
    };
    let name = named.as_ref().map(|named| named.text.as_str());
    let span = named.as_ref().map_or(0..0, |named| named.span.clone());
    if name != Some("bucket")
        && let Some(burst) = &raw.burst
    {
        let what = "only the shape \"bucket\" has a burst";
        return cx.refuse(&format!("{key}.burst"), &burst.span(), what, "Remove burst, or write shape = \"bucket\"");
    }
    let (what, mend) = match name {
        None if is_calendar => return Some(Shape::Calendar),
        None => return Some(default_shape(length(per))),
        Some("calendar") if is_calendar => return Some(Shape::Calendar),
        Some("calendar") => (
            "a calendar counts whole days or months, and per is neither".to_owned(),
            r#"Write per = "day" or per = "month", or remove shape"#,
        ),
        Some("paced" | "window" | "bucket") if is_calendar => (
            "a calendar day or month has no other shape than \"calendar\"".to_owned(),
            r#"Write shape = "calendar" or remove shape; a rolling day is per = "1d""#,
        ),
        Some("paced") => return Some(Shape::Paced),
        Some("window") => return Some(Shape::Window),
        Some("bucket") => {
            let key = format!("{key}.burst");
            let burst = cx.needed(&key, &span, &raw.burst, "Write burst = 5, say, or shape = \"paced\"")?;
            return cx.number(&key, burst, 1..=calls).map(|burst| Shape::Bucket { burst });
        }
        Some(_) => (
            format!("there is no shape {}", named.as_ref().map_or("", |named| &named.shown)),
            r#"Write "paced", "window", "bucket" or "calendar""#,
        ),
    };
    cx.refuse(&shape_key, &span, what, mend)
}

fn guard(cx: &mut Check<'_>, key: &str, raw: &raw::Text, length: Duration) -> Option<Duration> {
    let text = cx.text(key, raw)?;
    match duration::parse(&text.text) {
        Ok(guard) if guard >= length => {
            let what = format!("the guard {} is not shorter than the period", text.shown);
            let mend =
                format!("Write {:?}, which is the default, or remove it", duration::write(default_guard(length)));
            cx.refuse(key, &text.span, what, mend)
        }
        // A timer is usually a millisecond late. With a guard that does not cover that, every permit would be missed.
        Ok(guard) if guard < SHORTEST_GUARD => {
            let what = format!("the guard {} does not cover our own timer", text.shown);
            let mend = format!("Write {:?} or more, or remove it", duration::write(SHORTEST_GUARD));
            cx.refuse(key, &text.span, what, mend)
        }
        Ok(guard) => Some(guard),
        Err(_) => cx.duration(key, raw, LONGEST),
    }
}

fn id(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Arc<str>> {
    let text = cx.text(key, raw)?;
    let is_plain = text.text.bytes().all(|b| b.is_ascii_graphic());
    if !text.text.is_empty() && text.text.len() <= 64 && is_plain {
        return Some(text.text.into());
    }
    cx.refuse(key, &text.span, format!("{} is not an id", text.shown), "Write 1 to 64 ASCII characters without spaces")
}

/// 0.5 % of the period, at least 8 ms (5 ms where the period is shorter than a second) and at most 500 ms, in whole milliseconds.
/// Why so much: docs/lab/decisions/0009.
fn default_guard(period: Duration) -> Duration {
    let least = if period < Duration::from_secs(1) { 5 } else { 8 };
    let millis = period.as_millis().div_ceil(200).clamp(least, 500);
    Duration::from_millis(u64::try_from(millis).unwrap_or(500))
}

fn default_shape(period: Duration) -> Shape {
    if period <= PACED_UP_TO { Shape::Paced } else { Shape::Window }
}

/// The shortest that the period can be.
fn length(per: &Per) -> Duration {
    match per {
        Per::Rolling(period) => *period,
        Per::Day(_) => Duration::from_secs(86_400),
        Per::Month(_) => Duration::from_secs(28 * 86_400),
    }
}

/// A longer guard and a burst cost calls: (N - b + 1) / N of T / (T + g) is left.
fn warn_of_cost(cx: &mut Check<'_>, key: &str, limit: &Limit) {
    let period = length(&limit.per);
    let kept_by_guard = period.as_secs_f64() / (period + limit.guard).as_secs_f64();
    let (kept_by_burst, why, mend) = match limit.shape {
        Shape::Bucket { burst } => {
            let kept = (limit.calls - burst + 1) as f64 / limit.calls as f64;
            (
                kept,
                format!("a burst of {burst} and a guard of {}", duration::write(limit.guard)),
                "a smaller burst or guard",
            )
        }
        _ => (1.0, format!("a guard of {}", duration::write(limit.guard)), "a shorter guard"),
    };
    let cost = 1.0 - kept_by_guard * kept_by_burst;
    if cost > TOLERATED_COST {
        let percent = cost * 100.0;
        cx.warnings.push(format!(
            "{key}: with {why}, {percent:.1} % of the limit {:?} cannot be used; {mend} gives more of it.",
            limit.id
        ));
    }
}
