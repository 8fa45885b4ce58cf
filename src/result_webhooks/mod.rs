//! Announcing the ends of jobs that have a `callback_url`: which receiver has its turn, and what an announcement may cost.
//!
//! Never holds up a call of a vendor, and never lets one receiver take what is for others: each has a turn of its own, and those that do
//! not answer share half of the places.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    guard::Guard,
    secrets::Secrets,
    send::{Lookup, Sender},
    turn::Ended,
};
use crate::{
    clock::{Clock, Nanos, nanos},
    job::{Job, ResultWebhook},
    store::{
        Store, StoreError,
        webhooks::{Outbox, Receiver},
    },
    telemetry::Metrics,
    vendor::tls::LiveTls,
};

pub mod guard;
pub mod secrets;
pub mod send;
mod turn;

/// Receivers that have their turn at once, and how many of them may be such as did not answer.
const PLACES: usize = 32;
const PLACES_OF_FAILING: usize = PLACES / 2;
/// Receivers that one look sees.
const PAGE: usize = 1000;
/// Looks are at least this far apart, so that ends that come together share them.
const GAP: Duration = Duration::from_millis(20);
/// How often to look for what was left by others, and for wake-ups that were missed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a receiver rests that did not answer: twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Receivers that are remembered as such.
const MOST_FAILING: usize = 10_000;

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
    /// Those that did not answer, or asked us to wait.
    failing: HashMap<Arc<str>, Failing>,
    turns: JoinSet<Ended>,
    /// Whose turn it is, and whether it is one of the failing.
    taking: HashMap<Id, (Arc<str>, bool)>,
    /// The next look begins after this name.
    after: Arc<str>,
}

struct Failing {
    in_a_row: u32,
    rests_until: Nanos,
}

impl Deliverer {
    pub fn new(cx: Arc<Context>) -> Deliverer {
        let (failing, turns, taking) = (HashMap::new(), JoinSet::new(), HashMap::new());
        Deliverer { cx, failing, turns, taking, after: "".into() }
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
            tokio::select! {
                () = clock.sleep_until_or_set(next) => {}
                () = signals.webhooks().notified() => {}
                Some(ended) = self.turns.join_next_with_id() => self.note(ended),
                () = stop.cancelled() => {}
            }
            tokio::select! {
                () = clock.sleep_until(looked_at + nanos(GAP)) => {}
                () = stop.cancelled() => {}
            }
        }
        cx.stop.cancel();
        self.finish_turns().await;
    }

    /// Begins the turns of receivers that something is due for. Says when to look again, unless woken or a turn ends.
    pub async fn tick(&mut self) -> Result<Nanos, StoreError> {
        while let Some(ended) = self.turns.try_join_next_with_id() {
            self.note(ended);
        }
        let (cx, began_at) = (self.cx.clone(), self.after.clone());
        let clock = &cx.clock;
        let page = cx.outbox.receivers(&began_at, PAGE).await?;
        let (now, is_full) = (clock.nanos(), page.len() == PAGE);
        let mut next = clock.next_beat(LOOK_EVERY);
        for Receiver { name, next_at } in page {
            let due = clock.nanos_at(next_at);
            let failing = self.failing.get(&name);
            let (at, is_failing) = (failing.map_or(due, |failing| failing.rests_until.max(due)), failing.is_some());
            let has_its_turn = self.taking.values().any(|(taking, _)| *taking == name);
            if at > now {
                next = next.min(at);
            } else if !has_its_turn {
                if self.taking.len() >= PLACES {
                    // The end of a turn wakes us, and the next look begins with this one.
                    return Ok(next);
                }
                let failing = self.taking.values().filter(|(_, is_failing)| *is_failing).count();
                if !is_failing || failing < PLACES_OF_FAILING {
                    self.begin(name.clone(), is_failing);
                }
            }
            self.after = name;
        }
        if !is_full {
            self.after = "".into();
        }
        // There are names after these, or before them.
        let sees_part = is_full || !began_at.is_empty();
        Ok(if sees_part { next.min(now + nanos(GAP)) } else { next })
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

    fn begin(&mut self, name: Arc<str>, is_failing: bool) {
        let turn = self.turns.spawn(turn::take(self.cx.clone(), name.clone(), is_failing));
        self.taking.insert(turn.id(), (name, is_failing));
    }

    /// Remembers how a turn ended.
    fn note(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = ended.unwrap_or_else(|error| {
            tracing::error!(%error, "announcing ends to a receiver panicked, which is a bug; it is tried again");
            (error.id(), Ended::NoAnswer)
        });
        let Some((name, _)) = self.taking.remove(&id) else { return };
        let in_a_row = self.failing.remove(&name).map_or(0, |failing| failing.in_a_row);
        let (in_a_row, rest) = match ended {
            Ended::Well => return,
            Ended::Idle | Ended::NoStore => (in_a_row, FIRST_REST),
            Ended::Asked(wait) => (in_a_row, wait),
            Ended::NoAnswer => (in_a_row.saturating_add(1), (FIRST_REST * (1 << in_a_row.min(6))).min(LONGEST_REST)),
        };
        let now = self.cx.clock.nanos();
        if self.failing.len() >= MOST_FAILING {
            self.failing.retain(|_, failing| failing.rests_until > now);
        }
        if self.failing.len() < MOST_FAILING {
            self.failing.insert(name, Failing { in_a_row, rests_until: now.saturating_add(nanos(rest)) });
        }
    }
}
