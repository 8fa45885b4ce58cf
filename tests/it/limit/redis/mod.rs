//! The limiter of many processes, on a real Redis.

mod breaker;
mod differential;
mod faults;
mod places;
mod promises;
mod slow;

use std::collections::HashMap;

use fetchgate::{
    limit::{Blocker, Limiter, redis::RedisLimiter},
    redis_link::Redis,
};

use super::*;
use crate::support::servers;

/// One process's limiter for the pool and vendor `acme`.
fn process(redis: &Redis, prefix: &str, limits: &[Limit], clock: &Clock, book: &Arc<MemoryBook>) -> RedisLimiter {
    let pool = PoolLimits { pool: "acme".into(), limits: limits.to_vec(), formers: Vec::new() };
    process_for(redis, prefix, pool, clock, book)
}

fn process_for(redis: &Redis, prefix: &str, pool: PoolLimits, clock: &Clock, book: &Arc<MemoryBook>) -> RedisLimiter {
    let timeouts = HashMap::from([("acme".into(), Duration::from_secs(5))]);
    RedisLimiter::open(redis.clone(), prefix, vec![pool], timeouts, clock.clone(), book.clone())
}

/// A book that several processes write.
fn shared_book() -> Arc<MemoryBook> {
    Arc::new(MemoryBook { keeps_greatest: true, ..MemoryBook::default() })
}

pub(super) fn run_io<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Everything that one process needs, on the shared server and a clock that stands still.
pub(super) struct Scene {
    redis: Redis,
    prefix: String,
    limits: Vec<Limit>,
    /// The limits of before, the newest first, as a process that begins reads them in the store.
    formers: Vec<Former>,
    pub(super) clock: Clock,
    book: Arc<MemoryBook>,
}

impl Scene {
    pub(super) fn new(limits: &[Limit]) -> Scene {
        Scene {
            redis: servers::redis().link(),
            prefix: servers::prefix(),
            limits: limits.to_vec(),
            formers: Vec::new(),
            clock: Clock::manual(START),
            book: shared_book(),
        }
    }

    fn process(&self) -> RedisLimiter {
        let pool = PoolLimits { pool: "acme".into(), limits: self.limits.clone(), formers: self.formers.clone() };
        process_for(&self.redis, &self.prefix, pool, &self.clock, &self.book)
    }

    /// A process after the cold start is over.
    pub(super) async fn warm(&self) -> RedisLimiter {
        let limiter = self.process();
        limiter.outlook("acme", self.clock.nanos(), 1).await.unwrap();
        advance(&self.clock, 12 * SECOND);
        limiter
    }

    /// Forgets all that Redis knows of this scene, as FLUSHALL would.
    fn flush(&self) {
        let script = format!(
            "for _,k in ipairs(redis.call('KEYS','{}:*')) do redis.call('DEL',k) end return 'done'",
            self.prefix
        );
        assert_eq!(servers::redis().say(&format!("EVAL \"{script}\" 0")), "$4");
    }

    fn in_ms(&self, ms: i64) -> Nanos {
        self.clock.nanos() + ms * MS
    }
}
