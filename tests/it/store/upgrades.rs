//! A store that an older version wrote opens, and its jobs go on from where they were; one that a newer version has used is refused.

use std::{collections::BTreeMap, sync::Arc};

use fetchgate::{
    job::{Idempotency, JobId, JobIds, Status, lifecycle},
    roles::Roles,
    store::{Amended, Sees, Submitted, Which, With, redis_mongo::RedisMongo},
};
use mongodb::bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use rusqlite::{Connection, params};

use super::{TestStore, VENDORS, complete, open, site::Site, work};
use crate::{
    on_every_backend,
    support::{Backend, START, database, servers},
};

on_every_backend!(a_store_of_the_first_version_opens_and_its_jobs_finish);

/// The steps of the SQLite schema that the first version had.
const FIRST_SCHEMA: [&str; 3] = [
    include_str!("../../../migrations/0001_jobs.sql"),
    include_str!("../../../migrations/0002_live_limits.sql"),
    include_str!("../../../migrations/0003_calls.sql"),
];

/// A job as the first version stored it.
struct Old {
    status: &'static str,
    /// Of a job that has ended: `ended`.
    stage: &'static str,
    run: i64,
    tries: i64,
    /// The outcomes of its attempts, in the words of that version.
    attempts: &'static [&'static str],
    failure: Option<(&'static str, &'static str)>,
    result: Option<&'static str>,
}

const FRESH: Old =
    Old { status: "pending", stage: "call", run: 0, tries: 0, attempts: &[], failure: None, result: None };

/// One in every state.
const JOBS: [Old; 9] = [
    FRESH,
    Old { tries: 1, attempts: &["try_again"], failure: Some(("timeout", "the vendor did not reply in time")), ..FRESH },
    Old { status: "processing", stage: "poll", tries: 1, attempts: &["check_again"], ..FRESH },
    Old { status: "processing", stage: "await", tries: 1, attempts: &["await_callback"], ..FRESH },
    Old { status: "complete", stage: "ended", tries: 1, attempts: &["done"], result: Some("{\"a\":1.10}"), ..FRESH },
    Old {
        status: "failed",
        stage: "ended",
        tries: 1,
        attempts: &["give_up"],
        failure: Some(("vendor_refused", "the vendor answered 400")),
        ..FRESH
    },
    Old { status: "cancelled", stage: "ended", ..FRESH },
    Old { status: "expired", stage: "ended", failure: Some(("deadline", "the deadline has passed")), ..FRESH },
    Old { run: 1, attempts: &["give_up", "await_callback"], ..FRESH },
];
const POLLED: usize = 2;
const AWAITING: usize = 3;
/// Those that are called or polled next.
const LIVE: [usize; 4] = [0, 1, POLLED, 8];

fn id(n: usize) -> JobId {
    let time = START.0 as u128 - 1000 + n as u128;
    JobId::from_bytes((time << 80 | 0x7000_8000_0000_0000_0000 | n as u128).to_be_bytes())
}

impl Old {
    fn has_ended(&self) -> bool {
        self.stage == "ended"
    }

    fn ticket(&self, n: usize) -> Option<String> {
        ["poll", "await"].contains(&self.stage).then(|| format!("ticket-{n}"))
    }

    fn attempts(&self) -> String {
        let kind = |n: usize| if n == 0 { "call" } else { "poll" };
        let attempt = |(n, outcome)| {
            format!(
                r#"{{"n":{},"kind":"{}","sent_at":{at},"permit_at":{at},"status":200,"latency_ms":5,"outcome":"{outcome}"}}"#,
                n + 1,
                kind(n),
                at = START.0 - 900,
            )
        };
        let all: Vec<String> = self.attempts.iter().enumerate().map(attempt).collect();
        format!(r#"{{"first":[{}],"omitted":0}}"#, all.join(","))
    }
}

/// The store as the first version left it, and then opened.
async fn opened(backend: Backend) -> TestStore {
    let t = match backend {
        Backend::Sqlite => {
            let t = TestStore::open(backend).await;
            t.store.close().await;
            let TestStore { store, folder, clock, .. } = t;
            drop(store);
            let file = folder.path().join("jobs.db");
            for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
                let _ = std::fs::remove_file(folder.path().join(name));
            }
            write_file(&Connection::open(file).expect("a file"));
            let store = open(backend, &folder, &clock).await;
            TestStore { store, clock, ids: JobIds::new(), backend, folder }
        }
        Backend::RedisMongo => {
            let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
            write_documents(&database(&folder)).await;
            let clock = fetchgate::clock::Clock::manual(START);
            let store = open(backend, &folder, &clock).await;
            TestStore { store, clock, ids: JobIds::new(), backend, folder }
        }
    };
    t.quiet().await;
    t
}

fn write_file(file: &Connection) {
    for step in FIRST_SCHEMA {
        file.execute_batch(step).expect("the first schema");
    }
    file.pragma_update(None, "user_version", FIRST_SCHEMA.len()).expect("its number");
    let key = "INSERT INTO idempotency VALUES ('t', 'key-1', ?1, ?2, ?3)";
    file.execute(key, params![[7_u8; 32], id(0).as_bytes(), START.0 - 1000]).expect("a key");
    file.execute_batch(
        "INSERT INTO lanes VALUES (1, 'v', 1, 't'); INSERT INTO pauses VALUES ('w', NULL);
         INSERT INTO live_limits VALUES ('w', 3, NULL, 1768463999000);",
    )
    .expect("the rest");
    let status = |job: &Old| Status::ALL.iter().position(|status| status.as_str() == job.status).expect("a status");
    for (n, job) in JOBS.iter().enumerate() {
        let stage = ["call", "poll", "await", "ended"].iter().position(|stage| *stage == job.stage);
        let insert = "INSERT INTO jobs (n, id, lane, status, stage, due_at, run, tries, attempt, updated_at, finished_at,
                      failure_code, failure, ticket, tags, payload, result, attempts)
                      VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?5, ?9, ?10, ?11, ?12, '[\"x\"]', CAST('{\"n\":1.10}' AS BLOB), CAST(?13 AS BLOB), CAST(?14 AS BLOB))";
        let id = id(n);
        let row = params![
            n as i64 + 1,
            id.as_bytes(),
            status(job) as i64,
            stage.expect("a stage") as i64,
            START.0 - 500,
            job.run,
            job.tries,
            job.attempts.len() as i64,
            job.has_ended().then_some(START.0 - 500),
            job.failure.map(|(code, _)| code),
            job.failure.map(|(_, message)| message),
            job.ticket(n),
            job.result,
            (!job.attempts.is_empty()).then(|| job.attempts()),
        ];
        file.execute(insert, row).expect("a job");
    }
}

async fn mongo(database: &str) -> mongodb::Database {
    let client = mongodb::Client::with_uri_str(servers::mongo().mongo_url(database)).await.expect("MongoDB");
    client.database(database)
}

fn binary(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

async fn write_documents(database: &str) {
    let database = mongo(database).await;
    let documents = JOBS.iter().enumerate().map(|(n, job)| {
        let mut document = doc! {
            "_id": binary(id(n).as_bytes()), "vendor": "v", "tenant": "t", "due_at": START.0 - 500, "tags": ["x"],
            "payload": binary(b"{\"n\":1.10}"),
        };
        let number = |n: usize| (n > 0).then(|| Bson::from(n as i64));
        let line = ["call", "poll", "await"].iter().position(|stage| *stage == job.stage).map(|stage| [1, 4, 6][stage]);
        let fields = [
            ("lane", line.map(|line| format!("v/{line}/t").into())),
            ("status", (job.status != "pending").then(|| job.status.into())),
            ("stage", ["poll", "await"].contains(&job.stage).then(|| job.stage.into())),
            ("run", (job.run > 0).then(|| job.run.into())),
            ("tries", (job.tries > 0).then(|| job.tries.into())),
            ("attempt", number(job.attempts.len())),
            // Every change adds one; a new document has none.
            ("version", number(job.attempts.len())),
            ("ticket", job.ticket(n).map(Bson::from)),
            ("failure", job.failure.map(|(code, message)| doc! { "code": code, "message": message }.into())),
            ("finished_at", job.has_ended().then(|| (START.0 - 500).into())),
            ("result", job.result.map(|result| binary(result.as_bytes()))),
            ("attempts", (!job.attempts.is_empty()).then(|| job.attempts().into())),
        ];
        document.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        document
    });
    database.collection::<Document>("jobs").insert_many(documents.collect::<Vec<_>>()).await.expect("documents");
}

async fn a_store_of_the_first_version_opens_and_its_jobs_finish(backend: Backend) {
    let t = opened(backend).await;
    for (n, old) in JOBS.iter().enumerate() {
        let whole = With { payload: true, result: true };
        let job = t.store.find(&Sees::All, id(n), whole).await.expect("readable").expect("there");
        let failure = job.failure.as_ref().map(|why| (why.code.as_str(), &*why.message));
        assert_eq!((job.status.as_str(), failure, job.ticket), (old.status, old.failure, old.ticket(n)), "job {n}");
        assert_eq!((&*job.payload, job.tags), (&b"{\"n\":1.10}"[..], vec!["x".to_owned()]));
        assert_eq!(job.result.as_deref(), old.result.map(str::as_bytes));
        let record = t.store.attempts(&Sees::All, id(n)).await.expect("readable").expect("there");
        assert_eq!(record.made() as usize, old.attempts.len(), "job {n}");
    }
    if backend == Backend::Sqlite {
        let again = Idempotency { key: "key-1".into(), body_hash: [7; 32] };
        assert!(matches!(t.store.recall("t", &again).await, Ok(Some(Submitted::Known(known))) if known == id(0)));
    }
    // MongoDB's jobs are not in Redis yet: the sweep that finds them looks twice, a little apart.
    let mut leases = BTreeMap::new();
    for _ in 0..20 {
        leases.extend(t.claim_all("v").await.into_iter().map(|lease| (lease.job.id, lease)));
        if leases.len() == LIVE.len() {
            break;
        }
        t.advance(std::time::Duration::from_secs(1));
        t.store.ready("v").await.expect("the store works");
    }
    assert_eq!(leases.keys().copied().collect::<Vec<_>>(), LIVE.map(id));
    assert_eq!(leases[&id(POLLED)].job.ticket.as_deref(), Some("ticket-2"));
    t.settle_all(leases.into_values().map(|lease| (lease, complete())).collect()).await;
    let by_ticket = Which::Ticket { vendor: "v".into(), ticket: format!("ticket-{AWAITING}") };
    let amended = t.store.amend(&Sees::All, by_ticket, t.now(), Box::new(lifecycle::cancel)).await;
    assert!(matches!(amended, Ok(Amended::Changed(job)) if job.id == id(AWAITING)));
    for n in LIVE {
        assert_eq!(t.status(id(n)).await, Status::Complete, "job {n}");
    }
    assert_eq!(t.status(id(AWAITING)).await, Status::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_a_newer_version_has_used_is_refused_and_left_as_it_is() {
    let site = Site::new();
    site.process().await.store.close().await;
    let database = mongo(&site.database()).await;
    let settings = database.collection::<Document>("settings");
    let noted = settings.find_one(doc! { "_id": "schema" }).await.unwrap().expect("every database has its version");
    assert_eq!(noted.get_i64("version").ok(), Some(1));
    settings.update_one(doc! { "_id": "schema" }, doc! { "$set": { "version": 999_i64 } }).await.unwrap();
    let url = servers::mongo().mongo_url(&site.database());
    let (redis, work) = (site.redis().link(), VENDORS.map(work).to_vec());
    let opened = RedisMongo::open(&url, &site.database(), redis, work, site.clock.clone(), 10_u64, Roles::Both).await;
    let Err(why) = opened else { panic!("the database was opened") };
    let why = why.to_string();
    assert!(why.contains("newer version of Fetchgate (schema 999, this one knows 1)"), "{why}");
    let noted = settings.find_one(doc! { "_id": "schema" }).await.unwrap().expect("it is still there");
    assert_eq!(noted.get_i64("version").ok(), Some(999));
}
