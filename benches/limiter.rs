//! What a permit costs: one at a time in this process, and 64 at a time of Redis for all processes.
//!
//! Never waits: the clock is moved on by hand, so that there is always a permit to be had.

#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/it/support/servers.rs"]
mod servers;

use std::{collections::HashMap, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fetchgate::{
    book::Book,
    clock::{Clock, Nanos, Time, nanos},
    limit::{Answer, Key, Limit, Limiter, Per, PoolLimits, Shape, local::Local, redis::RedisLimiter},
    store::sqlite::Sqlite,
};
use servers::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const START: Time = Time(1_774_735_200_000);
const POOL: &str = "acme";
/// Permits that are asked of Redis at once.
const TOGETHER: usize = 64;

fn limit(calls: u64, secs: u64, shape: Shape) -> Limit {
    let (per, guard) = (Duration::from_secs(secs), Duration::from_millis(8));
    Limit { id: format!("{calls}/{secs}s").into(), calls, per: Per::Rolling(per), shape, guard, key: Key::Vendor }
}

/// Limits by the name of what they show, each of 1,000 calls a second at least.
fn pools() -> Vec<(&'static str, Vec<Limit>)> {
    let paced = || limit(1_000, 1, Shape::Paced);
    let window = || limit(10_000, 10, Shape::Window);
    vec![
        ("paced", vec![paced()]),
        ("window, call by call", vec![window()]),
        ("window, in parts", vec![limit(60_000, 60, Shape::Window)]),
        ("bucket", vec![limit(1_100, 1, Shape::Bucket { burst: 100 })]),
        (
            "four at once",
            vec![paced(), window(), limit(60_000, 60, Shape::Window), limit(1_100, 1, Shape::Bucket { burst: 100 })],
        ),
    ]
}

/// A book on disk.
fn book(folder: &TempDir, clock: &Clock) -> Arc<dyn Book> {
    let path = folder.path().join("jobs.db");
    Arc::new(Sqlite::open(&path, clock.clone(), [Arc::from(POOL)], 1).expect("the store opens"))
}

fn pool(limits: Vec<Limit>) -> PoolLimits {
    PoolLimits { pool: POOL.into(), limits, formers: Vec::new() }
}

/// Moves the clock on by as long as these permits take at 990 a second, and takes them.
async fn take(limiter: &dyn Limiter, clock: &Clock, wishes: &[Arc<str>]) {
    clock.advance(Duration::from_micros(1_010) * u32::try_from(wishes.len()).unwrap_or(u32::MAX));
    let until: Nanos = clock.nanos() + nanos(limiter.horizon());
    let answers = limiter.reserve(POOL, wishes, until).await.expect("the limiter answers");
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Granted(_))), "every call found a permit");
}

fn limits(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("one permit in this process");
    for (name, limits) in pools() {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
        let local = runtime.block_on(Local::open(vec![pool(limits)], clock.clone(), book(&folder, &clock)));
        let local = local.expect("the book can be read");
        // What begins cold has been waited out.
        clock.advance(Duration::from_secs(120));
        let wish = [Arc::from("tenant")];
        group.bench_function(name, |b| b.to_async(&runtime).iter(|| take(&local, &clock, &wish)));
    }
    group.finish();

    let redis = Server::redis();
    let mut group = c.benchmark_group("64 permits of Redis");
    group.throughput(Throughput::Elements(TOGETHER as u64));
    for (name, limits) in pools() {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
        let prefix = name.replace(' ', "-");
        let timeouts = HashMap::from([(Arc::from(POOL), Duration::from_secs(5))]);
        let limiter = runtime.block_on(async {
            let book = book(&folder, &clock);
            let limiter = RedisLimiter::open(redis.link(), &prefix, vec![pool(limits)], timeouts, clock.clone(), book);
            limiter.outlook(POOL, clock.nanos(), 1).await.expect("Redis answers");
            limiter
        });
        clock.advance(Duration::from_secs(120));
        let wishes = vec![Arc::from("tenant"); TOGETHER];
        group.bench_function(name, |b| b.to_async(&runtime).iter(|| take(&limiter, &clock, &wishes)));
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
