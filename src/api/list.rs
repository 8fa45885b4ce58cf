//! `GET /jobs`: lists jobs by vendor, status, tenant, tag, error and time, page by page.
//!
//! Never counts all jobs: a page reads a bounded number of them, and may be short.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{
    App,
    access::By,
    body::{self, Params},
    dto,
    error::ApiError,
    filters::Filters,
};
use crate::{clock::Time, job::JobId, store::Slice};

const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 500;

/// `GET /jobs`
pub(super) async fn list(State(app): State<Arc<App>>, by: By, request: Request) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let limit = params.parse::<usize>("limit", "a number from 1 to 500")?.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(body::invalid_parameter("limit", "must be a number from 1 to 500"));
    }
    let filter = Filters::of_query(&mut params)?.read(&by, body::invalid_parameter)?;
    let before = params.take("cursor")?.map(|cursor| read_cursor(&cursor).map(JobId::from_bytes)).transpose()?;
    params.finish()?;
    let page = app.store.list(by.sees(), &filter, Slice::page(before, limit)).await?;
    let cursor = page.next.map(|id| write_cursor(id.as_bytes()));
    Ok(dto::page(&page.jobs, cursor.as_deref()))
}

pub(super) fn read_time(params: &mut Params, name: &str) -> Result<Option<Time>, ApiError> {
    params.parse(name, "a time such as 2026-11-22T15:00:00Z")
}

pub(super) fn write_cursor(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A cursor of so many bytes.
pub(super) fn read_cursor<const N: usize>(text: &str) -> Result<[u8; N], ApiError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    let invalid =
        || ApiError::unprocessable("invalid_cursor", "this cursor was not issued here; start again without one");
    bytes.ok_or_else(invalid)
}
