//! Changes to a job from outside its attempts: callbacks, cancels, replays and alarms. One compare-and-set decides each.
//!
//! Never waits for a worker: a job that is being called can end here, and the fence refuses what the call brings later.

use mongodb::bson::{Document, doc};

use super::{
    Core,
    dispatch::wanted,
    docs::{self, Found},
    index::Counts,
    mongo::within,
};
use crate::{
    clock::Time,
    job::{Job, Stage, lifecycle::Change},
    store::{Amended, Overdue, StoreError, Which, With},
};

/// How often a decision is asked again because somebody else changed the job meanwhile.
const TRIES: usize = 10;

impl Core {
    pub(super) async fn amend(
        &self,
        which: &Which,
        now: Time,
        decide: &(dyn Fn(&Job) -> Option<Change> + Send + Sync),
    ) -> Result<Amended, StoreError> {
        for _ in 0..TRIES {
            let Some(found) = self.which(which).await? else { return Ok(Amended::Unknown) };
            let Found { job: was, version, .. } = found;
            let Some(change) = decide(&was) else { return Ok(Amended::Left(was)) };
            // A worker that holds it loses it by the attempt number.
            let attempt = was.attempt + u32::from(self.may_be_held(&was).await);
            let is = change.apply(&was, attempt, now);
            if self.mongo.update_job(docs::unchanged(was.id, version), docs::update(&was, &is)).await? {
                self.tell_change(&was, &is).await;
                return Ok(Amended::Changed(is));
            }
        }
        Err(StoreError::Unavailable("too many others change the same job".into()))
    }

    /// Whether a worker holds the job. If nobody can tell, somebody may. One that waits for its answer is held by none: its call is over,
    /// which the index may not have heard yet.
    async fn may_be_held(&self, job: &Job) -> bool {
        if job.stage == Stage::Await {
            return false;
        }
        let held = self.told(self.index.held(&job.lane.vendor, &[job.id])).await;
        held.map_or(true, |held| held.first() == Some(&true))
    }

    async fn which(&self, which: &Which) -> Result<Option<Found>, StoreError> {
        match which {
            Which::Id(id) => self.mongo.find(*id, With { payload: false, result: false }).await,
            Which::Ticket { vendor, ticket } => self.mongo.find_by_ticket(vendor, ticket).await,
        }
    }

    /// Tells the index and those who wait for the job's end.
    pub(super) async fn tell_change(&self, was: &Job, is: &Job) {
        let mut counts = Counts::default();
        counts.add(Some(was), Some(is));
        let wants = is.wants_to_go().then(|| wanted(is));
        if let Some(vendor) = self.vendors.get(&is.lane.vendor) {
            // It may have been called, or open: now others may be.
            let ring = vendor.open.is_some() && !matches!(is.live_stage(), Some(Stage::Poll | Stage::Await));
            let told = self.told(self.index.amend(vendor, counts, ring, is.id, wants.as_ref())).await;
            if let (Err(_), Some(wanted)) = (told, wants) {
                self.tell_later(&vendor.name, [wanted.lane()].into_iter());
            }
        }
        if is.status.has_ended() {
            self.announce_ended(&[is.id]).await;
        }
    }

    pub(super) async fn overdue(&self, now: Time, most: usize) -> Result<Overdue, StoreError> {
        use futures_util::TryStreamExt as _;
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let soonest = |filter: Document, most: usize| {
            let find = jobs.find(filter).sort(doc! { "alarm_at": 1 }).limit(i64::try_from(most).unwrap_or(i64::MAX));
            let find = find.projection(doc! { "alarm_at": 1 });
            within(async { find.await?.try_collect::<Vec<Document>>().await })
        };
        let at = |job: Option<&Document>| job.and_then(|job| job.get_i64("alarm_at").ok()).map(Time);
        let first = at(soonest(doc! { "alarm_at": { "$gt": i64::MIN } }, 1).await?.first());
        if first.is_none_or(|first| first > now) {
            return Ok(Overdue { jobs: Vec::new(), next_at: first });
        }
        let due = soonest(doc! { "alarm_at": { "$lt": now.0 + 1 } }, most).await?;
        let next_at = at(soonest(doc! { "alarm_at": { "$gt": now.0 } }, 1).await?.first());
        Ok(Overdue { jobs: due.iter().filter_map(|job| docs::id_in(job, "_id")).collect(), next_at })
    }
}
