//! Makes one table of the file, the variables that override it, and the defaults of the example.
//!
//! Every value keeps its place: each text has its own region of offsets, and a value's span is in the region of its text.
//! Never fills in `${NAME}` and never interprets a value.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{ConfigError, Place, Problem};

/// The environment's variables, by name. No `Debug`: values are secrets.
pub(super) struct Env(pub(super) BTreeMap<String, String>);

/// Every setting with its default, for keys that a file does not have.
pub const EXAMPLE: &str = include_str!("../../fetchgate.example.toml");

/// Variables that override keys begin with this.
pub(super) const PREFIX: &str = "FETCHGATE__";

/// Keys whose values in the example are the defaults of every vendor, and the vendor of the example that has them.
const VENDOR_DEFAULTS: [(&str, &[&str]); 2] =
    [("sync", &["method", "concurrency", "timeout", "retry", "clean", "breaker"]), ("async", &["answer_within"])];

/// The texts that values come from, in the order of their regions.
pub(super) struct Sources<'a> {
    regions: Vec<Region<'a>>,
}

struct Region<'a> {
    start: usize,
    len: usize,
    origin: Origin<'a>,
}

enum Origin<'a> {
    File { name: &'a str, text: &'a str },
    Variable { name: &'a str, value: &'a str },
    Defaults,
}

impl<'a> Sources<'a> {
    fn add(&mut self, len: usize, origin: Origin<'a>) -> usize {
        let start = self.regions.last().map_or(0, |last| last.start + last.len + 1);
        self.regions.push(Region { start, len, origin });
        start
    }

    fn region(&self, offset: usize) -> &Region<'a> {
        let after = self.regions.partition_point(|region| region.start <= offset);
        &self.regions[after.saturating_sub(1)]
    }

    /// The place of a value, for people.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let region = self.region(span.start);
        match region.origin {
            Origin::File { name, text } => {
                let before = &text.as_bytes()[..(span.start - region.start).min(text.len())];
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                Place::Line { file: name.to_owned(), line }
            }
            Origin::Variable { name, .. } => Place::Variable(name.to_owned()),
            Origin::Defaults => Place::Whole("the defaults".to_owned()),
        }
    }

    /// The text of the variable that a value came from, if it came from one.
    pub(super) fn variable_text(&self, span: &Range<usize>) -> Option<(&'a str, Range<usize>)> {
        let region = self.region(span.start);
        match region.origin {
            Origin::Variable { value, .. } => Some((value, region.start..region.start + region.len)),
            _ => None,
        }
    }

    pub(super) fn is_default(&self, span: &Range<usize>) -> bool {
        matches!(self.region(span.start).origin, Origin::Defaults)
    }
}

/// What was written, in the file and in variables, and the defaults.
pub(super) struct Layers<'a> {
    pub(super) table: DeTable<'a>,
    pub(super) defaults: Defaults,
}

/// Reads file, variables and defaults, and remembers where each of their values stands.
pub(super) fn layered<'a>(
    file: &'a str,
    name: &'a str,
    env: &'a Env,
) -> Result<(Layers<'a>, Sources<'a>), ConfigError> {
    let mut sources = Sources { regions: Vec::new() };
    sources.add(file.len(), Origin::File { name, text: file });
    let mut table = DeTable::parse(file).map_err(|error| syntax_error(&error, &sources))?.into_inner();

    for (variable, value) in env.0.iter().filter(|(key, value)| key.starts_with(PREFIX) && !value.is_empty()) {
        let start = sources.add(value.len(), Origin::Variable { name: variable, value });
        lay_variable(&mut table, variable, value, start)?;
    }

    let start = sources.add(EXAMPLE.len(), Origin::Defaults);
    let defaults = Defaults::read(start)?;
    Ok((Layers { table, defaults }, sources))
}

/// Keeps the parser's message, but not the line that it shows: there may be secrets in it.
fn syntax_error(error: &toml::de::Error, sources: &Sources<'_>) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let message = error.message().trim_end_matches(", expected nothing");
    let what = format!("this is not TOML: {message}");
    let is_bare_text =
        ["float", "integer", "boolean", "string", "date", "time"].iter().any(|kind| message.contains(kind));
    let mend = if message.contains("duplicate key") {
        "Every key, and every [table], may be written only once; remove one of the two"
    } else if is_bare_text {
        "Write texts between quotes that are closed on the same line: key = \"text\""
    } else {
        "Write `key = value` under a `[table]`, texts in \"quotes\""
    };
    Problem { key: String::new(), place: sources.place(&span), what, mend: mend.to_owned() }.into()
}

/// The example's sections without its vendors, and the defaults of every vendor.
pub(super) struct Defaults {
    sections: DeTable<'static>,
    vendor: DeTable<'static>,
}

impl Defaults {
    fn read(start: usize) -> Result<Defaults, ConfigError> {
        let damaged = |error: toml::de::Error| {
            let place = Place::Whole("fetchgate.example.toml".to_owned());
            let mend = "This is a bug in Fetchgate: report it".to_owned();
            ConfigError::from(Problem { key: String::new(), place, what: error.message().to_owned(), mend })
        };
        let example = DeTable::parse(EXAMPLE).map_err(damaged)?.into_inner();
        let mut sections = shift_table(example, start);
        sections.remove("default_vendor");
        let mut vendor = DeTable::new();
        if let Some(DeValue::Table(mut vendors)) = sections.remove("vendors").map(Spanned::into_inner) {
            for (name, keys) in VENDOR_DEFAULTS {
                let Some(DeValue::Table(shown)) = vendors.get_mut(name).map(Spanned::get_mut) else { continue };
                vendor.extend(keys.iter().filter_map(|key| shown.remove_entry(*key)));
            }
        }
        Ok(Defaults { sections, vendor })
    }

    /// Adds every default that is not overridden, to each vendor too.
    pub(super) fn lay_under(&self, table: &mut DeTable<'_>) {
        lay_under(table, &self.sections);
        if let Some(DeValue::Table(vendors)) = table.get_mut("vendors").map(Spanned::get_mut) {
            for (_, vendor) in vendors.iter_mut() {
                if let DeValue::Table(vendor) = vendor.get_mut() {
                    lay_under(vendor, &self.vendor);
                }
            }
        }
    }
}

/// Adds missing keys; tables are merged, everything else stays as it is.
fn lay_under(table: &mut DeTable<'_>, defaults: &DeTable<'static>) {
    for (key, default) in defaults.iter() {
        match (table.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut), default.get_ref()) {
            (Some(DeValue::Table(mine)), DeValue::Table(default)) => lay_under(mine, default),
            (Some(_), _) => {}
            (None, _) => drop(table.insert(key.clone(), default.clone())),
        }
    }
}

/// Sets one key from `FETCHGATE__SECTION__KEY=value`.
fn lay_variable<'a>(
    table: &mut DeTable<'a>,
    variable: &'a str,
    value: &'a str,
    start: usize,
) -> Result<(), ConfigError> {
    let whole = start..start + value.len();
    let complain = |what: String, mend: &str| {
        let place = Place::Variable(variable.to_owned());
        Err(ConfigError::from(Problem { key: String::new(), place, what, mend: mend.to_owned() }))
    };
    let path: Vec<String> = variable[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
    if path.iter().any(String::is_empty) || path.len() > 8 {
        let mend = "Write each level once with two underscores between: FETCHGATE__SERVER__LISTEN";
        return complain("this name does not say which key it overrides".to_owned(), mend);
    }
    let mut here = table;
    for (i, level) in path.iter().enumerate() {
        let key = as_written(here, level, i > 0 && path[i - 1] == "headers");
        if i + 1 == path.len() {
            here.remove(key.as_str());
            here.insert(Spanned::new(whole.clone(), Cow::Owned(key)), variable_value(value, start));
            break;
        }
        if !here.contains_key(key.as_str()) {
            let empty = Spanned::new(whole.clone(), DeValue::Table(DeTable::new()));
            here.insert(Spanned::new(whole.clone(), Cow::Owned(key.clone())), empty);
        }
        match here.get_mut(key.as_str()).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => here = inner,
            _ => {
                let key = path[..=i].join(".");
                return complain(format!("{key} has nothing inside it"), &format!("Override {key} as a whole"));
            }
        }
    }
    Ok(())
}

/// Names of variables have no hyphens. An existing key with hyphens is found anyway, and new headers get them.
fn as_written(table: &DeTable<'_>, level: &str, is_header: bool) -> String {
    let same = |key: &str| key.eq_ignore_ascii_case(level) || key.replace('-', "_").eq_ignore_ascii_case(level);
    let there = table.keys().map(|key| key.get_ref().as_ref()).find(|key| same(key));
    match there {
        Some(key) => key.to_owned(),
        None if is_header => level.replace('_', "-"),
        None => level.to_owned(),
    }
}

/// A number, a bool, an array or an inline table in TOML's form; anything else is a text.
fn variable_value(value: &str, start: usize) -> Spanned<DeValue<'_>> {
    match DeValue::parse(value) {
        Ok(parsed) if !matches!(parsed.get_ref(), DeValue::String(_) | DeValue::Datetime(_)) => shift(parsed, start),
        _ => Spanned::new(start..start + value.len(), DeValue::String(Cow::Borrowed(value))),
    }
}

/// Moves a value, and everything in it, into the region of its text.
fn shift(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| shift(item, by)).collect()),
        DeValue::Table(table) => DeValue::Table(shift_table(table, by)),
        plain => plain,
    };
    Spanned::new(span.start + by..span.end + by, value)
}

fn shift_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let moved = table.into_iter().map(|(key, value)| {
        let span = key.span();
        (Spanned::new(span.start + by..span.end + by, key.into_inner()), shift(value, by))
    });
    moved.collect()
}
