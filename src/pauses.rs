//! Which vendors are paused: kept in the book, and in memory for the dispatchers.
//!
//! Never wakes anybody: whoever changes a pause rings the vendor's bell.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    book::{Book, Pause},
    clock::Time,
    store::StoreError,
};

pub struct Pauses {
    book: Arc<dyn Book>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    paused: HashMap<String, Pause>,
    /// Changes made in this process: what was read before one must not undo it.
    changes: u64,
}

impl Pauses {
    pub async fn open(book: Arc<dyn Book>) -> Result<Pauses, StoreError> {
        let pauses = Pauses { book, known: Mutex::default() };
        pauses.refresh().await?;
        Ok(pauses)
    }

    /// Learns what other processes have paused or resumed; gives the vendors for which that changes something.
    pub async fn refresh(&self) -> Result<Vec<String>, StoreError> {
        let changes = self.lock().changes;
        let read = self.book.pauses().await?.into_iter();
        let fresh: HashMap<String, Pause> = read.map(|pause| (pause.vendor.clone(), pause)).collect();
        let mut known = self.lock();
        if known.changes != changes {
            return Ok(Vec::new()); // the next look will see it all
        }
        let ended = known.paused.keys().filter(|vendor| !fresh.contains_key(*vendor));
        let begun = fresh.iter().filter(|(vendor, pause)| known.paused.get(*vendor) != Some(*pause));
        let changed = ended.chain(begun.map(|(vendor, _)| vendor)).cloned().collect();
        known.paused = fresh;
        Ok(changed)
    }

    /// The vendor's pause, if it is in force at `now`.
    pub fn get(&self, vendor: &str, now: Time) -> Option<Pause> {
        self.lock().paused.get(vendor).filter(|pause| pause.until.is_none_or(|until| until > now)).cloned()
    }

    /// Pauses a vendor. In the book first, then in force.
    pub async fn pause(&self, pause: Pause) -> Result<(), StoreError> {
        self.book.set_pause(&pause.vendor, Some(pause.clone())).await?;
        let mut known = self.lock();
        known.paused.insert(pause.vendor.clone(), pause);
        known.changes += 1;
        Ok(())
    }

    pub async fn resume(&self, vendor: &str) -> Result<(), StoreError> {
        self.book.set_pause(vendor, None).await?;
        let mut known = self.lock();
        known.paused.remove(vendor);
        known.changes += 1;
        Ok(())
    }

    /// A panic elsewhere does not make a list of pauses wrong.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
