//! `jobs submit --batch`: a file of jobs, one JSON object a line, of any length.
//!
//! Never has more than one request of the file in memory, and never stops at a job that is rejected.

use std::{
    io::{self, BufRead, BufReader, Read},
    time::Duration,
};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;

use super::{
    Failure, Output,
    client::{Call, NDJSON, Problem, Service},
    print,
};

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

/// How many jobs were accepted and rejected so far.
#[derive(Default)]
struct Tally {
    accepted: u64,
    rejected: u64,
}

#[derive(Deserialize)]
struct BatchAnswer {
    accepted: u64,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    error: Option<Problem>,
}

pub(super) async fn run(
    service: &Service,
    file: Box<dyn Read>,
    key: Option<&str>,
    output: Output,
) -> Result<(), Failure> {
    let mut lines = Lines { from: BufReader::new(file), number: 0 };
    let mut tally = Tally::default();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{spinner} {pos} jobs sent, {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
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
        outcome = send(service, chunk, chunk_key(key, n), &mut tally, &bar, output).await;
        if outcome.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    let Tally { accepted, rejected } = tally;
    if output == Output::Table {
        print::line(&format!("accepted {accepted}, rejected {rejected}"))?;
    }
    outcome?;
    if rejected == 0 {
        Ok(())
    } else {
        Err(Failure::No(anyhow!("{rejected} of {} jobs were rejected", accepted + rejected)))
    }
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
    output: Output,
) -> Result<(), Failure> {
    let Chunk { text, lines, .. } = chunk;
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
    let body = Some((NDJSON, text.into()));
    let call = Call { body, idempotency_key: key.as_deref(), wait: SLOW_LINE, ..Call::post("/jobs/batch") };
    let answer = service.call(call).await;
    let answer = answer.map_err(|failure| failure.context(format!("stopped at lines {first} to {last}")))?;
    if output == Output::Json {
        bar.suspend(|| print::line(&print::verbatim(answer.json())))?;
    }
    let BatchAnswer { accepted, items } = answer.read()?;
    tally.accepted += accepted;
    for (line, item) in lines.iter().zip(&items) {
        if let Some(problem) = &item.error {
            tally.reject(bar, *line, &problem.to_string());
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
struct Lines {
    from: BufReader<Box<dyn Read>>,
    /// The number of the line that was read last, from 1.
    number: u64,
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

impl Lines {
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
            chunk.text.push(b'\n');
            chunk.lines.push(self.number);
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        Lines { from: BufReader::new(Box::new(io::Cursor::new(text.as_bytes().to_vec()))), number: 0 }
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
