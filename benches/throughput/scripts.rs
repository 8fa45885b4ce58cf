//! The limiter's script alone: how long Redis works on one request, and so how many permits one Redis can give.
//!
//! On a clock that is moved by hand, so that every permit requested can be granted and the shape of the limit is all that counts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fetchgate::{
    clock::{Clock, Time, nanos},
    config,
    limit::{Answer, Limiter as _, redis::RedisLimiter},
    store::sqlite::Sqlite,
};

use crate::{
    Bench,
    report::{Table, thousands},
    usage::RedisUse,
};

const REQUESTS: usize = 2_000;
const PERMITS: [usize; 3] = [1, 10, 100];
/// The time between requests, for each permit requested: a little longer than the limits demand.
const EACH: Duration = Duration::from_micros(1_100);
const POOL: &str = "sync";

const SHAPES: [(&str, &str); 5] = [
    ("1,000/s paced", r#"["1000/s"]"#),
    ("1,000/s window", r#"[{ calls = 1000, per = "1s", shape = "window" }]"#),
    ("1,000/s bucket of 10", r#"[{ calls = 1000, per = "1s", shape = "bucket", burst = 10 }]"#),
    ("60,000/m window", r#"["60000/m"]"#),
    ("1,000/s, 60,000/m and 86,400,000/d", r#"["1000/s", "60000/m", "86400000/d"]"#),
];

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<Table> {
    let head = &[
        "limits of the pool",
        "permits requested",
        "granted",
        "µs in Redis for a request",
        "µs for a permit",
        "permits/s of one Redis, at most",
    ];
    let mut table = Table::new("scripts", "lab/scale.md", head);
    for (name, limits) in SHAPES {
        for permits in PERMITS {
            if bench.wants("scripts", name) {
                row(&mut table, bench, (name, limits), permits).await?;
            } else {
                table.is_whole = false;
            }
        }
    }
    Ok(table)
}

async fn row(table: &mut Table, bench: &Bench, (name, limits): (&str, &str), permits: usize) -> anyhow::Result<()> {
    let redis = &bench.servers().redis;
    redis.say("FLUSHALL");
    let vendor = format!("[vendors.{POOL}]\nkind = \"sync\"\nurl = \"http://127.0.0.1:1/\"\nlimits = {limits}\n");
    let pools = config::parse(&vendor, "bench", std::iter::empty())?.pools;
    let (folder, clock) = (tempfile::tempdir()?, Clock::manual(Time(1_800_000_000_000)));
    // A book has to be there; which one does not matter to Redis.
    let book = Arc::new(Sqlite::open(&folder.path().join("book.db"), clock.clone(), [], 0)?);
    let timeouts = HashMap::from([(POOL.into(), Duration::from_secs(5))]);
    let limiter = RedisLimiter::open(redis.link(), "bench", pools, timeouts, clock.clone(), book);
    limiter.outlook(POOL, clock.nanos(), 1).await?;
    clock.advance(Duration::from_secs(120)); // the cold start is over

    let (tenants, before) = (vec![Arc::from("default"); permits], RedisUse::read(redis.port)?);
    let (mut granted, requests) = (0, bench.size(REQUESTS));
    for _ in 0..requests {
        clock.advance(EACH * u32::try_from(permits)?);
        let until = clock.nanos() + nanos(limiter.horizon());
        let answers = limiter.reserve(POOL, &tenants, until).await?;
        granted += answers.iter().filter(|answer| matches!(answer, Answer::Granted(_))).count();
    }
    let used = RedisUse::read(redis.port)?.since(before);
    table.row(vec![
        name.to_owned(),
        permits.to_string(),
        format!("{:.0} %", granted as f64 * 100.0 / (requests * permits) as f64),
        format!("{:.0}", used.scripts_us / used.scripts),
        format!("{:.1}", used.scripts_us / granted as f64),
        thousands(granted as f64 * 1e6 / used.scripts_us),
    ]);
    Ok(())
}
