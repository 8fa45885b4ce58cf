//! Reading templates: where the expressions are, what they name, and whether what is literal is safe in its place.
//!
//! Never renders anything.

use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;
use url::Url;

use super::{Expr, Filter, Name, Piece, TemplateError};
use crate::json::{self, Pointer};

/// A template as read, before it is known which filter has to stand where.
pub(super) enum Part<'t> {
    Literal(&'t str),
    Expr { expr: Expr, filter: Option<&'t str> },
}

impl Part<'_> {
    /// The part as it is kept, if its filter is one of these.
    pub(super) fn checked(self, allowed: &[Filter]) -> Result<Piece, TemplateError> {
        let (expr, filter) = match self {
            Part::Literal(literal) => return Ok(Piece::Literal(literal.to_owned())),
            Part::Expr { expr, filter } => (expr, filter),
        };
        if let Some(filter) = allowed.iter().copied().find(|one| one.as_str() == filter) {
            return Ok(Piece::Value { expr, filter });
        }
        let fault = match filter {
            None => "needs a filter",
            Some(_) if *allowed == [Filter::Plain] => "takes no filter",
            Some(_) => "has a filter that does not fit here",
        };
        let forms = allowed.iter().map(|filter| format!("`{}`", expr.written(*filter)));
        fail(format!("`{expr}` {fault}: write {}", forms.collect::<Vec<_>>().join(" or ")))
    }
}

/// The parts of JSON text, in which an expression stands outside of strings.
pub(super) fn json_pieces(text: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut is_in_string = false;
    for part in parse(text)? {
        match &part {
            Part::Literal(literal) => is_in_string = ends_in_string(literal, is_in_string),
            Part::Expr { expr, .. } if is_in_string => {
                return fail(format!(
                    "`{expr}` stands inside a JSON string; `| json` writes the quotes itself, so leave them out"
                ));
            }
            Part::Expr { .. } => {}
        }
        pieces.push(part.checked(&[Filter::Json])?);
    }
    Ok(pieces)
}

pub(super) fn fail<T>(detail: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(detail.into()))
}

pub(super) fn parse(text: &str) -> Result<Vec<Part<'_>>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((literal, inside)) = rest.split_once("{{") {
        parts.push(Part::Literal(literal));
        let mut reader = Reader(inside);
        let part = reader.expression().map_err(|e| match parts.len() / 2 {
            0 => e,
            before => TemplateError(format!("{e} (in expression {})", before + 1)),
        })?;
        parts.push(part);
        rest = reader.0;
    }
    parts.push(Part::Literal(rest));
    Ok(parts)
}

/// Reads one expression off the front of a text.
struct Reader<'t>(&'t str);

impl<'t> Reader<'t> {
    /// What follows `{{`, up to and with `}}`.
    fn expression(&mut self) -> Result<Part<'t>, TemplateError> {
        self.space();
        let name = self.name()?;
        let keys = self.keys()?;
        if name != Name::Payload && !keys.is_empty() {
            return fail(format!("`{}` is a plain text and has no parts", name.as_str()));
        }
        self.space();
        let mut filter = None;
        if self.eat("|") {
            self.space();
            filter = Some(self.word());
            self.space();
        }
        if !self.eat("}}") {
            return fail(format!("`{}` has to be followed by a filter and `}}}}`", name.as_str()));
        }
        Ok(Part::Expr { expr: Expr { name, at: Pointer::from_keys(keys) }, filter })
    }

    fn name(&mut self) -> Result<Name, TemplateError> {
        let word = self.word();
        if let Some(name) = Name::ALL.into_iter().find(|name| name.as_str() == word) {
            return Ok(name);
        }
        let known = Name::ALL.map(Name::as_str).join("`, `");
        match word {
            "" => fail(format!("`{{{{` has to be followed by one of `{known}`")),
            // A long word is no slip of the pen, and could be anything.
            long if long.len() > 40 => fail(format!("unknown name; known are `{known}`")),
            word => fail(format!("unknown name `{word}`; known are `{known}`")),
        }
    }

    /// `.key`, `["any key"]` and `[0]`, as many as there are.
    fn keys(&mut self) -> Result<Vec<String>, TemplateError> {
        const HELP: &str = "a part of the payload is written `payload.key`, `payload[\"any key\"]` or `payload[0]`";
        let mut keys = Vec::new();
        loop {
            if self.eat(".") {
                let key = self.word();
                if key.is_empty() {
                    return fail(HELP);
                }
                keys.push(key.to_owned());
            } else if self.eat("[") {
                let mut values = serde_json::Deserializer::from_str(self.0).into_iter::<&RawValue>();
                let key = values.next().and_then(Result::ok);
                let Some(key) = key.filter(|key| key.get().starts_with(|c: char| c == '"' || c.is_ascii_digit()))
                else {
                    return fail(HELP);
                };
                keys.push(json::text(key).into_owned());
                self.0 = &self.0[values.byte_offset()..];
                self.space();
                if !self.eat("]") {
                    return fail(HELP);
                }
            } else {
                return Ok(keys);
            }
        }
    }

    fn word(&mut self) -> &'t str {
        let end = self.0.find(|c| !is_plain(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word
    }

    fn space(&mut self) {
        self.0 = self.0.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

/// May stand in a key after a dot.
pub(super) fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '$' | '@')
}

/// Splits a URL into its checked origin and what follows: nothing, or what begins with a slash or a question mark.
pub(super) fn split_origin(text: &str) -> Result<(Url, &str), TemplateError> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| text.starts_with(scheme));
    let Some(scheme) = scheme else {
        return fail("a vendor's URL starts with `http://` or `https://`, written out");
    };
    let end = text[scheme.len()..].find(['/', '?', '#']).map_or(text.len(), |end| scheme.len() + end);
    let (origin, target) = text.split_at(end);
    // The parser would read a backslash as a slash and drop tabs and line ends.
    if origin.contains(|c: char| matches!(c, '{' | '}' | '\\') || c.is_whitespace() || c.is_control()) {
        return fail("a URL's host and port are literal: `{{ }}` may only stand in the path and the query");
    }
    if origin.contains('@') {
        return fail("a URL must not have a user or password: put them into a header");
    }
    match Url::parse(origin) {
        Ok(url) => Ok((url, target)),
        Err(e) => fail(format!("the URL's host and port cannot be read: {e}")),
    }
}

/// Literal text goes out as it is, so it has to be what a request line can hold.
pub(super) fn check_target(literal: &str) -> Result<(), TemplateError> {
    let bytes = literal.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'#' => return fail("a URL's fragment (`#`) is never sent: leave it out, or write `%23`"),
            b'%' if bytes[at + 1..].iter().take(2).filter(|b| b.is_ascii_hexdigit()).count() < 2 => {
                return fail("a `%` in a URL is followed by two hexadecimal digits, or written `%25`");
            }
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | ..=b' ' | 0x7F.. => {
                return fail(format!("a URL's path and query must have such a character encoded: `%{byte:02X}`"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `.` or `..` in the path, however they are written.
pub(super) fn has_dot_segment(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    path.split('/').any(|segment| matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | ".."))
}

/// `.` or `..` as a segment of a value, as it is or percent-encoded once.
pub(super) fn leads_elsewhere(value: &str) -> bool {
    let decoded = percent_decode_str(value).decode_utf8_lossy();
    decoded.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

/// Whether it can be in a header: visible ASCII and spaces.
pub(super) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// Whether JSON text, which began in a string or not, ends in one.
pub(crate) fn ends_in_string(literal: &str, starts_in_string: bool) -> bool {
    let mut is_in_string = starts_in_string;
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => is_in_string = !is_in_string,
            '\\' if is_in_string => _ = chars.next(),
            _ => {}
        }
    }
    is_in_string
}
