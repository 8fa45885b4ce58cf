//! The sweep: what MongoDB has and Redis does not know of, looked for now and then whatever the index says.
//!
//! Never keeps a vendor's calls waiting for long: it goes on beside them, and where a server reads all that waits it takes its time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::{
    Cursor,
    bson::{Document, doc},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Core, docs,
    index::SWEEP_EVERY,
    mongo::{LONG_PATIENCE, within_long},
    words::{Channel, Counts, Line, Stats, VendorWork},
};
use crate::store::StoreError;

/// Sweeps that wait for their turn, at most.
pub(super) const MOST_ASKED: usize = 4096;
/// Vendors that are swept at once.
const SIDE_BY_SIDE: usize = 4;
/// Of the time at most one part in so many is spent sweeping.
const SHARE: u32 = 20;
/// Tenants told to the index in one script.
const SLICE: usize = 500;
/// More jobs than this take a while to read or to count where a server knows no better.
pub(super) const LONG: i64 = 20_000;
/// Of the sweeps of a vendor with so many one in so many counts them.
const SELDOM: u8 = 30;

/// A vendor to be swept, and who waits for it.
pub(super) struct Asked {
    vendor: Arc<str>,
    done: oneshot::Sender<()>,
}

impl Core {
    /// Has a vendor swept, and waits for that if it does not take long. Whose jobs are found later is rung for.
    pub(super) async fn ask_for_sweep(&self, vendor: &VendorWork) {
        let (done, told) = oneshot::channel();
        // One that finds no room is asked for again in a while.
        if self.sweeps.try_send(Asked { vendor: vendor.name.clone(), done }).is_err() {
            return;
        }
        let _ = tokio::time::timeout(self.patience(), told).await;
    }

    /// Sweeps what is asked for, until `stop`.
    pub(super) async fn sweep_what_is_asked(
        self: Arc<Self>,
        mut asked: mpsc::Receiver<Asked>,
        stop: CancellationToken,
    ) {
        let all = stream::poll_fn(|cx| asked.poll_recv(cx));
        let sweeping = all.for_each_concurrent(SIDE_BY_SIDE, |Asked { vendor, done }| {
            let core = &self;
            async move {
                if let Some(vendor) = core.vendors.get(&vendor)
                    && let Err(error) = core.sweep(vendor).await
                {
                    tracing::warn!(vendor = %vendor.name, %error, "no look for jobs that Redis does not know of; the next follows");
                }
                // Whoever asked may have gone on.
                let _ = done.send(());
            }
        });
        tokio::select! {
            () = sweeping => {}
            () = stop.cancelled() => {}
        }
    }

    /// Puts the tenants that have something in MongoDB into the index, whatever it says. One by one they are read and found to have
    /// nothing new, as a rule: so only of lanes in which there is a job, not of all that there ever were.
    async fn sweep(&self, vendor: &VendorWork) -> Result<(), StoreError> {
        let before = self.index.stats(vendor).await?;
        let is_long = before.waiting > LONG;
        if is_long {
            // Nobody else is to begin meanwhile.
            self.index.sweep_later(vendor, LONG_PATIENCE).await?;
        }
        let begun = Instant::now();
        let swept = self.sweep_lanes(vendor, &before).await;
        // It reads all that waits where a server knows no better. On a clock that a test moves, how long something takes says nothing.
        let took = if self.clock.injected().is_some() { Duration::ZERO } else { begun.elapsed() };
        let pause = SWEEP_EVERY.max(took * SHARE);
        if is_long || pause > SWEEP_EVERY {
            self.index.sweep_later(vendor, pause).await?;
        }
        swept
    }

    async fn sweep_lanes(&self, vendor: &VendorWork, before: &Stats) -> Result<(), StoreError> {
        // Lanes may be too many for one answer, which `distinct` would give. By what an index begins with, MongoDB goes from one to the next.
        let of_vendor = doc! { "$match": docs::lanes_between(&vendor.name, 0, 6) };
        let lanes = self.mongo.jobs.aggregate([of_vendor, doc! { "$group": { "_id": "$lane" } }]);
        let mut lanes = within_long(lanes.batch_size(SLICE as u32).max_time(LONG_PATIENCE)).await?;
        let mut slice = next_lanes(&mut lanes).await?;
        let some_wait = !slice.is_empty();
        let awaits = within_long(self.mongo.count_lanes(vendor, 6, 7).max_time(LONG_PATIENCE)).await?;
        // Damage that no look sees.
        self.open_index_of(vendor, some_wait || awaits > 0).await?;
        while !slice.is_empty() {
            self.index.flag(vendor, &slice).await?;
            slice = next_lanes(&mut lanes).await?;
        }
        self.recount(vendor, before, some_wait, awaits).await
    }

    /// The counts drift when a process dies between MongoDB and Redis. Long backlogs are counted less often. `before` is how they stood
    /// when counting began.
    async fn recount(
        &self,
        vendor: &VendorWork,
        before: &Stats,
        some_wait: bool,
        awaits: u64,
    ) -> Result<(), StoreError> {
        if before.waiting > LONG && self.knows_lanes(vendor).await? && fastrand::u8(..SELDOM) != 0 {
            return Ok(());
        }
        let count =
            async |from, to| within_long(self.mongo.count_lanes(vendor, from, to).max_time(LONG_PATIENCE)).await;
        let (calls, polls) = if some_wait { (count(0, 3).await?, count(3, 6).await?) } else { (0, 0) };
        let after = self.index.stats(vendor).await?;
        let off = Counts {
            waiting: drift(before.waiting, after.waiting, calls + polls),
            open: drift(before.open, after.open, polls + awaits),
            live: drift(before.live, after.live, calls + polls + awaits),
            ..Counts::default()
        };
        self.index.mend_counts(vendor, &off).await?;
        if off != Counts::default() {
            // Redis has missed something; so may those who waited for it.
            self.index.publish(Channel::Bells, vendor.name.as_bytes()).await?;
        }
        self.check_lanes(vendor, calls + polls).await
    }
}

/// The next lanes that were found; none at the end.
async fn next_lanes(found: &mut Cursor<Document>) -> Result<Vec<(Line, Arc<str>)>, StoreError> {
    let mut lanes = Vec::new();
    while lanes.len() < SLICE {
        let Some(lane) = within_long(found.try_next()).await? else { break };
        lanes.extend(lane.get_str("_id").ok().and_then(docs::line_and_tenant));
    }
    Ok(lanes)
}

/// By how much a count is off that stood at `before` and `after` while so many were `found`. What changed meanwhile, and what MongoDB has
/// and Redis will hear of in a moment, is no error: while others change a count, only what goes beyond that is mended.
fn drift(before: i64, after: i64, found: u64) -> i64 {
    let found = i64::try_from(found).unwrap_or(i64::MAX);
    let off = found.saturating_sub(before.midpoint(after));
    let unsure =
        if before == after { 0 } else { before.abs_diff(after).saturating_add(on_its_way(found.unsigned_abs())) };
    if off.unsigned_abs() <= unsure { 0 } else { off }
}

/// How many of those that MongoDB has Redis may not have heard of yet, while it is counted.
pub(super) fn on_its_way(found: u64) -> u64 {
    found / 50
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_is_set_to_what_was_found() {
        for (counted, found) in [(0, 7), (7, 0), (-5, 0), (1_000, 999)] {
            assert_eq!(counted + drift(counted, counted, found), found as i64);
        }
    }

    #[test]
    fn what_changes_while_it_is_counted_is_no_error() {
        assert_eq!(drift(20_000, 19_000, 19_700), 0, "a vendor is being called");
        assert_eq!(drift(19_000, 20_000, 20_300), 0, "Redis has not heard of all of them yet");
        assert_eq!(drift(300, 0, 296), 0, "the last of a backlog");
    }

    #[test]
    fn what_changes_cannot_explain_is_mended_meanwhile() {
        assert_eq!(drift(1_000, 1_010, 5), -1_000);
        assert_eq!(drift(-490, -500, 0), 495);
    }
}
