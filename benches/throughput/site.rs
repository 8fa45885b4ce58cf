//! `fetchgate serve` for one measurement: one process over SQLite, or one or more over Redis and MongoDB; and the vendors it calls.
//!
//! The vendors and the load live in the bench's own process, so what Fetchgate uses is Fetchgate's alone. Processes die with the site.

use std::{
    fmt,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fetchgate::vendor::http::Origin;
use mock_vendors::MockVendors;
use tempfile::TempDir;

use crate::{
    Bench, Servers,
    load::{self, Peer},
    usage::{self, RedisUse, WakeUps},
    wire::Tap,
};

/// Nothing here takes this long unless it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// A new index in Redis stays shut for three seconds, which would be in every number.
const INDEX_OPENS: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Embedded,
    Scaled,
}

impl Backend {
    pub(crate) const ALL: [Backend; 2] = [Backend::Embedded, Backend::Scaled];
}

impl fmt::Display for Backend {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Backend::Embedded => "embedded",
            Backend::Scaled => "scaled",
        })
    }
}

pub(crate) struct Site<'a> {
    pub(crate) vendors: MockVendors,
    servers: Option<&'a Servers>,
    pub(crate) tap: Option<Tap>,
    folder: TempDir,
    processes: Vec<Process>,
}

/// One process, killed when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
    role: &'static str,
}

/// CPU seconds used so far, and what Redis has done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) fetchgate: f64,
    pub(crate) redis: f64,
    pub(crate) mongo: f64,
    pub(crate) statements: f64,
    pub(crate) in_redis: Option<RedisUse>,
}

impl<'a> Site<'a> {
    /// Starts everything and waits until it is ready. `vendors` writes the config of the vendors, given the URL of the pretend ones.
    pub(crate) async fn start(
        bench: &'a Bench,
        backend: Backend,
        vendors: impl Fn(&str) -> String,
    ) -> anyhow::Result<Site<'a>> {
        let (mocks, folder) = (MockVendors::start("127.0.0.1:0").await?, tempfile::tempdir()?);
        let (mut servers, mut tap) = (None, None);
        let store = if backend == Backend::Embedded {
            format!("[store]\nurl = \"sqlite:{}\"", folder.path().join("jobs.db").display())
        } else {
            let behind = bench.servers();
            behind.redis.say("FLUSHALL");
            let (database, wire) = (format!("bench{}", fastrand::u32(..)), Tap::before(behind.mongo.port).await?);
            let mongo = format!("mongodb://127.0.0.1:{}/{database}?directConnection=true", wire.port);
            (servers, tap) = (Some(behind), Some(wire));
            format!("[store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{}\"", behind.redis.redis_url())
        };
        let address = free_address()?;
        let server = format!("[server]\nlisten = \"{address}\"\npublic_url = \"http://{address}\"");
        fs::write(folder.path().join("fetchgate.toml"), format!("{server}\n{store}\n{}", vendors(&mocks.url())))?;
        let mut site = Site { vendors: mocks, servers, tap, folder, processes: Vec::new() };
        site.spawn("api,worker", address)?;
        site.ready().await?;
        if backend == Backend::Scaled {
            tokio::time::sleep(INDEX_OPENS).await;
        }
        Ok(site)
    }

    /// One more process that calls vendors.
    pub(crate) async fn add_worker(&mut self) -> anyhow::Result<()> {
        self.spawn("worker", free_address()?)?;
        self.ready().await
    }

    fn spawn(&mut self, role: &'static str, address: SocketAddr) -> anyhow::Result<()> {
        let log = File::create(self.log())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetchgate"));
        command.args(["serve", "--role", role, "--config"]).arg(self.folder.path().join("fetchgate.toml"));
        let listen = if role == "worker" { "FETCHGATE__OPS__LISTEN" } else { "FETCHGATE__SERVER__LISTEN" };
        command.env(listen, address.to_string()).env("RUST_LOG", "warn");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        self.processes.push(Process { child, address, role });
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("last.log")
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let (begun, last) = (Instant::now(), self.processes.last().expect("there is a process"));
        loop {
            if let Ok(mut peer) = Peer::connect(&origin(last.address)).await
                && peer.get("/readyz").await.is_ok_and(|reply| reply.status == 200)
            {
                return Ok(());
            }
            if begun.elapsed() > LONG {
                anyhow::bail!("a {} is not ready:\n{}", last.role, fs::read_to_string(self.log())?);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// kill -9 of the first process, and how long it takes to be ready when started again.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Duration> {
        let Process { address, role, .. } = self.processes.remove(0); // dropped, and so killed
        let begun = Instant::now();
        self.spawn(role, address)?;
        self.ready().await?;
        Ok(begun.elapsed())
    }

    /// Where the API is.
    pub(crate) fn api(&self) -> Origin {
        origin(self.processes[0].address)
    }

    /// Pauses a vendor, or resumes it.
    pub(crate) async fn turn(&self, vendor: &str, how: &str) -> anyhow::Result<()> {
        let mut peer = Peer::connect(&self.api()).await?;
        let reply = peer.post(&format!("/vendors/{vendor}/{how}"), String::new()).await?;
        anyhow::ensure!(reply.status == 200, "{vendor} cannot be told to {how}");
        Ok(())
    }

    /// Waits until this many jobs have ended, all processes together; says how many they are then.
    pub(crate) async fn ended(&self, wanted: usize) -> anyhow::Result<usize> {
        let mut peers = Vec::new();
        for process in &self.processes {
            peers.push(Peer::connect(&origin(process.address)).await?);
        }
        let begun = Instant::now();
        loop {
            let mut ended = 0;
            for peer in &mut peers {
                ended += load::ended(peer.get("/metrics").await?);
            }
            if ended >= wanted {
                return Ok(ended);
            }
            anyhow::ensure!(begun.elapsed() < LONG, "only {ended} of {wanted} jobs have ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn used(&self) -> anyhow::Result<Used> {
        let mut used = Used { fetchgate: 0.0, redis: 0.0, mongo: 0.0, statements: 0.0, in_redis: None };
        for process in &self.processes {
            used.fetchgate += usage::cpu(process.child.id())?.as_secs_f64();
        }
        if let (Some(servers), Some(tap)) = (self.servers, &self.tap) {
            used.redis = usage::cpu(servers.redis.pid())?.as_secs_f64();
            used.mongo = usage::cpu(servers.mongo.pid())?.as_secs_f64();
            used.statements = tap.statements();
            used.in_redis = Some(RedisUse::read(servers.redis.port)?);
        }
        Ok(used)
    }

    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        usage::resident_mib(self.processes[0].child.id())
    }

    /// Of the first process.
    pub(crate) fn wake_ups(&self) -> anyhow::Result<WakeUps> {
        WakeUps::read(self.processes[0].child.id())
    }

    pub(crate) async fn stop(mut self) {
        self.processes.clear();
        self.vendors.stop().await;
    }
}

impl Used {
    pub(crate) fn since(self, before: Used) -> Used {
        Used {
            fetchgate: self.fetchgate - before.fetchgate,
            redis: self.redis - before.redis,
            mongo: self.mongo - before.mongo,
            statements: self.statements - before.statements,
            in_redis: self.in_redis.zip(before.in_redis).map(|(now, before)| now.since(before)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then the measurement has failed by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn origin(address: SocketAddr) -> Origin {
    Origin { tls: false, host: address.ip().to_string(), port: address.port() }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
