//! Callers' keys in SQLite: one small table, written by the same writer.
//!
//! Never keeps anything in memory.

use async_trait::async_trait;

use super::Sqlite;
use crate::{
    clock::Time,
    store::{
        StoreError,
        keys::{KeyRecord, KeyStore},
    },
};

#[async_trait]
impl KeyStore for Sqlite {
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.readers
            .read(|conn| {
                conn.prepare_cached(
                    "SELECT id, hash, name, tenant, scopes, created_at, created_by, expires_at, last_used_at
                     FROM api_keys ORDER BY created_at, id",
                )?
                .query_map([], |row| {
                    Ok(KeyRecord {
                        id: row.get(0)?,
                        hash: row.get(1)?,
                        name: row.get(2)?,
                        tenant: row.get(3)?,
                        scopes: row.get(4)?,
                        created_at: Time(row.get(5)?),
                        created_by: row.get(6)?,
                        expires_at: row.get::<_, Option<i64>>(7)?.map(Time),
                        last_used_at: row.get::<_, Option<i64>>(8)?.map(Time),
                    })
                })?
                .collect()
            })
            .await
    }

    async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |conn| {
            conn.prepare_cached(
                "INSERT INTO api_keys (id, hash, name, tenant, scopes, created_at, created_by, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute((
                &key.id,
                key.hash,
                &key.name,
                &key.tenant,
                &key.scopes,
                key.created_at.0,
                &key.created_by,
                key.expires_at.map(|at| at.0),
            ))
            .map(drop)
        })
        .await
    }

    async fn delete_key(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write(move |conn| Ok(conn.prepare_cached("DELETE FROM api_keys WHERE id = ?1")?.execute([&id])? == 1))
            .await
    }

    async fn note_uses(&self, uses: Vec<(String, Time)>) -> Result<(), StoreError> {
        self.write(move |conn| {
            let mut note = conn.prepare_cached(
                "UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, 0), ?2) WHERE id = ?1",
            )?;
            uses.iter().try_for_each(|(id, at)| note.execute((id, at.0)).map(drop))
        })
        .await
    }
}
