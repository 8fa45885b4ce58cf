//! From what was written to what may be relied on: every section but the store (see `store`) and the vendors (see `vendor`, `kind`, `limits`).
//!
//! Never stops at the first fault: each is noted, and all are reported together.

use std::{
    net::SocketAddr,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use super::{
    Capacity, Config, Secret, Server, duration,
    error::{ConfigError, Problem},
    fill, raw,
    read::form,
    source::{Env, Sources},
    store, vendor,
};
use crate::json::Pointer;

/// No time in a configuration is longer.
pub(super) const LONGEST: Duration = Duration::from_secs(3650 * 86_400);
const MOST_VENDORS: usize = 10_000;
/// Faults noted; more help nobody.
const MOST_PROBLEMS: usize = 200;

/// What checks share: where values stand, what fills them in, what has been found.
pub(super) struct Check<'a> {
    pub(super) sources: &'a Sources<'a>,
    env: &'a Env,
    problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
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

/// The checked configuration, or everything that is wrong with it.
pub(super) fn check(root: &raw::Root, sources: &Sources<'_>, env: &Env) -> Result<Config, ConfigError> {
    let mut cx = Check { sources, env, problems: Vec::new(), warnings: Vec::new() };
    let config = config(&mut cx, root);
    let mut problems = cx.problems;
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings: cx.warnings, ..config }),
        _ => {
            if problems.is_empty() {
                let (what, mend) = ("this cannot be used".to_owned(), "Report this: it is a bug".to_owned());
                problems.push(Problem { key: String::new(), place: sources.place(&(0..0)), what, mend });
            }
            Err(ConfigError::new(problems))
        }
    }
}

fn config(cx: &mut Check<'_>, root: &raw::Root) -> Option<Config> {
    let server = server(cx, &root.server);
    let ops_listen = root.ops.listen.as_ref().map(|listen| cx.address("ops.listen", listen));
    auth(cx, &root.auth, server.as_ref().map(|server| server.listen), &root.server.listen.span());
    if let (Some(server), Some(Some(ops)), Some(raw)) = (&server, ops_listen, &root.ops.listen)
        && ops == server.listen
        && ops.port() != 0
    {
        cx.problem("ops.listen", &raw.span(), "this is server.listen too", "Give it a port of its own, or remove it");
    }
    let store = store::store(cx, &root.store, root.queue.as_ref());
    let max_waiting = cx.number("capacity.max_waiting", &root.capacity.max_waiting, 1..=1_000_000_000);
    let grace = cx.duration("capacity.grace", &root.capacity.grace, Duration::from_secs(86_400));
    let public_url = server.as_ref().map(|server| &server.public_url);
    if root.vendors.len() > MOST_VENDORS {
        let what = format!("{} vendors are too many", root.vendors.len());
        cx.problem("vendors", &(0..0), what, format!("Have at most {MOST_VENDORS}"));
        return None;
    }
    if root.vendors.is_empty() {
        cx.warnings.push("There are no vendors: every job will be refused. Add a [vendors.name] table.".to_owned());
    }
    let (vendors, pools) = vendor::vendors(cx, &root.vendors, public_url);
    let default_vendor = root.default_vendor.as_ref().and_then(|name| default_vendor(cx, name, &root.vendors));
    Some(Config {
        default_vendor,
        server: server?,
        ops_listen: ops_listen.flatten(),
        store: store?,
        capacity: Capacity { max_waiting: max_waiting?, grace: grace? },
        vendors,
        pools,
        warnings: Vec::new(),
    })
}

fn default_vendor(
    cx: &mut Check<'_>,
    raw: &raw::Text,
    vendors: &std::collections::BTreeMap<String, toml::Spanned<raw::Vendor>>,
) -> Option<std::sync::Arc<str>> {
    let name = cx.text("default_vendor", raw)?;
    if vendors.contains_key(&name.text) {
        return Some(name.text.into());
    }
    let known: Vec<&str> = vendors.keys().map(String::as_str).take(20).collect();
    let mend = match super::error::nearest(&name.text, &known) {
        Some(near) => format!("Did you mean {near:?}?"),
        None if known.is_empty() => "Add its table, or remove default_vendor".to_owned(),
        None => format!("Name one of {}, or remove default_vendor", known.join(", ")),
    };
    cx.problem("default_vendor", &name.span, format!("there is no vendor {}", name.shown), mend);
    None
}

fn server(cx: &mut Check<'_>, raw: &raw::Server) -> Option<Server> {
    let listen = cx.address("server.listen", &raw.listen);
    let public_url = public_url(cx, &raw.public_url);
    let callback_secret = raw.callback_secret.as_ref().map(|secret| {
        let key = "server.callback_secret";
        let text = cx.text(key, secret)?;
        if text.text.is_empty() {
            let mend = "Write one, or remove the key: then one is made and kept in the store";
            cx.problem(key, &text.span, "this secret is empty", mend);
            return None;
        }
        if text.text.len() < 16 {
            let advice = "Use 16 characters or more, or remove it: then one is made and kept in the store.";
            cx.warnings.push(format!("{key} is short enough to be guessed. {advice}"));
        }
        Some(Secret::new(text.text))
    });
    let callback_secret = match callback_secret {
        Some(None) => return None,
        Some(secret) => secret,
        None => None,
    };
    Some(Server { listen: listen?, public_url: public_url?, callback_secret })
}

/// Never repeats the URL: people put passwords into them.
fn public_url(cx: &mut Check<'_>, raw: &raw::Text) -> Option<url::Url> {
    let key = "server.public_url";
    let text = cx.text(key, raw)?;
    let mut wrong = |what: &str, mend: &str| {
        cx.problem(key, &text.span, what, mend);
        None
    };
    let form = r#"Write "https://host/path", as vendors on the internet reach us"#;
    let Ok(mut url) = url::Url::parse(&text.text) else { return wrong("this is not a URL", form) };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return wrong("this is not an http or https URL", form);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("this URL holds a user name or password", "Remove the part before the @");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("this URL has a ? or a #, and paths are added at its end", "Remove what follows the path");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some(url)
}

fn auth(cx: &mut Check<'_>, raw: &raw::Auth, listen: Option<SocketAddr>, listen_span: &Range<usize>) {
    let Some(mode) = cx.text("auth.mode", &raw.mode) else { return };
    let span = &mode.span;
    match mode.text.as_str() {
        "none" => {
            let is_open = listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback());
            if is_open && !raw.allow_open.get_ref() {
                let key = "auth.allow_open";
                let what = "server.listen is beyond this machine, and auth.mode = \"none\" lets everybody in";
                let mend = "Write allow_open = true under [auth] if that is meant, or listen on 127.0.0.1";
                // Its default stands in no file; the address that makes it matter does.
                let written = raw.allow_open.span();
                let span = if cx.sources.is_default(&written) { listen_span } else { &written };
                cx.problem(key, span, what, mend);
            }
        }
        "api_key" => cx.problem("auth.mode", span, "API keys are not built yet", "Write \"none\" for now"),
        _ => cx.problem("auth.mode", span, format!("there is no mode {}", mode.shown), "Write \"none\""),
    }
}

impl Check<'_> {
    pub(super) fn problem(&mut self, key: &str, span: &Range<usize>, what: impl Into<String>, mend: impl Into<String>) {
        if self.problems.len() >= MOST_PROBLEMS {
            return; // finding the line of each reads the file from its start
        }
        let place = self.sources.place(span);
        self.problems.push(Problem { key: key.to_owned(), place, what: what.into(), mend: mend.into() });
    }

    /// Where a value stands, for a message about another one.
    pub(super) fn place(&self, span: &Range<usize>) -> String {
        self.sources.place(span).to_string()
    }

    pub(super) fn text(&mut self, key: &str, raw: &raw::Text) -> Option<Filled> {
        match fill::fill(raw.get_ref(), self.env) {
            Ok((text, is_filled)) => Some(Filled { text, shown: shown(raw.get_ref()), span: raw.span(), is_filled }),
            Err((what, mend)) => {
                self.problem(key, &raw.span(), what, mend);
                None
            }
        }
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
        self.problem(key, &raw.span(), format!("{number} is too {size}"), mend);
        None
    }

    pub(super) fn pointer(&mut self, key: &str, raw: &raw::Text) -> Option<Pointer> {
        let text = self.text(key, raw)?;
        match Pointer::parse(&text.text) {
            Ok(pointer) => Some(pointer),
            Err(why) => {
                let why = if text.is_filled { String::new() } else { format!(": {why}") };
                let mend = r#"Write a path such as "/id" or "/data/0/name", or "" for the whole body"#;
                self.problem(key, &text.span, format!("{} is not a JSON pointer{why}", text.shown), mend);
                None
            }
        }
    }

    fn address(&mut self, key: &str, raw: &raw::Text) -> Option<SocketAddr> {
        let text = self.text(key, raw)?;
        let address = text.text.parse().ok();
        if address.is_none() {
            let what = format!("{} is not an IP address with a port", text.shown);
            self.problem(key, &text.span, what, r#"Write "127.0.0.1:8000", or "0.0.0.0:8000" to listen everywhere"#);
        }
        address
    }
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
