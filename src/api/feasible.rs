//! Refuses deadlines that cannot be met, at submit, and says the earliest deadline that can.
//!
//! Never refuses a deadline that could be met: only jobs of the same lane count as before a job, and calls are assumed to go as early as the
//! limits can ever allow.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{App, error::ApiError, standing::Limits};
use crate::{
    clock::{Nanos, Time},
    job::{Lane, NewJob},
    limit::forecast,
};

/// What is known of a lane is used for this long; jobs that are submitted here in that time are added.
const GOOD_FOR: Nanos = 1_000_000_000;
/// A job is not refused if it would be late by less than this.
const LEAST_MARGIN: Duration = Duration::from_millis(100);
/// Jobs of a lane are counted up to this number.
const MOST_COUNTED: u64 = 10_000;
/// Lanes that are remembered at once.
const MOST_LANES: usize = 10_000;

/// What is known of lanes with deadlines, so that not every submit has to ask the store.
#[derive(Default)]
pub struct Feasibility(Mutex<HashMap<Lane, Known>>);

struct Known {
    at: Nanos,
    /// Jobs that are before the next one to be submitted.
    before: u64,
    /// Nothing if the limiter does not know: then nothing is refused.
    limits: Option<Limits>,
}

/// Refuses a new job whose deadline passes before it could be called. A job that was submitted before with the same key is not new.
pub(super) async fn check(app: &App, job: &NewJob) -> Result<(), ApiError> {
    let known = &app.feasibility;
    // For a job that may not begin yet, the jobs before it now are not those before it then.
    let is_due = job.due_at <= app.clock.now();
    if let Some(deadline) = job.deadline.map(|deadline| deadline.at).filter(|_| is_due) {
        if !known.is_fresh(&job.lane, app.clock.nanos()) {
            let looked = look(app, &job.lane).await;
            known.put(job.lane.clone(), looked);
        }
        if let Some((before, earliest)) = known.earliest(app, &job.lane) {
            let now = app.clock.now();
            let wait = earliest.since(now);
            // Some of the jobs before it may be cancelled: only a deadline that is clearly too early is refused.
            let surely = now.plus(wait.saturating_sub((wait / 10).max(LEAST_MARGIN)));
            if surely > deadline && !came_before(app, job).await? {
                return Err(infeasible(before, earliest));
            }
        }
    }
    if is_due && let Some(known) = known.lock().get_mut(&job.lane) {
        known.before += 1;
    }
    Ok(())
}

impl Feasibility {
    fn is_fresh(&self, lane: &Lane, now: Nanos) -> bool {
        self.lock().get(lane).is_some_and(|known| now.saturating_sub(known.at) < GOOD_FOR)
    }

    fn put(&self, lane: Lane, known: Known) {
        let mut lanes = self.lock();
        if lanes.len() >= MOST_LANES {
            lanes.clear();
        }
        lanes.insert(lane, known);
    }

    /// How many jobs are before a new one of this lane, and the earliest time at which it could be called.
    fn earliest(&self, app: &App, lane: &Lane) -> Option<(u64, Time)> {
        let lanes = self.lock();
        let known = lanes.get(lane)?;
        let n = known.before + 1;
        let at = known.limits.as_ref()?.when(known.at, n, n, forecast::soonest);
        Some((known.before, app.clock.time_at(at)))
    }

    /// A panic elsewhere leaves nothing here half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<Lane, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look(app: &App, lane: &Lane) -> Known {
    let at = app.clock.nanos();
    // Where nothing is known nothing is refused.
    let before = app.store.due_in_lane(lane, MOST_COUNTED).await.unwrap_or(0);
    let limits = match app.vendors.get(&lane.vendor) {
        Some(vendor) => Limits::of(app, vendor, &lane.tenant).await,
        None => None,
    };
    Known { at, before, limits }
}

/// Whether a job was submitted with this key before.
async fn came_before(app: &App, job: &NewJob) -> Result<bool, ApiError> {
    match &job.idempotency {
        Some(key) => Ok(app.store.recall(&job.lane.tenant, key).await?.is_some()),
        None => Ok(false),
    }
}

fn infeasible(before: u64, earliest: Time) -> ApiError {
    let at = earliest.rfc3339();
    let detail = format!(
        "cannot be met: {before} jobs are before it, so the vendor's limits allow its call at {at} at the earliest"
    );
    ApiError::field("infeasible", "/deadline", detail).earliest(earliest)
}
