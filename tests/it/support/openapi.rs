//! Holds answers to the API's description: every answer that any test sees has a path, a status and a schema in the file.

use std::sync::LazyLock;

use hyper::Method;
use serde_json::Value;

use super::Answer;

static FILE: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(fetchgate::api::OPENAPI).expect("JSON"));

/// The description, as JSON.
pub(crate) fn file() -> &'static Value {
    &FILE
}

/// Fails the test if the answer is not one that the description allows.
pub(crate) fn check(method: &Method, path: &str, answer: &Answer) {
    let path = path.split('?').next().unwrap_or_default();
    let status = answer.status.as_u16();
    let Some(operation) = operation(method, path) else {
        assert!(matches!(status, 404 | 405), "{method} {path} is not in the description and answered {status}");
        assert!(["not_found", "method_not_allowed"].contains(&&*answer.code()), "{}", answer.text);
        return;
    };
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{method} {path} answered {status}, which is not described: {}", answer.text);
    if let Some(headers) = response["headers"].as_object() {
        for (name, header) in headers {
            let is_required = resolve(header)["required"] == true;
            assert!(
                !is_required || answer.headers.contains_key(name),
                "{method} {path} {status} lacks the header {name}"
            );
        }
    }
    let Some(content) = response["content"].as_object() else { return };
    let sent = answer.header("content-type").split(';').next().unwrap_or_default().to_owned();
    let described = content.get(&sent).unwrap_or_else(|| panic!("{method} {path} {status} came as {sent:?}"));
    if sent.ends_with("json") {
        let fault = fault(&described["schema"], &answer.json(), "");
        assert!(fault.is_none(), "{method} {path} {status}: {}\n{}", fault.unwrap_or_default(), answer.text);
    }
}

/// What is wrong with a value, by a schema of the file.
pub(crate) fn misfit(schema: &'static Value, value: &Value) -> Option<String> {
    fault(schema, value, "")
}

/// The operation for a path as it was called.
fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let paths = FILE["paths"].as_object().expect("paths");
    let fits = |template: &str| {
        let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        let same = |(t, p): (&&str, &&str)| t == p || (t.starts_with('{') && !p.is_empty());
        template.len() == path.len() && template.iter().zip(&path).all(same)
    };
    // A path without parameters goes before one with.
    let mut found: Vec<_> = paths.iter().filter(|(template, _)| fits(template)).collect();
    found.sort_by_key(|(template, _)| template.matches('{').count());
    found.first()?.1.get(method.as_str().to_ascii_lowercase())
}

fn resolve(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(pointer) => FILE.pointer(pointer.trim_start_matches('#')).expect("a reference that leads somewhere"),
        None => value,
    }
}

/// What is wrong with a value, by a schema with the keywords that the file uses.
fn fault(schema: &'static Value, value: &Value, at: &str) -> Option<String> {
    if schema["$ref"].is_string()
        && let Some(fault) = fault(resolve(schema), value, at)
    {
        return Some(fault);
    }
    let wrong = |what: String| Some(format!("{at:?} {what}"));
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    if !types.is_empty() && !types.iter().any(|name| is_a(value, name)) {
        return wrong(format!("is not of type {types:?}"));
    }
    if schema.get("const").is_some_and(|wanted| wanted != value) {
        return wrong(format!("is not {}", schema["const"]));
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        return wrong(format!("is none of {}", schema["enum"]));
    }
    if let Some(all) = schema["oneOf"].as_array()
        && all.iter().filter(|one| fault(one, value, at).is_none()).count() != 1
    {
        return wrong("fits not exactly one of its forms".into());
    }
    match value {
        Value::Object(members) => object_fault(schema, members, at),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .filter(|_| schema["items"].is_object())
            .find_map(|(i, item)| fault(&schema["items"], item, &format!("{at}/{i}"))),
        Value::String(text) => string_fault(schema, text).and_then(wrong),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let below = schema["minimum"].as_f64().is_some_and(|least| number < least);
            let above = schema["maximum"].as_f64().is_some_and(|most| number > most);
            (below || above).then(|| format!("{at:?} is out of bounds"))
        }
        Value::Null | Value::Bool(_) => None,
    }
}

fn object_fault(schema: &'static Value, members: &serde_json::Map<String, Value>, at: &str) -> Option<String> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in required {
        if !members.contains_key(name) {
            return Some(format!("{at:?} lacks {name:?}"));
        }
    }
    members.iter().find_map(|(name, value)| {
        let at = format!("{at}/{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(described), _) => fault(described, value, &at),
            (None, Some(Value::Bool(false))) => Some(format!("{at:?} is not described")),
            (None, Some(described @ Value::Object(_))) => fault(described, value, &at),
            (None, _) => None,
        }
    })
}

fn string_fault(schema: &Value, text: &str) -> Option<String> {
    let is_time = || text.len() == 24 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok();
    let is_uuid = || text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    match schema["format"].as_str() {
        Some("date-time") if !is_time() => return Some("is not a time with milliseconds in UTC".into()),
        Some("uuid") if !is_uuid() => return Some("is not a UUID".into()),
        _ => {}
    }
    let length = text.chars().count() as u64;
    let short = schema["minLength"].as_u64().is_some_and(|least| length < least);
    let long = schema["maxLength"].as_u64().is_some_and(|most| length > most);
    (short || long).then(|| "has a length out of bounds".into())
}

fn is_a(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
