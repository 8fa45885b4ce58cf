//! How a vendor calls back, checked: what proves that it is the vendor, and where its callbacks say what.
//!
//! Never repeats a secret.

use toml::Spanned;

use super::{
    Secret, Verify, Webhook,
    addresses::{self, Known},
    check::{Check, Whole, optional},
    raw,
    replies::matching,
};
use crate::{
    json::Pointer,
    vendor::{
        signature::StandardWebhooks,
        template::{Name, Template},
    },
};

pub(super) fn webhook(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    url: Option<&Template>,
    body: Option<&Template>,
) -> Option<Webhook> {
    let Some(raw) = &whole.raw.webhook else {
        let webhook = Webhook {
            verify: Verify::Off,
            request_id: Pointer::from_keys(["request_id"]),
            result: None,
            ticket: None,
            ticket_in_callback: None,
            done: None,
            result_url: None,
            hosts: Vec::new(),
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
    let done = optional(table.done.as_ref(), |raw| matching(cx, &key("done"), raw));
    let hosts = addresses::hosts(cx, &key("hosts"), table.hosts.as_ref());
    let has_ticket = table.ticket.is_some() || table.ticket_in_callback.is_some();
    let known = Known { url, hosts: hosts.as_deref().unwrap_or_default(), has_ticket };
    let result_url =
        optional(table.result_url.as_ref(), |raw| addresses::result_url(cx, whole, &key("result_url"), raw, known));
    // With result_url a callback need not repeat a ticket: it may be the first to have it.
    if let (None, None, Some(raw)) = (&table.ticket, &table.result_url, &table.ticket_in_callback) {
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
        done: done?,
        result_url: result_url?,
        hosts: hosts?,
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
