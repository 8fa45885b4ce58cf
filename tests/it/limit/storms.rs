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
    let one = one.prop_map(|(calls, ms, shape, tenant, zone, monthly)| {
        let made = match shape {
            Shape::Calendar if monthly => {
                let per = Per::Month(jiff::tz::TimeZone::get(ZONES[zone]).unwrap());
                Limit { per, ..daily(calls, "UTC") }
            }
            Shape::Calendar => daily(calls, ZONES[zone]),
            Shape::Bucket { burst } => {
                limit(calls, Duration::from_millis(ms), Shape::Bucket { burst: burst.min(calls) })
            }
            shape => limit(calls, Duration::from_millis(ms), shape),
        };
        if tenant { per_tenant(made) } else { made }
    });
    proptest::collection::vec(one, 1..=4)
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
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let tenants = proptest::collection::vec(0_u8..3, 1..12);
    let op = prop_oneof![
        6 => (0_usize..4, 0_i64..1_100).prop_map(|(limit, thousandths)| Op::Wait { limit, thousandths }),
        4 => (0_usize..4, 0_i64..20).prop_map(|(limit, thousandths)| Op::Wait { limit, thousandths }),
        10 => (tenants, 0_i64..3_000).prop_map(|(tenants, horizon_ms)| Op::Reserve { tenants, horizon_ms }),
        2 => (1_usize..9).prop_map(|newest| Op::GiveBack { newest }),
        1 => (0_i64..3_000).prop_map(|ms| Op::CloseGate { ms }),
        2 => any::<bool>().prop_map(|in_reserve| Op::Crash { in_reserve }),
        1 => Just(Op::Stop),
        1 => any::<bool>().prop_map(|away| Op::BookGoes { away }),
    ];
    proptest::collection::vec(op, 1..120)
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
    random: u64,
}

impl World {
    async fn new(limits: Vec<Limit>, seed: u64) -> World {
        let (clock, book) = (Clock::manual(START), Arc::<MemoryBook>::default());
        let local = open(&limits, &clock, &book).await;
        let (held, fired, closed) = Default::default();
        World { limits, clock, book, local, held, fired, closed, random: seed }
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
        let guards = self.limits.iter().filter(|limit| matches!(limit.per, Per::Rolling(_))).map(|l| nanos(l.guard));
        let guard = guards.min().unwrap_or(5 * SECOND);
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|permit: &Permit| permit.at <= now);
        self.held = held;
        for permit in due as Vec<Permit> {
            let late = self.up_to(permit.late_after.min(now) - permit.at);
            if self.local.check(&permit, permit.at + late).is_err() {
                continue;
            }
            self.local.left(&permit, permit.at + late);
            let jitter = self.up_to((guard / 4).max(MS));
            assert!(permit.late_after - permit.at + (guard / 4).max(MS) <= guard);
            self.fired.push(Call { at: permit.at, arrived: permit.at + late + jitter, tenant: permit.tenant });
        }
    }

    async fn restart(&mut self) {
        self.held.clear();
        self.closed.clear();
        self.book.away.store(false, Ordering::Relaxed);
        self.local = open(&self.limits, &self.clock, &self.book).await;
    }

    async fn step(&mut self, op: Op) {
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
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

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
    fn the_outlook_is_exactly_what_reserve_gives(limits in limits(), ops in ops(), seed: u64, most in 1_usize..40, ahead_ms in 0_i64..5_000) {
        let limits: Vec<Limit> = limits.into_iter().map(|limit| Limit { key: Key::Vendor, ..limit }).collect();
        run(async {
            let mut world = World::new(limits, seed).await;
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
