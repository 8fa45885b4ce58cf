//! `check --connect`, `healthcheck` and `serve --role` from the command line: what they say and how they end.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::World;
use crate::support::servers::{Cluster, Queue as _, Sentinels, Server};
use fetchgate::roles::Roles;

const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");
const PASSWORD: &str = "canary-7f3a9c";

/// Runs the binary with this config; the exit code, and all that it wrote.
async fn run(config: &str, arguments: &[&str]) -> (i32, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run_in(&folder, config, arguments).await
}

async fn run_in(folder: &TempDir, config: &str, arguments: &[&str]) -> (i32, String) {
    let path = folder.path().join("fetchgate.toml");
    std::fs::write(&path, config).expect("written");
    let mut command = Command::new(BINARY);
    command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
    command.env_remove("FETCHGATE_URL").env_remove("FETCHGATE_CONFIG");
    let output = spawn_blocking(move || command.output()).await.expect("no panic").expect("the binary runs");
    told(output)
}

fn told(output: Output) -> (i32, String) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains(PASSWORD), "{text}");
    (output.status.code().expect("an exit code"), text)
}

#[track_caller]
fn says(outcome: &(i32, String), code: i32, words: &[&str]) {
    assert_eq!(outcome.0, code, "{}", outcome.1);
    for word in words {
        assert!(outcome.1.contains(word), "{word:?} is missing: {}", outcome.1);
    }
}

/// Where nothing listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

fn many_machines(mongo: &str, redis: &str) -> String {
    format!("[store]\nurl = \"{mongo}\"\n[queue]\nurl = \"{redis}\"\n")
}

#[tokio::test]
async fn a_check_tells_of_the_file_and_of_vendors_that_cannot_be_reached() {
    let vendor = nowhere();
    let config = format!("[vendors.v]\nkind = \"sync\"\nurl = \"http://{vendor}/x\"\nlimits = []\n");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outcome = run_in(&folder, &config, &["check", "--connect"]).await;
    let vendor = format!("vendor http://{vendor}: cannot be reached now");
    says(&outcome, 0, &["The config is good", "store: ok, files can be written in .", &vendor]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(left.len(), 1, "only the config: {left:?}");

    let blocked = format!("[store]\nurl = \"sqlite:{}/x.db\"\n", Path::new("/proc/1").display());
    says(&run(&blocked, &["check", "--connect"]).await, 3, &["store: /proc/1: "]);
    says(&run("colour = 1", &["check", "--connect"]).await, 2, &["colour"]);
}

#[tokio::test]
async fn a_check_reaches_mongodb_and_redis() {
    let (mongo, redis) = (Server::mongo(), Server::redis());
    let outcome = run(&many_machines(&mongo.mongo_url("fetchgate"), &redis.redis_url()), &["check", "--connect"]).await;
    says(&outcome, 0, &["store: ok, MongoDB ", "a majority has on disk", "queue: ok, "]);
}

#[tokio::test]
async fn a_check_says_what_is_wrong_with_mongodb_and_redis_and_no_password() {
    let (mongo, redis) = (nowhere(), nowhere());
    let uris = (format!("mongodb://me:{PASSWORD}@{mongo}/fetchgate"), format!("redis://me:{PASSWORD}@{redis}"));
    let outcome = run(&many_machines(&uris.0, &uris.1), &["check", "--connect"]).await;
    let store = format!("store: MongoDB cannot be reached at {mongo}");
    says(&outcome, 3, &[&store, "queue: ", "Redis: "]);
    let outcome = run(&many_machines(&uris.0, &uris.1), &["serve", "--role", "worker"]).await;
    says(&outcome, 3, &[&store]);

    let server = Server::redis();
    let set = redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("allkeys-lru").to_owned();
    let mut link = redis::Client::open(server.redis_url())
        .expect("a URL")
        .get_multiplexed_async_connection()
        .await
        .expect("Redis");
    let () = set.query_async(&mut link).await.expect("set");
    let outcome = run(&many_machines(&uris.0, &server.redis_url()), &["check", "--connect"]).await;
    says(&outcome, 3, &["queue: Redis may evict our keys", "CONFIG SET maxmemory-policy noeviction"]);
}

#[tokio::test]
async fn one_role_alone_needs_a_store_that_processes_share() {
    for role in ["api", "worker"] {
        says(&run("", &["serve", "--role", role]).await, 2, &["one process owns a SQLite store", "--role api,worker"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthcheck_finds_its_process_by_the_config() {
    let world = World::new().await;
    let worker = world.start(Roles::Worker).await;
    let port = worker.address.port();
    let (api, ops) =
        (format!("[server]\nlisten = \"127.0.0.1:{port}\""), format!("[ops]\nlisten = \"0.0.0.0:{port}\""));
    let elsewhere = format!("[server]\nlisten = \"{}\"", nowhere());
    for config in [&*api, &ops, &format!("{elsewhere}\n{ops}")] {
        says(&run(config, &["healthcheck"]).await, 0, &["ready"]);
        says(&run(config, &["healthcheck", "--config", "fetchgate.toml"]).await, 0, &["ready"]);
    }
    says(&run(&elsewhere, &["healthcheck"]).await, 3, &["no service can be reached"]);
    says(&run(&elsewhere, &["healthcheck", "--url", &format!("http://127.0.0.1:{port}")]).await, 0, &["ready"]);
    says(&run("colour = 1", &["healthcheck"]).await, 2, &["colour"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_would_go_on_without_its_replicas_is_warned_of() {
    let mongo = Server::mongo();
    let uri = mongo.mongo_url("fetchgate");
    for (needed, is_warned_of) in [(0, true), (1, false)] {
        let redis = Sentinels::new(needed);
        let outcome = run(&many_machines(&uri, &redis.queue_url()), &["check", "--connect"]).await;
        says(&outcome, 0, &["queue: ok"]);
        assert_eq!(outcome.1.contains("queue: WARNING, a master that is cut off"), is_warned_of, "{}", outcome.1);
        assert_eq!(outcome.1.contains("min-replicas-to-write"), is_warned_of, "{}", outcome.1);
    }
    let alone = run(&many_machines(&uri, &Cluster::new().queue_url()), &["check", "--connect"]).await;
    says(&alone, 0, &["queue: ok"]);
    assert!(!alone.1.contains("WARNING"), "nothing can be replaced: {}", alone.1);
}
