//! `jobs watch`: follows one job until it ends, or the backlog until no job waits.
//!
//! Never changes anything, so Ctrl-C may end it at any time.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;

use super::{
    Failure, Output,
    client::{self, Answer, Call, JobState, Service, Talk},
    print, vendors,
};
use crate::{clock::Clock, job::Status};

/// Time between two requests for the vendors.
const EVERY: Duration = Duration::from_millis(500);
/// The long poll of a job. Its end is seen at once; other changes within this time.
const LAP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The job to follow, by its request_id; without one, the waiting jobs of all vendors
    id: Option<String>,
    /// Only the waiting jobs of this vendor
    #[arg(long, conflicts_with = "id")]
    vendor: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

pub(super) async fn run(args: &WatchArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    let output = args.talk.output;
    match &args.id {
        Some(id) => {
            tokio::select! {
                outcome = follow(&service, id, output) => outcome,
                _ = tokio::signal::ctrl_c() => Err(Failure::No(anyhow!("stopped; the job goes on"))),
            }
        }
        None => {
            let mut backlog = Backlog { bar: bar(), peak: 0, known: None };
            let outcome = tokio::select! {
                outcome = drain(&service, args.vendor.as_deref(), &mut backlog) => outcome,
                _ = tokio::signal::ctrl_c() => Err(Failure::No(anyhow!("stopped; the jobs go on"))),
            };
            backlog.bar.finish_and_clear();
            if let Some(known) = &backlog.known {
                print::answer(known.json(), output, |_| Ok(summary(&waiting(known)?)))?;
            }
            outcome
        }
    }
}

/// Prints a job whenever its status, or what it waits for, has changed.
async fn follow(service: &Service, id: &str, output: Output) -> Result<(), Failure> {
    let clock = Clock::system();
    let mut seen: Option<(Status, Option<String>)> = None;
    let mut lap = Duration::ZERO;
    loop {
        let answer = service.job(id, false, lap).await?;
        let job: JobState = answer.read()?;
        let stands = (job.status, job.blocked_on.clone());
        if seen.as_ref() != Some(&stands) {
            print::answer(answer.json(), output, |_| Ok(change(&clock.now().rfc3339(), &job)))?;
            seen = Some(stands);
        }
        if job.status.has_ended() {
            return job.verdict();
        }
        lap = LAP;
    }
}

fn change(now: &str, job: &JobState) -> String {
    let mut line = format!("{now}  {}", job.status.as_str());
    if let Some(blocked_on) = &job.blocked_on {
        line.push_str(&format!("  {}", print::shown(blocked_on)));
    }
    if let Some(eligible_at) = &job.eligible_at {
        line.push_str(&format!("  (until {})", print::shown(eligible_at)));
    }
    if let Some(position) = job.position {
        line.push_str(&format!("  number {position} in line"));
    }
    if let Some(position) = job.position_at_least {
        line.push_str(&format!("  number {position} in line or later"));
    }
    if let Some(eta) = &job.eta {
        line.push_str(&format!("  expected at {}", print::shown(eta)));
    }
    line
}

/// The backlog as it was last seen.
struct Backlog {
    bar: ProgressBar,
    /// The most jobs that were seen waiting.
    peak: u64,
    known: Option<Answer>,
}

#[derive(Deserialize)]
struct VendorState {
    name: String,
    waiting: u64,
    paused: bool,
}

/// Polls until no job waits.
async fn drain(service: &Service, vendor: Option<&str>, backlog: &mut Backlog) -> Result<(), Failure> {
    let path = vendor.map_or_else(|| "/vendors".to_owned(), |name| format!("/vendors/{}", client::segment(name)));
    let mut noted = false;
    loop {
        let answer = service.call(Call::get(&*path)).await?;
        let vendors = waiting(&answer)?;
        backlog.known = Some(answer);
        let left: u64 = vendors.iter().map(|vendor| vendor.waiting).sum();
        if left == 0 {
            return Ok(());
        }
        backlog.peak = backlog.peak.max(left);
        backlog.bar.set_length(backlog.peak);
        backlog.bar.set_position(backlog.peak - left);
        backlog.bar.set_message(summary(&vendors));
        let paused = vendors.iter().find(|vendor| vendor.paused && vendor.waiting > 0);
        if let (Some(paused), false) = (paused, noted) {
            let name = print::shown(&paused.name);
            let note =
                format!("{name} is paused; its jobs wait until the pause ends, or `fetchgate vendors resume {name}`");
            backlog.bar.suspend(|| eprintln!("{note}"));
            noted = true;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The vendors of an answer: of one vendor, or of all.
fn waiting(answer: &Answer) -> Result<Vec<VendorState>, Failure> {
    vendors::each(answer.json())?.into_iter().map(client::read).collect()
}

fn summary(vendors: &[VendorState]) -> String {
    let left: u64 = vendors.iter().map(|vendor| vendor.waiting).sum();
    let busy = vendors.iter().filter(|vendor| vendor.waiting > 0);
    let parts: Vec<String> = busy.map(|vendor| format!("{} {}", print::shown(&vendor.name), vendor.waiting)).collect();
    if parts.is_empty() { "no job is waiting".to_owned() } else { format!("{left} waiting: {}", parts.join(", ")) }
}

/// On stderr, and hidden when that is no terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {per_sec}, {eta} left  {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
