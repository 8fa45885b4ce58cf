//! A proxy between us and one vendor: `CONNECT` for https (RFC 9110, 9.3.6), absolute URLs for http (RFC 9112, 3.2.2).
//!
//! Never taken from the environment, and its user and password never show: they go to the proxy only.

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{Empty, Full};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{HOST, HeaderValue, PROXY_AUTHORIZATION},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use url::Url;

use super::{
    error::CallError,
    http::Origin,
    outgoing::{basic, sensitive},
};
use crate::config::{LiveSecret, Reread};

/// The URL of a proxy, parts of which may be in files.
#[derive(Debug, Clone)]
pub struct Proxy(LiveSecret);

/// A proxy as it is reached now.
#[derive(Clone)]
pub struct ProxyAt {
    pub host: String,
    pub port: u16,
    authorization: Option<HeaderValue>,
}

impl Proxy {
    /// A URL that [`ProxyAt::read`] takes, now and whenever its files change.
    pub fn new(url: LiveSecret) -> Proxy {
        Proxy(url)
    }

    pub fn at(&self) -> ProxyAt {
        ProxyAt::read(&self.0.reveal()).expect("only URLs that can be read are kept")
    }

    pub fn is_in_files(&self) -> bool {
        self.0.is_in_files()
    }

    pub fn reread(&self) -> Reread {
        self.0.reread()
    }
}

impl ProxyAt {
    /// Reads `http://user:password@host:port`. What is wrong is said without any of it.
    pub fn read(url: &str) -> Result<ProxyAt, &'static str> {
        let url = Url::parse(url).map_err(|_| "this is not a URL")?;
        let host = match (url.scheme(), url.host_str()) {
            ("http", Some(host)) => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            ("http", None) => return Err("this URL has no host"),
            _ => return Err("a proxy is spoken to by http, whatever the vendor's URL is"),
        };
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("this URL has more than user, password, host and port");
        }
        let port = url.port_or_known_default().ok_or("this URL has no port")?;
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = (plain(url.username()), plain(url.password().unwrap_or_default()));
        // RFC 7617: a colon ends the user's name.
        if user.contains(':') {
            return Err("the user's name has a colon");
        }
        let has_login = !user.is_empty() || !password.is_empty();
        let authorization = if has_login { sensitive(&basic(&user, &password)) } else { None };
        Ok(ProxyAt { host, port, authorization })
    }

    /// `host:port`, for people.
    pub fn name(&self) -> String {
        Origin { tls: false, host: self.host.clone(), port: self.port }.host_and_port()
    }

    /// Has the proxy connect to the origin. Cancel-safe.
    pub(super) async fn tunnel(&self, tcp: TcpStream, to: &Origin) -> Result<TokioIo<Upgraded>, CallError> {
        let broken =
            |error: hyper::Error| CallError::unreachable(format!("the proxy {} did not answer: {error}", self.name()));
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(broken)?;
        let target = to.host_and_port();
        let mut request = Request::connect(&*target).header(HOST, &*target);
        if let Some(value) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(CallError::unreachable)?;
        let asked = pin!(async {
            let reply = sender.send_request(request).await.map_err(broken)?;
            if !reply.status().is_success() {
                return Err(self.refused(reply.status()));
            }
            hyper::upgrade::on(reply).await.map(TokioIo::new).map_err(broken)
        });
        match select(asked, pin!(connection.with_upgrades())).await {
            Either::Left((tunnel, _)) => tunnel,
            // The connection is the tunnel now, or broke.
            Either::Right((_, asked)) => asked.await,
        }
    }

    /// Addresses a plain http request to the proxy.
    pub(super) fn address(&self, request: &mut Request<Full<Bytes>>, to: &Origin) {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        if let Ok(uri) = format!("{to}{target}").parse() {
            *request.uri_mut() = uri;
        }
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value.clone());
        }
    }

    /// The proxy has not passed a call on: no call was made.
    pub(super) fn refused(&self, status: StatusCode) -> CallError {
        let mend = if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            "; it wants the user and the password in proxy"
        } else {
            ""
        };
        CallError::unreachable(format!("the proxy {} answered {}{mend}", self.name(), status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_url_is_read_and_never_repeated() {
        let read = |url| ProxyAt::read(url).expect(url);
        let at = read("http://us%40er:p%3Aw@proxy.example:3128");
        assert_eq!(at.name(), "proxy.example:3128");
        let value = at.authorization.expect("a user");
        assert_eq!(value, "Basic dXNAZXI6cDp3");
        assert!(value.is_sensitive());
        assert_eq!(read("http://[::1]:8080/").name(), "[::1]:8080");
        assert_eq!(read("http://proxy").name(), "proxy:80");
        assert!(read("http://proxy").authorization.is_none());
        for (bad, why) in [
            ("s3cret", "not a URL"),
            ("https://s3cret@proxy:1", "by http"),
            ("socks5://s3cret@proxy:1", "by http"),
            ("http://proxy:1/s3cret", "more than"),
            ("http://proxy:1?s3cret", "more than"),
            ("http://s3%3Acret:x@proxy:1", "colon"),
        ] {
            let error = ProxyAt::read(bad).err().expect(bad);
            assert!(error.contains(why) && !error.contains("s3cret"), "{bad}: {error}");
        }
    }
}
