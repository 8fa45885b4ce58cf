//! What callers rely on, with several processes on one Redis.

use fetchgate::limit::Missed;

use super::*;

fn paced(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(1), Shape::Paced)
}

fn per_minute(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(60), Shape::Window)
}

async fn reserve(limiter: &RedisLimiter, scene: &Scene, n: usize) -> Vec<Permit> {
    permits(limiter.reserve("acme", &wishes("t", n), scene.in_ms(499)).await.unwrap())
}

#[test]
fn a_cold_start_waits_for_permits_that_may_still_be_used() {
    run_io(async {
        let scene = Scene::new(&[paced(50)]);
        let outlook = scene.process().outlook("acme", Nanos::MAX, 1).await.unwrap();
        assert_eq!(outlook.next_at - scene.clock.nanos(), 500 * MS + 20_100_000);
        assert_eq!(outlook.by, Some(Blocker::Gate));
    });
}

#[test]
fn several_processes_share_one_limit_and_permits_never_go_backwards() {
    run_io(async {
        let scene = Scene::new(&[paced(50), per_minute(1_000)]);
        let (a, b) = (scene.warm().await, scene.process());
        let mut given = reserve(&a, &scene, 3).await;
        given.extend(reserve(&b, &scene, 3).await);
        let at: Vec<Nanos> = given.iter().map(|permit| permit.at - scene.clock.nanos()).collect();
        assert_eq!(at, [0, 20_100_000, 40_200_000, 60_300_000, 80_400_000, 100_500_000]);
        // The smaller guard of the two is 5 ms, of which 1.25 ms are for the link.
        assert!(given.iter().all(|permit| permit.late_after == permit.at + 3_750_000));
        assert_eq!(b.check(&given[3], given[3].late_after + 1), Err(Missed::Late));
    });
}

#[test]
fn no_permit_lies_beyond_the_horizon_that_a_cold_start_waits_out() {
    run_io(async {
        let scene = Scene::new(&[paced(50)]);
        let limiter = scene.warm().await;
        let answers = limiter.reserve("acme", &wishes("t", 100), Nanos::MAX).await.unwrap();
        let last = permits(answers).last().unwrap().at;
        assert!(last <= scene.clock.nanos() + nanos(limiter.horizon()));
    });
}

#[test]
fn a_gate_closed_by_one_process_reaches_the_others_within_a_tenth_of_a_second() {
    run_io(async {
        let mut scene = Scene::new(&[paced(50)]);
        scene.clock = Clock::system();
        let (a, b) = (scene.process(), scene.process());
        let opens = b.outlook("acme", 0, 1).await.unwrap().next_at;
        scene.clock.sleep_until(opens).await;
        let given = reserve(&b, &scene, 10).await;
        let last = given.last().unwrap();
        assert_eq!(b.check(last, last.at), Ok(()));
        // Closed only by its own process's word: nothing else is asked of b.
        let told = scene.clock.nanos();
        a.close_gate("acme", told + 10 * SECOND).await;
        while b.check(last, last.at).is_ok() {
            assert!(scene.clock.nanos() < told + 100 * MS);
            tokio::task::yield_now().await;
        }
        assert_eq!(b.check(last, last.at), Err(Missed::GateClosed));
        assert_eq!(reserve(&b, &scene, 1).await.len(), 0);
        a.close_gate("acme", told + SECOND).await;
        let outlook = b.outlook("acme", 0, 1).await.unwrap();
        assert!(outlook.next_at >= told + 10 * SECOND, "it opens no earlier than first said");
    });
}

#[test]
fn a_closed_gate_is_reported_again_when_redis_has_lost_it() {
    run_io(async {
        let scene = Scene::new(&[paced(50)]);
        let limiter = scene.warm().await;
        let opens = scene.in_ms(30_000);
        limiter.close_gate("acme", opens).await;
        scene.flush();
        for _ in 0..2 {
            limiter.outlook("acme", 0, 1).await.unwrap();
        }
        assert_eq!(scene.process().outlook("acme", 0, 1).await.unwrap().next_at, opens);
    });
}

#[test]
fn half_of_a_long_limit_is_still_used_after_everything_was_lost() {
    run_io(async {
        let scene = Scene::new(&[per_minute(200), daily(150, "Europe/Berlin")]);
        let limiter = scene.warm().await;
        assert_eq!(reserve(&limiter, &scene, 100).await.len(), 100);
        scene.flush();
        for limiter in [&limiter, &scene.process()] {
            assert_eq!(reserve(limiter, &scene, 1).await.len(), 0, "permits of before may still be used");
        }
        advance(&scene.clock, SECOND);
        assert_eq!(reserve(&scene.process(), &scene, 100).await.len(), 50, "the day allows 50 more");
        advance(&scene.clock, 61 * SECOND);
        assert_eq!(reserve(&scene.process(), &scene, 100).await.len(), 0);
    });
}

#[test]
fn a_limit_that_the_config_has_anew_pays_off_the_permits_on_record_and_the_others_go_on() {
    run_io(async {
        let mut scene = Scene::new(&[per_minute(30)]);
        let before = scene.warm().await;
        assert_eq!(reserve(&before, &scene, 20).await.len(), 20);
        scene.limits = vec![per_minute(25), paced(50)];
        let after = scene.process();
        assert_eq!(reserve(&after, &scene, 1).await.len(), 0, "a pace pays off a burst call by call");
        advance(&scene.clock, SECOND);
        assert_eq!(reserve(&after, &scene, 20).await.len(), 5);
        assert_eq!(reserve(&before, &scene, 20).await.len(), 5);
    });
}

#[test]
fn without_the_book_there_is_no_permit_and_nothing_is_lost_for_good() {
    run_io(async {
        let scene = Scene::new(&[per_minute(20)]);
        let limiter = scene.warm().await;
        scene.book.away.store(true, Ordering::Relaxed);
        assert!(limiter.reserve("acme", &wishes("t", 5), scene.in_ms(0)).await.is_err());
        scene.book.away.store(false, Ordering::Relaxed);
        assert_eq!(reserve(&limiter, &scene, 30).await.len(), 20);
    });
}

#[test]
fn what_is_charged_ahead_is_shared_and_counts_as_used_after_a_loss() {
    run_io(async {
        let scene = Scene::new(&[per_minute(5_000)]); // blocks of 10
        let (a, b) = (scene.warm().await, scene.process());
        let writes = || scene.book.writes.load(Ordering::Relaxed);
        reserve(&a, &scene, 3).await;
        reserve(&b, &scene, 7).await;
        assert_eq!((scene.book.rows(), writes()), (vec![10], 1));
        reserve(&b, &scene, 1).await;
        a.stop().await.unwrap();
        b.stop().await.unwrap();
        assert_eq!(scene.book.rows(), [20], "a stop hands nothing back that others may be using");
        scene.flush();
        assert_eq!(scene.process().usage("acme").await[0].used, 20);
    });
}

#[test]
fn short_limits_never_write_to_the_book() {
    run_io(async {
        let scene = Scene::new(&[paced(1_000)]);
        reserve(&scene.warm().await, &scene, 100).await;
        assert_eq!(scene.book.writes.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn all_keys_of_a_pool_lie_in_one_slot_and_only_those_of_tenants_expire() {
    run_io(async {
        let tenants = [paced(2_000), per_minute(200)].map(per_tenant);
        let scene =
            Scene::new(&[paced(1_000), per_minute(200), daily(100, "UTC"), tenants[0].clone(), tenants[1].clone()]);
        let limiter = scene.warm().await;
        let given = reserve(&limiter, &scene, 5).await;
        limiter.give_back(given).await;
        limiter.share_in_flight("acme", 10, 1).await.unwrap();
        let mut keys = ::redis::cmd("KEYS");
        keys.arg(format!("{}:*", scene.prefix));
        let keys: Vec<String> = scene.redis.command(&keys).await.unwrap();
        assert!(keys.len() > 10, "{keys:?}");
        for key in keys {
            assert!(key.starts_with(&format!("{}:{{acme}}:", scene.prefix)), "{key}");
            let ttl: i64 = scene.redis.command(::redis::cmd("PTTL").arg(&key)).await.unwrap();
            assert_eq!(ttl > 0, key.ends_with(":t"), "{key} expires in {ttl}");
            let memory = if key.contains(":60s/") { 60_800 } else { 0 };
            assert!(ttl < 0 || ttl > memory + 50_000, "{key} expires in {ttl}");
        }
    });
}

#[test]
fn three_processes_in_real_time_keep_the_limit_and_use_it() {
    run_io(async {
        let mut scene = Scene::new(&[paced(200), limit(100, Duration::from_millis(500), Shape::Window)]);
        scene.clock = Clock::system();
        let opens = scene.process().outlook("acme", 0, 1).await.unwrap().next_at;
        scene.clock.sleep_until(opens).await;
        let end = scene.clock.nanos() + 3 * SECOND;
        let processes = [scene.process(), scene.process(), scene.process()];
        let greedy = async |limiter: &RedisLimiter| {
            let mut at = Vec::new();
            while scene.clock.nanos() < end {
                // One whose answer was so slow that nobody knows when it begins is not used.
                let given = reserve(limiter, &scene, 7).await.into_iter();
                at.extend(
                    given
                        .map(|permit| (limiter.check(&permit, permit.at), permit.at))
                        .filter(|(ok, _)| ok.is_ok())
                        .map(|(_, at)| at),
                );
                scene.clock.sleep_until(scene.in_ms(20)).await;
            }
            at
        };
        let (a, b, c) = tokio::join!(greedy(&processes[0]), greedy(&processes[1]), greedy(&processes[2]));
        let mut all = [a, b, c].concat();
        all.sort_unstable();
        let span = (all[all.len() - 1] - all[0]) as f64 / SECOND as f64;
        assert!(all.len() as f64 >= 0.95 * 200.0 * span, "{} in {span} s", all.len());
        assert!(most_in_any_window(all.clone(), SECOND) <= 200);
        assert!(most_in_any_window(all, 500 * MS) <= 100);
    });
}

#[test]
fn a_round_of_a_hundred_tenants_is_charged_with_one_write() {
    run_io(async {
        let scene = Scene::new(&[limit(1_000, Duration::from_secs(1), Shape::Paced), per_tenant(per_minute(100))]);
        let limiter = scene.warm().await;
        let tenants: Vec<Arc<str>> = (0..100).map(|i| format!("t{i}").into()).collect();
        for round in 1..=3 {
            let given = permits(limiter.reserve("acme", &tenants, scene.in_ms(499)).await.unwrap());
            assert_eq!(given.len(), 100);
            assert!(scene.book.writes.load(Ordering::Relaxed) <= round);
            advance(&scene.clock, SECOND);
        }
    });
}

#[test]
fn a_limit_that_is_removed_and_set_again_counts_the_calls_made_meanwhile() {
    run_io(async {
        let (of_1s, of_2s) = (window_of(50, 1), window_of(100, 2));
        let scene = Scene::new(std::slice::from_ref(&of_1s));
        let limiter = scene.warm().await;
        limiter.set_limits("acme", vec![of_2s]).await.unwrap();
        limiter.outlook("acme", 0, 1).await.unwrap();
        advance(&scene.clock, 12 * SECOND);
        assert_eq!(reserve(&limiter, &scene, 200).await.len(), 100);
        limiter.set_limits("acme", vec![of_1s]).await.unwrap();
        advance(&scene.clock, 510 * MS);
        assert_eq!(reserve(&limiter, &scene, 200).await.len(), 0);
    });
}

#[test]
fn what_was_paid_ahead_is_not_paid_again_and_counts_as_used_when_redis_has_lost_it() {
    run_io(async {
        let scene = Scene::new(&[paced(50), per_minute(4)]);
        let limiter = scene.warm().await;
        limiter.prepare("acme").await;
        limiter.prepare("acme").await;
        assert_eq!(scene.book.writes.load(Ordering::Relaxed), 1);
        assert_eq!(reserve(&limiter, &scene, 1).await.len(), 1);
        assert_eq!(scene.book.writes.load(Ordering::Relaxed), 1);
        advance(&scene.clock, SECOND);
        limiter.prepare("acme").await;
        scene.flush();
        limiter.outlook("acme", 0, 1).await.unwrap();
        advance(&scene.clock, 12 * SECOND);
        assert_eq!(reserve(&limiter, &scene, 4).await.len(), 2);
    });
}

#[test]
fn a_new_limit_counts_permits_that_are_no_longer_on_record() {
    run_io(async {
        let scene = Scene::new(&[window_of(1_000, 1)]);
        let limiter = scene.warm().await;
        let mut given = reserve(&limiter, &scene, 1_000).await;
        advance(&scene.clock, 1_100 * MS);
        given.extend(reserve(&limiter, &scene, 1_000).await);
        assert!(given.len() > 1_900, "{}", given.len());
        // The record has the newest thousand or so. Some of these are taken back, so that it is shorter than it can be.
        limiter.give_back(given.split_off(given.len() - 5)).await;
        limiter.set_limits("acme", vec![window_of(2_000, 9)]).await.unwrap();
        advance(&scene.clock, SECOND);
        let more = reserve(&limiter, &scene, 1_000).await.len();
        assert!(given.len() + more <= 2_000, "{} and {more} more in 9 s", given.len());
    });
}

fn window_of(calls: u64, secs: u64) -> Limit {
    limit(calls, Duration::from_secs(secs), Shape::Window)
}
