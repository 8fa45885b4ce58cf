//! AWS Signature Version 4, in the `Authorization` header.
//!
//! Follows "Create a signed AWS API request" of the IAM User Guide; the tests are vectors that AWS publishes with it. Never reads a clock.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use hyper::{
    HeaderMap, Request,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::{clock::Time, config::SigV4};

/// Everything but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same for a path, in which slashes stay.
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Signs a request that is otherwise complete: its date, the hash of its body and the signature are added.
pub(super) fn sign<B>(request: &mut Request<B>, body: &[u8], keys: &SigV4, at: Time) {
    let Ok(at) = jiff::Timestamp::from_millisecond(at.0) else { return };
    let (time, day) = (at.strftime("%Y%m%dT%H%M%SZ").to_string(), at.strftime("%Y%m%d").to_string());
    let content_hash = hex(&Sha256::digest(body));
    let is_s3 = keys.service == "s3";
    let headers = request.headers_mut();
    insert(headers, DATE, &time);
    if is_s3 {
        insert(headers, CONTENT_HASH, &content_hash);
    }
    let (signed, canonical_headers) = canonical_headers(request.headers());
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    // S3 takes the path as it was sent, every other service encodes it once more.
    let path = if is_s3 { path.to_owned() } else { utf8_percent_encode(path, ENCODED_PATH).to_string() };
    let query = canonical_query(query);
    let method = request.method();
    let canonical = format!("{method}\n{path}\n{query}\n{canonical_headers}\n{signed}\n{content_hash}");
    let SigV4 { region, service, access_key, secret_key } = keys;
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let first = format!("AWS4{}", secret_key.reveal());
    let parts = [day.as_str(), region, service, "aws4_request"];
    let key = parts.iter().fold(first.into_bytes(), |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &to_sign));
    let access_key = access_key.reveal();
    let value =
        format!("AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed}, Signature={signature}");
    insert(request.headers_mut(), AUTHORIZATION, &value);
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // The config takes access keys that a header can have; the rest is ASCII.
    if let Ok(mut value) = HeaderValue::from_str(value) {
        value.set_sensitive(name == AUTHORIZATION);
        headers.insert(name, value);
    }
}

/// The names of the headers that are signed, and the headers: the host, the type of the body and what is AWS's.
fn canonical_headers(headers: &HeaderMap) -> (String, String) {
    let is_signed = |name: &HeaderName| *name == HOST || *name == CONTENT_TYPE || name.as_str().starts_with("x-amz-");
    let mut names: Vec<&HeaderName> = headers.keys().filter(|name| is_signed(name)).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    let mut lines = String::new();
    for name in &names {
        let values = headers.get_all(*name).iter().filter_map(|value| value.to_str().ok());
        let values: Vec<String> = values.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let _ = writeln!(lines, "{name}:{}", values.join(","));
    }
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    (names.join(";"), lines)
}

/// Names and values encoded the one way that counts, in order.
fn canonical_query(query: &str) -> String {
    let encode = |text: &str| {
        let plain: Vec<u8> = percent_decode_str(text).collect();
        percent_encoding::percent_encode(&plain, ENCODED).to_string()
    };
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let mut pairs: Vec<(String, String)> = parameters
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LiveSecret;

    /// 2015-08-30T12:36:00Z.
    const AT: Time = Time(1_440_938_160_000);

    fn signature(service: &str, method: &str, host: &str, target: &str, content_type: &str, body: &str) -> String {
        let keys = SigV4 {
            region: "us-east-1".into(),
            service: service.into(),
            access_key: LiveSecret::of("AKIDEXAMPLE"),
            secret_key: LiveSecret::of("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        };
        let mut request = Request::builder().method(method).uri(target).header("host", host);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let mut request = request.body(()).expect("a request");
        sign(&mut request, body.as_bytes(), &keys, AT);
        request.headers()[AUTHORIZATION].to_str().expect("text").to_owned()
    }

    /// `get-vanilla`, `post-vanilla`, `get-vanilla-query-order-key-case` and `post-x-www-form-urlencoded` of aws-sig-v4-test-suite.
    #[test]
    fn the_vectors_of_the_test_suite_are_signed_as_published() {
        let form = "application/x-www-form-urlencoded";
        for (method, target, content_type, body, expected) in [
            ("GET", "/", "", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "/", "", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "GET",
                "/?Param2=value2&Param1=value1",
                "",
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            ("POST", "/", form, "Param1=value1", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"),
        ] {
            let value = signature("service", method, "example.amazonaws.com", target, content_type, body);
            assert!(value.ends_with(&format!("Signature={expected}")), "{method} {target}: {value}");
            let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, ";
            assert!(value.starts_with(scope), "{value}");
        }
    }

    /// `ListUsers`, which the IAM User Guide signs step by step.
    #[test]
    fn the_example_of_the_documentation_is_signed_as_published() {
        let (target, form) =
            ("/?Action=ListUsers&Version=2010-05-08", "application/x-www-form-urlencoded; charset=utf-8");
        let value = signature("iam", "GET", "iam.amazonaws.com", target, form, "");
        let expected = "SignedHeaders=content-type;host;x-amz-date, \
                        Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        assert!(value.ends_with(expected), "{value}");
    }
}
