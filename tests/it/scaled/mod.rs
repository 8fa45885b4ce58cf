//! Separate API and worker processes, the real binary over a real Redis and MongoDB, while all of these are killed, stopped and emptied.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mock_vendors::MockVendors;
use redis::FromRedisValue;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    failure::{BINARY, Process, free_address, wait_until},
    support::{
        Caller,
        servers::{Queue, Server},
    },
};

/// What is in flight at the vendor, over all workers.
mod concurrency;
/// What was wrong with a vendor's calls.
mod errors;
/// A reader of events while processes die.
mod events;
/// Redis behind Sentinels, and as a Cluster.
mod failover;
/// Processes that die at the worst moment.
mod faults;
/// Which worker looks after which vendor.
mod homes;
/// What Redis holds, with many jobs waiting and with none.
mod memory;
/// MongoDB or Redis is away.
mod outages;
/// What is owed to receivers of result webhooks.
mod owed;
/// What any API process knows of all others.
mod stats;
/// Processes that are told to stop.
mod stopping;
/// All of it at once, under load.
mod storm;
/// Callers that wait for the end of a job.
mod waiting;

/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(60);
const DATABASE: &str = "fetchgate";

/// What outlives the processes: vendors, MongoDB, Redis and the config.
struct World<R = Server> {
    vendors: Arc<MockVendors>,
    redis: R,
    mongo: Server,
    api: SocketAddr,
    folder: TempDir,
    started: AtomicUsize,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    async fn new(vendors_config: &str) -> World {
        World::over(Server::redis, vendors_config).await
    }

    /// Asks the world's own Redis.
    async fn ask_redis<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut asked = redis::Cmd::new();
        command.iter().for_each(|part| {
            asked.arg(part);
        });
        self.redis.link().command(&asked).await.expect("Redis answers")
    }

    /// The workers that the index of a vendor knows, by their names there; only calls of priority normal.
    async fn consumers(&self, vendor: &str) -> BTreeMap<String, Held> {
        let stream = key(vendor, "1:jobs");
        let found: Vec<BTreeMap<String, redis::Value>> =
            self.ask_redis(&["XINFO", "CONSUMERS", &stream, "workers"]).await;
        let mut consumers = BTreeMap::new();
        for worker in found {
            let number = |key: &str| redis::from_redis_value_ref::<u64>(&worker[key]).expect("a number");
            let name = redis::from_redis_value_ref::<String>(&worker["name"]).expect("a name");
            if name != "free" {
                consumers.insert(name, Held { pending: number("pending"), idle_ms: number("idle") });
            }
        }
        consumers
    }
}

impl<R: Queue> World<R> {
    /// `VENDORS` stands for the vendors' URL. These worlds take turns: each is several processes.
    async fn over(redis: impl FnOnce() -> R, vendors_config: &str) -> World<R> {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let vendors = Arc::new(MockVendors::start("127.0.0.1:0").await.expect("a port for the mock vendors"));
        let (redis, mongo, api) = (redis(), Server::mongo(), free_address());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = format!(
            "[server]\nlisten = \"{api}\"\npublic_url = \"http://{api}\"\n[store]\nurl = \"{}\"\n[queue]\nurl = \"{}\"\n{}",
            mongo.mongo_url(DATABASE),
            redis.queue_url(),
            vendors_config.replace("VENDORS", &vendors.url())
        );
        fs::write(folder.path().join("config.toml"), text).expect("written");
        World { vendors, redis, mongo, api, folder, started: AtomicUsize::new(0), _alone: alone }
    }

    /// A process with one role and these variables in its environment.
    fn spawn(&self, role: &str, environment: &[(&str, &str)]) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.path().join(format!("{number}-{role}.log"));
        let address = if role == "api" { self.api } else { free_address() };
        let mut command = Command::new(BINARY);
        command.args(["serve", "--role", role, "--config"]).arg(self.folder.path().join("config.toml"));
        command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("a log")).envs(environment.iter().copied());
        if role == "worker" {
            command.env("FETCHGATE__OPS__LISTEN", address.to_string());
        }
        Process::new(command, address, log)
    }

    /// An API process that is ready.
    async fn api(&self) -> Process {
        let process = self.spawn("api", &[]);
        process.ready().await;
        process
    }

    /// A worker process that is ready.
    async fn worker(&self) -> Process {
        let process = self.spawn("worker", &[]);
        process.ready().await;
        process
    }

    /// Asks the API, and is given the answer's head too.
    fn caller(&self) -> Caller {
        Caller::at(&format!("http://{}", self.api))
    }

    /// Waits until a vendor has been called so often.
    async fn called(&self, name: &str, times: u64) {
        let called = async || (self.vendors.count(name) >= times).then_some(());
        wait_until(&format!("{times} calls of {name}"), LONG, called).await;
    }
}

/// What the processes said last, when a test has failed.
impl<R> Drop for World<R> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in fs::read_dir(self.folder.path()).expect("the folder").flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}:\n{}", entry.file_name().display(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// A key of a vendor's in the index.
fn key(vendor: &str, what: &str) -> String {
    format!("{DATABASE}:work:{{{vendor}}}:{what}")
}

/// How long something lasts; never a wait for something to happen.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// What the index says of a worker that holds jobs.
struct Held {
    pending: u64,
    /// When it last asked for something.
    idle_ms: u64,
}

/// Waits until every job in the store is complete; gives how many there are.
async fn all_complete(api: &Process, most: Duration) -> usize {
    wait_until("every job complete", most, async || {
        let open = api.json("/jobs?status=pending&limit=1").await["jobs"].as_array()?.len()
            + api.json("/jobs?status=processing&limit=1").await["jobs"].as_array()?.len();
        if open > 0 {
            return None;
        }
        let jobs = api.all_jobs().await;
        let is_open = |job: &&Value| ["pending", "processing"].contains(&job["status"].as_str().unwrap_or(""));
        if jobs.values().any(|job| is_open(&job)) {
            return None; // a page of the list may be short
        }
        if let Some(job) = jobs.values().find(|job| job["status"] != "complete") {
            panic!("a job ended otherwise: {job}");
        }
        Some(jobs.len())
    })
    .await
}

/// A counter of a process, by its name and labels as they are written.
async fn counter(process: &Process, name: &str) -> u64 {
    let (_, text) = process.get("/metrics").await.expect("metrics");
    let text = String::from_utf8(text.to_vec()).expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
    value.map_or(0, |value| value as u64)
}

/// How many jobs of a vendor this process saw complete.
async fn completed(process: &Process, vendor: &str) -> u64 {
    counter(process, &format!("fetchgate_jobs_ended_total{{vendor=\"{vendor}\",status=\"complete\"}}")).await
}

/// The time that processors have spent on a process so far.
fn cpu_time(process: &Process) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it runs");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// A size that a longer run may raise.
fn size_or(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}
