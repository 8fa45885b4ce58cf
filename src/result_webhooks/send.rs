//! One try to announce an end: one signed POST to an address that the guard has checked.
//!
//! Never follows a redirect, never uses a proxy, never resolves a name twice, and reads no more of an answer than its beginning.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::{Request, header};
use tokio::time::timeout_at;

use crate::{
    clock::Time,
    guard::{Guard, Target},
    job::Tried,
    vendor::{
        dial,
        error::CallError,
        http::{Client, Connection, Origin, Reads, Reply},
        outgoing::Credentials,
        tls::LiveTls,
        waits,
    },
};

/// A receiver has this long to answer, connecting included.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);
/// Addresses of a name that are looked at.
const MOST_ADDRESSES: usize = 64;
/// Bytes kept of the message of a failure.
const MOST_WORDS: usize = 500;
const USER_AGENT: &str = concat!("fetchgate/", env!("CARGO_PKG_VERSION"));

/// Finds the addresses of a host and port.
pub type Lookup = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The machine's own resolver.
pub fn system_lookup() -> Lookup {
    Arc::new(|host, port| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), port)).await?;
            Ok(found.take(MOST_ADDRESSES).collect())
        })
    })
}

/// What is sent.
pub(super) struct Message {
    /// The same in every try for one end of one job.
    pub(super) id: String,
    pub(super) timestamp: String,
    pub(super) signature: String,
    pub(super) body: Bytes,
}

/// The one way out to receivers.
pub(super) struct Sender {
    pub(super) guard: Guard,
    pub(super) lookup: Lookup,
    pub(super) tls: LiveTls,
}

impl Sender {
    /// A client that keeps its connections for reuse.
    pub(super) fn client(&self) -> Client {
        Client::through(self.tls.clone(), None, Credentials::Sent)
    }

    /// Sends a message once, over a connection that `client` has kept, or a new one. `now` is for the receiver's `Retry-After`.
    pub(super) async fn send(&self, client: &Client, url: &str, message: Message, now: Time) -> Tried {
        let failed = |mut why: String| {
            // It may have the names of a receiver's certificate in it.
            why.truncate(why.floor_char_boundary(MOST_WORDS));
            Tried::Failed { status: None, why, wait: None }
        };
        // The config may have changed since the job was submitted.
        let target = match self.guard.target(url) {
            Ok(target) => target,
            Err(why) => return failed(format!("callback_url {why}")),
        };
        let request = match request(&target, message) {
            Ok(request) => request,
            Err(error) => return failed(format!("callback_url cannot be sent to: {error}")),
        };
        let until = Instant::now() + TIMEOUT;
        let mut connection = match timeout_at(until.into(), self.connection(client, &target.origin)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(why)) => return failed(why),
            Err(_) => return failed("the receiver could not be connected to in time".to_owned()),
        };
        match connection.call(request, until, |_, _| Reads::Beginning).await {
            Ok(reply) => {
                client.keep(connection);
                read(&reply, now)
            }
            Err(error) => failed(words(&error)),
        }
    }

    async fn connection(&self, client: &Client, origin: &Origin) -> Result<Connection, String> {
        if let Some(connection) = client.reuse(origin).await {
            return Ok(connection);
        }
        let found = (self.lookup)(origin.host.clone(), origin.port).await;
        let addresses = found.map_err(|error| format!("the receiver's name was not found: {error}"))?;
        if !self.guard.permits(origin, &addresses) {
            let why = "the receiver's name leads to an address that is not public, and that allow of [result_webhooks] does not have";
            return Err(why.to_owned());
        }
        // Exactly these: a name that is asked again may lead elsewhere.
        let tcp = dial::to_one_of(addresses.into_iter()).await;
        let tcp = tcp.map_err(|error| format!("no connection to the receiver: {error}"))?;
        client.over(origin, tcp).await.map_err(|error| words(&error))
    }
}

fn request(target: &Target, message: Message) -> hyper::http::Result<Request<Full<Bytes>>> {
    let path = &target.url[url::Position::BeforePath..url::Position::AfterQuery];
    Request::post(path)
        .header(header::HOST, target.origin.authority())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", message.id)
        .header("webhook-timestamp", message.timestamp)
        .header("webhook-signature", message.signature)
        .body(Full::new(message.body))
}

fn read(reply: &Reply, now: Time) -> Tried {
    match reply.status.as_u16() {
        status @ 200..=299 => Tried::Delivered { status },
        410 => Tried::Gone,
        status => {
            let wait = if matches!(status, 429 | 503) { waits::retry_after(&reply.headers, now) } else { None };
            Tried::Failed { status: Some(status), why: format!("the receiver answered {status}"), wait }
        }
    }
}

/// The message of an error. The client's own messages speak of a vendor.
fn words(error: &CallError) -> String {
    match error {
        CallError::Unreachable(why) => format!("no connection to the receiver: {why}"),
        CallError::TimedOut => "the receiver did not answer in time".to_owned(),
        CallError::Interrupted(why) => format!("the connection broke before the receiver had answered: {why}"),
        other => other.to_string(),
    }
}
