//! `check`: what the config means, in words; and with `--vendor` one request as it would go out.
//!
//! Never shows a secret: of vendors it prints what `config::Vendor::shown` gives. Never calls a vendor (see `connect` for its port).

use std::{iter, path::Path};

use anyhow::anyhow;
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;

use super::{ConfigArgs, Failure, batch::MAX_JOB, connect, print, problem, serve, submit};
use crate::{
    clock::Clock,
    config::{Address, Config, Kind, Vendor},
    job::{Fetch, Job, JobIds, Lane, NewJob, Priority, Stage},
    json,
    shown::{self, MASK},
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
    let masked = Config { vendors: vec![found.shown()], ..config.clone() };
    let registry = Registry::new(&masked, b"an example");
    let vendor = registry.get(name).ok_or_else(|| anyhow!("the vendor is not there"))?;
    let call = example(name, Bytes::copy_from_slice(payload.get().as_bytes()));
    vendor.check(call.id, &call.lane.tenant, payload).map_err(|why| {
        usage(format!("the payload does not fit this vendor: {}", problem::in_job(&why.pointer, &why.detail)))
    })?;
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
    NewJob::new(JobIds::new().next(now), lane, payload, now).into()
}

/// A request as text: its first line with the whole URL, its headers, its body. Of the headers in the config only some are shown, and of
/// the vendor's credentials none.
async fn written(vendor: &Vendor, outgoing: Outgoing) -> String {
    let (head, body) = outgoing.request.into_parts();
    let is_ours = outgoing.credentials == Credentials::Sent;
    let parameter = shown::added_parameter(vendor).filter(|_| is_ours).map(|parameter| {
        let separator = if head.uri.query().is_some() { '&' } else { '?' };
        format!("{separator}{parameter}")
    });
    let (url, added) = (format!("{}{}", outgoing.origin, head.uri), shown::added_headers(vendor));
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
    for lines in shown::vendors_in_words(config).values() {
        text.push_str("\n\n");
        text.push_str(&lines.join("\n  "));
    }
    for warning in &config.warnings {
        text.push_str("\n\nwarning: ");
        text.push_str(warning);
    }
    text
}
