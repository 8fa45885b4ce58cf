//! Delivery of callbacks: waiting for their time, copies, forgeries, signatures, retries.
//!
//! Never decides what a callback says or whether there is one (see `webhook`). Every task is in one set that ends with
//! its owner; what is scheduled and what is under way are both bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::post::Client;
use crate::sign;
use crate::vendor::Vendor;

/// Jobs scheduled at most; over it a submit is answered 503.
const SCHEDULED: usize = 100_000;
const UNDER_WAY: usize = 256;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);

pub(crate) struct Callbacks {
    tasks: Mutex<JoinSet<()>>,
    courier: Arc<Courier>,
}

/// What a delivering task needs. Not `Callbacks`, which owns the tasks: they would keep their owner alive.
struct Courier {
    client: Client,
    slots: Semaphore,
    pending: watch::Sender<usize>,
}

/// A callback that will be sent, `times` over.
pub(crate) struct Callback {
    pub(crate) vendor: Arc<Vendor>,
    pub(crate) id: String,
    pub(crate) url: String,
    pub(crate) body: Bytes,
    pub(crate) times: u32,
    pub(crate) gap: Duration,
    /// Sent first, with a broken token, or a broken signature if there is a secret.
    pub(crate) forgery: Option<Bytes>,
    pub(crate) retries: u32,
    pub(crate) secret: Option<Vec<u8>>,
}

/// So many callbacks are waiting already that another one would be one too many.
#[derive(Debug)]
pub(crate) struct Full;

impl Callbacks {
    pub(crate) fn new() -> Callbacks {
        let courier =
            Courier { client: Client::default(), slots: Semaphore::new(UNDER_WAY), pending: watch::Sender::new(0) };
        Callbacks { tasks: Mutex::new(JoinSet::new()), courier: Arc::new(courier) }
    }

    /// Sends it after a while, on a task of its own.
    pub(crate) fn schedule(&self, callback: Callback, after: Duration) -> Result<(), Full> {
        let pending = Pending::enter(&self.courier)?;
        let courier = Arc::clone(&self.courier);
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {} // what has ended is reaped here, so the set stays small
        tasks.spawn(async move {
            sleep(after).await;
            courier.send(callback).await;
            drop(pending);
        });
        Ok(())
    }

    /// Sends it while the caller waits.
    pub(crate) async fn send_now(&self, callback: Callback) -> Result<(), Full> {
        let _pending = Pending::enter(&self.courier)?;
        Arc::clone(&self.courier).send(callback).await;
        Ok(())
    }

    /// Waits until nothing is scheduled or under way.
    pub(crate) async fn settled(&self) {
        // The sender is ours and alive, so this ends only by the count.
        let _ = self.courier.pending.subscribe().wait_for(|pending| *pending == 0).await;
    }

    pub(crate) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One callback that counts as pending until this is dropped.
struct Pending(Arc<Courier>);

impl Pending {
    fn enter(courier: &Arc<Courier>) -> Result<Pending, Full> {
        let entered = courier.pending.send_if_modified(|pending| {
            let room = *pending < SCHEDULED;
            *pending += usize::from(room);
            room
        });
        if entered { Ok(Pending(Arc::clone(courier))) } else { Err(Full) }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.send_modify(|pending| *pending -= 1);
    }
}

impl Courier {
    async fn send(self: Arc<Courier>, callback: Callback) {
        if let Some(forgery) = &callback.forgery {
            self.forge(&callback, forgery).await;
        }
        if callback.times == 1 {
            return self.deliver(&callback).await;
        }
        // Copies without a gap race each other: that is the harder test of who handles duplicates.
        let callback = Arc::new(callback);
        let mut copies = JoinSet::new();
        for copy in 0..callback.times {
            let (courier, callback) = (Arc::clone(&self), Arc::clone(&callback));
            copies.spawn(async move {
                sleep(callback.gap * copy).await;
                courier.deliver(&callback).await;
            });
        }
        copies.join_all().await;
    }

    async fn deliver(&self, callback: &Callback) {
        let mut backoff = FIRST_BACKOFF;
        for attempt in 0..=callback.retries {
            if attempt > 0 {
                sleep(backoff).await;
                backoff = (backoff * 2).min(LAST_BACKOFF);
            }
            let headers = callback.headers(&callback.body);
            let status = self.post(&callback.url, &headers, &callback.body).await;
            callback.vendor.note_reply(status);
            if (200..300).contains(&status) {
                return callback.vendor.note_delivered(true);
            }
        }
        tracing::warn!(id = callback.id, url = callback.url, "gave a callback up");
        callback.vendor.note_delivered(false);
    }

    async fn forge(&self, callback: &Callback, body: &Bytes) {
        let status = if callback.secret.is_some() {
            // Signed for another body than the one that is sent.
            self.post(&callback.url, &callback.headers(&callback.body), body).await
        } else {
            self.post(&forged_url(&callback.url), &[], body).await
        };
        callback.vendor.note_forged(status);
    }

    /// The answer's status, 0 when there was none.
    async fn post(&self, url: &str, headers: &[(&'static str, String)], body: &Bytes) -> u16 {
        let _slot = self.slots.acquire().await.expect("never closed");
        self.client.post(url, headers, body).await.unwrap_or_else(|error| {
            tracing::debug!(url, error, "a callback got no answer");
            0
        })
    }
}

impl Callback {
    /// The same message id for every copy and retry, a new time for each: that is what the standard asks for.
    fn headers(&self, body: &[u8]) -> Vec<(&'static str, String)> {
        let Some(secret) = &self.secret else { return Vec::new() };
        let (id, now) = (format!("msg_{}", self.id), unix_seconds());
        let signature = sign::signature(secret, &id, now, body);
        vec![("webhook-id", id), ("webhook-timestamp", now.to_string()), ("webhook-signature", signature)]
    }
}

#[expect(clippy::disallowed_methods, reason = "a vendor has a clock of its own, not Fetchgate's")]
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The URL with one character of its last path segment altered: near the end, where a token has its MAC, but not the
/// last one, whose lowest bits base64 may ignore.
fn forged_url(url: &str) -> String {
    let (path, query) = url.split_at(url.find('?').unwrap_or(url.len()));
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let last = &path[start..];
    let at = start + last.char_indices().rev().nth(4).map_or(0, |(at, _)| at);
    let Some(old) = path[at..].chars().next() else { return format!("{path}forged{query}") };
    let new = if old == 'x' { 'y' } else { 'x' };
    format!("{}{new}{}{query}", &path[..at], &path[at + old.len_utf8()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_url_differs_in_one_character_of_its_last_segment() {
        assert_eq!(forged_url("http://h/hook/bureau/AbCdEfGhIj?a=/b"), "http://h/hook/bureau/AbCdExGhIj?a=/b");
        assert_eq!(forged_url("http://h/hook/abc"), "http://h/hook/xbc");
        assert_eq!(forged_url("http://h/hook/"), "http://h/hook/forged");
    }

    #[tokio::test]
    async fn what_is_scheduled_is_bounded() {
        let callbacks = Callbacks::new();
        let held: Vec<_> = (0..SCHEDULED).map(|_| Pending::enter(&callbacks.courier).expect("room")).collect();
        assert!(Pending::enter(&callbacks.courier).is_err());
        drop(held);
        callbacks.settled().await;
    }
}
