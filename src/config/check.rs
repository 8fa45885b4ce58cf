//! What the checks of all sections share: texts, durations, numbers and pointers, and the faults found so far.
//!
//! Never stops at the first fault: each is noted, and all are reported together. It knows no section (see `root`, `store`, `vendor`).

use std::{
    net::SocketAddr,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use hyper::{Method, header::HeaderName};

use super::{
    LiveSecret, Secret, duration,
    error::{Problem, nearest},
    fill,
    form::form,
    mask::{self, Part},
    raw,
    secret::fits_line,
    source::{Env, Sources},
};
use crate::json::Pointer;

/// No time in a configuration is longer.
pub(super) const LONGEST: Duration = Duration::from_secs(3650 * 86_400);
/// Faults that are kept at most.
const MOST_PROBLEMS: usize = 200;

/// What checks share: the places of values, the environment, and the faults found so far.
pub(super) struct Check<'a> {
    pub(super) sources: &'a Sources<'a>,
    env: &'a Env,
    problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    /// What came from variables and files into texts so far, or since somebody took it.
    pub(super) filled_in: Vec<Secret>,
}

/// A text with its variables filled in.
pub(super) struct Filled {
    pub(super) text: String,
    /// As it was written, in quotes: what may be shown.
    pub(super) shown: String,
    pub(super) span: Range<usize>,
    /// Whether something was filled in: then messages about `text` may hold a secret.
    pub(super) is_filled: bool,
}

/// A vendor as it was written, and where.
pub(super) struct Whole<'a> {
    pub(super) key: &'a str,
    pub(super) raw: &'a raw::Vendor,
    pub(super) span: Range<usize>,
}

impl Whole<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }
}

impl<'a> Check<'a> {
    pub(super) fn new(sources: &'a Sources<'a>, env: &'a Env) -> Check<'a> {
        Check { sources, env, problems: Vec::new(), warnings: Vec::new(), filled_in: Vec::new() }
    }

    /// The faults and the warnings.
    pub(super) fn found(self) -> (Vec<Problem>, Vec<String>) {
        (self.problems, self.warnings)
    }

    pub(super) fn problem(&mut self, key: &str, span: &Range<usize>, what: impl Into<String>, mend: impl Into<String>) {
        if self.problems.len() >= MOST_PROBLEMS {
            return; // to find the line of each, the file is read from its start
        }
        let place = self.sources.place(span);
        self.problems.push(Problem { key: key.to_owned(), place, what: what.into(), mend: mend.into() });
    }

    /// Notes what is wrong with a value: then there is none.
    pub(super) fn refuse<T>(
        &mut self,
        key: &str,
        span: &Range<usize>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Option<T> {
        self.problem(key, span, what, mend);
        None
    }

    /// A key that has to be in its table. Noted as a problem if it is not.
    pub(super) fn needed<'r, T>(
        &mut self,
        key: &str,
        table: &Range<usize>,
        raw: &'r Option<T>,
        mend: impl Into<String>,
    ) -> Option<&'r T> {
        raw.as_ref().or_else(|| self.refuse(key, table, "this key is required", mend))
    }

    /// What one of these words stands for. `wrong` is what is said before any other, such as "there is no kind".
    pub(super) fn word<T: Clone>(
        &mut self,
        key: &str,
        raw: &raw::Text,
        words: &[(&str, T)],
        wrong: &str,
        mend: impl Into<String>,
    ) -> Option<T> {
        let text = self.text(key, raw)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text.text) {
            return Some(meaning.clone());
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mend = match nearest(&text.text, &names) {
            Some(near) if !text.is_filled => format!("Did you mean {near:?}?"),
            _ => mend.into(),
        };
        self.refuse(key, &text.span, format!("{wrong} {}", text.shown), mend)
    }

    /// The method of calls to a vendor.
    pub(super) fn method(&mut self, key: &str, raw: &raw::Text) -> Option<Method> {
        let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH];
        let words = methods.each_ref().map(|method| (method.as_str(), method.clone()));
        self.word(key, raw, &words, "vendors are not called with", "Write \"GET\", \"POST\", \"PUT\" or \"PATCH\"")
    }

    /// A header's name; `example` is one that could stand there.
    pub(super) fn header(&mut self, key: &str, raw: &raw::Text, example: &str) -> Option<HeaderName> {
        let text = self.text(key, raw)?;
        let header = HeaderName::try_from(&*text.text).ok();
        header.or_else(|| {
            let what = format!("{} is not a header's name", text.shown);
            self.refuse(key, &text.span, what, format!("Write {example:?}, say"))
        })
    }

    /// A secret that has to have something in it.
    pub(super) fn not_empty(&mut self, key: &str, raw: &raw::Text, secret: LiveSecret) -> Option<LiveSecret> {
        if !secret.reveal().is_empty() {
            return Some(secret);
        }
        self.refuse(key, &raw.span(), "this is empty", "Write it, or name a variable or file that has it")
    }

    /// The user of a login by name and password. RFC 7617: a colon ends the name.
    pub(super) fn user(&mut self, key: &str, raw: &raw::Text) -> Option<LiveSecret> {
        let user = self.secret(key, raw, fits_line)?;
        if !user.reveal().contains(':') {
            return Some(user);
        }
        self.refuse(key, &raw.span(), "a user's name has no colon", "Write what is before it")
    }

    /// The place of a value, for a message about another one.
    pub(super) fn place(&self, span: &Range<usize>) -> String {
        self.sources.place(span).to_string()
    }

    pub(super) fn text(&mut self, key: &str, raw: &raw::Text) -> Option<Filled> {
        self.note_filled_in(raw);
        match fill::fill(raw.get_ref(), self.env) {
            Ok((text, is_filled)) => Some(Filled { text, shown: shown(raw.get_ref()), span: raw.span(), is_filled }),
            Err((what, mend)) => self.refuse(key, &raw.span(), what, mend),
        }
    }

    /// The same text part by part, to show it with its secrets masked.
    pub(super) fn parts(&self, raw: &raw::Text) -> Vec<Part> {
        mask::parts(raw.get_ref(), self.env)
    }

    /// What is filled in may be a secret. Of a URL so may be the value of each parameter by itself.
    fn note_filled_in(&mut self, raw: &raw::Text) {
        for filled in mask::filled_in(&self.parts(raw)) {
            let parameters = filled.split_once('?').map_or("", |(_, query)| query).split('&');
            let values = parameters.filter_map(|pair| Some(pair.split_once('=')?.1));
            self.filled_in.extend([filled].into_iter().chain(values).map(|text| Secret::new(text.to_owned())));
        }
    }

    /// A secret that is read again when its files change.
    pub(super) fn secret(&mut self, key: &str, raw: &raw::Text, fits: fn(&str) -> bool) -> Option<LiveSecret> {
        let secret = self.any_secret(key, raw, fits)?;
        if !secret.fits() {
            let what = "its value has a character that cannot be sent (a line break, or not ASCII)";
            return self.refuse(key, &raw.span(), what, "Use visible ASCII and spaces");
        }
        Some(secret)
    }

    /// The same, which may not fit as it is now.
    pub(super) fn any_secret(&mut self, key: &str, raw: &raw::Text, fits: fn(&str) -> bool) -> Option<LiveSecret> {
        self.note_filled_in(raw);
        let read = fill::pieces(raw.get_ref(), self.env).and_then(|(pieces, _)| LiveSecret::read(pieces, fits));
        read.map_err(|(what, mend)| self.problem(key, &raw.span(), what, mend)).ok()
    }

    /// A duration over zero, up to `longest`.
    pub(super) fn duration(&mut self, key: &str, raw: &raw::Text, longest: Duration) -> Option<Duration> {
        let text = self.text(key, raw)?;
        match duration::parse(&text.text) {
            Ok(Duration::ZERO) => self.problem(key, &text.span, "zero is too short", format!("Write {}", form(key))),
            Ok(duration) if duration > longest => {
                let mend = format!("Write at most {:?}", duration::write(longest));
                self.problem(key, &text.span, format!("{} is too long", text.shown), mend);
            }
            Ok(duration) => return Some(duration),
            Err(why) => {
                let (why, form) = why.split_once(": ").unwrap_or((&why, "write a duration"));
                let form = form.replacen("write", "Write", 1);
                self.problem(key, &text.span, format!("{} is not a duration: {why}", text.shown), form);
            }
        }
        None
    }

    pub(super) fn number(&mut self, key: &str, raw: &raw::Number, range: RangeInclusive<u64>) -> Option<u64> {
        let number = *raw.get_ref();
        if range.contains(&number) {
            return Some(number);
        }
        let mend = format!("Write a whole number from {} to {}", range.start(), range.end());
        let size = if number < *range.start() { "small" } else { "large" };
        self.refuse(key, &raw.span(), format!("{number} is too {size}"), mend)
    }

    pub(super) fn pointer(&mut self, key: &str, raw: &raw::Text) -> Option<Pointer> {
        let text = self.text(key, raw)?;
        match Pointer::parse(&text.text) {
            Ok(pointer) => Some(pointer),
            Err(why) => {
                let why = if text.is_filled { String::new() } else { format!(": {why}") };
                let mend = r#"Write a path such as "/id" or "/data/0/name", or "" for the whole body"#;
                self.refuse(key, &text.span, format!("{} is not a JSON pointer{why}", text.shown), mend)
            }
        }
    }

    pub(super) fn address(&mut self, key: &str, raw: &raw::Text) -> Option<SocketAddr> {
        let text = self.text(key, raw)?;
        let address = text.text.parse().ok();
        if address.is_none() {
            let what = format!("{} is not an IP address with a port", text.shown);
            self.problem(key, &text.span, what, r#"Write "127.0.0.1:8000", or "0.0.0.0:8000" to listen everywhere"#);
        }
        address
    }
}

/// `Some(None)` when nothing was written, `None` when what was written is wrong.
pub(super) fn optional<R, T>(raw: Option<&R>, check: impl FnOnce(&R) -> Option<T>) -> Option<Option<T>> {
    match raw {
        Some(raw) => check(raw).map(Some),
        None => Some(None),
    }
}

/// All of them if each is right. Every one is looked at, so that all faults are found.
pub(super) fn all<T>(checked: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    checked.collect::<Vec<_>>().into_iter().collect()
}

/// A text as it was written, in quotes, not too long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// One key of a path, in quotes where TOML needs them.
pub(super) fn quoted_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { key.to_owned() } else { shown(key) }
}
