//! MongoDB, where jobs live: the client, its collections and indexes, and the few statements that everything is made of.
//!
//! Never trusts a write that is not on a majority's disks, and never waits without a bound.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt as _, future::BoxFuture};
use mongodb::{
    Client, Collection, Database, IndexModel,
    action::CountDocuments,
    bson::{Bson, Document, RawDocumentBuf, doc},
    error::{Error, ErrorKind},
    options::{Acknowledgment, ClientOptions, IndexOptions, ReadConcern, WriteConcern},
};

use super::{
    super::index::words::VendorWork,
    book::Forgotten,
    docs::{self, JobDoc, StoredJob, id_bson, id_in},
    events::EVENT_AT,
    unreadable::Unreadable,
    updates,
};
use crate::{
    clock::Time,
    job::JobId,
    store::{StoreError, With},
};

/// How long a statement may take; after that its outcome is unknown. Where the driver allows it, the server gives up then too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A server is found within this time, or there is none.
const FIND_SERVER: Duration = Duration::from_millis(800);
/// The oldest server with the statements that we use.
const OLDEST: i64 = 5;
/// Documents looked at in one slice of pruning.
const PRUNE: i64 = 1000;
/// The setting that says up to where jobs have been deleted.
const PRUNED: &str = "pruned";
/// Somebody else's document has this key already.
const DUPLICATE: i32 = 11_000;
/// A document would be larger than MongoDB keeps: as it is sent, after an update, after an upsert.
const TOO_LARGE: [i32; 3] = [10_334, 17_419, 17_420];

/// Why updates of jobs were not stored, or not all of them.
#[derive(Debug, Clone)]
pub(crate) enum NotStored {
    /// One of the documents would be larger than MongoDB keeps. Tried again it is the same.
    TooLarge(String),
    Failed(StoreError),
}

impl From<StoreError> for NotStored {
    fn from(error: StoreError) -> NotStored {
        NotStored::Failed(error)
    }
}

impl From<NotStored> for StoreError {
    fn from(error: NotStored) -> StoreError {
        match error {
            NotStored::TooLarge(why) => StoreError::Unavailable(why),
            NotStored::Failed(error) => error,
        }
    }
}

pub(crate) struct Mongo {
    client: Client,
    database: Database,
    pub(crate) jobs: Collection<JobDoc>,
    /// Idempotency keys.
    pub(crate) keys: Collection<Document>,
    /// Jobs that were erased, as long as their idempotency keys may be there.
    erased: Collection<Document>,
    /// Keys of callers.
    pub(crate) api_keys: Collection<Document>,
    pub(crate) spends: Collection<Document>,
    pub(crate) pauses: Collection<Document>,
    pub(crate) live_limits: Collection<Document>,
    pub(crate) limits_on_record: Collection<Document>,
    /// Processes that live, and what their files have.
    pub(crate) processes: Collection<Document>,
    pub(crate) settings: Collection<Document>,
    pub(crate) calls: Collection<Document>,
    pub(crate) tallies: Collection<Document>,
    pub(crate) verdicts: Collection<Document>,
    pub(crate) unreadable: Unreadable,
    pub(crate) forgotten: Forgotten,
}

impl Mongo {
    /// Finds the server, sees that it is one we can work with, and makes the indexes.
    pub(crate) async fn open(uri: &str, database: &str) -> Result<Mongo, StoreError> {
        let mut options = ClientOptions::parse(uri).await.map_err(explain)?;
        options.app_name.get_or_insert_with(|| "fetchgate".into());
        options.server_selection_timeout = Some(FIND_SERVER);
        options.connect_timeout = Some(FIND_SERVER);
        options.max_connecting = Some(8);
        // An accepted job is on a majority's disks.
        let majority = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(PATIENCE).build();
        options.write_concern = Some(majority);
        options.read_concern = Some(ReadConcern::majority());
        let client = Client::with_options(options).map_err(explain)?;
        let database = client.database(database);
        let mongo = Mongo {
            jobs: database.collection("jobs"),
            keys: database.collection("keys"),
            erased: database.collection("erased"),
            api_keys: database.collection("api_keys"),
            spends: database.collection("spends"),
            pauses: database.collection("pauses"),
            live_limits: database.collection("live_limits"),
            limits_on_record: database.collection("limits_on_record"),
            processes: database.collection("processes"),
            settings: database.collection("settings"),
            calls: database.collection("calls"),
            tallies: database.collection("tallies"),
            verdicts: database.collection("verdicts"),
            unreadable: Unreadable::default(),
            forgotten: Forgotten::default(),
            database,
            client,
        };
        mongo.find_server().await?;
        mongo.check_version().await?;
        mongo.check_schema().await?;
        mongo.make_indexes().await?;
        mongo.note_schema().await?;
        Ok(mongo)
    }

    /// Waits for the server as long as for a statement: a machine on which much starts at once may take longer to answer than later.
    async fn find_server(&self) -> Result<(), StoreError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match within(self.database.run_command(doc! { "ping": 1 })).await {
                Err(error) if Instant::now() < until => tracing::debug!(%error, "MongoDB was not found; trying again"),
                found => return found.map(drop),
            }
        }
    }

    async fn check_version(&self) -> Result<(), StoreError> {
        let info = within(self.database.run_command(doc! { "buildInfo": 1 })).await?;
        let version = info.get_str("version").unwrap_or("0");
        let major = version.split('.').next().and_then(|part| part.parse::<i64>().ok()).unwrap_or(0);
        if major < OLDEST {
            let why = format!("MongoDB {version} is too old: use {OLDEST}.0 or newer");
            return Err(StoreError::Unavailable(why));
        }
        Ok(())
    }

    async fn make_indexes(&self) -> Result<(), StoreError> {
        // Each has only the documents that have one of its fields, usually the first; of a job with a result only its event and its tenant.
        let index = |(field, keys): (&str, Document)| {
            let only = doc! { field: { "$exists": true } };
            IndexModel::builder()
                .keys(keys)
                .options(IndexOptions::builder().partial_filter_expression(only).build())
                .build()
        };
        let indexes = [
            ("lane", doc! { "lane": 1, "due_at": 1, "_id": 1 }),
            ("weight", doc! { "lane": 1, "weight": 1 }),
            ("alarm_at", doc! { "alarm_at": 1 }),
            ("ticket", doc! { "ticket": 1, "vendor": 1 }),
            ("webhook_to", doc! { "webhook_to": 1, "webhook_at": 1 }),
            (EVENT_AT, doc! { EVENT_AT: 1, "_id": 1 }),
            ("tenant", by_id_in("tenant")),
            ("failure.code", by_id_in("failure.code")),
        ];
        // Jobs that ended without a result: a job that goes on has no end, and one with a result no failure.
        let failed = doc! { "finished_at": { "$exists": true }, "failure": { "$exists": true } };
        let failed = IndexOptions::builder().partial_filter_expression(failed).build();
        let failed = IndexModel::builder().keys(doc! { "finished_at": 1 }).options(failed).build();
        let indexes = indexes.map(index).into_iter().chain([failed]);
        let made = async { self.jobs.create_indexes(indexes).await };
        tokio::time::timeout(PATIENCE * 12, made).await.map_err(|_| no_answer())?.map_err(explain)?;
        let old = IndexModel::builder().keys(doc! { "at": 1 }).build();
        within(async { self.keys.create_index(old.clone()).await }).await?;
        within(async { self.erased.create_index(old).await }).await?;
        // Each charge forgets what is old of the same count.
        let of_count = doc! { "pool": 1, "count": 1, "ends_at": 1 };
        within(async { self.spends.create_index(IndexModel::builder().keys(of_count).build()).await }).await?;
        let of_pool = IndexModel::builder().keys(doc! { "pool": 1, "since": 1 }).build();
        within(async { self.limits_on_record.create_index(of_pool).await }).await?;
        let in_order = IndexModel::builder().keys(doc! { "pool": 1, "first": 1, "_id": 1 }).build();
        within(async { self.calls.create_index(in_order).await }).await.map(drop)
    }

    /// Many updates of jobs with one command; says how many documents they matched.
    pub(crate) async fn update_jobs(&self, updates: Vec<Document>) -> Result<usize, NotStored> {
        Ok(matched(&self.update_all_in("jobs", updates).await?))
    }

    pub(crate) async fn update_in(&self, collection: &str, updates: Vec<Document>) -> Result<usize, StoreError> {
        Ok(matched(&self.update_all_in(collection, updates).await?))
    }

    /// Updates with one command that add what is not there yet; gives the places of those that did.
    pub(crate) async fn add_in(&self, collection: &str, updates: Vec<Document>) -> Result<Vec<usize>, StoreError> {
        let done = self.update_all_in(collection, updates).await?;
        let added = done.get_array("upserted").into_iter().flatten().filter_map(Bson::as_document);
        Ok(added.filter_map(|added| usize::try_from(added.get_i32("index").ok()?).ok()).collect())
    }

    async fn update_all_in(&self, collection: &str, updates: Vec<Document>) -> Result<Document, NotStored> {
        let command = doc! {
            "update": collection,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true, "wtimeout": PATIENCE.as_millis() as i64 },
            "maxTimeMS": PATIENCE.as_millis() as i64,
        };
        let done = within(async { Ok(self.database.run_command(command).await) }).await?;
        let done = done.map_err(|error| match &*error.kind {
            ErrorKind::Command(refused) if TOO_LARGE.contains(&refused.code) => NotStored::TooLarge(error.to_string()),
            _ => explain(error).into(),
        })?;
        if done.contains_key("writeErrors") || done.contains_key("writeConcernError") {
            let why = format!("MongoDB could not store everything: {}", reason(&done));
            let is_too_large = codes(&done).any(|code| TOO_LARGE.contains(&code));
            return Err(if is_too_large { NotStored::TooLarge(why) } else { StoreError::Unavailable(why).into() });
        }
        Ok(done)
    }

    /// Changes one job, if it is still as the filter says; says whether it was.
    pub(crate) async fn update_job(&self, filter: Document, update: Document) -> Result<bool, NotStored> {
        Ok(self.update_jobs(vec![doc! { "q": filter, "u": update }]).await? == 1)
    }

    pub(crate) async fn find(&self, id: JobId, with: With) -> Result<Option<StoredJob>, StoreError> {
        let find = self.jobs.find_one(doc! { "_id": id_bson(id) }).max_time(PATIENCE);
        within(async { find.projection(without(with)).await }).await?.map(JobDoc::read).transpose()
    }

    /// The newest job that a vendor calls this.
    pub(crate) async fn find_by_ticket(&self, vendor: &str, ticket: &str) -> Result<Option<StoredJob>, StoreError> {
        let find =
            self.jobs.find_one(doc! { "ticket": ticket, "vendor": vendor }).sort(doc! { "_id": -1 }).max_time(PATIENCE);
        let without = without(With::NEITHER);
        within(async { find.projection(without).await }).await?.map(JobDoc::read).transpose()
    }

    /// Jobs by their ids; without those that cannot be read.
    pub(crate) async fn find_all(&self, ids: &[JobId], with: With) -> Result<HashMap<JobId, StoredJob>, StoreError> {
        let found = self.find_each(ids, with).await?.into_iter();
        Ok(found.filter_map(|(id, found)| Some((id, self.unreadable.skip(id, found)?))).collect())
    }

    /// Jobs by their ids, those that cannot be read too.
    pub(crate) async fn find_each(
        &self,
        ids: &[JobId],
        with: With,
    ) -> Result<HashMap<JobId, Result<StoredJob, StoreError>>, StoreError> {
        Ok(self.find_up_to(ids, with, usize::MAX).await?.0)
    }

    /// The same, until that comes to so many bytes; says whether these are all. They come a batch at a time, and each has its time: many
    /// large ones may take long.
    pub(crate) async fn find_up_to(
        &self,
        ids: &[JobId],
        with: With,
        most_bytes: usize,
    ) -> Result<(HashMap<JobId, Result<StoredJob, StoreError>>, bool), StoreError> {
        let (mut found, mut bytes) = (HashMap::with_capacity(ids.len()), 0);
        if ids.is_empty() {
            return Ok((found, true));
        }
        let ids: Vec<Bson> = ids.iter().copied().map(id_bson).collect();
        let jobs = self.jobs.clone_with_type::<RawDocumentBuf>();
        let find = jobs.find(doc! { "_id": { "$in": ids } }).projection(without(with)).max_time(PATIENCE);
        let mut cursor = within(async { find.await }).await?;
        while bytes < most_bytes {
            let Some(raw) = within(cursor.try_next()).await? else { return Ok((found, true)) };
            bytes += raw.as_bytes().len();
            found.extend(id_of(&raw).map(|id| (id, read(&raw))));
        }
        Ok((found, false))
    }

    /// How many jobs are in the lanes of a vendor, from one stream up to another.
    pub(crate) fn count_lanes(&self, vendor: &VendorWork, from: usize, to: usize) -> CountDocuments<'_> {
        self.jobs.count_documents(docs::lanes_between(&vendor.name, from, to))
    }

    /// The bytes that the payloads of the jobs in these lanes count with. It reads an index entry for each of those that count.
    pub(crate) async fn bytes_in(&self, lanes: Document, time: Duration) -> Result<u64, StoreError> {
        let mut heavy = lanes;
        heavy.insert("weight", doc! { "$gt": 0 });
        let sum = doc! { "_id": Bson::Null, "bytes": { "$sum": "$weight" } };
        let stages = [doc! { "$match": heavy }, doc! { "$group": sum }];
        let sum =
            within_time(time, async { self.jobs.aggregate(stages).max_time(time).await?.try_next().await }).await?;
        let bytes = sum.and_then(|sum| sum.get_i64("bytes").or_else(|_| sum.get_i32("bytes").map(i64::from)).ok());
        Ok(bytes.unwrap_or(0).unsigned_abs())
    }

    /// The vendors that have jobs to be called. MongoDB reads one index entry for each lane.
    pub(crate) async fn vendors_with_jobs(&self) -> Result<BTreeSet<Arc<str>>, StoreError> {
        let lanes =
            self.jobs.aggregate([doc! { "$match": { "lane": { "$gte": "" } } }, doc! { "$group": { "_id": "$lane" } }]);
        let mut found = within(lanes.max_time(PATIENCE)).await?;
        let mut vendors = BTreeSet::new();
        while let Some(lane) = within(found.try_next()).await? {
            let lane = lane.get_str("_id").unwrap_or_default();
            if docs::stream_and_tenant(lane).is_some()
                && let Some((vendor, _)) = lane.split_once('/')
            {
                vendors.insert(vendor.into());
            }
        }
        Ok(vendors)
    }

    /// Deletes those of a slice of jobs that ended before `before`; says where the next slice begins, if there is one.
    /// Slices go by id, which no job that ended so early can have later: a job is made before it ends.
    pub(crate) async fn prune_jobs(&self, from: JobId, before: Time) -> Result<Option<JobId>, StoreError> {
        let range = doc! { "_id": { "$gt": id_bson(from), "$lt": id_bson(JobId::first_at(before)) } };
        let jobs = self.jobs.clone_with_type::<Document>();
        let find = jobs
            .find(range)
            .sort(doc! { "_id": 1 })
            .limit(PRUNE)
            .projection(doc! { "finished_at": 1, "webhook_to": 1 });
        let find = find.max_time(PATIENCE);
        let slice: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        // What is still to be announced keeps its job.
        let is_old = |job: &&Document| {
            job.get_i64("finished_at").is_ok_and(|at| at < before.0) && !job.contains_key("webhook_to")
        };
        let old: Vec<Bson> = slice.iter().filter(is_old).filter_map(|job| job.get("_id").cloned()).collect();
        if !old.is_empty() {
            // Before they go: a key without its job has to know why.
            let up_to_here = doc! { "$max": { "before": before.0 } };
            within(self.settings.update_one(doc! { "_id": PRUNED }, up_to_here).upsert(true)).await?;
            within(jobs.delete_many(doc! { "_id": { "$in": old } })).await?;
        }
        let is_full = slice.len() as i64 == PRUNE;
        Ok(slice.last().and_then(|job| id_in(job, "_id")).filter(|_| is_full))
    }

    /// Deletes an ended job that has this version; says whether it did. First it is put on record that the job was erased: a key without its
    /// job has to know why.
    pub(crate) async fn erase(&self, id: JobId, version: i64, now: Time) -> Result<bool, StoreError> {
        let erased = doc! { "$set": { "at": now.0 } };
        within(self.erased.update_one(doc! { "_id": id_bson(id) }, erased).upsert(true)).await?;
        let jobs = self.jobs.clone_with_type::<Document>();
        Ok(within(async { jobs.delete_one(updates::unchanged(id, version)).await }).await?.deleted_count == 1)
    }

    /// Which of these jobs were erased, of those whose idempotency keys may still be there.
    pub(crate) async fn which_were_erased(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<Bson> = ids.iter().copied().map(id_bson).collect();
        let find = self.erased.find(doc! { "_id": { "$in": ids } }).max_time(PATIENCE);
        let found: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
        Ok(found.iter().filter_map(|erased| id_in(erased, "_id")).collect())
    }

    /// Jobs with ids from this one on have never been deleted, but for those that were erased.
    pub(crate) async fn pruned_up_to(&self) -> Result<JobId, StoreError> {
        let pruned = within(async { self.settings.find_one(doc! { "_id": PRUNED }).max_time(PATIENCE).await }).await?;
        let before = pruned.and_then(|pruned| pruned.get_i64("before").ok());
        Ok(before.map_or(JobId::MIN, |before| JobId::first_at(Time(before))))
    }

    /// Deletes a slice of idempotency keys from before `before`, and of the records of erased jobs; says whether there may be more.
    pub(crate) async fn prune_keys(&self, before: Time) -> Result<bool, StoreError> {
        let mut more = false;
        for collection in [&self.keys, &self.erased] {
            let find = collection.find(doc! { "at": { "$lt": before.0 } }).limit(PRUNE).projection(doc! { "_id": 1 });
            let find = find.max_time(PATIENCE);
            let slice: Vec<Document> = within(async { find.await?.try_collect().await }).await?;
            let names: Vec<Bson> = slice.iter().filter_map(|key| key.get("_id").cloned()).collect();
            if !names.is_empty() {
                within(collection.delete_many(doc! { "_id": { "$in": names } })).await?;
            }
            more |= slice.len() as i64 == PRUNE;
        }
        Ok(more)
    }

    pub(crate) async fn close(&self) {
        // What is still under way is cut off: whoever closes has waited for what matters.
        let _ = tokio::time::timeout(PATIENCE, self.client.clone().shutdown().immediate(true)).await;
    }
}

/// The index for lists of the jobs that have the same in this field.
pub(crate) fn by_id_in(field: &str) -> Document {
    doc! { field: 1, "_id": 1 }
}

/// A job from its document.
pub(crate) fn read(raw: &RawDocumentBuf) -> Result<StoredJob, StoreError> {
    let document = mongodb::bson::deserialize_from_slice::<JobDoc>(raw.as_bytes());
    document.map_err(|error| StoreError::Corrupt(error.to_string())).and_then(JobDoc::read)
}

/// The id in a job's document.
pub(crate) fn id_of(raw: &RawDocumentBuf) -> Option<JobId> {
    JobId::from_slice(raw.get_binary("_id").ok()?.bytes)
}

fn without(with: With) -> Document {
    let mut without = Document::new();
    if !with.payload {
        without.insert("payload", 0);
    }
    if !with.result {
        without.insert("result", 0);
    }
    without
}

/// Waits for a statement, as long as there is hope. After an error it is not known whether it was done.
pub(crate) async fn within<'a, T, S>(statement: S) -> Result<T, StoreError>
where
    S: IntoFuture<Output = Result<T, Error>>,
    S::IntoFuture: Send + 'a,
{
    within_time(PATIENCE, statement).await
}

/// The same, with another bound.
pub(crate) async fn within_time<'a, T, S>(patience: Duration, statement: S) -> Result<T, StoreError>
where
    S: IntoFuture<Output = Result<T, Error>>,
    S::IntoFuture: Send + 'a,
{
    // Boxed, because the driver's futures are large and nest deeply.
    let statement: BoxFuture<'a, Result<T, Error>> = Box::pin(statement.into_future());
    tokio::time::timeout(patience, statement).await.map_err(|_| no_answer())?.map_err(explain)
}

fn no_answer() -> StoreError {
    StoreError::Unavailable("MongoDB does not answer".into())
}

/// What went wrong, as its caller understands it.
pub(crate) fn explain(error: Error) -> StoreError {
    match *error.kind {
        ErrorKind::BsonDeserialization(_) | ErrorKind::BsonSerialization(_) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Unavailable(format!("MongoDB: {error}")),
    }
}

/// Of an insert of many: which were there already. Any other failure is an error.
pub(crate) fn duplicates(error: Error) -> Result<Vec<usize>, StoreError> {
    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(explain(error)) };
    let writes = failed.write_errors.as_deref().unwrap_or_default();
    if failed.write_concern_error.is_some() || writes.iter().any(|write| write.code != DUPLICATE) {
        return Err(explain(error));
    }
    Ok(writes.iter().map(|write| write.index).collect())
}

/// How many documents a command with updates matched or added.
fn matched(answer: &Document) -> usize {
    let matched = answer.get_i32("n").map(i64::from).or_else(|_| answer.get_i64("n")).unwrap_or(0);
    usize::try_from(matched).unwrap_or(0)
}

fn write_errors(answer: &Document) -> impl Iterator<Item = &Document> {
    answer.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document)
}

fn codes(answer: &Document) -> impl Iterator<Item = i32> {
    write_errors(answer).filter_map(|error| error.get_i32("code").ok())
}

fn reason(answer: &Document) -> String {
    let why = write_errors(answer).next().or_else(|| answer.get_document("writeConcernError").ok());
    why.and_then(|why| why.get_str("errmsg").ok()).unwrap_or("it does not say why").to_owned()
}
