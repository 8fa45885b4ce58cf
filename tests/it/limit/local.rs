//! The limiter of one process: what its callers rely on.

use fetchgate::limit::{Blocker, Limiter, Missed, local::MAX_TENANTS};

use super::*;

const FAR: Nanos = Nanos::MAX;

fn paced(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(1), Shape::Paced)
}

fn per_minute(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(60), Shape::Window)
}

async fn opened(limits: &[Limit]) -> (Local, Clock, Arc<MemoryBook>) {
    let (clock, book) = (Clock::manual(START), Arc::<MemoryBook>::default());
    let local = open(limits, &clock, &book).await;
    (local, clock, book)
}

fn not_before(answer: &Answer) -> Option<(Nanos, Blocker)> {
    match answer {
        Answer::NotBefore { until, by } => Some((*until, by.clone())),
        Answer::Granted(_) => None,
    }
}

#[test]
fn a_pool_without_limits_and_an_unknown_pool_permit_at_once() {
    run(async {
        let (local, clock, _) = opened(&[]).await;
        for pool in ["acme", "unknown"] {
            let outlook = local.outlook(pool, clock.nanos(), 7).await.unwrap();
            assert_eq!((outlook.next_at, outlook.by, outlook.room), (clock.nanos(), None, 7));
            let given = permits(local.reserve(pool, &wishes("t", 7), clock.nanos()).await.unwrap());
            assert_eq!(given.len(), 7);
            assert!(given.iter().all(|permit| permit.at == clock.nanos() && permit.late_after == FAR));
            assert_eq!(local.check(&given[0], clock.nanos() + 86_400 * SECOND), Ok(()));
        }
    });
}

#[test]
fn a_cold_start_waits_out_what_the_process_before_may_have_called() {
    run(async {
        let (local, clock, _) = opened(&[paced(50)]).await;
        let outlook = local.outlook("acme", FAR, 1).await.unwrap();
        assert_eq!(outlook.next_at - clock.nanos(), 20_100_000);
        assert_eq!(outlook.by, Some(Blocker::Gate));
    });
}

#[test]
fn permits_are_future_dated_within_the_horizon_and_late_after_half_a_guard_and_more() {
    run(async {
        let (local, clock, _) = opened(&[paced(50), per_minute(1_000)]).await;
        advance(&clock, SECOND);
        let until = clock.nanos() + 100 * MS;
        let answers = local.reserve("acme", &wishes("t", 10), until).await.unwrap();
        let waiting = not_before(&answers[5]);
        assert_eq!(waiting, Some((clock.nanos() + 5 * 20_100_000, Blocker::Limit("50/1s".into()))));
        let given = permits(answers);
        let at: Vec<Nanos> = given.iter().map(|permit| permit.at - clock.nanos()).collect();
        assert_eq!(at, [0, 20_100_000, 40_200_000, 60_300_000, 80_400_000]);
        // The smaller guard of the two is 5 ms, of which 1.25 ms are for the link.
        assert!(given.iter().all(|permit| permit.late_after == permit.at + 3_750_000));
        assert_eq!(local.check(&given[0], given[0].late_after), Ok(()));
        assert_eq!(local.check(&given[0], given[0].late_after + 1), Err(Missed::Late));
    });
}

#[test]
fn a_closed_gate_stops_permits_given_before_and_opens_no_earlier_than_first_said() {
    run(async {
        let (local, clock, _) = opened(&[paced(50)]).await;
        advance(&clock, SECOND);
        let given = permits(local.reserve("acme", &wishes("t", 3), FAR).await.unwrap());
        local.close_gate("acme", given[1].at + 1).await;
        local.close_gate("acme", given[1].at).await;
        assert_eq!(local.check(&given[1], given[1].at), Err(Missed::GateClosed));
        assert_eq!(local.check(&given[2], given[2].at), Ok(()));
        let opens = clock.nanos() + 10 * SECOND;
        local.close_gate("acme", opens).await;
        let outlook = local.outlook("acme", FAR, 1).await.unwrap();
        assert_eq!((outlook.next_at, outlook.by), (opens, Some(Blocker::Gate)));
    });
}

#[test]
fn the_newest_permits_can_be_handed_back_and_are_given_again() {
    run(async {
        let (local, clock, _) = opened(&[paced(50), per_minute(200), per_tenant(per_minute(100))]).await;
        advance(&clock, SECOND);
        let mut given = permits(local.reserve("acme", &wishes("t", 6), FAR).await.unwrap());
        let at: Vec<Nanos> = given.iter().map(|permit| permit.at).collect();
        local.give_back(given.split_off(2)).await;
        let again = permits(local.reserve("acme", &wishes("t", 4), FAR).await.unwrap());
        assert_eq!(again.iter().map(|permit| permit.at).collect::<Vec<_>>(), at[2..]);
        // Of those that are not the newest a pace cannot take anything back; a window can.
        local.give_back(given).await;
        let next = permits(local.reserve("acme", &wishes("t", 1), FAR).await.unwrap());
        assert_eq!(next[0].at, at[5] + 20_100_000);
        assert_eq!(local.usage("acme").await[1].used, 5);
    });
}

#[test]
fn a_burst_that_was_missed_is_not_lost_for_its_whole_window() {
    run(async {
        let window = Limit { shape: Shape::Window, ..paced(20) };
        let (local, clock, _) = opened(&[window]).await;
        advance(&clock, 2 * SECOND);
        let missed = permits(local.reserve("acme", &wishes("t", 20), FAR).await.unwrap());
        advance(&clock, 30 * MS);
        assert!(missed.iter().all(|permit| local.check(permit, clock.nanos()) == Err(Missed::Late)));
        local.give_back(missed).await;
        let again = permits(local.reserve("acme", &wishes("t", 20), FAR).await.unwrap());
        assert!(again.iter().all(|permit| permit.at < clock.nanos() + 20 * MS));
        let next = permits(local.reserve("acme", &wishes("t", 1), FAR).await.unwrap());
        assert_eq!(next[0].at, clock.nanos() + SECOND + 5 * MS);
    });
}

#[test]
fn a_burst_is_a_millisecond_apart_and_takes_no_more_than_half_its_window() {
    run(async {
        for (calls, gap) in [(20, MS), (5_000, SECOND / 10_000)] {
            let (local, clock, _) = opened(&[Limit { shape: Shape::Window, ..paced(calls) }]).await;
            advance(&clock, 2 * SECOND);
            let burst = permits(local.reserve("acme", &wishes("t", 20), FAR).await.unwrap());
            let apart: Vec<Nanos> = burst.windows(2).map(|two| two[1].at - two[0].at).collect();
            assert_eq!(apart, [gap; 19], "{calls}/s");
        }
    });
}

#[test]
fn a_limit_of_200_a_minute_half_used_before_a_crash_is_still_kept_after_it() {
    run(async {
        let limits = [per_minute(200)];
        let (local, clock, book) = opened(&limits).await;
        assert_eq!(permits(local.reserve("acme", &wishes("t", 100), FAR).await.unwrap()).len(), 100);
        drop(local);
        advance(&clock, SECOND);
        let local = open(&limits, &clock, &book).await;
        let until = clock.nanos() + 58 * SECOND;
        let after = permits(local.reserve("acme", &wishes("t", 200), until).await.unwrap());
        assert_eq!(after.len(), 100, "no more than N, and none of the rest is wasted");
        assert!(
            after.iter().all(|permit| permit.at < clock.nanos() + 100 * MS),
            "at once, but for the gaps of a burst"
        );
    });
}

#[test]
fn a_daily_quota_survives_a_crash_and_a_clock_set_back() {
    run(async {
        let limits = [daily(10, "Europe/Berlin")];
        let (local, clock, book) = opened(&limits).await;
        advance(&clock, 7200 * SECOND);
        permits(local.reserve("acme", &wishes("t", 10), FAR).await.unwrap());
        let again = open(&limits, &clock, &book).await;
        assert_eq!(again.outlook("acme", clock.nanos(), 1).await.unwrap().room, 0);
        // The wall clock now says that it is the day before.
        let yesterday = Clock::manual(Time(START.0 - 7_200_000));
        let again = open(&limits, &yesterday, &book).await;
        assert_eq!(again.outlook("acme", yesterday.nanos(), 1).await.unwrap().room, 0);
    });
}

#[test]
fn a_call_near_midnight_is_durable_on_both_days() {
    run(async {
        let midnight = START.0 * MS + 3600 * SECOND;
        for (offset, rows) in [(-6, 1), (-5, 2), (-2, 2), (2, 2), (6, 1)] {
            let (local, clock, book) = opened(&[daily(10, "Europe/Berlin")]).await;
            advance_to(&clock, midnight + offset * SECOND);
            assert_eq!(permits(local.reserve("acme", &wishes("t", 1), FAR).await.unwrap()).len(), 1);
            assert_eq!(book.rows(), vec![1; rows], "{offset} s");
        }
    });
}

#[test]
fn spends_in_the_future_count_when_the_wall_clock_was_set_back() {
    run(async {
        let limits = [per_minute(200)];
        let (local, _, book) = opened(&limits).await;
        permits(local.reserve("acme", &wishes("t", 150), FAR).await.unwrap());
        let clock = Clock::manual(Time(START.0 - 3_600_000));
        let local = open(&limits, &clock, &book).await;
        assert_eq!(local.outlook("acme", clock.nanos() + 59 * SECOND, 200).await.unwrap().room, 50);
    });
}

#[test]
fn a_changed_n_keeps_the_history_of_its_period() {
    run(async {
        let (local, clock, book) = opened(&[per_minute(200)]).await;
        permits(local.reserve("acme", &wishes("t", 120), FAR).await.unwrap());
        let local = open(&[per_minute(150)], &clock, &book).await;
        assert_eq!(local.outlook("acme", clock.nanos() + SECOND, 200).await.unwrap().room, 30);
    });
}

#[test]
fn a_clean_stop_hands_back_what_was_charged_ahead() {
    run(async {
        let limits = [per_minute(5_000)]; // blocks of 10
        let (local, clock, book) = opened(&limits).await;
        permits(local.reserve("acme", &wishes("t", 3), FAR).await.unwrap());
        assert_eq!(book.rows(), [10]);
        let crashed = open(&limits, &clock, &book).await;
        assert_eq!(crashed.usage("acme").await[0].used, 10, "an unfinished block counts as used");
        local.stop().await.unwrap();
        assert_eq!(book.rows(), [3]);
        // A permit after the stop is charged anew.
        permits(local.reserve("acme", &wishes("t", 1), FAR).await.unwrap());
        assert_eq!(book.rows(), [13]);
    });
}

#[test]
fn without_the_book_there_is_no_permit_and_nothing_is_lost_for_good() {
    run(async {
        let (local, clock, book) = opened(&[per_minute(20)]).await;
        book.away.store(true, Ordering::Relaxed);
        assert!(local.reserve("acme", &wishes("t", 5), FAR).await.is_err());
        book.away.store(false, Ordering::Relaxed);
        let soon = clock.nanos() + SECOND;
        assert_eq!(permits(local.reserve("acme", &wishes("t", 30), soon).await.unwrap()).len(), 20);
    });
}

#[test]
fn short_limits_never_write_to_the_book_and_long_ones_write_in_blocks() {
    run(async {
        let (local, clock, book) = opened(&[paced(1_000)]).await;
        advance(&clock, SECOND);
        permits(local.reserve("acme", &wishes("t", 100), FAR).await.unwrap());
        assert_eq!(book.writes.load(Ordering::Relaxed), 0);
        let (local, _, book) = opened(&[limit(100_000, Duration::from_secs(86_400), Shape::Window)]).await;
        for _ in 0..400 {
            permits(local.reserve("acme", &wishes("t", 1), FAR).await.unwrap());
        }
        assert_eq!(book.writes.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn reservations_at_the_same_time_never_write_the_smaller_number_last() {
    run(async {
        let limits = [per_minute(50)];
        let (local, clock, book) = opened(&limits).await;
        let (one, three) = (wishes("t", 1), wishes("t", 3));
        let (a, b, c) = tokio::join!(
            local.reserve("acme", &one, FAR),
            local.reserve("acme", &three, FAR),
            local.reserve("acme", &one, FAR)
        );
        let given = [a, b, c].map(|answers| permits(answers.unwrap()).len()).iter().sum::<usize>();
        assert_eq!(given, 5);
        let again = open(&limits, &clock, &book).await;
        assert!(again.usage("acme").await[0].used >= 5);
    });
}

#[test]
fn a_tenant_over_its_limit_holds_up_nobody_and_costs_the_vendor_nothing() {
    run(async {
        let limits = [paced(100), per_tenant(limit(2, Duration::from_secs(1), Shape::Window))];
        let (local, clock, _) = opened(&limits).await;
        advance(&clock, 5 * SECOND);
        let greedy: Vec<Arc<str>> = ["a", "a", "a", "a", "b", "a", "b", "c", "b"].into_iter().map(Arc::from).collect();
        let answers = local.reserve("acme", &greedy, FAR).await.unwrap();
        let denied: Vec<usize> = (0..9).filter(|i| not_before(&answers[*i]).is_some()).collect();
        assert_eq!(denied, [2, 3, 5, 8]);
        let (until, by) = not_before(&answers[2]).unwrap();
        assert_eq!(by, Blocker::Limit("2/1s/tenant".into()));
        assert_eq!(until, clock.nanos() + SECOND + 5 * MS, "exactly when its own limit allows it");
        let at: Vec<Nanos> = permits(answers).iter().map(|permit| permit.at - clock.nanos()).collect();
        assert_eq!(at, [0, 10_050_000, 20_100_000, 30_150_000, 40_200_000], "no slot was lost");
    });
}

#[test]
fn tenants_are_bounded_and_idle_ones_make_room() {
    run(async {
        let limits = [per_tenant(limit(1, Duration::from_secs(1), Shape::Paced))];
        let (local, clock, _) = opened(&limits).await;
        advance(&clock, 5 * SECOND);
        let many: Vec<Arc<str>> = (0..MAX_TENANTS + 5).map(|i| i.to_string().into()).collect();
        let answers = local.reserve("acme", &many, FAR).await.unwrap();
        assert_eq!(permits(answers).len(), MAX_TENANTS);
        advance(&clock, 2 * SECOND);
        let late = local.reserve("acme", &many[MAX_TENANTS..], FAR).await.unwrap();
        assert_eq!(permits(late).len(), 5);
    });
}

#[test]
fn usage_tells_how_much_is_used_and_when_each_limit_allows_the_next() {
    run(async {
        let (local, clock, _) = opened(&[paced(50), per_minute(3), per_tenant(per_minute(2))]).await;
        advance(&clock, SECOND);
        let start = clock.nanos();
        permits(local.reserve("acme", &["a", "a", "b"].map(Arc::from), FAR).await.unwrap());
        let usage = local.usage("acme").await;
        let told: Vec<(u64, Nanos)> = usage.iter().map(|u| (u.used, u.next_at - start)).collect();
        // All three permits are in the near future: the pace is taken until the third is over.
        assert_eq!(told[0].1, 3 * 20_100_000);
        assert_eq!(told[1], (3, 60_300 * MS));
        assert_eq!(told[2], (2, 60_300 * MS));
    });
}

#[test]
fn a_burst_that_one_limit_allowed_counts_under_the_one_that_takes_its_place() {
    let second = |shape| limit(50, Duration::from_secs(1), shape);
    let of_12s = |shape| limit(40, Duration::from_secs(12), shape);
    let of = |secs| limit(40, Duration::from_secs(secs), Shape::Window);
    let changes = [
        (second(Shape::Paced), second(Shape::Bucket { burst: 50 })),
        (second(Shape::Paced), second(Shape::Bucket { burst: 25 })),
        (second(Shape::Window), second(Shape::Paced)),
        (second(Shape::Window), limit(20, Duration::from_secs(1), Shape::Paced)),
        (of_12s(Shape::Window), of(15)),
        (of_12s(Shape::Window), of(11)),
        (of_12s(Shape::Window), of_12s(Shape::Paced)),
        (of_12s(Shape::Paced), of_12s(Shape::Window)),
        (of_12s(Shape::Bucket { burst: 20 }), of_12s(Shape::Bucket { burst: 40 })),
    ];
    for ((from, to), by_restart) in changes.iter().flat_map(|change| [(change, false), (change, true)]) {
        run(async {
            let (local, clock, book) = opened(std::slice::from_ref(from)).await;
            advance(&clock, 30 * SECOND);
            let backlog = async |local: &Local, calls: &mut Vec<Call>, until: Nanos| {
                while clock.nanos() < until {
                    let given = permits(local.reserve("acme", &wishes("t", 60), clock.nanos()).await.unwrap());
                    calls.extend(given.iter().map(|permit| Call {
                        at: permit.at,
                        arrived: permit.at,
                        tenant: "t".into(),
                    }));
                    advance(&clock, MS);
                }
            };
            let mut calls = Vec::new();
            backlog(&local, &mut calls, clock.nanos() + 3 * SECOND).await;
            let phases = [
                Phase { from: Nanos::MIN, left: Nanos::MIN, limits: vec![from.clone()] },
                Phase { from: clock.nanos(), left: clock.nanos(), limits: vec![to.clone()] },
            ];
            let formers = vec![Former { limits: vec![from.clone()], until: clock.now() }];
            let local = if by_restart {
                open_after(std::slice::from_ref(to), formers, &clock, &book).await
            } else {
                local.set_limits("acme", vec![to.clone()]).await.unwrap();
                local
            };
            let old = calls.len();
            backlog(&local, &mut calls, clock.nanos() + 40 * SECOND).await;
            assert_eq!(breaches_through(&calls, &phases, 0, Nanos::MIN), Vec::<String>::new(), "{from:?} -> {to:?}");
            assert!(calls.len() - old >= 3, "{from:?} -> {to:?}: only {} calls", calls.len() - old);
        });
    }
}

#[test]
fn a_calendar_day_is_kept_when_the_clock_is_set_right() {
    run(async {
        let (local, clock, book) = opened(&[daily(5, "UTC")]).await;
        let reserve = async |local: &Local| {
            permits(local.reserve("acme", &wishes("t", 9), clock.nanos() + SECOND).await.unwrap()).len()
        };
        let soon = async |local: &Local| local.outlook("acme", clock.nanos() + SECOND, 9).await.unwrap().room;
        assert_eq!(reserve(&local).await.min(5), 5);
        // It was six hours slow: the day that was used up may be the one that it is now.
        clock.step(6 * 3600 * SECOND);
        assert_eq!(soon(&local).await, 0);
        // And a process that starts then has it from the book.
        let local = open(&[daily(5, "UTC")], &clock, &book).await;
        assert_eq!(soon(&local).await, 0);
    });
}

#[test]
fn a_clock_set_a_little_costs_no_day() {
    run(async {
        let (local, clock, _) = opened(&[daily(5, "UTC")]).await;
        let room = async || local.outlook("acme", clock.nanos() + SECOND, 9).await.unwrap().room;
        permits(local.reserve("acme", &wishes("t", 2), FAR).await.unwrap());
        for _ in 0..8 {
            clock.step(2 * SECOND);
            assert_eq!(room().await, 3);
            clock.step(-3 * SECOND);
            assert_eq!(room().await, 3);
        }
    });
}

#[test]
fn calls_are_as_old_as_they_are_after_a_clock_set_forward_and_a_restart() {
    run(async {
        let (local, clock, book) = opened(&[per_minute(200)]).await;
        permits(local.reserve("acme", &wishes("t", 200), FAR).await.unwrap());
        clock.step(70 * SECOND);
        local.outlook("acme", clock.nanos(), 1).await.unwrap();
        let again = open(&[per_minute(200)], &clock, &book).await;
        assert_eq!(again.outlook("acme", clock.nanos() + 50 * SECOND, 200).await.unwrap().room, 0);
    });
}

#[test]
fn a_hundred_tenants_are_charged_ahead_with_one_write_and_no_permit_is_late() {
    run(async {
        let clock = Clock::manual(START);
        let slow = Some((clock.clone(), Duration::from_millis(20)));
        let book = Arc::new(MemoryBook { slow, ..MemoryBook::default() });
        let local = open(&[paced(1_000), per_tenant(per_minute(100))], &clock, &book).await;
        advance(&clock, SECOND);
        let tenants: Vec<Arc<str>> = (0..100).map(|i| format!("t{i}").into()).collect();
        let given = permits(local.reserve("acme", &tenants, clock.nanos() + 200 * MS).await.unwrap());
        assert_eq!(given.len(), 100);
        assert!(given.iter().all(|permit| permit.late_after >= clock.nanos()));
        assert_eq!(book.writes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_gate_that_the_vendor_closed_is_closed_after_a_restart_too_for_an_hour_at_most() {
    run(async {
        for (closed_for, still) in [(1_800, 1_800), (7_200, 3_600)] {
            let (local, clock, book) = opened(&[paced(50)]).await;
            local.close_gate("acme", clock.nanos() + closed_for * SECOND).await;
            let again = open(&[paced(50)], &clock, &book).await;
            let outlook = again.outlook("acme", FAR, 1).await.unwrap();
            assert_eq!((outlook.next_at, outlook.by), (clock.nanos() + still * SECOND, Some(Blocker::Gate)));
        }
    });
}
