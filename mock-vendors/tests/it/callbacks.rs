//! Callbacks, received by a second server of the same kind.

use mock_vendors::{Answer, Arrival, MockVendors};
use serde_json::{Value, json};

use crate::support::{SECOND, ask, start};

/// A body whose callback goes to the name `token` of the receiver.
fn body(receiver: &MockVendors, token: &str) -> String {
    let url = format!("{}/sync/{token}", receiver.url());
    format!(r#"{{"request_id":"r1","payload":{{"n" : 1.10}},"callback_url":"{url}"}}"#)
}

/// Submits to the vendor `v` and waits for what follows.
async fn submit(mock: &MockVendors, receiver: &MockVendors, query: &str) -> Vec<Arrival> {
    let reply = ask(mock, &format!("POST /async/v?callback_ms=0&{query}"), &body(receiver, "token-12345")).await;
    assert_eq!(reply.json(), json!({"id": "v-1", "status": "accepted"}), "{query}");
    assert_eq!(reply.status, 202);
    mock.callbacks_settled().await;
    receiver.arrivals("token-12345")
}

fn parsed(arrival: &Arrival) -> Value {
    serde_json::from_slice(&arrival.body).expect("JSON")
}

#[tokio::test]
async fn a_callback_carries_the_request_id_and_the_payload_to_the_letter() {
    let (mock, receiver) = (start().await, start().await);
    let arrivals = submit(&mock, &receiver, "").await;
    let [arrival] = &arrivals[..] else { panic!("{arrivals:?}") };
    let text = std::str::from_utf8(&arrival.body).expect("UTF-8");
    let head = r#"{"request_id":"r1","id":"v-1","status":"done","result":{"vendor":"v","call":1,"data":{"#;
    assert!(text.starts_with(head), "{text}");
    assert!(text.ends_with(r#""echo":{"n" : 1.10}}}"#), "{text}");
    assert_eq!(mock.callback_replies("v"), [200]);
    assert_eq!(mock.stats("v", SECOND).callbacks_ok, 1);
}

#[tokio::test]
async fn pointers_say_where_url_and_request_id_are() {
    let (mock, receiver) = (start().await, start().await);
    let body = format!(r#"{{"ref":7,"to":["{}/sync/hook"]}}"#, receiver.url());
    let line = "POST /async?callback_ms=0&callback_ptr=/to/0&request_id_ptr=/ref";
    assert_eq!(ask(&mock, line, &body).await.status, 202);
    mock.callbacks_settled().await;
    let callback = parsed(&receiver.arrivals("hook")[0]);
    assert_eq!((&callback["request_id"], &callback["result"]["echo"]["ref"]), (&json!(7), &json!(7)));
    assert_eq!(ask(&mock, "POST /async?callback_ptr=/none", &body).await.status, 400);
}

#[tokio::test]
async fn an_early_callback_is_answered_before_the_202() {
    let (mock, receiver) = (start().await, start().await);
    let reply = ask(&mock, "POST /async/v?callback=early", &body(&receiver, "hook")).await;
    assert_eq!(reply.status, 202);
    assert_eq!(mock.callback_replies("v"), [200]);
    assert_eq!(receiver.count("hook"), 1);
}

#[tokio::test]
async fn copies_are_sent_so_many_times() {
    let (mock, receiver) = (start().await, start().await);
    let arrivals = submit(&mock, &receiver, "callback_times=3").await;
    assert_eq!(arrivals.len(), 3);
    assert!(arrivals.iter().all(|arrival| arrival.body == arrivals[0].body));
    ask(&mock, "POST /async/v?callback=early&callback_times=2&callback_ms=0", &body(&receiver, "hook")).await;
    mock.callbacks_settled().await;
    assert_eq!(receiver.count("hook"), 2);
}

#[tokio::test]
async fn never_sends_nothing() {
    let (mock, receiver) = (start().await, start().await);
    assert!(submit(&mock, &receiver, "callback=never").await.is_empty());
    assert!(mock.callback_replies("v").is_empty());
}

#[tokio::test]
async fn a_forged_callback_has_a_broken_token_and_its_refusal_is_noted() {
    let (mock, receiver) = (start().await, start().await);
    receiver.script("token-x2345", vec![Answer::status(401)]);
    assert_eq!(submit(&mock, &receiver, "forged").await.len(), 1);
    assert_eq!(parsed(&receiver.arrivals("token-x2345")[0])["result"], json!({"forged": true}));
    assert!(receiver.arrival_times("token-x2345")[0] < receiver.arrival_times("token-12345")[0]);
    assert_eq!((mock.forged_replies("v"), mock.callback_replies("v")), (vec![401], vec![200]));
    let stats = mock.stats("v", SECOND);
    assert_eq!((stats.forged_refused, stats.forged_accepted, stats.callbacks_ok), (1, 0, 1));
}

#[tokio::test]
async fn an_accepted_forgery_shows() {
    let (mock, receiver) = (start().await, start().await);
    assert!(submit(&mock, &receiver, "forged&never").await.is_empty());
    assert_eq!(mock.stats("v", SECOND).forged_accepted, 1);
}

#[tokio::test]
async fn a_failed_callback_has_an_error_and_no_result() {
    let (mock, receiver) = (start().await, start().await);
    let callback = parsed(&submit(&mock, &receiver, "callback=failed").await[0]);
    assert_eq!(callback, json!({"request_id": "r1", "id": "v-1", "status": "error", "error": "no record found"}));
}

#[tokio::test]
async fn a_callback_is_retried_until_it_is_taken() {
    let (mock, receiver) = (start().await, start().await);
    let twice = vec![Answer::status(503), Answer::fault(mock_vendors::Fault::Reset)];
    receiver.script("token-12345", twice);
    assert_eq!(submit(&mock, &receiver, "").await.len(), 3);
    assert_eq!(mock.callback_replies("v"), [503, 0, 200]);
    assert_eq!((mock.stats("v", SECOND).callbacks_ok, mock.stats("v", SECOND).callbacks_bad), (1, 0));
}

#[tokio::test]
async fn a_callback_is_given_up_after_its_retries() {
    let (mock, receiver) = (start().await, start().await);
    receiver.script("token-12345", vec![Answer::status(404), Answer::status(404)]);
    assert_eq!(submit(&mock, &receiver, "callback_retries=1").await.len(), 2);
    assert_eq!(mock.stats("v", SECOND).callbacks_bad, 1);
}

#[tokio::test]
async fn a_callback_comes_even_if_the_answer_to_its_submit_is_lost() {
    let (mock, receiver) = (start().await, start().await);
    let line = "POST /async/v?callback_ms=0&fault=reset&accepted";
    let mut stream = crate::support::sent(&mock, line, "", &body(&receiver, "hook")).await;
    let lost = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
    assert!(lost.is_err());
    mock.callbacks_settled().await;
    assert_eq!(receiver.count("hook"), 1);
}

#[tokio::test]
async fn signed_callbacks_carry_the_three_headers_and_a_forgery_a_wrong_signature() {
    let (mock, receiver) = (start().await, start().await);
    let query = "forged&sign_secret=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let arrivals = submit(&mock, &receiver, query).await;
    let [forged, real] = &arrivals[..] else { panic!("{arrivals:?}") };
    assert_eq!((forged.header("webhook-id"), real.header("webhook-id")), (Some("msg_v-1"), Some("msg_v-1")));
    assert!(real.header("webhook-signature").is_some_and(|value| value.starts_with("v1,") && value.len() == 47));
    assert!(real.header("webhook-timestamp").is_some_and(|value| value.parse::<u64>().is_ok()));
    assert_ne!(forged.body, real.body);
}

#[tokio::test]
async fn connections_of_callbacks_are_kept_and_survive_a_restart_of_the_receiver() {
    let (mock, receiver) = (start().await, start().await);
    let address = receiver.address().to_string();
    submit(&mock, &receiver, "").await;
    let body = body(&receiver, "hook");
    receiver.stop().await;
    let receiver = MockVendors::start(&address).await.expect("the same port");
    ask(&mock, "POST /async/v?callback_ms=0&callback_retries=0", &body).await;
    mock.callbacks_settled().await;
    assert_eq!((receiver.count("hook"), mock.callback_replies("v")), (1, vec![200, 200]));
}
