//! The dashboard: a page at `/` and its files, all inside the binary. What it shows it reads from the API, with the key of whoever looks.
//!
//! Never has data of its own, and never loads anything from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

use super::{App, unknown_path};

/// What the page may do: run and load what is here, and talk to this service. Nothing inline, no frames, no forms that leave it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = "index.html";

/// A file of the dashboard, and the tag of its content.
struct File {
    name: &'static str,
    text: &'static str,
    tag: HeaderValue,
}

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../dashboard/", $name)))),+]
    };
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let files = files![
        "index.html",
        "style.css",
        "icon.svg",
        "main.js",
        "api.js",
        "dom.js",
        "json.js",
        "words.js",
        "chart.js",
        "ask.js",
        "actions.js",
        "vendor-data.js",
        "overview.js",
        "vendors.js",
        "vendor.js",
        "jobs.js",
        "job-table.js",
        "job.js",
        "timeline.js",
        "failures.js",
        "failure-table.js",
        "system.js",
    ];
    let file = |(name, text): (&'static str, &'static str)| {
        let digest = Sha256::digest(text);
        let tag: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        File { name, text, tag: HeaderValue::from_str(&format!("\"{tag}\"")).expect("digits in quotes") }
    };
    files.into_iter().map(file).collect()
});

/// `GET /`
pub(super) async fn page(headers: HeaderMap) -> Response {
    answer(PAGE, &headers).await
}

/// The files of the page, for whoever comes: there is nothing in them but the program.
pub(super) fn files() -> Router<Arc<App>> {
    let file = |Path(name): Path<String>, headers: HeaderMap| async move { answer(&name, &headers).await };
    Router::new().route("/dashboard/{file}", get(file))
}

async fn answer(name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return unknown_path().await.into_response();
    };
    let common = [
        (header::ETAG, file.tag.clone()),
        // Kept, but asked for again each time: after an update no page mixes old files with new ones.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    if has_it(headers, &file.tag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, media_type(name))], file.text).into_response()
}

/// Whether the client has the file with this tag already (RFC 9110, 13.1.2: compared weakly).
fn has_it(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|sent| sent == "*" || sent.strip_prefix("W/").unwrap_or(sent).as_bytes() == tag.as_bytes())
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, kind)| kind) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    }
}
