//! Jobs whose documents this version cannot read, because a newer one wrote them perhaps: said once, then left alone for a while.
//!
//! Never changes or deletes them, and never keeps more than its bound: beyond it the log says nothing more.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{super::lock, docs::StoredJob};
use crate::{job::JobId, store::StoreError};

/// After this long they are tried again, and said again.
const LEFT_ALONE: Duration = Duration::from_secs(600);
const MOST: usize = 1000;

#[derive(Default)]
pub(crate) struct Unreadable(Mutex<HashMap<JobId, Instant>>);

impl Unreadable {
    /// A job; nothing, and a line in the log, when it cannot be read. Its neighbours are not to suffer.
    pub(crate) fn told(&self, id: JobId, found: Result<StoredJob, StoreError>) -> Option<StoredJob> {
        let error = match found {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        let mut known = lock(&self.0);
        known.retain(|_, since| since.elapsed() < LEFT_ALONE);
        if known.len() < MOST && known.insert(id, Instant::now()).is_none() {
            tracing::error!(job = %id, %error, "a job cannot be read and is left alone: run the version that wrote it");
        }
        None
    }

    /// How many are left alone now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether this job is left alone now.
    pub(crate) fn has(&self, id: JobId) -> bool {
        lock(&self.0).get(&id).is_some_and(|since| since.elapsed() < LEFT_ALONE)
    }
}
