//! Pretend vendors with real sockets: scripted answers, faults, callbacks, and a journal of what arrived when.
//!
//! They prove the wire contract, so they never see Fetchgate's types. A call travels `server` (sockets) → `routes` →
//! `calls` (journal, refusals, latency, faults) → `sync`, `webhook` or `polling`; `vendor` and `journal` remember,
//! `enforce` counts as vendors do, `callbacks` and `post` call back. The parameters of a call are in `behave`; `GET /` lists them.

mod answer;
mod behave;
mod callbacks;
mod calls;
mod enforce;
mod faults;
mod journal;
mod oauth;
mod polling;
mod post;
mod reply;
mod routes;
mod server;
mod sign;
mod sync;
mod text;
mod vendor;
mod webhook;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub use answer::Answer;
pub use faults::Fault;
pub use journal::{Arrival, Stats};

use callbacks::Callbacks;
use vendor::Vendor;

/// Names that one server remembers; calls of others are answered 503.
const NAMES: usize = 10_000;

/// What `--help` says of the routes and the parameters; `GET /` says the same to programs.
pub const HELP: &str = "\
Every name is a vendor of its own:
  /sync/NAME       answers at once
  /async/NAME      answers 202 and calls back
  /polling/NAME    answers 202, and says when asked whether it is done
  /oauth/token     answers with an access token
  /at/HOST/PATH    answers what a test has scripted
  /stats/NAME      what arrived; DELETE forgets it
  /refuse?for_ms=  (POST) closes the port for so long
  /                all of this as JSON

Query parameters of a call say how it is answered, such as /sync/x?status=403&retry_after=1&first=3:
  answers    latency_ms, status, body, failed, retry_after, header=name:value, first
  bodies     gzip, body_ms, cut
  refusals   fail_first, fail_every, throttle_first, token_ms, max with per_ms, enforce, phase_ms, burst
  faults     fault=hang|reset|truncate|garbage|notutf8|empty|big|badhttp|deep|text|redirect, size, fault_every, accepted
  callbacks  callback=early|never|forged|failed, callback_ms, callback_times, callback_gap_ms, callback_retries,
             callback_ptr, request_id_ptr, sign_secret
  polls      polls, ready_ms
  tokens     expires_in, token_from";

/// A running server. Dropping it ends its tasks soon, `stop` ends them before it returns.
pub struct MockVendors {
    address: SocketAddr,
    world: Arc<World>,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

/// What all connections share.
pub(crate) struct World {
    // Before every arrival: a time from before its journal's epoch could not be written down.
    epoch: Instant,
    vendors: RwLock<HashMap<String, Arc<Vendor>>>,
    pub(crate) callbacks: Callbacks,
    pub(crate) refusals: mpsc::Sender<server::Refusal>,
}

impl MockVendors {
    /// Listens on an address such as `127.0.0.1:0` (0: any free port) and serves on the current runtime.
    pub async fn start(listen: &str) -> io::Result<MockVendors> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (refusals, refused) = mpsc::channel(1);
        let callbacks = Callbacks::new();
        let world = Arc::new(World { epoch: Instant::now(), vendors: RwLock::default(), callbacks, refusals });
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(server::run(listener, Arc::clone(&world), refused, stopped));
        Ok(MockVendors { address, world, stop, tasks })
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next calls of this name (polls too) get these answers, in order; then its behaviour is normal again.
    ///
    /// # Panics
    /// When HTTP cannot carry an answer, or with too many names.
    pub fn script(&self, name: &str, answers: Vec<Answer>) {
        answers.iter().for_each(Answer::check);
        self.world.vendor(name).expect("fewer than 10,000 names").script(answers);
    }

    /// From now on calls of this name (polls too) are answered 401 unless their `Authorization` is one of these.
    ///
    /// # Panics
    /// With too many names.
    pub fn accept_only(&self, name: &str, headers: &[&str]) {
        self.world.vendor(name).expect("fewer than 10,000 names").logins().accept_only(headers);
    }

    /// The last thousand arrivals of this name, oldest first; fewer when their bodies are large.
    pub fn arrivals(&self, name: &str) -> Vec<Arrival> {
        self.world.known(name).map_or_else(Vec::new, |vendor| vendor.arrivals())
    }

    /// The times of all arrivals of this name, oldest first; at most two million.
    pub fn arrival_times(&self, name: &str) -> Vec<Instant> {
        self.world.known(name).map_or_else(Vec::new, |vendor| vendor.times())
    }

    /// How many calls of this name arrived.
    pub fn count(&self, name: &str) -> u64 {
        self.world.known(name).map_or(0, |vendor| vendor.count())
    }

    /// What was counted under this name, with the worst window of this length.
    pub fn stats(&self, name: &str, window: Duration) -> Stats {
        self.world.stats(name, window, None)
    }

    /// Forgets what was counted under this name, as `DELETE /stats/{name}` does. Script and tickets stay.
    pub fn reset(&self, name: &str) {
        self.world.known(name).inspect(|vendor| vendor.reset());
    }

    /// The statuses that this name's callbacks were answered with, retries included; 0 stands for no answer.
    pub fn callback_replies(&self, name: &str) -> Vec<u16> {
        self.world.known(name).map_or_else(Vec::new, |vendor| vendor.replies())
    }

    /// The same of its forged callbacks, which are not among `callback_replies`.
    pub fn forged_replies(&self, name: &str) -> Vec<u16> {
        self.world.known(name).map_or_else(Vec::new, |vendor| vendor.forged_replies())
    }

    /// Waits until no callback is scheduled or under way. A call counts from before its 202 is written.
    pub async fn callbacks_settled(&self) {
        self.world.callbacks.settled().await;
    }

    /// Ends every connection and callback; the port is free when this returns.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.join_all().await;
        self.world.callbacks.stop().await;
    }
}

impl World {
    /// The vendor of this name, which may be new; none when there are too many.
    pub(crate) fn vendor(&self, name: &str) -> Option<Arc<Vendor>> {
        if let Some(vendor) = self.known(name) {
            return Some(vendor);
        }
        let mut vendors = self.vendors.write().unwrap_or_else(PoisonError::into_inner);
        if vendors.len() >= NAMES && !vendors.contains_key(name) {
            return None;
        }
        let vendor = vendors.entry(name.into()).or_insert_with(|| Arc::new(Vendor::new(name, self.epoch)));
        Some(Arc::clone(vendor))
    }

    /// The vendor of this name if it was ever called or scripted.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<Vendor>> {
        self.vendors.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn stats(&self, name: &str, window: Duration, n: Option<usize>) -> Stats {
        match self.known(name) {
            Some(vendor) => vendor.stats(window, n),
            None => Stats { window_ms: window.as_millis() as u64, ..Stats::default() },
        }
    }
}
