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
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::World;
use crate::faults::Cut;
use crate::routes;

const CONNECTIONS: usize = 16_384;

/// The port is to be closed for a while.
pub(crate) struct Refusal {
    pub(crate) time: Duration,
    /// Gets word once it is closed.
    pub(crate) closed: oneshot::Sender<()>,
}

/// Idle connections end within this time; so does the one that asked for the port to be closed, after its answer.
const TO_END: Duration = Duration::from_millis(50);
/// A listener that cannot be had now is tried for again.
const AGAIN: Duration = Duration::from_millis(50);

/// Accepts until told to stop (or until whoever could tell is gone), then ends every connection at once. For each of the `refusals` the
/// port is closed for so long.
pub(crate) async fn run(
    mut listener: TcpListener,
    world: Arc<World>,
    mut refusals: mpsc::Receiver<Refusal>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let (ending, _) = watch::channel(());
    loop {
        let stream = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            Some(refusal) = refusals.recv() => {
                let reopened = tokio::select! {
                    _ = &mut stop => break,
                    reopened = refuse(listener, &mut connections, &ending, refusal) => reopened,
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
            Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&world), ending.subscribe()))),
            Err(error) => {
                // Mostly out of file descriptors: without a pause this loop would spin until one is free.
                tracing::warn!(%error, "could not accept a connection");
                sleep(AGAIN).await;
            }
        }
    }
    connections.shutdown().await;
}

/// Closes the port for a while, and every connection. Whoever asked for it has its answer when nobody can be called any more: nobody can
/// connect, and idle connections are closed.
async fn refuse(
    listener: TcpListener,
    connections: &mut JoinSet<()>,
    ending: &watch::Sender<()>,
    Refusal { time, closed }: Refusal,
) -> io::Result<TcpListener> {
    let address = listener.local_addr()?;
    drop(listener);
    ending.send_replace(());
    sleep(TO_END).await;
    // If nobody waits for it, there is nobody to answer.
    let _ = closed.send(());
    sleep(TO_END).await;
    connections.shutdown().await;
    sleep(time).await;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => tracing::warn!(%error, "the port is not free yet"),
        }
        sleep(AGAIN).await;
    }
}

/// Serves until the client hangs up, or until `ending` changes: then the request under way is the last, and another one resets the connection.
async fn serve(stream: TcpStream, world: Arc<World>, mut ending: watch::Receiver<()>) {
    if stream.set_nodelay(true).is_err() {
        return; // the peer is gone already
    }
    let (cut, mut cuts) = mpsc::channel(1);
    let over = ending.clone();
    let service = service_fn(move |request| {
        let (world, cut, is_over) = (Arc::clone(&world), cut.clone(), over.has_changed().unwrap_or(true));
        async move {
            if is_over {
                // A full channel means that it is being cut already.
                drop(cut.try_send(Cut::Reset));
                return std::future::pending().await;
            }
            routes::answer(world, cut, request).await
        }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut is_ending = false;
    let cut = loop {
        tokio::select! {
            _ = &mut connection => return, // an error here is the client's own hanging up
            cut = cuts.recv() => break cut,
            _ = ending.changed(), if !is_ending => {
                is_ending = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
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
