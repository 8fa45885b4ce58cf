//! The limiter of many processes: one script per question keeps the arithmetic of [`rule`](super::rule) in Redis, for all of them.
//!
//! Never trusts what Redis says after it may have forgotten something, never gives a permit without it, and never compares the wall
//! clocks of two machines: the time is that of Redis, carried on by our own monotonic clock.
//!
//! **After a loss** (restart, failover, FLUSHALL, a step of its clock) the scripts begin a new epoch: limits that forget within ten
//! seconds count as used up at the last moment a permit of before may name; longer ones are restored from the [`Book`], in which their
//! calls were charged before the permits were given. Until then there are none.
//!
//! **What is charged ahead** in the book is shared by all processes and lives on in Redis: a clean stop hands nothing of it back.
//! Relies on a book that keeps the greatest number told for a sub-window, as several processes may pay for the same one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ::redis::Script;
use async_trait::async_trait;
use tokio::task::JoinSet;

use self::{
    call::{Call, Heard, History, Line, Paid, Raw, Step},
    history::{Begin, Record, clock_ahead, note_clock},
    places::Places,
    pool::{Pool, Terms, forgotten_before},
    spec::MICRO,
};
use super::{Answer, Blocker, Limit, Limiter, Missed, Outlook, Permit, PoolLimits, Usage, change};
use crate::{
    book::{Book, Charge, Spend},
    clock::{Clock, Nanos, Time, nanos},
    redis_link::{Heard as Said, Redis, script},
    store_error::StoreError,
};

mod breaker;
mod call;
mod history;
mod places;
mod pool;
mod spec;

pub use breaker::RedisBreakers;

/// Enough for several processes to come back only when half of it is used. No permit lies further ahead.
const HORIZON: Duration = Duration::from_millis(500);
const HORIZON_MICROS: i64 = 500_000;

/// What is not heard comes with the next answer: a listener need not ask often whether anybody is there.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// A question is asked anew so often, with the history that the script wants, or the calendar edges of the right day.
const MOST_ROUNDS: usize = 8;
/// So often a permit may come that is of no use, because the answer took longer than its guard allows, before that is an error.
const MOST_SLOW: usize = 3;
/// So often what is charged ahead may be used up by others before our calls.
const MOST_PAYMENTS: usize = 16;

/// Limits of many processes, kept in Redis.
pub struct RedisLimiter {
    shared: Arc<Shared>,
    places: Arc<Places>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    redis: Redis,
    scripts: Scripts,
    channel: String,
    pools: HashMap<Arc<str>, Pool>,
    clock: Clock,
    book: Arc<dyn Book>,
    /// How long ago a spend may have ended and still matter to somebody.
    retention: AtomicI64,
}

struct Scripts {
    reserve: Script,
    look: Script,
    usage: Script,
}

/// What a script has answered that does not have all it needs: times in microseconds.
struct Cold {
    redis: i64,
    /// On our own timeline.
    asked_at: Nanos,
    /// How far Redis' clock is ahead of the pool's timeline, and was when the epoch began.
    ahead: i64,
    settled: i64,
    /// This process knew nothing of the time before.
    is_new: bool,
}

/// What is asked of a script, beside what every call carries.
#[derive(Default)]
struct Ask<'a> {
    until: Nanos,
    most: usize,
    tenants: &'a [Arc<str>],
    paid: &'a [Paid],
}

impl RedisLimiter {
    /// Needs a runtime and no Redis: that is asked when a permit is. `timeouts`: how long a call of each vendor may take.
    pub fn open(
        redis: Redis,
        prefix: &str,
        pools: Vec<PoolLimits>,
        timeouts: HashMap<Arc<str>, Duration>,
        clock: Clock,
        book: Arc<dyn Book>,
    ) -> RedisLimiter {
        let places = Arc::new(Places::new(redis.clone(), prefix, timeouts, clock.clone()));
        let memory = |pool: &PoolLimits| {
            change::memory(&pool.limits)
                .max(pool.before.iter().map(|before| change::memory(&before.limits)).max().unwrap_or(0))
        };
        let retention = pools.iter().map(memory).max().unwrap_or(0).into();
        let pools: HashMap<Arc<str>, Pool> = pools
            .into_iter()
            .map(|pool| (pool.pool.clone(), Pool::new(prefix, pool, nanos(HORIZON), &clock)))
            .collect();
        let (scripts, channel) = (Scripts::new(), format!("{prefix}:gates"));
        let shared = Arc::new(Shared { redis, scripts, channel, pools, clock, book, retention });
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(shared.clone()));
        let repaired = places.clone();
        tasks.spawn(async move { repaired.repair().await });
        RedisLimiter { shared, places, tasks: Mutex::new(tasks) }
    }
}

/// Hears of gates that others close. One that is missed comes with the next answer, as with every one.
async fn listen(shared: Arc<Shared>) {
    let heard = |said: Said<'_>| {
        let Said::Message { body, .. } = said else { return };
        let told = std::str::from_utf8(body).ok().and_then(|body| body.rsplit_once(' '));
        if let Some((pool, gate)) = told
            && let (Some(pool), Ok(gate)) = (shared.pools.get(pool), gate.parse())
        {
            pool.note_gate(gate);
        }
    };
    shared.redis.listen(std::slice::from_ref(&shared.channel), &shared.clock, ASK_EVERY, heard).await;
}

impl Scripts {
    fn new() -> Scripts {
        let on_pools = |last| {
            script(&[
                include_str!("time.lua"),
                include_str!("shapes.lua"),
                include_str!("pool.lua"),
                include_str!("ledger.lua"),
                include_str!("open.lua"),
                include_str!("back.lua"),
                last,
            ])
        };
        Scripts {
            reserve: on_pools(include_str!("reserve.lua")),
            look: on_pools(include_str!("look.lua")),
            usage: on_pools(include_str!("usage.lua")),
        }
    }
}

impl Shared {
    /// Runs a script on a pool; brings it the history or the edges it lacks, and the gate it was not told of.
    async fn ask(&self, pool: &Pool, terms: &Terms, script: &Script, ask: &Ask<'_>) -> Result<Heard, StoreError> {
        let (mut token, mut history) = (String::new(), None);
        // Whoever gets no answer does not know whether they were taken back: they stay charged.
        let (undo_epoch, undo) = pool.take_unused();
        let (late, is_new) = (pool.late(), pool.expected(0).is_none());
        for _ in 0..MOST_ROUNDS {
            let before = self.clock.nanos();
            let injected = self.clock.injected().map(|now| now.div_euclid(MICRO));
            let (latest, epoch, ahead) = pool.expected(before).unwrap_or_default();
            let about_now = if latest > 0 { latest + ahead } else { injected.unwrap_or(before.div_euclid(MICRO)) };
            let untold = pool.untold();
            let call = Call {
                now: injected.unwrap_or(0),
                latest,
                step: self.step(pool, terms, latest).await,
                epoch: epoch.clone(),
                nonce: format!("{:032x}", fastrand::u128(..)),
                token: token.clone(),
                ahead: ask.until.saturating_sub(before).div_euclid(MICRO),
                lead: pool.lead(terms).div_euclid(MICRO),
                most: ask.most,
                edges: terms.edges(about_now),
                tenants: ask.tenants,
                paid: ask.paid,
                undo_epoch: &undo_epoch,
                undo: &undo,
                late,
                history: history.take(),
                close: untold.map(|until| until.saturating_sub(before).saturating_add(MICRO - 1).div_euclid(MICRO)),
                channel: &self.channel,
            };
            let call = serde_json::to_string(&call).expect("numbers and names are JSON");
            let raw: Raw = self.redis.run(script.key(&pool.key).arg(&terms.spec).arg(call)).await?;
            let after = self.clock.nanos();
            pool.note_took(after - before);
            let (state, redis, answered, gate, ahead, numbers, due, texts) = raw;
            let is_open = state == "open";
            let line = pool.note_time(Line::new(before, after, redis), ahead, is_open.then_some(&answered));
            if state == "edges" {
                continue;
            }
            if let Some(until) = untold {
                pool.told(until);
            }
            if is_open {
                pool.told_late(late);
                let heard = Heard { redis, line, epoch: answered, gate, numbers, due };
                pool.note(&heard, &epoch);
                return Ok(heard);
            }
            let [since, settled] = *due else { return Err(unreadable()) };
            let record = (state == "changed").then(|| Record::new(since, &texts));
            let cold = Cold { redis, asked_at: before, ahead, settled, is_new };
            (token, history) = (answered, Some(self.history(pool, terms, &cold, &numbers, record).await?));
        }
        Err(StoreError::Unavailable("the limiter's state in Redis is lost again and again".into()))
    }

    /// What the limits that are missing in Redis begin with. `record`: the permits of an epoch that goes on.
    async fn history(
        &self,
        pool: &Pool,
        terms: &Terms,
        cold: &Cold,
        missing: &[i64],
        record: Option<Record>,
    ) -> Result<History, StoreError> {
        let spends = self.book.spends(self.forgotten_before(cold.redis)).await?;
        let in_book = if cold.is_new { clock_ahead(&pool.name, &spends) } else { cold.ahead };
        pool.adopt(cold.ahead, in_book);
        let now = self.clock.nanos();
        let since = now.saturating_sub(cold.asked_at).div_euclid(MICRO);
        let adopted = (cold.redis + cold.ahead - in_book + since, String::new(), in_book);
        let (at, _, ahead) = pool.expected(now).unwrap_or(adopted);
        let begin = Begin { at, ahead_before: cold.settled, ahead, now };
        if let Some(record) = record {
            return Ok(terms.changed(&pool.name, &spends, begin, missing, &record));
        }
        let begin = Begin { at: at + HORIZON_MICROS, ..begin };
        let (history, charges) = terms.anew(&pool.name, &spends, begin, &self.clock);
        if !charges.is_empty() {
            self.book.charge(charges).await?;
        }
        Ok(history)
    }

    /// A step of Redis' clock that Redis is to be told of. The book has it first, where it has calls by that time.
    async fn step(&self, pool: &Pool, terms: &Terms, latest: i64) -> Option<Step> {
        let step = pool.step()?;
        if !terms.ledgers.is_empty() {
            let noted = note_clock(&pool.name, latest.div_euclid(1_000), step.to);
            if let Err(error) = self.book.charge(vec![noted]).await {
                tracing::debug!(pool = %pool.name, %error, "that Redis' clock was set is noted with the next question");
                return None;
            }
        }
        Some(step)
    }

    /// Makes durable what a script wants paid, for all tenants together.
    async fn pay(
        &self,
        pool: &Pool,
        terms: &Terms,
        heard: &Heard,
        tenants: &[Arc<str>],
    ) -> Result<Vec<Paid>, StoreError> {
        let (mut charges, mut paid) = (Vec::new(), Vec::new());
        let place = |number: i64| usize::try_from(number).ok()?.checked_sub(1);
        for due in heard.due.chunks_exact(4) {
            let (ledger, tenant) = (place(due[0]), place(due[1]));
            let (ends_at, calls) = (due[2], due[3]);
            let Some((number, tenant)) = ledger.zip(tenant.and_then(|wish| tenants.get(wish))) else {
                return Err(unreadable());
            };
            let Some(ledger) = terms.ledgers.get(number) else { return Err(unreadable()) };
            let spend = Spend {
                pool: pool.name.to_string(),
                count: ledger.count.clone(),
                tenant: ledger.tenant_of(tenant).to_string(),
                ends_at: Time(ends_at),
                calls: calls.unsigned_abs(),
            };
            charges.push(Charge { spend, forget: forgotten_before(heard.redis, ledger.memory) });
            paid.push(Paid { ledger: number + 1, tenant: tenant.clone(), ends_at, calls });
        }
        self.book.charge(charges).await?;
        Ok(paid)
    }

    /// Spends that ended before this matter to nobody.
    fn forgotten_before(&self, redis: i64) -> Time {
        forgotten_before(redis, self.retention.load(Ordering::Relaxed))
    }

    /// Answers the wishes, after what they need is in the book: permits are dated then, as paying takes as long as a permit may be late.
    async fn reserve(&self, pool: &Pool, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        // What is paid for goes by the number of its ledger.
        let (terms, mut paid) = (pool.terms(), Vec::new());
        for _ in 0..MOST_PAYMENTS {
            let ask = Ask { until, most: tenants.len(), tenants, paid: &paid };
            let heard = self.ask(pool, &terms, &self.scripts.reserve, &ask).await?;
            if !heard.due.is_empty() {
                paid = self.pay(pool, &terms, &heard, tenants).await?;
                continue;
            }
            let answer = |(answer, tenant): (&[i64], &Arc<str>)| match terms.blocker(answer[0]) {
                None => Answer::Granted(pool.permit(&terms, &heard, answer[1], tenant)),
                Some(by) => Answer::NotBefore { until: heard.line.never_early(answer[1]), by },
            };
            return Ok(heard.numbers.chunks_exact(2).zip(tenants).map(answer).collect());
        }
        Err(StoreError::Unavailable("other workers use up whatever is charged ahead, or MongoDB is too slow".into()))
    }
}

#[async_trait]
impl Limiter for RedisLimiter {
    fn horizon(&self) -> Duration {
        HORIZON
    }

    async fn places(&self, vendor: &str, most: usize, busy: usize) -> Result<usize, StoreError> {
        self.places.get(vendor, most, busy).await
    }

    async fn outlook(&self, pool: &str, until: Nanos, most: usize) -> Result<Outlook, StoreError> {
        let Some(pool) = self.shared.pools.get(pool) else {
            return Ok(Outlook { next_at: self.shared.clock.nanos(), by: None, room: most });
        };
        let (terms, ask) = (pool.terms(), Ask { until, most, ..Ask::default() });
        let heard = self.shared.ask(pool, &terms, &self.shared.scripts.look, &ask).await?;
        let [at, by, room] = *heard.numbers else { return Err(unreadable()) };
        let room = usize::try_from(room).unwrap_or(0);
        Ok(Outlook { next_at: heard.line.never_early(at), by: terms.blocker(by), room })
    }

    async fn next_for(&self, pool: &str, tenant: &Arc<str>) -> Result<(Nanos, Option<Blocker>), StoreError> {
        let Some(pool) = self.shared.pools.get(pool) else { return Ok((self.shared.clock.nanos(), None)) };
        let (terms, ask) = (pool.terms(), Ask { most: 1, tenants: std::slice::from_ref(tenant), ..Ask::default() });
        let heard = self.shared.ask(pool, &terms, &self.shared.scripts.look, &ask).await?;
        let [at, by, _] = *heard.numbers else { return Err(unreadable()) };
        Ok((heard.line.never_early(at), terms.blocker(by)))
    }

    async fn reserve(&self, pool: &str, tenants: &[Arc<str>], until: Nanos) -> Result<Vec<Answer>, StoreError> {
        let Some(pool) = self.shared.pools.get(pool) else {
            return Ok(Permit::without_limits(pool, tenants, self.shared.clock.nanos()));
        };
        for _ in 0..MOST_SLOW {
            let answers = self.shared.reserve(pool, tenants, until).await?;
            let can_be_used =
                |answer: &Answer| !matches!(answer, Answer::Granted(permit) if permit.at > permit.late_after);
            if answers.iter().all(can_be_used) {
                return Ok(answers);
            }
            self.give_back(answers.into_iter().filter_map(Answer::permit).collect()).await;
        }
        Err(pool.too_slow())
    }

    fn check(&self, permit: &Permit, now: Nanos) -> Result<(), Missed> {
        let Some(pool) = self.shared.pools.get(&permit.pool) else { return permit.check(Nanos::MIN, now) };
        permit.check(pool.gate(), now)
    }

    /// Redis hears of it with the next question that is answered, half a horizon from now at the latest while calls are made.
    fn left(&self, permit: &Permit, now: Nanos) {
        if let (Some(late), Some(pool)) = (permit.puts_off(now), self.shared.pools.get(&permit.pool)) {
            pool.note_late(permit.at, late);
        }
    }

    /// Our own time for a pool that Redis was never asked about: no call was made on a permit of it.
    fn stamp(&self, pool: &str, now: Nanos) -> i64 {
        let known = self.shared.pools.get(pool).and_then(|pool| pool.time_at(now));
        known.unwrap_or(now.div_euclid(MICRO))
    }

    async fn give_back(&self, permits: Vec<Permit>) {
        let mut by_pool: HashMap<Arc<str>, Vec<Permit>> = HashMap::new();
        for permit in permits {
            by_pool.entry(permit.pool.clone()).or_default().push(permit);
        }
        for (pool, permits) in by_pool {
            let Some(pool) = self.shared.pools.get(&pool) else { continue };
            // One that was missed is worth little by now: it goes along with the next question.
            let can_wait = permits.iter().all(|permit| permit.at <= self.shared.clock.nanos());
            let many = pool.note_unused(&permits);
            if !can_wait || many {
                let told = self.shared.ask(pool, &pool.terms(), &self.shared.scripts.look, &Ask::default()).await;
                if let Err(error) = told {
                    tracing::debug!(pool = %pool.name, %error, "unused permits stay charged");
                }
            }
        }
    }

    async fn close_gate(&self, pool: &str, until: Nanos) {
        let Some(pool) = self.shared.pools.get(pool) else { return };
        pool.close_gate(until);
        // Every question carries what is untold; this one is asked for nothing else.
        if let Err(error) = self.shared.ask(pool, &pool.terms(), &self.shared.scripts.look, &Ask::default()).await {
            tracing::warn!(pool = %pool.name, %error, "the gate is closed here; the others hear of it with the next question");
        }
    }

    async fn set_limits(&self, pool: &str, limits: Vec<Limit>) -> Result<(), StoreError> {
        if let Some(pool) = self.shared.pools.get(pool) {
            self.shared.retention.fetch_max(change::memory(&limits), Ordering::Relaxed);
            if pool.has_unused() {
                // By the limits that they were given under. What Redis does not hear of stays charged.
                let _ = self.shared.ask(pool, &pool.terms(), &self.shared.scripts.look, &Ask::default()).await;
            }
            pool.set_limits(limits, nanos(HORIZON), self.shared.clock.nanos());
        }
        Ok(())
    }

    async fn usage(&self, pool: &str) -> Vec<Usage> {
        let Some(pool) = self.shared.pools.get(pool) else { return Vec::new() };
        let terms = pool.terms();
        let Ok(heard) = self.shared.ask(pool, &terms, &self.shared.scripts.usage, &Ask::default()).await else {
            return Vec::new();
        };
        let usage = |(limit, numbers): (&Limit, &[i64])| Usage {
            limit: limit.clone(),
            used: numbers[0].unsigned_abs(),
            next_at: heard.line.never_early(numbers[1]),
        };
        terms.limits.iter().zip(heard.numbers.chunks_exact(2)).map(usage).collect()
    }

    async fn stop(&self) -> Result<(), StoreError> {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.places.give_back().await
    }
}

fn unreadable() -> StoreError {
    StoreError::Corrupt("the limiter's script gave an answer of another form".into())
}
