//! A vendor that refuses our credentials, as people see it: since when, until when at most, and what it said.
//!
//! Never shows a credential, and never decides when the vendor is asked again (see `limit::breaker`).

use serde_json::value::RawValue;

use super::App;
use crate::{clock::Time, limit::breaker::Standing, vendor::Vendor};

/// Why a vendor's jobs wait for its credentials.
pub(super) struct Refused {
    pub(super) since: Option<Time>,
    /// When one call goes out to see; nothing while that call is awaited.
    pub(super) until: Option<Time>,
    /// Why they were refused last, as in a job's `error`, with `at`.
    pub(super) last_error: Option<Box<RawValue>>,
}

/// Nothing while the vendor takes our credentials.
pub(super) async fn refused(app: &App, vendor: &Vendor) -> Option<Refused> {
    let breaker = &vendor.login.breaker;
    let until = match app.breakers.look(breaker).await {
        Standing::Closed => return None,
        Standing::Open { until } => Some(app.clock.time_at(until)),
        Standing::HalfOpen => None,
    };
    let opened = app.breakers.opened(breaker);
    let since = opened.as_ref().map(|opened| app.clock.time_at(opened.since));
    let last_error = opened.and_then(|opened| serde_json::from_str(opened.why?.as_ref()).ok());
    Some(Refused { since, until, last_error })
}
