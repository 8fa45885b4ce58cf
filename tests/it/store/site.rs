//! A place where several processes run: one Redis, one MongoDB, one clock, as many stores as a test wants.

use std::{sync::Arc, time::Duration};

use fetchgate::{
    clock::{Clock, Time},
    job::{JobId, JobIds, Priority},
    redis_link::Redis,
    roles::Roles,
    store::redis_mongo::{RedisMongo, VendorWork, key_of},
};
use redis::FromRedisValue;
use tempfile::TempDir;

use super::{TestStore, VENDORS, work};
use crate::{
    failure::wait_until,
    support::{Backend, START, database, servers, servers::Server},
};

/// How long a new index stays shut, and a little more.
pub(super) const SHUT: Duration = Duration::from_secs(4);
/// Nothing here takes this long unless it hangs.
const LONG: Duration = Duration::from_secs(20);

pub(super) struct Site {
    pub(super) clock: Clock,
    folder: Arc<TempDir>,
    redis: Option<Server>,
    mongo: Option<Server>,
    link: Redis,
}

impl Site {
    /// On the servers of all tests, which no test may harm.
    pub(super) fn new() -> Site {
        Site::on(None, None)
    }

    pub(super) fn with_own_redis() -> Site {
        Site::on(Some(Server::redis()), None)
    }

    /// Its Redis keeps what it has when it is told to `SAVE`, and comes back as it was then.
    pub(super) fn with_snapshots() -> Site {
        Site::on(Some(Server::redis_of_snapshots()), None)
    }

    /// The clock of its Redis is set by the test.
    pub(super) fn with_a_clock_of_redis() -> Site {
        Site::on(Some(Server::redis_with_a_clock()), None)
    }

    pub(super) fn with_own_mongo() -> Site {
        Site::on(None, Some(Server::mongo()))
    }

    fn on(redis: Option<Server>, mongo: Option<Server>) -> Site {
        let link = redis.as_ref().unwrap_or_else(|| servers::redis()).link();
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Site { clock: Clock::manual(START), folder, redis, mongo, link }
    }

    pub(super) fn redis(&self) -> &Server {
        self.redis.as_ref().unwrap_or_else(|| servers::redis())
    }

    /// Its own, for those who harm it.
    pub(super) fn mongo(&self) -> &Server {
        self.mongo.as_ref().expect("a MongoDB of its own")
    }

    /// One more process.
    pub(super) async fn process(&self) -> TestStore {
        self.process_for(VENDORS.map(work).to_vec(), &self.clock).await
    }

    pub(super) async fn process_for(&self, work: Vec<VendorWork>, clock: &Clock) -> TestStore {
        let database = self.database();
        let uri = self.mongo.as_ref().unwrap_or_else(|| servers::mongo()).mongo_url(&database);
        let redis = self.redis().link();
        let store = RedisMongo::open(&uri, &database, redis, work, clock.clone(), 1_000_000, Roles::Both);
        let store = Arc::new(store.await.expect("the store opens"));
        let (ids, folder) = (JobIds::new(), self.folder.clone());
        TestStore { store, clock: clock.clone(), ids, backend: Backend::RedisMongo, folder }
    }

    pub(super) fn database(&self) -> String {
        database(&self.folder)
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// A key of vendor `v`. The stream of its normal calls is `1:jobs`.
    pub(super) fn key(&self, what: &str) -> String {
        format!("{}:{what}", key_of(&self.database(), "v"))
    }

    /// Asks Redis with words, of which those that begin with `:` are keys of vendor `v`.
    pub(super) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            match word.strip_prefix(':') {
                Some(what) => command.arg(self.key(what)),
                None => command.arg(word),
            };
        }
        self.link.command(&command).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// As if Redis had not heard yet that the call of this job is over.
    pub(super) async fn note_as_leased(&self, id: JobId) {
        let mut note = redis::cmd("HSET");
        note.arg(self.key("index")).arg(id.as_bytes()).arg("+1 1-1");
        self.link.command::<i64>(&note).await.expect("Redis takes it");
    }

    /// Somebody empties Redis, as far as it is ours.
    pub(super) async fn lose_the_index(&self) {
        let keys: Vec<String> = self.ask(&["KEYS", &format!("{}:*", self.database())]).await;
        for key in keys {
            self.ask::<i64>(&["DEL", &key]).await;
        }
    }

    /// From here on this is what Redis comes back with.
    pub(super) fn save(&self) {
        assert_eq!(self.redis().say("SAVE"), "+OK");
    }

    /// Redis dies and comes back as it was at the last `save`, and everybody has found it again.
    pub(super) async fn come_back_older(&mut self, processes: &[&TestStore]) {
        self.redis.as_mut().expect("a Redis of its own").restart();
        wait_until("Redis is found again", LONG, async || self.link.ping().await.ok()).await;
        for process in processes {
            // That is tried again a little after Redis could not be told something.
            let lane = process.job("v", Priority::Normal, "t").lane;
            wait_until("Redis is told again", LONG, async || process.store.due_in_lane(&lane, 1).await.ok()).await;
        }
    }

    /// Both processes look, so that one opens what was lost and the others say what they hold; then the index opens.
    pub(super) async fn recover(&self, processes: &[&TestStore]) {
        for _ in 0..2 {
            for vendor in VENDORS {
                for process in processes {
                    process.store.ready(vendor).await.expect("the store works");
                }
            }
        }
        self.clock.advance(SHUT);
        for vendor in VENDORS {
            processes[0].store.ready(vendor).await.expect("the store works");
        }
    }

    /// Ids in the stream of normal calls.
    pub(super) async fn in_stream(&self) -> Vec<Vec<u8>> {
        let entries: Vec<(String, Vec<Vec<u8>>)> = self.ask(&["XRANGE", ":1:jobs", "-", "+"]).await;
        entries.into_iter().map(|(_, fields)| fields[1].clone()).collect()
    }
}
