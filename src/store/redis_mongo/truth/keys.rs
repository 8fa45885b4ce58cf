//! Callers' keys in MongoDB: a small collection, written by every process.
//!
//! Never keeps anything in memory.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};

use super::{super::RedisMongo, docs, mongo::within};
use crate::{
    clock::Time,
    store::{
        StoreError,
        keys::{KeyRecord, KeyStore},
    },
};

#[async_trait]
impl KeyStore for RedisMongo {
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let found: Vec<Document> =
            within(async { self.core.mongo.api_keys.find(doc! {}).await?.try_collect().await }).await?;
        let unreadable = || StoreError::Corrupt("a key of a caller is not ours".into());
        let mut keys: Vec<KeyRecord> =
            found.iter().map(|key| read(key).ok_or_else(unreadable)).collect::<Result<_, _>>()?;
        keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(keys)
    }

    async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let document = doc! {
            "_id": &key.id, "hash": docs::binary(key.hash), "name": &key.name, "tenant": key.tenant.as_deref(),
            "scopes": &key.scopes, "created_at": key.created_at.0, "created_by": &key.created_by,
            "expires_at": key.expires_at.map(|at| at.0),
        };
        within(self.core.mongo.api_keys.insert_one(document)).await?;
        self.announce_change().await;
        Ok(())
    }

    async fn delete_key(&self, id: &str) -> Result<bool, StoreError> {
        let deleted = within(async { self.core.mongo.api_keys.delete_one(doc! { "_id": id }).await }).await?;
        self.announce_change().await;
        Ok(deleted.deleted_count == 1)
    }

    async fn note_uses(&self, uses: Vec<(String, Time)>) -> Result<(), StoreError> {
        let later = |(id, at): (String, Time)| doc! { "q": { "_id": id }, "u": { "$max": { "last_used_at": at.0 } } };
        self.core.mongo.update_in("api_keys", uses.into_iter().map(later).collect()).await.map(drop)
    }
}

fn read(key: &Document) -> Option<KeyRecord> {
    let text = |name: &str| key.get_str(name).ok().map(str::to_owned);
    let time = |name: &str| key.get_i64(name).ok().map(Time);
    Some(KeyRecord {
        id: text("_id")?,
        hash: key.get_binary_generic("hash").ok()?.as_slice().try_into().ok()?,
        name: text("name")?,
        tenant: text("tenant"),
        scopes: text("scopes")?,
        created_at: time("created_at")?,
        created_by: text("created_by")?,
        expires_at: time("expires_at"),
        last_used_at: time("last_used_at"),
    })
}
