//! `fuzz TARGET|all RUNS [SEED]`: changes the inputs of a target at random, so many times, on any compiler. The same seed makes the same
//! inputs. `make fuzz` uses LLVM's fuzzer instead, which sees what an input reaches.
//!
//! An input that breaks a promise is written to `fuzz/found/`; put it into the corpus with its mend.

use std::{
    fs,
    panic::catch_unwind,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use fetchgate_fuzz::{TARGETS, Target, clean_up, corpus};

/// A longer input is cut.
const MAX_INPUT: usize = 4096;
/// Who takes longer for one input is reported.
const SLOW: Duration = Duration::from_secs(2);

/// Words that readers look for, and values at the edge of what they take.
const WORDS: &[&str] = &[
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\n",
    "\r\n",
    "\n\n",
    "null",
    "true",
    "-0",
    "1e999",
    "-1",
    "0.1",
    "18446744073709551616",
    "9223372036854775807",
    "4294967295",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "ü",
    "🐻",
    "\u{7f}",
    "\0",
    "%00",
    "%2F",
    "%",
    "..",
    "/",
    "~1",
    "~0",
    "~",
    "&",
    "=",
    "+",
    ";",
    "#",
    "?",
    "{{",
    "}}",
    "{{ payload }}",
    "{{ payload.a | json }}",
    "{{ payload.a | path }}",
    "{{ ticket | query }}",
    "{{ tenant | header }}",
    "${SECRET}",
    "${",
    "payload",
    "vendor",
    "deadline",
    "not_before",
    "tags",
    "priority",
    "tenant",
    "high",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z",
    "+00:00",
    "1d",
    "ms",
    "0s",
    "Retry-After: ",
    "Date: ",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "content-type: ",
    "application/json",
    "application/x-www-form-urlencoded",
    "text/plain; charset=utf-16",
    "content-encoding: gzip",
    "\u{1f}\u{8b}\u{8}",
    "ratelimit: ",
    "\"default\";r=0;t=30",
    "x-ratelimit-remaining: 0",
    "x-ratelimit-reset: ",
    "location: ",
    "https://",
    "http://[::1]:80/",
    "authorization: Bearer ",
    "idempotency-key: ",
    "prefer: wait=0",
    "t=1,v1=",
    "sha256=",
    "v0=",
    "limits = [",
    "[vendors.a]",
    "kind = \"sync\"",
    "FETCHGATE__",
    "__",
    "calls",
    "per",
    "50/s",
    "window",
    "calendar",
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(name), Some(runs)) = (args.first(), args.get(1).and_then(|runs| runs.parse::<u64>().ok())) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: fuzz TARGET|all RUNS [SEED]; the targets are {}", names.join(", "));
        return ExitCode::from(2);
    };
    let seed = args.get(2).and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let targets: Vec<&Target> = TARGETS.iter().filter(|target| name == "all" || target.name == name).collect();
    if targets.is_empty() {
        eprintln!("there is no target {name}");
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|_| {})); // What breaks is reported below, once.
    let broken = targets.into_iter().filter(|target| !fuzz(target, runs, seed)).count();
    clean_up();
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether all promises were kept.
fn fuzz(target: &Target, runs: u64, seed: u64) -> bool {
    let mut random = fastrand::Rng::with_seed(seed);
    let inputs = inputs(target.name);
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for run in 0..runs {
        let input = changed(&mut random, &inputs);
        let at = Instant::now();
        let outcome = catch_unwind(|| (target.run)(&input));
        slowest = slowest.max(at.elapsed());
        if outcome.is_err() || at.elapsed() > SLOW {
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("found").join(format!("{}-{seed}-{run}", target.name));
            let written = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&file, &input));
            let what = outcome.err().map_or_else(|| "took too long".to_owned(), |panic| words(&*panic));
            println!(
                "{:<12} broken in run {run}, seed {seed} ({}): {what}",
                target.name,
                written.map_or("not written".to_owned(), |()| file.display().to_string())
            );
            return false;
        }
    }
    let took = started.elapsed();
    println!(
        "{:<12} {runs:>9} runs in {:>5.0} s, slowest {:>4} ms, seed {seed}",
        target.name,
        took.as_secs_f64(),
        slowest.as_millis()
    );
    true
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").chars().take(2000).collect()
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let folder = corpus(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort(); // The same seed makes the same inputs.
    paths.into_iter().map(|path| fs::read(path).expect("a readable input")).collect()
}

/// An input of the corpus, changed in one to eight places.
fn changed(random: &mut fastrand::Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut data = random.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..1 << random.u8(0..4) {
        change(random, &mut data, inputs);
    }
    data.truncate(MAX_INPUT);
    data
}

fn change(random: &mut fastrand::Rng, data: &mut Vec<u8>, inputs: &[Vec<u8>]) {
    let at = random.usize(..=data.len());
    let to = random.usize(at..=data.len().min(at + 64));
    match random.u8(0..8) {
        0 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
        1 if at < data.len() => data[at] = random.u8(..),
        2 => drop(data.drain(at..to)),
        3 => drop(data.splice(at..at, data[at..to].to_vec())),
        4 => {
            let other = random.choice(inputs).map(Vec::as_slice).unwrap_or_default();
            let from = random.usize(..=other.len());
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
        5 => drop(data.splice(at..to, random.choice(WORDS).unwrap_or(&"").bytes())),
        6 => {
            let many = random.choice([b'[', b'9', b'a', b' ', b'\n', 0xff]).unwrap_or(b'a');
            drop(data.splice(at..at, std::iter::repeat_n(many, random.usize(1..300))));
        }
        _ => drop(data.splice(at..at, random.choice(WORDS).unwrap_or(&"").bytes())),
    }
}
