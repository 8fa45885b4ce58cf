//! Jobs as documents of MongoDB, and back. Payloads and results are Binary: bytes to us.
//!
//! Never decides anything; a text that no version wrote is an error, not a guess.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use mongodb::bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use serde::{Deserialize, Serialize, de};

use super::{super::index::words::StreamNo, webhooks::WebhookDoc};
use crate::{
    clock::Time,
    job::{
        Attempts, Deadline, Failure, FailureCode, Fetch, Job, JobId, Lane, NewJob, Priority, Stage, Status, Trace,
        VendorSaid, weight,
    },
    store::StoreError,
};

/// A job's document. What is not there is not stored: a server pays for each field whenever it touches a document, so a new job has only
/// what is its own, and updates write the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobDoc {
    #[serde(rename = "_id")]
    id: Blob,
    vendor: Arc<str>,
    tenant: Arc<str>,
    #[serde(skip_serializing_if = "is_normal", default)]
    priority: Priority,
    #[serde(skip_serializing, default = "pending")]
    status: Status,
    #[serde(skip_serializing, default = "call")]
    stage: Stage,
    due_at: i64,
    /// Only while it has not ended: in which lane. Sorted by it and `due_at` an index has exactly what is alive. Never read back.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    lane: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    alarm_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    answer_by: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline_within_ms: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    tags: Vec<String>,
    #[serde(skip_serializing, default)]
    run: u32,
    #[serde(skip_serializing, default)]
    tries: u32,
    #[serde(skip_serializing, default)]
    unanswered: u32,
    #[serde(skip_serializing, default)]
    slowed: u32,
    #[serde(skip_serializing, default)]
    attempt: u32,
    /// The fence: every change adds one, and is made only if nobody made another.
    #[serde(skip_serializing, default)]
    version: i64,
    /// Which process settled it last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    by: Option<String>,
    /// How often a worker lost it.
    #[serde(skip_serializing, default)]
    lapses: u32,
    /// At most once: since when its worker is about to call. Only until that is settled, given back or reclaimed.
    #[serde(skip_serializing, default)]
    called_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    ticket: Option<String>,
    #[serde(skip_serializing, default)]
    fetch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    failure: Option<FailureDoc>,
    /// Only if that was neither when it was accepted nor when it ended.
    #[serde(skip_serializing, default)]
    updated_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    finished_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    payload: Option<Blob>,
    /// What its payload counts with where waiting bytes are bounded; only if that is anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    weight: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    result: Option<Blob>,
    /// As JSON: nobody asks for anything in it, and to take a document apart costs a server more than what is in it.
    #[serde(skip_serializing, default)]
    attempts: Option<String>,
    /// Where its end is announced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    webhook: Option<WebhookDoc>,
    /// When that is sent. Only while there is something to send.
    #[serde(skip_serializing, default)]
    webhook_at: Option<i64>,
    /// What the job was submitted with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    traceparent: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FailureDoc {
    code: String,
    message: String,
    #[serde(default)]
    vendor: Option<VendorSaid>,
}

/// A job as it was read, and what else its document says.
#[derive(Debug, Clone)]
pub(crate) struct StoredJob {
    /// Without what was not read.
    pub(crate) job: Job,
    pub(crate) version: i64,
    pub(crate) by: Option<String>,
    pub(crate) lapses: u32,
    pub(crate) called_at: Option<Time>,
    pub(crate) attempts: Attempts,
}

/// A lane's name in a document: vendor, stream and tenant. A vendor's name has no `/`, and a stream is one digit: 0 to 2 are calls,
/// 3 to 5 polls, 6 waits for callbacks.
pub(crate) fn lane_name(vendor: &str, stream: StreamNo, tenant: &str) -> String {
    format!("{vendor}/{}/{tenant}", stream.0)
}

/// The stream and the tenant in a lane's name; none for jobs that wait for a callback.
pub(crate) fn stream_and_tenant(lane: &str) -> Option<(StreamNo, Arc<str>)> {
    let mut parts = lane.splitn(3, '/').skip(1);
    let stream = parts.next()?.parse().ok().filter(|stream| *stream < StreamNo::ALL.len())?;
    Some((StreamNo(stream), parts.next()?.into()))
}

/// All lanes of a vendor from one stream up to another.
pub(crate) fn lanes_between(vendor: &str, from: usize, to: usize) -> Document {
    doc! { "lane": { "$gte": format!("{vendor}/{from}/"), "$lt": format!("{vendor}/{to}/") } }
}

/// All times up to this one, as a filter has it. They are whole milliseconds.
pub(crate) fn up_to(time: Time) -> Document {
    doc! { "$lt": time.0.saturating_add(1) }
}

fn is_normal(priority: &Priority) -> bool {
    *priority == Priority::Normal
}

fn pending() -> Status {
    Status::Pending
}

fn call() -> Stage {
    Stage::Call
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl JobDoc {
    /// A new job.
    pub(crate) fn new(job: NewJob) -> JobDoc {
        let stream = StreamNo::new(job.lane.priority, Stage::Call);
        JobDoc {
            id: Blob::id(job.id),
            lane: Some(lane_name(&job.lane.vendor, stream, &job.lane.tenant)),
            vendor: job.lane.vendor,
            tenant: job.lane.tenant,
            priority: job.lane.priority,
            status: Status::Pending,
            stage: Stage::Call,
            due_at: job.due_at.0,
            alarm_at: job.deadline.map(|deadline| deadline.at.0),
            answer_by: None,
            deadline_at: job.deadline.map(|deadline| deadline.at.0),
            deadline_within_ms: job.deadline.and_then(|deadline| deadline.within).map(millis),
            tags: job.tags,
            run: 0,
            tries: 0,
            unanswered: 0,
            slowed: 0,
            attempt: 0,
            version: 0,
            by: None,
            lapses: 0,
            called_at: None,
            ticket: None,
            fetch: None,
            failure: None,
            updated_at: None,
            finished_at: None,
            weight: i64::try_from(weight(job.payload.len())).ok().filter(|weight| *weight > 0),
            payload: Some(Blob(job.payload)),
            result: None,
            attempts: None,
            webhook: job.webhook.as_ref().map(WebhookDoc::new),
            webhook_at: None,
            traceparent: job.caller.map(|caller| caller.to_string()),
        }
    }

    pub(crate) fn read(self) -> Result<StoredJob, StoreError> {
        let no_id = || StoreError::Corrupt("a job's id is not 16 bytes".into());
        let id = JobId::from_slice(&self.id.0).ok_or_else(no_id)?;
        let failure = match self.failure {
            Some(FailureDoc { code, message, vendor }) => {
                let unknown = || StoreError::Corrupt(format!("job {id} has a failure that no version wrote"));
                Some(Failure { code: FailureCode::from_text(&code).ok_or_else(unknown)?, message, vendor })
            }
            None => None,
        };
        let bad = |error| StoreError::Corrupt(format!("job {id} has attempts that no version wrote: {error}"));
        let attempts = self.attempts.as_deref().map(serde_json::from_str).transpose().map_err(bad)?.unwrap_or_default();
        let bad_trace = || StoreError::Corrupt(format!("job {id} has a traceparent that no version wrote"));
        let within = self.deadline_within_ms.map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let job = Job {
            id,
            lane: Lane { vendor: self.vendor, priority: self.priority, tenant: self.tenant },
            payload: self.payload.map(|blob| blob.0).unwrap_or_default(),
            weight: self.weight.unwrap_or(0).unsigned_abs(),
            status: self.status,
            stage: self.stage,
            due_at: Time(self.due_at),
            answer_by: self.answer_by.map(Time),
            deadline: self.deadline_at.map(|at| Deadline { at: Time(at), within }),
            tags: self.tags,
            run: self.run,
            tries: self.tries,
            unanswered: self.unanswered,
            slowed: self.slowed,
            attempt: self.attempt,
            ticket: self.ticket,
            fetch: self.fetch.map(Fetch::from_text),
            result: self.result.map(|blob| blob.0),
            failure,
            updated_at: self.updated_at.or(self.finished_at).map_or(id.created_at(), Time),
            finished_at: self.finished_at.map(Time),
            webhook: self.webhook.map(|webhook| webhook.read(self.webhook_at)).transpose()?,
            caller: self.traceparent.map(|text| Trace::parse(&text).ok_or_else(bad_trace)).transpose()?,
        };
        let called_at = self.called_at.map(Time);
        Ok(StoredJob { job, version: self.version, by: self.by, lapses: self.lapses, called_at, attempts })
    }
}

pub(crate) fn id_bson(id: JobId) -> Bson {
    binary(id.as_bytes())
}

/// The id in a field of a document of which little else was read.
pub(crate) fn id_in(found: &Document, field: &str) -> Option<JobId> {
    JobId::from_slice(found.get_binary_generic(field).ok()?)
}

pub(crate) fn binary(bytes: impl AsRef<[u8]>) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.as_ref().to_vec() })
}

/// Bytes that are kept as BSON Binary.
#[derive(Clone)]
pub(crate) struct Blob(pub(crate) Bytes);

impl Blob {
    pub(crate) fn id(id: JobId) -> Blob {
        Blob(Bytes::copy_from_slice(id.as_bytes()))
    }
}

/// Payloads are nobody's business.
impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_byte_buf(BlobVisitor)
    }
}

struct BlobVisitor;

impl de::Visitor<'_> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(Blob(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_job_leaves_out_of_its_document_is_read_as_it_was() {
        let id = JobId::first_at(Time(1_000));
        let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
        let new = NewJob::new(id, lane.clone(), "{}", Time(9));
        let document = mongodb::bson::serialize_to_document(&JobDoc::new(new)).unwrap();
        let fields: Vec<&str> = document.keys().map(String::as_str).collect();
        assert_eq!(fields, ["_id", "vendor", "tenant", "due_at", "lane", "payload"]);
        let doc: JobDoc = mongodb::bson::deserialize_from_document(document).unwrap();
        let StoredJob { job, version, attempts, .. } = doc.read().unwrap();
        assert_eq!((job.id, &job.lane, job.status, job.stage), (id, &lane, Status::Pending, Stage::Call));
        assert_eq!((version, attempts, job.tries, job.attempt), (0, Attempts::default(), 0, 0));
        assert_eq!((job.due_at, job.updated_at, job.finished_at), (Time(9), Time(1_000), None));
    }
}
