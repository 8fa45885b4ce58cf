//! Bytes into a value: content coding (see `coding`), charset and byte order mark, then JSON, a form or text. The same for replies and callbacks.
//!
//! Never takes more decoded bytes than a bound, and never guesses a charset that nobody declared.

use std::borrow::Cow;

use bytes::{
    BufMut as _, Bytes,
    buf::{Limit, Writer},
};
use encoding_rs::{Encoding, UTF_8};
use hyper::{HeaderMap, header::CONTENT_TYPE};
use serde_json::value::RawValue;

use super::{
    coding,
    form::{MAX_FIELDS, form},
    http::MAX_REPLY_BYTES,
};
use crate::{
    job::{Failure, FailureCode},
    json::{self, JsonFault},
};

/// Characters of a coding's name that are repeated in an error.
const MOST_OF_A_NAME: usize = 40;
const FORM: &str = "application/x-www-form-urlencoded";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const NOT_UTF8: ValueFault = ValueFault::BadText("UTF-8");

/// A body as JSON. What is not JSON has become a JSON string, and nothing at all `null`.
#[derive(Debug, Clone)]
pub struct Value {
    pub json: Box<RawValue>,
    /// The same text in the buffer that it arrived in, where that holds nothing else.
    pub(super) source: Option<Bytes>,
    pub is_empty: bool,
}

/// What a body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// What it says of itself: JSON, or anything else, which is text even if it could be read as JSON. What says nothing is JSON if it is.
    AsDeclared,
    /// JSON if it is, whatever it says of itself; else text.
    Anything,
    /// JSON, whatever it says of itself.
    Json,
}

impl Value {
    /// What is not the text of a whole body.
    pub(super) fn of(json: Box<RawValue>) -> Value {
        Value { json, source: None, is_empty: false }
    }

    pub(super) fn empty() -> Value {
        Value { json: RawValue::NULL.to_owned(), source: None, is_empty: true }
    }
}

/// Why bytes are no value; each continues "the vendor's answer ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueFault {
    #[error("has the content coding {0:?}; gzip and deflate are understood")]
    UnknownCoding(String),
    #[error("cannot be decoded: its {coding} is damaged ({why})")]
    BadCoding { coding: &'static str, why: String },
    #[error("is not text in {0}")]
    BadText(&'static str),
    #[error("should be JSON and is not: {0}")]
    NotJson(String),
    #[error("is nested more than {} levels deep", json::MAX_DEPTH)]
    TooDeep,
    #[error("is larger than {MAX_REPLY_BYTES} bytes once it is decoded, or kept as JSON")]
    TooLarge,
    #[error("is a form with more than {MAX_FIELDS} fields")]
    TooManyFields,
}

impl ValueFault {
    /// The name comes from outside and ends up in errors and logs, so it is bounded.
    pub(super) fn unknown_coding(name: &str) -> ValueFault {
        ValueFault::UnknownCoding(name.chars().take(MOST_OF_A_NAME).collect())
    }
}

impl From<ValueFault> for Failure {
    fn from(fault: ValueFault) -> Failure {
        let code = match fault {
            ValueFault::TooLarge | ValueFault::TooManyFields => FailureCode::ResponseTooLarge,
            _ => FailureCode::BadResponse,
        };
        Failure::new(code, format!("the vendor's answer {fault}"))
    }
}

/// Reads a whole body. What has to be JSON, or says that it is, and is not, is a fault.
pub fn read(headers: &HeaderMap, body: Bytes, expect: Expect) -> Result<Value, ValueFault> {
    let text = to_utf8(headers, coding::decode(headers, body)?)?;
    if text.trim_ascii().is_empty() {
        return Ok(Value::empty());
    }
    let media_type = media_type(headers);
    let mut says_json = says_json(media_type.as_deref());
    if media_type.as_deref() == Some(FORM) {
        // Some clients send JSON under this type, and no form begins so.
        says_json = Some(matches!(text.trim_ascii_start().first(), Some(b'{' | b'[')));
        if expect != Expect::Json && says_json == Some(false) {
            return form(&text);
        }
    }
    if expect == Expect::AsDeclared && says_json == Some(false) {
        return as_text(&text);
    }
    match json::check(&text) {
        Ok(json) => {
            let json = json.to_owned();
            let source = (json.get().len() == text.len()).then_some(text);
            Ok(Value { json, source, is_empty: false })
        }
        Err(JsonFault::TooDeep) => Err(ValueFault::TooDeep),
        Err(JsonFault::Malformed(why)) if expect == Expect::Json || says_json == Some(true) => {
            Err(if str::from_utf8(&text).is_ok() { ValueFault::NotJson(why) } else { NOT_UTF8 })
        }
        Err(JsonFault::Malformed(_)) => as_text(&text),
    }
}

/// The beginning of a body as text, for people: as much as can be read of it, even if it is damaged or cut off.
pub(super) fn beginning(headers: &HeaderMap, body: &[u8], most: usize) -> String {
    let decoded = coding::beginning(headers, body, most * 4);
    let (text, _, _) = charset(headers).unwrap_or(UTF_8).decode(&decoded);
    cut(&text, most).trim_end_matches('\u{fffd}').to_owned()
}

/// As much of a text as fits into so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// A text as UTF-8, without a byte order mark.
fn to_utf8(headers: &HeaderMap, body: Bytes) -> Result<Bytes, ValueFault> {
    let Some(charset) = charset(headers).filter(|charset| *charset != UTF_8) else {
        return Ok(if body.starts_with(BYTE_ORDER_MARK) { body.slice(BYTE_ORDER_MARK.len()..) } else { body });
    };
    let (text, used, has_errors) = charset.decode(&body);
    if has_errors {
        return Err(ValueFault::BadText(used.name()));
    }
    if text.len() > MAX_REPLY_BYTES {
        return Err(ValueFault::TooLarge);
    }
    Ok(match text {
        // Nothing to change: the buffer stays, but for a byte order mark.
        Cow::Borrowed(same) => body.slice_ref(same.as_bytes()),
        Cow::Owned(text) => text.into(),
    })
}

/// The charset that a body says it is in; nothing for none and for one that nobody knows. ASCII is read as UTF-8, which it is a part of.
fn charset(headers: &HeaderMap) -> Option<&'static Encoding> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut named = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let name = named.next()?.1.trim().trim_matches(['"', '\'']);
    if name.eq_ignore_ascii_case("us-ascii") || name.eq_ignore_ascii_case("ascii") {
        return None;
    }
    Encoding::for_label(name.as_bytes())
}

/// The media type of a body, without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(content_type.split(';').next()?.trim().to_ascii_lowercase())
}

/// Whether a body of this type says that it is JSON. Nothing if it does not say what it is; `octet-stream` only says that it is bytes
/// (RFC 2046, 4.5.1).
fn says_json(media_type: Option<&str>) -> Option<bool> {
    let (_, subtype) = media_type?.split_once('/')?;
    (subtype != "octet-stream").then(|| subtype == "json" || subtype.ends_with("+json"))
}

/// A text as a JSON string, which may be several times as long.
fn as_text(text: &[u8]) -> Result<Value, ValueFault> {
    let text = str::from_utf8(text).map_err(|_| NOT_UTF8)?;
    bounded(|out| serde_json::to_writer(out, text)).map(Value::of)
}

/// JSON that is written within the bound.
pub(super) fn bounded(write: impl FnOnce(&mut Bounded) -> serde_json::Result<()>) -> Result<Box<RawValue>, ValueFault> {
    let mut bounded = Vec::new().limit(MAX_REPLY_BYTES).writer();
    let written = write(&mut bounded);
    let json = written.ok().and_then(|()| String::from_utf8(bounded.into_inner().into_inner()).ok());
    json.and_then(|json| RawValue::from_string(json).ok()).ok_or(ValueFault::TooLarge)
}

pub(super) type Bounded = Writer<Limit<Vec<u8>>>;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write};
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn json(pairs: &[(&str, &str)], body: impl Into<Bytes>) -> Result<String, ValueFault> {
        read(&headers(pairs), body.into(), Expect::AsDeclared).map(|value| value.json.get().to_owned())
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = write::GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_and_deflate_are_undone_whether_they_are_declared_or_not() {
        let text = br#"{"a":1.10}"#;
        let mut zlib = write::ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(text).unwrap();
        let mut raw = write::DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(text).unwrap();
        let coded = |name: &'static str| [("content-encoding", name), ("content-type", "application/json")];
        for (name, body) in [
            ("gzip", gzip(text)),
            ("X-GZIP", gzip(text)),
            ("", gzip(text)),
            ("gzip, gzip", gzip(&gzip(text))),
            ("gzip", text.to_vec()),
            ("identity", text.to_vec()),
            ("deflate", zlib.finish().unwrap()),
            ("deflate", raw.finish().unwrap()),
        ] {
            assert_eq!(json(&coded(name), body).as_deref(), Ok(r#"{"a":1.10}"#), "{name}");
        }
        assert_eq!(json(&coded("br"), "x"), Err(ValueFault::UnknownCoding("br".into())));
        for long in ["x".repeat(100_000), "gzip,".repeat(20_000)] {
            let fault = json(&[("content-encoding", &long)], "\x1f\u{8b}").unwrap_err();
            assert!(fault.to_string().len() < 200, "an error is bounded: {} bytes", fault.to_string().len());
        }
        let cut = gzip(text)[..14].to_vec();
        assert!(matches!(json(&coded("gzip"), cut), Err(ValueFault::BadCoding { coding: "gzip", .. })));
    }

    #[test]
    fn a_small_body_cannot_become_a_large_one() {
        let bomb = gzip(&vec![b' '; MAX_REPLY_BYTES + 1]);
        assert!(bomb.len() < 100_000);
        assert_eq!(json(&[], bomb), Err(ValueFault::TooLarge));
        assert!(json(&[], gzip(&vec![b' '; MAX_REPLY_BYTES])).is_ok());
        assert_eq!(json(&[], vec![1; MAX_REPLY_BYTES / 2]), Err(ValueFault::TooLarge), "each takes six bytes");
    }

    #[test]
    fn a_declared_charset_is_decoded_and_a_byte_order_mark_is_dropped() {
        let typed = |charset: &'static str| [("content-type", charset)];
        for (content_type, body, wanted) in [
            ("application/json; charset=ISO-8859-1", &b"{\"n\":\"M\xfcller\"}"[..], r#"{"n":"Müller"}"#),
            ("application/json;CHARSET=\"windows-1252\"", b"\"\x80\"", "\"€\""),
            ("application/json; charset=utf-16", b"\xff\xfe\"\0a\0\"\0", "\"a\""),
            ("application/json; charset=utf-16be", b"\0\"\0a\0\"", "\"a\""),
            ("application/json; charset=utf-8", "\u{feff}{\"a\":1}".as_bytes(), r#"{"a":1}"#),
            ("application/json", "\u{feff}{\"a\":1}".as_bytes(), r#"{"a":1}"#),
            ("application/json; charset=us-ascii", "\"ü\"".as_bytes(), "\"ü\""),
            ("application/json; charset=of-nobody", "\"ü\"".as_bytes(), "\"ü\""),
            ("text/plain; charset=latin1", b"M\xfcller", "\"Müller\""),
        ] {
            assert_eq!(json(&typed(content_type), body).as_deref(), Ok(wanted), "{content_type}");
        }
        let no_text = json(&typed("text/plain; charset=shift_jis"), &b"\x81"[..]);
        assert_eq!(no_text, Err(ValueFault::BadText("Shift_JIS")));
        assert_eq!(json(&[], &b"\xff\xfe"[..]), Err(ValueFault::BadText("UTF-8")));
    }

    #[test]
    fn nothing_is_null() {
        for body in ["", " \r\n", "\u{feff}"] {
            let value = read(&headers(&[("content-type", "application/json")]), body.into(), Expect::Json).unwrap();
            assert_eq!((value.json.get(), value.is_empty), ("null", true), "{body:?}");
        }
    }

    #[test]
    fn what_says_that_it_is_no_json_is_kept_as_a_string() {
        const JSON: &str = r#"{"a":1}"#;
        const TEXT: &str = r#""{\"a\":1}""#;
        for (content_type, declared) in [
            ("text/html", TEXT),
            ("text/plain; charset=utf-8", TEXT),
            ("Text/CSV", TEXT),
            ("application/xml", TEXT),
            ("application/octet-stream", JSON),
            ("binary/octet-stream", JSON),
            ("json", JSON),
            ("", JSON),
            ("application/json", JSON),
            ("application/vnd.api+json", JSON),
        ] {
            let head = headers(&[("content-type", content_type)]);
            let is = |expect| read(&head, JSON.into(), expect).map(|value| value.json.get().to_owned());
            assert_eq!(is(Expect::AsDeclared).as_deref(), Ok(declared), "{content_type}");
            assert_eq!(is(Expect::Anything).as_deref(), Ok(JSON), "{content_type}");
            assert_eq!(is(Expect::Json).as_deref(), Ok(JSON), "{content_type}");
        }
        assert_eq!(json(&[], JSON).as_deref(), Ok(JSON));
        assert_eq!(json(&[], "a,b").as_deref(), Ok("\"a,b\""));
        assert_eq!(json(&[("content-type", "text/plain")], "[".repeat(200)).unwrap().len(), 202, "it is no JSON");
        assert!(matches!(read(&headers(&[]), "a,b".into(), Expect::Json), Err(ValueFault::NotJson(_))));
    }

    #[test]
    fn json_that_is_none_says_where() {
        for content_type in ["application/json", "application/problem+json; charset=utf-8", "text/json"] {
            let fault = json(&[("content-type", content_type)], "{\"a\":").unwrap_err().to_string();
            assert!(fault.contains("line 1 column 5"), "{fault}");
        }
        assert_eq!(json(&[], "[".repeat(200)), Err(ValueFault::TooDeep));
    }

    #[test]
    fn the_beginning_is_what_can_be_read() {
        let plain = headers(&[]);
        assert_eq!(beginning(&plain, "aü".as_bytes(), 2), "a", "a letter is whole or not there");
        assert_eq!(beginning(&plain, b"caf\xe9", 10), "caf");
        assert_eq!(beginning(&headers(&[("content-type", "text/plain; charset=latin1")]), b"caf\xe9", 10), "café");
        let long: Vec<u8> = (0..20_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        let cut = &gzip(&long)[..20_000];
        assert!(beginning(&headers(&[("content-encoding", "gzip")]), cut, 2048).starts_with("012345678910"));
        assert_eq!(beginning(&headers(&[("content-encoding", "br")]), b"x", 10), "");
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_it_ends_within_bounds(
            body: Vec<u8>,
            gzipped: bool,
            coding in "(gzip|deflate|br|x-gzip, deflate|)",
            content_type in "(application/json|text/plain|application/x-www-form-urlencoded|)(; ?charset=(utf-16|latin1|gb18030|utf-7|x))?",
        ) {
            let body = if gzipped { gzip(&body) } else { body };
            let head = headers(&[("content-encoding", &coding), ("content-type", &content_type)]);
            if let Ok(value) = read(&head, body.clone().into(), Expect::AsDeclared) {
                prop_assert!(value.json.get().len() <= MAX_REPLY_BYTES);
            }
            prop_assert!(beginning(&head, &body, 64).len() <= 64);
        }
    }
}
