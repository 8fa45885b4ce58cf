//! `check`: what the config means, in words; and with `--vendor` one request as it would go out.
//!
//! Never shows a secret: of vendors it prints what `config::Vendor::shown` gives. Never calls a vendor (see `connect` for its port).

use std::{collections::BTreeMap, iter, path::Path, sync::Arc, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::Method;

use super::{
    ConfigArgs, Failure,
    batch::MAX_JOB,
    connect, print, serve, submit,
    vendor_words::{self, MASK},
};
use crate::{
    clock::Clock,
    config::{Address, Config, Kind, Vendor, Written, write_duration, write_limit},
    job::{Fetch, Job, JobIds, Lane, NewJob, Priority, Stage, retry::Retry},
    json,
    limit::Limit,
    vendor::{
        Registry,
        http::Origin,
        outgoing::{Credentials, Outgoing},
    },
};

/// Headers whose values are no secrets, even if the config has them.
const PLAIN_HEADERS: [&str; 4] = ["accept", "accept-language", "content-type", "user-agent"];
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also connects to the store, Redis and the vendors
    #[arg(long)]
    connect: bool,
    /// Prints the request that this vendor would get for the payload, with its secrets masked; nobody is called
    #[arg(long, value_name = "NAME", requires = "payload", conflicts_with = "connect")]
    vendor: Option<String>,
    /// The payload for --vendor: JSON, @FILE, or - for stdin
    #[arg(long, value_name = "JSON", requires = "vendor")]
    payload: Option<String>,
}

pub(super) async fn run(args: &CheckArgs) -> Result<(), Failure> {
    let config = serve::read(&args.config)?;
    if let (Some(vendor), Some(payload)) = (&args.vendor, &args.payload) {
        return print::line(&request(&config, vendor, &read(payload)?).await?);
    }
    print::line(&in_words(&config))?;
    if args.connect { connect::check(&config).await } else { Ok(()) }
}

/// A payload: as it was written, or from a file.
fn read(payload: &str) -> Result<Vec<u8>, Failure> {
    match payload.strip_prefix('@') {
        Some(file) => submit::read_file(Path::new(file)),
        None if payload == "-" => submit::read_file(Path::new("-")),
        None if payload.len() > MAX_JOB => {
            Err(Failure::Usage(anyhow!("the payload is larger than the {MAX_JOB} bytes that a job can have")))
        }
        None => Ok(payload.as_bytes().to_vec()),
    }
}

/// What the vendor would get for a job with this payload, and what it would be asked later.
async fn request(config: &Config, name: &str, payload: &[u8]) -> Result<String, Failure> {
    let usage = |why: String| Failure::Usage(anyhow!(why));
    let Some(found) = config.vendors.iter().find(|vendor| *vendor.name == *name) else {
        let known: Vec<&str> = config.vendors.iter().map(|vendor| &*vendor.name).take(20).collect();
        return Err(usage(format!("there is no vendor {name:?} in the config; it has {}", known.join(", "))));
    };
    let payload = json::check(payload).map_err(|fault| usage(format!("the payload is {fault}")))?;
    let shown = Config { vendors: vec![found.shown()], ..config.clone() };
    let registry = Registry::new(&shown, b"an example");
    let vendor = registry.get(name).ok_or_else(|| anyhow!("the vendor is not there"))?;
    let call = example(name, Bytes::copy_from_slice(payload.get().as_bytes()));
    vendor
        .check(call.id, &call.lane.tenant, payload)
        .map_err(|why| usage(format!("the payload does not fit this vendor: {why}")))?;
    let mut texts = Vec::new();
    for job in iter::once(call.clone()).chain(asked_later(found, vendor.origin(Stage::Call), &call)) {
        let outgoing = vendor.request(&job).map_err(|why| usage(why.message))?;
        texts.push(written(found, outgoing).await);
    }
    Ok(texts.join("\n\n"))
}

/// The job when its vendor is asked whether it is done, and for its data; not at URLs that only an answer has.
fn asked_later(vendor: &Vendor, own: Origin, call: &Job) -> Vec<Job> {
    let (mut jobs, kind) = (Vec::new(), &vendor.kind);
    let poll = |address: &Address, fetch| {
        let ticket = if matches!(address, Address::Ticket) { format!("{own}/TICKET") } else { "TICKET".to_owned() };
        Job { stage: Stage::Poll, ticket: Some(ticket), fetch, ..call.clone() }
    };
    if let Kind::Polling(polling) = kind {
        jobs.push(poll(&polling.url, None));
    }
    if let Some(address @ (Address::Url(_) | Address::Ticket)) = kind.result_url() {
        jobs.push(poll(address, Some(Fetch::ByConfig)));
    }
    jobs
}

/// A job as it is when it has just been accepted.
fn example(vendor: &str, payload: Bytes) -> Job {
    let now = Clock::system().now();
    let lane = Lane { vendor: vendor.into(), priority: Priority::Normal, tenant: "default".into() };
    let id = JobIds::new().next(now);
    let (deadline, tags) = (None, Vec::new());
    NewJob { id, lane, payload, due_at: now, deadline, tags, idempotency: None, webhook: None, caller: None }.into()
}

/// A request as text: its first line with the whole URL, its headers, its body. Of the headers in the config only some are shown, and of
/// the vendor's credentials none.
async fn written(vendor: &Vendor, outgoing: Outgoing) -> String {
    let (head, body) = outgoing.request.into_parts();
    let is_ours = outgoing.credentials == Credentials::Sent;
    let parameter = vendor_words::added_parameter(vendor).filter(|_| is_ours).map(|parameter| {
        let separator = if head.uri.query().is_some() { '&' } else { '?' };
        format!("{separator}{parameter}")
    });
    let (url, added) = (format!("{}{}", outgoing.origin, head.uri), vendor_words::added_headers(vendor));
    let added = if is_ours { added } else { Vec::new() };
    let mut lines = vec![format!("{} {url}{}", head.method, parameter.unwrap_or_default())];
    let is_added = |name| added.iter().any(|(other, _)| other == name);
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_added(*name)) {
        let is_secret = value.is_sensitive() && !PLAIN_HEADERS.contains(&name.as_str());
        let value = if is_secret { MASK.into() } else { String::from_utf8_lossy(value.as_bytes()) };
        lines.push(format!("{name}: {}", print::shown(&value)));
    }
    lines.extend(added.iter().map(|(name, value)| format!("{name}: {value}")));
    // A body that is whole in memory cannot fail.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if !body.is_empty() {
        lines.extend([String::new(), String::from_utf8_lossy(&body).into_owned()]);
    }
    lines.join("\n")
}

fn in_words(config: &Config) -> String {
    let vendors = if config.vendors.len() == 1 { "vendor" } else { "vendors" };
    let mut text = format!("The config is good. {} {vendors}:", config.vendors.len());
    for lines in vendors_in_words(config).values() {
        text.push_str("\n\n");
        text.push_str(&lines.join("\n  "));
    }
    for warning in &config.warnings {
        text.push_str("\n\nwarning: ");
        text.push_str(warning);
    }
    text
}

/// Each vendor by its name, in lines that show no secret.
pub(crate) fn vendors_in_words(config: &Config) -> BTreeMap<Arc<str>, Vec<String>> {
    let in_words = |vendor: &Vendor| {
        let pool = config.pools.iter().find(|pool| pool.pool == vendor.pool);
        let limits = pool.map(|pool| &*pool.limits).unwrap_or_default();
        (vendor.name.clone(), vendor_in_words(&vendor.shown(), limits))
    };
    config.vendors.iter().map(in_words).collect()
}

fn vendor_in_words(vendor: &Vendor, limits: &[Limit]) -> Vec<String> {
    let mut lines = vec![format!("{} ({}, pool {})", vendor.name, vendor.kind.as_str(), vendor.pool)];
    lines.push(format!("{} {}", vendor.method, vendor.url));
    lines.extend(vendor_words::headers(vendor));
    lines.extend(vendor_words::login(vendor));
    lines.extend(vendor_words::way(vendor));
    lines.push(match (&vendor.body, &vendor.kind) {
        _ if vendor.method == Method::GET => "no body".to_owned(),
        (Some(body), _) => format!("body: {}", print::shown(&body.to_string())),
        (None, Kind::Webhook(_)) => "body: request_id, payload and callback_url".to_owned(),
        (None, _) => "body: the payload".to_owned(),
    });
    lines.extend(vendor_words::asks(&vendor.kind));
    if let Kind::Webhook(webhook) = &vendor.kind {
        lines.extend(vendor_words::callbacks(webhook));
    }
    lines.extend(vendor.replies.iter().map(vendor_words::rule));
    let timeout = write_duration(vendor.timeout);
    lines.push(format!("time-out {timeout} a call, {} calls in flight at once", vendor.concurrency));
    lines.extend(patience(vendor));
    lines.extend(limits.iter().map(limit_in_words));
    if limits.is_empty() {
        lines.push("no limits".to_owned());
    }
    lines
}

/// For how long a job is tried, and what it means that nobody answers.
fn patience(vendor: &Vendor) -> Vec<String> {
    let mut lines = vec![format!("a job is tried {}, and fails after the last", tries(&vendor.retry))];
    let closed_port = "a closed port is a failed attempt like any other: the job waits for its next one";
    lines.push(match &vendor.breaker {
        Some(_) => format!("{closed_port}; while the breaker is open, jobs wait and use up no attempts"),
        None => closed_port.to_owned(),
    });
    lines.push(vendor.breaker.map_or("no breaker".to_owned(), |breaker| {
        format!(
            "breaker: opens for {} when {} % of at least {} calls within {} failed",
            write_duration(breaker.open),
            breaker.failed as f64 / 1e4,
            breaker.calls,
            write_duration(breaker.within)
        )
    }));
    if !matches!(vendor.kind, Kind::Sync) {
        let within = write_duration(vendor.answer_within);
        lines.push(match (vendor.at_most_once, vendor.retry.unanswered) {
            (true, _) => format!("an accepted job that is not answered within {within} fails: it is ordered once"),
            (false, 0) => format!("an accepted job that is not answered within {within} fails"),
            (false, most) => {
                let most = if most == 1 { "once".to_owned() } else { format!("{most} times") };
                format!("an accepted job that is not answered within {within} is ordered again, {most} at most; each order is paid for")
            }
        });
    }
    if vendor.at_most_once {
        lines.push("a call that may have been done is not repeated".to_owned());
    }
    lines.extend(vendor.deadline.map(|deadline| format!("a job expires after {}", write_duration(deadline))));
    lines
}

fn limit_in_words(limit: &Limit) -> String {
    let Written { id, calls, per, shape, burst, guard, key, tz } = write_limit(limit);
    let per = tz.map_or_else(|| format!("in any {per}"), |zone| format!("per {per} in {zone}"));
    let burst = burst.map(|burst| format!(", burst {burst}")).unwrap_or_default();
    let whose = if key == "tenant" { ", each tenant separately" } else { "" };
    format!("{id}: {calls} calls {per}{whose} ({shape}{burst}, guard {guard})")
}

/// How often a job is tried, and over what time: `16 times over 33 to 67 minutes`.
pub(super) fn tries(retry: &Retry) -> String {
    let (least, most) = retry.lasts();
    if retry.attempts == 1 {
        return "once".to_owned();
    }
    let units = [("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000), ("seconds", 1000), ("ms", 1)];
    let in_unit = |time: Duration, unit: u128| time.as_millis() / unit;
    // The largest in which the two still differ by enough to say something.
    let fits = |(_, unit): &&(&str, u128)| in_unit(least, *unit) >= 2;
    let (name, unit) = units.iter().find(fits).unwrap_or(&units[4]);
    format!("{} times over {} to {} {name}", retry.attempts, in_unit(least, *unit), in_unit(most, *unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_job_is_tried_is_written_in_a_unit_that_fits() {
        let retry = |attempts, first, max| Retry {
            attempts,
            first: Duration::from_millis(first),
            max: Duration::from_millis(max),
            unanswered: 1,
        };
        assert_eq!(tries(&retry(16, 1000, 600_000)), "16 times over 33 to 67 minutes");
        assert_eq!(tries(&retry(1, 1000, 600_000)), "once");
        assert_eq!(tries(&retry(2, 1, 1)), "2 times over 0 to 1 ms");
        assert_eq!(tries(&retry(5, 200, 60_000)), "5 times over 1500 to 3000 ms");
        assert_eq!(tries(&retry(3, 86_400_000, 86_400_000)), "3 times over 24 to 48 hours");
    }
}
