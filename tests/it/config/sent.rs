//! What is sent and how vendors are connected to: `body`, templated `headers`, `idempotency_header`, `tls`, `proxy`.

use fetchgate::vendor::body::Body;

use super::*;
use crate::support::ways::certificate;

#[test]
fn bodies_headers_and_ways_are_read() {
    let text = sync_vendor(
        r#"body = { form = { To = "{{ payload.to }}", key = "${KEY}" } }
headers = { x-tenant = "{{ tenant | header }}", x-key = "${KEY}" }
idempotency_header = "X-Request-Id"
proxy = "http://us:${KEY}@proxy.example:3128"
"#,
    );
    let config = parse_with(&text, &[("KEY", SECRET)]).unwrap_or_else(|error| panic!("{error}"));
    let vendor = &config.vendors[0];
    assert!(matches!(&vendor.body, Some(Body::Form(fields)) if fields.len() == 2));
    assert_eq!(vendor.headers.len(), 1);
    assert_eq!(vendor.header_templates[0].0.as_str(), "x-tenant");
    assert_eq!(vendor.idempotency_header.as_ref().map(|name| name.as_str()), Some("x-request-id"));
    assert_eq!(vendor.proxy.as_ref().map(|proxy| proxy.at().name()).as_deref(), Some("proxy.example:3128"));
    assert!(!format!("{config:?}").contains(SECRET));

    let defaults = parse(&sync_vendor("")).expect("good").vendors.remove(0);
    assert_eq!(defaults.idempotency_header.as_ref().map(|name| name.as_str()), Some("idempotency-key"));
    assert!(defaults.tls.is_none() && defaults.proxy.is_none() && defaults.header_templates.is_empty());
    let none = parse(&sync_vendor("idempotency_header = \"\"")).expect("good").vendors.remove(0);
    assert!(none.idempotency_header.is_none());
}

#[test]
fn mistakes_in_bodies_and_headers_are_refused_with_their_mend() {
    for (more, key, word) in [
        ("body = {}", "body", "either a form, or a text"),
        (r#"body = { form = { a = "1" }, text = "x", type = "text/plain" }"#, "body", "either a form, or a text"),
        (r#"body = { form = { a = "1" }, type = "text/plain" }"#, "body", "either a form, or a text"),
        (r#"body = { text = "<q/>" }"#, "body.type", "text/xml; charset=utf-8"),
        (r#"body = { text = "<q/>", type = "xml" }"#, "body.type", "not a media type"),
        (r#"body = { text = "<q/>", type = "text/xml; charset=iso-8859-1" }"#, "body.type", "UTF-8"),
        (r#"body = { text = "<q>{{ payload }}</q>", type = "text/xml" }"#, "body.text", "write `{{ payload | xml }}`"),
        (r#"body = { text = "<{{ payload | xml }}/>", type = "text/xml" }"#, "body.text", "inside of a tag"),
        (r#"body = { form = {} }"#, "body.form", "Have 1 to 100"),
        (r#"body = { form = { "{{ tenant }}" = "1" } }"#, "body.form.\"{{ tenant }}\"", "Write it out"),
        (r#"body = { form = { a = "{{ payload.a | query }}" } }"#, "body.form.a", "takes no filter"),
        (r#"body = { form = { a = "{{ ticket }}" } }"#, "body", "only known after this call"),
        (r#"body = { form = { a = "{{ callback_url }}" } }"#, "body", "only webhook vendors"),
        (r#"body = { form = { a = 5 } }"#, "body.form.a", "a text in quotes"),
        (r#"body = { json = "1" }"#, "body.json", "the keys here are form, text, type"),
        ("body = 5", "body", "expected a text in quotes or a table, found a number. Write JSON such as"),
        ("method = \"GET\"\nbody = { form = { a = \"1\" } }", "body", "a GET sends no body"),
        (r#"headers = { x-a = "{{ tenant }}" }"#, "headers.x-a", "write `{{ tenant | header }}`"),
        (r#"headers = { x-a = "{{ ticket | header }}" }"#, "headers.x-a", "only known after this call"),
        (r#"headers = { x-a = "{{ callback_url | header }}" }"#, "headers.x-a", "only webhook vendors"),
        (r#"headers = { X-A = "1", x-a = "{{ tenant | header }}" }"#, "headers.x-a", "twice"),
        (r#"headers = { x-a = "${file:/x}{{ tenant | header }}" }"#, "headers.x-a", "a header of its own"),
        (
            r#"headers = { idempotency-key = "{{ tenant | header }}" }"#,
            "headers.idempotency-key",
            "idempotency_header = \"\"",
        ),
        (r#"idempotency_header = "a b""#, "idempotency_header", "not a header's name"),
        (r#"idempotency_header = "Host""#, "idempotency_header", "Name another header"),
        (r#"idempotency_header = "Content-Type""#, "idempotency_header", "Name another header"),
        ("idempotency_header = false", "idempotency_header", "\"\" for none"),
    ] {
        let line = 5 + more.matches('\n').count();
        refused(&sync_vendor(more), &format!("vendors.v.{key}"), line, word);
    }
    let typed = "body = { form = { a = \"1\" } }\nheaders = { content-type = \"text/plain\" }";
    refused(&sync_vendor(typed), "vendors.v.headers.content-type", 6, "Remove this header");
    let both = "auth = { kind = \"header\", name = \"x-id\", value = \"v\" }\nidempotency_header = \"X-Id\"";
    refused(&sync_vendor(both), "vendors.v.idempotency_header", 6, "Name another header");
    let told = "headers = { x-notify = \"{{ callback_url | header }}\" }\nbody = '{}'";
    assert!(parse(&webhook_vendor(told)).is_ok(), "a header may say where to call back");
    let secret = "body = { form = { a = \"${KEY}\" } }";
    let error = parse_with(&sync_vendor(secret), &[("KEY", "{{ tenant }}")]).expect_err("a template in a secret");
    assert!(error.to_string().contains("Write templates here, not into variables"), "{error}");
}

#[test]
fn mistakes_in_tls_and_proxy_are_refused_with_their_mend() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let own = |name: &str| certificate(name).display().to_string();
    let nothing = file("nothing.pem", "canary-7f3a9c");
    let broken = file("broken.pem", "-----BEGIN PRIVATE KEY-----\ncanary-7f3a9c\n-----END PRIVATE KEY-----\n");
    let (cert, key, other) = (own("client-1.pem"), own("client-1.key"), own("client-2.key"));
    for (more, at, word) in [
        ("tls = {}".to_owned(), "tls", "names no file"),
        ("tls = { ca = \"/nowhere.pem\" }".to_owned(), "tls.ca", "file /nowhere.pem cannot be read"),
        (format!("tls = {{ ca = \"{nothing}\" }}"), "tls.ca", "BEGIN CERTIFICATE"),
        (format!("tls = {{ ca = \"{key}\" }}"), "tls.ca", "has no certificate"),
        (format!("tls = {{ cert = \"{cert}\" }}"), "tls.key", "required with cert"),
        (format!("tls = {{ key = \"{key}\" }}"), "tls.cert", "required with key"),
        (format!("tls = {{ cert = \"{cert}\", key = \"{broken}\" }}"), "tls.key", "without a password"),
        (format!("tls = {{ cert = \"{cert}\", key = \"{cert}\" }}"), "tls.key", "no private key"),
        (format!("tls = {{ cert = \"{cert}\", key = \"{other}\" }}"), "tls.key", "is not the key of the certificate"),
        (format!("tls = {{ cret = \"{cert}\" }}"), "tls.cret", "Did you mean cert?"),
        ("proxy = \"proxy:3128\"".to_owned(), "proxy", "by http"),
        ("proxy = \"https://proxy:3128\"".to_owned(), "proxy", "by http"),
        ("proxy = \"http://canary-7f3a9c:p/w@proxy:3128\"".to_owned(), "proxy", "%2F"),
        ("proxy = \"${NOPE}\"".to_owned(), "proxy", "Set NOPE"),
        ("proxy = false".to_owned(), "proxy", "http://user:${PASSWORD}@proxy:3128"),
    ] {
        refused(&sync_vendor(&more), &format!("vendors.v.{at}"), 5, word);
        let shown = parse(&sync_vendor(&more)).expect_err("refused").to_string();
        assert!(!shown.contains(SECRET), "{shown}");
    }
    for good in [
        format!("tls = {{ ca = \"{}\" }}", own("authority.pem")),
        format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}"),
    ] {
        assert!(parse(&sync_vendor(&good)).is_ok_and(|config| config.vendors[0].tls.is_some()), "{good}");
    }
}
