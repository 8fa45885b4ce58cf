//! `failures`: which jobs ended without a result lately, grouped by vendor, error code and message.

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, Talk},
    print,
    times::{self, Times},
};
use crate::clock::Time;

#[derive(Debug, Args)]
pub(super) struct FailuresArgs {
    /// Only jobs that ended at this time or later: a time, or how long ago
    #[arg(long, value_name = "WHEN", default_value = "1h", value_parser = times::moment)]
    since: Time,
    /// Only jobs for this vendor
    #[arg(long)]
    vendor: Option<String>,
    /// Only jobs of this tenant
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Deserialize)]
struct Failures {
    since: String,
    more: bool,
    count: u64,
    failures: Vec<Group>,
    omitted: u64,
}

#[derive(Deserialize)]
struct Group {
    vendor: String,
    code: String,
    message: String,
    count: u64,
    last_at: String,
    request_id: String,
}

pub(super) async fn run(args: &FailuresArgs) -> Result<(), Failure> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("since", &args.since.rfc3339());
    for (name, value) in [("vendor", &args.vendor), ("tenant", &args.tenant)] {
        query.extend_pairs(value.iter().map(|value| (name, value)));
    }
    let path = format!("/failures?{}", query.finish());
    let times = args.talk.times();
    args.talk.ask(Call::get(path), |answer| view(answer, &times)).await
}

/// The groups as a table, and what to do next.
pub(super) fn view(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let Failures { since, more, count, failures, omitted } = client::read(answer)?;
    let Some(first) = failures.first() else { return Ok(format!("no job has failed since {}", times.exact(&since))) };
    let next = format!(
        "{count} jobs without a result since {}. `fetchgate jobs attempts {}` shows each call for one of the first group, and what the vendor said; `fetchgate jobs replay --vendor {} --code {}` runs such jobs again.",
        times.exact(&since),
        first.request_id,
        first.vendor,
        first.code
    );
    let head = ["COUNT", "VENDOR", "ERROR", "LAST", "EXAMPLE", "MESSAGE"];
    let rows = failures.into_iter().map(|group| {
        let Group { vendor, code, message, count, last_at, request_id } = group;
        [count.to_string(), vendor, code, times.short(&last_at), request_id, message]
    });
    let mut text = print::table(head, &["LAST", "EXAMPLE"], rows);
    if omitted > 0 {
        text.push_str(&format!("\n{omitted} more in smaller groups"));
    }
    if more {
        text.push_str("\nthere were too many to look at all; these are the newest");
    }
    Ok(format!("{text}\n\n{}", print::shown(&next)))
}

#[cfg(test)]
mod tests {
    use super::{super::times::ZoneArgs, *};

    #[test]
    fn failures_are_counted_by_reason_with_an_example_and_the_next_step() {
        let answer = r##"{"since":"2026-11-27T21:58:00.000Z","more":false,"count":3,"omitted":1,"failures":[{"vendor":"bureau",
            "code":"vendor_refused","message":"the vendor answered 422","count":2,"first_at":"2026-11-27T21:58:00.000Z",
            "last_at":"2026-11-27T21:59:00.000Z","request_id":"an-id"}]}"##;
        let answer = RawValue::from_string(answer.to_owned()).expect("JSON");
        let text = view(&answer, &ZoneArgs::default().times()).expect("a view");
        assert!(
            text.starts_with("COUNT  VENDOR  ERROR") && text.contains("  the vendor answered 422\n1 more in"),
            "{text}"
        );
        assert!(text.contains("`fetchgate jobs attempts an-id`") && text.contains("--code vendor_refused`"), "{text}");
        let none = r#"{"since":"2026-11-27T21:58:00.000Z","more":false,"count":0,"failures":[],"omitted":0}"#;
        let none = RawValue::from_string(none.to_owned()).expect("JSON");
        let text = view(&none, &ZoneArgs::default().times()).expect("a view");
        assert_eq!(text, "no job has failed since 2026-11-27T21:58:00.000Z");
    }
}
