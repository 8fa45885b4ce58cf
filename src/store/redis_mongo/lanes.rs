//! What waits in which lane, and where one job stands there: counters in Redis, and a bounded count in MongoDB.
//!
//! Never counts a whole lane for anybody who asks. Where the counters are not known to be right, nothing is said.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use serde::Serialize;

use super::{
    Core,
    docs::{self, id_bson, lane_name, lanes_between},
    index::Index,
    lock,
    mongo::within,
    sweep::on_its_way,
    words::{Line, VendorWork},
};
use crate::{
    clock::Time,
    job::{
        Job, JobId, Priority, Stage,
        turn::{Lanes, Waiting},
    },
    store::{StoreError, histogram::Histogram},
};

/// Places that are exact.
const EXACT: usize = 1_000;
/// The first jobs of a lane among which those that workers hold are looked for: more than they hold.
const HEAD: usize = 512;
/// Counters that are many are read again only after a while.
const MANY: usize = 256;
const READ_EVERY: Duration = Duration::from_secs(1);
/// Pieces of lanes that Redis is told of in one go, when they are counted anew.
const SLICE: usize = 2_000;

/// By how much what waits in lanes changes: by line, second of the due time, and tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LaneCounts(BTreeMap<(Line, i64, Arc<str>), i64>);

impl LaneCounts {
    pub(super) fn add(&mut self, line: Line, tenant: &Arc<str>, due_at: Time, by: i64) {
        *self.0.entry((line, due_at.0.div_euclid(1000), tenant.clone())).or_default() += by;
    }

    /// As the scripts take it.
    pub(super) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Change<'a>(usize, i64, &'a str, i64);
        let changed = self.0.iter().filter(|(_, by)| **by != 0);
        let changes: Vec<Change<'_>> =
            changed.map(|((line, second, tenant), by)| Change(line.0, *second, tenant, *by)).collect();
        serde_json::to_string(&changes).expect("numbers and names are JSON")
    }
}

/// What waits in the lanes of a vendor.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    lanes: HashMap<(Line, Arc<str>), Histogram>,
    paid: [u64; 3],
    /// Jobs of each line that workers hold.
    held: [u64; 6],
    fields: usize,
}

/// The same, and when it was read.
pub(super) struct Seen {
    at: Instant,
    pieces: Arc<Pieces>,
}

impl Index {
    /// Nothing while it is not known.
    async fn pieces(&self, vendor: &VendorWork) -> Result<Option<Pieces>, StoreError> {
        let found: Vec<String> = self.run(&self.on(&self.scripts.lanes, vendor)).await?.unwrap_or_default();
        let number = |i: usize| found.get(i).and_then(|text| text.parse::<i64>().ok());
        let Some(width) = number(0) else { return Ok(None) };
        let mut pieces = Pieces { fields: found.len() / 2, ..Pieces::default() };
        // Who has been idle begins where the others are.
        let spent: [Option<u64>; 3] = [1, 2, 3].map(|i| number(i).and_then(|spent| u64::try_from(spent).ok()));
        let least = spent.into_iter().flatten().min().unwrap_or(0);
        pieces.paid = spent.map(|spent| spent.unwrap_or(least));
        pieces.held = [4, 5, 6, 7, 8, 9].map(|i| number(i).unwrap_or(0).max(0).unsigned_abs());
        for piece in found[10.min(found.len())..].chunks_exact(2) {
            let mut parts = piece[0].splitn(3, ' ');
            let (line, at, tenant) = (parts.next(), parts.next(), parts.next());
            let line = line.and_then(|line| line.parse().ok()).filter(|line| *line < Line::ALL.len());
            let (Some(line), Some(at), Some(tenant)) = (line, at.and_then(|at| at.parse::<i64>().ok()), tenant) else {
                return Err(StoreError::Corrupt("a lane's counter in Redis is none of ours".into()));
            };
            let first = at.saturating_mul(width);
            // Below nothing is a count that was lost; the next sweep mends it.
            let jobs = piece[1].parse::<u64>().unwrap_or(0);
            pieces.lanes.entry((Line(line), tenant.into())).or_default().add_piece(first, first + width - 1, jobs);
        }
        Ok(Some(pieces))
    }

    /// One step of a count of all that waits; says whether it is still ours to do.
    async fn recount_lanes(
        &self,
        vendor: &VendorWork,
        name: &str,
        step: &str,
        lanes: &LaneCounts,
    ) -> Result<bool, StoreError> {
        let mut call = self.on(&self.scripts.recount, vendor);
        call.arg(name).arg(step).arg(lanes.json());
        Ok(self.run::<i64>(&call).await? == Some(1))
    }
}

impl Core {
    pub(super) async fn pieces(&self, vendor: &VendorWork) -> Result<Option<Arc<Pieces>>, StoreError> {
        if let Some(seen) = lock(&self.seen).get(&vendor.name)
            && seen.pieces.fields > MANY
            && seen.at.elapsed() < READ_EVERY
        {
            return Ok(Some(seen.pieces.clone()));
        }
        let pieces = self.told(self.index.pieces(vendor)).await?.map(Arc::new);
        match &pieces {
            Some(pieces) => {
                let seen = Seen { at: Instant::now(), pieces: pieces.clone() };
                lock(&self.seen).insert(vendor.name.clone(), seen);
            }
            None => drop(lock(&self.seen).remove(&vendor.name)),
        }
        Ok(pieces)
    }

    pub(super) async fn lanes(&self, name: &str, due_by: Time) -> Result<Option<Arc<Lanes>>, StoreError> {
        let Some(vendor) = self.vendors.get(name) else { return Ok(None) };
        let Some(pieces) = self.pieces(vendor).await? else { return Ok(None) };
        Ok(Some(Arc::new(pieces.due_by(due_by))))
    }

    pub(super) async fn ahead(&self, job: &Job) -> Result<Option<u64>, StoreError> {
        let Some(vendor) = self.vendors.get(&job.lane.vendor) else { return Ok(None) };
        let Some(pieces) = self.pieces(vendor).await? else { return Ok(None) };
        let lane = pieces.lanes.get(&(Line::of(job), job.lane.tenant.clone()));
        let polls = (Line::new(job.lane.priority, Stage::Poll), job.lane.tenant.clone());
        let polls = pieces.lanes.get(&polls).map_or(0, |polls| polls.due_by(self.clock.now()));
        let first = self.first_of_lane(job, Time(i64::MIN)).await?;
        let heads = &first[..first.len().min(HEAD)];
        let held = if heads.is_empty() { Vec::new() } else { self.told(self.index.held(&vendor.name, heads)).await? };
        let held_before = |place: usize| held.iter().take(place).filter(|is_held| **is_held).count() as u64;
        if let Some(place) = first.iter().position(|id| *id == job.id) {
            let is_held = held.get(place).copied().unwrap_or(false);
            return Ok((!is_held).then(|| place as u64 - held_before(place) + polls));
        }
        let Some(around) = lane.map(|lane| lane.around(job.due_at)) else { return Ok(None) };
        let within = self.first_of_lane(job, around.from).await?;
        let place = match within.iter().position(|id| *id == job.id) {
            Some(place) => place as u64,
            None => (around.jobs * around.share / 1000).max(within.len() as u64),
        };
        Ok(Some((around.before + place).saturating_sub(held_before(HEAD)) + polls))
    }

    /// The first jobs of this job's lane that are due from then on, up to the job's own due time, in their order.
    async fn first_of_lane(&self, job: &Job, from: Time) -> Result<Vec<JobId>, StoreError> {
        let lane = lane_name(&job.lane.vendor, Line::of(job), &job.lane.tenant);
        let due = doc! { "$gte": from.0, "$lt": job.due_at.0 + 1 };
        Ok(self.in_lane(&lane, due, EXACT + 1).await?.into_iter().map(|(_, id)| id).collect())
    }

    /// Whether Redis knows what waits in which lane of a vendor.
    pub(super) async fn knows_lanes(&self, vendor: &VendorWork) -> Result<bool, StoreError> {
        Ok(self.index.pieces(vendor).await?.is_some())
    }

    /// Sees whether the counters of the lanes come to what MongoDB has; if not they are counted anew, while everything else goes on.
    pub(super) async fn check_lanes(&self, vendor: &VendorWork, waiting: u64) -> Result<(), StoreError> {
        let known = self.index.pieces(vendor).await?.map(|pieces| pieces.all());
        // What changes between the two counts is no reason.
        let right =
            known.is_some_and(|known| known.abs_diff(waiting) <= on_its_way(waiting) && (known == 0) == (waiting == 0));
        if right { Ok(()) } else { self.count_lanes_anew(vendor).await }
    }

    async fn count_lanes_anew(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        let name = format!("{:016x}", fastrand::u64(..));
        let mut lanes = LaneCounts::default();
        if !self.index.recount_lanes(vendor, &name, "begin", &lanes).await? {
            return Ok(());
        }
        // Those that come meanwhile are counted when they come.
        let below = JobId::first_at(self.clock.now().plus(Duration::from_millis(1)));
        let mut of_vendor = lanes_between(&vendor.name, 0, 6);
        of_vendor.insert("_id", doc! { "$lt": id_bson(below) });
        let second = doc! { "$subtract": ["$due_at", { "$mod": ["$due_at", 1000_i64] }] };
        let by_second = doc! { "_id": { "lane": "$lane", "second": second }, "jobs": { "$sum": 1_i64 } };
        let count = self.mongo.jobs.aggregate([doc! { "$match": of_vendor }, doc! { "$group": by_second }]);
        let mut pieces = within(count.batch_size(SLICE as u32)).await?;
        while let Some(piece) = within(pieces.try_next()).await? {
            let Some((line, tenant, second, jobs)) = piece_of(&piece) else { continue };
            lanes.add(line, &tenant, second, jobs);
            let is_full = lanes.0.len() >= SLICE;
            if is_full && !self.index.recount_lanes(vendor, &name, "add", &std::mem::take(&mut lanes)).await? {
                return Ok(());
            }
        }
        self.index.recount_lanes(vendor, &name, "done", &lanes).await.map(drop)
    }
}

/// A lane, a second in which jobs of it are due, and how many.
fn piece_of(counted: &Document) -> Option<(Line, Arc<str>, Time, i64)> {
    let of = counted.get_document("_id").ok()?;
    let (line, tenant) = docs::line_and_tenant(of.get_str("lane").ok()?)?;
    Some((line, tenant, Time(of.get_i64("second").ok()?), counted.get_i64("jobs").ok()?))
}

impl Pieces {
    fn all(&self) -> u64 {
        self.lanes.values().map(Histogram::jobs).sum()
    }

    fn due_by(&self, at: Time) -> Lanes {
        let mut lanes = Lanes { lanes: HashMap::new(), paid: self.paid, last_due: None };
        for line in Line::ALL {
            let of_line = self.lanes.iter().filter(|((of, _), _)| *of == line);
            let due: Vec<(&Arc<str>, u64)> = of_line.map(|((_, tenant), jobs)| (tenant, jobs.due_by(at))).collect();
            let all: u64 = due.iter().map(|(_, jobs)| jobs).sum();
            for (tenant, jobs) in due {
                // Nobody knows whose jobs workers hold: of each tenant as many as of all of them.
                let held = (u128::from(self.held[line.0]) * u128::from(jobs) / u128::from(all.max(1))) as u64;
                let lane = lanes.lanes.entry((Priority::ALL[line.0 % 3], tenant.clone()));
                lane.or_insert(Waiting { jobs: 0, turn: 0 }).jobs += jobs.saturating_sub(held);
            }
        }
        lanes.last_due = self.lanes.values().filter_map(Histogram::last_due).max();
        lanes
    }
}
