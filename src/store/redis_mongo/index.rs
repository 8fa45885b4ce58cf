//! The index in Redis of what wants to go: short streams, refilled from MongoDB. Every use of it is one script, in `lua/`.
//!
//! Never the truth: an index that is lost is opened anew and filled again. All keys of a vendor lie in one hash slot.

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, Script, ScriptInvocation};

use super::lanes::LaneCounts;
use crate::{
    clock::{Clock, Time},
    job::{Job, JobId, Priority, Stage},
    redis_link::{Redis, script},
    store::StoreError,
};

/// How long a new index stays shut: workers that live say what they hold, a few times a second.
const SHUT: Duration = Duration::from_secs(3);
/// Tenants that nobody knows of are looked for this often.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// And after a look that took long, no later than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What the index has to know about a vendor.
#[derive(Debug, Clone)]
pub struct VendorWork {
    pub name: Arc<str>,
    /// Whether it has polls: twice as many streams.
    pub polls: bool,
    /// How long a worker may hold a job of it.
    pub lease: Duration,
    /// Ids kept in each of its streams at most, those held by workers aside: about half a second of its rate.
    pub depth: usize,
    /// Accepted and not answered at once, at most.
    pub open: Option<u64>,
}

impl VendorWork {
    fn lines(&self) -> usize {
        if self.polls { 6 } else { 3 }
    }
}

/// A stream of a vendor: its calls, then its polls, each by priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Line(pub(super) usize);

impl Line {
    pub(super) const ALL: [Line; 6] = [Line(0), Line(1), Line(2), Line(3), Line(4), Line(5)];

    pub(super) fn new(priority: Priority, stage: Stage) -> Line {
        Line(priority as usize + if stage == Stage::Poll { 3 } else { 0 })
    }

    pub(super) fn of(job: &Job) -> Line {
        Line::new(job.lane.priority, job.stage)
    }
}

/// An entry of a stream that this process holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) line: Line,
    /// The stream's own name for it.
    pub(super) name: String,
    pub(super) id: JobId,
}

/// By how much the counts of a vendor change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) waiting: i64,
    pub(super) open: i64,
    pub(super) live: i64,
    pub(super) lanes: LaneCounts,
}

impl Counts {
    /// A job as it was is now another; nothing is one that is not born.
    pub(super) fn add(&mut self, was: Option<&Job>, is: Option<&Job>) {
        self.count(was, -1);
        self.count(is, 1);
    }

    fn count(&mut self, job: Option<&Job>, by: i64) {
        let Some((job, stage)) = job.and_then(|job| Some((job, job.live_stage()?))) else { return };
        self.live += by;
        self.open += by * i64::from(matches!(stage, Stage::Await | Stage::Poll));
        if matches!(stage, Stage::Call | Stage::Poll) {
            self.waiting += by;
            self.lanes.add(Line::of(job), &job.lane.tenant, job.due_at, by);
        }
    }
}

/// A job that wants to go, or will.
pub(super) struct Wanted {
    pub(super) line: Line,
    pub(super) tenant: Arc<str>,
    pub(super) due_at: Time,
    pub(super) id: JobId,
}

impl Wanted {
    pub(super) fn lane(&self) -> (Line, Arc<str>) {
        (self.line, self.tenant.clone())
    }
}

/// A job that was changed from outside, and what it waits for next.
pub(super) struct Amendment {
    pub(super) id: JobId,
    pub(super) next: Option<Wanted>,
}

/// An entry that is given back, its tenant, and until when that is to rest.
pub(super) type GivenBack = (Entry, Arc<str>, Option<Time>);

/// An entry that has been dealt with, and what its job waits for next.
pub(super) struct Dealt {
    pub(super) entry: Entry,
    pub(super) which: DealtWith,
    pub(super) next: Option<Wanted>,
}

/// Whether an entry that has been dealt with leaves its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DealtWith {
    /// If this process still holds it. Whoever else does looks at the job by itself.
    IfHeld,
    /// And any other that the job has by now.
    AnyOfTheJob,
}

/// What a look at a vendor finds.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) epoch: String,
    /// The asker is to look for tenants that nobody knows of.
    pub(super) sweep: bool,
    /// Calls that workers hold, all of them together, and how many were ever claimed.
    pub(super) calls_held: u64,
    pub(super) claimed: i64,
    /// Accepted and not answered, about.
    pub(super) open: u64,
    pub(super) next_call: Option<Time>,
    pub(super) next_poll: Option<Time>,
}

/// A tenant whose turn it is to be read from MongoDB.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) line: Line,
    pub(super) tenant: String,
    /// How many to add.
    pub(super) page: usize,
    /// How many ids of the line are in its stream already.
    pub(super) known: usize,
}

/// What was read for a tenant.
pub(super) struct Read {
    pub(super) tenant: String,
    pub(super) ids: Vec<JobId>,
    /// Whether it has more than that, and when.
    pub(super) more: More,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Nothing,
    Due,
    At(Time),
}

/// What a claim gives.
#[derive(Default)]
pub(super) struct Claimed {
    pub(super) epoch: String,
    /// Streams run dry while there is more in MongoDB.
    pub(super) low: bool,
    pub(super) entries: Vec<Entry>,
}

/// How much is where.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// As counted: below nothing where a count was lost, until a sweep mends it.
    pub(super) waiting: i64,
    pub(super) open: i64,
    pub(super) live: i64,
    pub(super) held: u64,
    /// The first jobs of the streams.
    pub(super) heads: Vec<JobId>,
}

/// What processes tell each other. Whatever is said may be missed: those who listen look for themselves now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// The name of a vendor that may have something to do.
    Bells,
    /// The ids of jobs that have ended, one after the other.
    Ended,
    /// The name of the process that has changed the book.
    Book,
}

pub(super) struct Index {
    redis: Redis,
    database: String,
    /// This process, among the consumers of the streams.
    consumer: String,
    clock: Clock,
    pub(super) scripts: Scripts,
}

pub(super) struct Scripts {
    amend: Script,
    claim: Script,
    dealt: Script,
    enqueue: Script,
    fill: Script,
    flag: Script,
    hold: Script,
    pub(super) lanes: Script,
    lapsed: Script,
    look: Script,
    open: Script,
    pub(super) recount: Script,
    release: Script,
    stats: Script,
    turn: Script,
    wake: Script,
}

macro_rules! lua {
    ($file:literal) => {
        script(&[include_str!("lua/lib.lua"), include_str!(concat!("lua/", $file))])
    };
}

impl Index {
    pub(super) fn new(redis: Redis, database: &str, consumer: &str, clock: Clock) -> Index {
        let scripts = Scripts {
            amend: lua!("amend.lua"),
            claim: lua!("claim.lua"),
            dealt: lua!("done.lua"),
            enqueue: lua!("enqueue.lua"),
            fill: lua!("fill.lua"),
            flag: lua!("flag.lua"),
            hold: lua!("hold.lua"),
            lanes: lua!("lanes.lua"),
            lapsed: lua!("lapsed.lua"),
            look: lua!("look.lua"),
            open: lua!("open.lua"),
            recount: lua!("recount.lua"),
            release: lua!("release.lua"),
            stats: lua!("stats.lua"),
            turn: lua!("turn.lua"),
            wake: lua!("wake.lua"),
        };
        Index { redis, database: database.to_owned(), consumer: consumer.to_owned(), clock, scripts }
    }

    pub(super) fn channel(&self, channel: Channel) -> String {
        let name = match channel {
            Channel::Bells => "bells",
            Channel::Ended => "ended",
            Channel::Book => "book",
        };
        format!("{}:work:{name}", self.database)
    }

    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// A script's invocation with what all of them begin with.
    pub(super) fn on<'a>(&self, script: &'a Script, vendor: &VendorWork) -> ScriptInvocation<'a> {
        let mut call = script.key(key_of(&self.database, &vendor.name));
        call.arg(self.clock.now().0).arg(vendor.lines());
        call
    }

    /// Runs a script; nothing when the index is lost, or a part of it.
    pub(super) async fn run<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<Option<T>, StoreError> {
        match self.redis.run(call).await {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Unavailable(why)) if why.contains("NOGROUP") || why.contains("WRONGTYPE") => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn injected(&self) -> u8 {
        u8::from(self.clock.injected().is_some())
    }

    /// Jobs that MongoDB has want to go.
    pub(super) async fn enqueue(&self, vendor: &VendorWork, counts: Counts, jobs: &[Wanted]) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.enqueue, vendor);
        call.arg(vendor.depth).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.lanes.json());
        for job in jobs {
            call.arg(job.line.0).arg(&*job.tenant).arg(job.due_at.0).arg(job.id.as_bytes());
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Jobs were changed from outside. `ring`: others may have room now.
    pub(super) async fn amend(
        &self,
        vendor: &VendorWork,
        counts: Counts,
        ring: bool,
        amended: &[Amendment],
    ) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.amend, vendor);
        call.arg(vendor.depth).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.lanes.json());
        call.arg(u8::from(ring));
        for Amendment { id, next } in amended {
            call.arg(id.as_bytes());
            next_arguments(&mut call, next.as_ref());
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Nothing when the index is lost.
    pub(super) async fn look(&self, vendor: &VendorWork) -> Result<Option<Look>, StoreError> {
        let mut call = self.on(&self.scripts.look, vendor);
        call.arg(ms(SWEEP_EVERY)).arg(ms(LONGEST_PAUSE));
        let Some(found) = self.run::<Vec<String>>(&call).await? else { return Ok(None) };
        let number = |i: usize| found.get(i).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let time = |i: usize| Some(Time(number(i))).filter(|at| at.0 >= 0);
        Ok(Some(Look {
            epoch: found.first().cloned().unwrap_or_default(),
            sweep: number(1) == 1,
            calls_held: number(2).unsigned_abs(),
            claimed: number(3),
            open: number(4).max(0).unsigned_abs(),
            next_call: time(5),
            next_poll: time(6),
        })
        .filter(|look| !look.epoch.is_empty()))
    }

    /// Takes entries. `claimed`: how many calls had ever been claimed when `calls` was reckoned, if others may claim meanwhile.
    pub(super) async fn claim(
        &self,
        vendor: &VendorWork,
        most: usize,
        calls: usize,
        claimed: Option<i64>,
    ) -> Result<Option<Claimed>, StoreError> {
        let mut call = self.on(&self.scripts.claim, vendor);
        call.arg(vendor.depth).arg(most).arg(calls).arg(&self.consumer).arg(self.injected()).arg(claimed.unwrap_or(-1));
        let Some(found) = self.run::<Vec<Vec<u8>>>(&call).await? else { return Ok(None) };
        let mut found = found.into_iter();
        let epoch = text(found.next());
        let low = text(found.next()) != "0";
        Ok(Some(Claimed { epoch, low, entries: entries(found)? }).filter(|claimed| !claimed.epoch.is_empty()))
    }

    /// Tenants whose turn it is to be read, and the index that they belong to.
    pub(super) async fn turns(&self, vendor: &VendorWork) -> Result<(String, Vec<Turn>), StoreError> {
        let mut call = self.on(&self.scripts.turn, vendor);
        call.arg(vendor.depth);
        let found: Vec<String> = self.run(&call).await?.unwrap_or_default();
        let mut found = found.into_iter();
        let epoch = found.next().unwrap_or_default();
        let mut turns = Vec::new();
        while let (Some(line), Some(tenant), Some(page), Some(known)) =
            (found.next(), found.next(), found.next(), found.next())
        {
            let number = |text: &str| text.parse::<usize>().unwrap_or(0);
            turns.push(Turn { line: Line(number(&line)), tenant, page: number(&page), known: number(&known) });
        }
        Ok((epoch, turns))
    }

    /// Adds what was read to a line's stream, in turn between the tenants; says how many were new.
    pub(super) async fn fill(
        &self,
        vendor: &VendorWork,
        epoch: &str,
        line: Line,
        read: &[Read],
    ) -> Result<usize, StoreError> {
        let mut call = self.on(&self.scripts.fill, vendor);
        call.arg(epoch).arg(line.0).arg(read.len());
        for each in read {
            let more = match each.more {
                More::Nothing => -1,
                More::Due => 0,
                More::At(at) => at.0.max(1),
            };
            call.arg(&each.tenant).arg(more);
        }
        let longest = read.iter().map(|each| each.ids.len()).max().unwrap_or(0);
        for i in 0..longest {
            for id in read.iter().filter_map(|each| each.ids.get(i)) {
                call.arg(id.as_bytes());
            }
        }
        Ok(self.run(&call).await?.unwrap_or(0))
    }

    /// What this process held has been dealt with. `ring`: others may have room now.
    pub(super) async fn dealt(
        &self,
        vendor: &VendorWork,
        counts: Counts,
        ring: bool,
        dealt: &[Dealt],
    ) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.dealt, vendor);
        call.arg(&self.consumer).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.lanes.json());
        call.arg(u8::from(ring));
        for Dealt { entry, which, next } in dealt {
            let which = match which {
                DealtWith::IfHeld => "held",
                DealtWith::AnyOfTheJob => "any",
            };
            call.arg(entry.line.0).arg(&entry.name).arg(entry.id.as_bytes()).arg(which);
            next_arguments(&mut call, next.as_ref());
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Gives entries back; those with a time leave the stream, and their tenant rests until then.
    pub(super) async fn release(&self, vendor: &VendorWork, back: &[GivenBack]) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.release, vendor);
        call.arg(&self.consumer);
        for (entry, tenant, rest) in back {
            call.arg(entry.line.0).arg(&entry.name).arg(entry.id.as_bytes());
            call.arg(&**tenant).arg(rest.map_or(0, |until| until.0));
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Lets no tenant rest any longer.
    pub(super) async fn wake(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        self.run::<i64>(&self.on(&self.scripts.wake, vendor)).await.map(drop)
    }

    /// Takes over entries that were held for longer than the vendor's lease.
    pub(super) async fn lapsed(&self, vendor: &VendorWork) -> Result<Vec<Entry>, StoreError> {
        let mut call = self.on(&self.scripts.lapsed, vendor);
        call.arg(&self.consumer).arg(ms(vendor.lease)).arg(self.injected());
        entries(self.run::<Vec<Vec<u8>>>(&call).await?.unwrap_or_default().into_iter())
    }

    /// Opens a new index where it is lost, or a part of it; says whether it was. `at_once`: nobody can hold anything, there has never been a job.
    pub(super) async fn open(&self, vendor: &VendorWork, name: &str, at_once: bool) -> Result<bool, StoreError> {
        let mut call = self.on(&self.scripts.open, vendor);
        let open_at = if at_once { self.clock.now() } else { self.clock.now().plus(SHUT) };
        call.arg(name).arg(open_at.0).arg(u8::from(at_once));
        Ok(self.redis.run::<i64>(&call).await? == 1)
    }

    /// Says that these are still held. Gives the epoch, and new names of those that had to be entered anew.
    pub(super) async fn hold(&self, vendor: &VendorWork, held: &[Entry]) -> Result<(String, Vec<String>), StoreError> {
        let mut call = self.on(&self.scripts.hold, vendor);
        call.arg(&self.consumer).arg(self.injected());
        for entry in held {
            call.arg(entry.line.0).arg(&entry.name).arg(entry.id.as_bytes());
        }
        let mut found = self.run::<Vec<String>>(&call).await?.unwrap_or_default().into_iter();
        Ok((found.next().unwrap_or_default(), found.collect()))
    }

    /// These tenants may have something in MongoDB.
    pub(super) async fn flag(&self, vendor: &VendorWork, tenants: &[(Line, Arc<str>)]) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.flag, vendor);
        for (line, tenant) in tenants {
            call.arg(line.0).arg(&**tenant);
        }
        self.run::<i64>(&call).await.map(drop)
    }

    pub(super) async fn stats(&self, vendor: &VendorWork) -> Result<Stats, StoreError> {
        let call = self.on(&self.scripts.stats, vendor);
        let found: Vec<Vec<u8>> = self.run(&call).await?.unwrap_or_default();
        let number = |i: usize| text(found.get(i).cloned()).parse::<i64>().unwrap_or(0);
        let heads = found.iter().skip(4).filter_map(|id| JobId::from_slice(id)).collect();
        let held = number(3).max(0).unsigned_abs();
        Ok(Stats { waiting: number(0), open: number(1), live: number(2), held, heads })
    }

    /// The next to look for unknown tenants is to wait for so long from now.
    pub(super) async fn sweep_later(&self, vendor: &VendorWork, pause: Duration) -> Result<(), StoreError> {
        let key = format!("{}:state", key_of(&self.database, &vendor.name));
        let mut set = redis::cmd("HSET");
        set.arg(key).arg("sweep_at").arg(self.clock.now().plus(pause.min(LONGEST_PAUSE)).0);
        self.redis.command::<i64>(&set).await.map(drop)
    }

    /// Mends counts that are off by so much, whatever happens to them meanwhile.
    pub(super) async fn mend_counts(&self, vendor: &VendorWork, off: &Counts) -> Result<(), StoreError> {
        let key = format!("{}:counts", key_of(&self.database, &vendor.name));
        for (count, by) in [("waiting", off.waiting), ("open", off.open), ("live", off.live)] {
            if by != 0 {
                self.redis.command::<i64>(redis::cmd("HINCRBY").arg(&key).arg(count).arg(by)).await?;
            }
        }
        Ok(())
    }

    /// Which of these jobs of a vendor workers hold now.
    pub(super) async fn held(&self, vendor: &str, ids: &[JobId]) -> Result<Vec<bool>, StoreError> {
        let mut ask = redis::cmd("HMGET");
        ask.arg(format!("{}:index", key_of(&self.database, vendor)));
        for id in ids {
            ask.arg(id.as_bytes());
        }
        let found: Vec<Option<String>> = self.redis.command(&ask).await?;
        Ok(found.into_iter().map(|held| held.is_some_and(|held| held.starts_with('+'))).collect())
    }

    pub(super) async fn publish(&self, channel: Channel, body: &[u8]) -> Result<(), StoreError> {
        self.redis.command::<i64>(redis::cmd("PUBLISH").arg(self.channel(channel)).arg(body)).await.map(drop)
    }
}

/// What all keys of a vendor begin with: the vendor is the hash tag, so a script's keys lie in one slot of a Cluster. Keys of the limiter
/// begin otherwise: a pool may be called like a vendor.
pub fn key_of(database: &str, vendor: &str) -> String {
    format!("{database}:work:{{{vendor}}}")
}

/// What a job waits for next, as the scripts take it.
fn next_arguments(call: &mut ScriptInvocation<'_>, next: Option<&Wanted>) {
    match next {
        Some(next) => call.arg(next.line.0).arg(&*next.tenant).arg(next.due_at.0.max(0)),
        None => call.arg(0).arg("").arg(-1),
    };
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn text(bytes: Option<Vec<u8>>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn entries(mut found: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    while let (Some(line), Some(name), Some(id)) = (found.next(), found.next(), found.next()) {
        let line = text(Some(line)).parse().ok().filter(|line| *line < Line::ALL.len());
        let bad = || StoreError::Corrupt("a script of ours gave an entry that is none".into());
        entries.push(Entry {
            line: Line(line.ok_or_else(bad)?),
            name: text(Some(name)),
            id: JobId::from_slice(&id).ok_or_else(bad)?,
        });
    }
    Ok(entries)
}
