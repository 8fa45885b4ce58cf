//! What the path of a request names: its parts, a job, a vendor.
//!
//! Never says whether a caller may see what is named (see `access`).

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::{App, error::ApiError};
use crate::{job::JobId, vendor::Vendor};

/// The parts of a path, with a problem for those that are not text.
pub(super) struct Segments<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let unreadable = |_| ApiError::new(StatusCode::NOT_FOUND, "not_found", "the path is not text in UTF-8");
        Path::<T>::from_request_parts(parts, state).await.map(|Path(parts)| Segments(parts)).map_err(unreadable)
    }
}

/// The id of a job, if it can be one.
pub(super) struct NamedJob(pub(super) JobId);

impl<S: Send + Sync> FromRequestParts<S> for NamedJob {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Segments(id) = Segments::<String>::from_request_parts(parts, state).await?;
        JobId::parse(&id).map(NamedJob).ok_or_else(ApiError::unknown_job)
    }
}

/// A vendor of the config.
pub(super) struct NamedVendor(pub(super) Arc<Vendor>);

impl FromRequestParts<Arc<App>> for NamedVendor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Segments(name) = Segments::<String>::from_request_parts(parts, app).await?;
        app.vendors.get(&name).cloned().map(NamedVendor).ok_or_else(|| ApiError::unknown_vendor(&name))
    }
}
