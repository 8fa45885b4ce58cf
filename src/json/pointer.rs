//! A place in a JSON document, and the value there as it is written.
//!
//! Never copies a value, and reads no more than the levels on the way to it.

use std::fmt;

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::text;

/// A place in a JSON document (RFC 6901): `""` is the whole, `/a/0` the first element of member `a`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<Step>);

/// One part of a pointer: a member's key, and in an array the index if it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) key: String,
    pub(crate) index: Option<usize>,
}

impl Step {
    fn new(key: String) -> Step {
        let is_index = key == "0" || (!key.starts_with('0') && key.bytes().all(|b| b.is_ascii_digit()));
        let index = if is_index { key.parse().ok() } else { None };
        Step { key, index }
    }
}

impl Pointer {
    /// Reads a pointer as it is written: empty, or starting with a slash, with `~0` for `~` and `~1` for `/`.
    pub fn parse(text: &str) -> Result<Pointer, String> {
        if text.is_empty() {
            return Ok(Pointer(Vec::new()));
        }
        let Some(steps) = text.strip_prefix('/') else {
            return Err(format!("a JSON pointer starts with a slash: `/{}`", text.escape_debug()));
        };
        steps.split('/').map(|step| unescape(step).map(Step::new)).collect::<Result<_, _>>().map(Pointer)
    }

    /// A pointer from keys and indexes that are not escaped.
    pub fn from_keys<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Pointer {
        Pointer(keys.into_iter().map(|key| Step::new(key.into())).collect())
    }

    /// The value at this place, as written. Of members with the same key the last one counts, as in most parsers.
    /// Reads each level on the way once: the cost is the document's length times the pointer's, at worst.
    pub fn find<'a>(&self, doc: &'a RawValue) -> Option<&'a RawValue> {
        self.0.iter().try_fold(doc, |here, step| {
            let mut reader = serde_json::Deserializer::from_str(here.get());
            match here.get().as_bytes().first()? {
                b'{' => reader.deserialize_map(Walk(step)).ok()?,
                b'[' => reader.deserialize_seq(Walk(step)).ok()?,
                _ => None,
            }
        })
    }

    /// The place `below`, seen from this one.
    pub(crate) fn join(&self, below: &Pointer) -> Pointer {
        Pointer(self.0.iter().chain(&below.0).cloned().collect())
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }
}

fn unescape(step: &str) -> Result<String, String> {
    let mut parts = step.split('~');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(1).unwrap_or(("", part));
        out.push(match code {
            "0" => '~',
            "1" => '/',
            _ => return Err("in a JSON pointer `~` is written `~0` (and `/` inside a key `~1`)".to_owned()),
        });
        out.push_str(rest);
    }
    Ok(out)
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", step.key.replace('~', "~0").replace('/', "~1")))
    }
}

/// Takes one step into an object or array and drops the rest unread.
struct Walk<'s>(&'s Step);

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        // Keys are read raw, because one with half a surrogate pair must not hide the others.
        while let Some(key) = map.next_key::<&RawValue>()? {
            if text(key) == self.0.key {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut at = 0;
        while self.0.index != Some(at) && seq.next_element::<IgnoredAny>()?.is_some() {
            at += 1;
        }
        if self.0.index == Some(at) {
            found = seq.next_element()?;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}
