//! The position of a job: how many jobs are ahead of it.
//!
//! Never counts without a bound. While the index is lost the position is unknown.

use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};

use super::{
    Core,
    index::{
        Index,
        words::{StreamNo, VendorWork},
    },
    truth::{
        docs::{self, lane_name, lanes_between},
        mongo::{PATIENCE, within},
    },
};
use crate::{
    clock::Time,
    job::{Job, JobId, Lane, Priority, Stage, turn},
    store::{Ahead, EXACT_PLACES, StoreError},
};

/// Reads of other lanes for one place. Each passes by at least one lane; where more long lanes wait, a place is only known to be at least so
/// far back.
const MOST_READS: usize = 16;

/// What the index knows of a vendor's streams.
struct Streams {
    /// What each priority has paid for its turns.
    paid: [u64; 3],
    /// Leased jobs of each stream, whose documents still say that they wait.
    leased: [u64; 6],
}

impl Index {
    async fn streams(&self, vendor: &VendorWork) -> Result<Option<Streams>, StoreError> {
        let found: Vec<i64> = self.run(&self.on(&self.scripts.standing, vendor)).await?.unwrap_or_default();
        let Ok(found) = <[i64; 9]>::try_from(found) else { return Ok(None) };
        let (spent, leased) = found.split_at(3);
        // Who has been idle begins where the others are.
        let least = spent.iter().copied().filter(|spent| *spent >= 0).min().unwrap_or(0);
        let paid = [0, 1, 2].map(|p: usize| if spent[p] < 0 { least } else { spent[p] }.unsigned_abs());
        let leased = [0, 1, 2, 3, 4, 5].map(|stream: usize| leased[stream].max(0).unsigned_abs());
        Ok(Some(Streams { paid, leased }))
    }
}

impl Core {
    pub(super) async fn ahead(&self, job: &Job) -> Result<Option<Ahead>, StoreError> {
        let Some(vendor) = self.vendors.get(&job.lane.vendor) else { return Ok(None) };
        let Some(streams) = self.briefly(self.index.streams(vendor)).await? else { return Ok(None) };
        let (own, due_by) = (job.lane.priority, job.due_at.max(self.clock.now()));
        let leased = streams.leased[StreamNo::of(job).0];
        let Some(in_lane) = self.ahead_in_lane(vendor, job, leased).await? else { return Ok(None) };
        let turns = turn::of_other_lane(in_lane, false);
        let (others, is_all) = self.ahead_in_other_lanes(vendor, job, due_by, turns, leased).await?;
        let mut jobs = in_lane + others;
        // Polls go before calls, whose they may be.
        jobs += self.waiting_in(vendor, &streams, StreamNo::new(own, Stage::Poll), due_by, EXACT_PLACES).await?;
        let same_priority = jobs;
        for other in Priority::ALL.into_iter().filter(|other| *other != own) {
            let turns = turn::of_other_priority(other, own, &streams.paid, same_priority);
            let most = turns.min(EXACT_PLACES.saturating_sub(jobs));
            let polls = self.waiting_in(vendor, &streams, StreamNo::new(other, Stage::Poll), due_by, most).await?;
            let calls =
                self.waiting_in(vendor, &streams, StreamNo::new(other, Stage::Call), due_by, most - polls).await?;
            jobs += polls + calls;
        }
        Ok(Some(Ahead { jobs, in_lane, is_exact: is_all && jobs < EXACT_PLACES }))
    }

    /// How many jobs of its own lane are ahead of a job, a bounded count; `None` if it is leased or not there any more.
    async fn ahead_in_lane(&self, vendor: &VendorWork, job: &Job, leased: u64) -> Result<Option<u64>, StoreError> {
        let lane = lane_name(&vendor.name, StreamNo::of(job), &job.lane.tenant);
        let most = EXACT_PLACES + leased;
        let first = self.in_lane(&lane, docs::up_to(job.due_at), most as usize).await?;
        let ids: Vec<JobId> = first.into_iter().map(|(_, id)| id).collect();
        let is_leased = self.which_are_leased(vendor, &ids, leased).await?;
        let place = ids.iter().position(|id| *id == job.id);
        if place.is_some_and(|place| is_leased[place]) || (place.is_none() && (ids.len() as u64) < most) {
            return Ok(None);
        }
        let before = &is_leased[..place.unwrap_or(ids.len())];
        Ok(Some(before.iter().filter(|is_leased| !**is_leased).count() as u64))
    }

    /// How many jobs of the other lanes of its stream are ahead of a job, up to `turns` of each lane; says whether all lanes were read.
    async fn ahead_in_other_lanes(
        &self,
        vendor: &VendorWork,
        job: &Job,
        due_by: Time,
        turns: u64,
        leased: u64,
    ) -> Result<(u64, bool), StoreError> {
        let stream = StreamNo::of(job);
        let own = lane_name(&vendor.name, stream, &job.lane.tenant);
        let (mut after, end) =
            (lane_name(&vendor.name, stream, ""), lane_name(&vendor.name, StreamNo(stream.0 + 1), ""));
        let most = EXACT_PLACES + leased;
        let mut jobs = 0;
        for _ in 0..MOST_READS {
            if turns == 0 || turns + jobs >= EXACT_PLACES {
                return Ok((jobs, true));
            }
            let lanes = doc! { "$gt": after.clone(), "$lt": end.clone(), "$ne": own.clone() };
            let found = self.of_lanes(lanes, due_by, most).await?;
            let ids: Vec<JobId> = found.iter().map(|(_, id)| *id).collect();
            let is_leased = self.which_are_leased(vendor, &ids, leased).await?;
            let is_last = (found.len() as u64) < most;
            let mut rest = found.iter().zip(&is_leased).peekable();
            while let Some(((lane, _), _)) = rest.peek().copied() {
                let mut free = 0;
                while let Some((_, is_leased)) = rest.next_if(|((of, _), _)| of == lane) {
                    free += u64::from(!is_leased);
                }
                // The end of the read may have cut the last lane short: the next read begins with it.
                if is_last || rest.peek().is_some() || free >= turns {
                    jobs += free.min(turns);
                    after = lane.clone();
                }
            }
            if is_last {
                return Ok((jobs, true));
            }
        }
        Ok((jobs, false))
    }

    /// The first jobs of lanes in their order, those that are due by then, each with its lane. MongoDB reads little more of the index.
    async fn of_lanes(&self, lanes: Document, due_by: Time, most: u64) -> Result<Vec<(String, JobId)>, StoreError> {
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let find = jobs.find(doc! { "lane": lanes, "due_at": docs::up_to(due_by) });
        let find = find.sort(doc! { "lane": 1, "due_at": 1, "_id": 1 }).projection(doc! { "lane": 1 });
        let find = find.limit(i64::try_from(most).unwrap_or(i64::MAX)).max_time(PATIENCE);
        let found: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        let read = |job: &Document| Some((job.get_str("lane").ok()?.to_owned(), docs::id_in(job, "_id")?));
        Ok(found.iter().filter_map(read).collect())
    }

    /// Which of these jobs are leased, if `leased` jobs of the stream are.
    async fn which_are_leased(&self, vendor: &VendorWork, ids: &[JobId], leased: u64) -> Result<Vec<bool>, StoreError> {
        if leased == 0 || ids.is_empty() {
            return Ok(vec![false; ids.len()]);
        }
        self.briefly(self.index.leased(&vendor.name, ids)).await
    }

    /// How many jobs of a stream are due by then and not leased, counted up to `most`.
    async fn waiting_in(
        &self,
        vendor: &VendorWork,
        streams: &Streams,
        stream: StreamNo,
        due_by: Time,
        most: u64,
    ) -> Result<u64, StoreError> {
        if most == 0 || stream.0 >= vendor.streams() {
            return Ok(0);
        }
        let mut due = lanes_between(&vendor.name, stream.0, stream.0 + 1);
        due.insert("due_at", docs::up_to(due_by));
        self.count_free(due, streams.leased[stream.0], most).await
    }

    pub(super) async fn due_in_lane(&self, lane: &Lane, most: u64) -> Result<u64, StoreError> {
        let Some(vendor) = self.vendors.get(&lane.vendor) else { return Ok(0) };
        let Some(streams) = self.briefly(self.index.streams(vendor)).await? else { return Ok(0) };
        let stream = StreamNo::new(lane.priority, Stage::Call);
        let name = lane_name(&vendor.name, stream, &lane.tenant);
        let due = doc! { "lane": name, "due_at": docs::up_to(self.clock.now()) };
        self.count_free(due, streams.leased[stream.0], most).await
    }

    /// How many jobs match and are not among the `leased` ones, up to `most`.
    async fn count_free(&self, filter: Document, leased: u64, most: u64) -> Result<u64, StoreError> {
        let count = self.mongo.jobs.count_documents(filter).limit(most.saturating_add(leased));
        let counted = within(count.max_time(PATIENCE)).await?;
        Ok(counted.saturating_sub(leased).min(most))
    }
}
