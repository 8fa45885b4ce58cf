//! How a vendor answers, checked: at once, by webhook, or when it is asked again.
//!
//! Never repeats a secret, nor a URL that may hold one.

use toml::Spanned;
use url::{Host, Url};

use super::{
    Kind, Polling, Secret, Verify, Webhook,
    check::{Check, LONGEST, Whole, optional, required},
    error::nearest,
    raw,
    replies::matching,
    templates::url_template,
};
use crate::{
    json::Pointer,
    vendor::{
        signature::StandardWebhooks,
        template::{Name, Template},
    },
};

const KINDS: [&str; 3] = ["sync", "webhook", "polling"];

pub(super) fn kind(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    url: Option<&Template>,
    body: Option<&Template>,
    public_url: Option<&Url>,
) -> Option<Kind> {
    let key = whole.key("kind");
    let Some(raw) = &whole.raw.kind else {
        return required(cx, whole, "kind", r#"Write kind = "sync", "webhook" or "polling""#);
    };
    let text = cx.text(&key, raw)?;
    let kind = text.text.as_str();
    if !KINDS.contains(&kind) {
        let mend = match nearest(kind, &KINDS) {
            Some(near) => format!("Did you mean {near:?}?"),
            None => r#"Write "sync", "webhook" or "polling""#.to_owned(),
        };
        cx.problem(&key, &text.span, format!("there is no kind {}", text.shown), mend);
        return None;
    }
    refuse_tables_of_other_kinds(cx, whole, kind);
    for (name, raw, template) in [("url", &whole.raw.url, url), ("body", &whole.raw.body, body)] {
        if let (Some(raw), Some(template)) = (raw, template) {
            refuse_unknown_names(cx, &whole.key(name), raw, template, kind == "webhook");
        }
    }
    match kind {
        "sync" => Some(Kind::Sync),
        "webhook" => {
            let reachable = refuse_unreachable(cx, whole, url, public_url);
            let webhook = webhook(cx, whole, url, body)?;
            reachable.then_some(Kind::Webhook(webhook))
        }
        _ => polling(cx, whole).map(Kind::Polling),
    }
}

fn refuse_tables_of_other_kinds(cx: &mut Check<'_>, whole: &Whole<'_>, kind: &str) {
    let webhook = whole.raw.webhook.as_ref().map(Spanned::span);
    let polling = whole.raw.polling.as_ref().map(Spanned::span);
    for (table, span) in [("webhook", webhook), ("polling", polling)] {
        if let Some(span) = span.filter(|_| table != kind) {
            let what = format!("this vendor's kind is {kind:?}");
            cx.problem(&whole.key(table), &span, what, format!("Remove it, or write kind = {table:?}"));
        }
    }
}

/// The first call knows no ticket yet, and only webhook vendors are given a callback URL.
fn refuse_unknown_names(cx: &mut Check<'_>, key: &str, raw: &raw::Text, template: &Template, is_webhook: bool) {
    if template.uses(Name::Ticket) {
        let mend = "Use it in polling.url; here write request_id or a part of the payload";
        cx.problem(key, &raw.span(), "the ticket is only known after this call", mend);
    }
    if template.uses(Name::CallbackUrl) && !is_webhook {
        let mend = "Remove callback_url from it, or write kind = \"webhook\"";
        cx.problem(key, &raw.span(), "only webhook vendors have a callback_url", mend);
    }
}

/// A vendor elsewhere cannot call a loopback address.
fn refuse_unreachable(cx: &mut Check<'_>, whole: &Whole<'_>, url: Option<&Template>, public_url: Option<&Url>) -> bool {
    let (Some(vendor), Some(public_url)) = (url.and_then(Template::origin), public_url) else { return true };
    if is_loopback(vendor) || !is_loopback(public_url) || vendor.host() == public_url.host() {
        return true;
    }
    let what = format!(
        "this vendor is on another host and cannot call back to server.public_url at {}",
        public_url.host_str().unwrap_or_default()
    );
    let mend = "Set server.public_url to a URL that the vendor can reach";
    let span = whole.raw.url.as_ref().map_or(whole.span.clone(), Spanned::span);
    cx.problem(&whole.key("url"), &span, what, mend);
    false
}

/// An address that means this machine only to this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => {
            let ip = std::net::IpAddr::V6(ip).to_canonical();
            ip.is_loopback() || ip.is_unspecified()
        }
        None => false,
    }
}

fn webhook(cx: &mut Check<'_>, whole: &Whole<'_>, url: Option<&Template>, body: Option<&Template>) -> Option<Webhook> {
    let Some(raw) = &whole.raw.webhook else {
        let webhook = Webhook {
            verify: Verify::Off,
            request_id: Pointer::from_keys(["request_id"]),
            result: None,
            ticket: None,
            ticket_in_callback: None,
        };
        return callbacks_can_land(cx, whole, url, body, &webhook.verify).then_some(webhook);
    };
    let key = |name: &str| whole.key(&format!("webhook.{name}"));
    let table = raw.get_ref();
    let verify = verify(cx, whole, raw);
    let mut pointer = |name: &str, raw: &Option<raw::Text>| optional(raw.as_ref(), |raw| cx.pointer(&key(name), raw));
    let request_id = pointer("request_id", &table.request_id);
    let result = pointer("result", &table.result);
    let ticket = pointer("ticket", &table.ticket);
    let ticket_in_callback = pointer("ticket_in_callback", &table.ticket_in_callback);
    if let (None, Some(raw)) = (&table.ticket, &table.ticket_in_callback) {
        let what = "without `ticket` no ticket is known that a callback could repeat";
        let mend = "Write ticket = \"/id\" too: where the vendor's acceptance has it";
        cx.problem(&key("ticket_in_callback"), &raw.span(), what, mend);
    }
    let verify = verify?;
    callbacks_can_land(cx, whole, url, body, &verify).then_some(())?;
    Some(Webhook {
        verify,
        request_id: request_id?.unwrap_or_else(|| Pointer::from_keys(["request_id"])),
        result: result?,
        ticket: ticket?,
        ticket_in_callback: ticket_in_callback?,
    })
}

/// Either the vendor hears the URL of its job, or it knows the shared one and that one is open.
fn callbacks_can_land(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    url: Option<&Template>,
    body: Option<&Template>,
    verify: &Verify,
) -> bool {
    let told_by_url = url.is_none_or(|url| url.uses(Name::CallbackUrl));
    let sends_default_body = whole.raw.body.is_none() && whole.raw.method.get_ref() != "GET";
    let told_by_body = sends_default_body || body.is_some_and(|body| body.uses(Name::CallbackUrl));
    let body_is_wrong = whole.raw.body.is_some() && body.is_none();
    if told_by_url || told_by_body || body_is_wrong || !matches!(verify, Verify::Off) {
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

/// Never repeats the secret.
fn verify(cx: &mut Check<'_>, whole: &Whole<'_>, raw: &Spanned<raw::Webhook>) -> Option<Verify> {
    let (verify_key, secret_key) = (whole.key("webhook.verify"), whole.key("webhook.secret"));
    let table = raw.get_ref();
    let verify = optional(table.verify.as_ref(), |verify| cx.text(&verify_key, verify))?;
    let scheme = verify.as_ref().map(|verify| verify.text.as_str());
    if let (None | Some("none"), Some(secret)) = (scheme, &table.secret) {
        let mend = "Write verify = \"standard-webhooks\" beside it, or remove it";
        cx.problem(&secret_key, &secret.span(), "this secret would not be used", mend);
        return None;
    }
    match (scheme, &verify) {
        (None, _) => Some(Verify::Off),
        (Some("none"), _) => Some(Verify::None),
        (Some("standard-webhooks"), _) => {
            let mend = "Write secret = \"${BUREAU_SECRET}\": what the vendor gave you, `whsec_` and base64";
            let Some(secret) = &table.secret else {
                cx.problem(&secret_key, &raw.span(), "this key is required with \"standard-webhooks\"", mend);
                return None;
            };
            let secret = cx.text(&secret_key, secret)?;
            if let Err(why) = StandardWebhooks::new(&secret.text) {
                cx.problem(&secret_key, &secret.span, format!("this secret cannot be used: {why}"), mend);
                return None;
            }
            Some(Verify::StandardWebhooks(Secret::new(secret.text)))
        }
        (Some(_), verify) => {
            let verify = verify.as_ref()?;
            let mend = "Write \"standard-webhooks\" (with secret), or \"none\" to believe anybody";
            cx.problem(&verify_key, &verify.span, format!("there is no scheme {}", verify.shown), mend);
            None
        }
    }
}

fn polling(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Polling> {
    let Some(raw) = &whole.raw.polling else {
        let mend = r#"Write polling = { ticket = "/id", url = "https://.../{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }"#;
        return required(cx, whole, "polling", mend);
    };
    let key = |name: &str| whole.key(&format!("polling.{name}"));
    let table = raw.get_ref();
    let mut missing = |name: &str, mend: &str| cx.problem(&key(name), &raw.span(), "this key is required", mend);
    if table.ticket.is_none() {
        missing("ticket", r#"Write ticket = "/id": where the vendor's acceptance has its reference"#);
    }
    if table.url.is_none() {
        missing("url", r#"Write url = "https://vendor.example/jobs/{{ ticket | path }}""#);
    }
    if table.every.is_none() {
        missing("every", r#"Write every = "2s", say"#);
    }
    if table.done.is_none() {
        missing("done", r#"Write done = { at = "/state", is = ["done"] }, say"#);
    }
    let ticket = optional(table.ticket.as_ref(), |raw| cx.pointer(&key("ticket"), raw));
    let url = table.url.as_ref().and_then(|url| polling_url(cx, &key("url"), url));
    let every = table.every.as_ref().and_then(|every| cx.duration(&key("every"), every, LONGEST));
    let done = table.done.as_ref().and_then(|done| matching(cx, &key("done"), done));
    let result = optional(table.result.as_ref(), |raw| cx.pointer(&key("result"), raw));
    Some(Polling { ticket: ticket??, url: url?, every: every?, done: done?, result: result? })
}

fn polling_url(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Template> {
    let url = url_template(cx, key, raw)?;
    if !url.uses(Name::Ticket) {
        let mend = "Put {{ ticket | path }} (or {{ ticket | query }}) into it";
        cx.problem(key, &raw.span(), "this URL asks for no ticket in particular", mend);
        return None;
    }
    if url.uses(Name::CallbackUrl) {
        cx.problem(key, &raw.span(), "only webhook vendors have a callback_url", "Remove callback_url from it");
        return None;
    }
    Some(url)
}
