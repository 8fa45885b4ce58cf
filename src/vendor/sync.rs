//! Vendors that answer in the reply.

use bytes::Bytes;

use super::{Vendor, as_json};
use crate::job::{Failure, lifecycle::Step};

/// A 2xx reply is the data.
pub(super) fn read(vendor: &Vendor, body: Bytes) -> Result<Step, Failure> {
    let data = as_json(&body)?;
    vendor.reported_failure(&data)?;
    // Untouched data stays in the buffer that it arrived in.
    let untouched = vendor.config.clean.is_noop() && data.get().len() == body.len();
    Ok(Step::Done { result: if untouched { body } else { vendor.cleaned(&data)? } })
}
