//! `vendors`: the state of each vendor, the use of its limits and whether they were kept; pausing and resuming.
//!
//! Never changes limits (see `limits`).

use std::time::Duration;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, JSON, Talk},
    limits::{self, LimitsArgs},
    print,
};
use crate::config::{parse_duration, write_duration};

#[derive(Debug, Subcommand)]
pub(super) enum VendorsCommand {
    /// Lists the vendors, with their backlog and their calls
    List(Talk),
    /// Shows a vendor, and how much of each of its limits is used
    Show(OneVendor),
    /// Stops calls to a vendor until it is resumed; its jobs wait
    Pause(PauseArgs),
    /// Ends a pause
    Resume(OneVendor),
    /// Shows the limits in force, or changes them while everything runs
    Limits(LimitsArgs),
    /// Shows the calls that were really sent to a vendor, and their worst window
    Audit(AuditArgs),
}

#[derive(Debug, Args)]
pub(super) struct OneVendor {
    /// The vendor's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    vendor: OneVendor,
    /// Ends the pause after this time; without it the vendor stays paused until it is resumed
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    length: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    vendor: OneVendor,
    /// Shows windows of this length; by default each limit with its own period
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    window: Option<Duration>,
    /// Only calls sent at this time or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only calls sent before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    kind: String,
    paused: bool,
    paused_until: Option<String>,
    breaker: String,
    open: u64,
    waiting: u64,
    oldest_waiting_s: Option<f64>,
    /// These are only for callers that see all tenants.
    in_flight: Option<i64>,
    calls_total: Option<u64>,
    throttled_total: Option<u64>,
    breaches_total: Option<u64>,
    limits: Vec<LimitRow>,
}

#[derive(Deserialize)]
struct LimitRow {
    id: String,
    calls: u64,
    per: String,
    shape: String,
    key: String,
    used: Option<u64>,
    next_at: String,
}

#[derive(Deserialize)]
struct AuditRow {
    id: String,
    window: String,
    key: String,
    max_in_any_window: u64,
    limit: u64,
    breaches: u64,
    worst_ever: u64,
    worst_ever_at: Option<String>,
}

pub(super) async fn run(command: VendorsCommand) -> Result<(), Failure> {
    match command {
        VendorsCommand::List(talk) => talk.ask(Call::get("/vendors"), list).await,
        VendorsCommand::Show(vendor) => vendor.talk.ask(Call::get(vendor.path()), show).await,
        VendorsCommand::Limits(args) => limits::run(args).await,
        VendorsCommand::Resume(vendor) => vendor.talk.ask(Call::post(vendor.path() + "/resume"), pause).await,
        VendorsCommand::Audit(args) => args.vendor.talk.ask(Call::get(args.path()), audit).await,
        VendorsCommand::Pause(PauseArgs { vendor, length }) => {
            let body = length.map(|length| (JSON, format!(r#"{{"for":"{}"}}"#, write_duration(length)).into()));
            vendor.talk.ask(Call { body, ..Call::post(vendor.path() + "/pause") }, pause).await
        }
    }
}

impl OneVendor {
    fn path(&self) -> String {
        format!("/vendors/{}", client::segment(&self.name))
    }
}

impl AuditArgs {
    fn path(&self) -> String {
        let window = self.window.map(write_duration);
        let given = [("window", &window), ("since", &self.since), ("until", &self.until)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let query: Vec<String> = given.map(|(name, value)| format!("{name}={}", client::segment(value))).collect();
        format!("{}/audit?{}", self.vendor.path(), query.join("&"))
    }
}

/// The vendors in the answer to `GET /vendors`, or the one of `GET /vendors/{name}`.
pub(super) fn each(answer: &RawValue) -> Result<Vec<&RawValue>, Failure> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        vendors: Option<Vec<&'a RawValue>>,
    }
    let List { vendors } = client::read(answer)?;
    Ok(vendors.unwrap_or_else(|| vec![answer]))
}

fn list(answer: &RawValue) -> Result<String, Failure> {
    let head =
        ["NAME", "KIND", "STATE", "WAITING", "OLDEST", "IN FLIGHT", "OPEN", "CALLS", "429S", "BREACHES", "LIMITS"];
    let mut rows = Vec::new();
    for vendor in each(answer)? {
        let row: Row = client::read(vendor)?;
        let ids: Vec<&str> = row.limits.iter().map(|limit| &*limit.id).collect();
        rows.push([
            row.name.clone(),
            row.kind.clone(),
            state(&row),
            row.waiting.to_string(),
            row.oldest_waiting_s.map_or_else(|| "-".to_owned(), |secs| format!("{secs:.1} s")),
            or_dash(row.in_flight),
            row.open.to_string(),
            or_dash(row.calls_total),
            or_dash(row.throttled_total),
            or_dash(row.breaches_total),
            if ids.is_empty() { "none".to_owned() } else { ids.join(", ") },
        ]);
    }
    Ok(print::table(head, rows))
}

fn show(vendor: &RawValue) -> Result<String, Failure> {
    let row: Row = client::read(vendor)?;
    let fields = print::fields(vendor, &["limits"]);
    if row.limits.is_empty() {
        return Ok(format!("{fields}\n\nno limits"));
    }
    let head = ["LIMIT", "USED", "CALLS", "PER", "SHAPE", "KEY", "NEXT AT"];
    let rows = row.limits.into_iter().map(|limit| {
        let LimitRow { id, calls, per, shape, key, used, next_at } = limit;
        [id, or_dash(used), calls.to_string(), per, shape, key, next_at]
    });
    Ok(format!("{fields}\n\n{}", print::table(head, rows)))
}

fn audit(answer: &RawValue) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Limits {
        limits: Option<Vec<AuditRow>>,
    }
    let fields = print::fields(answer, &["limits"]);
    let Limits { limits: Some(limits) } = client::read(answer)? else { return Ok(fields) };
    if limits.is_empty() {
        return Ok(format!("{fields}\n\nno limits"));
    }
    let head = ["LIMIT", "WINDOW", "KEY", "MOST IN ANY", "ALLOWED", "BREACHES", "WORST EVER", "AT"];
    let rows = limits.into_iter().map(|row| {
        let AuditRow { id, window, key, max_in_any_window, limit, breaches, worst_ever, worst_ever_at } = row;
        let [most, allowed, breaches, worst] = [max_in_any_window, limit, breaches, worst_ever].map(|n| n.to_string());
        [id, window, key, most, allowed, breaches, worst, worst_ever_at.unwrap_or_else(|| "-".to_owned())]
    });
    Ok(format!("{fields}\n\n{}", print::table(head, rows)))
}

fn pause(vendor: &RawValue) -> Result<String, Failure> {
    let row: Row = client::read(vendor)?;
    let state = if row.paused { state(&row) } else { "no longer paused".to_owned() };
    Ok(print::shown(&format!("{} is {state}", row.name)))
}

fn or_dash(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn state(row: &Row) -> String {
    match (&row.paused_until, row.paused) {
        (_, false) if row.breaker == "closed" => "running".to_owned(),
        (_, false) => format!("breaker {}", row.breaker.replace('_', " ")),
        (Some(until), true) => format!("paused until {until}"),
        (None, true) => "paused until resumed".to_owned(),
    }
}
