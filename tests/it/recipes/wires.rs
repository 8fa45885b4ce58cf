//! Vendors that are called in another way: a status URL in a header.

use mock_vendors::Answer;
use serde_json::json;

use super::{
    Recipe, assert_asked, body_of,
    replies::{limited, unauthorized},
    secret,
};
use crate::{on_every_backend, support::Backend};

on_every_backend!(azure_document_intelligence);

impl Recipe {
    /// A URL of the vendor's own.
    fn url(&self, path: &str) -> String {
        format!("{}/at/{}{path}", self.app.vendors.url(), self.host)
    }
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
