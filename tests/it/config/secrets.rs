//! Secrets are filled in from variables and files, and shown nowhere.

use super::{SECRET, parse, parse_with, refused, sync_vendor, webhook_vendor, with_limits};

#[test]
fn secrets_come_from_variables_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "from-a-file\r\n").unwrap();
    let text =
        sync_vendor(&format!("headers = {{ a = \"${{file:{}}}\", b = \"${{B}}\", c = \"$${{B}}\" }}", path.display()));
    let config = parse_with(&text, &[("B", "two words")]).unwrap_or_else(|error| panic!("{error}"));
    let values: Vec<_> = config.vendors[0].headers.iter().map(|(_, value)| value.reveal().to_string()).collect();
    assert_eq!(values, ["from-a-file", "two words", "${B}"]);
    assert!(parse_with(&with_limits("\"${LIMIT}\""), &[("LIMIT", "7/s")]).is_ok(), "any text may be filled in");

    refused(&sync_vendor("headers = { a = \"${NOPE}\" }"), "vendors.v.headers.a", 5, "Set NOPE");
    refused(&sync_vendor("headers = { a = \"${file:/nowhere/x}\" }"), "vendors.v.headers.a", 5, "/nowhere/x");
    refused(&sync_vendor("headers = { a = \"${NOPE\" }"), "vendors.v.headers.a", 5, "Close it");
    std::fs::write(&path, "\n").unwrap();
    refused(
        &sync_vendor(&format!("headers = {{ a = \"${{file:{}}}\" }}", path.display())),
        "vendors.v.headers.a",
        5,
        "empty",
    );
}

#[test]
fn a_url_or_a_body_with_a_secret_says_why_it_is_wrong() {
    let url = |target: &str| sync_vendor("").replace("/sync\"", &format!("{target}\""));
    let key = "vendors.v.url";
    for (text, key, line, word) in [
        (url("/a?key=${S}&x={{ payload.x }}"), key, 3, "`payload.x` needs a filter: write `{{ payload.x | query }}`"),
        (url("/a?key=${S}&x={{ payload.x | path }}"), key, 3, "write `{{ payload.x | query }}`"),
        (url("/a?key=${S}&x={{ nope | query }}"), key, 3, "unknown name `nope`"),
        (url("/a?key=${S}#top"), key, 3, "a URL's fragment"),
        (url("/a?key=${SPACE}"), key, 3, "what is filled in has characters that cannot stand there as they are"),
        (
            sync_vendor("body = '{\"k\": \"${S}\", \"x\": {{ payload.x }}}'"),
            "vendors.v.body",
            5,
            "write `{{ payload.x | json }}`",
        ),
        (
            sync_vendor("body = '{\"k\": ${N}, \"x\": {{ payload.x }}}'"),
            "vendors.v.body",
            5,
            "write `{{ payload.x | json }}`",
        ),
    ] {
        let error =
            parse_with(&text, &[("S", SECRET), ("SPACE", &format!("a {SECRET}")), ("N", "4711")]).expect_err(&text);
        let [problem] = error.problems() else { panic!("{error}") };
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("fetchgate.toml line {line}: {key}")) && shown.contains(word), "{shown}");
        assert!(problem.key == key && !shown.contains("4711"), "{shown}");
        canary(&shown, &text);
    }
}

#[track_caller]
fn canary(shown: &str, text: &str) {
    assert!(!shown.contains(SECRET), "{text}\nshows it:\n{shown}");
}

/// A secret filled in at every place, right or wrong.
#[test]
fn what_is_filled_in_is_never_shown() {
    let texts = [
        "[server]\ncallback_secret = \"@\"".to_owned(),
        "[server]\nlisten = \"@\"".to_owned(),
        "[server]\npublic_url = \"https://u:@@host\"".to_owned(),
        "[server]\npublic_url = \"@\"".to_owned(),
        "[store]\nurl = \"mongodb://u:@@host\"".to_owned(),
        "[store]\nurl = \"mongodb://u:@@host/x\"\n[queue]\nurl = \"@\"".to_owned(),
        "[store]\nurl = \"mongodb://u:@@host/x\"\n[queue]\nurl = \"redis://u:@@host/0\"".to_owned(),
        "[store]\nretention = \"@\"".to_owned(),
        "[auth]\nmode = \"@\"".to_owned(),
        "[capacity]\ngrace = \"@\"\nmax_waiting = \"@\"".to_owned(),
        "default_vendor = \"@\"".to_owned(),
        sync_vendor("headers = { a = \"@\" }"),
        sync_vendor("headers = { a = \"@\\n\", host = \"@\" }"),
        sync_vendor("headers = { a = [\"@\"] }"),
        sync_vendor("headers = \"Bearer @\""),
        sync_vendor("body = '{\"key\": \"@\", \"p\": {{ payload | json }}}'"),
        sync_vendor("body = '{\"key\": \"@'"),
        sync_vendor("body = '@'"),
        sync_vendor("concurrency = \"@\""),
        sync_vendor("clean = { redact = [\"@\"] }"),
        sync_vendor("failed = { at = \"@\", is = [\"@\"] }"),
        sync_vendor("").replace("50/s", "@"),
        sync_vendor("").replace("50/s", "@/day"),
        sync_vendor("").replace("/sync\"", "/sync?key=@\""),
        sync_vendor("").replace("http://127.0.0.1:9000/sync", "@"),
        sync_vendor("").replace("http://127.0.0.1:9000/sync", "http://u:@@h/"),
        sync_vendor("").replace("http://127.0.0.1:9000/sync", "http://h/{{ @ }}"),
        sync_vendor("").replace("127.0.0.1", "@.example"),
        with_limits("{ calls = 1, per = \"@\", shape = \"@\", guard = \"@\", key = \"@\", id = \"@ \", tz = \"@\" }"),
        webhook_vendor("webhook = { verify = \"standard-webhooks\", secret = \"@\" }"),
        webhook_vendor(
            "webhook = { verify = \"standard-webhooks\", secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\", result = \"@\" }",
        ),
        webhook_vendor("webhook = { verify = \"@\", secret = \"@\" }"),
        webhook_vendor("webhook = { secret = \"@\" }"),
        webhook_vendor("webhook = { verify = \"github\", secret = [\"@\", \"@\"] }"),
        webhook_vendor("webhook = { verify = { hmac = \"sha1\", header = \"X\", secret = \"@\" } }"),
        webhook_vendor(
            "webhook = { verify = { hmac = \"@\", header = \"@ \", secret = \"@\", signs = \"@\", timestamp = \"@\" } }",
        ),
        webhook_vendor("webhook = { verify = { header = \"X\", value = \"@\" } }"),
        webhook_vendor("webhook = { verify = { header = \"X\", value = \"@\\n\" } }"),
        webhook_vendor("webhook = { verify = { basic = { user = \"@:\", password = \"@\" } } }"),
        webhook_vendor("webhook = { verify = { basic = { user = \"u\", password = \"@\" } } }"),
        webhook_vendor("webhook = { verify = \"none\", challenge = { hub = \"@\" } }"),
        webhook_vendor("webhook = { verify = \"none\", challenge = \"@\", unknown = \"@\" }"),
        webhook_vendor("webhook = \"@\""),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    let from_file = format!("${{file:{}}}", file.path().display());
    for text in &texts {
        for filled in [text.replace('@', "${S}"), text.replace('@', &from_file)] {
            match parse_with(&filled, &[("S", SECRET)]) {
                Ok(config) => canary(&format!("{config:?} {:?}", config.warnings), &filled),
                Err(error) => canary(&format!("{error} {error:?}"), &filled),
            }
        }
    }
}

#[test]
fn what_is_written_out_where_a_secret_belongs_is_never_shown() {
    for text in [
        sync_vendor(&format!("headers = {{ a = \"{SECRET}\\n\" }}")),
        sync_vendor(&format!("headers = \"{SECRET}\"")),
        sync_vendor(&format!("headers = {{ a = [\"{SECRET}\"] }}")),
        format!("[server]\ncallback_secret = \"{SECRET}\"\nx = 1"),
        format!("[server]\ncallback_secret = {SECRET}"),
        format!("[server]\ncallback_secret = \"{SECRET}"),
        format!("[server]\ncallback_secret = [\"{SECRET}\"]"),
        format!("[store]\nurl = \"mongodb://u:{SECRET}@h\""),
        webhook_vendor(&format!("webhook = {{ verify = \"none\", secret = \"{SECRET}\" }}")),
        webhook_vendor(&format!("webhook = {{ verify = \"standard-webhooks\", secret = \"{SECRET}!\" }}")),
        sync_vendor("").replace("/sync\"", &format!("/sync?key={SECRET}{{{{\"")),
    ] {
        let error = parse(&text).expect_err(&text);
        canary(&format!("{error} {error:?}"), &text);
    }
}

#[test]
fn secrets_in_variables_that_override_keys_are_never_shown() {
    for (variable, value) in [
        ("FETCHGATE__SERVER__CALLBACK_SECRET", format!("[\"{SECRET}\"]")),
        ("FETCHGATE__CAPACITY__MAX_WAITING", SECRET.to_owned()),
        ("FETCHGATE__VENDORS__V__HEADERS", SECRET.to_owned()),
    ] {
        match parse_with(&sync_vendor(""), &[(variable, &value)]) {
            Ok(config) => canary(&format!("{config:?}"), variable),
            Err(error) => canary(&format!("{error} {error:?}"), variable),
        }
    }
}
