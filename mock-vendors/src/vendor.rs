//! Everything that one pretend vendor remembers: journal, script, its own limit, tickets, what became of its callbacks.
//!
//! One small lock per vendor, never held over an await.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;

use crate::answer::Answer;
use crate::enforce::{Gate, Limit};
use crate::journal::{Arrival, Journal, Stats};
use crate::oauth::Logins;

/// Polled work kept per name, by number and by bytes; the oldest is forgotten first.
const TICKETS: usize = 100_000;
const TICKET_BYTES: usize = 256 << 20;
/// Tokens whose first call is remembered per name.
const TOKENS: usize = 1000;
/// Statuses of callback answers kept per name.
const REPLIES: usize = 100_000;

pub(crate) struct Vendor {
    pub(crate) name: String,
    in_flight: AtomicUsize,
    state: Mutex<State>,
    logins: Mutex<Logins>,
}

struct State {
    journal: Journal,
    script: VecDeque<Answer>,
    gate: Gate,
    max_in_flight: usize,
    rejected: u64,
    callbacks: CallbackLog,
    // Not reset with the journal: an id given out before must not come back as another one.
    last_ticket: u64,
    tickets: BTreeMap<u64, Ticket>,
    ticket_bytes: usize,
    /// When each token came first.
    tokens: HashMap<Option<HeaderValue>, Instant>,
}

#[derive(Default)]
struct CallbackLog {
    replies: VecDeque<u16>,
    forged: VecDeque<u16>,
    ok: u64,
    bad: u64,
    forged_refused: u64,
    forged_accepted: u64,
}

/// Accepted work that is asked for.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) call: u64,
    pub(crate) echo: Bytes,
    pub(crate) since: Instant,
    pub(crate) asked: u64,
    pub(crate) polls: Option<u64>,
    pub(crate) ready: Option<Duration>,
    pub(crate) failed: bool,
}

/// A call that has been written down; it counts as in flight until this is dropped.
pub(crate) struct Visit {
    pub(crate) vendor: Arc<Vendor>,
    pub(crate) call: u64,
    pub(crate) over_limit: bool,
    pub(crate) scripted: Option<Answer>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.vendor.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Vendor {
    pub(crate) fn new(name: &str, epoch: Instant) -> Vendor {
        let state = State {
            journal: Journal::new(epoch),
            script: VecDeque::new(),
            gate: Gate::default(),
            max_in_flight: 0,
            rejected: 0,
            callbacks: CallbackLog::default(),
            last_ticket: 0,
            tickets: BTreeMap::new(),
            ticket_bytes: 0,
            tokens: HashMap::new(),
        };
        Vendor { name: name.into(), in_flight: AtomicUsize::new(0), state: Mutex::new(state), logins: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not turn every later call of a test into another panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn logins(&self) -> MutexGuard<'_, Logins> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the call down and looks, under the same lock, at what was planned for it.
    pub(crate) fn arrive(self: &Arc<Vendor>, at: Instant, head: Parts, submits: bool, limit: Option<Limit>) -> Visit {
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state();
        state.max_in_flight = state.max_in_flight.max(in_flight);
        let call = state.journal.arrive(at, head, submits);
        let scripted = state.script.pop_front();
        let now = state.journal.nanos(at);
        let over_limit = scripted.is_none() && limit.is_some_and(|limit| !state.gate.admit(now, in_flight, &limit));
        Visit { vendor: Arc::clone(self), call, over_limit, scripted }
    }

    pub(crate) fn keep_body(&self, call: u64, body: &Bytes) {
        if !body.is_empty() {
            self.state().journal.keep_body(call, body);
        }
    }

    /// How long ago this token came first; with too many of them all begin anew.
    pub(crate) fn token_age(&self, token: Option<HeaderValue>, now: Instant) -> Duration {
        let mut state = self.state();
        if state.tokens.len() >= TOKENS && !state.tokens.contains_key(&token) {
            state.tokens.clear();
        }
        now.saturating_duration_since(*state.tokens.entry(token).or_insert(now))
    }

    pub(crate) fn note_rejected(&self) {
        self.state().rejected += 1;
    }

    pub(crate) fn script(&self, answers: Vec<Answer>) {
        self.state().script.extend(answers);
    }

    /// A new id `<name>-<n>` for accepted work.
    pub(crate) fn next_id(&self) -> String {
        let mut state = self.state();
        state.last_ticket += 1;
        format!("{}-{}", self.name, state.last_ticket)
    }

    /// Keeps accepted work to be asked for, and gives its id.
    pub(crate) fn open_ticket(&self, ticket: Ticket) -> String {
        let mut state = self.state();
        state.last_ticket += 1;
        state.ticket_bytes += ticket.echo.len();
        let number = state.last_ticket;
        state.tickets.insert(number, ticket);
        while state.tickets.len() > TICKETS || state.ticket_bytes > TICKET_BYTES {
            let Some((_, oldest)) = state.tickets.pop_first() else { break };
            state.ticket_bytes -= oldest.echo.len();
        }
        format!("{}-{number}", self.name)
    }

    /// One ask for this work: the ticket as it was before, with `asked` counted up for the next time.
    pub(crate) fn ask(&self, id: &str) -> Option<Ticket> {
        let number = id.strip_prefix(self.name.as_str())?.strip_prefix('-')?.parse().ok()?;
        let mut state = self.state();
        let ticket = state.tickets.get_mut(&number)?;
        let before = ticket.clone();
        ticket.asked += 1;
        Some(before)
    }

    /// What a callback was answered; 0 for no answer.
    pub(crate) fn note_reply(&self, status: u16) {
        keep(&mut self.state().callbacks.replies, status);
    }

    pub(crate) fn note_delivered(&self, ok: bool) {
        let log = &mut self.state().callbacks;
        if ok { log.ok += 1 } else { log.bad += 1 }
    }

    pub(crate) fn note_forged(&self, status: u16) {
        let log = &mut self.state().callbacks;
        keep(&mut log.forged, status);
        match status {
            200..=299 => log.forged_accepted += 1,
            400..=499 => log.forged_refused += 1,
            _ => {}
        }
    }

    pub(crate) fn replies(&self) -> Vec<u16> {
        self.state().callbacks.replies.iter().copied().collect()
    }

    pub(crate) fn forged_replies(&self) -> Vec<u16> {
        self.state().callbacks.forged.iter().copied().collect()
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.state().journal.arrivals()
    }

    pub(crate) fn count(&self) -> u64 {
        self.state().journal.counts().count
    }

    pub(crate) fn times(&self) -> Vec<Instant> {
        let (epoch, times) = {
            let state = self.state();
            (state.journal.epoch(), state.journal.times())
        };
        times.into_iter().map(|nanos| epoch + Duration::from_nanos(nanos)).collect()
    }

    pub(crate) fn stats(&self, window: Duration, n: Option<usize>) -> Stats {
        let (stats, times) = {
            let state = self.state();
            let log = &state.callbacks;
            let stats = Stats {
                max_in_flight: state.max_in_flight,
                rejected: state.rejected,
                callbacks_ok: log.ok,
                callbacks_bad: log.bad,
                forged_refused: log.forged_refused,
                forged_accepted: log.forged_accepted,
                ..state.journal.counts()
            };
            (stats, state.journal.times())
        };
        stats.with_times(&times, window, n)
    }

    /// Forgets what was counted. Script and tickets stay: they are what the vendor is, not what it saw.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.journal = Journal::new(state.journal.epoch());
        state.gate = Gate::default();
        state.max_in_flight = self.in_flight.load(Ordering::Relaxed);
        state.rejected = 0;
        state.callbacks = CallbackLog::default();
    }
}

fn keep(statuses: &mut VecDeque<u16>, status: u16) {
    if statuses.len() == REPLIES {
        statuses.pop_front();
    }
    statuses.push_back(status);
}
