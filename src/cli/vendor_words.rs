//! How a vendor logs in and what its answers mean, in words; and what its credentials add to a request, masked.
//!
//! Never shows a secret: of credentials there are only the names of headers and parameters, and where tokens come from.

use hyper::header::{AUTHORIZATION, HeaderName};

use super::print::shown;
use crate::{
    config::{Address, Auth, Challenge, Host, Kind, LiveSecret, Vendor, Webhook, write_duration},
    vendor::{
        replies::{Condition, On, Rule, Test},
        verify::{Verify, hmac::Scheme},
    },
};

/// Stands for a value that is never shown.
pub(super) const MASK: &str = "***";

/// Which headers of the config calls have: the names of fixed ones, and templates; and which header has our key, if it is not the usual.
pub(super) fn headers(vendor: &Vendor) -> Vec<String> {
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
pub(super) fn way(vendor: &Vendor) -> Vec<String> {
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
pub(super) fn login(vendor: &Vendor) -> Option<String> {
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
pub(super) fn added_headers(vendor: &Vendor) -> Vec<(HeaderName, String)> {
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
pub(super) fn added_parameter(vendor: &Vendor) -> Option<String> {
    match &vendor.auth {
        Some(Auth::Query { name, .. }) => Some(format!("{}={MASK}", shown(name))),
        _ => None,
    }
}

/// Where and how often the vendor is asked whether it is done, and where its data is.
pub(super) fn asks(kind: &Kind) -> Vec<String> {
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
pub(super) fn callbacks(webhook: &Webhook) -> Vec<String> {
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
pub(super) fn rule(rule: &Rule) -> String {
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
