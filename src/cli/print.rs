//! The output of commands: lines, tables, key/value views, and indented JSON.
//!
//! Never re-encodes JSON, so no digit of a number is lost. Never prints control characters that come from outside.

use std::{borrow::Cow, fmt::Write as _, io::Write as _};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::value::RawValue;

use super::{Failure, Output};
use crate::json;

/// One line, or several, on stdout.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let written = writeln!(std::io::stdout().lock(), "{text}");
    Ok(written.context("the answer could not be written")?)
}

/// An answer: verbatim for programs, as `view` has it for people.
pub(super) fn answer<F>(json: &RawValue, output: Output, view: F) -> Result<(), Failure>
where
    F: FnOnce(&RawValue) -> Result<String, Failure>,
{
    match output {
        Output::Json => line(&verbatim(json)),
        Output::Table => line(&view(json)?),
    }
}

/// A whole job: its payload and its result below the rest.
pub(super) fn job(json: &RawValue, output: Output) -> Result<(), Failure> {
    const APART: [&str; 2] = ["payload", "result"];
    answer(json, output, |job| {
        let mut view = fields(job, &APART);
        let members = json::members(job).unwrap_or_default();
        for name in APART {
            if let Some((_, part)) = members.iter().find(|(member, part)| *member == name && part.get() != "null") {
                // Writing to a string cannot fail.
                let _ = write!(view, "\n\n{name}\n{}", pretty(part));
            }
        }
        Ok(view)
    })
}

/// The JSON text on one line. A line break can only stand between two tokens, where a space means the same.
pub(super) fn verbatim(json: &RawValue) -> Cow<'_, str> {
    let text = json.get();
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

/// An object's members in their order, one on each line, aligned; without those of `apart`.
pub(super) fn fields(object: &RawValue, apart: &[&str]) -> String {
    let mut members = json::members(object).unwrap_or_default();
    members.retain(|(name, _)| !apart.contains(&&**name));
    let width = members.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines = members.iter().map(|(name, value)| format!("{:width$}  {}", shown(name), short(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A value on one line.
fn short(value: &RawValue) -> String {
    let parts: Vec<String> = if let Some(elements) = json::elements(value) {
        elements.into_iter().map(|element| shown(&json::text(element))).collect()
    } else if let Some(members) = json::members(value) {
        members.iter().map(|(name, value)| format!("{}: {}", shown(name), shown(&json::text(value)))).collect()
    } else if value.get() == "null" {
        Vec::new()
    } else {
        vec![shown(&json::text(value))]
    };
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// Rows under a head, in aligned columns.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| shown(&cell))));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// JSON with a line for each member and element; every token as it was written.
pub(super) fn pretty(json: &RawValue) -> String {
    let mut out = String::with_capacity(json.get().len() * 2);
    let (mut depth, mut opened) = (0_usize, false);
    let mut rest = json.get().chars();
    let break_line = |out: &mut String, depth: usize| {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n{:1$}", "", depth * 2);
    };
    while let Some(c) = rest.next() {
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        depth -= usize::from(closes);
        // An empty object or array stays on its line.
        if closes != opened {
            break_line(&mut out, depth);
        }
        opened = matches!(c, '{' | '[');
        depth += usize::from(opened);
        match c {
            '"' => copy_string(&mut rest, &mut out),
            ',' => {
                out.push(c);
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
    }
    out
}

/// Copies the rest of a string, its closing quote included.
fn copy_string(rest: &mut std::str::Chars<'_>, out: &mut String) {
    out.push('"');
    let mut escaped = false;
    for c in rest.by_ref() {
        push_shown(c, out);
        if c == '"' && !escaped {
            return;
        }
        escaped = c == '\\' && !escaped;
    }
}

/// Text from outside, with its control characters spelled out.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_shown(c, &mut out));
    out
}

fn push_shown(c: char, out: &mut String) {
    if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn json_is_indented_and_no_token_changes() {
        let json =
            raw(r#"{"n":123456789012345678901234567890.10, "a" : [1e2,[],{ }],"s":"a\"{,:[ \\","t":{"u":null}}"#);
        let expected = r#"{
  "n": 123456789012345678901234567890.10,
  "a": [
    1e2,
    [],
    {}
  ],
  "s": "a\"{,:[ \\",
  "t": {
    "u": null
  }
}"#;
        assert_eq!(pretty(&json), expected);
        assert_eq!(pretty(&raw(" [ ] ")), "[]");
        assert_eq!(pretty(&raw("[[]]")), "[\n  []\n]");
        assert_eq!(pretty(&raw("-0.0")), "-0.0");
    }

    #[test]
    fn an_object_becomes_aligned_lines_in_its_own_order() {
        let json = raw(
            r#"{"status":"failed","tags":[],"error":{"code":"timeout","message":"too\u001b[2J slow"},"n":1.0,"result":{}}"#,
        );
        let expected = "status  failed\ntags    -\nerror   code: timeout, message: too\\u{1b}[2J slow\nn       1.0";
        assert_eq!(fields(&json, &["result"]), expected);
    }

    #[test]
    fn a_verbatim_answer_is_one_line() {
        assert_eq!(verbatim(&raw("{\"a\":\r\n 1.0}")), "{\"a\":   1.0}");
    }
}
