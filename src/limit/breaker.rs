//! When a vendor is left alone because nearly all of its calls fail: the rule of the breaker, as pure arithmetic.
//!
//! Never reads a clock and never waits. `redis/breaker.lua` is the same rule for many processes; a differential test holds the two together.
//!
//! Closed, it counts the calls that ended within the last `within`, in ten parts that slide. When enough ended and too many of them failed,
//! it opens: nobody calls for `open`. Then it is half open: one call at a time, the probe, goes out to see. One that succeeds closes it and
//! forgets what was before; one that fails opens it again.

use std::{collections::VecDeque, time::Duration};

use crate::clock::{Nanos, nanos};

/// Parts of `within` that slide by one at a time.
pub const PARTS: i64 = 10;

/// What the config says of one vendor's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The share of calls that have to fail, in millionths: whole numbers compare alike everywhere.
    pub failed: u64,
    /// So many calls have to have ended before their share says anything.
    pub calls: u64,
    pub within: Duration,
    pub open: Duration,
    /// A probe that has said nothing for so long went down with its process.
    pub probe: Duration,
}

/// Calls that ended, and those of them that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub ended: u64,
    pub failed: u64,
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Calls go.
    Closed,
    /// None go before this.
    Open { until: Nanos },
    /// The probe goes.
    HalfOpen,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Closed => "closed",
            Standing::Open { .. } => "open",
            Standing::HalfOpen => "half_open",
        }
    }
}

impl Tally {
    pub fn count(&mut self, failed: bool) {
        self.ended += 1;
        self.failed += u64::from(failed);
    }

    fn add(&mut self, other: Tally) {
        self.ended += other.ended;
        self.failed += other.failed;
    }
}

impl Terms {
    /// Whether so many failures open it.
    pub fn trips(&self, tally: Tally) -> bool {
        tally.ended >= self.calls && tally.failed * 1_000_000 >= self.failed * tally.ended
    }

    fn part(&self, at: Nanos) -> i64 {
        at.div_euclid((nanos(self.within) / PARTS).max(1))
    }
}

/// One vendor's breaker.
#[derive(Debug)]
pub struct Breaker {
    terms: Terms,
    /// What ended in each part that still counts, by its number, oldest first.
    parts: VecDeque<(i64, Tally)>,
    /// Set from when it opens until it closes.
    open_until: Option<Nanos>,
    /// The probe that is out, by its name, and when it is taken for dead.
    probe: Option<(u64, Nanos)>,
}

impl Breaker {
    pub fn new(terms: Terms) -> Breaker {
        Breaker { terms, parts: VecDeque::new(), open_until: None, probe: None }
    }

    pub fn standing(&self, now: Nanos) -> Standing {
        match self.open_until {
            None => Standing::Closed,
            Some(until) if now < until => Standing::Open { until },
            Some(_) => Standing::HalfOpen,
        }
    }

    /// Takes what calls came to. While it is not closed only the probe's call says something new.
    pub fn report(&mut self, tally: Tally, now: Nanos) {
        if self.open_until.is_some() || tally.ended == 0 {
            return;
        }
        let part = self.terms.part(now);
        while self.parts.front().is_some_and(|(number, _)| *number <= part - PARTS) {
            self.parts.pop_front();
        }
        match self.parts.back_mut() {
            Some((number, so_far)) if *number >= part => so_far.add(tally),
            _ => self.parts.push_back((part, tally)),
        }
        let mut all = Tally::default();
        self.parts.iter().for_each(|(_, tally)| all.add(*tally));
        if self.terms.trips(all) {
            self.open(now);
        }
    }

    /// Takes the probe under this name; says whether it was to be had.
    pub fn take_probe(&mut self, name: u64, now: Nanos) -> bool {
        let is_free = self.probe.is_none_or(|(_, until)| until <= now);
        if self.standing(now) != Standing::HalfOpen || !is_free {
            return false;
        }
        self.probe = Some((name, now.saturating_add(nanos(self.terms.probe))));
        true
    }

    /// The probe of this name is back: it failed, or not, or was never sent. One that was taken for dead says nothing any more.
    pub fn probed(&mut self, name: u64, failed: Option<bool>, now: Nanos) {
        if self.probe.is_none_or(|(probe, _)| probe != name) {
            return;
        }
        self.probe = None;
        match failed {
            Some(true) => self.open(now),
            Some(false) => self.open_until = None,
            None => {}
        }
    }

    fn open(&mut self, now: Nanos) {
        self.open_until = Some(now.saturating_add(nanos(self.terms.open)));
        self.parts.clear();
    }
}
