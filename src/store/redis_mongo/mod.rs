//! The store of many processes: MongoDB is the truth, Redis Streams a short index of what wants to go.
//!
//! Never acknowledges what MongoDB does not have on a majority's disks, and never relies on Redis for anything but speed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::{TryStreamExt as _, future::BoxFuture};
use mongodb::bson::{RawDocumentBuf, doc};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::index::{VendorWork, key_of};
use self::{
    docs::Found,
    group::Group,
    index::{Channel, Dealt, Entry, GivenBack, Index, Line},
    mongo::{Mongo, within},
};
use super::{
    Amended, Backlog, Claim, Decide, Filter, Lease, Overdue, Page, Ready, Settled, Store, StoreError, Submitted,
    Unsettled, Which, With, signals::Signals,
};
use crate::{
    clock::{Clock, Time},
    job::{Attempt, Attempts, Idempotency, Job, JobId, NewJob, Status, lifecycle::Change, turn::Lanes},
    redis_link::Redis,
};

mod amend;
mod book;
mod calls;
mod dispatch;
mod docs;
mod feed;
mod find;
mod group;
mod index;
mod lanes;
mod mongo;
mod refill;
mod settle;
mod submit;

/// A submit is answered within this time, stored or not.
const SUBMIT_WITHIN: Duration = Duration::from_millis(900);
/// Nobody waits longer than this for the index to be told something.
const TELL_WITHIN: Duration = Duration::from_millis(250);
/// After the index could not be told, it is not even tried for this long.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Lanes and entries that the index is to be told about later, at most; sweeps and lapses find the others.
const MOST_UNTOLD: usize = 10_000;
/// How old the number of jobs may be that decides whether there are too many.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Idempotency keys are kept this long.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Rows that one page of a list looks at, at most.
const EXAMINED: i64 = 5000;

/// The store over Redis Streams and MongoDB.
pub struct RedisMongo {
    core: Arc<Core>,
    submits: Group<submit::Request>,
    settles: Group<settle::Request>,
    amends: Group<amend::Request>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    stop: CancellationToken,
    max_waiting: u64,
    finds: Group<find::Request>,
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
    /// A name for this process, among all that there ever were.
    process: String,
    holds: Mutex<HashMap<(JobId, u32), Hold>>,
    /// By vendor: which index we last saw.
    epochs: Mutex<HashMap<Arc<str>, String>>,
    untold: Mutex<Untold>,
    /// What the index would not take back while it was away: never before this process has stopped claiming, lest it is ours again.
    ungiven: Mutex<HashMap<Arc<str>, Vec<GivenBack>>>,
    /// When the index last could not be told something.
    silent: Mutex<Option<Instant>>,
    /// Vendors whose streams run dry.
    low: Mutex<BTreeSet<Arc<str>>>,
    /// By lane: how far it was read for the streams.
    reaches: Mutex<HashMap<String, refill::Reach>>,
    /// What the index could not be told of entries that have been dealt with.
    undealt: Mutex<BTreeMap<Arc<str>, Vec<Dealt>>>,
    live: Mutex<Live>,
    /// By vendor: what waits in its lanes, as it was last read.
    seen: Mutex<HashMap<Arc<str>, lanes::Seen>>,
    /// Vendors whose lanes have to be counted anew, and how far that is.
    counting: Mutex<BTreeMap<Arc<str>, lanes::Counting>>,
    /// Rung when there is something to look after (see `feed`).
    cares: Notify,
    faults: Faults,
}

/// Lanes by vendor.
type Untold = BTreeMap<Arc<str>, BTreeSet<(Line, Arc<str>)>>;

/// What a lease is made of here.
#[derive(Debug, Clone)]
struct Hold {
    vendor: Arc<str>,
    entry: Entry,
    /// The fence.
    version: i64,
    /// So far, so that the settle writes them whole.
    attempts: Attempts,
    /// Its outcome is known and wants to be stored.
    settling: bool,
}

/// Jobs that have not ended, about.
#[derive(Default)]
struct Live {
    counted: u64,
    accepted_since: u64,
    at: Option<Instant>,
}

/// The point at which a test has a debug build die: `FETCHGATE_FAULT` names it.
struct Faults(Option<String>);

impl RedisMongo {
    /// Finds MongoDB and begins to listen to Redis, which need not be there yet.
    pub async fn open(
        uri: &str,
        database: &str,
        redis: Redis,
        vendors: Vec<VendorWork>,
        clock: Clock,
        max_waiting: u64,
    ) -> Result<RedisMongo, StoreError> {
        let connecting: BoxFuture<'_, _> = Box::pin(Mongo::open(uri, database));
        let process = format!("{:016x}", fastrand::u64(..));
        let core = Arc::new(Core {
            mongo: connecting.await?,
            index: Index::new(redis, database, &process, clock.clone()),
            signals: Signals::new(vendors.iter().map(|vendor| vendor.name.clone())),
            vendors: vendors.into_iter().map(|vendor| (vendor.name.clone(), vendor)).collect(),
            clock,
            process,
            holds: Mutex::default(),
            epochs: Mutex::default(),
            untold: Mutex::default(),
            ungiven: Mutex::default(),
            silent: Mutex::default(),
            low: Mutex::default(),
            reaches: Mutex::default(),
            undealt: Mutex::default(),
            live: Mutex::default(),
            seen: Mutex::default(),
            counting: Mutex::default(),
            cares: Notify::new(),
            faults: Faults(std::env::var("FETCHGATE_FAULT").ok().filter(|_| cfg!(debug_assertions))),
        });
        for vendor in core.vendors.keys() {
            // The first submit finds an index. While Redis is away the first look opens it.
            let opening: BoxFuture<'_, _> = Box::pin(core.ready(vendor));
            if let Err(error) = core.told(opening).await {
                tracing::warn!(%error, "jobs are accepted and no vendor is called until Redis is there");
                break;
            }
        }
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(core.clone().listen(stop.clone()));
        tasks.spawn(core.clone().look_after(stop.clone()));
        let of = |core: &Arc<Core>| core.clone();
        let (submitting, settling, amending) = (of(&core), of(&core), of(&core));
        let (finding, releasing) = (of(&core), of(&core));
        let finds = Group::new(&mut tasks, 1, |_| 0, move |many| find::run(of(&finding), many));
        // A batch of thousands does not keep a single job waiting.
        let submits = Group::new(&mut tasks, 2, submit::Request::bytes, move |many| submit::run(of(&submitting), many));
        let settles = Group::new(&mut tasks, 1, settle::Request::bytes, move |many| settle::run(of(&settling), many));
        let amends = Group::new(&mut tasks, 1, amend::Request::bytes, move |many| amend::run(of(&amending), many));
        // Permits are missed many at a time, when the machine stood still.
        let releases = Group::new(&mut tasks, 1, |_| 0, move |many| dispatch::release(of(&releasing), many));
        let (tasks, prune_from) = (tokio::sync::Mutex::new(tasks), Mutex::new(JobId::MIN));
        Ok(RedisMongo { core, submits, settles, amends, finds, releases, tasks, stop, max_waiting, prune_from })
    }

    async fn read(&self, id: JobId, with: With) -> Result<Option<Found>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.finds.send(find::Request { id, with, reply }).await.map_err(|_| group::closed())?;
        answer.await.unwrap_or_else(|_| Err(group::closed()))
    }

    /// Whether there is room for so many more, by a count that is at most a second old.
    async fn has_room(&self, more: u64) -> bool {
        let fits = |live: &Live| live.counted + live.accepted_since + more <= self.max_waiting;
        {
            let live = lock(&self.core.live);
            if fits(&live) && live.at.is_some_and(|at| at.elapsed() < COUNT_EVERY) {
                return true;
            }
        }
        let mut counted = 0;
        for vendor in self.core.vendors.values() {
            // Nobody can tell while Redis is away: then nobody is refused.
            let Ok(stats) = self.core.told(self.core.index.stats(vendor)).await else { return true };
            counted += stats.live.max(0).unsigned_abs();
        }
        let mut live = lock(&self.core.live);
        *live = Live { counted, accepted_since: 0, at: Some(Instant::now()) };
        fits(&live)
    }
}

#[async_trait]
impl Store for RedisMongo {
    async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
        if !self.has_room(jobs.len() as u64).await {
            return Ok(vec![Submitted::OverCapacity; jobs.len()]);
        }
        // A large batch takes its time; a job is stored or refused within a second.
        let within = SUBMIT_WITHIN + Duration::from_millis(jobs.len() as u64);
        let (reply, answer) = oneshot::channel();
        let submitted = async {
            self.submits.send(submit::Request { jobs, reply }).await.map_err(|_| group::closed())?;
            answer.await.unwrap_or_else(|_| Err(group::closed()))
        };
        let late = || StoreError::Unavailable("MongoDB does not answer".into());
        tokio::time::timeout(within, submitted).await.unwrap_or_else(|_| Err(late()))
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        self.core.claim(claim).await
    }

    async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        // As a rule a round has none to give back, and waits for nobody else's.
        if leases.is_empty() {
            return;
        }
        let (done, told) = oneshot::channel();
        match self.releases.send(dispatch::Release { leases, done }).await {
            Ok(()) => drop(told.await),
            // The store is closed, and gives back all that it holds.
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
        let request = settle::Request { lease: Box::new(lease), change, attempt, reply };
        if let Err(request) = self.settles.send(request).await {
            request.give_back(group::closed());
        }
        answer.await.expect("every settle is answered, even when it cannot be stored")
    }

    async fn amend(
        &self,
        which: Which,
        now: Time,
        attempt: Option<Attempt>,
        decide: Decide,
    ) -> Result<Amended, StoreError> {
        self.decide_on(&which, now, attempt, decide).await
    }

    async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        self.core.overdue(now, most).await
    }

    async fn reclaim(&self) -> Result<usize, StoreError> {
        self.core.reclaim().await
    }

    async fn find(&self, id: JobId, with: With) -> Result<Option<Job>, StoreError> {
        let Some(mut found) = self.read(id, with).await? else { return Ok(None) };
        self.core.show_held(std::slice::from_mut(&mut found.job)).await;
        Ok(Some(found.job))
    }

    async fn attempts(&self, id: JobId) -> Result<Option<Attempts>, StoreError> {
        Ok(self.read(id, With::NEITHER).await?.map(|found| found.attempts))
    }

    async fn recall(&self, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
        submit::recall(&self.core, tenant, key).await
    }

    async fn list(&self, filter: Filter) -> Result<Page, StoreError> {
        self.core.list(&filter).await
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
        // For people: what cannot be told is not shown.
        self.core.backlog(vendor).await.unwrap_or_default()
    }

    async fn lanes(&self, vendor: &str, due_by: Time) -> Result<Option<Arc<Lanes>>, StoreError> {
        self.core.lanes(vendor, due_by).await
    }

    async fn ahead(&self, job: &Job) -> Result<Option<u64>, StoreError> {
        self.core.ahead(job).await
    }

    fn signals(&self) -> &Signals {
        &self.core.signals
    }

    async fn failed(&self) -> String {
        std::future::pending().await
    }

    async fn close(&self) {
        self.submits.close();
        self.settles.close();
        self.amends.close();
        self.finds.close();
        self.releases.close();
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        self.core.give_all_back().await;
        self.core.mongo.close().await;
    }
}

impl Core {
    /// A new lease on this job. Its number is no other's that this process still has in hand: after a loss, or after a change from
    /// outside that did not know of the lease, an earlier one may have the number that would be next.
    fn hold(&self, job: Job, hold: Hold) -> Lease {
        let mut holds = lock(&self.holds);
        let mut attempt = job.attempt + 1;
        while holds.contains_key(&(job.id, attempt)) {
            attempt += 1;
        }
        if holds.is_empty() {
            self.cares.notify_one();
        }
        holds.insert((job.id, attempt), hold);
        Lease { job, attempt }
    }

    fn let_go(&self, lease: &Lease) -> Option<Hold> {
        lock(&self.holds).remove(&(lease.job.id, lease.attempt))
    }

    /// From here on the lease is kept until it is let go.
    fn begin_settling(&self, lease: &Lease) -> Option<Hold> {
        let mut holds = lock(&self.holds);
        let hold = holds.get_mut(&(lease.job.id, lease.attempt))?;
        hold.settling = true;
        Some(hold.clone())
    }

    /// Whether a later lease of this process is on the same entry.
    fn holds_again(&self, lease: &Lease, hold: &Hold) -> bool {
        let id = lease.job.id;
        lock(&self.holds)
            .iter()
            .any(|((other, attempt), held)| *other == id && *attempt > lease.attempt && held.entry == hold.entry)
    }

    fn holds_of(&self, vendor: &str, only_settling: bool) -> Vec<Entry> {
        let holds = lock(&self.holds);
        let of = holds.values().filter(|hold| &*hold.vendor == vendor && (hold.settling || !only_settling));
        of.map(|hold| hold.entry.clone()).collect()
    }

    /// Entries that were entered anew have new names.
    fn rename(&self, entries: &[Entry], names: &[String]) {
        let renamed: HashMap<&Entry, &String> =
            entries.iter().zip(names).filter(|(_, name)| !name.is_empty()).collect();
        if renamed.is_empty() {
            return;
        }
        for hold in lock(&self.holds).values_mut() {
            if let Some(name) = renamed.get(&hold.entry) {
                hold.entry.name.clone_from(name);
            }
        }
    }

    fn epochs(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        lock(&self.epochs)
    }

    /// Streams of this vendor run dry: the next claim fills them first.
    fn note_low(&self, vendor: &VendorWork, is_low: bool) {
        if is_low {
            lock(&self.low).insert(vendor.name.clone());
        }
    }

    fn take_low(&self, vendor: &VendorWork) -> bool {
        lock(&self.low).remove(&vendor.name)
    }

    fn untold(&self) -> MutexGuard<'_, Untold> {
        lock(&self.untold)
    }

    fn tell_later(&self, vendor: &str, lanes: impl Iterator<Item = (Line, Arc<str>)>) {
        let mut untold = self.untold();
        if untold.values().map(BTreeSet::len).sum::<usize>() < MOST_UNTOLD {
            untold.entry(vendor.into()).or_default().extend(lanes);
            self.cares.notify_one();
        }
    }

    fn deal_later(&self, vendor: &str, dealt: impl IntoIterator<Item = Dealt>) {
        let mut undealt = lock(&self.undealt);
        let room = MOST_UNTOLD.saturating_sub(undealt.values().map(Vec::len).sum());
        undealt.entry(vendor.into()).or_default().extend(dealt.into_iter().take(room));
        self.cares.notify_one();
    }

    fn give_back_later(&self, vendor: &Arc<str>, back: Vec<GivenBack>) {
        let mut ungiven = lock(&self.ungiven);
        if ungiven.values().map(Vec::len).sum::<usize>() < MOST_UNTOLD {
            ungiven.entry(vendor.clone()).or_default().extend(back);
        }
    }

    /// Waits for the index to be told something, but not for long, and not at all when it has just not been there.
    async fn told<T>(&self, telling: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let silent = || StoreError::Unavailable("Redis does not answer".into());
        if lock(&self.silent).is_some_and(|since| since.elapsed() < TELL_AGAIN) {
            return Err(silent());
        }
        // On a clock that a test moves, how long something takes says nothing.
        let patience = if self.clock.injected().is_some() { TELL_WITHIN * 20 } else { TELL_WITHIN };
        let told = tokio::time::timeout(patience, telling).await.unwrap_or_else(|_| Err(silent()));
        if told.is_err() {
            *lock(&self.silent) = Some(Instant::now());
        }
        told
    }

    fn note_accepted(&self, jobs: u64) {
        lock(&self.live).accepted_since += jobs;
    }

    /// Wakes those who wait for these jobs, in every process. Who does not hear it looks within a second.
    async fn announce_ended(&self, ids: &[JobId]) {
        if ids.is_empty() {
            return;
        }
        self.signals.announce_ended(ids);
        let body: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        let _ = self.told(self.index.publish(Channel::Ended, &body)).await;
    }

    /// A job that a worker holds is being processed, which only the index knows.
    async fn show_held(&self, jobs: &mut [Job]) {
        let mut by_vendor: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (i, job) in jobs.iter().enumerate().filter(|(_, job)| job.status == Status::Pending) {
            by_vendor.entry(job.lane.vendor.clone()).or_default().push(i);
        }
        for (vendor, pending) in by_vendor {
            let ids: Vec<JobId> = pending.iter().map(|i| jobs[*i].id).collect();
            // While nobody can tell, a job says what MongoDB says.
            let Ok(held) = self.told(self.index.held(&vendor, &ids)).await else { continue };
            for (i, _) in pending.into_iter().zip(held).filter(|(_, is_held)| *is_held) {
                jobs[i].status = Status::Processing;
            }
        }
    }

    /// Looks at a bounded number of jobs from the newest on, and keeps those that match.
    async fn list(&self, filter: &Filter) -> Result<Page, StoreError> {
        let last = JobId::from_bytes([0xff; 16]);
        let before = filter.created_before.map(JobId::first_at);
        let below = [filter.before, before].into_iter().flatten().min().unwrap_or(last);
        let from = filter.created_after.map_or(JobId::from_bytes([0; 16]), JobId::first_at);
        let range = doc! { "_id": { "$lt": docs::id_bson(below), "$gte": docs::id_bson(from) } };
        let without = doc! { "payload": 0, "result": 0, "attempts": 0 };
        let jobs = self.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find(range).sort(doc! { "_id": -1 }).limit(EXAMINED).projection(without);
        let mut found = within(async { find.batch_size(500).await }).await?;
        let (mut page, mut examined, mut last_id) = (Page::default(), 0, None);
        while page.jobs.len() < filter.limit {
            let (mut slice, mut read) = (Vec::with_capacity(500), 0);
            while read < 500 {
                let Some(job) = within(found.try_next()).await? else { break };
                read += 1;
                slice.extend(mongo::told_if_unreadable(job.get("_id").ok(), mongo::read(&job)).map(|found| found.job));
            }
            self.show_held(&mut slice).await;
            let is_last = read < 500;
            for job in slice {
                if page.jobs.len() == filter.limit {
                    break;
                }
                examined += 1;
                last_id = Some(job.id);
                if filter.matches(&job) {
                    page.jobs.push(job);
                }
            }
            if is_last {
                break;
            }
        }
        // Having stopped early, whether by the limit or by the bound, there may be more.
        if page.jobs.len() == filter.limit || examined == EXAMINED {
            page.next = last_id;
        }
        Ok(page)
    }

    async fn backlog(&self, name: &str) -> Result<Backlog, StoreError> {
        let Some(vendor) = self.vendors.get(name) else { return Ok(Backlog::default()) };
        let stats = self.told(self.index.stats(vendor)).await?;
        let heads = self.mongo.find_all(&stats.heads, With::NEITHER).await?;
        let waiting = heads.into_values().filter(|found| !found.job.status.has_ended()).map(|found| found.job.due_at);
        Ok(Backlog {
            waiting: stats.waiting.max(0).unsigned_abs().saturating_sub(stats.held),
            leased: stats.held,
            open: stats.open.max(0).unsigned_abs(),
            oldest_due: waiting.min().filter(|due| *due <= self.clock.now()),
        })
    }

    /// What this process holds and will not settle is free for others at once.
    async fn give_all_back(&self) {
        let mut by_vendor = std::mem::take(&mut *lock(&self.ungiven));
        for (_, hold) in lock(&self.holds).drain() {
            by_vendor.entry(hold.vendor).or_default().push((hold.entry, "".into(), None));
        }
        for (name, back) in by_vendor {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if let Err(error) = self.index.release(vendor, &back).await {
                tracing::warn!(%error, "jobs could not be given back; they are free when their leases lapse");
            }
        }
    }

    /// Dies here if a test wants it so.
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
