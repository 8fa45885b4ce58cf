//! What may be written: every key of the config file with its type, before anything is checked.
//!
//! Never decides whether a value makes sense (see `check`). What a later check may complain about is [`Spanned`], so that it can name the line.
//! Texts are as written: `${NAME}` is not filled in yet. Keys are optional here; which are required, `check` says, with all other faults at once.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

mod forms;
mod vendor;
mod webhook;

pub(super) use vendor::*;
pub(super) use webhook::*;

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
    pub(super) result_webhooks: ResultWebhooks,
    #[serde(default)]
    pub(super) tenants: BTreeMap<String, Spanned<Tenant>>,
    #[serde(default)]
    pub(super) tenant_defaults: Tenant,
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
    pub(super) admin_key: Option<Text>,
    pub(super) published_on: Option<Text>,
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
    pub(super) max_waiting_bytes: Number,
    pub(super) grace: Text,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub(super) submit: Option<Text>,
    pub(super) max_waiting: Option<Number>,
    pub(super) max_waiting_bytes: Option<Number>,
    pub(super) webhook_secret: Option<Spanned<Secrets>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResultWebhooks {
    pub(super) secret: Option<Spanned<Secrets>>,
    pub(super) give_up_after: Text,
    pub(super) allow: Option<Vec<Text>>,
}
