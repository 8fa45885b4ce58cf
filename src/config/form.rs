//! Examples of values: what a key that is missing or wrong could look like.
//!
//! Never checks a value.

/// Examples of values, by the names of keys.
const FORMS: [(&[&str], &str); 54] = [
    (&["listen"], r#""127.0.0.1:8000""#),
    (&["public_url"], r#""http://127.0.0.1:8000""#),
    (&["url"], r#""https://vendor.example/path""#),
    (&["kind"], r#""sync", "webhook" or "polling""#),
    (&["limits"], r#"limits such as ["50/s", { calls = 2000, per = "1m" }], or [] if there are none"#),
    (
        &[
            "timeout",
            "grace",
            "deadline",
            "answer_within",
            "every",
            "first",
            "max",
            "guard",
            "wait",
            "missing",
            "tolerance",
        ],
        r#"a duration such as "10s""#,
    ),
    (&["retention"], r#"a duration such as "7d""#),
    (&["per"], r#"a duration such as "1m", or "day" or "month""#),
    (&["retry"], r#"{ attempts = 16, first = "1s", max = "10m", unanswered = 1 }"#),
    (&["webhook"], r#"{ verify = "none" }, say"#),
    (
        &["verify"],
        r#""standard-webhooks", "none" or a table such as { hmac = "sha256", header = "X-Signature", secret = "${SECRET}" }"#,
    ),
    (&["secret", "value", "password", "hub"], r#""${SECRET}", or several of them in an array"#),
    (&["basic"], r#"{ user = "u", password = "${PASSWORD}" }"#),
    (&["challenge"], r#""slack", "graph" or { hub = "${VERIFY_TOKEN}" }"#),
    (&["unknown"], r#""accept""#),
    (&["hmac"], r#""sha256""#),
    (&["encoding"], r#""hex""#),
    (&["signs"], r#""{{ header.x-timestamp }}.{{ body }}""#),
    (&["polling"], r#"{ ticket = "/id", url = "...", every = "2s", done = { at = "/state", is = ["done"] } }"#),
    (&["done", "failed"], r#"{ at = "/status", is = ["..."] }"#),
    (&["is"], r#"an array of texts such as ["done"]"#),
    (&["replies"], r#"rules such as [{ status = [404], means = "done" }]"#),
    (&["status"], r#"an array of numbers and classes such as [403, "5xx"]"#),
    (&["on"], r#"an array of "call", "poll" and "callback""#),
    (&["means"], r#""done", "pending", "slow_down", "try_again", "refused" or "unauthorized""#),
    (&["header"], r#"a header's name such as "X-State""#),
    (&["ticket_header"], r#"a header's name such as "Operation-Location""#),
    (&["method"], r#""GET" or "POST""#),
    (&["result_url"], r#""https://vendor.example/{{ ticket | path }}/result", or { at = "/url" }"#),
    (
        &["hosts"],
        r#"an array such as ["https://files.example"] or [{ origin = "https://files.example", auth = true }]"#,
    ),
    (&["origin"], r#""https://files.example""#),
    (&["slow_down"], r#"{ first = "1s", max = "5m" }"#),
    (&["expect"], r#""json""#),
    (&["unit"], r#""s" or "ms""#),
    (&["clean"], r#"{ trim = true, drop_null = true, redact = ["/ssn"] }"#),
    (&["redact"], r#"an array of JSON pointers such as ["/ssn"]"#),
    (&["headers"], r#"{ name = "value" }"#),
    (&["idempotency_header"], r#""Idempotency-Key", another name, or "" for none"#),
    (&["key"], r#""vendor" or "tenant""#),
    (&["cors"], r#"an array of origins such as ["https://app.example"]"#),
    (&["proxy"], r#""http://user:${PASSWORD}@proxy:3128""#),
    (&["ticket", "at", "result", "request_id", "ticket_in_callback", "events"], r#"a JSON pointer such as "/id""#),
    (
        &[
            "calls",
            "burst",
            "attempts",
            "unanswered",
            "open",
            "concurrency",
            "max_waiting",
            "max_connections_per_address",
        ],
        "a whole number such as 10",
    ),
    (&["max_waiting_bytes"], "a number of bytes such as 10000000000"),
    (&["rate_headers"], r#""off", or { remaining = "X-Calls-Left", reset = "X-Calls-Reset" }"#),
    (&["remaining", "reset"], r#"a header's name such as "X-Calls-Left""#),
    (&["submit"], r#""100/s""#),
    (&["admin_key"], r#""${FETCHGATE_ADMIN_KEY}""#),
    (&["published_on"], r#""127.0.0.1""#),
    (&["tenants"], "a table for each tenant: [tenants.name]"),
    (&["tenant_defaults"], r#"{ submit = "100/s", max_waiting = 100000 }"#),
    (&["trim", "drop_null", "allow_open", "at_most_once", "exists", "get"], "true or false"),
    (&["server", "ops", "auth", "store", "queue", "capacity"], "its keys under a [table] of this name"),
    (&["vendors"], "a table for each vendor: [vendors.name]"),
];

/// An example of a value for the key at this path, whose name means something else elsewhere (`vendors.NAME.breaker.open`).
fn form_in_table(path: &str) -> Option<&'static str> {
    if path.starts_with("server.tls") {
        return Some(r#"{ cert = "cert.pem", key = "key.pem" }"#);
    }
    let table = path.split('.').nth(2)?;
    Some(match table {
        "breaker" => r#"{ failed = 0.9, calls = 5, within = "30s", open = "10s" }, or false to turn it off"#,
        "auth" => r#"{ kind = "bearer", token = "${file:/run/secrets/token}" }, say"#,
        "tls" => r#"{ ca = "ca.pem", cert = "client.pem", key = "client.key" }"#,
        "body" if path.ends_with(".body") => {
            r#"JSON such as '{"who": {{ payload.who | json }}}', { form = { To = "{{ payload.to }}" } }, or { text = "<q/>", type = "text/xml" }"#
        }
        _ if path.contains(".hosts[") && path.ends_with(".auth") => "true or false",
        _ => return None,
    })
}

/// An example of a value for the key at this path.
pub(super) fn form(path: &str) -> &'static str {
    if let Some(form) = form_in_table(path) {
        return form;
    }
    let name = path.rsplit('.').next().unwrap_or(path);
    let name = name.split('[').next().unwrap_or(name);
    FORMS.iter().find(|(names, _)| names.contains(&name)).map_or("...", |(_, form)| form)
}
