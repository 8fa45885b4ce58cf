//! The wiring: from a checked config to running parts, and back to silence. Tests wire the same parts the same way.
//!
//! Never reads the environment and never decides a default: the config is complete.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, App, server},
    clock::Clock,
    config::Config,
    job::JobIds,
    limit::{Limiter, local::Local},
    pauses::Pauses,
    shutdown::Shutdown,
    store::{Store, book::Book, sqlite::Sqlite},
    telemetry::Metrics,
    vendor::{Registry, http::Client},
    worker::{Context, Pool},
};

/// All parts of one process, built and not yet running.
pub struct Service {
    app: Arc<App>,
    pool: Pool,
    store: Arc<Sqlite>,
    limiter: Arc<dyn Limiter>,
}

impl Service {
    /// Opens the store and builds everything on it.
    pub async fn build(config: &Config, clock: Clock) -> anyhow::Result<Service> {
        let names = || config.vendors.iter().map(|vendor| vendor.name.clone());
        let store = Sqlite::open(&config.store.path, clock.clone(), names(), config.capacity.max_waiting)?;
        let store = Arc::new(store);
        let book: Arc<dyn Book> = store.clone();
        let secret = match &config.server.callback_secret {
            Some(secret) => secret.reveal().as_bytes().to_vec(),
            None => {
                let mut fresh = [0; 32];
                getrandom::fill(&mut fresh).context("the operating system gave no random bytes")?;
                book.callback_secret(fresh).await?.to_vec()
            }
        };
        let limiter: Arc<dyn Limiter> = Arc::new(Local::open(config.pools.clone(), clock.clone(), book.clone()).await?);
        let cx = Arc::new(Context {
            store: store.clone(),
            limiter: limiter.clone(),
            vendors: Arc::new(Registry::new(config, &secret)),
            pauses: Arc::new(Pauses::open(book).await?),
            metrics: Arc::new(Metrics::new(names())),
            client: Client::new(),
            clock: clock.clone(),
            retention: config.store.retention,
        });
        let app = Arc::new(App {
            store: store.clone(),
            limiter: limiter.clone(),
            vendors: cx.vendors.clone(),
            pauses: cx.pauses.clone(),
            metrics: cx.metrics.clone(),
            clock,
            ids: JobIds::new(),
            default_vendor: config.default_vendor.clone(),
            roles: &["api", "worker"],
        });
        Ok(Service { app, pool: Pool::new(&cx), store, limiter })
    }

    /// The parts, for those who turn the loops themselves: tests, on a clock of their own.
    pub fn into_parts(self) -> (Arc<App>, Pool) {
        (self.app, self.pool)
    }

    /// Serves on the listeners until told to stop; returns when everything has ended and is on disk.
    pub async fn run(self, api: TcpListener, ops: Option<TcpListener>, shutdown: Shutdown) -> anyhow::Result<()> {
        let Service { app, pool, store, limiter } = self;
        let mut tasks = JoinSet::new();
        // The API outlives the workers, so that callbacks and waiting callers are served while calls finish.
        let api_stop = CancellationToken::new();
        tasks.spawn(server::serve(api, api::router(app.clone()), api_stop.clone()));
        if let Some(ops) = ops {
            tasks.spawn(server::serve(ops, api::operations_router(app), api_stop.clone()));
        }
        let broken = tokio::select! {
            ended = pool.run(shutdown.stop.clone(), shutdown.abort.clone()) => {
                ended.err().map(|why| format!("a part of the worker cannot go on: {why}, which is a bug; start again"))
            }
            why = store.failed() => Some(format!("the store cannot go on: {why}; check the disk and start again")),
        };
        shutdown.stop.cancel();
        store.signals().dismiss_waiters();
        api_stop.cancel();
        let drained = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = drained => {}
            () = shutdown.abort.cancelled() => {}
        }
        tasks.shutdown().await;
        let handed_back = limiter.stop().await;
        store.close().await;
        if let Some(why) = broken {
            anyhow::bail!("{why}; what was acknowledged is safe");
        }
        handed_back.context("the limiter could not hand back what it had charged ahead; a little capacity is lost")
    }
}
