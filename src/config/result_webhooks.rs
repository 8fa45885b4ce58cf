//! The `[result_webhooks]` section, checked: what signs announcements of ends, how long they are tried, and where they may go.
//!
//! Never repeats a secret.

use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::{
    ResultWebhooks,
    addresses::is_origin,
    check::{Check, optional},
    raw, verify,
};
use crate::{
    guard::Guard,
    vendor::{http::Origin, verify::hmac::Key},
};

const LONGEST: Duration = Duration::from_secs(30 * 86_400);
const MOST_ALLOWED: usize = 256;

pub(super) fn result_webhooks(cx: &mut Check<'_>, raw: &raw::ResultWebhooks) -> Option<ResultWebhooks> {
    let key = "result_webhooks.secret";
    let secrets = optional(raw.secret.as_ref(), |secret| verify::of_key(cx, key, secret, Key::Whsec));
    let give_up_after = cx.duration("result_webhooks.give_up_after", &raw.give_up_after, LONGEST);
    let guard = allowed(cx, raw.allow.as_deref().unwrap_or_default());
    Some(ResultWebhooks { secrets: secrets?.unwrap_or_default(), give_up_after: give_up_after?, guard: guard? })
}

fn allowed(cx: &mut Check<'_>, raw: &[raw::Text]) -> Option<Guard> {
    let key = "result_webhooks.allow";
    if let Some(one_more) = raw.get(MOST_ALLOWED) {
        cx.problem(key, &one_more.span(), "these are too many", format!("Have at most {MOST_ALLOWED}"));
        return None;
    }
    let (mut guard, mut all_good) = (Guard::default(), true);
    for raw in raw {
        let Some(text) = cx.text(key, raw) else {
            all_good = false;
            continue;
        };
        let net = text.text.parse::<IpNet>().ok().filter(|net| net.addr() == net.network());
        let origin = Url::parse(&text.text).ok().filter(is_origin).as_ref().and_then(Origin::of);
        match (net, origin) {
            (Some(net), _) => guard.nets.push(net),
            (None, Some(origin)) => guard.origins.push(origin),
            (None, None) => {
                let what = format!("{} is neither a block of addresses nor an origin", text.shown);
                cx.problem(key, &text.span, what, r#"Write "10.0.0.0/8", or "http://hooks.internal:8080""#);
                all_good = false;
            }
        }
    }
    all_good.then_some(guard)
}
