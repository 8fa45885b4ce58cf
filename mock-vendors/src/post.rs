//! A small HTTP client for callbacks: a kept-alive connection per delivery under way, pooled by host.
//!
//! Never retries an answer (see `callbacks`), never follows a redirect, never speaks TLS. It has no tasks of its own:
//! whoever posts also drives the connection, and idle connections are driven by nobody until they are used again.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_PER_HOST: usize = 256;
const HOSTS: usize = 64;
/// Whoever answers a callback with more is cut off.
const ANSWER: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Client {
    idle: Mutex<HashMap<String, Vec<Line>>>,
}

struct Line {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<TokioIo<TcpStream>, Full<Bytes>>,
}

impl Line {
    /// The answer's status, and the line again if it may be used again.
    async fn exchange(self, request: Request<Full<Bytes>>) -> Result<(u16, Option<Line>), Failure> {
        let Line { mut sender, mut connection } = self;
        let mut exchange = pin!(async move {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            Limited::new(answer.into_body(), ANSWER).collect().await?;
            Ok::<_, Failure>((status, sender))
        });
        tokio::select! {
            biased; // an idle connection that has been closed is noticed before anything is written to it
            _ = &mut connection => {}
            answered = &mut exchange => {
                let (status, sender) = answered?;
                return Ok((status, Some(Line { sender, connection })));
            }
        }
        drop(connection); // or the exchange would wait for it for ever
        // The answer may have been read before the connection ended.
        let (status, _) = exchange.await?;
        Ok((status, None))
    }
}

impl Client {
    /// POSTs the body and returns the answer's status once its body has been read.
    pub(crate) async fn post(&self, url: &str, headers: &[(&str, String)], body: &Bytes) -> Result<u16, Failure> {
        let uri: Uri = url.parse()?;
        let host = uri.authority().ok_or("the URL has no host")?.as_str().to_owned();
        if uri.scheme_str() != Some("http") {
            return Err("only http:// URLs can be called back".into());
        }
        let request = || -> Result<Request<Full<Bytes>>, Failure> {
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let mut request = Request::post(path).header("host", &host).header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            Ok(request.body(Full::new(body.clone()))?)
        };
        tokio::time::timeout(TIMEOUT, async {
            if let Some(line) = self.take_idle(&host) {
                match self.exchange(&host, line, request()?).await {
                    Err(error) if never_sent(&error) => {} // it was closed meanwhile, which says nothing about the receiver
                    outcome => return outcome,
                }
            }
            let line = connect(&uri, &host).await?;
            self.exchange(&host, line, request()?).await
        })
        .await?
    }

    async fn exchange(&self, host: &str, line: Line, request: Request<Full<Bytes>>) -> Result<u16, Failure> {
        let (status, line) = line.exchange(request).await?;
        if let Some(line) = line {
            self.put_idle(host, line);
        }
        Ok(status)
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<String, Vec<Line>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self, host: &str) -> Option<Line> {
        self.idle().get_mut(host)?.pop()
    }

    fn put_idle(&self, host: &str, line: Line) {
        let mut idle = self.idle();
        if idle.len() >= HOSTS && !idle.contains_key(host) {
            return;
        }
        let lines = idle.entry(host.to_owned()).or_default();
        if lines.len() < IDLE_PER_HOST {
            lines.push(line);
        }
    }
}

async fn connect(uri: &Uri, host: &str) -> Result<Line, Failure> {
    let stream = if uri.port().is_some() {
        TcpStream::connect(host).await
    } else {
        TcpStream::connect(format!("{host}:80")).await
    }?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    Ok(Line { sender, connection })
}

fn never_sent(error: &Failure) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_canceled() || error.is_closed())
}
