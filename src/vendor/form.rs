//! Forms (`application/x-www-form-urlencoded`) and queries as values.
//!
//! Never decides what is a form (see `value`), and never takes more fields than a bound.

use std::{borrow::Cow, collections::HashMap};

use serde::{Serializer as _, ser::SerializeMap as _};

use super::value::{Value, ValueFault, bounded};

/// Fields of a form at most.
pub(super) const MAX_FIELDS: usize = 10_000;

/// A form, or a query, as an object of strings; a field that comes more than once becomes an array of them.
pub fn form(text: &[u8]) -> Result<Value, ValueFault> {
    let (mut fields, mut places) = (Vec::<(Cow<'_, str>, Vec<Cow<'_, str>>)>::new(), HashMap::new());
    for (count, (name, value)) in url::form_urlencoded::parse(text).enumerate() {
        if count == MAX_FIELDS {
            return Err(ValueFault::TooManyFields);
        }
        let place = *places.entry(name.clone()).or_insert(fields.len());
        if place == fields.len() {
            fields.push((name, Vec::new()));
        }
        fields[place].1.push(value);
    }
    if fields.is_empty() {
        return Ok(Value::empty());
    }
    let json = bounded(|out| {
        let mut serializer = serde_json::Serializer::new(out);
        let mut object = serializer.serialize_map(Some(fields.len()))?;
        for (name, values) in &fields {
            match values.as_slice() {
                [one] => object.serialize_entry(name, one)?,
                several => object.serialize_entry(name, several)?,
            }
        }
        object.end()
    })?;
    Ok(Value::of(json))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::{
        super::{
            http::MAX_REPLY_BYTES,
            value::{Expect, read},
        },
        *,
    };

    fn read_form(body: impl Into<bytes::Bytes>, expect: Expect) -> Result<String, ValueFault> {
        let content_type = "application/x-www-form-urlencoded; charset=utf-8".parse().unwrap();
        let headers: HeaderMap = [(hyper::header::CONTENT_TYPE, content_type)].into_iter().collect();
        read(&headers, body.into(), expect).map(|value| value.json.get().to_owned())
    }

    #[test]
    fn a_form_is_an_object_of_strings() {
        for (body, wanted) in [
            ("a=1&b=x+y%20z%21&c", r#"{"a":"1","b":"x y z!","c":""}"#),
            ("a=1&b=2&a=3&&a=", r#"{"a":["1","3",""],"b":"2"}"#),
            ("n=%F0%9F%90%BB&q=%22%5C%0A", r#"{"n":"🐻","q":"\"\\\n"}"#),
            ("4711", r#"{"4711":""}"#),
            ("null", r#"{"null":""}"#),
            ("=", r#"{"":""}"#),
            (" {\"a\":1.10}", r#"{"a":1.10}"#),
            ("[1]", "[1]"),
        ] {
            assert_eq!(read_form(body, Expect::Anything).as_deref(), Ok(wanted), "{body}");
        }
        assert!(
            matches!(read_form("{\"a\":", Expect::Anything), Err(ValueFault::NotJson(_))),
            "curl sends JSON under this type"
        );
        assert!(matches!(read_form("a=1", Expect::Json), Err(ValueFault::NotJson(_))));
        assert_eq!(read_form("a&".repeat(MAX_FIELDS), Expect::Anything).map(|json| json.len()), Ok(7 + 3 * MAX_FIELDS));
        assert_eq!(read_form("a&".repeat(MAX_FIELDS + 1), Expect::Anything), Err(ValueFault::TooManyFields));
        assert_eq!(
            read_form("%01".repeat(MAX_REPLY_BYTES / 6), Expect::Anything),
            Err(ValueFault::TooLarge),
            "each takes six bytes"
        );
        let value = form(b"").unwrap();
        assert_eq!((value.json.get(), value.is_empty), ("null", true));
    }
}
