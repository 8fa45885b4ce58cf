//! Random limits under random traffic, crashes, hand-backs and gates: the vendor's count never goes over.

use fetchgate::limit::Limiter;
use proptest::prelude::*;

use super::*;

const ZONES: [&str; 3] = ["Europe/Berlin", "America/New_York", "UTC"];

fn limits() -> impl Strategy<Value = Vec<Limit>> {
    // From tenths of a second to a day: short ones start cold, long ones live in the book.
    let period = prop_oneof![100_u64..2_000, 2_000_u64..12_000, 12_000_u64..90_000, Just(86_400_000)];
    let shape = prop_oneof![
        Just(Shape::Paced),
        Just(Shape::Window),
        (1_u64..8).prop_map(|burst| Shape::Bucket { burst }),
        Just(Shape::Calendar)
    ];
    let one = (1_u64..30, period, shape, any::<bool>(), 0_usize..3, any::<bool>());
    proptest::collection::vec(one.prop_map(one_limit), 1..=4)
}

fn one_limit((calls, ms, shape, tenant, zone, monthly): (u64, u64, Shape, bool, usize, bool)) -> Limit {
    let made = match shape {
        Shape::Calendar if monthly => {
            let per = Per::Month(jiff::tz::TimeZone::get(ZONES[zone]).unwrap());
            Limit { per, ..daily(calls, "UTC") }
        }
        Shape::Calendar => daily(calls, ZONES[zone]),
        Shape::Bucket { burst } => limit(calls, Duration::from_millis(ms), Shape::Bucket { burst: burst.min(calls) }),
        shape => limit(calls, Duration::from_millis(ms), shape),
    };
    if tenant { per_tenant(made) } else { made }
}

#[derive(Debug, Clone)]
enum Op {
    /// By so many thousandths of one of the periods.
    Wait {
        limit: usize,
        thousandths: i64,
    },
    Reserve {
        tenants: Vec<u8>,
        horizon_ms: i64,
    },
    GiveBack {
        newest: usize,
    },
    CloseGate {
        ms: i64,
    },
    /// The process dies and another one starts; perhaps right after the book was written and before the permits are known.
    Crash {
        in_reserve: bool,
    },
    Stop,
    BookGoes {
        away: bool,
    },
    /// The wall clock is set.
    Step {
        ms: i64,
    },
    /// One of the limits is another from here on: while the process runs, or in the file of the one that takes its place.
    Change {
        limit: usize,
        to: Limit,
        by_restart: bool,
    },
}

/// As they come while nobody touches a clock or a limit.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..120)
}

/// The wall clock is set to and fro, by a little or by days.
fn ops_with_steps() -> impl Strategy<Value = Vec<Op>> {
    let by = prop_oneof![-2_000_i64..2_000, -90_000_000_i64..90_000_000];
    let op = prop_oneof![10 => op(), 1 => by.prop_map(|ms| Op::Step { ms })];
    proptest::collection::vec(op, 1..120)
}

fn ops_with_changes() -> impl Strategy<Value = Vec<Op>> {
    let change = (0_usize..4, limits(), any::<bool>());
    let change = change.prop_map(|(limit, mut to, by_restart)| Op::Change { limit, to: to.remove(0), by_restart });
    let op = prop_oneof![10 => op(), 1 => change];
    proptest::collection::vec(op, 1..120)
}

fn op() -> impl Strategy<Value = Op> {
    let few = proptest::collection::vec(0_u8..3, 1..12);
    let many = proptest::collection::vec(any::<u8>(), 1..200);
    let tenants = prop_oneof![20 => few, 1 => many];
    prop_oneof![
        6 => (0_usize..4, 0_i64..1_100).prop_map(|(limit, thousandths)| Op::Wait { limit, thousandths }),
        4 => (0_usize..4, 0_i64..20).prop_map(|(limit, thousandths)| Op::Wait { limit, thousandths }),
        10 => (tenants, 0_i64..3_000).prop_map(|(tenants, horizon_ms)| Op::Reserve { tenants, horizon_ms }),
        2 => (1_usize..9).prop_map(|newest| Op::GiveBack { newest }),
        1 => (0_i64..3_000).prop_map(|ms| Op::CloseGate { ms }),
        2 => any::<bool>().prop_map(|in_reserve| Op::Crash { in_reserve }),
        1 => Just(Op::Stop),
        1 => any::<bool>().prop_map(|away| Op::BookGoes { away }),
    ]
}

struct World {
    limits: Vec<Limit>,
    clock: Clock,
    book: Arc<MemoryBook>,
    local: Local,
    held: Vec<Permit>,
    fired: Vec<Call>,
    /// No call may have a permit's time between these once the gate was told.
    closed: Vec<(Nanos, Nanos)>,
    phases: Vec<Phase>,
    /// What a service has on record of its former limits, the newest first.
    formers: Vec<Former>,
    ahead: Nanos,
    right_from: Nanos,
    /// A process has ended, and its calls are known by their periods only.
    has_restarted: bool,
    random: u64,
}

impl World {
    async fn new(limits: Vec<Limit>, seed: u64) -> World {
        let clock = Clock::manual(START);
        let slow = Some((clock.clone(), Duration::from_millis(5)));
        let book = Arc::new(MemoryBook { slow, ..MemoryBook::default() });
        let local = open(&limits, &clock, &book).await;
        let (held, fired, closed) = Default::default();
        let phases = vec![Phase { from: Nanos::MIN, left: Nanos::MIN, limits: limits.clone() }];
        World {
            limits,
            clock,
            book,
            local,
            held,
            fired,
            closed,
            phases,
            formers: Vec::new(),
            ahead: 0,
            right_from: Nanos::MIN,
            has_restarted: false,
            random: seed,
        }
    }

    fn up_to(&mut self, most: Nanos) -> Nanos {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match self.random >> 62 {
            0 => 0,
            1 => most,
            _ => ((self.random >> 20) as i64).rem_euclid(most + 1),
        }
    }

    /// Fires what is due by `now`, some of it late, over a link with as much jitter as the guard has left.
    fn fire(&mut self, now: Nanos) {
        // Of all that were ever in force: calls of before a change go out too.
        let all = self.phases.iter().flat_map(|phase| &phase.limits);
        let guards = all.filter(|limit| matches!(limit.per, Per::Rolling(_))).map(|limit| nanos(limit.guard));
        let guard = guards.min().unwrap_or(5 * SECOND);
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|permit: &Permit| permit.at <= now);
        self.held = held;
        for permit in due as Vec<Permit> {
            let jitter = (guard / 4).max(MS);
            assert!(self.phases.len() > 1 || permit.late_after - permit.at + jitter <= guard);
            // One of before a change is as late as those of after it.
            let late = self.up_to(permit.late_after.min(now).min(permit.at + (guard - jitter).max(0)) - permit.at);
            if self.local.check(&permit, permit.at + late).is_err() {
                continue;
            }
            self.local.call_left(&permit, permit.at + late);
            let jitter = self.up_to(jitter);
            self.fired.push(Call { at: permit.at, arrived: permit.at + late + jitter, tenant: permit.tenant });
        }
    }

    async fn restart(&mut self) {
        self.has_restarted = true;
        self.held.clear();
        self.closed.clear();
        self.book.away.store(false, Ordering::Relaxed);
        self.local = open_after(&self.limits, self.formers.clone(), &self.clock, &self.book).await;
    }

    async fn change(&mut self, limit: usize, to: Limit, by_restart: bool) {
        self.fire(self.clock.nanos());
        let former = Former { limits: self.limits.clone(), until: Time(self.clock.now().0 + 1) };
        let limit = limit % self.limits.len();
        let mut limits = self.limits.clone();
        limits[limit] = to;
        if by_restart {
            self.limits = limits;
            self.formers.insert(0, former);
            self.restart().await;
        } else if self.local.set_limits("acme", limits.clone()).await.is_ok() {
            self.limits = limits;
            self.formers.insert(0, former);
        }
        // Calls of before may still be on their way, and permits of before may still be used.
        let held = self.held.iter().map(|permit| permit.late_after.min(permit.at + SECOND / 2) + SECOND / 8);
        let arrived = self.fired.iter().map(|call| call.arrived);
        let left = held.chain(arrived).max().unwrap_or(0).max(self.clock.nanos()) + 1;
        self.phases.push(Phase { from: self.clock.nanos(), left, limits: self.limits.clone() });
    }

    /// Of the calls of a process that ended only their calendar periods are known: that is for one step of the clock, not for several.
    fn leaves_out(&self, op: &Op) -> bool {
        let has_stepped = self.right_from > Nanos::MIN;
        has_stepped
            && (matches!(op, Op::Crash { .. } | Op::Stop) || (matches!(op, Op::Step { .. }) && self.has_restarted))
    }

    async fn step(&mut self, op: Op) {
        if self.leaves_out(&op) {
            return;
        }
        match op {
            Op::Wait { limit, thousandths } => {
                let period = match self.limits[limit % self.limits.len()].per {
                    Per::Rolling(period) => nanos(period),
                    _ => 86_400 * SECOND,
                };
                let now = self.clock.nanos() + period / 1_000 * thousandths;
                self.fire(now);
                advance_to(&self.clock, now);
            }
            Op::Reserve { tenants, horizon_ms } => {
                let tenants: Vec<Arc<str>> = tenants.iter().map(|tenant| tenant.to_string().into()).collect();
                let now = self.clock.nanos();
                let until = now + horizon_ms * MS;
                let before = self.held.last().map(|permit| permit.at);
                let Ok(answers) = self.local.reserve("acme", &tenants, until).await else {
                    assert!(self.book.away.load(Ordering::Relaxed));
                    return;
                };
                assert_eq!(answers.len(), tenants.len());
                let given = permits(answers);
                assert!(given.iter().all(|permit| permit.at >= now && permit.at <= until));
                assert!(given.is_sorted_by_key(|permit| permit.at));
                if let (Some(before), Some(first)) = (before, given.first()) {
                    assert!(first.at >= before, "slots never go backwards");
                }
                for permit in &given {
                    assert!(self.closed.iter().all(|(from, to)| permit.at < *from || permit.at >= *to));
                }
                self.held.extend(given);
            }
            Op::GiveBack { newest } => {
                let keep = self.held.len().saturating_sub(newest);
                self.local.give_back(self.held.split_off(keep)).await;
            }
            Op::CloseGate { ms } => {
                let now = self.clock.nanos();
                self.fire(now);
                self.local.close_gate("acme", now + ms * MS).await;
                self.closed.push((now, now + ms * MS));
            }
            Op::Crash { in_reserve } => {
                self.fire(self.clock.nanos());
                if in_reserve {
                    let _lost = self.local.reserve("acme", &wishes("1", 3), Nanos::MAX).await;
                }
                self.restart().await;
            }
            Op::Stop => {
                self.fire(self.clock.nanos());
                if self.local.stop().await.is_ok() {
                    self.restart().await;
                }
            }
            Op::BookGoes { away } => self.book.away.store(away, Ordering::Relaxed),
            Op::Step { ms } => {
                self.fire(self.clock.nanos());
                self.book.away.store(false, Ordering::Relaxed);
                self.clock.step(ms * MS);
                // What was given before the step may still go.
                let given = self.held.iter().map(|permit| permit.at + 1).max().unwrap_or(0);
                (self.ahead, self.right_from) = (self.ahead + ms * MS, given.max(self.clock.nanos() + 1));
                // Whatever is called next looks at the clock first.
                self.local.outlook("acme", 0, 1).await.unwrap();
            }
            Op::Change { limit, to, by_restart } => self.change(limit, to, by_restart).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_window_ever_holds_more_than_n_whatever_happens(limits in limits(), ops in ops(), seed: u64) {
        let broken = run(async {
            let mut world = World::new(limits.clone(), seed).await;
            for op in ops {
                world.step(op).await;
            }
            world.fire(Nanos::MAX);
            breaches(&world.fired, &limits)
        });
        prop_assert_eq!(broken, Vec::<String>::new());
    }

    #[test]
    fn no_window_holds_more_than_n_whatever_is_done_to_the_wall_clock(limits in limits(), ops in ops_with_steps(), seed: u64) {
        let broken = run(async {
            let mut world = World::new(limits.clone(), seed).await;
            for op in ops {
                world.step(op).await;
            }
            world.fire(Nanos::MAX);
            let phases = [Phase { from: Nanos::MIN, left: Nanos::MIN, limits: limits.clone() }];
            breaches_through(&world.fired, &phases, world.ahead, world.right_from)
        });
        prop_assert_eq!(broken, Vec::<String>::new());
    }

    #[test]
    fn a_window_holds_what_the_loosest_of_its_limits_allows_whatever_is_changed(limits in limits(), ops in ops_with_changes(), seed: u64) {
        let broken = run(async {
            let mut world = World::new(limits, seed).await;
            for op in ops {
                world.step(op).await;
            }
            world.fire(Nanos::MAX);
            breaches_through(&world.fired, &world.phases, 0, Nanos::MIN)
        });
        prop_assert_eq!(broken, Vec::<String>::new());
    }

    #[test]
    fn the_outlook_is_exactly_what_reserve_gives(limits in limits(), ops in ops(), seed: u64, most in 1_usize..40, ahead_ms in 0_i64..5_000) {
        let limits: Vec<Limit> = limits.into_iter().map(|limit| Limit { key: Key::Vendor, ..limit }).collect();
        run(async {
            let mut world = World::new(limits, seed).await;
            (world.clock, world.book) = (Clock::manual(START), Arc::default()); // no time passes between a look and what follows
            world.local = open(&world.limits, &world.clock, &world.book).await;
            for op in ops {
                world.step(op).await;
                world.book.away.store(false, Ordering::Relaxed);
                let until = world.clock.nanos() + ahead_ms * MS;
                let outlook = world.local.outlook("acme", until, most).await.unwrap();
                assert_eq!(outlook, world.local.outlook("acme", until, most).await.unwrap(), "looking charges nothing");
                let answers = world.local.reserve("acme", &wishes("t", most), until).await.unwrap();
                if let Some(Answer::NotBefore { until: next, by }) = answers.first() {
                    assert_eq!((*next, Some(by)), (outlook.next_at, outlook.by.as_ref()));
                }
                let given = permits(answers);
                assert_eq!(given.len(), outlook.room);
                if let Some(first) = given.first() {
                    assert_eq!(first.at, outlook.next_at);
                    assert!(outlook.by.is_some() || first.at == world.clock.nanos());
                }
                world.local.give_back(given).await;
            }
        });
    }

    #[test]
    fn a_backlog_leaves_under_one_percent_unused_while_others_wait_for_their_own_limits(calls in 1_u64..400, seconds in 1_u64..90, paced: bool) {
        let shape = if paced { Shape::Paced } else { Shape::Window };
        let limits = [limit(calls, Duration::from_secs(seconds), shape), per_tenant(limit(1, Duration::from_secs(3_600), Shape::Window))];
        let clock = Clock::manual(START);
        let (count, took) = run(async {
            let local = open(&limits, &clock, &Arc::default()).await;
            // The tenant "spent" has nothing left for an hour; everybody else is new.
            let (mut count, mut first, mut last) = (0_u64, None, 0);
            while count < 4 * calls + 1 {
                let mut tenants = vec![Arc::from("spent")];
                tenants.extend((0..20).map(|i| Arc::from(format!("{count}-{i}"))));
                let answers = local.reserve("acme", &tenants, clock.nanos() + 50 * MS).await.unwrap();
                let next = answers.iter().rev().find_map(|answer| match answer {
                    Answer::NotBefore { until, .. } => Some(*until),
                    Answer::Granted(_) => None,
                });
                let all_given = matches!(answers.last(), Some(Answer::Granted(_)));
                for permit in permits(answers) {
                    first.get_or_insert(permit.at);
                    (count, last) = if count < 4 * calls + 1 { (count + 1, permit.at) } else { (count, last) };
                }
                advance_to(&clock, if all_given { clock.nanos() } else { next.unwrap() });
            }
            (count, last - first.unwrap())
        });
        // 4 N calls and one: the last may come after 4 T, and comes after less than 1 % more.
        prop_assert_eq!(count, 4 * calls + 1);
        prop_assert!(took as f64 <= 4.0 * seconds as f64 * 1e9 / 0.99);
        prop_assert!(took as f64 >= 4.0 * seconds as f64 * 1e9);
    }
}
