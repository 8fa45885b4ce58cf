//! Templates in vendor URLs, headers and bodies: literal text with `{{ name | filter }}` in it.
//!
//! What a job brings can never change where a call goes or what else is said: scheme, host and port are literal, a value in a path stays
//! in the path, a value in a header stays in its line, a value in a body stays one JSON value, one field or one XML text. Errors never
//! repeat literal text, because it may hold secrets.

use std::{fmt, sync::Arc};

use serde_json::value::RawValue;
use url::Url;

pub(crate) use self::read::ends_in_string;
use self::{
    expr::{Expr, Filter},
    read::{Part, check_target, fail, has_dot_segment, is_visible, json_pieces, parse, split_origin},
};
use crate::json;

mod expr;
mod read;
#[cfg(test)]
mod tests;
mod xml;

/// The longest path and query that we send; RFC 9110 asks servers to take 8,000 bytes.
pub const MAX_TARGET: usize = 8 * 1024;
/// The longest value of a header: many servers take 8 KiB for all headers together.
const MAX_HEADER: usize = 4 * 1024;
/// The longest body that we send, in bytes.
pub const MAX_CONTENT: usize = 8 << 20;

/// What a template may speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Payload,
    RequestId,
    CallbackUrl,
    Ticket,
    Tenant,
}

impl Name {
    pub const ALL: [Name; 5] = [Name::Payload, Name::RequestId, Name::CallbackUrl, Name::Ticket, Name::Tenant];

    pub fn as_str(self) -> &'static str {
        match self {
            Name::Payload => "payload",
            Name::RequestId => "request_id",
            Name::CallbackUrl => "callback_url",
            Name::Ticket => "ticket",
            Name::Tenant => "tenant",
        }
    }
}

/// What the names stand for in one call.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub request_id: &'a str,
    pub payload: &'a RawValue,
    pub callback_url: Option<&'a str>,
    pub ticket: Option<&'a str>,
    pub tenant: &'a str,
}

/// Why a template is refused, for the person who writes the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// Why a job cannot be put into a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer} {detail}")]
pub struct RenderError {
    /// The value, such as `/payload/region` or `/ticket`.
    pub pointer: String,
    pub detail: String,
}

/// A checked template. `{:?}` shows no literal text.
#[derive(Clone)]
pub struct Template {
    pieces: Vec<Piece>,
    place: Place,
    /// The same with its secrets masked, where it has some.
    shown: Option<Arc<Template>>,
}

/// What a template is for.
#[derive(Clone)]
enum Place {
    /// Path and query, with this scheme, host and port.
    Url(Url),
    Header,
    Json,
    /// Any other text in a body.
    Text,
}

impl Place {
    /// Bytes of what is rendered at most, and what to say of more.
    fn most(&self) -> (usize, &'static str) {
        match self {
            Place::Url(_) => (MAX_TARGET, "makes the URL too long: path and query may have 8192 bytes"),
            Place::Header => (MAX_HEADER, "makes the header too long: its value may have 4096 bytes"),
            Place::Json | Place::Text => (MAX_CONTENT, "makes the body too large: it may have 8 MiB"),
        }
    }
}

#[derive(Clone)]
enum Piece {
    Literal(String),
    Value { expr: Expr, filter: Filter },
}

impl Template {
    /// Reads a URL: `http` or `https`, literal up to the path, `| path` or `| path_all` in the path, `| query` after the question mark.
    pub fn url(text: &str) -> Result<Template, TemplateError> {
        let (origin, target) = split_origin(text)?;
        let mut pieces = Vec::new();
        if !target.starts_with('/') {
            pieces.push(Piece::Literal("/".to_owned()));
        }
        let mut allowed: &[Filter] = &[Filter::Path, Filter::PathAll];
        for part in parse(target)? {
            if let Part::Literal(literal) = part {
                check_target(literal)?;
                if literal.contains('?') {
                    allowed = &[Filter::Query];
                }
            }
            pieces.push(part.checked(allowed)?);
        }
        let template = Template::bounded(pieces, Place::Url(origin))?;
        // Dots that are wrong around a letter are wrong around every value.
        if has_dot_segment(&template.filled_with("x")) {
            return fail("a URL's path must not have `.` or `..` as a segment");
        }
        Ok(template)
    }

    /// Reads a JSON body, in which every `{{ name | json }}` stands where a JSON value can.
    pub fn body(text: &str) -> Result<Template, TemplateError> {
        let template = Template::bounded(json_pieces(text)?, Place::Json)?;
        match json::check(template.filled_with("null").as_bytes()) {
            Ok(_) => Ok(template),
            Err(e) => fail(format!("with null in place of every expression the body is {e}")),
        }
    }

    /// Reads a header's value: visible ASCII and spaces, with `| header`.
    pub fn header(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = Vec::new();
        for part in parse(text)? {
            if matches!(part, Part::Literal(literal) if !is_visible(literal)) {
                return fail("a header's value has visible ASCII characters and spaces only");
            }
            pieces.push(part.checked(&[Filter::Header])?);
        }
        Template::bounded(pieces, Place::Header)
    }

    /// Reads the value of a form's field, which takes no filters: it is encoded as a whole.
    pub fn field(text: &str) -> Result<Template, TemplateError> {
        let pieces = parse(text)?.into_iter().map(|part| part.checked(&[Filter::Plain]));
        Template::bounded(pieces.collect::<Result<_, _>>()?, Place::Text)
    }

    /// Reads a body of another media type (`text/xml`). In XML, values stand in content or in quotes, with `| xml` or `| query`; in JSON
    /// lines where a JSON value can, with `| json`; in plain text anywhere, with or without a filter; elsewhere with one.
    pub fn text(text: &str, media_type: &str) -> Result<Template, TemplateError> {
        let allowed: &[Filter] = match media_type {
            "text/plain" => &[Filter::Plain, Filter::Xml, Filter::Json, Filter::Query],
            json if json.ends_with("json") => return Template::bounded(json_pieces(text)?, Place::Text),
            xml if xml.ends_with("/xml") || xml.ends_with("+xml") => &[Filter::Xml, Filter::Query],
            _ => &[Filter::Xml, Filter::Json, Filter::Query],
        };
        let is_xml = !allowed.contains(&Filter::Json);
        let (mut pieces, mut at) = (Vec::new(), xml::At::Content);
        for part in parse(text)? {
            match &part {
                Part::Literal(literal) => at = at.after(literal),
                Part::Expr { expr, .. } if is_xml && !at.takes_values() => {
                    return fail(format!(
                        "`{expr}` stands inside of a tag, a comment or CDATA; in XML a value stands in an element or between an attribute's quotes"
                    ));
                }
                Part::Expr { .. } => {}
            }
            pieces.push(part.checked(allowed)?);
        }
        if is_xml && at != xml::At::Content {
            return fail("the XML ends inside of a tag, a comment or CDATA");
        }
        Template::bounded(pieces, Place::Text)
    }

    fn bounded(mut pieces: Vec<Piece>, place: Place) -> Result<Template, TemplateError> {
        pieces.retain(|piece| !matches!(piece, Piece::Literal(literal) if literal.is_empty()));
        let template = Template { pieces, place, shown: None };
        let (most, too_long) = template.place.most();
        if template.filled_with("").len() > most {
            fail(format!("what is written out {too_long}"))
        } else {
            Ok(template)
        }
    }

    /// Scheme, host and port of a URL template, with `/` as its path. Nothing else has one.
    pub fn origin(&self) -> Option<&Url> {
        match &self.place {
            Place::Url(origin) => Some(origin),
            _ => None,
        }
    }

    /// Shows nothing but the host: for a template whose masked text is none.
    pub fn hidden(&self) -> Template {
        let text = match self.place {
            Place::Url(_) => "/***",
            Place::Json => "\"***\"",
            Place::Header | Place::Text => "***",
        };
        Template { pieces: vec![Piece::Literal(text.to_owned())], place: self.place.clone(), shown: None }
    }

    /// The same template, which people see as `shown`.
    #[must_use]
    pub fn shown_as(self, shown: Template) -> Template {
        Template { shown: Some(Arc::new(shown)), ..self }
    }

    /// The template as people may see it, and what it renders to: every secret is masked.
    pub fn shown(&self) -> &Template {
        self.shown.as_deref().unwrap_or(self)
    }

    /// Whether the name occurs.
    pub fn uses(&self, name: Name) -> bool {
        self.expressions().any(|(expr, _)| expr.name == name)
    }

    /// A URL's path and query, which starts with a slash and is visible ASCII throughout; a header's value; or a body.
    ///
    /// With `| json` what is missing becomes `null`, and payload values are written as they came. Every other value must be there and be a
    /// string, a number or a boolean. What is rendered is bounded.
    pub fn render(&self, scope: &Scope<'_>) -> Result<String, RenderError> {
        let mut out = String::new();
        let (most, too_long) = self.place.most();
        let mut room = most.saturating_sub(self.filled_with("").len());
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => out.push_str(literal),
                Piece::Value { expr, filter } => {
                    let start = out.len();
                    expr.write(*filter, scope, room, &mut out)?;
                    room = room.checked_sub(out.len() - start).ok_or_else(|| expr.fault(too_long))?;
                }
            }
        }
        Ok(out)
    }

    /// The values of a form's field. One that is a single expression has none if there is no value, or null, and one for each element of an
    /// array; every other has one.
    pub fn render_field(&self, scope: &Scope<'_>) -> Result<Vec<String>, RenderError> {
        match &*self.pieces {
            [Piece::Value { expr, .. }] => expr.texts(scope),
            _ => Ok(vec![self.render(scope)?]),
        }
    }

    fn filled_with(&self, stand_in: &str) -> String {
        let texts = self.pieces.iter().map(|piece| match piece {
            Piece::Literal(literal) => literal,
            Piece::Value { .. } => stand_in,
        });
        texts.collect()
    }

    fn expressions(&self) -> impl Iterator<Item = (&Expr, Filter)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Value { expr, filter } => Some((expr, *filter)),
        })
    }
}

/// As it can be written, with its literal text: only of what [`Template::shown`] gives may this be shown.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.origin().map_or("", |origin| origin.as_str().trim_end_matches('/')))?;
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Literal(literal) => f.write_str(literal),
            Piece::Value { expr, filter } => f.write_str(&expr.written(*filter)),
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expressions = self.expressions().map(|(expr, filter)| expr.written(filter));
        f.debug_tuple("Template").field(&expressions.collect::<Vec<_>>()).finish()
    }
}
