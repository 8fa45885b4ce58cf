//! What the index in Redis could not be told: kept, within bounds, until it can be.
//!
//! Never relied on for a job's life: what does not fit or dies with the process is found by sweeps and lapses.

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

/// After the index could not be told, it is not even tried for this long.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// Lanes and entries that the index is to be told about later, at most; sweeps and lapses find the others.
const MOST_UNTOLD: usize = 10_000;

/// Tenants that may have something in MongoDB.
type Lanes = BTreeSet<(Line, Arc<str>)>;

/// By vendor: what is to be told later.
#[derive(Default)]
pub(crate) struct Untold {
    lanes: Mutex<BTreeMap<Arc<str>, Lanes>>,
    /// Entries that have been dealt with.
    dealt: Mutex<BTreeMap<Arc<str>, Vec<Dealt>>>,
    /// Entries to give back: never before this process has stopped claiming, lest they are ours again.
    back: Mutex<HashMap<Arc<str>, Vec<GivenBack>>>,
    /// When the index last could not be told something.
    silent: Mutex<Option<Instant>>,
}

impl Untold {
    /// Whether there is something that is told while the process runs.
    pub(crate) fn is_some(&self) -> bool {
        !lock(&self.dealt).is_empty() || !lock(&self.lanes).is_empty()
    }
}

impl Core {
    /// Waits for the index to be told something, but not for long, and not at all when it has just not been there.
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

    /// Lanes that the index could not be told about.
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

    /// Entries that have been dealt with while the index could not be told.
    pub(crate) async fn say_what_was_dealt_with(&self) -> Result<(), StoreError> {
        let undealt = std::mem::take(&mut *lock(&self.untold.dealt));
        let mut failed = Ok(());
        for (name, mut dealt) in undealt {
            let Some(vendor) = self.vendors.get(&name) else { continue };
            if failed.is_ok() {
                // It may have lapsed meanwhile, and be ours again.
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

    /// What this process holds and will not settle is free for others at once.
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
