//! How many jobs a second, and what each costs.

use std::time::Instant;

use crate::{
    Bench,
    load::{self, percentile},
    report::{Table, thousands},
    site::{Backend, Site},
};

const JOBS: usize = 60_000;

#[derive(Clone, Copy)]
enum What {
    /// From the submit to the result.
    EndToEnd(&'static str),
    /// The vendor is paused, and the jobs pile up.
    Accept,
    AcceptBatches,
}

const ROWS: [(&str, What); 4] = [
    ("sync vendor", What::EndToEnd("sync")),
    ("webhook vendor", What::EndToEnd("async")),
    ("accepting alone", What::Accept),
    ("accepting batches of 10,000", What::AcceptBatches),
];

/// Vendors without limits: how fast Fetchgate is, and not how fast it may be.
pub(crate) fn unlimited(url: &str) -> String {
    format!(
        "[vendors.sync]\nkind = \"sync\"\nurl = \"{url}/sync\"\nlimits = []\nconcurrency = 64\n\
         [vendors.async]\nkind = \"webhook\"\nurl = \"{url}/async?callback_ms=0\"\nlimits = []\nconcurrency = 64\n"
    )
}

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head =
        &["", "jobs", "accepted/s", "p50 ms", "p99 ms", "ended/s", "CPU µs a job: Fetchgate", "Redis", "MongoDB"];
    let mut table = Table::new("rates", "lab/benchmarks.md", head);
    for backend in Backend::ALL {
        for (name, what) in ROWS {
            let name = format!("{backend}, {name}");
            if bench.wants("rates", &name) {
                let jobs = bench.size(if backend == Backend::Embedded { JOBS } else { JOBS / 2 });
                row(&mut table, bench, backend, (name, what), jobs).await?;
            } else {
                table.is_whole = false;
            }
        }
    }
    Ok(table)
}

async fn row(
    table: &mut Table,
    bench: &Bench,
    backend: Backend,
    (name, what): (String, What),
    jobs: usize,
) -> anyhow::Result<()> {
    let site = Site::start(bench, backend, unlimited).await?;
    let vendor = if let What::EndToEnd(vendor) = what { vendor } else { "sync" };
    let ends = matches!(what, What::EndToEnd(_));
    if !ends {
        site.turn(vendor, "pause").await?;
    }
    let (before, begun) = (site.used()?, Instant::now());
    let mut took = Vec::new();
    match what {
        What::AcceptBatches => load::submit_batches(&site.api(), vendor, jobs).await?,
        _ => took = load::submit(&site.api(), vendor, jobs).await?,
    }
    let accepted = jobs as f64 / begun.elapsed().as_secs_f64();
    if ends {
        site.ended(jobs).await?;
    }
    let (ended, used) = (jobs as f64 / begun.elapsed().as_secs_f64(), site.used()?.since(before));
    let ms = |share| if took.is_empty() { "-".into() } else { format!("{:.1}", percentile(&took, share)) };
    let cpu = |seconds: f64| format!("{:.0}", seconds * 1e6 / jobs as f64);
    let server = |seconds| if backend == Backend::Scaled { cpu(seconds) } else { "-".into() };
    table.bars.push((name.clone(), if ends { ended } else { accepted }));
    table.row(vec![
        name,
        thousands(jobs as f64),
        thousands(accepted),
        ms(0.5),
        ms(0.99),
        if ends { thousands(ended) } else { "-".into() },
        cpu(used.fetchgate),
        server(used.redis),
        server(used.mongo),
    ]);
    site.stop().await;
    Ok(())
}
