//! What processes tell each other, and what each looks for by itself now and then, because messages get lost.
//!
//! Never carries data: a bell says look, an id says read.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::super::{
    Core, VendorWork,
    index::words::{Channel, Entry},
    lock,
};
use crate::{
    job::JobId,
    redis_link::Heard,
    store::{StoreError, With},
};

/// A bell that is not heard because the connection has died unnoticed is missed for so long at most.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Each process looks for itself this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// Listens for bells and ends until `stop`.
    pub(crate) async fn listen(self: Arc<Self>, stop: CancellationToken) {
        let channels = [Channel::Bells, Channel::Ended, Channel::Book].map(|channel| self.index.channel(channel));
        let [bells, ended, book] = &channels;
        self.signals.note_deaf(true);
        let heard = |heard: Heard<'_>| match heard {
            // Whatever was said before may have been missed.
            Heard::Connected => {
                self.signals.note_deaf(false);
                self.signals.ring_all();
                self.signals.alarm().notify_one();
            }
            Heard::Lost => self.signals.note_deaf(true),
            Heard::Message { channel, body } if channel == bells => self.signals.ring(&String::from_utf8_lossy(body)),
            Heard::Message { channel, body } if channel == ended => {
                let ids: Vec<JobId> = body.chunks(16).filter_map(JobId::from_slice).collect();
                self.signals.announce_ended(&ids);
            }
            Heard::Message { channel, body } if channel == book && body != self.process.as_bytes() => {
                self.signals.book().notify_one();
            }
            Heard::Message { .. } => {}
        };
        tokio::select! {
            () = self.index.redis().listen(&channels, &self.clock, ASK_EVERY, heard) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Looks once a second while there is something to look after, until `stop`.
    pub(crate) async fn look_after(self: Arc<Self>, stop: CancellationToken) {
        loop {
            while !self.has_cares() {
                tokio::select! {
                    () = self.cares.notified() => {}
                    () = self.signals.waits().notified() => {}
                    () = stop.cancelled() => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let looks: [Result<(), StoreError>; 4] = [
                self.look_for_ends().await,
                self.say_what_was_dealt_with().await,
                self.tell_what_was_not_told().await,
                self.say_what_is_held().await,
            ];
            for done in looks {
                if let Err(error) = done {
                    tracing::debug!(%error, "the next look follows in a second");
                }
            }
        }
    }

    /// Whether anything here would find something to do.
    fn has_cares(&self) -> bool {
        self.signals.somebody_waits() || !self.holds.is_empty() || self.untold.is_some()
    }

    /// Jobs that callers wait for and that have ended, unheard.
    async fn look_for_ends(&self) -> Result<(), StoreError> {
        for ids in self.signals.waited_for().chunks(1000) {
            let found = self.mongo.find_all(ids, With::NEITHER).await?;
            let ended = found.into_values().filter(|found| found.job.status.has_ended()).map(|found| found.job.id);
            let ended: Vec<JobId> = ended.collect();
            self.signals.announce_ended(&ended);
        }
        Ok(())
    }

    /// What this process is settling is still held, however long the store is away; and in a new index it is entered anew.
    async fn say_what_is_held(&self) -> Result<(), StoreError> {
        for vendor in self.vendors.values() {
            let settling = self.holds.of(&vendor.name, true);
            if !settling.is_empty() {
                self.say_held(vendor, settling).await?;
            } else if !self.holds.of(&vendor.name, false).is_empty() {
                self.say_held(vendor, Vec::new()).await?;
            }
        }
        Ok(())
    }

    /// Says that these are held, and everything that is when it turns out that the index is a new one.
    async fn say_held(&self, vendor: &VendorWork, held: Vec<Entry>) -> Result<(), StoreError> {
        let epoch = self.enter(vendor, &held).await?;
        self.note_epoch(vendor, &epoch).await
    }

    /// Tells the index that these are held; gives its epoch. What was settled or given back meanwhile is let go there too: whoever did that
    /// could not know that it is in a new index.
    async fn enter(&self, vendor: &VendorWork, held: &[Entry]) -> Result<String, StoreError> {
        let (epoch, names) = self.index.hold(vendor, held).await?;
        self.holds.rename(held, &names);
        let gone = self.holds.gone(held, &names);
        if !gone.is_empty() {
            self.give_back(vendor, gone).await;
        }
        Ok(epoch)
    }

    /// Takes note of which index a vendor has. In a new one, what this process holds has to be entered.
    pub(crate) async fn note_epoch(&self, vendor: &VendorWork, epoch: &str) -> Result<(), StoreError> {
        if epoch.is_empty() {
            return Ok(());
        }
        let before = lock(&self.epochs).entry(vendor.name.clone()).or_insert_with(|| epoch.to_owned()).clone();
        if before == epoch {
            return Ok(());
        }
        let held = self.holds.of(&vendor.name, false);
        tracing::warn!(vendor = %vendor.name, held = held.len(), "the index in Redis was lost; it is filled again from MongoDB");
        for slice in held.chunks(500) {
            self.enter(vendor, slice).await?;
        }
        // Not before all of it is entered, or nobody would try again.
        lock(&self.epochs).insert(vendor.name.clone(), epoch.to_owned());
        Ok(())
    }
}
