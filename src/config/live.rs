//! Limits as the API and the book write them: JSON of the form that the config file has, read by the same checks.
//!
//! Never fills anything in: a `${NAME}` from outside stays as it is.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Problem, duration, parse};
use crate::limit::{Key, Limit, Per, Shape};

/// One limit in full, in the form of the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    pub id: Arc<str>,
    pub calls: u64,
    pub per: String,
    pub shape: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    pub guard: String,
    pub key: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
}

/// Writes a limit so that [`parse_limits`] reads the same.
pub fn write_limit(limit: &Limit) -> Written {
    let zone = |zone: &jiff::tz::TimeZone| Some(zone.iana_name().unwrap_or("UTC").to_owned());
    let (per, tz) = match &limit.per {
        Per::Rolling(period) => (duration::write(*period), None),
        Per::Day(tz) => ("day".to_owned(), zone(tz)),
        Per::Month(tz) => ("month".to_owned(), zone(tz)),
    };
    let (shape, burst) = match limit.shape {
        Shape::Paced => ("paced", None),
        Shape::Window => ("window", None),
        Shape::Bucket { burst } => ("bucket", Some(burst)),
        Shape::Calendar => ("calendar", None),
    };
    let key = match limit.key {
        Key::Vendor => "vendor",
        Key::Tenant => "tenant",
    };
    Written {
        id: limit.id.clone(),
        calls: limit.calls,
        per,
        shape,
        burst,
        guard: duration::write(limit.guard),
        key,
        tz,
    }
}

/// The limits of a pool as JSON.
pub fn write_limits(limits: &[Limit]) -> String {
    let written: Vec<Written> = limits.iter().map(write_limit).collect();
    serde_json::to_string(&written).expect("texts and numbers are JSON")
}

/// The limits of many pools as JSON.
pub fn write_pools<'a>(pools: impl Iterator<Item = (&'a Arc<str>, &'a Vec<Limit>)>) -> String {
    let written = pools.map(|(pool, limits)| (pool, limits.iter().map(write_limit).collect()));
    serde_json::to_string(&written.collect::<BTreeMap<_, Vec<Written>>>()).expect("texts and numbers are JSON")
}

/// Reads limits from a JSON array. What is wrong comes with a pointer, under `/limits`, and a sentence.
pub fn parse_limits(json: &str) -> Result<Vec<Limit>, Vec<(String, String)>> {
    let whole = |why: &str| vec![("/limits".to_owned(), why.to_owned())];
    let mut entries: toml::Value = serde_json::from_str(json).map_err(|error| whole(&error.to_string()))?;
    if !entries.is_array() {
        return Err(whole(r#"must be an array such as ["50/s", {"calls": 2000, "per": "1m"}], or [] for no limits"#));
    }
    keep_dollars(&mut entries);
    // A valid vendor with these limits, so that every problem is one of the limits.
    let text = format!("[vendors.v]\nkind = \"sync\"\nurl = \"http://127.0.0.1\"\nlimits = {entries}\n");
    let config = parse(&text, "limits", std::iter::empty());
    let config = config.map_err(|error| error.problems().iter().map(pointed).collect::<Vec<_>>())?;
    Ok(config.pools.into_iter().flat_map(|pool| pool.limits).collect())
}

/// Reads limits that a newer version may have written; also says how many could not be read.
pub fn parse_known_limits(json: &str) -> (Vec<Limit>, usize) {
    let Ok(entries) = serde_json::from_str::<Vec<Box<RawValue>>>(json) else { return (Vec::new(), 1) };
    let read: Vec<_> = entries.iter().map(|entry| parse_limits(&format!("[{entry}]"))).collect();
    let unknown = read.iter().filter(|limits| limits.is_err()).count();
    (read.into_iter().flatten().flatten().collect(), unknown)
}

/// Reads the limits of many pools from a JSON object, as far as possible; also says how many could not be read.
pub fn parse_known_pools(json: &str) -> (BTreeMap<String, Vec<Limit>>, usize) {
    let Ok(pools) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(json) else { return (BTreeMap::new(), 1) };
    let mut unknown = 0;
    let mut read = |(pool, limits): (String, Box<RawValue>)| {
        let (limits, more) = parse_known_limits(limits.get());
        unknown += more;
        (pool, limits)
    };
    (pools.into_iter().map(&mut read).collect(), unknown)
}

fn keep_dollars(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => *text = text.replace("${", "$${"),
        toml::Value::Array(items) => items.iter_mut().for_each(keep_dollars),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| keep_dollars(value)),
        _ => {}
    }
}

/// `vendors.v.limits[0].calls` is `/limits/0/calls` in what was sent.
fn pointed(problem: &Problem) -> (String, String) {
    let key = problem.key.trim_start_matches("vendors.v.");
    let pointer = format!("/{}", key.replace(['[', '.'], "/").replace(']', ""));
    let stop = if problem.mend.ends_with('?') { "" } else { "." };
    (pointer, format!("{}. {}{stop}", problem.what, problem.mend))
}
