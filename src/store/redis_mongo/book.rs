//! The book in MongoDB: small collections beside the jobs, written by every process.
//!
//! Never keeps anything in memory: the limiter and the dispatchers have their own copies.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};

use super::{RedisMongo, docs, mongo::within};
use crate::{
    clock::Time,
    store::{
        StoreError,
        book::{Book, Pause, Spend},
    },
};

#[async_trait]
impl Book for RedisMongo {
    async fn spends(&self, since: Time) -> Result<Vec<Spend>, StoreError> {
        let found: Vec<Document> = within(async {
            self.core.mongo.spends.find(doc! { "_id.ends_at": { "$gte": since.0 } }).await?.try_collect().await
        })
        .await?;
        let spend = |spend: &Document| {
            let name = spend.get_document("_id").ok()?;
            let text = |key: &str| name.get_str(key).map(str::to_owned).ok();
            Some(Spend {
                pool: text("pool")?,
                count: text("count")?,
                tenant: text("tenant")?,
                ends_at: Time(name.get_i64("ends_at").ok()?),
                calls: spend.get_i64("calls").ok()?.unsigned_abs(),
            })
        };
        let unreadable = || StoreError::Corrupt("a spend in the book is not ours".into());
        found.iter().map(|found| spend(found).ok_or_else(unreadable)).collect()
    }

    /// Many processes write the same numbers: the highest stays.
    async fn charge(&self, spends: Vec<Spend>, forget: Time) -> Result<(), StoreError> {
        let name = |spend: &Spend| {
            doc! { "pool": &spend.pool, "count": &spend.count, "tenant": &spend.tenant, "ends_at": spend.ends_at.0 }
        };
        let updates = spends.iter().map(|spend| {
            let calls = i64::try_from(spend.calls).unwrap_or(i64::MAX);
            doc! { "q": { "_id": name(spend) }, "u": { "$max": { "calls": calls } }, "upsert": true }
        });
        self.core.mongo.update_in("spends", updates.collect()).await?;
        let Some(first) = spends.first() else { return Ok(()) };
        let old = doc! { "_id.pool": &first.pool, "_id.count": &first.count, "_id.ends_at": { "$lt": forget.0 } };
        within(async { self.core.mongo.spends.delete_many(old).await }).await.map(drop)
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let found: Vec<Document> =
            within(async { self.core.mongo.pauses.find(doc! {}).await?.try_collect().await }).await?;
        let pause = |pause: &Document| {
            let vendor = pause.get_str("_id").ok()?.to_owned();
            Some(Pause { vendor, until: pause.get_i64("until").ok().map(Time) })
        };
        Ok(found.iter().filter_map(pause).collect())
    }

    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError> {
        let filter = doc! { "_id": vendor };
        match pause {
            Some(pause) => {
                let update = doc! { "_id": vendor, "until": pause.until.map(|until| until.0) };
                within(self.core.mongo.pauses.replace_one(filter, update).upsert(true)).await?;
            }
            None => {
                within(self.core.mongo.pauses.delete_one(filter)).await?;
            }
        }
        Ok(())
    }

    async fn callback_secret(&self, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        let settings = &self.core.mongo.settings;
        let filter = || doc! { "_id": "callback_secret" };
        let once = doc! { "$setOnInsert": { "value": docs::binary(fresh) } };
        within(settings.update_one(filter(), once).upsert(true)).await?;
        let kept = within(async { settings.find_one(filter()).await }).await?;
        let value = kept.as_ref().and_then(|kept| kept.get_binary_generic("value").ok());
        let unreadable = || StoreError::Corrupt("the callback secret is not 32 bytes".into());
        value.and_then(|value| value.as_slice().try_into().ok()).ok_or_else(unreadable)
    }
}
