//! The limiter, in virtual time: no window holds too many calls, whatever happens, and little of a limit goes unused.

mod breaker;
mod late;
mod local;
mod oracle;
mod redis;
mod rule;
mod storms;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fetchgate::{
    book::{Book, Charge, Filed, LimitsOnRecord, LiveLimits, Pause, Spend},
    clock::{Clock, Nanos, Time, nanos},
    limit::{Answer, Former, Key, Limit, Per, Permit, PoolLimits, Shape, local::Local},
    store::StoreError,
};

pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MS;

/// An hour before the night in which Berlin's clocks go forward.
pub(crate) const START: Time = Time(1_774_735_200_000);

/// A book in memory that outlives the limiters that write into it.
#[derive(Default)]
pub(crate) struct MemoryBook {
    rows: Mutex<BTreeMap<(String, String, String, i64), u64>>,
    pub(crate) away: AtomicBool,
    pub(crate) writes: AtomicUsize,
    /// As the book that many processes share: a smaller number than the one it has changes nothing.
    pub(crate) keeps_greatest: bool,
    /// Time passes while it writes.
    pub(crate) slow: Option<(Clock, Duration)>,
}

#[async_trait]
impl Book for MemoryBook {
    async fn spends(&self, pool: Option<&str>, since: Time) -> Result<Vec<Spend>, StoreError> {
        let rows = self.rows.lock().unwrap();
        let row = |((pool, count, tenant, ends_at), calls): (&(String, String, String, i64), &u64)| Spend {
            pool: pool.clone(),
            count: count.clone(),
            tenant: tenant.clone(),
            ends_at: Time(*ends_at),
            calls: *calls,
        };
        let wanted = |spend: &Spend| spend.ends_at >= since && pool.is_none_or(|pool| pool == spend.pool);
        Ok(rows.iter().map(row).filter(wanted).collect())
    }

    async fn charge(&self, charges: Vec<Charge>) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the test says so".into()));
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some((clock, by)) = &self.slow {
            clock.advance(*by);
        }
        let mut rows = self.rows.lock().unwrap();
        for Charge { spend, forget } in charges {
            rows.retain(|(pool, count, _, ends_at), _| {
                (pool, count) != (&spend.pool, &spend.count) || *ends_at >= forget.0
            });
            let row = rows.entry((spend.pool, spend.count, spend.tenant, spend.ends_at.0)).or_default();
            *row = if self.keeps_greatest { spend.calls.max(*row) } else { spend.calls };
        }
        Ok(())
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        Ok(Vec::new())
    }

    async fn set_pause(&self, _vendor: &str, _pause: Option<Pause>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn live_limits(&self) -> Result<Vec<LiveLimits>, StoreError> {
        Ok(Vec::new())
    }

    async fn set_live_limits(&self, _seen: u64, _new: LiveLimits) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn limits_on_record(&self) -> Result<Vec<LimitsOnRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn record_limits(&self, _record: LimitsOnRecord) -> Result<(), StoreError> {
        Ok(())
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

    async fn secret(&self, _name: &'static str, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
        Ok(fresh)
    }
}

impl MemoryBook {
    pub(crate) fn rows(&self) -> Vec<u64> {
        self.rows.lock().unwrap().values().copied().collect()
    }

    /// Another book with the same in it, as the limiter of one process has it.
    pub(crate) fn copy(&self) -> Arc<MemoryBook> {
        Arc::new(MemoryBook { rows: Mutex::new(self.rows.lock().unwrap().clone()), ..MemoryBook::default() })
    }

    pub(crate) fn forget_everything(&self) {
        self.rows.lock().unwrap().clear();
    }
}

pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// A limit of the whole pool with the default guard.
pub(crate) fn limit(calls: u64, period: Duration, shape: Shape) -> Limit {
    let guard = (period / 200).clamp(Duration::from_millis(5), Duration::from_millis(500));
    Limit { id: format!("{calls}/{period:?}").into(), calls, per: Per::Rolling(period), shape, guard, key: Key::Vendor }
}

pub(crate) fn daily(calls: u64, zone: &str) -> Limit {
    let per = Per::Day(jiff::tz::TimeZone::get(zone).unwrap());
    Limit { per, shape: Shape::Calendar, ..limit(calls, Duration::from_secs(1), Shape::Paced) }
}

pub(crate) fn per_tenant(limit: Limit) -> Limit {
    Limit { key: Key::Tenant, id: format!("{}/tenant", limit.id).into(), ..limit }
}

pub(crate) async fn open(limits: &[Limit], clock: &Clock, book: &Arc<MemoryBook>) -> Local {
    open_after(limits, Vec::new(), clock, book).await
}

/// The same after others were in force.
pub(crate) async fn open_after(limits: &[Limit], formers: Vec<Former>, clock: &Clock, book: &Arc<MemoryBook>) -> Local {
    let pool = PoolLimits { pool: "acme".into(), limits: limits.to_vec(), formers };
    Local::open(vec![pool], clock.clone(), book.clone()).await.unwrap()
}

pub(crate) fn advance(clock: &Clock, by: Nanos) {
    clock.advance(Duration::from_nanos(u64::try_from(by).unwrap()));
}

/// Moves the clock there, if that is ahead.
pub(crate) fn advance_to(clock: &Clock, at: Nanos) {
    advance(clock, (at - clock.nanos()).max(0));
}

pub(crate) fn wishes(tenant: &str, n: usize) -> Vec<Arc<str>> {
    vec![tenant.into(); n]
}

pub(crate) fn permits(answers: Vec<Answer>) -> Vec<Permit> {
    let permit = |answer| match answer {
        Answer::Granted(permit) => Some(permit),
        Answer::NotBefore { .. } => None,
    };
    answers.into_iter().filter_map(permit).collect()
}

/// One call as the vendor would see it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The permit's time.
    pub(crate) at: Nanos,
    /// When it reached the vendor: late and over a link with jitter.
    pub(crate) arrived: Nanos,
    pub(crate) tenant: Arc<str>,
}

/// The oracle: the most of these times in any half-open window of this length.
pub(crate) fn most_in_any_window(mut times: Vec<Nanos>, window: Nanos) -> usize {
    times.sort_unstable();
    let (mut most, mut first) = (0, 0);
    for (i, at) in times.iter().enumerate() {
        while at - times[first] >= window {
            first += 1;
        }
        most = most.max(i + 1 - first);
    }
    most
}

/// The civil day or month of a call.
fn date_of(at: Nanos, per: &Per) -> (i16, i8, i8) {
    let utc = jiff::Timestamp::from_nanosecond(i128::from(at)).unwrap();
    match per {
        Per::Day(zone) => {
            let date = utc.to_zoned(zone.clone()).date();
            (date.year(), date.month(), date.day())
        }
        Per::Month(zone) => {
            let date = utc.to_zoned(zone.clone()).date();
            (date.year(), date.month(), 0)
        }
        Per::Rolling(_) => unreachable!(),
    }
}

/// The oracle for calendars: the most calls in any one day, when the vendor's clock may be 5 s off in either direction.
/// Asks for the civil date of each call; knows nothing of periods.
pub(crate) fn most_in_any_period(times: &[Nanos], per: &Per) -> usize {
    let mut periods: BTreeMap<(i16, i8, i8), usize> = BTreeMap::new();
    for at in times {
        let date = |skew: Nanos| date_of(at + skew, per);
        let mut dates = vec![date(-5 * SECOND), date(0), date(5 * SECOND)];
        dates.dedup();
        for date in dates {
            *periods.entry(date).or_default() += 1;
        }
    }
    periods.into_values().max().unwrap_or(0)
}

/// Limits that were in force from then on, until those of the next.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) from: Nanos,
    /// Calls of before may still arrive until then.
    pub(crate) left: Nanos,
    pub(crate) limits: Vec<Limit>,
}

impl Phase {
    /// The most calls that these limits allow in any window of this length, to all or to one tenant.
    fn allows(&self, window: Nanos, to: Key) -> u64 {
        let bounds = self.limits.iter().filter(|limit| limit.key == Key::Vendor || to == Key::Tenant);
        let bounds = bounds.map(|limit| match &limit.per {
            Per::Rolling(period) => limit.calls * (window as u64).div_ceil(nanos(*period) as u64),
            Per::Day(_) => limit.calls * ((window / (86_400 * SECOND)) as u64 + 2),
            Per::Month(_) => limit.calls * ((window / (28 * 86_400 * SECOND)) as u64 + 2),
        });
        bounds.min().unwrap_or(u64::MAX)
    }
}

/// What the vendor would complain about when limits were changed: a window may hold what the loosest of those that were in force at any time
/// of it allow. Calendars are the vendor's, whose clock is `ahead` of the timeline, as ours is
/// since `right_from`.
pub(crate) fn breaches_through(calls: &[Call], phases: &[Phase], ahead: Nanos, right_from: Nanos) -> Vec<String> {
    let mut found = Vec::new();
    let until = |i: usize| phases.get(i + 1).map_or(Nanos::MAX, |next| next.left);
    for limit in phases.iter().flat_map(|phase| &phase.limits) {
        let mut groups: BTreeMap<&str, Vec<Nanos>> = BTreeMap::new();
        for call in calls {
            let at = if matches!(limit.per, Per::Rolling(_)) { call.arrived } else { call.at + ahead };
            groups.entry(if limit.key == Key::Tenant { &call.tenant } else { "" }).or_default().push(at);
        }
        for (who, mut times) in groups {
            times.sort_unstable();
            let Per::Rolling(period) = limit.per else {
                // Of calendars only those that held all the time.
                let same = |phase: &Phase| {
                    phase.limits.iter().filter(|l| l.per == limit.per && l.key == limit.key).map(|l| l.calls).min()
                };
                let most = phases.iter().map(|phase| same(phase).unwrap_or(u64::MAX)).max().unwrap_or(0);
                // Before its last step the clock may have been wrong for days; from then on it is the vendor's.
                let mut days: BTreeMap<(i16, i8, i8), u64> = BTreeMap::new();
                let is_one_too_many = |at: &Nanos| {
                    let before = days.entry(date_of(*at, &limit.per)).or_default();
                    *before += 1;
                    *before > most && *at >= right_from.saturating_add(ahead)
                };
                if times.iter().any(is_one_too_many) {
                    found.push(format!("{limit:?} {who:?}: more than {most}"));
                }
                continue;
            };
            let period = nanos(period);
            for (i, at) in times.iter().enumerate() {
                let seen = times[i..].iter().take_while(|other| **other < at + period).count() as u64;
                let in_force = (0..phases.len()).filter(|p| phases[*p].from < at + period && until(*p) > *at);
                let in_force: Vec<&Phase> = in_force.map(|p| &phases[p]).collect();
                // Nobody counts in windows of a length that no limit has then.
                if !in_force.iter().any(|phase| phase.limits.contains(limit)) {
                    continue;
                }
                let bounds = in_force.iter().map(|phase| phase.allows(period, limit.key));
                // A day and a window of a day know nothing of each other: each is held in its own time.
                let has_calendar = in_force.iter().any(|phase| phase.limits.iter().any(|l| l.shape == Shape::Calendar));
                let most = if has_calendar { bounds.fold(0, u64::saturating_add) } else { bounds.max().unwrap_or(0) };
                if seen > most {
                    found.push(format!("{limit:?} {who:?}: {seen} of {most} from {at}"));
                    break;
                }
            }
        }
    }
    found
}

/// What the vendor would complain about: breaches of T by arrivals, and of T + g by permits.
pub(crate) fn breaches(calls: &[Call], limits: &[Limit]) -> Vec<String> {
    let mut found = Vec::new();
    for limit in limits {
        let mut groups: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
        for call in calls {
            groups.entry(if limit.key == Key::Tenant { &call.tenant } else { "" }).or_default().push(call);
        }
        for (who, calls) in groups {
            let at: Vec<Nanos> = calls.iter().map(|call| call.at).collect();
            let arrived: Vec<Nanos> = calls.iter().map(|call| call.arrived).collect();
            let (seen, permitted) = match &limit.per {
                Per::Rolling(period) => (
                    most_in_any_window(arrived, nanos(*period)),
                    most_in_any_window(at, nanos(*period) + nanos(limit.guard)),
                ),
                calendar => (0, most_in_any_period(&at, calendar)),
            };
            if seen.max(permitted) as u64 > limit.calls {
                found.push(format!("{limit:?} {who:?}: {seen} seen, {permitted} permitted"));
            }
        }
    }
    found
}
