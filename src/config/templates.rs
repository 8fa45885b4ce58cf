//! Templates of a vendor, checked: its URLs and its body. Each gets a twin that may be shown.
//!
//! Errors never repeat a URL, for people put keys into the query, nor what was filled in from variables and files.

use hyper::Method;

use super::{
    check::{Check, Filled},
    mask, raw,
};
use crate::vendor::template::{Template, TemplateError};

/// A URL whose path and query may be templates.
pub(super) fn url_template(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Template> {
    let text = cx.text(key, raw)?;
    let mend = "Write an http or https URL, with {{ ... }} only in path and query";
    no_templates_filled_in(cx, key, &text, raw)?;
    let shown = Template::url(&mask::url(&cx.parts(raw)));
    match Template::url(&text.text) {
        Ok(template) => {
            let shown = shown.unwrap_or_else(|_| template.hidden());
            Some(template.shown_as(shown))
        }
        Err(why) => {
            cx.problem(key, &text.span, unusable("URL", &text, why, shown.err()), mend);
            None
        }
    }
}

pub(super) fn body_template(
    cx: &mut Check<'_>,
    key: &str,
    raw: &raw::Text,
    method: Option<&Method>,
) -> Option<Template> {
    let text = cx.text(key, raw)?;
    if method == Some(&Method::GET) {
        cx.problem(key, &text.span, "a GET sends no body", "Remove body, or write method = \"POST\"");
        return None;
    }
    no_templates_filled_in(cx, key, &text, raw)?;
    let shown = Template::body(&mask::body(&cx.parts(raw)));
    match Template::body(&text.text) {
        Ok(template) => {
            let shown = shown.unwrap_or_else(|_| template.hidden());
            Some(template.shown_as(shown))
        }
        Err(why) => {
            let mend = "Write JSON with {{ payload.name | json }} where values go";
            cx.problem(key, &text.span, unusable("body", &text, why, shown.err()), mend);
            None
        }
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
        cx.problem(key, &text.span, what, "Write templates here, not into variables or files");
        return None;
    }
    Some(())
}
