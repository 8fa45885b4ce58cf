//! The scripts against the arithmetic in Rust: the same questions at the same times, the same answers to the microsecond.

use super::*;

/// Questions asked in one run; `FETCHGATE_CASES` for more.
const CASES: u64 = 20_000;

const MICRO: i64 = 1_000;

struct Pair {
    scene: Scene,
    rust: Local,
    lua: RedisLimiter,
    held: Vec<(Permit, Permit)>,
    random: fastrand::Rng,
}

impl Pair {
    async fn new(mut random: fastrand::Rng) -> Pair {
        let scene = Scene::new(&limits(&mut random));
        let (rust, lua) = Pair::open(&scene).await;
        Pair { scene, rust, lua, held: Vec::new(), random }
    }

    /// Both limiters, when nothing is left of their cold starts: these are not the same.
    async fn open(scene: &Scene) -> (Local, RedisLimiter) {
        let pool = PoolLimits { pool: "acme".into(), limits: scene.limits.clone(), formers: Vec::new() };
        let rust = Local::open_on_grid(vec![pool], scene.clock.clone(), scene.book.copy(), MICRO).await.unwrap();
        let lua = scene.warm().await;
        advance(&scene.clock, 600 * SECOND);
        (rust, lua)
    }

    /// Everything is lost but the book, at a moment when all sub-windows with calls are over.
    async fn lose_everything(&mut self) {
        self.lua.stop().await.unwrap();
        let longest = self.scene.limits.iter().map(|limit| match limit.per {
            Per::Rolling(period) => nanos(period) / 200,
            _ => 0,
        });
        let rest = MS - self.scene.clock.nanos().rem_euclid(MS);
        advance(&self.scene.clock, longest.max().unwrap_or(0) / MS * MS + SECOND + rest);
        self.scene.flush();
        self.held.clear();
        (self.rust, self.lua) = Pair::open(&self.scene).await;
    }

    async fn step(&mut self) {
        let random = &mut self.random;
        match random.u32(0..100) {
            0..30 => {
                let scale = [2 * MS, 50 * MS, 700 * MS, 20 * SECOND][random.usize(0..4)];
                advance(&self.scene.clock, random.i64(0..scale) / MICRO * MICRO);
            }
            30..65 => self.reserve().await,
            65..75 => self.give_back().await,
            75..78 => {
                let until = self.scene.clock.nanos() + random.i64(0..2_000) * MS;
                self.rust.close_gate("acme", until).await;
                self.lua.close_gate("acme", until).await;
            }
            78..90 => {
                let (until, most) = (self.scene.in_ms(random.i64(0..500)), random.usize(1..60));
                let rust = self.rust.outlook("acme", until, most).await.unwrap();
                assert_eq!(self.lua.outlook("acme", until, most).await.unwrap(), rust);
            }
            90..95 => {
                let tenant = tenant(random);
                let rust = self.rust.next_for("acme", &tenant).await.unwrap();
                assert_eq!(self.lua.next_for("acme", &tenant).await.unwrap(), rust);
            }
            95..97 => self.usage().await,
            97 => self.change_n().await,
            98 => self.be_late().await,
            _ if random.u32(0..4) == 0 => self.lose_everything().await,
            _ => {}
        }
    }

    /// Each limit another N, so that what is kept of it stays of the same kind, and in the book or not: what begins anew begins cold in
    /// Redis, and is read from the book at once here.
    async fn change_n(&mut self) {
        for limit in &mut self.scene.limits {
            let (most, exact) = if limit.key == Key::Tenant { (60, 1_000) } else { (90, 10_000) };
            let base = if limit.shape == Shape::Window && limit.calls > exact { exact } else { 0 };
            // A bucket of one is a pace, and may be short where a burst is long.
            if limit.shape == (Shape::Bucket { burst: 1 }) {
                continue;
            }
            limit.calls = base + self.random.u64(5..most);
            // Another burst is another count: it begins with the calls on record, of which the two have not the same.
            if let Shape::Bucket { burst } = limit.shape {
                limit.calls = limit.calls.max(burst);
            }
        }
        println!("at {}: {:#?}", self.scene.clock.nanos(), self.scene.limits);
        self.rust.set_limits("acme", self.scene.limits.clone()).await.unwrap();
        self.lua.set_limits("acme", self.scene.limits.clone()).await.unwrap();
    }

    async fn reserve(&mut self) {
        let k = if self.random.u32(0..8) == 0 { 200 } else { self.random.usize(1..12) };
        let tenants: Vec<Arc<str>> = (0..k).map(|_| tenant(&mut self.random)).collect();
        let until = self.scene.in_ms(self.random.i64(0..=500));
        let rust = self.rust.reserve("acme", &tenants, until).await.unwrap();
        let lua = self.lua.reserve("acme", &tenants, until).await.unwrap();
        for (i, (lua, rust)) in lua.iter().zip(&rust).enumerate() {
            assert_eq!(format!("{lua:?}"), format!("{rust:?}"), "wish {i} of {}, until {until}", tenants.len());
        }
        assert_eq!(lua.len(), rust.len());
        self.held.extend(permits(rust).into_iter().zip(permits(lua)));
        let spare = self.held.len().saturating_sub(300);
        self.held.drain(..spare);
    }

    /// The newest, or some that are not.
    async fn give_back(&mut self) {
        let n = self.random.usize(0..6).min(self.held.len());
        let from = if self.random.bool() { self.held.len() - n } else { self.random.usize(0..=self.held.len() - n) };
        let (rust, lua) = self.held.drain(from..from + n).unzip();
        self.rust.give_back(rust).await;
        self.lua.give_back(lua).await;
    }

    /// One of the calls that are held goes out as late as may be, and is held no more.
    async fn be_late(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (rust, lua) = self.held.remove(self.random.usize(0..self.held.len()));
        let most = rust.late_after.saturating_sub(rust.on_time_until).clamp(0, SECOND);
        let now = rust.on_time_until.saturating_add(self.random.i64(0..=most) / MICRO * MICRO);
        self.lua.call_left(&lua, now);
        self.rust.call_left(&rust, now);
        // At once: of several that Redis hears of together it knows less.
        let rust = self.rust.outlook("acme", self.scene.in_ms(9), 9).await.unwrap();
        assert_eq!(self.lua.outlook("acme", self.scene.in_ms(9), 9).await.unwrap(), rust);
    }

    async fn usage(&mut self) {
        let (rust, lua) = (self.rust.usage("acme").await, self.lua.usage("acme").await);
        assert_eq!(rust.len(), lua.len());
        for (rust, lua) in rust.iter().zip(&lua) {
            // Of two tenants that are equally busy either may be shown.
            let next_at = |usage: &fetchgate::limit::Usage| (usage.limit.key == Key::Vendor).then_some(usage.next_at);
            assert_eq!((lua.used, next_at(lua)), (rust.used, next_at(rust)), "{:?}", rust.limit);
        }
    }
}

fn tenant(random: &mut fastrand::Rng) -> Arc<str> {
    ["a", "b c", "d:é"][random.usize(0..3)].into()
}

/// Up to four limits of all shapes, with intervals that are not whole microseconds.
fn limits(random: &mut fastrand::Rng) -> Vec<Limit> {
    (0..random.usize(1..=4)).map(|_| one_limit(random)).collect()
}

fn one_limit(random: &mut fastrand::Rng) -> Limit {
    let period =
        Duration::from_micros([100_000, 3_000_001, 9_900_000, 40_000_000][random.usize(0..4)] + random.u64(0..77_777));
    let guard = Duration::from_nanos(random.u64(0..5_000_000));
    let calls = random.u64(1..50);
    let made = match random.u32(0..10) {
        0..3 => limit(calls * 20, period, Shape::Paced),
        3..5 => limit(calls, period, Shape::Window),
        5 => limit(calls + 1_000, period, Shape::Window), // sub-windows for a tenant
        6 => limit(calls + 10_000, period / 10, Shape::Window), // sub-windows for all
        7 | 8 => limit(calls, period, Shape::Bucket { burst: random.u64(1..=calls) }),
        _ => return calendar(random),
    };
    let made = Limit { guard, ..made };
    if random.u32(0..3) == 0 { per_tenant(made) } else { made }
}

fn calendar(random: &mut fastrand::Rng) -> Limit {
    let zone = ["Europe/Berlin", "America/New_York", "UTC"][random.usize(0..3)];
    let made = daily(random.u64(1..2_000), zone);
    let Per::Day(zone) = made.per.clone() else { unreachable!() };
    let made = if random.bool() { made } else { Limit { per: Per::Month(zone), ..made } };
    if random.u32(0..3) == 0 { per_tenant(made) } else { made }
}

#[test]
fn the_scripts_and_the_rule_give_the_same_permits() {
    let cases = std::env::var("FETCHGATE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let mut seed: u64 =
        std::env::var("FETCHGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut done = 0;
    while done < cases {
        println!("FETCHGATE_SEED={seed}"); // shown when the test fails
        let steps = 250;
        run_io(async {
            let mut pair = Pair::new(fastrand::Rng::with_seed(seed)).await;
            println!("{:#?}", pair.scene.limits);
            for _ in 0..steps {
                pair.step().await;
            }
            pair.lua.stop().await.unwrap();
            pair.scene.flush();
        });
        done += steps;
        seed = seed.wrapping_add(1);
    }
}
