//! What arrived when: every arrival's time, the last thousand arrivals whole, and what follows from them.
//!
//! Never rejects a call and never reads a clock: the times were taken when the request's head was there.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Uri};
use serde::Serialize;

/// Times and keys kept per name; beyond that calls are only counted and `Stats::journal_full` says so.
const TIMES: usize = 2_000_000;
/// Arrivals kept whole per name, and the bytes that their bodies may hold together.
const WHOLE: usize = 1_000;
const WHOLE_BYTES: usize = 64 << 20;

/// One call as it arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When the request's head had been read.
    pub at: Instant,
    pub method: String,
    pub path_and_query: String,
    /// In the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Empty while it is still coming in.
    pub body: Bytes,
}

impl Arrival {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What the vendor saw under one name since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// All calls: submitting ones and polls, refused ones too.
    pub count: u64,
    /// The most calls in any window of `window_ms`; two calls exactly that far apart are in different windows.
    pub worst_window: usize,
    pub window_ms: u64,
    /// From the first arrival to the last.
    pub span_s: f64,
    /// The smallest time from a call to the n-th after it, if `n=` was given and so many calls came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smallest_span_ms: Option<f64>,
    /// Different Idempotency-Keys of submitting calls, and submitting calls whose key had come before.
    pub distinct: usize,
    pub repeats: u64,
    pub max_in_flight: usize,
    /// Calls answered 429 by a limit (`max`) or `throttle_first`.
    pub rejected: u64,
    /// Callbacks that were answered 2xx, and those given up.
    pub callbacks_ok: u64,
    pub callbacks_bad: u64,
    /// Forged callbacks answered 4xx, and (which must not be) 2xx.
    pub forged_refused: u64,
    pub forged_accepted: u64,
    /// Times or keys were dropped, so windows, `distinct` and `repeats` are from the first two million calls.
    pub journal_full: bool,
}

/// Times are nanoseconds since `epoch`: half the memory of an `Instant`.
pub(crate) struct Journal {
    epoch: Instant,
    times: Vec<u64>,
    count: u64,
    whole: VecDeque<Whole>,
    whole_bytes: usize,
    // Hashes, not keys: among two million, 64 bits collide once in ten million runs.
    keys: HashSet<u64>,
    hasher: RandomState,
    repeats: u64,
    full: bool,
}

struct Whole {
    number: u64,
    at: Instant,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Journal {
    pub(crate) fn new(epoch: Instant) -> Journal {
        Journal {
            epoch,
            times: Vec::new(),
            count: 0,
            whole: VecDeque::new(),
            whole_bytes: 0,
            keys: HashSet::new(),
            hasher: RandomState::new(),
            repeats: 0,
            full: false,
        }
    }

    /// Writes an arrival down and returns its number, from 1.
    pub(crate) fn arrive(&mut self, at: Instant, head: Parts, submits: bool) -> u64 {
        self.count += 1;
        self.note_time(at);
        if submits && let Some(key) = head.headers.get("idempotency-key") {
            self.note_key(key.as_bytes());
        }
        if self.whole.len() == WHOLE {
            self.drop_oldest();
        }
        let Parts { method, uri, headers, .. } = head;
        self.whole.push_back(Whole { number: self.count, at, method, uri, headers, body: Bytes::new() });
        self.count
    }

    fn note_time(&mut self, at: Instant) {
        if self.times.len() == TIMES {
            self.full = true;
            return;
        }
        let time = self.nanos(at);
        // Two threads may reach the lock in another order than their calls arrived; the list stays sorted.
        let place = self.times.iter().rposition(|&earlier| earlier <= time).map_or(0, |i| i + 1);
        self.times.insert(place, time);
    }

    fn note_key(&mut self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        if self.keys.contains(&hash) {
            self.repeats += 1;
        } else if self.keys.len() < TIMES {
            self.keys.insert(hash);
        } else {
            self.full = true;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.whole.pop_front() {
            self.whole_bytes -= oldest.body.len();
        }
    }

    /// Adds the body to an arrival, if that is still kept, at the cost of the oldest ones.
    pub(crate) fn keep_body(&mut self, number: u64, body: &Bytes) {
        let Some(first) = self.whole.front().map(|whole| whole.number) else { return };
        let Some(place) = number.checked_sub(first) else { return };
        if body.len() > WHOLE_BYTES / 4 {
            return;
        }
        if let Some(whole) = self.whole.get_mut(place as usize) {
            whole.body = body.clone();
            self.whole_bytes += body.len();
        }
        while self.whole_bytes > WHOLE_BYTES {
            self.drop_oldest();
        }
    }

    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.whole.iter().map(Whole::arrival).collect()
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// A copy, so that windows are searched without holding up calls.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.times.clone()
    }

    /// The counts; what needs the times is filled in by `with_times`.
    pub(crate) fn counts(&self) -> Stats {
        Stats {
            count: self.count,
            distinct: self.keys.len(),
            repeats: self.repeats,
            journal_full: self.full,
            ..Stats::default()
        }
    }
}

impl Whole {
    fn arrival(&self) -> Arrival {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Arrival {
            at: self.at,
            method: self.method.to_string(),
            path_and_query: self.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            headers: self.headers.iter().map(|(k, v)| (k.to_string(), text(v.as_bytes()))).collect(),
            body: self.body.clone(),
        }
    }
}

impl Stats {
    pub(crate) fn with_times(mut self, times: &[u64], window: Duration, n: Option<usize>) -> Stats {
        self.window_ms = window.as_millis() as u64;
        self.worst_window = worst_window(times, window.as_nanos() as u64);
        self.smallest_span_ms = n.and_then(|n| smallest_span(times, n)).map(|nanos| nanos as f64 / 1e6);
        if let (Some(first), Some(last)) = (times.first(), times.last()) {
            self.span_s = (last - first) as f64 / 1e9;
        }
        self
    }
}

/// The most of these sorted times that lie less than `window` apart.
fn worst_window(times: &[u64], window: u64) -> usize {
    let (mut worst, mut start) = (0, 0);
    for (end, time) in times.iter().enumerate() {
        while start < end && time - times[start] >= window {
            start += 1;
        }
        worst = worst.max(end - start + 1);
    }
    worst
}

/// The smallest time that n + 1 consecutive arrivals take.
fn smallest_span(times: &[u64], n: usize) -> Option<u64> {
    times.iter().zip(times.get(n..)?).map(|(first, last)| last - first).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_half_open() {
        assert_eq!(worst_window(&[], 10), 0);
        assert_eq!(worst_window(&[0, 10, 20], 10), 1);
        assert_eq!(worst_window(&[0, 9, 10, 19], 10), 2);
        assert_eq!(worst_window(&[0, 1, 2, 11, 11, 11, 11, 30], 10), 5);
    }

    #[test]
    fn the_worst_window_is_what_counting_from_every_arrival_finds() {
        let mut time = 0;
        let times: Vec<u64> = (0..500u64)
            .map(|i| {
                time += i * i * 7919 % 23;
                time
            })
            .collect();
        for window in [1, 5, 17, 100, 1000] {
            let counted = times.iter().map(|from| times.iter().filter(|t| (*from..from + window).contains(t)).count());
            assert_eq!(worst_window(&times, window), counted.max().unwrap_or(0), "window {window}");
        }
    }

    #[test]
    fn the_smallest_span_is_over_n_plus_one_arrivals() {
        assert_eq!(smallest_span(&[0, 5, 7, 20], 2), Some(7));
        assert_eq!(smallest_span(&[0, 5], 2), None);
    }

    #[test]
    fn arrivals_that_reach_the_lock_out_of_order_are_sorted() {
        let epoch = Instant::now();
        let mut journal = Journal::new(epoch);
        for nanos in [5, 9, 7, 1] {
            let (head, ()) = hyper::Request::new(()).into_parts();
            journal.arrive(epoch + Duration::from_nanos(nanos), head, true);
        }
        assert_eq!(journal.times(), [1, 5, 7, 9]);
    }

    #[test]
    fn only_the_last_thousand_arrivals_are_kept_whole() {
        let mut journal = Journal::new(Instant::now());
        for i in 0..WHOLE as u64 + 10 {
            let (head, ()) = hyper::Request::new(()).into_parts();
            let number = journal.arrive(Instant::now(), head, true);
            journal.keep_body(number, &Bytes::from(i.to_string()));
        }
        let kept = journal.arrivals();
        assert_eq!((kept.len(), kept[0].body.as_ref()), (WHOLE, b"10".as_ref()));
        assert_eq!(journal.counts().count, WHOLE as u64 + 10);
    }
}
