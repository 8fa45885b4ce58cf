//! The record of calls in MongoDB: small collections beside the jobs, written by every process.
//!
//! Never looks into a block.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};

use super::{super::RedisMongo, docs, mongo::within};
use crate::store::{
    StoreError,
    calls::{After, CallBlock, CallLog, Tally, Verdict},
};

/// Blocks deleted in one slice.
const SLICE: i64 = 1000;
/// Bytes of blocks in one statement, about. Well under the 16 MiB that MongoDB takes.
const MOST_BYTES: usize = 6 << 20;

#[async_trait]
impl CallLog for RedisMongo {
    /// Blocks first: a process that dies between the two has its last second on record and not in the tallies.
    async fn log(&self, blocks: &[(CallBlock, Vec<Tally>)]) -> Result<(), StoreError> {
        let mut rest = blocks;
        while !rest.is_empty() {
            let (some, later) = rest.split_at(fitting(rest));
            let new = self.core.mongo.add_in("calls", some.iter().map(|(block, _)| add(block)).collect()).await?;
            let mut by_vendor: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for tally in new.into_iter().filter_map(|i| some.get(i)).flat_map(|(_, tallies)| tallies) {
                let (calls, throttled) = by_vendor.entry(&tally.vendor).or_default();
                *calls += tally.calls;
                *throttled += tally.throttled;
            }
            let updates = by_vendor.into_iter().map(|(vendor, (calls, throttled))| {
                let more = doc! { "calls": signed(calls), "throttled": signed(throttled) };
                doc! { "q": { "_id": vendor }, "u": { "$inc": more }, "upsert": true }
            });
            let updates: Vec<Document> = updates.collect();
            if !updates.is_empty() {
                self.core.mongo.update_in("tallies", updates).await?;
            }
            rest = later;
        }
        Ok(())
    }

    async fn calls(&self, pool: &str, after: After, until: i64, most: usize) -> Result<Vec<CallBlock>, StoreError> {
        let (first, id) = after;
        let later = doc! { "first": { "$gt": first, "$lte": until } };
        let beside = doc! { "first": first, "_id": { "$gt": id } };
        let find = self
            .core
            .mongo
            .calls
            .find(doc! { "pool": pool, "$or": [later, beside] })
            .sort(doc! { "first": 1, "_id": 1 })
            .limit(i64::try_from(most).unwrap_or(i64::MAX));
        let found: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        let block = |found: &Document| {
            Some(CallBlock {
                id: found.get_i64("_id").ok()?,
                pool: pool.to_owned(),
                first: found.get_i64("first").ok()?,
                last: found.get_i64("last").ok()?,
                count: found.get_i64("count").ok()?.unsigned_abs(),
                body: found.get_binary_generic("body").ok()?.clone(),
            })
        };
        found.iter().map(|found| block(found).ok_or_else(unreadable)).collect()
    }

    async fn forget(&self, pool: &str, before: i64) -> Result<bool, StoreError> {
        let calls = &self.core.mongo.calls;
        let old = calls.find(doc! { "pool": pool, "first": { "$lt": before } }).sort(doc! { "first": 1 });
        let find = old.limit(SLICE).projection(doc! { "_id": 1 });
        let slice: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        let ids: Vec<Bson> = slice.iter().filter_map(|block| block.get("_id").cloned()).collect();
        if !ids.is_empty() {
            within(calls.delete_many(doc! { "_id": { "$in": ids } })).await?;
        }
        Ok(slice.len() as i64 == SLICE)
    }

    async fn tally(&self, vendor: &str) -> Result<Tally, StoreError> {
        let found = within(async { self.core.mongo.tallies.find_one(doc! { "_id": vendor }).await }).await?;
        let number = |name: &str| found.as_ref().and_then(|found| found.get_i64(name).ok()).unwrap_or(0).unsigned_abs();
        Ok(Tally { vendor: vendor.to_owned(), calls: number("calls"), throttled: number("throttled") })
    }

    async fn verdict(&self, pool: &str) -> Result<Option<Verdict>, StoreError> {
        let found = within(async { self.core.mongo.verdicts.find_one(doc! { "_id": pool }).await }).await?;
        let verdict = |found: &Document| {
            Some(Verdict { judged_to: found.get_i64("judged_to").ok()?, body: found.get_str("body").ok()?.to_owned() })
        };
        found.map(|found| verdict(&found).ok_or_else(unreadable)).transpose()
    }

    async fn judge(&self, pool: &str, judged_to: Option<i64>, verdict: &Verdict) -> Result<bool, StoreError> {
        let verdicts = &self.core.mongo.verdicts;
        let new = doc! { "judged_to": verdict.judged_to, "body": &verdict.body };
        let Some(before) = judged_to else {
            let once = doc! { "$setOnInsert": new };
            let done = within(verdicts.update_one(doc! { "_id": pool }, once).upsert(true)).await?;
            return Ok(done.upserted_id.is_some());
        };
        let filter = doc! { "_id": pool, "judged_to": before };
        Ok(within(verdicts.update_one(filter, doc! { "$set": new })).await?.matched_count == 1)
    }
}

/// How many of these blocks fit into one statement: one at least.
fn fitting(blocks: &[(CallBlock, Vec<Tally>)]) -> usize {
    let mut bytes = 0;
    let is_over = |(block, _): &(CallBlock, Vec<Tally>)| {
        bytes += block.body.len() + 512;
        bytes > MOST_BYTES
    };
    blocks.iter().position(is_over).map_or(blocks.len(), |fitting| fitting.max(1))
}

/// Stores a block, unless it is stored already.
fn add(block: &CallBlock) -> Document {
    let once = doc! {
        "pool": &block.pool, "first": block.first, "last": block.last, "count": signed(block.count),
        "body": docs::binary(&block.body),
    };
    doc! { "q": { "_id": block.id }, "u": { "$setOnInsert": once }, "upsert": true }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unreadable() -> StoreError {
    StoreError::Corrupt("the record of calls has something that is not ours".into())
}
