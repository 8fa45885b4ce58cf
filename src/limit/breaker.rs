//! When a vendor is left alone because nearly all of its calls fail: the rule of the breaker, as pure arithmetic.
//!
//! Never reads a clock and never waits. `redis/breaker.lua` is the same rule for many processes; a differential test compares the two.
//!
//! Closed, it counts the calls that ended within the last `within`, in ten parts that slide. When enough ended and too many of them failed,
//! it opens: nobody calls for `open`. Then it is half open: one call at a time, the probe, goes out to see. One that succeeds closes it and
//! forgets what was before; one that fails opens it again, for twice as long each time where the terms say so.
//!
//! A vendor that refuses our credentials has a second breaker with [`Terms::of_credentials`]: nothing is counted there, one refusal opens it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

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
    /// Each probe that fails doubles `open`, up to this.
    pub longest: Duration,
    /// A probe that has said nothing for so long went down with its process.
    pub probe: Duration,
}

/// Since when a breaker is not closed, and why it opened last, where that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub since: Nanos,
    pub why: Option<Arc<str>>,
}

/// Calls that ended, and those of them that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub ended: u64,
    pub failed: u64,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeEnd {
    /// The vendor is well.
    Good,
    Failed {
        why: Option<Arc<str>>,
    },
    /// It was not sent, or its outcome says nothing about what this breaker is for.
    Unknown,
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
    /// When a vendor that refuses our credentials is asked again, for one whose calls may take so long.
    pub fn of_credentials(probe: Duration) -> Terms {
        let (open, longest) = (Duration::from_secs(30), Duration::from_secs(300));
        Terms { failed: 1_000_000, calls: 1, within: Duration::from_secs(1), open, longest, probe }
    }

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
    /// How long it opened for the last time.
    wait: Duration,
    opened: Option<Opened>,
    /// The probe that is out, by its name, and when it is taken for dead.
    probe: Option<(u64, Nanos)>,
}

impl Breaker {
    pub fn new(terms: Terms) -> Breaker {
        let parts = VecDeque::new();
        Breaker { terms, parts, open_until: None, wait: Duration::ZERO, opened: None, probe: None }
    }

    pub fn standing(&self, now: Nanos) -> Standing {
        match self.open_until {
            None => Standing::Closed,
            Some(until) if now < until => Standing::Open { until },
            Some(_) => Standing::HalfOpen,
        }
    }

    /// Counts ended calls. Unless the breaker is closed they are ignored: then only the probe decides.
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
            self.open(self.terms.open, None, now);
        }
    }

    /// Opens it for `wait`, unless it is not closed already.
    pub fn trip(&mut self, wait: Duration, why: Arc<str>, now: Nanos) {
        if self.open_until.is_none() {
            self.open(wait, Some(why), now);
        }
    }

    /// Ends its wait: the probe may go.
    pub fn hurry(&mut self, now: Nanos) {
        self.open_until = self.open_until.map(|until| until.min(now));
    }

    /// Nothing while it is closed.
    pub fn opened(&self) -> Option<Opened> {
        self.opened.clone()
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

    /// The probe of this name is back. One that was taken for dead says nothing any more.
    pub fn probed(&mut self, name: u64, end: &ProbeEnd, now: Nanos) {
        if self.probe.is_none_or(|(probe, _)| probe != name) {
            return;
        }
        self.probe = None;
        match end {
            ProbeEnd::Failed { why } => self.open(self.terms.open, why.clone(), now),
            ProbeEnd::Good => (self.open_until, self.opened) = (None, None),
            ProbeEnd::Unknown => {}
        }
    }

    /// For `first` if it was closed, else for twice as long as the last time.
    fn open(&mut self, first: Duration, why: Option<Arc<str>>, now: Nanos) {
        let again = (self.wait * 2).clamp(self.terms.open, self.terms.longest);
        self.wait = if self.open_until.is_none() { first } else { again };
        self.open_until = Some(now.saturating_add(nanos(self.wait)));
        let since = self.opened.as_ref().map_or(now, |opened| opened.since);
        self.opened = Some(Opened { since, why });
        self.parts.clear();
    }
}
