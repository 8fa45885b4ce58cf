//! Settling: what attempts made of their jobs, many with one command. The fence in each update decides which of them count.
//!
//! Never loses an outcome: what MongoDB could not store goes back to the worker, which keeps the lease and retries.

use std::{collections::HashMap, sync::Arc};

use mongodb::bson::Document;
use tokio::sync::oneshot;

use super::{
    Core,
    dispatch::leaves_room,
    index::{
        leases::LeasedEntry,
        words::{CountChanges, Enqueue, Removal, RemoveIf},
    },
    truth::{docs::StoredJob, mongo::NotStored, updates},
};
use crate::{
    clock::Time,
    job::{
        Attempt, AttemptOutcome, Attempts, FailureCode, Job, JobId, Status,
        lifecycle::{Change, Next},
    },
    store::{Lease, Settled, StoreError, Unsettled, With},
};

/// How often data from a stale lease is tried to be stored while others change the job.
const TRIES: usize = 5;

/// An attempt's outcome that wants to be stored.
pub(super) struct Outcome {
    pub(super) lease: Box<Lease>,
    pub(super) change: Change,
    pub(super) attempt: Attempt,
    pub(super) reply: oneshot::Sender<Result<Settled, Unsettled>>,
}

impl Outcome {
    /// What it adds to a statement: the result, and all attempts so far.
    pub(super) fn bytes(&self, core: &Core) -> usize {
        let result = match &self.change.next {
            Next::Complete { result } => result.len(),
            _ => 0,
        };
        let ticket = self.change.ticket.as_ref().map_or(0, String::len);
        let fetch = self.change.fetch.as_ref().map_or(0, |fetch| fetch.as_text().len());
        result + ticket + fetch + core.leases.weight(&self.lease) + updates::SHORT_FIELDS
    }

    /// Whether this is what is stored in the place of an outcome that was too large.
    fn is_said_too_large(&self) -> bool {
        matches!(&self.change.next, Next::Failed(why) if why.code == FailureCode::ResponseTooLarge)
    }

    /// In the place of an outcome that is too large: that it is.
    fn said_too_large(self, why: &str) -> Outcome {
        tracing::error!(request_id = %self.lease.job.id, why, "its outcome is larger than MongoDB keeps; the job fails");
        let change = updates::too_large(&self.lease.job, &self.change);
        let detail = Some("the outcome is larger than the store keeps".to_owned());
        let attempt = Attempt { outcome: AttemptOutcome::Refused, detail, ..self.attempt };
        Outcome { change, attempt, ..self }
    }

    pub(super) fn give_back(self, why: StoreError) {
        let Outcome { lease, change, attempt, reply } = self;
        let _ = reply.send(Err(Unsettled { lease, change, attempt, why }));
    }
}

/// What was stored of a request: the job as it was and as it is now.
enum Took {
    Change(Box<Job>),
    /// From a stale lease, on top of what others had made of the job.
    StaleData {
        was: Box<Job>,
        is: Box<Job>,
    },
    /// Nothing; the job as it is, if it is there.
    Nothing(Option<Box<Job>>),
}

pub(super) async fn run(core: Arc<Core>, requests: Vec<Outcome>) {
    let now = core.clock.now();
    let all_leased: Vec<Option<LeasedEntry>> =
        requests.iter().map(|request| core.leases.begin_settling(&request.lease)).collect();
    match store(&core, &requests, &all_leased, now).await {
        Ok(took) => {
            core.fault("settled");
            // Read again: in a new index entries have new names.
            let all_leased: Vec<Option<LeasedEntry>> =
                requests.iter().map(|request| core.leases.remove(&request.lease)).collect();
            update_index(&core, &requests, &all_leased, &took).await;
            for (request, took) in requests.into_iter().zip(took) {
                let settled = if matches!(took, Took::Nothing(_)) { Settled::TooLate } else { Settled::Stored };
                let _ = request.reply.send(Ok(settled));
            }
        }
        Err(NotStored::TooLarge(why)) if requests.len() > 1 => {
            tracing::debug!(why, jobs = requests.len(), "one of these outcomes is too large: each is stored alone");
            for request in requests {
                Box::pin(run(core.clone(), vec![request])).await;
            }
        }
        Err(NotStored::TooLarge(why)) if !requests.iter().any(Outcome::is_said_too_large) => {
            let requests = requests.into_iter().map(|request| request.said_too_large(&why)).collect();
            Box::pin(run(core, requests)).await;
        }
        Err(why) => {
            let why = StoreError::from(why);
            requests.into_iter().for_each(|request| request.give_back(why.clone()));
        }
    }
}

/// Writes all of them with one command. Usually each matches; if not, a read shows which did.
async fn store(
    core: &Core,
    requests: &[Outcome],
    all_leased: &[Option<LeasedEntry>],
    now: Time,
) -> Result<Vec<Took>, NotStored> {
    let after = |request: &Outcome| request.change.apply(&request.lease.job, request.lease.attempt, now);
    let mut updates = Vec::with_capacity(requests.len());
    for (request, leased) in requests.iter().zip(all_leased) {
        // A lease that is lost matches nothing.
        let (version, before) =
            leased.as_ref().map_or((-1, Attempts::default()), |leased| (leased.version, leased.attempts.clone()));
        let update = with_attempt(core, &request.lease.job, &after(request), before, &request.attempt);
        updates.push(updates::one(request.lease.job.id, version, update));
    }
    let matched = core.mongo.update_jobs(updates).await?;
    if matched == requests.len() {
        return Ok(requests.iter().map(|request| Took::Change(Box::new(after(request)))).collect());
    }
    let ids: Vec<JobId> = requests.iter().map(|request| request.lease.job.id).collect();
    let by_id = core.mongo.find_all(&ids, With::NEITHER).await?;
    let mut took = Vec::with_capacity(requests.len());
    for (request, leased) in requests.iter().zip(all_leased) {
        let found = by_id.get(&request.lease.job.id).cloned();
        // This statement, or the same one before it whose answer was lost.
        let name = settler(core, &request.attempt);
        let is_ours = |found: &StoredJob| {
            found.by.as_ref() == Some(&name)
                && leased.as_ref().is_some_and(|leased| found.version == leased.version + 1)
        };
        took.push(match found {
            Some(found) if is_ours(&found) => Took::Change(Box::new(after(request))),
            found => take_stale(core, request, found, now).await?,
        });
    }
    Ok(took)
}

/// Stores data from a stale lease while the job has not ended: the vendor was paid for it.
async fn take_stale(
    core: &Core,
    request: &Outcome,
    mut found: Option<StoredJob>,
    now: Time,
) -> Result<Took, NotStored> {
    for _ in 0..TRIES {
        let Some(StoredJob { job: was, version, attempts, .. }) = found else { return Ok(Took::Nothing(None)) };
        let is_of = (was.attempt, was.run) == (request.lease.attempt, request.lease.job.run);
        if was.status.has_ended() && is_of && attempts.iter().all(|attempt| *attempt != request.attempt) {
            // The job ended by other means during this attempt, so its outcome changes nothing; the attempt is recorded.
            let update = with_attempt(core, &was, &was, attempts, &request.attempt);
            if core.mongo.update_job(updates::unchanged(was.id, version), update).await? {
                return Ok(Took::Nothing(Some(Box::new(was))));
            }
            found = core.mongo.find(was.id, With::NEITHER).await?;
            continue;
        }
        if was.status.has_ended() || request.change.next.end() != Some(Status::Complete) {
            return Ok(Took::Nothing(Some(Box::new(was))));
        }
        let is = request.change.apply(&was, request.lease.attempt, now);
        let update = with_attempt(core, &was, &is, attempts, &request.attempt);
        if core.mongo.update_job(updates::unchanged(was.id, version), update).await? {
            return Ok(Took::StaleData { was: Box::new(was), is: Box::new(is) });
        }
        found = core.mongo.find(was.id, With::NEITHER).await?;
    }
    Err(StoreError::Unavailable("too many others change the same job".into()).into())
}

/// The update that makes a job what it is after an attempt, with that attempt on record and our name to it.
fn with_attempt(core: &Core, was: &Job, job: &Job, mut before: Attempts, attempt: &Attempt) -> Document {
    before.push(attempt.clone());
    let mut update = updates::update(was, job);
    updates::set(&mut update, "attempts", updates::attempts_text(&before));
    updates::set(&mut update, "by", settler(core, attempt));
    update
}

/// Who settled by this attempt.
fn settler(core: &Core, attempt: &Attempt) -> String {
    format!("{}/{}", core.process, attempt.n)
}

/// What outcomes change in the index of one vendor.
#[derive(Default)]
struct IndexChanges {
    counts: CountChanges,
    /// Others may have room now.
    ring: bool,
    removals: Vec<Removal>,
    ended: Vec<JobId>,
}

/// Updates the index, vendor by vendor, and wakes the callers that wait for these jobs.
async fn update_index(core: &Core, requests: &[Outcome], all_leased: &[Option<LeasedEntry>], took: &[Took]) {
    let mut by_vendor: HashMap<&str, IndexChanges> = HashMap::new();
    let mut owes_webhooks = false;
    for ((request, leased), took) in requests.iter().zip(all_leased).zip(took) {
        let (was, is, which) = match took {
            // After a loss of the index another process may have claimed the job. Its call is on record, so only we settle it.
            Took::Change(is) if request.lease.called_at.is_some() => {
                (Some(&request.lease.job), Some(&**is), RemoveIf::Any)
            }
            Took::Change(is) => (Some(&request.lease.job), Some(&**is), RemoveIf::Leased),
            Took::StaleData { was, is } => (Some(&**was), Some(&**is), RemoveIf::Any),
            // Whoever changed the job has changed the counts.
            Took::Nothing(is) => (is.as_deref(), is.as_deref(), RemoveIf::Leased),
        };
        let nothing = matches!(took, Took::Nothing(_));
        let changes = by_vendor.entry(&request.lease.job.lane.vendor).or_default();
        let now = is.and_then(Job::live_stage);
        changes.counts.add(was, is);
        changes.ring |= leaves_room(now);
        if now.is_none() && !nothing {
            changes.ended.push(request.lease.job.id);
            owes_webhooks |= is.is_some_and(Job::owes_webhook);
        }
        let next = is.filter(|job| job.needs_call()).map(Enqueue::of);
        // Another lease of ours may be on the same entry by now.
        if let Some(leased) =
            leased.as_ref().filter(|leased| !(nothing && core.leases.has_later(&request.lease, leased)))
        {
            changes.removals.push(Removal { entry: leased.entry.clone(), which, next });
        }
    }
    for (name, IndexChanges { counts, ring, removals, ended }) in by_vendor {
        let Some(vendor) = core.vendors.get(name) else { continue };
        let ring = ring && vendor.open.is_some();
        if ring || removals.iter().any(|removal| removal.next.is_some()) {
            core.homes.note_change(name);
        }
        if core.briefly(core.index.remove(vendor, counts, ring, &removals, &ended)).await.is_err() {
            core.remove_later(name, removals);
        }
        core.signals.announce_ended(&ended);
    }
    if owes_webhooks {
        // Whoever settles is a worker, and workers announce ends.
        core.signals.webhooks().notify_one();
    }
}
