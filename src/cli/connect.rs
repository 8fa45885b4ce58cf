//! Checks that the servers of the config can be reached and used: for `check --connect`, and for `serve` before it starts.
//!
//! Leaves nothing behind and never shows a URI, because it may have a password in it.

use std::{collections::BTreeMap, fs::OpenOptions, io, path::Path, time::Duration};

use anyhow::anyhow;
use futures_util::{StreamExt as _, stream};
use mongodb::{
    Client, Collection, Database,
    bson::{Document, doc},
    error::{Error, ErrorKind},
    options::{Acknowledgment, ClientOptions, CollectionOptions, WriteConcern},
};
use tokio::{net::TcpStream, time::timeout};

use super::{Failure, print};
use crate::{
    clock::Time,
    config::{Config, StoreAt},
    job::retry::Retry,
    redis_link::{Redis, RedisUrl},
    shown::tries,
    store::StoreError,
    vendor::{http::Origin, proxy::Proxy},
};

/// A server that does not answer within this time counts as unavailable.
const PATIENCE: Duration = Duration::from_secs(2);
/// The time for all requests to one MongoDB together.
const MONGO_PATIENCE: Duration = Duration::from_secs(10);
/// The oldest MongoDB that is tested against.
const OLDEST_MONGO: u32 = 6;
/// A collection for a test write, which is deleted again: are writes acknowledged as Fetchgate needs it?
const SCRATCH: &str = "connection_checks";
/// Vendors that are connected to at the same time.
const AT_ONCE: usize = 32;

/// Connects to each dependency and prints the outcome. A vendor that cannot be reached is no failure: jobs for it would be tried again.
pub(super) async fn check(config: &Config) -> Result<(), Failure> {
    let mut broken = Vec::new();
    print::line("")?;
    for (name, outcome) in servers(config).await {
        match outcome {
            Ok(how) => print::line(&format!("{name}: ok, {how}"))?,
            Err(why) => broken.push(format!("{name}: {why}")),
        }
    }
    for (origin, retry, outcome) in vendors(config).await {
        match outcome {
            Ok(()) => print::line(&format!("vendor {origin}: ok, it accepts connections"))?,
            Err(why) => {
                print::line(&format!("vendor {origin}: {}", unreachable(&why, &retry)))?;
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::Unreachable(anyhow!(broken.join("\n")))) }
}

/// What it means that nobody accepts connections at a vendor.
pub(super) fn unreachable(why: &str, retry: &Retry) -> String {
    format!("cannot be reached now ({why}); jobs would be tried {}, and then fail", tries(retry))
}

/// The store, and Redis if there is one: whether each can be used, and how, or why not.
pub(super) async fn servers(config: &Config) -> Vec<(&'static str, Result<String, String>)> {
    match &config.store.at {
        StoreAt::Sqlite(path) => vec![("store", sqlite(path).map_err(|error| error.to_string()))],
        StoreAt::RedisMongo { mongo: uri, database, redis } => {
            let (store, queue) = tokio::join!(mongo(uri.reveal(), database), queue(redis));
            vec![("store", store), ("queue", queue)]
        }
    }
}

/// What has to be right before a process starts. Redis may be unavailable: jobs are accepted without it, and workers wait for it.
pub(super) async fn before_start(config: &Config) -> Result<(), Failure> {
    let StoreAt::RedisMongo { mongo: uri, database, redis } = &config.store.at else { return Ok(()) };
    let (store, redis) = (mongo(uri.reveal(), database), Redis::new(redis.clone()));
    let (store, pinged) = tokio::join!(store, redis.ping());
    let version = store.map_err(|why| Failure::Unreachable(anyhow!("store: {why}")))?;
    tracing::info!("store: {version}");
    match pinged {
        Ok(()) => {
            if let Some(why) = redis.check().await.map_err(|why| Failure::Unreachable(anyhow!("queue: {why}")))? {
                tracing::warn!("queue: {why}");
            }
            Ok(())
        }
        Err(StoreError::Unavailable(why) | StoreError::Corrupt(why)) => {
            tracing::warn!(why, "Redis is unavailable: accepting jobs, not calling vendors");
            Ok(())
        }
    }
}

async fn queue(url: &RedisUrl) -> Result<String, String> {
    let warning = Redis::new(url.clone()).check().await?;
    Ok(format!("Redis evicts no keys{}", warning.map(|why| format!("\nqueue: WARNING, {why}")).unwrap_or_default()))
}

/// What MongoDB's clock shows, and the version of the schema in the database, if Fetchgate has used it.
pub(super) async fn mongo_facts(uri: &str, database: &str) -> Result<(Time, Option<i64>), String> {
    let asking = async {
        let (database, hosts) = open(uri, database).await?;
        let wrong = |error: Error| explain(&error, &hosts);
        let settings = database.collection::<Document>("settings");
        let schema = settings.find_one(doc! { "_id": "schema" }).await.map_err(wrong)?;
        let schema = schema.and_then(|found| found.get_i64("version").ok());
        // Last, because the caller compares its own clock with the answer.
        let hello = database.run_command(doc! { "hello": 1 }).await.map_err(wrong)?;
        let clock = hello.get_datetime("localTime").map_err(|_| "MongoDB does not say what its clock shows")?;
        Ok((Time(clock.timestamp_millis()), schema))
    };
    timeout(MONGO_PATIENCE, asking).await.unwrap_or_else(|_| Err("MongoDB does not answer".to_owned()))
}

/// Whether MongoDB answers, is new enough, and acknowledges writes that a majority has on disk.
async fn mongo(uri: &str, database: &str) -> Result<String, String> {
    match timeout(MONGO_PATIENCE, ask_mongo(uri, database)).await {
        Ok(outcome) => outcome,
        Err(_) => Err("MongoDB accepts connections but does not answer".to_owned()),
    }
}

/// A database that may not be there, and the hosts that it is at.
async fn open(uri: &str, database: &str) -> Result<(Database, String), String> {
    let mut options = ClientOptions::parse(uri).await.map_err(|error| explain(&error, ""))?;
    options.server_selection_timeout = Some(PATIENCE);
    options.connect_timeout = Some(PATIENCE);
    let hosts = options.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let client = Client::with_options(options).map_err(|error| explain(&error, &hosts))?;
    Ok((client.database(database), hosts))
}

async fn ask_mongo(uri: &str, database: &str) -> Result<String, String> {
    let (database, hosts) = open(uri, database).await?;
    let wrong = |error: Error| explain(&error, &hosts);
    database.run_command(doc! { "ping": 1 }).await.map_err(wrong)?;
    let info = database.run_command(doc! { "buildInfo": 1 }).await.map_err(wrong)?;
    let version = info.get_str("version").unwrap_or("of an unknown version");
    let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0_u32);
    if major < OLDEST_MONGO {
        return Err(format!("MongoDB {version} is too old: use {OLDEST_MONGO}.0 or newer"));
    }
    let concern = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(PATIENCE).build();
    let options = CollectionOptions::builder().write_concern(concern).build();
    let scratch: Collection<Document> = database.collection_with_options(SCRATCH, options);
    let unsure =
        |error: Error| format!("a write that a majority should have on disk failed: {}", explain(&error, &hosts));
    let written = scratch.insert_one(doc! {}).await.map_err(unsure)?;
    scratch.delete_one(doc! { "_id": written.inserted_id }).await.map_err(unsure)?;
    Ok(format!("MongoDB {version} acknowledges writes that a majority has on disk"))
}

/// What went wrong: the driver's sentence, or a shorter one where the driver's is very long.
fn explain(error: &Error, hosts: &str) -> String {
    match &*error.kind {
        ErrorKind::ServerSelection { .. } => {
            format!(
                "MongoDB cannot be reached at {hosts} (is it running, is the name of the replica set right, does it have a primary?)"
            )
        }
        ErrorKind::Authentication { .. } => "MongoDB does not accept the user or the password".to_owned(),
        ErrorKind::DnsResolve { .. } => "the name in the MongoDB URI cannot be resolved".to_owned(),
        kind => format!("MongoDB: {kind}"),
    }
}

/// Whether the file can be created or written. `serve` creates missing folders.
fn sqlite(path: &Path) -> io::Result<String> {
    let named = |error: io::Error, place: &Path| io::Error::new(error.kind(), format!("{}: {error}", place.display()));
    if path.exists() {
        OpenOptions::new().append(true).open(path).map_err(|error| named(error, path))?;
    }
    let folders =
        path.ancestors().skip(1).map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let probe = folder.join(format!(".fetchgate-check-{}", std::process::id()));
    OpenOptions::new().write(true).create_new(true).open(&probe).map_err(|error| named(error, folder))?;
    std::fs::remove_file(&probe)?;
    Ok(format!("files can be written in {}", folder.display()))
}

/// Connects once to each host and port of the vendors; with each comes the retry policy of its least patient vendor.
pub(super) async fn vendors(config: &Config) -> Vec<(String, Retry, Result<(), String>)> {
    let mut origins: BTreeMap<String, (Origin, Retry)> = BTreeMap::new();
    for vendor in &config.vendors {
        let own = vendor.url.origin().and_then(Origin::of);
        let proxy = vendor.proxy.as_ref().map(Proxy::at);
        for mut origin in own.into_iter().chain(vendor.kind.origins()) {
            let mut name = origin.to_string();
            if let Some(proxy) = &proxy {
                name = format!("{name}, by the proxy {}", proxy.name());
                origin = Origin { tls: false, host: proxy.host.clone(), port: proxy.port };
            }
            let place = origins.entry(name).or_insert((origin, vendor.retry));
            if vendor.retry.lasts() < place.1.lasts() {
                place.1 = vendor.retry;
            }
        }
    }
    let reach = |(name, (origin, retry)): (String, (Origin, Retry))| async move {
        let outcome = match timeout(PATIENCE, TcpStream::connect((origin.host.as_str(), origin.port))).await {
            Ok(connected) => connected.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        };
        (name, retry, outcome)
    };
    stream::iter(origins).map(reach).buffered(AT_ONCE).collect().await
}
