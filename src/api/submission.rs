//! Checks what a caller submits: a body becomes a job that can be stored, or a list of everything that is wrong.
//!
//! Never reads the payload, except for the values that the vendor's templates use.

use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{
    App,
    access::By,
    error::{ApiError, FieldError, quoted},
};
use crate::{
    clock::Time,
    config::parse_duration,
    job::{Deadline, Idempotency, Lane, NewJob, Priority, ResultWebhook, Trace},
    json,
};

const MAX_TAGS: usize = 16;
const MAX_TAG_CHARS: usize = 64;

/// The fields of a submission, as far as they could be read.
#[derive(Default)]
struct Fields<'a> {
    payload: Option<&'a RawValue>,
    vendor: Option<String>,
    tenant: Option<String>,
    priority: Priority,
    not_before: Option<Time>,
    deadline: Option<Deadline>,
    tags: Vec<String>,
    webhook: Option<ResultWebhook>,
}

/// Reads one submission. `body` is JSON that has been checked.
pub(super) fn parse(app: &App, by: &By, body: &RawValue) -> Result<NewJob, ApiError> {
    let now = app.clock.now();
    let members = json::members(body).ok_or_else(|| {
        ApiError::field("invalid_field", "", "the body must be an object with a payload and a vendor")
    })?;
    let mut fields = Fields::default();
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::with_capacity(members.len().min(16));
    for (name, value) in &members {
        let read = if seen.contains(&&**name) {
            Err("is given more than once".into())
        } else {
            fields.read(app, name, value, now)
        };
        seen.push(name);
        if let Err(detail) = read {
            let name: String = name.chars().take(100).collect();
            let name = name.replace('~', "~0").replace('/', "~1");
            errors.push(FieldError { pointer: format!("/{name}"), detail });
        }
        if errors.len() == 32 {
            break; // Enough to fix at once.
        }
    }
    let Some(payload) = fields.payload else {
        errors.push(FieldError {
            pointer: "/payload".into(),
            detail: "is missing; any JSON value will do, null too".into(),
        });
        return Err(ApiError::invalid_fields(errors));
    };
    if !errors.is_empty() {
        return Err(ApiError::invalid_fields(errors));
    }
    let vendor = known_vendor(app, fields.vendor.as_deref())?;
    let tenant = by.tenant(fields.tenant.as_deref())?.unwrap_or_else(|| Arc::from("default"));
    let id = app.ids.next(now);
    vendor
        .check(id, &tenant, payload)
        .map_err(|error| ApiError::field("invalid_field", &error.pointer, error.detail))?;
    let default_deadline = vendor.config.deadline.map(|within| Deadline { at: now.plus(within), within: Some(within) });
    let (due_at, deadline) = (fields.not_before.map_or(now, |at| at.max(now)), fields.deadline.or(default_deadline));
    if deadline.is_some_and(|deadline| deadline.at <= due_at) {
        let detail =
            format!("cannot be met: because of not_before the job begins at {} at the earliest", due_at.rfc3339());
        return Err(ApiError::field("infeasible", "/deadline", detail).earliest(due_at));
    }
    let webhook = fields.webhook.map(|webhook| webhook.of(&tenant));
    let lane = Lane { vendor: vendor.name().clone(), priority: fields.priority, tenant };
    let payload = Bytes::copy_from_slice(payload.get().as_bytes());
    Ok(NewJob { deadline, tags: fields.tags, webhook, ..NewJob::new(id, lane, payload, due_at) })
}

fn known_vendor<'a>(app: &'a App, named: Option<&str>) -> Result<&'a Arc<crate::vendor::Vendor>, ApiError> {
    let Some(name) = named.or(app.default_vendor.as_deref()) else {
        let detail = "is missing, and the config has no default_vendor";
        return Err(ApiError::field("invalid_field", "/vendor", detail));
    };
    app.vendors.get(name).ok_or_else(|| {
        let known: Vec<&str> = app.vendors.iter().map(|vendor| &**vendor.name()).take(20).collect();
        let detail = format!("no vendor is called {}; there are: {}", quoted(name), known.join(", "));
        ApiError::field("unknown_vendor", "/vendor", detail)
    })
}

impl<'a> Fields<'a> {
    fn read(&mut self, app: &App, name: &str, value: &'a RawValue, now: Time) -> Result<(), String> {
        match name {
            "payload" => self.payload = Some(value),
            "vendor" => self.vendor = Some(typed(value, "a vendor's name")?),
            // serde would take {"high": null} for the word too.
            "priority" if value.get().starts_with('{') => return Err("must be a string".into()),
            "priority" => self.priority = typed(value, r#""high", "normal" or "low""#)?,
            "not_before" => self.not_before = Some(read_moment(value, now)?.0),
            "deadline" => self.deadline = Some(read_deadline(value, now)?),
            "tenant" => self.tenant = Some(read_tenant(value)?),
            "tags" => self.tags = read_tags(value)?,
            "callback_url" => {
                let url: Option<String> = typed(value, "a URL")?;
                self.webhook = url.map(|url| app.webhooks.webhook(&url)).transpose()?;
            }
            _ => {
                return Err("is not a field of a job; what is for the vendor goes into payload".into());
            }
        }
        Ok(())
    }
}

fn typed<'a, T: Deserialize<'a>>(value: &'a RawValue, expected: &str) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|_| format!("must be {expected}"))
}

/// A moment, and the duration from now if it was given as one.
fn read_moment(value: &RawValue, now: Time) -> Result<(Time, Option<std::time::Duration>), String> {
    let expected = r#"a time such as "2026-11-22T15:00:00Z", or a duration from now such as "30s""#;
    let text: String = typed(value, expected)?;
    if let Ok(within) = parse_duration(&text) {
        return Ok((now.plus(within), Some(within)));
    }
    text.parse().map(|at| (at, None)).map_err(|_| format!("must be {expected}"))
}

fn read_deadline(value: &RawValue, now: Time) -> Result<Deadline, String> {
    let (at, within) = read_moment(value, now)?;
    if at <= now {
        return Err("is in the past".into());
    }
    Ok(Deadline { at, within })
}

fn read_tenant(value: &RawValue) -> Result<String, String> {
    let tenant: String = typed(value, "a string")?;
    if Lane::is_tenant(&tenant) { Ok(tenant) } else { Err(format!("must have {}", Lane::TENANT_FORM)) }
}

fn read_tags(value: &RawValue) -> Result<Vec<String>, String> {
    let tags: Vec<String> = typed(value, "an array of strings")?;
    let fits = |tag: &String| (1..=MAX_TAG_CHARS).contains(&tag.chars().count());
    if tags.len() > MAX_TAGS || !tags.iter().all(fits) {
        return Err(format!("must be at most {MAX_TAGS} strings of 1 to {MAX_TAG_CHARS} characters"));
    }
    Ok(tags)
}

/// The caller's `Idempotency-Key`, if there is one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.as_bytes();
    if headers.get_all("idempotency-key").iter().count() > 1 {
        return Err(ApiError::bad_request("invalid_idempotency_key", "Idempotency-Key is given more than once"));
    }
    if !(1..=255).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        let detail = "Idempotency-Key must have 1 to 255 visible ASCII characters, without spaces";
        return Err(ApiError::bad_request("invalid_idempotency_key", detail));
    }
    Ok(Some(String::from_utf8_lossy(key).into_owned()))
}

/// The caller's span, if its `traceparent` can be read; else it is ignored, as the standard wants it.
pub(super) fn caller(headers: &HeaderMap) -> Option<Trace> {
    let mut all = headers.get_all("traceparent").iter();
    let only = all.next().filter(|_| all.next().is_none())?;
    Trace::parse(only.to_str().ok()?)
}

/// What makes a submission the same as an earlier one: its key and its raw bytes.
pub(super) fn idempotency(key: String, raw_body: &[u8]) -> Idempotency {
    Idempotency { key, body_hash: Sha256::digest(raw_body).into() }
}
