//! Which limits are in force: the file's, those laid live over them, and while processes have different files the stricter of all.
//!
//! Never counts a call (see `limit`) and never wakes anybody: whoever changes limits rings the bells of the pool's vendors.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    book::{Book, Filed, LimitsOnRecord, LiveLimits},
    clock::{Clock, Nanos, Time},
    config::{parse_known_limits, parse_known_pools, write_limits, write_pools},
    limit::{Before, Key, Limit, Limiter, PoolLimits},
    store::StoreError,
};

/// How often a process says that it lives, and looks for itself what others have changed: messages say so at once, and may be lost.
pub const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// The same while no message is heard.
pub const FOLLOW_DEAF: Duration = Duration::from_secs(1);
/// A process that did not say that it lives in so many looks, [`FOLLOW_EVERY`] apart, is gone.
const MOST_SILENT: u32 = 3;
/// Others may change the version so often while we lay limits over any.
const MOST_ROUNDS: usize = 8;
/// Changes of a pool's limits that are remembered, for the audit.
const MOST_CHANGES: usize = 64;

pub struct InForce {
    book: Arc<dyn Book>,
    clock: Clock,
    file: BTreeMap<Arc<str>, Vec<Limit>>,
    process: String,
    /// The file's limits, as the book has them.
    filed: String,
    known: Mutex<Known>,
    /// Held while the limiter is told: what was read first is told first.
    telling: tokio::sync::Mutex<()>,
}

/// What a pool may do, and since when.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// How often live limits of the pool were changed.
    pub version: u64,
    /// When they were laid; nothing while the file's are in force.
    pub live_since: Option<Time>,
    pub limits: Arc<[Limit]>,
}

/// What came in force when, as this process has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub at: Nanos,
    /// It was in force when this process began.
    pub is_first: bool,
    /// How often live limits had been changed by then: a process need not have seen all of them.
    pub version: u64,
    /// JSON, as the API writes it.
    pub limits: String,
}

#[derive(Default)]
struct Known {
    pools: HashMap<Arc<str>, Terms>,
    /// What was in force before this process began, the newest first.
    former: HashMap<Arc<str>, Vec<Before>>,
    changes: HashMap<Arc<str>, VecDeque<Change>>,
    /// How often this process has said that it lives, and when next.
    beat: u64,
    say_at: Nanos,
    /// When the others are next held to have been silent: looks are as frequent as messages.
    count_at: Nanos,
    /// Processes whose file says something else.
    others: HashMap<String, Other>,
}

struct Other {
    filed: Filed,
    pools: BTreeMap<String, Vec<Limit>>,
    silent: u32,
}

/// Which version may be changed.
#[derive(Debug, Clone)]
pub enum Expected {
    Any,
    OneOf(Vec<u64>),
}

impl InForce {
    /// Reads what is laid live and what the other processes have, before the first permit is given.
    pub async fn open(book: Arc<dyn Book>, clock: Clock, pools: Vec<PoolLimits>) -> Result<InForce, StoreError> {
        let file: BTreeMap<Arc<str>, Vec<Limit>> = pools.into_iter().map(|pool| (pool.pool, pool.limits)).collect();
        let (filed, process) = (write_pools(file.iter()), format!("{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let (known, telling) = (Mutex::default(), tokio::sync::Mutex::default());
        let in_force = InForce { book, clock, file, process, filed, known, telling };
        in_force.say_alive().await?;
        let live = in_force.look().await?;
        let on_record = in_force.book.limits_on_record().await?;
        for (pool, terms) in in_force.terms(live) {
            let records: Vec<&LimitsOnRecord> = on_record.iter().filter(|record| *record.pool == *pool).collect();
            let former = in_force.record(&pool, &terms.limits, &records).await?;
            in_force.lock().former.insert(pool.clone(), former);
            in_force.note(pool, terms);
        }
        Ok(in_force)
    }

    /// Puts the limits of a pool on record, if others are, and gives those that were in force before, the newest first.
    async fn record(
        &self,
        pool: &Arc<str>,
        limits: &[Limit],
        records: &[&LimitsOnRecord],
    ) -> Result<Vec<Before>, StoreError> {
        let newest = records.last().map_or(i64::MIN, |newest| newest.since.0);
        let (limits, since) = (write_limits(limits), Time(self.clock.now().0.max(newest.saturating_add(1))));
        let mut until = since;
        let is_on_record = records.last().is_some_and(|newest| newest.limits == limits);
        if !is_on_record {
            self.book.record_limits(LimitsOnRecord { pool: pool.to_string(), since, limits }).await?;
        }
        let mut former: Vec<Before> = Vec::new();
        for (i, record) in records.iter().rev().enumerate() {
            if !(is_on_record && i == 0) {
                // Limits that this version does not know may have allowed anything.
                let (known, unknown) = parse_known_limits(&record.limits);
                former.push(Before { limits: if unknown == 0 { known } else { Vec::new() }, until });
            }
            until = record.since;
        }
        Ok(former)
    }

    /// The limits of all pools, for a limiter to begin with.
    pub fn pools(&self) -> Vec<PoolLimits> {
        let known = self.lock();
        let limits = |(pool, terms): (&Arc<str>, &Terms)| PoolLimits {
            pool: pool.clone(),
            limits: terms.limits.to_vec(),
            before: known.former.get(pool).cloned().unwrap_or_default(),
        };
        known.pools.iter().map(limits).collect()
    }

    /// What is in force for a pool of the config; nothing for others.
    pub fn get(&self, pool: &str) -> Option<Terms> {
        self.lock().pools.get(pool).cloned()
    }

    /// What has come in force for a pool since this process began, and what it began with: the oldest first.
    pub fn changes(&self, pool: &str) -> Vec<Change> {
        self.lock().changes.get(pool).map(|changes| changes.iter().cloned().collect()).unwrap_or_default()
    }

    /// Whether a limit of the pool counts each tenant by itself.
    pub fn is_per_tenant(&self, pool: &str, id: &str) -> bool {
        self.any(pool, |limit| limit.key == Key::Tenant && *limit.id == *id)
    }

    /// Whether any limit of the pool counts each tenant by itself.
    pub fn any_is_per_tenant(&self, pool: &str) -> bool {
        self.any(pool, |limit| limit.key == Key::Tenant)
    }

    fn any(&self, pool: &str, is_meant: impl Fn(&Limit) -> bool) -> bool {
        self.lock().pools.get(pool).is_some_and(|terms| terms.limits.iter().any(is_meant))
    }

    /// Says that this process lives, and learns what others have laid and what their files have; gives the pools for which that changes
    /// something. To be called each [`FOLLOW_EVERY`] where there are others, and when they say that the book has changed.
    pub async fn follow(&self, limiter: &dyn Limiter) -> Result<Vec<Arc<str>>, StoreError> {
        // First said, then read: of two processes that begin together one at least sees the other.
        self.say_alive().await?;
        let _in_order = self.telling.lock().await;
        let live = self.look().await?;
        self.tell(limiter, live).await
    }

    /// Lays limits over those of the file, or with `None` puts the file's back in force; says whether the version was one expected.
    /// In the book first, then in force here.
    pub async fn lay(
        &self,
        limiter: &dyn Limiter,
        pool: &str,
        expected: &Expected,
        limits: Option<&[Limit]>,
    ) -> Result<bool, StoreError> {
        for _ in 0..MOST_ROUNDS {
            let live = self.book.live_limits().await?.into_iter().find(|live| live.pool == pool);
            let seen = live.as_ref().map_or(0, |live| live.version);
            if matches!(expected, Expected::OneOf(versions) if !versions.contains(&seen)) {
                return Ok(false);
            }
            let is_there = limits.is_none() && live.is_none_or(|live| live.limits.is_none());
            let laid = LiveLimits {
                pool: pool.to_owned(),
                version: seen + 1,
                limits: limits.map(write_limits),
                since: self.clock.now(),
            };
            if is_there || self.book.lay_limits(seen, laid).await? {
                self.refresh(limiter).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what is laid live to the limiter; gives the pools for which that changes something.
    async fn refresh(&self, limiter: &dyn Limiter) -> Result<Vec<Arc<str>>, StoreError> {
        let _in_order = self.telling.lock().await;
        let live = self.book.live_limits().await?;
        self.tell(limiter, live).await
    }

    async fn tell(&self, limiter: &dyn Limiter, live: Vec<LiveLimits>) -> Result<Vec<Arc<str>>, StoreError> {
        let mut changed = Vec::new();
        for (pool, terms) in self.terms(live) {
            let before = self.get(&pool);
            if before.is_none_or(|before| before.limits != terms.limits) {
                // First on record, then in force: whoever starts meanwhile begins with what these allow.
                let on_record = self.book.limits_on_record().await?;
                let records: Vec<&LimitsOnRecord> = on_record.iter().filter(|record| *record.pool == *pool).collect();
                self.record(&pool, &terms.limits, &records).await?;
                limiter.set_limits(&pool, terms.limits.to_vec()).await?;
                changed.push(pool.clone());
            }
            self.note(pool, terms);
        }
        Ok(changed)
    }

    /// These are in force from here on.
    fn note(&self, pool: Arc<str>, terms: Terms) {
        let (at, mut known) = (self.clock.nanos(), self.lock());
        let changes = known.changes.entry(pool.clone()).or_default();
        let (version, limits) = (terms.version, write_limits(&terms.limits));
        if changes.back().is_none_or(|last| (last.version, &last.limits) != (version, &limits)) {
            changes.push_back(Change { at, is_first: changes.is_empty(), version, limits });
        }
        while changes.len() > MOST_CHANGES {
            changes.pop_front();
        }
        known.pools.insert(pool, terms);
    }

    /// A clean stop: the others need not wait for this process to be silent.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let beat = self.lock().beat;
        self.book.strike_out(&self.me(beat)).await
    }

    fn me(&self, beat: u64) -> Filed {
        Filed { process: self.process.clone(), beat, limits: self.filed.clone() }
    }

    /// Says that this process lives, if it is time to.
    async fn say_alive(&self) -> Result<(), StoreError> {
        let now = self.clock.nanos();
        let beat = {
            let mut known = self.lock();
            if now < known.say_at {
                return Ok(());
            }
            known.beat += 1;
            known.beat
        };
        self.book.report(&self.me(beat)).await?;
        self.lock().say_at = self.clock.next_beat(FOLLOW_EVERY);
        Ok(())
    }

    /// Learns who the others are, and gives what is laid live.
    async fn look(&self) -> Result<Vec<LiveLimits>, StoreError> {
        // Side by side: an idle process is woken as seldom as can be.
        let (others, live) = tokio::join!(self.book.others(&self.filed), self.book.live_limits());
        for gone in self.note_others(others?) {
            self.book.strike_out(&gone).await?;
        }
        live
    }

    /// Gives those that are gone without a word.
    fn note_others(&self, found: Vec<Filed>) -> Vec<Filed> {
        let (mut known, now) = (self.lock(), self.clock.nanos());
        let counts = u32::from(known.count_at <= now);
        if counts > 0 {
            known.count_at = self.clock.next_beat(FOLLOW_EVERY);
        }
        let (mut others, mut gone) = (HashMap::new(), Vec::new());
        for filed in found {
            // Its clock may be any: only whether it goes on counts. While the book is away nobody grows silent.
            let silent = known.others.get(&filed.process).filter(|other| other.filed.beat == filed.beat);
            let silent = silent.map_or(0, |other| other.silent + counts);
            if silent >= MOST_SILENT {
                gone.push(filed);
                continue;
            }
            let before = known.others.get(&filed.process).filter(|other| other.filed.limits == filed.limits);
            let pools = before.map(|other| other.pools.clone()).unwrap_or_else(|| {
                let (pools, unknown) = parse_known_pools(&filed.limits);
                if unknown > 0 {
                    let process = &filed.process;
                    tracing::warn!(%process, unknown, "another process has limits in its file that this version does not know: this one keeps all others of both; finish the upgrade soon");
                }
                pools
            });
            others.insert(filed.process.clone(), Other { filed, pools, silent });
        }
        self.tell_of_differences(&known.others, &others);
        known.others = others;
        gone
    }

    fn tell_of_differences(&self, before: &HashMap<String, Other>, now: &HashMap<String, Other>) {
        for (pool, file) in &self.file {
            let differing = |others: &HashMap<String, Other>| -> Vec<String> {
                let differs = |other: &&Other| other.pools.get(&**pool).is_some_and(|limits| limits != file);
                others.values().filter(differs).map(|other| other.filed.process.clone()).collect()
            };
            match (&*differing(before), &*differing(now)) {
                ([], []) => {}
                ([], whose) => {
                    let in_force = write_limits(&Self::of_files(pool, file, now));
                    tracing::warn!(%pool, whose = whose.join(", "), in_force, "another process has other limits in its file; the stricter of all hold until it is gone");
                }
                (_, []) => tracing::info!(%pool, "all processes have the same limits in their files again"),
                _ => {}
            }
        }
    }

    /// What is in force by what is laid live and by what is known of the others.
    fn terms(&self, live: Vec<LiveLimits>) -> HashMap<Arc<str>, Terms> {
        let mut live: HashMap<String, LiveLimits> = live.into_iter().map(|live| (live.pool.clone(), live)).collect();
        let known = self.lock();
        let mut pools = HashMap::new();
        for (pool, file) in &self.file {
            let live = live.remove(&**pool);
            let version = live.as_ref().map_or(0, |live| live.version);
            let laid = live.and_then(|live| live.limits.map(|limits| (limits, live.since)));
            let of_files = || Self::of_files(pool, file, &known.others);
            let (limits, live_since) = match laid {
                Some((laid, since)) => match parse_known_limits(&laid) {
                    (laid, 0) => (laid, Some(since)),
                    (laid, unknown) => {
                        if known.pools.get(pool).is_none_or(|before| before.version != version) {
                            tracing::warn!(%pool, unknown, "limits were laid live that this version does not know: this process keeps those of the file too; finish the upgrade soon");
                        }
                        (stricter(of_files(), &laid), Some(since))
                    }
                },
                None => (of_files(), None),
            };
            pools.insert(pool.clone(), Terms { version, live_since, limits: limits.into() });
        }
        pools
    }

    fn of_files(pool: &str, file: &[Limit], others: &HashMap<String, Other>) -> Vec<Limit> {
        let theirs: Vec<Limit> = others.values().filter_map(|other| other.pools.get(pool)).flatten().cloned().collect();
        stricter(file.to_vec(), &theirs)
    }

    /// A panic elsewhere does not make a list of limits wrong.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of several limits that count the same calls in the same way the smallest, and all that only one side has.
fn stricter(ours: Vec<Limit>, theirs: &[Limit]) -> Vec<Limit> {
    let mut all = ours.clone();
    for theirs in theirs {
        let same = |mine: &&mut Limit| {
            (&mine.per, mine.shape, mine.guard, mine.key) == (&theirs.per, theirs.shape, theirs.guard, theirs.key)
        };
        match all.iter_mut().find(same) {
            Some(mine) if theirs.calls < mine.calls => *mine = theirs.clone(),
            Some(_) => {}
            None => all.push(theirs.clone()),
        }
    }
    if all != ours {
        // In every process in the same order, because limits that share a count are told apart by it.
        all.sort_by_cached_key(|limit| write_limits(std::slice::from_ref(limit)));
    }
    all
}
