//! The listening side: accepts connections, bounds them, and ends them in good order.
//!
//! axum's own `serve` has no timer, so a client that never finishes its headers would hold a connection for ever; this has one.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    http::{StatusCode, request::Parts},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::de::DeserializeOwned;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;

/// Open connections at most; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// A request's head has to arrive within this time, and so does the next request on a connection that is kept alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting rests when the process has run out of something, files say.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets every request under way finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, place))
            } => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        // Small answers go out at once. A connection that has gone already shows when it is read.
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // What goes wrong on a connection is the client's to see; there is nobody here to tell.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    connections.shutdown().await;
}

/// The parts of a path, with a problem for those that are not text.
pub(super) struct Segments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let unreadable = |_| ApiError::new(StatusCode::NOT_FOUND, "not_found", "the path is not text in UTF-8");
        Path::<T>::from_request_parts(parts, state).await.map(|Path(parts)| Segments(parts)).map_err(unreadable)
    }
}
