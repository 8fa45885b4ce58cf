//! The running judge: looks at every call once, a little after it was made, and keeps in the record what it found. Each process sees to the
//! pools that it calls itself, and to the others in turn: somebody may have called and died.
//!
//! Never looks at a call before all processes have had the time to write theirs down. One process at a time is enough; several do no harm,
//! because a verdict is written only over the one that it goes on from.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Audit,
    judge::{Finding, Judge, Rule, micros},
    reader::Reader,
};
use crate::{
    clock::{Nanos, Time, nanos},
    in_force::InForce,
    limit::{Limit, Limiter},
    store::{
        StoreError,
        calls::{CallBlock, CallLog, Verdict},
    },
    telemetry::Metrics,
};

/// Calls are judged this long after they were made, in microseconds: a second until they are written, and some for a process that was held up.
pub(super) const LAG: i64 = 10_000_000;
/// Who finds a verdict no older than this leaves the judging to whoever wrote it.
const OTHERS: i64 = 15_000_000;
/// Calls judged in one turn, about: a judge that has been away catches up turn by turn.
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
/// What is too old is looked for this often; while there is more, each time that the pool is looked at.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// A block that came late asks this often for the judge to go back, against a judge that goes on meanwhile.
const MOST_ROUNDS: usize = 8;

/// What was found about a pool since the store was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// By what each limit counts (its period and key), so that it outlives a change of N.
    pub marks: BTreeMap<String, Mark>,
    /// By vendor: its calls that were too many.
    pub breaches: BTreeMap<String, u64>,
    /// Calls judged, and where those before some number of them end.
    judged: u64,
    milestones: VecDeque<(u64, i64)>,
}

/// What was found about one limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub worst: u64,
    pub worst_at: Option<i64>,
    pub breaches: u64,
    /// N as it was last seen, and a larger one that was in force until not long ago.
    allowed: u64,
    before: Option<(u64, i64)>,
}

/// Judges the calls of all pools, turn by turn.
pub struct Watch {
    audit: Arc<Audit>,
    limiter: Arc<dyn Limiter>,
    limits: Arc<InForce>,
    metrics: Arc<Metrics>,
    pools: Vec<Pool>,
    /// The pool whose turn it is, whoever called it, and when.
    turn: usize,
    turn_at: Nanos,
}

/// One pool, and what of it is in memory.
struct Pool {
    name: Arc<str>,
    rules: BTreeMap<String, Rule>,
    judges: BTreeMap<String, Judge>,
    /// The judges have seen all before this.
    judged_to: Option<i64>,
    /// All before this has been judged, by whomever.
    known_to: i64,
    /// Nobody has looked since its limits changed.
    has_new_rules: bool,
    forget_at: Nanos,
}

/// What one turn came to.
#[derive(Default)]
struct Turn {
    to: i64,
    calls: u64,
    breaches: BTreeMap<String, u64>,
}

/// What is on record about a pool.
pub async fn findings(log: &dyn CallLog, pool: &str) -> Result<Findings, StoreError> {
    log.verdict(pool).await?.as_ref().map_or_else(|| Ok(Findings::default()), read)
}

/// Has the judge look again, if it has gone past a block by the time this is written. What it had found there before counts twice then.
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
    Err(StoreError::Unavailable("the judge goes on again and again".into()))
}

impl Watch {
    pub fn new(audit: Arc<Audit>, limiter: Arc<dyn Limiter>, limits: Arc<InForce>, metrics: Arc<Metrics>) -> Watch {
        let pools = limits.pools().into_iter().map(|limits| Pool::new(limits.pool)).collect();
        Watch { audit, limiter, limits, metrics, pools, turn: 0, turn_at: Nanos::MIN }
    }

    /// Judges what is due, and deletes what is old.
    pub async fn turn(&mut self, now: Nanos) -> Result<(), StoreError> {
        self.audit.write().await?;
        let in_turn = self.next_in_turn(now);
        for (i, pool) in self.pools.iter_mut().enumerate() {
            let rules = self.limits.get(&pool.name).map(|terms| rules(&terms.limits)).unwrap_or_default();
            if rules != pool.rules {
                // Limits may change at any time; the judges look back for what still matters to the new ones.
                pool.rules = rules;
                pool.judges.clear();
                pool.has_new_rules = true;
            }
            let was_called = self.audit.last_call(&pool.name).is_some_and(|at| at >= pool.known_to);
            if !(was_called || pool.has_new_rules || in_turn == Some(i)) {
                continue;
            }
            let to = self.limiter.stamp(&pool.name, now).saturating_sub(LAG);
            let judged = pool.turn(&self.audit.log, to).await?;
            pool.has_new_rules = false;
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

    /// Another pool each [`TURN_EVERY`].
    fn next_in_turn(&mut self, now: Nanos) -> Option<usize> {
        if now < self.turn_at {
            return None;
        }
        self.turn = (self.turn + 1) % self.pools.len().max(1);
        self.turn_at = now.saturating_add(nanos(TURN_EVERY));
        Some(self.turn)
    }
}

impl Pool {
    fn new(name: Arc<str>) -> Pool {
        let (rules, judges) = (BTreeMap::new(), BTreeMap::new());
        Pool { name, rules, judges, judged_to: None, known_to: i64::MIN, has_new_rules: false, forget_at: Nanos::MIN }
    }

    /// Goes on from the last verdict, and writes another if there is something new; nothing when another process does.
    async fn turn(
        &mut self,
        log: &Arc<dyn CallLog>,
        to: i64,
    ) -> Result<Option<(Findings, BTreeMap<String, u64>)>, StoreError> {
        let verdict = log.verdict(&self.name).await?;
        let from = verdict.as_ref().map(|verdict| verdict.judged_to);
        self.known_to = from.unwrap_or(i64::MIN);
        let others = self.judged_to != from && from.is_some_and(|from| from > to.saturating_sub(OTHERS));
        if from.is_some_and(|from| from >= to) || others {
            return Ok(None);
        }
        let mut findings = verdict.as_ref().map_or_else(|| Ok(Findings::default()), read)?;
        if from.is_none() || self.judged_to != from || self.judges.len() != self.rules.len() {
            self.remember(log, from.unwrap_or(0)).await?;
        }
        for (count, judge) in &mut self.judges {
            findings.marks.entry(count.clone()).or_default().hold_to(judge, from.unwrap_or(0), to);
        }
        let turn = self.judge(log, from.unwrap_or(0), to).await?;
        findings.take(&turn, &self.judges, self.kept());
        let body = serde_json::to_string(&findings).expect("numbers and names are JSON");
        if verdict.is_some_and(|verdict| verdict.body == body) {
            // Nobody was called: an idle pool costs no writes.
            self.judged_to = from;
            return Ok(Some((findings, turn.breaches)));
        }
        let written = log.judge(&self.name, from, &Verdict { judged_to: turn.to, body }).await?;
        self.judged_to = written.then_some(turn.to);
        if written {
            self.known_to = turn.to;
            self.tell();
        }
        Ok(written.then_some((findings, turn.breaches)))
    }

    /// Has new judges see what may still matter at `from`.
    async fn remember(&mut self, log: &Arc<dyn CallLog>, from: i64) -> Result<(), StoreError> {
        self.judges = self.rules.iter().map(|(count, rule)| (count.clone(), Judge::new(rule.clone()))).collect();
        let memory = self.rules.values().map(Rule::memory).max().unwrap_or(0);
        let mut reader = Reader::new(log.clone(), self.name.clone(), from.saturating_sub(memory), from);
        while let Some((calls, _)) = reader.next().await? {
            for judge in self.judges.values_mut() {
                for call in &calls {
                    judge.see(call);
                }
            }
        }
        Ok(())
    }

    async fn judge(&mut self, log: &Arc<dyn CallLog>, from: i64, to: i64) -> Result<Turn, StoreError> {
        self.judges.values_mut().for_each(Judge::begin_anew);
        // Until the verdict is written nobody has seen them: a turn that breaks off is begun from the start.
        self.judged_to = None;
        let mut turn = Turn { to: from, ..Turn::default() };
        let mut reader = Reader::new(log.clone(), self.name.clone(), from, to);
        while turn.calls < MOST_A_TURN as u64
            && let Some((calls, complete_to)) = reader.next().await?
        {
            for call in &calls {
                let breaches = self.judges.values_mut().map(|judge| u64::from(judge.see(call))).sum::<u64>();
                if breaches > 0 {
                    *turn.breaches.entry(call.vendor.to_string()).or_default() += breaches;
                }
            }
            turn.calls += calls.len() as u64;
            turn.to = complete_to;
        }
        Ok(turn)
    }

    /// One line in the log for each limit that was broken.
    fn tell(&self) {
        for judge in self.judges.values().filter(|judge| judge.finding().breaches > 0) {
            let (rule, Finding { worst, worst_at, breaches }) = (judge.rule(), judge.finding());
            let began = Time(worst_at.unwrap_or(0).div_euclid(1000)).rfc3339();
            tracing::error!(pool = %self.name, limit = %rule.id, breaches, worst, began, "a limit was broken: so many calls in the window that began then");
        }
    }

    /// How many calls are kept.
    fn kept(&self) -> u64 {
        self.rules.values().filter_map(|rule| rule.calls).max().unwrap_or(0).saturating_mul(2).max(KEPT)
    }

    fn forget_before(&self, findings: &Findings, to: i64) -> i64 {
        let longest = self.rules.values().map(Rule::memory).max().unwrap_or(0);
        let age = longest.saturating_mul(2).clamp(micros(SHORTEST), micros(LONGEST));
        let enough = findings.judged.saturating_sub(self.kept());
        let too_many = findings.milestones.iter().rev().find(|(judged, _)| *judged <= enough);
        to.saturating_sub(age).max(too_many.map_or(i64::MIN, |(_, at)| *at))
    }
}

impl Findings {
    fn take(&mut self, turn: &Turn, judges: &BTreeMap<String, Judge>, kept: u64) {
        for (count, judge) in judges {
            let (mark, finding) = (self.marks.entry(count.clone()).or_default(), judge.finding());
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
            // One more than are needed to say where the oldest call that is kept lies.
            while self.milestones.len() as u64 > PARTS + 2 {
                self.milestones.pop_front();
            }
        }
    }
}

impl Mark {
    /// Tells the judge of a larger N that was in force while some of the windows from `from` on began. What is judged at `to` was called up
    /// to [`LAG`] after it, by the limits as they were then.
    fn hold_to(&mut self, judge: &mut Judge, from: i64, to: i64) {
        let now = judge.rule().calls.unwrap_or(u64::MAX);
        self.before = self.before.filter(|(_, until)| *until > from);
        if self.allowed > now {
            let most = self.before.map_or(self.allowed, |(calls, _)| calls.max(self.allowed));
            self.before = Some((most, to.saturating_add(LAG).saturating_add(judge.rule().memory())));
        }
        self.allowed = now;
        if let Some((calls, until)) = self.before {
            judge.allow_before(calls, until);
        }
    }
}

/// The rules of a pool, by what they count; of two that count the same, the stricter.
pub fn rules(limits: &[Limit]) -> BTreeMap<String, Rule> {
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    for limit in limits {
        let rule = Rule::of(limit);
        let kept = rules.entry(limit.count()).or_insert_with(|| rule.clone());
        if rule.calls < kept.calls {
            *kept = rule;
        }
    }
    rules
}

fn read(verdict: &Verdict) -> Result<Findings, StoreError> {
    serde_json::from_str(&verdict.body).map_err(|error| StoreError::Corrupt(format!("a verdict of the audit: {error}")))
}
