//! Submitting: many jobs in one insert, then their ids into the index.
//!
//! Never answers before MongoDB has the jobs on a majority's disks. Redis only gets a hint: a sweep finds jobs that are missing there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use mongodb::bson::{Bson, Document, doc};
use tokio::sync::oneshot;

use super::{
    Core,
    index::words::{CountChanges, Enqueue, StreamNo},
    truth::{
        docs::{self, JobDoc},
        mongo::{self, PATIENCE, within},
    },
};
use crate::{
    clock::Time,
    job::{Idempotency, JobId, NewJob, Stage},
    store::{StoreError, Submitted, With, room::Load},
};

/// Jobs in one script: Redis does nothing else meanwhile.
const SLICE: usize = 1000;

/// Jobs that somebody wants stored.
pub(super) struct Submission {
    pub(super) jobs: Vec<NewJob>,
    pub(super) reply: oneshot::Sender<Result<Vec<Submitted>, StoreError>>,
}

impl Submission {
    pub(super) fn bytes(&self) -> usize {
        self.jobs.iter().map(|job| job.payload.len() + 512).sum()
    }
}

/// Stores the jobs of all these requests, and answers each.
pub(super) async fn run(core: Arc<Core>, requests: Vec<Submission>) {
    // A caller that has gone meanwhile got an error, and may have sent its jobs again.
    let requests: Vec<Submission> = requests.into_iter().filter(|request| !request.reply.is_closed()).collect();
    let sizes: Vec<usize> = requests.iter().map(|request| request.jobs.len()).collect();
    let (jobs, replies): (Vec<_>, Vec<_>) = requests.into_iter().map(|request| (request.jobs, request.reply)).unzip();
    let stored = store(&core, jobs.into_iter().flatten().collect()).await;
    let mut outcomes = stored.map(|outcomes| outcomes.into_iter());
    for (reply, size) in replies.into_iter().zip(sizes) {
        let answer = match &mut outcomes {
            Ok(outcomes) => Ok(outcomes.by_ref().take(size).collect()),
            Err(error) => Err(error.clone()),
        };
        // An error means that the caller has gone.
        let _ = reply.send(answer);
    }
}

async fn store(core: &Core, mut jobs: Vec<NewJob>) -> Result<Vec<Submitted>, StoreError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let now = core.clock.now();
    let outcomes = remember_keys(core, &jobs, now).await?;
    let mut missing = missing(core, &jobs, &outcomes).await?;
    // A key without its job: the process that wrote it died before it wrote the job, which is this one.
    let mut is_new: Vec<bool> = Vec::with_capacity(jobs.len());
    for (job, outcome) in jobs.iter_mut().zip(&outcomes) {
        is_new.push(match outcome {
            Submitted::New(_) => true,
            Submitted::Known(id) if missing.remove(id) => {
                job.id = *id;
                true
            }
            _ => false,
        });
    }
    let new: Vec<NewJob> = jobs.into_iter().zip(is_new).filter_map(|(job, is_new)| is_new.then_some(job)).collect();
    let (by_vendor, loads) = (to_enqueue(&new), loads(&new));
    insert(core, new).await?;
    core.fault("inserted");
    update_index(core, by_vendor, &loads).await;
    Ok(outcomes)
}

/// Stores the idempotency keys of jobs; for a key that is stored already, gives the job that it was stored for.
async fn remember_keys(core: &Core, jobs: &[NewJob], now: Time) -> Result<Vec<Submitted>, StoreError> {
    let mut outcomes: Vec<Submitted> = jobs.iter().map(|job| Submitted::New(job.id)).collect();
    let keyed: Vec<usize> = (0..jobs.len()).filter(|i| jobs[*i].idempotency.is_some()).collect();
    if keyed.is_empty() {
        return Ok(outcomes);
    }
    let mut documents = Vec::with_capacity(keyed.len());
    for job in keyed.iter().map(|i| &jobs[*i]) {
        let Some(key) = &job.idempotency else { continue };
        let name = doc! { "tenant": &*job.lane.tenant, "key": &key.key };
        let (hash, id) = (docs::binary(key.body_hash), docs::id_bson(job.id));
        documents.push(doc! { "_id": name, "body_hash": hash, "job": id, "at": now.0 });
    }
    let inserted = within(async { Ok(core.mongo.keys.insert_many(&documents).ordered(false).await) }).await?;
    let known = match inserted {
        Ok(_) => return Ok(outcomes),
        Err(error) => mongo::duplicates(error)?,
    };
    let names: Vec<Bson> = known.iter().filter_map(|i| documents[*i].get("_id").cloned()).collect();
    let found: Vec<Document> = within(async {
        use futures_util::TryStreamExt as _;
        core.mongo.keys.find(doc! { "_id": { "$in": names } }).max_time(PATIENCE).await?.try_collect().await
    })
    .await?;
    let found: HashMap<(&str, &str), &Document> = found.iter().filter_map(|key| Some((name_of(key)?, key))).collect();
    for i in known {
        let job = &jobs[keyed[i]];
        let Some(key) = &job.idempotency else { continue };
        // One that was forgotten between the two statements is as good as new to the next who asks.
        let gone = || StoreError::Unavailable("an idempotency key was just forgotten; send the job again".into());
        let before = found.get(&(&*job.lane.tenant, &*key.key)).ok_or_else(gone)?;
        outcomes[keyed[i]] = came_before(before, key)?;
    }
    Ok(outcomes)
}

/// What a stored key means for another submission under the same key.
fn came_before(before: &Document, key: &Idempotency) -> Result<Submitted, StoreError> {
    let no_job = || StoreError::Corrupt("an idempotency key names no job".into());
    match before.get_binary_generic("body_hash") {
        Ok(hash) if *hash == key.body_hash => Ok(Submitted::Known(docs::id_in(before, "job").ok_or_else(no_job)?)),
        _ => Ok(Submitted::KeyReused),
    }
}

/// What came under a key before.
pub(super) async fn recall(core: &Core, tenant: &str, key: &Idempotency) -> Result<Option<Submitted>, StoreError> {
    let name = doc! { "_id": { "tenant": tenant, "key": &key.key } };
    let found = within(async { core.mongo.keys.find_one(name).max_time(PATIENCE).await }).await?;
    found.map(|before| came_before(&before, key)).transpose()
}

fn name_of(key: &Document) -> Option<(&str, &str)> {
    let name = key.get_document("_id").ok()?;
    Some((name.get_str("tenant").ok()?, name.get_str("key").ok()?))
}

/// The jobs that came before by their keys and were never written.
async fn missing(core: &Core, jobs: &[NewJob], outcomes: &[Submitted]) -> Result<HashSet<JobId>, StoreError> {
    let own: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
    let known = outcomes.iter().filter_map(|outcome| match outcome {
        Submitted::Known(id) if !own.contains(id) => Some(*id),
        _ => None,
    });
    let mut missing: HashSet<JobId> = known.collect();
    if !missing.is_empty() {
        let ids: Vec<JobId> = missing.iter().copied().collect();
        let found = core.mongo.find_all(&ids, With::NEITHER).await?;
        missing.retain(|id| !found.contains_key(id));
    }
    if !missing.is_empty() {
        // Those may have been run to their end, and deleted since.
        let pruned = core.mongo.pruned_up_to().await?;
        missing.retain(|id| *id >= pruned);
    }
    if !missing.is_empty() {
        let ids: Vec<JobId> = missing.iter().copied().collect();
        for erased in core.mongo.which_were_erased(&ids).await? {
            missing.remove(&erased);
        }
    }
    Ok(missing)
}

/// What the index gets of new jobs, by vendor.
fn to_enqueue(jobs: &[NewJob]) -> BTreeMap<Arc<str>, Vec<Enqueue>> {
    let mut by_vendor: BTreeMap<Arc<str>, Vec<Enqueue>> = BTreeMap::new();
    for job in jobs {
        let stream = StreamNo::new(job.lane.priority, Stage::Call);
        let enqueue = Enqueue { stream, tenant: job.lane.tenant.clone(), due_at: job.due_at, id: job.id };
        by_vendor.entry(job.lane.vendor.clone()).or_default().push(enqueue);
    }
    by_vendor.values_mut().for_each(|jobs| jobs.sort_by_key(|job| (job.due_at, job.id)));
    by_vendor
}

/// How much the new jobs of each vendor are.
fn loads(jobs: &[NewJob]) -> HashMap<Arc<str>, Load> {
    let mut loads: HashMap<Arc<str>, Load> = HashMap::new();
    for job in jobs {
        let load = loads.entry(job.lane.vendor.clone()).or_default();
        *load = load.plus(Load::of_new(job));
    }
    loads
}

async fn insert(core: &Core, jobs: Vec<NewJob>) -> Result<(), StoreError> {
    if jobs.is_empty() {
        return Ok(());
    }
    let documents: Vec<JobDoc> = jobs.into_iter().map(JobDoc::new).collect();
    let inserted = within(async { Ok(core.mongo.jobs.insert_many(&documents).ordered(false).await) }).await?;
    match inserted {
        Ok(_) => Ok(()),
        // Somebody with the same key wrote the same job first.
        Err(error) => mongo::duplicates(error).map(drop),
    }
}

/// Adds the jobs to the index. If that fails, their lanes are flagged later; if this process dies, a sweep finds the jobs.
async fn update_index(core: &Core, by_vendor: BTreeMap<Arc<str>, Vec<Enqueue>>, loads: &HashMap<Arc<str>, Load>) {
    for (name, jobs) in by_vendor {
        let load = loads.get(&name).copied().unwrap_or_default();
        core.note_accepted(load);
        let Some(vendor) = core.vendors.get(&name) else { continue };
        core.homes.note_change(&name);
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let (live, bytes) = (count(load.jobs), count(load.bytes));
        let mut counts = CountChanges { waiting: live, live, open: 0, bytes };
        for slice in jobs.chunks(SLICE) {
            if core.briefly(core.index.enqueue(vendor, std::mem::take(&mut counts), slice)).await.is_err() {
                core.flag_later(&name, slice.iter().map(|job| (job.stream, job.tenant.clone())));
            }
        }
    }
}
