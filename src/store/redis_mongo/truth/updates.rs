//! The updates of jobs' documents in MongoDB, one for each change of a job.
//!
//! Never overwrites a change that somebody else made meanwhile: each update is for one version of the document.

use mongodb::bson::{Bson, Document, doc};

use super::{
    super::index::words::StreamNo,
    docs::{binary, id_bson, lane_name},
    events, webhooks,
};
use crate::{
    clock::Time,
    job::{
        Attempts, Failure, FailureCode, Job, JobId, ResultWebhook, Stage, VendorSaid,
        lifecycle::{Change, Next},
    },
};

/// A field of a job's document, and what it has for a job.
pub(crate) type Field = (&'static str, fn(&Job) -> Option<Bson>);

/// The update that turns the document of `was` into that of `job`: it writes only the fields that differ.
pub(crate) fn update(was: &Job, job: &Job) -> Document {
    let (mut set, mut unset) = (Document::new(), Document::new());
    let mut put = |name: &str, before: Option<Bson>, after: Option<Bson>| match after {
        _ if before == after => {}
        Some(after) => drop(set.insert(name, after)),
        None => drop(unset.insert(name, "")),
    };
    const FIELDS: [Field; 17] = [
        ("status", |job| Some(job.status.as_str().into())),
        ("stage", |job| Some(job.stage.as_str().into())),
        ("run", |job| Some(i64::from(job.run).into())),
        ("tries", |job| Some(i64::from(job.tries).into())),
        ("unanswered", |job| Some(i64::from(job.unanswered).into())),
        ("slowed", |job| (job.slowed > 0).then(|| i64::from(job.slowed).into())),
        ("attempt", |job| Some(i64::from(job.attempt).into())),
        ("updated_at", |job| number(updated_at(job))),
        ("lane", |job| lane_of(job).map(Bson::from)),
        ("alarm_at", |job| number(job.alarm_at())),
        ("answer_by", |job| number(job.answer_by)),
        ("deadline_at", |job| number(job.deadline.map(|deadline| deadline.at))),
        ("ticket", |job| job.ticket.clone().map(Bson::from)),
        ("fetch", |job| job.fetch.as_ref().map(|fetch| fetch.as_text().into())),
        ("failure", |job| job.failure.as_ref().map(failure)),
        ("finished_at", |job| number(job.finished_at)),
        ("result", |job| job.result.as_ref().map(binary)),
    ];
    for (name, of) in FIELDS.into_iter().chain(webhooks::FIELDS) {
        put(name, of(was), of(job));
    }
    // Nobody reads the due time of a job that has ended.
    if !job.status.has_ended() {
        put("due_at", number(Some(was.due_at)), number(Some(job.due_at)));
    }
    // Lapsed leases are counted for one step, and the call on record is over.
    unset.insert("lapses", "");
    unset.insert("called_at", "");
    let mut update = doc! { "$inc": { "version": 1_i64 }, "$set": set, "$unset": unset };
    events::note(was, job, &mut update);
    update
}

fn failure(why: &Failure) -> Bson {
    let mut doc = doc! { "code": why.code.as_str(), "message": &why.message };
    if let Some(said) = &why.vendor {
        let status = said.status.map(|status| Bson::Int32(status.into()));
        doc.insert("vendor", doc! { "status": status, "body": &said.body });
    }
    doc.into()
}

/// Sets one more field in an update.
pub(crate) fn set(update: &mut Document, name: &str, value: impl Into<Bson>) {
    if let Some(Bson::Document(set)) = update.get_mut("$set") {
        set.insert(name, value);
    }
}

/// Bytes in an update, about, without the fields that may be long.
pub(crate) const SHORT_FIELDS: usize = 1024 + VendorSaid::MAX_BODY + ResultWebhook::MAX_URL;

/// Bytes in an update, about, without its result.
pub(crate) fn size(update: &Document) -> usize {
    let text = |name: &str| update.get_document("$set").and_then(|set| set.get_str(name)).map_or(0, str::len);
    SHORT_FIELDS + text("attempts") + text("ticket") + text("fetch")
}

/// Bytes of attempts in an update, about.
pub(crate) fn attempts_size(attempts: &Attempts) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    attempts.iter().map(|attempt| 192 + text(&attempt.detail) + text(&attempt.response)).sum()
}

/// Ends a job as failed because MongoDB cannot store its outcome: the document would be too large, now and at every retry.
pub(crate) fn too_large(job: &Job, change: &Change) -> Change {
    let why = "the job, with its payload and the vendor's answer, is larger than the store can keep";
    let next = Next::Failed(Failure::new(FailureCode::ResponseTooLarge, why));
    Change { tries: change.tries, ..Change::of(job, next) }
}

/// The field `attempts` of a document: JSON.
pub(crate) fn attempts_text(attempts: &Attempts) -> String {
    serde_json::to_string(attempts).expect("our own plain structs always serialize")
}

fn number(time: Option<Time>) -> Option<Bson> {
    time.map(|time| Bson::Int64(time.0))
}

/// One update of a bulk write: of a job, if it still has this version.
pub(crate) fn one(id: JobId, version: i64, update: Document) -> Document {
    doc! { "q": unchanged(id, version), "u": update }
}

/// The filter for a job that still has this version.
pub(crate) fn unchanged(id: JobId, version: i64) -> Document {
    // The first version is not stored.
    let version = if version == 0 { Bson::Null } else { version.into() };
    doc! { "_id": id_bson(id), "version": version }
}

/// The name of the job's lane; none once it has ended.
fn lane_of(job: &Job) -> Option<String> {
    let stream = if job.stage == Stage::Await { StreamNo::AWAITS } else { StreamNo::of(job) };
    (!job.status.has_ended()).then(|| lane_name(&job.lane.vendor, stream, &job.lane.tenant))
}

/// When a job was updated, unless that is when it was accepted or when it ended, which other fields have.
fn updated_at(job: &Job) -> Option<Time> {
    let implied = job.finished_at.unwrap_or(job.id.created_at());
    Some(job.updated_at).filter(|at| *at != implied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Attempt, AttemptKind, AttemptOutcome};

    #[test]
    fn the_size_of_attempts_is_at_most_twice_what_they_take() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts_size(&attempts), 0);
        for n in 1..=60 {
            attempts.push(Attempt {
                n,
                kind: AttemptKind::Call,
                sent_at: Some(1_768_464_000_000),
                permit_at: 1_768_464_000_000,
                status: Some(503),
                latency_ms: 10_000,
                outcome: AttemptOutcome::TryAgain,
                detail: Some("x".repeat(20 * n as usize)),
                response: None,
            });
            let (size, takes) = (attempts_size(&attempts), attempts_text(&attempts).len());
            assert!(size >= takes && size <= takes * 2, "{n}: {size} for {takes}");
        }
    }
}
