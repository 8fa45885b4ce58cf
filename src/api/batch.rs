//! `POST /jobs/batch`: many jobs in one body, a JSON array or NDJSON, read as it arrives.
//!
//! Never keeps the text of a job that has been read, and stores nothing before the whole body has been read.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::{Buf, BytesMut};
use serde::de::IgnoredAny;

use super::{
    App,
    access::By,
    admission::{self, no_room},
    body::{self, Arriving, MAX_BODY, NoParams},
    dto,
    error::ApiError,
    feasible,
    memory::Charge,
    submission,
};
use crate::{
    job::{Lane, NewJob},
    store::Submitted,
};

const MAX_JOBS: usize = 10_000;
/// Bytes of a whole batch.
const MAX_BATCH: usize = 64 << 20;
/// A batch has to arrive within this time.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Jobs stored in one go.
const SLICE: usize = 1000;
/// Bytes of text that say what is wrong with items; after that they only get their code.
const MAX_DETAILS: usize = 2 << 20;

/// One item: a job to store, or the problem with it.
type Item = Result<NewJob, ApiError>;

pub(super) async fn submit(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    by.may_submit(&app)?;
    let headers = request.headers();
    let media_type = body::media_type(headers);
    let splitter = match &*media_type {
        "application/x-ndjson" => Splitter::lines(),
        other if body::is_json(other) => Splitter::array(),
        _ => return Err(body::unsupported(headers, "application/json (an array) or application/x-ndjson")),
    };
    let key = submission::idempotency_key(headers)?;
    let caller = submission::caller(headers);
    let reading = read_items(&app, &by, request, splitter, key.as_deref());
    // The memory is kept until the answer has been made: the jobs are copies of what was sent.
    let (mut items, _charge) = tokio::time::timeout(MAX_WAIT, reading).await.map_err(|_| body::too_slow())??;
    for item in &mut items {
        if let Ok(job) = item {
            job.caller = caller;
            if let Err(error) = admit(&app, job).await {
                *item = Err(error);
            }
        }
    }
    store(&app, items).await
}

/// Whether a job that is valid may be submitted now.
async fn admit(app: &App, job: &NewJob) -> Result<(), ApiError> {
    feasible::check(app, job).await?;
    Ok(app.admission.take(&job.lane.tenant)?)
}

async fn read_items(
    app: &App,
    by: &By,
    request: Request,
    mut splitter: Splitter,
    key: Option<&str>,
) -> Result<(Vec<Item>, Charge), ApiError> {
    let mut items: Vec<Item> = Vec::new();
    let mut arriving = Arriving::of(request);
    let mut details = 0;
    loop {
        let piece = arriving.next().await?;
        let at_end = piece.is_none();
        if let Some(piece) = piece {
            if arriving.charge.bytes() > MAX_BATCH {
                return Err(ApiError::body_too_large(format!("a batch can have {MAX_BATCH} bytes")));
            }
            splitter.buffer.extend_from_slice(&piece);
        }
        while let Some(text) = splitter.next(at_end)? {
            if items.len() == MAX_JOBS {
                return Err(ApiError::body_too_large(format!(
                    "a batch can have {MAX_JOBS} jobs; send the rest in another"
                )));
            }
            let item = read_item(app, by, &text, key.map(|key| format!("{key}#{}", items.len())));
            // An array is one JSON text: if one item is not JSON, the whole body is not.
            match item {
                Err(error) if !splitter.by_line && serde_json::from_slice::<IgnoredAny>(&text).is_err() => {
                    return Err(error);
                }
                Err(error) => {
                    details += error.size();
                    items.push(Err(if details > MAX_DETAILS { error.brief() } else { error }));
                }
                item => items.push(item),
            }
        }
        if at_end {
            splitter.finish()?;
            return Ok((items, arriving.charge));
        }
    }
}

fn read_item(app: &App, by: &By, text: &[u8], key: Option<String>) -> Item {
    let mut job = submission::parse(app, by, body::check_json(text)?)?;
    job.idempotency = key.map(|key| submission::idempotency(key, text));
    Ok(job)
}

/// Stores the good items slice by slice, and answers for each item in its place.
async fn store(app: &App, items: Vec<Item>) -> Result<Response, ApiError> {
    let mut answers: Vec<Option<Result<String, ApiError>>> = Vec::with_capacity(items.len());
    let mut good = Vec::new();
    for item in items {
        match item {
            Ok(job) => {
                good.push((answers.len(), job));
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(error))),
        }
    }
    let mut accepted = 0_usize;
    let mut rest = good.into_iter();
    loop {
        let (places, jobs): (Vec<usize>, Vec<NewJob>) = rest.by_ref().take(SLICE).unzip();
        if jobs.is_empty() {
            break;
        }
        let lanes: Vec<_> = jobs.iter().map(|job| job.lane.clone()).collect();
        match admission::store(app, jobs).await {
            Ok(outcomes) => {
                for ((place, lane), outcome) in places.into_iter().zip(lanes).zip(outcomes) {
                    if let (Submitted::New(_), Some(metrics)) = (outcome, app.metrics.vendor(&lane.vendor)) {
                        metrics.count_accepted(app.clock.now());
                    }
                    let answer = answer(app, &lane, outcome);
                    accepted += usize::from(answer.is_ok());
                    answers[place] = Some(answer);
                }
            }
            // Nothing is stored yet: the whole batch can be sent again.
            Err(error) if accepted == 0 => return Err(error.into()),
            Err(error) => {
                let problem = ApiError::from(error);
                places.into_iter().for_each(|place| answers[place] = Some(Err(problem.clone())));
            }
        }
    }
    Ok(respond(accepted, answers.into_iter().flatten()))
}

fn answer(app: &App, lane: &Lane, outcome: Submitted) -> Result<String, ApiError> {
    match outcome {
        Submitted::New(id) | Submitted::Known(id) => Ok(id.to_string()),
        Submitted::KeyReused => Err(ApiError::key_reused()),
        Submitted::NoRoom(why) => Err(no_room(&app.admission, &lane.tenant, why)),
    }
}

fn respond(accepted: usize, answers: impl Iterator<Item = Result<String, ApiError>>) -> Response {
    let items: Vec<String> = answers
        .map(|answer| match answer {
            Ok(id) => format!(r#"{{"request_id":"{id}"}}"#),
            Err(problem) => format!(r#"{{"error":{}}}"#, problem.to_json()),
        })
        .collect();
    let rejected = items.len() - accepted;
    let body = format!(r#"{{"accepted":{accepted},"rejected":{rejected},"items":[{}]}}"#, items.join(","));
    dto::json_response(StatusCode::ACCEPTED, body.into())
}

/// Cuts a body into the texts of its items, as the bytes arrive. It only finds where items end; their content is checked one by one.
struct Splitter {
    buffer: BytesMut,
    by_line: bool,
    /// Bytes of the buffer that were already scanned.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    place: Place,
}

/// Where in an array the splitter is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeArray,
    BeforeFirst,
    BeforeItem,
    InItem,
    AfterItem,
    AfterArray,
}

impl Splitter {
    fn lines() -> Splitter {
        let place = Place::BeforeItem;
        Splitter { buffer: BytesMut::new(), by_line: true, seen: 0, depth: 0, in_string: false, escaped: false, place }
    }

    fn array() -> Splitter {
        Splitter { by_line: false, place: Place::BeforeArray, ..Splitter::lines() }
    }

    /// The next whole item in the buffer, if there is one.
    fn next(&mut self, at_end: bool) -> Result<Option<BytesMut>, ApiError> {
        let item = if self.by_line { self.next_line(at_end) } else { self.next_element()? };
        let unfinished = self.buffer.len();
        if item.as_ref().map_or(unfinished, BytesMut::len) > MAX_BODY {
            return Err(ApiError::body_too_large(format!("a job of the batch is larger than {MAX_BODY} bytes")));
        }
        Ok(item)
    }

    /// The next line that is not blank.
    fn next_line(&mut self, at_end: bool) -> Option<BytesMut> {
        loop {
            let line = match self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let line = self.buffer.split_to(self.seen + end);
                    self.buffer.advance(1);
                    line
                }
                None if at_end && !self.buffer.is_empty() => self.buffer.split(),
                None => {
                    self.seen = self.buffer.len();
                    return None;
                }
            };
            self.seen = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    fn next_element(&mut self) -> Result<Option<BytesMut>, ApiError> {
        while let Some(byte) = self.buffer.get(self.seen).copied() {
            if self.place == Place::InItem {
                if self.ends_item(byte) {
                    let item = self.buffer.split_to(self.seen);
                    self.seen = 0;
                    self.place = Place::AfterItem;
                    return Ok(Some(item));
                }
                self.seen += 1;
                continue;
            }
            if !byte.is_ascii_whitespace() {
                self.place = match (self.place, byte) {
                    (Place::BeforeArray, b'[') => Place::BeforeFirst,
                    (Place::BeforeFirst | Place::AfterItem, b']') => Place::AfterArray,
                    (Place::AfterItem, b',') => Place::BeforeItem,
                    (Place::BeforeFirst | Place::BeforeItem, b',' | b']') => {
                        return Err(not_an_array("an item is missing"));
                    }
                    (Place::BeforeFirst | Place::BeforeItem, _) => {
                        self.place = Place::InItem;
                        continue; // The byte belongs to the item.
                    }
                    (Place::AfterArray, _) => return Err(not_an_array("something follows the array")),
                    _ => return Err(not_an_array("the body of a batch must be an array of jobs")),
                };
            }
            self.buffer.advance(1);
        }
        Ok(None)
    }

    /// Whether this byte is the first that no longer belongs to the item.
    fn ends_item(&mut self, byte: u8) -> bool {
        if self.in_string {
            (self.in_string, self.escaped) = match (self.escaped, byte) {
                (true, _) => (true, false),
                (false, b'\\') => (true, true),
                (false, b'"') => (false, false),
                (false, _) => (true, false),
            };
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' if self.depth > 0 => self.depth -= 1,
            b',' | b']' if self.depth == 0 => return true,
            _ => {}
        }
        false
    }

    fn finish(&self) -> Result<(), ApiError> {
        if self.by_line || self.place == Place::AfterArray {
            return Ok(());
        }
        Err(not_an_array("the body ends before the array does"))
    }
}

fn not_an_array(detail: &str) -> ApiError {
    ApiError::bad_request("malformed_json", detail)
}
