//! Messages between processes, and the polls that catch what a lost message would have said.
//!
//! A message never carries data: it is the name of a vendor that may have work, or the id of a job that has ended.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::super::{
    Core, VendorWork, WEBHOOKS,
    index::words::{Channel, Entry},
    lock,
};
use crate::{
    job::JobId,
    redis_link::PubSubEvent,
    roles::Roles,
    store::{StoreError, With},
};

/// A dead connection is noticed within this time.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How often each process polls.
const POLL_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// Listens until `stop`: a worker for bells, an API for the ends that its callers wait for.
    pub(crate) async fn listen(self: Arc<Self>, roles: Roles, stop: CancellationToken) {
        let channels = [Channel::Ended, Channel::Book, Channel::Bells].map(|channel| self.index.channel(channel));
        let [ended, book, bells] = &channels;
        let heard = usize::from(!roles.has_api())..if roles.has_worker() { 3 } else { 2 };
        self.signals.note_unsubscribed(true);
        let on_event = |event: PubSubEvent<'_>| match event {
            // Earlier messages may have been missed.
            PubSubEvent::Connected => {
                self.signals.note_unsubscribed(false);
                self.homes.note_all_changed();
                self.signals.ring_all();
                self.signals.alarm().notify_one();
                self.signals.webhooks().notify_one();
            }
            PubSubEvent::Lost => self.signals.note_unsubscribed(true),
            PubSubEvent::Message { channel, body } if channel == bells && body == WEBHOOKS => {
                self.signals.webhooks().notify_one();
            }
            PubSubEvent::Message { channel, body } if channel == bells => {
                self.hear_bell(&String::from_utf8_lossy(body));
            }
            PubSubEvent::Message { channel, body } if channel == ended => {
                let ids: Vec<JobId> = body.chunks(16).filter_map(JobId::from_slice).collect();
                self.signals.announce_ended(&ids);
            }
            PubSubEvent::Message { channel, body } if channel == book && body != self.process.as_bytes() => {
                self.signals.book().notify_one();
            }
            PubSubEvent::Message { .. } => {}
        };
        tokio::select! {
            () = self.index.redis().listen(&channels[heard], &self.clock, ASK_EVERY, on_event) => {}
            () = stop.cancelled() => {}
        }
    }

    /// `NAME`: the vendor has something due; `?NAME`: it may have; `+NAME`: its home has more than it can claim.
    fn hear_bell(&self, bell: &str) {
        let name = bell.trim_start_matches(['?', '+']);
        let Some(vendor) = self.vendors.get(name) else { return };
        let is_ours = bell.starts_with('+') || self.homes.is_home_to(name);
        if is_ours && !bell.starts_with('?') {
            self.homes.note_due(&vendor.name, self.clock.nanos());
        } else {
            self.homes.note_change(name);
        }
        if is_ours {
            self.signals.ring(name);
        }
    }

    /// Does what is due once a second, as long as there is anything to do, until `stop`.
    pub(crate) async fn run_upkeep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            while !self.has_upkeep() {
                tokio::select! {
                    () = self.upkeep_needed.notified() => {}
                    () = self.signals.waits().notified() => {}
                    () = stop.cancelled() => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let looks: [Result<(), StoreError>; 4] = [
                self.look_for_ends().await,
                self.send_removals().await,
                self.send_flags().await,
                self.keep_leases().await,
            ];
            for done in looks {
                if let Err(error) = done {
                    tracing::debug!(%error, "polling failed; the next poll is in a second");
                }
            }
        }
    }

    /// Whether there is anything to do: callers wait, there are leases, or Redis missed an update.
    fn has_upkeep(&self) -> bool {
        self.signals.somebody_waits() || !self.leases.is_empty() || self.unsent.is_some()
    }

    /// Finds jobs that callers wait for and that have ended.
    async fn look_for_ends(&self) -> Result<(), StoreError> {
        for ids in self.signals.waited_for().chunks(1000) {
            let found = self.mongo.find_all(ids, With::NEITHER).await?;
            let ended = found.into_values().filter(|found| found.job.status.has_ended()).map(|found| found.job.id);
            let ended: Vec<JobId> = ended.collect();
            self.signals.announce_ended(&ended);
        }
        Ok(())
    }

    /// Keeps the leases of what this process is settling, however long MongoDB is unavailable. In a new index they are registered again.
    async fn keep_leases(&self) -> Result<(), StoreError> {
        for vendor in self.vendors.values() {
            let settling = self.leases.of(&vendor.name, true);
            if !settling.is_empty() {
                self.register(vendor, settling).await?;
            } else if !self.leases.of(&vendor.name, false).is_empty() {
                self.register(vendor, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Registers these leases, and all of them if the index turns out to be a new one.
    async fn register(&self, vendor: &VendorWork, leased: Vec<Entry>) -> Result<(), StoreError> {
        let epoch = self.enter(vendor, &leased).await?;
        self.note_epoch(vendor, &epoch).await
    }

    /// Registers these leases in the index; gives its epoch. Those that were settled or released meanwhile are released there too: whoever did
    /// that did not know of the new index.
    async fn enter(&self, vendor: &VendorWork, leased: &[Entry]) -> Result<String, StoreError> {
        let (epoch, names) = self.index.register(vendor, leased).await?;
        self.leases.rename(leased, &names);
        let gone = self.leases.gone(leased, &names);
        if !gone.is_empty() {
            self.give_back(vendor, gone).await;
        }
        Ok(epoch)
    }

    /// Remembers which index a vendor has. In a new one, this process registers its leases.
    pub(crate) async fn note_epoch(&self, vendor: &VendorWork, epoch: &str) -> Result<(), StoreError> {
        if epoch.is_empty() {
            return Ok(());
        }
        let before = lock(&self.epochs).entry(vendor.name.clone()).or_insert_with(|| epoch.to_owned()).clone();
        if before == epoch {
            return Ok(());
        }
        let leased = self.leases.of(&vendor.name, false);
        tracing::warn!(vendor = %vendor.name, leased = leased.len(), "the index in Redis was lost; it is filled again from MongoDB");
        for slice in leased.chunks(500) {
            self.enter(vendor, slice).await?;
        }
        // Only when all are registered, so that a failure is tried again.
        lock(&self.epochs).insert(vendor.name.clone(), epoch.to_owned());
        Ok(())
    }
}
