//! One expression of a template: what it names, and how its value is written in its place.
//!
//! Never knows what stands around it, except that a path may end before it.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::value::RawValue;

use super::{
    Name, RenderError, Scope,
    read::{is_plain, is_visible, leads_elsewhere},
    xml,
};
use crate::json::{self, Pointer};

/// Everything but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same for a path of several segments.
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// A name and, for the payload, a place in it.
#[derive(Clone)]
pub(super) struct Expr {
    pub(super) name: Name,
    pub(super) at: Pointer,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// As one segment of a path.
    Path,
    /// As one or more segments.
    PathAll,
    Query,
    Json,
    Header,
    Xml,
    /// As it is: for what is encoded as a whole later, and where nothing can be broken.
    Plain,
}

impl Filter {
    pub(super) fn as_str(self) -> Option<&'static str> {
        Some(match self {
            Filter::Path => "path",
            Filter::PathAll => "path_all",
            Filter::Query => "query",
            Filter::Json => "json",
            Filter::Header => "header",
            Filter::Xml => "xml",
            Filter::Plain => return None,
        })
    }
}

impl Expr {
    /// Adds the value to what is rendered so far. No megabyte is encoded only to be refused: it may stop after more than `room` bytes.
    pub(super) fn write(
        &self,
        filter: Filter,
        scope: &Scope<'_>,
        room: usize,
        out: &mut String,
    ) -> Result<(), RenderError> {
        let encode = |text: &str, set: &'static AsciiSet, out: &mut String| {
            out.extend(utf8_percent_encode(text, set).take(room.saturating_add(1)));
        };
        match filter {
            Filter::Json => out.push_str(&self.json(scope)),
            Filter::Plain => out.push_str(&self.scalar(scope)?),
            Filter::Query => encode(&self.scalar(scope)?, ENCODED, out),
            Filter::Path => {
                let text = self.scalar(scope)?;
                // A dot segment would lead to another place; one with a value in it has nothing but dots in the value.
                if matches!(&*text, "" | "." | "..") {
                    return Err(self.fault("must not be empty, `.` or `..`, because it is part of the vendor's path"));
                }
                encode(&text, ENCODED, out);
            }
            Filter::PathAll => {
                let text = self.scalar(scope)?;
                let text = if out.ends_with('/') { text.strip_prefix('/').unwrap_or(&text) } else { &*text };
                if text.split('/').any(str::is_empty) || leads_elsewhere(text) {
                    return Err(self.fault(
                        "must have no segment that is empty, `.` or `..`, because it is part of the vendor's path",
                    ));
                }
                encode(text, ENCODED_PATH, out);
            }
            Filter::Header => {
                let text = self.scalar(scope)?;
                if !is_visible(&text) {
                    return Err(self
                        .fault("must have visible ASCII characters and spaces only, because it is part of a header"));
                }
                out.push_str(&text);
            }
            Filter::Xml => xml::escape(&self.scalar(scope)?, out).map_err(|c| {
                self.fault(&format!("has the character U+{:04X}, which XML cannot carry", u32::from(c)))
            })?,
        }
        Ok(())
    }

    /// The value as JSON, `null` when there is none.
    fn json<'a>(&self, scope: &Scope<'a>) -> Cow<'a, str> {
        match self.plain(scope) {
            Some(text) => Cow::Owned(serde_json::Value::from(text).to_string()),
            None if self.name == Name::Payload => {
                Cow::Borrowed(self.at.find(scope.payload).map_or("null", RawValue::get))
            }
            None => Cow::Borrowed("null"),
        }
    }

    /// The value as text, if it is one that can stand in a text.
    fn scalar<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, RenderError> {
        if self.name != Name::Payload {
            return self.plain(scope).map(Cow::Borrowed).ok_or_else(|| self.fault("is not known yet"));
        }
        self.scalar_of(self.at.find(scope.payload).ok_or_else(|| self.fault("is missing"))?)
    }

    fn scalar_of<'a>(&self, value: &'a RawValue) -> Result<Cow<'a, str>, RenderError> {
        let kind = match value.get().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'n') => "null",
            _ => return Ok(json::text(value)),
        };
        Err(self.fault(&format!("must be a string, a number or a boolean, not {kind}")))
    }

    /// The value as texts: none if there is none, or null; each element of an array.
    pub(super) fn texts(&self, scope: &Scope<'_>) -> Result<Vec<String>, RenderError> {
        if self.name != Name::Payload {
            return Ok(self.plain(scope).map(str::to_owned).into_iter().collect());
        }
        let Some(value) = self.at.find(scope.payload).filter(|value| value.get() != "null") else {
            return Ok(Vec::new());
        };
        let values = if value.get().starts_with('[') { json::elements(value).unwrap_or_default() } else { vec![value] };
        values.into_iter().map(|value| Ok(self.scalar_of(value)?.into_owned())).collect()
    }

    /// The value of any name but the payload.
    fn plain<'a>(&self, scope: &Scope<'a>) -> Option<&'a str> {
        match self.name {
            Name::Payload => None,
            Name::RequestId => Some(scope.request_id),
            Name::CallbackUrl => scope.callback_url,
            Name::Ticket => scope.ticket,
            Name::Tenant => Some(scope.tenant),
        }
    }

    /// With its braces and its filter, as it is written in a template.
    pub(super) fn written(&self, filter: Filter) -> String {
        match filter.as_str() {
            Some(filter) => format!("{{{{ {self} | {filter} }}}}"),
            None => format!("{{{{ {self} }}}}"),
        }
    }

    pub(super) fn fault(&self, detail: &str) -> RenderError {
        RenderError { pointer: format!("/{}{}", self.name.as_str(), self.at), detail: detail.to_owned() }
    }
}

/// As it could be written in a template.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        self.at.steps().iter().try_for_each(|step| {
            if !step.key.is_empty() && step.key.chars().all(is_plain) {
                write!(f, ".{}", step.key)
            } else {
                write!(f, "[{}]", serde_json::Value::from(step.key.as_str()))
            }
        })
    }
}
