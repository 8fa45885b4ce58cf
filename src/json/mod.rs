//! JSON as text: nothing here turns a number into a float or changes the order of keys.
//!
//! Never builds a tree of a whole document and never recurses: payloads and results pass through as they were written.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

pub use pointer::Pointer;
pub(crate) use pointer::Step;

mod pointer;
#[cfg(test)]
pub(crate) mod tests;

/// How many arrays and objects may lie inside each other.
pub const MAX_DEPTH: usize = 128;

/// Why bytes are not JSON, or not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// What is wrong, with line and column.
    #[error("not JSON: {0}")]
    Malformed(String),
    #[error("nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
}

/// Checks a whole body: JSON in UTF-8, at most [`MAX_DEPTH`] levels deep, nothing after it.
/// Gives back the same text without the whitespace around it.
///
/// An escaped half of a surrogate pair is accepted, as most parsers do.
pub fn check(bytes: &[u8]) -> Result<&RawValue, JsonFault> {
    if is_too_deep(bytes) {
        return Err(JsonFault::TooDeep);
    }
    serde_json::from_slice(bytes).map_err(|e| JsonFault::Malformed(e.to_string()))
}

/// The elements of an array as written, the first `most` of them; nothing for any other value.
pub(crate) fn first_elements(array: &RawValue, most: usize) -> Option<Vec<&RawValue>> {
    struct First(usize);

    impl<'de> Visitor<'de> for First {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while elements.len() < self.0
                && let Some(element) = seq.next_element()?
            {
                elements.push(element);
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(elements)
        }
    }

    serde_json::Deserializer::from_str(array.get()).deserialize_seq(First(most)).ok()
}

/// Exact for JSON; for anything else the answer does not matter, because the parser will refuse it.
fn is_too_deep(bytes: &[u8]) -> bool {
    // Few bodies have more than 128 brackets in all, and counting runs ten times faster than following strings:
    // in parts of 255 the count fits into a byte, which the processor adds up many at a time.
    let brackets = |part: &[u8]| part.iter().map(|b| u8::from(matches!(b, b'[' | b'{'))).sum::<u8>();
    let opened: usize = bytes.chunks(255).map(|part| usize::from(brackets(part))).sum();
    opened > MAX_DEPTH && depth_exceeds(bytes, MAX_DEPTH)
}

fn depth_exceeds(bytes: &[u8], max: usize) -> bool {
    let mut depth = 0_usize;
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                // To the closing quote; what follows a backslash is never it.
                while let Some(byte) = rest.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => _ = rest.next(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    false
}

/// A string's content, or the JSON text of any other value as it is written.
/// Half a surrogate pair, which no Rust string can hold, becomes U+FFFD.
pub fn text(raw: &RawValue) -> Cow<'_, str> {
    decode(raw.get())
}

/// [`text`] for a value that is known to be valid JSON.
pub(crate) fn decode(json: &str) -> Cow<'_, str> {
    match json.strip_prefix('"').and_then(|inside| inside.strip_suffix('"')) {
        Some(inside) if !inside.contains('\\') => Cow::Borrowed(inside),
        Some(inside) => Cow::Owned(serde_json::from_str(json).unwrap_or_else(|_| decode_lossy(inside))),
        None => Cow::Borrowed(json),
    }
}

fn decode_lossy(mut inside: &str) -> String {
    let mut utf16 = Vec::with_capacity(inside.len());
    while let Some((unit, length)) = unit(inside) {
        match unit {
            Unit::Plain(c) => utf16.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            Unit::Escaped(code) => utf16.push(code),
        }
        inside = &inside[length..];
    }
    String::from_utf16_lossy(&utf16)
}

/// The smallest part of a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Plain(char),
    /// What an escape stands for: one UTF-16 unit, perhaps half of a pair.
    Escaped(u16),
}

impl Unit {
    pub(crate) fn is_whitespace(self) -> bool {
        match self {
            Unit::Plain(c) => c.is_whitespace(),
            Unit::Escaped(code) => char::from_u32(code.into()).is_some_and(char::is_whitespace),
        }
    }
}

/// The first unit of the inside of a valid JSON string, and its length in bytes; nothing at the end.
pub(crate) fn unit(inside: &str) -> Option<(Unit, usize)> {
    let first = inside.chars().next()?;
    if first != '\\' {
        return Some((Unit::Plain(first), first.len_utf8()));
    }
    let (code, length) = match inside.as_bytes().get(1)? {
        b'u' => (u16::from_str_radix(inside.get(2..6)?, 16).ok()?, 6),
        b'b' => (0x08, 2),
        b'f' => (0x0C, 2),
        b'n' => (0x0A, 2),
        b'r' => (0x0D, 2),
        b't' => (0x09, 2),
        other => (u16::from(*other), 2), // a quote, a slash or a backslash
    };
    Some((Unit::Escaped(code), length))
}

/// An object's members in order, with every duplicate; `None` for anything else.
/// Reads the text once; costs one entry per member and a copy of each key that has escapes.
pub fn members(raw: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(Entries).ok()
}

/// Reads an object into its members.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            entries.push((text(key), value));
        }
        Ok(entries)
    }
}

/// An array's elements in order; `None` for anything else. Reads the text once; costs one reference per element.
pub fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(raw.get()).ok()
}
