//! Tables: printed as they grow, and put into the pages between markers, so that a run replaces the one before.
//!
//! Never touches what stands outside of the markers.

use std::{fs, path::Path};

use anyhow::Context as _;
use fetchgate::clock::Clock;

pub(crate) struct Table {
    /// What its markers in the page say.
    pub(crate) name: &'static str,
    page: &'static str,
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
    /// What the chart shows of it: a label and a number each.
    pub(crate) bars: Vec<(String, f64)>,
    /// No row was left out.
    pub(crate) is_whole: bool,
}

impl Table {
    /// `page` is below `docs/`.
    pub(crate) fn new(name: &'static str, page: &'static str, head: &'static [&'static str]) -> Table {
        Table { name, page, head, rows: Vec::new(), bars: Vec::new(), is_whole: true }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        if self.rows.is_empty() {
            println!("\n{}\n\n{}", self.name, head_lines(self.head));
        }
        println!("{}", line(&cells));
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n{}", head_lines(self.head), rows.join("\n"))
    }
}

fn head_lines(head: &[&str]) -> String {
    format!("| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()))
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// 1234567.8 as `1,234,568`.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Where and when this runs, and how busy it was before: a table without that says nothing.
pub(crate) fn machine() -> String {
    let of = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let value = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        value.unwrap_or_default().replace(key, "").trim_matches([' ', '\t', ':']).to_owned()
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{}, {cores} cores ({}), {} of memory, Linux {}; load average before it began: {}.",
        Clock::system().now().rfc3339(),
        of("/proc/cpuinfo", "model name"),
        of("/proc/meminfo", "MemTotal"),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// Puts a table into its page, if it is whole.
pub(crate) fn write(table: &Table, machine: &str) -> anyhow::Result<()> {
    if !table.is_whole {
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(table.page);
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (begin, end) = (format!("<!-- {} -->", table.name), format!("<!-- end of {} -->", table.name));
    let missing = || format!("{} has no {begin} and {end}", table.page);
    let (before, rest) = page.split_once(&begin).with_context(missing)?;
    let after = rest.split_once(&end).with_context(missing)?.1;
    fs::write(&path, format!("{before}{begin}\n\n{machine}\n\n{}\n\n{end}{after}", table.text()))?;
    println!("{}: written into docs/{}", table.name, table.page);
    Ok(())
}
