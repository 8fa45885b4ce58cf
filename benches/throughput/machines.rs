//! What one job asks of Redis and MongoDB, which is where the walls of many machines stand.
//!
//! Adds workers on the same machine: not to be faster, but to see what each further one asks.

use std::time::Instant;

use crate::{
    Bench, load,
    report::{Table, thousands},
    site::{Backend, Site},
};

struct Row {
    name: &'static str,
    limits: &'static str,
    /// Calls a second that the limits allow; about so many seconds are measured.
    jobs: usize,
    workers: usize,
}

const ROWS: [Row; 6] = [
    Row { name: "no limit", limits: "[]", jobs: 30_000, workers: 1 },
    Row { name: "no limit, 3 workers", limits: "[]", jobs: 30_000, workers: 3 },
    Row { name: "1,000/s paced", limits: r#"["1000/s"]"#, jobs: 10_000, workers: 1 },
    Row { name: "1,000/s paced, 3 workers", limits: r#"["1000/s"]"#, jobs: 10_000, workers: 3 },
    Row {
        name: "1,000/s window",
        limits: r#"[{ calls = 1000, per = "1s", shape = "window" }]"#,
        jobs: 10_000,
        workers: 1,
    },
    Row { name: "100/s paced, 3 workers", limits: r#"["100/s"]"#, jobs: 1_000, workers: 3 },
];

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head = &[
        "a job costs, scaled",
        "jobs/s",
        "Redis commands",
        "scripts",
        "of the limiter",
        "CPU µs in Redis",
        "MongoDB statements",
        "CPU µs in MongoDB",
        "CPU µs in Fetchgate",
    ];
    let mut table = Table::new("machines", "lab/scale.md", head);
    for row in &ROWS {
        if bench.wants("machines", row.name) {
            measure_row(&mut table, bench, row).await?;
        } else {
            table.is_whole = false;
        }
    }
    Ok(table)
}

async fn measure_row(table: &mut Table, bench: &Bench, row: &Row) -> anyhow::Result<()> {
    let vendors = |url: &str| {
        format!("[vendors.sync]\nkind = \"sync\"\nurl = \"{url}/sync\"\nlimits = {}\nconcurrency = 192\n", row.limits)
    };
    let mut site = Site::start(bench, Backend::Scaled, vendors).await?;
    for _ in 1..row.workers {
        site.add_worker().await?;
    }
    let jobs = bench.size(row.jobs);
    let (before, begun) = (site.used()?, Instant::now());
    load::submit(&site.api(), "sync", jobs).await?;
    site.ended(jobs).await?;
    let (took, used) = (begun.elapsed().as_secs_f64(), site.used()?.since(before));
    let redis = used.in_redis.expect("it is scaled");
    let each = |sum: f64| format!("{:.2}", sum / jobs as f64);
    let us = |seconds: f64| format!("{:.0}", seconds * 1e6 / jobs as f64);
    table.row(vec![
        row.name.to_owned(),
        thousands(jobs as f64 / took),
        each(redis.commands),
        each(redis.scripts),
        each(redis.infos),
        us(used.redis),
        each(used.statements),
        us(used.mongo),
        us(used.fetchgate),
    ]);
    site.stop().await;
    Ok(())
}
