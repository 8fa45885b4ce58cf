//! The part of a lane that is in memory: the keys of its first jobs, in order. The other jobs are only in the table.
//!
//! Never has a payload, and never more than `MOST` keys. The invariant: a waiting job is in the cache if and only if its place is at or before
//! `complete_to`. Exceptions are leased jobs and rows that cannot be read. If `complete_to` is unset, the whole lane is in the cache.

use std::collections::VecDeque;

use super::steady::{Now, Steady};
use crate::{
    clock::Time,
    job::{Job, JobId},
};

/// A job's place in its lane, as the table orders it: due time, then row number.
pub(super) type Place = (i64, i64);

/// Jobs in a cache at most.
pub(super) const MOST: usize = 2048;
/// A cache with fewer than this is refilled, if the table has more.
const FEW: usize = 512;

/// The key of a waiting job; the rest is read when it is claimed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) id: JobId,
    /// When its row was last written.
    pub(super) set_at: Time,
    /// The size of its payload; a small one may count as nothing.
    pub(super) bytes: u32,
    /// All attempts so far: the fence.
    pub(super) attempt: u32,
    /// When it is due, in the index's steady time.
    due: i64,
}

impl Entry {
    pub(super) fn new(place: Place, id: JobId, set_at: Time, bytes: usize, attempt: u32) -> Entry {
        Entry { place, id, set_at, bytes: u32::try_from(bytes).unwrap_or(u32::MAX), attempt, due: place.0 }
    }

    pub(super) fn of(n: i64, job: &Job) -> Entry {
        Entry::new(
            (job.due_at.0, n),
            job.id,
            job.updated_at,
            usize::try_from(job.weight).unwrap_or(usize::MAX),
            job.attempt,
        )
    }

    /// Whether it waits for a wall-clock time that the caller named (`not_before`). All others wait for a duration, or not at all.
    fn waits_for_wall(&self) -> bool {
        self.attempt == 0 && self.place.0 > self.set_at.0
    }

    /// Sets `due` of an entry that is new to the index. If the clock was set back since its row was written, a job that waits for a duration
    /// still waits for that duration.
    pub(super) fn timed(self, steady: &Steady, now: Now) -> Entry {
        let due = steady.of(Time(self.place.0));
        let was_ahead = self.set_at > now.wall && !self.waits_for_wall();
        let wait = self.place.0.saturating_sub(self.set_at.0).max(0);
        Entry { due: if was_ahead { due.min(now.steady.saturating_add(wait)) } else { due }, ..self }
    }

    /// Sets `due` again, because the clock may have been set. That changes only jobs that wait for a wall-clock time.
    pub(super) fn timed_again(self, steady: &Steady) -> Entry {
        if self.waits_for_wall() { Entry { due: steady.of(Time(self.place.0)), ..self } } else { self }
    }

    fn order(&self) -> (i64, i64) {
        (self.due, self.place.1)
    }
}

/// The first jobs of a lane (for calls, or for polls).
#[derive(Default)]
pub(super) struct LaneCache {
    /// Sorted by `order`, which is the order of places unless the clock was set.
    jobs: VecDeque<Entry>,
    complete_to: Option<Place>,
    pub(super) refilling: bool,
}

impl LaneCache {
    /// To be called on an empty cache whose lane has jobs in the table.
    pub(super) fn set_unread(&mut self) {
        self.complete_to = Some((i64::MIN, i64::MIN));
    }

    /// Adds a job, if its place is at or before `complete_to`. A full cache drops the job that is last in the lane.
    pub(super) fn put(&mut self, entry: Entry) {
        if self.complete_to.is_some_and(|complete_to| entry.place > complete_to) {
            return;
        }
        self.insert(entry);
        if self.jobs.len() > MOST {
            self.drop_last();
        }
    }

    fn insert(&mut self, entry: Entry) {
        if self.jobs.is_empty() {
            self.jobs.reserve_exact(1); // Most lanes have one job.
        }
        let at = self.jobs.partition_point(|other| other.order() < entry.order());
        self.jobs.insert(at, entry);
    }

    fn drop_last(&mut self) {
        let last = self.jobs.iter().enumerate().max_by_key(|(_, entry)| entry.place).map(|(at, _)| at);
        last.and_then(|at| self.jobs.remove(at));
        self.complete_to = self.jobs.iter().map(|entry| entry.place).max();
    }

    /// Adds the jobs that were read from the table: those after `from`, up to `complete_to` (`None`: up to the end of the lane).
    pub(super) fn refill(&mut self, from: Place, rows: impl Iterator<Item = Entry>, complete_to: Option<Place>) {
        self.refilling = false;
        if self.complete_to != Some(from) {
            return; // The cache has dropped jobs meanwhile, so there would be a gap before these rows.
        }
        self.complete_to = complete_to;
        rows.for_each(|entry| self.insert(entry));
    }

    /// The first job, if it is due.
    pub(super) fn due(&self, now: i64) -> Option<&Entry> {
        self.jobs.front().filter(|first| first.due <= now)
    }

    /// Takes the first job.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let first = self.jobs.pop_front();
        self.give_back_memory();
        first
    }

    pub(super) fn remove(&mut self, n: i64) -> Option<Entry> {
        let position = self.jobs.iter().position(|entry| entry.place.1 == n)?;
        let removed = self.jobs.remove(position);
        self.give_back_memory();
        removed
    }

    /// Frees memory that the lane needed only while it was long.
    fn give_back_memory(&mut self) {
        if self.jobs.capacity() > 64 && self.jobs.len() < self.jobs.capacity() / 4 {
            self.jobs.shrink_to(self.jobs.len() * 2);
        }
    }

    /// When the first job in memory is due.
    pub(super) fn first_due(&self) -> Option<i64> {
        self.jobs.front().map(|first| first.due)
    }

    /// To be called after the clock was set: sets `due` of the jobs that wait for a wall-clock time; says whether there are any.
    pub(super) fn retime(&mut self, steady: &Steady) -> bool {
        let mut any = false;
        for entry in self.jobs.iter_mut().filter(|entry| entry.waits_for_wall()) {
            *entry = entry.timed_again(steady);
            any = true;
        }
        if any {
            self.jobs.make_contiguous().sort_unstable_by_key(Entry::order);
        }
        any
    }

    /// The place after which to read the table, if the cache is to be refilled.
    pub(super) fn refill_from(&self) -> Option<Place> {
        self.complete_to.filter(|_| self.jobs.len() < FEW && !self.refilling)
    }

    /// Nothing is in memory, something may be in the table, and nobody is reading it.
    pub(super) fn is_drained(&self) -> bool {
        self.jobs.is_empty() && self.complete_to.is_some() && !self.refilling
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.complete_to.is_none()
    }

    /// How many jobs there is memory for.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.jobs.capacity()
    }
}
