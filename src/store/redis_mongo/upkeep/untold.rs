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
    index::words::{Counts, Dealt, Entry, GivenBack, Line},
    lock,
};
use crate::store::StoreError;

/// After an update failed, none is tried for this long.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Lanes and entries that are kept to be sent again, at most.
const MOST_UNTOLD: usize = 10_000;

/// Tenants that may have something in MongoDB.
type Lanes = BTreeSet<(Line, Arc<str>)>;

/// By vendor: what is to be sent again.
#[derive(Default)]
pub(crate) struct Untold {
    lanes: Mutex<BTreeMap<Arc<str>, Lanes>>,
    /// Entries whose jobs were settled.
    dealt: Mutex<BTreeMap<Arc<str>, Vec<Dealt>>>,
    /// Entries to release, when this process has stopped claiming: before that it could have claimed them again.
    back: Mutex<HashMap<Arc<str>, Vec<GivenBack>>>,
    /// When an update last failed.
    silent: Mutex<Option<Instant>>,
}

impl Untold {
    /// Whether anything is to be sent again while the process runs.
    pub(crate) fn is_some(&self) -> bool {
        !lock(&self.dealt).is_empty() || !lock(&self.lanes).is_empty()
    }
}

impl Core {
    /// Waits for an update of the index, or a look at it: not for long, and not at all just after one failed.
    pub(crate) async fn told<T>(&self, telling: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let silent = || StoreError::Unavailable("Redis does not answer".into());
        if lock(&self.untold.silent).is_some_and(|since| since.elapsed() < TELL_AGAIN) {
            return Err(silent());
        }
        let told = tokio::time::timeout(self.patience(), telling).await.unwrap_or_else(|_| Err(silent()));
        if told.is_err() {
            *lock(&self.untold.silent) = Some(Instant::now());
        }
        told
    }

    pub(crate) fn tell_later(&self, vendor: &str, lanes: impl Iterator<Item = (Line, Arc<str>)>) {
        let mut untold = lock(&self.untold.lanes);
        if untold.values().map(Lanes::len).sum::<usize>() < MOST_UNTOLD {
            untold.entry(vendor.into()).or_default().extend(lanes);
            self.cares.notify_one();
        }
    }

    pub(crate) fn deal_later(&self, vendor: &str, dealt: impl IntoIterator<Item = Dealt>) {
        let mut undealt = lock(&self.untold.dealt);
        let room = MOST_UNTOLD.saturating_sub(undealt.values().map(Vec::len).sum());
        undealt.entry(vendor.into()).or_default().extend(dealt.into_iter().take(room));
        self.cares.notify_one();
    }

    pub(crate) fn give_back_later(&self, vendor: &Arc<str>, back: Vec<GivenBack>) {
        let mut ungiven = lock(&self.untold.back);
        if ungiven.values().map(Vec::len).sum::<usize>() < MOST_UNTOLD {
            ungiven.entry(vendor.clone()).or_default().extend(back);
        }
    }

    /// Flags lanes whose jobs the index may not have.
    pub(crate) async fn tell_what_was_not_told(&self) -> Result<(), StoreError> {
        let untold = std::mem::take(&mut *lock(&self.untold.lanes));
        let mut left = untold.into_iter();
        while let Some((name, lanes)) = left.next() {
            let lanes: Vec<_> = lanes.into_iter().collect();
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if let Err(error) = self.index.flag(vendor, &lanes).await {
                self.tell_later(&name, lanes.into_iter());
                left.for_each(|(name, lanes)| self.tell_later(&name, lanes.into_iter()));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes entries whose jobs were settled while the index could not be updated.
    pub(crate) async fn say_what_was_dealt_with(&self) -> Result<(), StoreError> {
        let undealt = std::mem::take(&mut *lock(&self.untold.dealt));
        let mut failed = Ok(());
        for (name, mut dealt) in undealt {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if failed.is_ok() {
                // The lease may have lapsed, and this process may have claimed the entry again.
                let held: HashSet<Entry> = self.holds.of(&name, false).into_iter().collect();
                dealt.retain(|dealt| !held.contains(&dealt.entry));
                failed = self.index.dealt(vendor, Counts::default(), vendor.open.is_some(), &dealt).await;
            }
            if failed.is_err() {
                self.deal_later(&name, dealt);
            }
        }
        failed
    }

    /// Releases every entry that this process holds and will not settle.
    pub(crate) async fn give_all_back(&self) {
        let mut by_vendor = std::mem::take(&mut *lock(&self.untold.back));
        for hold in self.holds.let_all_go() {
            by_vendor.entry(hold.vendor).or_default().push((hold.entry, "".into(), None));
        }
        for (name, back) in by_vendor {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if let Err(error) = self.index.release(vendor, &back).await {
                tracing::warn!(%error, "jobs could not be given back; they are free when their leases lapse");
            }
        }
    }
}
