//! The wiring: builds all parts from a checked config, runs them and stops them. Tests wire the same parts the same way.
//!
//! Never reads the environment and never decides a default: the config is complete.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{self, Admission},
    api::{
        self, Access, App, Feasibility, Overview,
        edge::Edge,
        server::{self, Door},
        tls::Tls,
    },
    audit::Audit,
    book::Book,
    clock::Clock,
    config::{self, Config, StoreAt},
    events::Events,
    in_force::{FOLLOW_EVERY, FOLLOW_WITHOUT_MESSAGES, InForce},
    job::JobIds,
    keys::{self, Keys},
    limit::{
        Key, Limiter, Per,
        breaker::Terms,
        breakers::{Breakers, LocalBreakers, of_credentials},
        local::Local,
        redis::{RedisBreakers, RedisLimiter},
    },
    pauses::Pauses,
    processes::{About, Processes},
    redis_link::Redis,
    result_webhooks::{self, Deliverer, Parts, secrets::Secrets, send::system_lookup},
    roles::Roles,
    shown::Shown,
    shutdown::Shutdown,
    stats::{self, Stats},
    store::{
        Store, StoreError,
        calls::CallLog,
        events::EventLog,
        keys::KeyStore,
        redis_mongo::{self, RedisMongo, VendorWork},
        sqlite::{self, Sqlite},
        webhooks::Outbox,
    },
    telemetry::Metrics,
    vendor::{Registry, auth::oauth, http::Client},
    worker::{self, Context, Failures, Pool, slow_downs::SlowDowns},
};

/// A stream has room for about half a second of its vendor's rate, within these bounds.
const DEEPEST: u64 = 2048;
const SHALLOWEST: u64 = 16;

/// All parts of one process, built and not yet running.
pub struct Service {
    app: Arc<App>,
    cx: Arc<Context>,
    pool: Pool,
    store: Arc<dyn Store>,
    limiter: Arc<dyn Limiter>,
    breakers: Arc<dyn Breakers>,
    deliverer: Deliverer,
}

/// The ports of one process: `api` with role api, `ops` where the config names one.
#[derive(Default)]
pub struct Listeners {
    pub api: Option<TcpListener>,
    pub ops: Option<TcpListener>,
    /// For `api`; `ops` is plain.
    pub tls: Option<Tls>,
    pub max_per_address: Option<usize>,
}

impl Service {
    /// Opens the store and builds everything on it.
    pub async fn build(config: &Config, roles: Roles, clock: Clock) -> anyhow::Result<Service> {
        let shown = Shown::of(config);
        let about = About::new(roles, clock.now(), &shown.hash);
        let Backend { store, schema, book, calls, keys, outbox, events, limits, limiter, breakers, queue } =
            open(config, roles, &clock, &about).await?;
        let others = counting_place(config, queue.clone());
        let admission = Admission::new(config.tenants.clone(), clock.clone(), others.clone());
        let keys = Arc::new(Keys::open(keys, clock.clone(), &config.callers).await?);
        let secret = callback_secret(config, &*book).await?;
        let master = own_secret(&*book, "webhook_secret").await?;
        let pools = config.vendors.iter().map(|vendor| (vendor.name.clone(), vendor.pool.clone()));
        let audit = Arc::new(Audit::new(calls, clock.clone(), pools));
        let metrics = Arc::new(Metrics::new(config, &about));
        let stats = Stats::new(metrics.clone(), clock.clone(), others, limits.process());
        let processes = Processes::new(book.clone(), clock.clone(), limits.process(), about);
        let overview = Arc::new(Overview::new(stats, processes, shown.json, schema, config.store.retention));
        let cx = Arc::new(Context {
            store: store.clone(),
            limiter: limiter.clone(),
            breakers: breakers.clone(),
            vendors: Arc::new(Registry::new(config, &secret)),
            pauses: Arc::new(Pauses::open(book).await?),
            limits: limits.clone(),
            audit: audit.clone(),
            failures: Failures::default(),
            throttles: Failures::new("the vendor asked us to slow down; one line a minute counts how often"),
            stalls: Failures::new("jobs wait for the store, and nothing is lost; one line a minute counts the tries"),
            slow_downs: SlowDowns::default(),
            metrics,
            client: Client::new(),
            clock: clock.clone(),
            retention: config.store.retention,
        });
        let webhooks = announcer(config, &cx, outbox, master);
        let app = Arc::new(App {
            store: store.clone(),
            limiter: limiter.clone(),
            breakers: breakers.clone(),
            vendors: cx.vendors.clone(),
            pauses: cx.pauses.clone(),
            limits,
            audit,
            metrics: cx.metrics.clone(),
            events: Arc::new(Events::new(events, clock.clone())),
            clock,
            ids: JobIds::new(),
            default_vendor: config.default_vendor.clone(),
            roles,
            feasibility: Feasibility::default(),
            edge: Arc::new(Edge::new(&config.server.cors)),
            refused_callbacks: Failures::new("callbacks were refused; at most one line a minute counts them"),
            access: Arc::new(Access::new(keys, &config.server)),
            admission: Arc::new(admission),
            webhooks: webhooks.clone(),
            overview,
            bulk: tokio::sync::Mutex::default(),
            queue,
        });
        Ok(Service { app, pool: Pool::new(&cx), cx, store, limiter, breakers, deliverer: Deliverer::new(webhooks) })
    }

    /// The parts, for tests, which run the loops themselves on their own clock.
    pub fn into_parts(self) -> (Arc<App>, Pool, Deliverer) {
        (self.app, self.pool, self.deliverer)
    }

    /// Runs the roles of this process until it is stopped; returns when everything has ended and is on disk.
    pub async fn run(self, listeners: Listeners, shutdown: Shutdown) -> anyhow::Result<()> {
        let Service { app, cx, pool, store, limiter, breakers, deliverer } = self;
        let (roles, limits, events) = (app.roles, app.limits.clone(), app.events.clone());
        let (mut tasks, mut exporting, exported) = (JoinSet::new(), JoinSet::new(), CancellationToken::new());
        exporting.spawn(app.metrics.spans.clone().run(app.clock.clone(), exported.clone()));
        // The API stops after the workers, so that callbacks and waiting callers are served while calls finish.
        let api_stop = CancellationToken::new();
        if let Some(api) = listeners.api {
            let (tls, max_per_address) = (listeners.tls, listeners.max_per_address);
            let door = Door { tls, max_per_address, ..Door::plain(&app.edge.memory) };
            tasks.spawn(server::serve(api, api::router(app.clone()), door, api_stop.clone()));
        }
        if let Some(ops) = listeners.ops {
            let door = Door::plain(&app.edge.memory);
            tasks.spawn(server::serve(ops, api::operations_router(app.clone()), door, api_stop.clone()));
        }
        tasks.spawn(follow_hangups(cx, shutdown.reread.clone(), api_stop.clone()));
        if roles.has_worker() {
            tasks.spawn(log_backlog(app.clone(), shutdown.stop.clone()));
            tasks.spawn(deliverer.run(shutdown.stop.clone()));
        }
        if roles.has_api() {
            tasks.spawn(events.clone().run());
        }
        if roles.has_api() && app.access.keys.are_needed() {
            tasks.spawn(attend_keys(app.clone(), api_stop.clone()));
        }
        if roles.has_api() && app.admission.is_shared() {
            tasks.spawn(share_admission(app.clone(), api_stop.clone()));
        }
        if app.overview.stats.is_shared() {
            tasks.spawn(share_stats(app.clone(), api_stop.clone()));
        }
        if app.queue.is_some() {
            tasks.spawn(follow_book(app, api_stop.clone()));
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
                ended.err().map(|why| format!("a part of the worker has failed: {why}. This is a bug: report it and start again; no accepted job is lost"))
            }
            why = store.failed() => Some(format!("the store has failed: {why}")),
        };
        shutdown.stop.cancel();
        store.signals().dismiss_waiters();
        events.close();
        api_stop.cancel();
        drain(tasks, &shutdown.abort).await;
        // After those that make spans.
        exported.cancel();
        drain(exporting, &shutdown.abort).await;
        breakers.stop().await;
        let returned = limiter.stop().await;
        if let Err(error) = limits.stop().await {
            tracing::debug!(%error, "this process could not sign off: its limits count for some seconds longer");
        }
        store.close().await;
        if let Some(why) = broken {
            anyhow::bail!(why);
        }
        returned
            .context("the limiter could not return the permits that it had charged ahead; a little capacity is lost")
    }
}

/// Waits until tasks that are about to end have ended; drops them at `abort`.
async fn drain(mut tasks: JoinSet<()>, abort: &CancellationToken) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        () = abort.cancelled() => {}
    }
    tasks.shutdown().await;
}

/// Where all processes count together, and the name under which they do; `None` if there is only one.
fn counting_place(config: &Config, queue: Option<Redis>) -> Option<(Redis, String)> {
    match &config.store.at {
        StoreAt::RedisMongo { database, .. } => queue.map(|redis| (redis, database.clone())),
        StoreAt::Sqlite(_) => None,
    }
}

/// What signs the tokens of callbacks.
async fn callback_secret(config: &Config, book: &dyn Book) -> anyhow::Result<Vec<u8>> {
    match &config.server.callback_secret {
        Some(secret) => Ok(secret.reveal().as_bytes().to_vec()),
        None => Ok(own_secret(book, "callback_secret").await?.to_vec()),
    }
}

/// A secret that is made on first use and kept in the book.
async fn own_secret(book: &dyn Book, name: &'static str) -> anyhow::Result<[u8; 32]> {
    let mut fresh = [0; 32];
    getrandom::fill(&mut fresh).context("the operating system gave no random bytes")?;
    Ok(book.secret(name, fresh).await?)
}

/// Says how much has waited for this process.
async fn log_backlog(app: Arc<App>, stop: CancellationToken) {
    let counting = async {
        let mut jobs = 0;
        for vendor in app.vendors.iter() {
            jobs += app.store.backlog(vendor.name()).await.waiting;
        }
        jobs
    };
    tokio::select! {
        jobs = counting => tracing::info!(jobs, "jobs were waiting"),
        () = stop.cancelled() => {}
    }
}

/// Reads secrets again whenever somebody asks for it by SIGHUP.
async fn follow_hangups(cx: Arc<Context>, reread: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = reread.notified() => {}
            () = stop.cancelled() => return,
        }
        tracing::info!("SIGHUP: reading the secrets in files again");
        worker::reread_secrets(&cx).await;
    }
}

/// Follows the pauses and limits that other processes set: reads the book when a change is announced and at regular times, and wakes the
/// dispatchers that are concerned.
async fn follow_book(app: Arc<App>, stop: CancellationToken) {
    let signals = app.store.signals();
    loop {
        let next = app.clock.next_beat(if signals.is_unsubscribed() { FOLLOW_WITHOUT_MESSAGES } else { FOLLOW_EVERY });
        tokio::select! {
            () = app.clock.sleep_until(next) => {}
            () = signals.book().notified() => {}
            () = stop.cancelled() => return,
        }
        // At the same time, so that an idle process wakes up only once.
        let (keys, pauses, limits) =
            tokio::join!(follow_keys(&app), app.pauses.refresh(), app.limits.follow(&*app.limiter));
        if let Err(error) = keys {
            tracing::debug!(%error, "the keys could not be read; those that are known stay");
        }
        match pauses {
            Ok(changed) => changed.iter().for_each(|vendor| signals.ring(vendor)),
            // The store logs its own failures. Until it is back, the known pauses stay.
            Err(error) => tracing::debug!(%error, "the pauses could not be read"),
        }
        match limits {
            Ok(changed) => {
                for pool in &changed {
                    app.wake_pool(pool).await;
                }
            }
            Err(error) => tracing::debug!(%error, "the limits in force could not be read"),
        }
    }
}

/// Reads keys that others have made or deleted, if callers of this process need one.
async fn follow_keys(app: &App) -> Result<(), StoreError> {
    let is_needed = app.roles.has_api() && app.access.keys.are_needed();
    if is_needed { app.access.keys.refresh().await } else { Ok(()) }
}

/// Reads the keys of others often enough that a deleted one is of no use after a second, also if nobody has announced it; and writes now and
/// then which keys were used.
async fn attend_keys(app: Arc<App>, stop: CancellationToken) {
    let (keys, clock) = (&app.access.keys, &app.clock);
    let mut note_at = clock.next_beat(keys::NOTE_EVERY);
    loop {
        let next = if app.queue.is_some() { clock.next_beat(keys::FOLLOW_EVERY) } else { note_at };
        let is_stopping = tokio::select! {
            () = clock.sleep_until(next) => false,
            () = stop.cancelled() => true,
        };
        let is_time = is_stopping || clock.nanos() >= note_at;
        let noted = if is_time { keys.note_uses().await } else { Ok(()) };
        if is_stopping {
            return;
        }
        if is_time {
            note_at = clock.next_beat(keys::NOTE_EVERY);
        }
        let read = if app.queue.is_some() { keys.refresh().await } else { Ok(()) };
        if let Err(error) = noted.and(read) {
            tracing::debug!(%error, "the keys could not be read, or not be noted as used");
        }
    }
}

/// Counts what tenants submit together with other processes.
async fn share_admission(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = app.clock.sleep_until(app.clock.next_beat(admission::EXCHANGE_EVERY)) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = app.admission.exchange().await {
            tracing::debug!(%error, "what tenants submit could not be shared; until it can, this process counts by itself");
        }
    }
}

/// Shows the other processes what this one has counted: while there is something, once a second, and once more at the end.
async fn share_stats(app: Arc<App>, stop: CancellationToken) {
    let stats = &app.overview.stats;
    let mut is_stopping = false;
    while !is_stopping {
        let due = async {
            stats.changed().await;
            app.clock.sleep_until(app.clock.next_beat(stats::SHARE_EVERY)).await;
        };
        is_stopping = tokio::select! {
            () = due => false,
            () = stop.cancelled() => true,
        };
        if let Err(error) = stats.share().await {
            tracing::debug!(%error, "what was counted could not be shared; trying again in a second");
        }
    }
}

/// The parts that differ between one machine and many. Everything else sees only the traits.
struct Backend {
    store: Arc<dyn Store>,
    /// What it is, and the version of its schema.
    schema: (&'static str, u64),
    book: Arc<dyn Book>,
    limits: Arc<InForce>,
    calls: Arc<dyn CallLog>,
    keys: Arc<dyn KeyStore>,
    outbox: Arc<dyn Outbox>,
    events: Arc<dyn EventLog>,
    limiter: Arc<dyn Limiter>,
    breakers: Arc<dyn Breakers>,
    queue: Option<Redis>,
}

/// What announces the ends of jobs.
fn announcer(
    config: &Config,
    cx: &Context,
    outbox: Arc<dyn Outbox>,
    master: [u8; 32],
) -> Arc<result_webhooks::Context> {
    let hooks = &config.result_webhooks;
    Arc::new(result_webhooks::Context::new(Parts {
        store: cx.store.clone(),
        outbox,
        guard: hooks.guard.clone(),
        lookup: system_lookup(),
        secrets: Secrets::new(&config.tenants, &hooks.secrets, master),
        metrics: cx.metrics.clone(),
        clock: cx.clock.clone(),
        give_up_after: hooks.give_up_after,
        show: api::announced,
    }))
}

async fn open(config: &Config, roles: Roles, clock: &Clock, about: &About) -> anyhow::Result<Backend> {
    let failing = config.vendors.iter().filter_map(|vendor| Some((vendor.name.clone(), vendor.breaker?)));
    let credentials = config
        .vendors
        .iter()
        .map(|vendor| (of_credentials(&vendor.name), Terms::of_credentials(vendor.lease() + oauth::TIMEOUT)));
    let terms = failing.chain(credentials);
    let most = config.tenants.most_waiting(&config.capacity);
    match &config.store.at {
        StoreAt::Sqlite(path) => {
            let names = config.vendors.iter().map(|vendor| vendor.name.clone());
            let store = Arc::new(Sqlite::open(path, clock.clone(), names, most)?);
            let opening = InForce::open(store.clone(), clock.clone(), config.pools.clone(), about.write());
            let limits = Arc::new(opening.await?);
            let limiter = Arc::new(Local::open(limits.pools(), clock.clone(), store.clone()).await?);
            let breakers = Arc::new(LocalBreakers::new(terms, clock.clone()));
            let (book, calls, keys, outbox) = (store.clone(), store.clone(), store.clone(), store.clone());
            let events = store.clone();
            let schema = ("sqlite", sqlite::SCHEMA as u64);
            Ok(Backend { store, schema, book, calls, keys, outbox, events, limits, limiter, breakers, queue: None })
        }
        StoreAt::RedisMongo { mongo, database, redis } => {
            let queue = Redis::new(redis.clone());
            let work = config.vendors.iter().map(|vendor| work(config, vendor));
            let opening =
                RedisMongo::open(mongo.reveal(), database, queue.clone(), work.collect(), clock.clone(), most, roles);
            let store = Arc::new(opening.await?);
            let timeouts = config.vendors.iter().map(|vendor| (vendor.name.clone(), vendor.timeout)).collect();
            let opening = InForce::open(store.clone(), clock.clone(), config.pools.clone(), about.write());
            let limits = Arc::new(opening.await?);
            let (pools, book) = (limits.pools(), store.clone());
            let limiter = RedisLimiter::open(queue.clone(), database, pools, timeouts, clock.clone(), book);
            let bells = store.clone();
            let wake = move |vendor: &str| bells.signals().ring(vendor);
            let breakers = Arc::new(RedisBreakers::open(queue.clone(), database, terms, clock.clone(), wake));
            let limiter = Arc::new(limiter);
            let (book, calls, keys, outbox) = (store.clone(), store.clone(), store.clone(), store.clone());
            let events = store.clone();
            let schema = ("mongodb", redis_mongo::SCHEMA.unsigned_abs());
            Ok(Backend {
                store,
                schema,
                book,
                calls,
                keys,
                outbox,
                events,
                limits,
                limiter,
                breakers,
                queue: Some(queue),
            })
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
        polls: vendor.asks_again(),
        lease: vendor.lease(),
        depth: usize::try_from(depth.clamp(SHALLOWEST, DEEPEST)).unwrap_or(0),
        open: vendor.open,
    }
}
