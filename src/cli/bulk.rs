//! `jobs cancel`, `replay` and `erase`: for one job by its id, or for all jobs that fit a filter.
//!
//! Never changes many jobs before somebody has said yes to their number.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use clap::{Args, builder::NonEmptyStringValueParser};
use hyper::StatusCode;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::{
    Failure, Output,
    client::{self, Call, JSON, Service, Talk},
    job,
    listing::{Filter, FilterArgs, Listing},
    print,
};
use crate::job::Status;

/// One request of the service goes through thousands of jobs.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(super) struct BulkArgs {
    /// The job's request_id; without it, the options say which jobs
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    #[arg(conflicts_with_all = ["statuses", "vendor", "tenant", "tag", "code", "created_after", "created_before"])]
    #[arg(conflicts_with_all = ["all", "dry_run", "yes"])]
    id: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// All jobs that this can be done to
    #[arg(long)]
    all: bool,
    /// Only says how many jobs there are
    #[arg(long)]
    dry_run: bool,
    /// Does not ask whether to go on
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    talk: Talk,
}

/// What is done to jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Cancel,
    Replay,
    Erase,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Change::Cancel => "cancel",
            Change::Replay => "replay",
            Change::Erase => "erase",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Change::Cancel => "cancelled",
            Change::Replay => "replayed",
            Change::Erase => "erased",
        }
    }
}

pub(super) async fn run(change: Change, args: &BulkArgs) -> Result<(), Failure> {
    match (&args.id, change) {
        (Some(id), Change::Erase) => {
            let call = Call::delete(format!("/jobs/{}", client::segment(id)));
            args.talk.ask(call, |_| Ok(print::shown(&format!("{id} is erased")))).await
        }
        (Some(id), _) => job::act(id, change.verb(), &args.talk).await,
        (None, _) => many(change, args).await,
    }
}

async fn many(change: Change, args: &BulkArgs) -> Result<(), Failure> {
    let filters = args.filter.each();
    if !args.all && filters.iter().any(Vec::is_empty) {
        return Err(Failure::Usage(anyhow!(
            "name a job by its id, or say which jobs: with --status, --vendor, --tenant, --tag, --code, --created-after or --created-before, or with --all"
        )));
    }
    let service = Service::at(&args.talk.target)?;
    let all = Jobs { service: &service, change, filters };
    let matched = all.walk(true, &ProgressBar::hidden()).await?;
    let mut done = 0;
    if !args.dry_run && matched > 0 {
        if !args.yes {
            ask(matched, change)?;
        }
        let bar = bar(matched);
        let outcome = all.walk(false, &bar).await;
        done = bar.position();
        bar.finish_and_clear();
        outcome.map_err(|failure| {
            failure.context(format!(
                "stopped after {done} of {matched} jobs were {}; the same command goes on",
                change.done()
            ))
        })?;
    }
    match args.talk.output {
        Output::Json => print::line(&json!({ "matched": matched, "done": done }).to_string()),
        Output::Table if matched == 0 => print::line(&format!("no job that can be {} fits", change.done())),
        Output::Table if args.dry_run => print::line(&format!("{matched} jobs would be {}", change.done())),
        Output::Table => print::line(&format!("{done} jobs are {}", change.done())),
    }
}

/// Asks on the terminal; where there is none, somebody has to say yes beforehand.
fn ask(matched: u64, change: Change) -> Result<(), Failure> {
    let would = format!("{matched} jobs will be {}", change.done());
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!("{would}; --yes says that this is meant, --dry-run only counts them")));
    }
    eprint!("{would}; go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    match (read, answer.trim().to_ascii_lowercase().as_str()) {
        (Ok(_), "y" | "yes") => Ok(()),
        _ => Err(Failure::No(anyhow!("nothing was changed"))),
    }
}

/// All jobs that fit, and what is to be done to them.
struct Jobs<'a> {
    service: &'a Service,
    change: Change,
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
struct Counts {
    matched: u64,
    done: u64,
    next_cursor: Option<String>,
}

impl Jobs<'_> {
    /// Goes once through all jobs and says how many fit; a dry run only counts them. The bar says how many are done.
    async fn walk(&self, dry_run: bool, bar: &ProgressBar) -> Result<u64, Failure> {
        if self.change == Change::Erase {
            return self.erase(dry_run, bar).await;
        }
        let mut matched = 0;
        for filter in &self.filters {
            let fields: serde_json::Map<_, _> =
                filter.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            let mut cursor = None;
            loop {
                let body = json!({ "filter": fields, "dry_run": dry_run, "cursor": cursor, "all": fields.is_empty() });
                let body = Some((JSON, body.to_string().into()));
                let call = Call { body, wait: PATIENCE, ..Call::post(format!("/jobs/{}", self.change.verb())) };
                let counts: Counts = self.service.call(call).await?.read()?;
                matched += counts.matched;
                bar.inc(counts.done);
                cursor = counts.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok(matched)
    }

    /// The service erases jobs one by one, and only those that have ended.
    async fn erase(&self, dry_run: bool, bar: &ProgressBar) -> Result<u64, Failure> {
        #[derive(Deserialize)]
        struct Row {
            status: Status,
        }
        let mut matched = 0;
        let mut jobs = Listing::new(self.service, self.filters.clone());
        while let Some((id, job)) = jobs.next().await? {
            if !client::read::<Row>(&job)?.status.has_ended() {
                continue;
            }
            matched += 1;
            if dry_run {
                continue;
            }
            let reply = self.service.exchange(Call::delete(format!("/jobs/{}", client::segment(&id)))).await?;
            match reply.status {
                status if status.is_success() => bar.inc(1),
                // Somebody else has replayed or erased it meanwhile.
                StatusCode::NOT_FOUND | StatusCode::CONFLICT => {}
                _ => return Err(Failure::No(self.service.refusal(&reply))),
            }
        }
        Ok(matched)
    }
}

/// On stderr, and hidden when that is no terminal.
fn bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
