//! Texts as people may see them: what came from variables and files is [`MASK`], and so is a key that was written out in a query.
//!
//! Never decides whether a text is right: that is looked at with its secrets filled in.

use super::{fill::fill, source::Env};
use crate::vendor::template::ends_in_string;

/// Stands for what is never shown. It can stand in a URL.
pub(super) const MASK: &str = "***";

/// A parameter of a query whose name holds one of these has a value that is not shown.
const SECRET_NAMES: [&str; 8] = ["key", "token", "secret", "pass", "pwd", "sig", "auth", "cred"];

/// A part of a text: as it was written, or filled in.
pub(super) struct Part {
    text: String,
    /// It came from a variable or a file.
    is_filled: bool,
}

/// The parts of a text that can be filled in as a whole.
pub(super) fn parts(text: &str, env: &Env) -> Vec<Part> {
    let filled = |text: &str| fill(text, env).map(|(text, _)| text).unwrap_or_default();
    let (mut parts, mut rest, mut seen) = (Vec::new(), text, 0);
    while let Some(at) = rest[seen..].find("${").map(|at| seen + at) {
        seen = at + "${".len();
        if rest[..at].ends_with('$') {
            continue; // `$${` is a plain `${`
        }
        let end = rest[seen..].find('}').map_or(rest.len(), |end| seen + end + 1);
        parts.push(Part { text: filled(&rest[..at]), is_filled: false });
        parts.push(Part { text: filled(&rest[at..end]), is_filled: true });
        (rest, seen) = (&rest[end..], 0);
    }
    parts.push(Part { text: filled(rest), is_filled: false });
    parts
}

/// The parts that were filled in.
pub(super) fn filled_in(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().filter(|part| part.is_filled && !part.text.is_empty()).map(|part| &*part.text)
}

/// A text in which nothing has a form of its own.
pub(super) fn text(parts: &[Part]) -> String {
    parts.iter().map(|part| if part.is_filled { MASK } else { &*part.text }).collect()
}

/// A JSON body: what is filled in inside of a string becomes a part of that string, anything else a string of its own.
pub(super) fn body(parts: &[Part]) -> String {
    let (mut shown, mut is_in_string) = (String::new(), false);
    for part in parts {
        if !part.is_filled {
            shown.push_str(&part.text);
            is_in_string = ends_in_string(&part.text, is_in_string);
        } else if is_in_string {
            shown.push_str(MASK);
        } else {
            shown.push_str(&format!("\"{MASK}\""));
        }
    }
    shown
}

/// A URL. Its scheme, host and port are kept wherever they came from: they say where calls go, and are no secret.
pub(super) fn url(parts: &[Part]) -> String {
    let whole: String = parts.iter().map(|part| &*part.text).collect();
    let target = whole.find("://").map_or(0, |at| {
        let host = at + "://".len();
        whole[host..].find(['/', '?', '#']).map_or(whole.len(), |at| host + at)
    });
    let (mut shown, mut start) = (String::with_capacity(whole.len()), 0);
    for part in parts {
        let end = start + part.text.len();
        let mut kept = if part.is_filled { target.saturating_sub(start).min(part.text.len()) } else { part.text.len() };
        if part.is_filled && start + kept == target {
            // What begins the path or the query is kept too, or it would be part of the host.
            kept = part.text[kept..].find(|c| !matches!(c, '/' | '?')).map_or(part.text.len(), |at| kept + at);
        }
        shown.push_str(&part.text[..kept]);
        shown.push_str(if start + kept < end { MASK } else { "" });
        start = end;
    }
    without_keys(&shown)
}

/// The URL with the values masked that are literal and, by their parameter's name, secret.
fn without_keys(url: &str) -> String {
    let Some((path, query)) = url.split_once('?') else { return url.to_owned() };
    let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
    let parameter = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if is_secret(name) && !value.is_empty() && !value.contains("{{") => {
            format!("{name}={MASK}")
        }
        _ => pair.to_owned(),
    };
    format!("{path}?{}{fragment}", query.split('&').map(parameter).collect::<Vec<_>>().join("&"))
}

/// Whether something of this name has a value that is not shown, wherever it comes from.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<` and `>` stand around what is filled in.
    fn parts(text: &str) -> Vec<Part> {
        let part = |(i, text): (usize, &str)| Part { text: text.to_owned(), is_filled: i % 2 == 1 };
        text.split(['<', '>']).enumerate().map(part).collect()
    }

    #[test]
    fn parts_are_what_is_filled_in_and_what_is_not() {
        let env = Env([("A".to_owned(), "s3cret".to_owned())].into());
        for (text, shown) in [("x${A}y", "x|y"), ("${A}${A}", "||"), ("$${A} ${A}", "${A} |"), ("plain", "plain")] {
            let parts = super::parts(text, &env);
            assert!(parts.iter().filter(|part| part.is_filled).all(|part| part.text == "s3cret"), "{text}");
            let mask = |part: &Part| if part.is_filled { "|".to_owned() } else { part.text.clone() };
            assert_eq!(parts.iter().map(mask).collect::<String>(), shown, "{text}");
        }
    }

    #[test]
    fn a_body_stays_json() {
        let table = [
            (r#"{"k": "<s3cret>", "n": <4711>}"#, r#"{"k": "***", "n": "***"}"#),
            (r#"{"k": "a\"<s3cret>", "p": {{ payload | json }}}"#, r#"{"k": "a\"***", "p": {{ payload | json }}}"#),
            (r#"{"k": "plain"}"#, r#"{"k": "plain"}"#),
        ];
        for (written, shown) in table {
            assert_eq!(body(&parts(written)), shown, "{written}");
        }
    }

    #[test]
    fn a_url_keeps_its_host_and_loses_its_secrets() {
        let table = [
            ("https://h/a?b=c", "https://h/a?b=c"),
            ("https://h/a?k=<s3cret>&b={{ payload.b | query }}", "https://h/a?k=***&b={{ payload.b | query }}"),
            ("https://h/<s3cret>/x<s3cret>", "https://h/***/x***"),
            ("<https://h:1>/a", "https://h:1/a"),
            ("<https://h/s3cret>/a", "https://h/***/a"),
            ("<https://h/>a", "https://h/a"),
            ("<https://h?>a=1", "https://h?a=1"),
            ("https://<h>/<s3cret>", "https://h/***"),
            ("<https>://<h>:<1>/", "https://h:1/"),
            ("<https://h/s3cret?key=s3cret>", "https://h/***"),
            ("https://h/?api_key=s3cret&Token=s3cret&q=1&sig=", "https://h/?api_key=***&Token=***&q=1&sig="),
            ("https://h/?key={{ payload.key | query }}&flag", "https://h/?key={{ payload.key | query }}&flag"),
            ("<s3cret>", "***"),
            ("mailto:<s3cret>", "mailto:***"),
        ];
        for (written, shown) in table {
            assert_eq!(url(&parts(written)), shown, "{written}");
        }
    }
}
