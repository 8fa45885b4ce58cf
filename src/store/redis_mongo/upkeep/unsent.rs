//! Updates of the index that failed because Redis was unavailable: kept, within bounds, and sent again.
//!
//! No job depends on them: sweeps and lapsed leases find what does not fit here or is lost with the process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::super::{
    Core,
    index::words::{CountChanges, Entry, GivenBack, Removal, StreamNo},
    lock,
};
use crate::store::StoreError;

/// After an update failed, none is tried for this long.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Lanes and entries that are kept to be sent again, at most.
const MOST_UNSENT: usize = 10_000;

/// Tenants that may have something in MongoDB.
type Lanes = BTreeSet<(StreamNo, Arc<str>)>;

/// By vendor: what is to be sent again.
#[derive(Default)]
pub(crate) struct Unsent {
    lanes: Mutex<BTreeMap<Arc<str>, Lanes>>,
    /// Entries whose jobs were settled.
    removals: Mutex<BTreeMap<Arc<str>, Vec<Removal>>>,
    /// Entries to release, when this process has stopped claiming: before that it could have claimed them again.
    back: Mutex<HashMap<Arc<str>, Vec<GivenBack>>>,
    /// When an update last failed.
    failed_at: Mutex<Option<Instant>>,
}

impl Unsent {
    /// Whether anything is to be sent again while the process runs.
    pub(crate) fn is_some(&self) -> bool {
        !lock(&self.removals).is_empty() || !lock(&self.lanes).is_empty()
    }
}

impl Core {
    /// Updates or reads the index, but waits only briefly, and not at all just after a failure.
    pub(crate) async fn briefly<T>(
        &self,
        update: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let no_answer = || StoreError::Unavailable("Redis does not answer".into());
        if lock(&self.unsent.failed_at).is_some_and(|since| since.elapsed() < RETRY_AFTER) {
            return Err(no_answer());
        }
        let done = tokio::time::timeout(self.patience(), update).await.unwrap_or_else(|_| Err(no_answer()));
        if done.is_err() {
            *lock(&self.unsent.failed_at) = Some(Instant::now());
        }
        done
    }

    pub(crate) fn flag_later(&self, vendor: &str, lanes: impl Iterator<Item = (StreamNo, Arc<str>)>) {
        let mut unsent = lock(&self.unsent.lanes);
        if unsent.values().map(Lanes::len).sum::<usize>() < MOST_UNSENT {
            unsent.entry(vendor.into()).or_default().extend(lanes);
            self.upkeep_needed.notify_one();
        }
    }

    pub(crate) fn remove_later(&self, vendor: &str, removals: impl IntoIterator<Item = Removal>) {
        let mut kept = lock(&self.unsent.removals);
        let room = MOST_UNSENT.saturating_sub(kept.values().map(Vec::len).sum());
        kept.entry(vendor.into()).or_default().extend(removals.into_iter().take(room));
        self.upkeep_needed.notify_one();
    }

    pub(crate) fn give_back_later(&self, vendor: &Arc<str>, back: Vec<GivenBack>) {
        let mut kept = lock(&self.unsent.back);
        if kept.values().map(Vec::len).sum::<usize>() < MOST_UNSENT {
            kept.entry(vendor.clone()).or_default().extend(back);
        }
    }

    /// Flags lanes whose jobs the index may not have.
    pub(crate) async fn send_flags(&self) -> Result<(), StoreError> {
        let unsent = std::mem::take(&mut *lock(&self.unsent.lanes));
        let mut left = unsent.into_iter();
        while let Some((name, lanes)) = left.next() {
            let lanes: Vec<_> = lanes.into_iter().collect();
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if let Err(error) = self.index.flag(vendor, &lanes).await {
                self.flag_later(&name, lanes.into_iter());
                left.for_each(|(name, lanes)| self.flag_later(&name, lanes.into_iter()));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes entries whose jobs were settled while the index could not be updated.
    pub(crate) async fn send_removals(&self) -> Result<(), StoreError> {
        let kept = std::mem::take(&mut *lock(&self.unsent.removals));
        let mut failed = Ok(());
        for (name, mut removals) in kept {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if failed.is_ok() {
                // The lease may have lapsed, and this process may have claimed the entry again.
                let leased: HashSet<Entry> = self.leases.of(&name, false).into_iter().collect();
                removals.retain(|removal| !leased.contains(&removal.entry));
                let (counts, ring) = (CountChanges::default(), vendor.open.is_some());
                failed = self.index.remove(vendor, counts, ring, &removals, &[]).await;
            }
            if failed.is_err() {
                self.remove_later(&name, removals);
            }
        }
        failed
    }

    /// Releases all leases of this process that it will not settle.
    pub(crate) async fn give_all_back(&self) {
        let mut by_vendor = std::mem::take(&mut *lock(&self.unsent.back));
        for leased in self.leases.remove_all() {
            by_vendor.entry(leased.vendor).or_default().push((leased.entry, "".into(), None));
        }
        for (name, back) in by_vendor {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if let Err(error) = self.index.release(vendor, &back).await {
                tracing::warn!(%error, "jobs could not be given back; they are free when their leases lapse");
            }
        }
    }
}
