//! Which jobs a caller means: the same filters in the query of a list and in the body of a bulk change.
//!
//! Never widens what a caller may see: a key of one tenant means that tenant's jobs, whatever it says.

use serde::Deserialize;

use super::{
    access::By,
    body::{Params, check_name},
    error::{ApiError, quoted},
};
use crate::{
    clock::Time,
    job::{FailureCode, Status},
    store::Filter,
};

/// As they were sent. What is not there, or null, matches all jobs.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Filters {
    status: Option<String>,
    vendor: Option<String>,
    tenant: Option<String>,
    tag: Option<String>,
    code: Option<String>,
    created_after: Option<String>,
    created_before: Option<String>,
}

impl Filters {
    pub(super) fn of_query(params: &mut Params) -> Result<Filters, ApiError> {
        Ok(Filters {
            status: params.take("status")?,
            vendor: params.take("vendor")?,
            tenant: params.take("tenant")?,
            tag: params.take("tag")?,
            code: params.take("code")?,
            created_after: params.take("created_after")?,
            created_before: params.take("created_before")?,
        })
    }

    /// Whether they match all jobs.
    pub(super) fn are_none(&self) -> bool {
        *self == Filters::default()
    }

    /// Checks them. `wrong` makes the error from the name of a filter and what is wrong with it.
    pub(super) fn read(self, by: &By, wrong: impl Fn(&str, &str) -> ApiError) -> Result<Filter, ApiError> {
        let name = |name: &str, text: Option<String>| match text.as_deref().map_or(Ok(()), check_name) {
            Ok(()) => Ok(text),
            Err(what) => Err(wrong(name, what)),
        };
        let time = |name: &str, text: Option<String>| {
            let bad = |text: &str| format!("is {}; it must be a time such as 2026-11-22T15:00:00Z", quoted(text));
            text.map(|text| text.parse::<Time>().map_err(|_| wrong(name, &bad(&text)))).transpose()
        };
        let status = self.status.map(|text| one_of(&text, &Status::ALL, Status::as_str));
        let code = self.code.map(|text| one_of(&text, &FailureCode::ALL, FailureCode::as_str));
        Ok(Filter {
            statuses: status.transpose().map_err(|what| wrong("status", &what))?.into_iter().collect(),
            vendor: name("vendor", self.vendor)?,
            tenant: by.tenant(name("tenant", self.tenant)?.as_deref())?.map(|tenant| tenant.to_string()),
            tag: name("tag", self.tag)?,
            code: code.transpose().map_err(|what| wrong("code", &what))?,
            created_after: time("created_after", self.created_after)?,
            created_before: time("created_before", self.created_before)?,
            walk_began: None,
        })
    }
}

/// The one with this name, or what it must be.
fn one_of<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let names = || all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", ");
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| format!("must be one of: {}", names()))
}
