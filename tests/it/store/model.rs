//! Random histories against a model in plain memory: no job is leased twice at once, none is lost, statuses and counts agree at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use fetchgate::{
    clock::{Nanos, Time, nanos},
    job::{Idempotency, Job, JobId, NewJob, Priority, Stage, Status, lifecycle, lifecycle::Next},
    store::{Amended, Lease, Sees, Settled, Submitted, Which},
};

use super::{LEASE, TestStore, VENDORS, complete, failed};
use crate::{on_every_backend, support::Backend};

on_every_backend!(random_histories_agree_with_the_model, random_histories_of_a_long_lane_agree_with_the_model);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_in_which_the_clock_is_set_agree_with_the_model() {
    for seed in 10..16 {
        let mut world = World::new(Backend::Sqlite, seed, 400).await;
        world.sets_the_clock = true;
        world.run(700).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_of_hundreds_of_tenants_agree_with_the_model() {
    for sets_the_clock in [false, true] {
        let mut world = World::new(Backend::Sqlite, 20, 2_000).await;
        (world.tenants, world.sets_the_clock) = (300, sets_the_clock);
        for _ in 0..4 {
            world.submit(200).await;
        }
        world.run(500).await;
    }
}

/// A job as it should be.
#[derive(Debug, Clone)]
struct Model {
    vendor: usize,
    status: Status,
    stage: Stage,
    due_at: Time,
    /// When it was written last.
    set_at: Time,
    /// When it may go, by the timeline.
    free_at: Nanos,
    /// The store's attempt number.
    attempt: u32,
    /// The attempt of the lease that holds, and until when, by the timeline (see `until`).
    lease: Option<(u32, Nanos)>,
    /// Its call is on record.
    called: bool,
    /// How often it was lost since its last step.
    lapses: u32,
}

/// One moment by both clocks.
type Now = (Time, Nanos);

fn millis(ms: i64) -> Nanos {
    ms * 1_000_000
}

/// The store of many processes gives a job up that was lost so often.
const MOST_LAPSES: u32 = 5;
/// A lease that nobody has seen yet does not lapse.
const NEVER: Nanos = Nanos::MAX;

impl Model {
    fn ended(&self) -> bool {
        self.status.has_ended()
    }

    fn needs_call(&self) -> bool {
        !self.ended() && self.stage != Stage::Await
    }

    /// What readers see.
    fn shown(&self) -> Status {
        if self.status == Status::Pending && self.lease.is_some() { Status::Processing } else { self.status }
    }

    /// It has a `not_before`, and has not been tried: it waits for a time of day.
    fn waits_for_wall(&self) -> bool {
        self.attempt == 0 && self.due_at > self.set_at
    }

    fn is_due(&self, (wall, timeline): Now) -> bool {
        if self.waits_for_wall() { self.due_at <= wall } else { self.free_at <= timeline }
    }

    /// Another process reads it from the table, by the wall clock as it is then.
    fn is_read_anew(&mut self, (wall, timeline): Now) {
        let by_wall = self.due_at.0 - wall.0;
        let wait = if self.set_at > wall { by_wall.min((self.due_at.0 - self.set_at.0).max(0)) } else { by_wall };
        self.free_at = timeline + millis(wait);
    }

    fn become_(&mut self, next: &Next, attempt: u32, now: Now) {
        let (now, timeline) = now;
        (self.set_at, self.free_at) = (now, timeline);
        self.attempt = self.attempt.max(attempt);
        (self.lease, self.called, self.lapses) = (None, false, 0);
        match next {
            Next::Call { due_at } | Next::Rerun { due_at, .. } => {
                (self.status, self.stage, self.due_at) = (Status::Pending, Stage::Call, *due_at);
            }
            Next::Poll { due_at, .. } => {
                (self.status, self.stage, self.due_at) = (Status::Processing, Stage::Poll, *due_at);
            }
            Next::Await { .. } => (self.status, self.stage, self.due_at) = (Status::Processing, Stage::Await, now),
            ended => self.status = ended.end().expect("the others are ends"),
        }
        self.free_at += millis(self.due_at.0 - now.0);
    }
}

/// The store, the model, and the leases in the hands of workers, stale ones too.
struct World {
    t: TestStore,
    rng: Rng,
    jobs: BTreeMap<JobId, Model>,
    ids: Vec<JobId>,
    held: Vec<Lease>,
    keys: BTreeMap<u32, JobId>,
    most_jobs: usize,
    tenants: u32,
    sets_the_clock: bool,
}

async fn random_histories_agree_with_the_model(backend: Backend) {
    for seed in 0..6 {
        World::new(backend, seed, 400).await.run(700).await;
    }
}

async fn random_histories_of_a_long_lane_agree_with_the_model(backend: Backend) {
    let mut world = World::new(backend, 100, 20_000).await;
    for _ in 0..8 {
        world.submit(world.t.long_lane() / 8).await;
    }
    world.run(900).await;
}

impl World {
    async fn new(backend: Backend, seed: u64, most_jobs: usize) -> World {
        let t = TestStore::open(backend).await;
        let (jobs, ids, held, keys) = (BTreeMap::new(), Vec::new(), Vec::new(), BTreeMap::new());
        World { t, rng: Rng::with_seed(seed), jobs, ids, held, keys, most_jobs, tenants: 3, sets_the_clock: false }
    }

    async fn run(mut self, steps: usize) {
        for step in 0..steps {
            self.step().await;
            self.check_counts().await;
            if let Some(id) = self.any() {
                self.check(id).await;
            }
            if step % 100 == 99 {
                self.check_all_that_is_due_can_be_claimed().await;
            }
        }
        self.finish().await;
    }

    fn any(&mut self) -> Option<JobId> {
        self.rng.choice(self.ids.iter()).copied()
    }

    fn now(&self) -> Time {
        self.t.now()
    }

    fn both(&self) -> Now {
        (self.t.now(), self.t.clock.nanos())
    }

    /// Forward or back, by a moment or by a day; at times it is set right at once.
    fn set_the_clock(&mut self) {
        let most = *self.rng.choice(&[500, 60_000, 86_400_000]).unwrap();
        let by = self.rng.i64(-most..=most);
        // Less than this is not noticed, nor need it be.
        let by = by + by.signum() * 200;
        self.t.clock.step(millis(by));
        if self.rng.u8(..3) == 0 {
            self.t.advance(Duration::from_millis(self.rng.u64(..3000)));
            self.t.clock.step(millis(-by));
        }
    }

    async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..15 if self.jobs.len() < self.most_jobs => {
                let n = self.rng.usize(1..8);
                self.submit(n).await;
            }
            0..40 => self.claim().await,
            40..60 => self.settle().await,
            60..65 => self.mark().await,
            65..70 => self.release().await,
            70..82 => self.amend().await,
            82..85 if self.sets_the_clock => self.set_the_clock(),
            82..92 => self.t.advance(Duration::from_millis(self.rng.u64(..4000))),
            92..96 => self.reclaim().await,
            96..99 => self.t.quiet().await,
            _ => self.restart().await,
        }
    }

    async fn submit(&mut self, n: usize) {
        let mut jobs = Vec::new();
        for _ in 0..n {
            let (vendor, tenant) = (self.rng.usize(..2), self.rng.u32(..self.tenants));
            let mut job = self.t.job(VENDORS[vendor], *self.rng.choice(&Priority::ALL).unwrap(), &format!("t{tenant}"));
            if self.most_jobs > 10_000 {
                job.lane = self.t.job("v", Priority::Normal, "t").lane;
            }
            if self.rng.bool() {
                job.due_at = self.now().plus(Duration::from_millis(self.rng.u64(..10_000)));
            }
            jobs.push(job);
        }
        self.submit_keyed(&mut jobs);
        let submitted = self.t.store.submit(jobs.clone()).await.expect("the store works");
        for (job, outcome) in jobs.into_iter().zip(submitted) {
            let key = job.idempotency.as_ref().map(|idempotency| idempotency.key.parse().expect("a number"));
            if let Some(known) = key.and_then(|key| self.keys.get(&key)) {
                assert_eq!(outcome, Submitted::Known(*known));
                continue;
            }
            assert_eq!(outcome, Submitted::New(job.id));
            self.keys.extend(key.map(|key| (key, job.id)));
            let vendor = usize::from(*job.lane.vendor == *VENDORS[1]);
            let model = Model {
                vendor,
                status: Status::Pending,
                stage: Stage::Call,
                due_at: job.due_at,
                set_at: self.now(),
                free_at: self.both().1,
                attempt: 0,
                lease: None,
                called: false,
                lapses: 0,
            };
            self.jobs.insert(job.id, model);
            self.ids.push(job.id);
        }
    }

    /// Some come with a key, from a few, all of one tenant.
    fn submit_keyed(&mut self, jobs: &mut [NewJob]) {
        for job in jobs.iter_mut().filter(|job| *job.lane.tenant == *"t0") {
            if self.rng.u8(..4) == 0 {
                job.idempotency = Some(Idempotency { key: self.rng.u32(..200).to_string(), body_hash: [1; 32] });
            }
        }
    }

    async fn claim(&mut self) {
        let (vendor, most) = (self.rng.usize(..2), self.rng.usize(1..20));
        let calls = if self.rng.bool() { most } else { self.rng.usize(..=most) };
        let leases = self.t.claim_calls(VENDORS[vendor], most, calls).await;
        assert!(leases.len() <= most && leases.iter().filter(|lease| lease.job.stage == Stage::Call).count() <= calls);
        self.take(leases, vendor);
    }

    fn take(&mut self, leases: Vec<Lease>, vendor: usize) {
        let (now, until) = (self.both(), self.until());
        for lease in leases {
            let model = self.jobs.get_mut(&lease.job.id).expect("no job is invented");
            assert!(model.lease.is_none(), "leased twice at once: {model:?}");
            assert!(model.needs_call() && model.is_due(now) && model.vendor == vendor, "{model:?} at {now:?}");
            assert_eq!((lease.job.stage, lease.attempt), (model.stage, model.attempt + 1));
            if model.waits_for_wall() {
                model.free_at = now.1; // It has waited.
            }
            model.lease = Some((lease.attempt, until));
            self.held.push(lease);
        }
    }

    fn any_lease(&mut self) -> Option<Lease> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(self.rng.usize(..self.held.len())))
    }

    fn any_next(&mut self) -> Next {
        let now = self.now();
        let due_at = now.plus(Duration::from_millis(self.rng.u64(..5000)));
        let answer_by = now.plus(Duration::from_secs(3600));
        match self.rng.u8(..8) {
            0 | 1 => complete(),
            2 => failed(),
            3 | 4 => Next::Call { due_at },
            5 | 6 => Next::Poll { due_at, answer_by },
            _ => Next::Await { answer_by },
        }
    }

    async fn settle(&mut self) {
        let Some(lease) = self.any_lease() else { return };
        let (id, attempt, next, now) = (lease.job.id, lease.attempt, self.any_next(), self.both());
        let settled = self.t.settle(lease, next.clone()).await;
        let model = self.jobs.get_mut(&id).expect("known");
        let holds = model.attempt < attempt;
        let taken = !model.ended() && (holds || next.end() == Some(Status::Complete));
        assert_eq!(settled, if taken { Settled::Stored } else { Settled::TooLate }, "{model:?} by {attempt}: {next:?}");
        if taken {
            model.become_(&next, attempt, now);
        }
    }

    /// A call that is made at most once is about to be made.
    async fn mark(&mut self) {
        let Some(lease) = self.any_lease() else { return };
        if lease.job.stage != Stage::Call || lease.called_at.is_some() {
            return self.held.push(lease);
        }
        let (id, attempt) = (lease.job.id, lease.attempt);
        let marked = self.t.store.mark(vec![lease]).await.expect("the store works");
        let model = self.jobs.get_mut(&id).expect("known");
        let holds = !model.ended() && model.attempt < attempt;
        assert_eq!(marked.len() == 1, holds, "{model:?} by {attempt}");
        model.called |= holds;
        self.held.extend(marked);
    }

    async fn release(&mut self) {
        let Some(lease) = self.any_lease() else { return };
        let (id, attempt) = (lease.job.id, lease.attempt);
        self.t.store.release(vec![(lease, None)]).await;
        let model = self.jobs.get_mut(&id).expect("known");
        if model.lease.is_some_and(|(holder, _)| holder == attempt) {
            (model.lease, model.called) = (None, false);
        }
    }

    /// A cancel, a callback or a replay.
    async fn amend(&mut self) {
        let Some(id) = self.any() else { return };
        let now = self.now();
        type Decision = fn(&Job, Time) -> Option<lifecycle::Change>;
        let decisions: [Decision; 3] = [
            |job, _| lifecycle::cancel(job),
            |job, _| lifecycle::answered(job, None, Ok("2".into())),
            lifecycle::replay,
        ];
        let which = self.rng.usize(..3);
        let decide = decisions[which];
        let amended = self.t.store.amend(&Sees::All, Which::Id(id), now, Box::new(move |job| decide(job, now))).await;
        let both = self.both();
        let model = self.jobs.get_mut(&id).expect("known");
        let next = match which {
            0 => (!model.ended()).then_some(Next::Cancelled),
            1 => (!model.ended()).then(complete),
            _ => {
                let replayable = matches!(model.status, Status::Failed | Status::Cancelled);
                replayable.then_some(Next::Rerun { due_at: now, deadline: None })
            }
        };
        match (amended.expect("the store works"), next) {
            (Amended::Changed(_), Some(next)) => {
                let attempt = model.lease.map_or(0, |(attempt, _)| attempt);
                model.become_(&next, attempt, both);
            }
            (Amended::Left(_), None) => {}
            other => panic!("{model:?}: {other:?}"),
        }
    }

    /// Until when what is claimed now is held. With many machines a process knows that from when it looks for the first time.
    fn until(&self) -> Nanos {
        match self.t.backend {
            Backend::Sqlite => self.t.clock.nanos() + nanos(LEASE),
            Backend::RedisMongo => NEVER,
        }
    }

    async fn reclaim(&mut self) {
        let now = self.t.clock.nanos();
        let mut freed = 0;
        for model in self.jobs.values_mut() {
            if let Some((attempt, _)) = model.lease.filter(|(_, until)| *until <= now) {
                freed += 1;
                (model.lease, model.attempt) = (None, attempt);
                model.lapses += 1;
                let crashed = self.t.backend == Backend::RedisMongo && model.lapses >= MOST_LAPSES;
                // Where a call is on record nobody calls again, and nobody knows what came of it.
                if std::mem::take(&mut model.called) || crashed {
                    model.status = Status::Failed;
                }
            }
        }
        assert_eq!(self.t.store.reclaim().await.expect("the store works"), freed);
        let unseen =
            self.jobs.values_mut().filter_map(|model| model.lease.as_mut()).filter(|(_, until)| *until == NEVER);
        unseen.for_each(|(_, until)| *until = now + nanos(LEASE));
    }

    /// The process ends; those that held leases end with it. Where a call is on record the lease stays.
    async fn restart(&mut self) {
        self.t.restart().await;
        // What is read by another clock than this moment's waits from then on.
        for _ in 0..=self.tenants / 30 {
            self.t.quiet().await;
        }
        self.held.clear();
        let now = self.both();
        let until = match self.t.backend {
            Backend::Sqlite => now.1 + millis(30_000),
            Backend::RedisMongo => NEVER,
        };
        for model in self.jobs.values_mut() {
            model.lease = model.lease.filter(|_| model.called).map(|(attempt, _)| (attempt, until));
            model.is_read_anew(now);
        }
    }

    async fn check(&self, id: JobId) {
        let (job, model) = (self.t.find(id).await, &self.jobs[&id]);
        assert_eq!((job.status, job.attempt), (model.shown(), model.attempt), "{model:?}");
        assert_eq!(job.result.is_some(), model.status == Status::Complete);
        if !model.ended() {
            assert_eq!((job.stage, job.due_at), (model.stage, model.due_at));
        }
    }

    async fn check_counts(&self) {
        for (vendor, name) in VENDORS.iter().enumerate() {
            let count = |which: fn(&Model) -> bool| {
                self.jobs.values().filter(|model| model.vendor == vendor && which(model)).count() as u64
            };
            let backlog = self.t.store.backlog(name).await;
            assert_eq!(backlog.waiting, count(|model| model.needs_call() && model.lease.is_none()), "waiting");
            assert_eq!(backlog.leased, count(|model| model.lease.is_some()), "leased");
            assert_eq!(backlog.open, count(|model| !model.ended() && model.stage != Stage::Call), "open");
        }
    }

    async fn check_all_that_is_due_can_be_claimed(&mut self) {
        let now = self.both();
        for (vendor, name) in VENDORS.iter().enumerate() {
            let free = |model: &Model| {
                model.vendor == vendor && model.needs_call() && model.lease.is_none() && model.is_due(now)
            };
            let expected: BTreeSet<JobId> =
                self.jobs.iter().filter(|(_, model)| free(model)).map(|(id, _)| *id).collect();
            let leases = self.t.claim_all(name).await;
            let claimed: BTreeSet<JobId> = leases.iter().map(|lease| lease.job.id).collect();
            if let Some(odd) = claimed.symmetric_difference(&expected).next() {
                let side = if expected.contains(odd) { "not claimed" } else { "claimed" };
                panic!("{side} at {now:?}: {:?}, of which the store has {:?}", self.jobs[odd], self.t.find(*odd).await);
            }
            self.take(leases, vendor);
        }
    }

    /// Everything that still wants to go goes, and every job is where the model says.
    async fn finish(mut self) {
        self.held.clear();
        self.reclaim().await;
        self.t.advance(LEASE + Duration::from_secs(20));
        // Those with a time of day wait for it, however far it is by now.
        let last = self.jobs.values().filter(|model| model.needs_call()).map(|model| model.due_at).max();
        let ahead = last.map_or(0, |last| last.0 - self.now().0).max(0);
        self.t.advance(Duration::from_millis(ahead.unsigned_abs()));
        self.reclaim().await;
        self.check_all_that_is_due_can_be_claimed().await;
        let (held, now) = (std::mem::take(&mut self.held), self.both());
        for lease in &held {
            self.jobs.get_mut(&lease.job.id).expect("known").become_(&complete(), lease.attempt, now);
        }
        self.t.settle_all(held.into_iter().map(|lease| (lease, complete())).collect()).await;
        self.check_counts().await;
        for id in self.ids.iter().step_by(1 + self.ids.len() / 500) {
            self.check(*id).await;
        }
        assert!(self.jobs.values().all(|model| model.ended() || model.stage == Stage::Await));
    }
}
