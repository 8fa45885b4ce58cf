//! What `top` knows: the last figures, the calls of the last minute, which vendor is selected, and what is asked of the person.
//!
//! Never reads or draws anything: answers and keys change it, and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::super::vendors::Row;

/// For so long calls are remembered.
const MINUTE: Duration = Duration::from_secs(60);
/// Lines that a vendor's page can be moved by at most.
const MOST_LINES: usize = 200;

/// All vendors together. What is of all tenants is not there for the key of one tenant, or if it cannot be read now.
#[derive(Deserialize)]
pub(super) struct Stats {
    pub(super) accepted_per_s: Option<f64>,
    pub(super) done_per_s: Option<f64>,
    pub(super) failed_per_s: Option<f64>,
    pub(super) waiting: u64,
}

/// One reading of the service.
pub(super) struct Figures {
    pub(super) stats: Stats,
    pub(super) vendors: Vec<Row>,
}

/// A request to make.
#[derive(Debug, PartialEq)]
pub(super) enum Ask {
    Figures { at: Instant },
    Failures { vendor: String },
    Pause { vendor: String, resume: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Enter,
    Sort,
    Pause,
    Yes,
    Help,
    Quit,
    /// Ctrl-C.
    Interrupt,
    Other,
}

/// The order of vendors. Each but `Name` has the largest number first; equal ones are in the order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Those that are not called first.
    #[default]
    Need,
    Name,
    Sent,
    InFlight,
    Waiting,
    Oldest,
    SlowDowns,
}

impl Sort {
    fn next(self) -> Sort {
        match self {
            Sort::Need => Sort::Name,
            Sort::Name => Sort::Sent,
            Sort::Sent => Sort::InFlight,
            Sort::InFlight => Sort::Waiting,
            Sort::Waiting => Sort::Oldest,
            Sort::Oldest => Sort::SlowDowns,
            Sort::SlowDowns => Sort::Need,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Sort::Need => "state",
            Sort::Name => "name",
            Sort::Sent => "sent/s",
            Sort::InFlight => "in flight",
            Sort::Waiting => "waiting",
            Sort::Oldest => "oldest",
            Sort::SlowDowns => "429s",
        }
    }
}

/// What is on the screen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    #[default]
    Vendors,
    /// The same, with a question below.
    Question {
        vendor: String,
        resume: bool,
    },
    /// Why a vendor is not called, and its last failures, from this line on. `None`: they are being read.
    Why {
        vendor: String,
        failures: Option<String>,
        from: usize,
    },
    Help,
}

#[derive(Default)]
pub(super) struct Top {
    pub(super) figures: Option<Figures>,
    /// Calls of each vendor so far, and when they were read: oldest first, a minute and no more.
    calls: VecDeque<(Duration, HashMap<String, u64>)>,
    selected: Option<String>,
    pub(super) sort: Sort,
    pub(super) page: Page,
    /// What the last change brought.
    pub(super) said: Option<String>,
    /// Why the figures are not those of now.
    pub(super) problem: Option<String>,
    pub(super) is_over: bool,
}

impl Top {
    /// New figures, read `at` so long after the start.
    pub(super) fn note(&mut self, figures: Figures, at: Duration) {
        let calls = figures.vendors.iter().filter_map(|vendor| Some((vendor.name.clone(), vendor.calls_total?)));
        self.calls.push_back((at, calls.collect()));
        while self.calls.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= MINUTE) {
            self.calls.pop_front();
        }
        self.figures = Some(figures);
        self.problem = None;
    }

    pub(super) fn cannot_read(&mut self, why: &str) {
        self.problem = why.lines().next().map(str::to_owned);
    }

    pub(super) fn note_failures(&mut self, of: &str, text: String) {
        if let Page::Why { vendor, failures, .. } = &mut self.page
            && vendor == of
        {
            *failures = Some(text);
        }
    }

    pub(super) fn say(&mut self, text: String) {
        self.said = Some(text);
    }

    /// What a key changes here, and what it asks of the service.
    pub(super) fn press(&mut self, key: Key) -> Option<Ask> {
        self.said = None;
        let page = std::mem::take(&mut self.page);
        match (page, key) {
            (_, Key::Interrupt) => self.is_over = true,
            (Page::Question { vendor, resume }, Key::Yes) => return Some(Ask::Pause { vendor, resume }),
            // Any other key means no.
            (Page::Question { .. }, _) => {}
            (_, Key::Quit) => self.is_over = true,
            (Page::Vendors | Page::Why { .. }, Key::Pause) => {
                let question = |row: &Row| Page::Question { vendor: row.name.clone(), resume: row.paused };
                self.page = self.selected_row().map(question).unwrap_or_default();
            }
            (Page::Vendors, Key::Up) => self.select(|place| place.saturating_sub(1)),
            (Page::Vendors, Key::Down) => self.select(|place| place + 1),
            (Page::Vendors, Key::Sort) => self.sort = self.sort.next(),
            (Page::Vendors, Key::Help) => self.page = Page::Help,
            (Page::Vendors, Key::Enter) => {
                let vendor = self.selected_row()?.name.clone();
                self.page = Page::Why { vendor: vendor.clone(), failures: None, from: 0 };
                return Some(Ask::Failures { vendor });
            }
            (Page::Why { vendor, failures, from }, Key::Up | Key::Down) => {
                let from = if key == Key::Up { from.saturating_sub(1) } else { (from + 1).min(MOST_LINES) };
                self.page = Page::Why { vendor, failures, from };
            }
            // Any other key leads back to the vendors.
            _ => {}
        }
        None
    }

    fn select(&mut self, to: impl Fn(usize) -> usize) {
        let rows = self.rows();
        let place = to(self.place(&rows)).min(rows.len().saturating_sub(1));
        self.selected = rows.get(place).map(|row| row.name.clone());
    }

    fn selected_row(&self) -> Option<&Row> {
        let rows = self.rows();
        rows.get(self.place(&rows)).copied()
    }

    /// Which of these rows is selected: the first, if the one that was is gone.
    pub(super) fn place(&self, rows: &[&Row]) -> usize {
        rows.iter().position(|row| Some(&row.name) == self.selected.as_ref()).unwrap_or_default()
    }

    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.figures.as_ref()?.vendors.iter().find(|row| row.name == name)
    }

    /// The vendors in their order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.figures.iter().flat_map(|figures| &figures.vendors).collect();
        let number = |row: &Row| match self.sort {
            Sort::Need => f64::from(u8::from(row.blocked_on.is_some())),
            Sort::Name => 0.0,
            Sort::Sent => self.a_second(&row.name).unwrap_or_default(),
            Sort::InFlight => row.in_flight.unwrap_or_default() as f64,
            Sort::Waiting => row.waiting as f64,
            Sort::Oldest => row.oldest_waiting_s.unwrap_or_default(),
            Sort::SlowDowns => row.throttled_total.unwrap_or_default() as f64,
        };
        rows.sort_by(|a, b| number(b).total_cmp(&number(a)).then_with(|| a.name.cmp(&b.name)));
        rows
    }

    /// Calls a second, between the last two readings.
    pub(super) fn a_second(&self, vendor: &str) -> Option<f64> {
        let ((from, before), (to, after)) = (self.calls.iter().nth_back(1)?, self.calls.back()?);
        let calls = after.get(vendor)?.saturating_sub(*before.get(vendor)?);
        Some(calls as f64 / to.saturating_sub(*from).as_secs_f64().max(0.001))
    }

    /// Calls of the last minute, and whether all of it has been seen.
    pub(super) fn a_minute(&self, vendor: &str) -> Option<(u64, bool)> {
        let ((from, before), (to, after)) = (self.calls.front()?, self.calls.back()?);
        let calls = after.get(vendor)?.saturating_sub(*before.get(vendor)?);
        Some((calls, to.saturating_sub(*from) >= MINUTE))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A vendor as `GET /vendors` has it, with these changes.
    pub(in super::super) fn vendor(name: &str, changes: Value) -> Value {
        let mut vendor = json!({
            "name": name, "kind": "sync", "pool": name, "paused": false, "paused_until": null, "paused_since": null,
            "paused_by": null, "breaker": "closed", "blocked_on": null, "since": null, "until": null,
            "last_error": null, "concurrency": 32, "open": 0, "waiting": 0, "oldest_waiting_s": null,
            "drain_eta": null, "in_flight": 0, "calls_total": 0, "throttled_total": 0, "breaches_total": 0,
            "limits": [{"id": "10/s", "calls": 10, "per": "1s", "shape": "paced", "key": "vendor", "used": 7,
                        "next_at": "2026-11-22T12:00:00.000Z"}],
        });
        for (key, value) in changes.as_object().expect("changes") {
            vendor[key] = value.clone();
        }
        vendor
    }

    pub(in super::super) fn figures(vendors: &[Value]) -> Figures {
        let vendors = vendors.iter().map(|vendor| serde_json::from_value(vendor.clone()).expect("a row")).collect();
        let stats = Stats { accepted_per_s: Some(12.34), done_per_s: Some(11.0), failed_per_s: None, waiting: 4211 };
        Figures { stats, vendors }
    }

    fn top() -> Top {
        let mut top = Top::default();
        let blocked = json!({"blocked_on": "breaker", "breaker": "open", "waiting": 5});
        let vendors = [vendor("acme", json!({"waiting": 9})), vendor("bureau", blocked), vendor("cards", json!({}))];
        top.note(figures(&vendors), Duration::ZERO);
        top
    }

    fn names(top: &Top) -> Vec<&str> {
        top.rows().into_iter().map(|row| &*row.name).collect()
    }

    #[test]
    fn vendors_that_are_not_called_come_first_and_keys_change_the_order() {
        let mut top = top();
        assert_eq!(names(&top), ["bureau", "acme", "cards"]);
        top.press(Key::Sort);
        assert_eq!((top.sort, names(&top)), (Sort::Name, vec!["acme", "bureau", "cards"]));
        while top.sort != Sort::Waiting {
            top.press(Key::Sort);
        }
        assert_eq!(names(&top), ["acme", "bureau", "cards"]);
        while top.sort != Sort::Need {
            top.press(Key::Sort);
        }
    }

    #[test]
    fn a_vendor_stays_selected_when_the_order_changes_and_the_ends_are_no_limit() {
        let mut top = top();
        let selected = |top: &Top| top.selected_row().map(|row| row.name.clone());
        assert_eq!(selected(&top).as_deref(), Some("bureau"));
        top.press(Key::Down);
        top.press(Key::Sort);
        assert_eq!(selected(&top).as_deref(), Some("acme"));
        (0..9).for_each(|_| drop(top.press(Key::Down)));
        assert_eq!(selected(&top).as_deref(), Some("cards"));
        top.note(figures(&[vendor("acme", json!({}))]), Duration::from_secs(1));
        assert_eq!(selected(&top).as_deref(), Some("acme"), "the selected one is gone");
        assert_eq!(Top::default().press(Key::Pause), None, "there is nothing to pause yet");
    }

    #[test]
    fn a_vendor_is_paused_only_after_yes_and_a_paused_one_is_resumed() {
        let mut top = top();
        for no in [Key::Other, Key::Quit, Key::Pause, Key::Enter] {
            assert_eq!((top.press(Key::Pause), top.press(no)), (None, None));
            assert!(!top.is_over && top.page == Page::Vendors, "{no:?}");
        }
        top.press(Key::Pause);
        assert_eq!(top.press(Key::Yes), Some(Ask::Pause { vendor: "bureau".into(), resume: false }));
        assert_eq!(top.press(Key::Yes), None, "once");
        top.note(figures(&[vendor("acme", json!({"paused": true}))]), Duration::from_secs(1));
        top.press(Key::Pause);
        assert_eq!(top.press(Key::Yes), Some(Ask::Pause { vendor: "acme".into(), resume: true }));
        top.press(Key::Pause);
        top.press(Key::Interrupt);
        assert!(top.is_over, "Ctrl-C ends it whatever is asked");
    }

    #[test]
    fn what_was_sent_is_the_difference_of_readings() {
        let mut top = Top::default();
        assert_eq!((top.a_second("acme"), top.a_minute("acme")), (None, None));
        for second in 0..=90_u64 {
            let calls = vendor("acme", json!({"calls_total": second * second}));
            top.note(figures(&[calls]), Duration::from_secs(second));
            match second {
                0 => assert_eq!(top.a_minute("acme"), Some((0, false))),
                10 => assert_eq!((top.a_second("acme"), top.a_minute("acme")), (Some(19.0), Some((100, false)))),
                90 => assert_eq!((top.a_second("acme"), top.a_minute("acme")), (Some(179.0), Some((7200, true)))),
                _ => {}
            }
            assert!(top.calls.len() <= 61);
        }
        top.note(figures(&[vendor("acme", json!({"calls_total": null}))]), Duration::from_secs(91));
        assert_eq!((top.a_second("acme"), top.a_minute("acme")), (None, None), "a tenant's key does not see it");
    }

    #[test]
    fn the_failures_of_a_vendor_are_asked_for_and_shown_for_that_vendor_only() {
        let mut top = top();
        assert_eq!(top.press(Key::Enter), Some(Ask::Failures { vendor: "bureau".into() }));
        top.note_failures("acme", "old".into());
        top.note_failures("bureau", "new".into());
        top.press(Key::Down);
        let page = Page::Why { vendor: "bureau".into(), failures: Some("new".into()), from: 1 };
        assert_eq!(top.page, page);
        top.press(Key::Enter);
        assert_eq!(top.page, Page::Vendors);
    }
}
