//! The whole configuration, checked: every section but the server (see `server`), the store (see `store`) and the vendors (see `vendor`, `kind`, `limits`).
//!
//! Never repeats a secret.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use toml::Spanned;

use super::{
    Callers, Capacity, Config, Secret,
    check::{Check, optional},
    error::{ConfigError, Problem, nearest},
    raw, result_webhooks, server,
    source::{Env, Sources},
    store, tenants, traces, vendor,
};

const MOST_VENDORS: usize = 10_000;

/// The checked configuration, or everything that is wrong with it.
pub(super) fn check(root: &raw::Root, sources: &Sources<'_>, env: &Env) -> Result<Config, ConfigError> {
    let mut cx = Check::new(sources, env);
    let config = config(&mut cx, root);
    let (mut problems, mut warnings) = cx.found();
    let traces = traces::traces(env, &mut warnings);
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings, traces, ..config }),
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
    let callers = auth(cx, &root.auth, server.as_ref().map(|server| server.listen), &root.server.listen.span());
    if let (Some(server), Some(Some(ops)), Some(raw)) = (&server, ops_listen, &root.ops.listen)
        && ops == server.listen
        && ops.port() != 0
    {
        cx.problem("ops.listen", &raw.span(), "this is server.listen too", "Give it a port of its own, or remove it");
    }
    let store = store::store(cx, &root.store, root.queue.as_ref());
    let max_waiting = cx.number("capacity.max_waiting", &root.capacity.max_waiting, 1..=1_000_000_000);
    let bytes = &root.capacity.max_waiting_bytes;
    let max_waiting_bytes = cx.number("capacity.max_waiting_bytes", bytes, 1..=tenants::MOST_BYTES);
    let grace = cx.duration("capacity.grace", &root.capacity.grace, Duration::from_secs(86_400));
    let tenants = tenants::tenants(cx, &root.tenants, &root.tenant_defaults);
    let result_webhooks = result_webhooks::result_webhooks(cx, &root.result_webhooks);
    let public_url = server.as_ref().map(|server| &server.public_url);
    if root.vendors.len() > MOST_VENDORS {
        let what = format!("{} vendors are too many", root.vendors.len());
        return cx.refuse("vendors", &(0..0), what, format!("Have at most {MOST_VENDORS}"));
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
        callers: callers?,
        store: store?,
        capacity: Capacity { max_waiting: max_waiting?, max_waiting_bytes: max_waiting_bytes?, grace: grace? },
        tenants: tenants?,
        result_webhooks: result_webhooks?,
        vendors,
        pools,
        traces: None,
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
    cx.refuse("default_vendor", &name.span, format!("there is no vendor {}", name.shown), mend)
}

fn auth(
    cx: &mut Check<'_>,
    raw: &raw::Auth,
    listen: Option<SocketAddr>,
    listen_span: &Range<usize>,
) -> Option<Callers> {
    let modes = [("none", false), ("api_key", true)];
    let has_keys = cx.word("auth.mode", &raw.mode, &modes, "there is no mode", "Write \"none\" or \"api_key\"");
    let admin_key = optional(raw.admin_key.as_ref(), |key| admin_key(cx, key));
    let published_on = optional(raw.published_on.as_ref(), |address| published_on(cx, address));
    if has_keys? {
        if raw.admin_key.is_none() {
            let warning = "There is no auth.admin_key: only keys that are in the store already let anybody in.";
            cx.warnings.push(warning.to_owned());
        }
        return Some(Callers::Keys { admin_key: admin_key? });
    }
    if let Some(key) = &raw.admin_key {
        let what = "there is an admin_key, and auth.mode = \"none\" lets everybody in without one";
        let mend = "Write mode = \"api_key\" under [auth], or remove the key";
        return cx.refuse("auth.admin_key", &key.span(), what, mend);
    }
    let reached_on = published_on?.or(listen.map(|listen| listen.ip()));
    let is_open = reached_on.is_some_and(|address| !address.to_canonical().is_loopback());
    if is_open && !raw.allow_open.get_ref() {
        open_to_all(cx, raw, listen_span);
    }
    Some(Callers::Anybody)
}

fn open_to_all(cx: &mut Check<'_>, raw: &raw::Auth, listen_span: &Range<usize>) {
    let what = "the API is reached from beyond this machine, and auth.mode = \"none\" lets everybody in";
    let (key, span, mend) = match &raw.published_on {
        Some(address) => {
            let mend = "Publish it on 127.0.0.1, or turn keys on: mode = \"api_key\" and an admin_key (in Compose: FETCHGATE_ADMIN_KEY)";
            ("auth.published_on", address.span(), mend)
        }
        None => {
            let mend = "Turn keys on: mode = \"api_key\" and an admin_key under [auth]; or listen on 127.0.0.1; or write allow_open = true if that is meant";
            // Its default stands in no file; the address that makes it matter does.
            let written = raw.allow_open.span();
            let span = if cx.sources.is_default(&written) { listen_span.clone() } else { written };
            ("auth.allow_open", span, mend)
        }
    };
    cx.problem(key, &span, what, mend);
}

fn admin_key(cx: &mut Check<'_>, raw: &raw::Text) -> Option<Secret> {
    let text = cx.text("auth.admin_key", raw)?;
    if (32..=200).contains(&text.text.len()) && text.text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(Secret::new(text.text));
    }
    let what = "this key has not 32 to 200 characters of visible ASCII without spaces";
    cx.refuse("auth.admin_key", &text.span, what, "Make one with: openssl rand -hex 32")
}

fn published_on(cx: &mut Check<'_>, raw: &raw::Text) -> Option<IpAddr> {
    let text = cx.text("auth.published_on", raw)?;
    let address = text.text.parse().ok();
    if address.is_none() {
        let what = format!("{} is not an IP address", text.shown);
        cx.problem("auth.published_on", &text.span, what, r#"Write "127.0.0.1", or "0.0.0.0" for everywhere"#);
    }
    address
}
