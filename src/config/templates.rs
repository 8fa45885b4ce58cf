//! Templates of a vendor, checked: its URLs and its body.
//!
//! Never repeats a URL, for people put keys into the query, nor what was filled in from variables and files.

use hyper::Method;

use super::{
    check::{Check, Filled},
    raw,
};
use crate::vendor::template::{Template, TemplateError};

/// A URL whose path and query may be templates. Never repeats it: people put keys into the query.
pub(super) fn url_template(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Template> {
    let text = cx.text(key, raw)?;
    let mend = "Write an http or https URL, with {{ ... }} only in path and query";
    no_templates_filled_in(cx, key, &text, raw)?;
    match Template::url(&text.text) {
        Ok(template) => Some(template),
        Err(why) => {
            cx.problem(key, &text.span, unusable("URL", &text, &why), mend);
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
    match Template::body(&text.text) {
        Ok(template) => Some(template),
        Err(why) => {
            let mend = "Write JSON with {{ payload.name | json }} where values go";
            cx.problem(key, &text.span, unusable("body", &text, &why), mend);
            None
        }
    }
}

/// The reason names what stands between `{{` and `}}`, which may have been filled in.
fn unusable(what: &str, text: &Filled, why: &TemplateError) -> String {
    if text.is_filled {
        format!("this {what}, once filled in, cannot be used")
    } else {
        format!("this {what} cannot be used: {why}")
    }
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
