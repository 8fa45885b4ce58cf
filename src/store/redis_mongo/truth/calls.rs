//! The record of calls in MongoDB: small collections beside the jobs, written by every process.
//!
//! Never looks into a block.

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

#[async_trait]
impl CallLog for RedisMongo {
    /// Blocks first: a process that dies between the two has its last second on record and not in the tallies.
    async fn log(&self, blocks: &[(CallBlock, Vec<Tally>)]) -> Result<(), StoreError> {
        for (block, tallies) in blocks {
            let once = doc! { "$setOnInsert": {
                "pool": &block.pool, "first": block.first, "last": block.last, "count": signed(block.count),
                "body": docs::binary(&block.body),
            } };
            let add = self.core.mongo.calls.update_one(doc! { "_id": block.id }, once).upsert(true);
            let is_new = within(add).await?.upserted_id.is_some();
            let updates = tallies.iter().map(|tally| {
                let more = doc! { "calls": signed(tally.calls), "throttled": signed(tally.throttled) };
                doc! { "q": { "_id": &tally.vendor }, "u": { "$inc": more }, "upsert": true }
            });
            if is_new && !tallies.is_empty() {
                self.core.mongo.update_in("tallies", updates.collect()).await?;
            }
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

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unreadable() -> StoreError {
    StoreError::Corrupt("the record of calls has something that is not ours".into())
}
