//! Texts in small languages of ours: durations, times, ids, pointers, templates, and JSON itself.

use fetchgate::{
    clock::Time,
    config::{parse_duration, write_duration},
    job::JobId,
    json::{self, Pointer},
    vendor::{
        clean::Clean,
        template::{MAX_CONTENT, MAX_TARGET, Scope, Template},
        token::CallbackKey,
    },
};
use serde_json::value::RawValue;

use super::first_line;

/// The bytes of an error about a text of a config, which it may quote with escapes.
fn is_bounded(error: &str, text: &[u8]) -> bool {
    error.len() < 8 * text.len() + 500
}

/// A duration is written as it can be read; an error is short.
pub(crate) fn duration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse_duration(&text) {
        Ok(duration) => assert_eq!(parse_duration(&write_duration(duration)), Ok(duration)),
        Err(error) => assert!(error.len() < 200, "{error}"),
    }
}

/// A time is written as it can be read, to the millisecond.
pub(crate) fn time(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(time) = text.parse::<Time>() {
        assert_eq!(time.rfc3339().parse(), Ok(time), "{text}");
    }
}

/// An id is written as it can be read.
pub(crate) fn id(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(id) = JobId::parse(&text) {
        assert_eq!(JobId::parse(&id.to_string()), Some(id));
        assert_eq!(JobId::from_slice(id.as_bytes()), Some(id));
    }
}

/// Nobody makes a token without the key.
pub(crate) fn token(data: &[u8]) {
    let (vendor, token) = first_line(data);
    let (vendor, token) = (String::from_utf8_lossy(vendor), String::from_utf8_lossy(token));
    assert_eq!(CallbackKey::new(b"a key of nobody else").verify(&vendor, &token), None);
}

/// What is taken as JSON is JSON to others too; members and elements are parts of it as written.
pub(crate) fn json(data: &[u8]) {
    match json::check(data) {
        Ok(raw) => {
            let text = raw.get();
            assert!(serde_json::from_str::<&RawValue>(text).is_ok());
            let members = json::members(raw).into_iter().flatten().map(|(_, value)| value);
            for part in members.chain(json::elements(raw).into_iter().flatten()) {
                assert!(json::check(part.get().as_bytes()).is_ok(), "{part}");
                assert!(text.contains(part.get()), "{part}");
            }
            // A text is never longer than it was written, without its quotes.
            assert!(json::text(raw).len() <= text.len());
        }
        Err(error) => assert!(error.to_string().len() < 200, "{error}"),
    }
}

/// A pointer is written as it can be read; what it finds is a part of the document.
pub(crate) fn pointer(data: &[u8]) {
    let (pointer, doc) = first_line(data);
    match Pointer::parse(&String::from_utf8_lossy(pointer)) {
        Ok(pointer) => {
            let again = Pointer::parse(&pointer.to_string()).expect("it was one");
            if let Ok(doc) = json::check(doc) {
                let found = pointer.find(doc).map(RawValue::get);
                assert_eq!(again.find(doc).map(RawValue::get), found);
                assert!(found.is_none_or(|found| doc.get().contains(found)));
            }
        }
        Err(error) => assert!(is_bounded(&error, data), "{error}"),
    }
}

/// Pointers, one a line up to an empty line, then a document: what is cleaned is JSON, and is not changed by being cleaned again.
pub(crate) fn clean(data: &[u8]) {
    let mut redact = Vec::new();
    let mut rest = data;
    loop {
        let (line, after) = first_line(rest);
        rest = after;
        if line.is_empty() || redact.len() == 16 {
            break;
        }
        redact.extend(Pointer::parse(&String::from_utf8_lossy(line)).ok());
    }
    let Ok(doc) = json::check(rest) else { return };
    let flags = rest.len();
    let clean = Clean { trim: flags.is_multiple_of(2), drop_null: flags.is_multiple_of(3), redact };
    let cleaned = clean.apply(doc);
    let again = json::check(cleaned.as_bytes()).unwrap_or_else(|error| panic!("{error}: {cleaned}"));
    if clean.redact.is_empty() {
        assert_eq!(clean.apply(again), cleaned);
    }
}

/// A template, then a payload: what is rendered fits its place and its bound, in each of the places.
pub(crate) fn template(data: &[u8]) {
    let (text, payload) = first_line(data);
    let text = String::from_utf8_lossy(text);
    let Ok(payload) = json::check(payload) else { return };
    let scope = Scope {
        request_id: "01920000-0000-7000-8000-00000000002a",
        payload,
        callback_url: Some("https://fetchgate.example/vendor-webhook/v/t"),
        ticket: Some("t/1?a=ü"),
        tenant: "tenant-1",
    };
    type Fits = fn(&str) -> bool;
    let places: [(_, Fits); 5] = [
        (Template::url(&text), |url| {
            url.len() <= MAX_TARGET && url.starts_with('/') && url.bytes().all(|b| b.is_ascii_graphic())
        }),
        (Template::body(&text), |body| body.len() <= MAX_CONTENT && json::check(body.as_bytes()).is_ok()),
        (Template::header(&text), |value| value.len() <= 4096 && !value.contains(['\r', '\n', '\0'])),
        (Template::field(&text), |value| value.len() <= MAX_CONTENT),
        (Template::text(&text, "text/xml"), |body| body.len() <= MAX_CONTENT),
    ];
    for (template, fits) in places {
        match template.map(|template| template.render(&scope)) {
            Ok(Ok(rendered)) => assert!(fits(&rendered), "{rendered}"),
            Ok(Err(error)) => assert!(is_bounded(&error.to_string(), data), "{error}"),
            Err(error) => assert!(is_bounded(&error.to_string(), data), "{error}"),
        }
    }
}
