//! The listening side: accepts connections, bounds their number, and lets requests finish at the end.
//!
//! Never waits for ever for a client (see `connection`), and is never shut by clients who keep it waiting: when all places are taken,
//! those who have kept it waiting for longest make room.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub use super::door::{Door, TimeOuts};
use super::{
    connection::{ClientWait, Socket, StallGuard},
    door::MAX_HEAD,
    memory::PATIENCE,
};

/// Open connections at most; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// How long to wait after a connection could not be accepted, for example because there are too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets every request in flight finish.
pub async fn serve(listener: TcpListener, router: Router, door: Door, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let door = Arc::new(door);
    let mut open = Open::new(door.max_per_address);
    loop {
        open.forget_closed();
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                open.make_room().await;
                listener.accept().await
            } => accepted,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, network(from.ip())),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        if open.has_too_many_from(from) {
            continue;
        }
        let waits = ClientWait::new();
        let router = TowerToHyperService::new(router.clone());
        let talk = Talk { stream, door: door.clone(), router, waits: waits.clone(), watcher: graceful.watcher() };
        open.add(talk.run(), from, waits);
    }
    drop(listener);
    graceful.shutdown().await;
    open.tasks.shutdown().await;
}

/// The open connections of a port.
struct Open {
    tasks: JoinSet<()>,
    /// Each with its client's network, and since when that keeps us waiting.
    connections: HashMap<Id, (AbortHandle, IpAddr, ClientWait)>,
    max_per_address: Option<usize>,
    /// How many from where; only if they are bounded.
    from: HashMap<IpAddr, usize>,
}

impl Open {
    fn new(max_per_address: Option<usize>) -> Open {
        let (tasks, connections, from) = (JoinSet::new(), HashMap::new(), HashMap::new());
        Open { tasks, connections, max_per_address, from }
    }

    fn add(&mut self, talk: impl Future<Output = ()> + Send + 'static, from: IpAddr, waits: ClientWait) {
        let task = self.tasks.spawn(talk);
        self.connections.insert(task.id(), (task, from, waits));
        if self.max_per_address.is_some() {
            *self.from.entry(from).or_default() += 1;
        }
    }

    fn has_too_many_from(&self, from: IpAddr) -> bool {
        self.max_per_address.is_some_and(|most| self.from.get(&from).is_some_and(|open| *open >= most))
    }

    fn forget_closed(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        let Some((_, from, _)) = self.connections.remove(&id) else { return };
        if let Some(open) = self.from.get_mut(&from) {
            *open -= 1;
            if *open == 0 {
                self.from.remove(&from);
            }
        }
    }

    /// Returns when there is a place for one more connection.
    async fn make_room(&mut self) {
        while self.tasks.len() >= MAX_CONNECTIONS {
            self.close_slowest();
            // A look again soon: clients of whom none was slow may be by then.
            if let Ok(Some(ended)) = tokio::time::timeout(ACCEPT_REST, self.tasks.join_next_with_id()).await {
                self.forget(ended);
                self.forget_closed();
            }
        }
    }

    /// Closes a hundredth of the connections that wait for their client, those that have waited for longest. Every client has a second for
    /// what it sends, and a request that is being worked on does not wait for its client.
    fn close_slowest(&self) {
        let waiting = self.connections.values().filter_map(|(task, _, waits)| Some((waits.so_far()?, task)));
        let mut waiting: Vec<(Duration, &AbortHandle)> = waiting.filter(|(so_far, _)| *so_far >= PATIENCE).collect();
        waiting.sort_unstable_by_key(|(so_far, _)| Reverse(*so_far));
        let most = waiting.len().div_ceil(100);
        waiting.into_iter().take(most).for_each(|(_, task)| task.abort());
    }
}

/// What counts as one address: for IPv6 the network that one subscriber has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// A connection from its first byte to its last.
struct Talk {
    stream: TcpStream,
    door: Arc<Door>,
    router: TowerToHyperService<Router>,
    waits: ClientWait,
    watcher: Watcher,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

impl Talk {
    async fn run(self) {
        let Talk { stream, door, router, waits, watcher } = self;
        let socket = Socket::new(stream);
        let peer = socket.peer();
        let wire: Box<dyn Wire> = match &door.tls {
            None => Box::new(socket),
            // In a box of its own, so that connections without TLS do not have room for it.
            Some(tls) => {
                match Box::pin(tokio::time::timeout(door.times.handshake, tls.acceptor().accept(socket))).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    // It spoke no TLS, or none that we speak, or nothing in time; there is nobody to answer.
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        };
        let wire = TokioIo::new(StallGuard::new(wire, waits.clone(), &door));
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            waits.set_busy(true);
            request.extensions_mut().insert(peer.clone());
            let (answer, waits) = (router.call(request), waits.clone());
            async move {
                let answer = answer.await;
                waits.set_busy(false);
                answer
            }
        });
        // A client may close its side and still read: `half_close` answers it. Whoever waits on its behalf looks at `Peer::left`.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(door.times.head)
            .max_buf_size(MAX_HEAD)
            .half_close(true)
            .serve_connection(wire, service);
        // Errors of a connection are visible to its client; there is nothing to do here.
        let _ = watcher.watch(connection).await;
    }
}
