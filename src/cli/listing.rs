//! `jobs list`, and the filters of all commands for many jobs.
//!
//! Never has more than a page of each status in memory, and never asks for jobs that are not shown.

use std::collections::VecDeque;

use clap::{Args, builder::PossibleValuesParser};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure, Output,
    client::{self, Call, Service, Talk},
    print,
    times::{self, Times},
};
use crate::{
    clock::Time,
    job::{FailureCode, Status},
};

/// Jobs in one page of the service at most.
const MAX_PAGE: usize = 500;
/// Rows that are printed as one table: a bound on the memory for a long list.
const ROWS: usize = 500;

/// Which jobs.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Only jobs with this status; can be given more than once
    #[arg(long = "status", value_name = "STATUS", value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)))]
    pub(super) statuses: Vec<String>,
    /// Only jobs for this vendor
    #[arg(long)]
    pub(super) vendor: Option<String>,
    /// Only jobs of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only jobs that have this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only jobs that ended with this error
    #[arg(long, value_parser = PossibleValuesParser::new(FailureCode::ALL.map(FailureCode::as_str)))]
    code: Option<String>,
    /// Only jobs accepted at this time or later: a time, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN", value_parser = times::moment)]
    created_after: Option<Time>,
    /// Only jobs accepted before this: a time, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN", value_parser = times::moment)]
    created_before: Option<Time>,
}

/// A filter as the service takes it, with one status at most: names and values.
pub(super) type Filter = Vec<(&'static str, String)>;

impl FilterArgs {
    /// One filter of the service for each status, or one for all.
    pub(super) fn each(&self) -> Vec<Filter> {
        let names = [("vendor", &self.vendor), ("tenant", &self.tenant), ("tag", &self.tag), ("code", &self.code)];
        let names = names.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        let times = [("created_after", self.created_after), ("created_before", self.created_before)];
        let times = times.into_iter().filter_map(|(name, at)| Some((name, at?.rfc3339())));
        let rest: Filter = names.chain(times).collect();
        if self.statuses.is_empty() {
            return vec![rest];
        }
        let with = |status: &String| std::iter::once(("status", status.clone())).chain(rest.iter().cloned()).collect();
        self.statuses.iter().map(with).collect()
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many jobs at most
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// All jobs that fit
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    talk: Talk,
}

/// The jobs that fit one of several filters, newest first, page by page.
pub(super) struct Listing<'a> {
    service: &'a Service,
    parts: Vec<Part>,
    /// Jobs of the next page at most.
    page: usize,
}

/// The jobs of one filter that are known and were not given out.
struct Part {
    filter: Filter,
    jobs: VecDeque<(String, Box<RawValue>)>,
    /// Where the next page begins.
    cursor: Option<String>,
    /// There is no next page.
    is_last: bool,
}

#[derive(Deserialize)]
struct Page {
    jobs: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Id {
    request_id: String,
}

impl<'a> Listing<'a> {
    pub(super) fn new(service: &'a Service, filters: Vec<Filter>) -> Listing<'a> {
        let part = |filter| Part { filter, jobs: VecDeque::new(), cursor: None, is_last: false };
        Listing { service, parts: filters.into_iter().map(part).collect(), page: MAX_PAGE }
    }

    /// The next job with its id; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(String, Box<RawValue>)>, Failure> {
        for part in &mut self.parts {
            while part.jobs.is_empty() && !part.is_last {
                part.fetch(self.service, self.page).await?;
            }
        }
        // Ids sort by time.
        let with_newest = self.parts.iter_mut().max_by(|a, b| a.next_id().cmp(&b.next_id()));
        Ok(with_newest.and_then(|part| part.jobs.pop_front()))
    }

    /// The end of the document that the service would have answered: where the next page begins, if that can be said.
    fn end(&self) -> String {
        match &*self.parts {
            [Part { cursor: Some(cursor), .. }] => format!(r#","next_cursor":"{cursor}"}}"#),
            [_] => r#","next_cursor":null}"#.to_owned(),
            _ => "}".to_owned(),
        }
    }
}

impl Part {
    fn next_id(&self) -> Option<&str> {
        self.jobs.front().map(|(id, _)| &**id)
    }

    async fn fetch(&mut self, service: &Service, most: usize) -> Result<(), Failure> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &most.to_string()).extend_pairs(&self.filter);
        if let Some(cursor) = &self.cursor {
            query.append_pair("cursor", cursor);
        }
        let answer = service.call(Call::get(format!("/jobs?{}", query.finish()))).await?;
        let Page { jobs, next_cursor } = answer.read()?;
        for job in jobs {
            self.jobs.push_back((client::read::<Id>(&job)?.request_id, job));
        }
        self.is_last = next_cursor.is_none();
        self.cursor = next_cursor;
        Ok(())
    }
}

pub(super) async fn run(args: &ListArgs) -> Result<(), Failure> {
    let service = Service::at(&args.talk.target)?;
    let most = if args.all { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
    let mut listing = Listing::new(&service, args.filter.each());
    let (mut rows, mut found, times) = (Vec::new(), 0, args.talk.times());
    let is_table = args.talk.output == Output::Table;
    if !is_table {
        print::part(r#"{"jobs":["#)?;
    }
    while found < most {
        listing.page = (most - found).min(MAX_PAGE);
        let Some((_, job)) = listing.next().await? else { break };
        if is_table {
            rows.push(client::read::<JobRow>(&job)?);
        } else {
            print::part(&format!("{}{}", if found > 0 { "," } else { "" }, print::verbatim(&job)))?;
        }
        found += 1;
        if rows.len() >= ROWS {
            print_rows(std::mem::take(&mut rows), &times)?;
        }
    }
    if !is_table {
        return print::line(&format!("]{}", listing.end()));
    }
    if !rows.is_empty() {
        print_rows(rows, &times)?;
    }
    // Not on stdout, where only jobs go.
    if found == 0 {
        eprintln!("no job fits");
    } else if found == most {
        listing.page = 1;
        if listing.next().await?.is_some() {
            eprintln!("showing the newest {found}, and there are more: --limit N or --all shows them");
        }
    }
    Ok(())
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
    error: Option<ErrorCode>,
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct ErrorCode {
    code: String,
}

fn print_rows(rows: Vec<JobRow>, times: &Times) -> Result<(), Failure> {
    let head = ["ID", "STATUS", "VENDOR", "PRIORITY", "TENANT", "ATTEMPTS", "CREATED", "ERROR", "TAGS"];
    let rows = rows.into_iter().map(|row| {
        let none = || "none".to_owned();
        let error = row.error.map_or_else(none, |error| error.code);
        let tags = if row.tags.is_empty() { none() } else { row.tags.join(", ") };
        let (status, attempts) = (row.status.as_str().to_owned(), row.attempts.to_string());
        let created = times.short(&row.created_at);
        [row.request_id, status, row.vendor, row.priority, row.tenant, attempts, created, error, tags]
    });
    print::line(&print::table(head, &["TAGS", "PRIORITY", "TENANT", "ATTEMPTS", "ERROR", "CREATED"], rows))
}
