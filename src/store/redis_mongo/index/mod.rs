//! The index in Redis of jobs that are due: short streams, refilled from MongoDB. Every use of it is one script, in `lua/`.
//!
//! Never the truth: a lost index is opened and filled again. All keys of a vendor are in one hash slot.

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, Script, ScriptInvocation};

use self::{
    patience::Patience,
    words::{
        Amendment, Channel, Claimed, CountChanges, Enqueue, Entry, GivenBack, Look, More, Read, Removal, RemoveIf,
        Stats, StreamNo, Turn, VendorWork, ready,
    },
};
use crate::{
    clock::{Clock, Time},
    job::JobId,
    redis_link::{Redis, script},
    store::StoreError,
};

pub(super) mod leases;
mod patience;
pub(super) mod words;

/// How often a vendor is swept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Index {
    redis: Redis,
    database: String,
    /// This process, among the consumers of the streams.
    consumer: String,
    clock: Clock,
    patience: Patience,
    pub(super) scripts: Scripts,
}

pub(super) struct Scripts {
    amend: Script,
    claim: Script,
    done: Script,
    enqueue: Script,
    fill: Script,
    flag: Script,
    register: Script,
    lapsed: Script,
    look: Script,
    open: Script,
    release: Script,
    pub(super) standing: Script,
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
            done: lua!("done.lua"),
            enqueue: lua!("enqueue.lua"),
            fill: lua!("fill.lua"),
            flag: lua!("flag.lua"),
            register: lua!("register.lua"),
            lapsed: lua!("lapsed.lua"),
            look: lua!("look.lua"),
            open: lua!("open.lua"),
            release: lua!("release.lua"),
            standing: lua!("standing.lua"),
            stats: lua!("stats.lua"),
            turn: lua!("turn.lua"),
            wake: lua!("wake.lua"),
        };
        let (database, consumer, patience) = (database.to_owned(), consumer.to_owned(), Patience::default());
        Index { redis, database, consumer, clock, patience, scripts }
    }

    pub(super) fn channel(&self, channel: Channel) -> String {
        let name = match channel {
            Channel::Bells => "bells",
            Channel::Ended => "ended",
            Channel::Book => "book",
        };
        format!("{}:work:{name}", self.database)
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }

    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// A script's invocation, with the arguments that all of them have.
    pub(super) fn on<'a>(&self, script: &'a Script, vendor: &VendorWork) -> ScriptInvocation<'a> {
        let mut call = script.key(key_of(&self.database, &vendor.name));
        call.arg(self.clock.now().0).arg(vendor.streams());
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

    /// Queues jobs that MongoDB has and that wait for a call or a poll.
    pub(super) async fn enqueue(
        &self,
        vendor: &VendorWork,
        counts: CountChanges,
        jobs: &[Enqueue],
    ) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.enqueue, vendor);
        call.arg(vendor.depth).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.bytes);
        for job in jobs {
            call.arg(job.stream.0).arg(&*job.tenant).arg(job.due_at.0).arg(job.id.as_bytes());
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Jobs were changed from outside. `ring`: others may have room now.
    pub(super) async fn amend(
        &self,
        vendor: &VendorWork,
        counts: CountChanges,
        ring: bool,
        amended: &[Amendment],
    ) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.amend, vendor);
        call.arg(vendor.depth).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.bytes);
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
        call.arg(ms(SWEEP_EVERY)).arg(self.patience.may_open(vendor, self.clock.nanos()));
        let Some(found) = self.run::<Vec<String>>(&call).await? else { return Ok(None) };
        let Some(epoch) = found.first().filter(|epoch| !epoch.is_empty()) else { return Ok(None) };
        let opens = self.clock.now().plus(self.patience.saw(vendor, epoch, self.clock.nanos()));
        let number = |i: usize| found.get(i).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let is_open = number(1) == 1;
        Ok(Some(Look {
            epoch: epoch.clone(),
            sweep: number(2) == 1,
            calls_leased: number(3).unsigned_abs(),
            claimed: number(4),
            ready: if is_open {
                ready(number(5), number(6))
            } else {
                ready(opens.0, if vendor.polls { opens.0 } else { -1 })
            },
            upkeep: number(7) == 1,
        }))
    }

    /// Takes entries. `claimed`: how many calls had ever been claimed when `calls` was counted, if others may claim meanwhile.
    pub(super) async fn claim(
        &self,
        vendor: &VendorWork,
        most: usize,
        calls: usize,
        claimed: Option<i64>,
    ) -> Result<Option<Claimed>, StoreError> {
        let mut call = self.on(&self.scripts.claim, vendor);
        call.arg(vendor.depth).arg(most).arg(calls).arg(&self.consumer).arg(claimed.unwrap_or(-1));
        let Some(found) = self.run::<Vec<Vec<u8>>>(&call).await? else { return Ok(None) };
        let mut found = found.into_iter();
        let epoch = text(found.next());
        if epoch.is_empty() {
            return Ok(None);
        }
        let mut number = || text(found.next()).parse::<i64>().ok();
        let (low, call, poll) = (number().is_some_and(|low| low > 0), number(), number());
        let left = call.zip(poll).map(|(call, poll)| ready(call, poll));
        Ok(Some(Claimed { epoch, low, left, entries: entries(found)? }))
    }

    /// Tenants whose turn it is to be read, and the index that they belong to.
    pub(super) async fn turns(&self, vendor: &VendorWork) -> Result<(String, Vec<Turn>), StoreError> {
        let mut call = self.on(&self.scripts.turn, vendor);
        call.arg(vendor.depth);
        let found: Vec<String> = self.run(&call).await?.unwrap_or_default();
        let mut found = found.into_iter();
        let epoch = found.next().unwrap_or_default();
        let mut turns = Vec::new();
        while let (Some(stream), Some(tenant), Some(page), Some(known)) =
            (found.next(), found.next(), found.next(), found.next())
        {
            let number = |text: &str| text.parse::<usize>().unwrap_or(0);
            turns.push(Turn { stream: StreamNo(number(&stream)), tenant, page: number(&page), known: number(&known) });
        }
        Ok((epoch, turns))
    }

    /// Adds what was read to a stream, in turn between the tenants; says how many were new.
    pub(super) async fn fill(
        &self,
        vendor: &VendorWork,
        epoch: &str,
        stream: StreamNo,
        read: &[Read],
    ) -> Result<usize, StoreError> {
        let mut call = self.on(&self.scripts.fill, vendor);
        call.arg(epoch).arg(stream.0).arg(read.len());
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

    /// Removes entries of this process whose jobs were settled, and announces those that have `ended`. `ring`: others may have room now.
    pub(super) async fn remove(
        &self,
        vendor: &VendorWork,
        counts: CountChanges,
        ring: bool,
        removals: &[Removal],
        ended: &[JobId],
    ) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.done, vendor);
        call.arg(&self.consumer).arg(counts.waiting).arg(counts.open).arg(counts.live).arg(counts.bytes);
        call.arg(u8::from(ring)).arg(joined(ended));
        for Removal { entry, which, next } in removals {
            let which = match which {
                RemoveIf::Leased => "leased",
                RemoveIf::Any => "any",
            };
            call.arg(entry.stream.0).arg(&entry.name).arg(entry.id.as_bytes()).arg(which);
            next_arguments(&mut call, next.as_ref());
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Releases entries; those with a time leave the stream, and their tenant rests until then.
    pub(super) async fn release(&self, vendor: &VendorWork, back: &[GivenBack]) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.release, vendor);
        call.arg(&self.consumer);
        for (entry, tenant, rest) in back {
            call.arg(entry.stream.0).arg(&entry.name).arg(entry.id.as_bytes());
            call.arg(&**tenant).arg(rest.map_or(0, |until| until.0));
        }
        self.run::<i64>(&call).await.map(drop)
    }

    /// Ends the rest of all tenants.
    pub(super) async fn wake(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        self.run::<i64>(&self.on(&self.scripts.wake, vendor)).await.map(drop)
    }

    /// Takes over entries that were leased for longer than the vendor's lease, as far as this process has seen.
    pub(super) async fn lapsed(&self, vendor: &VendorWork) -> Result<Vec<Entry>, StoreError> {
        let (epoch, look) = self.patience.lapsed(vendor, self.clock.nanos());
        let mut call = self.on(&self.scripts.lapsed, vendor);
        call.arg(&self.consumer).arg(epoch).arg(look);
        let mut found = self.run::<Vec<Vec<u8>>>(&call).await?.unwrap_or_default().into_iter();
        let (epoch, number) = (text(found.next()), text(found.next()).parse().unwrap_or(0));
        if !epoch.is_empty() {
            self.patience.looked(vendor, &epoch, number, self.clock.nanos());
        }
        entries(found)
    }

    /// Opens a new index if it is lost, or a part of it; says whether it was. `at_once`: no job is live, so none can be leased.
    pub(super) async fn open(&self, vendor: &VendorWork, name: &str, at_once: bool) -> Result<bool, StoreError> {
        let mut call = self.on(&self.scripts.open, vendor);
        call.arg(name).arg(u8::from(at_once));
        Ok(self.redis.run::<i64>(&call).await? == 1)
    }

    /// Registers leases of this process. Gives the epoch, and the new names of entries that had to be added again.
    pub(super) async fn register(
        &self,
        vendor: &VendorWork,
        leased: &[Entry],
    ) -> Result<(String, Vec<String>), StoreError> {
        let mut call = self.on(&self.scripts.register, vendor);
        call.arg(&self.consumer);
        for entry in leased {
            call.arg(entry.stream.0).arg(&entry.name).arg(entry.id.as_bytes());
        }
        let mut found = self.run::<Vec<String>>(&call).await?.unwrap_or_default().into_iter();
        Ok((found.next().unwrap_or_default(), found.collect()))
    }

    /// These tenants may have something in MongoDB.
    pub(super) async fn flag(&self, vendor: &VendorWork, tenants: &[(StreamNo, Arc<str>)]) -> Result<(), StoreError> {
        let mut call = self.on(&self.scripts.flag, vendor);
        for (stream, tenant) in tenants {
            call.arg(stream.0).arg(&**tenant);
        }
        self.run::<i64>(&call).await.map(drop)
    }

    pub(super) async fn stats(&self, vendor: &VendorWork) -> Result<Stats, StoreError> {
        let call = self.on(&self.scripts.stats, vendor);
        let found: Vec<Vec<u8>> = self.run(&call).await?.unwrap_or_default();
        let number = |i: usize| text(found.get(i).cloned()).parse::<i64>().unwrap_or(0);
        let heads = found.iter().skip(6).filter_map(|id| JobId::from_slice(id)).collect();
        let leased = number(3).max(0).unsigned_abs();
        let settled_at = Some(number(4)).filter(|at| *at > 0).map(Time);
        let (waiting, open, live, bytes) = (number(0), number(1), number(2), number(5));
        Ok(Stats { waiting, open, live, bytes, leased, settled_at, heads })
    }

    /// Corrects the counts by so much.
    pub(super) async fn mend_counts(&self, vendor: &VendorWork, off: &CountChanges) -> Result<(), StoreError> {
        let key = format!("{}:counts", key_of(&self.database, &vendor.name));
        let CountChanges { waiting, open, live, bytes } = *off;
        for (count, by) in [("waiting", waiting), ("open", open), ("live", live), ("bytes", bytes)] {
            if by != 0 {
                self.redis.command::<i64>(redis::cmd("HINCRBY").arg(&key).arg(count).arg(by)).await?;
            }
        }
        Ok(())
    }

    /// Which of these jobs of a vendor workers lease now.
    pub(super) async fn leased(&self, vendor: &str, ids: &[JobId]) -> Result<Vec<bool>, StoreError> {
        let mut ask = redis::cmd("HMGET");
        ask.arg(format!("{}:index", key_of(&self.database, vendor)));
        for id in ids {
            ask.arg(id.as_bytes());
        }
        let found: Vec<Option<String>> = self.redis.command(&ask).await?;
        Ok(found.into_iter().map(|leased| leased.is_some_and(|leased| leased.starts_with('+'))).collect())
    }

    /// Announces the ends of these jobs.
    pub(super) async fn publish_ended(&self, ids: &[JobId]) -> Result<(), StoreError> {
        self.publish(Channel::Ended, &joined(ids)).await
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
fn next_arguments(call: &mut ScriptInvocation<'_>, next: Option<&Enqueue>) {
    match next {
        Some(next) => call.arg(next.stream.0).arg(&*next.tenant).arg(next.due_at.0.max(0)),
        None => call.arg(0).arg("").arg(-1),
    };
}

/// Ids as they are announced: one behind the other.
fn joined(ids: &[JobId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn text(bytes: Option<Vec<u8>>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn entries(mut found: impl Iterator<Item = Vec<u8>>) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    while let (Some(stream), Some(name), Some(id)) = (found.next(), found.next(), found.next()) {
        let stream = text(Some(stream)).parse().ok().filter(|stream| *stream < StreamNo::ALL.len());
        let bad = || StoreError::Corrupt("a script returned an entry without a stream, a name and an id".into());
        entries.push(Entry {
            stream: StreamNo(stream.ok_or_else(bad)?),
            name: text(Some(name)),
            id: JobId::from_slice(&id).ok_or_else(bad)?,
        });
    }
    Ok(entries)
}
