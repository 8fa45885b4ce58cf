//! The chart of docs/lab/benchmarks.md: one panel of bars for each table that has some, as plain SVG.
//!
//! Never shows what is not in a table.

use std::{fmt::Write as _, fs, path::Path};

use crate::report::{Table, thousands};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 260.0;
const BAR: f64 = 18.0;
const LINE: f64 = 26.0;
const TITLE: f64 = 40.0;
/// What the numbers of a table's bars are.
const TITLES: [(&str, &str); 2] =
    [("rates", "jobs a second"), ("growth", "CPU µs of Fetchgate for a job, from submit to settle")];

/// Draws it when every table with bars is whole.
pub(crate) fn write(tables: &[Table]) -> anyhow::Result<()> {
    let panel = |(name, title)| {
        tables.iter().find(|table| table.name == name && table.is_whole).map(|table| (title, &table.bars))
    };
    let panels: Vec<(&str, &Vec<(String, f64)>)> = TITLES.into_iter().filter_map(panel).collect();
    if panels.len() == TITLES.len() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lab/benchmarks.svg"), draw(&panels))?;
        println!("docs/lab/benchmarks.svg: drawn");
    }
    Ok(())
}

fn draw(panels: &[(&str, &Vec<(String, f64)>)]) -> String {
    let (mut body, mut y) = (String::new(), 0.0);
    for (title, bars) in panels {
        // Writing to a String does not fail.
        let _ = writeln!(body, r#"<text x="0" y="{:.0}" class="title">{title}</text>"#, y + TITLE - 14.0);
        y += TITLE;
        let most = bars.iter().map(|bar| bar.1).fold(1.0, f64::max);
        for (label, value) in *bars {
            let (length, middle) = ((WIDTH - LABELS - 80.0) * value / most, y + BAR / 2.0 + 4.0);
            let kind = label.split(',').next().unwrap_or_default();
            let _ = writeln!(body, r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{label}</text>"#, LABELS - 8.0);
            let _ = writeln!(
                body,
                r#"<rect x="{LABELS:.0}" y="{y:.0}" width="{length:.1}" height="{BAR:.0}" class="{kind}"/>"#
            );
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{middle:.0}">{}</text>"#,
                LABELS + length + 6.0,
                thousands(*value)
            );
            y += LINE;
        }
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {y:.0}" font-family="sans-serif" font-size="12">
<style>text {{ fill: #444 }} .title {{ font-size: 15px; font-weight: bold }} .embedded {{ fill: #2a78b8 }} .scaled {{ fill: #d98032 }}</style>
<rect width="100%" height="100%" fill="#fff"/>
{body}</svg>
"##
    )
}
