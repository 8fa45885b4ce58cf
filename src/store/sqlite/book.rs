//! The book in SQLite: a few small tables beside the jobs, written by the same writer.
//!
//! Never keeps anything in memory: the limiter and the dispatchers have their own copies.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::{Sqlite, upkeep::Do, writer::request};
use crate::{
    book::{Book, Charge, Filed, LimitsOnRecord, LiveLimits, MOST_ON_RECORD, Pause, Spend},
    clock::Time,
    store::StoreError,
};

impl Sqlite {
    pub(super) async fn write<T, F>(&self, statements: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        request(&self.requests()?, |reply| Do::boxed(statements, reply)).await?
    }
}

#[async_trait]
impl Book for Sqlite {
    async fn spends(&self, pool: Option<&str>, since: Time) -> Result<Vec<Spend>, StoreError> {
        let pool = pool.map(str::to_owned);
        self.readers
            .read(move |conn| {
                conn.prepare_cached(
                    "SELECT pool, count, tenant, ends_at, calls FROM spends
                     WHERE ends_at >= ?1 AND pool = coalesce(?2, pool)",
                )?
                .query_map((since.0, &pool), |row| {
                    Ok(Spend {
                        pool: row.get(0)?,
                        count: row.get(1)?,
                        tenant: row.get(2)?,
                        ends_at: Time(row.get(3)?),
                        calls: row.get(4)?,
                    })
                })?
                .collect()
            })
            .await
    }

    async fn charge(&self, charges: Vec<Charge>) -> Result<(), StoreError> {
        self.write(move |conn| {
            let mut set = conn.prepare_cached(
                "INSERT INTO spends (pool, count, tenant, ends_at, calls) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET calls = excluded.calls",
            )?;
            let mut drop_old = conn
                .prepare_cached("DELETE FROM spends WHERE pool = ?1 AND count = ?2 AND tenant = ?3 AND ends_at < ?4")?;
            for Charge { spend, forget } in &charges {
                set.execute((&spend.pool, &spend.count, &spend.tenant, spend.ends_at.0, spend.calls))?;
                drop_old.execute((&spend.pool, &spend.count, &spend.tenant, forget.0))?;
            }
            Ok(())
        })
        .await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.readers
            .read(|conn| {
                conn.prepare_cached("SELECT vendor, until, since, set_by FROM pauses")?
                    .query_map([], |row| {
                        Ok(Pause {
                            vendor: row.get(0)?,
                            until: row.get::<_, Option<i64>>(1)?.map(Time),
                            since: row.get::<_, Option<i64>>(2)?.map(Time),
                            by: row.get(3)?,
                        })
                    })?
                    .collect()
            })
            .await
    }

    async fn set_pause(&self, vendor: &str, pause: Option<Pause>) -> Result<(), StoreError> {
        let vendor = vendor.to_owned();
        self.write(move |conn| {
            match &pause {
                Some(pause) => conn
                    .prepare_cached(
                        "INSERT INTO pauses (vendor, until, since, set_by) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT DO UPDATE SET until = excluded.until, since = excluded.since, set_by = excluded.set_by",
                    )?
                    .execute((
                        &vendor,
                        pause.until.map(|until| until.0),
                        pause.since.map(|since| since.0),
                        &pause.by,
                    ))?,
                None => conn.prepare_cached("DELETE FROM pauses WHERE vendor = ?1")?.execute([&vendor])?,
            };
            Ok(())
        })
        .await
    }

    async fn live_limits(&self) -> Result<Vec<LiveLimits>, StoreError> {
        self.readers
            .read(|conn| {
                conn.prepare_cached("SELECT pool, version, limits, since, set_by FROM live_limits")?
                    .query_map([], |row| {
                        Ok(LiveLimits {
                            pool: row.get(0)?,
                            version: row.get(1)?,
                            limits: row.get(2)?,
                            since: Time(row.get(3)?),
                            by: row.get(4)?,
                        })
                    })?
                    .collect()
            })
            .await
    }

    async fn set_live_limits(&self, seen: u64, new: LiveLimits) -> Result<bool, StoreError> {
        self.write(move |conn| {
            let changed = conn
                .prepare_cached(
                    "INSERT INTO live_limits (pool, version, limits, since, set_by) SELECT ?1, ?2, ?3, ?4, ?5
                     WHERE ?6 = coalesce((SELECT version FROM live_limits WHERE pool = ?1), 0)
                     ON CONFLICT DO UPDATE SET version = excluded.version, limits = excluded.limits, since = excluded.since,
                       set_by = excluded.set_by",
                )?
                .execute((&new.pool, new.version, &new.limits, new.since.0, &new.by, seen))?;
            Ok(changed == 1)
        })
        .await
    }

    async fn limits_on_record(&self) -> Result<Vec<LimitsOnRecord>, StoreError> {
        self.readers
            .read(|conn| {
                conn.prepare_cached("SELECT pool, since, limits FROM limits_on_record ORDER BY pool, since")?
                    .query_map([], |row| {
                        Ok(LimitsOnRecord { pool: row.get(0)?, since: Time(row.get(1)?), limits: row.get(2)? })
                    })?
                    .collect()
            })
            .await
    }

    async fn record_limits(&self, record: LimitsOnRecord) -> Result<(), StoreError> {
        self.write(move |conn| {
            conn.prepare_cached("INSERT OR REPLACE INTO limits_on_record (pool, since, limits) VALUES (?1, ?2, ?3)")?
                .execute((&record.pool, record.since.0, &record.limits))?;
            conn.prepare_cached(
                "DELETE FROM limits_on_record WHERE pool = ?1 AND since <=
                 (SELECT since FROM limits_on_record WHERE pool = ?1 ORDER BY since DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute((&record.pool, MOST_ON_RECORD))?;
            Ok(())
        })
        .await
    }

    async fn report(&self, _me: &Filed) -> Result<(), StoreError> {
        Ok(())
    }

    async fn others(&self, _limits: &str) -> Result<Vec<Filed>, StoreError> {
        Ok(Vec::new())
    }

    async fn processes(&self, _since: Time) -> Result<Vec<Filed>, StoreError> {
        Ok(Vec::new())
    }

    async fn delete_report(&self, _gone: &Filed) -> Result<(), StoreError> {
        Ok(())
    }

    async fn secret(&self, name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        self.write(move |conn| {
            conn.execute("INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING", (name, fresh))?;
            let kept =
                conn.query_row("SELECT value FROM settings WHERE name = ?1", [name], |row| row.get(0)).optional()?;
            Ok(kept.unwrap_or(fresh))
        })
        .await
    }
}
