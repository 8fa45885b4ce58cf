//! What may be written: every key of the config file with its type, before anything is checked.
//!
//! Never decides whether a value makes sense (see `check`). What a later check may complain about is [`Spanned`], so that it can name the line.
//! Texts are as written: `${NAME}` is not filled in yet. Keys are optional here; which are required, `check` says, with all other faults at once.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use toml::Spanned;

pub(super) type Text = Spanned<String>;
pub(super) type Number = Spanned<u64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) default_vendor: Option<Text>,
    pub(super) server: Server,
    pub(super) ops: Ops,
    pub(super) auth: Auth,
    pub(super) store: Store,
    pub(super) queue: Option<Spanned<Queue>>,
    pub(super) capacity: Capacity,
    #[serde(default)]
    pub(super) vendors: BTreeMap<String, Spanned<Vendor>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Text,
    pub(super) public_url: Text,
    pub(super) callback_secret: Option<Text>,
    pub(super) tls: Option<Spanned<Tls>>,
    pub(super) cors: Option<Vec<Text>>,
    pub(super) max_connections_per_address: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert: Option<Text>,
    pub(super) key: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ops {
    pub(super) listen: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    pub(super) mode: Text,
    pub(super) allow_open: Spanned<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    pub(super) url: Text,
    pub(super) retention: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Queue {
    pub(super) url: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Capacity {
    pub(super) max_waiting: Number,
    pub(super) grace: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vendor {
    pub(super) kind: Option<Text>,
    pub(super) method: Text,
    pub(super) url: Option<Text>,
    pub(super) pool: Option<Text>,
    pub(super) limits: Option<Limits>,
    pub(super) concurrency: Number,
    pub(super) timeout: Text,
    pub(super) retry: Retry,
    pub(super) deadline: Option<Text>,
    pub(super) open: Option<Number>,
    pub(super) answer_within: Text,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Text>,
    pub(super) auth: Option<Spanned<Login>>,
    pub(super) body: Option<Text>,
    pub(super) webhook: Option<Spanned<Webhook>>,
    pub(super) polling: Option<Spanned<Polling>>,
    pub(super) failed: Option<Spanned<Match>>,
    pub(super) replies: Option<Spanned<Vec<Spanned<Rule>>>>,
    pub(super) slow_down: Option<Spanned<SlowDown>>,
    pub(super) expect: Option<Text>,
    pub(super) clean: Clean,
    pub(super) breaker: Breaker,
    pub(super) rate_headers: Option<Spanned<RateHeaders>>,
    pub(super) at_most_once: Option<Spanned<bool>>,
}

/// Every key that some kind knows; `auth` checks which of them belong together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    pub(super) kind: Option<Text>,
    pub(super) token: Option<Text>,
    pub(super) user: Option<Text>,
    pub(super) password: Option<Text>,
    pub(super) name: Option<Text>,
    pub(super) value: Option<Text>,
    pub(super) token_url: Option<Text>,
    pub(super) client_id: Option<Text>,
    pub(super) client_secret: Option<Text>,
    pub(super) scope: Option<Text>,
    pub(super) audience: Option<Text>,
    pub(super) send: Option<Text>,
    pub(super) region: Option<Text>,
    pub(super) service: Option<Text>,
    pub(super) access_key: Option<Text>,
    pub(super) secret_key: Option<Text>,
}

impl Login {
    /// All but `kind`, with their names.
    pub(super) fn keys(&self) -> [(&'static str, Option<&Text>); 15] {
        [
            ("token", self.token.as_ref()),
            ("user", self.user.as_ref()),
            ("password", self.password.as_ref()),
            ("name", self.name.as_ref()),
            ("value", self.value.as_ref()),
            ("token_url", self.token_url.as_ref()),
            ("client_id", self.client_id.as_ref()),
            ("client_secret", self.client_secret.as_ref()),
            ("scope", self.scope.as_ref()),
            ("audience", self.audience.as_ref()),
            ("send", self.send.as_ref()),
            ("region", self.region.as_ref()),
            ("service", self.service.as_ref()),
            ("access_key", self.access_key.as_ref()),
            ("secret_key", self.secret_key.as_ref()),
        ]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) attempts: Number,
    pub(super) first: Text,
    pub(super) max: Text,
    pub(super) unanswered: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Webhook {
    pub(super) verify: Option<Text>,
    pub(super) secret: Option<Text>,
    pub(super) request_id: Option<Text>,
    pub(super) result: Option<Text>,
    pub(super) ticket: Option<Text>,
    pub(super) ticket_in_callback: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Polling {
    pub(super) ticket: Option<Text>,
    pub(super) url: Option<Text>,
    pub(super) every: Option<Text>,
    pub(super) done: Option<Spanned<Match>>,
    pub(super) result: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Match {
    pub(super) at: Option<Text>,
    pub(super) is: Option<Scalars>,
    pub(super) exists: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) on: Option<Spanned<Vec<Text>>>,
    pub(super) status: Option<Scalars>,
    pub(super) at: Option<Text>,
    pub(super) header: Option<Text>,
    pub(super) is: Option<Scalars>,
    pub(super) exists: Option<Spanned<bool>>,
    pub(super) means: Option<Text>,
    pub(super) wait: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlowDown {
    pub(super) first: Option<Text>,
    pub(super) max: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clean {
    pub(super) trim: bool,
    pub(super) drop_null: bool,
    pub(super) redact: Vec<Text>,
}

/// `"off"`, a table or several.
pub(super) enum RateHeaders {
    Word(String),
    Named(Vec<RateHeader>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateHeader {
    pub(super) limit: Option<Text>,
    pub(super) remaining: Option<Text>,
    pub(super) reset: Option<Text>,
    pub(super) unit: Option<Text>,
}

/// When a vendor's breaker opens, or that it has none.
pub(super) enum Breaker {
    /// `false`
    Off,
    /// `{ failed = 0.9, calls = 5, within = "30s", open = "10s" }`
    Table(Box<BreakerTable>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakerTable {
    pub(super) failed: Spanned<f64>,
    pub(super) calls: Number,
    pub(super) within: Text,
    pub(super) open: Text,
}

pub(super) type Limits = Spanned<Vec<Spanned<Limit>>>;

/// A limit, short or in full.
pub(super) enum Limit {
    /// `"50/s"`
    Short(String),
    /// `{ calls = 600, per = "1m" }`
    Table(Box<LimitTable>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitTable {
    pub(super) calls: Option<Number>,
    pub(super) per: Option<Text>,
    pub(super) shape: Option<Text>,
    pub(super) guard: Option<Text>,
    pub(super) burst: Option<Number>,
    pub(super) id: Option<Text>,
    pub(super) key: Option<Text>,
    pub(super) tz: Option<Text>,
}

/// A text, a number or a bool, as the text that a JSON value is compared with.
pub(super) struct Scalar(pub(super) String);

pub(super) type Scalars = Spanned<Vec<Spanned<Scalar>>>;

impl<'de> Deserialize<'de> for RateHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RateHeaders, D::Error> {
        struct AnyOf;

        impl<'de> Visitor<'de> for AnyOf {
            type Value = RateHeaders;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("rate headers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RateHeaders, E> {
                Ok(RateHeaders::Word(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RateHeaders, A::Error> {
                RateHeader::deserialize(MapAccessDeserializer::new(map)).map(|table| RateHeaders::Named(vec![table]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RateHeaders, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RateHeaders::Named)
            }
        }

        deserializer.deserialize_any(AnyOf)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a limit")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
                Ok(Limit::Short(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Limit, A::Error> {
                LimitTable::deserialize(MapAccessDeserializer::new(map)).map(|table| Limit::Table(Box::new(table)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Breaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Breaker, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Breaker;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a breaker")
            }

            fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<Breaker, E> {
                if is_on { Err(E::invalid_value(Unexpected::Bool(true), &self)) } else { Ok(Breaker::Off) }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Breaker, A::Error> {
                BreakerTable::deserialize(MapAccessDeserializer::new(map)).map(|table| Breaker::Table(Box::new(table)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }

            fn visit_bool<E: de::Error>(self, yes: bool) -> Result<Scalar, E> {
                Ok(Scalar(yes.to_string()))
            }
        }

        deserializer.deserialize_any(AsText)
    }
}
