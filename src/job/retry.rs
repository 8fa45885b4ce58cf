//! How often a call is tried, and the wait in between: exponential backoff with jitter.
//!
//! Never decides whether to try again (see `lifecycle`).

use std::time::Duration;

/// A vendor's retry policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Calls that count as attempts, the first included; at least 1.
    pub attempts: u32,
    pub first: Duration,
    pub max: Duration,
    /// How often a job that the vendor accepted and did not answer in time is ordered again. Each order is paid for.
    pub unanswered: u32,
}

impl Retry {
    /// How long a job is retried, from its first call to its last: the sum of its waits, at least and at most.
    pub fn lasts(&self) -> (Duration, Duration) {
        let together = |jitter| (1..self.attempts).map(|tries| backoff(self, tries, jitter)).sum();
        (together(0.0), together(1.0))
    }
}

/// The wait after the `tries`-th call that counted: from half of `min(max, first * 2^(tries-1))` to all of it.
///
/// `jitter` is in `0.0..1.0`. It spreads the calls of many jobs that failed together. The wait is never less than half, so that a job's
/// attempts outlast an outage of its vendor ("equal jitter" in Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015).
pub fn backoff(policy: &Retry, tries: u32, jitter: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(30);
    let whole = policy.first.saturating_mul(1 << doublings).min(policy.max);
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Retry =
        Retry { attempts: 16, first: Duration::from_secs(1), max: Duration::from_secs(600), unanswered: 1 };

    #[test]
    fn the_wait_doubles_until_the_maximum() {
        let longest = [1, 2, 3, 10, 11, u32::MAX].map(|tries| backoff(&POLICY, tries, 1.0).as_secs());
        assert_eq!(longest, [1, 2, 4, 512, 600, 600]);
    }

    #[test]
    fn jitter_takes_away_half_of_the_wait_at_most() {
        assert_eq!(backoff(&POLICY, 3, 0.0), Duration::from_secs(2));
        assert_eq!(backoff(&POLICY, 3, 0.5), Duration::from_secs(3));
    }

    #[test]
    fn the_defaults_last_from_33_to_67_minutes() {
        let (least, most) = POLICY.lasts();
        assert_eq!((least.as_secs_f64() / 60.0, most.as_secs_f64() / 60.0), (33.525, 67.05));
        assert_eq!(Retry { attempts: 1, ..POLICY }.lasts(), (Duration::ZERO, Duration::ZERO));
    }
}
