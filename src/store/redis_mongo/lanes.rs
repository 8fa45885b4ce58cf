//! What waits in which lane, and where one job stands there: counters in Redis, and a bounded count in MongoDB.
//!
//! Never counts a whole lane for anybody who asks. Where the counters are not known to be right, nothing is said.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use serde::Serialize;

use super::{
    Core,
    dispatch::on_its_way,
    docs::{self, id_bson, lane_name, lanes_between},
    index::Index,
    lock,
    mongo::within,
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
/// Jobs that are counted anew in one go.
const SLICE: usize = 50_000;

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
struct Pieces {
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

/// A count of all that waits for a vendor: how far it has come.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    name: String,
    /// Jobs that are older than the count; those that come meanwhile are counted when they come.
    below: JobId,
    /// The last job that was counted: its lane, due time and id.
    after: Option<(String, i64, Bson)>,
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
    async fn pieces(&self, vendor: &VendorWork) -> Result<Option<Arc<Pieces>>, StoreError> {
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
        let lane = (Line::of(job), job.lane.tenant.clone());
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
        let Some(around) = pieces.lanes.get(&lane).map(|lane| lane.around(job.due_at)) else { return Ok(None) };
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
        Ok(self.due_in_lane(&lane, due, EXACT + 1).await?.into_iter().map(|(_, id)| id).collect())
    }

    /// Sees whether the counters of the lanes come to what MongoDB has; if not they are counted anew, beside everything else.
    pub(super) async fn check_lanes(&self, vendor: &VendorWork, waiting: u64) -> Result<(), StoreError> {
        let known = self.index.pieces(vendor).await?.map(|pieces| pieces.all());
        // What changes between the two counts is no reason.
        let right =
            known.is_some_and(|known| known.abs_diff(waiting) <= on_its_way(waiting) && (known == 0) == (waiting == 0));
        if right || lock(&self.counting).contains_key(&vendor.name) {
            return Ok(());
        }
        let name = format!("{:016x}", fastrand::u64(..));
        if self.index.recount_lanes(vendor, &name, "begin", &LaneCounts::default()).await? {
            let below = JobId::first_at(self.clock.now().plus(Duration::from_millis(1)));
            lock(&self.counting).insert(vendor.name.clone(), Counting { name, below, after: None });
            self.cares.notify_one();
        }
        Ok(())
    }

    /// Counts a slice more of the vendors whose lanes have to be counted anew.
    pub(super) async fn count_lanes_anew(&self) -> Result<(), StoreError> {
        let all = lock(&self.counting).clone();
        for (name, mut counting) in all {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            let (lanes, read) = self.count_slice(vendor, &mut counting).await?;
            let step = if read < SLICE { "done" } else { "add" };
            let ours = self.index.recount_lanes(vendor, &counting.name, step, &lanes).await?;
            if ours && read == SLICE {
                lock(&self.counting).insert(name, counting);
            } else {
                lock(&self.counting).remove(&name);
            }
        }
        Ok(())
    }

    /// What waits after the last job that was counted, a slice of it, and how many jobs those are.
    async fn count_slice(
        &self,
        vendor: &VendorWork,
        counting: &mut Counting,
    ) -> Result<(LaneCounts, usize), StoreError> {
        let mut filter = lanes_between(&vendor.name, 0, 6);
        filter.insert("_id", doc! { "$lt": id_bson(counting.below) });
        if let Some((lane, due_at, id)) = &counting.after {
            let after = [
                doc! { "lane": { "$gt": lane } },
                doc! { "lane": lane, "due_at": { "$gt": due_at } },
                doc! { "lane": lane, "due_at": due_at, "_id": { "$gt": id } },
            ];
            filter.insert("$or", after.to_vec());
        }
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let find = jobs.find(filter).sort(doc! { "lane": 1, "due_at": 1, "_id": 1 }).limit(SLICE as i64);
        let mut found =
            within(async { find.projection(doc! { "lane": 1, "due_at": 1 }).batch_size(5000).await }).await?;
        let (mut lanes, mut read, mut tenants) = (LaneCounts::default(), 0, HashMap::<String, (Line, Arc<str>)>::new());
        while let Some(job) = within(found.try_next()).await? {
            read += 1;
            let (Ok(lane), Ok(due_at), Some(id)) = (job.get_str("lane"), job.get_i64("due_at"), job.get("_id")) else {
                continue;
            };
            counting.after = Some((lane.to_owned(), due_at, id.clone()));
            let known = tenants.get(lane).cloned().or_else(|| docs::line_and_tenant(lane));
            let Some((line, tenant)) = known else { continue };
            lanes.add(line, &tenant, Time(due_at), 1);
            tenants.entry(lane.to_owned()).or_insert((line, tenant));
        }
        Ok((lanes, read))
    }
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
