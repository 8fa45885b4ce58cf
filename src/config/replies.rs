//! What a vendor's answers mean, checked: `replies`, `failed` and `done`, `slow_down`, `expect`, `rate_headers`.
//!
//! Never decides what an answer means (see `vendor::replies`).

use std::time::Duration;

use toml::Spanned;

use super::{
    Kind, Match, RateHeader, RateHeaders, ResetUnit, SlowDown,
    check::{Check, Whole, all, optional},
    raw,
};
use crate::vendor::replies::{Condition, Means, On, Rule, Test};

const MOST_RULES: usize = 64;
const MOST_VALUES: usize = 64;
/// No vendor is left alone for longer at a word of its own.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

const SLOW_DOWN: SlowDown = SlowDown { first: Duration::from_secs(1), max: Duration::from_secs(300) };

/// What a rule can say; that a job was accepted is only in the built-in table.
const MEANS: [Means; 6] =
    [Means::Done, Means::Pending, Means::SlowDown, Means::TryAgain, Means::Refused, Means::Unauthorized];

/// The rules of a vendor, in their order.
pub(super) fn replies(cx: &mut Check<'_>, whole: &Whole<'_>, kind: Option<&Kind>) -> Option<Vec<Rule>> {
    let Some(raw) = &whole.raw.replies else { return Some(Vec::new()) };
    let key = whole.key("replies");
    if let Some(one_more) = raw.get_ref().get(MOST_RULES) {
        return cx.refuse(&key, &one_more.span(), "these are too many rules", format!("Have at most {MOST_RULES}"));
    }
    all(raw.get_ref().iter().enumerate().map(|(i, raw)| rule(cx, &format!("{key}[{i}]"), raw, kind)))
}

fn rule(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Rule>, kind: Option<&Kind>) -> Option<Rule> {
    let table = raw.get_ref();
    let on = on(cx, key, table, kind);
    let means = means(cx, key, raw);
    let status = optional(table.status.as_ref(), |raw| status(cx, &format!("{key}.status"), raw));
    let place = place(cx, key, raw);
    let wait = optional(table.wait.as_ref(), |raw| cx.duration(&format!("{key}.wait"), raw, LONGEST_SILENCE));
    if table.status.is_none() && table.at.is_none() && table.header.is_none() {
        let mend = "Write status = [403], at = \"/error\" or header = \"X-Name\" (the last two with is or exists)";
        return cx.refuse(key, &raw.span(), "this rule has no condition", mend);
    }
    if let (Some(status), Some(On::Callback)) = (&table.status, on.as_ref().and_then(|on| single(on))) {
        let what = "a callback has no status, so this rule never fits";
        return cx.refuse(&format!("{key}.status"), &status.span(), what, "Use at or header, or another on");
    }
    if let (Some(wait), Some(means)) = (&table.wait, means)
        && !matches!(means, Means::Pending | Means::SlowDown | Means::TryAgain)
    {
        let what = "there is nothing to wait for after this answer";
        let mend = "Remove wait, or write means = \"pending\", \"slow_down\" or \"try_again\"";
        return cx.refuse(&format!("{key}.wait"), &wait.span(), what, mend);
    }
    let conditions = status?.into_iter().chain(place?).collect();
    Some(Rule { on: on?, conditions, means: means?, wait: wait? })
}

fn single(on: &[On]) -> Option<On> {
    if let [one] = on { Some(*one) } else { None }
}

fn on(cx: &mut Check<'_>, key: &str, table: &raw::Rule, kind: Option<&Kind>) -> Option<Vec<On>> {
    let Some(raw) = &table.on else { return Some(Vec::new()) };
    let key = format!("{key}.on");
    let mend = "Write on = [\"call\"], [\"poll\"] or [\"callback\"], several of them, or nothing for all";
    if raw.get_ref().is_empty() {
        return cx.refuse(&key, &raw.span(), "this names no answer", mend);
    }
    let words = [("call", On::Call), ("poll", On::Poll), ("callback", On::Callback)];
    let mut named = Vec::new();
    for text in raw.get_ref() {
        let on = cx.word(&key, text, &words, "there is no answer to a", mend)?;
        let is_of_kind = match on {
            On::Poll => kind.is_none_or(is_polled),
            On::Callback => matches!(kind, None | Some(Kind::Webhook(_))),
            On::Call | On::Fetch => true,
        };
        if !is_of_kind {
            let what = format!("a vendor of this kind has no {}", text.get_ref());
            return cx.refuse(&key, &text.span(), what, "Remove it, or change kind");
        }
        named.push(on);
        // To fetch data is a poll too.
        named.extend((on == On::Poll).then_some(On::Fetch));
    }
    Some(named)
}

fn is_polled(kind: &Kind) -> bool {
    matches!(kind, Kind::Polling(_)) || kind.result_url().is_some()
}

fn means(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Rule>) -> Option<Means> {
    let key = format!("{key}.means");
    let words = MEANS.map(Means::as_str);
    let mend = format!("Write means = \"{}\"", words.join("\", \"")).replacen("\"unauthorized", "or \"unauthorized", 1);
    let mend = mend.replace(", or", " or");
    let text = cx.needed(&key, &raw.span(), &raw.get_ref().means, &*mend)?;
    cx.word(&key, text, &MEANS.map(|means| (means.as_str(), means)), "an answer cannot mean", mend)
}

/// `[403, "5xx"]`
fn status(cx: &mut Check<'_>, key: &str, raw: &raw::Scalars) -> Option<Condition> {
    let mend = "Write numbers and classes such as [403, \"5xx\"]";
    let mut ranges = Vec::new();
    for item in raw.get_ref() {
        let text = &item.get_ref().0;
        let class = text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
        let range = match class {
            Some(class) => (1..=5).contains(&class).then_some((class * 100, class * 100 + 99)),
            None => text.parse::<u16>().ok().filter(|status| (100..=999).contains(status)).map(|one| (one, one)),
        };
        let Some(range) = range else {
            return cx.refuse(key, &item.span(), format!("{text:?} is not a status"), mend);
        };
        ranges.push(range);
    }
    if !(1..=MOST_VALUES).contains(&ranges.len()) {
        return cx.refuse(key, &raw.span(), "this names no status, or over 64", mend);
    }
    Some(Condition::Status(ranges))
}

/// The condition on a place in the body, or on a header; `Some(None)` when the rule has neither.
fn place(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Rule>) -> Option<Option<Condition>> {
    let table = raw.get_ref();
    let tests = (table.is.as_ref(), table.exists.as_ref());
    match (&table.at, &table.header) {
        (Some(_), Some(header)) => {
            let mend = "Write two rules, or keep one of the two";
            cx.refuse(&format!("{key}.header"), &header.span(), "a rule looks at one place: at or header", mend)
        }
        (Some(at), None) => {
            let at = cx.pointer(&format!("{key}.at"), at);
            let test = test(cx, key, &raw.span(), tests);
            Some(Some(Condition::Value { at: at?, test: test? }))
        }
        (None, Some(name)) => {
            let name = cx.header(&format!("{key}.header"), name, "X-State");
            let test = test(cx, key, &raw.span(), tests);
            Some(Some(Condition::Header { name: name?, test: test? }))
        }
        (None, None) => {
            let spans = [table.is.as_ref().map(Spanned::span), table.exists.as_ref().map(Spanned::span)];
            let Some(span) = spans.into_iter().flatten().next() else { return Some(None) };
            let mend = "Write at = \"/error\" or header = \"X-Name\" beside it";
            cx.refuse(key, &span, "nothing says where to look", mend)
        }
    }
}

type Tests<'a> = (Option<&'a raw::Scalars>, Option<&'a Spanned<bool>>);

/// What has to be found at a place: `is`, or `exists`.
fn test(cx: &mut Check<'_>, key: &str, whole: &std::ops::Range<usize>, tests: Tests<'_>) -> Option<Test> {
    let is_key = format!("{key}.is");
    let mend = "Write is = [\"...\"], or exists = true (there, and neither null nor empty)";
    let (is, exists) = tests;
    match (is, exists) {
        (Some(_), Some(exists)) => {
            let what = "is says what has to be there already";
            cx.refuse(&format!("{key}.exists"), &exists.span(), what, "Remove one of the two")
        }
        (None, Some(exists)) => Some(Test::Exists(*exists.get_ref())),
        (Some(is), None) if (1..=MOST_VALUES).contains(&is.get_ref().len()) => {
            let texts = is.get_ref().iter().enumerate().map(|(i, item)| {
                let text = Spanned::new(item.span(), item.get_ref().0.clone());
                cx.text(&format!("{is_key}[{i}]"), &text).map(|text| text.text)
            });
            all(texts).map(Test::Is)
        }
        (Some(is), None) => cx.refuse(&is_key, &is.span(), "this names no value, or over 64", mend),
        (None, None) => cx.refuse(&is_key, whole, "this key is required", mend),
    }
}

/// `failed`, and the `done` of a vendor that accepts work: a place in the body and what has to be there.
pub(super) fn matching(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Match>) -> Option<Match> {
    let table = raw.get_ref();
    let at_key = format!("{key}.at");
    let at = cx.needed(&at_key, &raw.span(), &table.at, r#"Write { at = "/status", is = ["..."] }"#);
    let at = at.and_then(|at| cx.pointer(&at_key, at));
    let test = test(cx, key, &raw.span(), (table.is.as_ref(), table.exists.as_ref()));
    Some(Match { at: at?, test: test? })
}

/// How long the pool is silent after a slow-down that names no time.
pub(super) fn slow_down(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<SlowDown> {
    let Some(raw) = &whole.raw.slow_down else { return Some(SLOW_DOWN) };
    let table = raw.get_ref();
    let key = |name: &str| whole.key(&format!("slow_down.{name}"));
    let first = optional(table.first.as_ref(), |raw| cx.duration(&key("first"), raw, LONGEST_SILENCE));
    let max = optional(table.max.as_ref(), |raw| cx.duration(&key("max"), raw, LONGEST_SILENCE));
    let (first, max) = (first?.unwrap_or(SLOW_DOWN.first), max?);
    let longest = max.unwrap_or(SLOW_DOWN.max.max(first));
    if first > longest {
        let span = table.max.as_ref().map_or(raw.span(), Spanned::span);
        let what = "the first silence is longer than the longest";
        return cx.refuse(&key("max"), &span, what, "Make slow_down.first at most slow_down.max");
    }
    Some(SlowDown { first, max: longest })
}

/// Whether only JSON is data.
pub(super) fn json_only(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<bool> {
    let Some(raw) = &whole.raw.expect else { return Some(false) };
    let mend = "Write expect = \"json\", or remove it: then what is not JSON is kept as a JSON string";
    cx.word(&whole.key("expect"), raw, &[("json", true)], "nothing is known of", mend)
}

pub(super) fn rate_headers(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<RateHeaders> {
    let Some(raw) = &whole.raw.rate_headers else { return Some(RateHeaders::Usual) };
    let key = whole.key("rate_headers");
    match raw.get_ref() {
        raw::RateHeaders::Word(word) if word == "off" => Some(RateHeaders::Off),
        raw::RateHeaders::Word(word) => {
            let mend = r#"Write "off", or { remaining = "X-Calls-Left", reset = "X-Calls-Reset" }"#;
            cx.refuse(&key, &raw.span(), format!("{word:?} says nothing here"), mend)
        }
        raw::RateHeaders::Named(tables) => {
            if !(1..=MOST_VALUES).contains(&tables.len()) {
                let mend = "Write 1 to 64 tables of headers, \"off\", or remove the key";
                return cx.refuse(&key, &raw.span(), "this names no header, or too many", mend);
            }
            all(tables.iter().map(|table| rate_header(cx, &key, &raw.span(), table))).map(RateHeaders::Named)
        }
    }
}

fn rate_header(
    cx: &mut Check<'_>,
    key: &str,
    whole: &std::ops::Range<usize>,
    raw: &raw::RateHeader,
) -> Option<RateHeader> {
    // Named for completeness: how many calls the vendor allows is what `limits` says.
    let limit = optional(raw.limit.as_ref(), |raw| cx.header(&format!("{key}.limit"), raw, "X-Calls-Limit"));
    let mut needed = |name: &str, raw: &Option<raw::Text>| {
        let (key, mend) = (format!("{key}.{name}"), r#"Write { remaining = "X-Calls-Left", reset = "X-Calls-Reset" }"#);
        cx.needed(&key, whole, raw, mend).and_then(|raw| cx.header(&key, raw, "X-Calls-Left"))
    };
    let remaining = needed("remaining", &raw.remaining);
    let reset = needed("reset", &raw.reset);
    let unit = optional(raw.unit.as_ref(), |raw| {
        let units = [("s", ResetUnit::Seconds), ("ms", ResetUnit::Millis)];
        cx.word(&format!("{key}.unit"), raw, &units, "resets are not counted in", "Write \"s\" or \"ms\"")
    });
    limit?;
    Some(RateHeader { remaining: remaining?, reset: reset?, unit: unit?.unwrap_or(ResetUnit::Seconds) })
}
