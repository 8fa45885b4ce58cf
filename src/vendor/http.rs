//! Calls over warm connections of our own, so that a permit is spent at its time and never while connecting.
//!
//! Never follows a redirect, never sends anything twice, never uses a proxy from the environment, never reads without a cap.

use std::{
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{timeout, timeout_at},
};

use super::{
    dial,
    error::CallError,
    outgoing::Credentials,
    proxy::{Proxy, ProxyAt},
    template::Template,
    tls::{self, LiveTls},
};

/// Bytes of a reply's body that are read at most.
pub const MAX_REPLY_BYTES: usize = 8 << 20;
/// Bytes that are read of a body of which only the beginning matters, and how long it may take after the head.
const MAX_BEGINNING: usize = 64 << 10;
const BEGINNING_WITHIN: Duration = Duration::from_secs(1);
/// For calls that have no time-out of their own.
const LONGEST: Duration = Duration::from_secs(86_400);
/// A connection idle for longer is not used again: servers close theirs after 5 s or more, and a call into a closing one is lost.
const MAX_IDLE: Duration = Duration::from_secs(4);
/// Idle connections kept for one origin.
const MAX_KEPT: usize = 1024;
/// Headers of a reply at most; hyper bounds their bytes.
const MAX_HEADERS: usize = 100;

/// Where a connection goes: scheme, host and port, which never come from a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub tls: bool,
    /// Without brackets, for connecting.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// The origin of an http or https URL.
    pub fn of(url: &url::Url) -> Option<Origin> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Origin { tls, host, port: url.port_or_known_default()? })
    }

    /// The origin of a URL template, which the config has checked to be one.
    pub(super) fn of_template(template: &Template) -> Origin {
        template.origin().and_then(Origin::of).expect("the config takes http and https URLs only")
    }

    /// `host:port`, with a port that the scheme implies too.
    pub(super) fn host_and_port(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    /// The `Host` header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = if self.tls { 443 } else { 80 };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }
}

/// `https://host:port`, without a port that the scheme implies.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// What came back: the head, and as much of the body as came.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Why the body is not whole, if it is not.
    pub broken: Option<CallError>,
}

/// How much of a reply's body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// All of it, up to [`MAX_REPLY_BYTES`].
    Whole,
    /// What comes of it soon after the head: the head has said what the reply means.
    Beginning,
}

/// Keeps connections to vendors. Cheap to clone. A vendor with a TLS configuration or a proxy of its own has a client of its own, so what
/// is opened in its name is never used in another's.
#[derive(Clone)]
pub struct Client {
    tls: LiveTls,
    /// Whether it shows our certificate.
    credentials: Credentials,
    proxy: Option<Proxy>,
    idle: Arc<Mutex<HashMap<Origin, Vec<Connection>>>>,
}

/// Moves a connection along; once that has ended, why, if the other side did not take our certificate.
type Driver = Result<Pin<Box<http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>>>, Option<CallError>>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One open connection. Nothing runs in the background: it moves only while somebody uses it, and closes when dropped.
pub struct Connection {
    origin: Origin,
    sender: http1::SendRequest<Full<Bytes>>,
    /// Gone once the connection has ended: hyper tells those who wait on `sender` only when it is dropped.
    driver: Driver,
    idle_since: Instant,
    /// What it was opened with: a certificate that has been replaced is not used for more calls.
    tls: Arc<ClientConfig>,
    /// The proxy that passes requests on one by one.
    proxy: Option<ProxyAt>,
}

impl Client {
    /// A client that trusts the machine's certificates and connects by itself.
    pub fn new() -> Client {
        Client::through(LiveTls::of_machine(), None, Credentials::Sent)
    }

    pub fn through(tls: LiveTls, proxy: Option<Proxy>, credentials: Credentials) -> Client {
        Client { tls, credentials, proxy, idle: Arc::default() }
    }

    /// An open connection to the origin: an idle one that is still good, else a new one. Cancel-safe.
    pub async fn connection(&self, origin: &Origin) -> Result<Connection, CallError> {
        match self.reuse(origin).await {
            Some(connection) => Ok(connection),
            None => self.connect(origin).await,
        }
    }

    /// An idle connection to the origin that is still good. Cancel-safe.
    pub(crate) async fn reuse(&self, origin: &Origin) -> Option<Connection> {
        while let Some(mut connection) = self.take_idle(origin) {
            if connection.is_good().await {
                return Some(connection);
            }
        }
        None
    }

    /// How many idle connections there are that can still be used.
    pub fn idle_connections(&self, origin: &Origin) -> usize {
        let tls = self.tls.config(self.credentials);
        // The oldest are in front.
        let is_stale = |one: &Connection| one.is_stale(&tls);
        self.idle().get(origin).map_or(0, |idle| idle.len() - idle.partition_point(is_stale))
    }

    /// Puts a connection back for the next call.
    pub fn keep(&self, mut connection: Connection) {
        let tls = self.tls.config(self.credentials);
        if connection.driver.is_err() || connection.sender.is_closed() || !Arc::ptr_eq(&connection.tls, &tls) {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle();
        let idle = idle.entry(connection.origin.clone()).or_default();
        // The newest are at the end and are used first; those at the front are the ones to have gone stale.
        let stale = idle.iter().take_while(|one| one.is_stale(&tls)).count();
        idle.drain(..stale);
        if idle.len() < MAX_KEPT {
            idle.push(connection);
        }
    }

    fn take_idle(&self, origin: &Origin) -> Option<Connection> {
        let mut idle = self.idle();
        let connection = idle.get_mut(origin)?.pop()?;
        if !connection.is_stale(&self.tls.config(self.credentials)) {
            return Some(connection);
        }
        // The newest is stale, so all are.
        idle.remove(origin);
        None
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, HashMap<Origin, Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Opens a connection. Cancel-safe.
    pub async fn connect(&self, origin: &Origin) -> Result<Connection, CallError> {
        let tls = self.tls.config(self.credentials);
        let mut proxy = self.proxy.as_ref().map(Proxy::at);
        let stream: Box<dyn Stream> = match &proxy {
            None => {
                let tcp = dial::tcp(&origin.host, origin.port).await.map_err(CallError::unreachable)?;
                return self.over(origin, tcp).await;
            }
            Some(by) => {
                let to_proxy = dial::tcp(&by.host, by.port).await;
                let tcp = to_proxy.map_err(|error| {
                    CallError::unreachable(format!("no connection to the proxy {}: {error}", by.name()))
                })?;
                if origin.tls {
                    let tunnel = by.tunnel(tcp, origin).await?;
                    Box::new(tls::connect(&tls, &origin.host, tunnel).await?)
                } else {
                    Box::new(tcp)
                }
            }
        };
        // Through a tunnel the vendor itself is spoken to.
        proxy = proxy.filter(|_| !origin.tls);
        opened(origin, stream, tls, proxy).await
    }

    /// The same over a connection that somebody else has made. Cancel-safe.
    pub(crate) async fn over(&self, origin: &Origin, tcp: TcpStream) -> Result<Connection, CallError> {
        let tls = self.tls.config(self.credentials);
        let stream: Box<dyn Stream> =
            if origin.tls { Box::new(tls::connect(&tls, &origin.host, tcp).await?) } else { Box::new(tcp) };
        opened(origin, stream, tls, None).await
    }
}

async fn opened(
    origin: &Origin,
    stream: Box<dyn Stream>,
    tls: Arc<ClientConfig>,
    proxy: Option<ProxyAt>,
) -> Result<Connection, CallError> {
    let opening = http1::Builder::new().max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await;
    let (sender, driver) = opening.map_err(CallError::unreachable)?;
    let (idle_since, driver) = (Instant::now(), Ok(Box::pin(driver)));
    Ok(Connection { origin: origin.clone(), sender, driver, idle_since, tls, proxy })
}

impl Default for Client {
    fn default() -> Client {
        Client::new()
    }
}

impl Connection {
    /// Sends one request and reads the whole reply. Not cancel-safe: dropped half-way, the vendor may have been called,
    /// and the connection is gone.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        let mut reply = self.call(request, Instant::now() + LONGEST, |_, _| Reads::Whole).await?;
        reply.broken.take().map_or(Ok(reply), Err)
    }

    /// Sends one request; the head of the reply counts as soon as it is there, whatever becomes of the body. `reads` says by the head how
    /// much of the body is wanted. All is over by `until`. Not cancel-safe, like [`Connection::send`].
    pub async fn call(
        &mut self,
        mut request: Request<Full<Bytes>>,
        until: Instant,
        reads: impl Fn(StatusCode, &HeaderMap) -> Reads,
    ) -> Result<Reply, CallError> {
        let Connection { origin, sender, driver, proxy, .. } = self;
        if let Some(proxy) = proxy {
            proxy.address(&mut request, origin);
        }
        let exchange = async {
            let head = timeout_at(until.into(), sender.send_request(request)).await;
            let response = head.map_err(|_| CallError::TimedOut)?.map_err(|error| interrupted(&error))?;
            let (head, body) = response.into_parts();
            if let (Some(proxy), StatusCode::PROXY_AUTHENTICATION_REQUIRED) = (proxy, head.status) {
                return Err(proxy.refused(head.status));
            }
            let (body, broken) = match reads(head.status, &head.headers) {
                Reads::Whole => read_capped(body, MAX_REPLY_BYTES, until).await,
                Reads::Beginning => {
                    read_capped(body, MAX_BEGINNING, until.min(Instant::now() + BEGINNING_WITHIN)).await
                }
            };
            Ok(Reply { status: head.status, headers: head.headers, body, broken })
        };
        let mut reply = drive(driver, exchange).await;
        // Of a refusal before the request went out, hyper says only that the connection was closed.
        if let (Err(error), Err(Some(refusal))) = (&mut reply, &*driver) {
            *error = refusal.clone();
        }
        // The rest of a body would be read as the next reply.
        if !reply.as_ref().is_ok_and(|reply| reply.broken.is_none()) {
            self.driver = Err(None);
        }
        reply
    }

    /// Sends one request and gives each piece of a successful reply's body to `take` as it arrives, until the other side ends it, `take`
    /// wants no more, or nothing comes for as long as `silence`. The connection is not used again. Not cancel-safe, like [`Connection::send`].
    pub async fn follow(
        &mut self,
        request: Request<Full<Bytes>>,
        silence: Duration,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Reply, CallError> {
        let Connection { sender, driver, .. } = self;
        let reply = drive(driver, async {
            let head = timeout(silence, sender.send_request(request)).await;
            let (head, mut body) =
                head.map_err(|_| CallError::TimedOut)?.map_err(|error| interrupted(&error))?.into_parts();
            let reply = |body, broken| Reply { status: head.status, headers: head.headers, body, broken };
            if !head.status.is_success() {
                let (body, broken) = read_capped(body, MAX_REPLY_BYTES, Instant::now() + silence).await;
                return Ok(reply(body, broken));
            }
            while let Some(frame) = timeout(silence, body.frame()).await.map_err(|_| CallError::TimedOut)? {
                let frame = frame.map_err(|error| interrupted(&error))?;
                if frame.data_ref().is_some_and(|data| !take(data)) {
                    break;
                }
            }
            Ok(reply(Bytes::new(), None))
        })
        .await;
        self.driver = Err(None);
        reply
    }

    /// It was idle for too long, or a certificate has changed since.
    fn is_stale(&self, tls: &Arc<ClientConfig>) -> bool {
        self.idle_since.elapsed() >= MAX_IDLE || !Arc::ptr_eq(&self.tls, tls)
    }

    /// Whether the other side has not closed it meanwhile.
    async fn is_good(&mut self) -> bool {
        let Connection { sender, driver, .. } = self;
        let ready = drive(driver, async { sender.ready().await.is_ok() }).await;
        ready && self.driver.is_ok() && !self.sender.is_closed()
    }
}

/// Moves the connection along while `work` waits for it: in one task, so nothing is spawned and nothing is left behind.
async fn drive<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // The driver first: it sees an end of the other side before anything is written.
        step(driver, cx);
        if let Poll::Ready(value) = work.as_mut().poll(cx) {
            return Poll::Ready(value);
        }
        // What the work has just asked for is done at once, not at the next wake-up.
        step(driver, cx);
        work.as_mut().poll(cx)
    })
    .await
}

fn step(driver: &mut Driver, cx: &mut Context<'_>) {
    let Ok(open) = driver else { return };
    if let Poll::Ready(ended) = open.as_mut().poll(cx) {
        *driver = Err(ended.err().and_then(|error| refusal(&error)));
    }
}

/// Whether the other side did not take our certificate.
fn refusal(error: &hyper::Error) -> Option<CallError> {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref()).find_map(tls::refusal)
}

/// Up to `most` bytes of a body, and why that is not all of it, if it is not.
async fn read_capped(mut body: Incoming, most: usize, until: Instant) -> (Bytes, Option<CallError>) {
    let mut read = Pieces::default();
    if most == MAX_REPLY_BYTES && body.size_hint().lower() > most as u64 {
        return (Bytes::new(), Some(CallError::TooLarge(most)));
    }
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| interrupted(&error))?.into_data() else { continue };
            if !read.push(data, most) {
                return Err(CallError::TooLarge(most));
            }
        }
        Ok(())
    };
    let broken = timeout_at(until.into(), whole).await.unwrap_or(Err(CallError::TimedOut)).err();
    (read.into_bytes(), broken)
}

/// The pieces of a body put together. Most replies are one piece, which then needs no copy.
#[derive(Default)]
struct Pieces {
    only: Bytes,
    joined: BytesMut,
}

impl Pieces {
    /// Says whether the piece still fits into `most` bytes; if not, what fits of it is kept.
    fn push(&mut self, mut piece: Bytes, most: usize) -> bool {
        let room = most.saturating_sub(self.only.len() + self.joined.len());
        let fits = piece.len() <= room;
        piece.truncate(room);
        if self.only.is_empty() && self.joined.is_empty() {
            self.only = piece;
            return fits;
        }
        self.joined.extend_from_slice(&std::mem::take(&mut self.only));
        self.joined.extend_from_slice(&piece);
        fits
    }

    fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.only } else { self.joined.freeze() }
    }
}

/// hyper's message and its cause; neither holds headers or bodies.
fn interrupted(error: &hyper::Error) -> CallError {
    if let Some(refusal) = refusal(error) {
        return refusal;
    }
    if error.is_canceled() {
        return CallError::Unreachable("the connection was closed before the call was sent".to_owned());
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    CallError::Interrupted(format!("{error}{cause}"))
}
