//! Where vendors' answers may lead us: nothing secret goes to a host that is not trusted, and no host is called that the config does not name.

use mock_vendors::Answer;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{
        Backend, TestApp,
        raw::{Raw, RawVendor},
    },
};

on_every_backend!(
    nothing_secret_goes_to_another_origin_than_the_vendors_own,
    no_answer_makes_us_call_an_origin_that_the_config_does_not_name,
    where_a_job_was_led_is_looked_at_again_when_it_is_asked,
    report_12_a_presigned_url_is_fetched_and_never_shown,
);

const SECRET: &str = "canary-7f3a9c";

/// How an answer can lead elsewhere: the `polling` table, and what the vendor answers. `OTHER` is the other host.
struct Way {
    name: &'static str,
    polling: &'static str,
    answers: fn(&str) -> Vec<Answer>,
}

const BY_ID: &str =
    r#"ticket = "/id", url = "VENDORS/polling/NAME/{{ ticket | path }}", done = { at = "/state", is = ["done"] }"#;

const WAYS: [Way; 4] = [
    Way {
        name: "ticket",
        polling: r#"ticket_header = "Location", url = "{{ ticket }}", done = { at = "/state", is = ["done"] }"#,
        answers: |url| vec![Answer::status(202).header("location", url)],
    },
    Way {
        name: "redirect",
        polling: "BY_ID",
        answers: |url| vec![accepted(), Answer::status(303).header("location", url).body(format!("see {url}"))],
    },
    Way {
        name: "presigned",
        polling: r#"BY_ID, result_url = { at = "/url" }"#,
        answers: |url| vec![accepted(), Answer::json(200, json!({"state": "done", "url": url}).to_string())],
    },
    Way {
        name: "template",
        polling: r#"BY_ID, result_url = "OTHER/x/{{ ticket | path }}""#,
        answers: |_| vec![accepted(), Answer::json(200, r#"{"state": "done"}"#)],
    },
];

fn accepted() -> Answer {
    Answer::json(202, r#"{"id": "t"}"#)
}

/// A vendor with secrets wherever a vendor can have some.
fn vendor(way: &Way, name: &str, auth: &str, hosts: &str, other: &str) -> String {
    let polling = way.polling.replace("BY_ID", BY_ID).replace("NAME", name).replace("OTHER", other);
    format!(
        r#"
[vendors.{name}]
kind = "polling"
url = "VENDORS/polling/{name}"
limits = []
headers = {{ x-key = "{SECRET}-in-a-header" }}
auth = {auth}
polling = {{ every = "2s", {polling}, {hosts} }}
"#
    )
}

fn reply(status: &str, headers: &str, body: &str) -> Raw {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    Raw::Cut((head + body).into_bytes())
}

fn data() -> Raw {
    reply("200 OK", "content-type: application/json\r\n", r#"{"state": "done", "from": "elsewhere"}"#)
}

async fn job_of(app: &mut TestApp, name: &str, answers: Vec<Answer>) -> Value {
    app.vendors.script(name, answers);
    let id = app.submit(name, "1").await;
    tokio::time::timeout(std::time::Duration::from_secs(60), app.run_until_idle()).await.expect("nothing hangs");
    app.find(&id).await
}

async fn nothing_secret_goes_to_another_origin_than_the_vendors_own(backend: Backend) {
    let auths = [
        format!(r#"{{ kind = "bearer", token = "{SECRET}-token" }}"#),
        format!(r#"{{ kind = "basic", user = "u", password = "{SECRET}-password" }}"#),
        format!(r#"{{ kind = "header", name = "x-api-key", value = "{SECRET}-value" }}"#),
        format!(r#"{{ kind = "query", name = "body", value = "{SECRET}-parameter" }}"#),
    ];
    let (mut config, mut others) = (String::new(), Vec::new());
    for (way, auth) in WAYS.iter().zip(&auths).chain(WAYS.iter().rev().zip(&auths)) {
        for is_trusted in [false, true] {
            let (other, name) = (RawVendor::start(vec![data()]).await, format!("{}{}", way.name, others.len()));
            let hosts = match is_trusted {
                true => format!(r#"hosts = [{{ origin = "{}", auth = true }}]"#, other.url),
                false if way.name == "redirect" => format!(r#"hosts = [{{ origin = "{}" }}]"#, other.url),
                false => format!(r#"hosts = ["{}"]"#, other.url),
            };
            config += &vendor(way, &name, auth, &hosts, &other.url);
            others.push((way, name, other, is_trusted));
        }
    }
    let mut app = TestApp::with(backend, &config).await;
    for (way, name, other, is_trusted) in others {
        let job = job_of(&mut app, &name, (way.answers)(&format!("{}/x?k=1", other.url))).await;
        assert_eq!(
            (&job["status"], &job["result"]["from"]),
            (&json!("complete"), &json!("elsewhere")),
            "{name}: {job}"
        );
        let requests = other.requests();
        assert_eq!(requests.len(), 1, "{name}");
        let has_secrets = [SECRET, "x-key", "authorization", "Basic "].map(|one| requests[0].contains(one));
        let is_bare = has_secrets.iter().all(|has| !has);
        assert_eq!(is_bare, !is_trusted, "{name}: {}", requests[0]);
        assert!(!is_trusted || has_secrets[..2].iter().all(|has| *has), "{name}: {}", requests[0]);
        // The vendor itself gets them, of course.
        let own = &app.vendors.arrivals(&name)[0];
        assert_eq!(own.header("x-key"), Some(&*format!("{SECRET}-in-a-header")), "{name}");
    }
    app.stop().await;
}

async fn no_answer_makes_us_call_an_origin_that_the_config_does_not_name(backend: Backend) {
    let other = RawVendor::start(vec![data()]).await;
    let auth = format!(r#"{{ kind = "bearer", token = "{SECRET}-token" }}"#);
    let ways = &WAYS[..3];
    let named = r#"hosts = ["http://127.0.0.1:9"]"#;
    let config: String = ways.iter().map(|way| vendor(way, way.name, &auth, named, &other.url)).collect();
    let mut app = TestApp::with(backend, &config).await;
    let (place, own) = (other.url.strip_prefix("http://").expect("http"), app.vendors.url());
    let own = own.strip_prefix("http://").expect("http");
    let port = place.rsplit(':').next().expect("a port");
    let urls = [
        (format!("http://{place}/x?sig={SECRET}"), true),
        (format!("HTTP://{place}/x?sig={SECRET}#f"), true),
        (format!("//{place}/x?sig={SECRET}"), true),
        (format!("\\\\{place}\\x?sig={SECRET}"), true),
        (format!("http:\t//{place}/x?sig={SECRET}"), true),
        (format!("https://{own}/x?sig={SECRET}"), true),
        (format!("http://{own}0/x?sig={SECRET}"), false),
        (format!("http://localhost:{port}/x?sig={SECRET}"), true),
        (format!("http://{SECRET}@{own}/x"), false),
        (format!("http://{own}:{SECRET}@{place}/x"), false),
        (format!("http://u:{SECRET}@127.0.0.1:9/x"), false),
        (format!("ftp://{place}/x?sig={SECRET}"), false),
        (format!("file:///etc/passwd?sig={SECRET}"), false),
        (format!("http://[{SECRET}/x"), false),
        (format!("http://{own}/x?sig={SECRET}{}", "x".repeat(5000)), false),
    ];
    for way in ways {
        for (url, names_origin) in &urls {
            // A header cannot hold all of these.
            if way.name != "presigned" && url.contains('\t') {
                continue;
            }
            let job = job_of(&mut app, way.name, (way.answers)(url)).await;
            assert_eq!(
                (&job["status"], &job["error"]["code"]),
                (&json!("failed"), &json!("bad_response")),
                "{url}: {job}"
            );
            let message = job["error"]["message"].as_str().expect("a sentence");
            assert!(!names_origin || message.contains("polling.hosts = [\"http"), "{url}: {message}");
            let attempts = app.get(&format!("/jobs/{}/attempts", job["request_id"].as_str().unwrap())).await.text;
            let vendors = app.get(&format!("/vendors/{}", way.name)).await.text;
            for shown in [job.to_string(), attempts, vendors] {
                assert!(!shown.contains(SECRET), "{} {url}: {shown}", way.name);
            }
        }
    }
    assert_eq!(other.requests(), Vec::<String>::new());
    app.stop().await;
}

async fn where_a_job_was_led_is_looked_at_again_when_it_is_asked(backend: Backend) {
    for way in &WAYS[..3] {
        // Whoever was called there is to be called again.
        let other = RawVendor::start(vec![reply("500 Broken", "", ""), data()]).await;
        let auth = r#"{ kind = "bearer", token = "token of this test" }"#;
        let config = |hosts: &str| vendor(way, way.name, auth, hosts, &other.url);
        let mut app = TestApp::with(backend, &config(&format!("hosts = [\"{}\"]", other.url))).await;
        app.vendors.script(way.name, (way.answers)(&format!("{}/x", other.url)));
        let id = app.submit(way.name, "1").await;
        app.run_for(std::time::Duration::from_millis(2_500)).await;
        assert_eq!((other.calls(), &*app.status(&id).await), (1, "processing"), "{}", way.name);
        let mut app = app.crash_and_restart_with(&config("hosts = []")).await;
        app.run_until_idle().await;
        let job = app.find(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("bad_response")), "{job}");
        assert!(job["error"]["message"].as_str().unwrap().contains("polling.hosts"), "{job}");
        assert_eq!(
            (other.calls(), app.vendors.arrivals(way.name).iter().filter(|call| call.method == "POST").count()),
            (1, 1)
        );
        app.stop().await;
    }
}

async fn report_12_a_presigned_url_is_fetched_and_never_shown(backend: Backend) {
    let (target, parameter) = (format!("/file/{SECRET}-in-the-path"), format!("a%2F{SECRET}%3D"));
    let repeated = format!("<Error>{target}?sig={parameter}</Error> a/{SECRET}=");
    for (answer, code, message) in [
        (data(), None, ""),
        (reply("403 Forbidden", "", &repeated), Some("vendor_refused"), "the vendor answered 403"),
        (reply("401 Unauthorized", "", &repeated), Some("vendor_refused"), "auth = true"),
    ] {
        let other = RawVendor::start(vec![answer]).await;
        let auth = "{ kind = \"bearer\", token = \"token of this test\" }";
        let config = vendor(&WAYS[2], "one", auth, &format!("hosts = [\"{}\"]", other.url), &other.url);
        let mut app = TestApp::with(backend, &config).await;
        let url = format!("{}{target}?sig={parameter}&x=1#f", other.url);
        let job = job_of(&mut app, "one", (WAYS[2].answers)(&url)).await;
        let line = format!("GET {target}?sig={parameter}&x=1 HTTP/1.1\r\n");
        assert!(other.requests()[0].starts_with(&line), "{:?}", other.requests());
        match code {
            None => assert_eq!((&job["status"], &job["result"]["from"]), (&json!("complete"), &json!("elsewhere"))),
            Some(code) => {
                assert_eq!(job["error"]["code"], code, "{job}");
                assert!(job["error"]["message"].as_str().unwrap().contains(message), "{job}");
                assert!(job["error"]["vendor"]["body"].as_str().unwrap().contains("<Error>"), "{job}");
            }
        }
        let attempts = app.get(&format!("/jobs/{}/attempts", job["request_id"].as_str().unwrap())).await.text;
        let vendor = app.get("/vendors/one").await;
        assert_eq!(vendor.json()["blocked_on"], Value::Null, "its credentials are not in doubt");
        for shown in [job.to_string(), attempts, vendor.text] {
            assert!(!shown.contains(SECRET), "{shown}");
        }
        app.stop().await;
    }
}
