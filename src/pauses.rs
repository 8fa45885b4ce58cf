//! Which vendors are paused: kept in the book, and in memory for the dispatchers.
//!
//! Never wakes anybody: whoever changes a pause rings the vendor's bell.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    clock::Time,
    store::{
        StoreError,
        book::{Book, Pause},
    },
};

pub struct Pauses {
    book: Arc<dyn Book>,
    paused: Mutex<HashMap<String, Pause>>,
}

impl Pauses {
    pub async fn open(book: Arc<dyn Book>) -> Result<Pauses, StoreError> {
        let paused = book.pauses().await?.into_iter().map(|pause| (pause.vendor.clone(), pause)).collect();
        Ok(Pauses { book, paused: Mutex::new(paused) })
    }

    /// The vendor's pause, if it is in force at `now`.
    pub fn get(&self, vendor: &str, now: Time) -> Option<Pause> {
        self.lock().get(vendor).filter(|pause| pause.until.is_none_or(|until| until > now)).cloned()
    }

    /// Pauses a vendor until then, or until it is resumed. In the book first, then in force.
    pub async fn pause(&self, vendor: &str, until: Option<Time>) -> Result<(), StoreError> {
        let pause = Pause { vendor: vendor.to_owned(), until };
        self.book.set_pause(vendor, Some(pause.clone())).await?;
        self.lock().insert(vendor.to_owned(), pause);
        Ok(())
    }

    pub async fn resume(&self, vendor: &str) -> Result<(), StoreError> {
        self.book.set_pause(vendor, None).await?;
        self.lock().remove(vendor);
        Ok(())
    }

    /// A panic elsewhere does not make a list of pauses wrong.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pause>> {
        self.paused.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
