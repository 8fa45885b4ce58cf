//! The breaker's rule, as arithmetic.

use fetchgate::limit::breaker::{Breaker, ProbeEnd, Standing, Tally, Terms};

use super::*;

pub(super) const TERMS: Terms = Terms {
    failed: 900_000,
    calls: 20,
    within: Duration::from_secs(30),
    open: Duration::from_secs(10),
    longest: Duration::from_secs(10),
    probe: Duration::from_secs(15),
};

fn tally(ended: u64, failed: u64) -> Tally {
    Tally { ended, failed }
}

fn opened(now: Nanos) -> Breaker {
    let mut breaker = Breaker::new(TERMS);
    breaker.report(tally(20, 20), now);
    assert_eq!(breaker.standing(now), Standing::Open { until: now + 10 * SECOND });
    breaker
}

#[test]
fn it_opens_at_the_share_and_not_below_it_nor_with_fewer_calls() {
    for (ended, failed, opens) in
        [(20, 18, true), (20, 17, false), (19, 19, false), (1_000, 900, true), (1_000, 899, false)]
    {
        let mut breaker = Breaker::new(TERMS);
        breaker.report(tally(ended, failed), 0);
        assert_eq!(breaker.standing(0) != Standing::Closed, opens, "{failed} of {ended}");
    }
}

#[test]
fn what_ended_longer_ago_than_within_is_forgotten_part_by_part() {
    let mut breaker = Breaker::new(TERMS);
    breaker.report(tally(19, 19), 2 * SECOND);
    breaker.report(tally(1, 1), 30 * SECOND);
    assert_eq!(breaker.standing(30 * SECOND), Standing::Closed, "the first part is over");
    breaker.report(tally(18, 18), 32 * SECOND);
    breaker.report(tally(1, 1), 58 * SECOND);
    assert_ne!(breaker.standing(58 * SECOND), Standing::Closed, "the second is not");
}

#[test]
fn only_one_probe_goes_and_a_dead_one_is_replaced() {
    let mut breaker = opened(0);
    assert!(!breaker.take_probe(1, 10 * SECOND - 1), "it is still open");
    assert!(breaker.take_probe(1, 10 * SECOND));
    assert!(!breaker.take_probe(2, 25 * SECOND - 1));
    assert!(breaker.take_probe(2, 25 * SECOND), "its process has died");
    breaker.probed(1, &ProbeEnd::Good, 26 * SECOND);
    assert_eq!(breaker.standing(26 * SECOND), Standing::HalfOpen, "the dead say nothing");
    breaker.probed(2, &ProbeEnd::Unknown, 26 * SECOND);
    assert!(breaker.take_probe(3, 26 * SECOND), "one that was not used is free");
    breaker.probed(3, &ProbeEnd::Failed { why: None }, 27 * SECOND);
    assert_eq!(breaker.standing(27 * SECOND), Standing::Open { until: 37 * SECOND });
    assert!(breaker.take_probe(4, 37 * SECOND));
    breaker.report(tally(100, 100), 37 * SECOND);
    breaker.probed(4, &ProbeEnd::Good, 37 * SECOND);
    assert_eq!(breaker.standing(37 * SECOND), Standing::Closed);
    breaker.report(tally(19, 19), 37 * SECOND);
    assert_eq!(breaker.standing(37 * SECOND), Standing::Closed, "what was before is forgotten");
}

#[test]
fn one_refusal_of_our_credentials_opens_their_breaker_and_each_failed_probe_doubles_the_wait() {
    let mut breaker = Breaker::new(Terms::of_credentials(Duration::from_secs(15)));
    breaker.trip(Duration::ZERO, "401".into(), 0);
    breaker.trip(Duration::from_secs(30), "late".into(), 0);
    let opened = breaker.opened().expect("it is not closed");
    assert_eq!((opened.since, opened.why.as_deref()), (0, Some("401")), "the first counts");
    let mut now = 0;
    for (probe, wait) in [30, 60, 120, 240, 300, 300].into_iter().enumerate() {
        assert!(breaker.take_probe(probe as u64, now), "the wait is over");
        breaker.probed(probe as u64, &ProbeEnd::Failed { why: Some("again".into()) }, now);
        assert_eq!(breaker.standing(now), Standing::Open { until: now + wait * SECOND });
        now += wait * SECOND;
    }
    assert!(breaker.take_probe(99, now));
    breaker.probed(99, &ProbeEnd::Good, now);
    assert_eq!((breaker.standing(now), breaker.opened()), (Standing::Closed, None));
}

#[test]
fn a_wait_that_is_hurried_ends_at_once() {
    let mut breaker = Breaker::new(Terms::of_credentials(Duration::from_secs(15)));
    breaker.hurry(0);
    assert_eq!(breaker.standing(0), Standing::Closed, "there is nothing to end");
    breaker.trip(Duration::from_secs(30), "401".into(), 0);
    breaker.hurry(SECOND);
    assert!(breaker.take_probe(1, SECOND), "the probe may go");
}
