//! `jobs watch`: follows one job until it ends, or all jobs until none is under way.
//!
//! Never changes anything, so Ctrl-C may end it at any time.

use std::{collections::HashSet, time::Duration};

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::Instant;

use super::{
    Failure, Output,
    client::{self, Answer, Call, Service, Talk},
    print::{self, shown},
    times::Times,
    vendors,
    why::{Block, JobState},
};
use crate::{job::Status, json};

/// Time between two requests for the vendors.
const EVERY: Duration = Duration::from_millis(500);
/// Time between two lines where there is no terminal for a progress bar.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The long poll of a job. Its end is seen at once; other changes within this time.
const LAP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The job to follow, by its request_id; without one, the jobs of all vendors that have not ended
    id: Option<String>,
    /// Only the jobs of this vendor
    #[arg(long, conflicts_with = "id")]
    vendor: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

pub(super) async fn run(args: &WatchArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    match &args.id {
        Some(id) => {
            tokio::select! {
                outcome = follow(&service, id, &args.talk) => outcome,
                _ = tokio::signal::ctrl_c() => Err(Failure::No(anyhow!("stopped; the job goes on"))),
            }
        }
        None => {
            let mut backlog = Backlog { talk: &args.talk, bar: bar(), began: Instant::now(), peak: 0, known: None };
            let outcome = tokio::select! {
                outcome = drain(&service, args.vendor.as_deref(), &mut backlog) => outcome,
                _ = tokio::signal::ctrl_c() => Err(Failure::No(anyhow!("stopped; the jobs go on"))),
            };
            backlog.bar.finish_and_clear();
            if let Some(known) = &backlog.known {
                print::answer(known.json(), args.talk.output, |_| Ok(summary(&under_way(known)?)))?;
            }
            outcome
        }
    }
}

/// Prints a job whenever its status, or what it waits for, has changed; at its end the result, or why there is none.
async fn follow(service: &Service, id: &str, talk: &Talk) -> Result<(), Failure> {
    let mut seen: Option<(Status, Option<String>)> = None;
    let mut lap = Duration::ZERO;
    loop {
        let answer = service.job(id, false, lap).await?;
        let job: JobState = answer.read()?;
        let stands = (job.status, job.blocked_on.clone());
        if seen.as_ref() != Some(&stands) {
            print::answer(answer.json(), talk.output, |_| Ok(change(&job, &talk.times())))?;
            seen = Some(stands);
        }
        if job.status.has_ended() {
            let members = json::members(answer.json()).unwrap_or_default();
            let result = members.iter().find(|(name, _)| name == "result").map(|(_, result)| print::pretty(result));
            match result.or_else(|| job.why(&talk.times())) {
                Some(end) if talk.output == Output::Table => print::line(&format!("\n{end}"))?,
                _ => {}
            }
            return job.verdict();
        }
        lap = LAP;
    }
}

fn change(job: &JobState, times: &Times) -> String {
    let mut line = format!("{}  {}", times.stamp(), print::state(job.status.as_str()));
    if let Some(blocked_on) = &job.blocked_on {
        line.push_str(&format!("  {}", shown(blocked_on)));
    }
    if let Some(eligible_at) = &job.eligible_at {
        line.push_str(&format!("  ({})", times.until(eligible_at)));
    }
    if let Some(position) = job.position {
        line.push_str(&format!("  number {position} in line"));
    }
    if let Some(position) = job.position_at_least {
        line.push_str(&format!("  number {position} in line or later"));
    }
    if let Some(eta) = &job.eta {
        line.push_str(&format!("  call expected {}", times.short(eta)));
    }
    line
}

/// The jobs that have not ended, as they were last seen.
struct Backlog<'a> {
    talk: &'a Talk,
    bar: ProgressBar,
    began: Instant,
    /// The most jobs that were seen at once.
    peak: u64,
    known: Option<Answer>,
}

#[derive(Deserialize)]
struct VendorState {
    name: String,
    kind: String,
    waiting: u64,
    open: u64,
    in_flight: Option<i64>,
    oldest_waiting_s: Option<f64>,
    blocked_on: Option<String>,
    since: Option<String>,
    until: Option<String>,
    drain_eta: Option<String>,
}

impl VendorState {
    /// Its jobs that have not ended. A polled job that waits counts both as waiting and as open.
    fn left(&self) -> u64 {
        let accepted = if self.kind == "polling" { self.open.saturating_sub(self.waiting) } else { self.open };
        let called = self.in_flight.and_then(|calls| u64::try_from(calls).ok()).unwrap_or_default();
        self.waiting + accepted + called
    }
}

/// Polls until no job is under way.
async fn drain(service: &Service, vendor: Option<&str>, backlog: &mut Backlog<'_>) -> Result<(), Failure> {
    let path = vendor.map_or_else(|| "/vendors".to_owned(), |name| format!("/vendors/{}", client::segment(name)));
    let (mut noted, mut line_at) = (HashSet::new(), Instant::now());
    loop {
        let answer = service.call(Call::get(&*path)).await?;
        let vendors = under_way(&answer)?;
        let is_over = vendors.iter().all(|vendor| vendor.left() == 0) && all_have_ended(service, vendor).await?;
        backlog.known = Some(answer);
        if is_over {
            return Ok(());
        }
        let progress = backlog.progress(&vendors);
        if backlog.bar.is_hidden() && backlog.talk.output == Output::Table && Instant::now() >= line_at {
            print::line(&format!("{}  {progress}", backlog.talk.times().stamp()))?;
            line_at = Instant::now() + LINE_EVERY;
        }
        for vendor in vendors.iter().filter(|vendor| vendor.left() > 0) {
            let Some(on) = vendor.blocked_on.as_deref().filter(|on| *on != "slowed_by_vendor") else { continue };
            if noted.insert((vendor.name.clone(), on.to_owned())) {
                let (since, until) = (vendor.since.as_deref(), vendor.until.as_deref());
                let note = Block { on, vendor: &vendor.name, job: None, since, until }.told(&backlog.talk.times());
                backlog.bar.suspend(|| eprintln!("{note}"));
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The counts of vendors leave out the jobs whose call is about to go, so the newest jobs are looked at too: one page, whatever is stored.
async fn all_have_ended(service: &Service, vendor: Option<&str>) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Page {
        jobs: Vec<IgnoredAny>,
    }
    // A job can go back from processing to pending, and on again.
    for status in [Status::Pending, Status::Processing, Status::Pending] {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", "1").append_pair("status", status.as_str());
        query.extend_pairs(vendor.map(|name| ("vendor", name)));
        let answer = service.call(Call::get(format!("/jobs?{}", query.finish()))).await?;
        if !answer.read::<Page>()?.jobs.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Backlog<'_> {
    /// Moves the bar and says how far it is.
    fn progress(&mut self, vendors: &[VendorState]) -> String {
        let left: u64 = vendors.iter().map(VendorState::left).sum();
        self.peak = self.peak.max(left);
        let done = self.peak - left;
        // A rate of the first moments would say nothing.
        let rate = match self.began.elapsed().as_secs_f64() {
            secs if secs >= 1.0 && done > 0 => format!("  {:.1}/s", done as f64 / secs),
            _ => String::new(),
        };
        let times = self.talk.times();
        // The expected time of the last call takes all waiting jobs for due.
        let due = vendors.iter().filter(|vendor| vendor.oldest_waiting_s.is_some());
        let eta = due.filter_map(|vendor| vendor.drain_eta.as_deref()).max();
        let eta = match eta {
            Some(eta) => format!("  the last call {}", times.soonest(eta)),
            None if vendors.iter().any(|vendor| vendor.waiting > 0) => "  none due yet".to_owned(),
            None => String::new(),
        };
        let rest = format!("{rate}{eta}  {}", if left == 0 { "the last jobs".to_owned() } else { summary(vendors) });
        self.bar.set_length(self.peak);
        self.bar.set_position(done);
        self.bar.set_message(rest.clone());
        format!("{done}/{}{rest}", self.peak)
    }
}

/// The vendors of an answer: of one vendor, or of all.
fn under_way(answer: &Answer) -> Result<Vec<VendorState>, Failure> {
    vendors::each(answer.json())?.into_iter().map(client::read).collect()
}

fn summary(vendors: &[VendorState]) -> String {
    let left: u64 = vendors.iter().map(VendorState::left).sum();
    let busy = vendors.iter().filter(|vendor| vendor.left() > 0);
    let parts: Vec<String> = busy.map(|vendor| format!("{} {}", shown(&vendor.name), vendor.left())).collect();
    if parts.is_empty() { "all jobs have ended".to_owned() } else { format!("{left} under way: {}", parts.join(", ")) }
}

/// On stderr, and hidden when that is no terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}{msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
