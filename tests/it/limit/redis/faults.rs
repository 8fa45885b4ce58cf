//! What must hold when Redis, a process or a clock lets us down: the vendor's count never goes over.

use super::*;

fn paced(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(1), Shape::Paced)
}

fn window(calls: u64) -> Limit {
    limit(calls, Duration::from_secs(1), Shape::Window)
}

async fn reserve(limiter: &RedisLimiter, clock: &Clock, n: usize) -> Vec<Permit> {
    permits(limiter.reserve("acme", &wishes("t", n), clock.nanos() + 500 * MS).await.unwrap())
}

/// Some processes under random traffic, each with permits that it uses at their time or a little later.
struct Storm {
    scene: Scene,
    processes: Vec<RedisLimiter>,
    held: Vec<(usize, Permit)>,
    fired: Vec<Call>,
    phases: Vec<Phase>,
    /// How far Redis' clock, which is the vendor's, is ahead of the timeline, and since when.
    ahead: Nanos,
    right_from: Nanos,
    random: fastrand::Rng,
}

/// What befalls a storm beside what befalls every one.
#[derive(Clone, Copy, PartialEq)]
enum Also {
    Nothing,
    Steps,
    Changes,
}

impl Storm {
    async fn new(mut random: fastrand::Rng) -> Storm {
        let scene = Scene::new(&limits(&mut random));
        let phases = vec![Phase { from: Nanos::MIN, left: Nanos::MIN, limits: scene.limits.clone() }];
        let processes = (0..3).map(|_| scene.process()).collect();
        let (held, fired) = Default::default();
        Storm { scene, processes, held, fired, phases, ahead: 0, right_from: Nanos::MIN, random }
    }

    /// Shown when the test fails.
    fn say(&self, what: &str) {
        println!("{} {what}", self.scene.clock.nanos() - START.0 * MS);
    }

    /// When all that was given by now is with the vendor.
    fn settled(&self) -> Nanos {
        let held = self.held.iter().map(|(_, permit)| permit.late_after.min(permit.at + SECOND) + 2 * MS);
        held.chain([self.scene.clock.nanos()]).max().unwrap_or(0) + 1
    }

    /// Redis' clock is set. Every process that lives knew the time, and asks before one that begins.
    async fn set_clock(&mut self) {
        let scale = [50 * MS, 2 * SECOND, 100 * SECOND, 100_000 * SECOND][self.random.usize(0..4)];
        let by = self.random.i64(-scale..scale) / 1_000 * 1_000;
        for process in &self.processes {
            let _ = process.outlook("acme", 0, 1).await;
        }
        self.scene.clock.step_server(by);
        self.say(&format!("Redis' clock is set by {by}"));
        // What is known of the step is in the book before anybody dies.
        self.scene.book.away.store(false, Ordering::Relaxed);
        for process in self.processes.iter().chain(&self.processes) {
            let _ = process.outlook("acme", 0, 1).await;
        }
        (self.ahead, self.right_from) = (self.ahead + by, self.settled());
    }

    /// One of the limits is another from here on, in all processes.
    async fn change(&mut self) {
        self.scene.formers.insert(0, Former { limits: self.scene.limits.clone(), until: self.scene.clock.now() });
        let i = self.random.usize(0..self.scene.limits.len());
        self.scene.limits[i] = limits(&mut self.random).remove(0);
        for process in &self.processes {
            process.set_limits("acme", self.scene.limits.clone()).await.unwrap();
        }
        let arrived = self.fired.iter().map(|call| call.arrived + 1).max().unwrap_or(0);
        let left = self.settled().max(arrived);
        self.say(&format!("until {left}: {:?}", self.scene.limits));
        self.phases.push(Phase { from: self.scene.clock.nanos(), left, limits: self.scene.limits.clone() });
    }

    async fn step(&mut self, also: Also) {
        if self.random.u32(0..12) == 0 {
            match also {
                Also::Nothing => {}
                Also::Steps => self.set_clock().await,
                Also::Changes => self.change().await,
            }
        }
        let who = self.random.usize(0..self.processes.len());
        match self.random.u32(0..100) {
            0..40 => {
                let scale = [10 * MS, 300 * MS, 2 * SECOND, 30 * SECOND][self.random.usize(0..4)];
                let now = self.scene.clock.nanos() + self.random.i64(0..scale) / 1_000 * 1_000;
                self.fire(now);
                advance_to(&self.scene.clock, now);
            }
            40..80 => {
                let (wanted, tenants) = if self.random.u32(0..20) == 0 { (150, 200) } else { (15, 3) };
                let tenant = |random: &mut fastrand::Rng| format!("{}", random.u32(0..tenants)).into();
                let wishes: Vec<Arc<str>> =
                    (0..self.random.usize(1..wanted)).map(|_| tenant(&mut self.random)).collect();
                let until = self.scene.in_ms(self.random.i64(0..900));
                let given = match self.processes[who].reserve("acme", &wishes, until).await {
                    Ok(answers) => permits(answers),
                    Err(error) => {
                        assert!(self.scene.book.away.load(Ordering::Relaxed), "{error}");
                        return;
                    }
                };
                if let (Some(first), Some(last)) = (given.first(), given.last()) {
                    self.say(&format!(
                        "{who} is given {} from {} to {}",
                        given.len(),
                        first.at - START.0 * MS,
                        last.at - START.0 * MS
                    ));
                }
                self.held.extend(given.into_iter().map(|permit| (who, permit)));
            }
            80..86 => {
                let (mine, rest) = std::mem::take(&mut self.held).into_iter().partition(|(of, _)| *of == who);
                self.held = rest;
                let mine: Vec<_> = (mine as Vec<(usize, Permit)>).into_iter().map(|(_, permit)| permit).collect();
                self.say(&format!("{who} gives back {}", mine.len()));
                self.processes[who].give_back(mine).await;
            }
            86..88 => self.processes[who].close_gate("acme", self.scene.in_ms(self.random.i64(0..3_000))).await,
            // It dies with what it holds; another takes its place.
            88..92 => {
                self.held.retain(|(of, _)| *of != who);
                self.say(&format!("{who} is new"));
                self.processes[who] = self.scene.process();
                let _ = self.processes[who].outlook("acme", 0, 1).await;
            }
            92..96 => {
                self.say("flushed");
                self.scene.flush();
            }
            _ => {
                let away = self.random.bool();
                self.say(&format!("the book is away: {away}"));
                self.scene.book.away.store(away, Ordering::Relaxed);
            }
        }
    }

    /// Fires what is due by `now`, some of it late, over a link with as much jitter as the guard has left.
    fn fire(&mut self, now: Nanos) {
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|(_, permit)| permit.at <= now);
        self.held = held;
        for (who, permit) in due as Vec<(usize, Permit)> {
            let guards =
                self.scene.limits.iter().filter(|limit| matches!(limit.per, Per::Rolling(_))).map(|l| nanos(l.guard));
            let most = guards.min().map_or(SECOND, |guard| (guard - 2 * MS).max(0));
            let late = self.random.i64(0..=(permit.late_after.min(now).max(permit.at) - permit.at).min(most));
            if self.processes[who].check(&permit, permit.at + late).is_ok() {
                self.processes[who].call_left(&permit, permit.at + late);
                let arrived = permit.at + late + self.random.i64(0..=MS);
                self.fired.push(Call { at: permit.at, arrived, tenant: permit.tenant });
            }
        }
    }
}

fn limits(random: &mut fastrand::Rng) -> Vec<Limit> {
    let one = |random: &mut fastrand::Rng| {
        let period = Duration::from_millis([300, 2_000, 9_000, 45_000][random.usize(0..4)] + random.u64(0..100));
        let calls = random.u64(1..30);
        let made = match random.u32(0..5) {
            0 => limit(calls, period, Shape::Paced),
            1 => limit(calls, period, Shape::Bucket { burst: random.u64(1..=calls) }),
            2 => daily(calls * 20, "America/New_York"),
            _ => limit(calls, period, Shape::Window),
        };
        if random.bool() { made } else { per_tenant(made) }
    };
    (0..random.usize(1..4)).map(|_| one(random)).collect()
}

/// Other histories each time, or the same again with FETCHGATE_SEED.
fn first_seed() -> u64 {
    std::env::var("FETCHGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

#[test]
fn no_window_ever_holds_more_than_n_whatever_happens() {
    let first = first_seed();
    for seed in first..first.saturating_add(60) {
        println!("FETCHGATE_SEED={seed}"); // shown when the test fails
        run_io(async {
            let mut storm = Storm::new(fastrand::Rng::with_seed(seed)).await;
            for _ in 0..150 {
                storm.step(Also::Nothing).await;
            }
            storm.fire(Nanos::MAX);
            assert_eq!(breaches(&storm.fired, &storm.scene.limits), Vec::<String>::new());
        });
    }
}

fn storms_with(also: Also) {
    let first = first_seed();
    for seed in first..first.saturating_add(60) {
        println!("FETCHGATE_SEED={seed}"); // shown when the test fails
        run_io(async {
            let mut storm = Storm::new(fastrand::Rng::with_seed(seed)).await;
            println!("{:#?}", storm.scene.limits);
            for _ in 0..150 {
                storm.step(also).await;
            }
            storm.fire(Nanos::MAX);
            let found = breaches_through(&storm.fired, &storm.phases, storm.ahead, storm.right_from);
            assert_eq!(found, Vec::<String>::new());
        });
    }
}

#[test]
fn no_window_ever_holds_more_than_n_whatever_is_done_to_the_clock_of_redis() {
    storms_with(Also::Steps);
}

#[test]
fn a_window_holds_what_the_loosest_of_its_limits_allows_whatever_is_changed() {
    storms_with(Also::Changes);
}

#[test]
fn calls_that_were_dated_past_a_change_count_when_redis_has_lost_them() {
    run_io(async {
        let long = |secs| limit(20, Duration::from_secs(secs), Shape::Window);
        let scene = Scene::new(&[long(45), paced(30)]);
        let limiter = scene.warm().await;
        let before = reserve(&limiter, &scene.clock, 13).await;
        assert_eq!(before.len(), 13);
        let slow = limit(2, Duration::from_secs(9), Shape::Paced);
        limiter.set_limits("acme", vec![slow]).await.unwrap();
        advance(&scene.clock, 2 * SECOND);
        scene.flush();
        limiter.outlook("acme", 0, 1).await.unwrap();
        limiter.set_limits("acme", vec![long(46)]).await.unwrap();
        let mut after = Vec::new();
        while scene.clock.nanos() < before[0].at + 45 * SECOND {
            let until = scene.in_ms(500);
            after.extend(permits(limiter.reserve("acme", &wishes("t", 20), until).await.unwrap()));
            advance(&scene.clock, SECOND);
        }
        let after = after.iter().filter(|permit| permit.at < before[0].at + 45 * SECOND).count();
        assert!((1..=20 - before.len()).contains(&after), "{after} more than {}", before.len());
    });
}

#[test]
fn scripts_that_redis_has_forgotten_are_loaded_again() {
    let server = servers::Server::redis();
    run_io(async {
        let clock = Clock::manual(START);
        let limiter = process(&server.link(), "p", &[window(20)], &clock, &shared_book());
        reserve(&limiter, &clock, 1).await;
        advance(&clock, 12 * SECOND);
        assert_eq!(reserve(&limiter, &clock, 8).await.len(), 8);
        assert_eq!(server.say("SCRIPT FLUSH"), "+OK");
        assert_eq!(reserve(&limiter, &clock, 20).await.len(), 12);
    });
}

#[test]
fn another_run_of_redis_starts_cold_even_if_it_remembers() {
    let mut server = servers::Server::redis();
    let clock = Clock::manual(START);
    run_io(async {
        let limits = [window(20)];
        let limiter = process(&server.link(), "p", &limits, &clock, &shared_book());
        reserve(&limiter, &clock, 1).await;
        advance(&clock, 12 * SECOND);
        assert_eq!(reserve(&limiter, &clock, 20).await.len(), 20);
        // What a restart from disk would bring back: the state of an older run, in which nothing had been used.
        let mut older = ::redis::cmd("HSET");
        older.arg("p:{acme}:state").arg("run").arg("0123");
        server.link().command::<i64>(&older).await.unwrap();
        let outlook = limiter.outlook("acme", 0, 1).await.unwrap();
        assert_eq!(outlook.next_at, clock.nanos() + 500 * MS + SECOND + 5 * MS);
    });
    server.restart();
    run_io(async {
        let limiter = process(&server.link(), "p", &[window(20)], &clock, &shared_book());
        assert_eq!(reserve(&limiter, &clock, 1).await.len(), 0);
        advance(&clock, 2 * SECOND);
        assert_eq!(reserve(&limiter, &clock, 30).await.len(), 20);
    });
}

#[test]
fn a_clock_that_is_behind_starts_cold_for_whoever_does_not_know_by_how_much() {
    run_io(async {
        let scene = Scene::new(&[paced(50)]);
        let limiter = scene.warm().await;
        reserve(&limiter, &scene.clock, 3).await;
        for behind_ms in [1_000, 3_600_000] {
            let stepped = Scene {
                clock: Clock::manual(Time(scene.clock.now().0 - behind_ms)),
                prefix: scene.prefix.clone(),
                ..Scene::new(&scene.limits)
            };
            let outlook = stepped.process().outlook("acme", 0, 1).await.unwrap();
            assert_eq!(outlook.by, Some(Blocker::Gate));
            assert_eq!(outlook.next_at - stepped.clock.nanos(), 500 * MS + 20_100_000);
        }
    });
}

/// Calls as fast as the limits allow for so long, Redis' clock being set in the middle.
async fn backlog_over_a_step(limits: &[Limit], by: Nanos, seconds: i64) -> Vec<Call> {
    let scene = Scene::new(limits);
    let limiters = [scene.warm().await, scene.process()];
    let (mut calls, mut held): (Vec<Call>, Vec<Permit>) = Default::default();
    let began = scene.clock.nanos();
    let mut has_stepped = false;
    while scene.clock.nanos() < began + seconds * SECOND {
        for limiter in &limiters {
            held.extend(permits(limiter.reserve("acme", &wishes("t", 60), scene.in_ms(100)).await.unwrap()));
        }
        advance(&scene.clock, 50 * MS);
        let now = scene.clock.nanos();
        calls.extend(held.extract_if(.., |p| p.at <= now).map(|p| Call { at: p.at, arrived: p.at, tenant: p.tenant }));
        if !has_stepped && now > began + seconds * SECOND / 4 {
            scene.clock.step_server(by);
            has_stepped = true;
        }
    }
    calls
}

#[test]
fn no_window_holds_more_than_n_when_the_clock_of_redis_is_set() {
    let of_20s = limit(50, Duration::from_secs(20), Shape::Window);
    for limit in [
        window(50),
        paced(50),
        of_20s,
        daily(60, "UTC"),
        per_tenant(limit(100, Duration::from_secs(60), Shape::Window)),
    ] {
        for by_ms in [400, -400, 40, 25_000, -25_000, 70_000, 86_400_000, -86_400_000] {
            let limits = [limit.clone()];
            let calls = run_io(backlog_over_a_step(&limits, by_ms * MS, 60));
            let phases = [Phase { from: Nanos::MIN, left: Nanos::MIN, limits: limits.to_vec() }];
            let found = match limit.per {
                Per::Rolling(_) => breaches(&calls, &limits),
                _ => breaches_through(&calls, &phases, by_ms * MS, Nanos::MIN),
            };
            assert_eq!(found, Vec::<String>::new(), "{limit:?} by {by_ms} ms");
            assert!(calls.len() >= 50, "{limit:?} by {by_ms} ms: {} calls", calls.len());
        }
    }
}

#[test]
fn a_gate_stays_closed_as_long_when_the_clock_steps() {
    run_io(async {
        let scene = Scene::new(&[paced(50)]);
        scene.warm().await.close_gate("acme", scene.in_ms(30_000)).await;
        let back = Scene {
            clock: Clock::manual(Time(scene.clock.now().0 - 3_600_000)),
            prefix: scene.prefix.clone(),
            ..Scene::new(&scene.limits)
        };
        let outlook = back.process().outlook("acme", 0, 1).await.unwrap();
        assert_eq!(outlook.next_at - back.clock.nanos(), 30 * SECOND);
    });
}

#[test]
fn a_redis_that_does_not_answer_means_no_permits_and_no_hot_loop() {
    let server = servers::Server::redis();
    run_io(async {
        let clock = Clock::system();
        let limiter = process(&server.link(), "p", &[paced(50)], &clock, &shared_book());
        limiter.outlook("acme", 0, 1).await.unwrap();
        server.freeze();
        for _ in 0..2 {
            let began = clock.nanos();
            assert!(limiter.reserve("acme", &wishes("t", 1), began + 500 * MS).await.is_err());
            let took = clock.nanos() - began;
            assert!((100 * MS..5 * SECOND).contains(&took), "{took} ns");
        }
        server.thaw();
        while limiter.outlook("acme", 0, 1).await.is_err() {
            clock.sleep_until(clock.nanos() + 50 * MS).await;
        }
        tokio::time::timeout(Duration::from_secs(3), limiter.stop()).await.expect("it ends").unwrap();
    });
}

#[test]
fn a_late_call_is_reported_until_that_succeeds_and_delays_once() {
    let server = servers::Server::redis();
    run_io(async {
        let clock = Clock::manual(START);
        let limits = [Limit { guard: Duration::from_millis(8), ..paced(100) }];
        let limiter = process(&server.link(), "p", &limits, &clock, &shared_book());
        limiter.outlook("acme", 0, 1).await.unwrap();
        advance(&clock, 12 * SECOND);
        let (pace, late) = (10_080_000, 2 * MS);
        let mut given = reserve(&limiter, &clock, 2).await;
        // The question that carries it does not arrive.
        limiter.call_left(&given[0], given[0].late_after);
        server.say("CLIENT KILL TYPE normal");
        limiter.outlook("acme", 0, 1).await.unwrap_err();
        given.extend(reserve(&limiter, &clock, 1).await);
        assert_eq!(given[2].at - given[1].at, pace + late);
        // It arrives, and the answer does not.
        limiter.call_left(&given[2], given[2].late_after);
        server.freeze();
        limiter.outlook("acme", 0, 1).await.unwrap_err();
        server.thaw();
        given.extend(reserve(&limiter, &clock, 2).await);
        assert_eq!([given[3].at - given[2].at, given[4].at - given[3].at], [pace + late, pace]);
    });
}

#[test]
fn a_hand_back_that_arrives_twice_frees_one_call() {
    run_io(async {
        let scene = Scene::new(&[window(3)]);
        let limiter = scene.warm().await;
        let mut given = reserve(&limiter, &scene.clock, 3).await;
        let (link, key) = (scene.redis.clone(), format!("{}:{{acme}}:state", scene.prefix));
        let mut epoch = ::redis::cmd("HGET");
        let epoch: String = link.command(epoch.arg(&key).arg("epoch")).await.unwrap();
        // The first hand-back is done, and its answer does not come: it is told again under the same name.
        let undone = format!("{}:{{acme}}:{epoch}:undone", scene.prefix);
        limiter.give_back(vec![given.pop().unwrap()]).await;
        let mut last = ::redis::cmd("LRANGE");
        let names: Vec<String> = link.command(last.arg(&undone).arg(0).arg(-1)).await.unwrap();
        assert_eq!(names.len(), 1, "each hand-back has a name of its own, by which a second of it is known");
        assert_eq!(reserve(&limiter, &scene.clock, 3).await.len(), 1);
    });
}
