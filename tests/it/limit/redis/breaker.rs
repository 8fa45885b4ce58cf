//! The breakers of many processes: the script against the rule, and what the processes hear of each other.

use fetchgate::limit::{
    breaker::{ProbeEnd, Standing, Terms},
    breakers::{Breakers, LocalBreakers, Probe},
    redis::RedisBreakers,
};

use super::{super::breaker::TERMS, *};

const MICRO: i64 = 1_000;

fn process(scene: &Scene, terms: Terms) -> RedisBreakers {
    let vendors = ["acme", "other"].map(|vendor| (vendor.into(), terms));
    RedisBreakers::open(scene.redis.clone(), &scene.prefix, vendors, scene.clock.clone(), |_| {})
}

async fn fail(breakers: &RedisBreakers, vendor: &str, times: u64) {
    for _ in 0..times {
        breakers.ended(vendor, true).await;
    }
}

#[test]
fn the_script_and_the_rule_open_and_close_alike() {
    let mut seed: u64 =
        std::env::var("FETCHGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    for _ in 0..40 {
        println!("FETCHGATE_SEED={seed}"); // shown when the test fails
        run_io(compare(fastrand::Rng::with_seed(seed)));
        seed = seed.wrapping_add(1);
    }
}

async fn compare(mut random: fastrand::Rng) {
    let scene = Scene::new(&[]);
    let ms = |n| Duration::from_millis(n);
    let open = ms(random.u64(100..3_000));
    let terms = Terms {
        failed: random.u64(1..=1_000_000),
        calls: random.u64(1..12),
        within: ms(random.u64(100..5_000)),
        open,
        longest: open * random.u32(1..9),
        probe: ms(random.u64(500..4_000)),
    };
    let lua = process(&scene, terms);
    let rust = LocalBreakers::new([("acme".into(), terms)], scene.clock.clone());
    let mut probes: Vec<(Probe, Probe)> = Vec::new();
    for _ in 0..300 {
        match random.u32(0..12) {
            0..3 => advance(&scene.clock, random.i64(0..800) * MS + random.i64(0..999) * MICRO),
            3..7 => {
                let failed = random.u32(0..4) > 0;
                lua.ended("acme", failed).await;
                rust.ended("acme", failed).await;
            }
            7 | 8 => {
                let (lua, rust) = (lua.take_probe("acme").await.unwrap(), rust.take_probe("acme").await.unwrap());
                assert_eq!(lua.is_some(), rust.is_some());
                probes.extend(lua.zip(rust));
            }
            9 => {
                let wait = ms(random.u64(0..=terms.longest.as_millis() as u64));
                let why: Arc<str> = random.u32(..).to_string().into();
                lua.trip("acme", wait, Arc::clone(&why)).await;
                rust.trip("acme", wait, why).await;
            }
            10 => {
                lua.hurry("acme").await.unwrap();
                rust.hurry("acme").await.unwrap();
            }
            _ if !probes.is_empty() => {
                let (of_lua, of_rust) = probes.swap_remove(random.usize(0..probes.len()));
                let why = Some("refused".into());
                let ends = [ProbeEnd::Unknown, ProbeEnd::Failed { why }, ProbeEnd::Good];
                let end = &ends[random.usize(0..3)];
                lua.probed("acme", of_lua, end.clone()).await;
                rust.probed("acme", of_rust, end.clone()).await;
            }
            _ => {}
        }
        assert_eq!(lua.look("acme").await, rust.look("acme").await);
        let (of_lua, of_rust) = (lua.opened("acme"), rust.opened("acme"));
        assert_eq!(of_lua.as_ref().map(|opened| &opened.why), of_rust.as_ref().map(|opened| &opened.why));
        let apart = of_lua.zip(of_rust).map_or(0, |(lua, rust)| (lua.since - rust.since).abs());
        assert!(apart <= MICRO, "{apart} ns apart");
    }
    lua.stop().await;
    scene.flush();
}

#[test]
fn all_processes_stop_within_a_tenth_of_a_second_when_one_has_seen_enough() {
    run_io(async {
        let mut scene = Scene::new(&[]);
        scene.clock = Clock::system();
        let (a, b) = (process(&scene, TERMS), process(&scene, TERMS));
        while b.standing("other") == Standing::Closed {
            // Until it listens.
            scene.flush();
            fail(&a, "other", 20).await;
            tokio::task::yield_now().await;
        }
        let told = scene.clock.nanos();
        fail(&a, "acme", 20).await;
        while b.standing("acme") == Standing::Closed {
            assert!(scene.clock.nanos() < told + 100 * MS);
            tokio::task::yield_now().await;
        }
        println!("heard after {} us", (scene.clock.nanos() - told) / MICRO);
    });
}

#[test]
fn failures_of_several_processes_are_counted_together() {
    run_io(async {
        let mut scene = Scene::new(&[]);
        scene.clock = Clock::system();
        let (a, b) = (process(&scene, TERMS), process(&scene, TERMS));
        fail(&a, "acme", 10).await;
        fail(&b, "acme", 10).await;
        let told = scene.clock.nanos();
        while a.look("acme").await == Standing::Closed {
            assert!(scene.clock.nanos() < told + 5 * SECOND);
        }
    });
}

#[test]
fn one_probe_goes_in_all_processes_and_a_dead_one_is_replaced() {
    run_io(async {
        let scene = Scene::new(&[]);
        let (a, b) = (process(&scene, TERMS), process(&scene, TERMS));
        fail(&a, "acme", 20).await;
        assert_eq!(b.look("acme").await, Standing::Open { until: scene.in_ms(10_000) });
        advance(&scene.clock, 10 * SECOND);
        assert_eq!(b.standing("acme"), Standing::HalfOpen);
        assert!(a.take_probe("acme").await.unwrap().is_some());
        assert!(b.take_probe("acme").await.unwrap().is_none());
        a.stop().await;
        advance(&scene.clock, 15 * SECOND);
        let probe = b.take_probe("acme").await.unwrap().expect("the other's process is dead");
        b.probed("acme", probe, ProbeEnd::Good).await;
        assert_eq!(b.standing("acme"), Standing::Closed);
    });
}

#[test]
fn a_redis_that_has_forgotten_lets_calls_go() {
    run_io(async {
        let scene = Scene::new(&[]);
        let breakers = process(&scene, TERMS);
        fail(&breakers, "acme", 20).await;
        scene.flush();
        assert_eq!(breakers.look("acme").await, Standing::Closed);
    });
}
