//! `dev`: the service, a store and mock vendors without a config, for a first look and for trying things out.

use std::{convert::Infallible, future::pending, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use mock_vendors::MockVendors;

use super::{
    Failure,
    client::{self, Call, JSON, Service as Client},
    healthcheck, serve,
};
use crate::{
    clock::Clock,
    config,
    roles::Roles,
    service::{Listeners, Service},
    telemetry,
};

/// The variable that says where a service listens.
const LISTEN: &str = "FETCHGATE__SERVER__LISTEN";
/// Between two jobs that dev submits by itself.
const TRICKLE: Duration = Duration::from_millis(400);

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Where the API listens: a port, or an address with a port [default: 127.0.0.1:8000] [env: FETCHGATE_DEV_LISTEN]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Without the vendors with faults, and without the jobs that dev submits by itself
    #[arg(long)]
    quiet: bool,
    /// Keeps the store in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    persist: Option<PathBuf>,
}

pub(super) async fn run(args: DevArgs) -> Result<(), Failure> {
    telemetry::start_logs();
    let vendors = start_vendors().await.context("the mock vendors cannot start")?;
    let temporary = std::env::temp_dir().join(format!("fetchgate-dev-{}", std::process::id()));
    let folder = args.persist.clone().unwrap_or_else(|| temporary.clone());
    let api = serve::listen(asked_for(args.listen)?)?;
    let listen = api.local_addr().context("the port cannot be read")?;
    let mut text = world(listen, &folder.join("fetchgate.db"), &vendors.url());
    if !args.quiet {
        text.push_str(&showcase(&vendors.url()));
    }
    // Where it listens is known already.
    let variables = config::environment().filter(|(name, _)| name != LISTEN);
    let config =
        config::parse(&text, "the built-in config of dev", variables).map_err(|error| Failure::Usage(error.into()))?;
    let service = Service::build(&config, Roles::Both, Clock::system()).await?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    greet(listen, &vendors.url(), args.quiet);
    let listeners = Listeners { api: Some(api), ..Listeners::default() };
    let outcome = tokio::select! {
        outcome = serve::run_until_stopped(service, listeners, &config, None) => outcome,
        never = trickle(listen, args.quiet) => match never {},
    };
    vendors.stop().await;
    if args.persist.is_none() {
        // If this fails, the temporary folder stays, which does no harm.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    Ok(outcome?)
}

/// An address as people write it: `18870`, `localhost:18870`, `0.0.0.0:18870`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse()
        .map_err(|_| "write a port such as 8000, or an IP address with a port such as 127.0.0.1:8000".to_owned())
}

/// Where the API is to listen: by the option, else by a variable.
fn asked_for(option: Option<SocketAddr>) -> Result<SocketAddr, Failure> {
    let by_variable =
        || [LISTEN, "FETCHGATE_DEV_LISTEN"].into_iter().find_map(|name| Some((name, client::variable(name)?)));
    match (option, by_variable()) {
        (Some(listen), _) => Ok(listen),
        (None, Some((name, text))) => address(&text).map_err(|why| Failure::Usage(anyhow!("{name}: {why}"))),
        (None, None) => Ok(SocketAddr::from(([127, 0, 0, 1], 8000))),
    }
}

/// Submits jobs to the vendors of `showcase` for ever, so that there is something to see. A job that is refused is left out.
async fn trickle(listen: SocketAddr, is_quiet: bool) -> Infallible {
    let service = match Client::new(&format!("http://{}", healthcheck::reachable(listen)), None) {
        Ok(service) if !is_quiet => service,
        _ => return pending().await,
    };
    for n in 0_u64.. {
        tokio::time::sleep(TRICKLE).await;
        let vendor = ["prices", "bureau", "prices", "reports"][n as usize % 4];
        // Now and then many at once, so that there is a backlog.
        let jobs = if n % 45 == 1 { 40 } else { 1 };
        for _ in 0..jobs {
            let body = serde_json::json!({ "vendor": vendor, "payload": { "customer_id": n }, "tags": ["dev"] });
            let call = Call { body: Some((JSON, body.to_string().into())), ..Call::post("/jobs") };
            if service.call(call).await.is_err() {
                break;
            }
        }
    }
    pending().await
}

/// The mock vendors, at the port that the documents name, or at any other if it is in use.
async fn start_vendors() -> anyhow::Result<MockVendors> {
    match MockVendors::start("127.0.0.1:9000").await {
        Ok(vendors) => Ok(vendors),
        Err(_) => Ok(MockVendors::start("127.0.0.1:0").await?),
    }
}

/// The config of `dev`: one mock vendor of each kind, and one that answers with the status that the payload names.
fn world(listen: SocketAddr, store: &std::path::Path, vendors: &str) -> String {
    let reachable = SocketAddr::from(([127, 0, 0, 1], listen.port()));
    let public = if listen.ip().is_unspecified() { reachable } else { listen };
    let store = toml::Value::String(format!("sqlite:{}", store.display()));
    format!(
        r#"
default_vendor = "sync"
[server]
listen = "{listen}"
public_url = "http://{public}"
[auth]
mode = "none"
allow_open = true
[store]
url = {store}
[vendors.sync]
kind = "sync"
url = "{vendors}/sync"
limits = ["50/s"]
[vendors.async]
kind = "webhook"
url = "{vendors}/async"
limits = ["20/s"]
webhook = {{ verify = "none" }}
[vendors.faulty]
kind = "sync"
url = "{vendors}/sync/faulty?status={{{{ payload.status | query }}}}"
limits = ["10/s"]
[vendors.polling]
kind = "polling"
url = "{vendors}/polling"
limits = ["20/s"]
polling = {{ ticket = "/id", url = "{vendors}/polling/{{{{ ticket | path }}}}", every = "500ms", done = {{ at = "/state", is = ["done"] }}, result = "/output" }}
"#
    )
}

/// Vendors with a life of their own: one fails now and then, one is slow and calls back, one asks for fewer calls than we may make.
fn showcase(vendors: &str) -> String {
    format!(
        r#"
[vendors.bureau]
kind = "sync"
url = "{vendors}/sync/bureau?latency_ms=150&fail_every=4"
limits = ["5/s"]
retry = {{ attempts = 2, first = "2s" }}
[vendors.prices]
kind = "sync"
url = "{vendors}/sync/prices?latency_ms=20&max=2&per_ms=1000&retry_after=1"
limits = ["10/s"]
[vendors.reports]
kind = "webhook"
url = "{vendors}/async/reports?callback_ms=4000"
limits = ["60/m"]
webhook = {{ verify = "none" }}
"#
    )
}

fn greet(listen: SocketAddr, vendors: &str, is_quiet: bool) {
    let showcase = if is_quiet {
        String::new()
    } else {
        format!(
            "\n  bureau fails now and then, prices asks for fewer calls, and reports calls back after 4 s: they get jobs all the\n  time. Watch all vendors: fetchgate top --url http://{}",
            healthcheck::reachable(listen)
        )
    };
    println!(
        r#"Fetchgate is running: http://{listen}      (try the API: http://{listen}/docs, stop: Ctrl-C)

  curl --location 'http://{listen}/jobs' --header 'Content-Type: application/json' \
    --data '{{"payload": {{"customer_id": 12345, "options": {{"priority": "high", "verify_address": true}}}}, "vendor": "sync"}}'
  curl http://{listen}/jobs/REQUEST_ID

  Vendors: sync answers in the reply, async calls back, polling answers when polled, and faulty answers with the
  status in its payload: fetchgate jobs submit --vendor faulty --payload '{{"status": 503}}'{showcase}
  They are mocks at {vendors}. Query parameters of a vendor's URL bring every fault (docs/mock-vendors.md), such as
  curl -i -X POST '{vendors}/sync/shaky?status=429&retry_after=5', and this takes them down for a minute:
  curl -X POST '{vendors}/refuse?for_ms=60000'
"#
    );
}
