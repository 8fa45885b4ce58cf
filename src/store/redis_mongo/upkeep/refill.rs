//! The refill: moves due jobs from MongoDB into the streams, tenant by tenant in turn, as far as there is room.
//!
//! Never remembers how far it has read: each read begins at the head of the lane.

use std::collections::HashMap;

use futures_util::{TryStreamExt as _, future::try_join_all};
use mongodb::bson::{Document, doc};

use super::super::{
    Core,
    index::words::{More, Read, StreamNo, Turn, VendorWork},
    truth::{
        docs::{self, lane_name},
        mongo::{PATIENCE, within},
    },
};
use crate::{clock::Time, job::JobId, store::StoreError};

impl Core {
    /// Says whether there was something new.
    pub(crate) async fn refill(&self, vendor: &VendorWork, now: Time) -> Result<bool, StoreError> {
        let (epoch, turns) = self.index.turns(vendor).await?;
        let read = try_join_all(turns.iter().map(|turn| self.read_lane(vendor, turn, now))).await?;
        let mut by_stream: HashMap<StreamNo, Vec<Read>> = HashMap::new();
        for (turn, read) in turns.iter().zip(read) {
            by_stream.entry(turn.stream).or_default().push(read);
        }
        let mut added = 0;
        for (stream, read) in by_stream {
            added += self.index.fill(vendor, &epoch, stream, &read).await?;
        }
        Ok(added > 0)
    }

    /// Reads the head of a tenant's lane: what is due, and when the next job is.
    async fn read_lane(&self, vendor: &VendorWork, turn: &Turn, now: Time) -> Result<Read, StoreError> {
        let lane = lane_name(&vendor.name, turn.stream, &turn.tenant);
        // Jobs that are in the stream already come first again, and so do those that cannot be read.
        let most = turn.page + turn.known + self.mongo.unreadable.len();
        let due = self.in_lane(&lane, docs::up_to(now), most).await?;
        let more = if due.len() == most { More::Due } else { self.next_in_lane(&lane, now).await? };
        let ids = due.into_iter().map(|(_, id)| id).filter(|id| !self.mongo.unreadable.has(*id)).collect();
        Ok(Read { tenant: turn.tenant.clone(), ids, more })
    }

    async fn next_in_lane(&self, lane: &str, now: Time) -> Result<More, StoreError> {
        let later = self.in_lane(lane, doc! { "$gt": now.0 }, 1).await?;
        Ok(later.first().map_or(More::Nothing, |(due_at, _)| More::At(Time(*due_at))))
    }

    /// The first jobs of a lane whose due times match, and those times. MongoDB reads as many index entries, and no document.
    pub(crate) async fn in_lane(
        &self,
        lane: &str,
        due_at: Document,
        most: usize,
    ) -> Result<Vec<(i64, JobId)>, StoreError> {
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let find = jobs.find(doc! { "lane": lane, "due_at": due_at }).sort(doc! { "due_at": 1, "_id": 1 });
        let find = find.limit(i64::try_from(most).unwrap_or(i64::MAX)).projection(doc! { "due_at": 1 });
        let find = find.max_time(PATIENCE);
        let found: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        let read = |job: &Document| Some((job.get_i64("due_at").ok()?, docs::id_in(job, "_id")?));
        Ok(found.iter().filter_map(read).collect())
    }
}
