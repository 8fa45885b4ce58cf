//! What a loop of the worker does between two turns: nothing, until a time or a wake-up.
//!
//! Never decides what a turn does.

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Nanos};

/// The outcome of one turn of a loop: it says what the loop waits for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Something was done: turn again at once.
    Again,
    /// Nothing to do before this, unless woken.
    WaitUntil(Nanos),
    /// Nothing to do until woken.
    Idle,
}

impl Tick {
    /// The same, but no later than `at`.
    pub(super) fn or_at(self, at: Option<Nanos>) -> Tick {
        match (self, at) {
            (Tick::WaitUntil(until), Some(at)) => Tick::WaitUntil(until.min(at)),
            (Tick::Idle, Some(at)) => Tick::WaitUntil(at),
            (tick, _) => tick,
        }
    }
}

/// Waits for the tick's time, the bell or the stop, whichever comes first. Cancel-safe.
pub(super) async fn pause(clock: &Clock, tick: Tick, bell: &Notify, stop: &CancellationToken) {
    let due = async {
        match tick {
            Tick::Again => {}
            // Many of these times are wall time, so a loop looks again when the clock was set.
            Tick::WaitUntil(at) => clock.sleep_until_or_set(at).await,
            Tick::Idle => std::future::pending().await,
        }
    };
    tokio::select! {
        () = due => {}
        () = bell.notified() => {}
        () = stop.cancelled() => {}
    }
}
