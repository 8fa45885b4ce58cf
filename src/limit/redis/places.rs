//! Places for calls in flight, out of a vendor's concurrency over all processes: a leased block, free inside without a round trip.
//!
//! Never counts calls itself: the dispatcher says how many it has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ::redis::Script;
use serde::Serialize;
use tokio::sync::{Mutex, Notify};

use super::{call::Line, pool::micros, spec::MICRO};
use crate::{
    clock::{Clock, Nanos, nanos},
    limit::state::{MS, SECOND},
    redis_link::{Redis, script},
    store_error::StoreError,
};

/// A block is renewed no sooner while it does not suffice, and while it does.
const RENEW_SHORT: Nanos = 100 * MS;
const RENEW: Nanos = 500 * MS;
/// A block that was not renewed for so long is not used any more. The script knows it as LIVE.
const LIVE: Nanos = 2 * SECOND;
/// How often it is looked whether Redis has lost what we use: often enough to say so within the script's GRACE.
const REPAIR: Nanos = SECOND;
/// A block that nobody has used for so long is given back. Not at once: the next job should not have to ask.
const IDLE: Nanos = SECOND;

/// This process's blocks.
pub(super) struct Places {
    redis: Redis,
    script: Script,
    clock: Clock,
    /// This process, among those that share the vendors.
    member: String,
    vendors: HashMap<Arc<str>, Vendor>,
    /// Rung when a block is got.
    got: Notify,
}

struct Vendor {
    key: String,
    timeout: Duration,
    block: Mutex<Block>,
}

struct Block {
    size: usize,
    most: usize,
    /// When it was last asked for, successfully: before the question was sent.
    renewed: Nanos,
    /// Since when no call is in flight or about to be.
    idle_since: Option<Nanos>,
    /// The last answer: when, and of which stretch of Redis's memory.
    last: Option<(Line, i64)>,
}

impl Block {
    /// When the last call that was begun in it is over.
    fn in_use_until(&self, vendor: &Vendor) -> Nanos {
        self.renewed.saturating_add(LIVE).saturating_add(nanos(vendor.timeout))
    }
}

#[derive(Serialize)]
struct Call<'a> {
    now: i64,
    expected: i64,
    since: i64,
    member: &'a str,
    most: usize,
    busy: usize,
    /// Those of `busy` that have a place already.
    held: usize,
    timeout: i64,
    /// How long ago the block was renewed.
    age: i64,
    /// Say again what is held if Redis has lost it; change nothing otherwise.
    repairs: bool,
    leaves: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Renew,
    Repair,
    Leave,
}

impl Places {
    pub(super) fn new(redis: Redis, prefix: &str, timeouts: HashMap<Arc<str>, Duration>, clock: Clock) -> Places {
        let vendor = |(name, timeout): (Arc<str>, Duration)| {
            let block = Mutex::new(Block { size: 0, most: 0, renewed: Nanos::MIN, idle_since: None, last: None });
            (name.clone(), Vendor { key: format!("{prefix}:{{{name}}}:places"), timeout, block })
        };
        Places {
            redis,
            script: script(&[include_str!("time.lua"), include_str!("places.lua")]),
            clock,
            member: uuid::Uuid::now_v7().to_string(),
            vendors: timeouts.into_iter().map(vendor).collect(),
            got: Notify::new(),
        }
    }

    /// How many calls may be in flight in this process, when it has `busy` or is about to.
    pub(super) async fn get(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError> {
        let Some(vendor) = self.vendors.get(vendor) else {
            return Err(StoreError::Unavailable(format!("the limiter was not told of the vendor {vendor}")));
        };
        let mut block = vendor.block.lock().await;
        let now = self.clock.nanos();
        if busy == 0 {
            block.idle_since.get_or_insert(now);
            return Ok(block.size);
        }
        block.idle_since = None;
        let enough = if busy < block.size && block.most == most { RENEW } else { RENEW_SHORT };
        if now.saturating_sub(block.renewed) < enough {
            return Ok(block.size);
        }
        block.most = most;
        self.ask(vendor, &mut block, busy, Why::Renew).await?;
        Ok(block.size)
    }

    /// For ever: tells Redis what is held, should it have forgotten, and gives back what nobody uses. Sleeps while nothing is held.
    pub(super) async fn repair(&self) {
        loop {
            self.got.notified().await;
            self.clock.sleep_until(self.clock.nanos().saturating_add(REPAIR)).await;
            for vendor in self.vendors.values() {
                let mut block = vendor.block.lock().await;
                if block.size > 0 {
                    self.got.notify_one(); // It is looked at again in the next round.
                }
                let now = self.clock.nanos();
                let is_idle = block.idle_since.is_some_and(|since| now.saturating_sub(since) >= IDLE);
                let (busy, why) = if is_idle { (0, Why::Leave) } else { (block.size, Why::Repair) };
                if why == Why::Repair && now.saturating_sub(block.renewed) < REPAIR {
                    continue; // Redis has just been told what is held.
                }
                if block.size > 0 && (is_idle || now < block.in_use_until(vendor)) {
                    // Without Redis there is nothing to repair; the next round looks again.
                    let _ = self.ask(vendor, &mut block, busy, why).await;
                }
            }
        }
    }

    pub(super) async fn give_back(&self) -> Result<(), StoreError> {
        for vendor in self.vendors.values() {
            let mut block = vendor.block.lock().await;
            if block.size > 0 {
                self.ask(vendor, &mut block, 0, Why::Leave).await?;
            }
        }
        Ok(())
    }

    async fn ask(&self, vendor: &Vendor, block: &mut Block, busy: usize, why: Why) -> Result<(), StoreError> {
        let before = self.clock.nanos();
        if before >= block.in_use_until(vendor) {
            block.size = 0;
        }
        let held = busy.min(block.size);
        if why != Why::Repair {
            // What is not in use may be somebody else's as soon as this is sent, whether or not an answer comes.
            block.size = held;
        }
        let (expected, since) = block.last.map_or((0, 0), |(line, since)| (line.redis_at(before), since));
        let age = if why == Why::Repair { before.saturating_sub(block.renewed).div_euclid(MICRO) } else { 0 };
        let call = Call {
            now: self.clock.injected().map_or(0, |now| now.div_euclid(MICRO)),
            expected,
            since,
            member: &self.member,
            most: block.most,
            busy,
            held,
            timeout: micros(vendor.timeout),
            age,
            repairs: why == Why::Repair,
            leaves: why == Why::Leave,
        };
        let call = serde_json::to_string(&call).expect("numbers and names are JSON");
        let (size, redis, since): (usize, i64, i64) = self.redis.run(self.script.key(&vendor.key).arg(call)).await?;
        block.last = Some((Line::new(before, self.clock.nanos(), redis), since));
        if why != Why::Repair {
            (block.size, block.renewed) = (size, before);
            if size > 0 {
                self.got.notify_one();
            }
        }
        Ok(())
    }
}
