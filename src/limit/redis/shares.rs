//! Each process leases a share of a vendor's concurrency: places for calls in flight, used without a round trip.
//!
//! Never counts calls itself: the dispatcher says how many it has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ::redis::Script;
use serde::Serialize;
use tokio::sync::{Mutex, Notify};

use super::{offset::Offset, pool::micros, spec::MICRO};
use crate::{
    clock::{Clock, Nanos, nanos},
    limit::state::{MS, SECOND},
    redis_link::{Redis, script},
    store_error::StoreError,
};

/// A share is renewed no sooner than this: while it is too small, and while it suffices.
const RENEW_SHORT: Nanos = 100 * MS;
const RENEW: Nanos = 500 * MS;
/// A share that was not renewed for so long is not used any more. The script has the same LIVE.
const LIVE: Nanos = 2 * SECOND;
/// How often a share in use is reported, in case Redis has lost it: often enough to be within the script's GRACE.
const REPORT: Nanos = SECOND;
/// A share that nobody has used for so long is given back. Not at once: the next job should not have to wait for Redis.
const IDLE: Nanos = SECOND;

/// This process's shares.
pub(super) struct Shares {
    redis: Redis,
    script: Script,
    clock: Clock,
    /// This process, among those that share the vendors.
    member: String,
    vendors: HashMap<Arc<str>, Vendor>,
    /// Notified when there is a share to report.
    obtained: Notify,
}

struct Vendor {
    key: String,
    timeout: Duration,
    share: Mutex<Share>,
}

struct Share {
    size: usize,
    most: usize,
    /// When it was last renewed: before the request was sent.
    renewed: Nanos,
    /// Since when no call is in flight or about to be.
    idle_since: Option<Nanos>,
    /// From the last reply: the time, and when what Redis knows was begun.
    last: Option<(Offset, i64)>,
}

impl Share {
    /// When the last call that was begun in it is over.
    fn in_use_until(&self, vendor: &Vendor) -> Nanos {
        self.renewed.saturating_add(LIVE).saturating_add(nanos(vendor.timeout))
    }
}

#[derive(Serialize)]
struct Args<'a> {
    now: i64,
    expected: i64,
    since: i64,
    member: &'a str,
    most: usize,
    busy: usize,
    /// Those of `busy` that have a place already.
    in_use: usize,
    timeout: i64,
    /// How long ago the share was renewed.
    age: i64,
    /// Enter the share again if Redis has lost it; change nothing otherwise.
    reports: bool,
}

impl Shares {
    pub(super) fn new(redis: Redis, prefix: &str, timeouts: HashMap<Arc<str>, Duration>, clock: Clock) -> Shares {
        let vendor = |(name, timeout): (Arc<str>, Duration)| {
            let share = Mutex::new(Share { size: 0, most: 0, renewed: Nanos::MIN, idle_since: None, last: None });
            (name.clone(), Vendor { key: format!("{prefix}:{{{name}}}:places"), timeout, share })
        };
        Shares {
            redis,
            script: script(&[include_str!("time.lua"), include_str!("shares.lua")]),
            clock,
            member: uuid::Uuid::now_v7().to_string(),
            vendors: timeouts.into_iter().map(vendor).collect(),
            obtained: Notify::new(),
        }
    }

    /// How many calls may be in flight in this process, when it has `busy` or is about to.
    pub(super) async fn get(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError> {
        let Some(vendor) = self.vendors.get(vendor) else {
            return Err(StoreError::Unavailable(format!("the limiter does not know the vendor {vendor}")));
        };
        let mut share = vendor.share.lock().await;
        let now = self.clock.nanos();
        if busy == 0 {
            share.idle_since.get_or_insert(now);
            return Ok(share.size);
        }
        share.idle_since = None;
        let enough = if busy < share.size && share.most == most { RENEW } else { RENEW_SHORT };
        if now.saturating_sub(share.renewed) < enough {
            return Ok(share.size);
        }
        share.most = most;
        self.run(vendor, &mut share, busy, false).await?;
        Ok(share.size)
    }

    /// Runs for ever: reports what is in use, in case Redis has lost it, and gives back what nobody uses. Sleeps while there is no share.
    pub(super) async fn keep(&self) {
        loop {
            self.obtained.notified().await;
            self.clock.sleep_until(self.clock.nanos().saturating_add(REPORT)).await;
            for vendor in self.vendors.values() {
                let mut share = vendor.share.lock().await;
                if share.size > 0 {
                    self.obtained.notify_one(); // and so it is looked at again
                }
                let now = self.clock.nanos();
                let is_idle = share.idle_since.is_some_and(|since| now.saturating_sub(since) >= IDLE);
                let has_calls = share.idle_since.is_none() && share.size > 0 && now < share.in_use_until(vendor);
                // While Redis is unavailable nothing can be reported; the next round tries again.
                let _ = if is_idle {
                    self.leave(vendor, &mut share).await
                } else if has_calls && now.saturating_sub(share.renewed) >= REPORT {
                    let busy = share.size;
                    self.run(vendor, &mut share, busy, true).await
                } else {
                    Ok(())
                };
            }
        }
    }

    pub(super) async fn give_back(&self) -> Result<(), StoreError> {
        for vendor in self.vendors.values() {
            self.leave(vendor, &mut *vendor.share.lock().await).await?;
        }
        Ok(())
    }

    /// Gives the share back: no call is in flight. If that is lost, others get it when a call that was begun in it would be over.
    async fn leave(&self, vendor: &Vendor, share: &mut Share) -> Result<(), StoreError> {
        if share.size == 0 {
            return Ok(());
        }
        share.size = 0; // it may be another process's as soon as this is sent
        let mut leaving = ::redis::cmd("HDEL");
        self.redis.command::<i64>(leaving.arg(&vendor.key).arg(format!("of {}", self.member))).await.map(drop)
    }

    /// Renews the share, or only reports it.
    async fn run(&self, vendor: &Vendor, share: &mut Share, busy: usize, reports: bool) -> Result<(), StoreError> {
        let before = self.clock.nanos();
        if before >= share.in_use_until(vendor) {
            share.size = 0;
        }
        let in_use = busy.min(share.size);
        if !reports {
            // Places that are not in use may be another process's as soon as this is sent, whether or not a reply arrives.
            share.size = in_use;
        }
        let (expected, since) = share.last.map_or((0, 0), |(offset, since)| (offset.redis_at(before), since));
        let age = if reports { before.saturating_sub(share.renewed).div_euclid(MICRO) } else { 0 };
        let args = Args {
            now: self.clock.injected().map_or(0, |now| now.div_euclid(MICRO)),
            expected,
            since,
            member: &self.member,
            most: share.most,
            busy,
            in_use,
            timeout: micros(vendor.timeout),
            age,
            reports,
        };
        let args = serde_json::to_string(&args).expect("numbers and names are JSON");
        let (size, at, since): (usize, i64, i64) = self.redis.run(self.script.key(&vendor.key).arg(args)).await?;
        share.last = Some((Offset::new(before, self.clock.nanos(), at), since));
        if !reports {
            (share.size, share.renewed) = (size, before);
            if size > 0 {
                self.obtained.notify_one();
            }
        }
        Ok(())
    }
}
