//! The config in force as people may see it, as `check` and `GET /system` show it: each vendor in words, and a hash by which people see whether
//! processes have the same config.
//!
//! Never shows a secret: of credentials there are only the names of headers and parameters, and where tokens come from; of all other settings
//! only what [`Config::settings`] chooses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyper::{
    Method,
    header::{AUTHORIZATION, HeaderName},
};
use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{
        Address, Auth, Challenge, Config, Host, Kind, LiveSecret, Vendor, Webhook, Written, write_duration, write_limit,
    },
    job::retry::Retry,
    limit::Limit,
    vendor::{
        replies::{Condition, On, Rule, Test},
        verify::{Verify, hmac::Scheme},
    },
};

/// Stands for a value that is never shown.
pub(crate) const MASK: &str = "***";

/// What `GET /system` shows of a config.
pub(crate) struct Shown {
    /// Eight digits. Secrets are not in it.
    pub(crate) hash: String,
    pub(crate) json: Box<RawValue>,
}

impl Shown {
    pub(crate) fn of(config: &Config) -> Shown {
        let (settings, vendors) = (config.settings(), vendors_in_words(config));
        // What is not in words is in the debug form, which masks secrets too.
        let digest = Sha256::digest(format!("{settings:?}{vendors:?}{config:?}"));
        let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let shown = json!({ "hash": hash, "settings": settings, "vendors": vendors, "warnings": config.warnings });
        Shown { json: serde_json::value::to_raw_value(&shown).expect("a JSON value is JSON"), hash }
    }
}

/// Each vendor by its name, in lines that show no secret.
pub(crate) fn vendors_in_words(config: &Config) -> BTreeMap<Arc<str>, Vec<String>> {
    let named = |vendor: &Vendor| {
        let pool = config.pools.iter().find(|pool| pool.pool == vendor.pool);
        let limits = pool.map(|pool| &*pool.limits).unwrap_or_default();
        (vendor.name.clone(), in_words(&vendor.shown(), limits))
    };
    config.vendors.iter().map(named).collect()
}

fn in_words(vendor: &Vendor, limits: &[Limit]) -> Vec<String> {
    let mut lines = vec![format!("{} ({}, pool {})", vendor.name, vendor.kind.as_str(), vendor.pool)];
    lines.push(format!("{} {}", vendor.method, vendor.url));
    lines.extend(headers(vendor));
    lines.extend(login(vendor));
    lines.extend(way(vendor));
    lines.push(match (&vendor.body, &vendor.kind) {
        _ if vendor.method == Method::GET => "no body".to_owned(),
        (Some(body), _) => format!("body: {}", shown(&body.to_string())),
        (None, Kind::Webhook(_)) => "body: request_id, payload and callback_url".to_owned(),
        (None, _) => "body: the payload".to_owned(),
    });
    lines.extend(asks(&vendor.kind));
    if let Kind::Webhook(webhook) = &vendor.kind {
        lines.extend(callbacks(webhook));
    }
    lines.extend(vendor.replies.iter().map(rule));
    let timeout = write_duration(vendor.timeout);
    lines.push(format!("time-out {timeout} a call, {} calls in flight at once", vendor.concurrency));
    lines.extend(patience(vendor));
    lines.extend(limits.iter().map(limit_in_words));
    if limits.is_empty() {
        lines.push("no limits".to_owned());
    }
    lines
}

/// For how long a job is tried, and what it means that nobody answers.
fn patience(vendor: &Vendor) -> Vec<String> {
    let mut lines = vec![format!("a job is tried {}, and fails after the last", tries(&vendor.retry))];
    let closed_port = "a closed port is a failed attempt like any other: the job waits for its next one";
    lines.push(match &vendor.breaker {
        Some(_) => format!("{closed_port}; while the breaker is open, jobs wait and use up no attempts"),
        None => closed_port.to_owned(),
    });
    lines.push(vendor.breaker.map_or("no breaker".to_owned(), |breaker| {
        format!(
            "breaker: opens for {} when {} % of at least {} calls within {} failed",
            write_duration(breaker.open),
            breaker.failed as f64 / 1e4,
            breaker.calls,
            write_duration(breaker.within)
        )
    }));
    if !matches!(vendor.kind, Kind::Sync) {
        let within = write_duration(vendor.answer_within);
        lines.push(match (vendor.at_most_once, vendor.retry.unanswered) {
            (true, _) => format!("an accepted job that is not answered within {within} fails: it is ordered once"),
            (false, 0) => format!("an accepted job that is not answered within {within} fails"),
            (false, most) => {
                let most = if most == 1 { "once".to_owned() } else { format!("{most} times") };
                format!("an accepted job that is not answered within {within} is ordered again, {most} at most; each order is paid for")
            }
        });
    }
    if vendor.at_most_once {
        lines.push("a call that may have been done is not repeated".to_owned());
    }
    lines.extend(vendor.deadline.map(|deadline| format!("a job expires after {}", write_duration(deadline))));
    lines
}

fn limit_in_words(limit: &Limit) -> String {
    let Written { id, calls, per, shape, burst, guard, key, tz } = write_limit(limit);
    let per = tz.map_or_else(|| format!("in any {per}"), |zone| format!("per {per} in {zone}"));
    let burst = burst.map(|burst| format!(", burst {burst}")).unwrap_or_default();
    let whose = if key == "tenant" { ", each tenant separately" } else { "" };
    format!("{id}: {calls} calls {per}{whose} ({shape}{burst}, guard {guard})")
}

/// Which headers of the config calls have: the names of fixed ones, and templates; and which header has our key, if it is not the usual.
fn headers(vendor: &Vendor) -> Vec<String> {
    let fixed = vendor.headers.iter().map(|(name, _)| name.to_string());
    let templates =
        vendor.header_templates.iter().map(|(name, value)| format!("{name} = {}", shown(&value.to_string())));
    let headers: Vec<String> = fixed.chain(templates).collect();
    let mut lines = Vec::new();
    if !headers.is_empty() {
        lines.push(format!("headers: {}", headers.join(", ")));
    }
    match &vendor.idempotency_header {
        Some(name) if name == "idempotency-key" => {}
        Some(name) => lines.push(format!("the id that stays the same when a call is repeated is in the header {name}")),
        None => lines.push("calls have no header with an id that stays the same when they are repeated".to_owned()),
    }
    lines
}

/// How connections to it are made, if not in the usual way.
fn way(vendor: &Vendor) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(tls) = &vendor.tls {
        let files = tls.files();
        lines.extend(files.ca.as_ref().map(|ca| format!("trusts the authorities in {} too", ca.display())));
        lines.extend(files.identity.as_ref().map(|(cert, _)| format!("shows the certificate in {}", cert.display())));
    }
    lines.extend(vendor.proxy.as_ref().map(|proxy| format!("connects through the proxy {}", proxy.at().name())));
    lines
}

/// How calls prove who they come from; nothing when the config has no `auth`.
fn login(vendor: &Vendor) -> Option<String> {
    Some(match vendor.auth.as_ref()? {
        Auth::Header { name, prefix: "", .. } => format!("logs in with a secret in the header {name}"),
        Auth::Header { .. } => "logs in with a bearer token".to_owned(),
        Auth::Basic { .. } => "logs in with a user and a password (basic)".to_owned(),
        Auth::Query { name, .. } => format!("logs in with a secret in the parameter {} of the URL", shown(name)),
        Auth::OAuth2(oauth) => {
            // The rest of the URL may have a key in it.
            let from = oauth.token_url.origin().ascii_serialization();
            format!("logs in with tokens from {from} (OAuth 2.0, client credentials)")
        }
        Auth::SigV4(keys) => {
            format!(
                "logs in by AWS Signature Version 4 (region {}, service {})",
                shown(&keys.region),
                shown(&keys.service)
            )
        }
    })
}

/// The headers that are put on each request right before it goes out, masked: those of `auth`, and those whose values are in files.
pub(crate) fn added_headers(vendor: &Vendor) -> Vec<(HeaderName, String)> {
    let in_files = vendor.headers.iter().filter(|(_, value)| value.is_in_files());
    let mut added: Vec<_> = in_files.map(|(name, _)| (name.clone(), MASK.to_owned())).collect();
    let Some(auth) = &vendor.auth else { return added };
    let scheme = match auth {
        Auth::Header { prefix, .. } => prefix,
        Auth::Basic { .. } => "Basic ",
        Auth::OAuth2(_) => "Bearer ",
        Auth::SigV4(_) => "AWS4-HMAC-SHA256 ",
        Auth::Query { .. } => "",
    };
    let masked = |name: HeaderName| {
        let value = if name == AUTHORIZATION { format!("{scheme}{MASK}") } else { MASK.to_owned() };
        (name, value)
    };
    added.extend(auth.headers().into_iter().map(masked));
    added
}

/// The parameter that is added to the URL of each request, masked.
pub(crate) fn added_parameter(vendor: &Vendor) -> Option<String> {
    match &vendor.auth {
        Some(Auth::Query { name, .. }) => Some(format!("{}={MASK}", shown(name))),
        _ => None,
    }
}

/// Where and how often the vendor is asked whether it is done, and where its data is.
fn asks(kind: &Kind) -> Vec<String> {
    let mut lines = Vec::new();
    if let Kind::Polling(polling) = kind {
        let every = write_duration(polling.every);
        let waits = match polling.max {
            Some(max) => format!("after {every}, then at waits that double up to {}", write_duration(max)),
            None => format!("every {every}"),
        };
        let first = match polling.first {
            first if first == polling.every => String::new(),
            first => format!(", the first time after {}", write_duration(first)),
        };
        lines.push(format!("polls: {} {} {waits}{first}", polling.method, address(&polling.url)));
        lines.extend(polling.body.as_ref().map(|body| format!("body of polls: {}", shown(&body.to_string()))));
    }
    lines.extend(kind.result_url().map(|from| format!("data: GET {}", address(from))));
    lines.extend(kind.hosts().iter().map(|Host { origin, auth }| {
        let with = if *auth { "with auth and headers" } else { "without auth and headers" };
        format!("its answers may lead to {origin}, {with}")
    }));
    lines
}

fn address(address: &Address) -> String {
    match address {
        Address::Url(url) => url.to_string(),
        Address::Ticket => "the ticket, which is a URL".to_owned(),
        Address::At(at) => format!("the URL at {at} of the answer that says \"done\""),
    }
}

/// How callbacks are proved and found, and which of them end a job.
fn callbacks(webhook: &Webhook) -> Vec<String> {
    let mut lines = vec![match &webhook.verify {
        Verify::Off => "callbacks: on the URL of each job; the shared URL is off".to_owned(),
        verify => format!("callbacks: on the URL of each job, and on the shared one {}", proof(verify)),
    }];
    if let Some(done) = &webhook.done {
        let at = Condition::Value { at: done.at.clone(), test: done.test.clone() };
        lines.push(format!("a callback with {} ends its job, any other does not", condition(&at)));
    }
    lines.extend(webhook.events.as_ref().map(|at| format!("an array at {:?} is many callbacks", at.to_string())));
    if webhook.get {
        lines.push("a GET is a callback too, with its query as the body".to_owned());
    }
    if webhook.accepts_unknown {
        lines.push("a callback for no job of ours is answered 200".to_owned());
    }
    lines.extend(webhook.challenge.as_ref().map(|challenge| match challenge {
        Challenge::Slack => "answers Slack's challenge".to_owned(),
        Challenge::Graph => "answers a validationToken".to_owned(),
        Challenge::Hub(_) => "answers hub.challenge for the right hub.verify_token".to_owned(),
    }));
    lines
}

fn proof(verify: &Verify) -> String {
    let secrets = |secrets: &[LiveSecret]| match secrets.len() {
        1 => "one secret".to_owned(),
        several => format!("any of {several} secrets"),
    };
    match verify {
        Verify::Off | Verify::None => "from anybody".to_owned(),
        Verify::Header { name, values } => format!("with {} in the header {name}", secrets(values)),
        Verify::Basic { passwords, .. } => format!("with a user and a password (basic, {})", secrets(passwords)),
        Verify::Signed(signed) => {
            let scheme = |scheme: &Scheme| {
                let within = scheme.tolerance().map(write_duration);
                let within = within.map(|within| format!(", within {within} of signing")).unwrap_or_default();
                format!(
                    "signed by HMAC-{} in the header {}{within}",
                    scheme.hash().as_str().to_uppercase(),
                    scheme.header()
                )
            };
            let schemes: Vec<String> = signed.schemes.iter().map(scheme).collect();
            format!("{} ({})", schemes.join(", or "), secrets(&signed.secrets))
        }
    }
}

/// `an answer with status 403 and rateLimit at /reason means slow_down, after 30s`
fn rule(rule: &Rule) -> String {
    let of = |on: &On| match on {
        On::Call => "a call",
        On::Poll | On::Fetch => "a poll",
        On::Callback => "a callback",
    };
    let mut on: Vec<&str> = rule.on.iter().map(of).collect();
    on.dedup();
    let on = if on.is_empty() { String::new() } else { format!(" of {}", on.join(" or ")) };
    let conditions: Vec<String> = rule.conditions.iter().map(condition).collect();
    let wait = rule.wait.map(|wait| format!(", and to wait {}", write_duration(wait))).unwrap_or_default();
    format!("an answer{on} with {} means {}{wait}", conditions.join(" and "), rule.means.as_str())
}

fn condition(condition: &Condition) -> String {
    let one_of = |texts: &[String]| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" or ");
    match condition {
        Condition::Status(ranges) => {
            let range = |(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from} to {to}") };
            format!("status {}", ranges.iter().map(range).collect::<Vec<_>>().join(" or "))
        }
        Condition::Value { at, test: Test::Is(texts) } => format!("{} at {:?}", one_of(texts), at.to_string()),
        Condition::Value { at, test: Test::Exists(true) } => format!("something at {:?}", at.to_string()),
        Condition::Value { at, test: Test::Exists(false) } => format!("nothing at {:?}", at.to_string()),
        Condition::Header { name, test: Test::Is(texts) } => format!("{} in the header {name}", one_of(texts)),
        Condition::Header { name, test: Test::Exists(true) } => format!("the header {name}"),
        Condition::Header { name, test: Test::Exists(false) } => format!("no header {name}"),
        Condition::NothingLeft => "headers that say that nothing is left".to_owned(),
        Condition::JustAccepted => "an acceptance shortly before".to_owned(),
        Condition::MayBeDone => "an earlier call that may have been done".to_owned(),
    }
}

/// Text from outside, with its control characters spelled out.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_shown(c, &mut out));
    out
}

pub(crate) fn push_shown(c: char, out: &mut String) {
    if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
}

/// How often a job is tried, and over what time: `16 times over 33 to 67 minutes`.
pub(crate) fn tries(retry: &Retry) -> String {
    let (least, most) = retry.lasts();
    if retry.attempts == 1 {
        return "once".to_owned();
    }
    let units = [("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000), ("seconds", 1000), ("ms", 1)];
    let in_unit = |time: Duration, unit: u128| time.as_millis() / unit;
    // The largest in which the two still differ by enough to say something.
    let fits = |(_, unit): &&(&str, u128)| in_unit(least, *unit) >= 2;
    let (name, unit) = units.iter().find(fits).unwrap_or(&units[4]);
    format!("{} times over {} to {} {name}", retry.attempts, in_unit(least, *unit), in_unit(most, *unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_job_is_tried_is_written_in_a_unit_that_fits() {
        let retry = |attempts, first, max| Retry {
            attempts,
            first: Duration::from_millis(first),
            max: Duration::from_millis(max),
            unanswered: 1,
        };
        assert_eq!(tries(&retry(16, 1000, 600_000)), "16 times over 33 to 67 minutes");
        assert_eq!(tries(&retry(1, 1000, 600_000)), "once");
        assert_eq!(tries(&retry(2, 1, 1)), "2 times over 0 to 1 ms");
        assert_eq!(tries(&retry(5, 200, 60_000)), "5 times over 1500 to 3000 ms");
        assert_eq!(tries(&retry(3, 86_400_000, 86_400_000)), "3 times over 24 to 48 hours");
    }
}
