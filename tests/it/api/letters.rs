//! What is not ours passes through to the letter: every digit, escape, space and duplicate, in both directions.

use hyper::{Method, StatusCode};
use mock_vendors::{Answer, Fault};

use crate::{
    on_every_backend,
    support::{Backend, TestApp, text_of},
};

on_every_backend!(
    a_payload_and_a_sync_result_keep_every_letter,
    every_kind_of_value_can_be_a_payload,
    a_body_template_keeps_every_letter_of_what_it_takes,
    a_url_template_keeps_the_digits_of_numbers_and_encodes_the_rest,
    a_webhook_vendor_is_sent_every_letter,
    a_result_selected_from_a_poll_keeps_every_letter,
    a_result_selected_from_a_callback_keeps_every_letter,
    cleaning_changes_only_what_the_config_names,
    text_that_is_not_json_is_kept_as_a_json_string,
);

/// What breaks whoever reads JSON into floats, maps or strings and writes it again.
const ODD: &str = "{ \"z\" : 123456789012345678901234567890,\n\t\"a\": [1.10, 1e400 , -0,null,-1E-400, 0.1000 ],\
    \"z\":\"twice\",\"e\":\"\\u00e9 é \\/ / \\ud83d\\ude00 😀 \\u0000 \\ud83d\",\r\n \"\\u0061\": { } , \"\":[ ],\"m\":{\"y\":1,\"b\":2 ,\"y\":3}}";

fn bodies(app: &TestApp, vendor: &str) -> Vec<String> {
    app.vendors.arrivals(vendor).iter().map(|call| String::from_utf8(call.body.to_vec()).expect("text")).collect()
}

async fn a_payload_and_a_sync_result_keep_every_letter(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.vendors.script("sync", vec![Answer::json(200, format!(" \n{ODD}\t"))]);
    let id = app.submit("sync", ODD).await;
    assert_eq!(app.letters(&id, "payload").await, ODD);
    app.run_until_idle().await;
    assert_eq!(bodies(&app, "sync"), [ODD]);
    assert_eq!(app.letters(&id, "result").await, ODD);
    let app = app.crash_and_restart().await;
    assert_eq!(app.letters(&id, "payload").await, ODD);
    assert_eq!(app.letters(&id, "result").await, ODD);
    app.stop().await;
}

async fn every_kind_of_value_can_be_a_payload(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let values =
        ["null", "-0", "1.10", "1e400", "123456789012345678901234567890", "\"\\u00e9\"", "false", "[ ]", "{ }"];
    let mut ids = Vec::new();
    for value in values {
        app.vendors.script("sync", vec![Answer::json(200, value)]);
        ids.push(app.submit("sync", value).await);
        app.run_until_idle().await;
    }
    assert_eq!(bodies(&app, "sync"), values);
    for (id, value) in ids.iter().zip(values) {
        assert_eq!(app.letters(id, "payload").await, value);
        assert_eq!(app.letters(id, "result").await, value);
    }
    app.stop().await;
}

async fn a_body_template_keeps_every_letter_of_what_it_takes(backend: Backend) {
    let config = r#"
[vendors.shaped]
kind = "sync"
url = "VENDORS/sync/shaped"
limits = []
body = '{"ref" : {{ request_id | json }}, "all":{{ payload | json }},"a": [ {{ payload.m | json }} ], "z":{{ payload.z | json }}, "gone": {{ payload.gone | json }}, "f": 2.50}'
"#;
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("shaped", ODD).await;
    app.run_until_idle().await;
    let wanted = format!(
        r#"{{"ref" : "{id}", "all":{ODD},"a": [ {{"y":1,"b":2 ,"y":3}} ], "z":"twice", "gone": null, "f": 2.50}}"#
    );
    assert_eq!(bodies(&app, "shaped"), [wanted]);
    app.stop().await;
}

async fn a_url_template_keeps_the_digits_of_numbers_and_encodes_the_rest(backend: Backend) {
    let config = r#"
[vendors.shaped]
kind = "sync"
url = "VENDORS/sync/{{ payload.id | path }}?body={{ payload.text | query }}"
limits = []
"#;
    let mut app = TestApp::with(backend, config).await;
    let digits = "123456789012345678901234567890";
    let cases = [
        ("1.10", "1.10", "1.10"),
        ("1e400", "1e400", "1e400"),
        ("-0", "-0", "-0"),
        ("true", "true", "true"),
        (
            r#""\"\u00e9 é/?&=#+%41 \\\"\"""#,
            "%22%C3%A9%20%C3%A9%2F%3F%26%3D%23%2B%2541%20%5C%22%22",
            r#""é é/?&=#+%41 \"""#,
        ),
    ];
    for (i, (value, sent, echoed)) in cases.into_iter().enumerate() {
        let id = app.submit("shaped", &format!(r#"{{"id": {digits}, "text": {value}}}"#)).await;
        app.run_until_idle().await;
        assert_eq!(app.vendors.arrivals(digits)[i].path_and_query, format!("/sync/{digits}?body={sent}"));
        // The mock vendor answers with what it was asked to.
        assert_eq!(app.letters(&id, "result").await, echoed);
    }
    app.stop().await;
}

async fn a_webhook_vendor_is_sent_every_letter(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.submit("async", ODD).await;
    app.run_until_idle().await;
    let sent = bodies(&app, "async").remove(0);
    assert_eq!(text_of(&sent, "payload").as_deref(), Some(ODD));
    app.stop().await;
}

async fn a_result_selected_from_a_poll_keeps_every_letter(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let ticket = "123456789012345678901234567890";
    let answers = [
        Answer::json(202, format!(r#"{{"id": {ticket}}}"#)),
        Answer::json(200, format!(r#"{{"state" : "done", "output": "not the last", "output" : {ODD} }}"#)),
    ];
    app.vendors.script("polling", answers.to_vec());
    let id = app.submit("polling", "1").await;
    app.run_until_idle().await;
    assert_eq!(app.letters(&id, "result").await, ODD);
    assert_eq!(app.vendors.arrivals("polling")[1].path_and_query, format!("/polling/polling/{ticket}"));
    app.stop().await;
}

async fn a_result_selected_from_a_callback_keeps_every_letter(backend: Backend) {
    let config = r#"
[vendors.quiet]
kind = "webhook"
url = "VENDORS/async/quiet?never"
limits = []
webhook = { result = "/report/0" }
"#;
    let mut app = TestApp::with(backend, config).await;
    let id = app.submit("quiet", "1").await;
    app.run_until_idle().await;
    let path = app.callback_path("quiet", 0);
    let body = format!(" {{\"n\": 1e400, \"report\" : [ {ODD} , 2]}}\n");
    assert_eq!(app.post(&path, body).await.status, StatusCode::OK);
    assert_eq!(app.letters(&id, "result").await, ODD);
    app.stop().await;
}

async fn cleaning_changes_only_what_the_config_names(backend: Backend) {
    let config = r#"
[vendors.tidy]
kind = "sync"
url = "VENDORS/sync/tidy"
limits = []
clean = { trim = true, drop_null = true, redact = ["/ssn", "/who/email"] }
"#;
    let mut app = TestApp::with(backend, config).await;
    let data = r#"{"ssn":"078-05-1120","n":123456789012345678901234567890,"f":1.10,"e":1e400,"z":-0,"s":"  \u00e9 é\/ ","gone":null,"list":[null,"\u0020a \n",[ ]],"n":2,"who":{"email":null,"b":0.10,"a":{}}}"#;
    let tidy = r#"{"ssn":"[redacted]","n":123456789012345678901234567890,"f":1.10,"e":1e400,"z":-0,"s":"\u00e9 é\/","list":[null,"a",[]],"n":2,"who":{"email":"[redacted]","b":0.10,"a":{}}}"#;
    app.vendors.script("tidy", vec![Answer::json(200, data)]);
    let id = app.submit("tidy", data).await;
    app.run_until_idle().await;
    assert_eq!(app.letters(&id, "result").await, tidy);
    assert_eq!(app.letters(&id, "payload").await, data, "what the caller sent is not cleaned");
    assert_eq!(bodies(&app, "tidy"), [data]);
    app.stop().await;
}

async fn text_that_is_not_json_is_kept_as_a_json_string(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let cases = [
        (Answer::fault(Fault::Text), r#""hello""#),
        (Answer::status(200).body("<p>\u{e9}\t\"\\</p>\r\n"), r#""<p>é\t\"\\</p>\r\n""#),
        (Answer::status(200), "null"),
    ];
    for (answer, wanted) in cases {
        app.vendors.script("sync", vec![answer]);
        let id = app.submit("sync", "1").await;
        app.run_until_idle().await;
        let job = app.send(Method::GET, &format!("/jobs/{id}"), &[], "").await.json();
        assert_eq!((&job["status"], &job["attempts"]), (&"complete".into(), &1.into()));
        assert_eq!(app.letters(&id, "result").await, wanted);
    }
    app.stop().await;
}
