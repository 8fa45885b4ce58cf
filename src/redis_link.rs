//! The connections to Redis: one that scripts share, and one for each subscription. The only module that knows how Redis is reached.
//!
//! Never retries a command by itself (a script may have run although its answer was lost) and never waits without a bound.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo, RedisError, RedisFuture,
    Script, ScriptInvocation, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};
use tokio::time::timeout;

use crate::{clock::Clock, store_error::StoreError};

/// Redis answers within this time, or the command has failed.
const ANSWER: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);
/// The time between two tries to connect. In between, commands fail at once with the last error.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// The oldest Redis whose commands we use (`ZADD LT`, `XAUTOCLAIM`).
const OLDEST: (u32, u32) = (6, 2);
/// The warning for a Redis that has replicas and accepts writes without them.
const TWO_MASTERS: &str = "a master that is cut off from its replicas goes on giving permits after another one has replaced it, so limits may be broken: \
    set min-replicas-to-write to at least 1 on every node, and min-replicas-max-lag to less than the time after which a master is replaced";

/// Where Redis is, checked: one node, Sentinels that know the master, or a Cluster.
#[derive(Clone)]
pub struct RedisUrl {
    nodes: Vec<ConnectionInfo>,
    kind: Kind,
}

#[derive(Clone, PartialEq)]
enum Kind {
    Node,
    Sentinel { master: String },
    Cluster,
}

/// Shows no password.
impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        f.write_str(&nodes.join(","))
    }
}

impl RedisUrl {
    /// Reads `redis://[user:password@]host:port/db`, the same as `rediss://` (TLS), and with several hosts
    /// `redis+sentinel://host,host/master[/db]` and `redis+cluster://host,host` (with TLS `rediss+…`).
    /// The error is a sentence that never shows the URL, because it may have a password in it.
    pub fn parse(text: &str) -> Result<RedisUrl, &'static str> {
        const FORM: &str = "this is not a Redis URL";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let (plain, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        if !matches!(plain, "redis" | "rediss") {
            return Err(FORM);
        }
        let node = |url: String| -> Result<ConnectionInfo, &'static str> {
            let info = url.into_connection_info().map_err(|_| FORM)?;
            // Requests and answers are small: waiting to fill a packet would only delay them.
            Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
        };
        if kind.is_empty() {
            return Ok(RedisUrl { nodes: vec![node(text.to_owned())?], kind: Kind::Node });
        }
        let (who, place) = rest.rsplit_once('@').map_or(("", rest), |(who, place)| (who, place));
        let at = if who.is_empty() { String::new() } else { format!("{who}@") };
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let (kind, db) = match kind {
            "cluster" if path.is_empty() => (Kind::Cluster, ""),
            "cluster" => return Err("a Redis Cluster has one database: nothing may follow the hosts"),
            "sentinel" => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(
                        "a Sentinel URL names the master after the hosts: redis+sentinel://host:26379/mymaster",
                    );
                }
                (Kind::Sentinel { master: master.to_owned() }, db)
            }
            _ => return Err(FORM),
        };
        let nodes =
            hosts.split(',').map(|host| node(format!("{plain}://{at}{host}/{db}"))).collect::<Result<_, _>>()?;
        Ok(RedisUrl { nodes, kind })
    }
}

/// A shared connection to Redis, opened when it is first needed and again after it broke. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    url: RedisUrl,
    link: Mutex<Option<(u64, Link)>>,
    /// Locked while somebody connects: the outcome and time of the last try, and the number of tries.
    connecting: tokio::sync::Mutex<Tries>,
}

#[derive(Default)]
struct Tries {
    made: u64,
    failed: Option<(Instant, StoreError)>,
}

/// One connection, which pipelines the commands of all tasks.
#[derive(Clone)]
enum Link {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What a subscriber is called with.
pub enum PubSubEvent<'a> {
    /// Subscribed from now on; earlier messages may have been missed.
    Connected,
    /// The connection is lost: no messages until the next [`PubSubEvent::Connected`].
    Lost,
    Message {
        channel: &'a str,
        body: &'a [u8],
    },
}

impl Redis {
    pub fn new(url: RedisUrl) -> Redis {
        Redis(Arc::new(Shared { url, link: Mutex::default(), connecting: tokio::sync::Mutex::default() }))
    }

    /// Runs a script. After an error it is not known whether it ran.
    pub async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let (which, mut link) = self.link().await?;
        let answer = timeout(ANSWER, script.invoke_async(&mut link)).await;
        self.look_at(which, answer)
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let (which, mut link) = self.link().await?;
        let answer = timeout(ANSWER, command.query_async(&mut link)).await;
        self.look_at(which, answer)
    }

    /// Whether Redis can be reached and answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.command(&redis::cmd("PING")).await
    }

    /// Subscribes to channels for ever, and connects again when the connection is lost. Messages that come meanwhile are missed, so after a
    /// [`PubSubEvent::Connected`] the subscriber has to look for itself. After `ask_every` without a message it sends a ping, because a
    /// connection can die without any sign.
    pub async fn listen(
        &self,
        channels: &[String],
        clock: &Clock,
        ask_every: Duration,
        mut on_event: impl FnMut(PubSubEvent<'_>),
    ) {
        loop {
            if let Ok(Ok(pubsub)) = timeout(ANSWER, self.subscribed(channels)).await {
                on_event(PubSubEvent::Connected);
                let why = forward(pubsub, clock, ask_every, &mut on_event).await;
                on_event(PubSubEvent::Lost);
                tracing::warn!(why, "the subscription to Redis is lost; connecting again");
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }

    /// Whether this Redis can be used; the error is a sentence for the operator. A setting that may some day break a limit, but is no reason
    /// not to start, is returned as a warning.
    pub async fn check(&self) -> Result<Option<&'static str>, String> {
        let info = self.info().await.map_err(|error| match error {
            StoreError::Unavailable(why) | StoreError::Corrupt(why) => why,
        })?;
        let said = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let version = said("redis_version").unwrap_or("0.0");
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if found < OLDEST {
            return Err(format!("Redis {version} is too old: use {}.{} or newer", OLDEST.0, OLDEST.1));
        }
        let policy = said("maxmemory_policy").unwrap_or("");
        if policy != "noeviction" && !policy.is_empty() {
            return Err(format!(
                "Redis may evict our keys (maxmemory-policy is {policy}): run CONFIG SET maxmemory-policy noeviction, and put it into redis.conf"
            ));
        }
        // INFO has this field only if min-replicas-to-write is set.
        let needs_replicas = said("min_slaves_good_slaves").is_some();
        let is_alone = said("role") == Some("master") && said("connected_slaves") == Some("0");
        Ok(match self.0.url.kind {
            Kind::Sentinel { .. } if !needs_replicas => Some(TWO_MASTERS),
            Kind::Cluster if !needs_replicas && !is_alone => Some(TWO_MASTERS),
            _ => None,
        })
    }

    /// The version of one of its nodes.
    pub async fn version(&self) -> Result<String, StoreError> {
        let info = self.info().await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.unwrap_or("unknown").trim().to_owned())
    }

    /// INFO of one node: through a Cluster connection all nodes would answer.
    async fn info(&self) -> Result<String, StoreError> {
        let asked = async {
            let mut node = self.client().await?.get_multiplexed_async_connection().await?;
            redis::cmd("INFO").query_async(&mut node).await
        };
        timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(no_answer())).map_err(|error| explain(&error))
    }

    async fn link(&self) -> Result<(u64, Link), StoreError> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let mut tries = self.0.connecting.lock().await;
        if let Some(link) = self.current() {
            return Ok(link);
        }
        if let Some((at, why)) = &tries.failed
            && at.elapsed() < CONNECT_PAUSE
        {
            return Err(why.clone());
        }
        tries.made += 1;
        match timeout(ANSWER, self.connect()).await.unwrap_or_else(|_| Err(no_answer())) {
            Ok(link) => {
                tries.failed = None;
                *self.slot() = Some((tries.made, link.clone()));
                Ok((tries.made, link))
            }
            Err(error) => {
                let why = explain(&error);
                tries.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    async fn connect(&self) -> Result<Link, RedisError> {
        if self.0.url.kind == Kind::Cluster {
            let builder = ClusterClient::builder(self.0.url.nodes.clone())
                .tcp_settings(TcpSettings::default().set_nodelay(true))
                .connection_timeout(CONNECT)
                .response_timeout(ANSWER)
                .retries(2);
            return Ok(Link::Cluster(builder.build()?.get_async_connection().await?));
        }
        // Our own time-out is the outer one, so that a late answer is not taken for a broken connection twice.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_pipeline_buffer_size(1024);
        let client = self.client().await?;
        Ok(Link::Node(client.get_multiplexed_async_connection_with_config(&config).await?))
    }

    /// A client of one node: the node, the master that the Sentinels name, or any node of a Cluster.
    async fn client(&self) -> Result<Client, RedisError> {
        let nodes = &self.0.url.nodes;
        let any = nodes[usize::try_from(fastrand::u64(..)).unwrap_or(0) % nodes.len()].clone();
        let Kind::Sentinel { master } = &self.0.url.kind else { return Client::open(any) };
        let node = SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(any.redis_settings().clone())
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        // The Sentinels themselves have neither database nor, as a rule, password.
        let sentinels =
            nodes.iter().map(|node| node.addr().clone().into_connection_info()).collect::<Result<_, _>>()?;
        SentinelClient::build::<ConnectionInfo>(sentinels, master, Some(node), SentinelServerType::Master)?
            .async_get_client()
            .await
    }

    async fn subscribed(&self, channels: &[String]) -> Result<PubSub, RedisError> {
        let mut pubsub = self.client().await?.get_async_pubsub().await?;
        pubsub.subscribe(channels).await?;
        Ok(pubsub)
    }

    /// Returns an answer as it is. After an error of the connection, the next command makes a new one.
    fn look_at<T>(
        &self,
        which: u64,
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        let error = match answer.unwrap_or_else(|_| Err(no_answer())) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let asked_wrongly = error.kind() == redis::ErrorKind::UnexpectedReturnType
            || matches!(error.code(), Some("NOGROUP" | "WRONGTYPE" | "OOM"))
            || matches!(error.kind(), redis::ErrorKind::Server(kind) if kind == redis::ServerErrorKind::ResponseError);
        if !asked_wrongly {
            let mut slot = self.slot();
            if slot.as_ref().is_some_and(|(current, _)| *current == which) {
                *slot = None;
            }
        }
        Err(explain(&error))
    }

    fn current(&self) -> Option<(u64, Link)> {
        self.slot().clone()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<(u64, Link)>> {
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes messages on until the connection breaks; returns the reason.
async fn forward(
    pubsub: PubSub,
    clock: &Clock,
    ask_every: Duration,
    on_event: &mut impl FnMut(PubSubEvent<'_>),
) -> String {
    let (mut sink, mut messages) = pubsub.split();
    loop {
        let now = clock.nanos();
        let silence = Duration::from_nanos(u64::try_from(clock.next_beat(ask_every) - now).unwrap_or(0));
        match timeout(silence, messages.next()).await {
            Ok(Some(message)) => {
                on_event(PubSubEvent::Message {
                    channel: message.get_channel_name(),
                    body: message.get_payload_bytes(),
                });
            }
            Ok(None) => return "it was closed".into(),
            Err(_) => match timeout(ANSWER, sink.ping::<Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.category().into(),
                Err(_) => return "a ping was not answered".into(),
            },
        }
    }
}

fn no_answer() -> RedisError {
    (redis::ErrorKind::Io, "no answer in time").into()
}

/// What went wrong, without what was sent, because that may have a password in it.
fn explain(error: &RedisError) -> StoreError {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let what = match (io, error.detail()) {
        (Some(io), _) => io.to_string(),
        (None, Some(detail)) if !error.is_io_error() => {
            format!("{}: {} {detail}", error.category(), error.code().unwrap_or_default())
        }
        (None, _) => error.category().to_owned(),
    };
    StoreError::Unavailable(format!("Redis: {what}"))
}

/// A script of several pieces, each of which may use those before it.
pub fn script(pieces: &[&str]) -> Script {
    Script::new(&pieces.join("\n"))
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Link::Node(node) => node.req_packed_command(cmd),
            Link::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Link::Node(node) => node.req_packed_commands(pipeline, offset, count),
            Link::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Link::Node(node) => node.get_db(),
            Link::Cluster(cluster) => cluster.get_db(),
        }
    }
}
