//! JSON as text: parts of a body taken out and put elsewhere without touching a digit, a space or the order of keys.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::value::RawValue;

/// The body if it is JSON, byte for byte; `null` otherwise.
pub(crate) fn echo(body: &Bytes) -> Bytes {
    let valid = serde_json::from_slice::<&RawValue>(body).is_ok();
    if valid { body.clone() } else { Bytes::from_static(b"null") }
}

/// The text of the value that a JSON pointer selects.
pub(crate) fn at<'a>(body: &'a [u8], pointer: &str) -> Option<&'a str> {
    let mut value: &'a RawValue = serde_json::from_slice(body).ok()?;
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        value = match value.get().as_bytes().first()? {
            b'{' => {
                let mut members: HashMap<String, &'a RawValue> = serde_json::from_str(value.get()).ok()?;
                members.remove(&step)?
            }
            b'[' => {
                let items: Vec<&'a RawValue> = serde_json::from_str(value.get()).ok()?;
                items.get(step.parse::<usize>().ok()?).copied()?
            }
            _ => return None,
        };
    }
    Some(value.get())
}

/// The string that a JSON pointer selects.
pub(crate) fn string_at(body: &[u8], pointer: &str) -> Option<String> {
    serde_json::from_str(at(body, pointer)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_keeps_its_text_to_the_letter() {
        let body = br#" {"a/b": [1, {"z" : 1.10,"a":123456789012345678901234567890 }], "x": "\u0041"} "#;
        assert_eq!(at(body, "/a~1b/1"), Some(r#"{"z" : 1.10,"a":123456789012345678901234567890 }"#));
        assert_eq!(at(body, "/a~1b/1/z"), Some("1.10"));
        assert_eq!(at(body, "/x"), Some(r#""\u0041""#));
        assert_eq!(string_at(body, "/x").as_deref(), Some("A"));
        assert_eq!(at(body, "/a~1b/2"), None);
        assert_eq!(at(body, "/x/y"), None);
    }

    #[test]
    fn what_is_not_json_echoes_as_null() {
        assert_eq!(echo(&Bytes::from_static(b"{\"a\":")), "null");
        assert_eq!(echo(&Bytes::new()), "null");
        assert_eq!(echo(&Bytes::from_static(b" [1.10 ] ")), " [1.10 ] ");
    }
}
