//! Which limits are in force: those of the file, or the live ones that replace them. While processes have different files, the stricter of all.
//!
//! Never counts a call (see `limit`) and never wakes a dispatcher: whoever changes limits wakes the dispatchers of the pool's vendors.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    book::{Book, Filed, LimitsOnRecord, LiveLimits},
    clock::{Clock, Nanos, Time},
    config::{parse_known_limits, parse_known_pools, write_limits, write_pools},
    limit::{Former, Key, Limit, Limiter, PoolLimits},
    store::StoreError,
};

/// How often a process writes its heartbeat and reads what others have changed. Changes are also announced at once, but messages can be lost.
pub const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// The same while the subscription is down.
pub const FOLLOW_WITHOUT_MESSAGES: Duration = Duration::from_secs(1);
/// A process is gone after this many looks, [`FOLLOW_EVERY`] apart, without a new heartbeat.
const MOST_SILENT: u32 = 3;
/// How often setting live limits is tried while other processes change them at the same time.
const MOST_ROUNDS: usize = 8;
/// Changes of a pool's limits that are remembered, for the audit.
const MOST_CHANGES: usize = 64;
/// Ids of tenant limits that are remembered for each pool.
const MOST_TENANT_LIMITS: usize = 256;

pub struct InForce {
    book: Arc<dyn Book>,
    clock: Clock,
    file: BTreeMap<Arc<str>, Vec<Limit>>,
    process: String,
    /// The file's limits in the form in which the book has them.
    filed: String,
    /// What the heartbeats say of this process.
    about: String,
    known: Mutex<Known>,
    /// Locked from reading the book until the limiter has its contents, so that an older state never replaces a newer one.
    applying: tokio::sync::Mutex<()>,
}

/// The limits of a pool that are in force.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveLimits {
    /// How often live limits of the pool were changed.
    pub version: u64,
    /// When live limits were set; none while the file's are in force.
    pub live_since: Option<Time>,
    /// The name of the key that set them, if it is known.
    pub live_by: Option<String>,
    pub limits: Arc<[Limit]>,
}

/// Limits that came into force, as this process has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub at: Nanos,
    /// They were in force when this process began.
    pub is_first: bool,
    /// How often live limits had been changed by then. A process need not have seen every change.
    pub version: u64,
    /// JSON, as the API writes it.
    pub limits: String,
}

#[derive(Default)]
struct Known {
    pools: HashMap<Arc<str>, EffectiveLimits>,
    /// The limits before this process began, newest first.
    formers: HashMap<Arc<str>, Vec<Former>>,
    changes: HashMap<Arc<str>, VecDeque<Change>>,
    /// The ids of the limits that count each tenant separately, those that were replaced included.
    tenant_limits: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// This process's newest heartbeat, and when the next is due.
    beat: u64,
    beat_at: Nanos,
    /// When a missing heartbeat of another process counts next. Looks may come more often than heartbeats.
    count_at: Nanos,
    /// Processes with other limits in their files.
    others: HashMap<String, Other>,
}

impl Known {
    fn note_tenant_limits(&mut self, pool: &Arc<str>, limits: &[Limit]) {
        let ids = self.tenant_limits.entry(pool.clone()).or_default();
        if ids.len() > MOST_TENANT_LIMITS {
            ids.clear();
        }
        ids.extend(limits.iter().filter(|limit| limit.key == Key::Tenant).map(|limit| limit.id.clone()));
    }
}

struct Other {
    filed: Filed,
    pools: BTreeMap<String, Vec<Limit>>,
    silent: u32,
}

/// The version that a change expects; with another it is refused.
#[derive(Debug, Clone)]
pub enum Expected {
    Any,
    OneOf(Vec<u64>),
}

impl InForce {
    /// Reads the live limits and what the other processes have, before the first permit is given. The heartbeats of this process say `about`.
    pub async fn open(
        book: Arc<dyn Book>,
        clock: Clock,
        pools: Vec<PoolLimits>,
        about: String,
    ) -> Result<InForce, StoreError> {
        let file: BTreeMap<Arc<str>, Vec<Limit>> = pools.into_iter().map(|pool| (pool.pool, pool.limits)).collect();
        let (filed, process) = (write_pools(file.iter()), format!("{}-{:016x}", std::process::id(), fastrand::u64(..)));
        let (known, applying) = (Mutex::default(), tokio::sync::Mutex::default());
        let in_force = InForce { book, clock, file, process, filed, about, known, applying };
        in_force.beat().await?;
        let live = in_force.look().await?;
        let on_record = in_force.book.limits_on_record().await?;
        for (pool, limits) in in_force.effective(live) {
            let formers = in_force.record(&pool, &limits.limits, &on_record).await?;
            let mut known = in_force.lock();
            formers.iter().for_each(|former| known.note_tenant_limits(&pool, &former.limits));
            known.formers.insert(pool.clone(), formers);
            drop(known);
            in_force.note(pool, limits);
        }
        Ok(in_force)
    }

    /// Records the limits of a pool, unless the newest record has the same. Returns those that were in force before, newest first.
    async fn record(
        &self,
        pool: &Arc<str>,
        limits: &[Limit],
        on_record: &[LimitsOnRecord],
    ) -> Result<Vec<Former>, StoreError> {
        let mut records: Vec<&LimitsOnRecord> = on_record.iter().filter(|record| *record.pool == **pool).collect();
        let newest = records.last().map_or(i64::MIN, |newest| newest.since.0);
        let (limits, since) = (write_limits(limits), Time(self.clock.now().0.max(newest.saturating_add(1))));
        let mut until = since;
        match records.pop_if(|newest| newest.limits == limits) {
            Some(same) => until = same.since,
            None => self.book.record_limits(LimitsOnRecord { pool: pool.to_string(), since, limits }).await?,
        }
        let mut formers: Vec<Former> = Vec::new();
        for record in records.iter().rev() {
            // If this version does not understand some of them, they may have allowed any number of calls.
            let (known, unknown) = parse_known_limits(&record.limits);
            formers.push(Former { limits: if unknown == 0 { known } else { Vec::new() }, until });
            until = record.since;
        }
        Ok(formers)
    }

    /// The limits of all pools, for a limiter to begin with.
    pub fn pools(&self) -> Vec<PoolLimits> {
        let known = self.lock();
        let limits = |(pool, effective): (&Arc<str>, &EffectiveLimits)| PoolLimits {
            pool: pool.clone(),
            limits: effective.limits.to_vec(),
            formers: known.formers.get(pool).cloned().unwrap_or_default(),
        };
        known.pools.iter().map(limits).collect()
    }

    /// The limits in force of a pool of the config; `None` for other pools.
    pub fn get(&self, pool: &str) -> Option<EffectiveLimits> {
        self.lock().pools.get(pool).cloned()
    }

    /// The limits that this process began with and all that came into force since, oldest first.
    pub fn changes(&self, pool: &str) -> Vec<Change> {
        self.lock().changes.get(pool).map(|changes| changes.iter().cloned().collect()).unwrap_or_default()
    }

    /// Whether a limit of the pool counts each tenant separately. The limit may have been replaced: it still binds for a while.
    pub fn is_per_tenant(&self, pool: &str, id: &str) -> bool {
        self.lock().tenant_limits.get(pool).is_some_and(|ids| ids.contains(id))
    }

    /// Whether any limit of the pool counts each tenant separately.
    pub fn any_is_per_tenant(&self, pool: &str) -> bool {
        let is_per_tenant = |limit: &Limit| limit.key == Key::Tenant;
        self.lock().pools.get(pool).is_some_and(|effective| effective.limits.iter().any(is_per_tenant))
    }

    /// Writes the heartbeat, reads what others have changed (live or in their files), and returns the pools whose limits changed by that. To be
    /// called every [`FOLLOW_EVERY`] if there can be other processes, and when one announces that it has changed the book.
    pub async fn follow(&self, limiter: &dyn Limiter) -> Result<Vec<Arc<str>>, StoreError> {
        // Write first, then read: of two processes that start at the same time at least one sees the other.
        self.beat().await?;
        let _in_order = self.applying.lock().await;
        let live = self.look().await?;
        self.apply(limiter, live).await
    }

    /// Sets live limits in place of those of the file, or with `None` removes them; says whether the version was expected. Writes the book first,
    /// then changes the limiter. `by` is the name of the caller's key.
    pub async fn set_live(
        &self,
        limiter: &dyn Limiter,
        pool: &str,
        expected: &Expected,
        limits: Option<&[Limit]>,
        by: &str,
    ) -> Result<bool, StoreError> {
        for _ in 0..MOST_ROUNDS {
            let live = self.book.live_limits().await?.into_iter().find(|live| live.pool == pool);
            let seen = live.as_ref().map_or(0, |live| live.version);
            if matches!(expected, Expected::OneOf(versions) if !versions.contains(&seen)) {
                return Ok(false);
            }
            let is_done = limits.is_none() && live.is_none_or(|live| live.limits.is_none());
            let new = LiveLimits {
                pool: pool.to_owned(),
                version: seen + 1,
                limits: limits.map(write_limits),
                since: self.clock.now(),
                by: Some(by.to_owned()),
            };
            if is_done || self.book.set_live_limits(seen, new).await? {
                let _in_order = self.applying.lock().await;
                let live = self.book.live_limits().await?;
                self.apply(limiter, live).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Passes changed limits to the limiter; returns the pools whose limits have changed.
    async fn apply(&self, limiter: &dyn Limiter, live: Vec<LiveLimits>) -> Result<Vec<Arc<str>>, StoreError> {
        let effective = self.effective(live);
        let is_new = |(pool, effective): &(&Arc<str>, &EffectiveLimits)| {
            self.get(pool).is_none_or(|before| before.limits != effective.limits)
        };
        let changed: Vec<Arc<str>> = effective.iter().filter(is_new).map(|(pool, _)| pool.clone()).collect();
        let on_record = if changed.is_empty() { Vec::new() } else { self.book.limits_on_record().await? };
        for (pool, effective) in effective {
            if changed.contains(&pool) {
                // Record first, then change: a process that starts in between takes the calls of these limits into account.
                self.record(&pool, &effective.limits, &on_record).await?;
                limiter.set_limits(&pool, effective.limits.to_vec()).await?;
            }
            self.note(pool, effective);
        }
        Ok(changed)
    }

    /// Remembers that these are in force from now on.
    fn note(&self, pool: Arc<str>, effective: EffectiveLimits) {
        let (at, mut known) = (self.clock.nanos(), self.lock());
        let changes = known.changes.entry(pool.clone()).or_default();
        let (version, limits) = (effective.version, write_limits(&effective.limits));
        if changes.back().is_none_or(|last| (last.version, &last.limits) != (version, &limits)) {
            changes.push_back(Change { at, is_first: changes.is_empty(), version, limits });
        }
        while changes.len() > MOST_CHANGES {
            changes.pop_front();
        }
        known.note_tenant_limits(&pool, &effective.limits);
        known.pools.insert(pool, effective);
    }

    /// A clean stop: removes this process's report, so the others need not wait until its heartbeats are missing.
    pub async fn stop(&self) -> Result<(), StoreError> {
        let beat = self.lock().beat;
        self.book.delete_report(&self.me(beat)).await
    }

    /// The name under which this process reports.
    pub fn process(&self) -> &str {
        &self.process
    }

    fn me(&self, beat: u64) -> Filed {
        let (limits, about) = (self.filed.clone(), self.about.clone());
        Filed { process: self.process.clone(), beat, limits, about, seen_at: Some(self.clock.now()) }
    }

    /// Writes the heartbeat, if it is due.
    async fn beat(&self) -> Result<(), StoreError> {
        let now = self.clock.nanos();
        let beat = {
            let mut known = self.lock();
            if now < known.beat_at {
                return Ok(());
            }
            known.beat += 1;
            known.beat
        };
        self.book.report(&self.me(beat)).await?;
        self.lock().beat_at = self.clock.next_beat(FOLLOW_EVERY);
        Ok(())
    }

    /// Reads which other processes there are, and returns the live limits.
    async fn look(&self) -> Result<Vec<LiveLimits>, StoreError> {
        // At the same time, so that an idle process wakes up once.
        let (others, live) = tokio::join!(self.book.others(&self.filed), self.book.live_limits());
        for gone in self.note_others(others?) {
            self.book.delete_report(&gone).await?;
        }
        live
    }

    /// Notes the other processes; returns those that crashed: their heartbeats have stopped.
    fn note_others(&self, found: Vec<Filed>) -> Vec<Filed> {
        let (mut known, now) = (self.lock(), self.clock.nanos());
        let counts = u32::from(known.count_at <= now);
        if counts > 0 {
            known.count_at = self.clock.next_beat(FOLLOW_EVERY);
        }
        let (mut others, mut gone) = (HashMap::new(), Vec::new());
        for filed in found {
            // Its clock may differ from ours, so heartbeats are counted, not timed. While the book is unavailable, none counts as missing.
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
                    tracing::warn!(%process, unknown, "another process has limits in its file that this version does not know; this process keeps all others of both files: finish the upgrade soon");
                }
                pools
            });
            others.insert(filed.process.clone(), Other { filed, pools, silent });
        }
        self.log_differences(&known.others, &others);
        known.others = others;
        gone
    }

    fn log_differences(&self, before: &HashMap<String, Other>, now: &HashMap<String, Other>) {
        for (pool, file) in &self.file {
            let differing = |others: &HashMap<String, Other>| -> Vec<String> {
                let differs = |other: &&Other| other.pools.get(&**pool).is_some_and(|limits| limits != file);
                others.values().filter(differs).map(|other| other.filed.process.clone()).collect()
            };
            match (&*differing(before), &*differing(now)) {
                ([], []) => {}
                ([], whose) => {
                    let in_force = write_limits(&Self::of_files(pool, file, now));
                    tracing::warn!(%pool, whose = whose.join(", "), in_force, "another process has other limits in its file; the stricter of all are in force until it is gone");
                }
                (_, []) => tracing::info!(%pool, "all processes have the same limits in their files again"),
                _ => {}
            }
        }
    }

    /// The limits in force of every pool, from the live limits and the files of all processes.
    fn effective(&self, live: Vec<LiveLimits>) -> HashMap<Arc<str>, EffectiveLimits> {
        let mut live: HashMap<String, LiveLimits> = live.into_iter().map(|live| (live.pool.clone(), live)).collect();
        let known = self.lock();
        let mut pools = HashMap::new();
        for (pool, file) in &self.file {
            let live = live.remove(&**pool);
            let version = live.as_ref().map_or(0, |live| live.version);
            let live = live.filter(|live| live.limits.is_some());
            let (live_since, live_by) = live.as_ref().map(|live| (live.since, live.by.clone())).unzip();
            let of_files = || Self::of_files(pool, file, &known.others);
            let limits = match live.and_then(|live| live.limits) {
                Some(set) => match parse_known_limits(&set) {
                    (limits, 0) => limits,
                    (limits, unknown) => {
                        if known.pools.get(pool).is_none_or(|before| before.version != version) {
                            tracing::warn!(%pool, unknown, "this version does not know all of the live limits; this process keeps those of the file too: finish the upgrade soon");
                        }
                        stricter(of_files(), &limits)
                    }
                },
                None => of_files(),
            };
            let live_by = live_by.flatten();
            pools.insert(pool.clone(), EffectiveLimits { version, live_since, live_by, limits: limits.into() });
        }
        pools
    }

    /// The stricter of this process's file and those of the others.
    fn of_files(pool: &str, file: &[Limit], others: &HashMap<String, Other>) -> Vec<Limit> {
        let theirs: Vec<Limit> = others.values().filter_map(|other| other.pools.get(pool)).flatten().cloned().collect();
        stricter(file.to_vec(), &theirs)
    }

    /// A panic elsewhere does not make a list of limits wrong.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of limits that count the same calls in the same way the smallest, and all limits that only one side has.
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
        // The same order in every process: it tells limits apart that count the same.
        all.sort_by_cached_key(|limit| write_limits(std::slice::from_ref(limit)));
    }
    all
}
