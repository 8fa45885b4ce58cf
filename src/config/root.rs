//! The whole configuration, checked: every section but the server (see `server`), the store (see `store`) and the vendors (see `vendor`, `kind`, `limits`).
//!
//! Never repeats a secret.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use toml::Spanned;

use super::{
    Capacity, Config,
    check::Check,
    error::{ConfigError, Problem, nearest},
    raw, server,
    source::{Env, Sources},
    store, vendor,
};

const MOST_VENDORS: usize = 10_000;

/// The checked configuration, or everything that is wrong with it.
pub(super) fn check(root: &raw::Root, sources: &Sources<'_>, env: &Env) -> Result<Config, ConfigError> {
    let mut cx = Check::new(sources, env);
    let config = config(&mut cx, root);
    let (mut problems, warnings) = cx.found();
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings, ..config }),
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
    let server = server::server(cx, &root.server);
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
    vendors: &BTreeMap<String, Spanned<raw::Vendor>>,
) -> Option<Arc<str>> {
    let name = cx.text("default_vendor", raw)?;
    if vendors.contains_key(&name.text) {
        return Some(name.text.into());
    }
    let known: Vec<&str> = vendors.keys().map(String::as_str).take(20).collect();
    let mend = match nearest(&name.text, &known) {
        Some(near) => format!("Did you mean {near:?}?"),
        None if known.is_empty() => "Add its table, or remove default_vendor".to_owned(),
        None => format!("Name one of {}, or remove default_vendor", known.join(", ")),
    };
    cx.problem("default_vendor", &name.span, format!("there is no vendor {}", name.shown), mend);
    None
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
