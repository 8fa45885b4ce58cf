//! The oracle itself: does it see a limiter that is broken on purpose?

use super::*;
use fetchgate::limit::Limiter;

/// A backlog for this long, each call arriving with the jitter given for its number.
async fn backlog(local: &Local, clock: &Clock, until: Nanos, jitter: impl Fn(usize) -> Nanos) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    while clock.nanos() < until {
        let answers = local.reserve("acme", &wishes("t", 50), clock.nanos() + 100 * MS).await.unwrap();
        let next = match answers.last() {
            Some(Answer::NotBefore { until, .. }) => *until,
            _ => clock.nanos(),
        };
        for permit in permits(answers) {
            calls.push(Call { at: permit.at, arrived: permit.at + jitter(calls.len()), tenant: permit.tenant });
        }
        advance_to(clock, next);
    }
    calls
}

fn backlog_of(limit: Limit, jitter: impl Fn(usize) -> Nanos) -> (Vec<Call>, Vec<Limit>) {
    let clock = Clock::manual(START);
    run(async {
        let local = open(std::slice::from_ref(&limit), &clock, &Arc::default()).await;
        advance(&clock, 60 * SECOND); // past the cold start, so that a bucket is full
        let calls = backlog(&local, &clock, clock.nanos() + 10 * SECOND, jitter).await;
        (calls, vec![limit])
    })
}

/// Looks random, and is at most 3.6 ms.
fn jittery(i: usize) -> Nanos {
    ((i as i64 * 2_654_435_761) >> 9) % 7 * 600_000
}

#[test]
fn jitter_within_the_guard_is_no_breach() {
    for shape in [Shape::Paced, Shape::Window, Shape::Bucket { burst: 3 }] {
        let (calls, limits) = backlog_of(limit(20, Duration::from_secs(1), shape), jittery);
        assert!(calls.len() > 150);
        assert_eq!(breaches(&calls, &limits), Vec::<String>::new());
    }
}

#[test]
fn a_limiter_without_a_guard_is_caught_by_jitter() {
    for shape in [Shape::Paced, Shape::Window, Shape::Bucket { burst: 3 }] {
        let unguarded = Limit { guard: Duration::ZERO, ..limit(20, Duration::from_secs(1), shape) };
        let (calls, limits) = backlog_of(unguarded, |i| if i < 3 { 4 * MS } else { 0 });
        assert_eq!(breaches(&calls, &limits).len(), 1, "{shape:?}");
    }
}

#[test]
fn an_interval_rounded_down_is_caught() {
    let call = |i: i64, every: Nanos| Call { at: i * every, arrived: i * every, tenant: "t".into() };
    let limits = [Limit { guard: Duration::ZERO, ..limit(3, Duration::from_secs(1), Shape::Paced) }];
    let floored: Vec<Call> = (0..10).map(|i| call(i, 333_333_333)).collect();
    assert_eq!(breaches(&floored, &limits).len(), 1);
    let rounded_up: Vec<Call> = (0..10).map(|i| call(i, 333_333_334)).collect();
    assert!(breaches(&rounded_up, &limits).is_empty());
}

#[test]
fn a_token_bucket_of_n_is_caught() {
    // The usual limiter: N at once, and N more while the first leave the window.
    let at = |i: i64| (i - 19).max(0) * 50 * MS;
    let calls: Vec<Call> = (0..60).map(|i| Call { at: at(i), arrived: at(i), tenant: "t".into() }).collect();
    let seen = most_in_any_window(calls.iter().map(|call| call.arrived).collect(), SECOND);
    assert_eq!(seen, 39, "2N - 1");
}

#[test]
fn a_restart_that_forgets_is_caught() {
    let limits = [limit(20, Duration::from_secs(60), Shape::Window)];
    let after_restart = |forgetful: bool| {
        let (clock, book) = (Clock::manual(START), Arc::<MemoryBook>::default());
        run(async {
            let mut calls = Vec::new();
            for _ in 0..2 {
                let local = open(&limits, &clock, &book).await;
                let given = local.reserve("acme", &wishes("t", 15), clock.nanos() + SECOND).await.unwrap();
                let call = |permit: Permit| Call { at: permit.at, arrived: permit.at, tenant: permit.tenant };
                calls.extend(permits(given).into_iter().map(call));
                if forgetful {
                    book.forget_everything();
                }
                advance(&clock, SECOND);
            }
            (calls.len(), breaches(&calls, &limits).len())
        })
    };
    assert_eq!(after_restart(true), (30, 1));
    assert_eq!(after_restart(false), (20, 0));
}

#[test]
fn a_call_near_midnight_counts_on_both_days() {
    let midnight = START.0 * MS + 3600 * SECOND; // 23:00 UTC is midnight in Berlin
    let berlin = daily(1, "Europe/Berlin").per;
    let edge = [midnight - 4 * SECOND, midnight + 7200 * SECOND];
    assert_eq!(most_in_any_period(&edge, &berlin), 2);
    let clear = [midnight - 6 * SECOND, midnight + 7200 * SECOND];
    assert_eq!(most_in_any_period(&clear, &berlin), 1);
}
