//! How a vendor is asked whether it is done, checked.
//!
//! Never repeats a URL that may hold a secret.

use super::{
    Polling,
    check::{Check, LONGEST, Whole, optional, required},
    raw,
    replies::matching,
    templates::url_template,
};
use crate::vendor::template::{Name, Template};

pub(super) fn polling(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Polling> {
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
