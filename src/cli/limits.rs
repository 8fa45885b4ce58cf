//! `vendors limits`: shows the limits in force, sets live limits in place of those of the file, and removes them.
//!
//! Never decides what a limit may be: the service does.

use anyhow::anyhow;
use clap::{Args, builder::NonEmptyStringValueParser};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    Failure,
    client::{self, Call, JSON, Service, Talk, segment},
    print,
    times::Times,
};

#[derive(Debug, Args)]
pub(super) struct LimitsArgs {
    /// The vendor's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Replaces the limits of the file by this one; can be given more than once: 50/s, or as in the config or in JSON: {"calls": 600, "per": "1m"}
    #[arg(long, value_name = "LIMIT", value_parser = limit)]
    set: Vec<Value>,
    /// Removes live limits: those of the file are in force again
    #[arg(long, conflicts_with = "set")]
    clear: bool,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Deserialize)]
struct InForce {
    version: u64,
    source: String,
    since: Option<String>,
    by: Option<String>,
    limits: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    calls: u64,
    per: String,
    shape: String,
    burst: Option<u64>,
    guard: String,
    key: String,
    tz: Option<String>,
}

pub(super) async fn run(args: LimitsArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    let path = format!("/vendors/{}/limits", segment(&args.name));
    let shown = service.call(Call::get(&path)).await?;
    let times = args.talk.times();
    if args.set.is_empty() && !args.clear {
        return print::answer(shown.json(), args.talk.output, |answer| view(answer, &times));
    }
    // A change that somebody else makes at the same time is not overwritten.
    let seen: InForce = shown.read()?;
    let if_match = Some(format!("\"{}\"", seen.version));
    let (method, body) = if args.clear {
        (Method::DELETE, None)
    } else {
        (Method::PUT, Some((JSON, json!({ "limits": args.set }).to_string().into())))
    };
    let answer = service.call(Call { method, body, if_match, ..Call::get(path) }).await?;
    print::answer(answer.json(), args.talk.output, |answer| view(answer, &times))
}

/// Reads the value of `--set`: a text, or an object as in the API, or a table as in the config.
fn limit(text: &str) -> Result<Value, String> {
    if !text.trim_start().starts_with('{') {
        return Ok(Value::from(text));
    }
    if let Ok(object) = serde_json::from_str(text) {
        return Ok(object);
    }
    let table: toml::Table = toml::from_str(&format!("limit = {text}")).map_err(|error| error.message().to_owned())?;
    serde_json::to_value(&table["limit"]).map_err(|error| error.to_string())
}

fn view(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let InForce { source, since, by, limits, version } = client::read(answer)?;
    let by = by.map(|by| format!(", set by {by}")).unwrap_or_default();
    let said = match (&*source, since) {
        ("live", Some(since)) => format!("live since {}{by}, version {version}", times.long(&since).unwrap_or(since)),
        ("file", _) => format!("from the config file, version {version}"),
        _ => return Err(anyhow!("the answer is not what this version of fetchgate expects").into()),
    };
    if limits.is_empty() {
        return Ok(format!("{}\n\nno limits", print::shown(&said)));
    }
    let head = ["LIMIT", "CALLS", "PER", "SHAPE", "GUARD", "KEY"];
    let rows = limits.into_iter().map(|row| {
        let per = row.tz.map_or_else(|| row.per.clone(), |tz| format!("{} in {tz}", row.per));
        let shape = row.burst.map_or_else(|| row.shape.clone(), |burst| format!("{}, burst {burst}", row.shape));
        [row.id, row.calls.to_string(), per, shape, row.guard, row.key]
    });
    Ok(format!("{}\n\n{}", print::shown(&said), print::table(head, &["GUARD", "KEY", "CALLS", "PER"], rows)))
}
