//! The limits in force of a vendor's pool: shown, replaced by live limits, and restored to those of the file.
//!
//! Never decides what a limit may be: the checks of the config do.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    App,
    access::By,
    body::{self, NoParams},
    dto,
    error::{ApiError, FieldError},
    path::NamedVendor,
    vendors,
};
use crate::{
    clock::Time,
    config::{Written, parse_limits, write_limit},
    in_force::Expected,
    limit::Limit,
    vendor::Vendor,
};

#[derive(Serialize)]
struct LimitsView {
    version: u64,
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    limits: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsBody<'a> {
    #[serde(borrow)]
    limits: &'a RawValue,
}

/// `GET /vendors/{name}/limits`
pub(super) async fn find(
    State(app): State<Arc<App>>,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
) -> Result<Response, ApiError> {
    Ok(view(&app, &vendor))
}

/// `PUT /vendors/{name}/limits`, with `If-Match` and `{"limits": ["50/s"]}`.
pub(super) async fn set(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
    request: Request,
) -> Result<Response, ApiError> {
    body::needs_json(request.headers())?;
    let expected = expected(request.headers());
    let limits = read(&body::read(request, body::MAX_BODY).await?)?;
    let Some(expected) = expected else {
        let detail = "send If-Match with the ETag of GET, or If-Match: * to replace whatever is in force";
        return Err(ApiError::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", detail));
    };
    change(&app, &by, &vendor, &expected, Some(&limits)).await
}

/// `DELETE /vendors/{name}/limits`: the limits of the file are in force again.
pub(super) async fn clear(
    State(app): State<Arc<App>>,
    by: By,
    _: NoParams,
    NamedVendor(vendor): NamedVendor,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    change(&app, &by, &vendor, &expected(&headers).unwrap_or(Expected::Any), None).await
}

async fn change(
    app: &App,
    By(caller): &By,
    vendor: &Vendor,
    expected: &Expected,
    limits: Option<&[Limit]>,
) -> Result<Response, ApiError> {
    let pool = &vendor.config.pool;
    if !app.limits.set_live(&*app.limiter, pool, expected, limits, &caller.by).await? {
        let detail = "the limits were changed since you read them; read them again and decide anew";
        return Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail));
    }
    app.wake_pool(pool).await;
    app.overview.answers.forget(vendors::LIST);
    match limits.map(crate::config::write_limits) {
        Some(limits) => tracing::info!(by = %caller.by, %pool, limits, "live limits were set"),
        None => tracing::info!(by = %caller.by, %pool, "live limits were removed"),
    }
    Ok(view(app, vendor))
}

fn read(raw: &[u8]) -> Result<Vec<Limit>, ApiError> {
    let body: LimitsBody<'_> = body::read_object(raw, r#"must be {"limits": ["50/s"]}, say, and nothing else"#)?;
    let errors = |errors: Vec<(String, String)>| {
        ApiError::invalid_fields(errors.into_iter().map(|(pointer, detail)| FieldError { pointer, detail }).collect())
    };
    parse_limits(body.limits.get()).map_err(errors)
}

/// The versions in `If-Match`. A tag that Fetchgate did not issue matches nothing.
fn expected(headers: &HeaderMap) -> Option<Expected> {
    let values = headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok());
    let tags: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    if tags.contains(&"*") {
        return Some(Expected::Any);
    }
    let version = |tag: &&str| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
    headers.contains_key(header::IF_MATCH).then(|| Expected::OneOf(tags.iter().filter_map(version).collect()))
}

fn view(app: &App, vendor: &Vendor) -> Response {
    let terms = app.limits.get(&vendor.config.pool).expect("every vendor's pool is in the config");
    let view = LimitsView {
        version: terms.version,
        source: if terms.live_since.is_some() { "live" } else { "file" },
        since: terms.live_since,
        by: terms.live_by,
        limits: terms.limits.iter().map(write_limit).collect(),
    };
    let mut response = dto::json(StatusCode::OK, &view);
    let tag = format!("\"{}\"", terms.version);
    response.headers_mut().insert(header::ETAG, HeaderValue::from_str(&tag).expect("digits in quotes"));
    response
}
