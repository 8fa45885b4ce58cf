//! Announcements of ends in MongoDB: a part of the job's document, so they are written with the end itself.
//!
//! Never decides what becomes of an announcement (see `job::ResultWebhook`).

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde::{Deserialize, Serialize};

use super::{
    super::RedisMongo,
    docs::{self, id_bson},
    mongo::{self, PATIENCE, within},
    updates::Field,
};
use crate::{
    clock::Time,
    job::{DeliveryStatus, JobId, ResultWebhook},
    store::{
        StoreError, With,
        webhooks::{Outbox, Receiver, WebhookChange},
    },
};

/// An announcement in its job's document. What has to be sent has `webhook_to` and `webhook_at` beside it: an index has exactly these.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WebhookDoc {
    url: Url,
    receiver: Arc<str>,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    since: Option<i64>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    last_error: Option<String>,
    omits_result: bool,
}

/// People put secrets into URLs.
#[derive(Clone, Serialize, Deserialize)]
struct Url(Arc<str>);

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a URL")
    }
}

impl WebhookDoc {
    pub(crate) fn new(webhook: &ResultWebhook) -> WebhookDoc {
        WebhookDoc {
            url: Url(webhook.url.clone()),
            receiver: webhook.receiver.clone(),
            status: webhook.status.as_str().to_owned(),
            since: webhook.since.map(|at| at.0),
            attempts: webhook.attempts,
            last_status: webhook.last_status,
            last_error: webhook.last_error.clone(),
            omits_result: webhook.omits_result,
        }
    }

    /// With what is beside it.
    pub(crate) fn read(self, next_at: Option<i64>) -> Result<ResultWebhook, StoreError> {
        let status = DeliveryStatus::ALL.into_iter().find(|status| status.as_str() == self.status);
        let unknown = || StoreError::Corrupt("a result webhook has a status that no version wrote".into());
        Ok(ResultWebhook {
            url: self.url.0,
            receiver: self.receiver,
            status: status.ok_or_else(unknown)?,
            next_at: next_at.map(Time),
            since: self.since.map(Time),
            attempts: self.attempts,
            last_status: self.last_status,
            last_error: self.last_error,
            omits_result: self.omits_result,
        })
    }
}

/// The fields of a job's document that say what is to be announced.
pub(crate) const FIELDS: [Field; 3] = [
    ("webhook", |job| job.webhook.as_ref().map(document)),
    ("webhook_to", |job| job.webhook.as_ref().filter(|one| one.next_at.is_some()).map(|one| (&*one.receiver).into())),
    ("webhook_at", |job| job.webhook.as_ref()?.next_at.map(|at| at.0.into())),
];

fn document(webhook: &ResultWebhook) -> Bson {
    mongodb::bson::serialize_to_bson(&WebhookDoc::new(webhook)).expect("our own plain structs always serialize")
}

/// One update among those of a command: of an announcement, if it is still as it was.
fn update(change: &WebhookChange) -> Document {
    let WebhookChange { id, was, is } = change;
    let number = |at: Option<Time>| at.map_or(Bson::Null, |at| at.0.into());
    let same = doc! { "_id": id_bson(*id), "webhook.status": was.status.as_str(), "webhook_at": number(was.next_at) };
    let mut set = doc! { "webhook": document(is) };
    if let Some(at) = is.next_at {
        set.extend(doc! { "webhook_to": &*is.receiver, "webhook_at": at.0 });
        return doc! { "q": same, "u": { "$set": set } };
    }
    doc! { "q": same, "u": { "$set": set, "$unset": { "webhook_to": "", "webhook_at": "" } } }
}

#[async_trait]
impl Outbox for RedisMongo {
    async fn receivers(&self, after: &str, most: usize) -> Result<Vec<Receiver>, StoreError> {
        // In the order of the index, of which MongoDB reads one entry for each receiver.
        let first_of_each = [
            doc! { "$match": { "webhook_to": { "$gt": after } } },
            doc! { "$sort": { "webhook_to": 1, "webhook_at": 1 } },
            doc! { "$group": { "_id": "$webhook_to", "at": { "$first": "$webhook_at" } } },
            doc! { "$sort": { "_id": 1 } },
            doc! { "$limit": i64::try_from(most).unwrap_or(i64::MAX) },
        ];
        let jobs = &self.core.mongo.jobs;
        let found: Vec<Document> =
            within(async { jobs.aggregate(first_of_each).max_time(PATIENCE).await?.try_collect().await }).await?;
        let receiver = |found: &Document| {
            Some(Receiver { name: found.get_str("_id").ok()?.into(), next_at: Time(found.get_i64("at").ok()?) })
        };
        Ok(found.iter().filter_map(receiver).collect())
    }

    async fn due(
        &self,
        receiver: &Arc<str>,
        now: Time,
        most: usize,
    ) -> Result<Vec<(JobId, ResultWebhook)>, StoreError> {
        let truth = &self.core.mongo;
        let jobs = truth.jobs.clone_with_type::<RawDocumentBuf>();
        let due = doc! { "webhook_to": &**receiver, "webhook_at": docs::up_to(now) };
        let find = jobs.find(due).sort(doc! { "webhook_at": 1 }).batch_size(u32::try_from(most).unwrap_or(u32::MAX));
        let find = find.projection(doc! { "payload": 0, "result": 0, "attempts": 0 }).max_time(PATIENCE);
        let mut found = within(async { find.await }).await?;
        let mut due = Vec::new();
        // Those that cannot be read stay where they are, before the others.
        while due.len() < most
            && let Some(raw) = within(found.try_next()).await?
        {
            let Some(id) = mongo::id_of(&raw) else { continue };
            let job = truth.unreadable.skip(id, mongo::read(&raw)).map(|found| found.job);
            due.extend(job.and_then(|job| job.webhook).map(|webhook| (id, webhook)));
        }
        Ok(due)
    }

    async fn change(&self, changes: Vec<WebhookChange>) -> Result<Vec<bool>, StoreError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let truth = &self.core.mongo;
        let matched = truth.update_in("jobs", changes.iter().map(update).collect()).await?;
        let changed = if matched == changes.len() {
            vec![true; changes.len()]
        } else {
            let ids: Vec<JobId> = changes.iter().map(|one| one.id).collect();
            let found = truth.find_all(&ids, With::NEITHER).await?;
            let is_ours =
                |one: &WebhookChange| found.get(&one.id).is_some_and(|job| job.job.webhook.as_ref() == Some(&one.is));
            changes.iter().map(is_ours).collect()
        };
        if changes.iter().any(WebhookChange::is_news) {
            self.core.announce_webhooks().await;
        }
        Ok(changed)
    }
}
