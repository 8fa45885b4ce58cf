//! How a callback on the shared URL proves where it comes from. Signatures are data (see `hmac`), also of those that have names (see `named`).
//!
//! Never reads a clock, and never remembers what it has seen: a repeated callback finds its job ended. Secrets are compared in constant time.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName},
};
use subtle::ConstantTimeEq as _;

use self::hmac::{Key, Scheme};
use crate::{clock::Time, config::LiveSecret};

pub mod hmac;
pub mod named;
#[cfg(test)]
mod tests;

/// How a callback on the shared URL proves where it comes from.
#[derive(Debug, Clone, Default)]
pub enum Verify {
    /// Not configured: the shared URL is off. The URL of each job always works, its token is the proof.
    #[default]
    Off,
    /// `verify = "none"`, written out: every callback is believed.
    None,
    /// A header has one of these values.
    Header {
        name: HeaderName,
        values: Vec<LiveSecret>,
    },
    /// RFC 7617, with one of these passwords.
    Basic {
        user: LiveSecret,
        passwords: Vec<LiveSecret>,
    },
    Signed(Signed),
}

/// The body is signed with one of these secrets.
#[derive(Debug, Clone)]
pub struct Signed {
    /// In these ways; the vendor signs in one of them.
    pub schemes: Vec<Scheme>,
    pub key: Key,
    pub secrets: Vec<LiveSecret>,
}

/// Why a callback on the shared URL is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    #[error("this vendor has no webhook.verify in the config; set a signature scheme, or verify = \"none\"")]
    SharedUrlOff,
    #[error("the header {0} is missing or cannot be read")]
    Header(HeaderName),
    #[error("it was signed too long ago, or later than now")]
    OutOfTime,
    #[error("its proof is wrong")]
    Mismatch,
    #[error("a GET has no body that could be signed")]
    Unsigned,
}

impl Verify {
    /// What the head of a callback shows. One that fails here need not be read.
    pub fn head(&self, headers: &HeaderMap, now: Time) -> Result<(), NotBelieved> {
        match self {
            Verify::Off => Err(NotBelieved::SharedUrlOff),
            Verify::None => Ok(()),
            Verify::Header { name, values } => {
                let sent = headers.get(name).ok_or_else(|| NotBelieved::Header(name.clone()))?.as_bytes();
                is_any_of(values.iter().map(|value| value.reveal().as_bytes().to_vec()), sent)
            }
            Verify::Basic { user, passwords } => {
                let sent = basic(headers).ok_or(NotBelieved::Header(AUTHORIZATION))?;
                let user = user.reveal();
                is_any_of(passwords.iter().map(|password| format!("{user}:{}", password.reveal()).into_bytes()), &sent)
            }
            Verify::Signed(signed) => signed.head(headers, now),
        }
    }

    /// What the whole callback shows: the bytes of its body as they came.
    pub fn whole(&self, headers: &HeaderMap, body: &[u8], now: Time) -> Result<(), NotBelieved> {
        match self {
            Verify::Signed(signed) => {
                signed.head(headers, now)?;
                let mut keys = signed.secrets.iter().filter_map(|secret| signed.key.bytes(&secret.reveal()));
                let schemes = || signed.schemes.iter().filter(|scheme| scheme.head(headers, now).is_ok());
                let fits = |key: Vec<u8>| schemes().any(|scheme| scheme.has_signed(&key, headers, body));
                if keys.any(fits) { Ok(()) } else { Err(NotBelieved::Mismatch) }
            }
            _ => self.head(headers, now),
        }
    }

    /// Whether it proves anything about the body, and so nothing about a callback without one.
    pub fn is_of_bodies(&self) -> bool {
        matches!(self, Verify::Signed(_))
    }

    /// All secrets in it.
    pub fn secrets(&self) -> impl Iterator<Item = &LiveSecret> {
        let (first, rest) = match self {
            Verify::Off | Verify::None => (None, &[][..]),
            Verify::Header { values, .. } => (None, &**values),
            Verify::Basic { user, passwords } => (Some(user), &**passwords),
            Verify::Signed(signed) => (None, &*signed.secrets),
        };
        first.into_iter().chain(rest)
    }
}

impl Signed {
    /// Whether the headers may be signed by one of the schemes; if not, what is wrong with them by the first one.
    fn head(&self, headers: &HeaderMap, now: Time) -> Result<(), NotBelieved> {
        let mut faults = self.schemes.iter().map(|scheme| scheme.head(headers, now));
        let first = faults.next().unwrap_or(Err(NotBelieved::Mismatch));
        if first.is_ok() || faults.any(|fault| fault.is_ok()) { Ok(()) } else { first }
    }
}

/// The user and the password of a request, with a colon between them.
fn basic(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    BASE64_STANDARD.decode(encoded.trim()).ok()
}

/// In time that depends on no content.
fn is_any_of(mut wanted: impl Iterator<Item = Vec<u8>>, sent: &[u8]) -> Result<(), NotBelieved> {
    let fits = |wanted: Vec<u8>| bool::from(wanted.ct_eq(sent));
    if wanted.any(fits) { Ok(()) } else { Err(NotBelieved::Mismatch) }
}
