//! `dev`: the service, a store and mock vendors without a config, for a first look and for trying things out.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use mock_vendors::MockVendors;

use super::{Failure, serve};
use crate::{
    clock::Clock,
    config,
    roles::Roles,
    service::{Listeners, Service},
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:8000", env = "FETCHGATE_DEV_LISTEN")]
    listen: SocketAddr,
    /// Keeps the store in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    persist: Option<PathBuf>,
}

pub(super) async fn run(args: DevArgs) -> Result<(), Failure> {
    telemetry::start_logs();
    let vendors = start_vendors().await.context("the mock vendors cannot start")?;
    let temporary = std::env::temp_dir().join(format!("fetchgate-dev-{}", std::process::id()));
    let folder = args.persist.clone().unwrap_or_else(|| temporary.clone());
    let api = serve::listen(args.listen)?;
    let listen = api.local_addr().context("the port cannot be read")?;
    let text = world(listen, &folder.join("fetchgate.db"), &vendors.url());
    let config = config::parse(&text, "the built-in config of dev", std::iter::empty())
        .map_err(|error| Failure::Usage(error.into()))?;
    let service = Service::build(&config, Roles::Both, Clock::system()).await?;
    greet(listen, &vendors.url());
    let listeners = Listeners { api: Some(api), ..Listeners::default() };
    let outcome = serve::run_until_stopped(service, listeners, &config, None).await;
    vendors.stop().await;
    if args.persist.is_none() {
        // If this fails, the temporary folder stays, which does no harm.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    Ok(outcome?)
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

fn greet(listen: SocketAddr, vendors: &str) {
    println!(
        r#"
  Fetchgate is running: http://{listen}      (try the API: http://{listen}/docs, stop: Ctrl-C)

  curl --location 'http://{listen}/jobs' --header 'Content-Type: application/json' \
    --data '{{"payload": {{"customer_id": 12345, "options": {{"priority": "high", "verify_address": true}}}}, "vendor": "sync"}}'
  curl http://{listen}/jobs/REQUEST_ID

  Vendors: sync answers in the reply, async calls back, polling answers when polled, and faulty answers with the
  status in its payload: fetchgate jobs submit --vendor faulty --payload '{{"status": 503}}'
  They are mocks at {vendors}. Query parameters of a vendor's URL bring every fault (docs/mock-vendors.md), such as
  curl -i -X POST '{vendors}/sync/shaky?status=429&retry_after=5', and this takes them down for a minute:
  curl -X POST '{vendors}/refuse?for_ms=60000'
"#
    );
}
