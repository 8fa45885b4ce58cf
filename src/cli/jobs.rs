//! `jobs`: submit, look, list, watch, cancel, replay and erase, at a running service.

use std::time::Duration;

use clap::{
    Args, Subcommand,
    builder::{NonEmptyStringValueParser, PossibleValuesParser},
};
use serde::Deserialize;

use super::{
    Failure, Output,
    client::{self, Call, JobError, JobState, Service, Talk},
    print,
    submit::{self, SubmitArgs},
    watch::{self, WatchArgs},
};
use crate::job::Status;

/// Jobs in one page of the service at most.
const MAX_PAGE: usize = 500;
/// Rows that are printed as one table: a bound on the memory for a long list.
const ROWS: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// Submits a job, or a file of jobs, and prints its id
    Submit(Box<SubmitArgs>),
    /// Shows a job, and its result once it is complete
    Get(GetArgs),
    /// Lists jobs, newest first
    List(ListArgs),
    /// Follows a job until it ends, or what is waiting until nothing is
    Watch(WatchArgs),
    /// Ends a job that has not ended yet
    Cancel(OneJob),
    /// Runs a failed, expired or cancelled job again, under the same id
    Replay(OneJob),
    /// Deletes a job that has ended, with its payload, its result and its attempts
    Erase(OneJob),
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    job: OneJob,
    /// Shows also what the job was submitted with
    #[arg(long)]
    payload: bool,
    /// Waits up to this long for the job's end; the exit code is then 0 only if it is complete
    #[arg(long, value_name = "DURATION", value_parser = client::wait)]
    wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct OneJob {
    /// The job's request_id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only jobs with this status
    #[arg(long, value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)))]
    status: Option<String>,
    /// Only jobs for this vendor
    #[arg(long)]
    vendor: Option<String>,
    /// Only jobs of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs that have this tag
    #[arg(long)]
    tag: Option<String>,
    /// How many jobs at most
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All jobs that fit
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    talk: Talk,
}

pub(super) async fn run(command: JobsCommand) -> Result<(), Failure> {
    match command {
        JobsCommand::Submit(args) => submit::run(&args).await,
        JobsCommand::Get(args) => get(&args).await,
        JobsCommand::List(args) => list(&args).await,
        JobsCommand::Watch(args) => watch::run(&args).await,
        JobsCommand::Cancel(job) => act(&job, "cancel").await,
        JobsCommand::Replay(job) => act(&job, "replay").await,
        JobsCommand::Erase(job) => erase(&job).await,
    }
}

async fn get(args: &GetArgs) -> Result<(), Failure> {
    let OneJob { id, talk } = &args.job;
    let service = Service::at(&talk.target)?;
    let answer = service.job(id, args.payload, args.wait.unwrap_or_default()).await?;
    print::job(answer.json(), talk.output)?;
    if args.wait.is_some() { answer.read::<JobState>()?.verdict() } else { Ok(()) }
}

pub(super) async fn act(job: &OneJob, what: &str) -> Result<(), Failure> {
    let service = Service::at(&job.talk.target)?;
    let answer = service.call(Call::post(format!("/jobs/{}/{what}", client::segment(&job.id)))).await?;
    print::job(answer.json(), job.talk.output)
}

async fn erase(job: &OneJob) -> Result<(), Failure> {
    let call = Call::delete(format!("/jobs/{}", client::segment(&job.id)));
    job.talk.ask(call, |_| Ok(format!("{} is erased", job.id))).await
}

#[derive(Deserialize)]
struct Page {
    jobs: Vec<JobRow>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct JobRow {
    request_id: String,
    status: Status,
    vendor: String,
    priority: String,
    tenant: String,
    attempts: u64,
    created_at: String,
    error: Option<JobError>,
    tags: Vec<String>,
}

async fn list(args: &ListArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    let mut left = if args.all { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
    let mut cursor = None;
    let mut rows = Vec::new();
    let mut found = 0;
    while left > 0 {
        let answer = service.call(Call::get(page_path(args, left.min(MAX_PAGE), cursor.as_deref()))).await?;
        let page: Page = answer.read()?;
        found += page.jobs.len();
        left = left.saturating_sub(page.jobs.len());
        match args.talk.output {
            Output::Json => print::line(&print::verbatim(answer.json()))?,
            Output::Table => rows.extend(page.jobs),
        }
        if rows.len() >= ROWS {
            print_rows(std::mem::take(&mut rows))?;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    if !rows.is_empty() {
        print_rows(rows)?;
    }
    if args.talk.output == Output::Table {
        // Not on stdout, where only jobs go.
        if found == 0 {
            eprintln!("no job fits");
        } else if cursor.is_some() {
            eprintln!("there may be more: --limit N or --all shows them");
        }
    }
    Ok(())
}

fn page_path(args: &ListArgs, limit: usize, cursor: Option<&str>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &limit.to_string());
    let filters = [("status", &args.status), ("vendor", &args.vendor), ("tenant", &args.tenant), ("tag", &args.tag)];
    for (name, value) in filters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    if let Some(cursor) = cursor {
        query.append_pair("cursor", cursor);
    }
    format!("/jobs?{}", query.finish())
}

fn print_rows(rows: Vec<JobRow>) -> Result<(), Failure> {
    let head = ["ID", "STATUS", "VENDOR", "PRIORITY", "TENANT", "ATTEMPTS", "CREATED", "ERROR", "TAGS"];
    let rows = rows.into_iter().map(|row| {
        let error = row.error.map_or_else(|| "-".to_owned(), |error| error.code);
        let tags = if row.tags.is_empty() { "-".to_owned() } else { row.tags.join(", ") };
        let status = row.status.as_str().to_owned();
        let attempts = row.attempts.to_string();
        [row.request_id, status, row.vendor, row.priority, row.tenant, attempts, row.created_at, error, tags]
    });
    print::line(&print::table(head, rows))
}
