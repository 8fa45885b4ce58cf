//! What vendors send: replies, callbacks and the proofs of callbacks; and what is sent to them.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use fetchgate::{
    clock::Time,
    config::parse,
    job::{Fetch, Job, JobId, Lane, NewJob, Priority, Stage, Status, VendorSaid, lifecycle::Step},
    json,
    vendor::{Reading, Registry, Silence, Vendor, http::Reply, verify::Verify},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use sha2::Sha256;

use super::{first_line, message};

pub(crate) const CONFIG: &str = include_str!("vendors.toml");
pub(crate) const NOW: Time = Time(1_795_000_000_000);
/// What a pool may be silent for at most, in seconds, whatever its vendor says.
const MAX_SILENCE: u64 = 3600;

static VENDORS: LazyLock<Registry> = LazyLock::new(|| {
    let config = parse(CONFIG, "vendors.toml", []).unwrap_or_else(|error| panic!("{error}"));
    Registry::new(&config, b"the secret of callbacks")
});

/// The vendor that an input names, else the first.
fn vendor(name: &[u8]) -> &'static Arc<Vendor> {
    let named = VENDORS.get(String::from_utf8_lossy(name).trim());
    named.or_else(|| VENDORS.iter().next()).expect("vendors")
}

fn job(vendor: &Vendor, payload: Bytes, is_polled: bool) -> Job {
    let lane = Lane { vendor: vendor.name().clone(), priority: Priority::Normal, tenant: "default".into() };
    let new = NewJob::new(JobId::first_at(NOW), lane, payload, NOW);
    let stage = if is_polled { Stage::Poll } else { Stage::Call };
    let ticket = is_polled.then(|| "ticket".to_owned());
    Job { status: Status::Processing, stage, ticket, ..Job::from(new) }
}

/// `VENDOR call|poll STATUS`, headers, a body: whatever a vendor replies has a meaning within bounds.
pub(crate) fn reply(data: &[u8]) {
    let (first, headers, body) = message(data);
    let mut words = first.split(|byte| *byte == b' ');
    let vendor = vendor(words.next().unwrap_or_default());
    let job = job(vendor, Bytes::from_static(b"{}"), words.next() == Some(b"poll") && vendor.config.asks_again());
    let status = words.next().and_then(|status| StatusCode::from_bytes(status).ok()).unwrap_or(StatusCode::OK);
    vendor.reads(&job, status, &headers, NOW);
    let reply = Reply { status, headers, body: Bytes::copy_from_slice(body), broken: None };
    check(&vendor.read(&job, Ok(reply), false, NOW));
}

fn check(reading: &Reading) {
    let silence = match reading.silence {
        Some(Silence::Asked(time)) => time,
        Some(Silence::NothingLeft(time)) => Some(time),
        None => None,
    };
    for wait in [silence, reading.apart].into_iter().flatten() {
        assert!(wait.as_secs() <= MAX_SILENCE, "{wait:?}");
    }
    if let Some(failure) = reading.failure() {
        assert!(failure.message.len() < 1000, "{}", failure.message);
        assert!(failure.vendor.as_ref().is_none_or(|said| said.body.len() <= VendorSaid::MAX_BODY));
    }
    let ticket = match &reading.step {
        Step::Done { result } => {
            assert!(json::check(result).is_ok(), "{result:?}");
            None
        }
        Step::Fetch { from: Fetch::At(url), ticket } => {
            let is_allowed =
                ["https://v.example/", "https://eu.api.example/"].iter().any(|origin| url.starts_with(origin));
            assert!(is_allowed, "nothing else is called: {url}");
            ticket.as_ref()
        }
        Step::CheckAgain { ticket, .. } | Step::Fetch { ticket, .. } | Step::AwaitCallback { ticket } => {
            ticket.as_ref()
        }
        _ => None,
    };
    assert!(ticket.is_none_or(|ticket| ticket.len() <= 4096), "{ticket:?}");
}

/// `METHOD VENDOR`, headers, a body: nothing is believed that is not signed, what is signed is, and what is believed has a meaning.
pub(crate) fn callback(data: &[u8]) {
    let (first, headers, body) = message(data);
    let (method, name) = first.split_at(first.iter().position(|byte| *byte == b' ').unwrap_or(0));
    let (method, vendor) = (Method::from_bytes(method).unwrap_or(Method::POST), vendor(name));
    let is_believed =
        vendor.may_believe(&method, &headers, NOW).is_ok() && vendor.verify().whole(&headers, body, NOW).is_ok();
    assert!(!is_believed || matches!(vendor.verify(), Verify::None), "{} believes it", vendor.name());
    if &**vendor.name() == "github" {
        let signed = signed(&headers, b"a secret of github", body);
        assert!(
            vendor.may_believe(&Method::POST, &signed, NOW).is_ok()
                && vendor.verify().whole(&signed, body, NOW).is_ok()
        );
    }
    let raw = Bytes::copy_from_slice(body);
    let Ok(value) = vendor.value(&headers, raw.clone()) else { return };
    vendor.challenge_in_body(&value.json);
    vendor.is_ping(&value);
    let Ok(values) = vendor.events(value) else { return };
    for value in values.into_iter().take(16) {
        vendor.job_in_callback(&value.json);
        check(&vendor.read_callback(&headers, &raw, value, NOW));
    }
}

fn signed(headers: &HeaderMap, key: &[u8], body: &[u8]) -> HeaderMap {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut headers = headers.clone();
    headers.insert("x-hub-signature-256", format!("sha256={hex}").parse().expect("a value"));
    headers
}

/// `METHOD VENDOR`, then a URL: a challenge is answered with what is in it, and the hub's only for its token.
pub(crate) fn challenge(data: &[u8]) {
    let (first, uri) = first_line(data);
    let (method, name) = first.split_at(first.iter().position(|byte| *byte == b' ').unwrap_or(0));
    let (method, vendor) = (Method::from_bytes(method).unwrap_or(Method::GET), vendor(name));
    let Ok(uri) = Uri::try_from(uri) else { return };
    let answer = vendor.challenge_in_head(&method, &uri);
    if let (Some(Ok(_)), "standard") = (&answer, &**vendor.name()) {
        let query = uri.query().unwrap_or_default().replace(['+', '%'], " ");
        assert!(query.contains("token"), "the hub answers {query}");
    }
    if let Some(Ok(text)) = answer {
        assert!(text.0.len() <= uri.query().map_or(0, str::len) * 3, "{text:?}");
    }
}

/// A vendor, then a payload: what is accepted can be sent.
pub(crate) fn payload(data: &[u8]) {
    let (name, payload) = first_line(data);
    let vendor = vendor(name);
    let Ok(payload) = json::check(payload) else { return };
    let job = job(vendor, Bytes::copy_from_slice(payload.get().as_bytes()), false);
    match vendor.check(job.id, "default", payload) {
        Ok(()) => assert!(vendor.request(&job).is_ok(), "{}", payload.get()),
        Err(error) => assert!(error.pointer.len() + error.detail.len() < 1000, "{error}"),
    }
}
