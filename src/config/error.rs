//! Errors of a configuration, for the person who has to fix it: the key, its place, what is wrong, what to do.
//!
//! Never has a secret in it: values are shown as they were written, before `${NAME}` is filled in, and not at all where a secret belongs.

use std::fmt;

/// Everything that is wrong with a configuration, as far as it could be read; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `vendors.bureau.limits[1].shape`; empty when it is about the file itself.
    pub key: String,
    pub place: Place,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What to do about it, without a full stop.
    pub mend: String,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, counted from line 1.
    Line { file: String, line: usize },
    /// In an environment variable, by its name.
    Variable(String),
    /// In the file as a whole, or not in a file.
    Whole(String),
}

/// Problems shown at once; the rest is counted.
const SHOWN: usize = 20;

impl ConfigError {
    /// In the order of the lines.
    pub(super) fn new(mut problems: Vec<Problem>) -> ConfigError {
        problems.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
        problems.dedup();
        ConfigError { problems }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> ConfigError {
        ConfigError { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(SHOWN).enumerate() {
            let line_end = if i == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        let stop = if self.mend.ends_with('?') { "" } else { "." };
        write!(f, "{}. {}{stop}", self.what, self.mend)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{file} line {line}"),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Whole(name) => f.write_str(name),
        }
    }
}

/// An example of a value for the key at this path.
pub(super) fn form(path: &str) -> &'static str {
    // Keys inside a breaker have names that mean something else elsewhere: vendors.NAME.breaker.open.
    if path.split('.').nth(2) == Some("breaker") {
        return r#"{ failed = 0.9, calls = 5, within = "30s", open = "10s" }, or false to turn it off"#;
    }
    if path.split('.').nth(2) == Some("auth") {
        return r#"{ kind = "bearer", token = "${file:/run/secrets/token}" }, say"#;
    }
    if path.contains(".hosts[") && path.ends_with(".auth") {
        return "true or false";
    }
    if path.split('.').skip(2).eq(["body"]) {
        return r#"JSON such as '{"who": {{ payload.who | json }}}', { form = { To = "{{ payload.to }}" } }, or { text = "<q/>", type = "text/xml" }"#;
    }
    let name = path.rsplit('.').next().unwrap_or(path);
    match name.split('[').next().unwrap_or(name) {
        "listen" => r#""127.0.0.1:8000""#,
        "public_url" => r#""http://127.0.0.1:8000""#,
        "url" => r#""https://vendor.example/path""#,
        "kind" => r#""sync", "webhook" or "polling""#,
        "limits" => r#"limits such as ["50/s", { calls = 2000, per = "1m" }], or [] if there are none"#,
        "timeout" | "grace" | "deadline" | "answer_within" | "every" | "first" | "max" | "guard" | "wait"
        | "missing" | "tolerance" => r#"a duration such as "10s""#,
        "retention" => r#"a duration such as "7d""#,
        "per" => r#"a duration such as "1m", or "day" or "month""#,
        "retry" => r#"{ attempts = 16, first = "1s", max = "10m", unanswered = 1 }"#,
        "webhook" => r#"{ verify = "none" }, say"#,
        "verify" => {
            r#""standard-webhooks", "none" or a table such as { hmac = "sha256", header = "X-Signature", secret = "${SECRET}" }"#
        }
        "secret" | "value" | "password" | "hub" => r#""${SECRET}", or several of them in an array"#,
        "basic" => r#"{ user = "u", password = "${PASSWORD}" }"#,
        "challenge" => r#""slack", "graph" or { hub = "${VERIFY_TOKEN}" }"#,
        "unknown" => r#""accept""#,
        "hmac" => r#""sha256""#,
        "encoding" => r#""hex""#,
        "signs" => r#""{{ header.x-timestamp }}.{{ body }}""#,
        "polling" => r#"{ ticket = "/id", url = "...", every = "2s", done = { at = "/state", is = ["done"] } }"#,
        "done" | "failed" => r#"{ at = "/status", is = ["..."] }"#,
        "is" => r#"an array of texts such as ["done"]"#,
        "replies" => r#"rules such as [{ status = [404], means = "done" }]"#,
        "status" => r#"an array of numbers and classes such as [403, "5xx"]"#,
        "on" => r#"an array of "call", "poll" and "callback""#,
        "means" => r#""done", "pending", "slow_down", "try_again", "refused" or "unauthorized""#,
        "header" => r#"a header's name such as "X-State""#,
        "ticket_header" => r#"a header's name such as "Operation-Location""#,
        "method" => r#""GET" or "POST""#,
        "result_url" => r#""https://vendor.example/{{ ticket | path }}/result", or { at = "/url" }"#,
        "hosts" => {
            r#"an array such as ["https://files.example"] or [{ origin = "https://files.example", auth = true }]"#
        }
        "origin" => r#""https://files.example""#,
        "slow_down" => r#"{ first = "1s", max = "5m" }"#,
        "expect" => r#""json""#,
        "unit" => r#""s" or "ms""#,
        "clean" => r#"{ trim = true, drop_null = true, redact = ["/ssn"] }"#,
        "redact" => r#"an array of JSON pointers such as ["/ssn"]"#,
        "headers" => r#"{ name = "value" }"#,
        "idempotency_header" => r#""Idempotency-Key", another name, or "" for none"#,
        "tls" => r#"{ ca = "ca.pem", cert = "client.pem", key = "client.key" }"#,
        "ca" | "cert" | "key" => r#"a file such as "client.pem""#,
        "proxy" => r#""http://user:${PASSWORD}@proxy:3128""#,
        "ticket" | "at" | "result" | "request_id" | "ticket_in_callback" | "events" => {
            r#"a JSON pointer such as "/id""#
        }
        "calls" | "burst" | "attempts" | "unanswered" | "open" | "concurrency" | "max_waiting" => {
            "a whole number such as 10"
        }
        "rate_headers" => r#""off", or { remaining = "X-Calls-Left", reset = "X-Calls-Reset" }"#,
        "remaining" | "reset" => r#"a header's name such as "X-Calls-Left""#,
        "submit" => r#""100/s""#,
        "admin_key" => r#""${FETCHGATE_ADMIN_KEY}""#,
        "published_on" => r#""127.0.0.1""#,
        "tenants" => "a table for each tenant: [tenants.name]",
        "tenant_defaults" => r#"{ submit = "100/s", max_waiting = 100000 }"#,
        "trim" | "drop_null" | "allow_open" | "at_most_once" | "exists" | "get" => "true or false",
        "server" | "ops" | "auth" | "store" | "queue" | "capacity" => "its keys under a [table] of this name",
        "vendors" => "a table for each vendor: [vendors.name]",
        _ => "...",
    }
}

/// The candidate that was probably meant, if one is close: at most two letters differ, and no more than half of the word.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if word.len() > 64 {
        return None; // no typing error is that long, and the comparison is quadratic
    }
    let ranked = candidates.iter().map(|candidate| (distance(word, candidate), *candidate));
    let (off, best) = ranked.min_by_key(|(off, _)| *off)?;
    (off <= 2 && off * 2 <= word.chars().count().max(best.len())).then_some(best)
}

/// Letters to insert, remove or replace to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_only_when_it_is_near() {
        let keys = ["timeout", "retry", "url", "limits"];
        assert_eq!(nearest("timeuot", &keys), Some("timeout"));
        assert_eq!(nearest("limit", &keys), Some("limits"));
        assert_eq!(nearest("retries", &keys), None);
        assert_eq!(nearest("x", &keys), None);
        assert_eq!(nearest("", &keys), None);
        assert_eq!(nearest("é", &[]), None);
    }
}
