//! The configuration, checked: what the rest of the service reads. Every value here is usable as it stands.
//!
//! How a text becomes a [`Config`]: `load` finds it, `source` lays the environment over it and the example's defaults under it, `read` turns
//! it into what may be written (`raw`), and `root` (with `store`, `vendor`, `kind`, `limits`, each by means of `check`) into what may be relied on. Faults are a [`ConfigError`].
//!
//! Nothing here talks to the outside: whether a vendor, a port or the store is there is found out later.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    job::retry::Retry,
    json::Pointer,
    limit::{PoolLimits, breaker::Terms},
    redis_link::RedisUrl,
    vendor::{clean::Clean, template::Template},
};

mod breaker;
mod check;
mod duration;
mod error;
mod fill;
mod kind;
mod limits;
mod live;
mod load;
mod raw;
mod read;
mod root;
mod source;
mod store;
mod templates;
mod vendor;

pub use duration::{parse as parse_duration, write as write_duration};
pub use error::{ConfigError, Place, Problem};
pub use live::{Written, parse_known_limits, parse_known_pools, parse_limits, write_limit, write_limits, write_pools};
pub use load::{HERE, environment, load, parse};
pub use source::EXAMPLE;

/// The whole configuration of one process.
#[derive(Debug, Clone)]
pub struct Config {
    pub default_vendor: Option<Arc<str>>,
    pub server: Server,
    /// Where a process answers livez, readyz and metrics besides the API's port.
    pub ops_listen: Option<SocketAddr>,
    pub store: Store,
    pub capacity: Capacity,
    /// By name, in the order of the names.
    pub vendors: Vec<Vendor>,
    /// Each pool once, with its limits; vendors name their pool.
    pub pools: Vec<PoolLimits>,
    /// What a careful operator should know about a config that is valid (a guard that costs more than 1 %, say).
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub listen: SocketAddr,
    /// What webhook vendors can reach: http or https, no query. See [`Server::public_base`].
    pub public_url: url::Url,
    /// Signs callback tokens; when unset one is made and kept in the store.
    pub callback_secret: Option<Secret>,
}

impl Server {
    /// The public URL without a slash at its end, to put a path behind.
    pub fn public_base(&self) -> &str {
        self.public_url.as_str().trim_end_matches('/')
    }
}

#[derive(Debug, Clone)]
pub struct Store {
    pub at: StoreAt,
    /// How long ended jobs are kept.
    pub retention: Duration,
}

/// What jobs are kept in.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// One process and its file.
    Sqlite(PathBuf),
    /// Many processes.
    RedisMongo {
        /// A `mongodb://` or `mongodb+srv://` URI, which may hold a password.
        mongo: Secret,
        /// Its database, which also names our keys in Redis.
        database: String,
        redis: RedisUrl,
    },
}

#[derive(Debug, Clone)]
pub struct Capacity {
    /// Jobs that have not ended, in all; over it submits are answered 503.
    pub max_waiting: u64,
    /// How long a clean stop may take to finish what runs.
    pub grace: Duration,
}

/// How to talk to one vendor.
#[derive(Debug, Clone)]
pub struct Vendor {
    pub name: Arc<str>,
    pub pool: Arc<str>,
    pub kind: Kind,
    pub method: hyper::Method,
    /// Scheme, host and port are fixed; only path and query are rendered.
    pub url: Template,
    /// What we send; `None`: the payload itself (sync, polling), `{request_id, payload, callback_url}` (webhook).
    pub body: Option<Template>,
    pub headers: Vec<(hyper::header::HeaderName, Secret)>,
    /// HTTP calls in flight.
    pub concurrency: usize,
    /// One call, connecting included.
    pub timeout: Duration,
    pub retry: Retry,
    /// The whole job, for jobs that do not bring a deadline of their own.
    pub deadline: Option<Duration>,
    /// How long the vendor may work after accepting.
    pub answer_within: Duration,
    /// Accepted and unanswered at once.
    pub open: Option<u64>,
    /// No submitting call is repeated that may have been done.
    pub at_most_once: bool,
    /// What the vendor calls the headers that say what is left of its limit, where these are not the usual ones.
    pub rate_headers: Option<RateHeaders>,
    /// A failure inside a 2xx answer or a callback.
    pub failed: Option<Match>,
    pub clean: Clean,
    /// When it is left alone because it fails.
    pub breaker: Option<Terms>,
}

/// No permit lies further ahead of its job's claim: the longest horizon of a limiter.
const HORIZON: Duration = Duration::from_millis(500);
/// What a job's hold takes besides its call and the wait for its permit.
const BESIDE_A_CALL: Duration = Duration::from_secs(5);

impl Vendor {
    /// How long a worker may hold a job: until its permit, for a call, and this much more for the limiter and the store.
    pub fn lease(&self) -> Duration {
        HORIZON + self.timeout + BESIDE_A_CALL
    }
}

/// How the vendor answers.
#[derive(Debug, Clone)]
pub enum Kind {
    Sync,
    Webhook(Webhook),
    Polling(Polling),
}

#[derive(Debug, Clone)]
pub struct Webhook {
    pub verify: Verify,
    /// Where a callback on the shared URL names our job.
    pub request_id: Pointer,
    /// Where the result is; `None`: `/final_result`, then `/result`, then `/data`, then the whole body.
    pub result: Option<Pointer>,
    /// Where the vendor's acceptance has its own reference.
    pub ticket: Option<Pointer>,
    /// Where a callback on the shared URL repeats that reference.
    pub ticket_in_callback: Option<Pointer>,
}

/// How a callback on the shared URL proves where it comes from.
#[derive(Debug, Clone)]
pub enum Verify {
    /// Not configured: the shared URL answers 403. The per-job URL always works, its token is the proof.
    Off,
    /// `verify = "none"`, written out: anybody who reaches the URL is believed.
    None,
    /// Standard Webhooks: HMAC-SHA256 with the secret's bytes (after `whsec_`, base64).
    StandardWebhooks(Secret),
}

#[derive(Debug, Clone)]
pub struct Polling {
    pub ticket: Pointer,
    pub url: Template,
    pub every: Duration,
    pub done: Match,
    /// `None`: the whole body.
    pub result: Option<Pointer>,
}

/// A value in a JSON body that equals one of these texts (a string's content, else the JSON as written).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub at: Pointer,
    pub is: Vec<String>,
}

/// Headers of a reply that say how many calls are left, and when there are more (in seconds, or a time).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateHeaders {
    pub remaining: hyper::header::HeaderName,
    pub reset: hyper::header::HeaderName,
}

/// Text that is never shown: not in logs, not in errors, not in `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the wire or a key, never for people.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}
