//! The keys of callers over HTTP: made, listed, deleted.
//!
//! Never shows a key but in the answer to the request that makes it.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    App,
    access::By,
    body::{self, NoParams},
    dto,
    error::{ApiError, FieldError},
    path::Segments,
};
use crate::{
    clock::Time,
    config::parse_duration,
    job::Lane,
    keys::{MOST_KEYS, NewKey, NotMade, RESERVED_NAMES, Scope},
    store::keys::KeyRecord,
};

/// No key is good for longer: a hundred years.
const LONGEST: Duration = Duration::from_secs(36_525 * 86_400);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    name: String,
    tenant: Option<String>,
    scopes: Vec<String>,
    expires_in: Option<String>,
}

#[derive(Serialize)]
struct KeyView<'a> {
    id: &'a str,
    /// Only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    name: &'a str,
    tenant: Option<&'a str>,
    scopes: Vec<&'a str>,
    created_at: Time,
    created_by: &'a str,
    expires_at: Option<Time>,
    last_used_at: Option<Time>,
}

impl<'a> KeyView<'a> {
    fn of(record: &'a KeyRecord, key: Option<&'a str>) -> KeyView<'a> {
        KeyView {
            id: &record.id,
            key,
            name: &record.name,
            tenant: record.tenant.as_deref(),
            scopes: record.scopes.split(' ').collect(),
            created_at: record.created_at,
            created_by: &record.created_by,
            expires_at: record.expires_at,
            last_used_at: record.last_used_at,
        }
    }
}

/// `POST /keys`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    By(caller): By,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    body::needs_json(request.headers())?;
    let raw = body::read(request, body::MAX_BODY).await?;
    let expected = r#"must be {"name": "billing", "tenant": "acme", "scopes": ["submit", "read"], "expires_in": "90d"}; without tenant the key is for all of them, without expires_in it does not expire"#;
    let new = checked(body::read_object(&raw, expected)?)?;
    let too_many = || {
        let detail = format!("there are {MOST_KEYS} keys, which is as many as there can be; delete some first");
        ApiError::new(StatusCode::CONFLICT, "too_many_keys", detail)
    };
    let (record, key) = app.access.keys.create(new, &caller.by).await.map_err(|why| match why {
        NotMade::TooMany => too_many(),
        NotMade::Store(error) => error.into(),
    })?;
    let KeyRecord { id, name, tenant, scopes, .. } = &record;
    tracing::info!(by = %caller.by, key = id, name, tenant, scopes, "a key was made");
    let mut response = dto::json(StatusCode::CREATED, &KeyView::of(&record, Some(key.reveal())));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A key that may be made, or everything that is wrong with it.
fn checked(wanted: KeyBody) -> Result<NewKey, ApiError> {
    let mut errors = Vec::new();
    let mut wrong = |pointer: &str, detail: String| errors.push(FieldError { pointer: pointer.to_owned(), detail });
    if !Lane::is_tenant(&wanted.name) || RESERVED_NAMES.contains(&&*wanted.name) {
        wrong("/name", format!("must have {}, and be none of {}", Lane::TENANT_FORM, RESERVED_NAMES.join(", ")));
    }
    if wanted.tenant.as_deref().is_some_and(|tenant| !Lane::is_tenant(tenant)) {
        wrong("/tenant", format!("must have {}", Lane::TENANT_FORM));
    }
    let mut scopes: Vec<Scope> = wanted.scopes.iter().filter_map(|name| Scope::from_text(name)).collect();
    if scopes.is_empty() || scopes.len() < wanted.scopes.len() {
        let known = Scope::ALL.map(Scope::as_str).join(", ");
        wrong("/scopes", format!("must be one or more of {known}"));
    } else if wanted.tenant.is_some() && scopes.iter().any(|scope| is_for_all_tenants(*scope)) {
        wrong("/scopes", "operate and admin are for all tenants: leave tenant out".to_owned());
    } else if wanted.tenant.is_none() && scopes != [Scope::Metrics] && !scopes.iter().any(|s| is_for_all_tenants(*s)) {
        wrong("/tenant", "is missing; a key for all tenants needs the scope operate or admin".to_owned());
    }
    scopes.sort_unstable();
    scopes.dedup();
    let expires_in = wanted.expires_in.map(|text| parse_duration(&text)).transpose();
    match &expires_in {
        Ok(Some(time)) if time.is_zero() || *time > LONGEST => {
            wrong("/expires_in", "must be from 1ms to 36525d".to_owned());
        }
        Ok(_) => {}
        Err(why) => wrong("/expires_in", format!("is not a duration: {why}")),
    }
    match expires_in {
        Ok(expires_in) if errors.is_empty() => {
            Ok(NewKey { name: wanted.name, tenant: wanted.tenant, scopes, expires_in })
        }
        _ => Err(ApiError::invalid_fields(errors)),
    }
}

fn is_for_all_tenants(scope: Scope) -> bool {
    matches!(scope, Scope::Operate | Scope::Admin)
}

/// `GET /keys`
pub(super) async fn list(State(app): State<Arc<App>>, _: NoParams) -> Result<Response, ApiError> {
    let keys = app.access.keys.list().await?;
    let views: Vec<KeyView<'_>> = keys.iter().map(|record| KeyView::of(record, None)).collect();
    Ok(dto::json(StatusCode::OK, &serde_json::json!({ "keys": views })))
}

/// `DELETE /keys/{id}`
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    By(caller): By,
    _: NoParams,
    Segments(id): Segments<String>,
) -> Result<Response, ApiError> {
    if !app.access.keys.delete(&id).await? {
        let detail = "there is no key with this id; GET /keys lists them";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_key", detail));
    }
    tracing::info!(by = %caller.by, key = id, "a key was deleted");
    Ok(StatusCode::NO_CONTENT.into_response())
}
