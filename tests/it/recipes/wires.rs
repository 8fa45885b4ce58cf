//! Vendors that are called in another way: a SOAP envelope, AWS signatures, a status URL in a header.

use mock_vendors::Answer;
use serde_json::json;

use super::{
    Recipe, assert_asked, body_of, on_sqlite,
    replies::{good, limited, unauthorized},
    secret,
};
use crate::{on_every_backend, support::Backend};

on_every_backend!(azure_document_intelligence);
on_sqlite!(vies, s3);

impl Recipe {
    /// A URL of the vendor's own.
    fn url(&self, path: &str) -> String {
        format!("{}/at/{}{path}", self.app.vendors.url(), self.host)
    }
}

async fn vies(backend: Backend) {
    let mut recipe = Recipe::start(backend, "vies", "ec.europa.eu").await;
    let xml = |inside: &str| {
        let text = format!(
            r#"<env:Envelope xmlns:env="http://schemas.xmlsoap.org/soap/envelope/"><env:Body>{inside}</env:Body></env:Envelope>"#
        );
        Answer::status(200).header("content-type", "text/xml; charset=UTF-8").body(text)
    };
    let fault = |code: &str| {
        let fault =
            format!("<env:Fault><faultcode>env:Server</faultcode><faultstring>{code}</faultstring></env:Fault>");
        Answer { status: 500, ..xml(&fault) }
    };
    let valid = || {
        xml(
            r#"<checkVatResponse xmlns="urn:ec.europa.eu:taxud:vies:services:checkVat:types"><valid>true</valid></checkVatResponse>"#,
        )
    };
    let ended = recipe.after(vec![valid()]).await;
    let result = ended.is_complete(1, 1).job["result"].as_str().expect("a string").to_owned();
    assert!(result.contains("<valid>true</valid>"), "{result}");
    let seen = recipe.seen();
    assert_asked(&seen[0], "POST", "/taxation_customs/vies/services/checkVatService");
    assert_eq!(seen[0].header("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(seen[0].header("soapaction"), Some("\"\""));
    let body = body_of(&seen[0]);
    assert!(body.starts_with("<soapenv:Envelope ") && body.trim_end().ends_with("</soapenv:Envelope>"), "{body}");
    assert!(body.contains("<urn:countryCode>FR</urn:countryCode>"), "{body}");
    assert!(body.contains("<urn:vatNumber>82542065479</urn:vatNumber>"), "{body}");
    recipe.after(vec![fault("MS_MAX_CONCURRENT_REQ"), fault("TIMEOUT"), valid()]).await.is_complete(3, 3);
    let ended = recipe.after(vec![fault("INVALID_INPUT"); 8]).await;
    ended.is_failed("attempts_exhausted", 500, "INVALID_INPUT");
    // What a payload says stays inside its element.
    let sly = r#"{"vendor": "vies", "payload": {"country": "FR", "number": "1</urn:vatNumber><x a=\"&\"/>"}}"#;
    recipe.says("ec.europa.eu", vec![valid()]);
    recipe.seen();
    recipe.app.submit_with(sly).await;
    recipe.app.run_until_idle().await;
    let body = body_of(&recipe.seen()[0]);
    assert!(body.contains("<urn:vatNumber>1&lt;/urn:vatNumber&gt;&lt;x a="), "{body}");
    assert_eq!(body.matches("</urn:vatNumber>").count(), 1, "{body}");
    recipe.app.stop().await;
}

async fn s3(backend: Backend) {
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let mut recipe = Recipe::start(backend, "s3", "your-bucket.s3.eu-central-1.amazonaws.com").await;
    recipe.after(vec![good()]).await.is_complete(1, 1);
    let seen = recipe.seen();
    assert_asked(&seen[0], "GET", "/reports/2026/11/27%20q4.json");
    assert_eq!(seen[0].header("x-amz-content-sha256"), Some(EMPTY));
    let signed = seen[0].header("authorization").expect("signed").to_owned();
    let key = secret("AWS_ACCESS_KEY_ID");
    assert!(
        signed.starts_with(&format!("AWS4-HMAC-SHA256 Credential={key}/20260115/eu-central-1/s3/aws4_request, ")),
        "{signed}"
    );
    assert!(signed.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="), "{signed}");
    let error = |status, code: &str| {
        let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        Answer::status(status).header("content-type", "application/xml").body(text)
    };
    let slow = || error(503, "SlowDown");
    recipe.after(vec![slow(), slow(), good()]).await.is_complete(3, 1).took(3..12);
    recipe.after(vec![error(500, "InternalError"), good()]).await.is_complete(2, 2);
    recipe.after(vec![error(404, "NoSuchKey")]).await.is_failed("vendor_refused", 404, "NoSuchKey");
    recipe.after(vec![error(301, "PermanentRedirect")]).await.is_failed("vendor_refused", 301, "PermanentRedirect");
    let text = Answer::status(200).header("content-type", "text/csv").body("a,b\n1,2\n");
    assert_eq!(recipe.after(vec![text]).await.is_complete(1, 1).job["result"], "a,b\n1,2\n");
    recipe.keys_are_refused(error(403, "ExpiredToken"), vec![good()]).await;
    recipe.app.stop().await;
}

async fn azure_document_intelligence(backend: Backend) {
    let mut recipe =
        Recipe::start(backend, "azure-document-intelligence", "your-resource.cognitiveservices.azure.com").await;
    let results = "/documentintelligence/documentModels/prebuilt-invoice/analyzeResults/r-1?api-version=2024-11-30";
    let url = recipe.url(results);
    let accepted = || Answer::status(202).header("operation-location", &url);
    let status = |status: &str| Answer::json(200, format!(r#"{{"status": "{status}"}}"#));
    let done = || Answer::json(200, r#"{"status": "succeeded", "analyzeResult": {"content": "Invoice 7"}}"#);
    let answers = vec![accepted().header("retry-after", "5"), status("notStarted"), status("running"), done()];
    let ended = recipe.after(answers).await;
    // 5 s as the service says, then 5 s and 10 s: each wait is as long as the service has worked, at most 30 s.
    ended.is_complete(4, 1).took(20..25).has_outcomes(&["accepted", "pending", "pending", "done"]);
    assert_eq!(ended.job["result"], json!({"content": "Invoice 7"}));
    let seen = recipe.seen();
    let call = "/documentintelligence/documentModels/prebuilt-invoice:analyze?_overload=analyzeDocument&api-version=2024-11-30";
    assert_asked(&seen[0], "POST", call);
    assert_eq!(body_of(&seen[0]), r#"{"urlSource": "https://files.example.com/invoice.pdf"}"#);
    for poll in &seen[1..] {
        assert_asked(poll, "GET", results);
        assert_eq!(poll.header("ocp-apim-subscription-key"), Some(&*secret("AZURE_DI_KEY")));
    }
    // Limits on the call and on a poll, failures, and a key that ends.
    let answers = vec![limited().header("retry-after", "3"), accepted(), limited().header("retry-after", "9"), done()];
    recipe.after(answers).await.is_complete(4, 1).took(14..25);
    recipe.says(recipe.host, vec![accepted(), status("running"), done()]);
    let id = recipe.submit(0).await;
    recipe.app.run_for(std::time::Duration::from_secs(3)).await;
    let waiting = recipe.app.find(&id).await;
    assert_eq!((&waiting["ticket"], &waiting["blocked_on"]), (&json!(url), &json!("next_poll")), "{waiting}");
    recipe.app.run_until_idle().await;
    assert_eq!(recipe.app.status(&id).await, "complete");
    let failed = Answer::json(200, r#"{"status": "failed", "error": {"code": "InvalidContent"}}"#);
    recipe.after(vec![accepted(), failed]).await.is_failed("vendor_refused", 200, "InvalidContent");
    let wrong = Answer::json(400, r#"{"error": {"code": "InvalidRequest"}}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 400, "InvalidRequest");
    let elsewhere = "https://elsewhere.example/results/1";
    let ended = recipe.after(vec![Answer::status(202).header("operation-location", elsewhere)]).await;
    assert_eq!((&ended.job["status"], &ended.job["error"]["code"]), (&json!("failed"), &json!("bad_response")));
    recipe.keys_are_refused(unauthorized(), vec![accepted(), done()]).await;
    recipe.app.stop().await;
}
