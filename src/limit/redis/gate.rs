//! A pool's gate in Redis, for people: until when a vendor keeps it closed, and opening it again.
//!
//! Never closes one: that goes with the requests of the limiter (see `pool`).

use ::redis::cmd;

use super::{
    pool::RedisPool,
    run::{Query, Runner},
};
use crate::{clock::Time, limit::Gate, store::StoreError};

/// For how long it is remembered since when a gate is closed; no vendor closes one for longer than an hour.
const REMEMBERED_MS: i64 = 2 * 3_600_000;

/// The gate and what it is not opened beyond, on the pool's timeline.
type Kept = (Option<i64>, Option<i64>);

impl Runner {
    /// The gate, if a vendor keeps it closed.
    pub(super) async fn gate(&self, pool: &RedisPool) -> Result<Option<Gate>, StoreError> {
        // Every reply says what time it is on the timeline.
        self.run(pool, &pool.limits(self.clock.nanos()), &self.scripts.look, &Query::default()).await?;
        let (gate, floor): Kept = self.redis.command(cmd("HMGET").arg(&pool.key).arg("gate").arg("floor")).await?;
        let gate = gate.filter(|gate| *gate > floor.unwrap_or(0)).and_then(|gate| pool.ours(gate));
        let Some(until) = gate.filter(|until| *until > self.clock.nanos()) else { return Ok(None) };
        let since: Option<i64> = self.redis.command(cmd("GET").arg(closed_key(pool))).await?;
        Ok(Some(Gate { since: since.map(Time), until }))
    }

    /// Opens the gate. Other processes see it with their next reply.
    pub(super) async fn open_gate(&self, pool: &RedisPool) -> Result<(), StoreError> {
        let (_, floor): Kept = self.redis.command(cmd("HMGET").arg(&pool.key).arg("gate").arg("floor")).await?;
        pool.open_gate();
        self.redis.command::<i64>(cmd("HSET").arg(&pool.key).arg("gate").arg(floor.unwrap_or(0))).await?;
        Ok(())
    }

    /// Remembers since when the gate is closed, if it was open before.
    pub(super) async fn note_closed(&self, pool: &RedisPool) {
        if pool.gate() > self.clock.nanos() {
            return;
        }
        let now = self.clock.now().0;
        let mut set = cmd("SET");
        set.arg(closed_key(pool)).arg(now).arg("PX").arg(REMEMBERED_MS);
        if let Err(error) = self.redis.command::<String>(&set).await {
            tracing::debug!(pool = %pool.name, %error, "nobody will know since when the gate is closed");
        }
    }
}

/// Beside the pool's state, under the same tag.
fn closed_key(pool: &RedisPool) -> String {
    format!("{}closed", pool.key.trim_end_matches("state"))
}
