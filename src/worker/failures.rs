//! Log lines about failed calls: a vendor's first failure at once, then at most one line a minute with the number of failures.
//!
//! Never decides what a failure is (see `attempt`). Metrics and the attempts of a job have every call.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::clock::{Nanos, nanos};

/// The time between two lines about one vendor.
const EVERY: Duration = Duration::from_secs(60);

/// The vendors that had a failure in the last minute: no more than the config has.
pub struct Failures {
    vendors: Mutex<HashMap<Arc<str>, Recent>>,
    says: &'static str,
}

/// One vendor's failures since the last line about it.
struct Recent {
    /// When the next line may come.
    next_at: Nanos,
    calls: u64,
    reason: String,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    vendor: Arc<str>,
    calls: u64,
    reason: String,
}

impl Default for Failures {
    fn default() -> Failures {
        Failures::new("calls to the vendor failed; one line a minute counts them")
    }
}

impl Failures {
    /// For failures of another kind; `says` is the message of each line.
    pub fn new(says: &'static str) -> Failures {
        Failures { vendors: Mutex::default(), says }
    }

    /// One more failure. The first one is logged, and so is one that comes when a line is due.
    pub fn note(&self, vendor: &Arc<str>, reason: &str, now: Nanos) {
        if let Some(line) = self.count(vendor, reason, now) {
            line.log(self.says);
        }
    }

    /// Logs the lines that are due.
    pub(super) fn log_due(&self, now: Nanos) {
        self.due(now).iter().for_each(|line| line.log(self.says));
    }

    fn count(&self, vendor: &Arc<str>, reason: &str, now: Nanos) -> Option<Line> {
        let mut vendors = self.lock();
        let recent = vendors.entry(vendor.clone()).or_insert(Recent { next_at: now, calls: 0, reason: String::new() });
        recent.calls += 1;
        reason.clone_into(&mut recent.reason);
        recent.line(vendor, now)
    }

    /// The lines that are due. A vendor without a failure since the last one is forgotten: its next failure is a first one.
    fn due(&self, now: Nanos) -> Vec<Line> {
        let mut lines = Vec::new();
        self.lock().retain(|vendor, recent| {
            let is_over = recent.next_at <= now && recent.calls == 0;
            lines.extend(recent.line(vendor, now));
            !is_over
        });
        lines
    }

    /// A panic under the lock leaves at worst a failure that is not counted.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Recent>> {
        self.vendors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// What has been counted, if there is something and a line is due.
    fn line(&mut self, vendor: &Arc<str>, now: Nanos) -> Option<Line> {
        if self.next_at > now || self.calls == 0 {
            return None;
        }
        self.next_at = now.saturating_add(nanos(EVERY));
        let (calls, reason) = (std::mem::take(&mut self.calls), std::mem::take(&mut self.reason));
        Some(Line { vendor: vendor.clone(), calls, reason })
    }
}

impl Line {
    fn log(&self, says: &str) {
        let Line { vendor, calls, reason } = self;
        tracing::warn!(%vendor, failed = calls, reason, "{says}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn said(line: Option<Line>) -> Option<(u64, String)> {
        line.map(|line| (line.calls, line.reason))
    }

    #[test]
    fn the_first_failure_is_logged_at_once_and_the_others_once_a_minute_with_their_number() {
        let (failures, acme) = (Failures::default(), Arc::from("acme"));
        assert_eq!(said(failures.count(&acme, "refused", 0)), Some((1, "refused".into())));
        for at in 1..60 {
            assert_eq!(failures.count(&acme, "timed out", at * SECOND), None);
        }
        assert_eq!(failures.due(59 * SECOND), []);
        let lines = failures.due(60 * SECOND);
        assert_eq!(lines, [Line { vendor: acme.clone(), calls: 59, reason: "timed out".into() }]);
        assert_eq!(failures.due(61 * SECOND), []);
        assert_eq!(failures.count(&acme, "refused", 62 * SECOND), None, "the minute has begun anew");
        assert_eq!(said(failures.count(&acme, "refused", 121 * SECOND)), Some((2, "refused".into())));
    }

    #[test]
    fn after_a_minute_without_failures_the_next_one_is_a_first_one() {
        let (failures, acme) = (Failures::default(), Arc::from("acme"));
        failures.count(&acme, "refused", 0);
        assert_eq!(failures.due(60 * SECOND), []);
        assert!(failures.lock().is_empty(), "nothing is kept of a vendor that is well");
        assert_eq!(said(failures.count(&acme, "refused", 60 * SECOND)), Some((1, "refused".into())));
    }

    #[test]
    fn each_vendor_has_lines_of_its_own() {
        let failures = Failures::default();
        for vendor in ["acme", "other"] {
            assert!(failures.count(&vendor.into(), "refused", 0).is_some());
            assert!(failures.count(&vendor.into(), "refused", SECOND).is_none());
        }
        assert_eq!(failures.due(60 * SECOND).len(), 2);
    }
}
