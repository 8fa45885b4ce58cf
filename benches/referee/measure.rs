//! The verdict, from times of arrival and what the machine did meanwhile, and the table it is printed in.
//!
//! Never waits and never asks anybody.

use std::time::{Duration, Instant};

use mock_vendors::Stats;

use crate::{
    noise::Stall,
    plan::{Fault, Promise, Scenario},
    site::Counted,
};

/// Calls that were under way when the gate closed arrive within this time after the vendor's 429.
const ON_THE_WIRE: Duration = Duration::from_millis(100);
/// What a stall held up is done within this time after it.
const AFTER_STALL: Duration = Duration::from_millis(2);
/// Another limit is known everywhere within a second, and permits of before lie half a second ahead at most.
const IN_FORCE: Duration = Duration::from_millis(1_500);

/// What all rows of a scenario share.
pub(crate) struct Verdict {
    scenario: String,
    calls: usize,
    /// Calls that the vendor answered 429 because its limit was broken.
    refused: u64,
    max_in_flight: usize,
    limiter_calls: Option<f64>,
    /// Permits missed, of all that were given; in per cent.
    late: f64,
    /// When the machine stood still meanwhile.
    stalls: Vec<Stall>,
}

/// One limit of a scenario.
pub(crate) struct Row<'a> {
    of: &'a Verdict,
    limit: String,
    /// The smallest time that N + 1 calls took, less T; negative is a breach.
    margin: Option<f64>,
    breaches: usize,
    /// Breaches while the machine stood still for as long as the calls were short by.
    stalled: usize,
    utilisation: Option<f64>,
}

impl Verdict {
    pub(crate) fn new(
        scenario: &Scenario,
        backend: &str,
        arrivals: &[Instant],
        stats: &Stats,
        (before, after): (&Counted, &Counted),
        stalls: Vec<Stall>,
    ) -> Verdict {
        let asked = after.limiter_calls.zip(before.limiter_calls).and_then(|(after, before)| {
            after.checked_sub(before + 1) // our own look is one of them
        });
        let calls = arrivals.len();
        Verdict {
            scenario: format!("{backend} {}", scenario.name),
            calls,
            refused: stats.rejected,
            max_in_flight: stats.max_in_flight,
            limiter_calls: asked.map(|asked| asked as f64 / calls.max(1) as f64),
            late: after.late as f64 / after.granted.max(1) as f64 * 100.0,
            stalls,
        }
    }

    /// `struck`: when the fault was, which may have been another limit.
    pub(crate) fn rows(
        &self,
        scenario: &Scenario,
        arrivals: &[Instant],
        struck: Instant,
        ended: Instant,
    ) -> Vec<Row<'_>> {
        if let (Fault::Relimited(to), [from]) = (scenario.fault, scenario.promises.as_slice()) {
            let in_force = struck + IN_FORCE;
            let before = &arrivals[..arrivals.partition_point(|at| *at < struck)];
            let after = &arrivals[arrivals.partition_point(|at| *at < in_force)..];
            // Between the two, what the looser one allows.
            let looser = if to.rate() > from.rate() { &to } else { from };
            let whole = Row { utilisation: None, ..self.row(looser, arrivals, ended) };
            return vec![self.row(from, before, struck), whole, self.row(&to, after, ended)];
        }
        if scenario.promises.is_empty() {
            let breaches = self.max_in_flight.saturating_sub(scenario.concurrency);
            let limit = format!("{} at once", self.max_in_flight);
            return vec![Row { of: self, limit, margin: None, breaches, stalled: 0, utilisation: None }];
        }
        scenario.promises.iter().map(|promise| self.row(promise, arrivals, ended)).collect()
    }

    fn row(&self, promise: &Promise, arrivals: &[Instant], ended: Instant) -> Row<'_> {
        let pairs = arrivals.iter().zip(arrivals.iter().skip(promise.calls));
        let broken = pairs.filter(|(first, last)| **last - **first < promise.per);
        let breaches: Vec<bool> =
            broken.map(|(first, last)| self.stood_still(*first, promise.per - (*last - *first))).collect();
        Row {
            of: self,
            limit: promise.to_string(),
            margin: margin_ms(arrivals, promise),
            breaches: breaches.len(),
            stalled: breaches.iter().filter(|stalled| **stalled).count(),
            utilisation: utilisation(arrivals, promise, ended),
        }
    }

    fn noise_ms(&self) -> f64 {
        let most = self.stalls.iter().map(|stall| stall.until - stall.from).max();
        most.unwrap_or_default().as_secs_f64() * 1000.0
    }

    /// Whether the machine stood still for at least this long when the vendor was to stamp this call: then it is stamped late, and looks
    /// too near to those a window later.
    fn stood_still(&self, stamped: Instant, short_by: Duration) -> bool {
        let around = |stall: &&Stall| stall.from <= stamped && stamped <= stall.until + AFTER_STALL;
        self.stalls.iter().filter(around).any(|stall| stall.until - stall.from >= short_by)
    }
}

/// How long each N + 1 consecutive calls took.
fn spans(arrivals: &[Instant], calls: usize) -> impl Iterator<Item = Duration> {
    arrivals.iter().zip(arrivals.iter().skip(calls)).map(|(first, last)| *last - *first)
}

fn margin_ms(arrivals: &[Instant], promise: &Promise) -> Option<f64> {
    spans(arrivals, promise.calls).min().map(|span| (span.as_secs_f64() - promise.per.as_secs_f64()) * 1000.0)
}

/// Whole times N calls against how long they might have taken, leaving out the first and last 2 T.
fn utilisation(arrivals: &[Instant], promise: &Promise, ended: Instant) -> Option<f64> {
    let skipped = promise.per * 2;
    let begun = *arrivals.first()?;
    let first = arrivals.iter().position(|at| *at >= begun + skipped)?;
    let inside = arrivals.iter().rposition(|at| *at + skipped <= ended)?.checked_sub(first)?;
    let periods = inside / promise.calls;
    let took = arrivals[first + periods * promise.calls] - arrivals[first];
    (periods > 0).then(|| periods as f64 * promise.per.as_secs_f64() / took.as_secs_f64())
}

pub(crate) fn print_head() {
    println!(
        "{:<37} {:<14} {:>6} {:>10} {:>8} {:>7} {:>4} {:>6} {:>8} {:>7} {:>9}",
        "scenario", "limit", "calls", "margin ms", "breaches", "stalled", "429s", "used", "asked", "late %", "noise ms"
    );
}

impl Row<'_> {
    pub(crate) fn is_broken(&self) -> bool {
        self.breaches > self.stalled || self.of.refused > self.stalled as u64
    }

    pub(crate) fn print(&self) {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        println!(
            "{:<37} {:<14} {:>6} {:>10} {:>8} {:>7} {:>4} {:>6} {:>8} {:>7.2} {:>9.2}{}",
            self.of.scenario,
            self.limit,
            self.of.calls,
            or_dash(self.margin.map(|ms| format!("{ms:+.2}"))),
            self.breaches,
            self.stalled,
            self.of.refused,
            or_dash(self.utilisation.map(|used| format!("{used:.3}"))),
            or_dash(self.of.limiter_calls.map(|asked| format!("{asked:.3}"))),
            self.of.late,
            self.of.noise_ms(),
            if self.is_broken() { "  BROKEN" } else { "" },
        );
    }
}

/// Was it silent after the call with this number was answered 429? Only what was on the wire may still have come.
pub(crate) fn print_silence(arrivals: &[Instant], number: usize, silence: Duration) -> bool {
    let Some(throttled) = arrivals.get(number) else {
        println!("  no call came to be answered 429");
        return false;
    };
    let after: Vec<Duration> = arrivals[number + 1..].iter().map(|at| *at - *throttled).collect();
    let on_the_wire = after.iter().filter(|after| **after < ON_THE_WIRE).count();
    let calls = after.iter().filter(|after| **after < silence).count() - on_the_wire;
    let next = after.iter().find(|after| **after >= ON_THE_WIRE);
    let next = next.map_or("never".into(), |next| format!("{:.3} s", next.as_secs_f64()));
    println!("  after the 429: {on_the_wire} on the wire, {calls} in the silence, the next after {next}");
    calls == 0 && next != "never"
}
