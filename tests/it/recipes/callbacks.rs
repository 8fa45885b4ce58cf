//! Vendors that call back: as they work, in gzip, as forms, by a GET, or only to say that there is something to fetch.

use std::{io::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use flate2::{Compression, write::GzEncoder};
use hyper::Method;
use mock_vendors::Answer;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{Recipe, assert_asked, assert_failed, body_of, on_sqlite, secret};
use crate::{on_every_backend, support::Backend};

on_every_backend!(replicate, assemblyai);
on_sqlite!(dataforseo, twilio);

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn limited() -> Answer {
    Answer::json(429, r#"{"detail": "Request was throttled. Your rate limit resets in ~30s."}"#)
}

/// A job that its vendor has accepted, and the URL that the vendor got for it.
struct Accepted {
    id: String,
    callback: String,
}

impl Recipe {
    /// The n-th curl's job, which the vendor accepts with the last of these answers.
    async fn accepted(&mut self, n: usize, answers: Vec<Answer>) -> Accepted {
        self.says(self.host, answers);
        let id = self.submit(n).await;
        self.app.run_until_idle().await;
        let job = self.app.find(&id).await;
        assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")), "{job}");
        let arrivals = self.app.vendors.arrivals(self.host);
        let body = String::from_utf8_lossy(&arrivals.last().expect("a call").body).into_owned();
        let body = percent_decode_str(&body).decode_utf8_lossy().into_owned();
        let url = body.split_once(&self.app.url).unwrap_or_else(|| panic!("no callback URL in {body}")).1;
        let end = url.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_".contains(c))).unwrap_or(url.len());
        Accepted { id, callback: url[..end].to_owned() }
    }

    /// The vendor calls back, which must be answered 200; then the service works.
    async fn call_back(
        &mut self,
        to: &Accepted,
        method: Method,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> Value {
        let answer = self.app.send(method, &to.callback, headers, body).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({"status": "success"})), "{}", answer.text);
        self.app.run_until_idle().await;
        self.app.find(&to.id).await
    }

    async fn call_back_json(&mut self, to: &Accepted, body: &str) -> Value {
        self.call_back(to, Method::POST, &[("content-type", "application/json")], body.to_owned()).await
    }
}

#[track_caller]
fn assert_waits(job: &Value) {
    assert_eq!((&job["status"], &job["blocked_on"]), (&json!("processing"), &json!("awaiting_callback")), "{job}");
}

async fn replicate(backend: Backend) {
    let mut recipe = Recipe::start(backend, "replicate", "api.replicate.com").await;
    let prediction = |status: &str, output: &str, error: &str| {
        format!(r#"{{"id": "ufawq", "status": "{status}", "output": {output}, "error": {error}}}"#)
    };
    let accept = || Answer::json(201, prediction("starting", "null", "null"));
    let job = recipe.accepted(0, vec![limited(), accept()]).await;
    let seen = recipe.seen();
    assert_asked(&seen[1], "POST", "/v1/predictions");
    assert_eq!(seen[1].header("authorization"), Some(&*format!("Bearer {}", secret("REPLICATE_API_TOKEN"))));
    let sent: Value = serde_json::from_slice(&seen[1].body).expect("JSON");
    assert_eq!(sent["input"], json!({"text": "Alice"}));
    assert_eq!(recipe.app.find(&job.id).await["tries"], 0, "a limit does not count");
    // Progress changes nothing; the end does; what comes after it does not.
    for status in ["starting", "processing"] {
        let waiting = recipe.call_back_json(&job, &prediction(status, "null", "null")).await;
        assert_waits(&waiting);
        assert_eq!(waiting["ticket"], "ufawq");
    }
    let done = recipe.call_back_json(&job, &prediction("succeeded", r#"["hello Alice"]"#, "null")).await;
    assert_eq!((&done["status"], &done["result"]), (&json!("complete"), &json!(["hello Alice"])), "{done}");
    for late in ["processing", "succeeded", "failed"] {
        let after = recipe.call_back_json(&job, &prediction(late, r#"["other"]"#, "null")).await;
        assert_eq!(after["result"], json!(["hello Alice"]), "{late}");
    }
    let job = recipe.accepted(0, vec![accept()]).await;
    let failed = recipe.call_back_json(&job, &prediction("failed", "null", r#""CUDA out of memory""#)).await;
    assert_failed(&failed, "vendor_refused", "CUDA");
    // Ended before it was accepted, refused, and a token that ends.
    let at_once = Answer::json(201, prediction("succeeded", r#"["quick"]"#, "null"));
    assert_eq!(recipe.after(vec![at_once]).await.is_complete(1, 1).job["result"], json!(["quick"]));
    let wrong = Answer::json(422, r#"{"detail": "- input.text is required"}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 422, "input.text");
    let id = recipe.keys_are_refused(Answer::json(401, r#"{"title": "Unauthenticated"}"#), vec![accept()]).await;
    // This one never calls back.
    recipe.app.advance(Duration::from_secs(3601)).await;
    let job = recipe.app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("no_answer")), "{job}");
    recipe.app.stop().await;
}

async fn assemblyai(backend: Backend) {
    let mut recipe = Recipe::start(backend, "assemblyai", "api.assemblyai.com").await;
    let accept = || Answer::json(200, r#"{"id": "5552493-16d8", "status": "queued"}"#);
    let transcript = r#"{"id": "5552493-16d8", "status": "completed", "text": "Good morning.", "confidence": 0.9410}"#;
    let ready = r#"{"transcript_id": "5552493-16d8", "status": "completed"}"#;
    let job = recipe.accepted(0, vec![limited(), accept()]).await;
    // The fetch meets a limit and a fault of the vendor's before it has the transcript.
    let fetches = vec![limited().header("retry-after", "4"), Answer::status(500), Answer::json(200, transcript)];
    recipe.says("api.assemblyai.com", fetches);
    let done = recipe.call_back_json(&job, ready).await;
    assert_eq!(done["status"], "complete", "{done}");
    assert_eq!(recipe.app.letters(&job.id, "result").await, transcript);
    let seen = recipe.seen();
    assert_asked(&seen[1], "POST", "/v2/transcript");
    let sent: Value = serde_json::from_slice(&seen[1].body).expect("JSON");
    assert_eq!(sent["audio_url"], "https://files.example.com/meeting.mp3");
    assert_eq!(seen.len(), 5, "nothing was ordered twice");
    for call in &seen[2..] {
        assert_asked(call, "GET", "/v2/transcript/5552493-16d8");
        assert_eq!(call.header("authorization"), Some(&*secret("ASSEMBLYAI_API_KEY")));
    }
    let job = recipe.accepted(0, vec![accept()]).await;
    let failed = recipe.call_back_json(&job, r#"{"transcript_id": "5552493-16d8", "status": "error"}"#).await;
    assert_failed(&failed, "vendor_refused", "error");
    let wrong = Answer::json(400, r#"{"error": "Invalid audio_url"}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 400, "Invalid audio_url");
    recipe.keys_are_refused(Answer::json(401, r#"{"error": "Invalid API key"}"#), vec![accept()]).await;
    recipe.app.stop().await;
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).expect("in memory");
    packed.finish().expect("in memory")
}

/// An answer or a postback with one task.
fn task(code: u32, result: &str) -> String {
    let errors = u32::from(code >= 40000);
    format!(
        r#"{{"status_code": 20000, "tasks_count": 1, "tasks_error": {errors}, "tasks": [{{"id": "0330-1535", "status_code": {code}, "status_message": "m{code}", "result": {result}}}]}}"#
    )
}

async fn dataforseo(backend: Backend) {
    let mut recipe = Recipe::start(backend, "dataforseo", "api.dataforseo.com").await;
    let say = |code: u32| Answer::json(200, task(code, "null"));
    // A limit that says so in a 200, then the task; its results come in gzip.
    let job = recipe.accepted(0, vec![say(40202), say(50000), say(20100)]).await;
    let seen = recipe.seen();
    assert_asked(&seen[2], "POST", "/v3/serp/google/organic/task_post");
    let login = format!("{}:{}", secret("DATAFORSEO_LOGIN"), secret("DATAFORSEO_PASSWORD"));
    assert_eq!(seen[2].header("authorization"), Some(&*format!("Basic {}", BASE64.encode(login))));
    let sent: Value = serde_json::from_slice(&seen[2].body).expect("JSON");
    assert_eq!((&sent[0]["keyword"], &sent[0]["location_code"]), (&json!("weather forecast"), &json!(2840)));
    let waiting = recipe.app.find(&job.id).await;
    assert_eq!(
        (&waiting["attempts"], &waiting["tries"], &waiting["ticket"]),
        (&json!(3), &json!(1), &json!("0330-1535"))
    );
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let done = recipe.call_back(&job, Method::POST, &headers, gzip(&task(20000, r#"[{"items": [1.10]}]"#))).await;
    assert_eq!((&done["status"], &done["result"]), (&json!("complete"), &json!([{"items": [1.10]}])), "{done}");
    // Nothing found, and a task that failed.
    for (code, wanted) in [(40102, "complete"), (40501, "failed")] {
        let job = recipe.accepted(0, vec![say(20100)]).await;
        let ended = recipe.call_back(&job, Method::POST, &headers, gzip(&task(code, "null"))).await;
        assert_eq!(ended["status"], wanted, "{ended}");
    }
    recipe.after(vec![say(40501)]).await.is_failed("vendor_refused", 200, "m40501");
    recipe.after(vec![Answer::json(402, "{}")]).await.is_failed("vendor_refused", 402, "");
    let refused = r#"{"status_code": 40200, "status_message": "Payment Required.", "tasks_error": 0, "tasks": null}"#;
    recipe.after(vec![Answer::json(200, refused)]).await.is_failed("vendor_refused", 200, "Payment");
    recipe.keys_are_refused(Answer::json(401, "{}"), vec![say(20100)]).await;
    // The other way: a GET that says nothing but that it came, then a fetch.
    let job = recipe.accepted(1, vec![say(20100)]).await;
    recipe.seen();
    recipe.says("api.dataforseo.com", vec![say(40602), say(40202), Answer::json(200, task(20000, "[2]"))]);
    let done = recipe.call_back(&job, Method::GET, &[], "").await;
    assert_eq!((&done["status"], &done["result"]), (&json!("complete"), &json!([2])), "{done}");
    let seen = recipe.seen();
    seen.iter().for_each(|call| assert_asked(call, "GET", "/v3/serp/google/organic/task_get/regular/0330-1535"));
    assert_eq!(seen.len(), 3, "asked until it was there, and not ordered again");
    recipe.app.stop().await;
}

async fn twilio(backend: Backend) {
    let mut recipe = Recipe::start(backend, "twilio", "api.twilio.com").await;
    let accept = || Answer::json(201, r#"{"sid": "SM1", "status": "queued"}"#);
    let busy = Answer::json(429, r#"{"code": 20429, "message": "Too Many Requests"}"#);
    let job = recipe.accepted(0, vec![busy, accept()]).await;
    let seen = recipe.seen();
    assert_asked(&seen[1], "POST", &format!("/2010-04-01/Accounts/{}/Messages.json", secret("TWILIO_ACCOUNT_SID")));
    assert_eq!(seen[1].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(seen[1].header("idempotency-key"), None);
    let body = body_of(&seen[1]);
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!((field("To"), field("From")), (Some("+15558675310"), Some(&*secret("TWILIO_FROM"))), "{body}");
    assert_eq!(field("Body"), Some("Your order has left. & more"), "{body}");
    for status in ["queued", "sent"] {
        let body = format!("MessageSid=SM1&MessageStatus={status}");
        assert_waits(&recipe.call_back(&job, Method::POST, &[FORM], body).await);
    }
    let body = "MessageSid=SM1&MessageStatus=delivered&To=%2B15558675310";
    let done = recipe.call_back(&job, Method::POST, &[FORM], body).await;
    let result = json!({"MessageSid": "SM1", "MessageStatus": "delivered", "To": "+15558675310"});
    assert_eq!((&done["status"], &done["result"]), (&json!("complete"), &result), "{done}");
    let job = recipe.accepted(0, vec![accept()]).await;
    let body = "MessageSid=SM1&MessageStatus=undelivered&ErrorCode=30003";
    let failed = recipe.call_back(&job, Method::POST, &[FORM], body).await;
    assert_failed(&failed, "vendor_refused", "30003");
    let wrong = Answer::json(400, r#"{"code": 21211, "message": "Invalid 'To' Phone Number"}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 400, "21211");
    // What may have been sent is not sent again.
    recipe.after(vec![Answer::status(504).body("late")]).await.is_failed("unknown_outcome", 504, "late");
    let id = recipe.keys_are_refused(Answer::json(401, r#"{"code": 20003}"#), vec![accept()]).await;
    recipe.app.advance(Duration::from_secs(12 * 3600 + 1)).await;
    let job = recipe.app.find(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("unknown_outcome")), "{job}");
    recipe.app.stop().await;
}
