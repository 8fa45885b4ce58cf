//! Submit and settle: the two writes that every job makes.
//!
//! Never decides what a job becomes: a submit stores what was checked, a settle what `lifecycle` said.

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::{
    amend::read,
    index::Row,
    lane_cache::Entry,
    mark,
    room::Place,
    rows, webhooks,
    writer::{After, Tx, Write},
};
use crate::{
    clock::Time,
    job::{Attempt, Attempts, Fetch, Idempotency, Job, JobId, NewJob, Stage, Status, lifecycle::Change},
    store::{Lease, Settled, StoreError, Submitted, Unsettled, Which, room::Load},
};

/// Stores new jobs.
pub(super) struct Submit {
    jobs: Vec<NewJob>,
    outcomes: Vec<(Submitted, Option<Row>)>,
    now: Time,
    /// Until they are in the index.
    _place: Place,
    reply: oneshot::Sender<Result<Vec<Submitted>, StoreError>>,
}

impl Submit {
    pub(super) fn boxed(
        jobs: Vec<NewJob>,
        now: Time,
        place: Place,
        reply: oneshot::Sender<Result<Vec<Submitted>, StoreError>>,
    ) -> Box<dyn Write> {
        Box::new(Submit { outcomes: Vec::with_capacity(jobs.len()), jobs, now, _place: place, reply })
    }
}

impl Write for Submit {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        self.outcomes.clear();
        for job in &self.jobs {
            let known = match &job.idempotency {
                Some(idempotency) => remember_key(tx, job, idempotency, self.now)?,
                None => None,
            };
            let outcome = match known {
                Some(known) => (known, None),
                None => (Submitted::New(job.id), Some(insert(tx, job, self.now)?)),
            };
            self.outcomes.push(outcome);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        if let Err(error) = outcome {
            let _ = self.reply.send(Err(error));
            return;
        }
        for (job, (_, row)) in self.jobs.into_iter().zip(&self.outcomes) {
            let Some(row) = *row else { continue };
            after.ring(&job.lane.vendor);
            if let Some(deadline) = job.deadline {
                after.alarm(deadline.at);
            }
            after.index.recount(&job.lane, None, Some(Stage::Call), Load::of_new(&job));
            let entry = Entry::new((job.due_at.0, row.n), job.id, self.now, job.payload.len(), 0);
            let now = after.now;
            after.index.put_new(row.lane, &job.lane, Stage::Call, entry, now);
        }
        // A caller that has gone away does not mind.
        let _ = self.reply.send(Ok(self.outcomes.into_iter().map(|(outcome, _)| outcome).collect()));
    }
}

/// The job that was submitted under this key before; if there is none, the key is stored for this job.
fn remember_key(
    tx: &Tx<'_>,
    job: &NewJob,
    idempotency: &Idempotency,
    now: Time,
) -> rusqlite::Result<Option<Submitted>> {
    if let Some(known) = recall(tx.conn, &job.lane.tenant, idempotency)? {
        return Ok(Some(known));
    }
    tx.conn
        .prepare_cached("INSERT INTO idempotency (tenant, key, body_hash, id, created_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((&*job.lane.tenant, &idempotency.key, idempotency.body_hash, job.id.as_bytes(), now.0))?;
    Ok(None)
}

/// What was submitted under a key before.
pub(super) fn recall(conn: &Connection, tenant: &str, key: &Idempotency) -> rusqlite::Result<Option<Submitted>> {
    let found: Option<([u8; 32], [u8; 16])> = conn
        .prepare_cached("SELECT body_hash, id FROM idempotency WHERE tenant = ?1 AND key = ?2")?
        .query_row((tenant, &key.key), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let known =
        |(hash, id)| if hash == key.body_hash { Submitted::Known(JobId::from_bytes(id)) } else { Submitted::KeyReused };
    Ok(found.map(known))
}

fn insert(tx: &mut Tx<'_>, job: &NewJob, now: Time) -> rusqlite::Result<Row> {
    let n = tx.next_n();
    let lane = tx.lane(&job.lane, n)?;
    // A duration that is too long for the column is the longest one.
    let within = job.deadline.and_then(|deadline| deadline.within);
    let within = within.map(|within| i64::try_from(within.as_millis()).unwrap_or(i64::MAX));
    tx.conn
        .prepare_cached(
            "INSERT INTO jobs (n, id, lane, status, stage, due_at, alarm_at, deadline_at, deadline_within, updated_at, tags, payload, traceparent)
             VALUES (?1, ?2, ?3, 0, 0, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            n,
            job.id.as_bytes(),
            lane,
            job.due_at.0,
            job.deadline.map(|deadline| deadline.at.0),
            within,
            now.0,
            (!job.tags.is_empty()).then(|| serde_json::json!(job.tags).to_string()),
            &*job.payload,
            job.caller.map(|caller| caller.to_string()),
        ])?;
    job.webhook.as_ref().map_or(Ok(()), |webhook| webhooks::put(tx.conn, job.id, webhook))?;
    Ok(Row { n, lane })
}

/// Stores what an attempt made of its job.
pub(super) struct Settle {
    lease: Box<Lease>,
    change: Change,
    attempt: Attempt,
    now: Time,
    took: Took,
    reply: oneshot::Sender<Result<Settled, Unsettled>>,
}

/// What the table took.
enum Took {
    Nothing,
    /// The change: the job is now this.
    Change(Box<Job>),
    /// Data from a stale lease, and what the job was by then.
    StaleData(Row, Box<Job>),
}

impl Settle {
    pub(super) fn boxed(
        lease: Lease,
        change: Change,
        attempt: Attempt,
        now: Time,
        reply: oneshot::Sender<Result<Settled, Unsettled>>,
    ) -> Box<dyn Write> {
        Box::new(Settle { lease: Box::new(lease), change, attempt, now, took: Took::Nothing, reply })
    }
}

impl Write for Settle {
    fn run(&mut self, tx: &mut Tx<'_>) -> rusqlite::Result<()> {
        let id = self.lease.job.id;
        // The first attempt, which most jobs end with, needs no reading.
        let before = if self.attempt.n > 1 { attempts_so_far(tx, id)? } else { Attempts::default() };
        let history = with_attempt(before, &self.attempt);
        let job = self.change.apply(&self.lease.job, self.lease.attempt, self.now);
        self.took = Took::Nothing;
        if self.lease.called_at.is_some() {
            mark::remove(tx, id, self.lease.attempt)?;
        }
        if update(tx, &job, Some(&history), Fence::NotEndedBefore(self.lease.attempt))? {
            self.took = Took::Change(Box::new(job));
        } else if job.status == Status::Complete
            && let Some((row, was)) = read(tx, &Which::Id(id))?.filter(|(_, was)| !was.status.has_ended())
        {
            // Others have changed the job meanwhile: only the data is taken.
            let job = self.change.apply(&was, self.lease.attempt, self.now);
            let history = with_attempt(attempts_so_far(tx, id)?, &self.attempt);
            update(tx, &job, Some(&history), Fence::NotEnded)?;
            self.took = Took::StaleData(row, Box::new(was));
        } else {
            put_on_record(tx, &self.lease, &self.attempt)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>, after: &mut After<'_>) {
        let Settle { lease, change, attempt, took, now, reply } = *self;
        if let Err(why) = outcome {
            // The worker has the outcome and retries, so nobody else may call meanwhile.
            after.index.keep(lease.job.id, lease.attempt);
            let _ = reply.send(Err(Unsettled { lease, change, attempt, why }));
            return;
        }
        let id = lease.job.id;
        let leased = after.index.settled(id, lease.attempt, now);
        let settled = match took {
            Took::Nothing => Settled::TooLate,
            Took::Change(job) => {
                if let Some(leased) = leased {
                    reindex(after, leased.row(), &lease.job, &job);
                }
                Settled::Stored
            }
            Took::StaleData(row, was) => {
                after.index.unlease(id, None);
                after.index.remove(row, was.stage);
                after.index.recount(&lease.job.lane, Some(was.stage), None, Load::of(&was));
                after.ring(&lease.job.lane.vendor);
                after.has_ended(id, was.webhook.is_some());
                Settled::Stored
            }
        };
        let _ = reply.send(Ok(settled));
    }
}

/// Adds an attempt to a job that ended by other means during it. Nothing else changes.
fn put_on_record(tx: &Tx<'_>, lease: &Lease, attempt: &Attempt) -> rusqlite::Result<()> {
    let Lease { job, attempt: n, .. } = lease;
    let history = with_attempt(attempts_so_far(tx, job.id)?, attempt);
    tx.conn
        .prepare_cached("UPDATE jobs SET attempts = ?4 WHERE id = ?1 AND status >= 2 AND attempt = ?2 AND run = ?3")?
        .execute((job.id.as_bytes(), n, job.run, history))?;
    Ok(())
}

pub(super) fn attempts_so_far(tx: &Tx<'_>, id: JobId) -> rusqlite::Result<Attempts> {
    let json = tx
        .conn
        .prepare_cached("SELECT attempts FROM jobs WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    rows::attempts(json.flatten())
}

/// A job's attempts with one more, as JSON.
pub(super) fn with_attempt(mut attempts: Attempts, attempt: &Attempt) -> Vec<u8> {
    attempts.push(attempt.clone());
    rows::to_json(&attempts)
}

/// Which rows an update may touch.
#[derive(Clone, Copy)]
pub(super) enum Fence {
    /// Jobs that have not ended and whose attempt number is below this one.
    NotEndedBefore(u32),
    NotEnded,
    /// Ended jobs too, for a replay.
    Any,
}

/// Writes a changed job to its row, if the fence allows it; says whether it did. Without a history the stored attempts stay.
pub(super) fn update(tx: &Tx<'_>, job: &Job, history: Option<&[u8]>, fence: Fence) -> rusqlite::Result<bool> {
    // By place: to look all these up by name costs nearly as much as the rest of the statement.
    const SQL: &str = "UPDATE jobs SET status = ?, stage = ?, due_at = ?, alarm_at = ?, answer_by = ?, deadline_at = ?, run = ?, tries = ?, \
           unanswered = ?, attempt = max(attempt, ?), updated_at = ?, finished_at = ?, failure_code = ?, failure = ?, ticket = ?, \
           fetch = ?, result = ?, attempts = coalesce(?, attempts), said = ?, slowed = ?, event = iif(status = ?, event, ?) \
         WHERE id = ? AND status < ? AND attempt < ?";
    let (below, fence) = match fence {
        Fence::NotEndedBefore(attempt) => (2, i64::from(attempt)),
        Fence::NotEnded => (2, i64::MAX),
        Fence::Any => (Status::ALL.len(), i64::MAX),
    };
    let said = job.failure.as_ref().and_then(|failure| failure.vendor.as_ref());
    let event = (job.status != Status::Pending).then(|| tx.core.next_event());
    let changed = tx.conn.prepare_cached(SQL)?.execute(params![
        job.status as u8,
        if job.status.has_ended() { rows::ENDED } else { job.stage as u8 },
        job.due_at.0,
        job.alarm_at().map(|at| at.0),
        job.answer_by.map(|at| at.0),
        job.deadline.map(|deadline| deadline.at.0),
        job.run,
        job.tries,
        job.unanswered,
        job.attempt,
        job.updated_at.0,
        job.finished_at.map(|at| at.0),
        job.failure.as_ref().map(|failure| failure.code.as_str()),
        job.failure.as_ref().map(|failure| &*failure.message),
        job.ticket,
        job.fetch.as_ref().map(Fetch::as_text),
        job.result.as_deref(),
        history,
        said.map(|said| serde_json::json!(said).to_string()),
        job.slowed,
        job.status as u8,
        event,
        job.id.as_bytes(),
        below,
        fence,
    ])?;
    if let Some(webhook) = job.webhook.as_ref().filter(|_| changed == 1) {
        webhooks::put(tx.conn, job.id, webhook)?;
    }
    Ok(changed == 1)
}

/// Updates the index after a job that was not in a cache was changed.
pub(super) fn reindex(after: &mut After<'_>, row: Row, was: &Job, job: &Job) {
    after.index.recount(&job.lane, was.live_stage(), job.live_stage(), Load::of(job));
    if let Some(at) = job.alarm_at() {
        after.alarm(at);
    }
    match job.live_stage() {
        None => {
            after.has_ended(job.id, job.owes_webhook());
            if was.stage != Stage::Call {
                after.ring(&job.lane.vendor); // One fewer job is open, so another may be called.
            }
        }
        Some(Stage::Await) => {}
        Some(Stage::Call | Stage::Poll) => {
            after.ring(&job.lane.vendor);
            let now = after.now;
            after.index.put(row, job, now);
        }
    }
}
