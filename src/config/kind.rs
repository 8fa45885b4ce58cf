//! How a vendor answers, checked: at once, by webhook, or when it is asked again. What the last two need is in `webhook` and `polling`.
//!
//! Never repeats a URL that may hold a secret.

use hyper::header::HeaderName;
use toml::Spanned;
use url::{Host, Url};

use super::{
    Kind,
    check::{Check, Whole, quoted_key},
    polling::polling,
    templates::Sends,
    webhook::webhook,
};
use crate::vendor::template::{Name, Template};

const KINDS: [&str; 3] = ["sync", "webhook", "polling"];

pub(super) fn kind(cx: &mut Check<'_>, whole: &Whole<'_>, sends: &Sends<'_>, public_url: Option<&Url>) -> Option<Kind> {
    let key = whole.key("kind");
    let mend = r#"Write kind = "sync", "webhook" or "polling""#;
    let raw = cx.needed(&key, &whole.span, &whole.raw.kind, mend)?;
    let kind = cx.word(&key, raw, &KINDS.map(|kind| (kind, kind)), "there is no kind", mend)?;
    refuse_tables_of_other_kinds(cx, whole, kind);
    refuse_unknown_names(cx, whole, sends, kind == "webhook");
    match kind {
        "sync" => Some(Kind::Sync),
        "webhook" => {
            let reachable = refuse_unreachable(cx, whole, sends.url, public_url);
            let webhook = webhook(cx, whole, sends)?;
            reachable.then(|| Kind::Webhook(Box::new(webhook)))
        }
        _ => polling(cx, whole, sends.url).map(|polling| Kind::Polling(Box::new(polling))),
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
fn refuse_unknown_names(cx: &mut Check<'_>, whole: &Whole<'_>, sends: &Sends<'_>, is_webhook: bool) {
    let raw = whole.raw;
    let of = |uses: &dyn Fn(Name) -> bool| (uses(Name::Ticket), uses(Name::CallbackUrl));
    let url =
        raw.url.iter().zip(sends.url).map(|(raw, url)| (whole.key("url"), raw.span(), of(&|name| url.uses(name))));
    let body = raw.body.iter().zip(sends.body);
    let body = body.map(|(raw, body)| (whole.key("body"), raw.span(), of(&|name| body.uses(name))));
    let header = |(header, value): &(HeaderName, Template)| {
        let (key, raw) = raw.headers.iter().find(|(key, _)| header.as_str().eq_ignore_ascii_case(key))?;
        Some((format!("{}.{}", whole.key("headers"), quoted_key(key)), raw.span(), of(&|name| value.uses(name))))
    };
    let headers = sends.headers.unwrap_or_default().iter().filter_map(header);
    for (key, span, (uses_ticket, uses_callback_url)) in url.chain(body).chain(headers) {
        if uses_ticket {
            let mend = "Use it in polling.url; here write request_id or a part of the payload";
            cx.problem(&key, &span, "the ticket is only known after this call", mend);
        }
        if uses_callback_url && !is_webhook {
            let mend = "Remove callback_url from it, or write kind = \"webhook\"";
            cx.problem(&key, &span, "only webhook vendors have a callback_url", mend);
        }
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
