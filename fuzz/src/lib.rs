//! Whatever reads bytes from outside, as functions that any fuzzer can call: each takes any bytes and panics if a promise is broken.
//!
//! `corpus/TARGET/` has inputs for each: `make test` plays them, `make fuzz` changes them, and whatever breaks a promise is added to them.
//! Never calls a vendor and never reads a file that an input names.

use std::path::PathBuf;

mod config;
mod http;
mod vendors;
mod words;

pub use self::http::clean_up;

/// One thing that reads bytes from outside.
pub struct Target {
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

pub const TARGETS: [Target; 21] = [
    target("api", http::api),
    target("batch", http::batch),
    target("callbacks", vendors::callback),
    target("challenges", vendors::challenge),
    target("clean", words::clean),
    target("config", config::config),
    target("cursors", http::cursor),
    target("durations", words::duration),
    target("environment", config::environment),
    target("ids", words::id),
    target("json", words::json),
    target("keys", http::key),
    target("limits", http::limits),
    target("ndjson", http::ndjson),
    target("payloads", vendors::payload),
    target("pointers", words::pointer),
    target("replies", vendors::reply),
    target("submit", http::submit),
    target("templates", words::template),
    target("times", words::time),
    target("tokens", words::token),
];

/// The folder with the inputs of a target.
pub fn corpus(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", target].iter().collect()
}

/// The first line of an input, and what follows it.
fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// An input in the form of HTTP: a first line, headers up to an empty line, and the rest. What cannot be a header is left out.
fn message(data: &[u8]) -> (&[u8], hyper::HeaderMap, &[u8]) {
    let (first, mut rest) = first_line(data);
    let mut headers = hyper::HeaderMap::new();
    loop {
        let (line, after) = first_line(rest);
        rest = after;
        if line.is_empty() {
            return (first, headers, rest);
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = hyper::header::HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        // As many as a reply can have.
        if let (Ok(name), Ok(value), true) = (name.trim_ascii().try_into(), value, headers.len() < 100) {
            let name: hyper::header::HeaderName = name;
            headers.append(name, value);
        }
    }
}
