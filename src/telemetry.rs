//! Metrics: the one list of their names, and the handles that the hot paths keep.
//!
//! Never carries an id as a label.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use tokio::sync::Notify;

use crate::{
    clock::Time,
    config::Config,
    exposition::{OfProcess, family},
    job::{AttemptOutcome, DeliveryStatus, End, Job},
    outcomes::{Blocks, Ends},
    processes::About,
    recent::Recent,
    spans::Spans,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVendor {
    vendor: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVendorAndOutcome {
    vendor: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPoolAndLimit {
    pool: String,
    limit: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    method: &'static str,
    route: String,
    status: u16,
}

/// What came of a request to one of the URLs for callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackOutcome {
    /// It changed its job.
    Accepted,
    /// Its job had ended or was deleted, or it was for an earlier run.
    Ignored,
    /// It says that the vendor goes on working.
    Progress,
    /// There was nothing in it.
    Empty,
    /// It asked whether this URL takes callbacks.
    Challenge,
    /// It was for no job of ours.
    Unknown,
    /// The vendor is to send it again: the reply with its ticket may not be stored yet.
    Early,
    /// It did not prove where it came from.
    Refused,
    /// It could not be read.
    Unreadable,
}

impl CallbackOutcome {
    pub const ALL: [CallbackOutcome; 9] = [
        CallbackOutcome::Accepted,
        CallbackOutcome::Ignored,
        CallbackOutcome::Progress,
        CallbackOutcome::Empty,
        CallbackOutcome::Challenge,
        CallbackOutcome::Unknown,
        CallbackOutcome::Early,
        CallbackOutcome::Refused,
        CallbackOutcome::Unreadable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CallbackOutcome::Accepted => "accepted",
            CallbackOutcome::Ignored => "ignored",
            CallbackOutcome::Progress => "progress",
            CallbackOutcome::Empty => "empty",
            CallbackOutcome::Challenge => "challenge",
            CallbackOutcome::Unknown => "unknown",
            CallbackOutcome::Early => "early",
            CallbackOutcome::Refused => "refused",
            CallbackOutcome::Unreadable => "unreadable",
        }
    }
}

/// The metrics of one vendor: handles that are resolved once.
#[derive(Clone)]
pub struct VendorMetrics {
    accepted: Counter,
    /// The same jobs, for the last minute.
    pub recent: Arc<Recent>,
    /// Calls and polls sent. Not exported: `outcomes` say more.
    pub calls: Counter,
    /// What came of calls and polls, connections that failed included.
    outcomes: [Counter; AttemptOutcome::ALL.len()],
    /// Replies that ask us to slow down.
    pub throttled: Counter,
    /// Those of them that were a 429 although every configured limit was kept.
    pub throttled_unexplained: Counter,
    /// Silences that the vendor asked for, or that its headers asked for more than a minute of.
    pub gate_closed: Counter,
    /// Calls beyond a limit, found by the audit: stays 0.
    pub breaches: Counter,
    pub permits_granted: Counter,
    /// Permits returned before their time.
    pub permits_unused: Counter,
    /// Permits missed because the worker woke up too late, or because the pool's gate closed before their time.
    pub permits_late: Counter,
    /// How often work had to wait for a permit.
    pub limit_waits: Counter,
    callbacks: [Counter; CallbackOutcome::ALL.len()],
    pub in_flight: Gauge,
    /// 0 closed, 1 half open, 2 open.
    pub breaker_state: Gauge,
    /// 0 taken, 1 being tried, 2 refused.
    pub credentials_state: Gauge,
    /// What keeps all of its calls back.
    pub blocks: Blocks,
    pub waiting: Gauge,
    /// Accepted by the vendor and not answered.
    pub open: Gauge,
    pub oldest_waiting_seconds: Gauge<f64, AtomicU64>,
    latency: Histogram,
    /// A moving average in microseconds; 0 before the first call.
    recent_latency: Arc<AtomicU64>,
    ends: Ends,
    /// Those of all vendors.
    pub spans: Spans,
}

impl VendorMetrics {
    pub fn count_accepted(&self, now: Time) {
        self.accepted.inc();
        self.recent.accepted(now);
    }

    /// Counts the end of a job; nothing for a job that goes on.
    pub fn count_ended(&self, end: Option<End>) {
        if let Some(end) = end {
            self.ends.count(&end);
            self.recent.ended(&end);
        }
    }

    /// The same for a job as it is now, with its span.
    pub fn count_end_of(&self, job: &Job) {
        let end = End::of(job);
        self.count_ended(end);
        self.spans.add(self.spans.of_end(job, end));
    }

    pub fn count_call(&self, outcome: AttemptOutcome) {
        if let Some(at) = AttemptOutcome::ALL.iter().position(|one| *one == outcome) {
            self.outcomes[at].inc();
        }
    }

    pub fn count_callback(&self, outcome: CallbackOutcome) {
        if let Some(at) = CallbackOutcome::ALL.iter().position(|one| *one == outcome) {
            self.callbacks[at].inc();
        }
    }

    pub fn observe_latency(&self, took: Duration) {
        self.latency.observe(took.as_secs_f64());
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.recent_latency.load(Ordering::Relaxed);
        // If two calls end at the same moment, one of them may be left out: that does no harm.
        let mean = if before == 0 { took } else { before - before / 16 + took / 16 };
        self.recent_latency.store(mean.max(1), Ordering::Relaxed);
    }

    /// How long recent calls lasted; nothing if this process has made none.
    pub fn recent_latency(&self) -> Option<Duration> {
        Some(self.recent_latency.load(Ordering::Relaxed)).filter(|mean| *mean > 0).map(Duration::from_micros)
    }
}

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    vendors: BTreeMap<Arc<str>, VendorMetrics>,
    http_requests: Family<ByRoute, Counter>,
    http_latency: Histogram,
    webhooks: Family<ByOutcome, Counter>,
    limit_used: Family<ByPoolAndLimit, Gauge>,
    limit_calls: Family<ByPoolAndLimit, Gauge>,
    store_latency: Histogram,
    pub store_errors: Counter,
    /// Rung whenever a vendor's [`VendorMetrics::recent`] has counted something.
    pub changed: Arc<Notify>,
    pub spans: Spans,
}

impl Metrics {
    pub fn new(config: &Config, about: &About) -> Metrics {
        let (mut all, changed) = (Registry::default(), Arc::default());
        all.register_collector(Box::new(OfProcess::new(about.started_at)));
        let registry = all.sub_registry_with_prefix("fetchgate");
        let became: Family<ByOutcome, Counter> =
            family(registry, "spans", "Spans of traces that a collector took, or that were dropped");
        let spans_that = |outcome| became.get_or_create_owned(&ByOutcome { outcome });
        let spans = Spans::new(config.traces.as_ref(), spans_that("exported"), spans_that("dropped"));
        let names = config.vendors.iter().map(|vendor| vendor.name.clone());
        let vendors = register_vendors(registry, names, &changed, &spans);
        let limit_used = family(registry, "limit_used", "Calls that count against a limit now, read with each scrape");
        let limit_calls = family(registry, "limit_calls", "Calls that a limit allows in its period");
        let http_requests = Family::default();
        registry.register("http_requests", "HTTP requests answered, by route and status", http_requests.clone());
        let http_latency = latency();
        registry.register("http_request_seconds", "Time to answer HTTP requests", http_latency.clone());
        let webhooks: Family<ByOutcome, Counter> = Family::default();
        for outcome in ["try_again", "delivered", "gave_up"] {
            // From the start, so that alerts see the first one.
            webhooks.get_or_create_owned(&ByOutcome { outcome });
        }
        registry.register("result_webhooks", "Announcements of ends, by what came of each try", webhooks.clone());
        let store_latency = latency();
        registry.register("store_write_seconds", "Time until a submit or settle was durable", store_latency.clone());
        let store_errors = Counter::default();
        registry.register("store_errors", "Store operations that failed", store_errors.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What is running", build);
        let process = Info::new(vec![("role", about.roles.join(",")), ("config", about.config.clone())]);
        registry.register("process", "What this process does, and the hash of its config", process);
        Metrics {
            registry: all,
            vendors,
            http_requests,
            http_latency,
            webhooks,
            limit_used,
            limit_calls,
            store_latency,
            store_errors,
            changed,
            spans,
        }
    }

    /// Forgets what was known of limits, and notes these: a pool, a limit, how much of it is used, and how much there is.
    pub fn note_limits<'a>(&self, limits: impl IntoIterator<Item = (&'a str, &'a str, u64, u64)>) {
        self.limit_used.clear();
        self.limit_calls.clear();
        let number = |calls| i64::try_from(calls).unwrap_or(i64::MAX);
        for (pool, limit, used, calls) in limits {
            let labels = ByPoolAndLimit { pool: pool.to_owned(), limit: limit.to_owned() };
            self.limit_used.get_or_create_owned(&labels).set(number(used));
            self.limit_calls.get_or_create_owned(&labels).set(number(calls));
        }
    }

    /// The handles of a vendor; nothing if it is not in the config.
    pub fn vendor(&self, name: &str) -> Option<&VendorMetrics> {
        self.vendors.get(name)
    }

    pub fn vendors(&self) -> impl Iterator<Item = (&Arc<str>, &VendorMetrics)> {
        self.vendors.iter()
    }

    /// Counts an answer. The route is a pattern of ours, never a path; a method that we do not know counts as `other`.
    pub fn count_http(&self, method: &str, route: &str, status: u16, took: Duration) {
        const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let labels = ByRoute { method, route: route.to_owned(), status };
        self.http_requests.get_or_create_owned(&labels).inc();
        self.http_latency.observe(took.as_secs_f64());
    }

    /// Counts a try to announce the end of a job, by what it has come to with that.
    pub fn count_webhook(&self, status: DeliveryStatus) {
        let outcome = match status {
            DeliveryStatus::Pending => "try_again",
            DeliveryStatus::Delivered | DeliveryStatus::GaveUp => status.as_str(),
        };
        self.webhooks.get_or_create_owned(&ByOutcome { outcome }).inc();
    }

    /// Measures how long a write to the store takes, and counts it if it fails.
    pub async fn timed<T, E>(&self, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let started = Instant::now();
        let outcome = write.await;
        self.store_latency.observe(started.elapsed().as_secs_f64());
        if outcome.is_err() {
            self.store_errors.inc();
        }
        outcome
    }

    /// Everything, in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn latency() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// Registers the metrics of vendors, and resolves the handles of each.
fn register_vendors(
    registry: &mut Registry,
    names: impl IntoIterator<Item = Arc<str>>,
    changed: &Arc<Notify>,
    spans: &Spans,
) -> BTreeMap<Arc<str>, VendorMetrics> {
    let mut counter = |name, help| family::<ByVendor, Counter>(registry, name, help);
    let accepted = counter("jobs_accepted", "Jobs accepted");
    let throttled = counter("vendor_throttled", "Replies 429, and 503 with Retry-After");
    let unexplained = counter("vendor_throttled_unexplained", "Replies 429 although every configured limit was kept");
    let gate_closed = counter("vendor_gate_closed", "Times that the vendor had its pool's calls stopped for a while");
    let breaches = counter("limit_breaches", "Calls beyond a limit, found by the audit; must stay 0");
    let granted = counter("permits_granted", "Permits given by the limiter");
    let unused = counter("permits_unused", "Permits returned before their time");
    let late = counter("permits_late", "Permits missed: the worker woke up too late, or the vendor said to slow down");
    let limit_waits = counter("limit_waits", "How often work had to wait for a limit");
    let mut gauge = |name, help| family::<ByVendor, Gauge>(registry, name, help);
    let in_flight = gauge("in_flight", "HTTP calls in flight");
    let breaker_state = gauge("breaker_state", "The vendor's breaker: 0 closed, 1 half open, 2 open");
    let help = "Our credentials at the vendor: 0 taken, 1 refused and being tried, 2 refused";
    let credentials = gauge("credentials_state", help);
    let waiting = gauge("jobs_waiting", "Jobs that wait for a call or a poll");
    let open = gauge("jobs_open", "Jobs that the vendor has accepted and not answered");
    let oldest: Family<ByVendor, Gauge<f64, AtomicU64>> =
        family(registry, "oldest_waiting_seconds", "How long the oldest due job has waited");
    let latencies = Family::<ByVendor, Histogram>::new_with_constructor(latency);
    registry.register("vendor_latency_seconds", "Time from sending a call to its whole reply", latencies.clone());
    let mut outcomes = |name, help| family::<ByVendorAndOutcome, Counter>(registry, name, help);
    let calls = outcomes("vendor_calls", "Calls and polls, by what came of them");
    let callbacks = outcomes("callbacks", "Callbacks of vendors, by what came of them");
    let (ends, blocks) = (Ends::register(registry), Blocks::register(registry));
    let resolve = |name: Arc<str>| {
        let by = ByVendor { vendor: name.to_string() };
        let by_outcome = |outcome| ByVendorAndOutcome { vendor: name.to_string(), outcome };
        let outcomes = AttemptOutcome::ALL.map(|outcome| calls.get_or_create_owned(&by_outcome(outcome.as_str())));
        let callbacks =
            CallbackOutcome::ALL.map(|outcome| callbacks.get_or_create_owned(&by_outcome(outcome.as_str())));
        let metrics = VendorMetrics {
            accepted: accepted.get_or_create_owned(&by),
            recent: Arc::new(Recent::new(changed.clone())),
            calls: Counter::default(),
            outcomes,
            throttled: throttled.get_or_create_owned(&by),
            throttled_unexplained: unexplained.get_or_create_owned(&by),
            gate_closed: gate_closed.get_or_create_owned(&by),
            breaches: breaches.get_or_create_owned(&by),
            permits_granted: granted.get_or_create_owned(&by),
            permits_unused: unused.get_or_create_owned(&by),
            permits_late: late.get_or_create_owned(&by),
            limit_waits: limit_waits.get_or_create_owned(&by),
            callbacks,
            in_flight: in_flight.get_or_create_owned(&by),
            breaker_state: breaker_state.get_or_create_owned(&by),
            credentials_state: credentials.get_or_create_owned(&by),
            blocks: blocks(&name),
            waiting: waiting.get_or_create_owned(&by),
            open: open.get_or_create_owned(&by),
            oldest_waiting_seconds: oldest.get_or_create_owned(&by),
            latency: latencies.get_or_create_owned(&by),
            recent_latency: Arc::default(),
            ends: ends(&name),
            spans: spans.clone(),
        };
        (name, metrics)
    };
    names.into_iter().map(resolve).collect()
}
