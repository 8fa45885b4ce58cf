//! Whatever bytes a vendor sends as head and body, nothing panics, a job ends in one of the contract's ways, and no pool is silent for more
//! than an hour. `PROPTEST_CASES` asks for more cases than a test run has.

use std::{io::Write as _, sync::LazyLock, time::Duration};

use bytes::Bytes;
use fetchgate::{
    clock::Time,
    config,
    job::{
        Failure, Fetch, Job, JobIds, Lane, NewJob, Priority, Stage, Status, VendorSaid,
        lifecycle::{self, Next, Step},
    },
    vendor::{
        Reading, Registry, Silence, Vendor,
        error::CallError,
        http::{MAX_REPLY_BYTES, Reply},
        outgoing::Credentials,
    },
};
use flate2::{Compression, write::GzEncoder};
use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, HeaderValue},
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::support::{
    Backend, START, TestApp,
    raw::{Raw, RawVendor},
};

const HOUR: Duration = Duration::from_secs(3600);
/// Calls of one job that are looked at.
const STEPS: usize = 60;

/// One vendor of each kind, and one whose rules look everywhere.
const VENDORS: &str = r#"
[vendors.get]
kind = "sync"
method = "GET"
url = "http://127.0.0.1:9/"
limits = []
[vendors.post]
kind = "sync"
url = "http://127.0.0.1:9/"
limits = []
expect = "json"
retry = { attempts = 3 }
clean = { trim = true, drop_null = true, redact = ["/a", "/errors/0"] }
[vendors.rules]
kind = "sync"
url = "http://127.0.0.1:9/"
limits = []
failed = { at = "/status", is = ["error"] }
rate_headers = [{ remaining = "x-left", reset = "x-reset", unit = "ms" }]
replies = [
  { at = "/errors", exists = true, means = "slow_down", wait = "1h" },
  { header = "x-left", exists = true, means = "try_again" },
  { status = ["4xx"], at = "/a", is = ["1"], means = "pending" },
  { status = [404], means = "done" },
  { status = [402], means = "unauthorized" },
]
[vendors.webhook]
kind = "webhook"
url = "http://127.0.0.1:9/"
limits = []
webhook = { ticket = "/id", result = "/a" }
[vendors.bare]
kind = "webhook"
url = "http://127.0.0.1:9/"
limits = []
at_most_once = true
[vendors.polling]
kind = "polling"
url = "http://127.0.0.1:9/"
limits = []
answer_within = "1m"
polling = { ticket = "/id", url = "http://127.0.0.1:9/{{ ticket | path }}", every = "2s", done = { at = "/status", is = ["done"] }, result = "/a" }
[vendors.asking]
kind = "polling"
url = "http://127.0.0.1:9/jobs/"
limits = []
answer_within = "1m"
headers = { x-key = "of this test" }
polling = { ticket = "/id", ticket_header = "location", url = "{{ ticket }}", every = "2s", max = "8s", hosts = ["https://files.example"], result = "/a" }
replies = [{ status = [202], means = "pending" }]
[vendors.fetching]
kind = "webhook"
url = "http://127.0.0.1:9/jobs/"
limits = []
answer_within = "1m"
webhook = { ticket = "/id", done = { at = "/status", is = ["done"] }, result_url = { at = "/id" }, hosts = ["https://files.example"] }
"#;

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let config = config::parse(VENDORS, "test", std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
    Registry::new(&config, b"a secret of this test")
});

/// What comes of one call: a reply, or none.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    broken: Option<Broken>,
}

#[derive(Debug, Clone, Copy)]
enum Broken {
    Head,
    Late,
    Cut,
    TooLarge,
}

impl Answer {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        headers
    }

    fn reply(&self) -> Result<Reply, CallError> {
        let broken = match self.broken {
            None => None,
            Some(Broken::Head) => return Err(CallError::Unreachable("no route".into())),
            Some(Broken::Late) => Some(CallError::TimedOut),
            Some(Broken::Cut) => Some(CallError::Interrupted("cut".into())),
            Some(Broken::TooLarge) => Some(CallError::TooLarge(1)),
        };
        let status = StatusCode::from_u16(self.status).expect("from 100 to 999");
        Ok(Reply { status, headers: self.headers(), body: self.body.clone().into(), broken })
    }
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let names = select(vec![
        "retry-after",
        "date",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "ratelimit-remaining",
        "ratelimit-reset",
        "x-left",
        "x-reset",
        "content-encoding",
        "content-type",
        "location",
    ]);
    let values = prop_oneof![
        "[0-9]{1,20}(\\.[0-9]{1,3})?",
        "-?[0-9]{1,3}(, ?[0-9]{1,5}){0,3}",
        "(Mon|Fri), [0-9]{2} (Jan|Feb) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
        "-?[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|\\+99:99)",
        "([0-9.]{1,5}(d|h|m|s|ms|us|ns)){1,4}",
        "\"[a-z]{1,3}\"(;[rtwq]=-?[0-9]{1,22}){0,4}(, ?\"[a-z]\"(;[rtwq]=[0-9]{1,3}){0,3})?",
        "limit=[0-9]{1,3}, remaining=[0-9]{1,3}, reset=[0-9]{1,20}",
        "(gzip|br|deflate|identity|x)(, ?(gzip|deflate)){0,4}",
        "(https?:)?(//)?(127\\.0\\.0\\.1(:9)?|files\\.example|evil\\.example)?/?[a-z]{0,3}",
        "(application/json|text/csv|text/html)(; ?charset=(utf-8|utf-16|latin1|gb18030|x))?",
        "[ -~]{0,20}",
    ];
    let values = prop_oneof![9 => values.prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..20)];
    let names = prop_oneof![9 => names.prop_map(str::to_owned), 1 => "[a-z-]{1,12}"];
    (names, values)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let values = select(vec![
        "",
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        "[",
        "{\"a\":",
        "\u{feff}{\"a\": 1}",
        "<html>",
        "\"\\ud800\"",
        "{\"a\":1,\"a\":2}",
    ]);
    let members = "\\{\"(status|a|errors|id)\": ?(\"(done|error|x||/x|https://files.example/x|https://evil.example/x)\"|null|1|\\[\\]|\\[1\\]|\\{\\}|\"\\\\u0000\")(, ?\"(status|a|errors|id)\": ?(\"done\"|null|7))?\\}";
    let plain = prop_oneof![
        2 => values.prop_map(|text: &str| text.as_bytes().to_vec()),
        4 => members.prop_map(|text: String| text.into_bytes()),
        1 => vec(any::<u8>(), 0..200),
        1 => (0_usize..300).prop_map(|depth| [b"[".repeat(depth), b"]".repeat(depth)].concat()),
        1 => (4000_usize..6000).prop_map(|size| format!("{{\"id\": \"{}\"}}", "i".repeat(size)).into_bytes()),
    ];
    (plain, prop::bool::weighted(0.2)).prop_map(|(plain, is_packed)| if is_packed { gzip(&plain) } else { plain })
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("in memory");
    encoder.finish().expect("in memory")
}

fn answer() -> impl Strategy<Value = Answer> {
    let known = select(vec![
        200, 201, 202, 204, 301, 303, 400, 401, 402, 403, 404, 408, 409, 418, 422, 425, 429, 500, 502, 503, 504,
    ]);
    let status = prop_oneof![4 => known, 1 => 100_u16..=999];
    let broken = select(vec![Broken::Head, Broken::Late, Broken::Cut, Broken::TooLarge]);
    (status, vec(header(), 0..5), body(), prop::option::weighted(0.15, broken))
        .prop_map(|(status, headers, body, broken)| Answer { status, headers, body, broken })
}

fn fresh(vendor: &Vendor) -> Job {
    let lane = Lane { vendor: vendor.name().clone(), priority: Priority::Normal, tenant: "default".into() };
    NewJob::new(JobIds::new().next(START), lane, "1", START).into()
}

/// What must hold of each reading, whatever was answered.
fn assert_bounded(reading: &Reading) {
    if let Some(Silence::Asked(Some(time)) | Silence::NothingLeft(time)) = reading.silence {
        assert!(time <= HOUR, "silent for {time:?}");
    }
    assert!(reading.apart.is_none_or(|apart| apart <= HOUR), "{:?} apart", reading.apart);
    if let Some(why) = reading.failure() {
        assert_short(why);
    }
}

/// The next request goes to the vendor, or to what its config names; and what says who we are to the vendor only.
fn assert_stays_at_home(vendor: &Vendor, job: &Job) {
    let Ok(outgoing) = vendor.request(job) else { return };
    let origin = outgoing.origin.to_string();
    assert!(["http://127.0.0.1:9", "https://files.example"].contains(&&*origin), "{origin} for {job:?}");
    let is_own = origin == "http://127.0.0.1:9";
    assert_eq!(
        (outgoing.credentials == Credentials::Sent, outgoing.request.headers()["host"].as_bytes()),
        (is_own, outgoing.origin.authority().as_bytes())
    );
    assert!(is_own || !outgoing.request.headers().contains_key("x-key"), "{job:?}");
    assert!(outgoing.request.uri().path().starts_with('/') && outgoing.request.uri().host().is_none(), "{job:?}");
}

fn assert_short(why: &Failure) {
    assert!(!why.message.is_empty() && why.message.len() < 1000, "{why:?}");
    assert!(why.vendor.as_ref().is_none_or(|said| said.body.len() <= VendorSaid::MAX_BODY), "{why:?}");
}

/// A job whose calls are answered so, in turn; the vendor calls back with the same bodies where it is to call back.
fn follow(vendor: &Vendor, answers: &[Answer]) -> Job {
    let (mut job, mut now, policy) = (fresh(vendor), START, vendor.policy());
    for (step, answer) in answers.iter().cycle().take(STEPS).enumerate() {
        let (headers, reply) = (answer.headers(), answer.reply());
        let mut is_tried_again = false;
        let change = if job.stage == Stage::Await {
            let body = Bytes::from(answer.body.clone());
            let value = vendor.value(&headers, body.clone()).ok();
            let called_back = value.and_then(|value| {
                let reading = vendor.read_callback(&headers, &body, value, now);
                assert_bounded(&reading);
                lifecycle::called_back(&job, Some(job.run), reading.step, &policy, 0.5, now)
            });
            now = if called_back.is_some() { now } else { job.answer_by.expect("its vendor's time is bounded") };
            called_back.or_else(|| lifecycle::alarmed(&job, &policy, 0.5, now)).expect("something has changed")
        } else {
            assert_stays_at_home(vendor, &job);
            vendor.reads(&job, StatusCode::from_u16(answer.status).expect("a status"), &headers, now);
            let reading = vendor.read(&job, reply, job.tries > 0, now);
            assert_bounded(&reading);
            is_tried_again = matches!(reading.step, Step::TryAgain { .. } | Step::SlowDown { .. });
            lifecycle::advance(&job, reading.step, &policy, 0.5, now)
        };
        job = change.apply(&job, u32::try_from(step).expect("few") + 1, now);
        assert!(job.tries <= policy.retry.attempts, "{job:?}");
        assert!(job.ticket.as_ref().is_none_or(|ticket| ticket.len() <= 4096), "{job:?}");
        if job.status.has_ended() {
            return job;
        }
        assert!(!matches!(change.next, Next::Cancelled | Next::Rerun { .. }), "{change:?}");
        assert!(job.due_at.since(now) <= HOUR, "it waits for an hour at most: {job:?}");
        assert!(!is_tried_again || job.due_at.since(now) >= policy.retry.first / 2, "at full speed: {job:?}");
        now = Time(now.0.max(job.due_at.0));
        if let Some(overdue) = lifecycle::alarmed(&job, &policy, 0.5, now) {
            job = overdue.apply(&job, job.attempt, now);
        }
        if job.status.has_ended() {
            return job;
        }
    }
    job
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_answered_a_job_ends_in_one_of_the_contracts_ways(
        name in select(vec!["get", "post", "rules", "webhook", "bare", "polling", "asking", "fetching"]),
        answers in vec(answer(), 1..4),
    ) {
        let vendor = REGISTRY.get(name).expect("it is in the config");
        let job = follow(vendor, &answers);
        match job.status {
            Status::Complete => {
                let result = job.result.expect("a complete job has a result");
                prop_assert!(result.len() <= MAX_REPLY_BYTES);
                prop_assert!(fetchgate::json::check(&result).is_ok(), "the result is JSON");
            }
            Status::Failed => assert_short(&job.failure.expect("a failed job says why")),
            // Not yet: only answers that do not count can go on for so long.
            Status::Pending | Status::Processing => prop_assert!(job.tries < vendor.policy().retry.attempts),
            Status::Cancelled | Status::Expired => prop_assert!(false, "nobody asked for that: {job:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_of_a_vendors_leads_to_another_origin(
        text in "(https?:|ftp:|[/\\\\]{1,3}|@|u:p@|127\\.0\\.0\\.1|2130706433|localhost|:9|:90|\\[::1\\]|files\\.example|evil\\.example|%2f|\\.\\.|\\?|#|[ -~]|\\PC|\t|\n){0,10}",
    ) {
        for name in ["asking", "fetching"] {
            let vendor = REGISTRY.get(name).expect("it is in the config");
            let job = Job { stage: Stage::Poll, answer_by: Some(START.plus(HOUR)), ..fresh(vendor) };
            assert_stays_at_home(vendor, &Job { ticket: Some(text.clone()), ..job.clone() });
            assert_stays_at_home(vendor, &Job { ticket: Some("t".into()), fetch: Some(Fetch::At(text.clone())), ..job });
        }
    }
}

fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().map_or(default, |text| text.parse().expect("a number"))
}

/// A reply as bytes: well-formed, or whatever.
fn raw() -> impl Strategy<Value = Raw> {
    let formed = answer().prop_map(|answer| {
        let mut bytes = format!("HTTP/1.1 {} X\r\n", answer.status).into_bytes();
        for (name, value) in &answer.headers {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        bytes.extend(&answer.body);
        bytes
    });
    prop_oneof![4 => formed, 1 => vec(any::<u8>(), 0..300)].prop_map(Raw::Cut)
}

async fn ends(kind: &str, answers: Vec<Raw>) {
    let vendor = RawVendor::start(answers).await;
    let config = format!(
        "[vendors.one]\nkind = \"{kind}\"\nurl = \"{}\"\nlimits = []\nretry = {{ attempts = 3 }}\n",
        vendor.url
    );
    let mut app = TestApp::with(Backend::Sqlite, &config).await;
    let id = app.submit_with(r#"{"vendor": "one", "payload": 1, "deadline": "2h"}"#).await;
    for _ in 0..3 {
        app.live_for(HOUR).await;
        let view = app.get("/vendors/one").await.json();
        if let Some(until) = view["until"].as_str() {
            let until = Time(until.parse::<jiff::Timestamp>().expect("a time").as_millisecond());
            assert!(until.since(app.clock.now()) <= HOUR + Duration::from_secs(1), "{view}");
        }
    }
    let job = app.find(&id).await;
    assert!(["complete", "failed", "expired"].contains(&job["status"].as_str().unwrap_or_default()), "{job}");
    app.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(12).min(1_000), failure_persistence: None, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn whatever_bytes_come_over_the_wire_a_job_ends_and_its_vendor_is_silent_for_an_hour_at_most(
        kind in select(vec!["sync", "webhook"]),
        answers in vec(raw(), 1..3),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(ends(kind, answers));
    }
}
