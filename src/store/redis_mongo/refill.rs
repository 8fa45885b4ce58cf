//! The refill: brings what tenants have in MongoDB into the streams, in turn, as far as there is room.
//!
//! Never relies on how far it has read before: that only says where to look first.

use std::collections::HashMap;

use futures_util::{TryStreamExt as _, future::try_join_all};
use mongodb::bson::{Document, doc};

use super::{
    Core,
    docs::{self, lane_name},
    lock,
    mongo::{PATIENCE, within},
    sweep::LONG,
    words::{Line, More, Read, Turn, VendorWork},
};
use crate::{clock::Time, job::JobId, store::StoreError};

/// Lanes of which it is kept how far they were read; of the others all that is due is asked for.
const MOST_REACHES: usize = 10_000;
/// By so much more is looked for where there was less than hoped.
const WIDER: i64 = 4;

/// Where enough of a long lane should be found. A server that keeps the order of an index reads no more than is asked for, but not all of
/// them do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// Jobs due before this (ms).
    until: i64,
    /// How much longer is looked at if that was not enough (ms).
    step: i64,
}

impl Core {
    /// Says whether there was something new.
    pub(super) async fn refill(&self, vendor: &VendorWork, now: Time) -> Result<bool, StoreError> {
        let (epoch, turns) = self.index.turns(vendor).await?;
        let read = try_join_all(turns.iter().map(|turn| self.read_lane(vendor, turn, now))).await?;
        let mut by_line: HashMap<Line, Vec<Read>> = HashMap::new();
        for (turn, read) in turns.iter().zip(read) {
            by_line.entry(turn.line).or_default().push(read);
        }
        let mut added = 0;
        for (line, read) in by_line {
            added += self.index.fill(vendor, &epoch, line, &read).await?;
        }
        Ok(added > 0)
    }

    async fn read_lane(&self, vendor: &VendorWork, turn: &Turn, now: Time) -> Result<Read, StoreError> {
        let lane = lane_name(&vendor.name, turn.line, &turn.tenant);
        // Those that are in the stream already come first again, and so do those that cannot be read.
        let most = turn.page + turn.known + self.mongo.unreadable.len();
        let due = now.0 + 1;
        let known = lock(&self.reaches).get(&lane).copied();
        let Reach { mut until, mut step } = match known {
            Some(known) => known,
            None => self.first_reach(vendor, turn, most, due).await,
        };
        until = until.min(due);
        let mut found = self.due_in_lane(&lane, doc! { "$lt": until }, most).await?;
        // Some of those known have been settled since: a page that is not quite full is none the worse.
        while found.len() < turn.known + turn.page / 2 && until < due {
            let from = until;
            (until, step) = (due.min(until + step), step.saturating_mul(WIDER));
            found.append(&mut self.due_in_lane(&lane, doc! { "$gte": from, "$lt": until }, most - found.len()).await?);
        }
        let is_all = found.len() < most && until >= due;
        let more = if is_all { self.next_in_lane(&lane, now).await? } else { More::Due };
        self.note_reach(lane, turn, &found, more);
        let ids = found.into_iter().map(|(_, id)| id).filter(|id| !self.mongo.unreadable.has(*id)).collect();
        Ok(Read { tenant: turn.tenant.clone(), ids, more })
    }

    /// Of a lane that was not read before, by the counters of the lanes: the second in which enough should be due. Where they are wrong it
    /// is looked further, or more is read than needed.
    async fn first_reach(&self, vendor: &VendorWork, turn: &Turn, most: usize, due: i64) -> Reach {
        let whole = Reach { until: due, step: 1 };
        if turn.waiting <= LONG {
            return whole;
        }
        let Ok(Some(pieces)) = self.pieces(vendor).await else { return whole };
        let until = pieces.first_of(turn.line, &turn.tenant, most);
        until.map_or(whole, |until| Reach { until: until.0, step: 1000 })
    }

    /// Next time those of now are known, and as many as were added should be found behind them.
    fn note_reach(&self, lane: String, turn: &Turn, found: &[(i64, JobId)], more: More) {
        let mut reaches = lock(&self.reaches);
        let (More::Due, [(first, _), .., (last, _)]) = (more, found) else {
            reaches.remove(&lane);
            return;
        };
        if reaches.len() >= MOST_REACHES {
            reaches.clear();
        }
        let share = turn.page as f64 / (turn.page + turn.known).max(1) as f64;
        let step = ((last - first) as f64 * share) as i64 + 1;
        reaches.insert(lane, Reach { until: last + step, step });
    }

    /// The first jobs of a lane that are due within these bounds, and when. Upper bounds leave out what is equal: some servers of this
    /// wire do that of `$lte` too.
    pub(super) async fn due_in_lane(
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

    async fn next_in_lane(&self, lane: &str, now: Time) -> Result<More, StoreError> {
        let later = self.due_in_lane(lane, doc! { "$gt": now.0 }, 1).await?;
        Ok(later.first().map_or(More::Nothing, |(due_at, _)| More::At(Time(*due_at))))
    }
}
