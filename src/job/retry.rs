//! How often a call is tried, and how long to wait in between: exponential backoff with full jitter.
//!
//! Never decides whether to try again (see `lifecycle`).

use std::time::Duration;

/// A vendor's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Calls that count, the first included; at least 1.
    pub attempts: u32,
    pub first: Duration,
    pub max: Duration,
}

/// The wait after the `tries`-th call that counted: evenly spread over `0..=min(max, first * 2^(tries-1))`.
///
/// `jitter` lies in `0.0..1.0`. Full jitter spreads the calls of many jobs that failed together
/// (Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015).
pub fn backoff(policy: &Retry, tries: u32, jitter: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(30);
    let ceiling = policy.first.saturating_mul(1 << doublings).min(policy.max);
    ceiling.mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Retry = Retry { attempts: 5, first: Duration::from_millis(200), max: Duration::from_secs(60) };

    #[test]
    fn the_ceiling_doubles_until_the_maximum() {
        let ceilings = [1, 2, 3, 9, 10, u32::MAX].map(|tries| backoff(&POLICY, tries, 1.0).as_millis());
        assert_eq!(ceilings, [200, 400, 800, 51_200, 60_000, 60_000]);
    }

    #[test]
    fn jitter_spreads_the_wait_down_to_nothing() {
        assert_eq!(backoff(&POLICY, 3, 0.0), Duration::ZERO);
        assert_eq!(backoff(&POLICY, 3, 0.5), Duration::from_millis(400));
    }
}
