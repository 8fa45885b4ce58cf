//! JSON that a person has typed: what is wrong with it in plain words, and at the right place.
//!
//! Never accepts what the service would not: the check is the service's own.

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::print::shown;
use crate::json::{self, JsonFault};

/// One JSON value, or what is wrong with it, to go on after "the payload is".
pub(super) fn read(text: &[u8]) -> Result<&RawValue, String> {
    if text.trim_ascii().is_empty() {
        return Err(r#"empty; write a JSON value, such as {"id": 7} or null"#.to_owned());
    }
    json::check(text).map_err(|fault| match (fault, serde_json::from_slice::<IgnoredAny>(text)) {
        (JsonFault::Malformed(_), Err(error)) => words(text, &error),
        (fault, _) => fault.to_string(),
    })
}

fn words(text: &[u8], error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    if error.is_eof() {
        return format!("not JSON: it ends too early, at line {line}, column {column}");
    }
    let said = error.to_string();
    let what = match said.split(" at line ").next().unwrap_or(&said) {
        "expected ident" | "expected value" => match word(text, line, column) {
            // The parser points into the word.
            Some((start, word)) => {
                let why = format!("{} is no value; text needs double quotes", shown(&word));
                return format!("not JSON at line {line}, column {start}: {why}");
            }
            None if closes(text, line, column) => "a comma stands before the closing bracket",
            None => "a value is missing",
        },
        "key must be a string" => "the names of an object need double quotes",
        "trailing characters" => "something follows the value",
        "trailing comma" => "a comma stands before the closing bracket",
        other => other,
    };
    format!("not JSON at line {line}, column {column}: {what}")
}

/// Whether an array ends here, right after a comma.
fn closes(text: &[u8], line: usize, column: usize) -> bool {
    let line = text.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let (before, here) = line.split_at(column.saturating_sub(1).min(line.len()));
    here.starts_with(b"]") && before.trim_ascii_end().ends_with(b",")
}

/// The word around a place, and the column where it begins.
fn word(text: &[u8], line: usize, column: usize) -> Option<(usize, String)> {
    let text = String::from_utf8_lossy(text.split(|byte| *byte == b'\n').nth(line.checked_sub(1)?)?).into_owned();
    let is_inside = |c: &char| c.is_alphanumeric() || *c == '_';
    let before =
        text.get(..column.checked_sub(1)?)?.chars().rev().take_while(is_inside).map(char::len_utf8).sum::<usize>();
    let start = column - 1 - before;
    let word: String = text[start..].chars().take_while(is_inside).take(20).collect();
    (!word.is_empty()).then(|| (start + 1, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_plain_words_at_the_right_place() {
        let table = [
            (" \n", "empty; write a JSON value"),
            ("not json", "not JSON at line 1, column 1: not is no value; text needs double quotes"),
            ("[1,\n nul]", "not JSON at line 2, column 2: nul is no value"),
            ("hello", "not JSON at line 1, column 1: hello is no value"),
            ("{\"a\": ", "not JSON: it ends too early, at line 1, column 6"),
            ("{a: 1}", "not JSON at line 1, column 2: the names of an object need double quotes"),
            ("[1,]", "not JSON at line 1, column 4: a comma stands before the closing bracket"),
            ("1, 2", "not JSON at line 1, column 2: something follows the value"),
            ("{\"a\": ?}", "not JSON at line 1, column 7: a value is missing"),
        ];
        for (text, expected) in table {
            let said = read(text.as_bytes()).expect_err(text);
            assert!(said.starts_with(expected), "{text}: {said}");
        }
        assert_eq!(read(&[b'['; 200]).expect_err("deep"), JsonFault::TooDeep.to_string());
        assert_eq!(read(b" [1.0] ").expect("JSON").get(), "[1.0]");
    }
}
