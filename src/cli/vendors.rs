//! `vendors`: the state of each vendor, the use of its limits and whether they were kept; pausing and resuming.
//!
//! Never changes limits (see `limits`).

use std::time::Duration;

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, JSON, Service, Talk},
    limits::{self, LimitsArgs},
    print::{self, shown},
    times::{self, Times, span},
    why::{self, Block},
};
use crate::{
    clock::Time,
    config::{parse_duration, write_duration},
};

#[derive(Debug, Subcommand)]
pub(super) enum VendorsCommand {
    /// Lists the vendors, with their backlog and their calls
    List(Talk),
    /// Shows a vendor: why it is not called, its last error, and how much of each of its limits is used
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
    /// Only calls sent at this time or later: a time, or how long ago, such as 1h
    #[arg(long, value_name = "WHEN", value_parser = times::moment)]
    since: Option<Time>,
    /// Only calls sent before this: a time, or how long ago
    #[arg(long, value_name = "WHEN", value_parser = times::moment)]
    until: Option<Time>,
}

/// A vendor, as the service shows it.
#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    kind: String,
    pool: String,
    pub(super) paused: bool,
    paused_until: Option<String>,
    paused_since: Option<String>,
    paused_by: Option<String>,
    breaker: String,
    pub(super) blocked_on: Option<String>,
    since: Option<String>,
    until: Option<String>,
    last_error: Option<why::Error>,
    pub(super) concurrency: u64,
    pub(super) open: u64,
    pub(super) waiting: u64,
    pub(super) oldest_waiting_s: Option<f64>,
    pub(super) drain_eta: Option<String>,
    /// These are only for callers that see all tenants.
    pub(super) in_flight: Option<i64>,
    pub(super) calls_total: Option<u64>,
    pub(super) throttled_total: Option<u64>,
    pub(super) breaches_total: Option<u64>,
    pub(super) limits: Vec<LimitRow>,
}

/// One of its limits.
#[derive(Deserialize)]
pub(super) struct LimitRow {
    pub(super) id: String,
    pub(super) calls: u64,
    per: String,
    shape: String,
    key: String,
    pub(super) used: Option<u64>,
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
        VendorsCommand::List(talk) => {
            let times = talk.times();
            talk.ask(Call::get("/vendors"), |answer| list(answer, &times)).await
        }
        VendorsCommand::Show(vendor) => {
            let times = vendor.talk.times();
            vendor.talk.ask(Call::get(vendor.path()), |vendor| Ok(show(&client::read(vendor)?, &times))).await
        }
        VendorsCommand::Limits(args) => limits::run(args).await,
        VendorsCommand::Resume(vendor) => {
            let call = Call::post(vendor.path() + "/resume");
            vendor.talk.ask(call, |vendor| Ok(shown(&format!("{} is no longer paused", name(vendor)?)))).await
        }
        VendorsCommand::Audit(args) => {
            let times = args.vendor.talk.times();
            args.vendor.talk.ask(Call::get(args.path()), |answer| audit(answer, &times)).await
        }
        VendorsCommand::Pause(args) => pause(&args).await,
    }
}

/// Pauses a vendor, and says which pause that replaces.
async fn pause(args: &PauseArgs) -> Result<(), Failure> {
    let PauseArgs { vendor, length } = args;
    let service = Service::at(&vendor.talk.target)?;
    let before: Row = service.call(Call::get(vendor.path())).await?.read()?;
    let body = length.map(|length| (JSON, format!(r#"{{"for":"{}"}}"#, write_duration(length)).into()));
    let answer = service.call(Call { body, ..Call::post(vendor.path() + "/pause") }).await?;
    print::answer(answer.json(), vendor.talk.output, |vendor| {
        let (now, times) = (client::read::<Row>(vendor)?, args.vendor.talk.times());
        let replaced = match before.paused {
            true => format!("; before, it was paused {}", paused_until(&before, &times)),
            false => String::new(),
        };
        Ok(shown(&format!("{} is paused {}{replaced}", now.name, paused_until(&now, &times))))
    })
}

fn paused_until(row: &Row, times: &Times) -> String {
    match &row.paused_until {
        Some(until) => format!("until {}", times.long(until).unwrap_or_else(|| until.clone())),
        None => "until resumed".to_owned(),
    }
}

fn name(vendor: &RawValue) -> Result<String, Failure> {
    Ok(client::read::<Row>(vendor)?.name)
}

impl OneVendor {
    fn path(&self) -> String {
        format!("/vendors/{}", client::segment(&self.name))
    }
}

impl AuditArgs {
    fn path(&self) -> String {
        let window = self.window.map(write_duration);
        let [since, until] = [self.since, self.until].map(|at| at.map(Time::rfc3339));
        let given = [("window", window), ("since", since), ("until", until)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let query: Vec<String> = given.map(|(name, value)| format!("{name}={}", client::segment(&value))).collect();
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

fn list(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let head =
        ["NAME", "KIND", "STATE", "WAITING", "OLDEST", "IN FLIGHT", "OPEN", "CALLS", "429S", "BREACHES", "LIMITS"];
    let mut rows = Vec::new();
    for vendor in each(answer)? {
        let row: Row = client::read(vendor)?;
        let ids: Vec<&str> = row.limits.iter().map(|limit| &*limit.id).collect();
        let oldest = if row.in_flight.is_some() { "none due" } else { "unknown" };
        rows.push([
            row.name.clone(),
            row.kind.clone(),
            state(&row, times),
            row.waiting.to_string(),
            row.oldest_waiting_s.map_or_else(|| oldest.to_owned(), seconds),
            or_unknown(row.in_flight),
            row.open.to_string(),
            or_unknown(row.calls_total),
            or_unknown(row.throttled_total),
            or_unknown(row.breaches_total),
            if ids.is_empty() { "none".to_owned() } else { ids.join(", ") },
        ]);
    }
    Ok(print::table(head, &["KIND", "BREACHES", "429S", "OPEN", "IN FLIGHT", "CALLS", "OLDEST"], rows))
}

/// All of a vendor: why it is not called, its last error, what waits, and the use of each limit.
pub(super) fn show(row: &Row, times: &Times) -> String {
    let mut lines = vec![
        ("name", shown(&row.name)),
        ("kind", shown(&row.kind)),
        ("pool", shown(&row.pool)),
        ("state", state(row, times)),
    ];
    if let Some(on) = &row.blocked_on {
        let (since, until) = (row.since.as_deref(), row.until.as_deref());
        lines.push(("why", Block { on, vendor: &row.name, job: None, since, until }.told(times)));
    }
    if let (true, Some(by)) = (row.paused, &row.paused_by) {
        let since = row.paused_since.as_deref().map(|since| format!(", {}", times.short(since)));
        lines.push(("paused by", shown(by) + &since.unwrap_or_default()));
    }
    lines.push(("last error", row.last_error.as_ref().map_or_else(|| "none".to_owned(), |error| error.told(times))));
    lines.push(("waiting", waiting(row, times)));
    let which = match row.open {
        0 => String::new(),
        _ => format!("; `fetchgate jobs list --vendor {} --status processing` shows them", shown(&row.name)),
    };
    lines.push(("open", format!("{} accepted by the vendor and not answered{which}", row.open)));
    lines.push(("in flight", format!("{} of {}", or_unknown(row.in_flight), row.concurrency)));
    if let (Some(calls), Some(throttled), Some(breaches)) = (row.calls_total, row.throttled_total, row.breaches_total) {
        let told = format!("{calls}, {throttled} of them answered \"too many\"; {breaches} breaches of its limits");
        lines.push(("calls sent", told));
    }
    let lines = print::pairs(lines);
    if row.limits.is_empty() {
        return format!("{lines}\n\nno limits");
    }
    let head = ["LIMIT", "USED", "CALLS", "PER", "SHAPE", "KEY", "NEXT CALL"];
    let rows = row.limits.iter().map(|limit| {
        let LimitRow { id, calls, per, shape, key, used, next_at } = limit;
        let [id, per, shape, key] = [id, per, shape, key].map(Clone::clone);
        [id, or_unknown(*used), calls.to_string(), per, shape, key, times.soonest(next_at)]
    });
    format!("{lines}\n\n{}", print::table(head, &["KEY", "SHAPE"], rows))
}

/// How many jobs wait, for how long, and when the last of them is called.
fn waiting(row: &Row, times: &Times) -> String {
    let oldest = match row.oldest_waiting_s {
        Some(secs) => format!(", the oldest for {}", seconds(secs)),
        // The expected time of the last call takes all jobs for due.
        None if row.waiting > 0 && row.in_flight.is_some() => return format!("{}, none of them due yet", row.waiting),
        None => String::new(),
    };
    let eta = row.drain_eta.as_deref().map(|eta| format!(", the last call {}", times.soonest(eta)));
    format!("{}{oldest}{}", row.waiting, eta.unwrap_or_default())
}

fn audit(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Limits {
        limits: Option<Vec<AuditRow>>,
    }
    let fields = print::fields(answer, &["limits"], times);
    let Limits { limits: Some(limits) } = client::read(answer)? else { return Ok(fields) };
    if limits.is_empty() {
        return Ok(format!("{fields}\n\nno limits"));
    }
    let head = ["LIMIT", "WINDOW", "KEY", "MOST IN ANY", "ALLOWED", "BREACHES", "WORST EVER", "BEGAN"];
    let rows = limits.into_iter().map(|row| {
        let AuditRow { id, window, key, max_in_any_window, limit, breaches, worst_ever, worst_ever_at } = row;
        let [most, allowed, breaches, worst] = [max_in_any_window, limit, breaches, worst_ever].map(|n| n.to_string());
        let at = worst_ever_at.map_or_else(|| "never".to_owned(), |at| times.short(&at));
        [id, window, key, most, allowed, breaches, worst, at]
    });
    Ok(format!("{fields}\n\n{}", print::table(head, &["KEY", "BEGAN", "WORST EVER"], rows)))
}

/// A number that only callers that see all tenants get.
fn or_unknown(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

pub(super) fn seconds(secs: f64) -> String {
    span(Duration::try_from_secs_f64(secs).unwrap_or_default())
}

/// Whether it is called; if not, why, and until when.
pub(super) fn state(row: &Row, times: &Times) -> String {
    let until = |words: fn(&Times, &str) -> String| {
        row.until.as_deref().map(|until| format!(", {}", words(times, until))).unwrap_or_default()
    };
    let probe = |times: &Times, at: &str| format!("next try {}", times.soonest(at));
    match row.blocked_on.as_deref() {
        _ if row.paused && row.paused_until.is_none() => "paused until resumed".to_owned(),
        _ if row.paused => format!("paused{}", until(Times::until)),
        Some("credentials") => format!("credentials refused{}", until(probe)),
        Some("slowed_by_vendor") => format!("slowed by the vendor{}", until(Times::until)),
        _ if row.breaker != "closed" => format!("breaker {}{}", row.breaker.replace('_', " "), until(probe)),
        _ => "running".to_owned(),
    }
}
