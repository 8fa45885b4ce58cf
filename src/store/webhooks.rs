//! The outbox: announcements of ends that are still to be made. Written with the end itself, so none is lost.
//!
//! Never sends anything (see `result_webhooks`).

use std::sync::Arc;

use async_trait::async_trait;

use super::StoreError;
use crate::{
    clock::Time,
    job::{JobId, ResultWebhook},
};

/// Whoever something is to be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// An origin and a tenant.
    pub name: Arc<str>,
    /// When the first of it is to be sent.
    pub next_at: Time,
}

/// A change of one announcement.
#[derive(Debug, Clone)]
pub struct WebhookChange {
    pub id: JobId,
    pub was: ResultWebhook,
    pub is: ResultWebhook,
}

impl WebhookChange {
    /// Whether there is now something to send that was settled.
    pub fn is_news(&self) -> bool {
        self.was.since != self.is.since && self.is.next_at.is_some()
    }
}

/// What is to be sent. The receiver comes first everywhere, so that what waits for one costs the others nothing.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Receivers that something is to be sent to, now or later: up to `most`, in the order of their names, from the first name after `after`.
    async fn receivers(&self, after: &str, most: usize) -> Result<Vec<Receiver>, StoreError>;

    /// Up to `most` announcements that are due at one receiver, those that have waited longest first.
    async fn due(&self, receiver: &Arc<str>, now: Time, most: usize)
    -> Result<Vec<(JobId, ResultWebhook)>, StoreError>;

    /// Makes those changes whose announcement has still the status and the next time that it had; says which, in their order.
    async fn change(&self, changes: Vec<WebhookChange>) -> Result<Vec<bool>, StoreError>;
}
