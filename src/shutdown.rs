//! Turns signals into tokens: the first signal means stop, the second (or the end of the grace period) means abort.
//!
//! SIGHUP, once it is listened for, ends nothing: it asks for secrets in files to be read again.
//!
//! Never ends a task itself: whoever owns it watches the tokens.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// `stop`: accept nothing new, finish what runs. `abort`: drop what runs. `reread`: read secrets in files again.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub stop: CancellationToken,
    pub abort: CancellationToken,
    pub reread: Arc<Notify>,
}

impl Shutdown {
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Listens for SIGINT and SIGTERM until both tokens are cancelled, and passes SIGHUP on where it is listened for.
    pub async fn on_signals(self, grace: Duration, mut hangups: Option<Signal>) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        loop {
            tokio::select! {
                () = next(&mut interrupt, &mut terminate) => {
                    tracing::info!(grace_secs = grace.as_secs_f64(), "stopping: finishing what runs; a second signal stops at once");
                    break;
                }
                () = received(hangups.as_mut()) => self.reread.notify_one(),
                () = self.stop.cancelled() => break,
            }
        }
        self.stop.cancel();
        tokio::select! {
            () = next(&mut interrupt, &mut terminate) => {}
            () = tokio::time::sleep(grace) => {}
        }
        self.abort.cancel();
        Ok(())
    }
}

/// From here on SIGHUP does not end the process.
pub fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Waits for a signal; for ever when there is none to wait for.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
