//! Real `fetchgate serve` processes for one scenario: one over SQLite, or an API and three workers over Redis and MongoDB.
//!
//! Never decides when to break them (see `faults`). Processes die with the site.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use fetchgate::vendor::http::{Client, Origin};
use http_body_util::Full;
use hyper::Request;
use mock_vendors::MockVendors;
use tempfile::TempDir;

use crate::{
    Servers,
    plan::{Fault, Promise, Scenario},
};

/// The vendor's name in the config and at the mock vendors.
pub(crate) const VENDOR: &str = "judged";
/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(30);
const WORKERS: usize = 3;
/// Jobs in one batch.
const BATCH: usize = 1000;

pub(crate) struct Site<'a> {
    pub(crate) backend: &'static str,
    pub(crate) vendors: &'a MockVendors,
    pub(crate) servers: Option<&'a mut Servers>,
    binary: &'a Path,
    folder: TempDir,
    processes: Vec<Process>,
    client: Client,
}

/// One process, killed when dropped.
struct Process {
    role: &'static str,
    child: Child,
    address: SocketAddr,
}

/// What the processes and Redis have counted so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counted {
    pub(crate) granted: u64,
    pub(crate) late: u64,
    /// Scripts of the limiter that Redis has run.
    pub(crate) limiter_calls: Option<u64>,
}

impl<'a> Site<'a> {
    pub(crate) fn embedded(
        binary: &'a Path,
        vendors: &'a MockVendors,
        scenario: &Scenario,
    ) -> anyhow::Result<Site<'a>> {
        let folder = tempfile::tempdir()?;
        let store = format!("[store]\nurl = \"sqlite:{}\"", folder.path().join("jobs.db").display());
        let site = Site {
            backend: "embedded",
            vendors,
            servers: None,
            binary,
            folder,
            processes: vec![],
            client: Client::new(),
        };
        site.write_configs(&store, scenario)?;
        Ok(site)
    }

    pub(crate) fn scaled(
        binary: &'a Path,
        vendors: &'a MockVendors,
        scenario: &Scenario,
        servers: &'a mut Servers,
    ) -> anyhow::Result<Site<'a>> {
        servers.redis.say("FLUSHALL");
        let folder = tempfile::tempdir()?;
        let database = format!("referee{}", fastrand::u32(..));
        let (mongo, redis) = (servers.mongo.mongo_url(&database), servers.redis.redis_url());
        let store = format!("[store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{redis}\"");
        let servers = Some(servers);
        let site =
            Site { backend: "scaled", vendors, servers, binary, folder, processes: vec![], client: Client::new() };
        site.write_configs(&store, scenario)?;
        Ok(site)
    }

    fn config(&self, which: usize) -> PathBuf {
        self.folder.path().join(format!("fetchgate-{which}.toml"))
    }

    /// The file of the API and of each worker.
    fn write_configs(&self, store: &str, scenario: &Scenario) -> anyhow::Result<()> {
        for which in 0..=WORKERS {
            match scenario.fault {
                Fault::TwoFiles(other) if which >= 2 => self.write_config(which, store, scenario, &[other])?,
                _ => self.write_config(which, store, scenario, &scenario.promises)?,
            }
        }
        Ok(())
    }

    fn write_config(&self, which: usize, store: &str, scenario: &Scenario, limits: &[Promise]) -> anyhow::Result<()> {
        let limits: Vec<String> = limits.iter().map(|promise| promise.toml()).collect();
        let text = format!(
            "{store}\n[vendors.{VENDOR}]\nkind = \"sync\"\nurl = \"{}/sync/{VENDOR}?{}\"\nlimits = [{}]\nconcurrency = {}\n\
             retry = {{ attempts = 50, first = \"50ms\", max = \"1s\" }}\n",
            self.vendors.url(),
            scenario.query,
            limits.join(", "),
            scenario.concurrency,
        );
        Ok(fs::write(self.config(which), text)?)
    }

    /// Starts every process that a user would, and waits until all are ready.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        if self.servers.is_none() {
            self.spawn("api,worker")?;
        } else {
            self.spawn("api")?;
            for _ in 0..WORKERS {
                self.spawn("worker")?;
            }
        }
        self.ready().await
    }

    fn spawn(&mut self, role: &'static str) -> anyhow::Result<()> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = File::create(self.folder.path().join(format!("{}.log", self.processes.len())))?;
        let mut command = Command::new(self.binary);
        command.args(["serve", "--role", role, "--config"]).arg(self.config(self.processes.len()));
        let listen = if role == "worker" { "FETCHGATE__OPS__LISTEN" } else { "FETCHGATE__SERVER__LISTEN" };
        command.env(listen, address.to_string()).env("RUST_LOG", "warn");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        self.processes.push(Process { role, child, address });
        Ok(())
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let end = Instant::now() + LONG;
        for (number, process) in self.processes.iter().enumerate() {
            while !matches!(self.send(process.address, "GET", "/readyz", String::new()).await, Some((200, _))) {
                if Instant::now() > end {
                    let log = fs::read_to_string(self.folder.path().join(format!("{number}.log")))?;
                    anyhow::bail!("{} is not ready:\n{log}", process.role);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    /// The answer's status and body; nothing when the process is not there.
    async fn send(&self, to: SocketAddr, method: &str, path: &str, body: String) -> Option<(u16, String)> {
        let origin = Origin { tls: false, host: to.ip().to_string(), port: to.port() };
        let request = Request::builder().method(method).uri(path).header("host", origin.authority());
        // Only a change of limits reads the last one.
        let request = request
            .header("content-type", "application/json")
            .header("if-match", "*")
            .body(Full::new(body.into()))
            .ok()?;
        let exchange = async {
            let mut connection = self.client.connection(&origin).await.ok()?;
            let reply = connection.send(request).await.ok()?;
            self.client.keep(connection);
            Some((reply.status.as_u16(), String::from_utf8_lossy(&reply.body).into_owned()))
        };
        tokio::time::timeout(LONG, exchange).await.ok()?
    }

    pub(crate) async fn submit(&self, jobs: usize) -> anyhow::Result<()> {
        let api = self.processes.iter().find(|process| process.role != "worker").context("there is an API")?;
        for from in (0..jobs).step_by(BATCH) {
            let job = |i| format!(r#"{{"vendor":"{VENDOR}","payload":{i}}}"#);
            let batch: Vec<String> = (from..jobs.min(from + BATCH)).map(job).collect();
            let answer = self.send(api.address, "POST", "/jobs/batch", format!("[{}]", batch.join(","))).await;
            let (status, body) = answer.context("the API is gone")?;
            ensure!(status == 202, "the jobs were not accepted: {status} {body}");
        }
        Ok(())
    }

    /// Lays another limit over the one of the file, as a user would.
    pub(crate) async fn lay_limit(&self, to: &Promise) -> anyhow::Result<()> {
        let api = self.processes.first().context("there is an API")?;
        let path = format!("/vendors/{VENDOR}/limits");
        let answer = self.send(api.address, "PUT", &path, format!(r#"{{"limits":["{}"]}}"#, to.short())).await;
        let (status, body) = answer.context("the API is gone")?;
        ensure!(status == 200, "the limit was not laid: {status} {body}");
        Ok(())
    }

    /// Sends a signal to one process that calls vendors.
    pub(crate) fn signal_worker(&self, name: &str) -> anyhow::Result<()> {
        let worker = self.processes.last().context("there is a process")?;
        let sent = Command::new("kill").args(["-s", name, &worker.child.id().to_string()]).status()?;
        ensure!(sent.success(), "no process to send {name} to");
        Ok(())
    }

    /// kill -9 of one process that calls vendors, and another in its place.
    pub(crate) async fn replace_worker(&mut self) -> anyhow::Result<()> {
        let role = self.processes.pop().context("there is a process")?.role;
        self.spawn(role)?;
        self.ready().await
    }

    /// kill -9 of all.
    pub(crate) fn kill_all(&mut self) {
        self.processes.clear();
    }

    /// From every living process; what a killed one had counted is gone with it.
    pub(crate) async fn counted(&self) -> Counted {
        let mut sum = Counted { limiter_calls: self.limiter_calls(), ..Counted::default() };
        for process in &self.processes {
            let text = self
                .send(process.address, "GET", "/metrics", String::new())
                .await
                .map_or(String::new(), |(_, text)| text);
            let of = |name: &str| {
                let line = text.lines().find(|line| line.starts_with(name) && line.contains(VENDOR));
                line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
            };
            sum.granted += of("fetchgate_permits_granted_total");
            sum.late += of("fetchgate_permits_late_total");
        }
        sum
    }

    /// Every script of the limiter, and no other one, asks for the `TIME` once; Redis counts that.
    fn limiter_calls(&self) -> Option<u64> {
        let stats = redis_info(self.servers.as_ref()?.redis.port).ok()?;
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_time:calls="));
        line.map_or(Some(0), |line| line.split(',').next()?.parse().ok())
    }
}

fn redis_info(port: u16) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(LONG))?;
    connection.write_all(b"INFO commandstats\r\n")?;
    let (mut reader, mut length) = (BufReader::new(connection), String::new());
    reader.read_line(&mut length)?;
    let mut text = vec![0; length.trim().trim_start_matches('$').parse()?];
    reader.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then the table shows too few calls.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
