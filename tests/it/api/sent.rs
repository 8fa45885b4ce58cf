//! What vendors get: forms, XML and other texts, headers made from the job; and jobs that cannot be sent, refused at submit.

use hyper::Method;
use mock_vendors::Arrival;
use serde_json::{Value, json};

use crate::{
    on_every_backend,
    support::{Backend, TestApp},
};

on_every_backend!(
    report_09_a_form_is_sent_as_its_vendor_reads_it,
    report_09_an_xml_text_is_sent_escaped_with_its_type,
    headers_are_made_from_each_job_and_go_with_its_polls,
    a_call_carries_its_id_in_the_header_that_the_vendor_knows,
    a_job_that_cannot_be_sent_is_refused_at_submit_with_its_field,
    a_job_that_just_fits_is_sent,
);

fn vendor(name: &str, more: &str) -> String {
    format!("[vendors.{name}]\nkind = \"sync\"\nurl = \"VENDORS/sync/{name}\"\nlimits = []\n{more}\n")
}

/// What the vendor `one` got for a job.
async fn sent(app: &mut TestApp, job: Value) -> Arrival {
    let id = app.submit_with(&job.to_string()).await;
    app.run_until_idle().await;
    assert_eq!(app.status(&id).await, "complete");
    app.vendors.arrivals("one").pop().expect("a call")
}

fn body(arrival: &Arrival) -> &str {
    std::str::from_utf8(&arrival.body).expect("text")
}

async fn report_09_a_form_is_sent_as_its_vendor_reads_it(backend: Backend) {
    let form = r#"body = { form = { To = "{{ payload.to }}", Body = "Hi {{ payload.name }} & co", "MediaUrl[]" = "{{ payload.media }}", Ref = "{{ tenant }}/{{ request_id }}", Version = "2" } }"#;
    let mut app = TestApp::with(backend, &vendor("one", form)).await;
    let payload = json!({"to": "+49 30 1", "name": "Zoë=1", "media": ["https://a/b?c", 7]});
    let arrival = sent(&mut app, json!({"vendor": "one", "tenant": "acme", "payload": payload})).await;
    let id = arrival.header("idempotency-key").expect("a key").to_owned();
    assert_eq!(arrival.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(
        body(&arrival),
        format!(
            "Body=Hi+Zo%C3%AB%3D1+%26+co&MediaUrl%5B%5D=https%3A%2F%2Fa%2Fb%3Fc&MediaUrl%5B%5D=7&Ref=acme%2F{id}&To=%2B49+30+1&Version=2"
        )
    );
    // What the payload does not have is no field; numbers keep their digits.
    let few = json!({"to": null, "name": 1});
    let arrival = sent(&mut app, json!({"vendor": "one", "payload": few})).await;
    assert!(body(&arrival).starts_with("Body=Hi+1+%26+co&Ref=default%2F"), "{}", body(&arrival));
    let exact = r#"{"vendor": "one", "payload": {"to": 1.10, "name": 12345678901234567890123}}"#;
    app.submit_with(exact).await;
    app.run_until_idle().await;
    let arrival = app.vendors.arrivals("one").pop().expect("a call");
    assert!(body(&arrival).starts_with("Body=Hi+12345678901234567890123+") && body(&arrival).contains("&To=1.10&"));
}

async fn report_09_an_xml_text_is_sent_escaped_with_its_type(backend: Backend) {
    let text = r#"body = { text = "<q id=\"{{ request_id | xml }}\">{{ payload.name | xml }}</q>", type = "text/xml; charset=utf-8" }
headers = { soapaction = "\"find\"" }"#;
    let mut app = TestApp::with(backend, &vendor("one", text)).await;
    let arrival = sent(&mut app, json!({"vendor": "one", "payload": {"name": "</q><q>é & \"co\""}})).await;
    let id = arrival.header("idempotency-key").expect("a key");
    assert_eq!(arrival.header("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(arrival.header("soapaction"), Some("\"find\""));
    assert_eq!(body(&arrival), format!("<q id=\"{id}\">&lt;/q&gt;&lt;q&gt;é &amp; &quot;co&quot;</q>"));
}

async fn headers_are_made_from_each_job_and_go_with_its_polls(backend: Backend) {
    let text = r#"[vendors.one]
kind = "polling"
url = "VENDORS/polling/one"
limits = []
headers = { x-tenant = "{{ tenant | header }}", x-product = "v2/{{ payload.product | header }}", x-fixed = "{ not a template }" }
polling = { ticket = "/id", url = "VENDORS/polling/one/{{ ticket | path }}", every = "1s", done = { at = "/state", is = ["done"] } }
"#;
    let mut app = TestApp::with(backend, text).await;
    for (tenant, product) in [("acme & co", "a b"), ("other", "7")] {
        let before = app.calls("one");
        let id = app
            .submit_with(&json!({"vendor": "one", "tenant": tenant, "payload": {"product": product}}).to_string())
            .await;
        app.run_until_idle().await;
        assert_eq!(app.status(&id).await, "complete");
        let arrivals = app.vendors.arrivals("one").split_off(before);
        assert_eq!((&*arrivals[0].method, arrivals.last().map(|last| &*last.method)), ("POST", Some("GET")));
        for arrival in &arrivals {
            assert_eq!(arrival.header("x-tenant"), Some(tenant));
            assert_eq!(arrival.header("x-product"), Some(&*format!("v2/{product}")));
            assert_eq!(arrival.header("x-fixed"), Some("{ not a template }"));
        }
    }
}

async fn a_call_carries_its_id_in_the_header_that_the_vendor_knows(backend: Backend) {
    for (key, there, gone) in [
        ("idempotency_header = \"X-Request-Id\"", Some("x-request-id"), "idempotency-key"),
        ("idempotency_header = \"\"", None, "idempotency-key"),
        ("", Some("idempotency-key"), "x-request-id"),
    ] {
        let mut app = TestApp::with(backend, &vendor("one", key)).await;
        app.vendors.script("one", vec![mock_vendors::Answer::status(404)]);
        let id = app.submit("one", "1").await;
        app.run_until_idle().await;
        assert_eq!(app.post(&format!("/jobs/{id}/replay"), "").await.status, 202);
        app.run_until_idle().await;
        let arrivals = app.vendors.arrivals("one");
        assert_eq!(arrivals.len(), 2);
        for (arrival, value) in arrivals.iter().zip([id.clone(), format!("{id}-1")]) {
            assert_eq!(arrival.header(gone), None);
            assert_eq!(there.map(|name| arrival.header(name)), there.map(|_| Some(&*value)));
        }
    }
    let own = "idempotency_header = \"\"\nheaders = { idempotency-key = \"{{ payload.key | header }}\" }";
    let mut app = TestApp::with(backend, &vendor("one", own)).await;
    let arrival = sent(&mut app, json!({"vendor": "one", "payload": {"key": "k-1"}})).await;
    assert_eq!(arrival.header("idempotency-key"), Some("k-1"));
}

/// Vendors that put the job's own id and tenant where not all of them fit.
fn strict() -> String {
    let path = r#"[vendors.tenant]
kind = "sync"
url = "VENDORS/sync/{{ tenant | path }}"
limits = []
[vendors.path]
kind = "sync"
url = "VENDORS/sync/{{ payload.of | path_all }}?body=%22{{ request_id | query }}{{ payload.q | query }}%22"
limits = []
"#;
    let polled = r#"[vendors.polled]
kind = "polling"
url = "VENDORS/polling/polled"
limits = []
polling = { ticket = "/id", url = "VENDORS/polling/{{ tenant | path }}/{{ ticket | path }}", every = "1s", done = { at = "/state", is = ["done"] } }
"#;
    let header =
        vendor("header", "headers = { x-tenant = \"{{ tenant | header }}\", x-a = \"{{ payload.a | header }}\" }");
    let xml = vendor("xml", "body = { text = \"<q>{{ payload.a | xml }}</q>\", type = \"text/xml\" }");
    let form = vendor("form", "body = { form = { a = \"Hi {{ payload.a }}\", b = \"{{ payload.b }}\" } }");
    [path, polled, &header, &xml, &form].concat()
}

async fn a_job_that_cannot_be_sent_is_refused_at_submit_with_its_field(backend: Backend) {
    let app = TestApp::with(backend, &strict()).await;
    let job =
        |vendor: &str, tenant: &str, payload: Value| json!({"vendor": vendor, "tenant": tenant, "payload": payload});
    let path = |of: &str, q: usize| job("path", "acme", json!({"of": of, "q": "q".repeat(q)}));
    let cases = [
        (job("tenant", "..", json!(1)), "/tenant"),
        (job("tenant", ".", json!(1)), "/tenant"),
        (path("a/../b", 1), "/payload/of"),
        (path("%2e%2e/b", 1), "/payload/of"),
        // With the id, which every job has, it is too long by one byte.
        (path("path", 8192 - "/sync/path?body=%22%22".len() - 36 + 1), "/payload/q"),
        (job("polled", "..", json!(1)), "/tenant"),
        (job("header", "müller", json!({"a": 1})), "/tenant"),
        (job("header", "acme", json!({"a": "x\r\ny: z"})), "/payload/a"),
        (job("header", "acme", json!({"a": "\u{0}"})), "/payload/a"),
        (job("header", "acme", json!({})), "/payload/a"),
        (job("header", "acme", json!({"a": "x".repeat(4097)})), "/payload/a"),
        (job("xml", "acme", json!({"a": "\u{1}"})), "/payload/a"),
        (job("xml", "acme", json!({"a": null})), "/payload/a"),
        (job("form", "acme", json!({"b": 1})), "/payload/a"),
        (job("form", "acme", json!({"a": 1, "b": {"c": 1}})), "/payload/b"),
    ];
    let bodies: Vec<String> = cases.iter().map(|(job, _)| job.to_string()).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let batch = app.send(Method::POST, "/jobs/batch", &headers, bodies.join("\n")).await.json();
    assert_eq!((&batch["accepted"], &batch["rejected"]), (&json!(0), &json!(cases.len())), "{batch}");
    for (i, (job, pointer)) in cases.iter().enumerate() {
        let shown: String = job.to_string().chars().take(200).collect();
        let answer = app.post("/jobs", job.to_string()).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (422, "invalid_field"), "{shown}");
        assert_eq!(answer.json()["errors"][0]["pointer"], *pointer, "{shown}");
        let error = &batch["items"][i]["error"];
        assert_eq!((&error["status"], &error["errors"][0]["pointer"]), (&json!(422), &json!(pointer)), "{shown}");
    }
    assert_eq!(app.get("/jobs").await.json()["jobs"], json!([]));
}

async fn a_job_that_just_fits_is_sent(backend: Backend) {
    let mut app = TestApp::with(backend, &strict()).await;
    let q = "q".repeat(8192 - "/sync/path?body=%22%22".len() - 36);
    for job in [
        json!({"vendor": "path", "tenant": "..", "payload": {"of": "/path", "q": q}}),
        json!({"vendor": "header", "tenant": "a \"b\"", "payload": {"a": "x".repeat(4096)}}),
        json!({"vendor": "form", "payload": {"a": ""}}),
    ] {
        let id = app.submit_with(&job.to_string()).await;
        app.run_until_idle().await;
        let found = app.find(&id).await;
        assert_eq!(found["status"], "complete", "{}", found["error"]);
    }
    let long = app.vendors.arrivals("path").remove(0).path_and_query;
    assert!(long.len() == 8192 && long.starts_with("/sync/path?body=%22"), "{}", long.len());
}
