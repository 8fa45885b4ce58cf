//! What callers read: jobs by their ids (requests that come together share one statement), lists, and how many jobs wait.
//!
//! Never decides what is shown of a job, and never reads more than its bounds say.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{RawDocumentBuf, doc},
    options::Hint,
};
use tokio::sync::oneshot;

use super::{
    Core,
    truth::{
        docs::{self, StoredJob},
        mongo::{self, PATIENCE, within},
    },
};
use crate::{
    clock::Time,
    job::{FailureCode, Job, JobId, Status},
    store::{
        Backlog, Filter, Page, Sees, Slice, StoreError, With,
        failures::{Counting, Failures, MOST_EXAMINED},
    },
};

/// After this time failures are counted no further.
const COUNTING: Duration = Duration::from_secs(2);

/// A job that somebody wants to see.
pub(super) struct Lookup {
    pub(super) id: JobId,
    pub(super) with: With,
    pub(super) reply: oneshot::Sender<Result<Option<StoredJob>, StoreError>>,
}

/// Reads all of them, by what is wanted of them, and answers each.
pub(super) async fn run(core: Arc<Core>, requests: Vec<Lookup>) {
    let mut by_want: HashMap<(bool, bool), Vec<Lookup>> = HashMap::new();
    for request in requests {
        by_want.entry((request.with.payload, request.with.result)).or_default().push(request);
    }
    for ((payload, result), requests) in by_want {
        let with = With { payload, result };
        // One by its id is a simpler statement than several.
        let found = match &*requests {
            [one] => core
                .mongo
                .find(one.id, with)
                .await
                .map(|found| found.map(|found| (one.id, Ok(found))).into_iter().collect()),
            many => core.mongo.find_each(&many.iter().map(|one| one.id).collect::<Vec<_>>(), with).await,
        };
        for request in requests {
            let answer = match &found {
                // The same job may be requested twice.
                Ok(found) => found.get(&request.id).cloned().transpose(),
                Err(error) => Err(error.clone()),
            };
            // A caller that has gone away does not mind.
            let _ = request.reply.send(answer);
        }
    }
}

impl Core {
    /// A leased job is being processed, which only the index knows.
    pub(super) async fn show_leased(&self, jobs: &mut [Job]) {
        let mut by_vendor: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (i, job) in jobs.iter().enumerate().filter(|(_, job)| job.status == Status::Pending) {
            by_vendor.entry(job.lane.vendor.clone()).or_default().push(i);
        }
        for (vendor, pending) in by_vendor {
            let ids: Vec<JobId> = pending.iter().map(|i| jobs[*i].id).collect();
            // While Redis is unavailable, a leased job is shown as MongoDB has it.
            let Ok(leased) = self.briefly(self.index.leased(&vendor, &ids)).await else { continue };
            for (i, _) in pending.into_iter().zip(leased).filter(|(_, is_leased)| *is_leased) {
                jobs[i].status = Status::Processing;
            }
        }
    }

    /// Looks at a bounded number of jobs from the newest on, and keeps those that match. The index is named: with another one, the server would
    /// pass by the jobs of all other tenants, or all jobs that have a result.
    pub(super) async fn list(&self, sees: &Sees, filter: &Filter, slice: Slice) -> Result<Page, StoreError> {
        let (from, below) = filter.ids(slice.before);
        let mut range = doc! { "_id": { "$lt": docs::id_bson(below), "$gte": docs::id_bson(from) } };
        let codes: Vec<&str> = filter.codes().into_iter().map(FailureCode::as_str).collect();
        let first = if let Some(tenant) = filter.only_tenant(sees) {
            range.insert("tenant", tenant);
            Some("tenant")
        } else if !codes.is_empty() {
            range.insert("failure.code", doc! { "$in": codes });
            Some("failure.code")
        } else {
            None
        };
        let without = doc! { "payload": 0, "result": 0, "attempts": 0 };
        let jobs = self.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find(range).sort(doc! { "_id": -1 }).limit(i64::try_from(slice.examine).unwrap_or(i64::MAX));
        let mut find = find.projection(without).max_time(PATIENCE).batch_size(500);
        if let Some(field) = first {
            find = find.hint(Hint::Keys(mongo::by_id_in(field)));
        }
        let mut found = within(async { find.await }).await?;
        let (mut page, mut last) = (Page::default(), None);
        while page.jobs.len() < slice.most {
            let (mut some, mut read) = (Vec::with_capacity(500), 0);
            while read < 500 {
                let Some(job) = within(found.try_next()).await? else { break };
                read += 1;
                let Some(id) = mongo::id_of(&job) else { continue };
                last = Some(id);
                some.extend(self.mongo.unreadable.skip(id, mongo::read(&job)).map(|found| found.job));
            }
            self.show_leased(&mut some).await;
            page.examined += read;
            let fits = |job: &Job| sees.includes(&job.lane.tenant) && filter.matches(job);
            page.jobs.extend(some.into_iter().filter(fits));
            if read < 500 {
                break;
            }
        }
        // If one of the bounds ended the walk, there may be more.
        if page.jobs.len() >= slice.most {
            page.jobs.truncate(slice.most);
            page.next = page.jobs.last().map(|job| job.id);
        } else if page.examined == slice.examine {
            page.next = last;
        }
        Ok(page)
    }

    /// Counts jobs that ended without a result, newest first.
    pub(super) async fn failures(
        &self,
        sees: &Sees,
        vendor: Option<&str>,
        since: Time,
    ) -> Result<Failures, StoreError> {
        // Both conditions as the index has them: `failure` alone is also what was wrong with the last call of a job that goes on.
        let ended = doc! { "finished_at": { "$gte": since.0 }, "failure": { "$exists": true } };
        let fields = doc! { "vendor": 1, "tenant": 1, "finished_at": 1, "failure.code": 1, "failure.message": 1 };
        let jobs = self.mongo.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find(ended).sort(doc! { "finished_at": -1 }).projection(fields).max_time(PATIENCE);
        let find = find.limit(i64::try_from(MOST_EXAMINED).unwrap_or(i64::MAX)).batch_size(5_000);
        let (mut found, until) = (within(async { find.await }).await?, Instant::now() + COUNTING);
        let mut counting = Counting::new(since);
        while Instant::now() < until {
            let Some(job) = within(found.try_next()).await? else {
                let is_all = !counting.is_over();
                return Ok(counting.finish(is_all));
            };
            let Ok(ended_at) = job.get_i64("finished_at").map(Time) else { continue };
            counting.examined(ended_at);
            // A job that no version wrote is skipped elsewhere too.
            let (Ok(of_vendor), Ok(tenant), Ok(why), Some(id)) =
                (job.get_str("vendor"), job.get_str("tenant"), job.get_document("failure"), mongo::id_of(&job))
            else {
                continue;
            };
            let (Ok(code), Ok(message)) = (why.get_str("code"), why.get_str("message")) else { continue };
            let Some(code) = FailureCode::from_text(code) else { continue };
            if sees.includes(tenant) && vendor.is_none_or(|vendor| vendor == of_vendor) {
                counting.add(of_vendor, code, message, ended_at, id);
            }
        }
        Ok(counting.finish(false))
    }

    pub(super) async fn backlog(&self, name: &str) -> Result<Backlog, StoreError> {
        let Some(vendor) = self.vendors.get(name) else { return Ok(Backlog::default()) };
        let stats = self.briefly(self.index.stats(vendor)).await?;
        let heads = self.mongo.find_all(&stats.heads, With::NEITHER).await?;
        let waiting = heads.into_values().filter(|found| !found.job.status.has_ended()).map(|found| found.job.due_at);
        Ok(Backlog {
            waiting: stats.waiting.max(0).unsigned_abs().saturating_sub(stats.leased),
            leased: stats.leased,
            open: stats.open.max(0).unsigned_abs(),
            settled_at: stats.settled_at,
            oldest_due: waiting.min().filter(|due| *due <= self.clock.now()),
        })
    }
}
