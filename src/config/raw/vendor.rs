//! What may be written about a vendor.
//!
//! Never decides whether a value makes sense, like the rest of `raw`.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{Number, Text, Webhook};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Vendor {
    pub(in crate::config) kind: Option<Text>,
    pub(in crate::config) method: Text,
    pub(in crate::config) url: Option<Text>,
    pub(in crate::config) pool: Option<Text>,
    pub(in crate::config) limits: Option<Limits>,
    pub(in crate::config) concurrency: Number,
    pub(in crate::config) timeout: Text,
    pub(in crate::config) retry: Retry,
    pub(in crate::config) deadline: Option<Text>,
    pub(in crate::config) open: Option<Number>,
    pub(in crate::config) answer_within: Text,
    #[serde(default)]
    pub(in crate::config) headers: BTreeMap<String, Text>,
    pub(in crate::config) auth: Option<Spanned<Login>>,
    pub(in crate::config) body: Option<Spanned<Body>>,
    pub(in crate::config) idempotency_header: Option<Text>,
    pub(in crate::config) tls: Option<Spanned<Tls>>,
    pub(in crate::config) proxy: Option<Text>,
    pub(in crate::config) webhook: Option<Spanned<Webhook>>,
    pub(in crate::config) polling: Option<Spanned<Polling>>,
    pub(in crate::config) failed: Option<Spanned<Match>>,
    pub(in crate::config) replies: Option<Spanned<Vec<Spanned<Rule>>>>,
    pub(in crate::config) slow_down: Option<Spanned<SlowDown>>,
    pub(in crate::config) expect: Option<Text>,
    pub(in crate::config) clean: Clean,
    pub(in crate::config) breaker: Breaker,
    pub(in crate::config) rate_headers: Option<Spanned<RateHeaders>>,
    pub(in crate::config) at_most_once: Option<Spanned<bool>>,
}

/// What is sent: JSON as a text, or anything else.
pub(in crate::config) type Body = TextOr<BodyTable>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct BodyTable {
    pub(in crate::config) form: Option<Spanned<BTreeMap<String, Text>>>,
    pub(in crate::config) text: Option<Text>,
    #[serde(rename = "type")]
    pub(in crate::config) kind: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tls {
    pub(in crate::config) ca: Option<Text>,
    pub(in crate::config) cert: Option<Text>,
    pub(in crate::config) key: Option<Text>,
}

/// Every key that some kind knows; `auth` checks which of them belong together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Login {
    pub(in crate::config) kind: Option<Text>,
    pub(in crate::config) token: Option<Text>,
    pub(in crate::config) user: Option<Text>,
    pub(in crate::config) password: Option<Text>,
    pub(in crate::config) name: Option<Text>,
    pub(in crate::config) value: Option<Text>,
    pub(in crate::config) token_url: Option<Text>,
    pub(in crate::config) client_id: Option<Text>,
    pub(in crate::config) client_secret: Option<Text>,
    pub(in crate::config) scope: Option<Text>,
    pub(in crate::config) audience: Option<Text>,
    pub(in crate::config) send: Option<Text>,
    pub(in crate::config) region: Option<Text>,
    pub(in crate::config) service: Option<Text>,
    pub(in crate::config) access_key: Option<Text>,
    pub(in crate::config) secret_key: Option<Text>,
}

impl Login {
    /// All but `kind`, with their names.
    pub(in crate::config) fn keys(&self) -> [(&'static str, Option<&Text>); 15] {
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
pub(in crate::config) struct Retry {
    pub(in crate::config) attempts: Number,
    pub(in crate::config) first: Text,
    pub(in crate::config) max: Text,
    pub(in crate::config) unanswered: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Polling {
    pub(in crate::config) ticket: Option<Text>,
    pub(in crate::config) ticket_header: Option<Text>,
    pub(in crate::config) url: Option<Text>,
    pub(in crate::config) hosts: Option<Hosts>,
    pub(in crate::config) method: Option<Text>,
    pub(in crate::config) body: Option<Spanned<Body>>,
    pub(in crate::config) first: Option<Text>,
    pub(in crate::config) every: Option<Text>,
    pub(in crate::config) max: Option<Text>,
    pub(in crate::config) missing: Option<Text>,
    pub(in crate::config) done: Option<Spanned<Match>>,
    pub(in crate::config) result: Option<Text>,
    pub(in crate::config) result_url: Option<Spanned<TextOr<At>>>,
}

/// A key that may be written short, as a text, or in full, as a table.
pub(in crate::config) enum TextOr<T> {
    Text(String),
    Table(T),
}

/// A place in an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct At {
    pub(in crate::config) at: Option<Text>,
}

pub(in crate::config) type Hosts = Spanned<Vec<Spanned<TextOr<Host>>>>;

/// Another origin than the vendor's own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Host {
    pub(in crate::config) origin: Option<Text>,
    pub(in crate::config) auth: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Match {
    pub(in crate::config) at: Option<Text>,
    pub(in crate::config) is: Option<Scalars>,
    pub(in crate::config) exists: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Rule {
    pub(in crate::config) on: Option<Spanned<Vec<Text>>>,
    pub(in crate::config) status: Option<Scalars>,
    pub(in crate::config) at: Option<Text>,
    pub(in crate::config) header: Option<Text>,
    pub(in crate::config) is: Option<Scalars>,
    pub(in crate::config) exists: Option<Spanned<bool>>,
    pub(in crate::config) means: Option<Text>,
    pub(in crate::config) wait: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct SlowDown {
    pub(in crate::config) first: Option<Text>,
    pub(in crate::config) max: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Clean {
    pub(in crate::config) trim: bool,
    pub(in crate::config) drop_null: bool,
    pub(in crate::config) redact: Vec<Text>,
}

/// `"off"`, a table or several.
pub(in crate::config) enum RateHeaders {
    Word(String),
    Named(Vec<RateHeader>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RateHeader {
    pub(in crate::config) limit: Option<Text>,
    pub(in crate::config) remaining: Option<Text>,
    pub(in crate::config) reset: Option<Text>,
    pub(in crate::config) unit: Option<Text>,
}

/// When a vendor's breaker opens, or that it has none.
pub(in crate::config) enum Breaker {
    /// `false`
    Off,
    /// `{ failed = 0.9, calls = 5, within = "30s", open = "10s" }`
    Table(Box<BreakerTable>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct BreakerTable {
    pub(in crate::config) failed: Spanned<f64>,
    pub(in crate::config) calls: Number,
    pub(in crate::config) within: Text,
    pub(in crate::config) open: Text,
}

pub(in crate::config) type Limits = Spanned<Vec<Spanned<TextOr<LimitTable>>>>;

/// A limit in full; the short form is `"50/s"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct LimitTable {
    pub(in crate::config) calls: Option<Number>,
    pub(in crate::config) per: Option<Text>,
    pub(in crate::config) shape: Option<Text>,
    pub(in crate::config) guard: Option<Text>,
    pub(in crate::config) burst: Option<Number>,
    pub(in crate::config) id: Option<Text>,
    pub(in crate::config) key: Option<Text>,
    pub(in crate::config) tz: Option<Text>,
}

/// A text, a number or a bool, as the text that a JSON value is compared with.
pub(in crate::config) struct Scalar(pub(in crate::config) String);

pub(in crate::config) type Scalars = Spanned<Vec<Spanned<Scalar>>>;
