//! What a job costs the store: accepting it, alone and in a batch, and its life from there to its end, on both backends.
//!
//! Never calls a vendor, and the clock stands still: what is measured is the store.

#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/it/support/servers.rs"]
mod servers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use fetchgate::{
    clock::{Clock, Time},
    job::{
        Attempt, AttemptKind, AttemptOutcome, JobIds, Lane, NewJob, Priority,
        lifecycle::{Change, Next},
    },
    roles::Roles,
    store::{
        Claim, Settled, Store,
        redis_mongo::{RedisMongo, VendorWork},
        sqlite::Sqlite,
    },
};
use servers::Server;
use tokio::{runtime::Runtime, task::JoinSet};

const START: Time = Time(1_774_735_200_000);
const VENDOR: &str = "acme";
const MOST_WAITING: u64 = 100_000_000;
/// A lease lasts as long.
const LEASE: Duration = Duration::from_secs(600);
/// Jobs that are under way together.
const TOGETHER: usize = 64;

/// Makes jobs that are due, each batch a millisecond after the one before.
struct Source {
    ids: JobIds,
    due_at: AtomicI64,
}

impl Source {
    fn jobs(&self, n: usize) -> Vec<NewJob> {
        let due_at = Time(self.due_at.fetch_add(1, Ordering::Relaxed));
        (0..n).map(|_| job(&self.ids, due_at)).collect()
    }
}

fn job(ids: &JobIds, due_at: Time) -> NewJob {
    let lane = Lane { vendor: VENDOR.into(), priority: Priority::Normal, tenant: "default".into() };
    let payload = r#"{"name":"Ada Lovelace","street":"Main Street 1","city":"London","born":"1815-12-10"}"#;
    NewJob::new(ids.next(START), lane, payload, due_at)
}

/// Leases so many jobs and settles each, as the attempts of a worker do.
async fn serve(store: &Arc<dyn Store>, n: usize) {
    let mut settling = JoinSet::new();
    while settling.len() < n {
        let most = n - settling.len();
        let claim = Claim { vendor: VENDOR.into(), most, calls: most, now: START, lease: LEASE };
        for lease in store.claim(&claim).await.expect("the store works") {
            let attempt = Attempt {
                n: lease.attempt,
                kind: AttemptKind::Call,
                sent_at: Some(START.0),
                permit_at: START.0,
                status: Some(200),
                latency_ms: 1,
                outcome: AttemptOutcome::Done,
                detail: None,
                response: None,
            };
            let next = Next::Complete { result: r#"{"ok":true,"score":712}"#.into() };
            let change = Change { tries: 1, ..Change::of(&lease.job, next) };
            let store = store.clone();
            settling.spawn(async move { store.settle(lease, change, attempt).await });
        }
    }
    for settled in settling.join_all().await {
        assert_eq!(settled.expect("the store works"), Settled::Stored);
    }
}

fn bench(c: &mut Criterion, runtime: &Runtime, backend: &str, store: &Arc<dyn Store>) {
    let source = Source { ids: JobIds::new(), due_at: AtomicI64::new(START.0 - 1_000_000) };
    let mut group = c.benchmark_group(backend);
    // All that is accepted has to be served afterwards.
    group.sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for n in [1, 1_000] {
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("accept {n}"), |b| {
            let submit = |jobs| async { store.submit(jobs).await.expect("the store works") };
            b.to_async(runtime).iter_batched(|| source.jobs(n), submit, BatchSize::PerIteration);
        });
        // The next finds as many as it leaves.
        runtime.block_on(drain(store));
    }
    group.warm_up_time(Duration::from_secs(3)).measurement_time(Duration::from_secs(10));
    group.throughput(Throughput::Elements(TOGETHER as u64));
    group.bench_function(format!("accept, lease and settle {TOGETHER}"), |b| {
        let live = |jobs| async {
            store.submit(jobs).await.expect("the store works");
            serve(store, TOGETHER).await;
        };
        b.to_async(runtime).iter_batched(|| source.jobs(TOGETHER), live, BatchSize::PerIteration);
    });
    group.finish();
}

/// Serves all that waits.
async fn drain(store: &Arc<dyn Store>) {
    loop {
        let waiting = store.backlog(VENDOR).await.waiting;
        if waiting == 0 {
            return;
        }
        serve(store, usize::try_from(waiting).unwrap_or(usize::MAX).min(512)).await;
    }
}

fn stores(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::manual(START));
    let path = folder.path().join("jobs.db");
    let sqlite = Sqlite::open(&path, clock.clone(), [Arc::from(VENDOR)], MOST_WAITING).expect("the store opens");
    bench(c, &runtime, "SQLite", &(Arc::new(sqlite) as Arc<dyn Store>));

    let (redis, mongo) = (Server::redis(), Server::mongo());
    let work = VendorWork { name: VENDOR.into(), polls: false, lease: LEASE, depth: 2048, open: None };
    let uri = mongo.mongo_url("bench");
    let store = RedisMongo::open(&uri, "bench", redis.link(), vec![work], clock, MOST_WAITING, Roles::Both);
    let store: Arc<dyn Store> = Arc::new(runtime.block_on(store).expect("the store opens"));
    bench(c, &runtime, "Redis and MongoDB", &store);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = stores
}
criterion_main!(benches);
