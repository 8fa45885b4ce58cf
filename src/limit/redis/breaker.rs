//! The breakers of many processes: a script applies the rule of [`breaker`](crate::limit::breaker) in Redis and returns the state.
//!
//! Never asks for each call: what ended is reported in batches, and what other processes found out comes over a subscription.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::Script;
use async_trait::async_trait;
use serde::Serialize;
use tokio::{sync::Notify, task::JoinSet};

use super::{ASK_EVERY, errors::Errors, pool::micros, spec::MICRO};
use crate::{
    clock::{Clock, Nanos, nanos},
    limit::{
        breaker::{Opened, PARTS, ProbeEnd, Standing, Tally, Terms},
        breakers::{Breakers, Probe, vendor_of},
    },
    redis_link::{PubSubEvent, Redis, script},
    store_error::StoreError,
};

/// Failures within this are reported together. Successes wait until the part in which they are counted may be over.
const TOGETHER: Duration = Duration::from_millis(100);
/// How an open breaker stands, in the script's words.
const OPEN: u8 = 2;

/// This process's part of the breakers.
pub struct RedisBreakers {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    redis: Redis,
    script: Script,
    channel: String,
    clock: Clock,
    vendors: HashMap<Arc<str>, Vendor>,
    errors: Errors,
    /// Something has ended that is not reported yet.
    unreported: Notify,
    /// Whoever waits for a vendor's breaker is woken by it.
    wake: Box<dyn Fn(&str) + Send + Sync>,
}

struct Vendor {
    name: Arc<str>,
    key: String,
    terms: Terms,
    known: Mutex<Known>,
}

/// What one process knows of a vendor's breaker.
#[derive(Default)]
struct Known {
    /// Until when nobody calls, and from then on only the probe; nothing while it is closed.
    open_until: Option<Nanos>,
    opened: Option<Opened>,
    unreported: Tally,
    /// When the first of them ended.
    unreported_since: Nanos,
}

/// What is reported and asked in one request.
#[derive(Default)]
struct Ask {
    tally: Tally,
    takes: bool,
    probe: Option<u64>,
    probed: Option<&'static str>,
    trips_for: Option<Duration>,
    hurries: bool,
    why: Option<Arc<str>>,
}

#[derive(Serialize)]
struct Call<'a> {
    now: i64,
    vendor: &'a str,
    channel: &'a str,
    failed_share: u64,
    calls: u64,
    part: i64,
    parts: i64,
    open: i64,
    longest: i64,
    /// How long a probe may be out.
    life: i64,
    ended: u64,
    failed: u64,
    takes: bool,
    probe: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    probed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trips_for: Option<i64>,
    hurries: bool,
    why: &'a str,
}

impl RedisBreakers {
    /// Needs a runtime and no Redis. `wake` is called with a vendor's name when others have ended the wait of its breaker.
    pub fn open(
        redis: Redis,
        prefix: &str,
        terms: impl IntoIterator<Item = (Arc<str>, Terms)>,
        clock: Clock,
        wake: impl Fn(&str) + Send + Sync + 'static,
    ) -> RedisBreakers {
        let vendor = |(name, terms): (Arc<str>, Terms)| {
            let key = format!("{prefix}:{{{name}}}:breaker");
            (name.clone(), Vendor { name, key, terms, known: Mutex::default() })
        };
        let shared = Arc::new(Shared {
            redis,
            script: script(&[include_str!("time.lua"), include_str!("breaker.lua")]),
            channel: format!("{prefix}:breakers"),
            clock,
            vendors: terms.into_iter().map(vendor).collect(),
            errors: Errors::new(prefix),
            unreported: Notify::new(),
            wake: Box::new(wake),
        });
        let mut tasks = JoinSet::new();
        if !shared.vendors.is_empty() {
            tasks.spawn(listen(shared.clone()));
            tasks.spawn(report_ended(shared.clone()));
        }
        RedisBreakers { shared, tasks: Mutex::new(tasks) }
    }
}

/// Follows the states that other processes publish. A missed message does no harm: every answer of the script has the state too.
async fn listen(shared: Arc<Shared>) {
    let on_event = |event: PubSubEvent<'_>| {
        let PubSubEvent::Message { body, .. } = event else { return };
        let Ok(text) = std::str::from_utf8(body) else { return };
        let mut words = text.split(' ');
        if let (Some(vendor), Some(standing), Some(left)) = (words.next(), words.next(), words.next())
            && let (Some(vendor), Ok(standing), Ok(left)) = (shared.vendors.get(vendor), standing.parse(), left.parse())
        {
            vendor.note(standing, left, shared.clock.nanos());
            if standing < OPEN {
                (shared.wake)(vendor_of(&vendor.name));
            }
        }
    };
    shared.redis.listen(std::slice::from_ref(&shared.channel), &shared.clock, ASK_EVERY, on_event).await;
}

/// Reports ended calls, collected for a moment, until it is aborted.
async fn report_ended(shared: Arc<Shared>) {
    loop {
        shared.unreported.notified().await;
        shared.clock.sleep_until(shared.clock.nanos().saturating_add(nanos(TOGETHER))).await;
        let mut some_wait = false;
        for vendor in shared.vendors.values() {
            match vendor.has_to_report(shared.clock.nanos()) {
                Some(true) => shared.report(vendor).await,
                Some(false) => some_wait = true,
                None => {}
            }
        }
        if shared.errors.write(&shared.redis, shared.clock.nanos()).await || some_wait {
            shared.unreported.notify_one();
        }
    }
}

impl Vendor {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to report now, if there is anything to report. A success says nothing before there are failures, and is counted no finer than by
    /// parts of `within`.
    fn has_to_report(&self, now: Nanos) -> Option<bool> {
        let known = self.known();
        let is_old = now.saturating_sub(known.unreported_since) >= nanos(self.terms.within) / PARTS;
        (known.unreported.ended > 0).then_some(known.unreported.failed > 0 || is_old)
    }

    fn take_unreported(&self) -> Ask {
        Ask { tally: std::mem::take(&mut self.known().unreported), ..Ask::default() }
    }

    /// Notes its state in Redis: 0 closed, 1 half open, 2 open for `left` microseconds more.
    fn note(&self, standing: u8, left: i64, now: Nanos) {
        self.known().open_until = (standing > 0).then(|| now.saturating_add(left.saturating_mul(MICRO)));
    }

    fn standing(&self, now: Nanos) -> Standing {
        match self.known().open_until {
            None => Standing::Closed,
            Some(until) if now < until => Standing::Open { until },
            Some(_) => Standing::HalfOpen,
        }
    }
}

impl Shared {
    /// Runs the script; says whether the probe was given.
    async fn ask(&self, vendor: &Vendor, ask: Ask) -> Result<bool, StoreError> {
        let terms = &vendor.terms;
        let call = Call {
            now: self.clock.injected().map_or(0, |now| now.div_euclid(MICRO)),
            vendor: &vendor.name,
            channel: &self.channel,
            failed_share: terms.failed,
            calls: terms.calls,
            part: (micros(terms.within) / PARTS).max(1),
            parts: PARTS,
            open: micros(terms.open),
            longest: micros(terms.longest),
            life: micros(terms.probe),
            ended: ask.tally.ended,
            failed: ask.tally.failed,
            takes: ask.takes,
            // A number of 64 bits is not one to the script.
            probe: ask.probe.map(|name| name.to_string()).unwrap_or_default(),
            probed: ask.probed,
            trips_for: ask.trips_for.map(micros),
            hurries: ask.hurries,
            why: ask.why.as_deref().unwrap_or_default(),
        };
        let call = serde_json::to_string(&call).expect("numbers and names are JSON");
        let answer = self.redis.run(self.script.key(&vendor.key).arg(call)).await?;
        let (standing, left, taken, ago, why): (u8, i64, u8, i64, String) = answer;
        let now = self.clock.nanos();
        vendor.note(standing, left, now);
        let since = now.saturating_sub(ago.saturating_mul(MICRO));
        let why = (!why.is_empty()).then(|| why.into());
        vendor.known().opened = (ago >= 0).then_some(Opened { since, why });
        Ok(taken == 1)
    }

    /// If Redis is unavailable the ended calls are not counted: without Redis there are no calls, and later these are of no use.
    async fn report(&self, vendor: &Vendor) {
        let ask = vendor.take_unreported();
        if ask.tally.ended > 0
            && let Err(error) = self.ask(vendor, ask).await
        {
            tracing::debug!(vendor = %vendor.name, %error, "Redis is unavailable: the breaker does not count these calls");
        }
    }
}

#[async_trait]
impl Breakers for RedisBreakers {
    fn standing(&self, vendor: &str) -> Standing {
        self.shared.vendors.get(vendor).map_or(Standing::Closed, |vendor| vendor.standing(self.shared.clock.nanos()))
    }

    async fn look(&self, vendor: &str) -> Standing {
        if let Some(known) = self.shared.vendors.get(vendor)
            && let Err(error) = self.shared.ask(known, known.take_unreported()).await
        {
            tracing::debug!(vendor, %error, "Redis is unavailable: the breaker's last known state is shown");
        }
        self.standing(vendor)
    }

    async fn take_probe(&self, vendor: &str) -> Result<Option<Probe>, StoreError> {
        let Some(vendor) = self.shared.vendors.get(vendor) else { return Ok(None) };
        let name = fastrand::u64(..);
        let taken = self.shared.ask(vendor, Ask { takes: true, probe: Some(name), ..Ask::default() }).await?;
        Ok(taken.then_some(Probe(name)))
    }

    async fn probed(&self, vendor: &str, probe: Probe, end: ProbeEnd) {
        let Some(vendor) = self.shared.vendors.get(vendor) else { return };
        let (probed, why) = match end {
            ProbeEnd::Failed { why } => ("failed", why),
            ProbeEnd::Good => ("good", None),
            ProbeEnd::Unknown => ("unknown", None),
        };
        let ask = Ask { probe: Some(probe.0), probed: Some(probed), why, ..Ask::default() };
        if let Err(error) = self.shared.ask(vendor, ask).await {
            tracing::debug!(vendor = %vendor.name, %error, "the probe's outcome is lost; another goes when it is taken for dead");
        }
    }

    async fn ended(&self, vendor: &str, failed: bool) {
        let Some(vendor) = self.shared.vendors.get(vendor) else { return };
        let is_enough = {
            let mut known = vendor.known();
            if known.unreported.ended == 0 {
                known.unreported_since = self.shared.clock.nanos();
            }
            known.unreported.count(failed);
            vendor.terms.trips(known.unreported)
        };
        if is_enough {
            // These failures open the breaker by themselves: reported at once, they save the calls of the next 100 ms.
            return self.shared.report(vendor).await;
        }
        self.shared.unreported.notify_one();
    }

    async fn trip(&self, vendor: &str, wait: Duration, why: Arc<str>) {
        let Some(vendor) = self.shared.vendors.get(vendor) else { return };
        let ask = Ask { trips_for: Some(wait), why: Some(why), ..Ask::default() };
        if let Err(error) = self.shared.ask(vendor, ask).await {
            tracing::debug!(vendor = %vendor.name, %error, "the breaker could not be opened; the next call opens it");
        }
    }

    async fn hurry(&self, vendor: &str) -> Result<(), StoreError> {
        let Some(vendor) = self.shared.vendors.get(vendor) else { return Ok(()) };
        self.shared.ask(vendor, Ask { hurries: true, ..Ask::default() }).await.map(drop)
    }

    fn opened(&self, vendor: &str) -> Option<Opened> {
        self.shared.vendors.get(vendor).and_then(|vendor| vendor.known().opened.clone())
    }

    fn note_error(&self, vendor: &Arc<str>, error: Arc<str>) {
        self.shared.errors.note(vendor, error);
        self.shared.unreported.notify_one();
    }

    async fn last_error(&self, vendor: &str) -> Option<Arc<str>> {
        self.shared.errors.last(&self.shared.redis, vendor).await
    }

    async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}
