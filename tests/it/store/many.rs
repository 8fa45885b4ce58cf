//! Random histories of several processes on the same servers, which lose the index, a process or a lease now and then, or find a Redis that
//! has come back older.
//!
//! What must hold however it goes: no job is leased twice at once but after a loss or a lapse, no more calls are open than may be, every
//! accepted job ends once, and when all is healed nothing is left and the counts agree.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use fetchgate::{
    clock::Time,
    job::{FailureCode, Job, JobId, Priority, Stage, Status, lifecycle, lifecycle::Next},
    store::{Amended, Filter, Lease, Sees, Settled, Slice, Which, redis_mongo::VendorWork},
};
use tokio::task::JoinSet;

use super::{LEASE, TestStore, VENDORS, complete, failed, site::Site, work};

/// Of the second vendor so many are open at once at most.
const OPEN: u64 = 6;

/// More come with `FETCHGATE_SEEDS`: from that number on, 200 of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_of_three_processes_lose_nothing_and_double_nothing() {
    let from = std::env::var("FETCHGATE_SEEDS").ok().and_then(|from| from.parse::<u64>().ok());
    for seed in from.map_or(0..3, |from| from..from + 200) {
        println!("seed {seed}");
        World::new(seed).await.run(250).await;
    }
}

/// A job as it should be.
#[derive(Debug, Clone)]
struct Model {
    vendor: usize,
    stage: Stage,
    due_at: Time,
    ended: bool,
    /// Every change that was stored adds one.
    version: u32,
    /// Until when a worker holds it for sure, as long as nothing is lost.
    held_until: Option<Time>,
    /// Its call is on record: nobody else may have the job.
    called: bool,
}

struct Held {
    lease: Lease,
    process: usize,
    version: u32,
    /// Nothing has happened since that could have taken it away.
    sure: bool,
}

/// Whether this is a call to the vendor of which only so many may be open.
fn is_bounded_call(lease: &Lease) -> bool {
    lease.job.lane.vendor.as_ref() == VENDORS[1] && lease.job.stage == Stage::Call
}

struct World {
    site: Site,
    processes: Vec<TestStore>,
    rng: Rng,
    jobs: BTreeMap<JobId, Model>,
    held: Vec<Held>,
}

async fn start(site: &Site) -> TestStore {
    let bounded = VendorWork { open: Some(OPEN), ..work(VENDORS[1]) };
    site.process_for(vec![work(VENDORS[0]), bounded], &site.clock).await
}

impl World {
    async fn new(seed: u64) -> World {
        let site = Site::with_snapshots();
        site.save();
        let processes = vec![start(&site).await, start(&site).await, start(&site).await];
        World { site, processes, rng: Rng::with_seed(seed), jobs: BTreeMap::new(), held: Vec::new() }
    }

    async fn run(mut self, steps: usize) {
        for step in 0..steps {
            self.step().await;
            if step % 50 == 49 {
                self.check_counts().await;
            }
        }
        self.finish().await;
    }

    fn any_process(&mut self) -> usize {
        self.rng.usize(..self.processes.len())
    }

    async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..15 => self.submit().await,
            15..45 => self.storm().await,
            45..52 => self.release().await,
            52..55 => self.mark().await,
            55..67 => self.amend().await,
            67..82 => self.site.clock.advance(Duration::from_millis(self.rng.u64(..4000))),
            82..87 => self.reclaim().await,
            87..91 => self.look().await,
            91 => self.lose_the_index_and_recover().await,
            92 => self.lose_the_index_and_go_on().await,
            93 => self.site.save(),
            94 => self.come_back_older().await,
            95..97 => self.end_a_process(true).await,
            97..99 => self.end_a_process(false).await,
            _ => self.site.clock.advance(LEASE),
        }
    }

    async fn submit(&mut self) {
        let process = self.any_process();
        let mut jobs = Vec::new();
        for _ in 0..self.rng.usize(1..8) {
            let vendor = self.rng.usize(..2);
            // A few who have many, and hundreds who have little.
            let tenant = if self.rng.bool() { self.rng.u16(..4) } else { self.rng.u16(..400) };
            let priority = *self.rng.choice(&Priority::ALL).expect("there are some");
            let mut job = self.processes[process].job(VENDORS[vendor], priority, &format!("t{tenant}"));
            if self.rng.bool() {
                job.due_at = self.site.now().plus(Duration::from_millis(self.rng.u64(..10_000)));
            }
            let (stage, due_at) = (Stage::Call, job.due_at);
            self.jobs.insert(
                job.id,
                Model { vendor, stage, due_at, ended: false, version: 0, held_until: None, called: false },
            );
            jobs.push(job);
        }
        self.processes[process].submit_all(jobs).await;
    }

    /// All processes claim at once, and some of what is held is settled meanwhile.
    async fn storm(&mut self) {
        let mut settles = JoinSet::new();
        for _ in 0..self.rng.usize(..12).min(self.held.len()) {
            let held = self.held.swap_remove(self.rng.usize(..self.held.len()));
            let (next, now) = (self.any_next(), self.site.now());
            let store = self.processes[held.process].store.clone();
            settles.spawn(async move {
                let (attempt, lease) = (super::attempt(&held.lease, now), held.lease);
                let id = lease.job.id;
                let change = lifecycle::Change { ticket: None, ..lifecycle::Change::of(&lease.job, next.clone()) };
                let settled = store.settle(lease, change, attempt).await.expect("the store works");
                (id, held.version, held.sure, next, settled)
            });
        }
        let mut claims = JoinSet::new();
        for process in 0..self.processes.len() {
            let (vendor, most) = (VENDORS[self.rng.usize(..2)], self.rng.usize(1..10));
            let (store, now) = (self.processes[process].store.clone(), self.site.now());
            let claim = fetchgate::store::Claim { vendor: vendor.into(), most, calls: most, now, lease: LEASE };
            claims.spawn(async move {
                // As dispatchers do.
                store.ready(vendor).await.expect("the store works");
                (process, store.claim(&claim).await.expect("the store works"))
            });
        }
        let (settled, claimed) = tokio::join!(settles.join_all(), claims.join_all());
        let mut touched = Vec::new();
        for (id, version, sure, next, settled) in settled {
            touched.push(id);
            self.settled(id, version, sure, &next, settled);
        }
        let calls = claimed.iter().flat_map(|(_, leases)| leases).filter(|lease| is_bounded_call(lease)).count();
        for (process, leases) in claimed {
            self.take(process, leases, &touched);
        }
        if calls > 0 {
            self.check_open();
        }
    }

    /// Calls have just been claimed: with them no more are open than may be, if it is known who holds what.
    fn check_open(&self) {
        let calls = self.held.iter().filter(|held| is_bounded_call(&held.lease));
        if calls.clone().all(|held| held.sure) {
            let is_open = |model: &&Model| model.vendor == 1 && !model.ended && model.stage != Stage::Call;
            let (open, calls) = (self.jobs.values().filter(is_open).count(), calls.count());
            assert!((open + calls) as u64 <= OPEN, "{open} are open, and {calls} are being called");
        }
    }

    fn any_next(&mut self) -> Next {
        let now = self.site.now();
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

    fn settled(&mut self, id: JobId, version: u32, sure: bool, next: &Next, settled: Settled) {
        let model = &self.jobs[&id];
        let is_current = version == model.version;
        if settled == Settled::TooLate {
            assert!(!(sure && is_current && !model.ended), "a holder was shut out: {model:?}: {next:?}");
            return;
        }
        let is_data = next.end() == Some(Status::Complete);
        assert!(!model.ended && (is_current || is_data), "a stale holder was let in: {model:?}: {next:?}");
        self.become_(id, next);
    }

    /// A change was stored: whoever else holds the job is not sure of it.
    fn become_(&mut self, id: JobId, next: &Next) {
        let now = self.site.now();
        let model = self.jobs.get_mut(&id).expect("no job is invented");
        model.version += 1;
        (model.held_until, model.called) = (None, false);
        (model.stage, model.due_at, model.ended) = match next {
            Next::Call { due_at } | Next::Rerun { due_at, .. } => (Stage::Call, *due_at, false),
            Next::Poll { due_at, .. } => (Stage::Poll, *due_at, false),
            Next::Await { .. } => (Stage::Await, now, false),
            _ => (model.stage, model.due_at, true),
        };
        self.held.iter_mut().filter(|held| held.lease.job.id == id).for_each(|held| held.sure = false);
    }

    fn take(&mut self, process: usize, leases: Vec<Lease>, touched: &[JobId]) {
        let now = self.site.now();
        for lease in leases {
            let model = self.jobs.get_mut(&lease.job.id).expect("no job is invented");
            assert!(model.held_until.is_none(), "leased twice at once: {model:?} at {now:?}");
            assert!(!model.called, "it may be called at most once: {model:?} at {now:?}");
            // Of a job that others changed meanwhile it may have been given what was before.
            let sure = !touched.contains(&lease.job.id);
            if sure {
                assert!(!model.ended && model.due_at <= now && model.stage == lease.job.stage, "{model:?} at {now:?}");
                model.held_until = Some(now.plus(LEASE));
            }
            self.held.push(Held { process, version: model.version, sure, lease });
        }
    }

    /// A call that is made at most once is about to be made.
    async fn mark(&mut self) {
        let can = |held: &Held| held.lease.job.stage == Stage::Call && held.lease.called_at.is_none();
        let all: Vec<usize> = (0..self.held.len()).filter(|i| can(&self.held[*i])).collect();
        let Some(i) = self.rng.choice(all) else { return };
        let Held { lease, process, version, sure } = self.held.swap_remove(i);
        let model = self.jobs.get_mut(&lease.job.id).expect("known");
        let is_current = version == model.version && !model.ended;
        match self.processes[process].store.mark(vec![lease]).await.expect("the store works").pop() {
            Some(lease) => {
                assert!(is_current && !model.called, "a stale holder may call: {model:?}");
                model.called = true;
                self.held.push(Held { lease, process, version, sure });
            }
            None => assert!(!(sure && is_current), "a holder was shut out: {model:?}"),
        }
    }

    async fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let Held { lease, process, version, sure } = self.held.swap_remove(self.rng.usize(..self.held.len()));
        if lease.called_at.is_some() {
            let model = self.jobs.get_mut(&lease.job.id).expect("known");
            model.called &= version != model.version;
        }
        if sure {
            self.jobs.get_mut(&lease.job.id).expect("known").held_until = None;
        }
        let rest = self.rng.bool().then(|| self.site.now().plus(Duration::from_millis(self.rng.u64(1..3000))));
        self.processes[process].store.release(vec![(lease, rest)]).await;
    }

    /// A cancel, a callback or a replay.
    async fn amend(&mut self) {
        let Some(id) = self.rng.choice(self.jobs.keys()).copied() else { return };
        let (process, which, now) = (self.any_process(), self.rng.usize(..3), self.site.now());
        type Decision = fn(&Job, Time) -> Option<lifecycle::Change>;
        let decisions: [Decision; 3] = [
            |job, _| lifecycle::cancel(job),
            |job, _| lifecycle::answered(job, None, Ok("2".into())),
            lifecycle::replay,
        ];
        let decide = decisions[which];
        let decide = Box::new(move |job: &Job| decide(job, now));
        let amended =
            self.processes[process].store.amend(&Sees::All, Which::Id(id), now, decide).await.expect("the store works");
        let was_ended = self.jobs[&id].ended;
        match amended {
            Amended::Changed(_) if which == 2 => {
                assert!(was_ended);
                self.become_(id, &Next::Rerun { due_at: now, deadline: None });
            }
            Amended::Changed(_) => {
                assert!(!was_ended, "ended twice");
                self.become_(id, &Next::Cancelled);
            }
            Amended::Left(_) => assert!(was_ended || which == 2, "{:?}", self.jobs[&id]),
            Amended::Unknown | Amended::NoRoom(..) => panic!("{id} is lost"),
        }
    }

    async fn reclaim(&mut self) {
        let (process, now) = (self.any_process(), self.site.now());
        self.doubt(|_, until| until <= now);
        self.processes[process].store.reclaim().await.expect("the store works");
        // Those that were lost too often have been given up.
        let (store, all) = (&self.processes[process].store, Filter::default());
        let page = store.list(&Sees::All, &all, Slice::page(None, 100_000)).await.expect("the store works");
        for job in page.jobs {
            if job.status.has_ended() && !self.jobs[&job.id].ended {
                let called = self.jobs[&job.id].called;
                let code = if called { FailureCode::UnknownOutcome } else { FailureCode::Crashed };
                assert_eq!(job.failure.map(|why| why.code), Some(code), "{}", job.id);
                self.become_(job.id, &Next::Cancelled);
            }
        }
    }

    /// From here on these leases may be gone, or not.
    fn doubt(&mut self, which: impl Fn(JobId, Time) -> bool) {
        for (id, model) in &mut self.jobs {
            if model.held_until.is_some_and(|until| which(*id, until)) {
                model.held_until = None;
                self.held.iter_mut().filter(|held| held.lease.job.id == *id).for_each(|held| held.sure = false);
            }
        }
    }

    async fn look(&mut self) {
        let process = self.any_process();
        for vendor in VENDORS {
            self.processes[process].store.ready(vendor).await.expect("the store works");
        }
    }

    /// All say in time what they hold: nobody loses anything. Of two who hold the same job, by a loss or a lapse before, only one is
    /// entered, which may be the one that is shut out.
    async fn lose_the_index_and_recover(&mut self) {
        self.doubt_those_leased_twice();
        self.site.lose_the_index().await;
        self.site.recover(&self.processes.iter().collect::<Vec<_>>()).await;
    }

    /// What Redis was told since it was saved is gone. Again all say in time what they hold.
    async fn come_back_older(&mut self) {
        self.doubt_those_leased_twice();
        let all: Vec<&TestStore> = self.processes.iter().collect();
        self.site.come_back_older(&all).await;
        self.site.recover(&all).await;
    }

    fn doubt_those_leased_twice(&mut self) {
        let mut holders: BTreeMap<JobId, usize> = BTreeMap::new();
        self.held.iter().for_each(|held| *holders.entry(held.lease.job.id).or_default() += 1);
        self.doubt(|id, _| holders.get(&id).is_some_and(|holders| *holders > 1));
    }

    async fn lose_the_index_and_go_on(&mut self) {
        self.site.lose_the_index().await;
        self.doubt(|_, _| true);
    }

    async fn end_a_process(&mut self, in_order: bool) {
        let process = self.any_process();
        let next = start(&self.site).await;
        let last = std::mem::replace(&mut self.processes[process], next);
        let (gone, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.process == process);
        self.held = left;
        if in_order {
            last.store.close().await;
        }
        for held in gone.into_iter().filter(|held| held.sure) {
            self.jobs.get_mut(&held.lease.job.id).expect("known").held_until = None;
        }
    }

    /// After a sweep the counts are what is so.
    async fn check_counts(&mut self) {
        self.lose_nothing_and_sweep().await;
        for (vendor, name) in VENDORS.iter().enumerate() {
            let count = |which: fn(&Model) -> bool| {
                self.jobs.values().filter(|model| model.vendor == vendor && !model.ended && which(model)).count() as u64
            };
            for process in &self.processes {
                let backlog = process.store.backlog(name).await;
                assert_eq!(backlog.open, count(|model| model.stage != Stage::Call), "open");
                let all = backlog.waiting + backlog.leased;
                assert_eq!(all, count(|model| model.stage != Stage::Await), "waiting or held: {backlog:?}");
            }
        }
    }

    async fn lose_nothing_and_sweep(&mut self) {
        self.site.recover(&self.processes.iter().collect::<Vec<_>>()).await;
        self.site.clock.advance(Duration::from_secs(11));
        self.look().await;
    }

    /// Everything that still wants to go goes, and ends.
    async fn finish(mut self) {
        self.held.clear();
        // Those that wait for an answer keep others from being called.
        let awaits = self.jobs.iter().filter(|(_, model)| !model.ended && model.stage == Stage::Await);
        for id in awaits.map(|(id, _)| *id).collect::<Vec<_>>() {
            let decide = Box::new(|job: &Job| lifecycle::answered(job, None, Ok("2".into())));
            self.processes[0]
                .store
                .amend(&Sees::All, Which::Id(id), self.site.now(), decide)
                .await
                .expect("the store works");
            self.become_(id, &Next::Cancelled);
        }
        for round in 0..60 {
            self.lose_nothing_and_sweep().await;
            self.site.clock.advance(LEASE);
            self.reclaim().await;
            for process in 0..self.processes.len() {
                for vendor in VENDORS {
                    let leases = self.processes[process].claim_all(vendor).await;
                    self.take(process, leases, &[]);
                }
            }
            for Held { lease, process, version, .. } in std::mem::take(&mut self.held) {
                let id = lease.job.id;
                let settled = self.processes[process].settle(lease, complete()).await;
                self.settled(id, version, true, &complete(), settled);
            }
            if self.jobs.values().all(|model| model.ended || model.stage == Stage::Await) {
                break;
            }
            assert!(
                round < 59,
                "some never go: {:?}",
                self.jobs.values().filter(|model| !model.ended).collect::<Vec<_>>()
            );
        }
        self.check_counts().await;
        for id in self.jobs.keys() {
            let (job, model) = (self.processes[0].find(*id).await, &self.jobs[id]);
            assert_eq!(job.status.has_ended(), model.ended, "{model:?}");
            assert!(!model.ended || job.finished_at.is_some());
        }
        assert_eq!(self.site.ask::<i64>(&["HLEN", ":index"]).await, 0, "nothing is left");
        for line in 0..6 {
            assert_eq!(self.site.ask::<i64>(&["XLEN", &format!(":{line}:jobs")]).await, 0);
        }
    }
}
