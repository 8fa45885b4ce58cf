//! What we write back on a connection: small bodies whole, slow or cut off, big ones made while they are sent.
//!
//! Never knows which route or vendor it belongs to.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flate2::{Compression, bufread::GzEncoder};
use http_body_util::{Either, Full};
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep, sleep};

pub(crate) type ReplyBody = Either<Full<Bytes>, Either<BigString, Slow>>;

/// An answer in the making. Status and headers were checked where they came in, so writing it cannot fail.
pub(crate) struct Reply {
    head: Response<()>,
    body: Content,
    /// The body comes so long after the head.
    after: Duration,
    /// Half of the body comes, then the connection ends.
    is_cut: bool,
}

enum Content {
    Whole(Bytes),
    /// A JSON string of so many bytes.
    Big(u64),
}

/// An answer of content-type application/json.
pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply::new(status, body).with(CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

/// `{"error": why}` with this status.
pub(crate) fn error(status: u16, why: &str) -> Reply {
    json(status, format!(r#"{{"error":{}}}"#, quote(why)))
}

/// The text as a JSON string.
pub(crate) fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Reply {
        let mut head = Response::new(());
        *head.status_mut() = status.try_into().expect("status was checked to be 200 to 599");
        Reply { head, body: Content::Whole(body.into()), after: Duration::ZERO, is_cut: false }
    }

    pub(crate) fn streamed(size: u64) -> Reply {
        Reply { body: Content::Big(size), ..json(200, "") }
    }

    /// Adds a header; a later one of the same name replaces an earlier one.
    ///
    /// # Panics
    /// On a name or value that HTTP does not allow: a mistake in a test's script should be loud.
    pub(crate) fn header(self, name: &str, value: &str) -> Reply {
        let name: HeaderName = name.parse().expect("a header name");
        self.with(name, HeaderValue::from_str(value).expect("a header value"))
    }

    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Reply {
        self.head.headers_mut().insert(name, value);
        self
    }

    pub(crate) fn status(mut self, status: u16) -> Reply {
        *self.head.status_mut() = status.try_into().expect("status was checked to be 200 to 599");
        self
    }

    pub(crate) fn body(self, body: Bytes) -> Reply {
        Reply { body: Content::Whole(body), ..self }
    }

    /// Compresses the body and says so. A streamed one stays as it is.
    pub(crate) fn gzip(self) -> Reply {
        let Content::Whole(body) = &self.body else { return self };
        let mut packed = Vec::new();
        let copied = io::copy(&mut GzEncoder::new(&body[..], Compression::fast()), &mut packed);
        copied.expect("bytes in memory can be read");
        self.body(packed.into()).with(CONTENT_ENCODING, HeaderValue::from_static("gzip"))
    }

    pub(crate) fn slow(self, after: Duration) -> Reply {
        Reply { after, ..self }
    }

    pub(crate) fn cut(self, is_cut: bool) -> Reply {
        Reply { is_cut, ..self }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.head.status().is_success()
    }

    /// Anything but the data: the answers that `Retry-After` may belong to.
    pub(crate) fn is_not_yet(&self) -> bool {
        !matches!(self.head.status().as_u16(), 200 | 201)
    }

    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        let is_plain = self.after.is_zero() && !self.is_cut;
        let body = match self.body {
            Content::Big(size) => Either::Right(Either::Left(BigString { size, sent: 0 })),
            Content::Whole(body) if is_plain => Either::Left(Full::new(body)),
            Content::Whole(body) => Either::Right(Either::Right(Slow::new(body, self.after, self.is_cut))),
        };
        self.head.map(|()| body)
    }
}

/// A JSON string of `size` bytes, quotes included, made piece by piece so that 20 MB cost no memory.
pub(crate) struct BigString {
    size: u64,
    sent: u64,
}

const PIECE: u64 = 64 * 1024;

impl Body for BigString {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.size - self.sent;
        if left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![b'x'; left.min(PIECE) as usize];
        if self.sent == 0 {
            piece[0] = b'"';
        }
        self.sent += piece.len() as u64;
        if self.sent == self.size
            && let Some(last) = piece.last_mut()
        {
            *last = b'"';
        }
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size - self.sent)
    }
}

/// A body that comes a while after the head, whole or its first half and then the end of the connection.
pub(crate) struct Slow {
    left: Option<Bytes>,
    announced: u64,
    is_cut: bool,
    wait: Pin<Box<Sleep>>,
}

/// What was written has left by then.
const TO_LEAVE: Duration = Duration::from_millis(20);

impl Slow {
    fn new(body: Bytes, after: Duration, is_cut: bool) -> Slow {
        let announced = body.len() as u64;
        let left = if is_cut { body.slice(..body.len() / 2) } else { body };
        Slow { left: Some(left), announced, is_cut, wait: Box::pin(sleep(after)) }
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        ready!(self.wait.as_mut().poll(cx));
        if let Some(left) = self.left.take() {
            if self.is_cut {
                self.wait.as_mut().reset(Instant::now() + TO_LEAVE);
            }
            return Poll::Ready(Some(Ok(Frame::data(left))));
        }
        let cut = self.is_cut.then(|| Err(io::ErrorKind::UnexpectedEof.into()));
        Poll::Ready(cut)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}
