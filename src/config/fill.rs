//! Replaces `${NAME}` and `${file:/run/secrets/x}` inside texts by the content of the variable or the file; `$${` becomes a plain `${`.
//!
//! Never fills in twice: the content of a variable or a file is not filled in again. Never shows a content in an error.

use std::io::Read as _;

use super::source::Env;

/// A secret is short; a longer file was named by mistake.
const MOST_BYTES: u64 = 64 * 1024;

/// What is wrong, and the mend.
pub(super) type Complaint = (String, String);

/// A part of a text: plain, or the file that it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    File(String),
}

/// The text with everything filled in, and whether anything was.
pub(super) fn fill(text: &str, env: &Env) -> Result<(String, bool), Complaint> {
    let (pieces, is_filled) = pieces(text, env)?;
    Ok((join(&pieces)?, is_filled))
}

/// The text in pieces, with variables filled in and files named, and whether there were any of these.
pub(super) fn pieces(text: &str, env: &Env) -> Result<(Vec<Piece>, bool), Complaint> {
    let mut pieces = Vec::new();
    let mut plain = String::with_capacity(text.len());
    let mut is_filled = false;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            plain.push_str(&rest[..at]);
            plain.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        plain.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let Some(end) = inside.find('}') else {
            let mend = "Close it: ${NAME}; a plain ${ is written $${".to_owned();
            return Err(("${ without a closing }".to_owned(), mend));
        };
        match inside[..end].strip_prefix("file:") {
            Some(path) => {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
                pieces.push(Piece::File(path.to_owned()));
            }
            None => plain.push_str(look_up(&inside[..end], env)?),
        }
        is_filled = true;
        rest = &inside[end + 1..];
    }
    plain.push_str(rest);
    pieces.push(Piece::Text(plain));
    Ok((pieces, is_filled))
}

/// The whole text, with the files as they are now.
pub(super) fn join(pieces: &[Piece]) -> Result<String, Complaint> {
    let mut whole = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => whole.push_str(text),
            Piece::File(path) => whole.push_str(&read_file(path)?),
        }
    }
    Ok(whole)
}

fn look_up<'a>(name: &str, env: &'a Env) -> Result<&'a str, Complaint> {
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name {
        let what = "between ${ and } there is no name of an environment variable".to_owned();
        return Err((what, "Write ${NAME} or ${file:/path}; a plain ${ is written $${".to_owned()));
    }
    match env.0.get(name) {
        Some(value) if !value.is_empty() => Ok(value),
        Some(_) => Err((format!("environment variable {name} is empty"), format!("Give {name} a value"))),
        None => Err((format!("environment variable {name} is not set"), format!("Set {name} before starting"))),
    }
}

fn read_file(path: &str) -> Result<String, Complaint> {
    let mut content = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut content));
    let blame = |what: &str, mend: &str| Err((format!("file {path} {what}"), mend.to_owned()));
    match read {
        Err(error) => {
            let mend = format!("Make {path} readable for this user, or name another file");
            Err((format!("file {path} cannot be read ({})", error.kind()), mend))
        }
        Ok(_) if content.len() as u64 > MOST_BYTES => blame("is over 64 KiB", "Name a file with one secret in it"),
        Ok(_) => {
            let trimmed = content.strip_suffix('\n').map_or(&*content, |rest| rest.strip_suffix('\r').unwrap_or(rest));
            if trimmed.is_empty() {
                return blame("is empty", "Write the secret into it");
            }
            Ok(trimmed.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env([("A", "1"), ("B", "${A}"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    #[test]
    fn names_are_filled_in_once_and_dollars_can_be_written() {
        let table = [
            ("plain", "plain", false),
            ("Bearer ${A}", "Bearer 1", true),
            ("${A}${A}!", "11!", true),
            ("${B}", "${A}", true),
            ("$${A}", "${A}", false),
            ("$$${A}", "$${A}", false),
            ("$A {A} $", "$A {A} $", false),
        ];
        for (text, out, filled) in table {
            assert_eq!(fill(text, &env()), Ok((out.to_owned(), filled)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_named() {
        for (text, word) in [
            ("${NOPE}", "NOPE is not set"),
            ("${EMPTY}", "EMPTY is empty"),
            ("${A", "without a closing"),
            ("${}", "no name"),
            ("${a b}", "no name"),
            ("${1A}", "no name"),
            ("${file:/nowhere/x}", "/nowhere/x cannot be read"),
        ] {
            let (what, mend) = fill(text, &env()).expect_err(text);
            assert!(what.contains(word) && !mend.is_empty(), "{text}: {what}");
        }
    }
}
