//! The only place that reads a clock: wall time for jobs, and a timeline that never steps for limits.
//!
//! Never decides anything. Tests use a [`Clock::manual`] and move it; other code cannot see the difference. Its times can differ, as those of
//! real clocks do: [`Clock::step`] sets wall time, [`Clock::step_server`] the clock of a server, and the timeline does not change.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};
use tokio::sync::watch;

/// A moment in wall time, in whole milliseconds since the Unix epoch. On the wire: RFC 3339 UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

impl Time {
    /// This moment plus `by`; the largest time instead of an overflow.
    #[must_use]
    pub fn plus(self, by: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with exactly three decimals.
    pub fn rfc3339(self) -> String {
        format!("{:.3}", jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::MAX))
    }
}

/// RFC 3339 with any offset, and nothing that only looks like it: the date library would take a zone in brackets, or an offset of 25 hours.
impl FromStr for Time {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Time, &'static str> {
        const WRONG: &str = "this is not a time as RFC 3339 has it";
        /// 0000-01-01T00:00:00Z.
        const FIRST: i64 = -62_167_219_200_000;
        let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
        let has_marks = marks.iter().all(|(at, mark)| text.as_bytes().get(*at) == Some(mark));
        let offset = match text.as_bytes() {
            [.., b'Z' | b'z'] => Some((0, 0)),
            [.., b'+' | b'-', h, hours, b':', m, minutes]
                if [h, hours, m, minutes].iter().all(|c| c.is_ascii_digit()) =>
            {
                let number = |tens: &u8, ones: &u8| (tens - b'0') * 10 + (ones - b'0');
                Some((number(h, hours), number(m, minutes)))
            }
            _ => None,
        };
        let at: jiff::Timestamp = match offset {
            Some((0..=23, 0..=59)) if has_marks => text.parse().map_err(|_| WRONG)?,
            _ => return Err(WRONG),
        };
        // With its offset, the first hours of year 0 are in a year that RFC 3339 cannot write.
        if at.as_millisecond() < FIRST { Err(WRONG) } else { Ok(Time(at.as_millisecond())) }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.rfc3339())
    }
}

/// A point on the limiter's timeline: it begins with the wall time that this process first read, in nanoseconds since the Unix epoch, and
/// goes on with the monotonic clock. It never steps, so two readings differ by the time that really passed.
pub type Nanos = i64;

/// Nanoseconds in a duration, at most the maximum (292 years).
pub fn nanos(d: Duration) -> Nanos {
    Nanos::try_from(d.as_nanos()).unwrap_or(Nanos::MAX)
}

/// Tells the time and waits for it. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Kind>);

enum Kind {
    System { started: Instant, epoch_ns: Nanos },
    Manual(watch::Sender<Hands>),
}

/// What a manual clock shows.
#[derive(Debug, Clone, Copy)]
struct Hands {
    timeline: Nanos,
    /// How far wall time is ahead of the timeline.
    wall_ahead: Nanos,
    /// How far a server's clock is ahead of the timeline.
    server_ahead: Nanos,
}

impl Clock {
    /// The machine's clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the one reading that everything else is derived from")]
    pub fn system() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock(Arc::new(Kind::System { started: Instant::now(), epoch_ns: nanos(wall) }))
    }

    /// A clock that stops at `start` until it is moved.
    pub fn manual(start: Time) -> Clock {
        let hands = Hands { timeline: start.0.saturating_mul(1_000_000), wall_ahead: 0, server_ahead: 0 };
        Clock(Arc::new(Kind::Manual(watch::Sender::new(hands))))
    }

    /// Wall time, as the operating system has it now.
    #[expect(clippy::disallowed_methods, reason = "jobs live in wall time, and this is where it is read")]
    pub fn now(&self) -> Time {
        match &*self.0 {
            Kind::System { .. } => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Time(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX))
            }
            Kind::Manual(hands) => {
                let hands = hands.borrow();
                Time(hands.timeline.saturating_add(hands.wall_ahead).div_euclid(1_000_000))
            }
        }
    }

    /// The limiter's timeline.
    pub fn nanos(&self) -> Nanos {
        match &*self.0 {
            Kind::System { started, epoch_ns } => epoch_ns.saturating_add(nanos(started.elapsed())),
            Kind::Manual(hands) => hands.borrow().timeline,
        }
    }

    /// Wall time without the steps since this process first read it.
    pub fn unset(&self) -> Time {
        Time(self.nanos().div_euclid(1_000_000))
    }

    /// Wall time and the timeline at one moment.
    pub fn both(&self) -> (Time, Nanos) {
        const CLOSE: Nanos = 1_000_000;
        let mut before = self.nanos();
        // If the thread was interrupted between the two readings, it reads again.
        for _ in 0..3 {
            let (wall, after) = (self.now(), self.nanos());
            if after - before < CLOSE {
                return (wall, before);
            }
            before = after;
        }
        (self.now(), before)
    }

    /// The server's time of a manual clock: what a server should use as its time, so that a test moves that too. Nothing for the machine's
    /// clock.
    pub fn injected(&self) -> Option<Nanos> {
        match &*self.0 {
            Kind::System { .. } => None,
            Kind::Manual(hands) => {
                let hands = hands.borrow();
                Some(hands.timeline.saturating_add(hands.server_ahead))
            }
        }
    }

    /// Where a moment of wall time lies on the limiter's timeline, if the wall clock does not step until then.
    pub fn nanos_at(&self, at: Time) -> Nanos {
        let ahead_ms = at.0.saturating_sub(self.now().0);
        self.nanos().saturating_add(ahead_ms.saturating_mul(1_000_000))
    }

    /// The wall time of a point on the limiter's timeline, if the wall clock does not step until then.
    pub fn time_at(&self, at: Nanos) -> Time {
        Time(self.now().0.saturating_add(at.saturating_sub(self.nanos()).div_euclid(1_000_000)))
    }

    /// The next moment for periodic work of this period. All periodic work of a process happens at the same moments, so that an idle process
    /// wakes up only once for all of it; different processes have different moments.
    pub fn next_beat(&self, every: Duration) -> Nanos {
        let first = match &*self.0 {
            Kind::System { epoch_ns, .. } => *epoch_ns,
            Kind::Manual(_) => 0,
        };
        let (every, since) = (nanos(every).max(1), self.nanos().saturating_sub(first));
        first.saturating_add((since / every + 1).saturating_mul(every))
    }

    /// Waits until the timeline has reached `at`; returns at once when it has. Cancel-safe.
    /// Accurate to the runtime's timer, one millisecond, and never early.
    pub async fn sleep_until(&self, at: Nanos) {
        match &*self.0 {
            Kind::System { started, epoch_ns } => {
                let after = u64::try_from(at.saturating_sub(*epoch_ns)).unwrap_or(0);
                tokio::time::sleep_until((*started + Duration::from_nanos(after)).into()).await;
            }
            Kind::Manual(hands) => {
                // The sender lives in this clock, so the wait can only end by the time being reached.
                let _ = hands.subscribe().wait_for(|hands| hands.timeline >= at).await;
            }
        }
    }

    /// The same for what is meant in wall time: returns early if the wall clock is set meanwhile, which is noticed within five seconds.
    pub async fn sleep_until_or_set(&self, at: Nanos) {
        const LOOK_EVERY: Duration = Duration::from_secs(5);
        const SET_BY_MS: u64 = 1_000;
        let ahead = || {
            let (wall, timeline) = self.both();
            wall.0 - timeline.div_euclid(1_000_000)
        };
        let before = ahead();
        while self.nanos() < at && ahead().abs_diff(before) < SET_BY_MS {
            match &*self.0 {
                Kind::System { .. } => self.sleep_until(at.min(self.next_beat(LOOK_EVERY))).await,
                Kind::Manual(hands) => {
                    let mut hands = hands.subscribe();
                    let was = hands.borrow_and_update().wall_ahead;
                    let _ = hands.wait_for(|hands| hands.timeline >= at || hands.wall_ahead != was).await;
                }
            }
        }
    }

    /// Moves a manual clock forward, all hands together; the machine's clock cannot be moved and stays.
    pub fn advance(&self, by: Duration) {
        self.change(|hands| hands.timeline = hands.timeline.saturating_add(nanos(by)));
    }

    /// Sets the wall time of a manual clock, forward or (negative) back; the timeline stays. A machine that was suspended looks so too.
    pub fn step(&self, by: Nanos) {
        self.change(|hands| hands.wall_ahead = hands.wall_ahead.saturating_add(by));
    }

    /// The same for the server's hand of a manual clock.
    pub fn step_server(&self, by: Nanos) {
        self.change(|hands| hands.server_ahead = hands.server_ahead.saturating_add(by));
    }

    fn change(&self, change: impl FnOnce(&mut Hands)) {
        if let Kind::Manual(hands) = &*self.0 {
            hands.send_modify(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_three_decimals_whatever_it_is() {
        assert_eq!(Time(0).rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Time(1_795_698_729_830).rfc3339(), "2026-11-26T13:12:09.830Z");
        assert_eq!(Time(-1).rfc3339(), "1969-12-31T23:59:59.999Z");
        assert_eq!(Time(i64::MAX).rfc3339(), "9999-12-30T22:00:00.999Z", "the last that there is");
    }

    #[test]
    fn the_hands_of_a_manual_clock_move_apart() {
        let clock = Clock::manual(Time(60_000));
        clock.step(3_600_000_000_000);
        clock.step_server(-400_000_000);
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now(), clock.nanos()), (Time(3_661_000), 61_000_000_000));
        assert_eq!(clock.injected(), Some(60_600_000_000));
        assert_eq!(clock.nanos_at(Time(3_662_000)), 62_000_000_000, "a second from now, whatever the wall says");
    }

    #[tokio::test]
    async fn a_sleep_ends_when_the_wall_clock_is_set() {
        let clock = Clock::manual(Time(60_000));
        let ended = std::sync::atomic::AtomicBool::new(false);
        let sleeping = async {
            clock.sleep_until_or_set(3_660_000_000_000).await;
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let setting = async {
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(3599));
            tokio::task::yield_now().await;
            assert!(!ended.load(std::sync::atomic::Ordering::Relaxed));
            clock.step(-3_600_000_000_000);
        };
        tokio::join!(sleeping, setting);
        assert_eq!(clock.nanos(), 3_659_000_000_000, "a second before its time");
        clock.sleep_until_or_set(3_659_000_000_000).await;
    }

    #[test]
    fn what_is_done_regularly_is_done_at_the_same_moments() {
        const FIVE: Duration = Duration::from_secs(5);
        let clock = Clock::manual(Time(60_000));
        let beats = |every| clock.next_beat(every) / 1_000_000;
        assert_eq!(beats(FIVE), 65_000, "a beat that has come is over");
        clock.advance(Duration::from_millis(1_234));
        assert_eq!((beats(FIVE), beats(Duration::from_secs(1))), (65_000, 62_000));
        assert_eq!(beats(2 * FIVE), 70_000, "at every second one of the shorter");

        let (clock, later) = (Clock::system(), Duration::from_secs(3600));
        let ahead = clock.next_beat(later) - clock.nanos();
        assert!(ahead > nanos(later) - nanos(FIVE) && ahead <= nanos(later), "counted from when the process began");
    }
}
