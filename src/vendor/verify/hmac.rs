//! Signatures of callbacks: HMAC, with every part that differs between vendors as a setting. `named` has the settings of those whose way has a
//! name.
//!
//! Never knows a vendor: a scheme is which header has the signatures and how they are written, what is signed, and how old it may be.

use std::{fmt, time::Duration};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hmac::{Hmac, KeyInit, Mac};
use hyper::{HeaderMap, header::HeaderName};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq as _;

use super::NotBelieved;
use crate::clock::Time;

/// How far the sender's clock may be from ours, either way, if the config does not say.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// The Standard Webhooks specification asks for 24 bytes; below this a secret can hardly be more than a mistake.
const MIN_SECRET: usize = 16;
/// Two are normal while a secret is being changed.
const MAX_SIGNATURES: usize = 16;
/// A larger number is a time in milliseconds: as seconds it would be the year 5138.
const MOST_SECONDS: i64 = 99_999_999_999;

/// Base64 with or without padding: vendors write both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A scheme as it is written.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    pub hash: Hash,
    pub encoding: Encoding,
    pub header: &'a str,
    pub prefix: &'a str,
    pub signs: &'a str,
    pub timestamp: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub const ALL: [Hash; 3] = [Hash::Sha256, Hash::Sha1, Hash::Sha512];

    /// The word for it in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Hash::Sha1 => "sha1",
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
    }

    pub(crate) fn tag(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Hash::Sha1 => tag::<Hmac<Sha1>>(key, parts),
            Hash::Sha256 => tag::<Hmac<Sha256>>(key, parts),
            Hash::Sha512 => tag::<Hmac<Sha512>>(key, parts),
        }
    }
}

fn tag<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// How a signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Hex,
    Base64,
}

impl Encoding {
    pub const ALL: [Encoding; 2] = [Encoding::Hex, Encoding::Base64];

    /// The word for it in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Encoding::Hex => "hex",
            Encoding::Base64 => "base64",
        }
    }

    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Encoding::Base64 => BASE64.decode(text).ok(),
            Encoding::Hex => {
                let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
                let (pairs, []) = digits.as_deref()?.as_chunks::<2>() else { return None };
                pairs.iter().map(|[high, low]| u8::try_from((high << 4) | low).ok()).collect()
            }
        }
    }
}

/// How the text of a secret becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Its bytes are the key.
    Text,
    /// `whsec_` and base64, or base64 alone.
    Whsec,
}

impl Key {
    /// Nothing for a text that is no key.
    pub(crate) fn bytes(self, secret: &str) -> Option<Vec<u8>> {
        match self {
            Key::Text => Some(secret.as_bytes().to_vec()),
            Key::Whsec => BASE64.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok(),
        }
    }

    /// Why a text is no key. Never repeats it.
    pub fn fault(self, secret: &str) -> Option<String> {
        match self.bytes(secret) {
            None => Some("a Standard Webhooks secret is base64, usually after `whsec_`".to_owned()),
            Some(key) if self == Key::Whsec && key.len() < MIN_SECRET => {
                Some(format!("a Standard Webhooks secret has at least {MIN_SECRET} bytes; this one has {}", key.len()))
            }
            Some(_) => None,
        }
    }
}

/// A place in the head: a header, or a part of one that is written `t=...` between commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    header: HeaderName,
    part: Option<String>,
}

impl Place {
    /// Reads `X-Timestamp`, or `Stripe-Signature.t`.
    pub fn parse(text: &str) -> Option<Place> {
        let (name, part) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some((name, part)) => (name, Some(part.to_owned())),
            None => (text, None),
        };
        // A name that is not plain is a mistake, though HTTP allows it.
        let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let header = if is_plain { HeaderName::try_from(name).ok()? } else { return None };
        Some(Place { header, part })
    }

    fn find<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let value = headers.get(&self.header)?.to_str().ok()?;
        let found = match &self.part {
            None => value,
            Some(part) => parts(value, "").find_map(|text| text.strip_prefix(part.as_str())?.strip_prefix('='))?,
        };
        Some(found).filter(|found| !found.is_empty())
    }
}

/// As it is written in the config.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.header.as_str())?;
        self.part.as_ref().map_or(Ok(()), |part| write!(f, ".{part}"))
    }
}

/// The parts of a header, between spaces, commas and semicolons; a character that a prefix has in it separates nothing.
fn parts<'a>(value: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    value.split(move |c: char| matches!(c, ' ' | ',' | ';') && !prefix.contains(c)).filter(|part| !part.is_empty())
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Head(Place),
    Body,
}

/// How a vendor signs its callbacks, checked.
#[derive(Debug, Clone)]
pub struct Scheme {
    hash: Hash,
    encoding: Encoding,
    header: HeaderName,
    prefix: String,
    signs: Vec<Piece>,
    /// Where the time of signing is, and how far it may be from now.
    timestamp: Option<(Place, Duration)>,
}

/// What is wrong with a scheme, and with which of its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub key: &'static str,
    pub what: String,
    pub mend: &'static str,
}

impl Scheme {
    pub fn new(settings: Settings<'_>, tolerance: Duration) -> Result<Scheme, Fault> {
        let Settings { hash, encoding, header, prefix, signs, timestamp } = settings;
        let fault = |key, what: &str, mend| Fault { key, what: what.to_owned(), mend };
        let header = HeaderName::try_from(header)
            .map_err(|_| fault("header", "this is not a header's name", "Write header = \"X-Signature\", say"))?;
        let signs = read_signs(signs)?;
        let place = |text| {
            let mend = "Write timestamp = \"X-Timestamp\", or \"X-Signature.t\" for the part t=... of a header";
            Place::parse(text).ok_or_else(|| fault("timestamp", "this is not a header's name", mend))
        };
        let timestamp = timestamp.map(place).transpose()?;
        if let Some(place) = timestamp.as_ref().filter(|place| !signs.contains(&Piece::Head((*place).clone()))) {
            let what = format!("{place} is not signed, so anybody could change it");
            return Err(Fault {
                key: "timestamp",
                what,
                mend: "Put it into signs as {{ header.NAME }}, or remove timestamp",
            });
        }
        let timestamp = timestamp.map(|place| (place, tolerance));
        Ok(Scheme { hash, encoding, header, prefix: prefix.to_owned(), signs, timestamp })
    }

    /// The header with the signatures.
    pub fn header(&self) -> &HeaderName {
        &self.header
    }

    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// How far the sender's clock may be from ours, where the time of signing is known.
    pub fn tolerance(&self) -> Option<Duration> {
        self.timestamp.as_ref().map(|(_, tolerance)| *tolerance)
    }

    /// Whether the head has all that the scheme needs, and was signed in time.
    pub(super) fn head(&self, headers: &HeaderMap, now: Time) -> Result<(), NotBelieved> {
        if self.signatures(headers).next().is_none() {
            return Err(NotBelieved::Header(self.header.clone()));
        }
        if let Some((place, tolerance)) = &self.timestamp {
            let signed_at =
                place.find(headers).and_then(time).ok_or_else(|| NotBelieved::Header(place.header.clone()))?;
            if u128::from(signed_at.0.abs_diff(now.0)) > tolerance.as_millis() {
                return Err(NotBelieved::OutOfTime);
            }
        }
        self.signed(headers, b"").map(drop)
    }

    /// Whether one of the signatures is by this key.
    pub(super) fn has_signed(&self, key: &[u8], headers: &HeaderMap, body: &[u8]) -> bool {
        let Ok(signed) = self.signed(headers, body) else { return false };
        let tag = self.hash.tag(key, &signed);
        let mut signatures = self.signatures(headers).filter_map(|text| self.encoding.decode(text));
        signatures.any(|signature| bool::from(tag.ct_eq(&*signature)))
    }

    fn signatures<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let values = headers.get_all(&self.header).iter().filter_map(|value| value.to_str().ok());
        let all = values.flat_map(|value| parts(value, &self.prefix));
        all.take(2 * MAX_SIGNATURES).filter_map(|part| part.strip_prefix(self.prefix.as_str())).take(MAX_SIGNATURES)
    }

    /// What is signed, in pieces.
    fn signed<'a>(&'a self, headers: &'a HeaderMap, body: &'a [u8]) -> Result<Vec<&'a [u8]>, NotBelieved> {
        let mut signed = Vec::with_capacity(self.signs.len());
        for (at, piece) in self.signs.iter().enumerate() {
            signed.push(match piece {
                Piece::Literal(text) => text.as_bytes(),
                Piece::Body => body,
                Piece::Head(place) => {
                    let text = place.find(headers);
                    // What ends a value must not be in it, or one signature would stand for several splits into values and body.
                    let is_whole = |text: &&str| {
                        !matches!(self.signs.get(at + 1), Some(Piece::Literal(end)) if text.contains(end.as_str()))
                    };
                    text.filter(is_whole).ok_or_else(|| NotBelieved::Header(place.header.clone()))?.as_bytes()
                }
            });
        }
        Ok(signed)
    }
}

/// Reads what is signed: text with `{{ body }}`, once, and `{{ header.NAME }}` in it.
fn read_signs(text: &str) -> Result<Vec<Piece>, Fault> {
    const MEND: &str = "Write signs = \"{{ header.x-timestamp }}.{{ body }}\", say; \"{{ body }}\" is the default";
    let fault = |what: &str| Fault { key: "signs", what: what.to_owned(), mend: MEND };
    let (mut pieces, mut rest) = (Vec::new(), text);
    let literal = |text: &str| (!text.is_empty()).then(|| Piece::Literal(text.to_owned()));
    while let Some((before, inside)) = rest.split_once("{{") {
        let (name, after) = inside.split_once("}}").ok_or_else(|| fault("{{ is not followed by }}"))?;
        pieces.extend(literal(before));
        pieces.push(match name.trim() {
            "body" => Piece::Body,
            name => {
                let place = name.strip_prefix("header.").and_then(Place::parse);
                Piece::Head(place.ok_or_else(|| fault("between {{ and }} there is neither body nor header.NAME"))?)
            }
        });
        rest = after;
    }
    pieces.extend(literal(rest));
    match pieces.iter().filter(|piece| **piece == Piece::Body).count() {
        1 => Ok(pieces),
        0 => Err(fault("the body is not signed, so anybody could change it")),
        _ => Err(fault("the body is signed once")),
    }
}

/// Whole seconds or milliseconds since the Unix epoch, told by their size; digits only.
fn time(text: &str) -> Option<Time> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    let number: i64 = is_number.then(|| text.parse().ok()).flatten()?;
    if number > MOST_SECONDS { Some(Time(number)) } else { number.checked_mul(1000).map(Time) }
}
