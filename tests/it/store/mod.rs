//! The store's promises that HTTP cannot show.

use std::{path::PathBuf, sync::Arc, time::Duration};

use fetchgate::{
    clock::{Clock, Time},
    job::{
        Attempt, AttemptKind, AttemptOutcome, Failure, FailureCode, Job, JobId, JobIds, Lane, NewJob, Priority, Stage,
        Status,
        lifecycle::{Change, Next},
    },
    roles::Roles,
    store::{
        Claim, Lease, Sees, Settled, Store, Submitted, Unsettled, With,
        redis_mongo::{RedisMongo, VendorWork},
        sqlite::Sqlite,
    },
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{Backend, START, database, servers};

/// Whoever waits for work is woken for it.
mod bells;
/// The use of long limits.
mod book;
/// Clocks that are set while jobs wait.
mod clocks;
/// Files that cannot be used, rows that cannot be read, disks that are full.
mod damage;
/// Who holds a job, and what a stale holder may still do.
mod leases;
/// Random histories of several processes on the same servers, which lose the index now and then.
mod many;
/// Random histories against a model in plain memory.
mod model;
/// A Redis that comes back without its last writes.
mod older;
/// Who is next: order, fairness, lanes longer than what is kept in memory.
mod order;
/// What several processes do to each other, and servers to them.
mod processes;
/// Redis' clock is set while jobs are held.
mod redis_clock;
/// Several processes on the same servers.
mod site;
/// Jobs so large that they do not fit, alone or together.
mod sizes;
/// The rules for streams as queues, one by one.
mod streams;
/// Jobs that this version cannot read, and their neighbours.
mod unreadable;
/// Stores that older and newer versions wrote.
mod upgrades;
/// What is deleted and when; who may wait.
mod upkeep;

/// How long the tests' leases last.
const LEASE: Duration = Duration::from_secs(20);
/// How many ids of a lane Redis has at most, where there is a Redis.
const DEPTH: usize = 16;
/// The vendors of every test's store.
const VENDORS: [&str; 2] = ["v", "w"];

/// A store on a clock that the test moves.
struct TestStore {
    store: Arc<dyn Store>,
    clock: Clock,
    ids: JobIds,
    backend: Backend,
    folder: Arc<TempDir>,
}

impl TestStore {
    async fn open(backend: Backend) -> TestStore {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let clock = Clock::manual(START);
        let store = open(backend, &folder, &clock).await;
        TestStore { store, clock, ids: JobIds::new(), backend, folder }
    }

    /// Another process takes over: what was in memory is gone.
    async fn restart(&mut self) {
        self.store.close().await;
        // One process owns the file, so the old store has to go before the new one opens; a spare one stands in.
        let spare = tempfile::tempdir().expect("a temporary folder");
        self.store = open(self.backend, &spare, &self.clock).await;
        self.store = open(self.backend, &self.folder, &self.clock).await;
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("jobs.db")
    }

    /// As many jobs as make a lane several times longer than what is kept of it outside the database. No more of them behind Redis:
    /// the MongoDB of the tests may be one that sorts the whole lane at each look.
    fn long_lane(&self) -> usize {
        match self.backend {
            Backend::Sqlite => 6000,
            Backend::RedisMongo => 100 * DEPTH,
        }
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    /// A job that is due now.
    fn job(&self, vendor: &str, priority: Priority, tenant: &str) -> NewJob {
        let lane = Lane { vendor: vendor.into(), priority, tenant: tenant.into() };
        NewJob::new(self.ids.next(self.now()), lane, "null", self.now())
    }

    async fn submit_all(&self, jobs: Vec<NewJob>) -> Vec<JobId> {
        let submitted = self.store.submit(jobs).await.expect("the store works");
        let id = |outcome| match outcome {
            Submitted::New(id) => id,
            other => panic!("not a new job: {other:?}"),
        };
        submitted.into_iter().map(id).collect()
    }

    /// A job of vendor `v`, due now.
    async fn submit(&self) -> JobId {
        self.submit_all(vec![self.job("v", Priority::Normal, "t")]).await[0]
    }

    async fn claim(&self, vendor: &str, most: usize) -> Vec<Lease> {
        self.claim_calls(vendor, most, most).await
    }

    async fn claim_calls(&self, vendor: &str, most: usize, calls: usize) -> Vec<Lease> {
        let claim = Claim { vendor: vendor.into(), most, calls, now: self.now(), lease: LEASE };
        self.store.claim(&claim).await.expect("the store works")
    }

    /// Leases the one job of `v` that is due.
    async fn claim_one(&self) -> Lease {
        let mut leases = self.claim("v", 10).await;
        assert_eq!(leases.len(), 1);
        leases.remove(0)
    }

    /// Returns when everything has been done that the store had begun, readings of lanes too.
    async fn quiet(&self) {
        for _ in 0..3 {
            self.store.prune(Time(0)).await.expect("the store works");
        }
    }

    /// Leases all that is due, however often the store has to read on.
    async fn claim_all(&self, vendor: &str) -> Vec<Lease> {
        let mut all = Vec::new();
        loop {
            let leases = self.claim(vendor, 256).await;
            if leases.is_empty() {
                self.quiet().await;
                let last = self.claim(vendor, 256).await;
                if last.is_empty() {
                    return all;
                }
                all.extend(last);
            }
            all.extend(leases);
        }
    }

    /// Time passes until all that is held now has lapsed, and this process reclaims it; says how many jobs that has freed. A process knows
    /// how long something has been held from when it looked before.
    async fn lapse(&self) -> usize {
        self.store.reclaim().await.expect("the store works");
        self.advance(LEASE);
        self.store.reclaim().await.expect("the store works")
    }

    async fn settle(&self, lease: Lease, next: Next) -> Settled {
        self.try_settle(lease, next).await.expect("the store works")
    }

    /// Settles many at once, as many workers do.
    async fn settle_all(&self, settles: Vec<(Lease, Next)>) {
        let mut settling = JoinSet::new();
        for (lease, next) in settles {
            let (store, attempt) = (self.store.clone(), attempt(&lease, self.now()));
            let change = Change::of(&lease.job, next);
            settling.spawn(async move { store.settle(lease, change, attempt).await });
        }
        for settled in settling.join_all().await {
            assert_eq!(settled.expect("the store works"), Settled::Stored);
        }
    }

    async fn try_settle(&self, lease: Lease, next: Next) -> Result<Settled, Unsettled> {
        let attempt = attempt(&lease, self.now());
        let change = Change::of(&lease.job, next);
        self.store.settle(lease, change, attempt).await
    }

    async fn find(&self, id: JobId) -> Job {
        let with = With { payload: true, result: true };
        self.store.find(&Sees::All, id, with).await.expect("the store works").expect("the job is there")
    }

    async fn status(&self, id: JobId) -> Status {
        self.find(id).await.status
    }
}

async fn open(backend: Backend, folder: &TempDir, clock: &Clock) -> Arc<dyn Store> {
    open_for(backend, folder, clock, 1_000_000).await
}

/// A store in which so many jobs may wait.
async fn open_for(backend: Backend, folder: &TempDir, clock: &Clock, max_waiting: u64) -> Arc<dyn Store> {
    match backend {
        Backend::Sqlite => {
            let path = folder.path().join("jobs.db");
            Arc::new(Sqlite::open(&path, clock.clone(), VENDORS.map(Arc::from), max_waiting).expect("the store opens"))
        }
        Backend::RedisMongo => {
            let database = database(folder);
            let (uri, redis) = (servers::mongo().mongo_url(&database), servers::redis().link());
            let work = VENDORS.map(work).to_vec();
            let store = RedisMongo::open(&uri, &database, redis, work, clock.clone(), max_waiting, Roles::Both);
            Arc::new(store.await.expect("the store opens"))
        }
    }
}

fn work(vendor: &str) -> VendorWork {
    VendorWork { name: vendor.into(), polls: true, lease: LEASE, depth: DEPTH, open: None }
}

fn attempt(lease: &Lease, now: Time) -> Attempt {
    Attempt {
        n: lease.attempt,
        kind: if lease.job.stage == Stage::Poll { AttemptKind::Poll } else { AttemptKind::Call },
        sent_at: Some(now.0),
        permit_at: now.0,
        status: Some(200),
        latency_ms: 1,
        outcome: AttemptOutcome::Done,
        detail: None,
        response: None,
    }
}

fn complete() -> Next {
    Next::Complete { result: "1".into() }
}

fn failed() -> Next {
    Next::Failed(Failure::new(FailureCode::VendorRefused, "no"))
}
