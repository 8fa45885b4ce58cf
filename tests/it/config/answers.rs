//! What answers mean, and what is wrong with that: `replies`, `failed`, `slow_down`, `expect`, `rate_headers`.

use super::{parse, refused, sync_vendor, webhook_vendor};

#[test]
fn rules_that_are_wrong_are_refused() {
    let many = format!("replies = [{}]", r#"{ status = [400], means = "refused" }, "#.repeat(65));
    let statuses = format!(r#"replies = [{{ status = [{}], means = "refused" }}]"#, "400, ".repeat(65));
    for (more, key, word) in [
        (r#"replies = { status = [403], means = "refused" }"#, "replies", "array"),
        (r#"replies = [{ means = "refused" }]"#, "replies[0]", "status = [403]"),
        (r#"replies = [{ status = [403] }]"#, "replies[0].means", "\"slow_down\""),
        (r#"replies = [{ status = [403], means = "slowdown" }]"#, "replies[0].means", "Did you mean \"slow_down\"?"),
        (r#"replies = [{ status = [403], means = "accepted" }]"#, "replies[0].means", "or \"unauthorized\""),
        (r#"replies = [{ status = [403], mean = "done" }]"#, "replies[0].mean", "Did you mean means?"),
        (r#"replies = [{ status = 403, means = "done" }]"#, "replies[0].status", "array"),
        (r#"replies = [{ status = [], means = "done" }]"#, "replies[0].status", "no status"),
        (r#"replies = [{ status = [99], means = "done" }]"#, "replies[0].status", "\"5xx\""),
        (r#"replies = [{ status = ["6xx"], means = "done" }]"#, "replies[0].status", "\"5xx\""),
        (r#"replies = [{ status = ["4XX"], means = "done" }]"#, "replies[0].status", "is not a status"),
        (r#"replies = [{ at = "error", exists = true, means = "refused" }]"#, "replies[0].at", "slash"),
        (r#"replies = [{ at = "/error", means = "refused" }]"#, "replies[0].is", "exists = true"),
        (
            r#"replies = [{ at = "/error", is = ["x"], exists = true, means = "refused" }]"#,
            "replies[0].exists",
            "Remove one",
        ),
        (r#"replies = [{ at = "/error", exists = "yes", means = "refused" }]"#, "replies[0].exists", "true or false"),
        (r#"replies = [{ at = "/error", is = [], means = "refused" }]"#, "replies[0].is", "no value"),
        (r#"replies = [{ status = [403], is = ["x"], means = "refused" }]"#, "replies[0]", "at = \"/error\""),
        (
            r#"replies = [{ at = "/a", header = "X-A", exists = true, means = "refused" }]"#,
            "replies[0].header",
            "two rules",
        ),
        (r#"replies = [{ header = "X A", exists = true, means = "refused" }]"#, "replies[0].header", "header's name"),
        (r#"replies = [{ status = [403], means = "refused", wait = "5s" }]"#, "replies[0].wait", "Remove wait"),
        (r#"replies = [{ status = [403], means = "slow_down", wait = "2h" }]"#, "replies[0].wait", "at most \"1h\""),
        (r#"replies = [{ status = [403], means = "slow_down", wait = 5 }]"#, "replies[0].wait", "\"10s\""),
        (r#"replies = [{ status = [403], on = [], means = "done" }]"#, "replies[0].on", "[\"call\"]"),
        (r#"replies = [{ status = [403], on = ["reply"], means = "done" }]"#, "replies[0].on", "Write on ="),
        (r#"replies = [{ status = [403], on = ["poll"], means = "done" }]"#, "replies[0].on", "has no poll"),
        (r#"replies = [{ status = [403], on = ["callback"], means = "done" }]"#, "replies[0].on", "has no callback"),
        (&many, "replies", "at most 64"),
        (&statuses, "replies[0].status", "64"),
        ("failed = { at = \"/e\", is = [\"x\"], exists = true }", "failed.exists", "Remove one"),
        ("failed = { at = \"/e\", exists = 1 }", "failed.exists", "true or false"),
        ("failed = { exists = true }", "failed.at", "required"),
    ] {
        refused(&sync_vendor(more), &format!("vendors.v.{key}"), 5, word);
    }
    let never = r#"replies = [{ status = [200], on = ["callback"], means = "done" }]"#;
    refused(&webhook_vendor(never), "vendors.v.replies[0].status", 5, "a callback has no status");
}

#[test]
fn each_mistake_in_a_list_of_rules_is_named_with_its_rule() {
    let rules = "replies = [\n{ status = [403], means = \"no\" },\n{ status = [404], means = \"done\" },\n{ means = \"done\" },\n]";
    let error = parse(&sync_vendor(rules)).unwrap_err();
    let keys: Vec<&str> = error.problems().iter().map(|problem| &*problem.key).collect();
    assert_eq!(keys, ["vendors.v.replies[0].means", "vendors.v.replies[2]"]);
}

#[test]
fn slow_down_expect_and_rate_headers_that_are_wrong_are_refused() {
    for (more, key, word) in [
        ("slow_down = \"5s\"", "slow_down", "table"),
        ("slow_down = { first = \"0s\" }", "slow_down.first", "too short"),
        ("slow_down = { max = \"2h\" }", "slow_down.max", "at most \"1h\""),
        ("slow_down = { first = \"10s\", max = \"5s\" }", "slow_down.max", "at most slow_down.max"),
        ("slow_down = { longest = \"5s\" }", "slow_down.longest", "max"),
        ("expect = \"xml\"", "expect", "expect = \"json\""),
        ("expect = true", "expect", "text"),
        ("rate_headers = \"on\"", "rate_headers", "\"off\""),
        ("rate_headers = false", "rate_headers", "\"off\""),
        ("rate_headers = []", "rate_headers", "1 to 64"),
        ("rate_headers = { remaining = \"X-Left\" }", "rate_headers.reset", "required"),
        ("rate_headers = [{ reset = \"X-Reset\" }]", "rate_headers.remaining", "X-Calls-Left"),
        ("rate_headers = { remaining = \"X-Left\", reset = \"X-Reset\", unit = \"h\" }", "rate_headers.unit", "\"ms\""),
        ("rate_headers = [{ remaining = \"X-Left\", reset = \"X Reset\" }]", "rate_headers.reset", "header's name"),
        (
            "rate_headers = { limit = \"X Limit\", remaining = \"X-Left\", reset = \"X-Reset\" }",
            "rate_headers.limit",
            "header's name",
        ),
        ("rate_headers = { left = \"X-Left\" }", "rate_headers.left", "remaining"),
    ] {
        refused(&sync_vendor(more), &format!("vendors.v.{key}"), 5, word);
    }
}

#[test]
fn every_form_of_a_rule_is_read() {
    for fine in [
        r#"replies = [{ status = [403, "5xx"], at = "/a/0", is = ["x", 1, true], means = "slow_down", wait = "30s" }]"#,
        r#"replies = [{ header = "X-Error", exists = false, means = "done" }, { at = "", exists = true, means = "try_again" }]"#,
        r#"replies = [{ status = [401], on = ["call"], means = "refused" }]"#,
        r#"failed = { at = "/errors", exists = true }"#,
        r#"slow_down = { first = "10m" }"#,
        r#"expect = "json""#,
        r#"rate_headers = [{ limit = "X-Limit", remaining = "X-Left", reset = "X-Reset" }, { remaining = "A", reset = "B", unit = "ms" }]"#,
    ] {
        assert!(parse(&sync_vendor(fine)).is_ok(), "{fine}: {:?}", parse(&sync_vendor(fine)).err());
    }
}
