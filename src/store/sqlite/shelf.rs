//! A bounded piece of one lane in memory: its first jobs in order, and how far that reaches into the table.
//!
//! The invariant: every job of the lane that wants to go and lies at or before `reaches` is here, unless it is leased;
//! what lies beyond is only in the table. With `reaches` unset, everything is here.

use std::collections::BTreeMap;

use crate::job::Job;

/// A job's place in its lane: due time, then arrival.
pub(super) type Place = (i64, i64);

/// Jobs of a shelf at most; more wait in the table.
pub(super) const MOST: usize = 2048;
/// A shelf with fewer than this asks for more, if the table has more.
const FEW: usize = 512;

/// The first jobs of a lane (for calls, or for polls).
#[derive(Default)]
pub(super) struct Shelf {
    /// Boxed, because a node of the tree has room for eleven, and most lanes have one.
    jobs: BTreeMap<Place, Box<Job>>,
    reaches: Option<Place>,
    pub(super) refilling: bool,
    bytes: usize,
}

impl Shelf {
    /// A shelf of which nothing is known yet: all of it is in the table.
    pub(super) fn unread() -> Shelf {
        Shelf { reaches: Some((i64::MIN, i64::MIN)), ..Shelf::default() }
    }

    /// Puts a job in its place, if that lies within reach; keeps the shelf within `MOST`, and out of memory when `full`.
    pub(super) fn put(&mut self, place: Place, job: Job, full: bool) {
        if self.reaches.is_some_and(|reaches| place > reaches) {
            return;
        }
        self.bytes += weight(&job);
        if let Some(old) = self.jobs.insert(place, Box::new(job)) {
            self.bytes -= weight(&old);
        }
        if self.jobs.len() > MOST || (full && self.jobs.len() > 1) {
            self.drop_last();
        }
    }

    fn drop_last(&mut self) {
        if let Some((_, job)) = self.jobs.pop_last() {
            self.bytes -= weight(&job);
        }
        self.reaches = Some(self.jobs.last_key_value().map_or((i64::MIN, i64::MIN), |(place, _)| *place));
    }

    /// Takes in what the table had beyond `from`, up to `reaches`; to the end of the lane with `None`.
    pub(super) fn refill(&mut self, from: Place, rows: Vec<(Place, Job)>, reaches: Option<Place>) {
        self.refilling = false;
        if self.reaches != Some(from) {
            return; // Jobs were dropped from the end meanwhile: the rows would leave a gap.
        }
        self.reaches = reaches;
        for (place, job) in rows {
            self.bytes += weight(&job);
            self.jobs.insert(place, Box::new(job));
        }
    }

    /// Takes the first job if it is due.
    pub(super) fn take_due(&mut self, now: i64) -> Option<(Place, Job)> {
        let first = self.jobs.first_entry().filter(|first| first.key().0 <= now)?;
        let (place, job) = first.remove_entry();
        self.bytes -= weight(&job);
        Some((place, *job))
    }

    pub(super) fn remove(&mut self, place: Place) {
        if let Some(job) = self.jobs.remove(&place) {
            self.bytes -= weight(&job);
        }
    }

    /// How many jobs come before this place, if it lies within reach.
    pub(super) fn before(&self, place: Place) -> Option<usize> {
        let is_here = self.reaches.is_none_or(|reaches| place <= reaches);
        is_here.then(|| self.jobs.range(..place).count())
    }

    /// When the first job in memory is due.
    pub(super) fn first_due(&self) -> Option<i64> {
        self.jobs.first_key_value().map(|(place, _)| place.0)
    }

    /// Where to read on in the table, if it is time to.
    pub(super) fn wants_more(&self) -> Option<Place> {
        self.reaches.filter(|_| self.jobs.len() < FEW && !self.refilling)
    }

    /// Nothing is in memory, something may be in the table, and nobody is reading it.
    pub(super) fn is_drained(&self) -> bool {
        self.jobs.is_empty() && self.reaches.is_some() && !self.refilling
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.reaches.is_none()
    }

    /// Bytes held, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a job in memory costs, about: its payload and its own fields.
pub(super) fn weight(job: &Job) -> usize {
    job.payload.len() + 512
}
