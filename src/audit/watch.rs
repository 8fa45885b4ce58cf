//! The running judge: it judges every call once, some seconds after it was made, and stores its findings as a verdict. Each process judges the
//! pools that it calls, and all others in turn, because the process that called them may have died.
//!
//! Never judges a call before all processes have had time to write theirs. Several judges of one pool do no harm: a verdict is stored only if the
//! verdict that it continues is still the stored one.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Audit,
    history::History,
    judge::{Finding, Judge, micros},
    reader::Reader,
};
use crate::{
    clock::{Nanos, Time, nanos},
    in_force::InForce,
    limit::Limiter,
    store::{
        StoreError,
        calls::{CallBlock, CallLog, Verdict},
    },
    telemetry::Metrics,
};

/// Calls are judged this long after they were made, in microseconds: a second until they are written, and some more for a process that is slow.
pub(super) const LAG: i64 = 10_000_000;
/// A verdict of another process that is no older than this is left alone.
const OTHERS: i64 = 15_000_000;
/// Calls judged in one turn, about: a judge that is behind catches up turn by turn.
const MOST_A_TURN: usize = 500_000;
/// Calls of a pool that are kept, about; more if a limit needs them.
const KEPT: u64 = 10_000_000;
/// Kept for at least this long, and for two periods of every limit up to [`LONGEST`], as long as they are not too many.
const SHORTEST: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = Duration::from_secs(62 * 86_400);
/// Calls that are too many are forgotten in parts of this many.
const PARTS: u64 = 16;
/// One pool that this process need not have called is looked at this often.
const TURN_EVERY: Duration = Duration::from_secs(15);
/// Old calls are deleted this often; while there are more, at every look at the pool.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often a late block tries to make the judge go back while other verdicts are written.
const MOST_ROUNDS: usize = 8;

/// What was found about a pool since the store was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// By what each limit counts (its period and key), so that it outlives a change of N.
    pub marks: BTreeMap<String, Mark>,
    /// By vendor: its calls that were too many.
    pub breaches: BTreeMap<String, u64>,
    /// Calls judged so far, and the times by which some numbers of them had been made.
    judged: u64,
    milestones: VecDeque<(u64, i64)>,
    /// The limits that the calls are compared with.
    #[serde(default)]
    pub history: History,
}

/// What was found about one limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub worst: u64,
    pub worst_at: Option<i64>,
    pub breaches: u64,
}

/// Judges the calls of all pools, turn by turn.
pub struct Watch {
    audit: Arc<Audit>,
    limiter: Arc<dyn Limiter>,
    limits: Arc<InForce>,
    metrics: Arc<Metrics>,
    pools: Vec<PoolWatch>,
    /// The pool that is looked at next although this process need not have called it, and when.
    turn: usize,
    turn_at: Nanos,
}

/// One pool, and what of it is in memory.
struct PoolWatch {
    name: Arc<str>,
    /// The limits that the judge knows.
    history: History,
    judge: Judge,
    /// The judge has seen all before this.
    judged_to: Option<i64>,
    /// All before this has been judged, by any process.
    known_to: i64,
    /// The last change of its limits that was looked at.
    changed_at: Option<Nanos>,
    forget_at: Nanos,
}

/// The outcome of one turn.
#[derive(Default)]
struct Turn {
    to: i64,
    calls: u64,
    breaches: BTreeMap<String, u64>,
}

/// What is on record about a pool, and the time to which its calls are judged.
pub async fn findings(log: &dyn CallLog, pool: &str) -> Result<(Findings, Option<i64>), StoreError> {
    let Some(verdict) = log.verdict(pool).await? else { return Ok((Findings::default(), None)) };
    let findings = serde_json::from_str(&verdict.body)
        .map_err(|error| StoreError::Corrupt(format!("a verdict of the audit: {error}")))?;
    Ok((findings, Some(verdict.judged_to)))
}

/// Makes the judge go back if it has already passed a block that was just written. What it had found from there on then counts twice.
pub(super) async fn rewind(log: &dyn CallLog, block: &CallBlock) -> Result<(), StoreError> {
    for _ in 0..MOST_ROUNDS {
        let Some(verdict) = log.verdict(&block.pool).await?.filter(|verdict| verdict.judged_to > block.first) else {
            return Ok(());
        };
        let back = Verdict { judged_to: block.first, body: verdict.body };
        if log.judge(&block.pool, Some(verdict.judged_to), &back).await? {
            return Ok(());
        }
    }
    Err(StoreError::Unavailable("other processes judge the pool at the same time, again and again".into()))
}

impl Watch {
    pub fn new(audit: Arc<Audit>, limiter: Arc<dyn Limiter>, limits: Arc<InForce>, metrics: Arc<Metrics>) -> Watch {
        let pools = limits.pools().into_iter().map(|limits| PoolWatch::new(limits.pool)).collect();
        Watch { audit, limiter, limits, metrics, pools, turn: 0, turn_at: Nanos::MIN }
    }

    /// Judges what is due, and deletes what is old.
    pub async fn turn(&mut self, now: Nanos) -> Result<(), StoreError> {
        self.audit.write().await?;
        let in_turn = self.next_in_turn(now);
        for (i, pool) in self.pools.iter_mut().enumerate() {
            let changes = self.limits.changes(&pool.name);
            let changed_at = changes.last().map(|change| change.at);
            let was_called = self.audit.last_call(&pool.name).is_some_and(|at| at >= pool.known_to);
            if !(was_called || pool.changed_at != changed_at || in_turn == Some(i)) {
                continue;
            }
            let name = pool.name.clone();
            let stamp = |at| self.limiter.stamp(&name, at);
            let to = stamp(now).saturating_sub(LAG);
            let follow = |history: &mut History, judged_to| history.follow(&changes, stamp, now, judged_to);
            let judged = pool.turn(&self.audit.log, to, follow).await?;
            pool.changed_at = changed_at;
            let Some((findings, breaches)) = judged else { continue };
            for (vendor, breaches) in breaches {
                if let Some(metrics) = self.metrics.vendor(&vendor) {
                    metrics.breaches.inc_by(breaches);
                }
            }
            if pool.forget_at <= now {
                let more = self.audit.log.forget(&pool.name, pool.forget_before(&findings, to)).await?;
                pool.forget_at = if more { now } else { now.saturating_add(nanos(FORGET_EVERY)) };
            }
        }
        Ok(())
    }

    /// Another pool every [`TURN_EVERY`].
    fn next_in_turn(&mut self, now: Nanos) -> Option<usize> {
        if now < self.turn_at {
            return None;
        }
        self.turn = (self.turn + 1) % self.pools.len().max(1);
        self.turn_at = now.saturating_add(nanos(TURN_EVERY));
        Some(self.turn)
    }
}

impl PoolWatch {
    fn new(name: Arc<str>) -> PoolWatch {
        let (history, judge) = (History::default(), Judge::of_limits(&History::default()));
        PoolWatch { name, history, judge, judged_to: None, known_to: i64::MIN, changed_at: None, forget_at: Nanos::MIN }
    }

    /// Goes on from the last verdict, and writes another if there is something new; gives nothing when another process judges the pool.
    /// `follow` adds what has changed to the limits on record.
    async fn turn(
        &mut self,
        log: &Arc<dyn CallLog>,
        to: i64,
        follow: impl FnOnce(&mut History, Option<i64>),
    ) -> Result<Option<(Findings, BTreeMap<String, u64>)>, StoreError> {
        let (mut findings, from) = findings(&**log, &self.name).await?;
        self.known_to = from.unwrap_or(i64::MIN);
        let others = self.judged_to != from && from.is_some_and(|from| from > to.saturating_sub(OTHERS));
        if from.is_some_and(|from| from >= to) || others {
            return Ok(None);
        }
        let before = findings.clone();
        follow(&mut findings.history, from);
        if from.is_none() || self.judged_to != from || self.history != findings.history {
            self.remember(log, &findings.history, from.unwrap_or(0)).await?;
        }
        let turn = self.judge(log, from.unwrap_or(0), to).await?;
        findings.take(&turn, &self.judge, self.kept());
        findings.history.forget(self.forget_before(&findings, turn.to));
        if from.is_some() && findings == before {
            // No calls were made: an idle pool costs no writes.
            self.judged_to = from;
            return Ok(Some((findings, turn.breaches)));
        }
        let body = serde_json::to_string(&findings).expect("numbers and names are JSON");
        let written = log.judge(&self.name, from, &Verdict { judged_to: turn.to, body }).await?;
        self.judged_to = written.then_some(turn.to);
        if written {
            self.known_to = turn.to;
            self.log_breaches();
        }
        Ok(written.then_some((findings, turn.breaches)))
    }

    /// Shows a new judge all calls that may still matter at `from`.
    async fn remember(&mut self, log: &Arc<dyn CallLog>, history: &History, from: i64) -> Result<(), StoreError> {
        (self.history, self.judge) = (history.clone(), Judge::of_limits(history));
        let since = from.saturating_sub(self.judge.memory());
        let mut reader = Reader::new(log.clone(), self.name.clone(), since, from);
        while let Some((calls, _)) = reader.next().await? {
            for call in &calls {
                self.judge.see(call);
            }
        }
        Ok(())
    }

    async fn judge(&mut self, log: &Arc<dyn CallLog>, from: i64, to: i64) -> Result<Turn, StoreError> {
        self.judge.begin_anew();
        // If the turn breaks off before its verdict is written, the next one begins from the start.
        self.judged_to = None;
        let mut turn = Turn { to: from, ..Turn::default() };
        let mut reader = Reader::new(log.clone(), self.name.clone(), from, to);
        while turn.calls < MOST_A_TURN as u64
            && let Some((calls, complete_to)) = reader.next().await?
        {
            for call in &calls {
                let breaches = self.judge.see(call);
                if breaches > 0 {
                    *turn.breaches.entry(call.vendor.to_string()).or_default() += breaches;
                }
            }
            turn.calls += calls.len() as u64;
            turn.to = complete_to;
        }
        Ok(turn)
    }

    /// Logs a line for each limit that was broken.
    fn log_breaches(&self) {
        for (_, id, finding) in self.judge.findings().filter(|(_, _, finding)| finding.breaches > 0) {
            let Finding { worst, worst_at, breaches } = finding;
            let began = Time(worst_at.unwrap_or(0).div_euclid(1000)).rfc3339();
            tracing::error!(pool = %self.name, limit = %id, breaches, worst, began, "a limit was broken: so many calls in the window that began then");
        }
    }

    /// How many calls are kept at least.
    fn kept(&self) -> u64 {
        self.judge.largest().saturating_mul(2).max(KEPT)
    }

    fn forget_before(&self, findings: &Findings, to: i64) -> i64 {
        let age = self.judge.memory().saturating_mul(2).clamp(micros(SHORTEST), micros(LONGEST));
        let enough = findings.judged.saturating_sub(self.kept());
        let too_many = findings.milestones.iter().rev().find(|(judged, _)| *judged <= enough);
        to.saturating_sub(age).max(too_many.map_or(i64::MIN, |(_, at)| *at))
    }
}

impl Findings {
    fn take(&mut self, turn: &Turn, judge: &Judge, kept: u64) {
        for (count, _, finding) in judge.findings() {
            let mark = self.marks.entry(count.to_owned()).or_default();
            mark.breaches += finding.breaches;
            if finding.worst > mark.worst {
                (mark.worst, mark.worst_at) = (finding.worst, finding.worst_at);
            }
        }
        for (vendor, breaches) in &turn.breaches {
            *self.breaches.entry(vendor.clone()).or_default() += breaches;
        }
        self.judged += turn.calls;
        let last = self.milestones.back().map_or(0, |(judged, _)| *judged);
        if self.judged >= last + kept / PARTS {
            self.milestones.push_back((self.judged, turn.to));
            // One more than needed to know when the oldest kept call was made.
            while self.milestones.len() as u64 > PARTS + 2 {
                self.milestones.pop_front();
            }
        }
    }
}
