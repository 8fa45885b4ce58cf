//! What a job costs when many wait: nothing may grow with the backlog but the file.

use std::time::Instant;

use crate::{
    Bench, load, rates,
    report::{Table, thousands},
    site::{Backend, Site},
};

/// Jobs that are submitted, and then called, on top of those that wait.
const MEASURED: usize = 10_000;
const WAITING: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head = &[
        "",
        "submit: µs a job",
        "CPU µs a job",
        "call and settle: µs a job",
        "CPU µs a job",
        "memory MiB",
        "of Redis MiB",
        "ready again after kill -9, ms",
    ];
    let mut table = Table::new("growth", "lab/benchmarks.md", head);
    for backend in Backend::ALL {
        for waiting in WAITING {
            let waiting = bench.size(waiting);
            let name = format!("{backend}, {} waiting", thousands(waiting as f64));
            if bench.wants("growth", &name) {
                row(&mut table, bench, backend, name, waiting).await?;
            } else {
                table.is_whole = false;
            }
        }
    }
    Ok(table)
}

async fn row(table: &mut Table, bench: &Bench, backend: Backend, name: String, waiting: usize) -> anyhow::Result<()> {
    let (mut site, measured) = (Site::start(bench, backend, rates::unlimited).await?, bench.size(MEASURED));
    let empty = site.used()?;
    site.turn("sync", "pause").await?;
    load::submit_batches(&site.api(), "sync", waiting).await?;

    let (before, begun) = (site.used()?, Instant::now());
    load::submit(&site.api(), "sync", measured).await?;
    let submit = (begun.elapsed(), site.used()?.since(before).fetchgate);
    let in_redis = site.used()?.since(empty).in_redis;
    let memory = site.resident_mib()?;

    let (before, begun) = (site.used()?, Instant::now());
    site.turn("sync", "resume").await?;
    let ended = site.ended(measured).await?;
    let call = (begun.elapsed(), site.used()?.since(before).fetchgate);
    site.turn("sync", "pause").await?;
    let ready = site.restart().await?;

    let us = |seconds: f64, jobs: usize| format!("{:.0}", seconds * 1e6 / jobs as f64);
    table.bars.push((name.clone(), (submit.1 / measured as f64 + call.1 / ended as f64) * 1e6));
    table.row(vec![
        name,
        us(submit.0.as_secs_f64(), measured),
        us(submit.1, measured),
        us(call.0.as_secs_f64(), ended),
        us(call.1, ended),
        format!("{memory:.0}"),
        in_redis.map_or("-".into(), |redis| format!("{:.1}", redis.memory_mib.max(0.0))),
        thousands(ready.as_secs_f64() * 1000.0),
    ]);
    site.stop().await;
    Ok(())
}
