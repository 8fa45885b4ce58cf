//! The spans of jobs, for traces (OpenTelemetry): the job itself, each wait for a permit, each call, and each callback.
//!
//! Never keeps a job waiting: what a collector does not take in time is dropped and counted. A span never has a payload, a URL or a vendor's
//! words in it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock, Time},
    config::Collector,
    job::{Attempt, AttemptKind, End, Job, Status, Trace},
    otlp::{Exporter, Kind, Refused, Span},
};

/// Spans that wait for the collector at most, about 4 MiB.
const MOST: usize = 8192;
/// Spans of one request at most.
const BATCH: usize = 512;
/// How long a span waits for others, to go out with them.
const EVERY: Duration = Duration::from_secs(5);

/// Where spans go. Cheap to clone; without a collector it does nothing.
#[derive(Clone)]
pub struct Spans(Option<Arc<Open>>);

struct Open {
    exporter: Exporter,
    queue: Mutex<VecDeque<Span>>,
    /// Rung when there is enough for a request.
    has_batch: Notify,
    is_failing: AtomicBool,
    exported: Counter,
    dropped: Counter,
}

impl Spans {
    pub fn new(collector: Option<&Collector>, exported: Counter, dropped: Counter) -> Spans {
        let open = |collector: &Collector| Open {
            exporter: Exporter::new(collector.clone()),
            queue: Mutex::default(),
            has_batch: Notify::new(),
            is_failing: AtomicBool::new(false),
            exported,
            dropped,
        };
        Spans(collector.map(|collector| Arc::new(open(collector))))
    }

    /// A call or a poll that is over, and the wait for its permit. `sent` is what it carried as `traceparent`, if it went out.
    pub fn called(&self, job: &Job, attempt: &Attempt, sent: Option<Trace>, took: Duration) {
        let Some(open) = self.of(job) else { return };
        let (parent, start) = (job.trace(), nanos(Time(attempt.sent_at.unwrap_or(attempt.permit_at))));
        let wait = nanos(job.due_at).min(start)..start;
        open.add(about(
            Span::new(fresh(parent), Some(parent.span), "wait for a permit".into(), Kind::Internal, wait),
            job,
        ));
        let verb = match attempt.kind {
            AttemptKind::Call => "call",
            AttemptKind::Poll => "poll",
        };
        let (own, name) = (sent.unwrap_or_else(|| fresh(parent)), format!("{verb} {}", job.lane.vendor));
        let span = Span::new(own, Some(parent.span), name, Kind::Client, start..start + took.as_nanos());
        let outcome = attempt.outcome.as_str();
        let mut span = about(span, job).with_number("fetchgate.attempt", attempt.n).with("fetchgate.outcome", outcome);
        if let Some(status) = attempt.status {
            span = span.with_number("http.response.status_code", status);
        }
        open.add(if attempt.outcome.is_failure() { span.failed(outcome) } else { span });
    }

    /// A callback that changed its job.
    pub fn called_back(&self, job: &Job, from: Time, to: Time) {
        let Some(open) = self.of(job) else { return };
        let (parent, name) = (job.trace(), format!("callback {}", job.lane.vendor));
        let span = Span::new(fresh(parent), Some(parent.span), name, Kind::Server, nanos(from)..nanos(to));
        open.add(about(span, job));
    }

    /// The span of a job that ends like this, for [`Spans::add`] once the end is stored. It begins with the job's submit, also after a replay.
    pub(crate) fn of_end(&self, job: &Job, end: Option<End>) -> Option<Span> {
        let (_, end) = (self.of(job)?, end?);
        let times = nanos(job.id.created_at())..nanos(end.at);
        let (parent, name) = (job.caller.map(|caller| caller.span), format!("job {}", job.lane.vendor));
        let span = Span::new(job.trace(), parent, name, Kind::Consumer, times);
        let span = about(span, job).with("fetchgate.status", end.status.as_str());
        let code = end.code.map(|code| code.as_str());
        let is_failure = matches!(end.status, Status::Failed | Status::Expired);
        Some(if is_failure { span.failed(code.unwrap_or(end.status.as_str())) } else { span })
    }

    pub(crate) fn add(&self, span: Option<Span>) {
        if let (Some(open), Some(span)) = (&self.0, span) {
            open.add(span);
        }
    }

    /// Sends what there is every few seconds, and as soon as a request is full, until `stop`; then the rest, once.
    pub async fn run(self, clock: Clock, stop: CancellationToken) {
        let Some(open) = &self.0 else { return };
        while !stop.is_cancelled() {
            tokio::select! {
                () = clock.sleep_until(clock.next_beat(EVERY)) => {}
                () = open.has_batch.notified() => {}
                () = stop.cancelled() => {}
            }
            self.flush().await;
        }
        let left = open.queue().len();
        open.dropped.inc_by(left as u64);
    }

    /// Sends what there is, request after request, until all is sent or the collector does not take it.
    pub async fn flush(&self) {
        let Some(open) = &self.0 else { return };
        loop {
            let batch = open.take();
            if batch.is_empty() {
                return;
            }
            let (sent, count) = (open.exporter.send(&batch).await, batch.len() as u64);
            let refused = match sent {
                Ok(()) => {
                    open.exported.inc_by(count);
                    if open.is_failing.swap(false, Ordering::Relaxed) {
                        tracing::info!("traces are sent again");
                    }
                    continue;
                }
                Err(refused) => refused,
            };
            let (reason, is_over) = match refused {
                Refused::ForNow(reason) => {
                    open.put_back(batch);
                    (reason, true)
                }
                Refused::ForGood(reason) => {
                    open.dropped.inc_by(count);
                    (reason, false)
                }
            };
            if !open.is_failing.swap(true, Ordering::Relaxed) {
                let collector = open.exporter.collector().origin.to_string();
                tracing::warn!(
                    collector,
                    reason,
                    "traces cannot be sent; fetchgate_spans_total counts those that are dropped"
                );
            }
            if is_over {
                return;
            }
        }
    }

    /// Where a job's spans go, if its trace is sampled.
    fn of(&self, job: &Job) -> Option<&Open> {
        self.0.as_deref().filter(|open| open.exporter.collector().sampler.takes(job))
    }
}

impl Open {
    fn add(&self, span: Span) {
        let mut queue = self.queue();
        if queue.len() >= MOST {
            self.dropped.inc();
            return;
        }
        queue.push_back(span);
        if queue.len() == BATCH {
            self.has_batch.notify_one();
        }
    }

    fn take(&self) -> Vec<Span> {
        let mut queue = self.queue();
        let most = queue.len().min(BATCH);
        queue.drain(..most).collect()
    }

    /// What does not fit any more is dropped.
    fn put_back(&self, mut batch: Vec<Span>) {
        let mut queue = self.queue();
        let too_many = (queue.len() + batch.len()).saturating_sub(MOST).min(batch.len());
        self.dropped.inc_by(too_many as u64);
        for span in batch.drain(too_many..).rev() {
            queue.push_front(span);
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new child of a span.
fn fresh(parent: Trace) -> Trace {
    parent.with_span(fastrand::u64(1..))
}

/// What all spans of a job say.
fn about(span: Span, job: &Job) -> Span {
    span.with("fetchgate.vendor", &*job.lane.vendor).with("fetchgate.request_id", job.id.to_string())
}

fn nanos(time: Time) -> u128 {
    u128::try_from(time.0).unwrap_or(0) * 1_000_000
}
