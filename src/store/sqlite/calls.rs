//! The record of calls in SQLite: written by the same writer as the jobs, read beside it.
//!
//! Never reads the body of a block.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, named_params};

use super::Sqlite;
use crate::store::{
    StoreError,
    calls::{After, CallBlock, CallLog, Tally, Verdict},
};

/// Blocks deleted in one slice.
const SLICE: usize = 1000;

#[async_trait]
impl CallLog for Sqlite {
    async fn log(&self, blocks: &[(CallBlock, Vec<Tally>)]) -> Result<(), StoreError> {
        let blocks = blocks.to_vec();
        self.write(move |conn| {
            let mut add = conn.prepare_cached(
                "INSERT INTO calls (pool, first, id, last, count, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO NOTHING",
            )?;
            let mut count = conn.prepare_cached(
                "INSERT INTO tallies (vendor, calls, throttled) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE
                 SET calls = calls + excluded.calls, throttled = throttled + excluded.throttled",
            )?;
            for (block, tallies) in &blocks {
                let CallBlock { id, pool, first, last, count: calls, body } = block;
                let is_new = add.execute((pool, first, id, last, calls, body))? == 1;
                for tally in tallies.iter().filter(|_| is_new) {
                    count.execute((&tally.vendor, tally.calls, tally.throttled))?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn calls(&self, pool: &str, after: After, until: i64, most: usize) -> Result<Vec<CallBlock>, StoreError> {
        let pool = pool.to_owned();
        self.readers
            .read(move |conn| {
                conn.prepare_cached(
                    "SELECT id, first, last, count, body FROM calls
                     WHERE pool = :pool AND (first, id) > (:first, :id) AND first <= :until
                     ORDER BY first, id LIMIT :most",
                )?
                .query_map(
                    named_params! { ":pool": pool, ":first": after.0, ":id": after.1, ":until": until, ":most": most },
                    |row| {
                        Ok(CallBlock {
                            id: row.get(0)?,
                            pool: pool.clone(),
                            first: row.get(1)?,
                            last: row.get(2)?,
                            count: row.get(3)?,
                            body: row.get(4)?,
                        })
                    },
                )?
                .collect()
            })
            .await
    }

    async fn forget(&self, pool: &str, before: i64) -> Result<bool, StoreError> {
        let pool = pool.to_owned();
        self.write(move |conn| {
            let gone = conn
                .prepare_cached(
                    "DELETE FROM calls WHERE (pool, first, id) IN
                       (SELECT pool, first, id FROM calls WHERE pool = ?1 AND first < ?2 ORDER BY first LIMIT ?3)",
                )?
                .execute((&pool, before, SLICE))?;
            Ok(gone == SLICE)
        })
        .await
    }

    async fn tally(&self, vendor: &str) -> Result<Tally, StoreError> {
        let vendor = vendor.to_owned();
        self.readers
            .read(move |conn| {
                let found = conn
                    .prepare_cached("SELECT calls, throttled FROM tallies WHERE vendor = ?1")?
                    .query_row([&vendor], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let (calls, throttled) = found.unwrap_or_default();
                Ok(Tally { vendor, calls, throttled })
            })
            .await
    }

    async fn verdict(&self, pool: &str) -> Result<Option<Verdict>, StoreError> {
        self.readers.look(|conn| {
            conn.prepare_cached("SELECT judged_to, body FROM verdicts WHERE pool = ?1")?
                .query_row([pool], |row| Ok(Verdict { judged_to: row.get(0)?, body: row.get(1)? }))
                .optional()
        })
    }

    async fn judge(&self, pool: &str, judged_to: Option<i64>, verdict: &Verdict) -> Result<bool, StoreError> {
        let (pool, verdict) = (pool.to_owned(), verdict.clone());
        self.write(move |conn| {
            let written = match judged_to {
                Some(before) => conn
                    .prepare_cached("UPDATE verdicts SET judged_to = ?2, body = ?3 WHERE pool = ?1 AND judged_to = ?4")?
                    .execute((&pool, verdict.judged_to, &verdict.body, before))?,
                None => conn
                    .prepare_cached(
                        "INSERT INTO verdicts (pool, judged_to, body) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                    )?
                    .execute((&pool, verdict.judged_to, &verdict.body))?,
            };
            Ok(written == 1)
        })
        .await
    }
}
