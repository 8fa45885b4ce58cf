//! Turns signals into tokens: the first signal means stop, the second (or the end of the grace period) means abort.
//!
//! Never ends a task itself: whoever owns it watches the tokens.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// `stop`: accept nothing new, finish what runs. `abort`: drop what runs.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub stop: CancellationToken,
    pub abort: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Listens for SIGINT and SIGTERM until both tokens are cancelled.
    pub async fn on_signals(self, grace: Duration) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            () = next(&mut interrupt, &mut terminate) => {
                tracing::info!(grace_secs = grace.as_secs_f64(), "stopping: finishing what runs; a second signal stops at once");
            }
            () = self.stop.cancelled() => {}
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

async fn next(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
