//! Callbacks on the shared URL, whichever way the vendor proves where they come from: nothing else is believed, and whatever comes in whatever
//! order, the first right outcome decides.

use std::time::Duration;

use fetchgate::clock::Time;
use hyper::Method;
use serde_json::json;

use crate::{
    on_every_backend,
    support::{
        Answer, Backend, TestApp,
        sign::{self, Headers},
    },
};

on_every_backend!(
    a_storm_of_callbacks_leaves_the_first_right_outcome_report_10,
    what_the_head_shows_is_refused_before_the_body_is_read,
    a_signature_is_over_the_bytes_as_they_came,
    secrets_are_rotated_by_a_list_or_a_file,
    a_get_is_not_believed_where_bodies_are_signed,
    a_client_that_waits_for_it_is_asked_for_its_password,
);

const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_c29tZSBvdGhlciBzZWNyZXQgb2YgMjQ=";

/// One vendor's way of proving its callbacks.
struct Scheme {
    name: &'static str,
    /// What stands in the config after `verify = `.
    config: String,
    /// The headers of a callback, with this secret.
    sign: fn(&str, Time, &[u8]) -> Headers,
    /// Whether it signs bodies.
    signs_bodies: bool,
    /// Whether it says when it signed.
    is_timed: bool,
}

/// Every scheme; its secret is [`WHSEC`], as text where the scheme takes any text.
fn schemes() -> Vec<Scheme> {
    let named = |name, word: &str, sign, is_timed| Scheme {
        name,
        config: format!("\"{word}\", secret = \"{WHSEC}\""),
        sign,
        signs_bodies: true,
        is_timed,
    };
    let table = |name, table: &str, sign, signs_bodies, is_timed| {
        let config = table.replace("SECRET", WHSEC).replace("OTHER", OTHER);
        Scheme { name, config, sign, signs_bodies, is_timed }
    };
    vec![
        named(
            "standard",
            "standard-webhooks",
            |secret, at, body| sign::standard(sign::WEBHOOK, secret, at, body),
            true,
        ),
        named("svix", "standard-webhooks", |secret, at, body| sign::standard(sign::SVIX, secret, at, body), true),
        named("github", "github", |secret, _, body| sign::github(secret, body), false),
        named("stripe", "stripe", sign::stripe, true),
        named("slack", "slack", sign::slack, true),
        named("shopify", "shopify", |secret, _, body| sign::shopify(secret, body), false),
        table(
            "own-way",
            r#"{ hmac = "sha512", header = "X-Signature", encoding = "base64", prefix = "hmac ", signs = "{{ header.x-time }}.{{ body }}", timestamp = "X-Time", tolerance = "1m", secret = ["SECRET"] }"#,
            sign::own_way,
            true,
            true,
        ),
        table("token", r#"{ header = "X-Token", value = "SECRET" }"#, |secret, _, _| sign::token(secret), false, false),
        table(
            "basic",
            r#"{ basic = { user = "u", password = "SECRET" } }"#,
            |secret, _, _| sign::basic("u", secret),
            false,
            false,
        ),
    ]
}

fn vendor(scheme: &Scheme, more: &str) -> String {
    format!(
        "[vendors.{name}]\nkind = \"webhook\"\nurl = \"VENDORS/async/{name}?never\"\nlimits = []\nanswer_within = \"1h\"\nretry = {{ unanswered = 0 }}\n\
         failed = {{ at = \"/status\", is = [\"failed\"] }}\n\
         webhook = {{ verify = {}, done = {{ at = \"/status\", is = [\"succeeded\"] }}{more} }}\n",
        scheme.config,
        name = scheme.name
    )
}

async fn send(app: &TestApp, name: &str, headers: &Headers, body: impl Into<bytes::Bytes>) -> Answer {
    let mut all: Vec<(&str, &str)> = vec![("content-type", "application/json")];
    all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
    app.send(Method::POST, &format!("/vendor-webhook/{name}"), &all, body).await
}

#[track_caller]
fn assert_answer(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text);
    if status == 401 {
        assert_eq!(answer.code(), "bad_signature", "{what}");
    }
}

async fn a_storm_of_callbacks_leaves_the_first_right_outcome_report_10(backend: Backend) {
    let schemes = schemes();
    let config: String = schemes.iter().map(|scheme| vendor(scheme, "")).collect();
    let mut app = TestApp::with(backend, &config).await;
    for scheme in &schemes {
        storm(&mut app, scheme).await;
    }
    app.stop().await;
}

async fn storm(app: &mut TestApp, scheme: &Scheme) {
    let (name, sign) = (scheme.name, scheme.sign);
    let of = |id: &str, status: &str, n: u32| format!(r#"{{"request_id":"{id}","status":"{status}","result":{n}}}"#);
    let (id, bystander) = (app.submit(name, "1").await, app.submit(name, "2").await);
    // Early: before the vendor was even called. It says that work goes on, so nothing changes.
    let starting = of(&id, "starting", 0);
    let early = send(app, name, &sign(WHSEC, app.clock.now(), starting.as_bytes()), starting.clone()).await;
    assert_answer(&early, 200, name);
    assert_eq!(app.status(&id).await, "pending", "{name}");
    app.run_until_idle().await;
    let (waiting, untouched) = (app.find(&id).await, app.find(&bystander).await);
    assert_eq!(waiting["blocked_on"], "awaiting_callback", "{name}");

    // Forged, replayed too late, huge, empty, for nobody: nothing of it is believed, or it says nothing.
    let done = of(&id, "succeeded", 1);
    let now = app.clock.now();
    let good = sign(WHSEC, now, done.as_bytes());
    assert_answer(&send(app, name, &Vec::new(), done.clone()).await, 401, name);
    assert_answer(&send(app, name, &sign(OTHER, now, done.as_bytes()), done.clone()).await, 401, name);
    for left_out in 0..good.len() {
        let mut headers = good.clone();
        headers.remove(left_out);
        assert_answer(&send(app, name, &headers, done.clone()).await, 401, name);
    }
    if scheme.signs_bodies {
        let changed = of(&id, "succeeded", 9);
        assert_answer(&send(app, name, &good, changed).await, 401, name);
        assert_answer(&send(app, name, &good, "{").await, 401, name);
    }
    if scheme.is_timed {
        for off in [-301_000, 302_000] {
            let at = Time(now.0 + off);
            assert_answer(&send(app, name, &sign(WHSEC, at, done.as_bytes()), done.clone()).await, 401, name);
        }
    }
    assert_answer(&send(app, name, &sign(WHSEC, now, b""), "").await, 200, name);
    let huge = vec![b' '; (8 << 20) + 1];
    assert_answer(&send(app, name, &sign(WHSEC, now, &huge), huge).await, 413, name);
    let nobodys = of("01a203e8-3838-7a3c-9f21-5b7e0c4d8a16", "succeeded", 1);
    assert_answer(&send(app, name, &sign(WHSEC, now, nobodys.as_bytes()), nobodys).await, 404, name);
    assert_eq!(app.find(&id).await, waiting, "{name}");

    // The right one; then again, and all that comes in a wrong order.
    assert_answer(&send(app, name, &good, done.clone()).await, 200, name);
    let ended = app.find(&id).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("complete"), &json!(1)), "{name}: {ended}");
    app.clock.advance(Duration::from_secs(1));
    for body in [done, of(&id, "succeeded", 2), of(&id, "failed", 3), of(&id, "starting", 0)] {
        let headers = sign(WHSEC, app.clock.now(), body.as_bytes());
        assert_answer(&send(app, name, &headers, body).await, 200, name);
        assert_eq!(app.find(&id).await, ended, "{name}");
    }
    app.run_until_idle().await;
    assert_eq!((app.calls(name), app.find(&bystander).await), (2, untouched), "{name}: nothing is paid twice");

    // Never: the job ends without an answer. Late: that stays so.
    app.advance(Duration::from_secs(3600)).await;
    let never = app.find(&bystander).await;
    assert_eq!(never["error"]["code"], "no_answer", "{name}: {never}");
    let late = of(&bystander, "succeeded", 1);
    assert_answer(&send(app, name, &sign(WHSEC, app.clock.now(), late.as_bytes()), late).await, 200, name);
    app.run_until_idle().await;
    assert_eq!((app.calls(name), app.find(&bystander).await), (2, never), "{name}");
}

/// A body of this length that never comes: an answer at once means that nobody waited for it.
async fn send_head(app: &TestApp, path: &str, headers: &Headers) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 8000000\r\n{headers}\r\n"
    );
    app.send_bytes(head.as_bytes()).await
}

async fn what_the_head_shows_is_refused_before_the_body_is_read(backend: Backend) {
    let schemes = schemes();
    let mut config: String = schemes.iter().map(|scheme| vendor(scheme, "")).collect();
    config.push_str("[vendors.off]\nkind = \"webhook\"\nurl = \"VENDORS/async/off\"\nlimits = []\n");
    let app = TestApp::with(backend, &config).await;
    let old = Time(app.clock.now().0 - 600_000);
    for scheme in &schemes {
        let path = format!("/vendor-webhook/{}", scheme.name);
        let mut wrong = vec![Vec::new()];
        wrong.extend(scheme.is_timed.then(|| (scheme.sign)(WHSEC, old, b"")));
        // What is in a header of its own is compared at once.
        wrong.extend((!scheme.signs_bodies).then(|| (scheme.sign)(OTHER, old, b"")));
        for headers in wrong {
            let answer = send_head(&app, &path, &headers).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{}: {answer}", scheme.name);
        }
    }
    for (path, status) in
        [("/vendor-webhook/off", 403), ("/vendor-webhook/off/x", 401), ("/vendor-webhook/nobody", 404)]
    {
        let answer = send_head(&app, path, &Vec::new()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    app.stop().await;
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("in memory");
    encoder.finish().expect("in memory")
}

async fn a_signature_is_over_the_bytes_as_they_came(backend: Backend) {
    let schemes = schemes();
    let signing: Vec<&Scheme> = schemes.iter().filter(|scheme| scheme.signs_bodies).collect();
    let config: String = signing.iter().map(|scheme| vendor(scheme, "")).collect();
    let mut app = TestApp::with(backend, &config).await;
    for scheme in signing {
        let id = app.submit(scheme.name, "1").await;
        app.run_until_idle().await;
        let plain = format!(r#"{{"request_id":"{id}","status":"succeeded","result":1.10}}"#).into_bytes();
        let (packed, now) = (gzip(&plain), app.clock.now());
        for (signed, status) in [(&plain, 401), (&packed, 200)] {
            let mut headers = (scheme.sign)(WHSEC, now, signed);
            headers.push(("content-encoding", "gzip".to_owned()));
            assert_answer(&send(&app, scheme.name, &headers, packed.clone()).await, status, scheme.name);
        }
        assert_eq!(app.letters(&id, "result").await, "1.10", "{}", scheme.name);
    }
    app.stop().await;
}

async fn secrets_are_rotated_by_a_list_or_a_file(backend: Backend) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    std::fs::write(&path, "the first\n").expect("written");
    let quiet = |name: &str, verify: &str| {
        format!(
            "[vendors.{name}]\nkind = \"webhook\"\nurl = \"VENDORS/async/{name}?never\"\nlimits = []\nwebhook = {{ verify = {verify}, unknown = \"accept\" }}\n"
        )
    };
    let config = [
        quiet("list", &format!("\"github\", secret = [\"{WHSEC}\", \"{OTHER}\"]")),
        quiet("standard", &format!("\"standard-webhooks\", secret = [\"{OTHER}\", \"{WHSEC}\"]")),
        quiet("file", &format!("{{ header = \"X-Token\", value = \"${{file:{}}}\" }}", path.display())),
    ];
    let app = TestApp::with(backend, &config.concat()).await;
    for (secret, status) in [(WHSEC, 200), (OTHER, 200), ("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 401)] {
        assert_answer(&send(&app, "list", &sign::github(secret, b"{}"), "{}").await, status, secret);
        let headers = sign::standard(sign::WEBHOOK, secret, app.clock.now(), b"{}");
        assert_answer(&send(&app, "standard", &headers, "{}").await, status, secret);
    }
    let file = async |token: &str| send(&app, "file", &sign::token(token), "{}").await.status.as_u16();
    assert_eq!((file("the first").await, file("the second").await), (200, 401));
    std::fs::write(&path, "the second\n").expect("written");
    assert_eq!((file("the first").await, file("the second").await), (200, 401), "it is looked at every two seconds");
    app.clock.advance(Duration::from_secs(2));
    assert_eq!((file("the first").await, file("the second").await), (401, 200));
    std::fs::remove_file(&path).expect("removed");
    app.clock.advance(Duration::from_secs(2));
    assert_eq!((file("the first").await, file("the second").await), (401, 200), "the last good one stays");
    app.stop().await;
}

async fn a_get_is_not_believed_where_bodies_are_signed(backend: Backend) {
    let schemes = schemes();
    let config: String = schemes.iter().map(|scheme| vendor(scheme, ", get = true")).collect();
    let mut app = TestApp::with(backend, &config).await;
    for scheme in &schemes {
        let id = app.submit(scheme.name, "1").await;
        app.run_until_idle().await;
        let path = format!("/vendor-webhook/{}?request_id={id}&status=succeeded", scheme.name);
        let headers = (scheme.sign)(WHSEC, app.clock.now(), b"");
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = app.send(Method::GET, &path, &headers, "").await;
        assert_answer(&answer, if scheme.signs_bodies { 401 } else { 200 }, scheme.name);
        let status = if scheme.signs_bodies { "processing" } else { "complete" };
        assert_eq!(app.status(&id).await, status, "{}", scheme.name);
    }
    app.stop().await;
}

async fn a_client_that_waits_for_it_is_asked_for_its_password(backend: Backend) {
    let schemes = schemes();
    let config: String = schemes.iter().map(|scheme| vendor(scheme, "")).collect();
    let app = TestApp::with(backend, &config).await;
    for scheme in &schemes {
        let answer = send(&app, scheme.name, &Vec::new(), "{}").await;
        let asked = answer.headers.contains_key("www-authenticate");
        assert_eq!((answer.status.as_u16(), asked), (401, scheme.name == "basic"), "{}", scheme.name);
    }
    app.stop().await;
}
