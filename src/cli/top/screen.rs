//! What `top` shows, as the lines of a screen of any size.
//!
//! Never writes to the terminal. A state is always a word; colours only repeat it.

use console::{measure_text_width, style, truncate_str};

use super::{
    super::{
        print::{self, shown},
        times::Times,
        vendors::{self, LimitRow, Row},
    },
    state::{Page, Stats, Top},
};

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

const HEAD: [&str; 11] =
    ["NAME", "LIMIT USED", "SENT/S", "SENT/M", "IN FLIGHT", "WAITING", "OLDEST", "OPEN", "429S", "DRAINED", "STATE"];
/// These are left out first if the terminal is narrow.
const SPARE: [&str; 8] = ["OPEN", "OLDEST", "429S", "DRAINED", "SENT/M", "IN FLIGHT", "LIMIT USED", "SENT/S"];
/// Stands for what cannot be known now, or not with this key.
const UNKNOWN: &str = "?";

const HELP: &str = "\
j, k, arrows  select a vendor
enter         why it is not called, its last error, its limits, and its failures of the last hour
p             pause the selected vendor, or resume it; asks first
s             sort by another column
q, Ctrl-C     quit

LIMIT USED    of the limit that is used most
SENT/S        calls that were really sent in the last second; SENT/M in the last minute, 12+ while top has run for less
OPEN          accepted by the vendor and not answered yet
429S          answers that asked for fewer calls
DRAINED       when all that waits now will have been called
?             not known, or not for this key";

/// The lines from top to bottom, as many as there is room for, and none wider than the screen.
pub(super) fn lines(top: &Top, times: &Times, size: Size) -> Vec<String> {
    let mut lines = match &top.figures {
        Some(figures) => side_by_side(&totals(&figures.stats, &figures.vendors), size.columns),
        None => vec!["reading …".to_owned()],
    };
    if let Some(problem) = &top.problem {
        let text = format!("no new figures, trying again: {}", shown(problem));
        lines.extend(wrapped(&text, size.columns).iter().map(|line| style(line).red().to_string()));
    }
    let foot = foot(top, size.columns);
    let room = size.rows.saturating_sub(lines.len() + foot.len());
    let body = match &top.page {
        Page::Vendors | Page::Question { .. } => table(top, times, Size { rows: room, ..size }),
        Page::Help => wrapped(HELP, size.columns),
        Page::Why { vendor, failures, from } => {
            let text = why(top.row(vendor), failures.as_deref(), times);
            let lines = wrapped(&text, size.columns);
            let from = (*from).min(lines.len().saturating_sub(room));
            lines.into_iter().skip(from).collect()
        }
    };
    let empty = std::iter::repeat_n(String::new(), room);
    lines.extend(body.into_iter().chain(empty).take(room));
    lines.extend(foot);
    lines.truncate(size.rows);
    lines.iter().map(|line| truncate_str(line, size.columns, "…").into_owned()).collect()
}

/// The same without a terminal: totals and one table.
pub(super) fn plain(top: &Top, times: &Times) -> String {
    let totals = top.figures.as_ref().map(|figures| totals(&figures.stats, &figures.vendors)).unwrap_or_default();
    let rows = top.rows().into_iter().map(|row| cells(top, row, times, usize::MAX));
    format!("{}\n\n{}", totals.join("  "), print::table(HEAD, &SPARE, rows))
}

fn totals(stats: &Stats, vendors: &[Row]) -> Vec<String> {
    let a_second = |number: Option<f64>| number.map_or_else(|| UNKNOWN.to_owned(), rate);
    let mut totals = vec![
        format!("in {}/s", a_second(stats.accepted_per_s)),
        format!("done {}/s", a_second(stats.done_per_s)),
        format!("failed {}/s", a_second(stats.failed_per_s)),
        format!("backlog {}", stats.waiting),
    ];
    let breaches = vendors.iter().filter_map(|row| row.breaches_total).reduce(|a, b| a + b);
    totals.push(match breaches {
        Some(0) => "breaches 0".to_owned(),
        Some(broken) => style(format!("breaches {broken}!")).red().to_string(),
        None => format!("breaches {UNKNOWN}"),
    });
    totals
}

fn table(top: &Top, times: &Times, size: Size) -> Vec<String> {
    let rows = top.rows();
    let (selected, room) = (top.place(&rows), size.rows.saturating_sub(1));
    let from = (selected + 1).saturating_sub(room);
    let cells = rows.iter().enumerate().skip(from).take(room).map(|(n, row)| {
        let mut cells = cells(top, row, times, size.columns / 3);
        cells[0] = format!("{} {}", if n == selected { ">" } else { " " }, cells[0]);
        cells
    });
    let mut lines =
        print::steady(HEAD.map(|name| if name == "NAME" { "  NAME" } else { name }), &SPARE, cells, size.columns);
    if let Some(line) = lines.get_mut(selected + 1 - from) {
        *line = style(&line).bold().to_string();
    }
    lines
}

/// A vendor's row. Its name is cut to so many characters.
fn cells(top: &Top, row: &Row, times: &Times, most: usize) -> [String; 11] {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let name = shown(&row.name);
    let minute = top.a_minute(&row.name).map(|(calls, is_whole)| format!("{calls}{}", if is_whole { "" } else { "+" }));
    // With a tenant's key, some are not known.
    let none_or_unknown = if row.in_flight.is_some() { "none" } else { UNKNOWN };
    [
        truncate_str(&name, most.max(8), "…").into_owned(),
        most_used(&row.limits),
        or_unknown(top.a_second(&row.name).map(rate)),
        or_unknown(minute),
        or_unknown(row.in_flight.map(|calls| format!("{calls} of {}", row.concurrency))),
        row.waiting.to_string(),
        row.oldest_waiting_s.map_or_else(|| none_or_unknown.to_owned(), vendors::seconds),
        row.open.to_string(),
        or_unknown(row.throttled_total.map(|calls| calls.to_string())),
        match &row.drain_eta {
            Some(eta) => times.soonest(eta),
            None if row.waiting == 0 => "none".to_owned(),
            None => UNKNOWN.to_owned(),
        },
        vendors::state(row, times),
    ]
}

/// The limit of which the largest part is used.
fn most_used(limits: &[LimitRow]) -> String {
    let part = |limit: &LimitRow| limit.used.unwrap_or_default() as f64 / limit.calls.max(1) as f64;
    match limits.iter().max_by(|a, b| part(a).total_cmp(&part(b))) {
        Some(LimitRow { id, used: Some(used), .. }) => format!("{used} of {id}"),
        Some(LimitRow { id, .. }) => id.clone(),
        None => "no limits".to_owned(),
    }
}

fn why(row: Option<&Row>, failures: Option<&str>, times: &Times) -> String {
    let Some(row) = row else { return "this vendor is no longer there".to_owned() };
    format!("{}\n\n{}", vendors::show(row, times), failures.unwrap_or("reading its failures …"))
}

fn foot(top: &Top, columns: usize) -> Vec<String> {
    let keys = match &top.page {
        Page::Question { vendor, resume: false } => {
            let name = shown(vendor);
            return wrapped(
                &format!("pause {name}? Its jobs wait until it is resumed. y: yes, any other key: no"),
                columns,
            );
        }
        Page::Question { vendor, resume: true } => {
            return wrapped(&format!("resume {}? y: yes, any other key: no", shown(vendor)), columns);
        }
        _ if top.said.is_some() => return wrapped(&shown(top.said.as_deref().unwrap_or_default()), columns),
        Page::Help => vec!["any key: back".to_owned()],
        Page::Why { .. } => ["j/k scroll", "p pause", "q quit", "any other key: back"].map(str::to_owned).to_vec(),
        Page::Vendors => {
            let count = top.rows().len();
            let sort = format!("s sort: {}", top.sort.word());
            let number = if count == 1 { "1 vendor".to_owned() } else { format!("{count} vendors") };
            let keys = ["q quit", "j/k select", "p pause", "enter why", "? help"].map(str::to_owned);
            keys.into_iter().chain([sort, number]).collect()
        }
    };
    side_by_side(&keys, columns)
}

/// Parts on as few lines as they need.
fn side_by_side(parts: &[String], columns: usize) -> Vec<String> {
    flowed(parts.iter().map(String::as_str), "  ", columns)
}

/// Text with its lines broken between words where they are too long.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let wrap = |line: &str| match measure_text_width(line) > columns {
        true => flowed(line.split(' '), " ", columns),
        false => vec![line.to_owned()],
    };
    text.lines().flat_map(wrap).collect()
}

fn flowed<'a>(parts: impl Iterator<Item = &'a str>, gap: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + gap.len() + measure_text_width(part) <= columns => {
                line.push_str(gap);
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// A number a second: whole from 100 on.
fn rate(number: f64) -> String {
    if number >= 99.95 { format!("{number:.0}") } else { format!("{number:.1}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{
        super::{
            super::times::ZoneArgs,
            state::{
                Key,
                tests::{figures, vendor},
            },
        },
        *,
    };

    fn top(vendors: &[Value]) -> Top {
        let mut top = Top::default();
        top.note(figures(vendors), Duration::ZERO);
        top
    }

    /// The screen, once it is clear that it fits.
    fn screen(top: &Top, columns: usize, rows: usize) -> String {
        console::set_colors_enabled(false);
        let lines = lines(top, &ZoneArgs::default().times(), Size { rows, columns });
        let is_too_wide = |line: &&String| measure_text_width(line) > columns;
        assert_eq!(lines.iter().find(is_too_wide), None, "{columns}");
        assert_eq!(lines.len(), rows, "the keys are at the bottom");
        lines.join("\n")
    }

    fn world() -> Top {
        let open = json!({
            "blocked_on": "breaker", "breaker": "open", "waiting": 4200, "oldest_waiting_s": 95.0, "breaches_total": 0,
            "last_error": {"code": "try_again", "message": "the vendor answered 503", "at": "2026-11-22T12:00:00.000Z",
                           "vendor": {"status": 503, "body": "sorry\u{1b}[2J"}},
        });
        let busy = json!({"in_flight": 3, "open": 120, "waiting": 11, "throttled_total": 2});
        top(&[
            vendor("bureau", busy),
            vendor("cards\u{7}", json!({"paused": true, "blocked_on": "vendor_paused"})),
            vendor("reports", open),
        ])
    }

    #[test]
    fn a_usual_terminal_has_totals_vendors_and_keys() {
        let text = screen(&world(), 80, 24);
        assert!(text.starts_with("in 12.3/s  done 11.0/s  failed ?/s  backlog 4211  breaches 0\n"), "{text}");
        for words in [
            "\n  NAME ",
            "\n> cards\\u{7} ",
            "\n  reports ",
            "7 of 10/s",
            "breaker open",
            "paused until",
            "s sort: state",
        ] {
            assert!(text.contains(words), "{words:?}: {text}");
        }
        assert!(!text.contains("OPEN"), "there is no room for it: {text}");
    }

    #[test]
    fn a_small_terminal_has_fewer_columns_and_a_large_one_all() {
        let small = screen(&world(), 40, 12);
        for words in ["breaches 0", "cards", "WAITING", "STATE", "breaker op", "q quit"] {
            assert!(small.contains(words), "{words:?}: {small}");
        }
        let large = screen(&world(), 200, 50);
        for words in HEAD.iter().chain(&["3 of 32", "95s", "120"]) {
            assert!(large.contains(words), "{words:?}: {large}");
        }
        for (columns, rows) in [(1, 1), (9, 3), (20, 5), (500, 2)] {
            screen(&world(), columns, rows);
        }
    }

    #[test]
    fn the_selected_vendor_is_on_the_screen_however_many_there_are() {
        let vendors: Vec<Value> = (0..100).map(|n| vendor(&format!("vendor-{n:02}"), json!({}))).collect();
        let mut top = top(&vendors);
        assert!(screen(&top, 80, 24).contains("> vendor-00"));
        (0..42).for_each(|_| drop(top.press(Key::Down)));
        let text = screen(&top, 80, 24);
        assert!(text.contains("\n> vendor-42 ") && !text.contains("vendor-00"), "{text}");
        (0..100).for_each(|_| drop(top.press(Key::Down)));
        assert!(screen(&top, 40, 12).contains("> vendor-99"));
    }

    #[test]
    fn a_question_and_what_came_of_it_are_at_the_bottom() {
        let mut top = world();
        top.press(Key::Down);
        top.press(Key::Pause);
        for (columns, rows) in [(80, 24), (40, 12)] {
            let text = screen(&top, columns, rows).replace('\n', " ");
            assert!(
                text.ends_with("pause reports? Its jobs wait until it is resumed. y: yes, any other key: no"),
                "{text}"
            );
        }
        top.press(Key::Yes);
        top.say("reports is paused\u{1b}".into());
        assert!(screen(&top, 80, 24).ends_with("\nreports is paused\\u{1b}"));
    }

    #[test]
    fn a_vendors_page_has_the_reason_the_last_error_and_its_failures() {
        let mut top = world();
        top.press(Key::Down);
        top.press(Key::Enter);
        assert!(screen(&top, 80, 30).contains("reading its failures"));
        top.note_failures("reports", "2  the vendor answered 503".into());
        let text = screen(&top, 80, 30);
        for words in [
            "nearly all calls to reports fail",
            "the vendor answered 503 (try_again",
            "503 sorry\\u{1b}[2J",
            "2  the vendor",
        ] {
            assert!(text.contains(words), "{words:?}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        (0..500).for_each(|_| drop(top.press(Key::Down)));
        assert!(screen(&top, 40, 12).contains("2  the vendor answered 503"), "its end is reached");
    }

    #[test]
    fn a_service_that_cannot_be_reached_is_said_above_the_last_figures() {
        let mut top = Top::default();
        assert!(screen(&top, 80, 24).starts_with("reading …\n"));
        top.cannot_read("no service can be reached at http://127.0.0.1:1: refused\nStart one");
        assert!(screen(&top, 80, 24).contains("trying again: no service can be reached at http://127.0.0.1:1:"));
        let mut top = world();
        top.cannot_read("it is gone");
        let text = screen(&top, 80, 24);
        assert!(text.contains("trying again: it is gone") && text.contains("bureau"), "{text}");
        top.note(figures(&[vendor("bureau", json!({}))]), Duration::from_secs(9));
        assert!(!screen(&top, 80, 24).contains("trying again"));
    }

    #[test]
    fn without_a_terminal_there_is_one_table_with_all_columns() {
        console::set_colors_enabled(false);
        let text = plain(&world(), &ZoneArgs::default().times());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("in 12.3/s") && lines[1].is_empty(), "{text}");
        let table: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!((lines.len(), table[0]), (6, "cards\\u{7}"), "{text}");
        assert!(lines[2].starts_with("NAME ") && lines[2].ends_with("STATE"), "{text}");
    }
}
