//! `serve`: the service from its config.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::Signal,
};

use super::{ConfigArgs, Failure, connect};
use crate::{
    api::tls::Tls,
    clock::Clock,
    config::{self, Config, StoreAt},
    logs,
    roles::Roles,
    service::{Listeners, Service},
    shutdown::{self, Shutdown},
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// What this process does; both by default
    #[arg(long, value_enum, value_delimiter = ',')]
    role: Vec<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Api,
    Worker,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = read(&args.config)?;
    let roles = match (args.role.contains(&Role::Api), args.role.contains(&Role::Worker)) {
        (true, false) => Roles::Api,
        (false, true) => Roles::Worker,
        (true, true) | (false, false) => Roles::Both,
    };
    if roles != Roles::Both && matches!(config.store.at, StoreAt::Sqlite(_)) {
        let why = "one process owns a SQLite store, so it has both roles; leave --role out, or write --role api,worker";
        return Err(Failure::Usage(anyhow::anyhow!(why)));
    }
    logs::start();
    // Before all that takes its time: nobody who asks for secrets to be read again should end a process that is starting.
    let hangups = shutdown::hangups().context("signals cannot be listened to")?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let listeners = listeners(&config, roles)?;
    connect::before_start(&config).await?;
    let service = Service::build(&config, roles, Clock::system()).await?;
    let address = |listener: &Option<TcpListener>| Some(listener.as_ref()?.local_addr().ok()?.to_string());
    let (api, ops) = (address(&listeners.api), address(&listeners.ops));
    tracing::info!(roles = roles.names().join(","), api, ops, vendors = config.vendors.len(), "ready");
    run_until_stopped(service, listeners, &config, Some(hangups)).await?;
    tracing::info!("stopped");
    Ok(())
}

/// A worker never binds the API's port, so that it can run beside an API process with the same config.
fn listeners(config: &Config, roles: Roles) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners::default();
    if roles.has_api() {
        let server = &config.server;
        listeners.tls = server.tls.as_ref().map(|files| Tls::open(&files.cert, &files.key)).transpose()?;
        listeners.max_per_address = server.max_connections_per_address;
        listeners.api = Some(listen(server.listen)?);
    }
    match config.ops_listen {
        Some(address) => listeners.ops = Some(listen(address)?),
        None if roles == Roles::Worker => {
            tracing::warn!("ops.listen is not set: this worker answers no probes and shows no metrics");
        }
        None => {}
    }
    Ok(listeners)
}

/// Runs a service until a signal stops it.
pub(super) async fn run_until_stopped(
    service: Service,
    listeners: Listeners,
    config: &Config,
    hangups: Option<Signal>,
) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    let signals = shutdown.clone().on_signals(config.capacity.grace, hangups);
    let running = service.run(listeners, shutdown.clone());
    tokio::pin!(running, signals);
    tokio::select! {
        outcome = &mut running => return outcome,
        listening = &mut signals => listening.context("signals cannot be handled")?,
    }
    running.await
}

/// Connections that the kernel accepts before we do: thousands of clients may start at once.
const BACKLOG: u32 = 4096;

pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

pub(super) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    bind(address).with_context(|| format!("cannot listen on {address}; is another process using the port?"))
}

pub(super) fn read(args: &ConfigArgs) -> Result<Config, Failure> {
    config::load(args.config.as_deref(), config::environment()).map_err(|error| Failure::Usage(error.into()))
}
