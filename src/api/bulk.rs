//! `POST /jobs/cancel` and `POST /jobs/replay`: all jobs that match a filter, a bounded number of them at each call.
//!
//! Never changes more than a slice of jobs at once, so that others get their turn in between. Never decides what may happen to a job (see
//! `job::lifecycle`).

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    App,
    access::By,
    admission::no_room,
    body::{self, NoParams},
    dto,
    error::ApiError,
    filters::Filters,
    list::{read_cursor, write_cursor},
};
use crate::{
    clock::Time,
    job::{Job, JobId, Status, lifecycle},
    store::{Amended, Decide, Filter, Slice},
};

/// Jobs that one call looks at, at most.
const MOST_EXAMINED: usize = 10_000;
/// Jobs that are changed by one commit, at most.
const SLICE: usize = 500;

const EXPECTED: &str = r#"must be an object such as {"filter": {"status": "failed", "code": "timeout"}, "dry_run": true}; a filter may have status, vendor, tenant, tag, code, created_after and created_before, and beside it there may be cursor and all"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    filter: Option<Filters>,
    /// A filter that matches all jobs is meant.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    matched: usize,
    done: usize,
    next_cursor: Option<String>,
}

/// What is done to each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Cancel,
    Replay,
}

/// `POST /jobs/cancel`
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    change(&app, by, request, Action::Cancel).await
}

/// `POST /jobs/replay`
pub(super) async fn replay(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    change(&app, by, request, Action::Replay).await
}

async fn change(app: &App, by: By, request: Request, action: Action) -> Result<Response, ApiError> {
    body::needs_json(request.headers())?;
    let raw = body::read(request, body::MAX_BODY).await?;
    let Body { filter, all, dry_run, cursor } = body::read_object(&raw, EXPECTED)?;
    drop(raw);
    let filters = filter.unwrap_or_default();
    if filters.are_none() && !all {
        let detail = r#"is empty, which means all jobs; if you mean that, write "all": true beside it"#;
        return Err(ApiError::field("invalid_field", "/filter", detail));
    }
    let wrong = |name: &str, what: &str| ApiError::field("invalid_field", &format!("/filter/{name}"), what);
    let filter = action.only_possible(filters.read(&by, wrong)?);
    let (before, began) = match cursor {
        Some(cursor) => read_position(&cursor)?,
        None => (None, app.clock.now()),
    };
    let filter = Filter { walk_began: Some(began), ..filter };
    let mut walk = Walk { by, action, filter, dry_run, began, before, is_over: false, matched: 0, done: 0 };
    walk.go(app).await?;
    let next_cursor = (!walk.is_over).then(|| write_position(walk.before.unwrap_or(JobId::MAX), began));
    Ok(dto::json(StatusCode::OK, &Answer { matched: walk.matched, done: walk.done, next_cursor }))
}

impl Action {
    /// The same filter for only those jobs that this can be done to.
    fn only_possible(self, filter: Filter) -> Filter {
        let possible: &[Status] = match self {
            Action::Cancel => &[Status::Pending, Status::Processing],
            Action::Replay => &[Status::Failed, Status::Cancelled, Status::Expired],
        };
        let wanted = |status: &&Status| filter.statuses.is_empty() || filter.statuses.contains(status);
        Filter { statuses: possible.iter().filter(wanted).copied().collect(), ..filter }
    }

    fn as_str(self) -> &'static str {
        match self {
            Action::Cancel => "cancel",
            Action::Replay => "replay",
        }
    }

    /// The decision about a job that matched when it was listed.
    fn decide(self, filter: &Filter, now: Time) -> Decide {
        match self {
            // The stored job may not say whether it is being called now.
            Action::Cancel => Box::new(lifecycle::cancel),
            Action::Replay => {
                let filter = filter.clone();
                Box::new(move |job: &Job| lifecycle::replay(job, now).filter(|_| filter.matches(job)))
            }
        }
    }
}

/// One call's part of a walk over all jobs, from the newest to the oldest. No job is replayed twice in a walk, also if it fails again meanwhile
/// or the client repeats a call: a job that was replayed and has ended again since the walk began does not match.
struct Walk {
    by: By,
    action: Action,
    filter: Filter,
    dry_run: bool,
    began: Time,
    /// All jobs from this id on have been visited.
    before: Option<JobId>,
    is_over: bool,
    matched: usize,
    done: usize,
}

impl Walk {
    /// Goes as far as one call may. If something fails after some jobs were changed, the answer is their number, and the next call
    /// begins where this one stopped.
    async fn go(&mut self, app: &App) -> Result<(), ApiError> {
        // No status in the filter allows this action.
        self.is_over = self.filter.statuses.is_empty();
        let mut left = MOST_EXAMINED;
        while !self.is_over && left > 0 {
            match self.step(app, left).await {
                Ok(examined) => left = left.saturating_sub(examined),
                Err(_) if self.done > 0 => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Changes the next slice of jobs; returns how many were examined.
    async fn step(&mut self, app: &App, examine: usize) -> Result<usize, ApiError> {
        // One walk at a time, so that many walks slow down other requests no more than one does.
        let _turn = app.bulk.lock().await;
        let slice = Slice { before: self.before, most: SLICE, examine };
        let page = app.store.list(self.by.sees(), &self.filter, slice).await?;
        if self.dry_run {
            self.matched += page.jobs.len();
        } else {
            let ids: Vec<JobId> = page.jobs.iter().map(|job| job.id).collect();
            self.change(app, &ids).await?;
        }
        self.before = page.next.or(self.before);
        self.is_over = page.next.is_none();
        Ok(page.examined)
    }

    async fn change(&mut self, app: &App, mut ids: &[JobId]) -> Result<(), ApiError> {
        while !ids.is_empty() {
            let now = app.clock.now();
            let amended = app.store.amend_all(self.by.sees(), ids, now, self.action.decide(&self.filter, now)).await?;
            let (visited, rest) = ids.split_at(amended.len());
            let mut full = None;
            for (id, amended) in visited.iter().zip(amended) {
                if let Amended::NoRoom(job, why) = amended {
                    full = full.or_else(|| Some(no_room(&app.admission, &job.lane.tenant, why)));
                    continue;
                }
                self.matched += 1;
                if let Amended::Changed(job) = amended {
                    self.done += 1;
                    if let Some(metrics) = app.metrics.vendor(&job.lane.vendor).filter(|_| job.status.has_ended()) {
                        metrics.count_end_of(&job);
                    }
                }
                // The walk stops where there is no room. The jobs behind it are visited again, and do not match if they were changed.
                if full.is_none() {
                    self.before = Some(*id);
                }
            }
            if let Some(full) = full {
                return Err(full);
            }
            ids = rest;
        }
        Ok(())
    }
}

/// Logs what was done, also if the client disconnects before the end.
impl Drop for Walk {
    fn drop(&mut self) {
        if self.done > 0 {
            let Walk { action, filter, began, matched, done, is_over, .. } = self;
            let (by, action, walk) = (&self.by.0.by, action.as_str(), began.rfc3339());
            let statuses: Vec<&str> = filter.statuses.iter().map(|status| status.as_str()).collect();
            tracing::info!(
                %by,
                action,
                walk,
                status = statuses.join(","),
                vendor = filter.vendor,
                tenant = filter.tenant,
                tag = filter.tag,
                code = filter.code.map(|code| code.as_str()),
                created_after = filter.created_after.map(|at| at.rfc3339()),
                created_before = filter.created_before.map(|at| at.rfc3339()),
                matched,
                done,
                is_over,
                "jobs were changed in bulk"
            );
        }
    }
}

/// A cursor: the last job that was visited, and when the walk began.
fn write_position(before: JobId, began: Time) -> String {
    write_cursor(&[&before.as_bytes()[..], &began.0.to_be_bytes()].concat())
}

fn read_position(cursor: &str) -> Result<(Option<JobId>, Time), ApiError> {
    let bytes: [u8; 24] = read_cursor(cursor)?;
    let (id, began) = bytes.split_at(16);
    let began = began.try_into().map(i64::from_be_bytes).unwrap_or_default();
    Ok((JobId::from_slice(id), Time(began)))
}
