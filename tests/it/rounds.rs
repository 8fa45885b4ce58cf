//! A dispatcher whose round waits for an answer goes on with what it holds: calls go out at their time, and none does once the breaker opens.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fetchgate::{
    clock::{Clock, Nanos, nanos},
    limit::{Answer, Blocker, Gate, Limit, Limiter, Missed, Outlook, Permit, Usage, breaker::Standing},
    store::{Store, StoreError},
    vendor::http::Client,
    worker::{Context, Failures, Pool, Tick, dispatch::Dispatcher, slow_downs::SlowDowns},
};
use mock_vendors::Answer as Reply;
use tokio::sync::Semaphore;

use crate::{
    failure::wait_until,
    on_every_backend,
    support::{Backend, TestApp, slow::SlowStore},
};

on_every_backend!(
    calls_whose_time_comes_while_a_round_waits_go_out_at_it,
    a_breaker_that_opens_while_a_round_waits_stops_the_reserved_calls,
    a_round_that_waits_for_longer_than_the_horizon_gets_its_permits,
    no_call_is_begun_that_its_lease_might_not_outlast,
    a_job_that_was_reclaimed_while_its_round_waited_is_not_called_twice,
    a_store_that_takes_its_time_makes_no_call_twice_and_stops_nothing,
);

/// A call each 2.016 ms, several of them within the horizon of either limiter.
const ONE: &str = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one"
limits = ["500/s"]
retry = { attempts = 1, first = "1d", max = "1d" }
breaker = { failed = 0.9, calls = 2, within = "30s", open = "10s" }
"#;
const PACE: Duration = Duration::from_micros(2_016);

/// The limiter of a service, whose rounds have to wait in it for leave to go on.
struct Slow {
    limiter: Arc<dyn Limiter>,
    leave: Semaphore,
    /// Leave to go on from the claim to the permits.
    reserve: Semaphore,
    /// Jobs that are leased and wait for that.
    reserving: AtomicUsize,
    clock: Clock,
}

#[async_trait]
impl Limiter for Slow {
    fn is_gated(&self, pool: &str) -> bool {
        self.limiter.is_gated(pool)
    }

    async fn share_in_flight(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError> {
        self.leave.acquire().await.expect("it is never closed").forget();
        self.limiter.share_in_flight(vendor, most, busy).await
    }

    fn horizon(&self) -> Duration {
        self.limiter.horizon()
    }

    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError> {
        self.limiter.outlook(pool, until, most).await
    }

    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError> {
        self.limiter.next_for(pool, tenant).await
    }

    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        self.reserving.fetch_add(tenants.len(), Ordering::Relaxed);
        self.reserve.acquire().await.expect("it is never closed").forget();
        // Answers are for when they come.
        let until = until.max(self.until());
        self.limiter.reserve(pool, tenants, until).await
    }

    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed> {
        self.limiter.check(permit, now)
    }

    fn call_left(&self, permit: &Permit, now: Nanos) {
        self.limiter.call_left(permit, now);
    }

    fn stamp(&self, pool: &str, now: Nanos) -> i64 {
        self.limiter.stamp(pool, now)
    }

    async fn give_back(&self, permits: Vec<Permit>) {
        self.limiter.give_back(permits).await;
    }

    async fn close_gate(&self, pool: &str, until: Nanos) {
        self.limiter.close_gate(pool, until).await;
    }

    async fn gate(&self, pool: &str) -> Result<Option<Gate>, StoreError> {
        self.limiter.gate(pool).await
    }

    async fn open_gate(&self, pool: &str) -> Result<(), StoreError> {
        self.limiter.open_gate(pool).await
    }

    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError> {
        self.limiter.set_limits(pool, limits).await
    }

    async fn usage(&self, pool: &str) -> Vec<Usage> {
        self.limiter.usage(pool).await
    }

    async fn stop(&self) -> Result<(), StoreError> {
        self.limiter.stop().await
    }
}

impl Slow {
    fn new(app: &TestApp, leave: usize, reserve: usize) -> Arc<Slow> {
        let (leave, reserve, clock) = (Semaphore::new(leave), Semaphore::new(reserve), app.clock.clone());
        Arc::new(Slow { limiter: app.app.limiter.clone(), leave, reserve, reserving: AtomicUsize::new(0), clock })
    }

    fn until(&self) -> Nanos {
        self.clock.nanos() + nanos(self.limiter.horizon())
    }
}

/// A second dispatcher of the service's one vendor, in front of whose rounds the limiter stands.
fn dispatcher(app: &TestApp, limiter: Arc<dyn Limiter>, store: Arc<dyn Store>) -> Dispatcher {
    let of = &app.app;
    let cx = Context {
        slow_downs: SlowDowns::default(),
        store,
        limiter,
        breakers: of.breakers.clone(),
        vendors: of.vendors.clone(),
        pauses: of.pauses.clone(),
        limits: of.limits.clone(),
        audit: of.audit.clone(),
        metrics: of.metrics.clone(),
        failures: Failures::default(),
        throttles: Failures::default(),
        stalls: Failures::default(),
        client: Client::new(),
        clock: of.clock.clone(),
        retention: Duration::from_secs(3_600),
    };
    let (mut dispatchers, _) = Pool::new(&Arc::new(cx)).into_parts();
    dispatchers.pop().expect("one vendor")
}

/// A service with these jobs, and a dispatcher of which so many rounds need not wait.
async fn waiting(backend: Backend, jobs: usize, leave: usize) -> (TestApp, Arc<Slow>, Dispatcher, Vec<String>) {
    let app = TestApp::with(backend, ONE).await;
    app.clock.advance(Duration::from_secs(1)); // Limits begin used up.
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(app.submit("one", "1").await);
    }
    let slow = Slow::new(&app, leave, Semaphore::MAX_PERMITS);
    let dispatcher = dispatcher(&app, slow.clone(), app.app.store.clone());
    (app, slow, dispatcher, ids)
}

/// A dispatcher that holds these jobs for their permits, which begin now; its next round will wait.
async fn holding(backend: Backend, jobs: usize) -> (TestApp, Arc<Slow>, Dispatcher, Vec<String>) {
    let (app, slow, mut dispatcher, ids) = waiting(backend, jobs, 1).await;
    assert_eq!(dispatcher.tick().await.expect("the store works"), Tick::Again, "permits were reserved");
    (app, slow, dispatcher, ids)
}

/// Turns the dispatcher, whose round waits, until something is so.
async fn turn_until(turn: &mut (impl Future + Unpin), what: &str, mut is_so: impl FnMut() -> bool) {
    tokio::select! {
        biased;
        _ = turn => panic!("the round has ended"),
        () = wait_until(what, Duration::from_secs(30), async || is_so().then_some(())) => {}
    }
}

async fn calls_whose_time_comes_while_a_round_waits_go_out_at_it(backend: Backend) {
    let (app, slow, mut dispatcher, ids) = holding(backend, 4).await;
    {
        let mut turn = pin!(dispatcher.tick());
        for calls in 1..=ids.len() {
            turn_until(&mut turn, "the call", || app.calls("one") >= calls).await;
            assert_eq!(app.calls("one"), calls, "the others are not due");
            app.clock.advance(PACE);
        }
        slow.leave.add_permits(1);
        assert_eq!(turn.await.expect("the store works"), Tick::Again);
    }
    dispatcher.finish_attempts().await;
    for id in &ids {
        assert_eq!(app.status(id).await, "complete");
        let record = app.get(&format!("/jobs/{id}/attempts")).await.json();
        assert_eq!(record["attempts"][0]["sent_at"], record["attempts"][0]["permit_at"], "{record}");
    }
    app.stop().await;
}

async fn a_breaker_that_opens_while_a_round_waits_stops_the_reserved_calls(backend: Backend) {
    let (app, slow, mut dispatcher, ids) = holding(backend, 4).await;
    app.vendors.script("one", vec![Reply::status(500); 2]);
    {
        let mut turn = pin!(dispatcher.tick());
        turn_until(&mut turn, "the first call", || app.calls("one") == 1).await;
        app.clock.advance(PACE);
        let is_open = || app.app.breakers.standing("one") != Standing::Closed;
        turn_until(&mut turn, "the breaker is open", is_open).await;
        app.clock.advance(2 * PACE);
        // Once is enough for it to see that the others are due.
        assert!(futures_util::poll!(&mut turn).is_pending());
        slow.leave.add_permits(1);
        turn.await.expect("the store works");
    }
    assert!(matches!(dispatcher.tick().await, Ok(Tick::WaitUntil(_))), "until the breaker is half open");
    dispatcher.finish_attempts().await;
    assert_eq!(app.calls("one"), 2);
    for id in &ids[2..] {
        let held = app.find(id).await;
        assert_eq!(
            (&held["status"], &held["blocked_on"], &held["attempts"]),
            (&"pending".into(), &"breaker".into(), &0.into())
        );
    }
    app.stop().await;
}

async fn a_round_that_waits_for_longer_than_the_horizon_gets_its_permits(backend: Backend) {
    let (app, slow, mut dispatcher, _) = waiting(backend, 4, 0).await;
    {
        let mut turn = pin!(dispatcher.tick());
        assert!(futures_util::poll!(&mut turn).is_pending());
        app.clock.advance(2 * slow.horizon());
        slow.leave.add_permits(1);
        assert_eq!(turn.await.expect("the store works"), Tick::Again, "permits were reserved");
    }
    app.stop().await;
}

/// A dispatcher that has leased the one job and waits for its permit.
async fn leased(backend: Backend) -> (TestApp, Arc<Slow>, Dispatcher, String) {
    let (app, _, _, mut ids) = waiting(backend, 1, 0).await;
    let slow = Slow::new(&app, 1, 0);
    let dispatcher = dispatcher(&app, slow.clone(), app.app.store.clone());
    (app, slow, dispatcher, ids.remove(0))
}

/// One turn, in which nothing waits.
async fn turn(slow: &Slow, dispatcher: &mut Dispatcher) {
    slow.leave.add_permits(1);
    slow.reserve.add_permits(1);
    dispatcher.tick().await.expect("the store works");
    dispatcher.finish_attempts().await;
}

/// The time-out is ten seconds, and the lease five and a half longer.
async fn no_call_is_begun_that_its_lease_might_not_outlast(backend: Backend) {
    let (app, slow, mut dispatcher, id) = leased(backend).await;
    {
        let mut turn = pin!(dispatcher.tick());
        turn_until(&mut turn, "the job is leased", || slow.reserving.load(Ordering::Relaxed) == 1).await;
        app.clock.advance(Duration::from_secs(6));
        slow.reserve.add_permits(1);
        assert_eq!(turn.await.expect("the store works"), Tick::Again, "a permit was reserved");
    }
    turn(&slow, &mut dispatcher).await;
    assert_eq!(app.calls("one"), 0, "its lease would lapse during the call");
    // It is leased anew, and called.
    for _ in 0..20 {
        app.clock.advance(PACE);
        turn(&slow, &mut dispatcher).await;
    }
    assert_eq!((&*app.status(&id).await, app.calls("one")), ("complete", 1));
    app.stop().await;
}

async fn a_job_that_was_reclaimed_while_its_round_waited_is_not_called_twice(backend: Backend) {
    let (mut app, slow, mut dispatcher, id) = leased(backend).await;
    {
        let mut turn = pin!(dispatcher.tick());
        turn_until(&mut turn, "the job is leased", || slow.reserving.load(Ordering::Relaxed) == 1).await;
        assert_eq!(app.app.store.reclaim().await.expect("the store works"), 0, "it is held");
        app.advance(Duration::from_secs(20)).await;
        app.run_for(Duration::from_secs(1)).await;
        assert_eq!((&*app.status(&id).await, app.calls("one")), ("complete", 1), "by another dispatcher");
        slow.reserve.add_permits(1);
        assert_eq!(turn.await.expect("the store works"), Tick::Again, "a permit was reserved");
    }
    turn(&slow, &mut dispatcher).await;
    assert_eq!(app.calls("one"), 1);
    app.stop().await;
}

async fn a_store_that_takes_its_time_makes_no_call_twice_and_stops_nothing(backend: Backend) {
    const JOBS: usize = 40;
    const TAKES: Duration = Duration::from_millis(3);
    for more in ["", "at_most_once = true\n"] {
        let app = TestApp::with(backend, &format!("{ONE}{more}").replace("500/s", "100/s")).await;
        app.clock.advance(Duration::from_secs(1)); // Limits begin used up.
        for _ in 0..JOBS {
            app.submit("one", "1").await;
        }
        let (store, clock) = (app.app.store.clone(), app.clock.clone());
        let store = Arc::new(SlowStore { store, clock, takes: TAKES });
        let (mut dispatcher, begun) = (dispatcher(&app, app.app.limiter.clone(), store), app.clock.nanos());
        while app.calls("one") < JOBS {
            let tick = dispatcher.tick().await.expect("the store works");
            dispatcher.finish_attempts().await;
            if let Tick::WaitUntil(at) = tick {
                let ahead = u64::try_from(at - app.clock.nanos()).unwrap_or(0);
                app.clock.advance(Duration::from_nanos(ahead));
            }
            assert!(app.clock.nanos() - begun < nanos(Duration::from_secs(4)), "{} calls", app.calls("one"));
        }
        let jobs = app.get("/jobs?status=complete&limit=100").await.json()["jobs"].as_array().map(Vec::len);
        assert_eq!((jobs, app.calls("one")), (Some(JOBS), JOBS));
        app.stop().await;
    }
}
