//! `/oauth/token`: access tokens by client credentials (RFC 6749, 4.4), and the vendors that want one.
//!
//! Any client gets a token. It ends by the real clock, or when a test says which headers a vendor takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::World;
use crate::behave::{Behave, pairs};
use crate::reply::{Reply, error, json};
use crate::vendor::Vendor;

/// Tokens kept per name; the oldest is forgotten first.
const TOKENS: usize = 1000;

/// What one name knows of logging in.
#[derive(Default)]
pub(crate) struct Logins {
    issued: u64,
    tokens: VecDeque<(String, Instant)>,
    /// The only `Authorization` headers that are taken, if a test said so.
    only: Option<Vec<String>>,
}

impl Logins {
    pub(crate) fn accept_only(&mut self, headers: &[&str]) {
        self.only = Some(headers.iter().map(|header| (*header).to_owned()).collect());
    }

    fn issue(&mut self, name: &str, life: Duration) -> String {
        self.issued += 1;
        let token = format!("{name}-token-{}", self.issued);
        if self.tokens.len() == TOKENS {
            self.tokens.pop_front();
        }
        self.tokens.push_back((token.clone(), Instant::now() + life));
        token
    }

    fn is_good(&self, token: &str) -> bool {
        self.tokens.iter().any(|(good, until)| good == token && Instant::now() < *until)
    }
}

/// Answers a request for a token.
pub(crate) fn token(vendor: &Vendor, behave: &Behave, body: &Bytes) -> Reply {
    let form = std::str::from_utf8(body).ok().and_then(|body| pairs(Some(body)).ok()).unwrap_or_default();
    if !form.iter().any(|(name, value)| name == "grant_type" && value == "client_credentials") {
        return json(400, r#"{"error":"unsupported_grant_type","error_description":"only client_credentials"}"#);
    }
    let token = vendor.logins().issue(&vendor.name, behave.expires_in);
    let life = behave.expires_in.as_secs();
    json(200, format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{life}}}"#))
}

/// The answer to a call whose `Authorization` header is not what this vendor takes.
pub(crate) fn refuse(world: &World, vendor: &Vendor, behave: &Behave, header: Option<&str>) -> Option<Reply> {
    let is_among = |only: &Vec<String>| only.iter().any(|good| Some(good.as_str()) == header);
    let is_taken = vendor.logins().only.as_ref().is_none_or(is_among);
    let has_token = behave.token_from.as_ref().is_none_or(|issuer| {
        let token = header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default();
        world.known(issuer).is_some_and(|issuer| issuer.logins().is_good(token))
    });
    (!is_taken || !has_token).then(|| error(401, "invalid_token").header("www-authenticate", "Bearer"))
}
