//! `auth` of a vendor: what is valid, and what is answered with the key, the line and the mend.

use super::*;

#[test]
fn every_kind_of_auth_is_read() {
    for (auth, headers) in [
        (r#"{ kind = "bearer", token = "t" }"#, &["authorization"][..]),
        (r#"{ kind = "basic", user = "u", password = "pä:ss" }"#, &["authorization"]),
        (r#"{ kind = "header", name = "X-Api-Key", value = "k" }"#, &["x-api-key"]),
        (r#"{ kind = "query", name = "apikey", value = "k&" }"#, &[]),
        (
            r#"{ kind = "oauth2", token_url = "https://id.example/token", client_id = "c", client_secret = "s", scope = "a b", audience = "x", send = "body" }"#,
            &["authorization"],
        ),
        (
            r#"{ kind = "sigv4", region = "eu-west-1", service = "execute-api", access_key = "a", secret_key = "s" }"#,
            &["authorization", "x-amz-date"],
        ),
    ] {
        let config = parse(&sync_vendor(&format!("auth = {auth}"))).unwrap_or_else(|error| panic!("{error}"));
        let auth = config.vendors[0].auth.as_ref().expect("auth");
        assert_eq!(auth.headers().iter().map(|name| name.as_str()).collect::<Vec<_>>(), headers);
    }
}

#[test]
fn mistakes_in_auth_are_refused_with_their_mend() {
    for (auth, key, word) in [
        ("{ token = \"t\" }", "auth.kind", "Write one of bearer, basic"),
        ("{ kind = \"baerer\", token = \"t\" }", "auth.kind", "Did you mean \"bearer\"?"),
        ("{ kind = \"bearer\" }", "auth.token", "needs token"),
        ("{ kind = \"bearer\", token = \"t\", user = \"u\" }", "auth.user", "Remove it"),
        ("{ kind = \"bearer\", token = \"\" }", "auth.token", "empty"),
        ("{ kind = \"bearer\", token = \"a\\nb\" }", "auth.token", "visible ASCII"),
        ("{ kind = \"bearer\", token = \"${NOPE}\" }", "auth.token", "Set NOPE"),
        ("{ kind = \"bearer\", tokens = \"t\" }", "auth.tokens", "Did you mean token?"),
        ("{ kind = \"basic\", user = \"a:b\", password = \"p\" }", "auth.user", "colon"),
        ("{ kind = \"header\", name = \"a b\", value = \"v\" }", "auth.name", "X-API-Key"),
        ("{ kind = \"header\", name = \"Host\", value = \"v\" }", "auth.name", "Name another header"),
        (
            "{ kind = \"oauth2\", token_url = \"ftp://id.example\", client_id = \"c\", client_secret = \"s\" }",
            "auth.token_url",
            "https://id.example/token",
        ),
        (
            "{ kind = \"oauth2\", token_url = \"https://u:p@id.example\", client_id = \"c\", client_secret = \"s\" }",
            "auth.token_url",
            "client_id",
        ),
        (
            "{ kind = \"oauth2\", token_url = \"https://id.example\", client_id = \"c\", client_secret = \"s\", send = \"header\" }",
            "auth.send",
            "\"basic\"",
        ),
        ("\"bearer\"", "auth", "kind = \"bearer\""),
        ("{ kind = \"query\", name = \"\", value = \"v\" }", "auth.name", "visible ASCII"),
        ("{ kind = \"header\", name = \"Idempotency-Key\", value = \"v\" }", "auth.name", "Name another header"),
        ("{ kind = \"basic\", user = \"u\", password = \"a\\nb\" }", "auth.password", "a line break"),
        (
            "{ kind = \"sigv4\", region = \"r\", access_key = \"a\", secret_key = \"s\" }",
            "auth.service",
            "needs region",
        ),
        ("{ kind = \"bearer\", token = \"${file:/nowhere/at/all}\" }", "auth.token", "readable"),
        ("{ kind = \"bearer\", token = 5 }", "auth.token", "text"),
    ] {
        refused(&sync_vendor(&format!("auth = {auth}")), &format!("vendors.v.{key}"), 5, word);
    }
}

#[test]
fn auth_and_a_header_of_the_same_name_are_a_contradiction() {
    let both = "auth = { kind = \"bearer\", token = \"t\" }\nheaders = { Authorization = \"Bearer u\" }";
    refused(&sync_vendor(both), "vendors.v.headers.Authorization", 6, "Remove one of the two");
}
