//! What the rounds before have shown, so that not every round has to look at the limiter and at the store before it claims.
//!
//! Never more than a guess: where it is wrong, a round claims too few jobs, or gives back those that get no permit.

use crate::clock::Nanos;

/// Rounds in a row that may rely on the ones before; the next one looks again.
const MOST_UNSEEN: u32 = 3;
/// With at least this many permits in hand, half of them are used before the limiter is asked for more.
const MANY: usize = 8;

#[derive(Default)]
pub(super) struct Hints {
    /// No more permits can be had before this.
    look_at: Option<Nanos>,
    /// So many permits can be had at `look_at`, because the last round got all that it wanted and they will be used by then.
    permits: Option<usize>,
    /// Rounds since the limiter was last looked at.
    unseen: u32,
    /// Rounds in a row that claimed as many jobs as they wanted, so that there are more, as a rule.
    full: u32,
}

impl Hints {
    /// When to look for permits, if that is later than now.
    pub(super) fn look_later(&self, now: Nanos) -> Option<Nanos> {
        self.look_at.filter(|at| now < *at)
    }

    /// The limiter has nothing before this.
    pub(super) fn nothing_before(&mut self, at: Nanos) {
        self.look_at = Some(at);
    }

    /// Whether jobs are due, without a look at the store. After a few rounds the answer is no, and the count begins again.
    pub(super) fn jobs_are_due(&mut self) -> bool {
        if (1..=MOST_UNSEEN).contains(&self.full) {
            return true;
        }
        self.full = 0;
        false
    }

    /// A round has claimed, and got as many jobs as it wanted or not.
    pub(super) fn claimed(&mut self, is_full: bool) {
        self.full = if is_full { self.full + 1 } else { 0 };
    }

    /// How many permits can be had, without a look at the limiter. What is not known here is looked up, and the count begins again.
    pub(super) fn take_permits(&mut self) -> Option<usize> {
        let permits = self.permits.take().filter(|_| self.unseen < MOST_UNSEEN);
        self.unseen = if permits.is_some() { self.unseen + 1 } else { 0 };
        permits
    }

    /// A round has got this many permits: all that can be had, or not; and one for every job, or not. Of the `reserved` permits half will be
    /// used at `half_used_at`.
    pub(super) fn granted(&mut self, granted: Granted, reserved: usize, half_used_at: Option<Nanos>) {
        if granted.is_full || granted.permits >= MANY {
            self.look_at = half_used_at;
        }
        let used_by_then = (reserved / 2).saturating_sub(1); // One fewer, so that none is asked for in vain.
        if granted.to_all && used_by_then >= MANY {
            self.permits = Some(used_by_then);
        }
    }

    /// What was reserved has been given back, so nothing is known of the permits any more.
    pub(super) fn forget_permits(&mut self) {
        (self.look_at, self.permits) = (None, None);
    }
}

/// What a round got.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) permits: usize,
    /// As many jobs were claimed as permits were thought to be there.
    pub(super) is_full: bool,
    /// Every job claimed got its permit.
    pub(super) to_all: bool,
}
