//! Hints from earlier rounds, so that not every round has to ask the limiter and the store before it claims.
//!
//! Never more than a guess: if it is wrong, a round claims too few jobs, or gives jobs back that get no permit.

use crate::clock::Nanos;

/// Rounds in a row that may rely on hints; the next one asks again.
const MOST_UNSEEN: u32 = 3;
/// Permits that are taken for granted if the limiter gave the last ones soon.
pub(super) const FEW: usize = 4;
/// With at least this many permits in hand, half of them are used before the limiter is asked for more.
const MANY: usize = 8;

#[derive(Default)]
pub(super) struct Hints {
    /// No more permits can be had before this.
    look_at: Option<Nanos>,
    /// How many permits can be had at `look_at`. Known if the last round got all permits that it wanted: as many as will be used by then.
    permits: Option<usize>,
    /// The last round got all permits that it wanted, and soon.
    is_free: bool,
    /// Rounds since the limiter was last asked.
    unseen: u32,
    /// Rounds in a row that claimed as many jobs as they wanted. More jobs are likely to be due then.
    full: u32,
}

impl Hints {
    /// When to ask for permits, if that is later than now.
    pub(super) fn look_later(&self, now: Nanos) -> Option<Nanos> {
        self.look_at.filter(|at| now < *at)
    }

    /// Notes that the limiter has no permit before this time.
    pub(super) fn nothing_before(&mut self, at: Nanos) {
        (self.look_at, self.is_free) = (Some(at), false);
    }

    /// Notes that some jobs got no permit.
    pub(super) fn refused(&mut self) {
        self.is_free = false;
    }

    /// Permits that a first job, and those right behind it, are likely to get.
    pub(super) fn few_permits(&self) -> Option<usize> {
        Some(FEW).filter(|_| self.is_free)
    }

    /// Whether jobs are known to be due without asking the store. Every few rounds the answer is no, so that the store is asked.
    pub(super) fn jobs_are_due(&mut self) -> bool {
        if (1..=MOST_UNSEEN).contains(&self.full) {
            return true;
        }
        self.full = 0;
        false
    }

    /// Notes a claim; `is_full`: it got as many jobs as it wanted.
    pub(super) fn claimed(&mut self, is_full: bool) {
        self.full = if is_full { self.full + 1 } else { 0 };
    }

    /// How many permits can be had, if that is known without asking the limiter. Every few rounds it is not, so that the limiter is asked.
    pub(super) fn take_permits(&mut self) -> Option<usize> {
        let permits = self.permits.take().filter(|_| self.unseen < MOST_UNSEEN);
        self.unseen = if permits.is_some() { self.unseen + 1 } else { 0 };
        permits
    }

    /// Notes the permits of a round. `reserved` is how many permits are reserved now; half of them will be used at `half_used_at`.
    pub(super) fn granted(&mut self, granted: Granted, reserved: usize, half_used_at: Option<Nanos>) {
        self.is_free = granted.to_all && granted.soon;
        if granted.is_full || granted.permits >= MANY {
            self.look_at = half_used_at;
        }
        let used_by_then = (reserved / 2).saturating_sub(1); // One fewer, so that the limiter surely has them.
        if granted.to_all && used_by_then >= MANY {
            self.permits = Some(used_by_then);
        }
    }

    /// To be called when permits were given back: hints about permits are wrong now.
    pub(super) fn forget_permits(&mut self) {
        (self.look_at, self.permits) = (None, None);
    }
}

/// What a round got.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) permits: usize,
    /// As many jobs were claimed as could be, so more may be due.
    pub(super) is_full: bool,
    /// Every job claimed got its permit.
    pub(super) to_all: bool,
    /// None of them is far ahead.
    pub(super) soon: bool,
}
