//! A running service, over HTTP: where it is, one request at a time, and what its answers mean for a command.
//!
//! Never sends anything twice: only the command knows whether a request can be repeated.

use std::{convert::Infallible, fmt, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, IF_MATCH, InvalidHeaderValue, USER_AGENT},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout};
use url::Url;

use super::{
    Failure, Output, print,
    problem::Problem,
    times::{Times, ZoneArgs},
    why::JobState,
};
use crate::{
    config::{Secret, parse_duration, write_duration},
    vendor::{
        error::CallError,
        http::{Client, Connection, Origin, Reply},
    },
};

/// How long a service may take to answer, in addition to the time of a long poll.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time of one long poll: shorter than the time-outs of usual proxies.
const LONG_POLL: Duration = Duration::from_secs(30);
/// A stream that is silent for longer is taken for dead: the service sends a comment every 15 seconds.
const SILENCE: Duration = Duration::from_secs(45);
/// The least time between two requests for a job, in case the service answers a long poll at once.
const REST: Duration = Duration::from_millis(250);
/// The longest that `--wait` takes: a hundred days.
const MAX_WAIT: Duration = Duration::from_secs(8_640_000);
/// Characters of a path's segment that are not escaped.
const SEGMENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Where a running service is. The variables are read here and not by clap, whose usage lines would show the flags as required if they are set.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Where the service is [env: FETCHGATE_URL] [default: http://127.0.0.1:8000]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The key, if the service wants one; in FETCHGATE_KEY other users of this machine do not see it [env: FETCHGATE_KEY]
    #[arg(long, value_name = "KEY", value_parser = secret)]
    key: Option<Secret>,
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

/// A variable of the environment; an empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where a service is if nothing says so.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8000";

/// Arguments of all commands that use a running service.
#[derive(Debug, Args)]
pub(super) struct Talk {
    #[command(flatten)]
    pub(super) target: Target,
    /// How the answer is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Output,
    #[command(flatten)]
    zone: ZoneArgs,
}

impl Talk {
    /// How times are shown, as of now.
    pub(super) fn times(&self) -> Times {
        self.zone.times()
    }

    /// Makes one request and prints its answer: for people as `view` has it.
    pub(super) async fn ask<F>(&self, call: Call<'_>, view: F) -> Result<(), Failure>
    where
        F: FnOnce(&RawValue) -> Result<String, Failure>,
    {
        let answer = Service::at(&self.target)?.call(call).await?;
        print::answer(answer.json(), self.output, view)
    }
}

/// A service, used over one connection as long as that works.
pub(super) struct Service {
    client: Client,
    origin: Origin,
    url: Url,
    /// What goes into the `Authorization` header.
    authorization: Option<HeaderValue>,
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Below the service's URL, with its query, percent-encoded.
    pub(super) path: String,
    /// The media type and the body.
    pub(super) body: Option<(&'static str, Bytes)>,
    pub(super) idempotency_key: Option<&'a str>,
    /// Only if this is still the version.
    pub(super) if_match: Option<String>,
    /// For a stream: only what came after this event.
    pub(super) last_event_id: Option<&'a str>,
    /// How long the service may wait before it answers (a long poll).
    pub(super) wait: Duration,
}

impl Call<'_> {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Call {
            method: Method::GET,
            path: path.into(),
            body: None,
            idempotency_key: None,
            if_match: None,
            last_event_id: None,
            wait: Duration::ZERO,
        }
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Call { method: Method::POST, ..Call::get(path) }
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Call { method: Method::DELETE, ..Call::get(path) }
    }
}

/// The body of a successful answer: JSON, `null` if there is none.
pub(super) struct Answer(Box<RawValue>);

impl Answer {
    /// The JSON as the service wrote it.
    pub(super) fn json(&self) -> &RawValue {
        &self.0
    }

    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        read(&self.0)
    }
}

/// Reads a part of an answer.
pub(super) fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, Failure> {
    let strange = |error| anyhow!("the answer is not what this version of fetchgate expects: {error}");
    Ok(serde_json::from_str(json.get()).map_err(strange)?)
}

impl Service {
    pub(super) fn at(target: &Target) -> Result<Service, Failure> {
        let url = target.url.clone().or_else(|| variable("FETCHGATE_URL"));
        let key = target.key.clone().or_else(|| variable("FETCHGATE_KEY").map(Secret::new));
        Service::new(&url.unwrap_or_else(|| DEFAULT_URL.to_owned()), key.as_ref())
    }

    pub(super) fn new(url: &str, key: Option<&Secret>) -> Result<Service, Failure> {
        // The text itself is not repeated: there may be a password in it.
        let wrong = |what: &str| {
            let sentence = format!("--url (or FETCHGATE_URL) {what}; write it like http://127.0.0.1:8000");
            Err(Failure::Usage(anyhow!(sentence)))
        };
        let url = match Url::parse(url) {
            Ok(url) => url,
            Err(error) => return wrong(&format!("is not a URL: {error}")),
        };
        let Some(origin) = Origin::of(&url) else { return wrong("does not start with http:// or https://") };
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("has a user name or a password in it, and a service takes neither");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return wrong("has a part after ? or # in it");
        }
        let bearer = |key: &Secret| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let unsendable = |_: InvalidHeaderValue| {
            Failure::Usage(anyhow!("--key (or FETCHGATE_KEY) has characters that no key has; is a line break in it?"))
        };
        let authorization = key.map(bearer).transpose().map_err(unsendable)?;
        Ok(Service { client: Client::new(), origin, url, authorization })
    }

    /// Makes a request; every answer but a success is an error.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, Failure> {
        let reply = self.exchange(call).await?;
        if !reply.status.is_success() {
            return Err(Failure::No(self.refusal(&reply)));
        }
        let body = if reply.status == StatusCode::NO_CONTENT { &b"null"[..] } else { &reply.body };
        let json = serde_json::from_slice(body);
        Ok(Answer(json.map_err(|_| self.stranger("answered with something that is not JSON"))?))
    }

    /// The error in an answer that is no success.
    pub(super) fn refusal(&self, reply: &Reply) -> anyhow::Error {
        match serde_json::from_slice::<Problem>(&reply.body) {
            Ok(problem) if reply.status == StatusCode::UNAUTHORIZED => {
                anyhow!("{}\n{}", problem.of_flags(), self.which_key())
            }
            Ok(problem) => anyhow!("{}", problem.of_flags()),
            Err(_) => self.stranger(&format!("answered {}", reply.status)),
        }
    }

    /// Gives each piece of a stream to `take` as it arrives, until the service ends the stream or `take` wants no more.
    /// An answer that means "later" counts as unreachable.
    pub(super) async fn stream(&self, call: Call<'_>, take: impl FnMut(&[u8]) -> bool) -> Result<(), Failure> {
        let request = self.request(call)?;
        let mut connection = self.connect().await?;
        let reply = connection.follow(request, SILENCE, take).await.map_err(|error| self.silent(&error, SILENCE))?;
        match reply.status {
            status if status.is_success() => Ok(()),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::Unreachable(self.refusal(&reply)))
            }
            _ => Err(Failure::No(self.refusal(&reply))),
        }
    }

    /// The job, once it has ended or the time is up.
    pub(super) async fn job(&self, id: &str, include_payload: bool, wait: Duration) -> Result<Answer, Failure> {
        let until = Instant::now() + wait;
        loop {
            let asked = Instant::now();
            let wait = until.saturating_duration_since(asked).min(LONG_POLL);
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            if include_payload {
                query.append_pair("include", "payload");
            }
            if !wait.is_zero() {
                query.append_pair("wait", &write_duration(wait));
            }
            let path = format!("/jobs/{}?{}", segment(id), query.finish());
            let answer = self.call(Call { wait, ..Call::get(path.trim_end_matches('?')) }).await?;
            if Instant::now() >= until || answer.read::<JobState>()?.status.has_ended() {
                return Ok(answer);
            }
            sleep_until((asked + REST).min(until)).await;
        }
    }

    /// Makes a request and returns the reply, whatever its status.
    pub(super) async fn exchange(&self, call: Call<'_>) -> Result<Reply, Failure> {
        let patience = PATIENCE + call.wait;
        let request = self.request(call)?;
        let mut connection = self.connect().await?;
        let reply = timeout(patience, connection.send(request)).await.unwrap_or(Err(CallError::TimedOut));
        if reply.is_ok() {
            self.client.keep(connection);
        }
        reply.map_err(|error| self.silent(&error, patience))
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let connecting = timeout(PATIENCE, self.client.connection(&self.origin)).await;
        let no_answer = || CallError::Unreachable(format!("no connection within {}", write_duration(PATIENCE)));
        connecting.unwrap_or_else(|_| Err(no_answer())).map_err(|error| self.silent(&error, PATIENCE))
    }

    fn request(&self, call: Call<'_>) -> Result<Request<Full<Bytes>>, Failure> {
        let path = format!("{}{}", self.url.path().trim_end_matches('/'), call.path);
        let uri: Uri = path.parse().map_err(|error| Failure::Usage(anyhow!("this makes no path of a URL: {error}")))?;
        let (media_type, body) = call.body.unwrap_or_default();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.origin.authority());
        headers.insert(HOST, host.map_err(|_| Failure::Usage(anyhow!("--url has a host that HTTP cannot carry")))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("fetchgate-cli/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        if !media_type.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        if let Some(key) = call.idempotency_key {
            let wrong = |_| Failure::Usage(anyhow!("--idempotency-key must be 1 to 255 visible ASCII characters"));
            headers.insert("idempotency-key", HeaderValue::from_str(key).map_err(wrong)?);
        }
        if let Some(version) = call.if_match.as_deref().and_then(|version| HeaderValue::from_str(version).ok()) {
            headers.insert(IF_MATCH, version);
        }
        if let Some(id) = call.last_event_id {
            let wrong = |_| Failure::Usage(anyhow!("--after must be the id of an event"));
            headers.insert("last-event-id", HeaderValue::from_str(id).map_err(wrong)?);
        }
        Ok(request)
    }

    /// The error if there is no answer, or none that can be read.
    fn silent(&self, error: &CallError, patience: Duration) -> Failure {
        let url = &self.url;
        Failure::Unreachable(match error {
            CallError::TooLarge(max) => {
                return Failure::No(anyhow!(
                    "the answer is larger than the {max} bytes that this command reads; use curl"
                ));
            }
            CallError::Unreachable(why) => anyhow!(
                "no service can be reached at {url}: {why}\nStart one with `fetchgate dev`, or name its address with --url or FETCHGATE_URL."
            ),
            CallError::TimedOut => anyhow!(
                "{url} did not answer within {}; it may still have handled the request, so look before you repeat it",
                write_duration(patience)
            ),
            other => anyhow!(
                "{url} did not send its whole answer: {other}\nIt may have handled the request, so look before you repeat it."
            ),
        })
    }

    /// What to do about a key that is missing or not good.
    fn which_key(&self) -> &'static str {
        match self.authorization {
            Some(_) => {
                "The key from --key or FETCHGATE_KEY is not good: it was deleted, has expired, or belongs to another service."
            }
            None => "Give the key with --key, or in FETCHGATE_KEY.",
        }
    }

    pub(super) fn stranger(&self, what: &str) -> anyhow::Error {
        anyhow!("{} {what}, which is not how Fetchgate answers; is the URL right?", self.url)
    }
}

/// Text as one segment of a path.
pub(super) fn segment(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, &SEGMENT)
}

/// Reads the value of `--wait`.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    parse_duration(text).map(|wait| wait.min(MAX_WAIT))
}
