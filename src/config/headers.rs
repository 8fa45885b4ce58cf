//! Headers of a vendor, checked: fixed ones, templates, and the one that says that two calls are the same.
//!
//! Never repeats a value, because it may be a secret.

use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderName, USER_AGENT};
use toml::Spanned;

use super::{
    Auth, LiveSecret,
    auth::OUR_HEADERS,
    check::{Check, Whole, quoted_key},
    secret::fits_header,
    templates::header_template,
};
use crate::vendor::{body::Body, template::Template};

const MOST_HEADERS: usize = 64;

pub(super) struct Headers {
    pub(super) fixed: Vec<(HeaderName, LiveSecret)>,
    pub(super) templates: Vec<(HeaderName, Template)>,
    /// Which header has the id that stays the same when a call is repeated.
    pub(super) idempotency: Option<HeaderName>,
}

pub(super) fn headers(
    cx: &mut Check<'_>,
    whole: &Whole<'_>,
    auth: Option<&Auth>,
    body: Option<&Body>,
) -> Option<Headers> {
    let raw = &whole.raw.headers;
    let idempotency = idempotency(cx, whole, auth)?;
    if raw.len() > MOST_HEADERS {
        let mend = format!("Have at most {MOST_HEADERS}");
        return cx.refuse(&whole.key("headers"), &whole.span, format!("{} headers are too many", raw.len()), mend);
    }
    let says_its_type = matches!(body, Some(Body::Form(_) | Body::Text { .. }));
    let mut headers = Headers { fixed: Vec::new(), templates: Vec::new(), idempotency };
    for (name, value) in raw {
        let key = format!("{}.{}", whole.key("headers"), quoted_key(name));
        let mut wrong = |what: &str, mend: &str| cx.problem(&key, &value.span(), what, mend);
        let Ok(header) = HeaderName::try_from(name.as_str()) else {
            wrong("this is not a header's name", "Use letters, digits and - in it");
            continue;
        };
        if OUR_HEADERS.contains(&header.as_str()) {
            wrong("this header is set by Fetchgate", "Remove it");
        } else if headers.idempotency.as_ref() == Some(&header) {
            wrong("this header is set by Fetchgate", "Remove it, or write idempotency_header = \"\"");
        } else if headers.has(&header) {
            wrong("this header is there twice", "Remove one of the two; upper and lower case are the same here");
        } else if says_its_type && header == CONTENT_TYPE {
            wrong("the body says itself what it is", "Remove this header; a text has a type = \"...\"");
        }
        if value.get_ref().contains("{{") {
            headers.templates.extend(header_template(cx, &key, name, value).map(|value| (header, value)));
        } else {
            headers.fixed.extend(cx.secret(&key, value, fits_header).map(|value| (header, value)));
        }
    }
    (headers.fixed.len() + headers.templates.len() == raw.len()).then_some(headers)
}

impl Headers {
    fn has(&self, header: &HeaderName) -> bool {
        let fixed = self.fixed.iter().map(|(name, _)| name);
        fixed.chain(self.templates.iter().map(|(name, _)| name)).any(|name| name == header)
    }
}

/// `Some(None)`: calls have no such header.
fn idempotency(cx: &mut Check<'_>, whole: &Whole<'_>, auth: Option<&Auth>) -> Option<Option<HeaderName>> {
    let written = whole.raw.idempotency_header.as_ref();
    let key = whole.key(if written.is_some() { "idempotency_header" } else { "auth.name" });
    let (name, span) = match written {
        Some(raw) => (cx.text(&key, raw)?.text, raw.span()),
        // What can be wrong with our own name for it is that auth has taken it.
        None => ("Idempotency-Key".to_owned(), whole.raw.auth.as_ref().map_or(whole.span.clone(), Spanned::span)),
    };
    if name.is_empty() {
        return Some(None);
    }
    let mut wrong = |what: &str, mend: &str| cx.refuse(&key, &span, what, mend);
    let Ok(name) = HeaderName::try_from(name) else {
        return wrong("this is not a header's name", r#"Write "Idempotency-Key", another name, or "" for none"#);
    };
    // The last four say what a request is and what its answer may be.
    if OUR_HEADERS.contains(&name.as_str()) || [ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT].contains(&name) {
        return wrong("this header says something else of a request", "Name another header");
    }
    if auth.is_some_and(|auth| auth.headers().contains(&name)) {
        let what = "auth sets the header that has the id of repeated calls";
        return wrong(what, r#"Name another header, or write idempotency_header = "" for none"#);
    }
    Some(Some(name))
}
