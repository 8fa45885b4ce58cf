//! `jobs submit --batch`: a file of jobs, one JSON object a line, of any length.
//!
//! Never has more than one request of the file in memory, and never stops at a job that is rejected.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, BufRead, BufReader, Read},
    time::Duration,
};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Failure, Output,
    client::{Call, NDJSON, Service},
    print,
    problem::Problem,
    why::JobState,
};
use crate::json;

/// Bytes of one job at most: the service accepts 2 MiB.
pub(super) const MAX_JOB: usize = 2 << 20;
/// Jobs in one request. The service accepts five times as many, but its answer must not be larger than what this command reads,
/// even if it lists many errors for each job.
const MAX_JOBS: usize = 2000;
/// Bytes in one request; the service accepts 64 MiB.
const MAX_BYTES: usize = 60 << 20;
/// Extra time for a large request over a slow line.
const SLOW_LINE: Duration = Duration::from_secs(120);
/// Rejected jobs that are printed one by one.
const MAX_NAMED: u64 = 20;

/// How a file is submitted.
pub(super) struct Batch<'a> {
    /// Fields of jobs that do not have them, with their JSON text.
    pub(super) defaults: Vec<(&'static str, String)>,
    pub(super) key: Option<&'a str>,
    /// How long to wait for the end of all jobs.
    pub(super) wait: Option<Duration>,
    pub(super) output: Output,
}

/// How many jobs were accepted and rejected so far.
#[derive(Default)]
struct Tally {
    accepted: u64,
    rejected: u64,
    /// Of the accepted jobs, if somebody waits for them.
    ids: Vec<Box<str>>,
}

#[derive(Deserialize)]
struct BatchAnswer {
    accepted: u64,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    request_id: Option<Box<str>>,
    error: Option<Problem>,
}

pub(super) async fn run(service: &Service, file: Box<dyn Read>, batch: Batch<'_>) -> Result<(), Failure> {
    let mut lines = Lines { from: BufReader::new(file), number: 0, defaults: &batch.defaults };
    let begin = lines.from.fill_buf().map_err(|error| Failure::Usage(error.into()))?;
    if begin.trim_ascii_start().starts_with(b"[") {
        return Err(Failure::Usage(anyhow!(
            "the file is a JSON array, and --batch takes one job on each line: `jq -c '.[]' FILE` makes lines of it"
        )));
    }
    let mut tally = Tally::default();
    let bar = bar(None, "{spinner} {pos} jobs sent, {rate}");
    let mut outcome = Ok(());
    for n in 1_u64.. {
        let chunk = match lines.chunk() {
            Ok(chunk) => chunk,
            Err(error) => {
                outcome = Err(Failure::Usage(
                    anyhow!(error).context(format!("the file cannot be read after line {}", lines.number)),
                ));
                break;
            }
        };
        for line in &chunk.too_long {
            tally.reject(&bar, *line, &format!("larger than the {MAX_JOB} bytes that a job can have; not sent"));
        }
        if chunk.lines.is_empty() && chunk.too_long.is_empty() {
            break;
        }
        outcome = send(service, chunk, chunk_key(batch.key, n), &mut tally, &bar, &batch).await;
        if outcome.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    let Tally { accepted, rejected, ids } = tally;
    if batch.output == Output::Table {
        // Not on stdout, where only ids go.
        eprintln!("accepted {accepted}, rejected {rejected}");
    }
    outcome?;
    let ended = match batch.wait {
        Some(wait) => wait_for(service, &ids, wait).await,
        None => Ok(()),
    };
    if rejected == 0 {
        ended
    } else {
        Err(Failure::No(anyhow!("{rejected} of {} jobs were rejected", accepted + rejected)))
    }
}

/// Waits until all jobs have ended, or the time is up, and counts how they stand then.
async fn wait_for(service: &Service, ids: &[Box<str>], wait: Duration) -> Result<(), Failure> {
    let until = Instant::now() + wait;
    let bar = bar(Some(ids.len() as u64), "{wide_bar} {pos}/{len} ended  {eta} left");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in ids {
        let left = until.saturating_duration_since(Instant::now());
        let job: JobState = service.job(id, false, left).await?.read()?;
        *counts.entry(job.status.as_str()).or_default() += 1;
        bar.inc(u64::from(job.status.has_ended()));
    }
    bar.finish_and_clear();
    let counts: Vec<String> = counts.iter().map(|(status, count)| format!("{status} {count}")).collect();
    let complete = format!("complete {}", ids.len());
    match &*counts.join(", ") {
        "" => Ok(()),
        all if all == complete => {
            eprintln!("{all}");
            Ok(())
        }
        mixed => Err(Failure::No(anyhow!("not all jobs are complete: {mixed}; `fetchgate jobs list` shows them"))),
    }
}

/// On stderr, and hidden when that is no terminal.
fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
        // Writing to the line cannot fail.
        let _ = write!(out, "{:.0}/s", state.per_sec());
    }))
}

/// Each request has its own key. The first one has the key as given, so a small file is the same batch as one sent with curl.
fn chunk_key(key: Option<&str>, n: u64) -> Option<String> {
    key.map(|key| if n == 1 { key.to_owned() } else { format!("{key}.{n}") })
}

async fn send(
    service: &Service,
    chunk: Chunk,
    key: Option<String>,
    tally: &mut Tally,
    bar: &ProgressBar,
    batch: &Batch<'_>,
) -> Result<(), Failure> {
    let Chunk { text, lines, .. } = chunk;
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
    let body = Some((NDJSON, text.into()));
    let call = Call { body, idempotency_key: key.as_deref(), wait: SLOW_LINE, ..Call::post("/jobs/batch") };
    let answer = service.call(call).await;
    let answer = answer.map_err(|failure| failure.context(format!("stopped at lines {first} to {last}")))?;
    let BatchAnswer { accepted, items } = answer.read()?;
    let ids = || items.iter().filter_map(|item| item.request_id.as_deref());
    let text = match batch.output {
        Output::Json => format!("{}\n", print::verbatim(answer.json())),
        Output::Table => ids().map(|id| print::shown(id) + "\n").collect(),
    };
    bar.suspend(|| print::part(&text))?;
    if batch.wait.is_some() {
        tally.ids.extend(ids().map(Box::from));
    }
    tally.accepted += accepted;
    for (line, item) in lines.iter().zip(&items) {
        if let Some(problem) = &item.error {
            tally.reject(bar, *line, &problem.of_fields());
        }
    }
    bar.inc(items.len() as u64);
    Ok(())
}

impl Tally {
    fn reject(&mut self, bar: &ProgressBar, line: u64, why: &str) {
        self.rejected += 1;
        match self.rejected {
            ..=MAX_NAMED => bar.suspend(|| eprintln!("line {line}: {why}")),
            n if n == MAX_NAMED + 1 => bar.suspend(|| eprintln!("more were rejected; -o json names them all")),
            _ => {}
        }
    }
}

/// The file, line by line.
struct Lines<'a> {
    from: BufReader<Box<dyn Read>>,
    /// The number of the line that was read last, from 1.
    number: u64,
    defaults: &'a [(&'static str, String)],
}

/// What goes into one request.
#[derive(Default)]
struct Chunk {
    text: Vec<u8>,
    /// The numbers of the lines in `text`.
    lines: Vec<u64>,
    /// The numbers of the lines that are too long for any request.
    too_long: Vec<u64>,
}

impl Lines<'_> {
    /// The next lines without blank ones; empty at the end of the file.
    fn chunk(&mut self) -> io::Result<Chunk> {
        let mut chunk = Chunk::default();
        while chunk.lines.len() + chunk.too_long.len() < MAX_JOBS && chunk.text.len() + MAX_JOB < MAX_BYTES {
            let start = chunk.text.len();
            let read = self.from.by_ref().take(MAX_JOB as u64 + 1).read_until(b'\n', &mut chunk.text)?;
            if read == 0 {
                break;
            }
            self.number += 1;
            if chunk.text.ends_with(b"\n") {
                chunk.text.pop();
            } else if read > MAX_JOB {
                self.from.skip_until(b'\n')?;
                chunk.text.truncate(start);
                chunk.too_long.push(self.number);
                continue;
            }
            if chunk.text[start..].trim_ascii().is_empty() {
                chunk.text.truncate(start);
                continue;
            }
            let missing = self.missing(&chunk.text[start..]);
            if chunk.text.len() - start + missing.len() > MAX_JOB {
                chunk.text.truncate(start);
                chunk.too_long.push(self.number);
                continue;
            }
            if let (false, Some(brace)) =
                (missing.is_empty(), chunk.text[start..].iter().position(|byte| *byte == b'{'))
            {
                let behind = start + brace + 1;
                drop(chunk.text.splice(behind..behind, missing.into_bytes()));
            }
            chunk.text.push(b'\n');
            chunk.lines.push(self.number);
        }
        Ok(chunk)
    }

    /// What a job's object has to begin with so that it has the defaults too; nothing for text that is no object, which the service rejects.
    fn missing(&self, line: &[u8]) -> String {
        if self.defaults.is_empty() {
            return String::new();
        }
        let Some(members) = json::check(line).ok().and_then(json::members) else { return String::new() };
        let is_missing = |name: &str| members.iter().all(|(member, _)| member != name);
        let fields = self.defaults.iter().filter(|(name, _)| is_missing(name));
        let mut text = fields.map(|(name, json)| format!(r#""{name}":{json},"#)).collect::<String>();
        if members.is_empty() {
            text.pop();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines<'static> {
        Lines { from: BufReader::new(Box::new(io::Cursor::new(text.as_bytes().to_vec()))), number: 0, defaults: &[] }
    }

    #[test]
    fn defaults_are_added_to_the_jobs_that_do_not_say_it_themselves() {
        let defaults = [("vendor", r#""v""#.to_owned()), ("tags", r#"["t"]"#.to_owned())];
        let file = "{\"payload\":1.0, \"vendor\":\"w\"}\n {}\nnot json\n[1]";
        let chunk = Lines { defaults: &defaults, ..lines(file) }.chunk().expect("readable");
        let expected = "{\"tags\":[\"t\"],\"payload\":1.0, \"vendor\":\"w\"}\n {\"vendor\":\"v\",\"tags\":[\"t\"]}\nnot json\n[1]\n";
        assert_eq!(String::from_utf8_lossy(&chunk.text), expected);
    }

    #[test]
    fn blank_lines_are_left_out_and_the_others_keep_their_numbers() {
        let chunk = lines("{}\n\n  \r\n[1]\n{\"a\":1}").chunk().expect("readable");
        assert_eq!(chunk.text, b"{}\n[1]\n{\"a\":1}\n");
        assert_eq!(chunk.lines, [1, 4, 5]);
    }

    #[test]
    fn a_line_that_no_request_can_carry_is_left_out_and_named() {
        let exactly = "x".repeat(MAX_JOB);
        let chunk = lines(&format!("1\n{exactly}\n{exactly}y\n{exactly}yyyy\n5\n")).chunk().expect("readable");
        assert_eq!(chunk.lines, [1, 2, 5]);
        assert_eq!(chunk.too_long, [3, 4]);
        assert!(chunk.text.ends_with(b"x\n5\n"));
    }

    #[test]
    fn a_long_file_becomes_requests_that_the_service_takes() {
        let mut many = lines(&"1\n".repeat(MAX_JOBS + 1));
        assert_eq!(many.chunk().expect("readable").lines.len(), MAX_JOBS);
        assert_eq!(many.chunk().expect("readable").lines, [MAX_JOBS as u64 + 1]);
        assert!(many.chunk().expect("readable").lines.is_empty());
        let mut large = lines(&format!("{}\n", "x".repeat(MAX_JOB - 1)).repeat(40));
        let chunk = large.chunk().expect("readable");
        assert!(chunk.text.len() <= MAX_BYTES && chunk.lines.len() > 20, "{}", chunk.lines.len());
    }
}
