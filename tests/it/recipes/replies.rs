//! Vendors that answer at once, in JSON: a good answer, a limit as the vendor says it, a failure, and credentials that end.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use mock_vendors::Answer;
use serde_json::{Value, json};

use super::{Recipe, assert_asked, body_of, on_sqlite, secret};
use crate::{on_every_backend, support::Backend};

on_every_backend!(equifax);
on_sqlite!(github, shopify, hubspot, microsoft_graph, anthropic, openai);

/// The mock's clock, which is that of the test at its start.
const DATE: (&str, &str) = ("date", "Thu, 15 Jan 2026 08:00:00 GMT");

fn token(n: u32) -> Answer {
    Answer::json(200, format!(r#"{{"access_token": "t{n}", "token_type": "Bearer", "expires_in": 3600}}"#))
}

pub(super) fn limited() -> Answer {
    Answer::json(429, r#"{"message": "too many requests"}"#)
}

pub(super) fn unauthorized() -> Answer {
    Answer::json(401, r#"{"message": "Bad credentials"}"#)
}

pub(super) fn good() -> Answer {
    Answer::json(200, r#"{"good": 1.10}"#)
}

async fn equifax(backend: Backend) {
    let mut recipe = Recipe::start(backend, "equifax", "api.sandbox.equifax.com").await;
    recipe.after(vec![token(1), good()]).await.is_complete(1, 1);
    let seen = recipe.seen();
    assert_asked(&seen[0], "POST", "/v2/oauth/token");
    let client = format!("{}:{}", secret("EQUIFAX_CLIENT_ID"), secret("EQUIFAX_CLIENT_SECRET"));
    assert_eq!(seen[0].header("authorization"), Some(&*format!("Basic {}", BASE64.encode(client))));
    let form = body_of(&seen[0]);
    let scope = "scope=https%3A%2F%2Fapi.equifax.com%2Fbusiness%2Foneview%2Fconsumer-credit%2Fv1";
    assert!(form.contains("grant_type=client_credentials") && form.contains(scope), "{form}");
    assert_asked(&seen[1], "POST", "/business/oneview/consumer-credit/v1/reports/credit-report");
    assert_eq!((seen[1].header("authorization"), body_of(&seen[1])), (Some("Bearer t1"), recipe.payload(0)));
    // A token that the bureau ends early, and one whose hour is over.
    let ended = recipe.after(vec![unauthorized(), token(2), good()]).await;
    assert_eq!((&ended.job["status"], &ended.job["tries"]), (&json!("complete"), &json!(1)), "{}", ended.job);
    recipe.app.run_for(std::time::Duration::from_secs(3600)).await;
    recipe.after(vec![token(3), good()]).await.is_complete(1, 1);
    let tokens: Vec<String> =
        recipe.seen().iter().map(|call| call.header("authorization").unwrap_or_default().to_owned()).collect();
    assert_eq!((&*tokens[2], &*tokens[4]), ("Bearer t2", "Bearer t3"));
    // A limit, a mistake, and outcomes that are not known.
    let ended = recipe.after(vec![limited().header("retry-after", "7"), good()]).await;
    ended.is_complete(2, 1).took(7..10);
    recipe.after(vec![Answer::json(400, r#"{"description": "Invalid SSN"}"#)]).await.is_failed(
        "vendor_refused",
        400,
        "SSN",
    );
    recipe.after(vec![Answer::status(503), good()]).await.is_complete(2, 2);
    recipe.after(vec![Answer::status(504).body("late")]).await.is_failed("unknown_outcome", 504, "late");
    recipe.app.stop().await;
}

async fn github(backend: Backend) {
    let mut recipe = Recipe::start(backend, "github", "api.github.com").await;
    let computing = || Answer::json(202, "{}");
    let ended = recipe.after(vec![computing(), computing(), Answer::json(200, r#"[{"total": 135}]"#)]).await;
    ended.is_complete(3, 1).took(6..8).has_outcomes(&["pending", "pending", "done"]);
    assert_eq!(ended.job["result"], json!([{"total": 135}]));
    let seen = recipe.seen();
    assert_asked(&seen[0], "GET", "/repos/tokio-rs/axum/stats/contributors");
    let token = format!("Bearer {}", secret("GITHUB_TOKEN"));
    assert_eq!(seen[0].header("authorization"), Some(&*token));
    assert_eq!(seen[0].header("accept"), Some("application/vnd.github+json"));
    assert_eq!(seen[0].header("x-github-api-version"), Some("2022-11-28"));
    assert!(seen[0].header("user-agent").is_some_and(|agent| agent.starts_with("fetchgate/")), "GitHub wants one");
    // The primary limit, the secondary one with a time, and without any.
    let spent = Answer::json(403, r#"{"message": "API rate limit exceeded for user ID 1."}"#).header(DATE.0, DATE.1);
    let spent = spent.header("x-ratelimit-remaining", "0").header("x-ratelimit-reset", "1768464045");
    recipe.after(vec![spent, good()]).await.is_complete(2, 1).took(45..50);
    let with_time = limited().header("retry-after", "60");
    recipe.after(vec![with_time, good()]).await.is_complete(2, 1).took(60..65);
    let secondary = || {
        let message = "You have exceeded a secondary rate limit. [...] please include the request ID FA2D:87B1.";
        let url = "https://docs.github.com/en/free-pro-team@latest/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits";
        Answer::json(403, json!({"documentation_url": url, "message": message}).to_string())
    };
    let ended = recipe.after(vec![secondary(), secondary(), good()]).await;
    ended.is_complete(3, 1).took(180..600).has_outcomes(&["slow_down", "slow_down", "done"]);
    let hidden = Answer::json(404, r#"{"message": "Not Found"}"#);
    recipe.after(vec![hidden]).await.is_failed("vendor_refused", 404, "Not Found");
    let forbidden = Answer::json(403, r#"{"message": "Resource not accessible by integration"}"#);
    recipe.after(vec![forbidden]).await.is_failed("vendor_refused", 403, "not accessible");
    let moved = Answer::json(301, r#"{"url": "https://api.github.com/repositories/7"}"#);
    recipe.after(vec![moved]).await.is_failed("vendor_refused", 301, "repositories/7");
    recipe.keys_are_refused(unauthorized(), vec![good()]).await;
    recipe.app.stop().await;
}

async fn shopify(backend: Backend) {
    let mut recipe = Recipe::start(backend, "shopify", "your-store.myshopify.com").await;
    let data = r#"{"data":{"product":{"title":"Mug"}},"extensions":{"cost":{"requestedQueryCost":1}}}"#;
    let ended = recipe.after(vec![Answer::json(200, data)]).await;
    assert_eq!(ended.is_complete(1, 1).job["result"], serde_json::from_str::<Value>(data).expect("JSON"));
    let seen = recipe.seen();
    assert_asked(&seen[0], "POST", "/admin/api/2026-10/graphql.json");
    assert_eq!(seen[0].header("x-shopify-access-token"), Some(&*secret("SHOPIFY_TOKEN")));
    assert_eq!(body_of(&seen[0]), recipe.payload(0));
    let errors = |code: &str| {
        Answer::json(200, json!({"errors": [{"message": code, "extensions": {"code": code}}]}).to_string())
    };
    let ended = recipe.after(vec![errors("THROTTLED"), Answer::json(200, data)]).await;
    ended.is_complete(2, 1).took(1..4).has_outcomes(&["slow_down", "done"]);
    recipe.after(vec![errors("INTERNAL_SERVER_ERROR"), Answer::json(200, data)]).await.is_complete(2, 2);
    recipe.after(vec![errors("ACCESS_DENIED")]).await.is_failed("vendor_refused", 200, "ACCESS_DENIED");
    let with_time = limited().header("retry-after", "2.0");
    recipe.after(vec![with_time, Answer::json(200, data)]).await.is_complete(2, 1).took(2..5);
    recipe.after(vec![Answer::json(402, r#"{"errors": "Payment Required"}"#)]).await.is_failed(
        "vendor_refused",
        402,
        "Payment",
    );
    recipe.keys_are_refused(unauthorized(), vec![Answer::json(200, data)]).await;
    recipe.app.stop().await;
}

async fn hubspot(backend: Backend) {
    let mut recipe = Recipe::start(backend, "hubspot", "api.hubapi.com").await;
    recipe.after(vec![good()]).await.is_complete(1, 1);
    let seen = recipe.seen();
    assert_asked(&seen[0], "GET", "/crm/v3/objects/contacts/151?properties=email,firstname,lastname");
    assert_eq!(seen[0].header("authorization"), Some(&*format!("Bearer {}", secret("HUBSPOT_TOKEN"))));
    let nobody = Answer::json(404, r#"{"status":"error","category":"OBJECT_NOT_FOUND"}"#);
    let ended = recipe.after(vec![nobody]).await;
    assert_eq!(ended.is_complete(1, 1).job["result"]["category"], "OBJECT_NOT_FOUND");
    let over = |policy: &str| {
        let body = json!({"status": "error", "errorType": "RATE_LIMIT", "policyName": policy});
        Answer::json(429, body.to_string()).header("x-hubspot-ratelimit-interval-milliseconds", "10000")
    };
    recipe.after(vec![over("TEN_SECONDLY_ROLLING"), good()]).await.is_complete(2, 1).took(10..15);
    recipe.after(vec![over("DAILY"), good()]).await.is_complete(2, 1).took(1800..1810);
    let wrong = Answer::json(400, r#"{"message":"Property values were not valid"}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 400, "not valid");
    recipe.after(vec![Answer::status(502), good()]).await.is_complete(2, 2);
    recipe.keys_are_refused(unauthorized(), vec![good()]).await;
    recipe.app.stop().await;
}

async fn microsoft_graph(backend: Backend) {
    const LOGIN: &str = "login.microsoftonline.com";
    let mut recipe = Recipe::start(backend, "microsoft-graph", "graph.microsoft.com").await;
    // The identity provider refuses the app; the vendor waits for it.
    let words = r#"{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}"#;
    recipe.says(LOGIN, vec![Answer::json(401, words)]);
    let id = recipe.submit(0).await;
    recipe.app.run_for(std::time::Duration::from_secs(1)).await;
    let vendor = recipe.app.get("/vendors/graph").await.json();
    assert_eq!((&vendor["blocked_on"], recipe.app.status(&id).await), (&json!("credentials"), "pending".to_owned()));
    assert!(vendor["last_error"].to_string().contains("AADSTS7000215"), "{vendor}");
    recipe.says(LOGIN, vec![token(1)]);
    recipe.says("graph.microsoft.com", vec![good()]);
    recipe.app.run_until_idle().await;
    assert_eq!(recipe.app.status(&id).await, "complete");
    let (logins, calls) = (recipe.seen_at(LOGIN), recipe.seen());
    assert_asked(&logins[0], "POST", &format!("/{}/oauth2/v2.0/token", secret("AZURE_TENANT_ID")));
    let form = body_of(&logins[0]);
    let client = format!("client_id={}", secret("AZURE_CLIENT_ID"));
    let scope = "scope=https%3A%2F%2Fgraph.microsoft.com%2F.default";
    assert!(form.contains(&client) && form.contains("client_secret=") && form.contains(scope), "{form}");
    assert_asked(&calls[0], "GET", "/v1.0/users/adele%40contoso.com?$select=displayName,mail,accountEnabled");
    assert_eq!(calls[0].header("authorization"), Some("Bearer t1"));
    // A token that is refused early, an answer that says nobody, both forms of a limit, and a missing permission.
    recipe.says(LOGIN, vec![token(2)]);
    let ended = recipe.after(vec![unauthorized(), good()]).await;
    assert_eq!((&ended.job["status"], &ended.job["tries"]), (&json!("complete"), &json!(1)), "{}", ended.job);
    assert_eq!(recipe.seen()[1].header("authorization"), Some("Bearer t2"));
    let nobody = Answer::json(404, r#"{"error": {"code": "Request_ResourceNotFound"}}"#);
    recipe.after(vec![nobody]).await.is_complete(1, 1);
    recipe.after(vec![limited().header("retry-after", "41"), good()]).await.is_complete(2, 1).took(41..45);
    recipe.after(vec![limited(), limited(), good()]).await.is_complete(3, 1).took(3..10);
    let forbidden = Answer::json(403, r#"{"error": {"code": "Authorization_RequestDenied"}}"#);
    recipe.after(vec![forbidden]).await.is_failed("vendor_refused", 403, "RequestDenied");
    recipe.app.stop().await;
}

async fn anthropic(backend: Backend) {
    let mut recipe = Recipe::start(backend, "anthropic", "api.anthropic.com").await;
    let last = good().header(DATE.0, DATE.1).header("anthropic-ratelimit-requests-remaining", "0");
    let last = last.header("anthropic-ratelimit-requests-reset", "2026-01-15T08:00:20Z");
    recipe.after(vec![last]).await.is_complete(1, 1);
    let seen = recipe.seen();
    assert_asked(&seen[0], "POST", "/v1/messages");
    assert_eq!(seen[0].header("x-api-key"), Some(&*secret("ANTHROPIC_API_KEY")));
    assert_eq!((seen[0].header("anthropic-version"), body_of(&seen[0])), (Some("2023-06-01"), recipe.payload(0)));
    // Nothing was left: the next call waits for the reset.
    recipe.after(vec![good()]).await.is_complete(1, 1).took(19..23);
    let error = |status, kind: &str| {
        Answer::json(status, json!({"type": "error", "error": {"type": kind, "message": "no"}}).to_string())
    };
    let with_time = error(429, "rate_limit_error").header("retry-after", "15");
    recipe.after(vec![with_time, good()]).await.is_complete(2, 1).took(15..19);
    let overloaded = || error(529, "overloaded_error");
    recipe.after(vec![overloaded(), overloaded(), good()]).await.is_complete(3, 1).took(3..12);
    let spent =
        json!({"error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}});
    let spent = Answer::json(429, spent.to_string());
    recipe.after(vec![spent, good()]).await.is_complete(2, 1).took(3600..3605);
    recipe.after(vec![error(500, "api_error"), good()]).await.is_complete(2, 2);
    let wrong = error(400, "invalid_request_error");
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 400, "invalid_request_error");
    recipe.keys_are_refused(error(401, "authentication_error"), vec![good()]).await;
    recipe.app.stop().await;
}

async fn openai(backend: Backend) {
    let mut recipe = Recipe::start(backend, "openai", "api.openai.com").await;
    let negative = good().header("x-ratelimit-remaining-tokens", "-1").header("x-ratelimit-reset-tokens", "0");
    recipe.after(vec![negative]).await.is_complete(1, 1);
    let seen = recipe.seen();
    assert_asked(&seen[0], "POST", "/v1/responses");
    assert_eq!(seen[0].header("authorization"), Some(&*format!("Bearer {}", secret("OPENAI_API_KEY"))));
    assert_eq!(body_of(&seen[0]), recipe.payload(0));
    recipe.after(vec![good()]).await.is_complete(1, 1).took(0..2);
    let error = |code: &str| Answer::json(429, json!({"error": {"code": code, "message": "no"}}).to_string());
    let spent = error("rate_limit_exceeded").header("x-ratelimit-remaining-requests", "12");
    let spent = spent.header("x-ratelimit-reset-requests", "120ms").header("x-ratelimit-remaining-tokens", "0");
    let spent = spent.header("x-ratelimit-reset-tokens", "6m0s");
    recipe.after(vec![spent, good()]).await.is_complete(2, 1).took(360..365);
    recipe.after(vec![error("insufficient_quota"), good()]).await.is_complete(2, 1).took(3600..3605);
    recipe.after(vec![Answer::status(503), good()]).await.is_complete(2, 2);
    let wrong = Answer::json(404, r#"{"error": {"code": "model_not_found"}}"#);
    recipe.after(vec![wrong]).await.is_failed("vendor_refused", 404, "model_not_found");
    recipe.keys_are_refused(unauthorized(), vec![good()]).await;
    recipe.app.stop().await;
}
