//! What changes write: updates of jobs' documents, many of them in one statement.
//!
//! Never changes a document that somebody else has changed meanwhile: each update is for one version.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, Document, doc};

use super::{
    docs::{binary, id_bson, lane_name},
    words::Line,
};
use crate::{
    clock::Time,
    job::{
        Attempts, Failure, FailureCode, Job, JobId, Stage, VendorSaid,
        lifecycle::{Change, Next},
    },
};

/// Jobs in one statement: with more of them each costs a server no less.
const TOGETHER: usize = 32;

/// Where jobs are that wait for a callback: no stream, only a place in the order of lanes.
const AWAITS: Line = Line(6);

/// What a change of `was` writes: `job` as it is after it. Fields that it no longer has are taken out.
pub(super) fn update(was: &Job, job: &Job) -> Document {
    let (mut set, mut unset) = (Document::new(), Document::new());
    let mut put = |name: &str, before: Option<Bson>, after: Option<Bson>| match after {
        _ if before == after => {}
        Some(after) => drop(set.insert(name, after)),
        None => drop(unset.insert(name, "")),
    };
    type Field = (&'static str, fn(&Job) -> Option<Bson>);
    const FIELDS: [Field; 16] = [
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
        ("failure", |job| job.failure.as_ref().map(failure)),
        ("finished_at", |job| number(job.finished_at)),
        ("result", |job| job.result.as_ref().map(binary)),
    ];
    for (name, of) in FIELDS {
        put(name, of(was), of(job));
    }
    // When it ended is `finished_at`; a due time that nobody asks for need not be written.
    if !job.status.has_ended() {
        put("due_at", number(Some(was.due_at)), number(Some(job.due_at)));
    }
    // Workers that died before this step say nothing about the next, and the call that was on record is over.
    unset.insert("lapses", "");
    unset.insert("called_at", "");
    doc! { "$inc": { "version": 1_i64 }, "$set": set, "$unset": unset }
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
pub(super) fn set(update: &mut Document, name: &str, value: impl Into<Bson>) {
    if let Some(Bson::Document(set)) = update.get_mut("$set") {
        set.insert(name, value);
    }
}

/// What the fields of an update weigh, those apart that may be long.
pub(super) const FIELDS_WEIGH: usize = 1024 + VendorSaid::MAX_BODY;

/// What an update weighs without its result, in bytes, about.
pub(super) fn weight(update: &Document) -> usize {
    let text = |name: &str| update.get_document("$set").and_then(|set| set.get_str(name)).map_or(0, str::len);
    FIELDS_WEIGH + text("attempts") + text("ticket")
}

/// What attempts weigh in an update, in bytes, about.
pub(super) fn attempts_weigh(attempts: &Attempts) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    attempts.iter().map(|attempt| 192 + text(&attempt.detail) + text(&attempt.response)).sum()
}

/// What becomes of a job whose outcome MongoDB does not take: its document would be too large, today and tomorrow.
pub(super) fn too_large(job: &Job, change: &Change) -> Change {
    let why = "what would be kept of the job, with its payload and the vendor's answer, is larger than the store keeps";
    let next = Next::Failed(Failure::new(FailureCode::ResponseTooLarge, why));
    Change { tries: change.tries, ..Change::of(job, next) }
}

/// Attempts as a document has them.
pub(super) fn attempts_text(attempts: &Attempts) -> String {
    serde_json::to_string(attempts).expect("our own plain structs always serialize")
}

/// A job and what is its own: an update, or the fields that it gets.
type Own = (JobId, Document);

/// Updates of [`update`]'s kind, each with its job and the version it is for, as few statements: to look up a document, to lock and to log it
/// costs a server several times what the change itself does, and much of that it does once a statement. One statement takes jobs of the
/// same version that lose the same fields, and finds for each document what is its own.
pub(super) fn together(updates: Vec<(JobId, i64, Document)>) -> Vec<Document> {
    let mut alike: BTreeMap<(i64, Vec<String>), Vec<Own>> = BTreeMap::new();
    for (id, version, update) in updates {
        let lost = update.get_document("$unset").map(|unset| unset.keys().cloned().collect()).unwrap_or_default();
        alike.entry((version, lost)).or_default().push((id, update));
    }
    let mut statements = Vec::new();
    for ((version, lost), jobs) in alike {
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            let some: Vec<Own> = jobs.by_ref().take(TOGETHER).collect();
            statements.push(one_statement(version, &lost, some));
        }
    }
    statements
}

fn one_statement(version: i64, lost: &[String], mut jobs: Vec<Own>) -> Document {
    if jobs.len() == 1 {
        let (id, update) = jobs.remove(0);
        return doc! { "q": unchanged(id, version), "u": update };
    }
    let ids: Vec<Bson> = jobs.iter().map(|(id, _)| id_bson(*id)).collect();
    let sets = jobs.into_iter().map(|(id, mut update)| {
        let mut set = match update.remove("$set") {
            Some(Bson::Document(set)) => set,
            _ => Document::new(),
        };
        set.insert("version", version + 1);
        (id, set)
    });
    let mut sets: Vec<Own> = sets.collect();
    sets.sort_by_key(|(id, _)| *id);
    let steps = vec![doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", own(&sets)] } }, doc! { "$unset": lost }];
    doc! { "q": { "_id": { "$in": ids }, "version": version_bson(version) }, "u": steps, "multi": true }
}

/// Of these, in the order of their ids, what is the document's own: found by halving, not by looking through all of them.
fn own(sets: &[Own]) -> Bson {
    if let [(_, set)] = sets {
        // Data is no expression, whatever it looks like.
        return doc! { "$literal": set }.into();
    }
    let (below, from) = sets.split_at(sets.len() / 2);
    doc! { "$cond": [{ "$lt": ["$_id", id_bson(from[0].0)] }, own(below), own(from)] }.into()
}

fn number(time: Option<Time>) -> Option<Bson> {
    time.map(|time| Bson::Int64(time.0))
}

/// Only a job that nobody has changed since it was seen.
pub(super) fn unchanged(id: JobId, version: i64) -> Document {
    doc! { "_id": id_bson(id), "version": version_bson(version) }
}

/// A version, as a filter has it: the first is not stored.
fn version_bson(version: i64) -> Bson {
    if version == 0 { Bson::Null } else { version.into() }
}

/// The lane that a job is in, while it has not ended.
fn lane_of(job: &Job) -> Option<String> {
    let line = if job.stage == Stage::Await { AWAITS } else { Line::of(job) };
    (!job.status.has_ended()).then(|| lane_name(&job.lane.vendor, line, &job.lane.tenant))
}

/// When a job was updated, if that says more than when it was accepted and when it ended.
fn updated_at(job: &Job) -> Option<Time> {
    let told = job.finished_at.unwrap_or(job.id.created_at());
    Some(job.updated_at).filter(|at| *at != told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Attempt, AttemptKind, AttemptOutcome};

    #[test]
    fn attempts_weigh_what_they_take() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts_weigh(&attempts), 0);
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
            let (weigh, takes) = (attempts_weigh(&attempts), attempts_text(&attempts).len());
            assert!(weigh >= takes && weigh <= takes * 2, "{n}: {weigh} for {takes}");
        }
    }
}
