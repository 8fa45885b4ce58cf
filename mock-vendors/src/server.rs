//! The listener and its connections: plain hyper, because faults need the socket itself.
//!
//! Never looks at a request. Every connection's task is in the accept loop's set and ends with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::World;
use crate::faults::Cut;
use crate::routes;

const CONNECTIONS: usize = 16_384;

/// Whoever asks for the port to be closed has its answer by then.
const TO_ANSWER: Duration = Duration::from_millis(100);
/// A listener that cannot be had now is tried for again.
const AGAIN: Duration = Duration::from_millis(50);

/// Accepts until told to stop (or until whoever could tell is gone), then ends every connection at once. For each of the `refusals` the
/// port is closed for so long.
pub(crate) async fn run(
    mut listener: TcpListener,
    world: Arc<World>,
    mut refusals: mpsc::Receiver<Duration>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            Some(time) = refusals.recv() => {
                let reopened = tokio::select! {
                    _ = &mut stop => break,
                    reopened = refuse(listener, &mut connections, time) => reopened,
                };
                match reopened {
                    Ok(reopened) => listener = reopened,
                    Err(error) => return tracing::error!(%error, "the port is not known, and stays closed"),
                }
                continue;
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
        };
        match stream {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&world)))),
            Err(error) => {
                // Mostly out of file descriptors: without a pause this loop would spin until one is free.
                tracing::warn!(%error, "could not accept a connection");
                sleep(AGAIN).await;
            }
        }
    }
    connections.shutdown().await;
}

/// Closes the port for a while, and every connection.
async fn refuse(listener: TcpListener, connections: &mut JoinSet<()>, time: Duration) -> io::Result<TcpListener> {
    let address = listener.local_addr()?;
    drop(listener);
    sleep(TO_ANSWER.min(time)).await;
    connections.shutdown().await;
    sleep(time.saturating_sub(TO_ANSWER)).await;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => tracing::warn!(%error, "the port is not free yet"),
        }
        sleep(AGAIN).await;
    }
}

async fn serve(stream: TcpStream, world: Arc<World>) {
    if stream.set_nodelay(true).is_err() {
        return; // the peer is gone already
    }
    let (cut, mut cuts) = mpsc::channel(1);
    let service = service_fn(move |request| routes::answer(Arc::clone(&world), cut.clone(), request));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let cut = tokio::select! {
        _ = &mut connection => return, // an error here is the client's own hanging up
        cut = cuts.recv() => cut,
    };
    let stream = connection.into_parts().io.into_inner();
    if let Some(cut) = cut
        && let Err(error) = perform(cut, stream).await
    {
        tracing::debug!(%error, "the client was faster to hang up");
    }
}

async fn perform(cut: Cut, mut stream: TcpStream) -> io::Result<()> {
    match cut {
        Cut::Reset => stream.set_zero_linger(), // closing now sends RST
        Cut::Raw(bytes) => {
            stream.write_all(bytes).await?;
            stream.shutdown().await
        }
    }
}
