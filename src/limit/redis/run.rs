//! Runs the scripts on a pool, and brings them what they lack: the history of new counts, payments in the book, the right calendar edges.
//!
//! Never gives a permit without Redis, and never trusts a state of which something may be lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use ::redis::Script;

use super::{
    HORIZON_MICROS,
    args::{Args, History, Paid, RawReply, Reply, Step},
    history::{Begin, Record, clock_ahead, note_clock},
    offset::Offset,
    pool::{LimitSet, RedisPool, forgotten_before},
    spec::{MICRO, sub_window},
};
use crate::{
    book::{Book, Charge, Spend},
    clock::{Clock, Nanos, Time},
    limit::{Answer, Key, ledger::Ledger},
    redis_link::{Redis, script},
    store_error::StoreError,
};

/// A script is run so often with the history that it asks for, or with other calendar edges.
const MOST_ROUNDS: usize = 8;
/// So often other processes may use up what was charged ahead before our calls get it.
const MOST_PAYMENTS: usize = 16;

/// The scripts, and all that they work on.
pub(super) struct Runner {
    pub(super) redis: Redis,
    pub(super) scripts: Scripts,
    pub(super) channel: String,
    pub(super) pools: HashMap<Arc<str>, RedisPool>,
    pub(super) clock: Clock,
    pub(super) book: Arc<dyn Book>,
    /// How long ago a spend may have ended and still matter to somebody.
    pub(super) retention: AtomicI64,
}

pub(super) struct Scripts {
    pub(super) reserve: Script,
    pub(super) look: Script,
    pub(super) usage: Script,
}

/// What a caller wants of a script, beside what every request carries.
#[derive(Default)]
pub(super) struct Query<'a> {
    pub(super) until: Nanos,
    pub(super) most: usize,
    pub(super) tenants: &'a [Arc<str>],
    pub(super) paid: &'a [Paid],
}

/// The reply of a script that lacks the history of some counts: times in microseconds.
struct NotOpen {
    redis: i64,
    /// When the request was sent, on our own timeline.
    sent_at: Nanos,
    /// How far Redis' clock is ahead of the pool's timeline, and was when the epoch began.
    ahead: i64,
    settled: i64,
    /// This process knew no timeline of the pool.
    is_new: bool,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        let on_pools = |answer| {
            script(&[
                include_str!("time.lua"),
                include_str!("shapes.lua"),
                include_str!("pool.lua"),
                include_str!("ledger.lua"),
                include_str!("open.lua"),
                include_str!("back.lua"),
                answer,
                include_str!("main.lua"),
            ])
        };
        Scripts {
            reserve: on_pools(include_str!("reserve.lua")),
            look: on_pools(include_str!("look.lua")),
            usage: on_pools(include_str!("usage.lua")),
        }
    }
}

impl Runner {
    /// Runs a script on a pool; brings it the history or the edges that it lacks, and whatever is to be reported.
    pub(super) async fn run(
        &self,
        pool: &RedisPool,
        limits: &LimitSet,
        script: &Script,
        query: &Query<'_>,
    ) -> Result<Reply, StoreError> {
        let (mut token, mut history) = (String::new(), None);
        // If no reply arrives, nobody knows whether they were taken back: they stay charged.
        let (undo_epoch, undo) = pool.take_unused();
        let (late, is_new) = (pool.late(), pool.expected(0).is_none());
        for _ in 0..MOST_ROUNDS {
            let before = self.clock.nanos();
            let injected = self.clock.injected().map(|now| now.div_euclid(MICRO));
            let (latest, epoch, ahead) = pool.expected(before).unwrap_or_default();
            let about_now = if latest > 0 { latest + ahead } else { injected.unwrap_or(before.div_euclid(MICRO)) };
            let (gate, raised) = (pool.unsent_gate(), pool.raised());
            let args = Args {
                now: injected.unwrap_or(0),
                latest,
                step: self.step(pool, limits, latest).await,
                epoch: epoch.clone(),
                nonce: format!("{:032x}", fastrand::u128(..)),
                token: token.clone(),
                horizon: query.until.saturating_sub(before).div_euclid(MICRO),
                lead: pool.lead(limits).div_euclid(MICRO),
                most: query.most,
                edges: limits.edges(about_now),
                tenants: query.tenants,
                paid: query.paid,
                undo_epoch: &undo_epoch,
                undo: &undo,
                late,
                history: history.take(),
                close: gate.map(|until| until.saturating_sub(before).saturating_add(MICRO - 1).div_euclid(MICRO)),
                channel: &self.channel,
            };
            let args = serde_json::to_string(&args).expect("numbers and names are JSON");
            let raw: RawReply = self.redis.run(script.key(&pool.key).arg(&limits.spec).arg(args)).await?;
            let after = self.clock.nanos();
            pool.note_took(after - before);
            let (state, at, answered, new_gate, ahead, numbers, due, texts) = raw;
            let is_open = state == "open";
            let offset = pool.note_time(Offset::new(before, after, at), ahead, is_open.then_some(&answered));
            if state == "edges" {
                continue;
            }
            if let Some(until) = gate {
                pool.note_gate_sent(until);
            }
            if is_open {
                pool.note_late_sent(late);
                let reply = Reply { at, offset, epoch: answered, gate: new_gate, numbers, due };
                pool.note_reply(&reply, &epoch, raised);
                return Ok(reply);
            }
            let [since, settled] = *due else { return Err(unreadable()) };
            let record = (state == "changed").then(|| Record::new(since, &texts));
            let not_open = NotOpen { redis: at, sent_at: before, ahead, settled, is_new };
            (token, history) = (answered, Some(self.history(pool, limits, &not_open, &numbers, record).await?));
        }
        Err(StoreError::Unavailable("the limiter's state in Redis is lost again and again".into()))
    }

    /// What the limits that are missing in Redis begin with. `record`: the permits of an epoch that goes on.
    async fn history(
        &self,
        pool: &RedisPool,
        limits: &LimitSet,
        reply: &NotOpen,
        missing: &[i64],
        record: Option<Record>,
    ) -> Result<History, StoreError> {
        let spends = self.book.spends(Some(&pool.name), self.forgotten_before(reply.redis)).await?;
        let in_book = if reply.is_new { clock_ahead(&pool.name, &spends) } else { reply.ahead };
        pool.adopt(reply.ahead, in_book);
        let now = self.clock.nanos();
        let since = now.saturating_sub(reply.sent_at).div_euclid(MICRO);
        let adopted = (reply.redis + reply.ahead - in_book + since, String::new(), in_book);
        let (at, _, ahead) = pool.expected(now).unwrap_or(adopted);
        let begin = Begin { at, ahead_before: reply.settled, ahead, now };
        if let Some(record) = record {
            return Ok(limits.changed(&pool.name, &spends, begin, missing, &record));
        }
        let begin = Begin { at: at + HORIZON_MICROS, ..begin };
        let (history, charges) = limits.anew(&pool.name, &spends, begin, &self.clock);
        if !charges.is_empty() {
            self.book.charge(charges).await?;
        }
        Ok(history)
    }

    /// A step of Redis' clock that the scripts do not know yet. It is written to the book first, where that has calls by Redis' time.
    async fn step(&self, pool: &RedisPool, limits: &LimitSet, latest: i64) -> Option<Step> {
        let step = pool.step()?;
        if !limits.ledgers.is_empty() {
            let noted = note_clock(&pool.name, latest.div_euclid(1_000), step.to);
            if let Err(error) = self.book.charge(vec![noted]).await {
                tracing::debug!(pool = %pool.name, %error, "a step of Redis' clock is not in the book yet; trying again with the next request");
                return None;
            }
        }
        Some(step)
    }

    /// Makes durable what a script wants paid, for all tenants together.
    async fn pay(
        &self,
        pool: &RedisPool,
        limits: &LimitSet,
        reply: &Reply,
        tenants: &[Arc<str>],
    ) -> Result<Vec<Paid>, StoreError> {
        let (mut charges, mut paid) = (Vec::new(), Vec::new());
        let place = |number: i64| usize::try_from(number).ok()?.checked_sub(1);
        for due in reply.due.chunks_exact(4) {
            let (ledger, tenant) = (place(due[0]), place(due[1]));
            let (ends_at, calls) = (due[2], due[3]);
            let Some((number, tenant)) = ledger.zip(tenant.and_then(|wish| tenants.get(wish))) else {
                return Err(unreadable());
            };
            let Some(ledger) = limits.ledgers.get(number) else { return Err(unreadable()) };
            let spend = Spend {
                pool: pool.name.to_string(),
                count: ledger.count.clone(),
                tenant: ledger.tenant_of(tenant).to_string(),
                ends_at: Time(ends_at),
                calls: calls.unsigned_abs(),
            };
            charges.push(Charge { spend, forget: forgotten_before(reply.at, ledger.memory) });
            paid.push(Paid { ledger: number + 1, tenant: tenant.clone(), ends_at, calls });
        }
        self.book.charge(charges).await?;
        for paid in &paid {
            let ledger = &limits.ledgers[paid.ledger - 1];
            if can_be_paid_ahead(ledger) {
                pool.note_paid(&ledger.count, paid.ends_at, paid.calls);
            }
        }
        Ok(paid)
    }

    /// Pays for a block of calls now, if this process has not paid for any at this time: a lone call finds nothing paid as a rule, because
    /// sub-windows are short. If it is not needed after all, it only counts as used after a loss of Redis' state.
    pub(super) async fn pay_ahead(&self, pool: &RedisPool) {
        let now = self.clock.nanos();
        let (limits, Some((at, ..))) = (pool.limits(now), pool.expected(now)) else { return };
        let charge = |ledger: &Ledger| {
            let len = sub_window(ledger);
            let ends_at = (at.div_euclid(len) * len + len + 999).div_euclid(1_000);
            let spend = Spend {
                pool: pool.name.to_string(),
                count: ledger.count.clone(),
                tenant: String::new(),
                ends_at: Time(ends_at),
                calls: ledger.block,
            };
            Charge { spend, forget: forgotten_before(at, ledger.memory) }
        };
        let ahead = limits.ledgers.iter().filter(|ledger| can_be_paid_ahead(ledger)).map(charge);
        let charges: Vec<Charge> =
            ahead.filter(|charge| !pool.has_paid(&charge.spend.count, charge.spend.ends_at.0)).collect();
        if charges.is_empty() {
            return;
        }
        match self.book.charge(charges.clone()).await {
            Ok(()) => {
                for Charge { spend, .. } in charges {
                    pool.note_paid(&spend.count, spend.ends_at.0, i64::try_from(spend.calls).unwrap_or(i64::MAX));
                }
            }
            Err(error) => {
                tracing::debug!(pool = %pool.name, %error, "nothing is paid ahead; the request for a permit pays");
            }
        }
    }

    /// Spends that ended before this matter to nobody.
    fn forgotten_before(&self, redis: i64) -> Time {
        forgotten_before(redis, self.retention.load(Ordering::Relaxed))
    }

    /// Answers the wishes, after the book has what they need: permits are dated then, because paying takes as long as a permit may be late.
    pub(super) async fn reserve(
        &self,
        pool: &RedisPool,
        tenants: &[Arc<str>],
        until: Nanos,
    ) -> Result<Vec<Answer>, StoreError> {
        // One set of limits throughout: payments go by the numbers of its ledgers.
        let limits = pool.limits(self.clock.nanos());
        let mut paid = pool.paid(&limits, self.clock.nanos());
        for _ in 0..MOST_PAYMENTS {
            let query = Query { until, most: tenants.len(), tenants, paid: &paid };
            let reply = self.run(pool, &limits, &self.scripts.reserve, &query).await?;
            if !reply.due.is_empty() {
                paid = self.pay(pool, &limits, &reply, tenants).await?;
                continue;
            }
            let answer = |(answer, tenant): (&[i64], &Arc<str>)| match limits.blocker(answer[0]) {
                None => Answer::Granted(pool.permit(&limits, &reply, answer[1], tenant)),
                Some(by) => Answer::NotBefore { until: reply.offset.never_early(answer[1]), by },
            };
            return Ok(reply.numbers.chunks_exact(2).zip(tenants).map(answer).collect());
        }
        Err(StoreError::Unavailable("other workers use up whatever is charged ahead, or MongoDB is too slow".into()))
    }

    /// Looks at a pool for the sake of what the request reports.
    pub(super) async fn report(&self, pool: &RedisPool) -> Result<(), StoreError> {
        self.run(pool, &pool.limits(self.clock.nanos()), &self.scripts.look, &Query::default()).await.map(drop)
    }
}

/// Whether it is known what has to be paid without asking Redis: not for tenants, and calendars have long periods.
fn can_be_paid_ahead(ledger: &Ledger) -> bool {
    ledger.key == Key::Vendor && sub_window(ledger) > 0
}

pub(super) fn unreadable() -> StoreError {
    StoreError::Corrupt("the reply of the limiter's script has an unexpected form".into())
}
