//! Signals into tokens: the first asks to stop, the second (or the end of the grace period) insists.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// `stop`: take nothing new, finish what runs. `abort`: drop what runs.
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
                tracing::info!(?grace, "stopping: finishing what runs; a second signal stops at once");
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
