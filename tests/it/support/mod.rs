//! A whole service in the test's own process, on a clock that the test moves, calling mock vendors over real sockets.
//!
//! Never sleeps: the test turns the dispatchers itself and moves the clock to the next time that anything waits for. A dispatcher is turned
//! only when the service would turn it: its bell rang, or the time that it waits for has come.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fetchgate::{
    api::{self, App, server::Door},
    clock::{Clock, Nanos, Time},
    config::{self, Config, ConfigError},
    job::JobId,
    redis_link::Redis,
    result_webhooks::Deliverer,
    roles::Roles,
    service::Service,
    store::StoreError,
    vendor::{
        Vendor,
        http::{Client, Origin},
    },
    worker::{Tick, dispatch::Dispatcher, janitor::Janitor},
};
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::{HeaderMap, Method, Request, StatusCode};
use mock_vendors::MockVendors;
use mongodb::bson::{Binary, Document, doc, spec::BinarySubtype};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub(crate) mod openapi;
pub(crate) mod raw;
pub(crate) mod servers;
pub(crate) mod sign;
pub(crate) mod slow;
pub(crate) mod stream;
pub(crate) mod ways;

/// Runs a test of the API or the store on every backend; the failing test's name says which.
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::support::Backend::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis_mongo() {
                super::$name($crate::support::Backend::RedisMongo).await;
            }
        }
    )+};
}

/// What the jobs are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    RedisMongo,
}

impl Backend {
    /// The config's `store.url`, a place of its own in `folder` or on the servers, and `queue.url` where there is one.
    fn urls(self, folder: &TempDir) -> (String, Option<String>) {
        match self {
            Backend::Sqlite => (format!("sqlite:{}", folder.path().join("jobs.db").display()), None),
            Backend::RedisMongo => (servers::mongo().mongo_url(&database(folder)), Some(servers::redis().redis_url())),
        }
    }

    fn tables(self, folder: &TempDir) -> String {
        let (store, queue) = self.urls(folder);
        let queue = queue.map(|url| format!("[queue]\nurl = \"{url}\"\n")).unwrap_or_default();
        format!("[store]\nurl = \"{store}\"\n{queue}")
    }
}

/// A name that no other test has, and that a test keeps over restarts: its folder's.
pub(crate) fn database(folder: &TempDir) -> String {
    let name = folder.path().file_name().expect("a name").to_string_lossy().into_owned();
    format!("t{}", name.replace('.', "_"))
}

/// When every test begins: in the past, because Redis takes no lease that begins in the future.
pub(crate) const START: Time = Time(1_768_464_000_000);

/// A running service and its vendors.
pub(crate) struct TestApp {
    pub(crate) url: String,
    pub(crate) vendors: Arc<MockVendors>,
    pub(crate) clock: Clock,
    pub(crate) app: Arc<App>,
    dispatchers: Vec<Turned>,
    janitor: Janitor,
    deliverer: Deliverer,
    client: Client,
    origin: Origin,
    /// Where there is one.
    redis: Option<Redis>,
    server: JoinSet<()>,
    stop: CancellationToken,
    config: Config,
    folder: Arc<TempDir>,
}

/// A dispatcher, and what it waits for.
struct Turned {
    dispatcher: Dispatcher,
    bell: Arc<Notify>,
    waits_for: Tick,
}

impl Turned {
    /// Whether the service would turn it now. Its bell is heard by that.
    fn is_due(&self, now: Nanos) -> bool {
        let rang = self.bell.notified().now_or_never().is_some();
        rang || match self.waits_for {
            Tick::Again => true,
            Tick::WaitUntil(at) => at <= now,
            Tick::Idle => false,
        }
    }

    /// Turns it, and waits for the attempts that this started.
    async fn turn(&mut self) {
        self.waits_for = self.dispatcher.tick().await.expect("the store works");
        self.dispatcher.finish_attempts().await;
    }
}

/// What the service answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text))
    }

    /// The `code` of a problem.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The `code`, if this is a problem.
    pub(crate) fn code_if_problem(&self) -> Option<String> {
        (self.header("content-type") == "application/problem+json").then(|| self.code())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// Three vendors without limits worth speaking of, one of each kind.
pub(crate) const THREE_KINDS: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = ["1000/s"]
[vendors.async]
kind = "webhook"
url = "VENDORS/async?callback_ms=0"
limits = ["1000/s"]
webhook = { verify = "none", get = true }
[vendors.polling]
kind = "polling"
url = "VENDORS/polling"
limits = ["1000/s"]
polling = { ticket = "/id", url = "VENDORS/polling/polling/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] }, result = "/output" }
"#;

impl TestApp {
    /// The three kinds of vendors.
    pub(crate) async fn start(backend: Backend) -> TestApp {
        Self::with(backend, THREE_KINDS).await
    }

    /// A service with this config, in which `VENDORS` stands for the mock vendors' URL.
    pub(crate) async fn with(backend: Backend, text: &str) -> TestApp {
        Self::on_filled(backend, text, async |_| {}).await
    }

    /// The same on a store that was there before: `fill` puts it where this folder's store is.
    pub(crate) async fn on_filled(backend: Backend, text: &str, fill: impl AsyncFnOnce(&TempDir)) -> TestApp {
        Self::given(backend, text, &[], fill).await
    }

    /// The same with variables of the environment.
    pub(crate) async fn with_environment(backend: Backend, text: &str, env: &[(String, String)]) -> TestApp {
        Self::given(backend, text, env, async |_| {}).await
    }

    async fn given(
        backend: Backend,
        text: &str,
        env: &[(String, String)],
        fill: impl AsyncFnOnce(&TempDir),
    ) -> TestApp {
        let parse = |address: &str, vendors: &str, folder: &TempDir| {
            let (general, tables) = text.split_at(text.find("[vendors").unwrap_or(text.len()));
            // A test's own `[server]` is the last table before the vendors.
            let server = if general.contains("[server]") { "" } else { "[server]\n" };
            let text = format!(
                "{general}\n{server}listen = \"{address}\"\npublic_url = \"http://{address}\"\n{}{tables}",
                backend.tables(folder)
            );
            config::parse(&text.replace("VENDORS", vendors), "test", env.iter().cloned())
        };
        Self::configured(backend, parse, fill).await
    }

    /// A service with a config as it is printed in a document. Where it listens and stores, and its secrets, come from the environment; in
    /// its URLs each host is replaced by the mock vendors' route for that host.
    pub(crate) async fn as_printed(backend: Backend, text: &str, secrets: Vec<(String, String)>) -> TestApp {
        let parse = |address: &str, vendors: &str, folder: &TempDir| {
            let (store, queue) = backend.urls(folder);
            let public_url = format!("http://{address}");
            let ours = [
                ("SERVER__LISTEN", address),
                ("SERVER__PUBLIC_URL", public_url.as_str()),
                ("STORE__URL", store.as_str()),
            ];
            let ours = ours.into_iter().chain(queue.as_deref().map(|url| ("QUEUE__URL", url)));
            let ours = ours.map(|(key, value)| (format!("FETCHGATE__{key}"), value.to_owned()));
            let text = text.replace("url = \"https://", &format!("url = \"{vendors}/at/"));
            config::parse(&text, "the document", ours.chain(secrets))
        };
        Self::configured(backend, parse, async |_| {}).await
    }

    /// `config` makes the config from the address to listen on, the mock vendors' URL and a folder.
    async fn configured(
        backend: Backend,
        config: impl FnOnce(&str, &str, &TempDir) -> Result<Config, ConfigError>,
        fill: impl AsyncFnOnce(&TempDir),
    ) -> TestApp {
        let vendors = Arc::new(MockVendors::start("127.0.0.1:0").await.expect("a port for the mock vendors"));
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        fill(&folder).await;
        // Limits that are kept in Redis begin cold. Every test starts when that is over.
        let cold = Duration::from_secs(if backend == Backend::Sqlite { 0 } else { 10 });
        let clock = Clock::manual(Time(START.0 - cold.as_millis() as i64));
        // The port is known before the config, because callback URLs are made from it.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port for the API");
        let address = listener.local_addr().expect("the port").to_string();
        let config = config(&address, &vendors.url(), &folder).unwrap_or_else(|error| panic!("{error}"));
        let app = Self::run(config, listener, vendors, folder, clock).await;
        for vendor in &app.config.vendors {
            app.app.limiter.outlook(&vendor.pool, 0, 1).await.expect("the limiter works");
            app.app.limiter.share_in_flight(&vendor.name, vendor.concurrency, 1).await.expect("the limiter works");
        }
        app.clock.advance(cold);
        app
    }

    async fn run(
        config: Config,
        listener: tokio::net::TcpListener,
        vendors: Arc<MockVendors>,
        folder: Arc<TempDir>,
        clock: Clock,
    ) -> TestApp {
        let url = format!("http://{}", listener.local_addr().expect("the port"));
        let service = Service::build(&config, Roles::Both, clock.clone()).await.expect("the service");
        let (app, pool, deliverer) = service.into_parts();
        let (dispatchers, janitor) = pool.into_parts();
        let turned = |(dispatcher, vendor): (Dispatcher, &Arc<Vendor>)| {
            let bell = app.store.signals().bell(vendor.name()).expect("each vendor has a bell");
            Turned { dispatcher, bell, waits_for: Tick::Again }
        };
        let dispatchers = dispatchers.into_iter().zip(app.vendors.iter()).map(turned).collect();
        let (mut server, stop) = (JoinSet::new(), CancellationToken::new());
        let door = Door { max_per_address: config.server.max_connections_per_address, ..Door::plain(&app.edge.memory) };
        server.spawn(api::server::serve(listener, api::router(app.clone()), door, stop.clone()));
        server.spawn(app.events.clone().run());
        let origin = Origin::of(&url.parse().expect("a URL")).expect("http");
        let client = Client::new();
        let redis = app.queue.is_some().then(|| servers::redis().link());
        TestApp {
            url,
            vendors,
            clock,
            app,
            dispatchers,
            janitor,
            deliverer,
            client,
            origin,
            redis,
            server,
            stop,
            config,
            folder,
        }
    }

    /// The process dies, and another starts whose file has the limits of this one.
    pub(crate) async fn crash_and_restart_with_limits_of(mut self, vendors: &str) -> TestApp {
        let text = vendors.replace("VENDORS", &self.vendors.url());
        self.config.pools =
            config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}")).pools;
        self.crash_and_restart().await
    }

    /// The process dies, and another starts on the same store with these vendors.
    pub(crate) async fn crash_and_restart_with(mut self, vendors: &str) -> TestApp {
        let text = vendors.replace("VENDORS", &self.vendors.url());
        let parsed = config::parse(&text, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
        (self.config.vendors, self.config.pools) = (parsed.vendors, parsed.pools);
        self.crash_and_restart().await
    }

    /// The process dies, without a word to anybody, and another starts on the same store and address.
    pub(crate) async fn crash_and_restart(self) -> TestApp {
        let TestApp { vendors, clock, config, folder, mut server, app, dispatchers, janitor, deliverer, .. } = self;
        server.shutdown().await;
        drop((dispatchers, janitor, deliverer));
        app.store.close().await;
        drop(app);
        let listener = tokio::net::TcpListener::bind(config.server.listen).await.expect("the same port");
        Self::run(config, listener, vendors, folder, clock).await
    }

    /// Sends a request and holds the answer to the API's description.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let answer = self.send_unchecked(method.clone(), path, headers, body).await;
        openapi::check(&method, path, &answer);
        answer
    }

    pub(crate) async fn send_unchecked(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("host", self.origin.authority());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let mut connection = self.client.connection(&self.origin).await.expect("the service listens");
        let reply = connection.send(request).await.expect("the service answers");
        self.client.keep(connection);
        let text = String::from_utf8(reply.body.to_vec()).expect("text");
        Answer { status: reply.status, headers: reply.headers, text }
    }

    /// Sends a request whose answer is awaited later; it is on its way to the service when this returns.
    pub(crate) async fn request_in_background(
        &self,
        method: Method,
        path: &str,
        body: &str,
    ) -> impl Future<Output = Answer> + use<> {
        let connection = self.client.connect(&self.origin).await.expect("the service listens");
        let request = Request::builder().method(method).uri(path).header("host", self.origin.authority());
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("a request");
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            let mut connection = connection;
            let reply = connection.send(request).await.expect("the service answers");
            let text = String::from_utf8(reply.body.to_vec()).expect("text");
            Answer { status: reply.status, headers: reply.headers, text }
        });
        async move { sending.join_next().await.expect("one request").expect("an answer") }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    /// Sends these bytes on a connection of their own, and gives all that comes back until it is closed.
    pub(crate) async fn send_bytes(&self, bytes: &[u8]) -> String {
        let stream = TcpStream::connect(self.origin.authority()).await.expect("the service listens");
        let (mut from, mut to) = stream.into_split();
        let mut answer = Vec::new();
        // A service that has answered need not read the rest.
        let (_, read) = tokio::join!(to.write_all(bytes), from.read_to_end(&mut answer));
        assert!(read.is_ok() || !answer.is_empty(), "the connection broke without an answer: {read:?}");
        String::from_utf8(answer).expect("text")
    }

    /// The text of a member of a job, as it stands in the answer.
    pub(crate) async fn letters(&self, id: &str, member: &str) -> String {
        let path = format!("/jobs/{id}?include=payload");
        let answer = self.send_unchecked(Method::GET, &path, &[], "").await;
        text_of(&answer.text, member).unwrap_or_else(|| panic!("no {member} in {}", answer.text))
    }

    /// Asks while the test turns the dispatchers.
    pub(crate) fn caller(&self) -> Caller {
        Caller { client: self.client.clone(), origin: self.origin.clone() }
    }

    /// Where the vendor was asked to call back by its n-th call: the path of the URL.
    pub(crate) fn callback_path(&self, name: &str, call: usize) -> String {
        let sent: Value = serde_json::from_slice(&self.vendors.arrivals(name)[call].body).expect("JSON");
        let url = sent["callback_url"].as_str().expect("a URL");
        url.strip_prefix(&self.url).expect("the service's own").to_owned()
    }

    /// Works, and lets the janitor work, for this long in steps, so that alarms go off at their time.
    pub(crate) async fn live_for(&mut self, time: Duration) {
        const STEPS: u32 = 100;
        for _ in 0..STEPS {
            self.run_for(time / STEPS).await;
            self.run_janitor().await;
        }
    }

    /// Submits a job and gives its id.
    pub(crate) async fn submit(&self, vendor: &str, payload: &str) -> String {
        self.submit_with(&format!(r#"{{"payload": {payload}, "vendor": "{vendor}"}}"#)).await
    }

    /// Submits this body and gives the job's id.
    pub(crate) async fn submit_with(&self, body: &str) -> String {
        let answer = self.post("/jobs", body.to_owned()).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.json()["request_id"].as_str().expect("an id").to_owned()
    }

    pub(crate) async fn find(&self, id: &str) -> Value {
        let answer = self.get(&format!("/jobs/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    }

    pub(crate) async fn status(&self, id: &str) -> String {
        self.find(id).await["status"].as_str().expect("a status").to_owned()
    }

    /// Turns every dispatcher that is due once, and waits for the attempts that this started; says whether there was any.
    pub(crate) async fn turn(&mut self) -> bool {
        self.hear_bells().await;
        let mut any = false;
        for turned in &mut self.dispatchers {
            if turned.is_due(self.clock.nanos()) {
                turned.turn().await;
                any = true;
            }
        }
        any
    }

    /// Returns when every bell has been heard that was rung before, also by way of Redis: what is said there is heard in its order.
    async fn hear_bells(&self) {
        let Some(redis) = &self.redis else { return };
        let heard = self.app.store.signals().book();
        heard.notified().now_or_never();
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(format!("{}:work:book", database(&self.folder))).arg("the test");
        redis.command::<i64>(&publish).await.expect("Redis takes it");
        tokio::time::timeout(Duration::from_secs(30), heard.notified()).await.expect("the service listens");
    }

    /// Works until no dispatcher has anything to wait for but vendors, moving the clock over every wait of theirs.
    pub(crate) async fn run_until_idle(&mut self) {
        self.run_until(None).await;
    }

    /// Works for this long, in the clock's time.
    pub(crate) async fn run_for(&mut self, time: Duration) {
        let end = self.clock.nanos() + fetchgate::clock::nanos(time);
        self.run_until(Some(end)).await;
    }

    async fn run_until(&mut self, end: Option<Nanos>) {
        loop {
            self.vendors.callbacks_settled().await;
            // Anything through the writer: what was queued before it, readings of lanes too, is done after it.
            self.app.store.prune(Time(0)).await.expect("the store works");
            if self.turn().await {
                continue;
            }
            let times = self.dispatchers.iter().filter_map(|turned| match turned.waits_for {
                Tick::WaitUntil(at) => Some(at),
                Tick::Again | Tick::Idle => None,
            });
            let next = times.min();
            let to = match (next, end) {
                (Some(at), Some(end)) => at.min(end),
                (Some(at), None) => at,
                (None, Some(end)) => end,
                (None, None) => return,
            };
            let ahead = u64::try_from(to - self.clock.nanos()).unwrap_or(0);
            self.clock.advance(Duration::from_nanos(ahead.max(1)));
            if end.is_some_and(|end| self.clock.nanos() >= end) {
                return;
            }
        }
    }

    /// Lets the janitor do all that is due now.
    pub(crate) async fn run_janitor(&mut self) {
        while self.janitor.tick().await.expect("the store works") == Tick::Again {}
    }

    /// Announces all ends that are due now.
    pub(crate) async fn announce(&mut self) {
        while self.announce_once().await {}
    }

    /// Looks once for what is due, and announces that; says whether it was anything.
    pub(crate) async fn announce_once(&mut self) -> bool {
        self.deliverer.tick().await.expect("the store works");
        self.deliverer.finish_turns().await
    }

    /// Begins to announce the ends that are due now.
    pub(crate) async fn begin_announcing(&mut self) {
        self.deliverer.tick().await.expect("the store works");
    }

    /// Lets the janitor have one turn.
    pub(crate) async fn turn_janitor(&mut self) -> Result<Tick, StoreError> {
        self.janitor.tick().await
    }

    /// What is stored of a job becomes something that no version wrote.
    pub(crate) async fn damage(&self, id: &str) {
        let id = JobId::parse(id).expect("an id");
        if self.redis.is_none() {
            let file = rusqlite::Connection::open(self.folder.path().join("jobs.db")).expect("the file");
            let changed = file.execute("UPDATE jobs SET tags = 'no JSON' WHERE id = ?1", [id.as_bytes()]);
            assert_eq!(changed, Ok(1));
            return;
        }
        let (name, id) =
            (database(&self.folder), Binary { subtype: BinarySubtype::Generic, bytes: id.as_bytes().into() });
        let client = mongodb::Client::with_uri_str(servers::mongo().mongo_url(&name)).await.expect("MongoDB");
        let jobs = client.database(&name).collection::<Document>("jobs");
        let done = jobs.update_one(doc! { "_id": id }, doc! { "$set": { "stage": "of nobody" } }).await;
        assert_eq!(done.expect("MongoDB takes it").matched_count, 1);
    }

    /// Moves the clock and lets the janitor do what has become due.
    pub(crate) async fn advance(&mut self, time: Duration) {
        self.clock.advance(time);
        self.run_janitor().await;
    }

    /// The file of the embedded store.
    pub(crate) fn store_path(&self) -> std::path::PathBuf {
        self.folder.path().join("jobs.db")
    }

    /// How often a vendor was called.
    pub(crate) fn calls(&self, name: &str) -> usize {
        self.vendors.arrivals(name).len()
    }

    /// Ends in good order.
    pub(crate) async fn stop(mut self) {
        self.app.events.close();
        self.stop.cancel();
        while self.server.join_next().await.is_some() {}
        self.app.limiter.stop().await.expect("handed back");
        self.app.store.close().await;
    }
}

/// Asks the service from beside the test.
pub(crate) struct Caller {
    client: Client,
    origin: Origin,
}

impl Caller {
    /// Asks whoever listens there.
    pub(crate) fn at(url: &str) -> Caller {
        Caller { client: Client::new(), origin: Origin::of(&url.parse().expect("a URL")).expect("http") }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path), "").await
    }

    pub(crate) async fn get_with(&self, headers: &[(&str, &str)], path: &str) -> Answer {
        let with = |request: hyper::http::request::Builder, (name, value): &(&str, &str)| request.header(*name, *value);
        self.send(headers.iter().fold(Request::get(path), with), "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(Request::post(path).header("content-type", "application/json"), body).await
    }

    pub(crate) async fn send(&self, request: hyper::http::request::Builder, body: &str) -> Answer {
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let request = request.header("host", self.origin.authority()).body(body);
        let mut connection = self.client.connection(&self.origin).await.expect("the service listens");
        let reply = connection.send(request.expect("a request")).await.expect("the service answers");
        let text = String::from_utf8(reply.body.to_vec()).expect("text");
        Answer { status: reply.status, headers: reply.headers, text }
    }
}

/// The text of a member of an object, digit by digit.
pub(crate) fn text_of(object: &str, member: &str) -> Option<String> {
    let members: std::collections::HashMap<String, &serde_json::value::RawValue> =
        serde_json::from_str(object).unwrap_or_else(|error| panic!("not an object ({error}): {object}"));
    members.get(member).map(|value| value.get().to_owned())
}
