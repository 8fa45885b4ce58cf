//! The history of a pool's limits, with which calls are compared.
//!
//! Never reads a clock and never counts a call. Processes learn of a change one after the other, so for a while some may use the old limits and
//! others the new ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::judge::{Rule, rules};
use crate::{clock::Nanos, config::parse_limits, in_force::Change};

/// This long after one process has changed its limits no process uses the old ones, in microseconds. A message takes up to a second, and
/// permits that were given before are dated up to half a second ahead.
const LEFT_AFTER: i64 = 2_000_000;
/// Other processes may have learned of a change this long before this process did, because messages can be lost. In microseconds.
const KNOWN_BEFORE: i64 = 5_000_000;
/// Changes that are remembered. Windows that began before the first of them are not judged.
const MOST_CHANGES: usize = 64;

/// The sets of limits of one pool, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// No call before this was made under these limits.
    from: i64,
    /// When a process learned of them.
    at: i64,
    /// How often live limits had been changed by then.
    version: u64,
    /// JSON, as the API writes them; `None` if they are unknown.
    limits: Option<String>,
}

/// One set of limits, and when it may have been in force somewhere.
pub(super) struct Era {
    pub(super) from: i64,
    pub(super) until: i64,
    /// By the name of what they count; `None` if they are unknown.
    pub(super) rules: Option<BTreeMap<String, Rule>>,
}

impl History {
    /// Adds the changes that a process has seen; `stamp` translates its times. They do not apply to calls before `judged_to`, which are judged.
    pub fn follow(&mut self, changes: &[Change], stamp: impl Fn(Nanos) -> i64, now: Nanos, judged_to: Option<i64>) {
        let (now, judged_to) = (stamp(now), judged_to.unwrap_or(i64::MIN));
        // Changes lie in the past, even if the clock was set back since.
        self.0.iter_mut().for_each(|entry| entry.at = entry.at.min(now));
        for change in changes {
            let (at, last) = (stamp(change.at), self.0.last_mut());
            if last.as_ref().is_some_and(|last| at < last.at || change.version < last.version) {
                continue;
            }
            // The limits with which a process began may have been in force long before.
            let known = if change.is_first { i64::MIN } else { at.saturating_sub(KNOWN_BEFORE) };
            let entry = Entry { from: known.max(judged_to), at, version: change.version, limits: None };
            match last {
                // The limits in between are unknown: no running process has seen them.
                Some(last) if change.version > last.version + 1 => self.0.push(entry.clone()),
                Some(last) if last.limits.as_ref() == Some(&change.limits) => {
                    last.version = change.version;
                    continue;
                }
                _ => {}
            }
            self.0.push(Entry { limits: Some(change.limits.clone()), ..entry });
        }
        self.drop_first(self.0.len().saturating_sub(MOST_CHANGES));
    }

    /// Forgets limits that all processes had left before this.
    pub fn forget(&mut self, before: i64) {
        let gone = self.0.iter().skip(1).take_while(|next| next.at.saturating_add(LEFT_AFTER) <= before).count();
        self.drop_first(gone);
    }

    fn drop_first(&mut self, gone: usize) {
        self.0.drain(..gone);
        if let Some(first) = self.0.first_mut().filter(|_| gone > 0) {
            // Until then the forgotten limits may have been in force.
            first.from = first.at.saturating_add(LEFT_AFTER);
        }
    }

    pub(super) fn eras(&self) -> Vec<Era> {
        let ends = self.0.iter().skip(1).map(|next| next.at.saturating_add(LEFT_AFTER)).chain([i64::MAX]);
        // Limits of a newer version may not be readable here.
        let read = |entry: &Entry| Some(rules(&parse_limits(entry.limits.as_ref()?).ok()?));
        self.0.iter().zip(ends).map(|(entry, until)| Era { from: entry.from, until, rules: read(entry) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(at: Nanos, limits: &str) -> Change {
        Change { at: at * 1000, is_first: at == 0, version: 0, limits: limits.into() }
    }

    fn follow(history: &mut History, changes: &[Change], judged_to: Option<i64>) {
        history.follow(changes, |at| at / 1000, Nanos::MAX, judged_to);
    }

    fn spans(history: &History) -> Vec<(i64, i64)> {
        history.eras().iter().map(|era| (era.from, era.until)).collect()
    }

    #[test]
    fn the_first_limits_are_those_of_all_calls_on_record() {
        let mut history = History::default();
        follow(&mut history, &[change(0, "[]"), change(20_000_000, r#"["1/s"]"#)], None);
        assert_eq!(spans(&history), [(i64::MIN, 22_000_000), (15_000_000, i64::MAX)]);
    }

    #[test]
    fn a_process_that_begins_with_other_limits_may_not_be_the_first_that_has_them() {
        let mut history = History::default();
        follow(&mut history, &[change(0, "[]")], None);
        let mut restarted = change(90_000_000, r#"["1/s"]"#);
        restarted.is_first = true;
        follow(&mut history, &[restarted.clone()], Some(30_000_000));
        follow(&mut history, &[restarted], Some(80_000_000));
        assert_eq!(spans(&history), [(i64::MIN, 92_000_000), (30_000_000, i64::MAX)]);
    }

    #[test]
    fn limits_that_nobody_saw_are_known_to_be_unknown() {
        let mut history = History::default();
        let set = |at, version| Change { version, ..change(at, "[]") };
        follow(&mut history, &[set(0, 1), set(20_000_000, 2), set(40_000_000, 4)], None);
        let known: Vec<bool> = history.eras().iter().map(|era| era.rules.is_some()).collect();
        assert_eq!(known, [true, false, true]);
        assert_eq!(spans(&history)[1], (35_000_000, 42_000_000));
    }

    #[test]
    fn limits_that_all_have_left_long_ago_are_forgotten() {
        let mut history = History::default();
        follow(&mut history, &[change(0, "[]"), change(1, r#"["1/s"]"#), change(9_000_000, "[]")], None);
        history.forget(10_999_999);
        assert_eq!(spans(&history).len(), 2, "some were left two seconds after the last change");
        history.forget(11_000_000);
        assert_eq!(spans(&history), [(11_000_000, i64::MAX)]);
    }

    #[test]
    fn no_more_changes_than_some_are_remembered() {
        let changes: Vec<Change> = (0..200).map(|n| change(n, &format!(r#"["{}/s"]"#, n + 1))).collect();
        let mut history = History::default();
        follow(&mut history, &changes, None);
        assert_eq!(history.eras().len(), MOST_CHANGES);
    }
}
