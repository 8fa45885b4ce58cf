//! Templates of a vendor, checked: its URLs, its headers and its body. Each gets a twin that may be shown.
//!
//! Errors never repeat a URL, for people put keys into the query, nor what was filled in from variables and files.

use hyper::{
    Method,
    header::{HeaderName, HeaderValue},
};
use toml::Spanned;

use super::{
    check::{Check, Filled, all, quoted_key},
    mask::{self, Part},
    raw,
    secret::fits_header,
};
use crate::vendor::{
    body::Body,
    template::{Template, TemplateError},
};

/// Fields of a form at most.
const MOST_FIELDS: usize = 100;

/// The templates of a submitting call, as far as they can be used.
pub(super) struct Sends<'a> {
    pub(super) url: Option<&'a Template>,
    pub(super) body: Option<&'a Body>,
    pub(super) headers: Option<&'a [(HeaderName, Template)]>,
}

/// What a template is for, as its checks need it.
struct Use<'a> {
    what: &'a str,
    mend: &'a str,
    read: &'a dyn Fn(&str) -> Result<Template, TemplateError>,
    mask: fn(&[Part]) -> String,
}

/// A URL whose path and query may be templates.
pub(super) fn url_template(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Template> {
    let mend = "Write an http or https URL, with {{ ... }} only in path and query";
    template(cx, key, raw, &Use { what: "URL", mend, read: &Template::url, mask: mask::url })
}

/// The value of a header, with a template in it.
pub(super) fn header_template(cx: &mut Check<'_>, key: &str, name: &str, raw: &raw::Text) -> Option<Template> {
    if raw.get_ref().contains("${file:") {
        let mend = "Give the secret of the file a header of its own, or put it into auth";
        return cx.refuse(key, &raw.span(), "a header with {{ }} in it cannot have a file too, which may change", mend);
    }
    let mend = "Write visible ASCII, with {{ tenant | header }} or {{ payload.name | header }} where values go";
    let value = template(cx, key, raw, &Use { what: "header", mend, read: &Template::header, mask: mask::text })?;
    if mask::is_secret(name) {
        let hidden = value.hidden();
        return Some(value.shown_as(hidden));
    }
    Some(value)
}

/// JSON, a form or a text of another type.
pub(super) fn body(cx: &mut Check<'_>, key: &str, raw: &Spanned<raw::Body>, method: Option<&Method>) -> Option<Body> {
    if method == Some(&Method::GET) {
        return cx.refuse(key, &raw.span(), "a GET sends no body", "Remove body, or write method = \"POST\"");
    }
    let table = match raw.get_ref() {
        raw::TextOr::Text(text) => {
            let mend = "Write JSON with {{ payload.name | json }} where values go";
            let json = Use { what: "body", mend, read: &Template::body, mask: mask::body };
            return template(cx, key, &Spanned::new(raw.span(), text.clone()), &json).map(Body::Json);
        }
        raw::TextOr::Table(table) => table,
    };
    match (&table.form, &table.text, &table.kind) {
        (Some(fields), None, None) => form(cx, &format!("{key}.form"), fields).map(Body::Form),
        (None, Some(text), Some(kind)) => text_body(cx, key, text, kind),
        (None, Some(_), None) => {
            let mend = r#"Write what it is: type = "text/xml; charset=utf-8", say"#;
            cx.refuse(&format!("{key}.type"), &raw.span(), "this key is required with text", mend)
        }
        _ => {
            let mend = r#"Write { form = { To = "{{ payload.to }}" } } or { text = "<q/>", type = "text/xml; charset=utf-8" }"#;
            cx.refuse(key, &raw.span(), "a body is either a form, or a text with its type", mend)
        }
    }
}

fn form(
    cx: &mut Check<'_>,
    key: &str,
    raw: &Spanned<std::collections::BTreeMap<String, raw::Text>>,
) -> Option<Vec<(String, Template)>> {
    let fields = raw.get_ref();
    if fields.is_empty() || fields.len() > MOST_FIELDS {
        let what = format!("a form with {} fields cannot be sent", fields.len());
        return cx.refuse(key, &raw.span(), what, format!("Have 1 to {MOST_FIELDS}"));
    }
    let field = |(name, value): (&String, &raw::Text)| {
        let key = format!("{key}.{}", quoted_key(name));
        if name.contains("{{") || name.contains("${") {
            return cx.refuse(&key, &value.span(), "the name of a field is sent as it is written", "Write it out");
        }
        let mend = "Write a text, with {{ payload.name }} where values go";
        let field = Use { what: "field", mend, read: &Template::field, mask: mask::text };
        let read = template(cx, &key, value, &field)?;
        let is_written_out = mask::is_secret(name) && !value.get_ref().contains("{{");
        let hidden = read.hidden();
        Some((name.clone(), if is_written_out { read.shown_as(hidden) } else { read }))
    };
    all(fields.iter().map(field))
}

fn text_body(cx: &mut Check<'_>, key: &str, raw: &raw::Text, kind: &raw::Text) -> Option<Body> {
    let kind_key = format!("{key}.type");
    let kind = cx.text(&kind_key, kind)?;
    let mut parts = kind.text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let media_type = parts.next().unwrap_or_default();
    let is_type = media_type.split_once('/').is_some_and(|(of, what)| !of.is_empty() && !what.is_empty());
    if !is_type || !fits_header(&kind.text) {
        let mend = r#"Write "text/xml; charset=utf-8", say"#;
        return cx.refuse(&kind_key, &kind.span, format!("{} is not a media type", kind.shown), mend);
    }
    let charset = parts.find_map(|part| Some(part.strip_prefix("charset=")?.trim_matches('"').to_owned()));
    if charset.is_some_and(|charset| charset != "utf-8") {
        return cx.refuse(&kind_key, &kind.span, "bodies are sent in UTF-8", "Write charset=utf-8, or no charset");
    }
    let mend = "Write {{ payload.name | xml }} (or | json, | query) where values go";
    let read = |text: &str| Template::text(text, &media_type);
    let text = template(cx, &format!("{key}.text"), raw, &Use { what: "text", mend, read: &read, mask: mask::text })?;
    Some(Body::Text { text, kind: HeaderValue::from_str(&kind.text).ok()? })
}

fn template(cx: &mut Check<'_>, key: &str, raw: &raw::Text, used: &Use<'_>) -> Option<Template> {
    let text = cx.text(key, raw)?;
    no_templates_filled_in(cx, key, &text, raw)?;
    let masked = (used.read)(&(used.mask)(&cx.parts(raw)));
    match (used.read)(&text.text) {
        Ok(template) => {
            let shown = masked.unwrap_or_else(|_| template.hidden());
            Some(template.shown_as(shown))
        }
        Err(why) => cx.refuse(key, &text.span, unusable(used.what, &text, why, masked.err()), used.mend),
    }
}

/// A reason may name what was filled in, so with secrets it is the one of the masked text. Where that can be used, a secret is the reason.
fn unusable(what: &str, text: &Filled, why: TemplateError, masked: Option<TemplateError>) -> String {
    let why = match if text.is_filled { masked } else { Some(why) } {
        Some(why) => why.to_string(),
        None => "what is filled in has characters that cannot stand there as they are".to_owned(),
    };
    format!("this {what} cannot be used: {why}")
}

/// A secret is never a template, whatever is in it.
fn no_templates_filled_in(cx: &mut Check<'_>, key: &str, text: &Filled, raw: &raw::Text) -> Option<()> {
    let count = |text: &str| text.matches("{{").count();
    if text.is_filled && count(&text.text) != count(raw.get_ref()) {
        let what = format!("what is filled into {} holds {{{{", text.shown);
        return cx.refuse(key, &text.span, what, "Write templates here, not into variables or files");
    }
    Some(())
}
