//! A quiet Fetchgate: how soon the vendor is called for a lone job, and how often the process wakes up for nothing.

use std::time::{Duration, Instant};

use crate::{
    Bench,
    load::{self, Peer, percentile},
    rates,
    report::Table,
    site::{Backend, LONG, Site},
};

const JOBS: usize = 500;
/// Between two lone jobs: all is quiet again by then.
const BETWEEN: Duration = Duration::from_millis(20);
const QUIET_SECS: usize = 10;
/// From then on a process is idle: threads and connections that work had called for have gone.
const AFTER_WORK: Duration = Duration::from_secs(15);

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head = &[
        "",
        "submit to the vendor's arrival: p50 ms",
        "p99 ms",
        "submit to its 202: p50 ms",
        "wake-ups/s when idle",
        "CPU ms/s when idle",
        "Redis commands/s when idle",
        "MongoDB statements/s when idle",
    ];
    let mut table = Table::new("idle", "lab/benchmarks.md", head);
    for backend in Backend::ALL {
        if bench.wants("idle", &backend.to_string()) {
            row(&mut table, bench, backend).await?;
        } else {
            table.is_whole = false;
        }
    }
    Ok(table)
}

async fn row(table: &mut Table, bench: &Bench, backend: Backend) -> anyhow::Result<()> {
    let site = Site::start(bench, backend, rates::unlimited).await?;
    let (mut peer, mut answered, mut arrived) = (Peer::connect(&site.api()).await?, Vec::new(), Vec::new());
    for i in 0..bench.size(JOBS) {
        let begun = Instant::now();
        answered.push(load::submit_one(&mut peer, "sync", i).await?);
        arrived.push(arrival(&site, i).await?.saturating_duration_since(begun));
        tokio::time::sleep(BETWEEN).await;
    }
    answered.sort_unstable();
    arrived.sort_unstable();
    let quiet = Quiet::measure(&site, bench.size(QUIET_SECS)).await?;
    table.row(vec![
        backend.to_string(),
        format!("{:.2}", percentile(&arrived, 0.5)),
        format!("{:.2}", percentile(&arrived, 0.99)),
        format!("{:.2}", percentile(&answered, 0.5)),
        format!("{:.1}", quiet.wake_ups),
        format!("{:.2}", quiet.cpu_ms),
        quiet.commands.map_or("-".into(), |commands| format!("{commands:.1}")),
        quiet.commands.map_or("-".into(), |_| format!("{:.1}", quiet.statements)),
    ]);
    site.stop().await;
    Ok(())
}

/// When the call number `i` came to the vendor.
async fn arrival(site: &Site<'_>, i: usize) -> anyhow::Result<Instant> {
    let begun = Instant::now();
    loop {
        if let Some(at) = site.vendors.arrival_times("sync").get(i) {
            return Ok(*at);
        }
        anyhow::ensure!(begun.elapsed() < LONG, "job {i} never came to the vendor");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What is done a second while nothing is to be done.
pub(crate) struct Quiet {
    pub(crate) wake_ups: f64,
    pub(crate) cpu_ms: f64,
    pub(crate) commands: Option<f64>,
    pub(crate) statements: f64,
}

impl Quiet {
    pub(crate) async fn measure(site: &Site<'_>, seconds: usize) -> anyhow::Result<Quiet> {
        tokio::time::sleep(AFTER_WORK).await;
        let (before, woken, begun) = (site.used()?, site.wake_ups()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds.max(2) as u64)).await;
        let (used, woken, took) =
            (site.used()?.since(before), site.wake_ups()?.since(&woken), begun.elapsed().as_secs_f64());
        Ok(Quiet {
            wake_ups: woken / took,
            cpu_ms: used.fetchgate * 1000.0 / took,
            commands: used.in_redis.map(|redis| redis.commands / took),
            statements: used.statements / took,
        })
    }
}
