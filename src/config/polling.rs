//! How a vendor is asked whether it is done, checked.
//!
//! Never repeats a URL that may hold a secret.

use std::time::Duration;

use hyper::Method;
use toml::Spanned;

use super::{
    Address, Kind, Polling,
    addresses::{self, Known},
    check::{Check, LONGEST, Whole, optional},
    raw,
    replies::matching,
    templates,
};
use crate::vendor::{
    body::Body,
    replies::{Rule, says_when_done},
    template::{Name, Template},
};

pub(super) fn polling(cx: &mut Check<'_>, whole: &Whole<'_>, url: Option<&Template>) -> Option<Polling> {
    let mend = r#"Write polling = { ticket = "/id", url = "https://.../{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }"#;
    let raw = cx.needed(&whole.key("polling"), &whole.span, &whole.raw.polling, mend)?;
    let table = raw.get_ref();
    let key = |name: &str| whole.key(&format!("polling.{name}"));
    refuse_missing(cx, whole, raw);
    let ticket = optional(table.ticket.as_ref(), |raw| cx.pointer(&key("ticket"), raw));
    let ticket_header =
        optional(table.ticket_header.as_ref(), |raw| cx.header(&key("ticket_header"), raw, "Operation-Location"));
    let method = match &table.method {
        Some(raw) => cx.method(&key("method"), raw),
        None => Some(Method::GET),
    };
    let body = optional(table.body.as_ref(), |raw| poll_body(cx, &key("body"), raw, method.as_ref()));
    let hosts = addresses::hosts(cx, &key("hosts"), table.hosts.as_ref());
    let known = Known { url, hosts: hosts.as_deref().unwrap_or_default(), has_ticket: true };
    let names_ticket = body.iter().flatten().any(|body| body.uses(Name::Ticket));
    let url = table.url.as_ref().and_then(|raw| polling_url(cx, whole, &key("url"), raw, known, names_ticket));
    let result_url =
        optional(table.result_url.as_ref(), |raw| addresses::result_url(cx, whole, &key("result_url"), raw, known));
    let waits = waits(cx, whole, table);
    let done = optional(table.done.as_ref(), |raw| matching(cx, &key("done"), raw));
    let result = optional(table.result.as_ref(), |raw| cx.pointer(&key("result"), raw));
    let Intervals { first, every, max, missing } = waits?;
    Some(Polling {
        ticket: ticket?,
        ticket_header: ticket_header?,
        url: url?,
        hosts: hosts?,
        method: method?,
        body: body?,
        first,
        every,
        max,
        missing,
        done: done?,
        result: result?,
        result_url: result_url?,
    })
}

fn refuse_missing(cx: &mut Check<'_>, whole: &Whole<'_>, raw: &Spanned<raw::Polling>) {
    let table = raw.get_ref();
    let mut needed = |name: &str, written: &Option<raw::Text>, mend: &str| {
        cx.needed(&whole.key(&format!("polling.{name}")), &raw.span(), written, mend);
    };
    if table.ticket_header.is_none() {
        let mend = r#"Write ticket = "/id" (where the body of the vendor's acceptance has its reference), or ticket_header = "Location""#;
        needed("ticket", &table.ticket, mend);
    }
    needed("url", &table.url, r#"Write url = "https://vendor.example/jobs/{{ ticket | path }}""#);
    needed("every", &table.every, r#"Write every = "2s", say"#);
}

/// Whether it is said which answers to polls are the last. Noted as a problem if not.
pub(super) fn says_done(cx: &mut Check<'_>, whole: &Whole<'_>, kind: Option<&Kind>, rules: Option<&[Rule]>) {
    let (Some(Kind::Polling(polling)), Some(rules), Some(raw)) = (kind, rules, &whole.raw.polling) else { return };
    if polling.done.is_none() && says_when_done(rules).is_none() {
        let mend = r#"Write done = { at = "/state", is = ["done"] }, say, or say it by status: replies = [{ status = [202], means = "pending" }]"#;
        cx.problem(&whole.key("polling.done"), &raw.span(), "this key is required", mend);
    }
}

fn polling_url(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    key: &str,
    raw: &raw::Text,
    known: Known<'_>,
    body_names_ticket: bool,
) -> Option<Address> {
    let address = addresses::address(cx, whole, key, raw, known)?;
    if !address.needs_ticket() && !body_names_ticket {
        let mend =
            "Put {{ ticket | path }} (or {{ ticket | query }}) into it, or {{ ticket | json }} into polling.body";
        return cx.refuse(key, &raw.span(), "this URL asks for no ticket in particular", mend);
    }
    Some(address)
}

fn poll_body(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Body>, method: Option<&Method>) -> Option<Body> {
    let body = templates::body(cx, key, raw, method)?;
    if body.uses(Name::CallbackUrl) {
        return cx.refuse(key, &raw.span(), "only webhook vendors have a callback_url", "Remove callback_url from it");
    }
    Some(body)
}

struct Intervals {
    first: Duration,
    every: Duration,
    max: Option<Duration>,
    missing: Duration,
}

fn waits(cx: &mut Check<'_>, whole: &Whole<'_>, table: &raw::Polling) -> Option<Intervals> {
    let key = |name: &str| whole.key(&format!("polling.{name}"));
    let mut wait =
        |name: &str, raw: &Option<raw::Text>| optional(raw.as_ref(), |raw| cx.duration(&key(name), raw, LONGEST));
    let first = wait("first", &table.first);
    let every = wait("every", &table.every);
    let max = wait("max", &table.max);
    let missing = wait("missing", &table.missing);
    let (every, max) = (every??, max?);
    if let (Some(longest), Some(raw)) = (max, &table.max)
        && longest < every
    {
        let what = "the longest wait is shorter than the usual one";
        return cx.refuse(&key("max"), &raw.span(), what, "Make polling.max at least polling.every, or remove it");
    }
    Some(Intervals { first: first?.unwrap_or(every), every, max, missing: missing?.unwrap_or(Polling::MISSING) })
}
