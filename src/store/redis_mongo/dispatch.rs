//! What dispatchers need of this store: what is due, claims, the release of leases, and taking over lapsed leases.
//!
//! Never leases a job that is not due in MongoDB: the streams only say where to look.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use mongodb::bson::{Document, doc};
use tokio::sync::oneshot;

use super::{
    Core,
    index::{
        leases::LeasedEntry,
        words::{Claimed, CountChanges, Enqueue, Entry, GivenBack, Look, Removal, RemoveIf, StreamNo, VendorWork},
    },
    lock,
    truth::{
        docs::{self, StoredJob},
        mongo::{PATIENCE, within},
        updates,
    },
};
use crate::{
    clock::{Nanos, Time, nanos},
    job::{JobId, Stage, lifecycle},
    store::{Claim, Lease, Ready, StoreError, With},
};

/// How often one look opens a lost index, or waits for a sweep, and looks again.
const LOOKS: usize = 3;
/// Times at most that one claim takes entries from the streams. If all of them are dropped, the next claim goes on.
const ROUNDS: usize = 64;
/// Bytes of jobs that one claim reads, about: more might not arrive in time, and would take too much memory.
const MOST_CLAIMED_BYTES: usize = 16 << 20;
/// Vendors whose lapsed leases are looked for at the same time.
const SIDE_BY_SIDE: usize = 4;
/// A job whose lease has lapsed this often, because its workers died or hung, is given up.
const MOST_LAPSES: u32 = 5;

/// A request to release leases. With a time, the job's tenant rests until then.
pub(super) struct Release {
    pub(super) leases: Vec<(Lease, Option<Time>)>,
    pub(super) done: oneshot::Sender<()>,
}

/// Carries out several requests together, vendor by vendor, and answers each.
pub(super) async fn release(core: Arc<Core>, releases: Vec<Release>) {
    let (leases, done): (Vec<_>, Vec<_>) = releases.into_iter().map(|release| (release.leases, release.done)).unzip();
    core.release(leases.into_iter().flatten().collect()).await;
    for done in done {
        // An error means that the caller has gone.
        let _ = done.send(());
    }
}

impl Core {
    pub(super) async fn ready(&self, name: &str) -> Result<Ready, StoreError> {
        let Some(vendor) = self.vendors.get(name) else { return Ok(Ready::default()) };
        let found = match self.homes.found(&vendor.name, self.clock.nanos()) {
            Some(found) => found,
            None => self.look(vendor).await?.ready,
        };
        // What is due later is the business of its home.
        let is_ours = |due: &Time| *due <= self.clock.now() || self.homes.is_home_to(name);
        Ok(Ready { next_due: found.next_due.filter(is_ours), ..found })
    }

    /// Looks at a vendor's index. Opens a lost one, and sweeps first if that is due.
    async fn look(&self, vendor: &VendorWork) -> Result<Look, StoreError> {
        let changes = self.homes.changes(&vendor.name);
        for _ in 0..LOOKS {
            let Some(look) = self.index.look(vendor).await? else {
                self.open_index(vendor).await?;
                continue;
            };
            self.note_epoch(vendor, &look.epoch).await?;
            if look.sweep {
                self.request_sweep(vendor).await;
                continue;
            }
            self.homes.note_found(&vendor.name, changes, look.ready, self.clock.nanos());
            return Ok(look);
        }
        Err(StoreError::Unavailable("the index in Redis is lost again and again".into()))
    }

    pub(super) async fn claim(&self, claim: &Claim) -> Result<Vec<Lease>, StoreError> {
        let Some(vendor) = self.vendors.get(&claim.vendor) else { return Ok(Vec::new()) };
        self.homes.note_change(&vendor.name);
        if self.take_low(vendor) {
            self.refill(vendor, claim.now).await?;
        }
        let calls = self.calls(vendor, claim).await?;
        let mut leases = Vec::new();
        for _ in 0..ROUNDS {
            match self.claim_more(vendor, claim, calls, &mut leases).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if leases.is_empty() => return Err(error),
                // The jobs leased so far are good. If the error lasts, the next claim returns it.
                Err(_) => break,
            }
        }
        Ok(leases)
    }

    /// If streams of this vendor are running low, the next claim refills them first.
    fn note_low(&self, vendor: &VendorWork, is_low: bool) {
        if is_low {
            lock(&self.low).insert(vendor.name.clone());
        }
    }

    fn take_low(&self, vendor: &VendorWork) -> bool {
        lock(&self.low).remove(&vendor.name)
    }

    /// One round of a claim; says whether another may find more.
    async fn claim_more(
        &self,
        vendor: &VendorWork,
        claim: &Claim,
        (calls, claimed_by): (usize, Option<i64>),
        leases: &mut Vec<Lease>,
    ) -> Result<bool, StoreError> {
        let most = claim.most - leases.len();
        let calls = calls.saturating_sub(leases.iter().filter(|lease| lease.job.stage == Stage::Call).count());
        let until = self.clock.nanos().saturating_add(nanos(claim.lease));
        let changes = self.homes.changes(&vendor.name);
        let Some(claimed) = self.index.claim(vendor, most, calls.min(most), claimed_by).await? else {
            self.open_index(vendor).await?;
            return Ok(false);
        };
        let (low, got, left) = (claimed.low, claimed.entries.len(), claimed.left);
        if let Err(error) = self.note_epoch(vendor, &claimed.epoch).await {
            self.give_back(vendor, claimed.entries).await;
            return Err(error);
        }
        let (leased, is_all) = self.lease(vendor, claimed, claim.now, until).await?;
        // Behind the entries that were dropped there may be others.
        let some_dropped = leased.len() < got;
        if let Some(left) = left.filter(|_| !low && !some_dropped) {
            self.homes.note_found(&vendor.name, changes, left, self.clock.nanos());
        }
        leases.extend(leased);
        if leases.len() >= claim.most || !is_all {
            self.note_low(vendor, low);
            return Ok(false);
        }
        Ok(some_dropped || low && self.refill(vendor, claim.now).await?)
    }

    /// How many submitting calls may be claimed, and the number of calls ever claimed on which this is based. A vendor may bound how many of
    /// its jobs are open. Against that bound count the jobs that are open in MongoDB, and all calls that are leased before or during the count.
    async fn calls(&self, vendor: &VendorWork, claim: &Claim) -> Result<(usize, Option<i64>), StoreError> {
        let Some(most_open) = vendor.open else { return Ok((claim.calls, None)) };
        let Some(look) = self.index.look(vendor).await? else { return Ok((0, None)) };
        if look.sweep {
            self.request_sweep(vendor).await;
        }
        let open = within(self.mongo.count_lanes(vendor, 3, 7).max_time(PATIENCE)).await?;
        let left = most_open.saturating_sub(open).saturating_sub(look.calls_leased);
        Ok((claim.calls.min(usize::try_from(left).unwrap_or(usize::MAX)), Some(look.claimed)))
    }

    /// Reads the jobs of claimed entries and leases those that are due. Drops the entries of all others: ended, cancelled, not due, or not
    /// in MongoDB. Says whether all were read: beyond `MOST_CLAIMED_BYTES` entries are given back unread.
    async fn lease(
        &self,
        vendor: &VendorWork,
        claimed: Claimed,
        now: Time,
        until: Nanos,
    ) -> Result<(Vec<Lease>, bool), StoreError> {
        if claimed.entries.is_empty() {
            return Ok((Vec::new(), true));
        }
        let ids: Vec<JobId> = claimed.entries.iter().map(|entry| entry.id).collect();
        // A job that has not ended has no result: leaving the field out of the statement would only cost.
        let with = With { payload: true, result: true };
        let (mut found, is_all) = match self.mongo.find_up_to(&ids, with, MOST_CLAIMED_BYTES).await {
            Ok(found) => found,
            Err(error) => {
                self.give_back(vendor, claimed.entries).await;
                return Err(error);
            }
        };
        let (entries, unread): (Vec<Entry>, Vec<Entry>) =
            claimed.entries.into_iter().partition(|entry| is_all || found.contains_key(&entry.id));
        if !unread.is_empty() {
            self.give_back(vendor, unread).await;
        }
        let (mut leases, mut dropped) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            let found = found.remove(&entry.id).and_then(|found| self.mongo.unreadable.skip(entry.id, found));
            let Some(StoredJob { job, version, attempts, called_at, .. }) = found else {
                dropped.push(Removal { entry, which: RemoveIf::Leased, next: None });
                continue;
            };
            // Another worker has put this call on record, and it may be made only once: that worker settles it, or its lease lapses.
            if called_at.is_some() && job.stage == Stage::Call {
                continue;
            }
            if job.needs_call() && job.due_at <= now && StreamNo::of(&job) == entry.stream {
                let leased = LeasedEntry {
                    vendor: vendor.name.clone(),
                    entry,
                    version,
                    attempts,
                    settling: false,
                    called: false,
                };
                leases.push(self.leases.add(job, leased, until));
            } else {
                let next = job.needs_call().then(|| Enqueue::of(&job));
                dropped.push(Removal { entry, which: RemoveIf::Leased, next });
            }
        }
        if !leases.is_empty() {
            self.upkeep_needed.notify_one();
        }
        // If open jobs are bounded, the dropped entries counted as calls until now: others may have room.
        let ring = vendor.open.is_some();
        let counts = CountChanges::default();
        if !dropped.is_empty() && self.index.remove(vendor, counts, ring, &dropped, &[]).await.is_err() {
            self.remove_later(&vendor.name, dropped);
        }
        Ok((leases, is_all))
    }

    pub(super) async fn give_back(&self, vendor: &VendorWork, entries: Vec<Entry>) {
        self.hand_back(vendor, entries.into_iter().map(|entry| (entry, Arc::from(""), None)).collect()).await;
    }

    /// If this fails, upkeep tries again. No caller of the API waits for it.
    async fn hand_back(&self, vendor: &VendorWork, back: Vec<GivenBack>) {
        self.homes.note_change(&vendor.name);
        if let Err(error) = self.index.release(vendor, &back).await {
            tracing::warn!(%error, jobs = back.len(), "jobs could not be given back; they are free when their leases lapse or this process stops");
            self.give_back_later(&vendor.name, back);
        }
    }

    pub(super) async fn release(&self, leases: Vec<(Lease, Option<Time>)>) {
        let marked: Vec<&Lease> =
            leases.iter().map(|(lease, _)| lease).filter(|lease| lease.called_at.is_some()).collect();
        let unmarked = if marked.is_empty() { Ok(()) } else { self.unmark(&marked).await };
        if let Err(error) = &unmarked {
            tracing::warn!(jobs = marked.len(), %error, "the record of calls that were not made could not be removed; these jobs end with an unknown outcome");
        }
        let mut by_vendor: HashMap<Arc<str>, Vec<GivenBack>> = HashMap::new();
        for (lease, rest_until) in leases {
            let leased = self.leases.remove(&lease);
            if lease.called_at.is_some() && unmarked.is_err() {
                continue; // The record may still be there: the lease lapses.
            }
            // The entry of a stale lease may belong to a later lease by now.
            if let Some(leased) = leased.filter(|leased| !self.leases.has_later(&lease, leased)) {
                by_vendor.entry(leased.vendor).or_default().push((
                    leased.entry,
                    lease.job.lane.tenant.clone(),
                    rest_until,
                ));
            }
        }
        for (name, back) in by_vendor {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            self.hand_back(vendor, back).await;
        }
    }

    /// Takes over jobs whose leases have lapsed.
    pub(super) async fn reclaim(&self) -> Result<usize, StoreError> {
        self.wake_quiet().await?;
        let now = self.clock.nanos();
        let is_mine = |name: &str| self.homes.is_home_to(name) && !self.homes.is_quiet(name, now);
        let vendors: Vec<&VendorWork> = self.vendors.values().filter(|vendor| is_mine(&vendor.name)).collect();
        let mut freed = 0;
        for some in vendors.chunks(SIDE_BY_SIDE) {
            // Several at the same time share round trips. All are finished, even if one fails.
            for of_one in join_all(some.iter().map(|vendor| self.reclaim_of(vendor))).await {
                freed += of_one?;
            }
        }
        Ok(freed)
    }

    async fn reclaim_of(&self, vendor: &VendorWork) -> Result<usize, StoreError> {
        // A dispatcher sleeps until a message wakes it, and messages can be lost. So it is also woken here, as long as something is due.
        let look = self.look(vendor).await?;
        if look.ready.next_due.is_some_and(|due| due <= self.clock.now()) {
            self.signals.ring(&vendor.name);
        }
        // Now and then also without a reason: that forgets workers which left nothing but their names.
        if !look.upkeep && fastrand::u8(..) != 0 {
            return Ok(0);
        }
        let mut freed = 0;
        loop {
            let entries = self.index.lapsed(vendor).await?;
            if entries.is_empty() {
                return Ok(freed);
            }
            freed += self.free(vendor, entries).await?;
        }
    }

    /// Fences the old workers of these jobs off in MongoDB, then frees the jobs; ends those that were lost too often.
    async fn free(&self, vendor: &VendorWork, entries: Vec<Entry>) -> Result<usize, StoreError> {
        let ids: Vec<JobId> = entries.iter().map(|entry| entry.id).collect();
        let (mut updates, mut freed) = (Vec::new(), 0);
        for found in self.mongo.find_all(&ids, With::NEITHER).await?.into_values() {
            let StoredJob { job, version, mut attempts, .. } = found;
            let (attempt, lapses) = (job.attempt + 1, found.lapses + 1);
            if job.status.has_ended() {
                continue; // The next claim drops it.
            }
            freed += 1;
            let end = match found.called_at {
                Some(called_at) => {
                    let (change, record) = lifecycle::lost(&job, attempt, called_at);
                    attempts.push(record);
                    Some(change)
                }
                None => lifecycle::crashed(&job).filter(|_| lapses >= MOST_LAPSES),
            };
            tracing::warn!(request_id = %job.id, vendor = %job.lane.vendor, attempt = job.attempt, lapses, ends = end.is_some(), "its lease has lapsed: its worker died or hung");
            if let Some(change) = end {
                let is = change.apply(&job, attempt, self.clock.now());
                let mut update = updates::update(&job, &is);
                updates::set(&mut update, "attempts", updates::attempts_text(&attempts));
                if self.mongo.update_job(updates::unchanged(job.id, version), update).await? {
                    self.publish_changes(&[(&job, &is)]).await;
                }
                continue;
            }
            let set = doc! { "attempt": i64::from(attempt), "lapses": i64::from(lapses) };
            let change = doc! { "$set": set, "$inc": { "version": 1_i64 } };
            updates.push(updates::one(job.id, version, change));
        }
        if !updates.is_empty() {
            self.mongo.update_jobs(updates).await?;
        }
        self.give_back(vendor, entries).await;
        Ok(freed)
    }

    /// Opens an index if there is none, or if a part of it is missing.
    async fn open_index(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        let jobs = self.mongo.jobs.clone_with_type::<Document>();
        let live = jobs.find_one(docs::lanes_between(&vendor.name, 0, 7)).projection(doc! { "_id": 1 });
        let live = live.max_time(PATIENCE);
        let is_live = within(async { live.await }).await?.is_some();
        self.open_index_of(vendor, is_live).await
    }

    /// Opens a new index. It opens at once if no job is live, because then no job can be leased.
    pub(super) async fn open_index_of(&self, vendor: &VendorWork, is_live: bool) -> Result<(), StoreError> {
        let name = format!("{:016x}", fastrand::u64(..));
        if self.index.open(vendor, &name, !is_live).await? {
            tracing::info!(vendor = %vendor.name, "a new index in Redis");
        }
        Ok(())
    }
}

/// Whether a job in this stage is not open: the vendor has not accepted it, or has answered.
pub(super) fn leaves_room(now: Option<Stage>) -> bool {
    !matches!(now, Some(Stage::Poll | Stage::Await))
}
