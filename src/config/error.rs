//! Errors of a configuration, for the person who has to fix it: the key, its place, what is wrong, what to do.
//!
//! Never has a secret in it: values are shown as they were written, before `${NAME}` is filled in, and not at all where a secret belongs.

use std::fmt;

/// Everything that is wrong with a configuration, as far as it could be read; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `vendors.bureau.limits[1].shape`; empty when it is about the file itself.
    pub key: String,
    pub place: Place,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What to do about it, without a full stop.
    pub mend: String,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, counted from line 1.
    Line { file: String, line: usize },
    /// In an environment variable, by its name.
    Variable(String),
    /// In the file as a whole, or not in a file.
    Whole(String),
}

/// Problems shown at once; the rest is counted.
const SHOWN: usize = 20;

impl ConfigError {
    /// In the order of the lines.
    pub(super) fn new(mut problems: Vec<Problem>) -> ConfigError {
        problems.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
        problems.dedup();
        ConfigError { problems }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> ConfigError {
        ConfigError { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().take(SHOWN).enumerate() {
            let line_end = if i == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        let stop = if self.mend.ends_with('?') { "" } else { "." };
        write!(f, "{}. {}{stop}", self.what, self.mend)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{file} line {line}"),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Whole(name) => f.write_str(name),
        }
    }
}

/// The candidate that was probably meant, if one is close: at most two letters differ, in whatever case, and no more than half of the word.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if word.len() > 64 {
        return None; // no typing error is that long, and the comparison is quadratic
    }
    let word = word.to_ascii_lowercase();
    let ranked = candidates.iter().map(|candidate| (distance(&word, &candidate.to_ascii_lowercase()), *candidate));
    let (off, best) = ranked.min_by_key(|(off, _)| *off)?;
    (off <= 2 && off * 2 <= word.chars().count().max(best.len())).then_some(best)
}

/// Letters to insert, remove or replace to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_only_when_it_is_near() {
        let keys = ["timeout", "retry", "url", "limits"];
        assert_eq!(nearest("timeuot", &keys), Some("timeout"));
        assert_eq!(nearest("limit", &keys), Some("limits"));
        assert_eq!(nearest("POST", &["GET", "post"]), Some("post"));
        assert_eq!(nearest("retries", &keys), None);
        assert_eq!(nearest("x", &keys), None);
        assert_eq!(nearest("", &keys), None);
        assert_eq!(nearest("é", &[]), None);
    }
}
