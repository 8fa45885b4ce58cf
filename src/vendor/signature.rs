//! Standard Webhooks: proves that a callback on the shared URL comes from the vendor that knows our secret.
//!
//! Only the symmetric scheme (`v1`, HMAC-SHA256). Never reads a clock, and never remembers ids: a repeated callback
//! finds its job ended.

use std::{fmt, time::Duration};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use sha2::Sha256;

use crate::clock::Time;

/// How far the sender's clock may be from ours, either way.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// The standard asks senders for 24 bytes; below this a secret can hardly be more than a mistake.
const MIN_SECRET: usize = 16;
/// Two are normal while a secret is being changed.
const MAX_SIGNATURES: usize = 16;

/// Base64 with or without padding: vendors write both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a callback is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the header {0} is missing or not readable")]
    Header(&'static str),
    #[error("signed more than five minutes from now")]
    OutOfTime,
    #[error("no signature fits")]
    Mismatch,
}

/// A vendor's secret, ready to verify. It is never shown.
#[derive(Clone)]
pub struct StandardWebhooks(Hmac<Sha256>);

impl StandardWebhooks {
    /// From `whsec_` and base64, or base64 alone. The error does not repeat the secret.
    pub fn new(secret: &str) -> Result<StandardWebhooks, String> {
        let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
        let Ok(key) = BASE64.decode(encoded) else {
            return Err("a Standard Webhooks secret is base64, usually after `whsec_`".to_owned());
        };
        if key.len() < MIN_SECRET {
            return Err(format!(
                "a Standard Webhooks secret has at least {MIN_SECRET} bytes; this one has {}",
                key.len()
            ));
        }
        Ok(StandardWebhooks(Hmac::new_from_slice(&key).expect("HMAC takes keys of every length")))
    }

    /// Believes a callback when one of its `v1` signatures fits and it was signed within five minutes of `now`.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Time) -> Result<(), SignatureError> {
        let id = header(headers, "webhook-id")?;
        let timestamp = header(headers, "webhook-timestamp")?;
        let signatures = header(headers, "webhook-signature")?;
        // A full stop would let one signature stand for several splits into id, timestamp and body.
        if id.contains('.') {
            return Err(SignatureError::Header("webhook-id"));
        }
        let signed_at = seconds(timestamp).ok_or(SignatureError::Header("webhook-timestamp"))?;
        if u128::from(signed_at.0.abs_diff(now.0)) > TOLERANCE.as_millis() {
            return Err(SignatureError::OutOfTime);
        }
        let mac = self.mac(id, timestamp, body);
        let mut candidates = signatures.split(' ').filter_map(|s| s.strip_prefix("v1,")).take(MAX_SIGNATURES);
        let fits = |candidate| BASE64.decode(candidate).is_ok_and(|tag| mac.clone().verify_slice(&tag).is_ok());
        if candidates.any(fits) { Ok(()) } else { Err(SignatureError::Mismatch) }
    }

    /// The `webhook-signature` of a body, as a vendor would send it.
    pub fn sign(&self, id: &str, at: Time, body: &[u8]) -> String {
        let timestamp = at.0.div_euclid(1000).to_string();
        format!("v1,{}", BASE64.encode(self.mac(id, &timestamp, body).finalize().into_bytes()))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mac = self.0.clone().chain_update(id).chain_update(".").chain_update(timestamp);
        mac.chain_update(".").chain_update(body)
    }
}

impl fmt::Debug for StandardWebhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandardWebhooks([secret])")
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, SignatureError> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.filter(|value| !value.is_empty()).ok_or(SignatureError::Header(name))
}

/// Whole seconds since the Unix epoch, digits only.
fn seconds(text: &str) -> Option<Time> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    let seconds: i64 = is_number.then(|| text.parse().ok()).flatten()?;
    seconds.checked_mul(1000).map(Time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NOW: Time = Time(1_614_265_330_250);

    fn headers(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
        let pairs = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
        pairs.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn scheme() -> StandardWebhooks {
        StandardWebhooks::new(SECRET).unwrap()
    }

    #[test]
    fn the_published_example_is_believed() {
        // From the test suites of the reference libraries.
        let body = br#"{"test": 2432232314}"#;
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        assert_eq!(scheme().sign(id, NOW, body), signature);
        assert_eq!(scheme().verify(&headers(id, "1614265330", signature), body, NOW), Ok(()));
        let bare = StandardWebhooks::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(bare.verify(&headers(id, "1614265330", signature), body, NOW), Ok(()));
        let unpadded = signature.trim_end_matches('=');
        assert_eq!(scheme().verify(&headers(id, "1614265330", unpadded), body, NOW), Ok(()));
        let among_others = format!("v1a,AAAA v1,AAAA v2,g0hM9 {signature} v1,###");
        assert_eq!(scheme().verify(&headers(id, "1614265330", &among_others), body, NOW), Ok(()));
    }

    #[test]
    fn a_changed_id_time_body_version_or_secret_is_refused() {
        let signature = scheme().sign("msg_1", NOW, b"{}");
        let verify = |id, timestamp, signature: &str, body: &[u8]| {
            scheme().verify(&headers(id, timestamp, signature), body, NOW)
        };
        assert_eq!(verify("msg_1", "1614265330", &signature, b"{}"), Ok(()));
        assert_eq!(verify("msg_2", "1614265330", &signature, b"{}"), Err(SignatureError::Mismatch));
        assert_eq!(verify("msg_1", "1614265331", &signature, b"{}"), Err(SignatureError::Mismatch));
        assert_eq!(verify("msg_1", "1614265330", &signature, b"{ }"), Err(SignatureError::Mismatch));
        assert_eq!(verify("msg_1", "1614265330", &signature[..20], b"{}"), Err(SignatureError::Mismatch));
        assert_eq!(verify("msg_1", "1614265330", &signature[3..], b"{}"), Err(SignatureError::Mismatch));
        assert_eq!(verify("msg_1", "1614265330", "v1,", b"{}"), Err(SignatureError::Mismatch));
        let as_v1a = signature.replace("v1,", "v1a,");
        assert_eq!(verify("msg_1", "1614265330", &as_v1a, b"{}"), Err(SignatureError::Mismatch));
        let other = StandardWebhooks::new("c29tZSBvdGhlciBzZWNyZXQgb2YgMjQ=").unwrap();
        assert_eq!(
            other.verify(&headers("msg_1", "1614265330", &signature), b"{}", NOW),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn five_minutes_either_way_are_allowed() {
        let at = |now| scheme().verify(&headers("m", "1614265330", &scheme().sign("m", NOW, b"")), b"", Time(now));
        assert_eq!(at(1_614_265_630_000), Ok(()));
        assert_eq!(at(1_614_265_630_001), Err(SignatureError::OutOfTime));
        assert_eq!(at(1_614_265_030_000), Ok(()));
        assert_eq!(at(1_614_265_029_999), Err(SignatureError::OutOfTime));
        assert_eq!(at(i64::MIN), Err(SignatureError::OutOfTime));
    }

    #[test]
    fn a_missing_or_odd_header_is_named() {
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut headers = headers("m", "1614265330", "v1,AAAA");
            headers.remove(name);
            assert_eq!(scheme().verify(&headers, b"", NOW), Err(SignatureError::Header(name)));
        }
        for odd in ["", "+1614265330", "-1", "1614265330.0", "99999999999999999999", "9223372036854775807"] {
            let error = scheme().verify(&headers("m", odd, "v1,AAAA"), b"", NOW);
            assert_eq!(error, Err(SignatureError::Header("webhook-timestamp")), "{odd}");
        }
        let error = scheme().verify(&headers("m.1", "1614265330", "v1,AAAA"), b"", NOW);
        assert_eq!(error, Err(SignatureError::Header("webhook-id")));
    }

    #[test]
    fn a_secret_that_cannot_be_one_is_refused_without_repeating_it() {
        for bad in ["", "whsec_", "hunter2!", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "c2hvcnQ="] {
            let error = StandardWebhooks::new(bad).unwrap_err();
            assert!(bad.len() < 7 || !error.contains(bad), "{error}");
        }
        assert_eq!(format!("{:?}", scheme()), "StandardWebhooks([secret])");
    }

    proptest! {
        #[test]
        fn nothing_unsigned_is_believed(id in "[ -~]{0,20}", timestamp in "16142653[0-9]{2}|[ -~]{0,20}", signature in "(v1,[ -~]{0,44} ?){0,3}", body: Vec<u8>, now: i64) {
            prop_assert!(scheme().verify(&headers(&id, &timestamp, &signature), &body, Time(now)).is_err());
            prop_assert!(scheme().verify(&headers(&id, &timestamp, &signature), &body, NOW).is_err());
        }
    }
}
