//! Processes with one role: what each does, what it leaves to the other, and what `readyz` tells about both.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fetchgate::{
    api::{self, App, Feasibility},
    book::Pause,
    clock::Clock,
    config::{self, Config},
    job::JobIds,
    pauses::Pauses,
    redis_link::{Redis, RedisUrl},
    roles::Roles,
    service::{Listeners, Service},
    shutdown::Shutdown,
    store::{Store as _, sqlite::Sqlite},
    worker::Failures,
};
use hyper::Method;
use mock_vendors::MockVendors;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    failure::wait_until,
    support::{Caller, openapi, servers::Server},
};

mod admission;
mod book;
mod connect;
mod files;
mod keys;

/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(30);

/// The config, the store and the vendors of processes that come and go.
struct World {
    vendors: MockVendors,
    config: Config,
    _folder: TempDir,
}

/// A running service with some roles.
struct Process {
    address: SocketAddr,
    shutdown: Shutdown,
    running: JoinSet<anyhow::Result<()>>,
}

impl World {
    async fn new() -> World {
        let vendors = MockVendors::start("127.0.0.1:0").await.expect("a port for the mock vendors");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = format!(
            "[store]\nurl = \"sqlite:{}\"\n[vendors.sync]\nkind = \"sync\"\nurl = \"{}/sync\"\nlimits = []\n",
            folder.path().join("jobs.db").display(),
            vendors.url()
        );
        let config = config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
        World { vendors, config, _folder: folder }
    }

    /// An API process listens for the API only, a worker for operations only.
    async fn start(&self, roles: Roles) -> Process {
        self.start_at(roles, Clock::system()).await
    }

    async fn start_at(&self, roles: Roles, clock: Clock) -> Process {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let service = Service::build(&self.config, roles, clock).await.expect("the service");
        let (api, ops) = if roles.has_api() { (Some(listener), None) } else { (None, Some(listener)) };
        let (shutdown, mut running) = (Shutdown::new(), JoinSet::new());
        running.spawn(service.run(Listeners { api, ops, ..Listeners::default() }, shutdown.clone()));
        Process { address, shutdown, running }
    }
}

impl Process {
    fn caller(&self) -> Caller {
        Caller::at(&format!("http://{}", self.address))
    }

    async fn stop(mut self) {
        self.shutdown.stop.cancel();
        self.running.join_next().await.expect("one").expect("no panic").expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_api_process_accepts_a_worker_process_does() {
    let world = World::new().await;
    let api = world.start(Roles::Api).await;
    let caller = api.caller();
    let accepted = caller.post("/jobs", r#"{"vendor": "sync", "payload": 1}"#).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let path = format!("/jobs/{}", accepted.json()["request_id"].as_str().expect("an id"));
    let waited = caller.get(&format!("{path}?wait=100ms")).await.json();
    assert_eq!((&waited["status"], world.vendors.count("sync")), (&json!("pending"), 0), "nobody here calls vendors");
    let ready = caller.get("/readyz").await;
    assert_eq!(ready.json()["role"], json!(["api"]));
    assert_eq!((ready.status.as_u16(), &ready.json()["can"]), (200, &json!({"accept_jobs": true})));
    api.stop().await;

    let worker = world.start(Roles::Worker).await;
    let caller = worker.caller();
    let done = "fetchgate_jobs_ended_total{vendor=\"sync\",status=\"complete\"} 1";
    wait_until("the job is done", LONG, async || caller.get("/metrics").await.text.contains(done).then_some(())).await;
    assert_eq!(caller.get("/jobs").await.status, 404, "a worker has no API");
    let ready = caller.get("/readyz").await;
    assert_eq!(ready.json()["role"], json!(["worker"]));
    assert_eq!((ready.status.as_u16(), &ready.json()["can"]), (200, &json!({"call_vendors": true})));
    worker.stop().await;

    let api = world.start(Roles::Api).await;
    assert_eq!(api.caller().get(&path).await.json()["status"], "complete");
    assert_eq!(api.caller().get("/vendors/sync").await.json()["calls_total"], 1, "by another process");
    api.stop().await;
    assert_eq!(world.vendors.count("sync"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stops_leaves_on_record_what_it_sent() {
    let world = World::new().await;
    // On a clock that stands still nothing is written after a second, only at the end.
    let process = world.start_at(Roles::Both, Clock::manual(Clock::system().now())).await;
    for n in 0..3 {
        let job = process.caller().post("/jobs", r#"{"vendor": "sync", "payload": 1}"#).await.json();
        let path = format!("/jobs/{}?wait=30s", job["request_id"].as_str().expect("an id"));
        assert_eq!(process.caller().get(&path).await.json()["status"], "complete", "{n}");
    }
    process.stop().await;
    let process = world.start(Roles::Api).await;
    assert_eq!(process.caller().get("/vendors/sync/audit").await.json()["calls"], 3);
    process.stop().await;
}

#[tokio::test]
async fn what_one_process_pauses_the_others_learn() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = Clock::system();
    let names = ["sync", "async"].map(Arc::from);
    let store = Arc::new(Sqlite::open(&folder.path().join("jobs.db"), clock.clone(), names, 100).expect("a store"));
    let (here, there) =
        (Pauses::open(store.clone()).await.expect("read"), Pauses::open(store.clone()).await.expect("read"));
    let seen = |vendor| there.get(vendor, clock.now()).map(|pause| pause.until);

    let pause = |until| Pause { vendor: "sync".to_owned(), until, since: Some(clock.now()), by: Some("me".to_owned()) };
    here.pause(pause(None)).await.expect("stored");
    assert_eq!((there.refresh().await.expect("read"), seen("sync")), (vec!["sync".to_owned()], Some(None)));
    assert_eq!(there.refresh().await.expect("read"), Vec::<String>::new(), "nothing has changed since");
    let until = Some(clock.now().plus(Duration::from_secs(600)));
    here.pause(pause(until)).await.expect("stored");
    assert_eq!((there.refresh().await.expect("read"), seen("sync")), (vec!["sync".to_owned()], Some(until)));
    here.resume("sync").await.expect("stored");
    assert_eq!((there.refresh().await.expect("read"), seen("sync")), (vec!["sync".to_owned()], None));
    store.close().await;
}

/// What `readyz` answers in a process with these roles and this Redis: status, `can` and what is said about the queue.
async fn readiness(app: &App, roles: Roles, queue: &Redis) -> (u16, Value, String) {
    let app = App {
        store: app.store.clone(),
        limiter: app.limiter.clone(),
        breakers: app.breakers.clone(),
        vendors: app.vendors.clone(),
        pauses: app.pauses.clone(),
        limits: app.limits.clone(),
        audit: app.audit.clone(),
        metrics: app.metrics.clone(),
        clock: app.clock.clone(),
        ids: JobIds::new(),
        default_vendor: None,
        roles,
        refused_callbacks: Failures::new("of the test"),
        feasibility: Feasibility::default(),
        edge: app.edge.clone(),
        access: app.access.clone(),
        admission: app.admission.clone(),
        webhooks: app.webhooks.clone(),
        events: app.events.clone(),
        overview: app.overview.clone(),
        bulk: tokio::sync::Mutex::default(),
        queue: Some(queue.clone()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("the port"));
    let (stop, mut serving) = (CancellationToken::new(), JoinSet::new());
    let door = api::server::Door::plain(&app.edge.memory);
    serving.spawn(api::server::serve(listener, api::operations_router(Arc::new(app)), door, stop.clone()));
    let answer = Caller::at(&url).get("/readyz").await;
    openapi::check(&Method::GET, "/readyz", &answer);
    stop.cancel();
    while serving.join_next().await.is_some() {}
    let body = answer.json();
    let queue = body["checks"]["queue"].as_str().expect("the queue is named").to_owned();
    (answer.status.as_u16(), body["can"].clone(), queue)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_jobs_are_accepted_and_no_vendor_is_called() {
    let world = World::new().await;
    let (app, ..) =
        Service::build(&world.config, Roles::Both, Clock::system()).await.expect("the service").into_parts();
    let server = Server::redis();
    let queue = Redis::new(RedisUrl::parse(&server.redis_url()).expect("a URL"));
    let ok = "ok".to_owned();
    let both = json!({"accept_jobs": true, "call_vendors": true});
    assert_eq!(readiness(&app, Roles::Both, &queue).await, (200, both, ok.clone()));
    assert_eq!(readiness(&app, Roles::Worker, &queue).await, (200, json!({"call_vendors": true}), ok));

    drop(server);
    let (status, can, why) = readiness(&app, Roles::Both, &queue).await;
    assert_eq!((status, can), (200, json!({"accept_jobs": true, "call_vendors": false})), "{why}");
    assert!(why.starts_with("Redis: "), "{why}");
    assert_eq!(readiness(&app, Roles::Api, &queue).await.0, 200);
    let (status, can, _) = readiness(&app, Roles::Worker, &queue).await;
    assert_eq!((status, can), (503, json!({"call_vendors": false})));

    app.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_answer_is_reported_within_a_second() {
    let world = World::new().await;
    let (app, ..) =
        Service::build(&world.config, Roles::Both, Clock::system()).await.expect("the service").into_parts();
    // Takes connections, as a stopped process does, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", silent.local_addr().expect("the port"));
    let queue = Redis::new(RedisUrl::parse(&url).expect("a URL"));
    let asked = std::time::Instant::now();
    let (status, can, why) = readiness(&app, Roles::Worker, &queue).await;
    assert_eq!((status, can), (503, json!({"call_vendors": false})), "{why}");
    assert!(asked.elapsed() < Duration::from_millis(1900), "{:?}", asked.elapsed());
    app.store.close().await;
}
