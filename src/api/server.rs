//! The listening side: accepts connections, bounds their number, and lets requests finish at the end.
//!
//! Never waits for ever for the head of a request: axum's own `serve` has no time-out for it, so a client could keep a connection open.

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
/// How long to wait after a connection could not be accepted, for example because there are too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets every request in flight finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let slot = slots.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        // Small answers go out at once. If the connection is closed already, reading it will show that.
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // Errors of a connection are visible to its client; there is nothing to do here.
            let _ = connection.await;
            drop(slot);
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
