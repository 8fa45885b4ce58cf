//! How a vendor calls back, checked: what proves that it is the vendor, and where its callbacks say what.
//!
//! Never repeats a secret.

use toml::Spanned;

use super::{
    Challenge, Webhook,
    addresses::{self, Known},
    check::{Check, Whole, optional},
    raw,
    replies::matching,
    secret::fits_line,
    templates::Sends,
    verify::{secrets, verify},
};
use crate::vendor::{template::Name, verify::Verify};

pub(super) fn webhook(cx: &mut Check<'_>, whole: &Whole<'_>, sends: &Sends<'_>) -> Option<Webhook> {
    let Some(raw) = &whole.raw.webhook else {
        let webhook = Webhook::default();
        return callbacks_can_land(cx, whole, sends, &webhook.verify).then_some(webhook);
    };
    let key = |name: &str| whole.key(&format!("webhook.{name}"));
    let table = raw.get_ref();
    let verify = verify(cx, whole, raw);
    let mut pointer = |name: &str, raw: &Option<raw::Text>| optional(raw.as_ref(), |raw| cx.pointer(&key(name), raw));
    let request_id = pointer("request_id", &table.request_id);
    let result = pointer("result", &table.result);
    let ticket = pointer("ticket", &table.ticket);
    let ticket_in_callback = pointer("ticket_in_callback", &table.ticket_in_callback);
    let events = pointer("events", &table.events);
    let done = optional(table.done.as_ref(), |raw| matching(cx, &key("done"), raw));
    let unknown = optional(table.unknown.as_ref(), |raw| unknown(cx, &key("unknown"), raw, verify.as_ref()));
    let challenge = optional(table.challenge.as_ref(), |raw| challenge(cx, &key("challenge"), raw));
    let hosts = addresses::hosts(cx, &key("hosts"), table.hosts.as_ref());
    let has_ticket = table.ticket.is_some() || table.ticket_in_callback.is_some();
    let known = Known { url: sends.url, hosts: hosts.as_deref().unwrap_or_default(), has_ticket };
    let result_url =
        optional(table.result_url.as_ref(), |raw| addresses::result_url(cx, whole, &key("result_url"), raw, known));
    // With result_url a callback need not repeat a ticket: it may be the first to have it.
    if let (None, None, Some(raw)) = (&table.ticket, &table.result_url, &table.ticket_in_callback) {
        let what = "without `ticket` no ticket is known that a callback could repeat";
        let mend = "Write ticket = \"/id\" too: where the vendor's acceptance has it";
        cx.problem(&key("ticket_in_callback"), &raw.span(), what, mend);
    }
    let verify = verify?;
    callbacks_can_land(cx, whole, sends, &verify).then_some(())?;
    Some(Webhook {
        verify,
        request_id: request_id?,
        result: result?,
        ticket: ticket?,
        ticket_in_callback: ticket_in_callback?,
        done: done?,
        result_url: result_url?,
        hosts: hosts?,
        events: events?,
        accepts_unknown: unknown?.unwrap_or(false),
        get: table.get.as_ref().is_some_and(|get| *get.get_ref()),
        challenge: challenge?,
    })
}

/// Either the vendor hears the URL of its job, or it knows the shared one and that one is open.
fn callbacks_can_land(cx: &mut Check<'_>, whole: &Whole<'_>, sends: &Sends<'_>, verify: &Verify) -> bool {
    let &Sends { url, body, headers } = sends;
    let told_by_url = url.is_none_or(|url| url.uses(Name::CallbackUrl));
    let told_by_header = headers.is_none_or(|headers| headers.iter().any(|(_, value)| value.uses(Name::CallbackUrl)));
    let sends_default_body = whole.raw.body.is_none() && whole.raw.method.get_ref() != "GET";
    let told_by_body = sends_default_body || body.is_some_and(|body| body.uses(Name::CallbackUrl));
    let body_is_wrong = whole.raw.body.is_some() && body.is_none();
    if told_by_url || told_by_header || told_by_body || body_is_wrong || !matches!(verify, Verify::Off) {
        return true;
    }
    let (name, span) = match &whole.raw.body {
        Some(body) => ("body", body.span()),
        None => ("method", whole.raw.method.span()),
    };
    let what = "this vendor is never told where to call back, and the shared URL is off";
    let mend =
        "Put {{ callback_url | json }} into body (or {{ callback_url | query }} into url), or set webhook.verify";
    cx.problem(&whole.key(name), &span, what, mend);
    false
}

fn unknown(cx: &mut Check<'_>, key: &str, raw: &raw::Text, verify: Option<&Verify>) -> Option<bool> {
    let mend = "Write unknown = \"accept\", or remove it: then a callback for no job of ours is answered 404";
    cx.word(key, raw, &[("accept", ())], "nothing is known of", mend)?;
    if let Some(Verify::Off) = verify {
        let mend = "Write verify too, or remove it: the URL of a job names its job";
        return cx.refuse(key, &raw.span(), "without verify the shared URL is off", mend);
    }
    Some(true)
}

fn challenge(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::TextOr<raw::ChallengeTable>>) -> Option<Challenge> {
    let mend = r#"Write "slack", "graph" or { hub = "${VERIFY_TOKEN}" }"#;
    match raw.get_ref() {
        raw::TextOr::Text(word) => {
            let words = [("slack", Challenge::Slack), ("graph", Challenge::Graph)];
            cx.word(key, &Spanned::new(raw.span(), word.clone()), &words, "there is no challenge", mend)
        }
        raw::TextOr::Table(table) => {
            let key = format!("{key}.hub");
            let hub = cx.needed(&key, &raw.span(), &table.hub, mend)?;
            secrets(cx, &key, hub, fits_line).map(Challenge::Hub)
        }
    }
}
