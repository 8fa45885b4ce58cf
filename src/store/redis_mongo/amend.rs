//! Changes to a job from outside its attempts: callbacks, cancels, replays and alarms. One compare-and-set decides each.
//!
//! Never waits for a worker: a job that is being called can end here, and the fence refuses what the call brings later.

use std::{collections::HashMap, sync::Arc};

use futures_util::{
    TryStreamExt as _,
    future::{BoxFuture, join_all},
};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use tokio::sync::oneshot;

use super::{
    Core, RedisMongo,
    dispatch::leaves_room,
    group,
    index::words::{Amendment, CountChanges, Enqueue},
    truth::{
        docs::{self, StoredJob},
        mongo::{self, NotStored, PATIENCE, within},
        updates,
    },
};
use crate::{
    clock::Time,
    job::{Job, JobId, Stage},
    store::{Amended, Decide, Erased, Overdue, Sees, StoreError, Which, With},
};

/// Jobs of one request that are read, and then written, with one statement.
const TOGETHER: usize = 100;
/// How often a decision is retried because the job was changed meanwhile.
const TRIES: usize = 10;

/// A change that wants to be stored, if nobody else changes the job first. Those that come at the same time are stored together.
pub(super) struct Proposal {
    was: Job,
    is: Job,
    version: i64,
    update: Document,
    /// Who changed it: a name for this request.
    by: String,
    reply: oneshot::Sender<Result<bool, NotStored>>,
}

impl Proposal {
    pub(super) fn bytes(&self) -> usize {
        self.is.result.as_ref().map_or(0, |result| result.len()) + updates::size(&self.update)
    }
}

impl RedisMongo {
    /// Asks for the decision until it is stored, or is to leave the job as it is.
    pub(super) async fn decide_on(
        &self,
        sees: &Sees,
        which: &Which,
        now: Time,
        decide: &Decide,
    ) -> Result<Amended, StoreError> {
        let mut is_too_large = false;
        for _ in 0..TRIES {
            let found = match which {
                Which::Id(id) => self.read(sees, *id, With::NEITHER).await?,
                Which::Ticket { vendor, ticket } => self.core.mongo.find_by_ticket(vendor, ticket).await?,
            };
            let found = found.filter(|found| sees.includes(&found.job.lane.tenant));
            let Some(StoredJob { job: was, version, .. }) = found else { return Ok(Amended::Unknown) };
            let Some(mut change) = decide(&was) else { return Ok(Amended::Left(was)) };
            if is_too_large {
                change = updates::too_large(&was, &change);
            }
            // A worker that has leased it is fenced off by the attempt number.
            let n = was.attempt + u32::from(self.core.may_be_leased(&was).await);
            let is = change.apply(&was, n, now);
            // Its place is kept until it is stored.
            let mut room = None;
            if was.status.has_ended() && !is.status.has_ended() {
                let admitting: BoxFuture<'_, _> = Box::pin(self.admit_again(&is));
                room = Some(admitting.await?);
            }
            if let Some(Err(why)) = room {
                return Ok(Amended::NoRoom(was, why));
            }
            let by = format!("{}/{:x}", self.core.process, fastrand::u64(..));
            let mut update = updates::update(&was, &is);
            updates::set(&mut update, "by", by.clone());
            let (reply, answer) = oneshot::channel();
            let request = Proposal { was, is: is.clone(), version, update, by, reply };
            self.amends.send(request).await.map_err(|_| group::closed())?;
            match answer.await.unwrap_or_else(|_| Err(group::closed().into())) {
                Ok(true) => return Ok(Amended::Changed(is)),
                Ok(false) => {}
                Err(NotStored::TooLarge(_)) if !is_too_large => is_too_large = true,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable("too many others change the same job".into()))
    }

    /// The same for many jobs. Reads and writes that are made at the same time share statements. Gives what became of those before the first
    /// error.
    pub(super) async fn decide_on_all(
        &self,
        sees: &Sees,
        jobs: &[JobId],
        now: Time,
        decide: &Decide,
    ) -> Result<Vec<Amended>, StoreError> {
        let one = |id: &JobId| {
            let (which, id) = (Which::Id(*id), *id);
            async move {
                match self.decide_on(sees, &which, now, decide).await {
                    // It does not keep the others from being changed.
                    Err(StoreError::Corrupt(why)) => {
                        tracing::error!(request_id = %id, why, "a job cannot be read, and is left as it is");
                        Ok(Amended::Unknown)
                    }
                    amended => amended,
                }
            }
        };
        let mut amended = Vec::with_capacity(jobs.len());
        for some in jobs.chunks(TOGETHER) {
            for outcome in join_all(some.iter().map(one)).await {
                match outcome {
                    Ok(outcome) => amended.push(outcome),
                    Err(error) if amended.is_empty() => return Err(error),
                    Err(_) => return Ok(amended),
                }
            }
            // Where there is no room, each of the others would count once more what waits.
            if amended.iter().any(|outcome| matches!(outcome, Amended::NoRoom(..))) {
                break;
            }
        }
        Ok(amended)
    }
}

/// Stores all of them, publishes those that were stored, and answers each.
pub(super) async fn run(core: Arc<Core>, requests: Vec<Proposal>) {
    let stored = store(&core, &requests).await;
    if matches!(stored, Err(NotStored::TooLarge(_))) && requests.len() > 1 {
        // One of them. Alone, each is stored or not by its own size.
        for request in requests {
            Box::pin(run(core.clone(), vec![request])).await;
        }
        return;
    }
    if let Ok(stored) = &stored {
        let changed = requests.iter().zip(stored).filter(|(_, stored)| **stored);
        core.publish_changes(&changed.map(|(request, _)| (&request.was, &request.is)).collect::<Vec<_>>()).await;
    }
    for (i, request) in requests.into_iter().enumerate() {
        // An error means that the caller has gone.
        let _ = request.reply.send(stored.as_ref().map(|stored| stored[i]).map_err(Clone::clone));
    }
}

/// Writes all of them with one command. Usually each matches; if not, a read shows which did.
async fn store(core: &Core, requests: &[Proposal]) -> Result<Vec<bool>, NotStored> {
    let update = |request: &Proposal| updates::one(request.was.id, request.version, request.update.clone());
    let matched = core.mongo.update_jobs(requests.iter().map(update).collect()).await?;
    if matched == requests.len() {
        return Ok(vec![true; requests.len()]);
    }
    let ids: Vec<JobId> = requests.iter().map(|request| request.was.id).collect();
    let found = core.mongo.find_all(&ids, With::NEITHER).await?;
    let is_stored = |request: &Proposal| {
        let found = found.get(&request.was.id);
        found.is_some_and(|found| found.by.as_ref() == Some(&request.by))
    };
    Ok(requests.iter().map(is_stored).collect())
}

impl Core {
    /// Deletes a job that has ended, if nobody replays it meanwhile. No part of the index has it any more.
    pub(super) async fn erase(&self, sees: &Sees, id: JobId) -> Result<Erased, StoreError> {
        for _ in 0..TRIES {
            let found = self.mongo.find(id, With::NEITHER).await?;
            let Some(found) = found.filter(|found| sees.includes(&found.job.lane.tenant)) else {
                return Ok(Erased::Unknown);
            };
            if !found.job.status.has_ended() {
                return Ok(Erased::NotEnded(found.job.status));
            }
            if self.mongo.erase(id, found.version, self.clock.now()).await? {
                return Ok(Erased::Done);
            }
        }
        Err(StoreError::Unavailable("too many others change the same job".into()))
    }

    /// Whether a worker may have leased the job; yes while Redis is unavailable. A job that awaits a callback is not leased, whatever the
    /// index has: its call is over.
    async fn may_be_leased(&self, job: &Job) -> bool {
        if job.stage == Stage::Await {
            return false;
        }
        let leased = self.briefly(self.index.leased(&job.lane.vendor, &[job.id])).await;
        leased.map_or(true, |leased| leased.first() == Some(&true))
    }

    /// Updates the index, and wakes the callers that wait for these jobs. Each change is the job before and after.
    pub(super) async fn publish_changes(&self, changes: &[(&Job, &Job)]) {
        let mut by_vendor: HashMap<&str, (CountChanges, bool, Vec<Amendment>)> = HashMap::new();
        for (was, is) in changes {
            let (counts, ring, amended) = by_vendor.entry(&is.lane.vendor).or_default();
            counts.add(Some(was), Some(is));
            *ring |= leaves_room(is.live_stage());
            amended.push(Amendment { id: is.id, next: is.needs_call().then(|| Enqueue::of(is)) });
        }
        for (name, (counts, ring, amended)) in by_vendor {
            let Some(vendor) = self.vendors.get(name) else { continue };
            let ring = ring && vendor.open.is_some();
            self.homes.note_change(name);
            if self.briefly(self.index.amend(vendor, counts, ring, &amended)).await.is_err() {
                self.flag_later(name, amended.iter().filter_map(|one| Some(one.next.as_ref()?.lane())));
            }
        }
        let ended = changes.iter().filter(|(_, is)| is.status.has_ended());
        self.announce_ended(&ended.map(|(_, is)| is.id).collect::<Vec<_>>()).await;
        if changes.iter().any(|(_, is)| is.owes_webhook()) {
            self.announce_webhooks().await;
        }
    }

    pub(super) async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        let first = self.next_alarm(i64::MIN).await?;
        if first.is_none_or(|first| first > now) {
            return Ok(Overdue { jobs: Vec::new(), next_at: first });
        }
        let raw = self.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let due = raw.find(doc! { "alarm_at": docs::up_to(now) }).sort(doc! { "alarm_at": 1 });
        let due = due.projection(doc! { "payload": 0, "result": 0 }).max_time(PATIENCE);
        let mut due = within(async { due.await }).await?;
        let mut jobs = Vec::new();
        // Those that cannot be read stay where they are, before the others.
        while jobs.len() < most {
            let Some(job) = within(due.try_next()).await? else { break };
            let Some(id) = mongo::id_of(&job) else { continue };
            jobs.extend(self.mongo.unreadable.skip(id, mongo::read(&job)).map(|found| found.job.id));
        }
        Ok(Overdue { jobs, next_at: self.next_alarm(now.0).await? })
    }

    /// When the first alarm after this time goes off.
    async fn next_alarm(&self, after: i64) -> Result<Option<Time>, StoreError> {
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let find = jobs.find_one(doc! { "alarm_at": { "$gt": after } }).sort(doc! { "alarm_at": 1 });
        let find = find.projection(doc! { "alarm_at": 1 }).max_time(PATIENCE);
        let found = within(async { find.await }).await?;
        Ok(found.and_then(|job| job.get_i64("alarm_at").ok()).map(Time))
    }
}
