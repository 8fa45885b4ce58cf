//! The output of commands: lines, tables that fit the terminal, key/value views, and indented JSON.
//!
//! Never re-encodes JSON, so no digit of a number is lost. Never prints control characters that come from outside.

use std::{borrow::Cow, fmt::Write as _, io::Write as _};

use anyhow::Context as _;
use console::{Term, measure_text_width, style, truncate_str};
use serde_json::value::RawValue;

use super::{Failure, Output, times::Times};
pub(super) use crate::shown::shown;
use crate::{json, shown::push_shown};

/// Between two columns.
const GAP: usize = 2;
/// The last column of a table is cut to no less than this before other columns are left out.
const LEAST_LAST: usize = 30;

/// One line, or several, on stdout.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    part(&format!("{text}\n"))
}

/// Text on stdout, without a line break after it.
pub(super) fn part(text: &str) -> Result<(), Failure> {
    let written = std::io::stdout().lock().write_all(text.as_bytes());
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

/// The JSON text on one line. A line break can only stand between two tokens, where a space means the same.
pub(super) fn verbatim(json: &RawValue) -> Cow<'_, str> {
    let text = json.get();
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

/// An object's members in their order, one on each line, aligned; without those of `apart`.
pub(super) fn fields(object: &RawValue, apart: &[&str], times: &Times) -> String {
    let mut members = json::members(object).unwrap_or_default();
    members.retain(|(name, _)| !apart.contains(&&**name));
    pairs(members.iter().map(|(name, value)| (&**name, short(value, times))))
}

/// Names and what belongs to them, one pair on each line, aligned. Lines after the first of a value are indented as that is.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<(String, String)> = pairs.into_iter().map(|(name, value)| (shown(name), value)).collect();
    let width = pairs.iter().map(|(name, _)| measure_text_width(name)).max().unwrap_or(0);
    let indent = " ".repeat(width + GAP);
    let lines = pairs.iter().map(|(name, value)| {
        let value = if ["status", "state"].contains(&&**name) {
            state(value)
        } else {
            value.replace('\n', &format!("\n{indent}"))
        };
        format!("{name}{}{value}", &indent[measure_text_width(name)..])
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A value on one line.
fn short(value: &RawValue, times: &Times) -> String {
    let parts: Vec<String> = if let Some(elements) = json::elements(value) {
        elements.into_iter().map(|element| shown(&json::text(element))).collect()
    } else if let Some(members) = json::members(value) {
        let said = members.iter().filter(|(_, value)| value.get() != "null");
        said.map(|(name, value)| format!("{}: {}", shown(name), shown(&json::text(value)))).collect()
    } else if value.get() == "null" {
        Vec::new()
    } else {
        let text = json::text(value);
        vec![times.long(&text).unwrap_or_else(|| shown(&text))]
    };
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// What a word means for the reader: its colour on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Bad,
    /// Something waits for a person, or for a time.
    Held,
}

impl Tone {
    /// By the first word of a status, a state or an outcome.
    fn of(text: &str) -> Tone {
        match text.split([' ', ',']).next().unwrap_or_default() {
            "complete" | "running" | "done" | "delivered" | "accepted" => Tone::Good,
            "failed" | "expired" | "refused" | "breaker" | "credentials" | "timeout" | "no_connection"
            | "unauthorized" => Tone::Bad,
            "paused" | "slowed" | "cancelled" | "slow_down" | "try_again" => Tone::Held,
            _ => Tone::Plain,
        }
    }

    /// The text in its colour, if stdout is a terminal and NO_COLOR is not set.
    fn paint(self, text: &str) -> String {
        match self {
            Tone::Plain => text.to_owned(),
            Tone::Good => style(text).green().to_string(),
            Tone::Bad => style(text).red().to_string(),
            Tone::Held => style(text).yellow().to_string(),
        }
    }
}

/// A status, a state or an outcome in its colour.
pub(super) fn state(text: &str) -> String {
    Tone::of(text).paint(text)
}

/// Rows under a head, in aligned columns, as wide as the terminal. If they do not fit, columns of `spare` are left out: first those that say
/// the same in each row, then the others in the order of `spare`, until the rest fits with its last column cut.
/// Columns that are called STATUS, STATE or OUTCOME have colours.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    spare: &[&str],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    fitted(head, spare, &shown_rows(rows), width()).join("\n")
}

/// The lines of a table that is drawn again and again, `most` characters wide: columns of `spare` are left out in their order until the rest
/// fits, whatever is in them.
pub(super) fn steady<const N: usize>(
    head: [&str; N],
    spare: &[&str],
    rows: impl IntoIterator<Item = [String; N]>,
    most: usize,
) -> Vec<String> {
    let rows = shown_rows(rows);
    let mut columns = Columns::of(head, &rows, most);
    // Whatever is in it now.
    columns.least_last = LEAST_LAST;
    columns.drop_spare(spare);
    columns.lines()
}

fn shown_rows<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Vec<[String; N]> {
    rows.into_iter().map(|row| row.map(|cell| shown(&cell))).collect()
}

/// The characters of a line: those of the terminal, or as COLUMNS says; no bound for output that goes elsewhere.
fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let real = || Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    said.or_else(real).filter(|columns| *columns > 0).unwrap_or(usize::MAX)
}

fn fitted<const N: usize>(head: [&str; N], spare: &[&str], rows: &[[String; N]], most: usize) -> Vec<String> {
    let mut columns = Columns::of(head, rows, most);
    columns.drop_same(spare);
    columns.drop_spare(spare);
    columns.lines()
}

/// A table that is being made to fit.
struct Columns<'a, const N: usize> {
    head: [&'a str; N],
    rows: &'a [[String; N]],
    widths: [usize; N],
    kept: Vec<usize>,
    most: usize,
    least_last: usize,
}

impl<'a, const N: usize> Columns<'a, N> {
    fn of(head: [&'a str; N], rows: &'a [[String; N]], most: usize) -> Self {
        let widths: [usize; N] = std::array::from_fn(|i| {
            let cells = rows.iter().map(|row| measure_text_width(&row[i]));
            cells.max().unwrap_or(0).max(head[i].len())
        });
        let least_last = widths.last().map_or(0, |width| *width.min(&LEAST_LAST));
        Columns { head, rows, widths, kept: (0..N).collect(), most, least_last }
    }

    /// The width of all columns but the last, with their gaps.
    fn before(&self) -> usize {
        self.kept.iter().rev().skip(1).map(|i| self.widths[*i] + GAP).sum()
    }

    fn last(&self) -> usize {
        self.kept.last().map_or(0, |i| self.widths[*i])
    }

    /// Drops columns that say the same in each row.
    fn drop_same(&mut self, spare: &[&str]) {
        let rows = self.rows;
        let is_same = |i: usize| rows.len() > 1 && rows.iter().all(|row| row[i] == rows[0][i]);
        for name in spare {
            if self.before() + self.last() > self.most {
                self.kept.retain(|i| self.head[*i] != *name || !is_same(*i));
            }
        }
    }

    /// Drops columns until the rest fits with its last column cut.
    fn drop_spare(&mut self, spare: &[&str]) {
        for name in spare {
            if self.before() + self.least_last > self.most {
                self.kept.retain(|i| self.head[*i] != *name);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let Columns { head, rows, widths, kept, most, .. } = self;
        let room = most.saturating_sub(self.before()).max(1);
        let rows = std::iter::once(head.map(str::to_owned)).chain(rows.iter().cloned()).enumerate();
        let lines = rows.map(|(n, row)| {
            let cells = kept.iter().enumerate().map(|(place, i)| {
                let is_last = place + 1 == kept.len();
                let text = if is_last { truncate_str(&row[*i], room, "…") } else { Cow::Borrowed(&*row[*i]) };
                let fill = if is_last { 0 } else { widths[*i] + GAP - measure_text_width(&text) };
                let is_state = n > 0 && ["STATUS", "STATE", "OUTCOME"].contains(&head[*i]);
                let text: Cow<'_, str> = if is_state { state(&text).into() } else { text };
                format!("{text}{:fill$}", "")
            });
            cells.collect::<String>().trim_end().to_owned()
        });
        lines.collect()
    }
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

#[cfg(test)]
mod tests {
    use super::{super::times::ZoneArgs, *};

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
            r#"{"status":"failed","tags":[],"error":{"code":"timeout","message":"too\u001b[2J slow"},"n":1.0,"result":{},"w":{"status":"pending","last_status":null}}"#,
        );
        let expected = "status  failed\ntags    none\nerror   code: timeout, message: too\\u{1b}[2J slow\nn       1.0\nw       status: pending";
        assert_eq!(fields(&json, &["result"], &ZoneArgs::default().times()), expected);
    }

    #[test]
    fn a_verbatim_answer_is_one_line() {
        assert_eq!(verbatim(&raw("{\"a\":\r\n 1.0}")), "{\"a\":   1.0}");
    }

    #[test]
    fn a_table_leaves_out_what_is_the_same_everywhere_before_it_cuts_the_last_column() {
        let row = |id: &str, error: &str| [id, "failed", "acme", error].map(str::to_owned);
        let rows = [row("one", "no connection to the vendor"), row("two", "none")];
        let table = |most| fitted(["ID", "STATUS", "TENANT", "ERROR"], &["TENANT", "STATUS"], &rows, most).join("\n");
        assert_eq!(
            table(usize::MAX),
            "ID   STATUS  TENANT  ERROR\none  failed  acme    no connection to the vendor\ntwo  failed  acme    none"
        );
        assert_eq!(table(40), "ID   STATUS  ERROR\none  failed  no connection to the vendor\ntwo  failed  none");
        assert_eq!(table(32), "ID   ERROR\none  no connection to the vendor\ntwo  none", "the status is the same too");
        assert_eq!(table(20), "ID   ERROR\none  no connection …\ntwo  none");
        assert_eq!(table(1), "ID   …\none  …\ntwo  …", "what may not be left out stays");
    }

    #[test]
    fn a_wide_character_takes_two_places() {
        let rows = [["東京".to_owned(), "x".to_owned()], ["abc".to_owned(), "y".to_owned()]];
        assert_eq!(fitted(["A", "B"], &[], &rows, usize::MAX), ["A     B", "東京  x", "abc   y"]);
    }
}
