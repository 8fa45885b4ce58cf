//! `doctor`: everything that a service with this config needs, one line each, with the mend where it is not as it should be.
//!
//! Leaves nothing behind and never shows a secret. Never opens a store that a running service may own: of its file it reads the first bytes.

use std::{
    fs::File,
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::{
    ConfigArgs, Failure, Output,
    client::{Call, Service},
    connect, healthcheck, print, serve,
};
use crate::{
    clock::{Clock, Time},
    config::{self, Config, StoreAt},
    redis_link::Redis,
    store::{redis_mongo, sqlite},
};

/// Clocks that differ by more are worth a look: times of jobs and deadlines come from several of them.
const CLOCKS_DIFFER_MS: i64 = 500;
/// The first 100 bytes of a SQLite file say what it is (<https://www.sqlite.org/fileformat.html#the_database_header>).
const SQLITE_HEAD: usize = 100;
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// Where the head has the `user_version`, which counts the steps of our schema.
const SCHEMA_AT: usize = 60;
const MIB: u64 = 1 << 20;
/// Free space in MiB below which a look is worth it, and below which submits may soon fail.
const LITTLE_SPACE: u64 = 2048;
const NO_SPACE: u64 = 200;
/// Open files beside those of vendors' calls: connections of callers, and the store.
const OTHER_FILES: u64 = 1024;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How the findings are printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// The state of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    found: String,
    /// What to do, where it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    Finding { name, state: State::Ok, found: found.into(), mend: None }
}

fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { name, state: State::Warn, found: found.into(), mend: Some(mend.into()) }
}

fn bad(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { state: State::Bad, ..warn(name, found, mend) }
}

pub(super) async fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let path = args.config.config.as_deref();
    let findings = match config::load(path, config::environment()) {
        Ok(config) => look(&config, path).await,
        Err(error) => {
            let mend = "Correct it; the rest depends on it. `fetchgate init` writes a first config.";
            vec![bad("config", error.to_string(), mend)]
        }
    };
    print::line(&match args.output {
        Output::Json => serde_json::json!({ "checks": findings }).to_string(),
        Output::Table => findings.iter().map(Finding::written).collect::<Vec<_>>().join("\n"),
    })?;
    match findings.iter().filter(|finding| finding.state == State::Bad).count() {
        0 => Ok(()),
        1 => Err(Failure::No(anyhow!("one thing is bad"))),
        n => Err(Failure::No(anyhow!("{n} things are bad"))),
    }
}

impl Finding {
    fn written(&self) -> String {
        let state = match self.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Bad => "bad ",
        };
        let indent = |text: &str| text.lines().map(print::shown).collect::<Vec<_>>().join("\n      ");
        let mend = self.mend.as_deref().map(|mend| format!("\n      mend: {}", indent(mend))).unwrap_or_default();
        format!("{state}  {}: {}{mend}", self.name, indent(&self.found))
    }
}

async fn look(config: &Config, path: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![ok("config", format!("it is right; vendors: {}", config.vendors.len()))];
    let warnings = config.warnings.iter();
    findings.extend(warnings.map(|warning| warn("config", &**warning, "Change it, unless it is meant so.")));
    for (name, outcome) in connect::servers(config).await {
        findings.push(match outcome {
            Ok(how) if how.contains("WARNING") => warn(name, how, "Change that setting of Redis."),
            Ok(how) => ok(name, how),
            Err(why) => bad(name, why, "Start it, or correct [store] and [queue] in the config."),
        });
    }
    for (origin, retry, outcome) in connect::vendors(config).await {
        findings.push(match outcome {
            Ok(()) => ok("vendor", format!("{origin} accepts connections")),
            Err(why) => {
                let found = format!("{origin} {}", connect::unreachable(&why, &retry));
                warn("vendor", found, "Correct its URL, open the firewall, or wait until it works again.")
            }
        });
    }
    match &config.store.at {
        StoreAt::Sqlite(file) => findings.extend([schema_of_file(file), space(file)]),
        StoreAt::RedisMongo { mongo, database, redis } => {
            let redis = Redis::new(redis.clone());
            let (mongo, redis) = tokio::join!(mongo_facts(mongo.reveal(), database), redis_facts(&redis));
            findings.extend(mongo.into_iter().chain(redis));
        }
    }
    findings.extend(secret_files(config, path));
    findings.push(open_files(config));
    findings.push(port("server.listen", config.server.listen, config.server.tls.is_some()).await);
    if let Some(address) = config.ops_listen {
        findings.push(port("ops.listen", address, false).await);
    }
    findings
}

/// Which version of the schema a SQLite file has.
fn schema_of_file(path: &Path) -> Finding {
    const NAME: &str = "store version";
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SQLITE_HEAD as u64).read_to_end(&mut head));
    let file = path.display();
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return ok(NAME, format!("{file} is not there yet; `serve` makes it with schema {}", sqlite::SCHEMA));
        }
        Err(error) => return bad(NAME, format!("{file}: {error}"), "Give this user the right to read and write it."),
        Ok(_) => {}
    }
    let found = match head.get(SCHEMA_AT..SCHEMA_AT + 4) {
        Some(&[a, b, c, d]) if head.starts_with(SQLITE_MAGIC) => u32::from_be_bytes([a, b, c, d]),
        _ if head.is_empty() => 0,
        _ => return bad(NAME, format!("{file} is no SQLite file"), "Name another file in store.url."),
    };
    schema(NAME, u64::from(found), sqlite::SCHEMA as u64)
}

fn schema(name: &'static str, found: u64, known: u64) -> Finding {
    match found {
        newer if newer > known => {
            bad(name, format!("schema {newer}; this version knows {known}"), "Run the newer version of Fetchgate.")
        }
        0 => ok(name, format!("a new store; `serve` gives it schema {known}")),
        older if older < known => {
            let found = format!("schema {older}; `serve` brings it to {known}");
            warn(name, found, "Back it up first: older versions cannot read it afterwards.")
        }
        _ => ok(name, format!("schema {known}")),
    }
}

/// The free space where the store's file is, or will be.
fn space(path: &Path) -> Finding {
    const NAME: &str = "disk";
    let folders = path.ancestors().skip(1).map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
    let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let free = match rustix::fs::statvfs(folder) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize) / MIB,
        Err(error) => return warn(NAME, format!("{}: {error}", folder.display()), "Look at it with `df`."),
    };
    let found = format!("{free} MiB are free in {}", folder.display());
    let mend = "Make room, or move store.url to a larger disk.";
    match free {
        0..NO_SPACE => bad(NAME, found, mend),
        NO_SPACE..LITTLE_SPACE => warn(NAME, found, mend),
        _ => ok(NAME, found),
    }
}

/// The schema in MongoDB, and its clock.
async fn mongo_facts(uri: &str, database: &str) -> Vec<Finding> {
    match connect::mongo_facts(uri, database).await {
        Ok((clock, found)) => {
            let found = found.and_then(|found| u64::try_from(found).ok()).unwrap_or(0);
            vec![schema("store version", found, redis_mongo::SCHEMA.unsigned_abs()), compared("MongoDB", clock)]
        }
        // An earlier finding says that it cannot be used.
        Err(why) => vec![warn("clock", format!("MongoDB's is unknown: {why}"), "Mend the store first.")],
    }
}

/// The version of Redis, and its clock.
async fn redis_facts(redis: &Redis) -> Vec<Finding> {
    let unknown = |what: &'static str| move |_| warn(what, "that of Redis is unknown", "Mend the queue first.");
    let version = redis.version().await.map(|version| ok("Redis version", version));
    let time = redis.command::<(i64, i64)>(&redis::cmd("TIME")).await;
    let clock = time.map(|(secs, micros)| compared("Redis", Time(secs * 1000 + micros / 1000)));
    vec![version.unwrap_or_else(unknown("Redis version")), clock.unwrap_or_else(unknown("clock"))]
}

/// A server's clock, as it was just read, beside that of this machine.
fn compared(server: &str, clock: Time) -> Finding {
    let ahead = clock.0 - Clock::system().now().0;
    let found = match ahead {
        0.. => format!("that of {server} is ahead of this machine's by {ahead} ms"),
        _ => format!("that of {server} is behind this machine's by {} ms, the time of the answer included", -ahead),
    };
    if ahead.abs() > CLOCKS_DIFFER_MS {
        return warn(
            "clock",
            found,
            "Run NTP (chrony or systemd-timesyncd) on all machines: deadlines and not_before use their clocks.",
        );
    }
    ok("clock", found)
}

/// Whether others of this machine can read the files with secrets.
fn secret_files(config: &Config, path: Option<&Path>) -> Vec<Finding> {
    const NAME: &str = "secret file";
    let mut files = config::secret_files(path, config::environment());
    files.extend(config.server.tls.as_ref().map(|tls| tls.key.clone()));
    let look = |file: PathBuf| {
        let shown = file.display();
        match std::fs::metadata(&file).and_then(|metadata| File::open(&file).map(|_| metadata.permissions().mode())) {
            Err(error) => bad(NAME, format!("{shown}: {error}"), format!("Make {shown} readable for this user.")),
            Ok(mode) if mode & 0o004 != 0 => {
                let found = format!("{shown} can be read by every user of this machine");
                warn(NAME, found, format!("chmod o= {shown}"))
            }
            Ok(_) => ok(NAME, format!("{shown} is readable, and not for everybody")),
        }
    };
    files.into_iter().map(look).collect()
}

fn open_files(config: &Config) -> Finding {
    const NAME: &str = "open files";
    let calls: u64 = config.vendors.iter().map(|vendor| vendor.concurrency as u64).sum();
    let needed = calls + OTHER_FILES;
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < needed => {
            let found =
                format!("{most} are allowed, and this config may need {needed}: {calls} are for calls in flight");
            warn(NAME, found, "Raise the hard limit: LimitNOFILE= of the unit, or `ulimit -Hn`; or lower concurrency.")
        }
        most => {
            let most = most.map_or_else(|| "as many as there are".to_owned(), |most| most.to_string());
            ok(NAME, format!("{most} are allowed; this config may need {needed}"))
        }
    }
}

/// Whether a port is free, or Fetchgate answers at it.
async fn port(name: &'static str, address: SocketAddr, has_tls: bool) -> Finding {
    let taken = match serve::bind(address) {
        Ok(_) => return ok(name, format!("{address} is free")),
        Err(error) => error,
    };
    if taken.kind() != io::ErrorKind::AddrInUse {
        return bad(name, format!("{address}: {taken}"), format!("Write another address into {name}."));
    }
    let other = format!("Stop what uses it (`ss -ltnp`), or write another port into {name}.");
    if has_tls {
        return warn(name, format!("{address} is in use, by Fetchgate or by another process (TLS is on)"), other);
    }
    let url = format!("http://{}", healthcheck::reachable(address));
    let reply = match Service::new(&url, None) {
        Ok(service) => service.exchange(Call::get("/readyz")).await,
        Err(failure) => Err(failure),
    };
    match reply {
        Ok(reply) if reply.status.is_success() && healthcheck::is_ours(&reply.body) => {
            ok(name, format!("Fetchgate answers at {address} and is ready"))
        }
        Ok(reply) if healthcheck::is_ours(&reply.body) => {
            let mend = "`fetchgate healthcheck` says what it waits for.";
            bad(name, format!("Fetchgate answers at {address}, and is not ready"), mend)
        }
        _ => bad(name, format!("another process uses {address}"), other),
    }
}
