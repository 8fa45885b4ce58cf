//! Many vendors: what they cost while nothing is to be done, and how a trickle through two hundred of them fares.
//!
//! Scaled, with one process that does all, and with two workers more.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    Bench,
    idle::Quiet,
    load::{self, Peer, percentile},
    report::{Table, thousands},
    site::{Backend, LONG, Site},
};

const QUIET_SECS: usize = 10;
const COUNTS: [usize; 3] = [1, 200, 1_000];
const TRICKLED: usize = 200;
/// Jobs of each of them, one a second.
const TRICKLE: usize = 10;

/// Vendors `v0`, `v1`, …, each with the limits of the example config.
fn many(count: usize) -> impl Fn(&str) -> String {
    move |url| {
        (0..count).fold(String::new(), |mut text, i| {
            let limits = r#"["50/s", "2000/m", "20000/d"]"#;
            // Writing to a String does not fail.
            let _ = write!(text, "[vendors.v{i}]\nkind = \"sync\"\nurl = \"{url}/sync/v{i}\"\nlimits = {limits}\n");
            text
        })
    }
}

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head = &[
        "",
        "ready again after kill -9, ms",
        "memory MiB",
        "submit to the vendor's arrival: p50 ms",
        "p99 ms",
        "wake-ups/s",
        "CPU ms/s",
        "Redis commands/s",
        "Redis commands a job",
        "CPU ms a job: Fetchgate",
        "Redis",
        "MongoDB",
    ];
    let mut table = Table::new("vendors", "lab/scale.md", head);
    for (backend, workers) in [(Backend::Embedded, 1), (Backend::Scaled, 1), (Backend::Scaled, 3)] {
        let of = if workers > 1 { format!("{backend}, {workers} workers") } else { backend.to_string() };
        for count in COUNTS {
            let name = format!("{of}, {} vendors, idle", thousands(count as f64));
            if bench.wants("vendors", &name) {
                let mut site = Site::start(bench, backend, many(count)).await?;
                let ready = site.restart().await?;
                idle(&mut table, bench, with_workers(site, workers).await?, name, ready).await?;
            } else {
                table.is_whole = false;
            }
        }
        let name = format!("{of}, {TRICKLED} vendors, 1 job/s each");
        if bench.wants("vendors", &name) {
            let site = Site::start(bench, backend, many(TRICKLED)).await?;
            // A trickle that runs dry is a result too, and the worst one: it belongs into the page.
            if let Err(why) = trickle(&mut table, bench, with_workers(site, workers).await?, name.clone()).await {
                let rest = std::iter::repeat_n("-".to_owned(), head.len() - 2);
                table.row([name, format!("failed: {why}")].into_iter().chain(rest).collect());
            }
        } else {
            table.is_whole = false;
        }
    }
    Ok(table)
}

async fn with_workers(mut site: Site<'_>, workers: usize) -> anyhow::Result<Site<'_>> {
    for _ in 1..workers {
        site.add_worker().await?;
    }
    Ok(site)
}

async fn idle(table: &mut Table, bench: &Bench, site: Site<'_>, name: String, ready: Duration) -> anyhow::Result<()> {
    // Until the first looks and the cold start of the limits are over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let quiet = Quiet::measure(&site, bench.size(QUIET_SECS)).await?;
    table.row(vec![
        name,
        thousands(ready.as_secs_f64() * 1000.0),
        format!("{:.0}", site.resident_mib()?),
        "-".into(),
        "-".into(),
        format!("{:.1}", quiet.wake_ups),
        format!("{:.1}", quiet.cpu_ms),
        quiet.commands.map_or("-".into(), |commands| format!("{commands:.0}")),
        "-".into(),
        "-".into(),
        "-".into(),
        "-".into(),
    ]);
    site.stop().await;
    Ok(())
}

async fn trickle(table: &mut Table, bench: &Bench, site: Site<'_>, name: String) -> anyhow::Result<()> {
    let (jobs, begun, before, woken) = (bench.size(TRICKLE).max(3), Instant::now(), site.used()?, site.wake_ups()?);
    let mut users = JoinSet::new();
    for i in 0..TRICKLED {
        let api = site.api();
        users.spawn(async move {
            let (mut peer, mut sent) = (Peer::connect(&api).await?, Vec::new());
            tokio::time::sleep(Duration::from_secs_f64(fastrand::f64())).await;
            for _ in 0..jobs {
                sent.push(Instant::now());
                load::submit_one(&mut peer, &format!("v{i}"), 0).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            anyhow::Ok((i, sent))
        });
    }
    let mut arrived = Vec::new();
    let mut ended = Vec::new();
    while let Some(user) = users.join_next().await {
        ended.push(user??);
    }
    let (took, used, woken) =
        (begun.elapsed().as_secs_f64(), site.used()?.since(before), site.wake_ups()?.since(&woken));
    for (i, sent) in ended {
        let times = all_arrived(&site, &format!("v{i}"), jobs).await?;
        arrived.extend(times.iter().zip(&sent).map(|(at, sent)| at.saturating_duration_since(*sent)));
    }
    arrived.sort_unstable();
    let each_second = |sum: f64| format!("{:.0}", sum / took);
    let ms_a_job = |seconds: f64| format!("{:.2}", seconds * 1000.0 / (TRICKLED * jobs) as f64);
    table.row(vec![
        name,
        "-".into(),
        format!("{:.0}", site.resident_mib()?),
        format!("{:.1}", percentile(&arrived, 0.5)),
        format!("{:.1}", percentile(&arrived, 0.99)),
        each_second(woken),
        format!("{:.1}", used.fetchgate * 1000.0 / took),
        used.in_redis.map_or("-".into(), |redis| each_second(redis.commands)),
        used.in_redis.map_or("-".into(), |redis| format!("{:.1}", redis.commands / (TRICKLED * jobs) as f64)),
        ms_a_job(used.fetchgate),
        used.in_redis.map_or("-".into(), |_| ms_a_job(used.redis)),
        used.in_redis.map_or("-".into(), |_| ms_a_job(used.mongo)),
    ]);
    site.stop().await;
    Ok(())
}

async fn all_arrived(site: &Site<'_>, vendor: &str, jobs: usize) -> anyhow::Result<Vec<Instant>> {
    let begun = Instant::now();
    loop {
        let times = site.vendors.arrival_times(vendor);
        if times.len() >= jobs {
            return Ok(times);
        }
        anyhow::ensure!(begun.elapsed() < LONG, "{vendor} was called {} times of {jobs}", times.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
