//! The book in MongoDB: small collections beside the jobs, written by every process.
//!
//! Never keeps anything in memory: the limiter and the dispatchers have their own copies.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};

use super::{
    super::{RedisMongo, index::words::Channel},
    docs,
    mongo::within,
};
use crate::{
    book::{Book, Charge, Filed, LimitsOnRecord, LiveLimits, MOST_ON_RECORD, Pause, REPORTS_KEPT_MS, Spend},
    clock::Time,
    store::StoreError,
};

/// Each process deletes the old spends of a count this often, in milliseconds. Nothing depends on their being gone: a reader says how old they
/// may be.
const FORGET_EVERY: i64 = 60_000;
/// Counts of which that is remembered, at most.
const MOST_COUNTS: usize = 100_000;

/// By pool and count: before which time this process has deleted spends.
pub(crate) type Forgotten = Mutex<HashMap<(String, String), Time>>;

#[async_trait]
impl Book for RedisMongo {
    async fn spends(&self, pool: Option<&str>, since: Time) -> Result<Vec<Spend>, StoreError> {
        let mut wanted = Document::new();
        wanted.extend(pool.map(|pool| ("pool".to_owned(), pool.into())));
        wanted.insert("ends_at", doc! { "$gte": since.0 });
        let found: Vec<Document> =
            within(async { self.core.mongo.spends.find(wanted).await?.try_collect().await }).await?;
        let spend = |spend: &Document| {
            let text = |key: &str| spend.get_str(key).map(str::to_owned).ok();
            Some(Spend {
                pool: text("pool")?,
                count: text("count")?,
                tenant: text("tenant")?,
                ends_at: Time(spend.get_i64("ends_at").ok()?),
                calls: spend.get_i64("calls").ok()?.unsigned_abs(),
            })
        };
        let unreadable = || StoreError::Corrupt("a spend in the book is not ours".into());
        found.iter().map(|found| spend(found).ok_or_else(unreadable)).collect()
    }

    /// Many processes write the same numbers: the highest stays.
    async fn charge(&self, charges: Vec<Charge>) -> Result<(), StoreError> {
        let updates = charges.iter().map(|charge| {
            let Spend { pool, count, tenant, ends_at, calls } = &charge.spend;
            // A text: some servers of this wire look through all documents for an id that is one itself.
            let name = serde_json::to_string(&(pool, count, tenant, ends_at.0)).expect("texts and a number are JSON");
            let calls = i64::try_from(*calls).unwrap_or(i64::MAX);
            let once = doc! { "pool": pool, "count": count, "tenant": tenant, "ends_at": ends_at.0 };
            let change = doc! { "$max": { "calls": calls }, "$setOnInsert": once };
            doc! { "q": { "_id": name }, "u": change, "upsert": true }
        });
        self.core.mongo.update_in("spends", updates.collect()).await?;
        for old in old_spends(&self.core.mongo.forgotten, &charges) {
            within(async { self.core.mongo.spends.delete_many(old).await }).await?;
        }
        Ok(())
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let found: Vec<Document> =
            within(async { self.core.mongo.pauses.find(doc! {}).await?.try_collect().await }).await?;
        let pause = |pause: &Document| {
            let vendor = pause.get_str("_id").ok()?.to_owned();
            let time = |name: &str| pause.get_i64(name).ok().map(Time);
            let by = pause.get_str("by").ok().map(str::to_owned);
            Some(Pause { vendor, until: time("until"), since: time("since"), by })
        };
        Ok(found.iter().filter_map(pause).collect())
    }

    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError> {
        let filter = doc! { "_id": vendor };
        match pause {
            Some(pause) => {
                let ms = |time: Option<Time>| time.map(|time| time.0);
                let (until, since) = (ms(pause.until), ms(pause.since));
                let update = doc! { "_id": vendor, "until": until, "since": since, "by": pause.by };
                within(self.core.mongo.pauses.replace_one(filter, update).upsert(true)).await?;
            }
            None => {
                within(self.core.mongo.pauses.delete_one(filter)).await?;
            }
        }
        self.announce_change().await;
        Ok(())
    }

    async fn live_limits(&self) -> Result<Vec<LiveLimits>, StoreError> {
        let found: Vec<Document> =
            within(async { self.core.mongo.live_limits.find(doc! {}).await?.try_collect().await }).await?;
        let read = |found: &Document| {
            Some(LiveLimits {
                pool: found.get_str("_id").ok()?.to_owned(),
                version: found.get_i64("version").ok()?.unsigned_abs(),
                limits: found.get_str("limits").map(str::to_owned).ok(),
                since: Time(found.get_i64("since").ok()?),
                by: found.get_str("by").map(str::to_owned).ok(),
            })
        };
        let unreadable = || StoreError::Corrupt("live limits in the book are not ours".into());
        found.iter().map(|found| read(found).ok_or_else(unreadable)).collect()
    }

    async fn set_live_limits(&self, seen: u64, new: LiveLimits) -> Result<bool, StoreError> {
        let version = |version: u64| i64::try_from(version).unwrap_or(i64::MAX);
        let document = doc! {
            "_id": &new.pool, "version": version(new.version), "limits": new.limits, "since": new.since.0, "by": new.by,
        };
        let live = &self.core.mongo.live_limits;
        let is_set = if seen == 0 {
            // The first process makes the document.
            let mut once = document.clone();
            once.remove("_id");
            let make = live.update_one(doc! { "_id": &new.pool }, doc! { "$setOnInsert": once }).upsert(true);
            within(make).await?.upserted_id.is_some()
        } else {
            let is_seen = doc! { "_id": &new.pool, "version": version(seen) };
            within(async { live.replace_one(is_seen, document).await }).await?.matched_count == 1
        };
        if is_set {
            self.announce_change().await;
        }
        Ok(is_set)
    }

    async fn limits_on_record(&self) -> Result<Vec<LimitsOnRecord>, StoreError> {
        self.records_of_limits(doc! {}).await
    }

    async fn record_limits(&self, record: LimitsOnRecord) -> Result<(), StoreError> {
        let LimitsOnRecord { pool, since, limits } = record;
        let document = doc! { "pool": &pool, "since": since.0, "limits": limits };
        let records = &self.core.mongo.limits_on_record;
        within(records.insert_one(document)).await?;
        let known = self.records_of_limits(doc! { "pool": &pool }).await?;
        let Some(last) = known.len().checked_sub(MOST_ON_RECORD + 1) else { return Ok(()) };
        within(records.delete_many(doc! { "pool": &pool, "since": { "$lte": known[last].since.0 } })).await.map(drop)
    }

    async fn report(&self, me: &Filed) -> Result<(), StoreError> {
        let mut report = doc! { "beat": me.beat.cast_signed(), "limits": &me.limits, "about": &me.about };
        report.extend(me.seen_at.map(|at| ("seen_at".to_owned(), at.0.into())));
        let beat = doc! { "$set": report };
        let processes = &self.core.mongo.processes;
        let report = processes.update_one(doc! { "_id": &me.process }, beat).upsert(true);
        if within(report).await?.upserted_id.is_none() {
            return Ok(());
        }
        if let Some(now) = me.seen_at {
            // One that lives and only has another clock is not missed: this process keeps the same limits, and it soon reports again.
            let old = doc! { "limits": &me.limits, "seen_at": { "$lt": now.0.saturating_sub(REPORTS_KEPT_MS) } };
            within(async { processes.delete_many(old).await }).await?;
        }
        self.announce_change().await;
        Ok(())
    }

    async fn others(&self, limits: &str) -> Result<Vec<Filed>, StoreError> {
        self.filed(doc! { "limits": { "$ne": limits } }).await
    }

    async fn processes(&self, since: Time) -> Result<Vec<Filed>, StoreError> {
        self.filed(doc! { "seen_at": { "$gte": since.0 } }).await
    }

    async fn delete_report(&self, gone: &Filed) -> Result<(), StoreError> {
        let filter = doc! { "_id": &gone.process, "beat": gone.beat.cast_signed() };
        within(async { self.core.mongo.processes.delete_one(filter).await }).await?;
        self.announce_change().await;
        Ok(())
    }

    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        let settings = &self.core.mongo.settings;
        let filter = || doc! { "_id": name };
        let once = doc! { "$setOnInsert": { "value": docs::binary(fresh) } };
        within(settings.update_one(filter(), once).upsert(true)).await?;
        let kept = within(async { settings.find_one(filter()).await }).await?;
        let value = kept.as_ref().and_then(|kept| kept.get_binary_generic("value").ok());
        let unreadable = || StoreError::Corrupt("a secret in the book is not 32 bytes".into());
        value.and_then(|value| value.as_slice().try_into().ok()).ok_or_else(unreadable)
    }
}

/// Which spends to delete with these charges: those of counts of which this process has deleted none for a while.
fn old_spends(forgotten: &Forgotten, charges: &[Charge]) -> Vec<Document> {
    let mut forgotten = forgotten.lock().unwrap_or_else(PoisonError::into_inner);
    if forgotten.len() >= MOST_COUNTS {
        forgotten.clear();
    }
    let mut old = Vec::new();
    for Charge { spend: Spend { pool, count, .. }, forget } in charges {
        let name = (pool.clone(), count.clone());
        if forgotten.get(&name).is_some_and(|last| forget.0 < last.0.saturating_add(FORGET_EVERY)) {
            continue;
        }
        forgotten.insert(name, *forget);
        old.push(doc! { "pool": pool, "count": count, "ends_at": { "$lt": forget.0 } });
    }
    old
}

impl RedisMongo {
    /// The records of limits that match, by pool and time.
    async fn records_of_limits(&self, filter: Document) -> Result<Vec<LimitsOnRecord>, StoreError> {
        let found: Vec<Document> =
            within(async { self.core.mongo.limits_on_record.find(filter).await?.try_collect().await }).await?;
        let record = |record: &Document| {
            Some(LimitsOnRecord {
                pool: record.get_str("pool").ok()?.to_owned(),
                since: Time(record.get_i64("since").ok()?),
                limits: record.get_str("limits").ok()?.to_owned(),
            })
        };
        let mut records: Vec<LimitsOnRecord> = found.iter().filter_map(record).collect();
        records.sort_by(|a, b| (&a.pool, a.since).cmp(&(&b.pool, b.since)));
        Ok(records)
    }

    /// The processes whose reports match.
    async fn filed(&self, filter: Document) -> Result<Vec<Filed>, StoreError> {
        let reports = self.core.mongo.processes.find(filter);
        let found: Vec<Document> = within(async { reports.await?.try_collect().await }).await?;
        let filed = |filed: &Document| {
            Some(Filed {
                process: filed.get_str("_id").ok()?.to_owned(),
                beat: filed.get_i64("beat").ok()?.cast_unsigned(),
                limits: filed.get_str("limits").ok()?.to_owned(),
                about: filed.get_str("about").unwrap_or_default().to_owned(),
                seen_at: filed.get_i64("seen_at").ok().map(Time),
            })
        };
        let unreadable = || StoreError::Corrupt("a process in the book is not ours".into());
        found.iter().map(|found| filed(found).ok_or_else(unreadable)).collect()
    }

    /// Tells the other processes to read the book. A process that misses the message reads it a little later anyway.
    pub(super) async fn announce_change(&self) {
        let _ = self.core.briefly(self.core.index.publish(Channel::Book, self.core.process.as_bytes())).await;
    }
}
