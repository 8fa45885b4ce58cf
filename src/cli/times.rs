//! Times as people read and write them: `3m ago` in a table, and how long ago wherever a command takes a time.
//!
//! Never used for `-o json`, which has the times as the service wrote them.

use std::time::Duration;

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};

use super::print::shown;
use crate::{
    clock::{Clock, Time},
    config::parse_duration,
};

/// How times are shown.
#[derive(Debug, Default, Args)]
pub(super) struct ZoneArgs {
    /// Shows times in this time zone, such as Europe/Berlin, instead of "3m ago"
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    tz: Option<TimeZone>,
    /// Shows times in UTC instead of "3m ago"
    #[arg(long, conflicts_with = "tz")]
    utc: bool,
}

impl ZoneArgs {
    pub(super) fn times(&self) -> Times {
        let zone = if self.utc { Some(TimeZone::UTC) } else { self.tz.clone() };
        Times { now: Clock::system().now(), zone }
    }
}

/// Times for people, as they are at one moment.
#[derive(Debug, Clone)]
pub(super) struct Times {
    now: Time,
    /// If there is one, times are shown in it; else as the time that has passed since.
    zone: Option<TimeZone>,
}

impl Times {
    /// For a cell: `3m ago` or `in 3m`; with a time zone, when. Text that is no time stays as it is.
    pub(super) fn short(&self, text: &str) -> String {
        let Ok(at) = text.parse() else { return shown(text) };
        match &self.zone {
            Some(_) => self.when(at),
            None => self.relative(at),
        }
    }

    /// The same for the earliest time of something that may be possible already.
    pub(super) fn soonest(&self, text: &str) -> String {
        match text.parse::<Time>() {
            Ok(at) if at <= self.now => "now".to_owned(),
            _ => self.short(text),
        }
    }

    /// For a line of its own: when, and how long ago that is. Nothing for text that is no time.
    pub(super) fn long(&self, text: &str) -> Option<String> {
        let at = text.parse().ok()?;
        Some(format!("{} ({})", self.when(at), self.relative(at)))
    }

    /// `for 3m`, or `since` a time.
    pub(super) fn since(&self, text: &str) -> String {
        match (text.parse::<Time>(), &self.zone) {
            (Ok(at), None) => format!("for {}", span(self.now.since(at))),
            _ => format!("since {}", self.short(text)),
        }
    }

    /// `3m to go`, or `until` a time.
    pub(super) fn until(&self, text: &str) -> String {
        match (text.parse::<Time>(), &self.zone) {
            (Ok(at), None) => format!("{} to go", span(at.since(self.now))),
            _ => format!("until {}", self.short(text)),
        }
    }

    /// When, for lines that are printed as things happen. Text that is no time stays as it is.
    pub(super) fn exact(&self, text: &str) -> String {
        text.parse().map_or_else(|_| shown(text), |at| self.when(at))
    }

    /// This moment, for lines that are printed as things happen.
    pub(super) fn stamp(&self) -> String {
        self.when(self.now)
    }

    fn when(&self, at: Time) -> String {
        let zone = self.zone.as_ref().filter(|zone| **zone != TimeZone::UTC);
        match (zone, Timestamp::from_millisecond(at.0)) {
            (Some(zone), Ok(moment)) => moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
            _ => at.rfc3339(),
        }
    }

    fn relative(&self, at: Time) -> String {
        let (ago, ahead) = (self.now.since(at), at.since(self.now));
        match (ago.as_secs(), ahead.as_secs()) {
            (0, 0) => "now".to_owned(),
            (0, _) => format!("in {}", span(ahead)),
            _ => format!("{} ago", span(ago)),
        }
    }
}

/// A duration in one whole number: `90s`, `3m`, `36h`, `12d`.
pub(super) fn span(duration: Duration) -> String {
    let secs = duration.as_secs_f64().round() as u64;
    match secs {
        0..120 => format!("{secs}s"),
        120..7200 => format!("{}m", secs / 60),
        7200..172_800 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

/// Reads a time, or how long ago it was.
pub(super) fn moment(text: &str) -> Result<Time, String> {
    if let Ok(ago) = parse_duration(text) {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(Time(Clock::system().now().0.saturating_sub(ago)));
    }
    text.parse().map_err(|_| "write a time such as 2026-11-22T15:00:00Z, or how long ago it was, such as 2h".to_owned())
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "there is no such time zone; write one such as Europe/Berlin or UTC".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "2026-11-22T12:00:00.000Z";

    fn times(zone: Option<&str>) -> Times {
        Times { now: NOON.parse().expect("a time"), zone: zone.map(|name| super::zone(name).expect("a zone")) }
    }

    #[test]
    fn a_time_is_shown_as_how_long_ago_it_was_or_how_soon_it_will_be() {
        let table = [
            ("2026-11-22T11:59:59.500Z", "now"),
            ("2026-11-22T11:58:30.000Z", "90s ago"),
            ("2026-11-22T11:57:00.000Z", "3m ago"),
            ("2026-11-22T13:00:00+01:00", "now"),
            ("2026-11-22T14:30:00Z", "in 2h"),
            ("2026-11-10T12:00:00Z", "12d ago"),
            ("soon\u{1b}", "soon\\u{1b}"),
        ];
        for (text, shown) in table {
            assert_eq!(times(None).short(text), shown, "{text}");
        }
        assert_eq!(times(None).since("2026-11-22T11:57:00Z"), "for 3m");
        assert_eq!(times(None).until("2026-11-22T12:09:59.900Z"), "10m to go");
    }

    #[test]
    fn with_a_time_zone_it_is_shown_when() {
        let berlin = times(Some("Europe/Berlin"));
        assert_eq!(berlin.short("2026-11-22T11:57:00Z"), "2026-11-22 12:57:00 +01:00");
        assert_eq!(berlin.since("2026-11-22T11:57:00Z"), "since 2026-11-22 12:57:00 +01:00");
        assert_eq!(times(Some("UTC")).until("2026-11-22T12:10:00Z"), "until 2026-11-22T12:10:00.000Z");
        assert_eq!(times(None).long("2026-11-22T11:57:00Z").as_deref(), Some("2026-11-22T11:57:00.000Z (3m ago)"));
        assert_eq!(times(None).long("x"), None);
    }

    #[test]
    fn a_moment_is_a_time_or_how_long_ago_it_was() {
        assert_eq!(moment(NOON).map(Time::rfc3339), Ok(NOON.to_owned()));
        let hour = moment("1h").expect("a duration");
        let ago = Clock::system().now().since(hour);
        assert!(ago >= Duration::from_secs(3600) && ago < Duration::from_secs(3660), "{ago:?}");
        assert!(moment("yesterday").expect_err("no time").contains("such as 2h"));
    }
}
