//! What is believed and what is not, for every scheme, with the examples that the vendors publish.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    hmac::{Encoding, Fault, Hash, Settings, TOLERANCE},
    named::NAMED,
    *,
};

const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NOW: Time = Time(1_614_265_330_250);

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn signed(schemes: Vec<Scheme>, key: Key, secrets: &[&str]) -> Verify {
    Verify::Signed(Signed { schemes, key, secrets: secrets.iter().map(|secret| LiveSecret::of(secret)).collect() })
}

fn named(name: &str, secrets: &[&str]) -> Verify {
    let (_, settings) = NAMED.iter().find(|(named, _)| *named == name).unwrap();
    let schemes = settings.iter().map(|settings| Scheme::new(*settings, TOLERANCE).unwrap()).collect();
    signed(schemes, if name == "standard-webhooks" { Key::Whsec } else { Key::Text }, secrets)
}

/// Every scheme that there is, with the headers of a callback that it may have signed.
fn all() -> Vec<(Verify, Vec<&'static str>)> {
    let general = Settings {
        hash: Hash::Sha512,
        encoding: Encoding::Hex,
        header: "x-signature",
        prefix: "",
        signs: "{{ header.x-timestamp }}{{ body }}",
        timestamp: Some("x-timestamp"),
    };
    vec![
        (named("standard-webhooks", &[WHSEC]), vec!["webhook-id", "webhook-timestamp", "webhook-signature"]),
        (named("standard-webhooks", &[WHSEC]), vec!["svix-id", "svix-timestamp", "svix-signature"]),
        (named("github", &["secret"]), vec!["x-hub-signature-256"]),
        (named("stripe", &["secret"]), vec!["stripe-signature"]),
        (named("slack", &["secret"]), vec!["x-slack-request-timestamp", "x-slack-signature"]),
        (named("shopify", &["secret"]), vec!["x-shopify-hmac-sha256"]),
        (
            signed(vec![Scheme::new(general, TOLERANCE).unwrap()], Key::Text, &["secret", "old"]),
            vec!["x-timestamp", "x-signature"],
        ),
        (
            Verify::Header {
                name: HeaderName::from_static("x-token"),
                values: vec![LiveSecret::of("a token of ours")],
            },
            vec!["x-token"],
        ),
        (
            Verify::Basic { user: LiveSecret::of("user"), passwords: vec![LiveSecret::of("a password")] },
            vec!["authorization"],
        ),
    ]
}

#[test]
fn the_examples_that_vendors_publish_are_believed() {
    // docs.github.com, "Validating webhook deliveries".
    let github = named("github", &["It's a Secret to Everybody"]);
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let head = headers(&[("x-hub-signature-256", signature)]);
    assert_eq!(github.whole(&head, b"Hello, World!", NOW), Ok(()));
    assert_eq!(github.whole(&head, b"Hello, World?", NOW), Err(NotBelieved::Mismatch));
    assert_eq!(
        github.whole(&headers(&[("x-hub-signature-256", &signature[7..])]), b"Hello, World!", NOW),
        Err(NotBelieved::Header("x-hub-signature-256".parse().unwrap()))
    );

    // docs.slack.dev, "Verifying requests from Slack".
    let slack = named("slack", &["8f742231b10e8888abcd99yyyzzz85a5"]);
    let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let head = headers(&[
        ("x-slack-request-timestamp", "1531420618"),
        ("x-slack-signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
    ]);
    let then = Time(1_531_420_618_000);
    assert_eq!(slack.whole(&head, body, then), Ok(()));
    assert_eq!(slack.whole(&head, body, then.plus(Duration::from_secs(301))), Err(NotBelieved::OutOfTime));
    assert_eq!(slack.whole(&head, &body[1..], then), Err(NotBelieved::Mismatch));
}

/// Neither publishes a secret with an example: these signatures were made with `openssl dgst -sha256 -hmac`.
#[test]
fn signatures_written_as_stripe_and_shopify_document_them_are_believed() {
    let (secret, body, then) = ("whsec_test_secret", br#"{"id":"evt_1"}"#, Time(1_492_774_577_000));
    let stripe = named("stripe", &[secret]);
    let good = "t=1492774577,v1=799c4ba7bb339f3c8601adfd112f0e477c930a268be1243d341abb8286501c2f,v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39";
    let verify = |value: &str| stripe.whole(&headers(&[("stripe-signature", value)]), body, then);
    assert_eq!(verify(good), Ok(()));
    assert_eq!(verify(&good.replace("v1=", "v1=00,v1=")), Ok(()), "two secrets are in use");
    assert_eq!(verify(&good.replace("v1=", "v0=")), Err(NotBelieved::Header("stripe-signature".parse().unwrap())));
    assert_eq!(
        verify(&good.replace("t=1492774577,", "")),
        Err(NotBelieved::Header("stripe-signature".parse().unwrap()))
    );
    assert_eq!(verify(&good.replace("t=1492774577", "t=1492774578")), Err(NotBelieved::Mismatch));
    assert_eq!(verify(&good.replace("t=1492774577", "t=1492774000")), Err(NotBelieved::OutOfTime));

    let shopify = named("shopify", &[secret]);
    let verify = |value: &str| shopify.whole(&headers(&[("x-shopify-hmac-sha256", value)]), body, then);
    assert_eq!(verify("OAd3s1qwoH9sXsZdJA3xoOBNYTQFaL3fo6gDcuniS68="), Ok(()));
    assert_eq!(verify("AAAA"), Err(NotBelieved::Mismatch));
    assert_eq!(verify("%%"), Err(NotBelieved::Mismatch));
}

fn standard(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
    headers(&[("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)])
}

#[test]
fn the_published_example_of_standard_webhooks_is_believed_under_both_names() {
    // From the test suites of the reference libraries.
    let body = br#"{"test": 2432232314}"#;
    let (id, signature) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    let scheme = named("standard-webhooks", &[WHSEC]);
    let verify = |signature: &str| scheme.whole(&standard(id, "1614265330", signature), body, NOW);
    assert_eq!(verify(signature), Ok(()));
    assert_eq!(verify(signature.trim_end_matches('=')), Ok(()));
    assert_eq!(verify(&format!("v1a,AAAA v1,AAAA v2,g0hM9 {signature} v1,###")), Ok(()));
    let svix = headers(&[("svix-id", id), ("svix-timestamp", "1614265330"), ("svix-signature", signature)]);
    assert_eq!(scheme.whole(&svix, body, NOW), Ok(()), "report 10");
    let both = headers(&[
        ("svix-id", id),
        ("svix-timestamp", "1614265330"),
        ("svix-signature", "v1,AAAA"),
        ("webhook-id", id),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", signature),
    ]);
    assert_eq!(scheme.whole(&both, body, NOW), Ok(()), "one good set is enough");
    let mixed = headers(&[("svix-id", id), ("webhook-timestamp", "1614265330"), ("svix-signature", signature)]);
    assert!(scheme.whole(&mixed, body, NOW).is_err());
    for secrets in [&["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"][..], &["whsec_c29tZSBvdGhlciBzZWNyZXQgb2YgMjQ=", WHSEC]] {
        let rotated = named("standard-webhooks", secrets);
        assert_eq!(rotated.whole(&standard(id, "1614265330", signature), body, NOW), Ok(()));
    }
    let other = named("standard-webhooks", &["whsec_c29tZSBvdGhlciBzZWNyZXQgb2YgMjQ="]);
    let mismatch = Err(NotBelieved::Mismatch);
    assert_eq!(other.whole(&standard(id, "1614265330", signature), body, NOW), mismatch);
    assert_eq!(scheme.whole(&standard("msg_2", "1614265330", signature), body, NOW), mismatch);
    assert_eq!(scheme.whole(&standard(id, "1614265331", signature), body, NOW), mismatch);
    assert_eq!(scheme.whole(&standard(id, "1614265330", signature), b"{}", NOW), mismatch);
    assert_eq!(verify(&signature[..20]), mismatch);
    assert!(verify(&signature[3..]).is_err() && verify(&signature.replace("v1,", "v1a,")).is_err());
}

#[test]
fn the_time_of_signing_may_be_off_by_the_tolerance_and_an_odd_one_is_none() {
    let scheme = named("standard-webhooks", &[WHSEC]);
    let head = |timestamp: &str, now| scheme.head(&standard("m", timestamp, "v1,AAAA"), Time(now));
    for (now, wanted) in [
        (1_614_265_630_000, Ok(())),
        (1_614_265_630_001, Err(NotBelieved::OutOfTime)),
        (1_614_265_030_000, Ok(())),
        (1_614_265_029_999, Err(NotBelieved::OutOfTime)),
    ] {
        assert_eq!(head("1614265330", now), wanted);
        assert_eq!(head("1614265330000", now), wanted, "milliseconds");
    }
    for odd in ["+1614265330", "-1", "1614265330.0", "99999999999999999999", "x"] {
        assert_eq!(head(odd, NOW.0), Err(NotBelieved::Header("webhook-timestamp".parse().unwrap())), "{odd}");
    }
    assert_eq!(head("9223372036854775807", NOW.0), Err(NotBelieved::OutOfTime));
    let odd_id = scheme.head(&standard("m.1", "1614265330", "v1,AAAA"), NOW);
    assert_eq!(odd_id, Err(NotBelieved::Header("webhook-id".parse().unwrap())), "it could end elsewhere");
}

#[test]
fn a_token_in_a_header_and_a_password_are_believed_as_they_are_written() {
    let token = &all()[7].0;
    assert_eq!(token.whole(&headers(&[("x-token", "a token of ours")]), b"{}", NOW), Ok(()));
    for wrong in ["a token of our", "a token of ours2", "A token of ours", ""] {
        assert_eq!(token.head(&headers(&[("x-token", wrong)]), NOW), Err(NotBelieved::Mismatch), "{wrong}");
    }
    assert_eq!(token.head(&headers(&[]), NOW), Err(NotBelieved::Header("x-token".parse().unwrap())));
    let basic = &all()[8].0;
    let send = |user: &str| basic.head(&headers(&[("authorization", &BASE64_STANDARD.encode(user))]), NOW);
    assert!(send("user:a password").is_err(), "without the scheme");
    let send = |user: &str| {
        basic.head(&headers(&[("authorization", &format!("basic {}", BASE64_STANDARD.encode(user)))]), NOW)
    };
    assert_eq!(send("user:a password"), Ok(()));
    for wrong in ["user:", "user:a passwor", "User:a password", "user", ""] {
        assert_eq!(send(wrong), Err(NotBelieved::Mismatch), "{wrong}");
    }
}

#[test]
fn a_scheme_that_proves_nothing_is_refused() {
    let base = Settings {
        hash: Hash::Sha256,
        encoding: Encoding::Hex,
        header: "x-signature",
        prefix: "",
        signs: "{{ body }}",
        timestamp: None,
    };
    let fault = |settings| Scheme::new(settings, TOLERANCE).err().map(|Fault { key, .. }| key);
    assert_eq!(fault(base), None);
    for signs in [
        "",
        "{{ header.x-time }}",
        "{{ body }}{{ body }}",
        "{{ body",
        "{{ payload }}{{ body }}",
        "{{ header. }}{{ body }}",
        "{{ header.a b }}{{ body }}",
        "{{ header.x. }}{{ body }}",
    ] {
        assert_eq!(fault(Settings { signs, ..base }), Some("signs"), "{signs}");
    }
    for timestamp in ["x-time", "", "x y", "x-signature.t"] {
        assert_eq!(fault(Settings { timestamp: Some(timestamp), ..base }), Some("timestamp"), "{timestamp}");
    }
    assert_eq!(fault(Settings { header: "a b", ..base }), Some("header"));
}

#[test]
fn a_secret_is_never_shown() {
    for bad in ["", "whsec_", "hunter2!", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "c2hvcnQ="] {
        let fault = Key::Whsec.fault(bad).unwrap();
        assert!(bad.len() < 7 || !fault.contains(bad), "{fault}");
    }
    for (verify, _) in all() {
        let shown = format!("{verify:?}");
        assert!(
            !shown.contains("\"secret\"") && !shown.contains("password\"") && !shown.contains("token of"),
            "{shown}"
        );
    }
}

proptest! {
    #[test]
    fn nothing_unsigned_is_believed(
        values in prop::collection::vec("((t=)?16142653[0-9]{2},)?((v0|v1|sha256)[=,])?[ -~]{0,64}|16142653[0-9]{2}|(Basic )?[ -~]{0,20}", 3),
        body: Vec<u8>,
        now: i64,
    ) {
        for (verify, names) in all() {
            let head: Vec<(&str, &str)> = names.iter().zip(&values).map(|(name, value)| (*name, value.as_str())).collect();
            prop_assert!(verify.whole(&headers(&head), &body, NOW).is_err());
            prop_assert!(verify.whole(&headers(&head), &body, Time(now)).is_err());
        }
    }
}
