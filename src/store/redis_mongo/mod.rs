//! The store of many processes: MongoDB is the truth, Redis Streams are a short index of the jobs that are to be called next.
//!
//! Never acknowledges what MongoDB does not have on a majority's disks, and never relies on Redis for anything but speed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    group::Group,
    homes::Homes,
    index::{Index, leases::Leases, words::Channel},
    truth::{docs::StoredJob, mongo::Mongo},
    upkeep::{sweep, unsent::Unsent},
};
pub use self::{
    index::{key_of, words::VendorWork},
    truth::SCHEMA,
};
use super::{
    Ahead, Amended, Backlog, Claim, Decide, Erased, Filter, Lease, Overdue, Page, Ready, Sees, Settled, Slice, Store,
    StoreError, Submitted, Unsettled, Which, With,
    failures::Failures,
    room::{Fitting, Load, MostWaiting, NoRoom},
    signals::Signals,
};
use crate::{
    clock::{Clock, Time, nanos},
    job::{Attempt, Attempts, Idempotency, Job, JobId, Lane, NewJob, lifecycle::Change},
    redis_link::Redis,
    roles::Roles,
};

mod amend;
mod dispatch;
mod group;
mod homes;
mod index;
mod mark;
mod read;
mod room;
mod settle;
mod standing;
mod submit;
mod truth;
mod upkeep;

/// A submit is answered within this time, stored or not.
const SUBMIT_WITHIN: Duration = Duration::from_millis(900);
/// No caller waits longer than this for an update of the index, or for a sweep.
const PATIENCE: Duration = Duration::from_millis(250);
/// On the channel of bells: the end of a job is to be announced. No vendor has this name.
const WEBHOOKS: &[u8] = b"/webhooks";
/// Idempotency keys are kept this long.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The store over Redis Streams and MongoDB.
pub struct RedisMongo {
    core: Arc<Core>,
    submits: Group<submit::Submission>,
    /// Batches have their own queue, so that a large one delays no single job.
    batches: Group<submit::Submission>,
    settles: Group<settle::Outcome>,
    amends: Group<amend::Proposal>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    stop: CancellationToken,
    most_waiting: MostWaiting,
    finds: Group<read::Lookup>,
    releases: Group<dispatch::Release>,
    /// Where the next slice of pruning begins.
    prune_from: Mutex<JobId>,
}

/// What all parts of the store share.
struct Core {
    mongo: Mongo,
    index: Index,
    vendors: BTreeMap<Arc<str>, VendorWork>,
    signals: Signals,
    clock: Clock,
    /// A name that no other process has or had.
    process: String,
    leases: Leases,
    /// By vendor: which index we last saw.
    epochs: Mutex<HashMap<Arc<str>, String>>,
    unsent: Unsent,
    /// Vendors whose streams are low: the next claim refills them first.
    low: Mutex<BTreeSet<Arc<str>>>,
    live: room::Live,
    homes: Homes,
    /// The queue of sweeps.
    sweeps: mpsc::Sender<sweep::Request>,
    /// Wakes `feed::run_upkeep`: it has something to do.
    upkeep_needed: Notify,
    faults: Faults,
}

/// The point at which a debug build aborts, for tests: `FETCHGATE_FAULT` names it.
struct Faults(Option<String>);

impl RedisMongo {
    /// Connects to MongoDB and begins to listen to Redis, which may still be unavailable.
    pub async fn open(
        uri: &str,
        database: &str,
        redis: Redis,
        vendors: Vec<VendorWork>,
        clock: Clock,
        most_waiting: impl Into<MostWaiting>,
        roles: Roles,
    ) -> Result<RedisMongo, StoreError> {
        let connecting: BoxFuture<'_, _> = Box::pin(Mongo::open(uri, database));
        let process = format!("{:016x}", fastrand::u64(..));
        let (sweeps, requests) = mpsc::channel(sweep::MOST_QUEUED);
        let core = Arc::new(Core {
            mongo: connecting.await?,
            index: Index::new(redis, database, &process, clock.clone()),
            homes: Homes::new(&process, vendors.iter().map(|vendor| &vendor.name)),
            signals: Signals::new(vendors.iter().map(|vendor| vendor.name.clone())),
            vendors: vendors.into_iter().map(|vendor| (vendor.name.clone(), vendor)).collect(),
            clock,
            process,
            leases: Leases::default(),
            epochs: Mutex::default(),
            unsent: Unsent::default(),
            low: Mutex::default(),
            live: room::Live::default(),
            sweeps,
            upkeep_needed: Notify::new(),
            faults: Faults(std::env::var("FETCHGATE_FAULT").ok().filter(|_| cfg!(debug_assertions))),
        });
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(core.clone().run_sweeps(requests, stop.clone()));
        for vendor in core.vendors.keys() {
            // So that the first submit finds an index. If Redis is unavailable now, the first look at it opens the index.
            let opening: BoxFuture<'_, _> = Box::pin(core.ready(vendor));
            if let Err(error) = core.briefly(opening).await {
                tracing::warn!(%error, "Redis is unavailable: accepting jobs, not calling vendors");
                break;
            }
        }
        tasks.spawn(core.clone().listen(roles, stop.clone()));
        tasks.spawn(core.clone().run_upkeep(stop.clone()));
        let of = |core: &Arc<Core>| core.clone();
        let (submitting, batching, settling, amending) = (of(&core), of(&core), of(&core), of(&core));
        let (finding, releasing) = (of(&core), of(&core));
        let finds = Group::new(&mut tasks, |_| 0, move |many| read::run(of(&finding), many));
        let submits = Group::new(&mut tasks, submit::Submission::bytes, move |many| submit::run(of(&submitting), many));
        let batches = Group::new(&mut tasks, submit::Submission::bytes, move |many| submit::run(of(&batching), many));
        let weighing = of(&core);
        let weigh = move |request: &settle::Outcome| request.bytes(&weighing);
        let settles = Group::new(&mut tasks, weigh, move |many| settle::run(of(&settling), many));
        let amends = Group::new(&mut tasks, amend::Proposal::bytes, move |many| amend::run(of(&amending), many));
        // When the machine has stood still, many permits are missed at once.
        let releases = Group::new(&mut tasks, |_| 0, move |many| dispatch::release(of(&releasing), many));
        let (tasks, prune_from) = (tokio::sync::Mutex::new(tasks), Mutex::new(JobId::MIN));
        Ok(RedisMongo {
            core,
            submits,
            batches,
            settles,
            amends,
            finds,
            releases,
            tasks,
            stop,
            most_waiting: most_waiting.into(),
            prune_from,
        })
    }

    async fn read(&self, sees: &Sees, id: JobId, with: With) -> Result<Option<StoredJob>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.finds.send(read::Lookup { id, with, reply }).await.map_err(|_| group::closed())?;
        let found = answer.await.unwrap_or_else(|_| Err(group::closed()))?;
        Ok(found.filter(|found| sees.includes(&found.job.lane.tenant)))
    }

    async fn store(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
        // A large batch takes its time; a job is stored or refused within a second.
        let within = SUBMIT_WITHIN + Duration::from_millis(jobs.len() as u64);
        let (reply, answer) = oneshot::channel();
        let submits = if jobs.len() > 1 { &self.batches } else { &self.submits };
        let submitted = async {
            submits.send(submit::Submission { jobs, reply }).await.map_err(|_| group::closed())?;
            answer.await.unwrap_or_else(|_| Err(group::closed()))
        };
        let clock = &self.core.clock;
        tokio::select! {
            submitted = submitted => submitted,
            () = clock.sleep_until(clock.nanos() + nanos(within)) => {
                Err(StoreError::Unavailable("MongoDB does not answer".into()))
            }
        }
    }
}

#[async_trait]
impl Store for RedisMongo {
    async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
        let all = jobs.iter().map(Load::of_new).fold(Load::default(), Load::plus);
        if !self.core.has_room(all, self.most_waiting.in_all).await {
            return Ok(vec![Submitted::NoRoom(NoRoom::InAll); jobs.len()]);
        }
        let bounds = self.most_waiting.bounds(&jobs);
        if bounds.is_empty() {
            return self.store(jobs).await;
        }
        let wanted: Vec<_> = jobs.iter().map(|job| (&job.lane.tenant, Load::of_new(job))).collect();
        let (left, _in_flight) = self.core.left_of(bounds, &wanted).await?;
        let (jobs, over) = Fitting::of(jobs, left).into_parts();
        let stored = if jobs.is_empty() { Vec::new() } else { self.store(jobs).await? };
        Ok(Fitting::outcomes(over, stored))
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        self.core.claim(claim).await
    }

    async fn mark(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
        self.core.mark(leases).await
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        // Most rounds have nothing to release.
        if leases.is_empty() {
            return;
        }
        let (done, released) = oneshot::channel();
        match self.releases.send(dispatch::Release { leases, done }).await {
            Ok(()) => drop(released.await),
            // The store is closed, and has released its other leases.
            Err(release) => self.core.release(release.leases).await,
        }
    }

    async fn wake(&self, vendor: &str) -> Result<(), StoreError> {
        match self.core.vendors.get(vendor) {
            Some(vendor) => self.core.index.wake(vendor).await,
            None => Ok(()),
        }
    }

    async fn settle(&self, lease: Lease, change: Change, attempt: Attempt) -> Result<Settled, Unsettled> {
        let (reply, answer) = oneshot::channel();
        let request = settle::Outcome { lease: Box::new(lease), change, attempt, reply };
        if let Err(request) = self.settles.send(request).await {
            request.give_back(group::closed());
        }
        answer.await.expect("every settle is answered, even when it cannot be stored")
    }

    async fn amend(&self, sees: &Sees, which: Which, now: Time, decide: Decide) -> Result<Amended, StoreError> {
        self.decide_on(sees, &which, now, &decide).await
    }

    async fn amend_all(
        &self,
        sees: &Sees,
        jobs: &[JobId],
        now: Time,
        decide: Decide,
    ) -> Result<Vec<Amended>, StoreError> {
        self.decide_on_all(sees, jobs, now, &decide).await
    }

    async fn erase(&self, sees: &Sees, id: JobId) -> Result<Erased, StoreError> {
        self.core.erase(sees, id).await
    }

    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        self.core.overdue(now, most).await
    }

    async fn reclaim(&self) -> Result<usize, StoreError> {
        self.core.reclaim().await
    }

    async fn roll_call(&self) -> Result<bool, StoreError> {
        self.core.roll_call().await.map(|()| true)
    }

    async fn call_helpers(&self, vendor: &str) {
        self.core.call_helpers(vendor).await;
    }

    fn looks_after(&self, vendor: &str) -> bool {
        self.core.homes.is_home_to(vendor) && !self.core.homes.is_quiet(vendor, self.core.clock.nanos())
    }

    async fn find(&self, sees: &Sees, id: JobId, with: With) -> Result<Option<Job>, StoreError> {
        let Some(mut found) = self.read(sees, id, with).await? else { return Ok(None) };
        self.core.show_leased(std::slice::from_mut(&mut found.job)).await;
        Ok(Some(found.job))
    }

    async fn attempts(&self, sees: &Sees, id: JobId) -> Result<Option<Attempts>, StoreError> {
        Ok(self.read(sees, id, With::NEITHER).await?.map(|found| found.attempts))
    }

    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
        submit::recall(&self.core, tenant, key).await
    }

    async fn list(&self, sees: &Sees, filter: &Filter, slice: Slice) -> Result<Page, StoreError> {
        self.core.list(sees, filter, slice).await
    }

    async fn failures(&self, sees: &Sees, vendor: Option<&str>, since: Time) -> Result<Failures, StoreError> {
        self.core.failures(sees, vendor, since).await
    }

    async fn prune(&self, before: Time) -> Result<bool, StoreError> {
        let keys_before = Time(self.core.clock.now().0 - i64::try_from(KEYS_KEPT.as_millis()).unwrap_or(0));
        let from = *lock(&self.prune_from);
        let next = self.core.mongo.prune_jobs(from, before).await?;
        *lock(&self.prune_from) = next.unwrap_or(JobId::MIN);
        let more_keys = self.core.mongo.prune_keys(keys_before).await?;
        Ok(next.is_some() || more_keys)
    }

    async fn ready(&self, vendor: &str) -> Result<Ready, StoreError> {
        self.core.ready(vendor).await
    }

    async fn backlog(&self, vendor: &str) -> Backlog {
        // For people: what is unknown is shown as nothing.
        self.core.backlog(vendor).await.unwrap_or_default()
    }

    async fn backlog_of(&self, vendor: &str, tenant: &Arc<str>) -> Backlog {
        self.core.backlog_of(vendor, tenant).await.unwrap_or_default()
    }

    async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError> {
        self.core.ahead(job).await
    }

    async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError> {
        self.core.due_in_lane(lane, most).await
    }

    fn signals(&self) -> &Signals {
        &self.core.signals
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }

    async fn close(&self) {
        self.submits.close();
        self.batches.close();
        self.settles.close();
        self.amends.close();
        self.finds.close();
        self.releases.close();
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        self.core.give_all_back().await;
        self.core.leave().await;
        self.core.mongo.close().await;
    }
}

impl Core {
    /// Under a clock that a test sets, the bound is so long that only what never answers reaches it.
    fn patience(&self) -> Duration {
        if self.clock.injected().is_some() { PATIENCE * 20 } else { PATIENCE }
    }

    /// Wakes those who wait for these jobs, in every process. A missed message is caught by a poll within a second.
    async fn announce_ended(&self, ids: &[JobId]) {
        if ids.is_empty() {
            return;
        }
        self.signals.announce_ended(ids);
        let _ = self.briefly(self.index.publish_ended(ids)).await;
    }

    /// Wakes those who announce ends, in every process. A missed message is caught by a poll.
    async fn announce_webhooks(&self) {
        self.signals.webhooks().notify_one();
        let _ = self.briefly(self.index.publish(Channel::Bells, WEBHOOKS)).await;
    }

    /// Aborts here if `FETCHGATE_FAULT` names this point.
    fn fault(&self, point: &str) {
        if self.faults.0.as_deref() == Some(point) {
            std::process::abort();
        }
    }
}

/// A panic elsewhere does not make a list wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
