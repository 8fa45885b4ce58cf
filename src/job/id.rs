//! Ids of jobs: UUIDs that sort by the time of acceptance.
//!
//! Never reads a clock: the time comes as an argument.

use std::{fmt, sync::Mutex};

use serde::Serialize;
use uuid::Uuid;

use crate::clock::Time;

/// A job's id: a UUID v7, so it sorts by the millisecond in which the job was accepted. `request_id` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JobId {
    /// No id is less.
    pub const MIN: JobId = JobId(Uuid::nil());
    /// No id is greater.
    pub const MAX: JobId = JobId(Uuid::max());

    /// Reads an id from a URL or a body. Only the hyphenated form that we give out is one.
    pub fn parse(text: &str) -> Option<JobId> {
        (text.len() == 36).then(|| Uuid::try_parse(text).ok().map(JobId)).flatten()
    }

    /// The smallest id of a millisecond: every id made at or after `at` is not less.
    pub fn first_at(at: Time) -> JobId {
        let ms = u128::try_from(at.0).unwrap_or(0);
        JobId(Uuid::from_u128(ms << 80))
    }

    pub fn from_bytes(bytes: [u8; 16]) -> JobId {
        JobId(Uuid::from_bytes(bytes))
    }

    /// Nothing when these are not sixteen bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<JobId> {
        bytes.try_into().ok().map(JobId::from_bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id's own millisecond.
    pub fn created_at(&self) -> Time {
        Time(i64::try_from(self.0.as_u128() >> 80).unwrap_or(0))
    }
}

/// Makes ids that go up, even within a millisecond and when the clock is set back.
pub struct JobIds(Mutex<uuid::ContextV7>);

impl JobIds {
    pub fn new() -> JobIds {
        JobIds(Mutex::new(uuid::ContextV7::new()))
    }

    /// A new id for this moment.
    pub fn next(&self, now: Time) -> JobId {
        let ms = u64::try_from(now.0).unwrap_or(0);
        let at = uuid::Timestamp::from_unix(&self.0, ms / 1000, u32::try_from(ms % 1000 * 1_000_000).unwrap_or(0));
        JobId(Uuid::new_v7(at))
    }
}

impl Default for JobIds {
    fn default() -> JobIds {
        JobIds::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}
