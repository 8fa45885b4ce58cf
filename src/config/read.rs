//! Turns one table into the raw configuration. A value of the wrong type becomes a problem with the key's whole path.
//!
//! Never shows a value: serde's messages quote texts, and a text may be a secret in the wrong place.

use std::{borrow::Cow, fmt::Write as _, ops::Range};

use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{ConfigError, Problem, nearest},
    form::form,
    raw::Root,
    source::{Layers, Sources},
};

/// Problems of this kind that are reported at once; each costs one more reading of the whole table.
const MOST: usize = 20;

/// Reads the layers. A value of the wrong type is noted and removed, so that its default is used and the other problems are found too.
pub(super) fn read<'a>(layers: Layers<'a>, sources: &Sources<'a>) -> Result<Root, ConfigError> {
    let Layers { mut table, defaults } = layers;
    let mut problems = Vec::new();
    let mut retexted = 0;
    loop {
        defaults.lay_under(&mut table);
        let whole = Spanned::new(0..0, DeValue::Table(table.clone()));
        let error = match Root::deserialize(ValueDeserializer::from(whole)) {
            Ok(root) if problems.is_empty() => return Ok(root),
            Ok(_) => return Err(ConfigError::new(problems)),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let fault = Fault::of(error.message());
        let path = locate(&table, &span, fault.unknown_key()).unwrap_or_default();
        if retexted < 1000 && fault.wants_text() && retext(&mut table, &path, sources) {
            retexted += 1; // FETCHGATE__VENDORS__X__HEADERS__KEY=12345 looks like a number and is a text
            continue;
        }
        problems.push(fault.problem(&path, &span, sources));
        if problems.len() >= MOST || !remove(&mut table, &path) {
            return Err(ConfigError::new(problems));
        }
    }
}

/// One step of a key's path.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

/// What serde complained about, as far as its message tells.
enum Fault {
    UnknownKey { key: String, known: Vec<String> },
    WrongType { found: &'static str, wanted: &'static str },
    Other,
}

impl Fault {
    fn of(message: &str) -> Fault {
        // The known keys are our own words and come last; the unknown one may contain anything.
        let (head, tail) = message.rsplit_once(", expected ").unwrap_or((message, ""));
        if let Some(rest) = head.strip_prefix("unknown field `") {
            let key = rest.strip_suffix('`').unwrap_or(rest).to_owned();
            return Fault::UnknownKey { key, known: tail.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        }
        if head.starts_with("invalid type: ") || head.starts_with("invalid value: ") {
            let found = head.split_once(": ").map_or("", |(_, found)| found);
            return Fault::WrongType { found: found_type(found), wanted: wanted_type(tail) };
        }
        if message.contains("overflow") {
            return Fault::WrongType { found: "a number that is too large", wanted: "a whole number" };
        }
        Fault::Other
    }

    fn unknown_key(&self) -> Option<&str> {
        match self {
            Fault::UnknownKey { key, .. } => Some(key),
            _ => None,
        }
    }

    fn wants_text(&self) -> bool {
        matches!(self, Fault::WrongType { wanted: "a text in quotes" | "a text in quotes, or an array of them", .. })
    }

    fn problem(&self, path: &[Step], span: &Range<usize>, sources: &Sources<'_>) -> Problem {
        let key = dotted(path);
        let (what, mend) = match self {
            Fault::UnknownKey { known, .. } => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let (parent, name) = key.rsplit_once('.').unwrap_or(("", &key));
                ("there is no such key".to_owned(), mend_unknown(parent, name, &known))
            }
            Fault::WrongType { found, wanted } => {
                let form = form(&key);
                let mend = if form == "..." { format!("Write {wanted}") } else { format!("Write {form}") };
                (format!("expected {wanted}, found {found}"), mend)
            }
            Fault::Other => ("this cannot be read".to_owned(), "Compare it with fetchgate.example.toml".to_owned()),
        };
        Problem { key, place: sources.place(span), what, mend }
    }
}

fn found_type(found: &str) -> &'static str {
    let types = [
        ("string", "a text"),
        ("integer `-", "a negative number"),
        ("integer", "a number"),
        ("floating", "a number with decimals"),
        ("boolean `true", "true"),
        ("boolean", "false"),
        ("seq", "an array"),
        ("map", "a table"),
    ];
    types.iter().find(|(name, _)| found.starts_with(name)).map_or("something else", |(_, words)| words)
}

fn wanted_type(wanted: &str) -> &'static str {
    match wanted {
        "a string" => "a text in quotes",
        "u64" | "u32" | "usize" => "a whole number that is not negative",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "rate headers" => "\"off\" or a table",
        "a text or a table" => "a text in quotes or a table",
        "a breaker" => "a table, or false,",
        "a text or an array" => "a text in quotes, or an array of them",
        _ => "a table",
    }
}

/// What to do about an unknown key: the key that was probably meant, or the table where a key of this name belongs, or the known keys.
fn mend_unknown(parent: &str, name: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(name, known) {
        return format!("Did you mean {near}?");
    }
    let home = match name {
        "public_url" | "callback_secret" => "server",
        "max_waiting" | "max_waiting_bytes" | "grace" => "capacity",
        "retention" => "store",
        "mode" | "admin_key" | "allow_open" => "auth",
        "default_vendor" => "the top of the file, before any table",
        _ => "",
    };
    if !home.is_empty() && home != parent {
        return format!("It belongs in {}", if known.contains(&home) { format!("[{home}]") } else { home.to_owned() });
    }
    format!("Remove it; the keys here are {}", known.join(", "))
}

/// The path of the key (when one is unknown) or else of the innermost value with this span.
fn locate(table: &DeTable<'_>, span: &Range<usize>, unknown: Option<&str>) -> Option<Vec<Step>> {
    table.iter().find_map(|(key, value)| {
        let here = || Step::Key(key.get_ref().to_string());
        if unknown.is_none() && value.get_ref().is_array() && value.span() == *span {
            return Some(vec![here()]); // the first of [[tables]] has the array's span too
        }
        if let Some(mut path) = locate_in(value, span, unknown) {
            path.insert(0, here());
            return Some(path);
        }
        let hit = match unknown {
            Some(name) => key.span() == *span && key.get_ref() == name,
            None => value.span() == *span,
        };
        hit.then(|| vec![here()])
    })
}

fn locate_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>, unknown: Option<&str>) -> Option<Vec<Step>> {
    match value.get_ref() {
        DeValue::Table(table) => locate(table, span, unknown),
        DeValue::Array(items) => items.iter().enumerate().find_map(|(i, item)| {
            let mut path = match locate_in(item, span, unknown) {
                Some(path) => path,
                None if unknown.is_none() && item.span() == *span => Vec::new(),
                None => return None,
            };
            path.insert(0, Step::Index(i));
            Some(path)
        }),
        _ => None,
    }
}

/// The value at a path.
fn value_at<'t, 'a>(table: &'t mut DeTable<'a>, path: &[Step]) -> Option<&'t mut Spanned<DeValue<'a>>> {
    let (Step::Key(first), rest) = path.split_first()? else { return None };
    let first = table.get_mut(first.as_str())?;
    rest.iter().try_fold(first, |value, step| match (step, value.get_mut()) {
        (Step::Key(key), DeValue::Table(table)) => table.get_mut(key.as_str()),
        (Step::Index(i), DeValue::Array(items)) => items.get_mut(*i),
        _ => None,
    })
}

/// Removes a value; for an element of an array the whole array.
fn remove(table: &mut DeTable<'_>, path: &[Step]) -> bool {
    match path.split_last() {
        None => false,
        Some((Step::Key(key), [])) => table.remove(key.as_str()).is_some(),
        Some((Step::Key(key), parent)) => match value_at(table, parent).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => inner.remove(key.as_str()).is_some(),
            _ => false,
        },
        Some((Step::Index(_), parent)) => remove(table, parent),
    }
}

/// If a text is wanted and the value of a variable looked like something else, makes it a text again.
fn retext<'a>(table: &mut DeTable<'a>, path: &[Step], sources: &Sources<'a>) -> bool {
    let Some(value) = value_at(table, path) else { return false };
    match sources.variable_text(&value.span()) {
        Some((text, whole)) if !value.get_ref().is_str() && value.span() == whole => {
            *value = Spanned::new(whole, DeValue::String(Cow::Borrowed(text)));
            true
        }
        _ => false,
    }
}

fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(i) => drop(write!(text, "[{i}]")),
            Step::Key(key) => {
                let dot = if text.is_empty() { "" } else { "." };
                text += dot;
                text += &super::check::quoted_key(key);
            }
        }
    }
    text
}
