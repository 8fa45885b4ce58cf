//! Access tokens by client credentials (RFC 6749, 4.4): one for each vendor of a process, renewed before it ends and when it is refused.
//!
//! Never shows a secret or a token, and never asks twice at once: calls that need a token wait for the one request under way.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use serde::Deserialize;
use url::form_urlencoded;

use crate::{
    clock::{Clock, Nanos, nanos},
    config::{ClientIn, OAuth2},
    job::{Failure, FailureCode},
    vendor::{
        error::CallError,
        http::{Client, Origin, Reply},
        outgoing::{basic, sensitive},
    },
};

/// One request for a token, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 64 * 1024;
/// A token is renewed when a tenth of its life is left, or this much.
const MOST_AHEAD: Duration = Duration::from_secs(60);
/// The wait before a token that could not be renewed and is still good is asked for again.
const RENEW_AGAIN: Duration = Duration::from_secs(5);
/// A token's life is believed up to this.
const LONGEST_LIFE: Duration = Duration::from_secs(366 * 86_400);
/// Characters of an error's description that are kept.
const MOST_WORDS: usize = 200;

/// A vendor's tokens.
pub struct OAuth {
    config: OAuth2,
    origin: Origin,
    target: String,
    state: Mutex<State>,
    /// Whoever has it asks for a token.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// Counts tokens: each has the number that was there when it came.
    number: u64,
    /// The vendor refused the token before this one, and has not taken this one yet.
    is_suspect: bool,
}

struct Token {
    header: HeaderValue,
    renew_at: Nanos,
    ends_at: Nanos,
}

/// Whether calls can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// With the token that is there.
    Good,
    /// The same, and it is time to ask for the next.
    EndsSoon,
    /// Not without asking for a token.
    Missing,
}

/// What it means that the vendor refused a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The call is worth another try with a newer token.
    TryNewer,
    /// A token that had just been renewed for this was refused too.
    Final,
}

impl OAuth {
    pub(super) fn new(config: OAuth2) -> OAuth {
        let url = &config.token_url;
        let target = url.query().map_or(url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let origin = Origin::of(url).expect("the config takes http and https URLs only");
        OAuth { origin, target, config, state: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    pub fn standing(&self, now: Nanos) -> Standing {
        match &self.state().token {
            Some(token) if now >= token.ends_at => Standing::Missing,
            Some(token) if now >= token.renew_at => Standing::EndsSoon,
            Some(_) => Standing::Good,
            None => Standing::Missing,
        }
    }

    /// The header of a call, and the number of the token in it.
    pub(super) fn header(&self, now: Nanos) -> Option<(HeaderValue, u64)> {
        let state = self.state();
        let token = state.token.as_ref().filter(|token| now < token.ends_at)?;
        Some((token.header.clone(), state.number))
    }

    /// The token in use, so that it can be masked where a vendor repeats it.
    pub(super) fn token(&self) -> Option<String> {
        self.state().token.as_ref().and_then(|token| Some(token.header.to_str().ok()?.to_owned()))
    }

    /// The vendor took the token of this number.
    pub(super) fn taken(&self, number: u64) {
        let mut state = self.state();
        if state.number == number {
            state.is_suspect = false;
        }
    }

    /// The vendor refused the token of this number: it is not used any more.
    pub(super) fn refused(&self, number: u64) -> Refusal {
        let mut state = self.state();
        if state.number != number {
            return Refusal::TryNewer;
        }
        state.token = None;
        state.number += 1;
        if std::mem::replace(&mut state.is_suspect, true) { Refusal::Final } else { Refusal::TryNewer }
    }

    /// The secrets have changed: the next token is asked for now, and this one is used until it comes.
    pub(super) fn renew_soon(&self) {
        if let Some(token) = &mut self.state().token {
            token.renew_at = Nanos::MIN;
        }
    }

    /// Asks for a token, or waits for somebody else's request that was under way. A token that is still good stays in use if that fails.
    pub async fn renew(&self, client: &Client, clock: &Clock) -> Result<(), Failure> {
        let before = self.state().number;
        let _asking = self.asking.lock().await;
        if self.state().number != before && self.standing(clock.nanos()) == Standing::Good {
            return Ok(());
        }
        let asked_at = clock.nanos();
        match self.ask(client, asked_at).await {
            Ok(token) => {
                let mut state = self.state();
                (state.token, state.number) = (Some(token), state.number + 1);
                Ok(())
            }
            Err(why) => {
                if let Some(token) = &mut self.state().token {
                    token.renew_at = clock.nanos().saturating_add(nanos(RENEW_AGAIN));
                }
                Err(why)
            }
        }
    }

    async fn ask(&self, client: &Client, asked_at: Nanos) -> Result<Token, Failure> {
        let exchange = async {
            let mut connection = client.connection(&self.origin).await?;
            let reply = connection.send(self.request()).await?;
            client.keep(connection);
            Ok(reply)
        };
        let reply = tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(CallError::TimedOut));
        let failed =
            |code, why: String| Failure::new(code, format!("no token from {}: {why}", self.origin.authority()));
        match reply {
            Ok(reply) => self.read(&reply, asked_at).map_err(|why| failed(FailureCode::VendorRefused, why)),
            Err(CallError::TimedOut) => Err(failed(FailureCode::Timeout, "it did not answer in time".into())),
            Err(CallError::Unreachable(why)) => {
                Err(failed(FailureCode::AttemptsExhausted, format!("it could not be reached: {why}")))
            }
            Err(error) => Err(failed(FailureCode::AttemptsExhausted, error.to_string())),
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let OAuth2 { client_id, client_secret, scope, audience, client_in, .. } = &self.config;
        let (id, secret) = (client_id.reveal(), client_secret.reveal());
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        for (name, value) in [("scope", scope), ("audience", audience)] {
            if let Some(value) = value {
                form.append_pair(name, value);
            }
        }
        if *client_in == ClientIn::Body {
            form.append_pair("client_id", &id).append_pair("client_secret", &secret);
        }
        let mut request = Request::new(Full::new(Bytes::from(form.finish())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(&self.origin.authority()) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("fetchgate/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        if *client_in == ClientIn::Basic {
            // RFC 6749, 2.3.1: both are form-encoded first.
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            headers.extend(sensitive(&basic(&encode(&id), &encode(&secret))).map(|value| (AUTHORIZATION, value)));
        }
        request
    }

    fn read(&self, reply: &Reply, asked_at: Nanos) -> Result<Token, String> {
        let status = reply.status.as_u16();
        if reply.body.len() > MAX_ANSWER {
            return Err(format!("it answered {status} with more than {MAX_ANSWER} bytes"));
        }
        let answer: Result<Answer, _> = serde_json::from_slice(&reply.body);
        if !reply.status.is_success() {
            return Err(format!(
                "it answered {status}{}",
                answer.map(|answer| self.words(&answer)).unwrap_or_default()
            ));
        }
        // serde's message may repeat a part of the token.
        let answer =
            answer.map_err(|_| format!("it answered {status} with something that is no token (RFC 6749, 5.1)"))?;
        let Some(token) = &answer.access_token else {
            return Err(format!("it answered {status} without access_token{}", self.words(&answer)));
        };
        if answer.token_type.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err("its token is not of the type bearer".into());
        }
        let header =
            sensitive(&format!("Bearer {token}")).ok_or("its token has a character that a header cannot have")?;
        let life = answer.expires_in.map(|life| Duration::from_secs_f64(life.0.clamp(1.0, LONGEST_LIFE.as_secs_f64())));
        let life = nanos(life.unwrap_or(LONGEST_LIFE));
        let ahead = (life / 10).min(nanos(MOST_AHEAD));
        let ends_at = asked_at.saturating_add(life);
        Ok(Token { header, renew_at: ends_at - ahead, ends_at })
    }

    /// What the endpoint says went wrong, bounded and without the secret.
    fn words(&self, answer: &Answer) -> String {
        let said = [&answer.error, &answer.error_description].into_iter().flatten().cloned().collect::<Vec<_>>();
        if said.is_empty() {
            return String::new();
        }
        let said = said.join(": ").replace(&*self.config.client_secret.reveal(), "[secret]");
        let said: String = said.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
        format!(" ({said})")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What token endpoints answer (RFC 6749, 5.1 and 5.2).
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    token_type: Option<String>,
    expires_in: Option<Seconds>,
    error: Option<String>,
    error_description: Option<String>,
}

/// A number, or its text: endpoints give both.
struct Seconds(f64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        // What is no number says nothing, like a key that is not there.
        Ok(Seconds(number.filter(|seconds| seconds.is_finite()).unwrap_or(LONGEST_LIFE.as_secs_f64())))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use hyper::{HeaderMap, StatusCode};
    use mock_vendors::{Answer as Scripted, MockVendors};

    use super::*;
    use crate::config::LiveSecret;

    fn oauth(token_url: &str) -> OAuth {
        OAuth::new(OAuth2 {
            token_url: token_url.parse().expect("a URL"),
            client_id: LiveSecret::of("us"),
            client_secret: LiveSecret::of("hush"),
            scope: None,
            audience: None,
            client_in: ClientIn::Body,
        })
    }

    fn read(status: u16, body: &str) -> Result<(Nanos, Nanos), String> {
        let oauth = oauth("https://id.example/token");
        let status = StatusCode::from_u16(status).expect("a status");
        let reply =
            Reply { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()), broken: None };
        oauth.read(&reply, 0).map(|token| (token.renew_at, token.ends_at))
    }

    const SECOND: Nanos = 1_000_000_000;

    #[tokio::test]
    async fn however_many_calls_wait_for_a_token_it_is_asked_for_once() {
        let idp = MockVendors::start("127.0.0.1:0").await.expect("a port");
        let token = Scripted::json(200, r#"{"access_token": "t"}"#).after(Duration::from_millis(50));
        idp.script("idp", vec![token]);
        let oauth = oauth(&format!("{}/sync/idp", idp.url()));
        let (client, clock) = (Client::new(), Clock::system());
        let asked = join_all((0..10).map(|_| oauth.renew(&client, &clock))).await;
        assert!(asked.iter().all(Result::is_ok), "{asked:?}");
        assert_eq!((idp.count("idp"), oauth.standing(clock.nanos())), (1, Standing::Good));
    }

    #[test]
    fn a_token_is_renewed_when_a_tenth_of_its_life_is_left_or_a_minute() {
        for (expires_in, renew_at, ends_at) in [
            ("8", 7_200_000_000, 8 * SECOND),
            ("\"300\"", 270 * SECOND, 300 * SECOND),
            ("3600.0", 3540 * SECOND, 3600 * SECOND),
            ("0", 900_000_000, SECOND),
            ("-5", 900_000_000, SECOND),
        ] {
            let body = format!(r#"{{"access_token": "t", "token_type": "Bearer", "expires_in": {expires_in}}}"#);
            assert_eq!(read(200, &body), Ok((renew_at, ends_at)), "{body}");
        }
        for body in [r#"{"access_token": "t"}"#, r#"{"access_token": "t", "expires_in": "soon"}"#] {
            assert_eq!(
                read(200, body).map(|(_, ends_at)| ends_at),
                Ok(nanos(LONGEST_LIFE)),
                "{body}: used until it is refused"
            );
        }
    }

    #[test]
    fn what_is_no_token_is_reported_bounded_and_without_the_secret() {
        let long = format!(r#"{{"error": "{}"}}"#, "x".repeat(10_000));
        for (status, body, told) in [
            (400, r#"{"error": "invalid_scope"}"#, "it answered 400 (invalid_scope)"),
            (
                401,
                r#"{"error": "invalid_client", "error_description": "no hush\nhere"}"#,
                "(invalid_client: no [secret]here)",
            ),
            (503, "<html>hush</html>", "it answered 503"),
            (200, "{}", "without access_token"),
            (200, "hush", "no token"),
            (200, r#"{"access_token": "a\nb"}"#, "a character that a header cannot have"),
            (200, r#"{"access_token": "t", "token_type": "mac"}"#, "not of the type bearer"),
            (400, &long, "xxx"),
        ] {
            let why = read(status, body).expect_err(body);
            assert!(why.contains(told) && !why.contains("hush") && why.len() < 300, "{why}");
        }
    }
}
