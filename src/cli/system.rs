//! `system`: which processes run, and the state of what they need.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure,
    client::{self, Call, Talk},
    print,
    times::{self, Times},
};

#[derive(Deserialize)]
struct System {
    process: Process,
    uptime_s: f64,
    processes: Vec<Process>,
    store: Store,
    redis: Option<Redis>,
    config: Config,
}

#[derive(Deserialize)]
struct Process {
    id: String,
    roles: Vec<String>,
    version: String,
    started_at: String,
    last_seen: String,
    config: String,
    /// Absent in the one that answers.
    alive: Option<bool>,
}

#[derive(Deserialize)]
struct Store {
    kind: String,
    status: String,
    schema: i64,
}

#[derive(Deserialize)]
struct Redis {
    status: String,
    version: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    hash: String,
    warnings: Vec<String>,
}

pub(super) async fn run(talk: &Talk) -> Result<(), Failure> {
    let times = talk.times();
    talk.ask(Call::get("/system"), |answer| view(answer, &times)).await
}

fn view(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let System { process, uptime_s, processes, store, redis, config } = client::read(answer)?;
    let uptime = times::span(Duration::try_from_secs_f64(uptime_s).unwrap_or_default());
    let redis = redis.map_or_else(
        || "not used".to_owned(),
        |redis| format!("{} (version {})", redis.status, redis.version.as_deref().unwrap_or("unknown")),
    );
    let mut lines = vec![
        ("version", process.version),
        ("answered by", format!("{}, running for {uptime}", process.id)),
        ("store", format!("{} ({}, schema {})", store.status, store.kind, store.schema)),
        ("redis", redis),
        ("config", config.hash),
    ];
    lines.extend(config.warnings.into_iter().map(|warning| ("warning", warning)));
    let head = ["PROCESS", "STATE", "ROLES", "VERSION", "STARTED", "SEEN", "CONFIG"];
    let rows = processes.into_iter().map(|process| {
        let state = if process.alive == Some(false) { "not seen" } else { "running" };
        let [started, seen] = [&process.started_at, &process.last_seen].map(|at| times.short(at));
        [process.id, state.to_owned(), process.roles.join(","), process.version, started, seen, process.config]
    });
    let table = print::table(head, &["VERSION", "CONFIG", "STARTED"], rows);
    Ok(format!("{}\n\n{table}", print::pairs(lines.into_iter().map(|(name, value)| (name, print::shown(&value))))))
}
