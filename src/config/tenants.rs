//! Checks what tenants may do: `[tenants.NAME]`, and `[tenant_defaults]` for all others.
//!
//! Never counts anything (see `api::admission` and the stores).

use std::{collections::BTreeMap, sync::Arc};

use toml::Spanned;

use super::{
    SubmitRate, Tenant, Tenants,
    check::{Check, optional, quoted_key},
    limits, raw, verify,
};
use crate::{job::Lane, limit::Per, vendor::verify::hmac::Key};

const MOST_TENANTS: usize = 100_000;
const MOST_WAITING: u64 = 1_000_000_000;
/// The most that bounds of waiting bytes can be.
pub(super) const MOST_BYTES: u64 = 1_000_000_000_000_000;

/// `None` if any of it is wrong.
pub(super) fn tenants(
    cx: &mut Check<'_>,
    named: &BTreeMap<String, Spanned<raw::Tenant>>,
    defaults: &raw::Tenant,
) -> Option<Tenants> {
    if named.len() > MOST_TENANTS {
        let what = format!("{} tenants are too many", named.len());
        return cx.refuse("tenants", &(0..0), what, format!("Have at most {MOST_TENANTS}"));
    }
    let others = tenant(cx, "tenant_defaults", defaults);
    let mut checked = BTreeMap::new();
    for (name, raw) in named {
        let key = format!("tenants.{}", quoted_key(name));
        if !Lane::is_tenant(name) {
            let what = "no tenant can have this name";
            cx.problem(&key, &raw.span(), what, format!("Use {}", Lane::TENANT_FORM));
        }
        let own = tenant(cx, &key, raw.get_ref());
        if let (Some(own), Some(others)) = (own, &others) {
            let submit = own.submit.or(others.submit);
            let max_waiting = own.max_waiting.or(others.max_waiting);
            let max_waiting_bytes = own.max_waiting_bytes.or(others.max_waiting_bytes);
            let of_all = || others.webhook_secret.clone();
            let webhook_secret = if own.webhook_secret.is_empty() { of_all() } else { own.webhook_secret };
            checked.insert(Arc::from(name.as_str()), Tenant { submit, max_waiting, max_waiting_bytes, webhook_secret });
        }
    }
    (checked.len() == named.len()).then_some(Tenants { named: checked, others: others? })
}

fn tenant(cx: &mut Check<'_>, key: &str, raw: &raw::Tenant) -> Option<Tenant> {
    let submit = optional(raw.submit.as_ref(), |text| {
        let limit = limits::short(cx, &format!("{key}.submit"), text)?;
        match limit.per {
            Per::Rolling(per) => Some(SubmitRate { jobs: limit.calls, per }),
            Per::Day(_) | Per::Month(_) => None,
        }
    });
    let max_waiting =
        optional(raw.max_waiting.as_ref(), |most| cx.number(&format!("{key}.max_waiting"), most, 1..=MOST_WAITING));
    let max_waiting_bytes = optional(raw.max_waiting_bytes.as_ref(), |most| {
        cx.number(&format!("{key}.max_waiting_bytes"), most, 1..=MOST_BYTES)
    });
    let secret = optional(raw.webhook_secret.as_ref(), |secret| {
        verify::of_key(cx, &format!("{key}.webhook_secret"), secret, Key::Whsec)
    });
    let (submit, webhook_secret) = (submit?, secret?.unwrap_or_default());
    Some(Tenant { submit, max_waiting: max_waiting?, max_waiting_bytes: max_waiting_bytes?, webhook_secret })
}
