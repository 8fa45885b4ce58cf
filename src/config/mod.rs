//! The configuration, checked: what the rest of the service reads. Every value here is usable as it stands.
//!
//! How a text becomes a [`Config`]: `load` finds it, `source` adds the environment's overrides and the example's defaults, `read` turns
//! it into what may be written (`raw`), and `root` (with `store`, `vendor`, `kind`, `auth`, `limits`, each by means of `check`) into what may be relied on. Faults are a [`ConfigError`].
//!
//! Nothing here connects to anything: whether a vendor, a port or the store can be reached is found out later.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hyper::header::{AUTHORIZATION, HeaderName};

use crate::{
    guard::Guard,
    job::retry::Retry,
    json::Pointer,
    limit::{PoolLimits, breaker::Terms},
    redis_link::RedisUrl,
    store::room::{Load, MostWaiting},
    vendor::{
        body::Body,
        clean::Clean,
        proxy::Proxy,
        replies::{Means, Rule, Test},
        template::Template,
        tls::LiveTls,
    },
};

mod addresses;
mod asks;
mod auth;
mod breaker;
mod check;
mod connection;
mod duration;
mod error;
mod fill;
mod form;
mod headers;
mod kind;
mod limits;
mod live;
mod load;
mod mask;
mod polling;
mod raw;
mod read;
mod replies;
mod result_webhooks;
mod root;
mod secret;
mod server;
mod settings;
mod source;
mod store;
mod templates;
mod tenants;
mod traces;
mod vendor;
mod verify;
mod webhook;

pub use asks::{Address, Challenge, Host, Kind, Polling, Webhook};
pub use duration::{parse as parse_duration, write as write_duration};
pub use error::{ConfigError, Place, Problem};
pub use live::{Written, parse_known_limits, parse_known_pools, parse_limits, write_limit, write_limits, write_pools};
pub use load::{HERE, environment, load, parse, secret_files};
pub use secret::{LiveSecret, Reread, Secret};
pub use source::EXAMPLE;
pub use traces::{Collector, Sampler};

/// The whole configuration of one process.
#[derive(Debug, Clone)]
pub struct Config {
    pub default_vendor: Option<Arc<str>>,
    pub server: Server,
    /// A second port, for livez, readyz and metrics.
    pub ops_listen: Option<SocketAddr>,
    pub callers: Callers,
    pub store: Store,
    pub capacity: Capacity,
    pub tenants: Tenants,
    pub result_webhooks: ResultWebhooks,
    /// By name, in the order of the names.
    pub vendors: Vec<Vendor>,
    /// Each pool once, with its limits; vendors name their pool.
    pub pools: Vec<PoolLimits>,
    /// Where traces go; `None`: nowhere.
    pub traces: Option<Collector>,
    /// Warnings about a valid config (for example, a guard that costs more than 1 %).
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub listen: SocketAddr,
    /// How webhook vendors reach us: http or https, no query. See [`Server::public_base`].
    pub public_url: url::Url,
    /// Signs callback tokens; if unset, one is made and kept in the store.
    pub callback_secret: Option<Secret>,
    /// `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Origins of web pages that may call the API from a browser, as browsers write them: `https://app.example`.
    pub cors: Vec<String>,
    /// `None`: no bound for each address, only the one for all.
    pub max_connections_per_address: Option<usize>,
}

/// Where the API's certificate chain and its key are, in PEM form. Their content is read when the port opens.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Server {
    /// The public URL without a slash at its end, so that a path can follow.
    pub fn public_base(&self) -> &str {
        self.public_url.as_str().trim_end_matches('/')
    }
}

/// Who may use the API.
#[derive(Debug, Clone)]
pub enum Callers {
    /// Whoever reaches the port.
    Anybody,
    /// Who has a key. `admin_key` is the first one, with every scope.
    Keys { admin_key: Option<Secret> },
}

/// What tenants may do.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    /// Those with a table of their own; what that does not say is as in `others`.
    pub named: BTreeMap<Arc<str>, Tenant>,
    pub others: Tenant,
}

impl Tenants {
    pub fn get(&self, name: &str) -> &Tenant {
        self.named.get(name).unwrap_or(&self.others)
    }

    /// What the store has to know: how much may wait, in all and of each tenant.
    pub fn most_waiting(&self, capacity: &Capacity) -> MostWaiting {
        let bound = |(name, tenant): (&Arc<str>, &Tenant)| Some((name.clone(), tenant.most_waiting()?));
        let by_tenant = self.named.iter().filter_map(bound).collect();
        let in_all = Load { jobs: capacity.max_waiting, bytes: capacity.max_waiting_bytes };
        MostWaiting { in_all, by_tenant, of_others: self.others.most_waiting() }
    }
}

/// What one tenant may do. `None`: without a bound.
#[derive(Debug, Clone, Default)]
pub struct Tenant {
    pub submit: Option<SubmitRate>,
    /// Jobs that have not ended.
    pub max_waiting: Option<u64>,
    /// Bytes of their payloads, without small ones (see [`crate::job::weight`]).
    pub max_waiting_bytes: Option<u64>,
    /// What signs its announcements of ends; empty: what signs those of all.
    pub webhook_secret: Vec<LiveSecret>,
}

impl Tenant {
    fn most_waiting(&self) -> Option<Load> {
        let (jobs, bytes) = (self.max_waiting, self.max_waiting_bytes);
        let bound = Load { jobs: jobs.unwrap_or(u64::MAX), bytes: bytes.unwrap_or(u64::MAX) };
        Some(bound).filter(|bound| *bound != Load::ANY)
    }
}

/// So many jobs may be submitted in this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmitRate {
    pub jobs: u64,
    pub per: Duration,
}

/// How ends of jobs are announced.
#[derive(Debug, Clone)]
pub struct ResultWebhooks {
    /// Of all tenants without their own; empty: one is made for each.
    pub secrets: Vec<LiveSecret>,
    pub give_up_after: Duration,
    /// Where they may go.
    pub guard: Guard,
}

#[derive(Debug, Clone)]
pub struct Store {
    pub at: StoreAt,
    /// How long ended jobs are kept.
    pub retention: Duration,
}

/// Where jobs are kept.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// One process and its file.
    Sqlite(PathBuf),
    /// Many processes.
    RedisMongo {
        /// A `mongodb://` or `mongodb+srv://` URI, which may have a password in it.
        mongo: Secret,
        /// Its database, which also names our keys in Redis.
        database: String,
        redis: RedisUrl,
    },
}

#[derive(Debug, Clone)]
pub struct Capacity {
    /// The number of jobs that have not ended, at most; then submits are answered 503.
    pub max_waiting: u64,
    /// The bytes of their payloads, at most, without small ones (see [`crate::job::weight`]); then the same.
    pub max_waiting_bytes: u64,
    /// How long a clean stop may take.
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
    pub body: Option<Body>,
    pub headers: Vec<(HeaderName, LiveSecret)>,
    /// More headers, made from each job.
    pub header_templates: Vec<(HeaderName, Template)>,
    /// The header of submitting calls with the id that stays the same when a call is repeated.
    pub idempotency_header: Option<HeaderName>,
    /// How calls prove who they come from, besides by `headers`.
    pub auth: Option<Auth>,
    /// Besides the machine's authorities and without a certificate of ours by default. Holds for requests for tokens too, like `proxy`.
    pub tls: Option<LiveTls>,
    pub proxy: Option<Proxy>,
    /// HTTP calls in flight.
    pub concurrency: usize,
    /// One call, connecting included.
    pub timeout: Duration,
    pub retry: Retry,
    /// The whole job, for jobs without their own deadline.
    pub deadline: Option<Duration>,
    /// How long the vendor may work after accepting.
    pub answer_within: Duration,
    /// Jobs that the vendor has accepted and not answered, at most.
    pub open: Option<u64>,
    /// A submitting call that may have been done is not repeated.
    pub at_most_once: bool,
    /// Which headers say what is left of the vendor's limit.
    pub rate_headers: RateHeaders,
    /// What its answers mean, before what they mean by themselves.
    pub replies: Vec<Rule>,
    /// A failure inside a 2xx answer or a callback.
    pub failed: Option<Match>,
    /// How long the pool is silent when the vendor wants fewer calls and does not say for how long.
    pub slow_down: SlowDown,
    /// An answer that should be data and is not JSON is none.
    pub json_only: bool,
    pub clean: Clean,
    /// What came from variables and files anywhere in its table: it is masked where the vendor repeats it.
    pub secrets: Vec<Secret>,
    /// When it is not called because most calls fail; `None`: it always is.
    pub breaker: Option<Terms>,
}

/// The longest horizon of a limiter: the most time between a job's claim and its permit.
const HORIZON: Duration = Duration::from_millis(500);
/// The time of a lease beyond its call and the wait for its permit.
const BESIDE_A_CALL: Duration = Duration::from_secs(5);

impl Vendor {
    /// The same vendor as people may see it: what is secret in its URLs, its templated headers and its body is masked.
    pub fn shown(&self) -> Vendor {
        let mut shown = self.clone();
        shown.url = self.url.shown().clone();
        shown.body = self.body.as_ref().map(Body::shown);
        for (_, value) in &mut shown.header_templates {
            *value = value.shown().clone();
        }
        match &mut shown.kind {
            Kind::Sync => {}
            Kind::Polling(polling) => {
                polling.url = polling.url.shown();
                polling.body = polling.body.as_ref().map(Body::shown);
                polling.result_url = polling.result_url.as_ref().map(Address::shown);
            }
            Kind::Webhook(webhook) => webhook.result_url = webhook.result_url.as_ref().map(Address::shown),
        }
        shown
    }

    /// Whether a job may be called again because its vendor said "not yet" or "fetch it": a poll, or the same request.
    pub fn asks_again(&self) -> bool {
        let by_itself = match self.kind {
            Kind::Polling(_) => true,
            Kind::Sync => self.method == hyper::Method::GET,
            Kind::Webhook(_) => self.kind.result_url().is_some(),
        };
        by_itself || self.replies.iter().any(|rule| rule.means == Means::Pending)
    }

    /// How long a worker may hold a job: until its permit, for a call, and this much more for the limiter and the store.
    pub fn lease(&self) -> Duration {
        HORIZON + self.timeout + BESIDE_A_CALL
    }
}

/// How calls prove who they come from.
#[derive(Debug, Clone)]
pub enum Auth {
    /// A header with a secret: a bearer token, say.
    Header {
        name: HeaderName,
        prefix: &'static str,
        value: LiveSecret,
    },
    /// RFC 7617.
    Basic {
        user: LiveSecret,
        password: LiveSecret,
    },
    /// One more parameter of every URL.
    Query {
        name: String,
        value: LiveSecret,
    },
    OAuth2(Box<OAuth2>),
    SigV4(Box<SigV4>),
}

/// Client credentials (RFC 6749, 4.4).
#[derive(Debug, Clone)]
pub struct OAuth2 {
    pub token_url: url::Url,
    pub client_id: LiveSecret,
    pub client_secret: LiveSecret,
    pub scope: Option<String>,
    pub audience: Option<String>,
    pub client_in: ClientIn,
}

/// Where a token request says which client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientIn {
    /// The `Authorization` header.
    Basic,
    Body,
}

/// AWS Signature Version 4.
#[derive(Debug, Clone)]
pub struct SigV4 {
    pub region: String,
    pub service: String,
    pub access_key: LiveSecret,
    pub secret_key: LiveSecret,
}

impl Auth {
    /// The headers that it sets.
    pub fn headers(&self) -> Vec<HeaderName> {
        match self {
            Auth::Header { name, .. } => vec![name.clone()],
            Auth::Basic { .. } | Auth::OAuth2(_) => vec![AUTHORIZATION],
            Auth::Query { .. } => Vec::new(),
            Auth::SigV4(_) => vec![AUTHORIZATION, HeaderName::from_static("x-amz-date")],
        }
    }

    /// All secrets in it.
    pub fn secrets(&self) -> Vec<&LiveSecret> {
        match self {
            Auth::Header { value, .. } | Auth::Query { value, .. } => vec![value],
            Auth::Basic { user, password } => vec![user, password],
            Auth::OAuth2(oauth) => vec![&oauth.client_id, &oauth.client_secret],
            Auth::SigV4(keys) => vec![&keys.access_key, &keys.secret_key],
        }
    }
}

/// A place in a JSON body, and what has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub at: Pointer,
    pub test: Test,
}

/// Which headers of a reply say what is left of the vendor's limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateHeaders {
    /// `RateLimit` and `X-RateLimit-*` with their likes.
    Usual,
    /// These too.
    Named(Vec<RateHeader>),
    Off,
}

/// Headers that say how many calls are left, and when there are more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateHeader {
    pub remaining: hyper::header::HeaderName,
    pub reset: hyper::header::HeaderName,
    pub unit: ResetUnit,
}

/// What a reset counts, if it is a number and no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetUnit {
    Seconds,
    Millis,
}

/// The first silence of a pool and the longest; each is twice the one before while the vendor goes on asking to slow down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowDown {
    pub first: Duration,
    pub max: Duration,
}
