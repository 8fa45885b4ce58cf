//! One vendor, checked: its URL, what is sent, how often it is tried; and the pools that vendors share.
//!
//! Never checks how a vendor answers (see `kind`) nor a single limit (see `limits`).

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use toml::Spanned;
use url::Url;

use super::{
    Kind, Vendor, auth, breaker,
    check::{Check, LONGEST, Whole, all, optional, quoted_key, shown},
    connection,
    headers::headers,
    kind, limits, polling, raw, replies,
    templates::{self, Sends, url_template},
};
use crate::{
    job::retry::Retry,
    limit::{Limit, PoolLimits},
    vendor::clean::Clean,
};

const LONGEST_CALL: Duration = Duration::from_secs(600);
const MOST_REDACTED: usize = 64;

/// Which limits a vendor states for its pool.
struct Stated<'a> {
    vendor: &'a str,
    pool: Arc<str>,
    span: Range<usize>,
    /// `None` when there is no such key; `Some(None)` when what is there is wrong.
    limits: Option<Option<Vec<Limit>>>,
}

impl Stated<'_> {
    fn key(&self) -> String {
        format!("vendors.{}.limits", quoted_key(self.vendor))
    }
}

/// Checks all vendors; those that are wrong are left out, with problems noted.
pub(super) fn vendors(
    cx: &mut Check<'_>,
    raw: &BTreeMap<String, Spanned<raw::Vendor>>,
    public_url: Option<&Url>,
) -> (Vec<Vendor>, Vec<PoolLimits>) {
    let mut checked = Vec::new();
    let mut stated = Vec::new();
    for (name, vendor) in raw {
        let key = format!("vendors.{}", quoted_key(name));
        cx.filled_in.clear();
        if !is_name(name) {
            let what = format!("{} is not a name for a vendor", shown(name));
            cx.problem(&key, &vendor.span(), what, "Use 1 to 64 of a-z, 0-9, _ and -");
        }
        let pool = match &vendor.get_ref().pool {
            Some(pool) => pool_name(cx, &format!("{key}.pool"), pool),
            None => Some(name.as_str().into()),
        };
        let limits = vendor.get_ref().limits.as_ref();
        let span = limits.map_or(vendor.span(), Spanned::span);
        let limits = limits.map(|raw| limits::limits(cx, &format!("{key}.limits"), raw));
        if let Some(pool) = &pool {
            stated.push(Stated { vendor: name, pool: pool.clone(), span, limits });
        }
        let whole = Whole { key: &key, raw: vendor.get_ref(), span: vendor.span() };
        if let (Some(vendor), Some(pool)) = (vendor_alone(cx, &whole, public_url), pool) {
            let secrets = cx.filled_in.drain(..).collect();
            checked.push(Vendor { name: name.as_str().into(), pool, secrets, ..vendor });
        }
    }
    (checked, pools(cx, stated))
}

fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}

fn pool_name(cx: &mut Check<'_>, key: &str, raw: &raw::Text) -> Option<Arc<str>> {
    let text = cx.text(key, raw)?;
    if is_name(&text.text) {
        return Some(text.text.into());
    }
    cx.refuse(key, &text.span, format!("{} is not a name for a pool", text.shown), "Use 1 to 64 of a-z, 0-9, _ and -")
}

/// Limits belong to the pool: one vendor of it states them, or several state the same.
fn pools(cx: &mut Check<'_>, stated: Vec<Stated<'_>>) -> Vec<PoolLimits> {
    let mut by_pool: BTreeMap<Arc<str>, Vec<Stated<'_>>> = BTreeMap::new();
    for one in stated {
        by_pool.entry(one.pool.clone()).or_default().push(one);
    }
    let mut pools = Vec::new();
    for (pool, members) in by_pool {
        let (with, without): (Vec<_>, Vec<_>) = members.into_iter().partition(|one| one.limits.is_some());
        let Some(first) = with.first() else {
            for one in &without {
                let mend = "Write limits = [\"50/s\"], say; limits = [] states that there are none";
                cx.problem(&one.key(), &one.span, "this key is required", mend);
            }
            continue;
        };
        for other in &with[1..] {
            if let (Some(Some(mine)), Some(Some(others))) = (&first.limits, &other.limits)
                && mine != others
            {
                let place = cx.place(&first.span);
                let what = format!("pool {pool:?} has other limits in vendors.{} ({place})", quoted_key(first.vendor));
                let mend = "Make the two the same, remove this one, or name another pool";
                cx.problem(&other.key(), &other.span, what, mend);
            }
        }
        if let Some(Some(limits)) = &first.limits {
            pools.push(PoolLimits { pool, limits: limits.clone(), formers: Vec::new() });
        }
    }
    pools
}

/// Everything but name, pool and secrets, which the caller fills in.
fn vendor_alone(cx: &mut Check<'_>, whole: &Whole<'_>, public_url: Option<&Url>) -> Option<Vendor> {
    let raw = whole.raw;
    let method = cx.method(&whole.key("method"), &raw.method);
    let url = cx.needed(&whole.key("url"), &whole.span, &raw.url, "Write url = \"https://vendor.example/path\"");
    let url = url.and_then(|url| url_template(cx, &whole.key("url"), url));
    let body = optional(raw.body.as_ref(), |body| templates::body(cx, &whole.key("body"), body, method.as_ref()));
    let auth = optional(raw.auth.as_ref(), |raw| auth::auth(cx, whole, raw));
    let (known_body, known_auth) = (body.iter().flatten().next(), auth.iter().flatten().next());
    let headers = headers(cx, whole, known_auth, known_body);
    let known_headers = headers.as_ref().map(|headers| &*headers.templates);
    let sends = Sends { url: url.as_ref(), body: known_body, headers: known_headers };
    let kind = kind::kind(cx, whole, &sends, public_url);
    let (tls, proxy) = (connection::tls(cx, whole), connection::proxy(cx, whole));
    let concurrency = cx.number(&whole.key("concurrency"), &raw.concurrency, 1..=10_000);
    let timeout = cx.duration(&whole.key("timeout"), &raw.timeout, LONGEST_CALL);
    let retry = retry(cx, whole);
    let deadline = optional(raw.deadline.as_ref(), |text| cx.duration(&whole.key("deadline"), text, LONGEST));
    let answer_within = cx.duration(&whole.key("answer_within"), &raw.answer_within, LONGEST);
    let open = optional(raw.open.as_ref(), |open| cx.number(&whole.key("open"), open, 1..=1_000_000_000));
    let failed = optional(raw.failed.as_ref(), |failed| replies::matching(cx, &whole.key("failed"), failed));
    let answers = replies::replies(cx, whole, kind.as_ref());
    polling::says_done(cx, whole, kind.as_ref(), answers.as_deref());
    let slow_down = replies::slow_down(cx, whole);
    let json_only = replies::json_only(cx, whole);
    let rate_headers = replies::rate_headers(cx, whole);
    let clean = clean(cx, whole);
    let breaker = match &raw.breaker {
        raw::Breaker::Off => Some(None),
        raw::Breaker::Table(table) => breaker::breaker(cx, &whole.key("breaker"), table, timeout).map(Some),
    };
    if let Some(Kind::Sync) = kind {
        refuse_for_sync(cx, whole);
    }
    let headers = headers?;
    Some(Vendor {
        name: "".into(),
        pool: "".into(),
        kind: kind?,
        method: method?,
        url: url?,
        body: body?,
        headers: headers.fixed,
        header_templates: headers.templates,
        idempotency_header: headers.idempotency,
        auth: auth?,
        tls: tls?,
        proxy: proxy?,
        concurrency: usize::try_from(concurrency?).ok()?,
        timeout: timeout?,
        retry: retry?,
        deadline: deadline?,
        answer_within: answer_within?,
        open: open?,
        at_most_once: raw.at_most_once.as_ref().is_some_and(|once| *once.get_ref()),
        rate_headers: rate_headers?,
        replies: answers?,
        failed: failed?,
        slow_down: slow_down?,
        json_only: json_only?,
        clean: clean?,
        secrets: Vec::new(),
        breaker: breaker?,
    })
}

/// Nothing stays open at a sync vendor.
fn refuse_for_sync(cx: &mut Check<'_>, whole: &Whole<'_>) {
    if let Some(open) = &whole.raw.open {
        let mend = "Remove it; it is for the kinds \"webhook\" and \"polling\"";
        cx.problem(&whole.key("open"), &open.span(), "a sync vendor answers at once", mend);
    }
}

fn retry(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Retry> {
    let raw = &whole.raw.retry;
    let attempts = cx.number(&whole.key("retry.attempts"), &raw.attempts, 1..=1000);
    let unanswered = cx.number(&whole.key("retry.unanswered"), &raw.unanswered, 0..=1000);
    let first = cx.duration(&whole.key("retry.first"), &raw.first, LONGEST);
    let max = cx.duration(&whole.key("retry.max"), &raw.max, LONGEST);
    if let (Some(first), Some(max)) = (first, max)
        && first > max
    {
        // Whichever of the two was written is the one to mend.
        let (name, span) =
            if cx.sources.is_default(&raw.first.span()) { ("max", &raw.max) } else { ("first", &raw.first) };
        let what = "the first pause is longer than the longest";
        return cx.refuse(
            &whole.key(&format!("retry.{name}")),
            &span.span(),
            what,
            "Make retry.first at most retry.max",
        );
    }
    let (attempts, unanswered) = (u32::try_from(attempts?).ok()?, u32::try_from(unanswered?).ok()?);
    Some(Retry { attempts, first: first?, max: max?, unanswered })
}

fn clean(cx: &mut Check<'_>, whole: &Whole<'_>) -> Option<Clean> {
    let raw = &whole.raw.clean;
    let key = whole.key("clean.redact");
    if let Some(last) = raw.redact.get(MOST_REDACTED) {
        return cx.refuse(&key, &last.span(), "these are too many", format!("Have at most {MOST_REDACTED}"));
    }
    let pointers = raw.redact.iter().enumerate().map(|(i, text)| cx.pointer(&format!("{key}[{i}]"), text));
    Some(Clean { trim: raw.trim, drop_null: raw.drop_null, redact: all(pointers)? })
}
