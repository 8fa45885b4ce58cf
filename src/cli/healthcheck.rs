//! `healthcheck`: is the process of this container ready? The config says where it answers.
//!
//! Makes one request and never waits until a process becomes ready.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, Service},
    print,
    times::ZoneArgs,
};
use crate::config::{self, Config};

#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// Where the service is; by default where its config says: ops.listen, or server.listen if that is not set [env: FETCHGATE_URL]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The config file of the service; else FETCHGATE_CONFIG, else ./fetchgate.toml; with none of them http://127.0.0.1:8000 is used
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Readiness<'a> {
    #[serde(borrow)]
    checks: &'a RawValue,
}

/// Whether the service is ready; says what is not.
pub(super) async fn run(args: &HealthcheckArgs) -> Result<(), Failure> {
    let url = match args.url.clone().or_else(|| client::variable("FETCHGATE_URL")) {
        Some(url) => url,
        None => url_of(args.config.as_deref())?,
    };
    let service = Service::new(&url, None)?;
    let reply = service.exchange(Call::get("/readyz")).await?;
    if reply.status.is_success() {
        return print::line("ready");
    }
    let why = match serde_json::from_slice::<Readiness<'_>>(&reply.body) {
        Ok(readiness) => anyhow!("not ready\n{}", print::fields(readiness.checks, &[], &ZoneArgs::default().times())),
        Err(_) => service.stranger(&format!("answered {}", reply.status)),
    };
    Err(Failure::No(why))
}

/// Whether a body is what a service answers when it is asked if it is ready.
pub(super) fn is_ours(body: &[u8]) -> bool {
    serde_json::from_slice::<Readiness<'_>>(body).is_ok()
}

/// Where a process with this config answers. Both roles answer on `ops.listen`, so the role need not be known.
fn url_of(path: Option<&Path>) -> Result<String, Failure> {
    let is_named = path.is_some() || std::env::var_os("FETCHGATE_CONFIG").is_some_and(|path| !path.is_empty());
    if !is_named && !Path::new(config::HERE).exists() {
        return Ok(client::DEFAULT_URL.to_owned());
    }
    let config = config::load(path, config::environment()).map_err(|error| Failure::Usage(error.into()))?;
    if config.server.tls.is_some() && config.ops_listen.is_none() {
        let why = "server.tls is set, and the health check speaks plain HTTP: set ops.listen too";
        return Err(Failure::Usage(anyhow!(why)));
    }
    Ok(format!("http://{}", answers_at(&config)))
}

fn answers_at(config: &Config) -> SocketAddr {
    reachable(config.ops_listen.unwrap_or(config.server.listen))
}

/// Where a process on this machine reaches what listens at an address.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    // A process that listens everywhere is reached over loopback.
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
