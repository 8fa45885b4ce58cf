//! What became of jobs in the last minute: each process counts (see `recent`), and whoever is asked adds up the counts of all processes.
//!
//! Never makes a job wait, and costs nothing while nothing happens. A process that dies takes at most the last second of its counts with it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join_all;

use crate::{
    clock::{Clock, Time},
    recent::{self, Counts, Recent, SLOT_MS},
    redis_link::Redis,
    store_error::StoreError,
    telemetry::Metrics,
};

/// How often a process with new counts writes them where the others read them.
pub const SHARE_EVERY: Duration = Duration::from_secs(1);
/// How long Redis keeps a slot. Longer than the window, because the clocks of machines differ.
const KEPT_MS: i64 = 120_000;
/// The last minute, of all processes.
#[derive(Debug)]
pub struct Window {
    /// How long it is: 55 to 60 s; less while an embedded service has not run for so long.
    pub length: Duration,
    /// By vendor; without those that had no job.
    pub vendors: HashMap<String, Counts>,
}

/// Where the counts of all processes come together.
pub struct Stats {
    metrics: Arc<Metrics>,
    clock: Clock,
    started_at: Time,
    others: Option<Others>,
}

/// The counts of many processes, in Redis: a hash for each slot, which has a field for each process and vendor.
struct Others {
    redis: Redis,
    /// What our keys in Redis begin with.
    database: String,
    process: String,
    /// Locked while counts are written, so that older ones never replace newer ones.
    writing: tokio::sync::Mutex<()>,
}

impl Stats {
    /// `others`: the Redis in which all processes count, and the name of the database. `process`: a name that no other process has.
    pub fn new(metrics: Arc<Metrics>, clock: Clock, others: Option<(Redis, String)>, process: &str) -> Stats {
        let (process, writing) = (process.to_owned(), tokio::sync::Mutex::default());
        let others = others.map(|(redis, database)| Others { redis, database, process, writing });
        Stats { metrics, started_at: clock.now(), clock, others }
    }

    /// Whether there are other processes that may want to know.
    pub fn is_shared(&self) -> bool {
        self.others.is_some()
    }

    /// Returns when there is something to share. Cancel-safe.
    pub async fn changed(&self) {
        self.metrics.changed.notified().await;
    }

    /// Writes what has been counted since the last time to where the other processes read it. To be called every [`SHARE_EVERY`] while
    /// there is something; what could not be written goes with the next call.
    pub async fn share(&self) -> Result<(), StoreError> {
        let Some(others) = &self.others else { return Ok(()) };
        let _in_order = others.writing.lock().await;
        let mut slots: BTreeMap<i64, Vec<(&Recent, String, String)>> = BTreeMap::new();
        for (vendor, metrics) in self.metrics.vendors() {
            for (number, counts) in metrics.recent.take_unshared() {
                let counts = serde_json::to_string(&counts).expect("our own plain structs always serialize");
                let field = format!("{}/{vendor}", others.process);
                slots.entry(number).or_default().push((&metrics.recent, field, counts));
            }
        }
        let mut outcome = Ok(());
        for (number, fields) in slots {
            let written = others.write(number, &fields).await;
            if written.is_err() {
                fields.iter().for_each(|(recent, ..)| recent.unshare(number));
                self.metrics.changed.notify_one();
            }
            outcome = outcome.and(written);
        }
        outcome
    }

    /// The last minute; an error if it is unknown what the other processes have counted.
    pub async fn window(&self) -> Result<Window, StoreError> {
        self.share().await?;
        let now = self.clock.now();
        let slots = recent::window(now);
        let mut from = Time(slots.start() * SLOT_MS);
        let vendors = match &self.others {
            Some(others) => others.sum(slots).await?,
            None => {
                from = from.max(self.started_at);
                let sum = |recent: &Recent| Some(recent.sum(slots.clone())).filter(|sum| *sum != Counts::default());
                let vendors = self.metrics.vendors();
                vendors.filter_map(|(name, metrics)| Some((name.to_string(), sum(&metrics.recent)?))).collect()
            }
        };
        Ok(Window { length: now.since(from).max(Duration::from_secs(1)), vendors })
    }
}

impl Others {
    fn key(&self, slot: i64) -> String {
        format!("{}:stats:{slot}", self.database)
    }

    async fn write(&self, slot: i64, fields: &[(&Recent, String, String)]) -> Result<(), StoreError> {
        let key = self.key(slot);
        let mut set = redis::cmd("HSET");
        set.arg(&key);
        for (_, field, counts) in fields {
            set.arg(field).arg(counts);
        }
        self.redis.command::<i64>(&set).await?;
        self.redis.command::<i64>(redis::cmd("PEXPIRE").arg(&key).arg(KEPT_MS)).await.map(drop)
    }

    /// What all processes have counted in these slots.
    async fn sum(&self, slots: RangeInclusive<i64>) -> Result<HashMap<String, Counts>, StoreError> {
        let read = |slot| async move {
            self.redis.command::<HashMap<String, String>>(redis::cmd("HGETALL").arg(self.key(slot))).await
        };
        let mut vendors: HashMap<String, Counts> = HashMap::new();
        for (field, counts) in try_join_all(slots.map(read)).await?.into_iter().flatten() {
            // What a version that we do not know has written counts as nothing.
            let (Some((_, vendor)), Ok(counts)) = (field.split_once('/'), serde_json::from_str::<Counts>(&counts))
            else {
                continue;
            };
            vendors.entry(vendor.to_owned()).or_default().add(&counts);
        }
        Ok(vendors)
    }
}
