//! `GET /jobs`: lists jobs by vendor, status, tenant, tag and time, page by page.
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
};
use crate::{
    clock::Time,
    job::{JobId, Status},
    store::Filter,
};

const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 500;

/// `GET /jobs`
pub(super) async fn list(State(app): State<Arc<App>>, by: By, request: Request) -> Result<Response, ApiError> {
    let mut params = Params::of(request.uri());
    let limit = params.parse::<usize>("limit", "a number from 1 to 500")?.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(body::invalid_parameter("limit", "must be a number from 1 to 500"));
    }
    let filter = Filter {
        status: read_status(&mut params)?,
        vendor: params.text("vendor")?,
        tenant: by.tenant(params.text("tenant")?.as_deref())?.map(|tenant| tenant.to_string()),
        tag: params.text("tag")?,
        created_after: read_time(&mut params, "created_after")?,
        created_before: read_time(&mut params, "created_before")?,
        before: params.take("cursor")?.map(|cursor| read_cursor(&cursor)).transpose()?,
        limit,
    };
    params.finish()?;
    let page = app.store.list(by.sees(), filter).await?;
    let cursor = page.next.map(|id| BASE64_URL_SAFE_NO_PAD.encode(id.as_bytes()));
    Ok(dto::page(&page.jobs, cursor.as_deref()))
}

fn read_status(params: &mut Params) -> Result<Option<Status>, ApiError> {
    let Some(text) = params.take("status")? else { return Ok(None) };
    let status = Status::ALL.into_iter().find(|status| status.as_str() == text);
    let expected = "must be pending, processing, complete, failed, cancelled or expired";
    status.map(Some).ok_or_else(|| body::invalid_parameter("status", expected))
}

pub(super) fn read_time(params: &mut Params, name: &str) -> Result<Option<Time>, ApiError> {
    params.parse(name, "a time such as 2026-11-22T15:00:00Z")
}

fn read_cursor(text: &str) -> Result<JobId, ApiError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let invalid =
        || ApiError::unprocessable("invalid_cursor", "this cursor was not issued here; start again without one");
    bytes.map(JobId::from_bytes).ok_or_else(invalid)
}
