//! The sweep: finds jobs that are in MongoDB and missing from the index, and corrects the counts. Each vendor is swept every ten seconds.
//!
//! Never blocks a vendor's calls: it runs beside them.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::{
    Cursor,
    bson::{Document, doc},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::{
    Core,
    index::words::{Channel, CountChanges, Stats, StreamNo, VendorWork},
    truth::{
        docs,
        mongo::{within, within_time},
    },
};
use crate::store::StoreError;

/// Sweeps in the queue at most.
pub(crate) const MOST_QUEUED: usize = 4096;
/// Vendors that are swept at the same time.
const SIDE_BY_SIDE: usize = 4;
/// Tenants flagged in one script.
const SLICE: usize = 500;
/// A count reads an index entry for each job. If more than this many wait, only one sweep in `SELDOM` counts.
const MANY: i64 = 20_000;
const SELDOM: u8 = 30;
/// The time-out of a count: millions of index entries take seconds.
const COUNT_WITHIN: Duration = Duration::from_secs(30);

/// A vendor to sweep, and the sender to notify at the end.
pub(crate) struct Request {
    vendor: Arc<str>,
    done: oneshot::Sender<()>,
}

impl Core {
    /// Queues a sweep of a vendor and waits for it, briefly. If it takes longer, the jobs that it finds wake the vendor's dispatcher.
    pub(crate) async fn request_sweep(&self, vendor: &VendorWork) {
        if let Some(swept) = self.sweep_soon(&vendor.name) {
            let _ = tokio::time::timeout(self.patience(), swept).await;
        }
    }

    /// Queues a sweep of a vendor; gives what says that it is over. If the queue is full, the next sweep of this vendor is due in ten seconds.
    pub(crate) fn sweep_soon(&self, vendor: &Arc<str>) -> Option<oneshot::Receiver<()>> {
        let (done, swept) = oneshot::channel();
        self.sweeps.try_send(Request { vendor: vendor.clone(), done }).ok().map(|()| swept)
    }

    /// Runs the queued sweeps, until `stop`.
    pub(crate) async fn run_sweeps(self: Arc<Self>, mut requests: mpsc::Receiver<Request>, stop: CancellationToken) {
        let all = stream::poll_fn(|cx| requests.poll_recv(cx));
        let sweeping = all.for_each_concurrent(SIDE_BY_SIDE, |Request { vendor, done }| {
            let core = &self;
            async move {
                if let Some(vendor) = core.vendors.get(&vendor)
                    && let Err(error) = core.sweep(vendor).await
                {
                    tracing::warn!(vendor = %vendor.name, %error, "the sweep for jobs that are missing in Redis failed; the next is in ten seconds");
                }
                // An error means that the caller waits no longer.
                let _ = done.send(());
            }
        });
        tokio::select! {
            () = sweeping => {}
            () = stop.cancelled() => {}
        }
    }

    /// Flags every tenant that has a job in MongoDB, also those that the index knows. The refill then reads each in its turn, and usually
    /// finds nothing new.
    async fn sweep(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        let changes = self.homes.changes(&vendor.name);
        let before = self.index.stats(vendor).await?;
        // Not `distinct`, whose answer is one document: the names of all lanes may not fit. MongoDB reads one index entry for each lane.
        let of_vendor = doc! { "$match": docs::lanes_between(&vendor.name, 0, 6) };
        let lanes = self.mongo.jobs.aggregate([of_vendor, doc! { "$group": { "_id": "$lane" } }]);
        let mut lanes = within(lanes.batch_size(SLICE as u32)).await?;
        let mut slice = next_lanes(&mut lanes).await?;
        let some_wait = !slice.is_empty();
        let awaits = self.count(vendor, 6, 7).await?;
        // `look` does not notice every part that is missing: if one is, this opens a new index.
        self.open_index_of(vendor, some_wait || awaits > 0).await?;
        if !some_wait && awaits == 0 && before.is_empty() {
            self.homes.note_quiet(&vendor.name, changes, self.clock.nanos());
            return Ok(());
        }
        while !slice.is_empty() {
            self.index.flag(vendor, &slice).await?;
            slice = next_lanes(&mut lanes).await?;
        }
        self.recount(vendor, &before, some_wait, awaits).await
    }

    /// Corrects the counts, which drift when a process dies between its writes to MongoDB and to Redis. `before` has the counts from the
    /// beginning of the sweep.
    async fn recount(
        &self,
        vendor: &VendorWork,
        before: &Stats,
        some_wait: bool,
        awaits: u64,
    ) -> Result<(), StoreError> {
        if before.waiting > MANY && fastrand::u8(..SELDOM) != 0 {
            return Ok(());
        }
        let (calls, polls) =
            if some_wait { (self.count(vendor, 0, 3).await?, self.count(vendor, 3, 6).await?) } else { (0, 0) };
        let mut bytes = 0;
        if some_wait || awaits > 0 {
            bytes = self.mongo.bytes_in(docs::lanes_between(&vendor.name, 0, 7), COUNT_WITHIN).await?;
        }
        let after = self.index.stats(vendor).await?;
        let off = CountChanges {
            waiting: drift(before.waiting, after.waiting, calls + polls),
            open: drift(before.open, after.open, polls + awaits),
            live: drift(before.live, after.live, calls + polls + awaits),
            bytes: drift(before.bytes, after.bytes, bytes),
        };
        self.index.mend_counts(vendor, &off).await?;
        if off != CountChanges::default() {
            // Redis missed a change, so a dispatcher may have missed its wake-up.
            self.index.publish(Channel::Bells, vendor.name.as_bytes()).await?;
        }
        Ok(())
    }

    /// How many jobs are in the lanes of a vendor, from one stream up to another.
    async fn count(&self, vendor: &VendorWork, from: usize, to: usize) -> Result<u64, StoreError> {
        within_time(COUNT_WITHIN, self.mongo.count_lanes(vendor, from, to).max_time(COUNT_WITHIN)).await
    }
}

/// The next lanes of the cursor; none at the end.
async fn next_lanes(found: &mut Cursor<Document>) -> Result<Vec<(StreamNo, Arc<str>)>, StoreError> {
    let mut lanes = Vec::new();
    while lanes.len() < SLICE {
        let Some(lane) = within(found.try_next()).await? else { break };
        lanes.extend(lane.get_str("_id").ok().and_then(docs::stream_and_tenant));
    }
    Ok(lanes)
}

/// How far a count is off: Redis had `before`, then `found` jobs (or bytes) were counted in MongoDB, then Redis had `after`. If the count changed
/// meanwhile, a difference that those changes and writes on their way to Redis can explain is none.
fn drift(before: i64, after: i64, found: u64) -> i64 {
    let found = i64::try_from(found).unwrap_or(i64::MAX);
    let off = found.saturating_sub(before.midpoint(after));
    let unsure =
        if before == after { 0 } else { before.abs_diff(after).saturating_add(on_its_way(found.unsigned_abs())) };
    if off.unsigned_abs() <= unsure { 0 } else { off }
}

/// How many of the jobs in MongoDB may not have reached Redis yet.
fn on_its_way(found: u64) -> u64 {
    found / 50
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_does_not_change_is_set_to_what_was_found() {
        for (counted, found) in [(0, 7), (7, 0), (-5, 0), (1_000, 999)] {
            assert_eq!(counted + drift(counted, counted, found), found as i64);
        }
    }

    #[test]
    fn a_difference_that_changes_meanwhile_explain_is_no_error() {
        assert_eq!(drift(20_000, 19_000, 19_700), 0, "a vendor is being called");
        assert_eq!(drift(19_000, 20_000, 20_300), 0, "Redis does not have all of them yet");
        assert_eq!(drift(300, 0, 296), 0, "the last of a backlog");
    }

    #[test]
    fn a_difference_that_changes_cannot_explain_is_corrected() {
        assert_eq!(drift(1_000, 1_010, 5), -1_000);
        assert_eq!(drift(-490, -500, 0), 495);
    }
}
