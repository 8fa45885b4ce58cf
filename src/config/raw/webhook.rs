//! What may be written about a vendor's callbacks, and its keys of several forms.
//!
//! Never decides whether a value makes sense, like the rest of `raw`.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use toml::Spanned;

use super::{At, Hosts, Match, Text, TextOr};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Webhook {
    pub(in crate::config) verify: Option<Spanned<TextOr<VerifyTable>>>,
    pub(in crate::config) secret: Option<Spanned<Secrets>>,
    pub(in crate::config) request_id: Option<Text>,
    pub(in crate::config) result: Option<Text>,
    pub(in crate::config) ticket: Option<Text>,
    pub(in crate::config) ticket_in_callback: Option<Text>,
    pub(in crate::config) done: Option<Spanned<Match>>,
    pub(in crate::config) result_url: Option<Spanned<TextOr<At>>>,
    pub(in crate::config) hosts: Option<Hosts>,
    pub(in crate::config) events: Option<Text>,
    pub(in crate::config) unknown: Option<Text>,
    pub(in crate::config) get: Option<Spanned<bool>>,
    pub(in crate::config) challenge: Option<Spanned<TextOr<ChallengeTable>>>,
}

/// Every key that some scheme knows; `verify` checks which of them belong together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct VerifyTable {
    pub(in crate::config) hmac: Option<Text>,
    pub(in crate::config) header: Option<Text>,
    pub(in crate::config) encoding: Option<Text>,
    pub(in crate::config) prefix: Option<Text>,
    pub(in crate::config) signs: Option<Text>,
    pub(in crate::config) timestamp: Option<Text>,
    pub(in crate::config) tolerance: Option<Text>,
    pub(in crate::config) secret: Option<Spanned<Secrets>>,
    pub(in crate::config) value: Option<Spanned<Secrets>>,
    pub(in crate::config) basic: Option<Spanned<Basic>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Basic {
    pub(in crate::config) user: Option<Text>,
    pub(in crate::config) password: Option<Spanned<Secrets>>,
}

/// One secret, or several while it is being changed.
pub(in crate::config) enum Secrets {
    One(String),
    Several(Vec<Text>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ChallengeTable {
    pub(in crate::config) hub: Option<Spanned<Secrets>>,
}

impl<'de> Deserialize<'de> for Secrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secrets, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Secrets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or an array")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secrets, E> {
                Ok(Secrets::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Secrets, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Secrets::Several)
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}
