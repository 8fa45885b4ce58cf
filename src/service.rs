//! The wiring: from a checked config to running parts, and back to silence. Tests wire the same parts the same way.
//!
//! Never reads the environment and never decides a default: the config is complete.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, App, Feasibility, server},
    clock::{Clock, nanos},
    config::{self, Config, Kind, StoreAt},
    job::JobIds,
    limit::{Key, Limiter, Per, local::Local, redis::RedisLimiter},
    pauses::Pauses,
    redis_link::Redis,
    roles::Roles,
    shutdown::Shutdown,
    store::{
        Store,
        book::Book,
        redis_mongo::{RedisMongo, VendorWork},
        sqlite::Sqlite,
    },
    telemetry::Metrics,
    vendor::{Registry, http::Client},
    worker::{Context, Pool},
};

/// Streams of a vendor hold about half a second of its rate, within these bounds.
const DEEPEST: u64 = 2048;
const SHALLOWEST: u64 = 16;
/// How long a pause takes to reach the other processes.
const PAUSES_EVERY: Duration = Duration::from_secs(1);

/// All parts of one process, built and not yet running.
pub struct Service {
    app: Arc<App>,
    pool: Pool,
    store: Arc<dyn Store>,
    limiter: Arc<dyn Limiter>,
}

/// The ports of one process: `api` with role api, `ops` where the config names one.
pub struct Listeners {
    pub api: Option<TcpListener>,
    pub ops: Option<TcpListener>,
}

impl Service {
    /// Opens the store and builds everything on it.
    pub async fn build(config: &Config, roles: Roles, clock: Clock) -> anyhow::Result<Service> {
        let Backend { store, book, limiter, queue } = open(config, &clock).await?;
        let secret = match &config.server.callback_secret {
            Some(secret) => secret.reveal().as_bytes().to_vec(),
            None => {
                let mut fresh = [0; 32];
                getrandom::fill(&mut fresh).context("the operating system gave no random bytes")?;
                book.callback_secret(fresh).await?.to_vec()
            }
        };
        let cx = Arc::new(Context {
            store: store.clone(),
            limiter: limiter.clone(),
            vendors: Arc::new(Registry::new(config, &secret)),
            pauses: Arc::new(Pauses::open(book).await?),
            metrics: Arc::new(Metrics::new(config.vendors.iter().map(|vendor| vendor.name.clone()))),
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
            roles,
            feasibility: Feasibility::default(),
            queue,
        });
        Ok(Service { app, pool: Pool::new(&cx), store, limiter })
    }

    /// The parts, for those who turn the loops themselves: tests, on a clock of their own.
    pub fn into_parts(self) -> (Arc<App>, Pool) {
        (self.app, self.pool)
    }

    /// Does what its roles say until told to stop; returns when everything has ended and is on disk.
    pub async fn run(self, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
        let Service { app, pool, store, limiter } = self;
        let roles = app.roles;
        let mut tasks = JoinSet::new();
        // The API outlives the workers, so that callbacks and waiting callers are served while calls finish.
        let api_stop = CancellationToken::new();
        if let Some(api) = listeners.api {
            tasks.spawn(server::serve(api, api::router(app.clone()), api_stop.clone()));
        }
        if let Some(ops) = listeners.ops {
            tasks.spawn(server::serve(ops, api::operations_router(app.clone()), api_stop.clone()));
        }
        if app.queue.is_some() {
            tasks.spawn(follow_pauses(app, api_stop.clone()));
        }
        let working = async {
            if roles.has_worker() {
                return pool.run(shutdown.stop.clone(), shutdown.abort.clone()).await;
            }
            shutdown.stop.cancelled().await;
            Ok(())
        };
        let broken = tokio::select! {
            ended = working => {
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

/// Learns what other processes pause and resume, and wakes the dispatchers that have waited for that.
async fn follow_pauses(app: Arc<App>, stop: CancellationToken) {
    loop {
        let next = app.clock.nanos() + nanos(PAUSES_EVERY);
        tokio::select! {
            () = app.clock.sleep_until(next) => {}
            () = stop.cancelled() => return,
        }
        match app.pauses.refresh().await {
            Ok(changed) => changed.iter().for_each(|vendor| app.store.signals().ring(vendor)),
            // The store tells of its own troubles; until it is back the pauses are as they were.
            Err(error) => tracing::debug!(%error, "what is paused could not be read"),
        }
    }
}

/// What differs between one machine and many. Everything else sees only the traits.
struct Backend {
    store: Arc<dyn Store>,
    book: Arc<dyn Book>,
    limiter: Arc<dyn Limiter>,
    queue: Option<Redis>,
}

async fn open(config: &Config, clock: &Clock) -> anyhow::Result<Backend> {
    match &config.store.at {
        StoreAt::Sqlite(path) => {
            let names = config.vendors.iter().map(|vendor| vendor.name.clone());
            let store = Arc::new(Sqlite::open(path, clock.clone(), names, config.capacity.max_waiting)?);
            let limiter = Local::open(config.pools.clone(), clock.clone(), store.clone()).await?;
            Ok(Backend { store: store.clone(), book: store, limiter: Arc::new(limiter), queue: None })
        }
        StoreAt::RedisMongo { mongo, database, redis } => {
            let queue = Redis::new(redis.clone());
            let (work, most) = (config.vendors.iter().map(|vendor| work(config, vendor)), config.capacity.max_waiting);
            let opening =
                RedisMongo::open(mongo.reveal(), database, queue.clone(), work.collect(), clock.clone(), most);
            let store = Arc::new(opening.await?);
            let timeouts = config.vendors.iter().map(|vendor| (vendor.name.clone(), vendor.timeout)).collect();
            let (pools, book) = (config.pools.clone(), store.clone());
            let limiter = RedisLimiter::open(queue.clone(), database, pools, timeouts, clock.clone(), book);
            Ok(Backend { store: store.clone(), book: store, limiter: Arc::new(limiter), queue: Some(queue) })
        }
    }
}

/// What the index in Redis has to know about a vendor.
fn work(config: &Config, vendor: &config::Vendor) -> VendorWork {
    let limits = config.pools.iter().filter(|pool| pool.pool == vendor.pool).flat_map(|pool| &pool.limits);
    let half_second = limits.filter(|limit| limit.key == Key::Vendor).filter_map(|limit| match limit.per {
        Per::Rolling(period) => Some(u128::from(limit.calls) * 500 / period.as_millis().max(1)),
        _ => None,
    });
    let depth = half_second.min().map_or(DEEPEST, |calls| u64::try_from(calls).unwrap_or(DEEPEST));
    VendorWork {
        name: vendor.name.clone(),
        polls: matches!(vendor.kind, Kind::Polling(_)),
        lease: vendor.lease(),
        depth: usize::try_from(depth.clamp(SHALLOWEST, DEEPEST)).unwrap_or(0),
        open: vendor.open,
    }
}
