//! The turn of one receiver: some of what is due for it is claimed, sent side by side, and settled one by one.
//!
//! Never sends what it has not claimed, and never claims more than it can send before the claim lapses.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{Context, LONGEST_WAIT, send::Message};
use crate::{
    clock::{Time, nanos},
    job::{DeliveryStatus, Job, JobId, ResultWebhook, Tried},
    store::{Sees, StoreError, With, webhooks::WebhookChange},
    vendor::http::Client,
};

/// Messages in flight to one receiver at most, once it has answered.
const AT_ONCE: usize = 8;
/// Messages claimed for each of these at once.
const EACH: usize = 4;
/// A turn claims nothing more after this, so that others have their turn. Nor does it send what was claimed longer ago, so that whatever was
/// sent is settled before its claim lapses.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// A receiver that takes longer than this for an answer is slow.
const SLOW: Duration = Duration::from_secs(2);
/// A claim lapses after this and up to [`SPREAD`] more, so that two claims hardly ever lapse at the same time.
const CLAIM: Duration = Duration::from_secs(60);
const SPREAD: Duration = Duration::from_secs(10);
/// How often it is tried to store what came of a message, a second apart.
const SETTLE_TRIES: usize = 5;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The receiver answered, whatever it said.
    Well,
    /// It answered, but took long for it.
    Slowly,
    /// There was nothing to send after all.
    Idle,
    NoAnswer,
    /// The receiver asked us to wait.
    Asked(Duration),
    /// The store is unavailable.
    NoStore,
}

/// Gives a receiver its turn. One that is not known to answer is sent one message at a time until it has.
pub(super) async fn take(cx: Arc<Context>, receiver: Arc<str>, answers: bool) -> Ended {
    let (began, mut at_once) = (Instant::now(), if answers { AT_ONCE } else { 1 });
    // The connections of this turn, and of no other: so there are never many.
    let client = cx.sender.client();
    let slowest = Mutex::default();
    while began.elapsed() < BEGIN_WITHIN && !cx.stop.is_cancelled() {
        let claimed = match claim(&cx, &receiver, at_once * EACH).await {
            Ok(claimed) if claimed.is_empty() => break,
            Ok(claimed) => claimed,
            Err(error) => return no_store(&error),
        };
        let batch = Batch {
            cx: &cx,
            client: &client,
            claimed: Mutex::new(claimed.into()),
            since: Instant::now(),
            slowest: &slowest,
            ended: Mutex::default(),
        };
        join_all((0..at_once).map(|_| batch.send())).await;
        if let Some(why) = batch.give_back().await {
            return why;
        }
        at_once = AT_ONCE;
    }
    match *lock(&slowest) {
        None => Ended::Idle,
        Some(took) if took > SLOW => Ended::Slowly,
        Some(_) => Ended::Well,
    }
}

fn no_store(error: &StoreError) -> Ended {
    tracing::debug!(%error, "ends of jobs could not be announced; trying again");
    Ended::NoStore
}

/// Claims some of the announcements that are due for a receiver, so that no other process sends them meanwhile.
async fn claim(cx: &Context, receiver: &Arc<str>, most: usize) -> Result<Vec<WebhookChange>, StoreError> {
    let now = cx.clock.now();
    let until = now.plus(CLAIM + SPREAD.mul_f64(fastrand::f64()));
    let claimed = |(id, was): (JobId, ResultWebhook)| {
        let is = ResultWebhook { next_at: Some(until), ..was.clone() };
        WebhookChange { id, was, is }
    };
    let claims: Vec<WebhookChange> = due(cx, receiver, now, most).await?.into_iter().map(claimed).collect();
    let is_ours = cx.outbox.change(claims.clone()).await?;
    Ok(claims.into_iter().zip(is_ours).filter(|(_, is_ours)| *is_ours).map(|(claim, _)| claim).collect())
}

/// What is due for a receiver. If nothing is: what would have to wait for far too long, because it was stored before the wall clock was set back.
async fn due(
    cx: &Context,
    receiver: &Arc<str>,
    now: Time,
    most: usize,
) -> Result<Vec<(JobId, ResultWebhook)>, StoreError> {
    let due = cx.outbox.due(receiver, now, most).await?;
    if !due.is_empty() {
        return Ok(due);
    }
    let longest = now.plus(LONGEST_WAIT);
    let mut later = cx.outbox.due(receiver, Time(i64::MAX), most).await?;
    later.retain(|(_, webhook)| webhook.next_at.is_some_and(|at| at > longest));
    Ok(later)
}

/// What was claimed together.
struct Batch<'a> {
    cx: &'a Context,
    client: &'a Client,
    claimed: Mutex<VecDeque<WebhookChange>>,
    since: Instant,
    /// The longest that an answer took in this turn, if any came.
    slowest: &'a Mutex<Option<Duration>>,
    /// Why the rest is not sent now.
    ended: Mutex<Option<Ended>>,
}

impl Batch<'_> {
    /// Sends one message after the other until none is left; called several times side by side.
    async fn send(&self) {
        while let Some(claim) = self.next() {
            self.announce(claim.id, &claim.is).await;
        }
    }

    fn next(&self) -> Option<WebhookChange> {
        let is_over = lock(&self.ended).is_some() || self.cx.stop.is_cancelled();
        if is_over || self.since.elapsed() > BEGIN_WITHIN { None } else { lock(&self.claimed).pop_front() }
    }

    async fn announce(&self, id: JobId, claimed: &ResultWebhook) {
        let Context { store, clock, give_up_after, .. } = self.cx;
        let with = With { payload: false, result: !claimed.omits_result };
        let job = match store.find(&Sees::All, id, with).await {
            Ok(Some(job)) => job,
            // It was erased.
            Ok(None) => return,
            // It is looked at again when the claim has lapsed, and keeps nobody waiting until then.
            Err(StoreError::Corrupt(why)) => {
                tracing::error!(request_id = %id, why, "a job cannot be read, so its end is not announced; run the version that wrote it");
                return;
            }
            Err(error) => return self.end(no_store(&error)),
        };
        let is = if job.status.has_ended() {
            let message = self.message(job, claimed.omits_result);
            let began = Instant::now();
            let tried = self.cx.sender.send(self.client, &claimed.url, message, clock.now()).await;
            self.note(&tried, began.elapsed());
            let is = claimed.after(tried, *give_up_after, fastrand::f64(), clock.now());
            self.cx.metrics.count_webhook(is.status);
            is
        } else {
            // It was replayed meanwhile, and has another end.
            claimed.unsent()
        };
        self.settle(WebhookChange { id, was: claimed.clone(), is }).await;
    }

    /// What a try says of the receiver.
    fn note(&self, tried: &Tried, took: Duration) {
        if let Tried::Failed { status: None, .. } = tried {
            return self.end(Ended::NoAnswer);
        }
        if let Tried::Failed { wait: Some(wait), .. } = tried {
            self.end(Ended::Asked(*wait));
        }
        let mut slowest = lock(self.slowest);
        *slowest = (*slowest).max(Some(took));
    }

    /// The job as it is sent.
    fn message(&self, job: Job, omits_result: bool) -> Message {
        let (id, tenant) = (format!("{}-{}", job.id, job.run), job.lane.tenant.clone());
        let body = (self.cx.show)(&Job { webhook: None, ..job }, omits_result);
        let timestamp = self.cx.clock.now().0.div_euclid(1000).to_string();
        let signature = self.cx.secrets.sign(&tenant, &id, &timestamp, &body);
        Message { id, timestamp, signature, body: body.into() }
    }

    async fn settle(&self, change: WebhookChange) {
        let Context { outbox, clock, .. } = self.cx;
        let WebhookChange { id, is, .. } = &change;
        if is.status == DeliveryStatus::GaveUp {
            let (receiver, attempts, why) = (&is.receiver, is.attempts, is.last_error.as_deref().unwrap_or_default());
            tracing::warn!(request_id = %id, %receiver, attempts, why, "its end is not announced any more; POST /jobs/{{id}}/result-webhook sends it again");
        }
        for _ in 0..SETTLE_TRIES {
            match outbox.change(vec![change.clone()]).await {
                // If nothing was changed, somebody has had it sent again meanwhile: it stays as it is.
                Ok(_) => return,
                Err(error) => self.end(no_store(&error)),
            }
            clock.sleep_until(clock.nanos() + nanos(Duration::from_secs(1))).await;
        }
        tracing::warn!(request_id = %id, "what came of announcing its end could not be stored; it is announced again");
    }

    fn end(&self, why: Ended) {
        lock(&self.ended).get_or_insert(why);
    }

    /// Makes what was not sent due again, as it was before the claim. Returns why the turn is over, if it is.
    async fn give_back(self) -> Option<Ended> {
        let left = self.claimed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let back = left.into_iter().map(|WebhookChange { id, was, is }| WebhookChange { id, was: is, is: was });
        let given = self.cx.outbox.change(back.collect()).await;
        let ended = self.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        ended.or(given.err().map(|error| no_store(&error)))
    }
}

/// A panic elsewhere leaves nothing here half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
