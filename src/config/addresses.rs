//! Where a vendor may be asked besides its `url`, checked: `polling.url`, `result_url`, and the `hosts` that its answers may lead to.
//!
//! Never repeats a URL that may hold a secret. Of a URL only its origin is named, which says where calls go.

use std::ops::Range;

use toml::Spanned;
use url::Url;

use super::{
    Address, Host,
    check::{Check, Whole, all},
    raw::{self, TextOr},
    templates::url_template,
};
use crate::vendor::{
    http::Origin,
    template::{Name, Template},
};

const MOST_HOSTS: usize = 64;

/// What is known of the vendor when its addresses are checked.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// The vendor's own `url`; `None` when it is wrong.
    pub(super) url: Option<&'a Template>,
    pub(super) hosts: &'a [Host],
    /// Whether the vendor gives a ticket.
    pub(super) has_ticket: bool,
}

/// Where the data is.
pub(super) fn result_url(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    key: &str,
    raw: &Spanned<TextOr<raw::At>>,
    known: Known<'_>,
) -> Option<Address> {
    let address = match raw.get_ref() {
        TextOr::Table(table) => {
            let key = format!("{key}.at");
            let mend = r#"Write { at = "/downloadUri" }, say: where the answer that says "done" has the URL"#;
            let at = cx.needed(&key, &raw.span(), &table.at, mend)?;
            Address::At(cx.pointer(&key, at)?)
        }
        TextOr::Text(text) => address(cx, whole, key, &Spanned::new(raw.span(), text.clone()), known)?,
    };
    if address.needs_ticket() && !known.has_ticket {
        let mend = "Write ticket = \"/id\" beside it: where the vendor's acceptance has its reference";
        return cx.refuse(key, &raw.span(), "this URL needs the vendor's ticket, and none is known", mend);
    }
    if let Address::Url(url) = &address
        && ![Name::Ticket, Name::RequestId, Name::Payload].iter().any(|name| url.uses(*name))
    {
        let mend = "Put {{ ticket | path }} (or {{ request_id | query }}) into it";
        return cx.refuse(key, &raw.span(), "this URL asks for no job's data in particular", mend);
    }
    Some(address)
}

/// `{{ ticket }}`, or a URL with what names the job in it.
pub(super) fn address(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    key: &str,
    raw: &raw::Text,
    known: Known<'_>,
) -> Option<Address> {
    let inside = raw.get_ref().trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
    if inside.is_some_and(|name| name.trim() == Name::Ticket.as_str()) {
        return Some(Address::Ticket);
    }
    let url = url_template(cx, key, raw)?;
    if url.uses(Name::CallbackUrl) {
        let what = "only the submitting call has a callback_url";
        return cx.refuse(key, &raw.span(), what, "Remove callback_url from it");
    }
    is_decided(cx, whole, key, &raw.span(), &url, known).then_some(Address::Url(url))
}

/// Whether it is said if a URL at another origin gets what says who we are.
fn is_decided(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    key: &str,
    span: &Range<usize>,
    url: &Template,
    known: Known<'_>,
) -> bool {
    let has_secrets = whole.raw.auth.is_some() || !whole.raw.headers.is_empty();
    let origin = url.origin().and_then(Origin::of);
    let (Some(origin), Some(own)) = (origin, known.url.and_then(Template::origin).and_then(Origin::of)) else {
        return true;
    };
    if !has_secrets || origin == own || known.hosts.iter().any(|host| host.origin == origin) {
        return true;
    }
    let what = "this URL is at another origin than url, and nothing says whether auth and headers go there";
    let mend = format!("Write hosts = [{{ origin = \"{origin}\", auth = true }}] beside it, or auth = false");
    cx.problem(key, span, what, mend);
    false
}

pub(super) fn hosts(cx: &mut Check<'_>, key: &str, raw: Option<&raw::Hosts>) -> Option<Vec<Host>> {
    let Some(raw) = raw else { return Some(Vec::new()) };
    if let Some(one_more) = raw.get_ref().get(MOST_HOSTS) {
        return cx.refuse(key, &one_more.span(), "these are too many hosts", format!("Have at most {MOST_HOSTS}"));
    }
    all(raw.get_ref().iter().enumerate().map(|(i, raw)| host(cx, &format!("{key}[{i}]"), raw)))
}

fn host(cx: &mut Check<'_>, key: &str, raw: &Spanned<TextOr<raw::Host>>) -> Option<Host> {
    let mend = r#"Write "https://files.example", or { origin = "https://files.example", auth = true }"#;
    let (key, text, auth) = match raw.get_ref() {
        TextOr::Text(text) => (key.to_owned(), Spanned::new(raw.span(), text.clone()), false),
        TextOr::Table(table) => {
            let key = format!("{key}.origin");
            let origin = cx.needed(&key, &raw.span(), &table.origin, mend)?.clone();
            (key, origin, table.auth.as_ref().is_some_and(|auth| *auth.get_ref()))
        }
    };
    let text = cx.text(&key, &text)?;
    let url = Url::parse(&text.text).ok().filter(is_origin);
    let origin = url.as_ref().and_then(Origin::of);
    if origin.is_none() {
        let what = "this is no origin: scheme, host and port, and nothing else";
        cx.problem(&key, &text.span, what, mend);
    }
    Some(Host { origin: origin?, auth })
}

/// Scheme, host and port, and nothing else.
pub(super) fn is_origin(url: &Url) -> bool {
    let is_bare = url.username().is_empty() && url.password().is_none();
    is_bare && url.path() == "/" && url.query().is_none() && url.fragment().is_none()
}
