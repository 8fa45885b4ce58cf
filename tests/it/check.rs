//! `fetchgate check`: what a config means, in words, and the request that a vendor would get. The real binary.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Backend, TestApp};

const BINARY: &str = env!("CARGO_BIN_EXE_fetchgate");
const SECRET: &str = "canary-7f3a9c";

/// Vendors whose secrets come from a variable, a file and the config itself.
const VENDORS: &str = r#"
[vendors.pdl]
kind = "sync"
method = "GET"
url = "${BASE}/enrich?api_key=${KEY}&token=SECRET&email={{ payload.email | query }}"
limits = ["5/s"]
headers = { authorization = "Bearer ${KEY}", x-product = "SECRET", accept = "text/csv" }
[vendors.bureau]
kind = "webhook"
method = "PUT"
url = "https://bureau.example/v2/{{ payload.region | path }}/reports"
limits = []
timeout = "30s"
retry = { attempts = 3, first = "10m", max = "1h", unanswered = 2 }
breaker = false
answer_within = "20m"
deadline = "1d"
body = '{"key": "${KEY}", "pin": ${PIN}, "who": {{ payload.who | json }}, "notify": {{ callback_url | json }}}'
[vendors.batchy]
kind = "polling"
url = "https://batchy.example/jobs"
limits = []
at_most_once = true
polling = { ticket = "/id", url = "https://batchy.example/${KEY}/jobs/{{ ticket | path }}", every = "2s", done = { at = "/state", is = ["done"] } }
[server]
public_url = "https://jobs.example"
"#;

/// What the command came to; it never shows the secret.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn check_in(folder: &TempDir, config: &str, arguments: &[&str], stdin: &str) -> Run {
    std::fs::write(folder.path().join("fetchgate.toml"), config).expect("written");
    let mut command = Command::new(BINARY);
    command.arg("check").args(arguments).current_dir(folder.path()).env_remove("FETCHGATE_CONFIG");
    command.envs([("BASE", "https://pdl.example/v5"), ("KEY", SECRET), ("PIN", "4711")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // A command that reads nothing may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stdout.contains(SECRET) && !stderr.contains(SECRET), "{stdout}{stderr}");
    Run { code: output.status.code().expect("an exit code"), stdout, stderr }
}

fn check(config: &str, arguments: &[&str]) -> Run {
    check_in(&tempfile::tempdir().expect("a temporary folder"), &config.replace("SECRET", SECRET), arguments, "")
}

#[track_caller]
fn request(vendor: &str, payload: &str) -> Vec<String> {
    let run = check(VENDORS, &["--vendor", vendor, "--payload", payload]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn a_check_says_in_words_what_each_vendor_means() {
    let run = check(VENDORS, &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let wanted = "\
The config is good. 3 vendors:

batchy (polling, pool batchy)
  POST https://batchy.example/jobs
  body: the payload
  polls: GET https://batchy.example/***/jobs/{{ ticket | path }} every 2s
  time-out 10s a call, 32 calls in flight at once
  a job is tried 16 times over 33 to 67 minutes, and fails after the last
  a closed port is a failed attempt like any other: the job waits for its next one; while the breaker is open, jobs wait and use up no attempts
  breaker: opens for 10s when 90 % of at least 5 calls within 30s failed
  an accepted job that is not answered within 10m fails: it is ordered once
  a call that may have been done is not repeated
  no limits

bureau (webhook, pool bureau)
  PUT https://bureau.example/v2/{{ payload.region | path }}/reports
  body: {\"key\": \"***\", \"pin\": \"***\", \"who\": {{ payload.who | json }}, \"notify\": {{ callback_url | json }}}
  callbacks: on the URL of each job; the shared URL is off
  time-out 30s a call, 32 calls in flight at once
  a job is tried 3 times over 15 to 30 minutes, and fails after the last
  a closed port is a failed attempt like any other: the job waits for its next one
  no breaker
  an accepted job that is not answered within 20m is ordered again, 2 times at most; each order is paid for
  a job expires after 1d
  no limits

pdl (sync, pool pdl)
  GET https://pdl.example/***/enrich?api_key=***&token=***&email={{ payload.email | query }}
  headers: accept, authorization, x-product
  no body
  time-out 10s a call, 32 calls in flight at once
  a job is tried 16 times over 33 to 67 minutes, and fails after the last
  a closed port is a failed attempt like any other: the job waits for its next one; while the breaker is open, jobs wait and use up no attempts
  breaker: opens for 10s when 90 % of at least 5 calls within 30s failed
  5/s: 5 calls in any 1s (paced, guard 8ms)
";
    assert_eq!(run.stdout, wanted);
}

#[test]
fn a_request_is_printed_with_its_secrets_masked() {
    let get = request("pdl", r#"{"email": "jane+x@acme.com"}"#);
    assert_eq!(get[0], "GET https://pdl.example/***/enrich?api_key=***&token=***&email=jane%2Bx%40acme.com");
    for header in ["authorization: ***", "x-product: ***", "accept: text/csv", "host: pdl.example"] {
        assert!(get.iter().any(|line| line == header), "{header}: {get:?}");
    }
    let put = request("bureau", r#"{"region": "eu", "who": 1.10}"#);
    assert_eq!(put[0], "PUT https://bureau.example/v2/eu/reports");
    let body = put.last().expect("a body");
    assert!(body.contains(r#""who": 1.10, "notify": "https://jobs.example/vendor-webhook/bureau/"#), "{body}");
    assert!(!body.contains("4711"), "{body}");
    let polled = request("batchy", "[1, 2]");
    let polls = polled.iter().position(|line| line == "GET https://batchy.example/***/jobs/TICKET");
    assert!(polled[0] == "POST https://batchy.example/jobs" && polls.is_some(), "{polled:?}");
}

/// One vendor with these keys.
fn one(more: &str) -> String {
    format!("[vendors.one]\nkind = \"sync\"\nurl = \"https://one.example/x\"\nlimits = []\n{more}\n")
}

#[test]
fn how_a_vendor_logs_in_is_said_and_shown_in_its_requests_without_the_secret() {
    for (auth, words, lines) in [
        ("", None, &[][..]),
        (r#"{ kind = "bearer", token = "${KEY}" }"#, Some("with a bearer token"), &["authorization: Bearer ***"]),
        (
            r#"{ kind = "basic", user = "u", password = "SECRET" }"#,
            Some("with a user and a password (basic)"),
            &["authorization: Basic ***"],
        ),
        (
            r#"{ kind = "header", name = "X-Api-Key", value = "SECRET" }"#,
            Some("with a secret in the header x-api-key"),
            &["x-api-key: ***"],
        ),
        (
            r#"{ kind = "query", name = "apikey", value = "${KEY}" }"#,
            Some("with a secret in the parameter apikey of the URL"),
            &["POST https://one.example/x?apikey=***"],
        ),
        (
            r#"{ kind = "oauth2", token_url = "https://id.example/token?key=SECRET", client_id = "c", client_secret = "${KEY}" }"#,
            Some("with tokens from https://id.example (OAuth 2.0, client credentials)"),
            &["authorization: Bearer ***"],
        ),
        (
            r#"{ kind = "sigv4", region = "eu-west-1", service = "execute-api", access_key = "SECRET", secret_key = "${KEY}" }"#,
            Some("by AWS Signature Version 4 (region eu-west-1, service execute-api)"),
            &["authorization: AWS4-HMAC-SHA256 ***", "x-amz-date: ***"],
        ),
    ] {
        let config = one(&if auth.is_empty() { String::new() } else { format!("auth = {auth}") });
        let run = check(&config, &[]);
        let said = run.stdout.lines().find_map(|line| line.strip_prefix("  logs in "));
        assert_eq!((run.code, said), (0, words), "{}{}", run.stdout, run.stderr);
        let run = check(&config, &["--vendor", "one", "--payload", "1"]);
        for wanted in lines {
            assert_eq!(run.stdout.lines().filter(|line| line == wanted).count(), 1, "{wanted}: {}", run.stdout);
        }
        assert_eq!(run.stdout.contains("***"), words.is_some(), "{}", run.stdout);
    }
}

#[test]
fn forms_texts_headers_and_ways_are_said_and_printed_without_their_secrets() {
    let more = r#"body = { form = { To = "{{ payload.to }}", Sid = "${KEY}", api_token = "SECRET" } }
headers = { x-tenant = "${KEY}/{{ tenant | header }}", x-api-key = "SECRET {{ payload.to | header }}" }
idempotency_header = "X-Request-Id"
proxy = "http://us:${KEY}@proxy.example:3128""#;
    let said = check(&one(more), &[]).stdout;
    for line in [
        "headers: x-api-key = ***, x-tenant = ***/{{ tenant | header }}",
        "body: a form: Sid = ***, To = {{ payload.to }}, api_token = ***",
        "the id that stays the same when a call is repeated is in the header x-request-id",
        "connects through the proxy proxy.example:3128",
    ] {
        assert!(said.lines().any(|said| said == format!("  {line}")), "{line}: {said}");
    }
    let run = check(&one(more), &["--vendor", "one", "--payload", r#"{"to": "a b"}"#]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.last(), Some(&"Sid=***&To=a+b&api_token=***"), "{}{}", run.stdout, run.stderr);
    for line in ["content-type: application/x-www-form-urlencoded", "x-tenant: ***/default", "x-api-key: ***"] {
        assert!(lines.contains(&line), "{line}: {lines:?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("x-request-id: ")) && !run.stdout.contains("proxy"));

    let more =
        "body = { text = \"<q key='${KEY}'>{{ payload | xml }}</q>\", type = \"text/xml\" }\nidempotency_header = \"\"";
    let said = check(&one(more), &[]).stdout;
    assert!(said.contains("\n  body: text/xml text: <q key='***'>{{ payload | xml }}</q>\n"), "{said}");
    assert!(said.contains("no header with an id that stays the same"), "{said}");
    let run = check(&one(more), &["--vendor", "one", "--payload", "\"<&>\""]);
    assert!(run.stdout.trim_end().ends_with("<q key='***'>&lt;&amp;&gt;</q>"), "{}{}", run.stdout, run.stderr);
}

#[test]
fn what_a_vendors_answers_mean_is_said_rule_by_rule() {
    let rules = r#"replies = [
  { status = [403], at = "/error/reason", is = ["rate", "quota"], means = "slow_down", wait = "30s" },
  { status = [404, "5xx"], on = ["call"], means = "try_again" },
  { header = "X-Error", exists = true, means = "refused" },
  { at = "", exists = false, means = "pending" },
]"#;
    let run = check(&one(rules), &[]);
    let said: Vec<&str> = run.stdout.lines().filter_map(|line| line.strip_prefix("  an answer ")).collect();
    let wanted = [
        r#"with status 403 and "rate" or "quota" at "/error/reason" means slow_down, and to wait 30s"#,
        "of a call with status 404 or 500 to 599 means try_again",
        "with the header x-error means refused",
        r#"with nothing at "" means pending"#,
    ];
    assert_eq!(said, wanted, "{}", run.stdout);
}

#[test]
fn how_callbacks_are_proved_is_said_without_the_secret() {
    for (webhook, words) in [
        ("verify = \"none\"", &["callbacks: on the URL of each job, and on the shared one from anybody"][..]),
        (
            "verify = \"github\", secret = [\"SECRET\", \"${KEY}\"], get = true",
            &[
                "callbacks: on the URL of each job, and on the shared one signed by HMAC-SHA256 in the header x-hub-signature-256 (any of 2 secrets)",
                "a GET is a callback too, with its query as the body",
            ],
        ),
        (
            "verify = { header = \"X-Token\", value = \"${KEY}\" }, events = \"\", unknown = \"accept\", challenge = { hub = \"SECRET\" }, done = { at = \"/status\", is = [\"done\"] }",
            &[
                "callbacks: on the URL of each job, and on the shared one with one secret in the header x-token",
                "a callback with \"done\" at \"/status\" ends its job, any other does not",
                "an array at \"\" is many callbacks",
                "a callback for no job of ours is answered 200",
                "answers hub.challenge for the right hub.verify_token",
            ],
        ),
        (
            "verify = { basic = { user = \"u\", password = \"SECRET\" } }",
            &[
                "callbacks: on the URL of each job, and on the shared one with a user and a password (basic, one secret)",
            ],
        ),
        (
            "verify = { hmac = \"sha1\", header = \"X-Sig\", signs = \"{{ header.x-time }}{{ body }}\", timestamp = \"X-Time\", tolerance = \"1m\", secret = \"SECRET\" }",
            &[
                "callbacks: on the URL of each job, and on the shared one signed by HMAC-SHA1 in the header x-sig, within 1m of signing (one secret)",
            ],
        ),
    ] {
        let config = one(&format!("webhook = {{ {webhook} }}")).replace("\"sync\"", "\"webhook\"");
        let run = check(&format!("{config}[server]\npublic_url = \"https://jobs.example\"\n"), &[]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        for wanted in words {
            assert!(run.stdout.lines().any(|line| line.trim() == *wanted), "{wanted}: {}", run.stdout);
        }
    }
}

#[test]
fn a_payload_comes_from_a_file_or_stdin() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("payload.json"), "{\"email\": \"a@b\"}\n").expect("written");
    let config = VENDORS.replace("SECRET", SECRET);
    for (payload, stdin) in [("@payload.json", ""), ("-", "{\"email\": \"a@b\"}")] {
        let run = check_in(&folder, &config, &["--vendor", "pdl", "--payload", payload], stdin);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.contains("email=a%40b"), "{}", run.stdout);
    }
}

#[test]
fn what_cannot_be_sent_ends_with_2_and_the_reason() {
    for (arguments, words) in [
        (
            &["--vendor", "pld", "--payload", "1"][..],
            "there is no vendor \"pld\" in the config; it has batchy, bureau, pdl",
        ),
        (&["--vendor", "pdl", "--payload", "{}"], "does not fit this vendor: payload.email is missing"),
        (&["--vendor", "pdl", "--payload", "{\"email\""], "the payload is"),
        (&["--vendor", "pdl", "--payload", "@nowhere.json"], "nowhere.json cannot be read"),
        (&["--vendor", "pdl"], "--payload"),
        (&["--payload", "1"], "--vendor"),
    ] {
        let run = check(VENDORS, arguments);
        assert_eq!(run.code, 2, "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(words) && run.stdout.is_empty(), "{arguments:?}: {}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_that_is_printed_is_the_one_that_goes_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).expect("written");
    let vendors = r#"
[vendors.one]
kind = "sync"
url = "VENDORS/sync/one?body=${file:FILE}&latency_ms={{ payload.wait | query }}"
limits = []
headers = { x-key = "${file:FILE}" }
auth = { kind = "bearer", token = "${file:FILE}" }
body = '{"key": "${file:FILE}", "all": {{ payload | json }}}'
"#;
    let vendors = vendors.replace("FILE", &secret.display().to_string());
    let mut app = TestApp::with(Backend::Sqlite, &vendors).await;
    let payload = r#"{"wait": 1,  "n": 1.10}"#;
    app.submit("one", payload).await;
    app.run_until_idle().await;
    let sent = app.vendors.arrivals("one").remove(0);

    let config = vendors.replace("VENDORS", &app.vendors.url());
    let run = check_in(&folder, &config, &["--vendor", "one", "--payload", payload], "");
    let mut lines = run.stdout.lines();
    let mask = |text: &str| text.replace(SECRET, "***");
    let line = format!("{} {}{}", sent.method, app.vendors.url(), mask(&sent.path_and_query));
    assert_eq!(lines.next(), Some(&*line));
    let of_each_job = ["idempotency-key", "traceparent"];
    assert!(run.stdout.contains("\nauthorization: Bearer ***\n"), "{}", run.stdout);
    for (name, value) in lines.by_ref().take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(": ")) {
        let there = sent.header(name).unwrap_or_else(|| panic!("{name} was not sent"));
        assert!(of_each_job.contains(&name) || mask(there) == value, "{name}: {value}, and {there} was sent");
    }
    assert_eq!(lines.next(), Some(&*mask(&String::from_utf8_lossy(&sent.body))));
    assert!(serde_json::from_slice::<Value>(&sent.body).is_ok());
    app.stop().await;
}

#[test]
fn a_check_says_how_a_vendor_is_asked_again_and_shows_each_request() {
    let config = r#"
[vendors.azure]
kind = "polling"
url = "https://azure.example/read"
limits = []
auth = { kind = "bearer", token = "SECRET" }
polling = { ticket_header = "Operation-Location", url = "{{ ticket }}", first = "5s", every = "2s", max = "1m", hosts = [{ origin = "https://eu.azure.example", auth = true }, "https://data.example"], result_url = "https://data.example/{{ ticket | path }}" }
replies = [{ status = [202], on = ["poll"], means = "pending" }]
[vendors.speech]
kind = "webhook"
url = "https://127.0.0.1/speech"
limits = []
webhook = { ticket = "/id", result_url = { at = "/uri" } }
"#;
    let run = check(config, &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for line in [
        "polls: GET the ticket, which is a URL after 2s, then at waits that double up to 1m, the first time after 5s",
        "data: GET https://data.example/{{ ticket | path }}",
        "its answers may lead to https://eu.azure.example, with auth and headers",
        "its answers may lead to https://data.example, without auth and headers",
        "an answer of a poll with status 202 means pending",
        "data: GET the URL at /uri of the answer that says \"done\"",
    ] {
        assert!(run.stdout.lines().any(|found| found.trim() == line), "{line}: {}", run.stdout);
    }
    let run = check(config, &["--vendor", "azure", "--payload", "1"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let requests: Vec<&str> = run.stdout.split("\n\n").filter(|part| part.contains("https://")).collect();
    let first_lines: Vec<&str> = requests.iter().filter_map(|request| request.lines().next()).collect();
    let wanted =
        ["POST https://azure.example/read", "GET https://azure.example/TICKET", "GET https://data.example/TICKET"];
    assert_eq!(first_lines, wanted);
    let has_token = requests.iter().map(|request| request.contains("authorization: Bearer ***"));
    assert_eq!(has_token.collect::<Vec<_>>(), [true, true, false], "{}", run.stdout);
}
