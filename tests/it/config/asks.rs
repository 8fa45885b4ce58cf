//! How vendors are asked again, and what is wrong with that: `polling`, `result_url`, `hosts`.

use fetchgate::config::{Address, Kind};

use super::{SECRET, parse, parse_with, refused, sync_vendor, webhook_vendor};

/// A polling vendor whose table, in line 5, has this; and more after it.
fn asked(polling: &str, more: &str) -> String {
    let table = format!("polling = {{ every = \"2s\", {polling} }}\n{more}");
    sync_vendor(&table).replace("\"sync\"", "\"polling\"")
}

const BY_ID: &str = r#"ticket = "/id", url = "http://127.0.0.1:9000/{{ ticket | path }}""#;
const DONE: &str = r#"done = { at = "/state", is = ["done"] }"#;

#[test]
fn mistakes_in_how_a_vendor_is_asked_are_refused() {
    for (more, key, word) in [
        ("first = \"0s\"", "first", "too short"),
        ("max = \"1s\"", "max", "at least polling.every"),
        ("missing = \"soon\"", "missing", "is not a duration"),
        ("method = \"DELETE\"", "method", "\"POST\""),
        ("body = '{}'", "body", "a GET sends no body"),
        ("method = \"POST\", body = '{{ callback_url | json }}'", "body", "callback_url"),
        ("ticket_header = \"X Id\"", "ticket_header", "header's name"),
        ("hosts = \"https://a.example\"", "hosts", "array"),
        ("hosts = [1]", "hosts[0]", "a text in quotes or a table"),
        ("hosts = [\"https://a.example/path\"]", "hosts[0]", "no origin"),
        ("hosts = [\"https://u:p@a.example\"]", "hosts[0]", "no origin"),
        ("hosts = [\"ftp://a.example\"]", "hosts[0]", "no origin"),
        ("hosts = [\"a.example\"]", "hosts[0]", "\"https://files.example\""),
        ("hosts = [{ auth = true }]", "hosts[0].origin", "required"),
        ("hosts = [{ origin = \"https://a.example\", auth = \"yes\" }]", "hosts[0].auth", "true or false"),
        ("hosts = [{ origin = \"https://a.example\", port = 1 }]", "hosts[0].port", "origin"),
        ("result_url = { at = \"url\" }", "result_url.at", "slash"),
        ("result_url = {}", "result_url.at", "required"),
        ("result_url = \"http://127.0.0.1:9000/last\"", "result_url", "{{ ticket | path }}"),
        ("result_url = \"http://127.0.0.1:9000/{{ callback_url | path }}\"", "result_url", "callback_url"),
        ("result_url = \"{{ ticket | path }}\"", "result_url", "http or https"),
    ] {
        refused(&asked(&format!("{BY_ID}, {DONE}, {more}"), ""), &format!("vendors.v.polling.{key}"), 5, word);
    }
    let no_ticket = r#"url = "{{ ticket }}""#;
    refused(&asked(&format!("{no_ticket}, {DONE}"), ""), "vendors.v.polling.ticket", 5, "ticket_header");
    for rules in
        ["", "replies = [{ status = [404], means = \"done\" }]", "replies = [{ status = [429], means = \"pending\" }]"]
    {
        refused(&asked(BY_ID, rules), "vendors.v.polling.done", 5, "means = \"pending\"");
    }
    for (more, key, word) in [
        (r#"webhook = { result_url = "http://127.0.0.1:9000/{{ ticket | path }}" }"#, "result_url", "ticket = \"/id\""),
        (r#"webhook = { result_url = "{{ ticket }}" }"#, "result_url", "ticket = \"/id\""),
        (r#"webhook = { done = { at = "/s" } }"#, "done.is", "required"),
        (r#"webhook = { hosts = ["x"] }"#, "hosts[0]", "no origin"),
    ] {
        refused(&webhook_vendor(more), &format!("vendors.v.webhook.{key}"), 5, word);
    }
}

#[test]
fn a_url_at_another_origin_says_whether_credentials_go_there() {
    let elsewhere = format!(r#"ticket = "/id", url = "https://status.example/{{{{ ticket | path }}}}", {DONE}"#);
    let auth = "auth = { kind = \"bearer\", token = \"x\" }\n";
    refused(&asked(&elsewhere, auth), "vendors.v.polling.url", 5, "origin = \"https://status.example\", auth = true");
    refused(&asked(&elsewhere, "headers = { x-key = \"x\" }"), "vendors.v.polling.url", 5, "auth = false");
    let data = format!(r#"{BY_ID}, {DONE}, result_url = "https://data.example/{{{{ ticket | path }}}}""#);
    refused(&asked(&data, auth), "vendors.v.polling.result_url", 5, "https://data.example");
    for fine in [
        asked(&elsewhere, ""),
        asked(&format!("{elsewhere}, hosts = [\"https://status.example\"]"), auth),
        asked(&format!("{elsewhere}, hosts = [{{ origin = \"https://status.example:443\", auth = true }}]"), auth),
    ] {
        assert!(parse(&fine).is_ok(), "{fine}: {:?}", parse(&fine).err());
    }
}

#[test]
fn every_way_to_ask_is_read() {
    let pending = "replies = [{ status = [202], means = \"pending\" }]";
    for (polling, more) in [
        (r#"ticket_header = "Operation-Location", url = "{{ticket}}""#.to_owned(), pending),
        (r#"ticket = "/a", ticket_header = "Location", url = " {{ ticket }} ""#.to_owned(), pending),
        (BY_ID.to_owned(), "replies = [{ status = [\"2xx\"], at = \"/s\", is = [\"x\"], means = \"done\" }]"),
        (format!(r#"{BY_ID}, {DONE}, first = "1s", max = "2s", missing = "1m", result_url = {{ at = "" }}"#), ""),
        (
            format!(
                r#"{BY_ID}, {DONE}, result_url = "{{{{ ticket }}}}", hosts = ["http://[::1]:8080", {{ origin = "https://a" }}]"#
            ),
            "",
        ),
        (
            format!(
                r#"ticket = "/id", url = "http://127.0.0.1/", method = "POST", body = '{{{{ ticket | json }}}}', {DONE}"#
            ),
            "",
        ),
    ] {
        let text = asked(&polling, more);
        let config = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(matches!(config.vendors[0].kind, Kind::Polling(_)));
    }
    let webhook = r#"webhook = { ticket_in_callback = "/id", done = { at = "/s", exists = true }, result_url = "{{ ticket }}", hosts = ["https://a"] }"#;
    let config = parse(&webhook_vendor(webhook)).unwrap();
    assert!(matches!(config.vendors[0].kind.result_url(), Some(Address::Ticket)));
    assert_eq!(config.vendors[0].kind.hosts()[0].origin.to_string(), "https://a");
}

#[test]
fn secrets_in_these_urls_and_bodies_are_not_shown() {
    let polling = r#"ticket = "/id", url = "http://127.0.0.1/${K}/{{ ticket | path }}", method = "POST", body = '{"k": "${K}"}', done = { at = "/s", is = ["d"] }, result_url = "http://127.0.0.1/{{ ticket | path }}?key=${K}""#;
    let config = parse_with(&asked(polling, ""), &[("K", SECRET)]).unwrap();
    let vendor = config.vendors[0].shown();
    let Kind::Polling(polling) = &vendor.kind else { panic!() };
    let (Address::Url(url), Some(Address::Url(data)), Some(body)) = (&polling.url, &polling.result_url, &polling.body)
    else {
        panic!()
    };
    for text in [url.to_string(), data.to_string(), body.to_string(), format!("{:?}", config.vendors)] {
        assert!(!text.contains(SECRET), "{text}");
    }
}
