//! Challenges: what a vendor asks a URL before it sends callbacks there. It wants a text back, and we give it only where the config has a
//! `webhook.challenge`.
//!
//! Never gives back a long text, nor one that was asked for with a wrong secret.

use hyper::{Method, Uri};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq as _;

use super::{Vendor, verify::NotBelieved};
use crate::{
    config::Challenge,
    json::{self, Pointer},
};

/// Bytes of a text that is given back at most.
pub const MAX_CHALLENGE: usize = 1024;

/// The text that the vendor wants back, of at most [`MAX_CHALLENGE`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenged(pub String);

impl Vendor {
    /// The challenge in the head of a request, if it is one. Such a request is no callback.
    pub fn challenge_in_head(&self, method: &Method, uri: &Uri) -> Option<Result<Challenged, NotBelieved>> {
        let query = uri.query().unwrap_or_default();
        match self.webhook()?.challenge.as_ref()? {
            Challenge::Graph if method == Method::POST => {
                parameter(query, "validationToken").map(|text| Ok(Challenged(text)))
            }
            Challenge::Hub(secrets) if method == Method::GET => {
                let text = parameter(query, "hub.challenge")?;
                let sent = parameter(query, "hub.verify_token").unwrap_or_default();
                let is_right =
                    secrets.iter().any(|secret| bool::from(secret.reveal().as_bytes().ct_eq(sent.as_bytes())));
                Some(if is_right { Ok(Challenged(text)) } else { Err(NotBelieved::Mismatch) })
            }
            _ => None,
        }
    }

    /// The challenge in a body that is believed.
    pub fn challenge_in_body(&self, body: &RawValue) -> Option<Challenged> {
        let Challenge::Slack = self.webhook()?.challenge.as_ref()? else { return None };
        let member = |name: &str| Pointer::from_keys([name]).find(body).map(json::text);
        member("type").filter(|kind| kind == "url_verification")?;
        member("challenge").map(|text| Challenged(text.into_owned()))
    }
}

/// The first parameter of this name.
fn parameter(query: &str, name: &str) -> Option<String> {
    let found = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}
