//! Mistakes, one a line: what was written, the key and the line that the answer names, a word of the mend.

use super::{parse, refused, sync_vendor, webhook_vendor};

/// A polling vendor whose table, in line 5, is this.
fn polling_vendor(polling: &str) -> String {
    sync_vendor(&format!("polling = {{ {polling} }}\n")).replace("\"sync\"", "\"polling\"")
}

#[test]
fn what_is_wrong_outside_the_vendors_is_refused() {
    let table = [
        ("[server]\nlisten = \"localhost:8000\"", "server.listen", 2, "127.0.0.1:8000"),
        ("[server]\nlisten = 8000", "server.listen", 2, "127.0.0.1:8000"),
        ("[server]\nlisten = \"0.0.0.0:8000\"", "auth.allow_open", 2, "allow_open = true"),
        ("[server]\nlisten = \"[::]:8000\"\n[auth]\nmode = \"none\"", "auth.allow_open", 2, "allow_open = true"),
        ("[server]\n\npublic_url = \"jobs.example\"", "server.public_url", 3, "https://"),
        ("[server]\npublic_url = \"ftp://jobs.example\"", "server.public_url", 2, "https://"),
        ("[server]\npublic_url = \"https://u:p@jobs.example\"", "server.public_url", 2, "before the @"),
        ("[server]\npublic_url = \"https://jobs.example/?a=1\"", "server.public_url", 2, "what follows the path"),
        ("[server]\ncallback_secret = \"\"", "server.callback_secret", 2, "remove the key"),
        ("[server]\ntls = { cert = \"cert.pem\" }", "server.tls", 2, "key.pem"),
        ("[server]\ntls = { cert = \"a\", key = \"-----BEGIN PRIVATE KEY-----\" }", "server.tls.key", 2, "into a file"),
        ("[server]\ntls = true", "server.tls", 2, "Write { cert ="),
        ("[server]\ncors = [\"*\"]", "server.cors", 2, "https://app.example"),
        ("[server]\ncors = [\"https://app.example/\"]", "server.cors", 2, "Write \"https://app.example\""),
        ("[server]\ncors = [\"HTTPS://app.example:443\"]", "server.cors", 2, "Write \"https://app.example\""),
        ("[server]\nmax_connections_per_address = 0", "server.max_connections_per_address", 2, "from 1 to 10000"),
        ("[ops]\nlisten = \"127.0.0.1:8000\"", "ops.listen", 2, "port of its own"),
        ("[auth]\nmode = \"api_key\"\nadmin_key = \"too short\"", "auth.admin_key", 3, "openssl rand"),
        ("[auth]\nadmin_key = \"0123456789abcdef0123456789abcdef\"", "auth.admin_key", 2, "mode = \"api_key\""),
        ("[auth]\npublished_on = \"0.0.0.0\"", "auth.published_on", 2, "FETCHGATE_ADMIN_KEY"),
        ("[auth]\npublished_on = \"here\"", "auth.published_on", 2, "127.0.0.1"),
        ("[tenants.acme]\nsubmit = \"many\"", "tenants.acme.submit", 2, "50/s"),
        ("[tenants.acme]\nmax_waiting = 0", "tenants.acme.max_waiting", 2, "from 1"),
        ("[tenants.acme]\nmax_waiting_bytes = \"1 GB\"", "tenants.acme.max_waiting_bytes", 2, "10000000000"),
        ("[tenants.acme]\nsubmits = \"1/s\"", "tenants.acme.submits", 2, "submit"),
        ("[tenants.acme]\nwebhook_secret = \"whsec_c2hvcnQ=\"", "tenants.acme.webhook_secret", 2, "whsec_"),
        ("[result_webhooks]\nsecret = \"plain text\"", "result_webhooks.secret", 2, "whsec_"),
        ("[result_webhooks]\ngive_up_after = \"31d\"", "result_webhooks.give_up_after", 2, "at most"),
        ("[result_webhooks]\nallow = [\"10.0.0.1/8\"]", "result_webhooks.allow", 2, "10.0.0.0/8"),
        ("[result_webhooks]\nallow = [\"https://a.example/path\"]", "result_webhooks.allow", 2, "http://hooks"),
        ("[tenant_defaults]\nsubmit = 5", "tenant_defaults.submit", 2, "100/s"),
        ("[auth]\nmode = \"open\"", "auth.mode", 2, "\"none\""),
        ("[auth]\nallow_open = \"yes\"", "auth.allow_open", 2, "true or false"),
        ("[store]\nurl = \"mongodb://localhost:27017/fetchgate\"", "queue", 2, "redis://HOST:6379/0"),
        ("[store]\nurl = \"mysql://localhost/fetchgate\"", "store.url", 2, "mongodb://HOST:27017/fetchgate"),
        ("[store]\nurl = \"data/fetchgate.db\"", "store.url", 2, "sqlite:data/fetchgate.db"),
        ("[store]\nurl = \"sqlite:\"", "store.url", 2, "path is missing"),
        ("[store]\nurl = \"sqlite::memory:\"", "store.url", 2, "lost"),
        ("[store]\nurl = \"sqlite:///data/x\"", "store.url", 2, "without //"),
        ("[store]\nretention = \"0s\"", "store.retention", 2, "too short"),
        ("[store]\nretention = \"99999d\"", "store.retention", 2, "at most"),
        ("[queue]\nurl = \"redis://localhost\"", "queue", 1, "SQLite needs none"),
        ("[capacity]\nmax_waiting = 0", "capacity.max_waiting", 2, "from 1"),
        ("[capacity]\nmax_waiting_bytes = 0", "capacity.max_waiting_bytes", 2, "from 1"),
        ("[capacity]\nmax_waiting = \"many\"", "capacity.max_waiting", 2, "whole number"),
        ("[capacity]\ngrace = \"30\"", "capacity.grace", 2, "unit is missing"),
        ("[capacity]\ngrace = 30", "capacity.grace", 2, "\"10s\""),
        ("[capacity]\ngrace = \"0s\"", "capacity.grace", 2, "too short"),
        ("default_vendor = \"sink\"", "default_vendor", 1, "there is no vendor \"sink\""),
        ("[servers]\n", "servers", 1, "server"),
        ("[server]\nlistne = \"x\"", "server.listne", 2, "Did you mean listen?"),
        ("public_url = \"x\"", "public_url", 1, "[server]"),
        ("server = 1", "server", 1, "[table]"),
        ("[[vendors]]\nkind = \"sync\"", "vendors", 1, "[vendors.name]"),
    ];
    for (text, key, line, word) in table {
        refused(text, key, line, word);
    }
    refused(&format!("default_vendor = 'w'\n{}", sync_vendor("")), "default_vendor", 1, "Name one of v");
    assert!(parse("[server]\nlisten = \"0.0.0.0:8000\"\n[auth]\nallow_open = true").is_ok());
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    let table = [
        ("[server]\nlisten 127.0.0.1", 2, "key = value"),
        ("[server]\nlisten = 127.0.0.1", 2, "quotes"),
        ("[server]\nlisten = \"127.0.0.1", 2, "quotes"),
        ("[server]\nlisten = \"a\"\nlisten = \"b\"", 3, "only once"),
        ("[server\n", 1, "]"),
    ];
    for (text, line, word) in table {
        refused(text, "", line, word);
    }
}

#[test]
fn vendors_that_are_wrong_are_refused() {
    let table = [
        ("concurrency = 0", "concurrency", "from 1 to 10000"),
        ("concurrency = 10001", "concurrency", "from 1 to 10000"),
        ("concurrency = \"32\"", "concurrency", "whole number"),
        ("timeout = \"0s\"", "timeout", "too short"),
        ("timeout = \"11m\"", "timeout", "\"10m\""),
        ("timeout = 10", "timeout", "\"10s\""),
        ("timeout = \"1.5s\"", "timeout", "no decimals"),
        ("retry = { attempts = 0 }", "retry.attempts", "from 1"),
        ("retry = { first = \"11m\" }", "retry.first", "at most retry.max"),
        ("retry = { max = \"100ms\" }", "retry.max", "at most retry.max"),
        ("retry = { first = \"0s\" }", "retry.first", "too short"),
        ("retry = { unanswered = \"once\" }", "retry.unanswered", "whole number"),
        ("retry = { tries = 5 }", "retry.tries", "attempts"),
        ("retry = 5", "retry", "attempts = 16"),
        ("deadline = \"0s\"", "deadline", "too short"),
        ("open = 5", "open", "polling"),
        ("method = \"DELETE\"", "method", "\"POST\""),
        ("method = \"post\"", "method", "Did you mean \"POST\"?"),
        ("pool = \"My Pool\"", "pool", "a-z"),
        ("body = '{\"a\": {{ payload.a }}'", "body", "json"),
        ("body = '{{ ticket | json }}'", "body", "ticket"),
        ("body = '{{ callback_url | json }}'", "body", "webhook"),
        ("headers = { \"a b\" = \"x\" }", "headers.\"a b\"", "letters"),
        ("headers = { x = \"a\\nb\" }", "headers.x", "visible ASCII"),
        ("headers = { x = \"\u{e9}\" }", "headers.x", "visible ASCII"),
        ("headers = { x = 5 }", "headers.x", "text in quotes"),
        ("headers = { Host = \"a\" }", "headers.Host", "Remove it"),
        ("headers = { Content-Length = \"1\" }", "headers.Content-Length", "Remove it"),
        ("headers = { transfer-encoding = \"chunked\" }", "headers.transfer-encoding", "Remove it"),
        ("headers = { connection = \"close\" }", "headers.connection", "Remove it"),
        ("headers = { idempotency-key = \"1\" }", "headers.idempotency-key", "Remove it"),
        ("headers = { traceparent = \"1\" }", "headers.traceparent", "Remove it"),
        ("headers = { x-a = \"1\", X-A = \"2\" }", "headers.x-a", "twice"),
        ("clean = { redact = [\"/ok\", \"ssn\"] }", "clean.redact[1]", "starts with a slash"),
        ("clean = { redact = \"/ssn\" }", "clean.redact", "array"),
        ("clean = { trim = 1 }", "clean.trim", "true or false"),
        ("failed = { at = \"/status\" }", "failed.is", "required"),
        ("failed = { is = [\"x\"] }", "failed.at", "required"),
        ("failed = { at = \"/status\", is = [] }", "failed.is", "no value"),
        ("failed = { at = \"/status\", is = \"x\" }", "failed.is", "array"),
        ("failed = { at = \"status\", is = [\"x\"] }", "failed.at", "slash"),
        ("failed = { at = \"/status\", is = [1.5] }", "failed.is[0]", "text"),
        ("webhook = { verify = \"none\" }", "webhook", "kind = \"webhook\""),
        ("polling = { ticket = \"/id\" }", "polling", "kind = \"polling\""),
        ("rate_headers = { remaining = \"X Left\", reset = \"X-Reset\" }", "rate_headers.remaining", "X-Calls-Left"),
        ("timeuot = \"10s\"", "timeuot", "Did you mean timeout?"),
        ("colour = \"red\"", "colour", "the keys here are"),
    ];
    for (more, key, word) in table {
        refused(&sync_vendor(more), &format!("vendors.v.{key}"), 5, word);
    }
    refused(&sync_vendor("method = \"GET\"\nbody = '{}'"), "vendors.v.body", 6, "GET sends no body");
    refused("[vendors.v]\nurl = \"http://a/\"\nlimits = []", "vendors.v.kind", 1, "\"polling\"");
    refused("[vendors.v]\nkind = \"sync\"\nlimits = []", "vendors.v.url", 1, "https://");
    refused(&sync_vendor("").replace("\"sync\"", "\"snyc\""), "vendors.v.kind", 2, "Did you mean \"sync\"?");
    refused(&sync_vendor("").replace("vendors.v", "vendors.Big"), "vendors.Big", 1, "a-z");
    refused(&sync_vendor("").replace("vendors.v", "vendors.'a.b'"), "vendors.\"a.b\"", 1, "a-z");
    for url in ["ftp://a/b", "/path", "not a url", "http://", "http://{{ payload.host }}/", "http://u:p@h/"] {
        let text = sync_vendor("").replace("http://127.0.0.1:9000/sync", url);
        refused(&text, "vendors.v.url", 3, "http or https");
    }
}

#[test]
fn breakers_that_are_wrong_are_refused() {
    let table = [
        ("breaker = true", "breaker", "or false to turn it off"),
        ("breaker = 5", "breaker", "calls = 5"),
        ("breaker = { fails = 0.5 }", "breaker.fails", "Did you mean failed?"),
        ("breaker = { failed = 0.0 }", "breaker.failed", "over 0 and up to 1"),
        ("breaker = { failed = \"90%\" }", "breaker.failed", "failed = 0.9"),
        ("breaker = { calls = 0 }", "breaker.calls", "from 1 to 10000"),
        ("breaker = { within = \"0s\" }", "breaker.within", "within = \"30s"),
        ("breaker = { open = \"2h\" }", "breaker.open", "at most \"1h\""),
        ("breaker = { open = \"99ms\" }", "breaker.open", "at least \"100ms\""),
        ("breaker = { open = 10 }", "breaker.open", "open = \"10s\""),
    ];
    for (more, key, word) in table {
        refused(&sync_vendor(more), &format!("vendors.v.{key}"), 5, word);
    }
}

#[test]
fn webhook_and_polling_vendors_are_checked_as_such() {
    let webhook = [
        ("webhook = { verify = \"hmac\" }", "webhook.verify", "standard-webhooks"),
        ("webhook = { verify = \"standard-webhooks\" }", "webhook.secret", "required"),
        ("webhook = { verify = \"standard-webhooks\", secret = \"***\" }", "webhook.secret", "base64"),
        ("webhook = { verify = \"none\", secret = \"x\" }", "webhook.secret", "would not be used"),
        ("webhook = { secret = \"x\" }", "webhook.secret", "standard-webhooks"),
        ("webhook = { result = \"report\" }", "webhook.result", "slash"),
        ("webhook = { ticket_in_callback = \"/id\" }", "webhook.ticket_in_callback", "ticket = "),
        ("webhook = { signature = \"none\" }", "webhook.signature", "verify"),
        ("open = 0", "open", "from 1"),
        ("answer_within = \"0s\"", "answer_within", "too short"),
        ("body = '{{ payload | json }}'", "body", "callback_url"),
        ("method = \"GET\"", "method", "callback_url"),
        ("polling = {}", "polling", "Remove it"),
    ];
    for (more, key, word) in webhook {
        refused(&webhook_vendor(more), &format!("vendors.v.{key}"), 5, word);
    }
    for fine in ["", "webhook = { verify = \"none\" }\nbody = '{}'", "open = 5\nanswer_within = \"5m\""] {
        assert!(parse(&webhook_vendor(fine)).is_ok(), "{fine}");
    }
    let ok = r#"ticket = "/id", url = "http://127.0.0.1/{{ ticket | path }}", every = "2s", done = { at = "/s", is = ["d"] }"#;
    assert!(parse(&polling_vendor(ok)).is_ok());
    let polling = [
        (ok.replace(r#"ticket = "/id", "#, ""), "ticket", "required"),
        (ok.replace(r#", every = "2s""#, ""), "every", "required"),
        (ok.replace(r#", done = { at = "/s", is = ["d"] }"#, ""), "done", "required"),
        (ok.replace("{{ ticket | path }}", "last"), "url", "{{ ticket | path }}"),
        (ok.replace("http://", "gopher://"), "url", "http or https"),
        (ok.replace("2s", "0s"), "every", "too short"),
        (ok.replace("/id", "id"), "ticket", "slash"),
    ];
    for (table, key, word) in polling {
        refused(&polling_vendor(&table), &format!("vendors.v.polling.{key}"), 5, word);
    }
    let none = sync_vendor("").replace("\"sync\"", "\"polling\"");
    refused(&none, "vendors.v.polling", 1, "ticket = ");
}

#[test]
fn what_proves_callbacks_is_checked_as_such() {
    let hmac = |more: &str| format!("{{ hmac = \"sha256\", header = \"X-Signature\", secret = \"s\"{more} }}");
    let table = [
        ("\"githup\", secret = \"s\"".to_owned(), "verify", "Did you mean \"github\"?"),
        ("\"github\"".into(), "secret", "required"),
        ("\"slack\", secret = []".into(), "secret", "1 to 8"),
        ("\"slack\", secret = [\"a\", \"\"]".into(), "secret[1]", "empty"),
        ("\"slack\", secret = 5".into(), "secret", "several of them in an array"),
        ("5".into(), "verify", "hmac = "),
        ("{}".into(), "verify", "none of hmac, value and basic"),
        ("{ header = \"X\", value = \"v\", hmac = \"sha256\" }".into(), "verify", "more than one"),
        (
            "{ hmac = \"md5\", header = \"X\", secret = \"s\" }".into(),
            "verify.hmac",
            "\"sha256\" or \"sha1\" or \"sha512\"",
        ),
        ("{ hmac = \"sha1\", secret = \"s\" }".into(), "verify.header", "required"),
        ("{ hmac = \"sha1\", header = \"a b\", secret = \"s\" }".into(), "verify.header", "X-Signature"),
        ("{ hmac = \"sha1\", header = \"X\" }".into(), "verify.secret", "required"),
        ("{ header = \"X\", value = \"v\" }, secret = \"s\"".into(), "secret", "into verify"),
        (hmac(", encoding = \"base32\""), "verify.encoding", "Did you mean \"base64\""),
        (hmac(", signs = \"{{ header.x-time }}\""), "verify.signs", "anybody could change it"),
        (hmac(", signs = \"{{ body | json }}\""), "verify.signs", "header.NAME"),
        (hmac(", timestamp = \"X-Time\""), "verify.timestamp", "is not signed"),
        (hmac(", tolerance = \"1m\""), "verify.tolerance", "timestamp = "),
        (hmac(", value = \"v\""), "verify", "more than one"),
        (hmac(", key = \"v\""), "verify.key", "hmac"),
        ("{ header = \"X\", value = \"a\\nb\" }".into(), "verify.value", "visible ASCII"),
        ("{ value = \"v\" }".into(), "verify.header", "required"),
        (
            "{ header = \"X\", value = \"v\", encoding = \"hex\" }".into(),
            "verify.encoding",
            "its keys are header, value",
        ),
        ("{ basic = { user = \"u\" } }".into(), "verify.basic", "a user and a password"),
        ("{ basic = { user = \"u:v\", password = \"p\" } }".into(), "verify.basic.user", "no colon"),
        ("{ basic = { user = \"u\", password = \"p\" }, secret = \"s\" }".into(), "verify.secret", "no such key"),
    ];
    for (verify, key, word) in table {
        let key = format!("vendors.v.webhook.{key}");
        refused(&webhook_vendor(&format!("webhook = {{ verify = {verify} }}")), &key, 5, word);
    }
    for (more, key, word) in [
        ("done = { at = \"/s\" }", "done.is", "required"),
        ("events = \"items\"", "events", "slash"),
        ("unknown = \"refuse\"", "unknown", "\"accept\""),
        ("get = \"yes\"", "get", "true or false"),
        ("challenge = \"meta\"", "challenge", "graph"),
        ("challenge = {}", "challenge.hub", "required"),
        ("challenge = { hub = [] }", "challenge.hub", "1 to 8"),
    ] {
        let text = webhook_vendor(&format!("webhook = {{ verify = \"none\", {more} }}"));
        refused(&text, &format!("vendors.v.webhook.{key}"), 5, word);
    }
    refused(
        &webhook_vendor("webhook = { unknown = \"accept\" }"),
        "vendors.v.webhook.unknown",
        5,
        "the shared URL is off",
    );
    for fine in [
        "\"github\", secret = [\"new\", \"old\"]",
        "\"stripe\", secret = \"whsec_x\", get = true, challenge = { hub = \"t\" }",
        &hmac(
            ", encoding = \"hex\", prefix = \"v1=\", signs = \"{{ header.x-signature.t }}.{{ body }}\", timestamp = \"X-Signature.t\", tolerance = \"1h\"",
        ),
        "{ header = \"X-Token\", value = [\"a\", \"b\"] }, events = \"\", unknown = \"accept\"",
        "{ basic = { user = \"u\", password = [\"p\", \"q\"] } }, challenge = \"slack\"",
    ] {
        assert!(parse(&webhook_vendor(&format!("webhook = {{ verify = {fine} }}"))).is_ok(), "{fine}");
    }
}

#[test]
fn a_webhook_vendor_elsewhere_must_be_able_to_reach_us() {
    let elsewhere = webhook_vendor("").replace("127.0.0.1:9000", "api.bureau.example");
    refused(&elsewhere, "vendors.v.url", 3, "server.public_url");
    for public_url in
        ["http://localhost:8000", "http://127.9.9.9", "http://[::1]:8000", "http://0.0.0.0:80", "http://a.localhost"]
    {
        let text = format!("{elsewhere}[server]\npublic_url = \"{public_url}\"");
        refused(&text, "vendors.v.url", 3, "server.public_url");
    }
    assert!(parse(&format!("{elsewhere}[server]\npublic_url = \"https://jobs.example\"")).is_ok());
    assert!(parse(&webhook_vendor("").replace("127.0.0.1:9000", "localhost:1")).is_ok(), "both on this machine");
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_lines() {
    let text = sync_vendor("timeout = \"x\"\nconcurrency = 0\n[capacity]\ngrace = \"y\"");
    let error = parse(&text).unwrap_err();
    let keys: Vec<&str> = error.problems().iter().map(|problem| &*problem.key).collect();
    assert_eq!(keys, ["vendors.v.timeout", "vendors.v.concurrency", "capacity.grace"]);
    assert_eq!(error.to_string().lines().count(), 3);
    let text = sync_vendor("timeout = 1\nconcurency = 0\n[capacity]\ngrace = true");
    let error = parse(&text).unwrap_err();
    let keys: Vec<&str> = error.problems().iter().map(|problem| &*problem.key).collect();
    assert_eq!(keys, ["vendors.v.timeout", "vendors.v.concurency", "capacity.grace"]);
}
