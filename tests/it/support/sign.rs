//! Signs callbacks as vendors do, by their documentation and without our code.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use fetchgate::clock::Time;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};

pub(crate) type Headers = Vec<(&'static str, String)>;

fn sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(at: Time) -> String {
    (at.0 / 1000).to_string()
}

/// The signature of Standard Webhooks: `v1,` and base64.
pub(crate) fn standard_v1(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").expect("the usual form")).expect("base64");
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    format!("v1,{}", BASE64_STANDARD.encode(sha256(&key, &parts)))
}

/// Standard Webhooks, under the names of the specification or of Svix.
pub(crate) fn standard(names: [&'static str; 3], secret: &str, at: Time, body: &[u8]) -> Headers {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").expect("the usual form")).expect("base64");
    let time = seconds(at);
    let signature = BASE64_STANDARD.encode(sha256(&key, &[b"msg_1.", time.as_bytes(), b".", body]));
    vec![(names[0], "msg_1".to_owned()), (names[1], time), (names[2], format!("v1,{signature}"))]
}

pub(crate) const WEBHOOK: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];
pub(crate) const SVIX: [&str; 3] = ["svix-id", "svix-timestamp", "svix-signature"];

pub(crate) fn github(secret: &str, body: &[u8]) -> Headers {
    vec![("X-Hub-Signature-256", format!("sha256={}", hex(&sha256(secret.as_bytes(), &[body]))))]
}

pub(crate) fn stripe(secret: &str, at: Time, body: &[u8]) -> Headers {
    let time = seconds(at);
    let signature = hex(&sha256(secret.as_bytes(), &[time.as_bytes(), b".", body]));
    vec![("Stripe-Signature", format!("t={time},v1={signature}"))]
}

pub(crate) fn slack(secret: &str, at: Time, body: &[u8]) -> Headers {
    let time = seconds(at);
    let signature = hex(&sha256(secret.as_bytes(), &[b"v0:", time.as_bytes(), b":", body]));
    vec![("X-Slack-Request-Timestamp", time), ("X-Slack-Signature", format!("v0={signature}"))]
}

pub(crate) fn shopify(secret: &str, body: &[u8]) -> Headers {
    vec![("X-Shopify-Hmac-Sha256", BASE64_STANDARD.encode(sha256(secret.as_bytes(), &[body])))]
}

/// A vendor with a way of its own: SHA-512, base64, the time in milliseconds before the body.
pub(crate) fn own_way(secret: &str, at: Time, body: &[u8]) -> Headers {
    let time = at.0.to_string();
    let mut mac = Hmac::<Sha512>::new_from_slice(secret.as_bytes()).expect("a key");
    [time.as_bytes(), b".", body].iter().for_each(|part| mac.update(part));
    vec![("X-Time", time), ("X-Signature", format!("hmac {}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))]
}

pub(crate) fn token(secret: &str) -> Headers {
    vec![("X-Token", secret.to_owned())]
}

pub(crate) fn basic(user: &str, password: &str) -> Headers {
    vec![("Authorization", format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))]
}
