//! One client's connection: it gives up a client that does not read, and notices when the client has closed its side.
//!
//! Knows nothing of routes or jobs, and of HTTP only this: the HTTP library's error answers have no body, and get one here.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{extract::Request, http::StatusCode};
use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, Sleep},
};

use super::{
    door::{Door, MAX_HEAD},
    edge,
    error::ApiError,
    memory::{Budget, Charge, PATIENCE},
};

/// Heads up to this many bytes are in no budget; few are larger.
const SMALL_HEAD: usize = 4 << 10;

/// A client has to take this many bytes of its answer, or the rest of it, within [`TimeOuts::answer`](super::door::TimeOuts).
const STEP: usize = 16 << 10;
/// Bytes that the kernel buffers for a client that does not read; by default that would be megabytes.
const SEND_BUFFER: usize = 256 << 10;

/// Becomes ready when the client has closed its side. On Linux this interest means just that (and urgent data, which HTTP does not use).
#[cfg(target_os = "linux")]
const LEFT: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const LEFT: Interest = Interest::READABLE;

/// A TCP socket that handlers can watch too. Only tokio's own half knows after a short read that there is no more to read.
pub(super) struct Socket {
    read: OwnedReadHalf,
    write: Arc<OwnedWriteHalf>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Socket {
        // Small answers go out at once. If the connection is closed already, reading it will show that.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        let (read, write) = stream.into_split();
        Socket { read, write: Arc::new(write) }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer(self.write.clone())
    }

    fn stream(&self) -> &TcpStream {
        (*self.write).as_ref()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl Socket {
    fn poll_try_write(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream().poll_write_ready(cx))?;
            match write(self.stream()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try_write(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.stream()).shutdown(Shutdown::Write))
    }
}

/// Who sent a request. In every request's extensions.
#[derive(Clone)]
pub(super) struct Peer(Arc<OwnedWriteHalf>);

impl Peer {
    pub(super) fn of(request: &Request) -> Peer {
        request.extensions().get::<Peer>().expect("the server has put it there").clone()
    }

    /// Returns when the client has closed its side, or the whole connection.
    pub(super) async fn left(&self) {
        match self.0.ready(LEFT).await {
            Ok(ready) if !ready.is_read_closed() => std::future::pending().await,
            Ok(_) | Err(_) => {}
        }
    }
}

/// How long a client has kept us waiting, so that the server can find the slowest. For the head of a request the wait begins when the
/// connection was opened or the last answer was made: a head that comes byte by byte is one wait.
#[derive(Clone)]
pub(super) struct ClientWait(Arc<Waiting>);

struct Waiting {
    began: Instant,
    /// Milliseconds after `began`, plus one; 0 while we do not wait for the client.
    since: AtomicU64,
    /// Whether a request is being worked on.
    is_busy: AtomicBool,
}

impl ClientWait {
    pub(super) fn new() -> ClientWait {
        ClientWait(Arc::new(Waiting {
            began: Instant::now(),
            since: AtomicU64::new(1),
            is_busy: AtomicBool::new(false),
        }))
    }

    fn note(&self, waits: bool) {
        if !waits {
            self.0.since.store(0, Ordering::Relaxed);
        } else if self.0.since.load(Ordering::Relaxed) == 0 {
            let now = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.0.since.store(now + 1, Ordering::Relaxed);
        }
    }

    /// True from the head of a request until its answer is made.
    pub(super) fn set_busy(&self, is_busy: bool) {
        self.0.is_busy.store(is_busy, Ordering::Relaxed);
        self.note(false);
    }

    fn is_busy(&self) -> bool {
        self.0.is_busy.load(Ordering::Relaxed)
    }

    /// `None` while we do not wait for the client.
    pub(super) fn so_far(&self) -> Option<Duration> {
        let since = self.0.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.0.began.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

/// A connection that gives up a client that does not read its answers.
pub(super) struct StallGuard<S> {
    inner: S,
    waits: ClientWait,
    /// While an answer cannot be written: since when, and when to check next.
    stall: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Bytes that the client took since it stalled.
    taken: usize,
    /// The answer that replaces a bare error answer, and the length of the bare one.
    instead: Option<(Bytes, usize)>,
    answers: Arc<Budget>,
    heads: Arc<Budget>,
    /// How long it may stall; [`PATIENCE`] while other answers wait for memory.
    most: Duration,
    /// Bytes of the current head, and its charge if they are many. The buffer is kept until the next head, and so is the charge.
    head: (usize, Option<Charge>),
    /// Whether something was written since that head.
    has_answered: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> StallGuard<S> {
    pub(super) fn new(inner: S, waits: ClientWait, door: &Door) -> StallGuard<S> {
        let (answers, heads) = (door.answers.clone(), door.heads.clone());
        StallGuard {
            inner,
            waits,
            stall: None,
            taken: 0,
            instead: None,
            answers,
            heads,
            most: door.times.answer,
            head: (0, None),
            has_answered: false,
        }
    }

    /// Charges a head that is larger than most; false if there is no memory for it.
    fn charge_head(&mut self, read: usize) -> bool {
        if read == 0 || self.waits.is_busy() {
            return true;
        }
        if std::mem::take(&mut self.has_answered) {
            self.head = (0, None);
        }
        let (size, charge) = &mut self.head;
        *size += read;
        if *size > SMALL_HEAD && charge.is_none() {
            *charge = self.heads.try_take(MAX_HEAD);
        }
        *size <= SMALL_HEAD || charge.is_some()
    }

    /// Watches what the client takes; an error if it is too little.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        taken: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        self.waits.note(outcome.is_pending());
        match &outcome {
            Poll::Ready(Ok(count)) => {
                self.has_answered = true;
                self.taken = self.taken.saturating_add(taken(count));
                if self.taken >= STEP {
                    self.stall = None;
                }
                outcome
            }
            Poll::Ready(Err(_)) => outcome,
            Poll::Pending => {
                let look_every = PATIENCE.min(self.most);
                let (since, look) = self.stall.get_or_insert_with(|| {
                    self.taken = 0;
                    (Instant::now(), Box::pin(tokio::time::sleep(look_every)))
                });
                while look.as_mut().poll(cx).is_ready() {
                    if since.elapsed() >= self.most || self.answers.is_wanted() {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    look.as_mut().reset(Instant::now() + look_every);
                }
                Poll::Pending
            }
        }
    }

    /// Writes the answer that replaces a bare one; returns the length of the bare one when all is written.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((answer, length)) = &mut self.instead {
            if answer.is_empty() {
                let length = *length;
                self.instead = None;
                return Poll::Ready(Ok(length));
            }
            let written = Pin::new(&mut self.inner).poll_write(cx, answer);
            if let Poll::Ready(Ok(written)) = written {
                answer.advance(written);
            }
            ready!(self.watch(cx, written, |written| *written))?;
        }
        Poll::Ready(Ok(0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_pending() || self.waits.is_busy() {
            self.waits.note(read.is_pending());
        }
        if !self.charge_head(buf.filled().len() - before) {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            self.instead = with_body(buf).map(|answer| (answer, buf.len()));
        }
        if self.instead.is_some() {
            return self.poll_instead(cx);
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, written, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, written, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper also flushes while there is nothing to write.
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.stall = None;
                Poll::Ready(Ok(()))
            }
            flushed => self.watch(cx, flushed, |()| 0),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, shut, |()| 0)
    }
}

/// The bare error answer of the HTTP library, with a problem as its body; `None` for all other bytes. The library writes such an answer in
/// one piece when it cannot read a request's head.
fn with_body(bytes: &[u8]) -> Option<Bytes> {
    const BARE: &str = "content-length: 0\r\n";
    if !bytes.starts_with(b"HTTP/1.1 4") || !bytes.ends_with(b"\r\n\r\n") || bytes.len() > 512 {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok().filter(|head| head.contains(BARE))?;
    let status = StatusCode::from_bytes(head.as_bytes().get(9..12)?).ok()?;
    let (code, detail) = match status {
        StatusCode::BAD_REQUEST => {
            ("malformed_request", "the head of this request is not HTTP/1.1 (RFC 9112)".to_owned())
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            ("head_too_large", format!("the head of a request can have {MAX_HEAD} bytes and 100 headers"))
        }
        _ => ("malformed_request", "the head of this request cannot be accepted".to_owned()),
    };
    let id = edge::new_request_id();
    let body = ApiError::new(status, code, detail).written(Some(&id));
    let headers = format!(
        "content-length: {}\r\ncontent-type: application/problem+json\r\nx-request-id: {id}\r\nx-content-type-options: nosniff\r\n",
        body.len()
    );
    Some(Bytes::from(head.replace(BARE, &headers) + &body))
}
