//! What must hold when things break: the real binary on a real disk, killed, stopped and starved under load.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fetchgate::vendor::http::{Client, Origin};
use http_body_util::Full;
use hyper::Request;
use mock_vendors::MockVendors;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");
/// Nothing here takes this long unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Looks every few milliseconds. The one place in all tests that sleeps: processes outside cannot be on a clock of ours.
pub(crate) async fn wait_until<T>(what: &str, most: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + most;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {most:?}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// What outlives the processes: the vendors, the config and the store.
pub(crate) struct World {
    pub(crate) vendors: Arc<MockVendors>,
    pub(crate) folder: TempDir,
    address: SocketAddr,
}

/// One process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    client: Client,
    origin: Origin,
    log: std::path::PathBuf,
}

impl World {
    /// `VENDORS` stands for the vendors' URL.
    pub(crate) async fn new(vendors_config: &str) -> World {
        let vendors = Arc::new(MockVendors::start("127.0.0.1:0").await.expect("a port for the mock vendors"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = free_address();
        let world = World { vendors, folder, address };
        world.write_config("config.toml", address, vendors_config);
        world
    }

    fn write_config(&self, name: &str, address: SocketAddr, vendors_config: &str) {
        self.write_config_for("jobs.db", name, address, vendors_config);
    }

    /// A config with another name for the store.
    pub(crate) fn write_config_for(&self, store: &str, name: &str, address: SocketAddr, vendors_config: &str) {
        let store = self.folder.path().join(store);
        let text = format!(
            "[server]\nlisten = \"{address}\"\npublic_url = \"http://{address}\"\n[store]\nurl = \"sqlite:{}\"\n{vendors_config}",
            store.display()
        );
        fs::write(self.folder.path().join(name), text.replace("VENDORS", &self.vendors.url())).expect("written");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn command(&self, program: &str, config: &str) -> (Command, std::path::PathBuf) {
        let log = self.folder.path().join(format!("{config}.log"));
        let mut command = Command::new(program);
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("a log"));
        (command, log)
    }

    pub(crate) fn spawn(&self, config: &str) -> Process {
        let (mut command, log) = self.command(BINARY, config);
        command.args(["serve", "--config"]).arg(self.folder.path().join(config));
        self.process(command, log)
    }

    fn process(&self, command: Command, log: std::path::PathBuf) -> Process {
        Process::new(command, self.address, log)
    }

    /// A process that is ready, with as much in its log as `RUST_LOG` says.
    pub(crate) async fn start_with_logs(&self, filter: &str) -> Process {
        let (mut command, log) = self.command(BINARY, "config.toml");
        command.env("RUST_LOG", filter).args(["serve", "--config"]).arg(self.folder.path().join("config.toml"));
        let process = self.process(command, log);
        process.ready().await;
        process
    }

    /// A process that is ready.
    pub(crate) async fn start(&self) -> Process {
        let process = self.spawn("config.toml");
        process.ready().await;
        process
    }
}

/// An address of this test's own: what the mock vendors and clients connect from is another one, so nobody takes its port
/// while no process listens.
pub(crate) fn free_address() -> SocketAddr {
    let host = format!("127.{}.{}.{}:0", fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255));
    let listener = std::net::TcpListener::bind(host).expect("every address of 127/8 is this machine's");
    listener.local_addr().expect("the port")
}

impl Process {
    /// Starts it; it is asked at this address.
    pub(crate) fn new(mut command: Command, address: SocketAddr, log: std::path::PathBuf) -> Process {
        let child = command.spawn().expect("the binary starts");
        let origin = Origin::of(&format!("http://{address}").parse().expect("a URL")).expect("http");
        Process { child, client: Client::new(), origin, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn ready(&self) {
        wait_until("ready", LONG, async || self.get("/readyz").await.filter(|(status, _)| *status == 200)).await;
    }

    /// The answer's status and body; nothing when the process was not there or died meanwhile.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Option<(u16, Bytes)> {
        let request = Request::builder().method(method).uri(path).header("host", self.origin.authority());
        let request =
            request.header("content-type", "application/json").body(Full::new(body.into())).expect("a request");
        let mut connection = self.client.connection(&self.origin).await.ok()?;
        let reply = tokio::time::timeout(LONG, connection.send(request)).await.expect("an answer or none").ok()?;
        self.client.keep(connection);
        Some((reply.status.as_u16(), reply.body))
    }

    pub(crate) async fn get(&self, path: &str) -> Option<(u16, Bytes)> {
        self.send("GET", path, "").await
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await.expect("an answer");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("JSON")
    }

    /// Submits a job; its id if that was acknowledged.
    pub(crate) async fn submit(&self, vendor: &str, payload: &str) -> Option<String> {
        let (status, body) =
            self.send("POST", "/jobs", format!(r#"{{"vendor":"{vendor}","payload":{payload}}}"#)).await?;
        let accepted: Value = serde_json::from_slice(&body).expect("JSON");
        (status == 202).then(|| accepted["request_id"].as_str().expect("an id").to_owned())
    }

    pub(crate) async fn submit_many(&self, vendor: &str, jobs: usize) {
        let batch: Vec<Value> = (0..jobs).map(|i| json!({"vendor": vendor, "payload": i})).collect();
        let answer = self.send("POST", "/jobs/batch", json!(batch).to_string()).await;
        let (status, body) = answer.expect("an answer");
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
        let told: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&told["accepted"], &told["rejected"]), (&json!(jobs), &json!(0)));
    }

    /// The job once it has ended.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        wait_until(&format!("the end of {id}"), LONG, async || {
            let job = self.json(&format!("/jobs/{id}?wait=10s")).await;
            (!["pending", "processing"].contains(&job["status"].as_str()?)).then_some(job)
        })
        .await
    }

    /// All jobs in the store, by id.
    pub(crate) async fn all_jobs(&self) -> BTreeMap<String, Value> {
        let (mut all, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let page = self.json(&format!("/jobs?limit=500{cursor}")).await;
            for job in page["jobs"].as_array().expect("jobs") {
                all.insert(job["request_id"].as_str().expect("an id").to_owned(), job.clone());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs").success());
    }

    pub(crate) async fn exits(&mut self, most: Duration) -> ExitStatus {
        wait_until("the exit", most, async || self.child.try_wait().expect("it is our child")).await
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, which the test has seen by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const SYNC_AND_WEBHOOK: &str = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=10"
limits = []
concurrency = 8
[vendors.hook]
kind = "webhook"
url = "VENDORS/async/hook?callback_ms=5"
limits = []
concurrency = 8
answer_within = "2s"
retry = { attempts = 30, unanswered = 30, first = "50ms", max = "500ms" }
webhook = { verify = "none" }
"#;

/// Jobs that were acknowledged, from all connections.
type Accepted = Arc<Mutex<Vec<String>>>;

fn count(accepted: &Accepted) -> usize {
    accepted.lock().expect("no panic").len()
}

/// Submits from four connections until the process dies.
fn load(process: &Arc<Process>, accepted: &Accepted) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    for i in 0..4 {
        let (process, accepted) = (process.clone(), accepted.clone());
        let vendor = if i % 2 == 0 { "sync" } else { "hook" };
        connections.spawn(async move {
            while let Some(id) = process.submit(vendor, "1").await {
                accepted.lock().expect("no panic").push(id);
            }
        });
    }
    connections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_survives_twenty_kills() {
    let world = World::new(SYNC_AND_WEBHOOK).await;
    let accepted = Accepted::default();
    let mut ended: BTreeMap<String, Value> = BTreeMap::new();
    let (mut called_before, mut most_repeated) = (HashSet::new(), 0);
    for round in 0..20 {
        let process = Arc::new(world.start().await);
        let before = count(&accepted);
        let mut connections = load(&process, &accepted);
        let target = before + fastrand::usize(20..60);
        wait_until("load", LONG, async || (count(&accepted) >= target).then_some(())).await;
        for (id, job) in process.all_jobs().await {
            if let Some(job_before) = ended.get(&id) {
                assert_eq!(&job, job_before, "round {round}: an ended job has changed");
            } else if job["finished_at"].is_string() {
                ended.insert(id, job);
            }
        }
        process.signal("KILL");
        while connections.join_next().await.is_some() {}
        let calls = world.vendors.arrivals("sync");
        world.vendors.reset("sync");
        let keys: Vec<String> =
            calls.iter().map(|call| call.header("idempotency-key").expect("a key").to_owned()).collect();
        let distinct: HashSet<String> = keys.iter().cloned().collect();
        assert_eq!(distinct.len(), keys.len(), "round {round}: one process called for one job twice");
        most_repeated = most_repeated.max(distinct.intersection(&called_before).count());
        called_before.extend(distinct);
    }
    // What a killed process held: 8 calls in flight, and outcomes on their way to the disk.
    assert!(most_repeated <= 64, "{most_repeated} jobs were called for again after one kill");

    let process = world.start().await;
    let accepted: BTreeSet<String> = accepted.lock().expect("no panic").drain(..).collect();
    for id in &accepted {
        let job = process.ended(id).await;
        assert_eq!(job["status"], "complete", "{job}");
    }
    let jobs = process.all_jobs().await;
    assert!(accepted.iter().all(|id| jobs.contains_key(id)));
    // Each connection had at most one submit under way at each kill: it may have been stored, and then it goes on.
    assert!(jobs.len() <= accepted.len() + 20 * 4, "{} jobs of {}", jobs.len(), accepted.len());
    for id in jobs.keys() {
        process.ended(id).await;
    }
    let first_read = process.all_jobs().await;
    assert!(ended.iter().all(|(id, job)| first_read[id] == *job), "an ended job has changed");
    assert_eq!(process.all_jobs().await, first_read);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_limit_half_used_before_a_kill_is_kept_after_it() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = [{ calls = 10, per = "11s", shape = "window" }]
"#;
    let world = World::new(vendor).await;
    let process = world.start().await;
    for _ in 0..6 {
        let id = process.submit("sync", "1").await.expect("acknowledged");
        process.ended(&id).await;
    }
    assert_eq!(world.vendors.count("sync"), 6);
    process.kill();
    let process = world.start().await;
    process.submit_many("sync", 20).await;
    let all_used = async || (process.json("/vendors/sync").await["limits"][0]["used"] == 10).then_some(());
    wait_until("the rest of the window", LONG, all_used).await;
    let first = world.vendors.arrival_times("sync")[0];
    wait_until("a while", LONG, async || (first.elapsed() > Duration::from_secs(3)).then_some(())).await;
    // Ten permits were given; on a busy machine some are missed, and then there are fewer calls, never more.
    let stats = world.vendors.stats("sync", Duration::from_secs(11));
    assert!(stats.worst_window <= 10, "the calls before the kill do not count: {stats:?}");
    let waiting = process.submit("sync", "1").await.expect("acknowledged");
    let blocked = async || {
        let job = process.json(&format!("/jobs/{waiting}")).await;
        (job["blocked_on"] == "limit:10/11s").then_some(())
    };
    wait_until("the limit is named", LONG, blocked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_limits_are_kept_across_a_kill() {
    // The guard is wide, because the vendors share two busy cores with the test: what is shown is the kill, not the network.
    // A paced limit cannot burst, a window can: without a pause after the restart it would be used twice within a second.
    let vendors = r#"
[vendors.paced]
kind = "sync"
url = "VENDORS/sync/paced"
limits = [{ calls = 100, per = "1s", shape = "paced", guard = "200ms" }]
[vendors.window]
kind = "sync"
url = "VENDORS/sync/window"
limits = [{ calls = 100, per = "1s", shape = "window", guard = "200ms" }]
"#;
    let world = World::new(vendors).await;
    let process = world.start().await;
    for vendor in ["paced", "window"] {
        process.submit_many(vendor, 1000).await;
    }
    let both = |paced, window| {
        (world.vendors.count("paced") >= paced && world.vendors.count("window") >= window).then_some(())
    };
    wait_until("calls", LONG, async || both(1, 100)).await;
    process.kill();
    let process = world.start().await;
    wait_until("calls again", LONG, async || both(120, 200)).await;
    process.kill();
    for name in ["paced", "window"] {
        let stats = world.vendors.stats(name, Duration::from_secs(1));
        assert!(stats.worst_window <= 100, "{name}: {stats:?}");
        assert!(stats.worst_window >= 60, "{name}: the rate was not reached, so nothing is shown: {stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_file_is_refused_and_the_first_goes_on() {
    let world = World::new(SYNC_AND_WEBHOOK).await;
    let first = world.start().await;
    world.write_config("second.toml", free_address(), SYNC_AND_WEBHOOK);
    let mut second = world.spawn("second.toml");
    assert_eq!(second.exits(LONG).await.code(), Some(1));
    let log = second.log();
    assert!(log.contains("in use by another process") && log.contains("jobs.db"), "{log}");
    let id = first.submit("sync", "1").await.expect("acknowledged");
    assert_eq!(first.ended(&id).await["status"], "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_gets_a_stop_signal_finishes_its_calls_and_loses_nothing() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=300"
limits = ["1000/s"]
concurrency = 4
"#;
    let world = World::new(vendor).await;
    let mut process = world.start().await;
    process.submit_many("sync", 16).await;
    wait_until("calls in flight", LONG, async || (world.vendors.count("sync") >= 4).then_some(())).await;
    process.terminate();
    assert_eq!(process.exits(Duration::from_secs(10)).await.code(), Some(0), "{}", process.log());
    let arrived = world.vendors.count("sync");
    assert!(arrived < 16, "it went on calling");
    let process = world.start().await;
    for id in process.all_jobs().await.keys() {
        assert_eq!(process.ended(id).await["attempts"], 1);
    }
    let stats = world.vendors.stats("sync", Duration::from_secs(1));
    assert_eq!((stats.count, stats.repeats), (16, 0), "what was in flight was finished, what was held was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_stops_at_once() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync?latency_ms=60000"
limits = []
timeout = "90s"
"#;
    let world = World::new(vendor).await;
    let mut process = world.start().await;
    let id = process.submit("sync", "1").await.expect("acknowledged");
    wait_until("the call", LONG, async || (world.vendors.count("sync") == 1).then_some(())).await;
    process.terminate();
    wait_until("the first signal", LONG, async || process.log().contains("stopping").then_some(())).await;
    assert!(process.child.try_wait().expect("our child").is_none(), "the call is under way");
    process.terminate();
    assert_eq!(process.exits(Duration::from_secs(5)).await.code(), Some(0), "{}", process.log());
    let process = world.start().await;
    let job = process.json(&format!("/jobs/{id}")).await;
    assert!(["pending", "processing"].contains(&job["status"].as_str().expect("a status")), "{job}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_ready_soon_after_a_kill_with_many_jobs_waiting() {
    let vendor = r#"
[vendors.sync]
kind = "sync"
url = "VENDORS/sync"
limits = [{ calls = 1, per = "1d", shape = "window" }]
"#;
    let world = World::new(vendor).await;
    let process = world.start().await;
    for _ in 0..2 {
        process.submit_many("sync", 10_000).await;
    }
    process.kill();
    let started = Instant::now();
    let process = world.start().await;
    // A debug build on a busy machine; the release build's numbers are in the benchmarks.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(process.json("/vendors/sync").await["waiting"], 19_999);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_refuses_to_write_ends_the_process_and_what_was_acknowledged_is_there() {
    let world = World::new(SYNC_AND_WEBHOOK).await;
    // Files of this process end at 4 MiB (8192 blocks of 512 bytes); ignored, the signal for that becomes an error.
    let (mut command, log) = world.command("sh", "config.toml");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\"", BINARY, "serve", "--config"]);
    command.arg(world.folder.path().join("config.toml"));
    let mut process = world.process(command, log);
    process.ready().await;
    let payload = format!("\"{}\"", "x".repeat(100_000));
    let mut accepted = Vec::new();
    while let Some(id) = process.submit("sync", &payload).await {
        accepted.push(id);
        assert!(accepted.len() < 1000, "the limit on files has no effect");
    }
    assert!(!accepted.is_empty());
    assert_eq!(process.exits(Duration::from_secs(10)).await.code(), Some(1));
    let log = process.log();
    assert!(log.contains("the disk failed") && log.contains("start again"), "{log}");
    let process = world.start().await;
    for id in &accepted {
        assert_eq!(process.ended(id).await["status"], "complete");
    }
}
