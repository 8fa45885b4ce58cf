//! Jobs whose documents this version cannot read, perhaps because a newer one wrote them: logged once, then skipped for a while.
//!
//! Never changes or deletes them, and never keeps more than its bound: beyond it nothing more is logged.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::super::lock;
use crate::{job::JobId, store::StoreError};

/// After this long they are read, and logged, again.
const SKIPPED: Duration = Duration::from_secs(600);
const MOST: usize = 1000;

#[derive(Default)]
pub(crate) struct Unreadable(Mutex<HashMap<JobId, Instant>>);

impl Unreadable {
    /// What was read of a job; `None`, and a line in the log, if it cannot be read.
    pub(crate) fn skip<T>(&self, id: JobId, found: Result<T, StoreError>) -> Option<T> {
        let error = match found {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        let mut known = lock(&self.0);
        known.retain(|_, since| since.elapsed() < SKIPPED);
        if known.len() < MOST && known.insert(id, Instant::now()).is_none() {
            tracing::error!(request_id = %id, %error, "a job cannot be read and is skipped; run the version that wrote it");
        }
        None
    }

    /// How many are skipped now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether this job is skipped now.
    pub(crate) fn has(&self, id: JobId) -> bool {
        lock(&self.0).get(&id).is_some_and(|since| since.elapsed() < SKIPPED)
    }
}
