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

use crate::World;
use crate::faults::Cut;
use crate::routes;

const CONNECTIONS: usize = 16_384;

/// Accepts until told to stop (or until whoever could tell is gone), then ends every connection at once.
pub(crate) async fn run(listener: TcpListener, world: Arc<World>, mut stop: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
        };
        match stream {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&world)))),
            Err(error) => {
                // Mostly out of file descriptors: without a pause this loop would spin until one is free.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    connections.shutdown().await;
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
