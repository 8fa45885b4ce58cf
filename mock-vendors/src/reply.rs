//! What we write back on a connection: small bodies whole, big ones made while they are sent.
//!
//! Never knows which route or vendor it belongs to.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::Response;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};

pub(crate) type ReplyBody = Either<Full<Bytes>, BigString>;

/// An answer in the making. Status and headers were checked where they came in, so writing it cannot fail.
pub(crate) struct Reply(Response<ReplyBody>);

/// An answer of content-type application/json.
pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Reply {
    let mut reply = Reply::new(status, body);
    reply.0.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
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
        let mut response = Response::new(Either::Left(Full::new(body.into())));
        *response.status_mut() = status.try_into().expect("status was checked to be 200 to 599");
        Reply(response)
    }

    pub(crate) fn streamed(size: u64) -> Reply {
        let mut response = Response::new(Either::Right(BigString { size, sent: 0 }));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Reply(response)
    }

    /// Adds a header; a later one of the same name replaces an earlier one.
    ///
    /// # Panics
    /// On a name or value that HTTP does not allow: a mistake in a test's script should be loud.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Reply {
        let name: HeaderName = name.parse().expect("a header name");
        self.0.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    pub(crate) fn status(mut self, status: u16) -> Reply {
        *self.0.status_mut() = status.try_into().expect("status was checked to be 200 to 599");
        self
    }

    pub(crate) fn body(mut self, body: Bytes) -> Reply {
        *self.0.body_mut() = Either::Left(Full::new(body));
        self
    }

    pub(crate) fn is_success(&self) -> bool {
        self.0.status().is_success()
    }

    /// 429 and 503, the answers that carry Retry-After.
    pub(crate) fn asks_to_wait(&self) -> bool {
        matches!(self.0.status().as_u16(), 429 | 503)
    }

    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        self.0
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
