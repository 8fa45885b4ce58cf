//! Announcing the ends of jobs that have a `callback_url`: which receiver has its turn, and what an announcement may cost.
//!
//! Never holds up a call of a vendor, and never lets one receiver take what is for others: each has a turn of its own, and those that
//! answered promptly the last time have turns that no other receiver can take.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    secrets::Secrets,
    send::{Lookup, Sender},
    turn::Ended,
};
use crate::{
    clock::{Clock, Nanos, Time, nanos},
    guard::Guard,
    job::{Job, ResultWebhook},
    store::{
        Store, StoreError,
        webhooks::{Outbox, Receiver},
    },
    telemetry::Metrics,
    vendor::tls::LiveTls,
};

pub mod secrets;
pub mod send;
mod turn;

/// Turns at once, at most: so many of receivers that answered promptly the last time, and as many of all others. These failed, were slow, or
/// are not known yet, and each of them may take all the time that a receiver has to answer.
const MOST_TURNS: usize = 32;
/// Receivers that one look sees.
const PAGE: usize = 1000;
/// Looks are at least this far apart, so that ends that come together share them, and so far that they take a fifth of the time at most.
const GAP: Duration = Duration::from_millis(20);
const LONGEST_GAP: Duration = Duration::from_secs(1);
/// How often to look for what was left by others, and for wake-ups that were missed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a receiver rests that did not answer: twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How long a receiver rests whose turn came to nothing, because another process was faster, or this version cannot read the jobs: twice as
/// long each time, four times at most.
const SHORT_REST: Duration = Duration::from_millis(100);
/// Nothing waits for longer than this; what seems to was stored before the wall clock was set back.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 3600);
/// Receivers that are remembered.
const MOST_KNOWN: usize = 10_000;

/// What announcing needs; the API uses it to check URLs and to show secrets.
pub struct Context {
    store: Arc<dyn Store>,
    pub outbox: Arc<dyn Outbox>,
    sender: Sender,
    pub secrets: Secrets,
    metrics: Arc<Metrics>,
    clock: Clock,
    give_up_after: Duration,
    show: Show,
    /// Nothing more is begun.
    stop: CancellationToken,
}

/// Writes a job as its receiver gets it, and whether its result was left out.
pub type Show = fn(&Job, bool) -> Vec<u8>;

/// The parts of a [`Context`].
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub outbox: Arc<dyn Outbox>,
    pub guard: Guard,
    pub lookup: Lookup,
    pub secrets: Secrets,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    /// After this much time without success it is not tried again.
    pub give_up_after: Duration,
    pub show: Show,
}

impl Context {
    pub fn new(parts: Parts) -> Context {
        let Parts { store, outbox, guard, lookup, secrets, metrics, clock, give_up_after, show } = parts;
        let (sender, stop) = (Sender { guard, lookup, tls: LiveTls::of_machine() }, CancellationToken::new());
        Context { store, outbox, sender, secrets, metrics, clock, give_up_after, show, stop }
    }

    /// What a job with this `callback_url` owes; or what is wrong with the URL.
    pub fn webhook(&self, callback_url: &str) -> Result<ResultWebhook, String> {
        if callback_url.len() > ResultWebhook::MAX_URL {
            return Err(format!("is longer than {} bytes", ResultWebhook::MAX_URL));
        }
        let target = self.sender.guard.target(callback_url)?;
        Ok(ResultWebhook::new(callback_url.into(), target.origin.to_string().into()))
    }
}

/// Gives receivers their turns.
pub struct Deliverer {
    cx: Arc<Context>,
    known: HashMap<Arc<str>, Known>,
    turns: JoinSet<Ended>,
    taking: HashMap<Id, Taking>,
    /// All receivers are looked at page by page: the next page begins after this name.
    after: Arc<str>,
    /// When to look again, by the pages before.
    next: Nanos,
    /// More came while some pages had been looked at.
    has_news: bool,
}

/// What the last turn of a receiver has shown.
#[derive(Default)]
struct Known {
    is_prompt: bool,
    /// Turns without an answer, one after the other.
    silent: u32,
    /// Turns that came to nothing, one after the other.
    idle: u32,
    /// It has no turn before this; if that is past, this is when its last turn ended.
    rests_until: Nanos,
}

/// A turn that has begun.
struct Taking {
    name: Arc<str>,
    is_prompt: bool,
}

impl Deliverer {
    pub fn new(cx: Arc<Context>) -> Deliverer {
        let (known, turns, taking) = (HashMap::new(), JoinSet::new(), HashMap::new());
        Deliverer { cx, known, turns, taking, after: "".into(), next: 0, has_news: false }
    }

    /// Runs until `stop`, then finishes what is being sent.
    pub async fn run(mut self, stop: CancellationToken) {
        let cx = self.cx.clone();
        let (clock, signals) = (&cx.clock, cx.store.signals());
        while !stop.is_cancelled() {
            let looked_at = clock.nanos();
            let next = self.tick().await.unwrap_or_else(|error| {
                tracing::debug!(%error, "what is to be announced could not be read; trying again in a second");
                clock.nanos() + nanos(Duration::from_secs(1))
            });
            let a_fifth = (clock.nanos() - looked_at).saturating_mul(5);
            tokio::select! {
                () = clock.sleep_until_or_set(next) => {}
                () = signals.webhooks().notified() => self.has_news = !self.after.is_empty(),
                Some(ended) = self.turns.join_next_with_id() => self.note(ended),
                () = stop.cancelled() => {}
            }
            tokio::select! {
                () = clock.sleep_until(looked_at + a_fifth.clamp(nanos(GAP), nanos(LONGEST_GAP))) => {}
                () = stop.cancelled() => {}
            }
        }
        cx.stop.cancel();
        self.finish_turns().await;
    }

    /// Looks at a page of receivers and begins the turns of those that something is due for, up to `MOST_TURNS`: whoever has waited
    /// longest comes first. Says when to look again, unless woken or a turn ends.
    pub async fn tick(&mut self) -> Result<Nanos, StoreError> {
        while let Some(ended) = self.turns.try_join_next_with_id() {
            self.note(ended);
        }
        let page = self.cx.outbox.receivers(&self.after, PAGE).await?;
        let now = self.cx.clock.nanos();
        if self.after.is_empty() {
            self.next = self.cx.clock.next_beat(LOOK_EVERY);
        }
        let last = page.get(PAGE - 1).map(|last| last.name.clone());
        let mut due = Vec::new();
        for Receiver { name, next_at } in page {
            let at = self.waits_since(&name, next_at);
            if at > now {
                self.next = self.next.min(at);
            } else if !self.taking.values().any(|taking| taking.name == name) {
                due.push((at, name));
            }
        }
        due.sort_unstable();
        for (_, name) in due {
            self.begin(name);
        }
        let is_whole = last.is_none() && !std::mem::take(&mut self.has_news);
        self.after = last.unwrap_or_default();
        // Where there was no place, the end of a turn wakes us.
        Ok(if is_whole { self.next } else { now + nanos(GAP) })
    }

    /// When a receiver's next turn is due, if its first announcement is due at `next_at`.
    fn waits_since(&self, name: &Arc<str>, next_at: Time) -> Nanos {
        let clock = &self.cx.clock;
        let is_of_another_clock = next_at > clock.now().plus(LONGEST_WAIT);
        let due = if is_of_another_clock { clock.nanos() } else { clock.nanos_at(next_at) };
        self.known.get(name).map_or(due, |known| known.rests_until.max(due))
    }

    /// Waits for the turns that have begun; says whether there were any.
    pub async fn finish_turns(&mut self) -> bool {
        let mut any = false;
        while let Some(ended) = self.turns.join_next_with_id().await {
            self.note(ended);
            any = true;
        }
        any
    }

    /// Begins a receiver's turn, if it has a place.
    fn begin(&mut self, name: Arc<str>) {
        let known = self.known.get(&name);
        let is_prompt = known.is_some_and(|known| known.is_prompt);
        if self.taking.values().filter(|taking| taking.is_prompt == is_prompt).count() < MOST_TURNS {
            let answers = known.is_some_and(|known| known.silent == 0);
            let turn = self.turns.spawn(turn::take(self.cx.clone(), name.clone(), answers));
            self.taking.insert(turn.id(), Taking { name, is_prompt });
        }
    }

    /// Remembers how a turn ended.
    fn note(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = ended.unwrap_or_else(|error| {
            tracing::error!(%error, "announcing ends to a receiver panicked, which is a bug; it is tried again");
            (error.id(), Ended::NoAnswer)
        });
        let Some(Taking { name, .. }) = self.taking.remove(&id) else { return };
        let Known { is_prompt, silent, idle, .. } = self.known.remove(&name).unwrap_or_default();
        let (is_prompt, silent, rest) = match ended {
            Ended::Well => (true, 0, Duration::ZERO),
            Ended::Slowly => (false, 0, Duration::ZERO),
            Ended::Asked(wait) => (is_prompt, 0, wait),
            Ended::NoAnswer => (false, silent.saturating_add(1), (FIRST_REST * (1 << silent.min(6))).min(LONGEST_REST)),
            // These say nothing of the receiver.
            Ended::Idle => (is_prompt, silent, SHORT_REST * (1 << idle.min(4))),
            Ended::NoStore => (is_prompt, silent, FIRST_REST),
        };
        let idle = if ended == Ended::Idle { idle.saturating_add(1) } else { 0 };
        if self.known.len() >= MOST_KNOWN {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.rests_until);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.known.remove(&name);
            }
        }
        let rests_until = self.cx.clock.nanos().saturating_add(nanos(rest));
        self.known.insert(name, Known { is_prompt, silent, idle, rests_until });
    }
}
